"""A directory of checkpoints in which something happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts.stored_run import EVERY, NUM, weights


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of 24 looks, 10 steps apart, the first one of step 10."""
    folder = tmp_path_factory.mktemp("run")
    for look in range(NUM):
        torch.save(weights(look), folder / f"step-{EVERY * (look + 1)}.pt")
    return folder
