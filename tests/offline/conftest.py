"""A directory of checkpoints in which something happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts.stored_run import save_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"))
