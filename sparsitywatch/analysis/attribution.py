"""Which layers account for a change between two records."""

from __future__ import annotations

import math

from sparsitywatch.records import LayerShare, Record

__all__ = ["accountable_layers"]


def accountable_layers(
    before: Record, after: Record, series: str, share: float = 0.5
) -> tuple[str, ...]:
    """The fewest layers that make up ``share`` of a change in a near-zero or dormant fraction.

    Args:
        before, after: two records of one scope.
        series: name of the series, "near_zero/RULE" or "motion/dormant"; others have no
            layers: ().
        share: fraction of the change in the direction of the whole, in (0, 1].

    Returns:
        Tensor names, the largest contribution first.
    """
    earlier = {layer.name: _fraction(layer, series) for layer in before.layers}
    changes = {
        layer.name: layer.num_weights * (_fraction(layer, series) - earlier[layer.name])
        for layer in after.layers
        if layer.name in earlier
    }
    changes = {name: change for name, change in changes.items() if math.isfinite(change)}
    sign = 1.0 if sum(changes.values()) >= 0 else -1.0
    moved = {name: sign * change for name, change in changes.items() if sign * change > 0}
    needed = share * sum(moved.values())
    chosen: list[str] = []
    total = 0.0
    for name, change in sorted(moved.items(), key=lambda item: -item[1]):
        if total >= needed:
            break
        chosen.append(name)
        total += change
    return tuple(chosen)


def _fraction(layer: LayerShare, series: str) -> float:
    """A layer's own part of a series; NaN if it has none."""
    kind, _, rule = series.partition("/")
    if kind == "near_zero":
        return layer.near_zero.get(rule, math.nan)
    return layer.dormant if series == "motion/dormant" else math.nan
