"""Sentences of events that have settled, read again and held against the weights they are about.

What is true is worked out here from what was done to the weights, and from the raw series. ``python
tests/analysis/test_lives.py`` prints what is wrong, and of how many.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

if __name__ == "__main__":  # tests get it from conftest.py
    sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np
import pytest
from contracts.families import whole
from contracts.made_records import counted, made_record

from sparsitywatch.analysis.decayed import explained_by_decay
from sparsitywatch.analysis.detect.detector import FEW, median_of_three, noise_sd
from sparsitywatch.analysis.detect.value import undone_since
from sparsitywatch.analysis.events import EventTracker, with_baseline
from sparsitywatch.pipeline.pipeline import History
from sparsitywatch.records import (
    LEVEL_KINDS,
    Event,
    Finding,
    Record,
    SparsityCurve,
    Vital,
    latest_versions,
)
from sparsitywatch.settings import Settings, default_detectors

EVERY, NUM = 25, 70
SHAPES = ("jump", "two", "ramp", "logistic", "doubling", "and back", "twice")
NUMBER = r"([\d.,]+(?:e[+-]\d+)?) %"
HEADLINE = re.compile(
    rf"Near-zero weights \((?P<rule>.+?)\) (?P<verb>[a-z ]+?) from {NUMBER} to {NUMBER}"
    r"(?: \([^)]+\))?(?P<open> so far)?(?:, beginning)? (?:after step (?P<at>[\d,]+)|"
    rf"between steps (?P<low>[\d,]+) and (?P<high>[\d,]+))(?:, and is back at {NUMBER})?"
)
NOTE = re.compile(
    r"(?P<num>[\d,]+) tensors? (?P<says>with at least twice as many near-zero weights as at first|"
    r"that turned sparse: half or more is near zero): (?P<names>[^;]+); "
    rf"near-zero weights \((?P<rule>\w[^)]*)\) of (?P<first>\w+) rose from {NUMBER} when the run "
    rf"began to {NUMBER}; began between steps (?P<low>[\d,]+) and (?P<high>[\d,]+), "
    r"seen at step (?P<seen>[\d,]+)"
)
#: What need not be told: a change by less than this, and a slow one that comes to less than so many
#: times the level before it, as `AbruptChange` states.
MIN_EFFECT, RATIO = 0.01, 1.5
RULE = {
    "|w| ≤ 0.1 × first rms": "initial_0.1", "|w| ≤ 0.1 × present rms": "rms_0.1",
    "|w| ≤ 0.001": "abs_0.001", "w = 0": "zero",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What was done to some weights, and what was recorded of them."""

    shape: str
    way: str  # what is done to the weights: "zero", "small", or "scale"
    begins: tuple[int, ...]  # the last snapshot before each change
    share: float
    records: list[Record]

    def series(self, rule: str) -> np.ndarray:
        return np.array([record.near_zero[rule] for record in self.records])


def course(shape: str, begin: int, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    """How much of the change has come at each snapshot, and after which it began."""
    since, width = np.arange(NUM) - begin, int(rng.integers(8, 20))
    if shape == "jump":
        return np.where(since > 0, 1.0, 0.0), (begin,)
    if shape == "two":
        return np.clip(since / 2, 0.0, 1.0), (begin,)
    if shape == "ramp":
        return np.clip(since / width, 0.0, 1.0), (begin,)
    if shape == "logistic":
        z = 1.0 / (1.0 + np.exp(-8.0 * (since / width - 0.5)))
        low, high = 1.0 / (1.0 + np.exp([4.0, -4.0]))
        return np.clip((z - low) / (high - low), 0.0, 1.0) * (since > 0), (begin,)
    if shape == "doubling":
        return np.clip((2.0 ** (5 * since / width) - 1.0) / 31.0, 0.0, 1.0), (begin,)
    if shape == "and back":
        return np.where((since > 0) & (since <= width), 1.0, 0.0), (begin,)
    second = begin + width + 4
    return 0.5 * (since > 0) + 0.5 * (np.arange(NUM) > second), (begin, second)


def made(seed: int) -> Made:
    """Seventy snapshots of two tensors that move a little, and as its shape says."""
    rng = np.random.default_rng(seed)
    shape, way = SHAPES[seed % len(SHAPES)], ("zero", "small", "scale")[seed // len(SHAPES) % 3]
    begin, share = int(rng.integers(16, 36)), float(rng.uniform(0.15, 0.7))
    came, begins = course(shape, begin, rng)
    first = 0.02 * rng.normal(size=(2, 4000))
    order = rng.permutation(first.size).reshape(first.shape)
    rms = {name: float(np.sqrt(np.mean(w**2))) for name, w in zip("ab", first, strict=True)}
    records = []
    for i in range(NUM):
        now = first * (1.0 + 0.03 * rng.normal(size=first.shape))
        if way == "scale":
            now *= 1.0 - 0.9 * share * came[i]
        else:
            now[order < came[i] * share * first.size] *= 0.0 if way == "zero" else 0.01
        records.append(counted(EVERY * (i + 1), dict(zip("ab", now, strict=True)), rms))
    return Made(shape, way, begins, share, records)


def told(run: Made) -> list[Event]:
    """Its events, in their last versions."""
    history = History(default_detectors(Settings()))
    history.initial_rms = {layer.name: layer.rms for layer in run.records[0].layers}
    for record in run.records:
        history.add(record)
    history.close()
    return history.events


def number(text: str) -> float:
    return float(text.replace(",", ""))


def level(values: np.ndarray, place: int) -> float:
    """Of a series, up to there."""
    return float(np.median(values[max(place - 5, 0) : place + 1]))


def wrong(event: Event, run: Made) -> Iterator[str]:
    """What is not true of what a settled event says."""
    read = HEADLINE.fullmatch(event.headline)
    if read is None:
        yield "cannot be read"
        return
    values = run.series(RULE[read["rule"]])
    _, verb, said_was, said_now, is_open, *_, said_back = read.groups()
    was, now = 0.01 * number(said_was), 0.01 * number(said_now)
    steps = EVERY * (np.arange(NUM) + 1)
    if is_open or event.course not in ("settled", "over"):
        yield f"it is {event.course} at the end"
    low, high = (int(number(read[end] or read["at"])) for end in ("low", "high"))
    starts = [steps[begin] for begin in run.begins]
    near = [k for k, start in enumerate(starts) if low - EVERY <= start <= high + EVERY]
    if not near:
        yield f"it began after {[int(start) for start in starts]}"
        return
    begin = run.begins[near[0]]
    # what is too small to be told by itself is a part of the next one
    later = run.begins[near[0] + 1 :]
    later = [b for b in later if abs(level(values, b) - level(values, begin)) >= MIN_EFFECT]
    end = min(later, default=NUM - 1)
    before, after = values[max(begin - 6, 0) : begin + 1], values[begin + 1 : end + 1]
    if not before.min() - 5e-4 <= was <= before.max() + 5e-4:
        yield f"before it was {before.min():.4f} to {before.max():.4f}"
    change = after - before.mean()
    top = after[np.abs(change).argmax()]
    size = abs(top - before.mean())
    if abs(now - top) > 0.1 * size + 5e-4:
        yield f"it came to {top:.4f}"
    moves = np.abs(np.diff(values[begin : end + 1]))
    within_two = (moves[:-1] + moves[1:]).max() / size
    sudden, slow = ("jumped", "dropped"), ("rose", "fell", "rose steadily")
    # about half of it is both
    expected = (sudden if within_two > 0.45 else ()) + (slow if within_two < 0.55 else ())
    if verb not in expected or (verb in ("jumped", "rose", "rose steadily")) != (top > was):
        yield f"it {expected[0]}"
    is_back = (np.abs(values[end] - before.mean()) < 0.5 * size) and run.shape == "and back"
    if (event.reverted_step >= 0) != is_back:
        yield f"it is back: {is_back}"
    if (
        said_back
        and abs(0.01 * number(said_back) - values[event.reported_step // EVERY - 1]) > 6e-4
    ):
        yield "it is back at another level"
    if event.change != ("scale" if run.way == "scale" else "shape"):
        yield f"the {run.way} moved, and {event.change!r} is said"


def wrong_note(event: Event, run: Made) -> Iterator[str]:
    """What is not true of what a note on single tensors says."""
    read = NOTE.fullmatch(event.describe())
    if read is None:
        yield "cannot be read"
        return
    names, rule = read["names"].split(", "), RULE.get(read["rule"], read["rule"])
    place = int(number(read["seen"])) // EVERY - 1
    at = {
        (i, layer.name): layer.near_zero
        for i in (0, place - 1, place)
        for layer in run.records[i].layers
    }
    then, now = (0.01 * number(text) for text in read.groups()[5:7])
    if (
        max(abs(then - at[0, read["first"]][rule]), abs(now - at[place, read["first"]][rule]))
        > 5e-4
    ):
        yield f"of {read['first']} they rose otherwise"
    if int(number(read["num"])) != len(names):
        yield f"there are {len(names)}"
    for name in names:
        ends = [
            min(at[i, name][r] / 0.5 if "half" in read["says"] else
                at[i, name][r] / max(2.0 * at[0, name][r], 1e-9) for i in (place - 1, place))
            for r in at[0, name]
        ]  # fmt: skip
        if max(ends) < 1.0:
            yield f"{name} has fewer"
    if not any(number(read["low"]) <= EVERY * (b + 1) <= number(read["high"]) for b in run.begins):
        yield "it began elsewhere"


def has_to_be_told(run: Made) -> list[bool]:
    """Of each change, whether it is as large as those that are said to be told."""
    found = []
    for begin, end in pairwise((*run.begins, NUM - 1)):
        is_so = False
        for values in map(run.series, RULE.values()):
            before, moves = level(values, begin), np.abs(np.diff(values[begin : end + 1]))
            after = np.array([level(values, place) for place in range(begin + 6, end + 1)])
            size = np.abs(after - before).max()
            is_sudden = (moves[:-1] + moves[1:]).max() > 0.5 * size
            # of what is within a tenth of the limit, as of a level, either is right
            is_so |= size >= 1.1 * MIN_EFFECT and (is_sudden or after.max() >= RATIO * before)
        found.append(bool(is_so))
    return found


def read_all(seeds: range) -> tuple[int, list[str]]:
    """How many events runs have, and what is wrong with any, or missing."""
    num, found = 0, []
    for seed in seeds:
        run = made(seed)
        events = told(run)
        num += max(len(events), len(run.begins))
        reads = [wrong_note if e.kind in LEVEL_KINDS else wrong for e in events]
        odd = [
            f"{e.describe()}: {'; '.join(why)}"
            for e, read in zip(events, reads, strict=True)
            if (why := [*read(e, run)])
        ]
        if not sum(has_to_be_told(run)) <= len(events) <= len(run.begins):
            odd.append(f"{len(run.begins)} changes, told: {[e.headline for e in events]}")
        found += [f"{seed} {run.shape} {run.way}: {one}" for one in odd]
    return num, found


@pytest.mark.parametrize("seeds", [range(14), pytest.param(range(14, 340), marks=whole)], ids=str)
def test_what_is_said_of_settled_events_is_so(seeds: range) -> None:
    num, found = read_all(seeds)
    false = [one for one in found if "changes, told" not in one]
    assert num >= len(seeds)
    assert len(false) <= 0.01 * num, "\n".join(found)
    assert len(found) <= 0.03 * num, "\n".join(found)  # of what is too small nothing is said


def test_a_false_sentence_is_found() -> None:
    run = made(2)
    (event,) = told(run)
    assert list(wrong(event, run)) == []
    false = {
        "value": 0.8 * event.value, "baseline": 0.5 * event.baseline, "jumped": True,
        "direction": "down", "reverted_step": 1500, "change": "both", "settled_step": -1,
        "series": "near_zero/zero",
    }  # fmt: skip
    for field, value in false.items():
        assert list(wrong(replace(event, **{field: value}), run)), field
    elsewhere = replace(event, onset_step=100, onset_low=100, onset_high=100)
    assert list(wrong(elsewhere, run)) == ["it began after [825]"]


def test_a_false_note_is_found() -> None:
    """A half of all weights, of which .8 % go to zero: too little of the whole to be an event."""
    first = 0.02 * np.random.default_rng(0).normal(size=(2, 4000))
    rms = {name: float(np.sqrt(np.mean(w**2))) for name, w in zip("ab", first, strict=True)}
    records = []
    for i in range(NUM):
        first[0, : 32 * (i > 30)] = 0.0
        records.append(counted(EVERY * (i + 1), dict(zip("ab", first, strict=True)), rms))
    run = Made("jump", "zero", (30,), 0.004, records)
    (note,) = told(run)
    assert note.kind == "sparser"
    assert list(wrong_note(note, run)) == []
    false = {
        "value": 3.0, "kind": "sparse", "detected_step": 700, "onset_low": 825,
        "reason": note.reason.replace("from 0 %", "from 1 %"), "layers": ("b",),
    }  # fmt: skip
    for field, value in false.items():
        assert list(wrong_note(replace(note, **{field: value}), run)), field


# ------------------------------------------------------------------ over only where it is back


def with_value(step: int, value: float | None, findings: tuple[Finding, ...] = ()) -> Record:
    record = replace(
        made_record(step), vital=Vital(num_tensors=2, num_sampled=9, findings=findings)
    )
    if value is None:
        return record
    return replace(record, curve=SparsityCurve([0.0], [value], higher_is_better=False))


BEFORE = [3.0, 2.5, 2.0, 1.6, 1.3, 1.1, 1.0, 1.0]


@pytest.mark.parametrize(
    ("after", "over"),
    [
        ([None] * 12, -1),  # nobody knows
        ([2.0, 1.8, 1.6, 1.4, 1.3, 1.2, 1.2, 1.2, 1.2, 1.2], -1),  # half of it is back
        ([2.0, 1.5, 1.0, 0.9, 0.9, 0.9], -1),  # not for long
        ([2.0, 1.5, 1.0, 0.9, 0.9, 0.9, 0.9], 10),
        ([1.0, 1.0, 1.0, 1.0], -1),
        (
            [50.0, 3.0, 45.0, 8.0, 30.0, 12.0, 25.0],
            -1,
        ),  # far above, and so wild that it seems noise
    ],
)
@pytest.mark.parametrize("kind", ["overwritten", "blew_up", "lost"])
def test_what_was_overwritten_or_lost_is_over_where_the_value_is_at_its_best(
    kind: str, after: list[float | None], over: int
) -> None:
    """The detector is told what it sees: a finding at one snapshot, or that the value was lost."""
    values = BEFORE + after
    records = [with_value(step, value) for step, value in enumerate(values)]
    series = "value/dense" if kind == "lost" else f"vital/{kind}"
    seen = Event(series=series, kind=kind, direction="up", onset_step=7, detected_step=8,
                 baseline=1.0 if kind == "lost" else 0.0, value=2.0, layers=("a", "b"))  # fmt: skip
    tracker, told = EventTracker(), []
    for step, record in enumerate(records):
        now = (
            record.series() | {f"vital/{kind}": 2.0 * (step == 8)}
            if kind != "lost"
            else record.series()
        )
        changes = tracker.update(step, now, [seen] * (step == 8), records=records[: step + 1])
        told += [*changes.new, *changes.revised]
    (last,) = latest_versions(told)
    assert last.reverted_step == over
    assert ("since step 10" in last.end) == (over == 10)


def test_a_rise_after_a_fall_begins_at_the_level_before_it() -> None:
    """Where it may have begun early, while the loss still fell from higher up."""
    records = [with_value(step, value) for step, value in enumerate([*BEFORE, 1.5])]
    event = Event(series="value/dense", direction="up", onset_step=7, onset_low=2,
                  detected_step=8, baseline=1.0, value=1.5)  # fmt: skip
    assert with_baseline(event, records).baseline == 1.0


@pytest.mark.parametrize(("clock", "is_explained"), [(0.01, False), (3.0, True)])
def test_what_began_at_the_attach_is_compared_with_the_attach(
    clock: float, *, is_explained: bool
) -> None:
    """The first record is of later steps, when all of it may have come already."""
    found = [made_record(step, {"initial_0.1": 0.5}) for step in (4, 8)]
    records = [replace(record, decay_clock=clock, why_no_clock="") for record in found]
    event = Event(series="near_zero/initial_0.1", kind="level", direction="up", onset_step=0,
                  detected_step=8, baseline=0.06, value=0.5)  # fmt: skip
    assert explained_by_decay(event, records) is is_explained


@pytest.mark.parametrize(("beyond", "over"), [(2.0, 11), (2.9, 11), (3.1, -1), (4.0, -1)])
def test_a_value_within_three_of_its_noise_of_its_best_is_at_it(beyond: float, over: int) -> None:
    wiggle = np.array([0.0, 0.01, -0.005, 0.004, -0.01])
    before, latest = 1.0 + np.tile(wiggle, 2), 1.0 + wiggle[:FEW]
    noise = min(noise_sd(before), noise_sd(latest))
    latest += median_of_three(before).min() + beyond * noise - latest.max()
    values = [*before, 2.0, *latest]
    seen = Event(series="vital/overwritten", kind="overwritten", direction="up", onset_step=9,
                 detected_step=10, baseline=0.0, value=2.0, layers=("a",))  # fmt: skip
    records = [with_value(step, float(value)) for step, value in enumerate(values)]
    assert undone_since(seen, records) == over


def test_overwritten_weights_that_are_put_back_are_over() -> None:
    back = Finding(kind="returned", num=2, tensors=("a", "b"), reason="")
    for found, over in ((replace(back, tensors=("a",)), -1), (back, 10)):
        seen = Event(series="vital/overwritten", kind="overwritten", direction="", onset_step=8,
                     detected_step=8, baseline=0.0, value=2.0, layers=("a", "b"))  # fmt: skip
        records = [with_value(step, None, (found,) * (step == 10)) for step in range(13)]
        tracker, told = EventTracker(), []
        for step, record in enumerate(records):
            changes = tracker.update(step, record.series(), [seen] * (step == 8),
                                     records=records[: step + 1])  # fmt: skip
            told += [*changes.new, *changes.revised]
        (last,) = latest_versions(told)
        assert last.reverted_step == over


if __name__ == "__main__":
    number_of, odd_ones = read_all(range(int(sys.argv[1]), int(sys.argv[2])))
    print("\n".join(odd_ones))
    print(f"{number_of} events, {len(odd_ones)} wrong")
