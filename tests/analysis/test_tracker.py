"""One thing is one event, whoever saw it; what announced it and what became of it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.events import Changes, EventTracker
from sparsitywatch.records import Event, latest_versions
from sparsitywatch.series import describe

INITIAL, RMS, DORMANT = "near_zero/initial_0.1", "near_zero/rms_0.1", "motion/dormant"
ESSENTIAL = "essential_sparsity/value"


def event(
    series: str = INITIAL,
    onset: int = 5,
    detected: int = 8,
    *,
    direction: str = "up",
    baseline: float = 0.0,
    value: float = 1.0,
    **fields,
) -> Event:
    return Event(
        series=series,
        direction=direction,
        onset_step=onset,
        detected_step=detected,
        baseline=baseline,
        value=value,
        **{"trend": describe(series).trend(direction), **fields},
    )


def run(
    seen: Sequence[Event], values: Mapping[str, Sequence[float]] | None = None, steps: int = 30
) -> list[tuple[int, Changes]]:
    """A tracker's answers snapshot by snapshot, those that are empty left out."""
    tracker, told = EventTracker(), []
    for step in range(steps):
        now = {name: v[step] for name, v in (values or {}).items() if v[step] is not None}
        changes = tracker.update(step, now, [e for e in seen if e.detected_step == step])
        if changes != Changes():
            told.append((step, changes))
    return told


def final(told: list[tuple[int, Changes]]) -> list[Event]:
    versions = {e.id: e for _, c in told for e in (*c.new, *c.revised)}
    return list(versions.values())


# ------------------------------------------------------------------ one thing, one event


def test_at_one_snapshot_the_strongest_stands_for_all() -> None:
    weak = event(INITIAL, noise=0.5)
    strong = event(RMS, noise=0.01)
    unknown = event("near_zero/abs_0.001")
    ((step, changes),) = run([weak, unknown, strong])
    (told,) = changes.new
    assert (step, told.series, told.revised_step) == (8, RMS, -1)
    assert told.related == (INITIAL, "near_zero/abs_0.001")
    assert changes.revised == ()


def test_what_another_series_sees_later_is_added_to_the_first() -> None:
    first, second = event(INITIAL, 5, 8), event(RMS, 7, 12)
    (_, new), (step, later) = run([first, second])
    assert new == Changes(new=(first,))
    (told,) = later.revised
    assert later.new == ()
    assert (step, told.id, told.related, told.revised_step) == (12, first.id, (RMS,), 12)
    assert (told.onset_step, told.detected_step, told.value) == (5, 8, 1.0)


@pytest.mark.parametrize(
    ("onset", "low", "high", "is_same"),
    [
        (11, 11, 11, True),  # three snapshots after the detection at 8
        (12, 12, 12, False),
        (14, 10, 16, True),  # the interval touches
        (2, 1, 4, False),  # over before the first began
        (2, 1, 5, True),
    ],
)
def test_what_touches_in_time_is_the_same(onset: int, low: int, high: int, is_same: bool) -> None:
    later = event(RMS, onset, 20, onset_low=low, onset_high=high)
    told = final(run([event(INITIAL, 5, 8), later]))
    assert len(told) == (1 if is_same else 2)


@pytest.mark.parametrize(
    "other",
    [
        event(ESSENTIAL, 5, 9, direction="down"),  # densifying
        event("value/reliance", 5, 9),  # no such trend
        event(INITIAL, 6, 9),  # the same series again is a second event
    ],
)
def test_what_does_not_mean_the_same_is_not_the_same(other: Event) -> None:
    told = final(run([event(INITIAL, 5, 8), other]))
    assert [e.related for e in told] == [(), ()]


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (event(INITIAL, 6, 9), True),  # a judge of height told it first, by the same rule
        (event(INITIAL, 6, 9, direction="down", value=-1.0), False),
        (event(INITIAL, 6, 9, kind="level"), False),
        (event(INITIAL, 20, 23), False),
    ],
)
def test_a_level_and_the_change_that_led_to_it_are_one_event(other: Event, is_same: bool) -> None:
    first = event(INITIAL, 5, 8, kind="level", onset_low=4, onset_high=6)
    told = final(run([first, other]))
    assert len(told) == (1 if is_same else 2)
    assert told[0].kind == "level"
    assert told[0].related == told[0].opposed == ()


def test_near_zero_rules_that_move_against_each_other_are_one_event() -> None:
    rise, fall = event(RMS, 5, 8), event(INITIAL, 5, 9, direction="down", value=-1.0)
    also = event("near_zero/abs_0.001", 5, 9, direction="down", value=-1.0)
    (told,) = final(run([rise, fall, also, event("near_zero/zero", 6, 10)]))
    assert (told.series, told.opposed) == (RMS, ("near_zero/abs_0.001", INITIAL))
    assert told.related == ("near_zero/zero",)
    assert (told.trend, told.change, told.revised_step) == ("", "both", 10)
    # what the first detection said already is no news
    known = event(RMS, 5, 8, opposed=(INITIAL,), trend="", change="both")
    assert [c for _, c in run([known, fall])] == [Changes(new=(known,))]


def test_ids_are_never_shared() -> None:
    told = final(run([event(INITIAL, 5, d) for d in (8, 9, 10)]))
    assert [e.id for e in told] == [f"{INITIAL}@5", f"{INITIAL}@5-2", f"{INITIAL}@5-3"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([INITIAL, RMS, DORMANT, ESSENTIAL, "value/reliance"]),
            st.integers(0, 25),
            st.integers(0, 4),
            st.sampled_from(["up", "down"]),
        ),
        max_size=8,
    )
)
def test_every_detection_is_told_once_or_belongs_to_one_that_was(parts: list) -> None:
    seen = [
        event(
            series,
            max(0, d - back),
            d,
            direction=direction,
            value=1.0 if direction == "up" else -1.0,
        )
        for series, d, back, direction in parts
    ]
    told = run(seen)
    events = final(told)
    new = [e.id for _, c in told for e in c.new]
    assert sorted(new) == sorted(e.id for e in events)
    named = [name for e in events for name in (e.series, *e.related, *e.opposed)]
    assert set(named) == {e.series for e in seen}
    # near-zero rules, and what is told in one of them, are named once
    is_once = any(e.opposed or not e.id.startswith(e.series) for e in events)
    assert len(named) == len(seen) or is_once
    for step, changes in told:
        assert all(e.detected_step == step and e.revised_step == -1 for e in changes.new)
        assert all(e.revised_step == step > e.detected_step for e in changes.revised)


# ------------------------------------------------------------------ early signal


@pytest.mark.parametrize(
    ("fields", "is_named"),
    [
        ({"layers": ("b", "c"), "explained_by_decay": True}, True),
        ({"layers": ("c",), "explained_by_decay": True}, False),
        ({"layers": ("b",), "explained_by_decay": False}, False),
        ({"layers": ("b",), "explained_by_decay": None}, False),
        ({"explained_by_decay": True}, False),
    ],
)
def test_near_zero_weights_name_the_dormant_ones_that_they_were(fields, is_named: bool) -> None:
    """Only where weights of the same layers shrank by decay is one the other's cause."""
    early = event(DORMANT, 5, 8, layers=("a", "b"))
    # its onset is thought to be as early, but it was seen many snapshots later
    late = event(INITIAL, 6, 25, **fields)
    told = final(run([early, late]))
    expected = early.id if is_named else ""
    assert [(e.series, e.preceded_by) for e in told] == [(DORMANT, ""), (INITIAL, expected)]


def test_seen_within_a_few_snapshots_dormant_and_near_zero_are_one() -> None:
    told = final(run([event(DORMANT, 5, 8), event(INITIAL, 6, 11)]))
    # near-zero weights are what people see, from their own onset on; it stays the same event
    (one,) = told
    assert (one.series, one.related, one.id) == (INITIAL, (DORMANT,), f"{DORMANT}@5")
    assert (one.onset_step, one.detected_step) == (6, 8)


def test_an_early_signal_that_went_away_announces_nothing() -> None:
    gone = [0.0] * 8 + [1.0] * 4 + [0.1] * 18
    own = {"layers": ("a",), "explained_by_decay": True}
    told = final(run([event(DORMANT, 5, 8, **own), event(INITIAL, 20, 25, **own)], {DORMANT: gone}))
    assert [e.preceded_by for e in told] == ["", ""]


# ------------------------------------------------------------------ falling back


def test_a_rise_that_reverts_is_reported_at_the_second_snapshot() -> None:
    values = [0.1] * 5 + [0.3, 0.6, 1.0, 2.1, 2.1, 1.5, 1.0, 0.9, 0.9] + [0.9] * 16
    rise = event(INITIAL, 5, 7, baseline=0.1, value=1.0)
    (_, first), *_, (step, changes) = run([rise], {INITIAL: values})
    assert first.new == (rise,)
    # half of 2.0 above the baseline is 1.1: passed at step 11, seen again at 12
    (told,) = changes.revised
    assert (step, told.reverted_step, told.revised_step) == (12, 11, 12)
    assert (told.id, told.course, told.is_news) == (rise.id, "over", True)


def test_a_fall_that_comes_back_likewise() -> None:
    values = [0.8] * 5 + [0.6, 0.5, 0.4, 0.4, 0.4, 0.7, 0.7] + [0.7] * 18
    fall = event(ESSENTIAL, 5, 7, direction="down", baseline=0.8, value=0.4)
    (told,) = final(run([fall], {ESSENTIAL: values}))
    assert told.reverted_step == 10


@pytest.mark.parametrize(
    "after",
    [
        [0.1, 1.0] * 10,  # never low twice in a row
        [5.0, 1.0] + [1.0] * 18,  # a single high snapshot is no peak
        [None, 0.1, 1.0, None] + [1.0] * 16,
        [0.51] * 20,
    ],
)
def test_single_snapshots_are_no_fall(after: list) -> None:
    values = [0.0] * 5 + [0.5, 0.8, 1.0] + [1.0, 1.0, *after]
    (told,) = final(run([event(INITIAL, 5, 7)], {INITIAL: values}))
    assert told.reverted_step == -1


def test_snapshots_without_the_series_neither_confirm_nor_deny() -> None:
    values = [0.0] * 5 + [0.5, 0.8, 1.0, 1.0, 0.2, None, None, 0.2] + [0.2] * 17
    *_, (step, changes) = run([event(INITIAL, 5, 7)], {INITIAL: values})
    assert (step, changes.revised[0].reverted_step) == (12, 9)


def test_the_detection_of_the_fall_is_no_new_event() -> None:
    values = [0.0] * 5 + [0.5, 0.8, 1.0, 1.0, 1.0, 0.2, 0.1] + [0.1] * 18
    rise = event(INITIAL, 5, 7)
    back = {"direction": "down", "baseline": 1.0, "value": 0.1}
    for detected in (10, 11, 13):
        told = run([rise, event(INITIAL, 9, detected, **back)], {INITIAL: values})
        assert sum(len(c.new) for _, c in told) == 1
        (last,) = final(told)
        assert last.reverted_step == 10
    related = [rise, event(RMS, 5, 8), event(RMS, 9, 12, **back)]
    assert len(final(run(related, {INITIAL: values}))) == 1
    # much later it is another matter
    later = [rise, event(INITIAL, 24, 26, direction="down", baseline=0.1, value=0.0)]
    assert len(final(run(later, {INITIAL: values}))) == 2


# ------------------------------------------------------------------ seen, growing, settled, over


def courses(values: list[float], seen: Event, **known) -> list[tuple[int, str, float]]:
    """Each version of an event: at which step, how far it has come, and its level."""
    told = run([seen], {seen.series: values}, len(values), **known)
    return [(step, e.course, e.value) for step, c in told for e in (*c.new, *c.revised)]


def test_what_goes_on_is_told_as_it_is_until_it_has_settled() -> None:
    """A twentieth of the size is worth a word; five snapshots without one are the end."""
    values = [0.0] * 5 + [0.5, 0.8, 1.0, 1.04, 1.06, 2.0, *[2.0] * 20]
    assert courses(values, event(INITIAL, 5, 7)) == [
        (7, "seen", 1.0), (9, "growing", 1.06), (10, "growing", 2.0), (15, "settled", 2.0),
    ]  # fmt: skip


def test_noise_is_no_growth() -> None:
    for sizes, num in ((2.9, 2), (3.1, 3)):
        values = [0.0] * 5 + [0.5, 0.8, 1.0, 1.0 + 0.1 * sizes, *[1.0 + 0.1 * sizes] * 20]
        assert len(courses(values, event(INITIAL, 5, 7, noise=0.1))) == num


@pytest.mark.parametrize(("beyond", "goes_on"), [(0.24, False), (0.26, True)])
def test_what_has_settled_goes_on_by_a_quarter_at_two_snapshots(
    beyond: float, goes_on: bool
) -> None:
    values = [0.0] * 5 + [0.5, 0.8, *[1.0] * 10, 1.0 + beyond, 1.0, *[1.0 + beyond] * 10]
    told = courses(values, event(INITIAL, 5, 7))
    assert told[:2] == [(7, "seen", 1.0), (12, "settled", 1.0)]
    assert told[2:] == [(20, "growing", 1.26), (25, "settled", 1.26)] * goes_on


def test_a_series_that_is_missing_does_not_settle_an_event() -> None:
    values = [0.0] * 5 + [0.5, 0.8, 1.0, 1.0, None, None, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [step for step, *_ in courses(values, event(INITIAL, 5, 7))] == [7, 14]


def test_the_next_event_of_a_series_ends_the_one_before() -> None:
    values = [0.0] * 5 + [0.5, 0.8, 1.0, 1.0, 1.0, 2.0, *[3.0] * 12]
    second = event(INITIAL, 9, 11, value=3.0)
    told = final(run([event(INITIAL, 5, 7), second], {INITIAL: values}, 20))
    assert [(e.id, e.settled_step) for e in told] == [(f"{INITIAL}@5", 9), (f"{INITIAL}@9", 16)]


def test_what_cannot_change_has_settled_at_once() -> None:
    (spike,) = final(run([event("ring/loss", 5, 7, kind="spike")]))
    assert (spike.course, spike.settled_step, spike.is_news) == ("settled", 7, True)


def test_a_fault_is_over_when_none_of_it_is_left() -> None:
    fault = {"kind": "untrained", "value": 4.0, "direction": ""}
    for left, over in ((1.0, -1), (0.0, 10)):
        values = [0.0] * 7 + [4.0, 4.0, 4.0, *[left] * 10]
        (told,) = final(run([event("vital/untrained", 7, 7, **fault)],
                            {"vital/untrained": values}, 20))  # fmt: skip
        assert told.reverted_step == over


@given(
    st.lists(st.floats(0.0, 1.0), min_size=12, max_size=40),
    st.integers(2, 8),
    st.sampled_from(["up", "down"]),
    st.integers(1, 40),
)
def test_versions_fold_to_what_is_known_at_any_cut(
    values: list[float], seen_at: int, direction: str, cut: int
) -> None:
    """A reader of a part of the log has the event as it was then, and all agree on its identity."""
    seen = event(INITIAL, seen_at - 1, seen_at, direction=direction, value=values[seen_at])
    told = run([seen], {INITIAL: values}, len(values))
    versions = [(step, e) for step, c in told for e in (*c.new, *c.revised)]
    assert {e.id for _, e in versions} == {seen.id}
    assert [e.reported_step for _, e in versions] == [step for step, _ in versions]
    (now,) = latest_versions(e for _, e in versions)
    assert now == versions[-1][1]
    part = [e for step, e in versions if step <= cut]
    assert latest_versions(part) == part[-1:]
    for _, one in versions:  # what it says is of the snapshot that it says it at
        assert one.value == values[one.reported_step] or one.course == "over"
    # it is never silent while it moves: what is told last is near, unless it is over
    order = [e.course for _, e in versions]
    assert order[0] == "seen"
    assert "over" not in order[:-1]
    assert sum(e.is_news for _, e in versions) <= 1 + order.count("settled") + order.count("over")


def test_additions_are_logged_below_a_warning(caplog) -> None:
    values = [0.0] * 5 + [0.5, 0.8, 1.0, 1.0, 1.0, 0.2, 0.1] + [0.1] * 18
    with caplog.at_level(logging.INFO, logger="sparsitywatch"):
        run([event(INITIAL, 5, 7), event(RMS, 6, 8)], {INITIAL: values})
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert "is seen in another series" in caplog.text
    assert "has reverted" in caplog.text


# ------------------------------------------------------------------ state


@given(st.integers(0, 29))
def test_the_state_goes_round_at_any_snapshot(cut: int) -> None:
    values = {INITIAL: [0.0] * 5 + [0.5, 0.8, 1.0, 1.0, 1.0, 0.2, 0.1] + [0.1] * 18}
    seen = [event(DORMANT, 1, 3), event(INITIAL, 5, 7), event(RMS, 6, 9), event(RMS, 22, 24)]
    tracker, told = EventTracker(), []
    for step in range(30):
        if step == cut:
            state = json.loads(json.dumps(tracker.state_dict()))
            tracker = EventTracker()
            tracker.load_state_dict(state)
        now = {name: v[step] for name, v in values.items()}
        changes = tracker.update(step, now, [e for e in seen if e.detected_step == step])
        if changes != Changes():
            told.append((step, changes))
    assert repr(told) == repr(run(seen, values))  # NaN is not itself


def test_the_state_stays_small() -> None:
    tracker = EventTracker()
    for step in range(0, 2000, 5):
        tracker.update(step, {}, [event("value/reliance", step, step)])
    assert len(tracker.state_dict()["followed"]) == 50
