"""Whether weights turned small because all did, or because some did.

A change of *scale* multiplies every magnitude of a tensor by one factor: a fixed threshold
then counts other weights, and nothing else happens. A change of *shape* moves some weights
and not others. The two are told apart by asking what the scale alone would have done: the
share of weights that were below ``threshold / factor`` before.

The factor is the ratio of the root mean squares of those weights that are not near zero by
the rule that is relative to the present root mean square: this one does not move when a
part of the weights goes to zero, and is exact when all are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparsitywatch.records import LayerShare, Record

__all__ = ["what_moved"]

#: Share of a change at which the other cause is left unmentioned.
_MOST = 0.75
#: Least change of the near-zero fraction, relative to it, that is told to have a cause.
_MIN_MOVED = 0.05
#: A rule relative to the present root mean square, up to this factor, tells what is small.
_LARGEST_FACTOR = 0.2
#: Thresholds closer than this ratio give no slope.
_MIN_RATIO = 1.1


def what_moved(before: Record, now: Record, series: str, initial_rms: Mapping[str, float]) -> str:
    """What moved between two records: "scale", "shape", "both", or empty if unknown.

    A near-zero fraction with a fixed threshold is split into what the scale alone would
    have done and the rest; a cause with three quarters of the change stands alone. For
    another series the first such fraction of the records is split. A rule relative to the
    present root mean square, and exact zeros, are deaf to scale: if one of them is the
    series, the shape changed at least.

    Args:
        before, now: two records of one scope, with layers.
        series: name of the series that an event was seen in.
        initial_rms: root mean square of each tensor that "initial_*" rules refer to.
    """
    room, _, rule = series.partition("/")
    is_near_zero = room == "near_zero"
    if is_near_zero and _is_fixed(rule):
        return _cause(before, now, rule, initial_rms)
    fixed = next((name for name in now.near_zero if _is_fixed(name)), None)
    cause = "" if fixed is None else _cause(before, now, fixed, initial_rms)
    if is_near_zero:
        return "both" if cause in ("scale", "both") else "shape"
    return cause


def _is_fixed(rule: str) -> bool:
    return rule.startswith(("initial_", "abs_"))


def _cause(before: Record, now: Record, rule: str, initial_rms: Mapping[str, float]) -> str:
    earlier = {layer.name: layer for layer in before.layers}
    was = by_scale = is_now = 0.0
    for layer in now.layers:
        old = earlier.get(layer.name)
        if old is None or rule not in layer.near_zero or rule not in old.near_zero:
            continue
        was += layer.num_weights * old.near_zero[rule]
        by_scale += layer.num_weights * _by_scale_alone(old, layer, rule, initial_rms)
        is_now += layer.num_weights * layer.near_zero[rule]
    change = is_now - was
    if not math.isfinite(change) or abs(change) <= _MIN_MOVED * was:
        return ""
    sign = math.copysign(1.0, change)
    scale, shape = max(sign * (by_scale - was), 0.0), max(sign * (is_now - by_scale), 0.0)
    share = scale / (scale + shape)
    return "scale" if share >= _MOST else "shape" if share <= 1.0 - _MOST else "both"


def _by_scale_alone(
    old: LayerShare, new: LayerShare, rule: str, initial_rms: Mapping[str, float]
) -> float:
    """The near-zero fraction that ``old`` would have with the scale of ``new``."""
    was, is_now = _scale(old), _scale(new)
    fraction, zero = old.near_zero[rule], old.near_zero.get("zero", 0.0)
    if not (was > 0.0 and is_now > 0.0) or fraction <= zero:
        return fraction
    ways = {_threshold(name, old, initial_rms): f - zero for name, f in old.near_zero.items()}
    ways.pop(0.0, None)
    own = _threshold(rule, old, initial_rms)
    points = [(math.log(t), math.log(f)) for t, f in sorted(ways.items()) if f > 0.0]
    here = (math.log(own), math.log(fraction - zero)) if own else (0.0, math.log(fraction - zero))
    moved = _follow(points if own else [here], here, math.log(was / is_now))
    return zero + min(math.exp(moved), 1.0 - zero)


def _follow(points: list[tuple[float, float]], here: tuple[float, float], way: float) -> float:
    """The curve through ``points`` (log threshold, log share), ``way`` from ``here``.

    Between points it is a straight line, beyond them one of the last slope, between 0 and
    1: a share grows at most as fast as its threshold where small weights are no rarer than
    larger ones. With ``here`` alone the slope is 1, which a flat density has.
    """
    x, y = here
    direction = math.copysign(1.0, way)
    ahead = [p for p in points if direction * (p[0] - x) >= math.log(_MIN_RATIO)]
    behind = [p for p in points if direction * (x - p[0]) >= math.log(_MIN_RATIO)]
    ahead.sort(key=lambda p: direction * p[0])
    slope = 1.0
    if behind:
        near = max(behind, key=lambda p: direction * p[0])
        slope = _slope(near, here)
    for point in ahead:
        slope = _slope((x, y), point)
        if direction * (point[0] - here[0]) >= abs(way):
            break
        x, y = point
    return y + slope * (here[0] + way - x)


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return min(max((b[1] - a[1]) / (b[0] - a[0]), 0.0), 1.0)


def _threshold(rule: str, layer: LayerShare, initial_rms: Mapping[str, float]) -> float:
    """The magnitude that a rule stands for in a layer; 0 if there is none or it is unknown."""
    kind, _, number = rule.partition("_")
    if kind == "zero":
        return 0.0
    unit = {"abs": 1.0, "rms": layer.rms, "initial": initial_rms.get(layer.name, 0.0)}[kind]
    return float(number) * unit


def _scale(layer: LayerShare) -> float:
    """Root mean square of the weights that are not small beside it; NaN if there are none."""
    small = layer.near_zero.get("zero", 0.0)
    for rule, fraction in layer.near_zero.items():
        kind, _, number = rule.partition("_")
        if kind == "rms" and float(number) <= _LARGEST_FACTOR:
            small = fraction
            break
    return layer.rms / math.sqrt(1.0 - small) if small < 1.0 else math.nan
