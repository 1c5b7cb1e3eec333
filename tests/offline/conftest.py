"""A directory of checkpoints in which something happens, and processes that start at once."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from contracts.stored_run import save_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def forking() -> ForkServerContext:
    """Processes are forked from one that has imported what a replay needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["contracts.live_runs", "sparsitywatch.offline.jobs"])
    forkserver.ensure_running()
    return context
