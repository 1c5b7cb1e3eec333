"""What runs came to, and what keeps them from being compared."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from contracts import fake_run
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.comparison import (
    decay_clock_at,
    differences,
    digest,
    require_comparable,
)
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Record

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
    found = digest("a", records, [replace(event, onset_step=350, detected_step=400)])
    assert (found.name, found.num_snapshots, found.num_invalid) == ("a", 4, 1)
    assert (found.first_step, found.last_step, found.decay_clock) == (0, 600, 1.5)
    assert found.near_zero["initial_0.1"] == 0.3
    assert found.near_zero["zero"] == 0.2
    assert found.dormant == records[2].dormant.fraction
    assert found.essential_sparsity == records[2].essential_sparsity
    (told,) = found.events
    assert (told.series, told.direction) == ("value/reliance", "up")
    assert (told.onset_step, told.detected_step) == (350, 400)
    assert told.onset_clock == pytest.approx(0.7 + 0.75 * 0.8)


def test_the_last_estimate_counts_even_if_it_is_not_informative() -> None:
    nothing = replace(RECORDS[-1].essential_sparsity, value=math.nan, informative=False)
    records = [RECORDS[-2], replace(RECORDS[-1], essential_sparsity=nothing)]
    assert digest("a", records, []).essential_sparsity.informative is False


def test_without_its_proxy_a_digest_keeps_what_weights_tell() -> None:
    whole = digest("a", RECORDS, fake_run.events())
    part = digest("a", RECORDS, fake_run.events(), weights_only=True)
    assert [e.series for e in whole.events] == ["value/reliance", "near_zero/initial_0.1"]
    assert [e.series for e in part.events] == ["near_zero/initial_0.1"]
    assert part.essential_sparsity is None
    assert (part.near_zero, part.dormant) == (whole.near_zero, whole.dormant)


def test_an_event_that_several_series_saw_is_kept_for_those_that_may_be_compared() -> None:
    (event, _) = fake_run.events()
    event = replace(event, related=("essential_sparsity/value", "motion/dormant"), onset_high=640)
    (whole,) = digest("a", RECORDS, [event]).events
    assert (whole.series, whole.direction) == ("value/reliance", "up")
    assert (whole.onset_low, whole.onset_high) == (600, 640)
    (part,) = digest("a", RECORDS, [event], weights_only=True).events
    assert (part.series, part.direction, part.related) == ("motion/dormant", "", ())


def test_no_record_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="Expected records of the run 'a', got none"):
        digest("a", [], [])


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


def test_the_same_provenance_can_be_compared() -> None:
    runs = {"a": RECORDS, "b": RECORDS[:3]}
    assert differences(runs) == ()
    require_comparable(runs)
    # versions are in the provenance, too, and forbid nothing
    require_comparable({**runs, "c": with_provenance(RECORDS, sparsitywatch="0.2", torch="3")})


@pytest.mark.parametrize(("field", "value"), FIELDS.items(), ids=FIELDS)
def test_each_field_that_differs_is_refused_with_the_runs(field: str, value: object) -> None:
    runs = {"a": RECORDS, "b": with_provenance(RECORDS, **{field: value}), "c": RECORDS}
    (found,) = differences(runs)
    assert found.field == field
    assert sorted(found.runs.values()) == [("a", "c"), ("b",)]
    with pytest.raises(ConfigurationError, match=rf"differ in\n  {field}: .* in a, c; .* in b"):
        require_comparable(runs)
    # among them the scope alone matters to what only weights tell
    assert bool(differences(runs, weights_only=True)) == (field == "scope_hash")


def test_every_field_of_the_provenance_is_thought_of() -> None:
    fields = set(RECORDS[0].provenance.__dataclass_fields__)
    assert fields - {"sparsitywatch", "torch"} == set(FIELDS)


def test_what_helps_is_said_only_where_it_helps() -> None:
    other_proxy = {"a": RECORDS, "b": with_provenance(RECORDS, proxy_hash="")}
    with pytest.raises(ConfigurationError, match=r"9r0xy in a; none in b\n.*--weights-only"):
        require_comparable(other_proxy)
    require_comparable(other_proxy, weights_only=True)
    other_scope = {"a": RECORDS, "b": with_provenance(RECORDS, scope_hash="07her")}
    with pytest.raises(ConfigurationError) as caught:
        require_comparable(other_scope)
    assert "--weights-only" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="watch the same weights"):
        require_comparable(other_scope, weights_only=True)


def test_a_run_that_changed_on_its_way_is_told_with_the_step() -> None:
    changed = [*RECORDS[:4], *with_provenance(RECORDS[4:], proxy_hash="07her")]
    (found,) = differences({"a": RECORDS, "b": changed})
    assert found.runs == {"9r0xy": ("a", "b"), "07her": ("b from step 800",)}
    assert found.describe() == "proxy_hash: 9r0xy in a, b; 07her in b from step 800"
    assert differences({"b": changed}) != ()
