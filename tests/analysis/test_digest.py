"""Runs in short, and what keeps them from being compared."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from contracts import fake_run
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.digest import alike, decay_clock_at, differences, digest
from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Record, WatchState

RECORDS = [record for record, _ in fake_run.looks(range(0, 2001, 200))]
FIELDS = {
    "scope_hash": "07her",
    "proxy_hash": "07her",
    "tolerance": 0.02,
    "tolerance_mode": "absolute",
    "pattern": "layerwise",
    "evaluation": "fine-tuned",
    "dtypes": ("bfloat16", "float32"),
}


def with_provenance(records: list[Record], **changes: object) -> list[Record]:
    return [replace(r, provenance=replace(r.provenance, **changes)) for r in records]


def test_series_ends_and_extremes_by_hand() -> None:
    look = RECORDS[0]
    values = (0.3, math.nan, 0.1, 0.5, 0.2)
    records = [
        replace(look, step=10 * i, near_zero={"zero": value}) for i, value in enumerate(values)
    ]
    records[3] = replace(records[3], valid=False)  # what it measured counts
    summary = digest(Run(records))
    found = summary.series["near_zero/zero"]
    assert (found.first, found.last) == (0.3, 0.2)
    assert (found.lowest, found.lowest_step) == (0.1, 20)
    assert (found.highest, found.highest_step) == (0.5, 30)
    assert (summary.num_records, summary.num_invalid) == (5, 1)


def test_a_digest_by_hand() -> None:
    records = [
        replace(RECORDS[0], decay_clock=0.5),
        replace(RECORDS[1], decay_clock=0.7, near_zero={"initial_0.1": 0.1, "zero": 0.2}),
        replace(RECORDS[2], decay_clock=1.5, near_zero={"initial_0.1": 0.3}, valid=False),
        # nothing could be measured here
        replace(
            fake_run.without(RECORDS[3], "dormant", "essential_sparsity"),
            near_zero={}, decay_clock=math.nan,
        ),
    ]  # fmt: skip
    (event, _) = fake_run.events()
    event = replace(event, onset_step=350, detected_step=400)
    found = digest(Run(records, [event], name="a"))
    assert (found.name, found.num_records, found.num_invalid) == ("a", 4, 1)
    assert (found.first_step, found.last_step) == (0, 600)
    assert (found.last("motion/decay_clock"), found.series["motion/decay_clock"].last_step) == (
        1.5, 400,
    )  # fmt: skip
    assert found.last("near_zero/initial_0.1") == 0.3
    assert found.last("near_zero/zero") == 0.2
    assert math.isnan(found.last("near_zero/abs_7"))
    assert found.last("motion/dormant") == records[2].dormant.fraction
    assert found.essential_sparsity == records[2].essential_sparsity
    assert found.estimated_step == 400
    assert found.events == (event,)
    assert found.onset_clock[event.id] == pytest.approx(0.7 + 0.75 * 0.8)


def test_what_all_snapshots_cost_is_the_sum_and_the_share_the_last_one_known() -> None:
    costs = [
        replace(RECORDS[0].cost, stall_s=0.25 * i, num_left_out=i, overhead=overhead)
        for i, overhead in enumerate((0.5, 0.03, math.nan))
    ]
    records = [replace(r, cost=c) for r, c in zip(RECORDS[:3], costs, strict=True)]
    found = digest(Run(records)).cost
    assert (found.stall_s, found.num_left_out, found.overhead) == (0.75, 3, 0.03)
    assert found.num_forwards == sum(cost.num_forwards for cost in costs)
    info = replace(fake_run.run_info(), state=WatchState(status="closed", step=9, wall_time=0.0))
    assert digest(Run(records, (), info)).cost.overhead == 0.03
    state = replace(info.state, overhead=0.04, wall_time=2e9)
    assert digest(Run(records, (), replace(info, state=state))).cost.overhead == 0.04


def test_the_last_estimate_counts_even_if_it_is_not_informative() -> None:
    nothing = replace(RECORDS[-1].essential_sparsity, value=math.nan, informative=False)
    records = [RECORDS[-2], replace(RECORDS[-1], essential_sparsity=nothing)]
    assert digest(Run(records)).essential_sparsity.informative is False


def test_without_its_proxy_a_digest_keeps_what_weights_tell() -> None:
    run = Run(RECORDS, fake_run.events())
    whole, part = digest(run), digest(run, weights_only=True)
    assert [e.series for e in whole.events] == ["value/reliance", "near_zero/initial_0.1"]
    assert [e.series for e in part.events] == ["near_zero/initial_0.1"]
    assert part.essential_sparsity is None
    dropped = whole.series.keys() - part.series.keys()
    assert {name.partition("/")[0] for name in dropped} == {"value", "essential_sparsity", "xray"}
    assert all(part.series[name] == whole.series[name] for name in part.series)


def test_an_event_that_several_series_saw_is_kept_for_those_that_may_be_compared() -> None:
    (event, _) = fake_run.events()
    event = replace(event, related=("essential_sparsity/value", "motion/dormant"), onset_high=640)
    run = Run(RECORDS, [event])
    (whole,) = digest(run).events
    assert whole == event
    (part,) = digest(run, weights_only=True).events
    assert (part.series, part.direction, part.related) == ("motion/dormant", "", ())
    assert (part.id, part.onset_low, part.onset_high) == (event.id, 600, 640)
    assert math.isnan(part.value)  # in units of the other series
    assert math.isnan(part.baseline)


def test_no_record_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="at least one record, got none: the run 'a'"):
        digest(Run([], name="a"))


@given(
    clock=st.lists(st.floats(0.0, 2.0) | st.just(math.nan), min_size=1, max_size=8),
    step=st.integers(-5, 80),
)
def test_the_clock_between_looks_against_a_loop(clock: list[float], step: int) -> None:
    total = np.cumsum(np.nan_to_num(clock))
    values = [math.nan if math.isnan(x) else float(t) for x, t in zip(clock, total, strict=True)]
    records = [replace(RECORDS[0], step=10 * i, decay_clock=x) for i, x in enumerate(values)]
    expected = math.nan
    known = [(10 * i, x) for i, x in enumerate(values) if not math.isnan(x)]
    for left, right in zip(known, known[1:] + known[-1:], strict=True):
        if left[0] <= step <= right[0]:
            share = (step - left[0]) / max(right[0] - left[0], 1)
            expected = left[1] + share * (right[1] - left[1])
            break
    found = decay_clock_at(records, step)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def named(records: dict[str, list[Record]]) -> list[Run]:
    return [Run(found, name=name) for name, found in records.items()]


def grouped(runs: dict[str, list[Record]], **how: bool) -> list[list[str]]:
    return [[run.name for run in group] for group in alike(named(runs), **how)]


def test_the_same_provenance_can_be_compared() -> None:
    # versions, and what steps count, are in the provenance, too, and forbid nothing
    other = with_provenance(RECORDS, sparsitywatch="0.2", torch="3", unit="epoch")
    runs = {"a": RECORDS, "b": RECORDS[:3], "c": other}
    assert differences(named(runs)) == []
    assert grouped(runs) == [["a", "b", "c"]]


@pytest.mark.parametrize(("field", "value"), FIELDS.items(), ids=FIELDS)
def test_each_field_that_differs_parts_the_runs(field: str, value: object) -> None:
    runs = {"b": with_provenance(RECORDS, **{field: value}), "a": RECORDS, "c": RECORDS}
    (line,) = differences(named(runs))
    assert re.fullmatch(rf"  {field}: .* in b; .* in a, c", line)
    assert grouped(runs) == [["a", "c"], ["b"]]
    # among them the scope alone matters to what only weights tell
    assert bool(differences(named(runs), weights_only=True)) == (field == "scope_hash")
    assert len(grouped(runs, weights_only=True)) == 1 + (field == "scope_hash")


def test_every_field_of_the_provenance_is_thought_of() -> None:
    fields = set(RECORDS[0].provenance.__dataclass_fields__)
    assert fields - {"sparsitywatch", "torch", "unit"} == set(FIELDS)


def test_a_run_that_changed_on_its_way_is_told_with_the_step() -> None:
    changed = [*RECORDS[:4], *with_provenance(RECORDS[4:], proxy_hash="07her")]
    runs = {"a": RECORDS, "b": changed, "c": changed}
    assert differences(named(runs)) == [
        "  proxy_hash: 9r0xy in a, b, c; 07her in b from step 800, c from step 800"
    ]
    assert grouped(runs) == [["a"], ["b"], ["c"]]  # nor is one comparable with itself
