"""Where an event lies, whether decay explains it, and what moved."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from contracts.made_records import counted, made_record
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis import events as events_module
from sparsitywatch.analysis.events import (
    accountable_layers,
    came,
    explained_by_decay,
    rules_that_moved,
    what_moved,
)
from sparsitywatch.records import Dormant, Event, LayerShare, Record

SIZES = {"a": 100, "b": 1000, "c": 10, "d": 100}


def record(**near_zero: float) -> Record:
    layers = tuple(
        LayerShare(name=n, num_weights=SIZES[n], rms=1.0, near_zero={"rms_0.1": x})
        for n, x in near_zero.items()
    )
    return made_record(1, {}, layers=layers, num_weights=1210)


BEFORE = record(a=0.1, b=0.1, c=0.1, d=0.1)


def test_weights_count_not_fractions() -> None:
    # +90 weights in a, +150 in b, +9 in c, -5 in d
    after = record(a=1.0, b=0.25, c=1.0, d=0.05)
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1") == ("b",)
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1", share=0.9) == ("b", "a")
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1", share=1.0) == ("b", "a", "c")


def test_a_fall_is_explained_by_what_fell() -> None:
    after = record(a=0.0, b=0.0, c=0.9, d=0.1)
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1") == ("b",)


@pytest.mark.parametrize("series", ["essential_sparsity/value", "motion/dormant"])
def test_other_series_have_no_layers(series: str) -> None:
    assert accountable_layers(BEFORE, record(a=1.0, b=1.0, c=1.0, d=1.0), series) == ()


def test_dormant_weights_have_layers_where_they_are_known() -> None:
    def dormant(**fractions: float) -> Record:
        bare = record(a=0.1, b=0.1, c=0.1)
        layers = (dataclasses.replace(x, dormant=fractions[x.name]) for x in bare.layers)
        return dataclasses.replace(bare, layers=tuple(layers))

    before, after = dormant(a=0.0, b=0.01, c=0.0), dormant(a=0.5, b=0.02, c=math.nan)
    assert accountable_layers(before, after, "motion/dormant") == ("a",)
    assert accountable_layers(before, after, "motion/dormant", share=1.0) == ("a", "b")


def test_records_without_layers_explain_nothing() -> None:
    bare = dataclasses.replace(BEFORE, layers=())
    assert accountable_layers(bare, BEFORE, "near_zero/rms_0.1") == ()
    assert accountable_layers(BEFORE, bare, "near_zero/rms_0.1") == ()


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


@pytest.mark.slow
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
    # nor if the onset is thought to be earlier: between two snapshots it is too fast in any case
    assert explained_by_decay(event(records, 0), records) is False


def test_where_the_clock_is_no_law_nothing_is_claimed() -> None:
    """Adam divides a coupled decay by the gradient's size: what shrinks tells of no clock."""
    records = unscheduled(shrinking(0.3, np.linspace(0.0, 1.0, 8), dormant=0.3), [True] * 7)
    assert explained_by_decay(event(records, 0), records) is True
    records[-1] = replace(records[-1], why_no_clock="Adam's decay is divided by the gradient")
    assert explained_by_decay(event(records, 0), records) is None


# ------------------------------------------------------------------ how it came

FLAT = [0.05] * 6
SHAPES = {
    "a step": ([*FLAT, 0.11, 0.11], True),
    "two steps": ([*FLAT, 0.08, 0.11, 0.11], True),
    "a step that goes on a little": ([*FLAT, 0.11, 0.115, 0.12], True),
    "a step down": ([0.11] * 6 + [0.05, 0.05], True),
    "a step whose end is not seen": ([*FLAT, 0.11], False),
    "a step that goes on as fast": ([*FLAT, 0.08, 0.11, 0.14], False),
    "a ramp": (FLAT + [0.05 + 0.004 * i for i in range(1, 16)], False),
    "a bend": ([0.094, 0.095, 0.097, 0.101, 0.105], False),
    "exponential": (FLAT + [0.05 + 0.001 * 2**i for i in range(6)], False),
    "logistic": (FLAT + [0.05 + 0.06 / (1 + math.exp(6 - i)) for i in range(13)], False),
    "a steep logistic": (
        FLAT + [0.05 + 0.06 / (1 + math.exp(3 * (2 - i))) for i in range(6)], True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_only_what_came_within_two_snapshots_has_jumped(shape: str) -> None:
    values, jumped = SHAPES[shape]
    records = [made_record(10 * i, value) for i, value in enumerate(values)]
    begun = next(i for i, x in enumerate(values) if x != values[0]) - 1
    seen = event(records, 10 * begun, baseline=values[begun], value=values[-1],
                 direction="up" if values[-1] > values[0] else "down")  # fmt: skip
    assert came(seen, records).get("jumped", False) is jumped
    for size in (0.1, 10.0):  # whatever the unit
        scaled = [replace(r, near_zero={k: min(x * size, 1.0) for k, x in r.near_zero.items()})
                  for r in records]  # fmt: skip
        if size * max(values) <= 1.0:
            told = replace(seen, baseline=size * seen.baseline, value=size * seen.value)
            assert came(told, scaled).get("jumped", False) is jumped


@pytest.mark.parametrize(
    ("after", "peak"),
    [
        ([0.30, 0.1377], 0.30),
        ([0.30, 0.25], math.nan),
        ([0.30, 0.22], 0.30),
        ([0.3, 0.3], math.nan),
    ],
)
def test_what_is_on_its_way_back_has_a_peak(after: list[float], peak: float) -> None:
    """A model is pruned and the weights come back: it jumped to 30 %, whatever is so now."""
    records = [made_record(i, x) for i, x in enumerate([0.05] * 6 + after)]
    seen = event(records, 5, baseline=0.05, value=after[-1])
    found = came(seen, records)
    assert found["jumped"]
    assert found["peak"] == pytest.approx(peak, nan_ok=True)
    told = replace(seen, **found).headline
    assert told.startswith("Near-zero weights (|w| ≤ 0.1 × first rms) jumped from 5 % to 30 %") == (
        after[-1] == 0.3 or peak == 0.3
    )
    assert (f"and is back at {100 * after[-1]:.3g} %" in told) == (peak == 0.3)


def test_growth_while_the_clock_stands_is_not_decay() -> None:
    records = [made_record(i, 0.05 * 1.1**i, clock=1.0) for i in range(8)]
    assert explained_by_decay(event(records, 0), records) is False


def test_the_noise_of_the_series_is_allowed_for() -> None:
    values = [0.050, 0.050, 0.056, 0.060, 0.064]
    records = [made_record(i, v, clock=0.05 * i, num_weights=10**8) for i, v in enumerate(values)]
    assert explained_by_decay(event(records, 0), records) is False  # 0.11 within 0.05 of the clock
    assert explained_by_decay(event(records, 0, noise=0.002), records) is True


@pytest.mark.parametrize(("deviations", "told"), [(3.9, None), (4.1, False)])
def test_beyond_four_standard_deviations_growth_is_faster_than_decay(
    deviations: float, told: bool | None
) -> None:
    """Both of two values are off by 2 % of themselves, and the clock stands."""
    grown = 0.05 * math.exp(deviations * math.sqrt(2.0) * 0.02)
    records = [made_record(i, v, clock=1.0, num_weights=10**8) for i, v in enumerate((0.05, grown))]
    assert explained_by_decay(event(records, 0, noise=0.001), records) is told


@pytest.mark.parametrize(("dormant", "told"), [(0.049, None), (0.051, True)])
def test_a_tenth_of_the_weights_that_decay_must_have_moved_are_seen(
    dormant: float, told: bool | None
) -> None:
    """The share grew by half of what it would have if decay moved all weights."""
    values = (0.05, 0.05 * (1.0 + 0.5 * math.expm1(1.0)))
    records = [made_record(i, v, clock=float(i), dormant=dormant) for i, v in enumerate(values)]
    assert explained_by_decay(event(records, 0), records) is told


def test_where_next_to_nothing_is_dormant_nothing_is_claimed() -> None:
    clock = np.linspace(0.0, 1.0, 8)
    assert explained_by_decay(event(shrinking(0.3, clock), 0), shrinking(0.3, clock)) is True
    for dormant, told in ((0.3, True), (0.05, True), (0.01, None), (math.nan, True)):
        records = shrinking(0.3, clock, dormant=dormant)
        assert explained_by_decay(event(records, 0), records) is told


def unscheduled(records: list[Record], is_seen: Sequence[bool]) -> list[Record]:
    """The same without a clock; its advance since the record before is seen here and there."""
    found = [replace(records[0], decay_clock=math.nan)]
    for (before, now), seen in zip(pairwise(records), is_seen, strict=True):
        advance = now.decay_clock - before.decay_clock if seen else math.nan
        fraction = math.nan if now.dormant is None else now.dormant.fraction
        dormant = Dormant(fraction=fraction, num_sampled=1000, since_step=before.step,
                          estimated=True, estimated_advance=advance)  # fmt: skip
        found.append(replace(now, decay_clock=math.nan, dormant=dormant))
    return found


@pytest.mark.slow
@given(st.data(), st.floats(0.02, 1.0), st.floats(0.3, 3.0), st.integers(2, 12))
def test_a_lower_bound_of_the_clock_only_says_what_the_clock_says(
    data: st.DataObject, share: float, advance: float, num: int
) -> None:
    clock, growth = np.linspace(0.0, advance, num), data.draw(st.floats(0.8, 1.3))
    records = shrinking(share, clock, dormant=share)
    records = [  # some grow faster than decay lets them
        replace(r, near_zero={"initial_0.1": min(r.near_zero["initial_0.1"] * growth**i, 1.0)})
        for i, r in enumerate(records)
    ]
    known = explained_by_decay(event(records, 0), records)
    seen = data.draw(st.lists(st.booleans(), min_size=num - 1, max_size=num - 1))
    for is_seen in (seen, [True] * (num - 1)):
        bound = unscheduled(records, is_seen)
        told = explained_by_decay(event(bound, 0), bound)
        assert told is None or told is known is True
    assert told is (known or None)  # all of it was seen


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


RULES = ("initial_0.1", "rms_0.1", "abs_0.001", "zero")
KINDS = ("normal", "laplace", "uniform", "sparse", "peaked")


def draw(kind: str, seed: int, scale: float, size: int = 8000) -> np.ndarray:
    """Weights as they are drawn at the start, or as they look later in a training."""
    random = np.random.default_rng(seed)
    if kind == "peaked":  # many small ones, a few large
        return scale * random.normal(size=size) * random.normal(size=size)
    if kind == "sparse":  # a part is zero already
        return scale * random.normal(size=size) * (random.random(size) < 0.8)
    draws = {"normal": random.normal, "laplace": random.laplace}
    values = draws[kind](size=size) if kind in draws else random.uniform(-1, 1, size)
    return scale * values


def rms(weights: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.sqrt(np.mean(w**2))) for name, w in weights.items()}


def moved(
    weights: dict, later: dict, series: str = SERIES, rules: tuple[str, ...] = RULES, first=None
) -> str:
    initial = rms(weights) if first is None else first
    before, now = counted(0, weights, initial, rules), counted(1, later, initial, rules)
    return what_moved(before, now, series, initial)


@given(
    st.sampled_from(KINDS),
    st.integers(0, 99),
    st.sampled_from([0.02, 0.2]),
    st.floats(0.25, 0.85) | st.floats(1.2, 4.0),
)
def test_all_weights_times_a_constant_is_scale(
    kind: str, seed: int, scale: float, factor: float
) -> None:
    weights = {"a": draw(kind, seed, scale), "b": draw("normal", seed + 1, 2 * scale)}
    later = {name: factor * w for name, w in weights.items()}
    assert moved(weights, later) == "scale"
    assert moved(weights, later, rules=("initial_0.1",)) == "scale"


@given(st.sampled_from(KINDS), st.integers(0, 99), st.floats(0.1, 0.6))
def test_a_random_part_set_to_zero_is_shape(kind: str, seed: int, part: float) -> None:
    weights = {"a": draw(kind, seed, 0.02), "b": draw("normal", seed + 1, 0.05)}
    random = np.random.default_rng(seed)
    later = {name: w * (random.random(w.size) >= part) for name, w in weights.items()}
    for series in (SERIES, "near_zero/rms_0.1", "near_zero/zero", "motion/dormant"):
        assert moved(weights, later, series) == "shape"


@given(st.sampled_from(["normal", "laplace", "uniform"]), st.integers(0, 99))
def test_a_third_of_the_units_that_decay_takes_away_is_shape_even_while_the_rest_grows(
    kind: str, seed: int
) -> None:
    weights = {"a": draw(kind, seed, 0.02).reshape(80, 100)}
    later = {"a": weights["a"] * 1.1}
    later["a"][:27] = weights["a"][:27] * 0.05
    assert moved(weights, later) == "shape"


def test_shrinking_and_pruning_at_once_is_both() -> None:
    weights = {"a": draw("normal", 0, 0.02, 50_000)}
    later = {"a": 0.5 * weights["a"]}
    later["a"][:4000] = 0.0
    # alone, halving adds 7.9 points and pruning 7.4
    assert moved(weights, later) == "both"
    assert moved(weights, later, "near_zero/rms_0.1") == "both"
    assert moved(weights, later, "essential_sparsity/value") == "both"


def test_the_first_sizes_may_be_of_long_ago() -> None:
    """The threshold is then nowhere near a tenth of the present size."""
    weights = {"a": draw("normal", 3, 0.1, 50_000)}
    for factor in (0.3, 0.7):
        later = {"a": factor * weights["a"]}
        assert moved(weights, later, first={"a": 0.02}) == "scale"
        assert moved(weights, later, first={"a": 1.5}) == "scale"


def test_where_nothing_moved_nothing_is_said() -> None:
    weights = {"a": draw("normal", 0, 0.02)}
    assert moved(weights, weights) == ""
    assert moved(weights, weights, "motion/dormant") == ""
    assert moved(weights, weights, "near_zero/zero", rules=("zero",)) == "shape"


def test_records_that_cannot_be_compared_say_nothing() -> None:
    bare = made_record(1, 0.5)
    assert what_moved(bare, bare, SERIES, {}) == ""
    weights = {"a": draw("normal", 0, 0.02)}
    full = counted(0, weights, rms(weights))
    assert what_moved(full, bare, SERIES, {}) == ""
    other = counted(1, {"b": 0.1 * weights["a"]}, {"b": 0.02})
    assert what_moved(full, other, SERIES, {}) == ""


@pytest.mark.parametrize("part", [0.99, 1.0])
def test_nearly_all_or_all_weights_gone_is_shape(part: float) -> None:
    weights = {"a": draw("normal", 0, 0.02)}
    later = {"a": weights["a"] * (np.arange(8000) >= part * 8000)}
    assert moved(weights, later) == "shape"


def test_without_the_first_sizes_a_flat_density_is_assumed() -> None:
    weights = {"a": draw("normal", 0, 0.02, 50_000)}
    initial = rms(weights)
    before, now = counted(0, weights, initial), counted(1, {"a": 0.5 * weights["a"]}, initial)
    assert what_moved(before, now, SERIES, {}) == "scale"


# ------------------------------------------------------------------ limits, from both sides


def layered(step: int, rms: float, **near_zero: float) -> Record:
    """A record of one layer of this size."""
    layer = LayerShare(name="a", num_weights=10_000, rms=rms, near_zero=near_zero)
    return made_record(step, near_zero, layers=(layer,))


@pytest.mark.parametrize(
    ("share", "cause"), [(0.76, "scale"), (0.74, "both"), (0.26, "both"), (0.24, "shape")]
)
def test_a_cause_of_a_quarter_is_mentioned(share: float, cause: str) -> None:
    """Half of the scale alone makes 20 % near zero of 10 %, and the rest is shape."""
    before = layered(0, 1.0, **{"initial_0.1": 0.1})
    now = layered(1, 0.5, **{"initial_0.1": 0.1 + 0.1 / share})
    assert what_moved(before, now, SERIES, {"a": 1.0}) == cause


@pytest.mark.parametrize(
    ("share", "moved"),
    [(0.951, ""), (0.949, "opposed"), (1.049, ""), (1.051, "agreeing")],
)
def test_a_change_of_a_twentieth_is_one(share: float, moved: str) -> None:
    now, rule = 0.1 * share, "near_zero/rms_0.1"
    before, after = layered(0, 1.0, **{SERIES[10:]: 0.1}), layered(1, 1.0, **{SERIES[10:]: now})
    assert what_moved(before, after, SERIES, {"a": 1.0}) == ("shape" if moved else "")
    rules = [made_record(i, {"initial_0.1": 0.1, "rms_0.1": x}) for i, x in enumerate((0.1, now))]
    seen = event(rules, 0, baseline=0.1)
    found = rules_that_moved(seen, rules)
    assert found == {"agreeing": (), "opposed": ()} | ({moved: (rule,)} if moved else {})


@pytest.mark.parametrize(("rule", "is_small"), [("rms_0.2", True), ("rms_0.21", False)])
def test_a_rule_of_a_fifth_of_the_size_says_what_is_small(rule: str, *, is_small: bool) -> None:
    """The others make up all of the size: of three quarters of the weights it is larger."""
    layer = LayerShare(name="a", num_weights=100, rms=1.0, near_zero={rule: 0.25})
    assert events_module._scale(layer) == pytest.approx(0.75**-0.5 if is_small else 1.0)


@pytest.mark.parametrize(("ratio", "slope"), [(1.09, 1.0), (1.11, 0.0)])
def test_thresholds_closer_than_a_tenth_give_no_slope(ratio: float, slope: float) -> None:
    beside = (math.log(ratio), -1.0)  # no weight is between the two
    found = events_module._follow([beside], (0.0, -1.0), math.log(2.0))
    assert found == pytest.approx(-1.0 + slope * math.log(2.0))
