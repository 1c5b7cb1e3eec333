"""What is known of an event: where it lies, what moved, whether decay explains it, what follows.

``annotated`` adds what the records around a detection say. ``EventTracker`` follows the events of a
run from snapshot to snapshot: several series that see one thing are one event, and a series that
comes back is no second one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from sparsitywatch.analysis.detect.detector import Course, noise_sd
from sparsitywatch.analysis.detect.value import value_trend
from sparsitywatch.records import (
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
    if record.dormant is not None and not record.why_no_clock:
        known["estimated_advance"] = record.dormant.estimated_advance
    return {name: value for name, value in known.items() if value is not None}


def annotated(event: Event, records: Sequence[Record], initial_rms: Mapping[str, float]) -> Event:
    """The event, seen in the last record, with its trend, its layers, what moved, and why."""
    now = records[-1]
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
    if compared:
        known |= {
            "layers": accountable_layers(compared[0], now, event.series),
            "change": what_moved(compared[0], now, event.series, initial_rms),
            "before_step": compared[0].step,
        }
    return _if_opposed(replace(event, **known))


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


def _since_onset(event: Event, records: Sequence[Record]) -> Sequence[Record]:
    """The last record before the change, and all after it."""
    at = max((i for i, r in enumerate(records) if r.step <= event.onset_step), default=0)
    return records[at:]


#: Part of a change that comes within two snapshots where it jumps; and the part of the largest
#: step, or of the way, that is next to nothing.
_WITHIN_TWO, _NEXT_TO_NOTHING = 0.5, 0.25


def came(event: Event, records: Sequence[Record]) -> dict[str, Any]:
    """How an abrupt change came: whether it jumped, and its peak if it is on its way back."""
    since = [r.series().get(event.series, math.nan) for r in _since_onset(event, records)]
    sign = _sign(event)
    way = sign * np.array(since)[np.isfinite(since)]
    if event.kind != "abrupt" or len(way) < 3:  # what has just come may go on
        return {}
    peak, moves = float(way.max()), np.diff(way)
    size = max(peak - sign * event.baseline, abs(event.size))
    within_two = float(max(moves.max(), (moves[:-1] + moves[1:]).max()))
    is_at_rest = moves[-1] <= _NEXT_TO_NOTHING * moves.max()
    is_on_its_way_back = peak - way[-1] > _NEXT_TO_NOTHING * size
    return {
        "jumped": bool(within_two > _WITHIN_TWO * size and is_at_rest),
        "peak": sign * peak if is_on_its_way_back else math.nan,
    }


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


# ------------------------------------------------------------------ whether decay explains it
#
# A weight without gradient shrinks as exp(-clock). It is near zero, |w| <= t, once it was below
# t * exp(clock) before. So between two snapshots decay alone takes a near-zero fraction f at most
# to f * exp(d), d being what the clock advanced, where small weights are no rarer than larger ones,
# as in every bell-shaped distribution. Growth above that bound has another cause: pruning, a
# penalty, a jump. That growth could be decay's is no proof: weights that decay alone moves are
# dormant, and where next to none are, nothing is claimed. The clock is an average over the in-scope
# weights: where param groups decay at very different rates, a tensor may outrun it. Where it is not
# known, what weights without gradient shrank by says how far it has come at least: growth within
# the bound of that is within the true one, and growth above it says nothing.

#: Standard deviations by which one snapshot may exceed the bound, and all together.
_NOISE_FACTOR = 4.0
#: Part of the share of weights that decay must have moved which is seen to be dormant.
_MIN_SEEN = 0.1


def explained_by_decay(event: Event, records: Sequence[Record]) -> bool | None:
    """Whether decay alone could account for a rise of near-zero weights; None if not known."""
    room, _, rule = event.series.partition("/")
    if room != "near_zero" or event.direction != "up" or rule.startswith("rms_"):
        return None
    if rule == "zero":
        return False
    records = _since_onset(event, records)
    if any(r.why_no_clock for r in records):  # such as a decay that Adam divides by the gradient
        return None
    since = [r for r in records if r.near_zero.get(rule, 0.0) > 0.0 and not r.num_not_finite]
    values = np.array([r.near_zero[rule] for r in since])
    if len(since) < 2 or not np.isfinite(values).all():
        return None
    clock = np.array([r.decay_clock for r in since])
    is_known = bool(np.isfinite(clock).all())
    if not is_known:  # how far decay has come at least, by what weights shrank
        seen = [math.nan if r.dormant is None else r.dormant.estimated_advance for r in records]
        come = np.nancumsum(seen)  # where nothing was seen it may have stood still
        clock = come[np.searchsorted([r.step for r in records], [r.step for r in since])]
    # standard deviation of log(later / earlier), for each value and the one after it
    counting = 1.0 / np.sqrt(np.maximum(values[:-1] * since[-1].scope.num_weights, 1.0))
    known = 0.0 if math.isnan(event.noise) else event.noise
    noise = math.sqrt(2.0) * np.maximum(counting, known / values[:-1])
    if _is_faster(values, clock, noise) or _is_faster(values[[0, -1]], clock[[0, -1]], noise[[0]]):
        return False if is_known else None
    return True if _is_seen(since, values, clock) else None


def _is_faster(values: np.ndarray, clock: np.ndarray, noise: np.ndarray) -> bool:
    excess = np.diff(np.log(values)) - np.diff(clock)
    return bool((excess > _NOISE_FACTOR * noise).any())


def _is_seen(since: Sequence[Record], values: np.ndarray, clock: np.ndarray) -> bool:
    """Whether a good part of the weights that decay must have moved are seen to be dormant."""
    advance = math.expm1(float(clock[-1] - clock[0]))
    if advance <= 0.0:
        return False
    needed = float(values[-1] / values[0] - 1.0) / advance
    fractions = [r.dormant.fraction for r in since if r.dormant is not None]
    seen = [fraction for fraction in fractions if math.isfinite(fraction)]
    return not seen or max(seen) >= _MIN_SEEN * needed


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

_NEAR_ZERO = "near_zero/"
#: Rules with a fixed threshold.
_FIXED = ("initial_", "abs_")
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
    if not event.series.startswith(_NEAR_ZERO):
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
        least = max(_MIN_MOVED * max(past[-1], abs(event.size)), _NOISE_FACTOR * noise)
        if abs(change) > least and _NEAR_ZERO + rule != event.series:
            (agreeing if change > 0.0 else opposed).append(_NEAR_ZERO + rule)
    return {"agreeing": tuple(agreeing), "opposed": tuple(opposed)}


def _if_opposed(event: Event) -> Event:
    """The event, with what rules that moved against each other say of it."""
    if not event.opposed:
        return event
    rules = [name.removeprefix(_NEAR_ZERO) for name in (event.series, *event.opposed)]
    is_mixed = any(r.startswith(_FIXED) for r in rules) and any(r.startswith("rms_") for r in rules)
    return replace(event, trend="", change="both" if is_mixed else event.change)


def what_moved(before: Record, now: Record, series: str, initial_rms: Mapping[str, float]) -> str:
    """What moved between two records: "scale", "shape", "both", or empty if unknown."""
    room, _, rule = series.partition("/")
    if room == "near_zero" and rule.startswith(_FIXED):
        return _cause(before, now, rule, initial_rms)
    fixed = [r for kind in _FIXED for r in sorted(now.near_zero) if r.startswith(kind)]
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


@dataclass(frozen=True)
class Changes:
    """What one snapshot adds to the events of a run."""

    new: tuple[Event, ...] = ()  # seen for the first time
    revised: tuple[Event, ...] = ()  # new versions of earlier ones


#: What stays true, whatever the series does later.
_FOR_GOOD = frozenset({"standstill", "spike", *SERIES_KINDS, *XRAY_KINDS})


@dataclass
class _Followed:
    """An event, and what its series did since."""

    event: Event  # in its latest version
    course: Course  # in its direction, at the snapshots that had the series
    num_snapshots: int = 0  # since it was detected
    until: int = -1  # step up to which an onset still belongs to it; -1 while that is any

    @property
    def has_reverted(self) -> bool:
        return self.event.reverted_step >= 0

    def reverts(self, step: int, values: Mapping[str, float]) -> bool:
        """One more snapshot; True if the event is seen to have reverted."""
        self.num_snapshots += 1
        if self.num_snapshots == _FEW_SNAPSHOTS:
            self.until = step
        event = self.event
        if self.has_reverted or event.kind in _FOR_GOOD or event.series not in values:
            return False
        return self.course.is_back(step, _sign(event) * (values[event.series] - event.baseline))

    def revise(self, step: int, why: str, **fields: Any) -> Event:
        """A new version of the event."""
        self.event = replace(self.event, revised_step=step, **fields)
        logger.info("%s %s: %s", self.event.id, why, self.event.describe())
        return self.event

    def revert(self, step: int) -> Event:
        """The version that says that the event has reverted."""
        return self.revise(step, "has reverted", reverted_step=self.course.low_step)


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
    ) -> Changes:
        """One more snapshot, its series, and its events: ``seen``, or ``reported`` by a log."""
        new: dict[str, Event] = {}
        reverted = [one for one in self._followed.values() if one.reverts(step, values)]
        revised = {one.event.id: one.revert(step) for one in reverted}
        for event in reported:
            self._add(event)
        for event in sorted(seen, key=_by_strength):
            rise = self._reverted_by(event)
            if rise is not None:
                if not rise.has_reverted:
                    revised[rise.event.id] = rise.revert(step)
                continue
            same = self._same(event, step)
            if same is None:
                event = self._named(event)
                new[event.id] = self._add(event)
                continue
            name, whole = same.event.id, _joined(same.event, event)
            if name in new:
                new[name] = same.event = whole
            elif whole != same.event:
                same.event = whole
                revised[name] = same.revise(step, "is seen in another series")
        return Changes(tuple(new.values()), tuple(revised.values()))

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {"followed": list(map(to_json, self._followed.values()))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        saved = [from_json(_Followed, text) for text in state["followed"]]
        self._followed = {followed.event.id: followed for followed in saved}

    def _add(self, event: Event) -> Event:
        size = _sign(event) * event.size
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
            is_other = event.series != first.series and event.series not in first.related
            if not is_other or not (_is_family(first, event) or first.trend == event.trend != ""):
                continue
            until = step if followed.until < 0 else followed.until
            touches = event.onset_low <= until and event.onset_high >= first.onset_low
            is_late = followed.num_snapshots > _FEW_SNAPSHOTS
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


def _is_family(first: Event, other: Event) -> bool:
    """Whether both are of near-zero rules, which all count the same weights."""
    return first.series.startswith(_NEAR_ZERO) and other.series.startswith(_NEAR_ZERO)


def _joined(first: Event, other: Event) -> Event:
    """The event that two detections are; near-zero rules may have moved against each other."""
    if first.direction != other.direction and _is_family(first, other):
        opposed = dict.fromkeys((*first.opposed, other.series))
        return _if_opposed(replace(first, opposed=tuple(opposed)))
    return replace(first, related=(*first.related, other.series))


def _is_early(event: Event) -> bool:  # of the early signal, weights that get no gradient
    return event.series.startswith("motion/")


def _by_strength(event: Event) -> tuple[float, str]:
    """The strongest first; one whose noise is not known comes last."""
    return float(np.nan_to_num(-abs(event.size_in_noise), nan=1.0, neginf=-math.inf)), event.series
