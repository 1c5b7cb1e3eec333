"""One cause is one event: what merely follows from it is told beneath it, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts.families import some_of
from contracts.stuck_parts import BY, STUCK, wrong
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.causes import folded, of_one_cause
from sparsitywatch.analysis.events import EventTracker
from sparsitywatch.pipeline.pipeline import _news
from sparsitywatch.records import Event

UP, DOWN, NORM = (f"layers.1.{part}.weight" for part in ("up", "down", "norm"))
OTHER = "layers.2.up.weight"


def fault(kind: str, low: int, seen: int, *layers: str, **fields: Any) -> Event:
    room = "xray" if kind in ("dead_units", "unreached") else "vital"
    return Event(
        series=f"{room}/{kind}", direction="", kind=kind, onset_step=seen, onset_low=low,
        before_step=low, detected_step=seen, baseline=0.0, value=float(len(layers)), layers=layers,
        **fields,
    )  # fmt: skip


def rise(series: str, onset: int, seen: int, *layers: str, **fields: Any) -> Event:
    return Event(
        series=series, direction="up", onset_step=onset, detected_step=seen, baseline=0.0,
        value=0.5, layers=layers, **fields,
    )  # fmt: skip


LOST = fault("untrained", 40, 44, UP, DOWN)
DORMANT = rise("motion/dormant", 40, 52, UP)


@pytest.mark.parametrize(
    "also",
    [
        DORMANT,
        fault("slow", 76, 80, UP),  # the same tensors, while it lasts
        fault("no_gradient", 40, 76, NORM),  # a neighbour, since the same step
        fault("dead_units", 40, 44, DOWN),
        fault("overwritten", 40, 44, NORM),
        rise("near_zero/initial_0.1", 60, 80, DOWN, explained_by_decay=True),
    ],
    ids=lambda event: event.kind,
)
def test_what_follows_from_a_fault_is_told_beneath_it(also: Event) -> None:
    (told,) = folded([LOST, also])
    assert told == replace(LOST, consequences=(also.id,))
    words = told.describe()
    assert "with it came" in words
    assert f"(step {also.onset_step}" in words


@pytest.mark.parametrize(
    "also",
    [
        replace(DORMANT, layers=(OTHER,)),
        replace(DORMANT, layers=(UP, OTHER)),
        replace(DORMANT, layers=(NORM,)),  # of a neighbour
        rise("motion/dormant", 60, 72, UP),  # later
        fault("no_gradient", 0, 44, NORM),  # since the attach
        fault("dead_units", 60, 64, NORM),
        fault("untrained", 60, 64, UP, DOWN, OTHER),
        fault("super_weights", 40, 44, UP),
        fault("written", 40, 44, UP),
        rise("near_zero/initial_0.1", 60, 80, DOWN, explained_by_decay=False),
        rise("value/dense", 40, 44, kind="lost"),
    ],
    ids=lambda event: event.kind,
)
def test_what_is_of_another_cause_is_another_event(also: Event) -> None:
    assert folded([LOST, also]) == [LOST, also]
    assert folded([also, LOST]) == [also, LOST]


def test_what_is_over_has_no_later_consequences() -> None:
    slow = fault("slow", 76, 80, UP)
    assert len(folded([replace(LOST, reverted_step=60), slow])) == 2


def test_the_graver_one_is_told_under_the_id_of_the_first() -> None:
    first = fault("overwritten", 40, 44, UP)
    told = of_one_cause(first, replace(LOST, onset_step=48, onset_high=48, detected_step=48))
    assert told is not None
    assert (told.id, told.kind, told.severity) == (first.id, "untrained", "act")
    assert (told.detected_step, told.revised_step, told.layers) == (44, 48, LOST.layers)
    assert told.consequences == (first.id,)
    assert (told.onset_low, told.onset_high, told.before_step) == (40, 44, 40)


@pytest.mark.parametrize(("one", "lead"), [("overwritten", "dead_units"), ("rounding", "slow")])
def test_of_equals_what_lasts_and_says_why_is_told(one: str, lead: str) -> None:
    """Weights that were put right leave units dead; a rate that is too small loses updates."""
    both = [fault(one, 40, 44, UP), fault(lead, 40, 44, UP)]
    assert [[e.kind for e in folded(some)] for some in (both, both[::-1])] == [[lead], [lead]]


def test_a_note_of_which_an_alarm_follows_asks_for_a_look() -> None:
    note = fault("unreached", 36, 44, UP)
    (told,) = folded([note, DORMANT])
    assert (note.severity, told.severity, told.kind) == ("note", "look", "unreached")


EVENTS = st.builds(
    lambda kind, low, wait, layers: (
        rise("motion/dormant", low, low + wait, *layers) if kind == "dormant"
        else fault(kind, low, low + wait, *layers)
    ),
    st.sampled_from(["dormant", "untrained", "overwritten", "no_gradient", "slow", "dead_units",
                     "unreached", "super_weights"]),
    st.integers(0, 60), st.integers(1, 20),
    st.lists(st.sampled_from([UP, DOWN, NORM, OTHER]), min_size=1, max_size=3, unique=True),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=6))
def test_nothing_is_lost_and_nothing_gets_milder(events: list[Event]) -> None:
    events = sorted(events, key=lambda event: event.detected_step)
    found = folded(events)
    told = {name.partition("@")[0] for e in found for name in (e.id, e.series, *e.consequences)}
    assert told == {event.series for event in events}
    most = [max((e.gravity for e in some), default=0) for some in (events, found)]
    assert most[0] == most[1]


@given(st.lists(EVENTS, max_size=6))
def test_snapshot_by_snapshot_it_is_folded_alike(events: list[Event]) -> None:
    """By a tracker, that has seen what came before; and told actions of all that got graver."""
    events = sorted(events, key=lambda event: event.detected_step)
    tracker, found, heard = EventTracker(), dict[str, Event](), dict[str, int]()
    for step in sorted({event.detected_step for event in events}):
        changes = tracker.update(step, {}, [e for e in events if e.detected_step == step])
        found |= {event.id: event for event in (*changes.new, *changes.revised)}
        heard |= {event.id: event.gravity for event in _news(changes)}
    assert all(heard[name] == event.gravity for name, event in found.items())
    kinds = {event.kind for event in events if not event.is_of_series}
    told = {name for e in found.values() for name in (e.series, *e.consequences)}
    assert kinds <= {name.partition("@")[0].partition("/")[2] for name in told}


CASES = [(name, optimizer) for name in STUCK for optimizer in BY]


@pytest.mark.slow
@pytest.mark.parametrize("case", some_of(range(len(CASES)), 5))
def test_one_cause_is_told_once(case: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other at each small step
    why, _ = wrong(*CASES[case])
    torch.set_num_threads(before)
    assert not why
