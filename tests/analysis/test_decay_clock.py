"""Could decay alone have done it? Asked of simulated weights, and of recorded trainings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts.made_records import made_record
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.events import explained_by_decay
from sparsitywatch.records import Event, Record

SERIES = "near_zero/initial_0.1"
RECORDED = Path(__file__).parents[2] / "benchmarks" / "recorded" / "runs"


def event(records: list[Record], onset_step: int, **changes) -> Event:
    found = Event(
        series=SERIES,
        direction="up",
        onset_step=onset_step,
        detected_step=records[-1].step,
        baseline=0.05,
        value=records[-1].near_zero.get("initial_0.1", 0.0),
    )
    return replace(found, **changes)


def shrinking(
    share: float, clock: np.ndarray, seed: int = 0, num: int = 40_000, dormant: float | None = None
) -> list[Record]:
    """Weights of which a share gets no gradient and shrinks by decay, weight by weight."""
    random = np.random.default_rng(seed)
    weights = np.abs(random.normal(size=num))
    is_dead = np.arange(num) < share * num
    records = []
    for step, now in enumerate(clock):
        moved = np.where(is_dead, weights * math.exp(-now), weights)
        fraction = float(np.mean(moved <= 0.1))
        records.append(
            made_record(step, fraction, clock=float(now), num_weights=num, dormant=dormant)
        )
    return records


@given(st.floats(0.02, 1.0), st.floats(0.3, 3.0), st.integers(2, 30), st.integers(0, 50))
def test_weights_that_only_shrink_are_on_the_clock(
    share: float, advance: float, num_snapshots: int, seed: int
) -> None:
    records = shrinking(share, np.linspace(0.0, advance, num_snapshots), seed, dormant=share)
    assert explained_by_decay(event(records, 0), records) is True


@given(st.floats(0.1, 0.9), st.integers(2, 20))
def test_weights_that_are_cut_off_are_not(part: float, num_snapshots: int) -> None:
    clock = np.linspace(0.0, 0.5, num_snapshots)
    values = [0.08] * (num_snapshots - 1) + [0.08 + 0.92 * part]
    records = [
        made_record(i, v, clock=float(c))
        for i, (v, c) in enumerate(zip(values, clock, strict=True))
    ]
    assert explained_by_decay(event(records, num_snapshots - 2), records) is False
    # nor if the onset is thought to be earlier: between two looks it is too fast in any case
    assert explained_by_decay(event(records, 0), records) is False


def test_growth_while_the_clock_stands_is_not_decay() -> None:
    records = [made_record(i, 0.05 * 1.1**i, clock=1.0) for i in range(8)]
    assert explained_by_decay(event(records, 0), records) is False


def test_the_noise_of_the_series_is_allowed_for() -> None:
    values = [0.050, 0.050, 0.056, 0.060, 0.064]
    records = [made_record(i, v, clock=0.05 * i, num_weights=10**8) for i, v in enumerate(values)]
    assert explained_by_decay(event(records, 0), records) is False  # 0.11 within 0.05 of the clock
    assert explained_by_decay(event(records, 0, noise=0.002), records) is True


def test_where_next_to_nothing_is_dormant_nothing_is_claimed() -> None:
    clock = np.linspace(0.0, 1.0, 8)
    assert explained_by_decay(event(shrinking(0.3, clock), 0), shrinking(0.3, clock)) is True
    for dormant, told in ((0.3, True), (0.05, True), (0.01, None), (math.nan, True)):
        records = shrinking(0.3, clock, dormant=dormant)
        assert explained_by_decay(event(records, 0), records) is told


def test_what_cannot_be_told() -> None:
    records = shrinking(0.3, np.linspace(0.0, 1.0, 8))
    for changes in (
        {"direction": "down"},
        {"series": "near_zero/rms_0.1"},
        {"series": "near_zero/abs_0.5"},  # not in these records
        {"series": "motion/dormant"},
        {"series": "essential_sparsity/value"},
    ):
        assert explained_by_decay(event(records, 0, **changes), records) is None
    assert explained_by_decay(event(records, 0, series="near_zero/zero"), records) is False
    unknown = [replace(r, decay_clock=math.nan) for r in records]
    assert explained_by_decay(event(unknown, 0), unknown) is None
    assert explained_by_decay(event(records[:1], 0), records[:1]) is None
    from_nothing = [replace(r, near_zero={"initial_0.1": 0.0}) for r in records[:-1]]
    assert (
        explained_by_decay(event([*from_nothing, records[-1]], 0), [*from_nothing, records[-1]])
        is None
    )


@pytest.mark.parametrize(
    ("kind", "expected"), [("bert-relu-wd1", True), ("vit-relu-wd1", True), ("bert-wsd-wd1", True),
                           ("bert-switch-wd", True), ("bert-prune-hold", False), ("bert-l1", False)]
)  # fmt: skip
def test_recorded_trainings(kind: str, expected: bool) -> None:
    """Dead units under strong decay; weights pruned, or shrunk by a penalty, at a known step."""
    found = sorted(RECORDED.glob(f"{kind}-s?.json"))
    assert found
    for path in found:
        run = json.loads(path.read_text())
        series = {name: run["series"][name] for name in (SERIES, "motion/decay_clock")}
        seen = run["label"]["near_zero"]["initial_0.1"]["steps"]["1.5"]
        values = dict(zip(run["steps"], series[SERIES], strict=True))
        steps = [step for step in run["steps"] if step <= seen]
        floor = min(values[step] for step in steps)
        onset = max(step for step in steps if values[step] <= 1.1 * floor)
        clock = dict(zip(run["steps"], series["motion/decay_clock"], strict=True))
        dormant = dict(zip(run["steps"], run["series"]["motion/dormant"], strict=True))
        records = [
            made_record(
                step,
                values[step],
                clock=clock[step],
                dormant=math.nan if dormant[step] is None else dormant[step],
                num_weights=run["num_weights"],
            )
            for step in steps
        ]
        noise = 0.01 * floor
        assert explained_by_decay(event(records, onset, noise=noise), records) is expected, (
            path.name
        )
