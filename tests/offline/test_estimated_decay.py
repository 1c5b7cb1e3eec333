"""A replay that knows no schedule: what weights without gradient say about weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sparsitywatch as sw
from sparsitywatch.offline.driver import Replayed
from sparsitywatch.records import Cost, to_json

#: The clock advances by so much between two of the checkpoints.
NUM, EVERY, ADVANCE = 16, 100, 0.06
SIZE = 64


def save(folder: Path, advance: float, num_dead: Callable[[int], int]) -> Path:
    """Checkpoints of three matrices; so many rows of the first got no gradient since the last one.

    These have shrunk by ``exp(-advance)``. All others jitter around where they began, those of the
    other matrices far from zero.
    """
    draw = torch.Generator().manual_seed(0)
    starts = [torch.randn(SIZE, SIZE, generator=draw)]
    for _ in range(2):
        size = 0.5 + torch.rand(SIZE, SIZE, generator=draw)
        starts.append(size * torch.randn(SIZE, SIZE, generator=draw).sign())
    before = starts[0]
    for i in range(NUM + 1):
        now = [start + 0.02 * torch.randn(SIZE, SIZE, generator=draw) for start in starts]
        if i:
            now[0][: num_dead(i)] = math.exp(-advance) * before[: num_dead(i)]
        before = now[0]
        weights = {f"layers.{k}.weight": tensor for k, tensor in enumerate(now)}
        torch.save({**weights, "head.weight": torch.ones(2, SIZE)}, folder / f"step-{EVERY * i}.pt")
    return folder


@pytest.fixture(scope="module")
def decayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most of the first matrix decays from the first checkpoint on."""
    return save(tmp_path_factory.mktemp("decayed"), ADVANCE, lambda _: 48)


@pytest.mark.slow
def test_the_advance_is_recorded_and_is_no_decay_clock(decayed: Path) -> None:
    first, *later = sw.replay(decayed, logdir=None).records
    assert math.isnan(first.dormant.estimated_advance)
    for record in later:
        assert record.dormant.estimated_advance == pytest.approx(ADVANCE, abs=2e-5)
        assert math.isnan(record.decay_clock)
        assert record.forecast is None
        assert not any("decay_clock" in name for name in record.series())
    known = sw.replay(decayed, logdir=None, lr=ADVANCE / EVERY, weight_decay=1.0).records
    assert all(math.isnan(record.dormant.estimated_advance) for record in known)


@pytest.mark.slow
def test_even_growth_under_decay_is_told_without_a_schedule(decayed: Path) -> None:
    (event,) = sw.replay(decayed, logdir=None).events
    assert (event.series, event.direction) == ("near_zero/initial_0.1", "up")
    assert event.explained_by_decay is True
    assert math.isnan(event.decay_clock)
    (known,) = sw.replay(decayed, logdir=None, lr=ADVANCE / EVERY, weight_decay=1.0).events
    assert replace(event, decay_clock=known.decay_clock) == known
    assert known.explained_by_decay is True
    # without the weights that tell the advance nothing is abrupt; the level is a note
    (note,) = sw.replay(decayed, logdir=None, dormant_samples=0).events
    assert (note.kind, note.layers) == ("sparser", ("layers.0.weight",))


def told(replayed: Replayed) -> tuple[list[str], list[str]]:
    """Records and events as JSON, but for times and costs."""
    free = Cost(stall_s=0.0, spectrum_s=0.0, evaluation_s=0.0, num_forwards=0)
    records = [
        to_json(replace(record, wall_time=0.0, cost=free, layers=())) for record in replayed.records
    ]
    return records, list(map(to_json, replayed.events))


@pytest.mark.slow
def test_resumed_and_by_workers_it_is_the_same(decayed: Path, tmp_path: Path) -> None:
    whole = sw.replay(decayed, logdir=None)
    first = [str(decayed / f"step-{EVERY * i}.pt") for i in range(NUM // 2)]
    assert len(sw.replay(first, logdir=tmp_path).records) == NUM // 2
    parts = sw.replay(decayed, logdir=tmp_path)
    assert parts.num_snapshots == NUM + 1 - NUM // 2
    with ThreadPoolExecutor(3) as executor:
        by_workers = sw.replay(decayed, logdir=None, executor=executor)
    assert len(whole.events) == 1
    assert told(parts) == told(by_workers) == told(whole)


@pytest.mark.parametrize(("advance", "is_told"), [(0.01, True), (0.0, False)])
def test_units_that_die_are_told_where_decay_is_seen(
    tmp_path: Path, advance: float, is_told: bool
) -> None:
    """Two units are dead from the start, which show what decay does; then more of them die."""
    run = save(tmp_path, advance, lambda i: 2 if i < 6 else min(8 * (i - 5), SIZE))
    events = sw.replay(
        run, logdir=None, detectors={"motion/dormant": sw.detectors.DormantRise()}
    ).events
    assert [event.series for event in events] == ["motion/dormant"] * is_told


@pytest.mark.parametrize("values", [(0.5, 0.5, 0.25), (0.0, 0.0, 0.0), (0.5, 0.0, 0.5)])
def test_weights_that_are_all_one_number_are_measured(tmp_path: Path, values) -> None:
    """Nothing can be estimated of how far living ones move, and nothing is claimed."""
    for step, value in zip((10, 20, 30), values, strict=True):
        tensors = {f"layers.{i}.weight": torch.full((64, 64), value) for i in range(3)}
        torch.save(tensors, tmp_path / f"step-{step}.pt")
    replayed = sw.replay(tmp_path, logdir=None, on_event=())
    assert [record.valid for record in replayed.records] == [True] * 3
    for record in replayed.records[1:]:
        assert "motion/dormant" not in record.series()
        assert record.dormant is None or record.dormant.reason
