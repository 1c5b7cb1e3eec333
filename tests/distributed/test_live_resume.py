"""A run goes on where it was left: on as many ranks as before, on more, on fewer, on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
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
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        torch.save({"training": checkpoint, "watch": state}, folder / "checkpoint.pt")
    watcher.close()
    del state["log"]  # the only thing that differs would be a name
    return sorted(flat(state))


def flat(state: Any, path: str = "") -> list[str]:
    """All that a state holds, as text: bits of tensors, and NaN."""
    if isinstance(state, dict):
        return [x for key, value in state.items() for x in flat(value, f"{path}/{key}")]
    if isinstance(state, (list, tuple)):
        return [x for i, value in enumerate(state) for x in flat(value, f"{path}/{i}")]
    if hasattr(state, "tolist"):
        return [f"{path}: {state.dtype} {state.tolist()}"]
    return [f"{path}: {state!r}"]


def second_half(folder: Path, way: str, *, loads: bool = True) -> list[str]:
    """Go on from what the folder holds; ``loads``: whether this rank loads the watch's state."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    training = Training(way)
    training.restore(saved["training"])
    with training.watch(folder / "log") as watcher:
        if loads:
            watcher.load_state_dict(saved["watch"])
        training.train()
        assert watcher.off == ""
        return lines(watcher.records)


def of(folder: Path, name: str) -> Path:
    """Of another case."""
    return folder.parent / name


@case(2)
def from_two(folder: Path) -> Any:
    return first_half(folder, "fsdp")


@case(2)
def onto_two(folder: Path) -> list[str]:
    return second_half(of(folder, "from_two"), "fsdp")


@case(2)
def from_two_of_ddp(folder: Path) -> Any:
    return first_half(folder, "ddp")


@case(2)
def onto_two_where_rank_0_alone_loads(folder: Path) -> list[str]:
    is_first = distributed.get_rank() == 0
    return second_half(of(folder, "from_two_of_ddp"), "ddp", loads=is_first)


@case(2)
def from_two_for_one(folder: Path) -> Any:
    return first_half(folder, "fsdp")


@case(0, among=2)
def onto_one(folder: Path) -> list[str]:
    return second_half(of(folder, "from_two_for_one"), "one")


@case(0, among=2)
def from_one(folder: Path) -> Any:
    return first_half(folder, "one")


@case(2)
def from_one_onto_two(folder: Path) -> list[str]:
    return second_half(of(folder, "from_one"), "fsdp")


@case(2)
def from_two_without_a_state(folder: Path) -> Any:
    return first_half(folder, "fsdp")


@case(2)
def onto_two_by_the_log_alone(folder: Path) -> list[str]:
    return second_half(of(folder, "from_two_without_a_state"), "fsdp", loads=False)


@pytest.mark.parametrize(
    ("name", "log"),
    [
        ("onto_two", "from_two"),
        ("onto_two_where_rank_0_alone_loads", "from_two_of_ddp"),
        ("onto_one", "from_two_for_one"),
        ("from_one_onto_two", "from_one"),
    ],
)
def test_records_after_a_resume_are_those_of_a_run_that_was_not_interrupted(
    name: str, log: str, two: Came
) -> None:
    (expected,) = two("one_13")
    for records in two(name):
        assert records == expected["records"]
    assert log_of(two.folder / log / "log") == log_of(two.folder / "one_13" / "log")


def test_without_a_state_the_log_is_gone_on_from_on_every_rank(two: Came) -> None:
    first, second = two("onto_two_by_the_log_alone")
    assert first == second
    (expected,) = two("one_13")
    assert len(first) == 3
    assert first[0] == expected["records"][0]


@pytest.mark.parametrize("name", ["from_two", "from_two_of_ddp"])
def test_the_state_is_the_same_on_every_rank_and_on_one(name: str, two: Came) -> None:
    first, second = two(name)
    (alone,) = two("from_one")
    assert first == second
    assert len(first) > 20
    assert first == alone
