"""What holds for every test."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

# Beside another process of tests a second thread would only wait for a core. Set before torch is
# imported, and by setdefault: who asks for threads gets them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# The same examples every time, so more of them would find a mistake once or never; and no
# deadline: machines are shared and stand still at times.
settings.register_profile("sparsitywatch", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("sparsitywatch")

#: How a file begins whose every test is slow.
_ALL_SLOW = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.slow\b", re.MULTILINE)


def _is_slow_out(config: pytest.Config) -> bool:
    return "not slow" in config.getoption("markexpr")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="all of each family of tests, not a part")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `whole`, and all but a `part` of cases, unless all is asked for."""
    if config.getoption("whole"):
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    seen: Counter[str] = Counter()
    for item in items:
        is_out = bool(item.get_closest_marker("whole"))
        if not is_out and (part := item.get_closest_marker("part")):
            test = item.nodeid.partition("[")[0]
            is_out = seen[test] % part.args[0] > 0
            seen[test] += 1
        (left_out if is_out else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.hookimpl(optionalhook=True)  # `-p no:xdist`
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a core, and one more for slow tests: they wait for processes that they start."""
    return (os.cpu_count() or 1) + (not _is_slow_out(config))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file that has no test to run: helpers, and what is all slow where slow is out."""
    if collection_path.suffix != ".py":
        return None
    if not collection_path.name.startswith("test_"):
        return True
    return True if _is_slow_out(config) and _ALL_SLOW.search(collection_path.read_text()) else None


@pytest.fixture(autouse=True)
def _nobody_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written are whole: a replay need not wait to see it."""
    jobs = sys.modules.get("sparsitywatch.offline.jobs")
    if jobs is not None:
        monkeypatch.setattr(jobs, "_LEFT_ALONE_S", 0.0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported by now stays: no collection of garbage has to look at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_finish() -> None:
    """Each line of a log is looked at, where one may be written; no stacks are kept as text."""
    if jsonl := sys.modules.get("sparsitywatch.sinks.jsonl"):
        from contracts.log_schema import checked

        jsonl._line = checked(jsonl._line)
    # each seed, for devices that are not there, would keep its caller's: 1 ms
    for name in ("torch.cuda", "torch.xpu", "torch.mtia"):
        if name in sys.modules:
            sys.modules[name].traceback = SimpleNamespace(format_stack=list)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in which what a command says is not folded."""
    monkeypatch.setenv("COLUMNS", "9999")
