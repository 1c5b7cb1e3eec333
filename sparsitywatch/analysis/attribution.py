"""Which layers account for a change between two records."""

from __future__ import annotations

from sparsitywatch.records import Record

__all__ = ["accountable_layers"]


def accountable_layers(
    before: Record, after: Record, series: str, share: float = 0.5
) -> tuple[str, ...]:
    """The fewest layers that make up ``share`` of a change in a near-zero fraction.

    Args:
        before, after: two records of one scope.
        series: name of the series, "near_zero/RULE"; others have no layers: ().
        share: fraction of the change in the direction of the whole, in (0, 1].

    Returns:
        Tensor names, the largest contribution first.
    """
    kind, _, rule = series.partition("/")
    earlier = {layer.name: layer for layer in before.layers}
    if kind != "near_zero":
        return ()
    changes = {
        layer.name: layer.num_weights
        * (layer.near_zero[rule] - earlier[layer.name].near_zero[rule])
        for layer in after.layers
        if layer.name in earlier and rule in layer.near_zero
    }
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
