"""What is known of an event: where it lies, what moved, whether decay explains it, what follows.

``annotated`` adds what the records around it say by now. ``EventTracker`` follows the events of a
run from snapshot to snapshot, and revises them: several series that see one thing are one event,
a series that comes back is no second one, and what goes on is told as it is by now.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from sparsitywatch.analysis.causes import (
    FIXED,
    NEAR_ZERO,
    if_opposed,
    is_family,
    is_of_rule,
    joined,
    of_one_cause,
    origin,
)
from sparsitywatch.analysis.decayed import NOISE_FACTOR, explained_by_decay, since_onset
from sparsitywatch.analysis.detect.detector import FEW, HALF, Course, noise_sd
from sparsitywatch.analysis.detect.value import CLEAR, SHARE, undone_since, value_trend
from sparsitywatch.records import (
    LEVEL_KINDS,
    SERIES_KINDS,
    Event,
    Layers,
    LayerShare,
    Record,
    from_json,
    to_json,
)
from sparsitywatch.records.event import XRAY_KINDS, some_of
from sparsitywatch.redact import logger
from sparsitywatch.series import describe

#: Of motion, what detectors are told beside their series.
_CONTEXT = ("decay_clock", "lr", "lr_clock", "dormant_by_chance")


def context_of(record: Record, series: Mapping[str, float]) -> dict[str, float]:
    """What detectors are told beside the series of a record, as far as it is known."""
    known = {name: series.get(f"motion/{name}") for name in _CONTEXT}
    known["reliance"] = series.get("value/reliance")
    if record.curve is not None:
        known["higher_is_better"] = float(record.curve.higher_is_better)
        known["reliance_low"] = record.curve.reliance_interval(0.9)[0]
    if record.dormant is not None and not record.why_no_clock:
        known["estimated_advance"] = record.dormant.estimated_advance
    return {name: value for name, value in known.items() if value is not None}


def annotated(event: Event, records: Sequence[Record], initial_rms: Mapping[str, float]) -> Event:
    """The event as the last record shows it: its level, layers, what moved, and why."""
    event, now = in_first_rule(with_baseline(event, records), records), records[-1]
    event = replace(event, value=now.series().get(event.series, event.value))
    known: dict[str, Any] = {
        "value_trend": value_trend(records),
        "trend": describe(event.series).trend(event.direction),
        "decay_clock": now.decay_clock,
        "num_not_finite": now.num_not_finite,
        "explained_by_decay": explained_by_decay(event, records),
        "why_no_clock": now.why_no_clock,
        **rules_that_moved(event, records),
        **came(event, records),
    }
    # the layers of old records are let go: then the oldest that has them is the closest
    with_layers = [r for r in records[:-1] if r.layers and not r.num_not_finite]
    before = [record for record in with_layers if record.step <= event.onset_step]
    compared = before[-1:] or with_layers[:1]
    if compared and (before or event.before_step < 0) and now.layers and not now.num_not_finite:
        known |= {
            "layers": accountable_layers(compared[0], now, event.series),
            "change": what_moved(compared[0], now, event.series, initial_rms),
            "before_step": compared[0].step,
        }
    return if_opposed(replace(event, **known))


def model_changed(before: Record, now: Record) -> Event:
    """That a record is about other weights than the one before it, and about which."""
    then, own = (dict(_sizes(record)) for record in (before, now))
    kinds = {
        "gone": [name for name in then if name not in own],
        "new": [name for name in own if name not in then],
        "of another size": [n for n in own if n in then and then[n] != own[n]],
    }
    sizes = f"{before.scope.num_weights:,} weights in scope before, {now.scope.num_weights:,} now"
    words = [f"{some_of(names, len(names))} {what}" for what, names in kinds.items() if names]
    return Event(
        series="model/changed",
        direction="",
        onset_step=before.step,
        onset_high=now.step,
        before_step=before.step,
        detected_step=now.step,
        baseline=float(before.scope.num_weights),
        value=float(now.scope.num_weights),
        kind="changed",
        layers=tuple(name for names in kinds.values() for name in names),
        reason="; ".join([sizes, *words]),
    )


def _sizes(record: Record) -> Iterator[tuple[str, int]]:
    columns = Layers.of(record.layers).columns
    return zip(columns.names, columns.num_weights.tolist(), strict=True)


#: Part of a change that comes within two snapshots where it jumps; and the part of the largest
#: step, or of the way, that is next to nothing.
_WITHIN_TWO, _NEXT_TO_NOTHING = 0.5, 0.25


def came(event: Event, records: Sequence[Record]) -> dict[str, Any]:
    """How a change came: whether it jumped, and its peak if it is on its way back."""
    since, sign = _values(event.series, since_onset(event, records)), _sign(event)
    way = sign * since[np.isfinite(since)]
    is_sudden = event.kind in ("abrupt", "lost")
    if not (is_sudden or event.kind in ("level", "steady")) or len(way) < 3:  # it may go on
        return {}
    peak, moves = float(way.max()), np.diff(way)
    size = max(peak - sign * event.baseline, abs(event.size))
    within_two = float(max(moves.max(), (moves[:-1] + moves[1:]).max()))
    is_at_rest = moves[-1] <= _NEXT_TO_NOTHING * moves.max()
    is_on_its_way_back = peak - way[-1] > _NEXT_TO_NOTHING * size
    return {
        "jumped": bool(is_sudden and within_two > _WITHIN_TWO * size and is_at_rest),
        "peak": sign * peak if is_on_its_way_back else math.nan,
    }


def with_baseline(event: Event, records: Sequence[Record]) -> Event:
    """The event of an abrupt change with the level at the earliest step that it may begin at."""
    before = _values(event.series, [r for r in records if r.step <= event.onset_low][-2 * FEW :])
    before = before[np.isfinite(before)][-FEW:]
    if event.kind != "abrupt" or not len(before):
        return event
    # what went the other way until then, as a loss does, was farther in its direction at first
    sign, at_low = _sign(event), float(np.median(before))
    return replace(event, baseline=sign * min(sign * at_low, sign * event.baseline))


def in_first_rule(event: Event, records: Sequence[Record]) -> Event:
    """The event with its level by the run's first near-zero rule, if that moved as well."""
    names = (event.series, *event.related)
    rule = next(iter(records[-1].near_zero), "")
    if event.series == (first := NEAR_ZERO + rule) or not any(map(is_of_rule, names)):
        return event
    before = _values(first, [r for r in records if r.step <= event.onset_low])
    before, (value,) = before[np.isfinite(before)], _values(first, records[-1:])
    if not len(before):
        return event
    baseline, noise, sign = float(np.median(before[-FEW:])), noise_sd(before), _sign(event)
    # other rules count the same weights, so that a size says how much of it this one sees
    least = _NEXT_TO_NOTHING * abs(event.size) if is_of_rule(event.series) else 0.0
    least = max(least, _MIN_MOVED * baseline, NOISE_FACTOR * float(np.nan_to_num(noise)))
    if not sign * (value - baseline) > least:
        return event
    related = tuple(name for name in dict.fromkeys(names) if name != first)
    return replace(event, series=first, related=related, baseline=baseline, noise=noise)


def _values(series: str, records: Sequence[Record]) -> np.ndarray:
    """A series at some records, NaN where it is not known."""
    rule = series.removeprefix(NEAR_ZERO)
    return np.array([
        (math.nan if r.num_not_finite else r.near_zero.get(rule, math.nan))
        if is_of_rule(series) else r.series().get(series, math.nan)
        for r in records
    ])  # fmt: skip


# ------------------------------------------------------------------ where it lies


def accountable_layers(
    before: Record, after: Record, series: str, share: float = 0.5
) -> tuple[str, ...]:
    """The fewest layers, largest first, that make up ``share`` of a change in its direction."""
    earlier = {layer.name: _fraction(layer, series) for layer in before.layers}
    changes = {
        layer.name: layer.num_weights * (_fraction(layer, series) - earlier[layer.name])
        for layer in after.layers
        if layer.name in earlier
    }
    changes = {name: change for name, change in changes.items() if math.isfinite(change)}
    sign = 1.0 if sum(changes.values()) >= 0 else -1.0
    moved = {name: sign * change for name, change in changes.items() if sign * change > 0}
    names = sorted(moved, key=lambda name: -moved[name])
    before_each = accumulate((moved[name] for name in names), initial=0.0)
    needed = share * sum(moved.values())
    return tuple(name for name, total in zip(names, before_each, strict=False) if total < needed)


def _fraction(layer: LayerShare, series: str) -> float:
    """A layer's own part of a series; NaN if it has none."""
    room, _, rule = series.partition("/")
    if room == "near_zero":
        return layer.near_zero.get(rule, math.nan)
    return layer.dormant if series == "motion/dormant" else math.nan


# ------------------------------------------------------------------ what moved
#
# A change of scale multiplies every magnitude of a tensor by one factor: a fixed threshold then
# counts other weights, and nothing else happens. A change of shape moves some weights and not
# others. What the scale alone would have done is the share of weights that were below
# threshold / factor before. The factor is the ratio of the root mean squares of those weights that
# are not near zero by the rule that is relative to the present root mean square: it does not move
# when a part of the weights goes to zero, and is exact when all are multiplied.

# Rules answer to different changes, so that all of them together say more than any one. Where a
# rule that is relative to the present scale and one with a fixed threshold move against each other,
# shape and scale have both moved. Whether the model turns sparser is then unsaid.

#: Share of a change at which the other cause is left unmentioned.
_MOST = 0.75
#: Least change of the near-zero fraction, relative to it, that has a cause.
_MIN_MOVED = 0.05
#: A rule relative to the present root mean square, up to this factor, says what is small.
_LARGEST_FACTOR = 0.2
#: Thresholds closer than this ratio give no slope.
_MIN_RATIO = 1.1


def rules_that_moved(event: Event, records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The other near-zero rules that moved since the onset, the event's way and the other way."""
    if not event.series.startswith(NEAR_ZERO):
        return {}
    known = [r for r in records if r.near_zero and not r.num_not_finite]
    before = [r for r in known if r.step <= event.onset_step] or known[:1]
    agreeing: list[str] = []
    opposed: list[str] = []
    for rule in sorted(before[-1].near_zero):
        past = np.array([r.near_zero.get(rule, math.nan) for r in before])
        change = _sign(event) * (known[-1].near_zero.get(rule, math.nan) - past[-1])
        noise = np.nan_to_num(noise_sd(past[np.isfinite(past)]))
        # by a good part of its level and of the event's size, and by more than its noise
        least = max(_MIN_MOVED * max(past[-1], abs(event.size)), NOISE_FACTOR * noise)
        if abs(change) > least and NEAR_ZERO + rule != event.series:
            (agreeing if change > 0.0 else opposed).append(NEAR_ZERO + rule)
    return {"agreeing": tuple(agreeing), "opposed": tuple(opposed)}


def what_moved(before: Record, now: Record, series: str, initial_rms: Mapping[str, float]) -> str:
    """What moved between two records: "scale", "shape", "both", or empty if unknown."""
    room, _, rule = series.partition("/")
    if room == "near_zero" and rule.startswith(FIXED):
        return _cause(before, now, rule, initial_rms)
    fixed = [r for kind in FIXED for r in sorted(now.near_zero) if r.startswith(kind)]
    cause = _cause(before, now, fixed[0], initial_rms) if fixed else ""
    if room == "near_zero":  # the other rules are deaf to scale
        return "both" if cause in ("scale", "both") else "shape"
    return cause


def _cause(before: Record, now: Record, rule: str, initial_rms: Mapping[str, float]) -> str:
    earlier = {layer.name: layer for layer in before.layers}
    was = by_scale = is_now = 0.0
    for layer in now.layers:
        old = earlier.get(layer.name)
        if old is None or rule not in layer.near_zero or rule not in old.near_zero:
            continue
        was += layer.num_weights * old.near_zero[rule]
        first_rms = initial_rms.get(layer.name, 0.0)
        by_scale += layer.num_weights * _by_scale_alone(old, layer, rule, first_rms)
        is_now += layer.num_weights * layer.near_zero[rule]
    change = is_now - was
    if not math.isfinite(change) or abs(change) <= _MIN_MOVED * was:
        return ""
    sign = math.copysign(1.0, change)
    scale, shape = max(sign * (by_scale - was), 0.0), max(sign * (is_now - by_scale), 0.0)
    share = scale / (scale + shape)
    return "scale" if share >= _MOST else "shape" if share <= 1.0 - _MOST else "both"


def _by_scale_alone(old: LayerShare, new: LayerShare, rule: str, first_rms: float) -> float:
    """The near-zero fraction that ``old`` would have with the scale of ``new``."""
    was, is_now = _scale(old), _scale(new)
    fraction, zero = old.near_zero[rule], old.near_zero.get("zero", 0.0)
    if not (was > 0.0 and is_now > 0.0) or fraction <= zero:
        return fraction
    units = {"abs": 1.0, "rms": old.rms, "initial": first_rms, "zero": 0.0}
    kinds = {name: name.partition("_") for name in old.near_zero}
    # the magnitude that a rule stands for; 0 if there is none or it is unknown
    limits = {name: float(size or 0.0) * units[kind] for name, (kind, _, size) in kinds.items()}
    ways = {limits[name]: f - zero for name, f in old.near_zero.items()}
    own = limits[rule]
    points = [(math.log(t), math.log(f)) for t, f in sorted(ways.items()) if t and f > 0.0]
    here = (math.log(own) if own else 0.0, math.log(fraction - zero))
    moved = _follow(points if own else [here], here, math.log(was / is_now))
    return zero + min(math.exp(moved), 1.0 - zero)


def _follow(points: list[tuple[float, float]], here: tuple[float, float], way: float) -> float:
    """The curve of straight lines through ``points`` (log threshold, log share), from ``here``."""

    def slope_of(a: tuple[float, float], b: tuple[float, float]) -> float:
        # a share grows at most as fast as its threshold where small weights are no rarer
        return min(max((b[1] - a[1]) / (b[0] - a[0]), 0.0), 1.0)

    x, y = here
    direction = math.copysign(1.0, way)
    points = sorted(points, key=lambda p: direction * p[0])
    ahead = [p for p in points if direction * (p[0] - x) >= math.log(_MIN_RATIO)]
    behind = [p for p in points if direction * (x - p[0]) >= math.log(_MIN_RATIO)]
    slope = slope_of(behind[-1], here) if behind else 1.0
    for point in ahead:
        slope = slope_of((x, y), point)
        if direction * (point[0] - here[0]) >= abs(way):
            break
        x, y = point
    return y + slope * (here[0] + way - x)


def _scale(layer: LayerShare) -> float:
    """Root mean square of the weights that are not small beside it; NaN if there are none."""
    small = layer.near_zero.get("zero", 0.0)
    for rule, fraction in layer.near_zero.items():
        kind, _, number = rule.partition("_")
        if kind == "rms" and float(number) <= _LARGEST_FACTOR:
            small = max(small, fraction)
    return layer.rms / math.sqrt(1.0 - small) if small < 1.0 else math.nan


# ------------------------------------------------------------------ what became of it

#: Snapshots after a detection within which another one may still have seen the same thing.
_FEW_SNAPSHOTS = 3
#: Events that are followed; older ones are left as they are.
_MAX_FOLLOWED = 50
#: An event is revised where its level moves by this part of its size, and beyond noise. It has
#: settled after ``FEW`` snapshots without a revision.
_WORTH = 0.05
#: What has settled goes on where it adds this part of its size, at two snapshots in a row.
_GOES_ON = 0.25


@dataclass(frozen=True)
class Changes:
    """What one snapshot adds to the events of a run."""

    new: tuple[Event, ...] = ()  # seen for the first time
    revised: tuple[Event, ...] = ()  # new versions of earlier ones
    graver: frozenset[str] = frozenset()  # ids of those of these that ask for more than before


#: What stays true, whatever the series does later.
_FOR_GOOD = frozenset({"standstill", "spike", *SERIES_KINDS, *XRAY_KINDS, *LEVEL_KINDS})


@dataclass
class _Followed:
    """An event, and what its series did since."""

    event: Event  # in its latest version
    course: Course  # in its direction, at the snapshots that had the series
    num_snapshots: int = 0  # since it was detected
    until: int = -1  # step up to which an onset still belongs to it; -1 while that is any
    num_quiet: int = 0  # snapshots that had the series, since it was seen or last grew
    num_beyond: int = 0  # of the latest in a row, those beyond what it settled at
    recent: tuple[float, ...] = ()  # the latest values of its series

    @property
    def has_reverted(self) -> bool:
        return self.event.reverted_step >= 0

    @property
    def is_open(self) -> bool:
        return self.event.course in ("seen", "growing")

    @property
    def names(self) -> tuple[str, ...]:
        return self.event.series, *self.event.related

    def follow(self, step: int, values: Mapping[str, float], records: Sequence[Record]) -> int:
        """One more snapshot; the step since which it is over, if that is seen now, else -1."""
        self.num_snapshots += 1
        if self.num_snapshots == _FEW_SNAPSHOTS:
            self.until = step
        event = self.event
        if event.series not in values:
            return -1
        value = values[event.series]
        if self.has_reverted or event.kind in _FOR_GOOD:
            return -1
        self.num_quiet += 1
        self.num_beyond = self.num_beyond + 1 if self._moved(value) >= _GOES_ON else 0
        self.recent = (*self.recent, value)[-2 * FEW :]
        # of a change half may be left where it is over, of a fault none
        left = HALF if event.is_of_series else 0.0
        is_back = self.course.is_back(step, _size(event, value), left)
        is_of_value = event.series == "value/dense" and event.kind != "unlearned"
        if event.is_happening or is_of_value:
            return undone_since(event, records)
        return self.course.low_step if is_back else -1

    def _moved(self, value: float) -> float:
        """How far a value is beyond the level that was told, as a part of the event's size."""
        size = max(abs(self.event.size), float(np.nan_to_num(self.course.peak)))
        way = _sign(self.event) * (value - self.event.value)
        if not abs(way) >= _WORTH * size > 0.0:
            return 0.0
        seen = [self.event.noise, noise_sd(np.array(self.recent))]
        return way / size if abs(way) > CLEAR * float(np.nan_to_num(seen).max()) else 0.0

    def is_due(self, value: float) -> bool:
        """Whether the level has moved so far that it has to be told anew."""
        if not self.event.is_of_series:
            return False
        return self.num_beyond > 1 if self.num_quiet >= FEW else self._moved(value) != 0.0

    def has_told(self, event: Event) -> bool:
        """Whether a detection is of what goes on: by another rule, or seen well before for most."""
        first, before = self.event, self.recent[:-FEW]
        is_same = (first.series, first.direction) == (event.series, event.direction)
        if not is_same or self.has_reverted:
            return False
        are_rules = is_of_rule(origin(first)) and is_of_rule(origin(event))
        is_by_another = self.is_open and are_rules and origin(event) != event.series
        return is_by_another or any(_size(event, x) >= HALF * abs(event.size) for x in before[-1:])

    def take(self, event: Event) -> Event:
        """Go on with a new version of it."""
        if event.series != self.event.series:
            size = _sign(event) * event.size
            self.course, self.recent = Course(size, size, -1), ()
        if event.course == "growing":
            self.num_quiet = 0
        elif self.num_quiet == FEW:  # this is once; what was left so at a close may go on
            self.num_quiet += 1
        self.event = event
        return event

    def join(self, event: Event) -> Event:
        """The event that it is with another detection."""
        was, self.event = self.event, joined(self.event, event)
        if self.event.kind != was.kind and not self.event.is_of_series:  # of a fault that leads
            self.course, self.recent = Course(self.event.size, self.event.size, -1), ()
            self.num_quiet = 0
        return self.event

    def revise(self, step: int, why: str, **fields: Any) -> Event:
        """A new version of the event."""
        event = self.take(replace(self.event, **fields | {"revised_step": step}))
        logger.info("%s %s: %s", event.id, why, event.describe())
        return event

    def settle(self, past: _Past, why: str, at: int | None = None) -> Event:
        """The version that stays, unless the series goes on; of what was known at a step."""
        at = past.step if at is None else at
        return self.revise(past.step, why, **past.of(self.event) | {"settled_step": at})

    def revert(self, past: _Past, since: int) -> Event:
        """The version that says that it is over; nothing is left to settle."""
        event, step = self.event, past.step
        now = replace(event, value=past.values.get(event.series, event.value))
        known = {"value": now.value, **came(now, past.records)} if event.is_of_series else {}
        settled = step if self.is_open else event.settled_step
        known |= {"reverted_step": since, "settled_step": settled}
        return self.revise(step, "has reverted", **known)


@dataclass(frozen=True)
class _Past:
    """A snapshot, and what is known up to it; without records there is no more than its series."""

    step: int
    values: Mapping[str, float]
    records: Sequence[Record]
    initial_rms: Mapping[str, float]

    def of(self, event: Event) -> dict[str, Any]:
        """What is known of an event by now."""
        if not event.is_of_series or event.kind in _FOR_GOOD:
            return {}
        if self.records:
            return vars(annotated(event, self.records, self.initial_rms))
        return vars(replace(event, value=self.values.get(event.series, event.value)))


class EventTracker:
    """Follows the events of a run from snapshot to snapshot."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}

    def update(
        self,
        step: int,
        values: Mapping[str, float],
        seen: Sequence[Event],
        reported: Sequence[Event] = (),
        *,
        records: Sequence[Record] = (),
        initial_rms: Mapping[str, float] | None = None,
    ) -> Changes:
        """One more snapshot, its series, and its events: ``seen``, or ``reported`` by a log."""
        new, was = dict[str, Event](), {n: one.event for n, one in self._followed.items()}
        past, told = _Past(step, values, records, initial_rms or {}), {e.id for e in reported}
        ends = [(one, one.follow(step, values, records)) for one in self._followed.values()]
        for event in reported:
            self._followed[event.id].take(event) if event.id in self._followed else self._add(event)
        over = [(one, since) for one, since in ends if since >= 0 and one.event.id not in told]
        revised = {one.event.id: one.revert(past, since) for one, since in over}
        for event in sorted(seen, key=_by_strength):
            rise = self._reverted_by(event)
            if rise is not None:
                if not rise.has_reverted:
                    revised[rise.event.id] = rise.revert(past, rise.course.low_step)
                continue
            same = self._same(event, step)
            if same is None:
                revised |= self._ended_by(event, past)
                event = self._named(event)
                new[event.id] = self._add(event)
                continue
            first, whole = same.event, same.join(event)
            name = whole.id
            if name in new:
                new[name] = whole
            elif whole != first:
                revised[name] = same.revise(step, "is seen in another series")
        for name, one in self._followed.items():
            if name not in new and name not in told:
                revised |= self._moved(one, past, is_joined=name in revised)
        graver = [name for name, event in revised.items() if event.gravity > was[name].gravity]
        return Changes(tuple(new.values()), tuple(revised.values()), frozenset(graver))

    def close(
        self, step: int, records: Sequence[Record], initial_rms: Mapping[str, float]
    ) -> list[Event]:
        """What has not settled yet, as the last record leaves it; told at a step."""
        past = _Past(step, {}, records, initial_rms)
        waiting = []
        for one in self._followed.values():
            # or an earlier close has left it so, and it has not settled since
            was_left = 0 < one.num_quiet < FEW and one.event.settled_step < step
            if one.is_open or (was_left and not one.has_reverted and self._is_last(one)):
                waiting.append(one)
        return [one.settle(past, "is left as it is") for one in waiting]

    def _is_last(self, one: _Followed) -> bool:
        """Whether no later event is of the series that an event is told in."""
        later = [
            o for o in self._followed.values() if o.event.detected_step > one.event.detected_step
        ]
        return not any(one.event.series in other.names for other in later)

    def _moved(self, one: _Followed, past: _Past, *, is_joined: bool) -> dict[str, Event]:
        """The version of an event that has moved, is seen in more series, or has settled, by id."""
        event, value = one.event, past.values.get(one.event.series, math.nan)
        if one.has_reverted:
            return {}
        is_last = self._is_last(one)
        is_due = is_last and one.is_due(value)
        if is_due or (is_joined and one.is_open):
            known = past.of(event) | {"settled_step": -1}
            return {event.id: one.revise(past.step, "has moved", **known)}
        if one.num_quiet == FEW and (one.is_open or is_last):
            return {event.id: one.settle(past, "has settled")}
        return {}

    def _ended_by(self, event: Event, past: _Past) -> dict[str, Event]:
        """Earlier events of the series that the next one begins after, as they were then, by id."""
        found = {}
        for one in self._followed.values():
            first, since = one.event, event.onset_step
            is_told = one.is_open or (first.reported_step > since and not one.has_reverted)
            is_later = first.detected_step <= since < event.detected_step
            if event.series == first.series and is_told and is_later:
                then = replace(past, records=[r for r in past.records if r.step <= since])
                found[first.id] = one.settle(then, "has ended", since)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {"followed": list(map(to_json, self._followed.values()))}

    def load_state_dict(self, state: Mapping[str, Any], logged: Sequence[Event] = ()) -> None:
        """Go on from what ``state_dict`` gave; a log may know that an event was left as it was."""
        saved = [from_json(_Followed, text) for text in state["followed"]]
        self._followed = {followed.event.id: followed for followed in saved}
        for event in logged:
            if event.id in self._followed and event.course == "settled":
                self._followed[event.id].take(event)

    def _add(self, event: Event) -> Event:
        if event.kind in _FOR_GOOD or event.series.startswith("files/"):
            event = replace(event, settled_step=event.detected_step)
        size = _size(event, event.value)
        self._followed[event.id] = _Followed(event, Course(size, size, -1))
        for old in list(self._followed)[:-_MAX_FOLLOWED]:
            del self._followed[old]
        return event

    def _named(self, event: Event) -> Event:
        """The event under an id that no other one has, with the dormant weights that it is of."""
        number = 2
        while event.id in self._followed:
            event = replace(event, id=f"{event.series}@{event.onset_step}-{number}")
            number += 1
        if not event.explained_by_decay or _is_early(event):
            return event
        for followed in reversed(self._followed.values()):
            first = followed.event
            is_of_same = first.trend == event.trend and {*first.layers} & {*event.layers}
            if _is_early(first) and is_of_same and not followed.has_reverted:
                return replace(event, preceded_by=first.id)
        return event

    def _same(self, event: Event, step: int) -> _Followed | None:
        """The event that this detection is a part of, the latest if there are several."""
        for followed in reversed(self._followed.values()):
            first = followed.event
            if followed.has_told(event) or first.kind == event.kind in LEVEL_KINDS:
                return followed
            if of_one_cause(first, event) is not None:
                return followed
            is_other = origin(event) not in (origin(first), *first.related)
            # a judge of change sees what one of height has told
            is_other |= first.kind == "level" != event.kind and first.direction == event.direction
            if not is_other or not (is_family(first, event) or first.trend == event.trend != ""):
                continue
            until = step if followed.until < 0 else followed.until
            touches = event.onset_low <= until and event.onset_high >= first.onset_low
            is_late = followed.num_snapshots > _FEW_SNAPSHOTS
            touches |= not is_late and is_family(first, event)
            if touches and not (is_late and _is_early(first) != _is_early(event)):
                return followed
        return None

    def _reverted_by(self, event: Event) -> _Followed | None:
        """The earlier event that a detection is the way back of, and is reported with."""
        for followed in reversed(self._followed.values()):
            first = followed.event
            is_back = event.direction != first.direction and event.onset_high >= first.detected_step
            if is_back and event.series in (first.series, *first.related):
                if followed.has_reverted:
                    return followed if event.onset_low <= first.reverted_step else None
                return followed if followed.course.low_step >= 0 else None
        return None


def _sign(event: Event) -> float:
    return -1.0 if event.direction == "down" else 1.0


def _size(event: Event, value: float) -> float:
    """How far a value is from what it was before; where nothing was learned, from being learned."""
    margin = 2.0 * SHARE * abs(event.baseline) if event.kind == "unlearned" else 0.0
    return _sign(event) * (value - event.baseline) + margin


def _is_early(event: Event) -> bool:  # of the early signal, weights that get no gradient
    return event.series.startswith("motion/")


def _by_strength(event: Event) -> tuple[bool, bool, float, str]:
    """Faults first, then the strongest; one of unknown noise comes last, or who tells another's."""
    strength = float(np.nan_to_num(-abs(event.size_in_noise), nan=1.0, neginf=-math.inf))
    return event.is_of_series, origin(event) != event.series, strength, event.series
