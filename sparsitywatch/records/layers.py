"""What one record says of each tensor: a tensor at a time, or a column for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.redact import printable


@dataclass(frozen=True, kw_only=True)
class LayerShare:
    """One in-scope tensor in one record."""

    name: str
    num_weights: int
    rms: float  # root mean square of its finite weights
    near_zero: Mapping[str, float]  # fraction of its own weights that are near zero, by rule
    removed: tuple[float, ...] = ()  # fraction of them removed at each level of the curve
    dormant: float = math.nan  # fraction of its sampled weights that are dormant; NaN if not known

    def __repr__(self) -> str:
        return f"<LayerShare of {printable(self.name)[:80]}, {self.num_weights:,} weights>"


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerColumns:
    """The same numbers of N in-scope tensors in one record, an array for each."""

    names: tuple[str, ...]
    num_weights: np.ndarray  # int64 [N]
    rms: np.ndarray  # float64 [N]
    near_zero: Mapping[str, np.ndarray] = field(default_factory=dict)  # float64 [N] by rule
    removed: np.ndarray  # float64 [K, N], a row for each level of the curve; K is 0 without one
    dormant: np.ndarray  # float64 [N]

    @classmethod
    def of(cls, layers: Sequence[LayerShare]) -> LayerColumns:
        """The columns of some tensors; a ConfigurationError if their rules or levels differ."""
        rules = list(layers[0].near_zero) if layers else []
        num_levels = len(layers[0].removed) if layers else 0
        for layer in layers:
            if layer.near_zero.keys() != set(rules) or len(layer.removed) != num_levels:
                raise ConfigurationError(
                    f"Expected `layers` that all have the near-zero rules {rules} and shares at "
                    f"{num_levels} levels, got {list(layer.near_zero)} and {len(layer.removed)} "
                    f"for {layer.name!r}."
                )
        removed = np.array([layer.removed for layer in layers], np.float64)
        return cls(
            names=tuple(layer.name for layer in layers),
            num_weights=np.array([layer.num_weights for layer in layers], np.int64),
            rms=np.array([layer.rms for layer in layers], np.float64),
            near_zero={
                rule: np.array([layer.near_zero[rule] for layer in layers], np.float64)
                for rule in rules
            },
            removed=removed.reshape(len(layers), num_levels).T,
            dormant=np.array([layer.dormant for layer in layers], np.float64),
        )

    def shares(self) -> Iterator[LayerShare]:
        """A tensor at a time, with plain numbers."""
        near_zero = {rule: _plain(column) for rule, column in self.near_zero.items()}
        removed = [_plain(level) for level in self.removed]
        num_weights, rms, dormant = (
            self.num_weights.tolist(),
            _plain(self.rms),
            _plain(self.dormant),
        )
        for i, name in enumerate(self.names):
            yield LayerShare(
                name=name,
                num_weights=num_weights[i],
                rms=rms[i],
                near_zero={rule: column[i] for rule, column in near_zero.items()},
                removed=tuple(level[i] for level in removed),
                dormant=dormant[i],
            )


def _plain(column: np.ndarray) -> list[float]:
    """Floats; an unknown one is always the same NaN, so that equal records are equal."""
    numbers: list[float] = column.tolist()
    return [math.nan if x != x else x for x in numbers] if np.isnan(column).any() else numbers


class Layers(Sequence[LayerShare]):
    """The tensors of one record as columns, read when asked for; equal to a tuple of shares."""

    def __init__(self, columns: LayerColumns | Callable[[], LayerColumns]) -> None:
        self._columns = columns

    @classmethod
    def of(cls, layers: Sequence[LayerShare]) -> Layers:
        """``layers`` themselves if they are some, else their columns, as ``LayerColumns.of``."""
        return layers if isinstance(layers, Layers) else cls(LayerColumns.of(layers))

    @cached_property
    def columns(self) -> LayerColumns:
        """The numbers, an array for each kind."""
        return self._columns() if callable(self._columns) else self._columns

    def __len__(self) -> int:
        return len(self.columns.names)

    def __iter__(self) -> Iterator[LayerShare]:
        return self.columns.shares()

    @overload
    def __getitem__(self, index: int) -> LayerShare: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerShare, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerShare | tuple[LayerShare, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list | Layers):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Layers, (self.columns,)
