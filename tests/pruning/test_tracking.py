"""Few levels a snapshot, and still the estimate of the full grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch.analysis.estimate import essential_sparsity
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pruning.partial import Point
from sparsitywatch.pruning.sweep import points_of
from sparsitywatch.pruning.tracking import Tracking
from sparsitywatch.records import EssentialSparsity, SparsityCurve
from sparsitywatch.records.codec import from_json, to_json

DENSE = 2.0
ALLOWED = 0.01 * DENSE
GRID = [i / 100 for i in range(101)]

Harm = Callable[[float], float]


def allowed(dense: float) -> float:
    return (0.01 + 1e-12) * dense


class Snapshot:
    """One snapshot of a made-up model: harm, and its error, in units of what is allowed."""

    def __init__(self, harm: Harm, error: Harm = lambda level: 0.0) -> None:
        self.harm, self.error = harm, error
        self.measured: list[float] = []

    def __call__(self, level: float) -> Point:
        if level not in self.measured:
            self.measured.append(level)
        return points_of(self.curve([0.0, level]), allowed)[-1]

    @property
    def between(self) -> list[float]:
        return [level for level in self.measured if 0 < level < 1]

    def curve(self, levels: list[float] | None = None) -> SparsityCurve:
        levels = sorted(self.measured if levels is None else levels)
        return SparsityCurve(
            levels,
            [DENSE + ALLOWED * self.harm(level) for level in levels],
            [ALLOWED * self.error(level) for level in levels],
            higher_is_better=False,
            num_examples=200,
        )

    def estimate(self) -> EssentialSparsity:
        return essential_sparsity(self.curve())

    def full(self) -> EssentialSparsity:
        return essential_sparsity(self.curve(GRID))


def follow(snapshots: list[Snapshot], sweep: Tracking | None = None) -> list[Snapshot]:
    """Sweep the snapshots one after another, each from the curve before."""
    previous: tuple[Point, ...] = ()
    for snapshot in snapshots:
        (sweep or Tracking()).choose(snapshot, previous)
        previous = points_of(snapshot.curve(), allowed)
    return snapshots


def power(crossing: float, exponent: float = 8.0) -> Harm:
    return lambda level: (level / crossing) ** exponent


def with_dip(harm: Harm, start: float, width: float) -> Harm:
    return lambda level: 3.0 if start <= level <= start + width else harm(level)


crossings = st.floats(0.02, 0.98)
exponents = st.floats(0.5, 30.0)


@given(st.lists(st.tuples(crossings, exponents), min_size=2, max_size=6))
def test_harm_that_rises_without_noise_gives_the_estimate_of_the_full_grid(shapes) -> None:
    for snapshot in follow([Snapshot(power(*shape)) for shape in shapes]):
        assert snapshot.estimate().value == pytest.approx(snapshot.full().value, abs=1e-6)


steps = st.lists(st.sampled_from([0.0, 0.0, 0.02, 0.3, 2.0, math.inf]), min_size=100, max_size=100)


@given(st.lists(steps, min_size=1, max_size=3))
def test_so_does_any_harm_that_rises_in_steps_and_breaks_down(rises) -> None:
    """Any monotone curve: shelves, cliffs, models that break."""
    snapshots = []
    for rise in rises:
        harms = np.concatenate([[0.0], np.cumsum(rise)])
        snapshots.append(Snapshot(lambda level, harms=harms: float(harms[round(100 * level)])))
    for snapshot in follow(snapshots):
        full = snapshot.full()
        assert snapshot.estimate().informative == full.informative
        if full.informative:
            assert snapshot.estimate().value == pytest.approx(full.value, abs=1e-6)


def test_a_settled_crossing_takes_two_levels_and_a_check() -> None:
    snapshots = follow([Snapshot(power(0.605)) for _ in range(20)])
    assert all(len(snapshot.between) <= 3 for snapshot in snapshots[3:])
    assert {0.6, 0.61} <= set(snapshots[-1].between)
    bare = follow([Snapshot(power(0.605)) for _ in range(20)], Tracking(checks_below=False))
    assert all(len(snapshot.between) == 2 for snapshot in bare[3:])


def test_a_drifting_crossing_takes_few() -> None:
    snapshots = follow([Snapshot(power(0.6 + 0.1 * math.sin(t / 10))) for t in range(60)])
    assert np.mean([len(snapshot.between) for snapshot in snapshots[1:]]) <= 4.0


@given(crossings, crossings)
def test_a_jump_is_followed_with_a_bounded_number_of_levels(before: float, after: float) -> None:
    snapshot = follow([Snapshot(power(before)), Snapshot(power(after))])[1]
    assert abs(snapshot.estimate().value - snapshot.full().value) <= 1e-6
    assert len(snapshot.between) <= 16


@pytest.mark.parametrize("crossing", [0.002, 0.05, 0.995])
def test_a_crossing_outside_the_levels_of_the_first_snapshot(crossing: float) -> None:
    for snapshot in follow([Snapshot(power(crossing)) for _ in range(3)]):
        assert abs(snapshot.estimate().value - snapshot.full().value) <= 0.01


def noisy(crossing: float) -> Snapshot:
    return Snapshot(power(crossing), lambda level: 0.3 * math.sqrt(level))


def test_with_errors_both_ends_of_the_interval_are_measured() -> None:
    snapshots = follow([noisy(0.6 + 0.03 * math.sin(t)) for t in range(40)])[1:]
    for snapshot in snapshots:
        found, full = snapshot.estimate(), snapshot.full()
        assert abs(found.value - full.value) <= 0.01
        assert found.low == pytest.approx(full.low, abs=0.03)
        assert found.high == pytest.approx(full.high, abs=0.03)
        assert found.low <= full.value <= found.high
    assert np.mean([len(snapshot.between) for snapshot in snapshots]) <= 5.0


def test_a_dip_below_the_interval_is_met_in_time() -> None:
    """Within 3 / w snapshots, wherever it opens; w is its share of the levels below."""
    for start in (0.05, 0.13, 0.3, 0.42):
        for width in (0.05, 0.1):
            calm = follow([Snapshot(power(0.6)) for _ in range(5)])
            dipped = [
                Snapshot(with_dip(power(0.6), start, width)) for _ in range(round(3 * 0.6 / width))
            ]
            snapshots = follow(calm + dipped)
            assert abs(snapshots[-1].estimate().value - snapshots[-1].full().value) <= 0.01


def test_every_level_below_the_interval_is_checked_in_its_turn() -> None:
    snapshots = follow([Snapshot(power(0.605)) for _ in range(75)])
    checked = {min(snapshot.between) for snapshot in snapshots[1:]}
    assert checked >= {i / 100 for i in range(1, 58)}


def test_once_met_a_dip_is_followed_and_when_it_closes_left() -> None:
    dip = with_dip(power(0.8), 0.3, 0.15)
    snapshots = follow([Snapshot(dip) for _ in range(3)] + [Snapshot(power(0.8)) for _ in range(3)])
    for snapshot in snapshots:
        assert abs(snapshot.estimate().value - snapshot.full().value) <= 0.01


def test_without_checks_it_is_not_seen() -> None:
    """The test of the checks can fail."""
    snapshots = [Snapshot(power(0.6))] + [
        Snapshot(with_dip(power(0.6), 0.13, 0.05)) for _ in range(40)
    ]
    follow(snapshots, Tracking(checks_below=False))
    assert snapshots[-1].estimate().value == pytest.approx(0.6, abs=0.01)


def test_where_nothing_is_crossed_nothing_is_measured_between() -> None:
    snapshots = follow(
        [Snapshot(lambda level: 0.5 * level) for _ in range(2)] + [Snapshot(power(0.7))]
    )
    assert snapshots[0].between == snapshots[1].between == []
    assert not snapshots[1].estimate().informative
    assert abs(snapshots[2].estimate().value - snapshots[2].full().value) <= 1e-6


def test_a_snapshot_depends_on_the_curve_before_and_nothing_else() -> None:
    """So a resumed run, which reads that curve from its records, goes on alike."""
    sweep = Tracking()
    snapshots = follow([noisy(0.6 + 0.03 * math.sin(t)) for t in range(12)], sweep)
    for before, snapshot in itertools.pairwise(snapshots):
        again = Snapshot(snapshot.harm, snapshot.error)
        stored = from_json(SparsityCurve, to_json(before.curve()))
        Tracking().choose(again, points_of(stored, allowed))
        assert again.measured == snapshot.measured


def test_a_previous_curve_of_another_sweep_is_as_good() -> None:
    previous = points_of(Snapshot(power(0.5)).curve([0.0, 0.0375, 0.4625, 0.55, 1.0]), allowed)
    snapshot = Snapshot(power(0.52))
    Tracking().choose(snapshot, previous)
    assert abs(snapshot.estimate().value - snapshot.full().value) <= 1e-6
    assert len(snapshot.between) <= 6


class Job:
    """A model whose weights grow, watched with tracking into a folder."""

    def __init__(self, logdir: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 2))
        x = torch.randn(40, 6)
        y = self.model(x).detach() + 0.3 * torch.randn(40, 2)
        self.proxy = sw.Proxy([[x, y]], lambda m, b: (m(b[0]) - b[1]).square().mean(dim=1))
        self.watcher = self.watch(logdir)

    def watch(self, logdir: Path) -> sw.Watcher:
        options = {
            "max_overhead": None,
            "every": 1,
            "tolerance": 0.05,
            "strict": True,
            "levels": sw.sweeps.Tracking(),
        }
        return sw.watch(self.model, None, proxy=self.proxy, logdir=logdir, **options)

    def snapshot(self, times: int) -> None:
        for _ in range(times):
            with torch.no_grad():
                self.model[0].weight.mul_(1.01)
            self.watcher.step()


def test_a_watch_that_is_resumed_goes_on_tracking(tmp_path: Path) -> None:
    straight = Job(tmp_path / "straight")
    straight.snapshot(6)
    straight.watcher.close()
    job = Job(tmp_path / "resumed")
    job.snapshot(3)
    state = job.watcher.state_dict()
    job.watcher.close()
    job.watcher = job.watch(tmp_path / "resumed")
    job.watcher.load_state_dict(state)
    job.snapshot(3)
    job.watcher.close()
    records = straight.watcher.records
    assert [r.curve for r in job.watcher.records] == [r.curve for r in records]
    assert records[-1].essential_sparsity.informative
    first, *later = (record.cost.num_forwards for record in records)
    assert first > np.mean(later) + 3


@pytest.mark.parametrize("resolution", [0.003, 0.03, 0.07, 0.5])
def test_levels_are_multiples_of_the_resolution(resolution: float) -> None:
    for snapshot in follow(
        [Snapshot(power(0.61)), Snapshot(power(0.63))], Tracking(resolution=resolution)
    ):
        for level in snapshot.between:
            assert level / resolution == pytest.approx(round(level / resolution), abs=1e-3)
        crossing = 0.61 if snapshot.harm(0.61) == 1.0 else 0.63
        assert abs(snapshot.estimate().value - crossing) <= resolution


@pytest.mark.parametrize("resolution", [0.0, -0.01, 0.6, math.nan, "0.01", True])
def test_a_resolution_out_of_range_is_refused(resolution) -> None:
    with pytest.raises(ConfigurationError, match=r"`resolution` to be in \(0, 0.5\]"):
        Tracking(resolution=resolution)


@pytest.mark.parametrize("levels", [(), (1.0,), (-0.1,), ("0.5",)])
def test_levels_out_of_range_are_refused(levels) -> None:
    with pytest.raises(ConfigurationError, match="`levels"):
        Tracking(levels=levels)


def test_the_interval_covers_as_often_as_that_of_the_full_grid() -> None:
    """Samples of 200 examples, errors alike from level to level as on the same examples."""
    rng = np.random.default_rng(0)
    held = []
    previous: tuple[Point, ...] = ()
    for t in range(400):
        crossing = 0.6 + 0.05 * math.sin(t / 3)
        knots = rng.standard_normal(11)

        def error(level: float) -> float:
            return 0.4 * min(level / 0.2, 1.0)

        def harm(level: float, crossing=crossing, knots=knots) -> float:
            noise = np.interp(level, np.linspace(0, 1, 11), knots)
            return (level / crossing) ** 6 + error(level) * noise

        snapshot = Snapshot(harm, error)
        Tracking().choose(snapshot, previous)
        previous = points_of(snapshot.curve(), allowed)
        estimate = snapshot.estimate()
        held.append(estimate.low <= crossing <= estimate.high)
    assert np.mean(held[1:]) >= 0.85
