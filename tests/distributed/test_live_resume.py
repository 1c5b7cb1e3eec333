"""A run goes on where it was left: on as many ranks as before, on more, on fewer, on one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.logged import assert_same
from contracts.rank_cases import Came, case
from contracts.sharded import Training, lines, log_of
from torch import distributed

pytestmark = pytest.mark.slow

STOPPED_AT = 4  # between two snapshots


def first_half(folder: Path, way: str) -> Any:
    """Train up to a step that is not watched, and leave everything in the folder."""
    training = Training(way)
    watcher = training.watch(folder / "log")
    training.train(until=STOPPED_AT)
    state, checkpoint = watcher.state_dict(), training.checkpoint()
    if is_first():
        torch.save({"training": checkpoint, "watch": state}, folder / "checkpoint.pt")
    watcher.close()
    del state["log"]  # the only thing that differs would be a name
    return sorted(flat(state))


def is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def flat(state: Any, path: str = "") -> list[str]:
    """All that a state holds, as text: bits of tensors, and NaN."""
    if isinstance(state, dict):
        return [x for key, value in state.items() for x in flat(value, f"{path}/{key}")]
    if isinstance(state, (list, tuple)):
        return [x for i, value in enumerate(state) for x in flat(value, f"{path}/{i}")]
    if hasattr(state, "tolist"):
        return [f"{path}: {state.dtype} {state.tolist()}"]
    return [f"{path}: {state!r}"]


def second_half(folder: Path, of: str, way: str, *, loads: bool) -> list[str]:
    """Go on from a copy of what a case left; ``loads``: this rank loads the watch's state."""
    if is_first():
        shutil.copytree(folder.parent / of, folder, dirs_exist_ok=True)
    if distributed.is_initialized():
        distributed.barrier()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    training = Training(way)
    training.restore(saved["training"])
    with training.watch(folder / "log") as watcher:
        if loads:
            watcher.load_state_dict(saved["watch"])
        training.train()
        assert watcher.off == ""
        return lines(watcher.records)


#: Cases that go on from what an earlier one has left, by name: how many ranks, and how they share
#: the model; from which case; whether this rank loads the state of the watch.
HALVES: dict[str, tuple[int, str, str, Callable[[], bool]]] = {
    "onto two": (2, "fsdp", "from two", lambda: True),
    "onto two where rank 0 alone loads": (2, "ddp", "from two of DDP", is_first),
    "onto one": (0, "one", "from two", lambda: True),
    "from one onto two": (2, "fsdp", "from one", lambda: True),
    "onto two by the log alone": (2, "fsdp", "from two", lambda: False),
}
FIRST = {
    "from two": (2, "fsdp"),
    "from two of DDP": (2, "ddp"),
    "from one": (0, "one"),
}
for _name, (_num, _way) in FIRST.items():
    case(_num, among=2, name=_name)(lambda folder, way=_way: first_half(folder, way))
for _name, (_num, _way, _of, _loads) in HALVES.items():
    case(_num, among=2, name=_name)(
        lambda folder, way=_way, of=_of, loads=_loads: second_half(folder, of, way, loads=loads())
    )


@pytest.mark.parametrize("name", [*HALVES][:-1])
def test_records_after_a_resume_are_those_of_a_run_that_was_not_interrupted(
    name: str, came: Came
) -> None:
    (expected,) = came("one_13")
    for records in came(name):
        assert_same(records, expected["records"])
    log = came.folder(name) / "log"
    assert_same(log_of(log), log_of(came.folder("one_13") / "log"))


def test_without_a_state_the_log_is_gone_on_from_on_every_rank(came: Came) -> None:
    first, second = came("onto two by the log alone")
    assert first == second
    (expected,) = came("one_13")
    assert len(first) == 3
    assert_same(first[0], expected["records"][0])


@pytest.mark.parametrize("name", ["from two", "from two of DDP"])
def test_the_state_is_the_same_on_every_rank_and_on_one(name: str, came: Came) -> None:
    first, second = came(name)
    (alone,) = came("from one")
    assert first == second
    assert len(first) > 20
    # of units that several ranks share an x-ray says nothing
    told, expected = ([x for x in of if "/least_dead/" not in x] for of in (first, alone))
    assert_same(told, expected)
