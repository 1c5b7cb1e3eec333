"""A directory of checkpoints in which something happens, and processes that start at once."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from contracts.forked import TESTS
from contracts.stored_run import save_run

#: What unpickles a job, and what it imports when it first runs.
PRELOADED = ["contracts.live_runs", "transformers.models.bert.modeling_bert",
             "sparsitywatch.offline.jobs"]  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def forking() -> ForkServerContext:
    """Processes are forked from one that has imported what a replay needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        # it looks for them where its environment says alone, and without a word finds none
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
        forkserver.ensure_running()
    return context
