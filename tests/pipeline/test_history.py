"""Records in, events out: gaps, what is explained, and what a log holds of it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from contracts.made_records import Above, counted, made_record

from sparsitywatch.analysis.detect import AbruptChange, DormantRise
from sparsitywatch.analysis.events import Changes
from sparsitywatch.pipeline.pipeline import History
from sparsitywatch.records import Event, Record, SparsityCurve
from sparsitywatch.settings import Settings, default_detectors

INITIAL, DORMANT, ESSENTIAL = "near_zero/initial_0.1", "motion/dormant", "essential_sparsity/value"


def essential_records(values: list[float]) -> list[Record]:
    """NaN for looks at which it is not informative."""
    return [made_record(25 * i, essential=value) for i, value in enumerate(values)]


def events_of(history: History, records: list[Record]) -> list[Event]:
    return [event for record in records for event in history.add(record).new]


# ------------------------------------------------------------------ gaps


def test_a_fall_in_full_view_is_seen() -> None:
    records = essential_records([0.8] * 20 + [0.5] * 10)
    (event,) = events_of(History({ESSENTIAL: AbruptChange()}), records)
    assert (event.direction, event.trend) == ("down", "densifying")


@pytest.mark.parametrize("gap", [3, 10, 40])
def test_what_happened_while_an_estimate_was_not_informative_is_no_alarm(gap: int) -> None:
    records = essential_records([0.8] * 20 + [math.nan] * gap + [0.5] * 20)
    assert events_of(History({ESSENTIAL: AbruptChange()}), records) == []


def test_an_estimate_that_is_never_informative_is_never_shown_to_a_detector() -> None:
    class Refuses(Above):
        def update(self, step, value, context=None):
            raise AssertionError(value)

    records = essential_records([math.nan] * 20)
    assert events_of(History({ESSENTIAL: Refuses()}), records) == []


def test_short_gaps_are_passed_over() -> None:
    values = [0.8, 0.8, math.nan] * 7 + [math.nan, 0.8, 0.5, math.nan, 0.5, 0.5, 0.5, 0.5]
    (event,) = events_of(History({ESSENTIAL: AbruptChange()}), essential_records(values))
    assert event.baseline == pytest.approx(0.8)


def test_evaluations_that_were_left_out_are_no_gap() -> None:
    """One estimate in ten snapshots, as the budget makes it: its fall is seen all the same."""
    values = [0.8] * 20 + [0.5] * 10
    records = []
    for i, value in enumerate(values):
        records.append(made_record(250 * i, essential=value))
        for k in range(1, 10):
            bare = made_record(250 * i + 25 * k)
            records.append(dataclasses.replace(bare, not_evaluated="left out"))
    (event,) = events_of(History({ESSENTIAL: AbruptChange()}), records)
    assert (event.direction, event.detected_step % 250) == ("down", 0)


def test_after_a_gap_the_next_change_is_seen_again() -> None:
    values = [0.8] * 12 + [math.nan] * 5 + [0.5] * 15 + [0.2] * 10
    (event,) = events_of(History({ESSENTIAL: AbruptChange()}), essential_records(values))
    assert (event.baseline, event.value) == (0.5, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("gap", [1, 3, 10])
@pytest.mark.parametrize(("after", "is_told"), [(0.65, True), (0.12, False)])
def test_weights_that_went_dormant_while_nobody_could_tell_are_told(
    gap: int, after: float, is_told: bool
) -> None:
    """A share is higher than before whatever came between: no word of abrupt is said."""
    shares = [0.11] * 10 + [None] * gap + [after] * 4
    records = [made_record(10 * i, dormant=x, clock=0.01 * i) for i, x in enumerate(shares)]
    events = events_of(History({DORMANT: DormantRise()}), records)
    assert [(e.direction, round(e.baseline, 2), e.value) for e in events] == (
        [("up", 0.11, after)] if is_told else []
    )


def test_a_gap_survives_a_resume() -> None:
    records = essential_records([0.8] * 20 + [math.nan] * 3 + [0.5] * 20)
    for cut in range(1, len(records)):
        first = History({ESSENTIAL: AbruptChange()})
        assert events_of(first, records[:cut]) == []
        second = History({ESSENTIAL: AbruptChange()})
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert events_of(second, records[cut:]) == []


# ------------------------------------------------------------------ what an event says


def test_an_event_says_what_happened() -> None:
    random = np.random.default_rng(0)
    first = {name: 0.02 * random.normal(size=5000) for name in ("a", "b")}
    rms = {name: float(np.sqrt(np.mean(w**2))) for name, w in first.items()}
    history = History({INITIAL: Above(0.3), "near_zero/rms_0.1": Above(0.3)})
    history.initial_rms = rms
    for step in (1, 2, 3):
        assert history.add(counted(step, first, rms)).new == ()
    pruned = {"a": first["a"] * (np.arange(5000) > 3000), "b": first["b"]}
    (event,) = history.add(counted(4, pruned, rms)).new
    assert (event.trend, event.layers, event.change) == ("sparsifying", ("a",), "shape")
    # no decay clock in these records
    assert (event.before_step, event.explained_by_decay) == (3, None)
    assert len(event.related) == 1
    assert event.id == f"{event.series}@3"
    assert history.events == [event]


def test_an_onset_of_long_ago_is_compared_with_the_oldest_layers_there_are() -> None:
    weights = {"a": np.linspace(-1.0, 1.0, 100)}

    class Late(Above):
        def update(self, step, value, context=None):
            event = super().update(step, 1.0) if step == 150 else None
            return event and dataclasses.replace(event, onset_step=10)

    history = History({INITIAL: Late()})
    for step in range(151):
        told = history.add(counted(step, weights, {"a": 1.0}))
    assert told.new[0].before_step == 51


# ------------------------------------------------------------------ what a log holds


def test_events_that_a_kill_kept_out_of_the_log_are_told_when_it_is_taken_up() -> None:
    records = [made_record(i, x) for i, x in enumerate([0.1, 0.1, 0.5])]
    whole = History({INITIAL: Above()})
    (event,) = events_of(whole, records)
    second = History({INITIAL: Above()})
    assert [e.id for e in second.restore(records, [], {}).new] == [event.id]
    assert [e.id for e in second.events] == [event.id]


def test_what_a_log_holds_is_not_told_again() -> None:
    records = [made_record(i, {"initial_0.1": x, "rms_0.1": x}) for i, x in enumerate([0.1, 0.5])]
    whole = History({INITIAL: Above(), "near_zero/rms_0.1": Above()})
    (event,) = events_of(whole, records)
    second = History({INITIAL: Above(), "near_zero/rms_0.1": Above()})
    told = second.restore(records, [event], {})
    assert (told.new, told.revised) == ((), ())
    assert second.events == [event]


def test_a_fall_that_a_kill_kept_out_of_the_log_is_told() -> None:
    values = [0.1, 0.5, 0.5, 0.1, 0.1, 0.1]
    records = [made_record(i, x) for i, x in enumerate(values)]
    whole = History({INITIAL: Above()})
    (event,) = events_of(whole, records)
    second = History({INITIAL: Above()})
    ((amended),) = second.restore(records[:5], [event], {}).revised
    assert repr(amended) == repr(whole.events[0])
    assert (amended.reverted_step, amended.revised_step) == (3, 4)


@pytest.mark.parametrize("cut", range(1, 12))
@pytest.mark.parametrize("way", ["state", "log"])
def test_taken_up_at_any_look_events_are_the_same(cut: int, way: str) -> None:
    initial = [0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 0.6, 0.7, 0.7, 0.2, 0.1, 0.1]
    dormant = [0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    rms = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.1, 0.1]
    records = [
        made_record(10 * i, {"initial_0.1": a, "rms_0.1": b}, dormant=d, clock=0.1 * i)
        for i, (a, b, d) in enumerate(zip(initial, rms, dormant, strict=True))
    ]

    def new() -> History:
        return History({s: Above() for s in (INITIAL, "near_zero/rms_0.1", DORMANT)})

    whole, part, told, logged = new(), new(), [], []
    for record in records:
        changes = whole.add(record)
        told += [(record.step, e) for e in (*changes.new, *changes.revised)]
    for record in records[:cut]:
        changes = part.add(record)
        logged += [*changes.new, *changes.revised]
    again = new()
    assert again.restore(records[:cut], logged, {}) == Changes()
    if way == "state":
        again.load_state_dict(json.loads(json.dumps(part.state_dict())))
    rest = [
        (record.step, e)
        for record in records[cut:]
        for changes in [again.add(record)]
        for e in (*changes.new, *changes.revised)
    ]
    assert repr(rest) == repr([(s, e) for s, e in told if s >= 10 * cut])
    assert repr(again.events) == repr(whole.events)
    assert [(e.series, e.related, e.preceded_by) for e in whole.events] == [
        (INITIAL, (DORMANT,), ""),  # its level is in the first rule
        (INITIAL, ("near_zero/rms_0.1",), ""),
    ]


@pytest.mark.parametrize("cut", range(1, 24))
@pytest.mark.parametrize("end", ["killed", "closed"])
def test_an_event_that_lives_across_a_resume_ends_as_if_there_were_none(cut: int, end: str) -> None:
    """Also where a close has left it as it was: it goes on, or settles, when the run does."""
    values = [0.1] * 5 + [0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8, *[0.8] * 7, 0.99, 0.99, *[0.99] * 4]
    records = [made_record(10 * i, x) for i, x in enumerate(values)]
    whole, part, again = (History({INITIAL: Above()}) for _ in range(3))
    for record in records:
        whole.add(record)
    logged = [e for r in records[:cut] for c in [part.add(r)] for e in (*c.new, *c.revised)]
    if end == "closed":
        logged += part.close()
    assert again.restore(records[:cut], logged, {}) == Changes()
    for record in records[cut:]:
        again.add(record)
    left, last = whole.close(), again.close()
    assert repr(whole.events) == repr(again.events)
    if cut < len(records):
        assert list(map(repr, left)) == list(map(repr, last))
    (event,) = whole.events
    assert (event.course, event.value, event.settled_step) == ("settled", 0.99, 240)


# ------------------------------------------------------------------ what a detector is told


class Told(Above):
    """Keeps what it is told."""

    def update(self, step, value, context=None):
        self.context = context


@pytest.mark.parametrize(
    ("confidence", "normal"), [(0.5, 0.674490), (0.8, 1.281552), (0.9, 1.644854)]
)
def test_an_interval_is_told_as_one_of_ninety_percent(confidence: float, normal: float) -> None:
    """Quantiles of the normal distribution from a table."""
    record = made_record(25, essential=0.7)
    estimate = dataclasses.replace(
        record.essential_sparsity, low=0.7 - 0.02 * normal, high=0.7 + 0.03 * normal,
        confidence=confidence,
    )  # fmt: skip
    curve = SparsityCurve([0.0, 1.0], [2.0, 2.5], [0.0, 0.1], higher_is_better=False)
    detectors = {name: Told() for name in (ESSENTIAL, "value/reliance")}
    record = dataclasses.replace(record, essential_sparsity=estimate, curve=curve, reliance=0.5)
    History(detectors).add(record)
    told = detectors[ESSENTIAL].context
    assert told["low"] == pytest.approx(0.7 - 0.02 * 1.644854, abs=1e-6)
    assert told["high"] == pytest.approx(0.7 + 0.03 * 1.644854, abs=1e-6)
    assert (told["reliance"], told["higher_is_better"]) == (0.5, 0.0)
    told = detectors["value/reliance"].context
    assert told["low"] == pytest.approx(0.5 - 0.1 * 1.644854, abs=1e-6)
    assert told["high"] == pytest.approx(0.5 + 0.1 * 1.644854, abs=1e-6)


# ------------------------------------------------------------------ weights that are not finite


def broken(record: Record) -> Record:
    """As it comes out when all of its weights are NaN."""
    zero = dict.fromkeys(record.near_zero, 0.0)
    return dataclasses.replace(record, near_zero=zero, num_nan=record.scope.num_weights)


def test_weights_that_became_nan_are_no_fall_of_near_zero_weights() -> None:
    noise = np.random.default_rng(0)
    records = [made_record(25 * i, 0.0625 + 1e-4 * noise.normal()) for i in range(30)]
    fallen = [dataclasses.replace(r, near_zero={"initial_0.1": 0.0}) for r in records[20:]]
    assert events_of(History({INITIAL: AbruptChange()}), [*records[:20], *fallen])
    records[20:] = map(broken, records[20:])
    assert not events_of(History({INITIAL: AbruptChange()}), records)
    assert all(INITIAL not in record.series() for record in records[20:])


def test_an_event_of_a_record_with_nan_weights_says_so() -> None:
    record = broken(made_record(50))
    history = History({"weights/num_nan": Above(10)})
    (event,) = events_of(history, [made_record(25), record])
    assert event.num_not_finite == 100_000
    assert "100,000 weights are NaN or infinite" in event.describe()


# ------------------------------------------------------------------ near-zero rules are one family

RULES = ("initial_0.1", "rms_0.1", "abs_0.001", "zero")
#: What is made of the weights by step 26, from step 20 on, and the rules that then move: up, down.
CHANGES = {
    "half grow elevenfold": ({"rms_0.1"}, {"initial_0.1", "abs_0.001"}),
    "all shrink": ({"initial_0.1", "abs_0.001"}, set()),
    "all grow": (set(), {"initial_0.1", "abs_0.001"}),
    "a fifth is pruned": (set(RULES), set()),
    "nothing": (set(), set()),
}


def of_rules(change: str, seed: int, rules: tuple[str, ...] = RULES) -> list[Record]:
    """Thirty-five snapshots of weights that move a little, and as ``change`` says."""
    rng = np.random.default_rng(seed)
    first = 0.02 * rng.normal(size=(2, 2000))
    is_chosen = rng.random(first.shape) < (0.2 if "fifth" in change else 0.5)
    records, rms = [], {n: float(np.sqrt(np.mean(w**2))) for n, w in zip("ab", first, strict=True)}
    for step in range(35):
        way = min(max(step - 19, 0), 6) / 6
        now = first * (1.0 + 0.02 * rng.normal(size=first.shape))
        if change == "half grow elevenfold":
            now[is_chosen] *= 11.0**way
        elif change == "a fifth is pruned":
            now[is_chosen & (np.indices(first.shape)[1] < 2000 * way)] = 0.0
        elif change != "nothing":
            now *= (0.25 if "shrink" in change else 4.0) ** way
        records.append(counted(step, dict(zip("ab", now, strict=True)), rms, rules))
    return records


def told(records: list[Record], rules: tuple[str, ...]) -> History:
    history = History(default_detectors(Settings(near_zero=rules)))
    history.initial_rms = {layer.name: layer.rms for layer in records[0].layers}
    events_of(history, records)
    return history


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(2))
def test_rules_make_one_event_that_says_who_agrees_in_any_order(change: str, seed: int) -> None:
    up, down = ({f"near_zero/{rule}" for rule in rules} for rules in CHANGES[change])
    events = told(of_rules(change, seed), RULES).events
    assert len(events) == bool(up | down)
    for event in events:
        same, other = (up, down) if event.direction == "up" else (down, up)
        assert {event.series, *event.agreeing, *event.related} == same
        assert set(event.opposed) == other
        scale = "both" if other else "shape" if "pruned" in change else "scale"
        assert event.change == scale
        assert (event.trend == "") == bool(other)
    for order in (RULES[1:] + RULES[:1], RULES[2:] + RULES[:2], RULES[::-1]):
        again = told(of_rules(change, seed, order), order).events
        assert len(again) == len(events)
        for one, event in zip(again, events, strict=True):
            # its level is in the first rule, and the others saw it, too
            same, other = (up, down) if event.direction == "up" else (down, up)
            assert (one.series == f"near_zero/{order[0]}") == (f"near_zero/{order[0]}" in same)
            assert ({one.series, *one.agreeing, *one.related}, {*one.opposed}) == (same, other)
            assert one.trend == event.trend
            assert one.change == event.change or one.series == "near_zero/abs_0.001"  # of few


def test_a_family_of_series_alarms_as_rarely_as_one() -> None:
    """A score is a chance p; each of n series has to be as certain as p / n."""
    one = AbruptChange()._limits
    for number in (1, 2, 4, 7):
        many = AbruptChange(family=number)._limits
        alone, each = (0.5 * math.erfc(limits.score / math.sqrt(2.0)) for limits in (one, many))
        assert each == pytest.approx(alone / number, rel=1e-6)
