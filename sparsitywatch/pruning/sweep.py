"""Which levels to evaluate, and what each costs: levels in, SparsityCurve out."""

from __future__ import annotations

import contextlib
import logging
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import (
    ConfigurationError,
    MeasurementError,
    expect_number,
    is_number,
    is_out_of_memory,
    listed,
)
from sparsitywatch.pruning.masked import MaskedModel, Masks
from sparsitywatch.pruning.patterns import Cut, Pattern, Weights
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.records import SparsityCurve
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = [
    "Allowed",
    "Bisection",
    "Grid",
    "Point",
    "Sweep",
    "SweepResult",
    "check_levels",
    "points_of",
    "run_sweep",
    "standard_error",
]

_logger = logging.getLogger("sparsitywatch")

#: Relative size up to which repeated evaluations may differ by the order of additions.
_ROUNDING = 1e-4

#: The harm that is accepted, given the mean value of the dense model; both in the value's units.
Allowed = Callable[[float], float]


class Point(NamedTuple):
    """What one level costs, in units of the harm that is allowed: beyond 1 is too much.

    ``harm`` is inf where the value is not finite; ``stderr``, its standard error, is 0 there.
    """

    level: float
    harm: float
    stderr: float = 0.0

    @property
    def is_within(self) -> bool:
        """Whether the tolerance is kept."""
        return self.harm <= 1.0

    @classmethod
    def of(cls, level: float, harm: float, stderr: float, allowed: float) -> Point:
        """From a harm and its error in the units of the value.

        >>> Point.of(0.5, 0.06, 0.01, allowed=0.02)
        Point(level=0.5, harm=3.0, stderr=0.5)
        """
        if not math.isfinite(harm):
            return cls(level, math.inf)
        if allowed == 0.0:  # a relative tolerance of a dense value of 0
            return cls(level, math.inf if harm > 0.0 else 0.0)
        return cls(level, harm / allowed, 0.0 if math.isnan(stderr) else stderr / allowed)


def points_of(curve: SparsityCurve, allowed: Allowed) -> tuple[Point, ...]:
    """The points of a curve by rising level, as the sweep that chose them saw them.

    There are none without a dense value at level 0.

    >>> curve = SparsityCurve([0, 0.5, 1], [2.0, 2.01, 4.0], higher_is_better=False)
    >>> [round(point.harm, 6) for point in points_of(curve, lambda dense: 0.01 * dense)]
    [0.0, 0.5, 100.0]
    """
    levels = curve.sparsity if curve.level is None else curve.level
    stderr = [0.0] * len(levels) if curve.stderr is None else curve.stderr
    found = sorted(zip(levels, curve.value, stderr, strict=True))
    level, dense, _ = found[0]
    if level != 0.0 or not math.isfinite(dense):
        return ()
    sign = -1.0 if curve.higher_is_better else 1.0
    scale = allowed(dense)
    return tuple(Point.of(level, sign * (value - dense), e, scale) for level, value, e in found)


class Sweep(Protocol):
    """Chooses the levels between 0 and 1; both ends are always measured."""

    def choose(self, measure: Callable[[float], Point], previous: Sequence[Point]) -> None:
        """Call ``measure(level)`` for the levels to evaluate.

        Args:
            measure: evaluates a level in [0, 1]; measuring one twice costs nothing, and 0
                and 1 have been measured already.
            previous: the points of the snapshot before, by rising level; empty at the first one.
        """


@dataclass(frozen=True)
class Grid:
    """The same levels every time.

    Args:
        levels: fractions in [0, 1).

    Raises:
        ConfigurationError: a level lies outside [0, 1), or there is none.
    """

    levels: Sequence[float]

    def __post_init__(self) -> None:
        check_levels(self.levels)

    def choose(self, measure: Callable[[float], Point], previous: Sequence[Point]) -> None:
        """Measure every level."""
        del previous  # a grid does not depend on what comes out
        for level in self.levels:
            measure(level)


@dataclass(frozen=True)
class Bisection:
    """A grid, then halving the step of the grid where the tolerance is first crossed.

    Args:
        levels: the grid, fractions in [0, 1).
        resolution: stop when the crossing is bracketed this finely.

    Raises:
        ConfigurationError: a level lies outside [0, 1), there is none, or ``resolution``
            is not in (0, 1).
    """

    levels: Sequence[float]
    resolution: float = 0.02

    def __post_init__(self) -> None:
        check_levels(self.levels)
        expect_number("resolution", self.resolution, lambda r: 0.0 < r < 1.0, "in (0, 1)")

    def choose(self, measure: Callable[[float], Point], previous: Sequence[Point]) -> None:
        """Measure the grid, then close in on its first crossing."""
        del previous  # every snapshot starts anew
        good, beyond = 0.0, math.inf
        for level in sorted({0.0, *self.levels, 1.0}):
            is_within = measure(level).is_within
            if not is_within:
                beyond = min(beyond, level)
            elif beyond == math.inf:
                good = level
        # where nothing is crossed there is nothing to close in on
        while self.resolution < beyond - good < math.inf:
            middle = round((good + beyond) / 2, 6)
            if measure(middle).is_within:
                good = middle
            else:
                beyond = middle


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels that no sweep can measure: outside [0, 1), or none at all."""
    levels = listed("levels", levels, "a list of sparsities in [0, 1)")
    if len(levels) == 0:
        raise ConfigurationError(
            "Expected `levels` with at least one sparsity in [0, 1), got none."
        )
    for index, level in enumerate(levels):
        if not is_number(level) or not 0.0 <= level < 1.0:
            raise ConfigurationError(
                f"Expected `levels[{index}]` to be a sparsity in [0, 1), got {level!r}. "
                "The level 1, everything removed, is always measured."
            )


@dataclass(frozen=True)
class SweepResult:
    """What a sweep measured: points by rising level, from 0 to 1."""

    curve: SparsityCurve
    cuts: tuple[Cut, ...]  # what was removed at each point
    num_forwards: int  # calls of the value function


def run_sweep(
    model: MaskedModel,
    proxy: Proxy,
    spectrum: MagnitudeSpectrum,
    *,
    pattern: Pattern,
    sweep: Sweep,
    allowed: Allowed,
    previous: SparsityCurve | None = None,
) -> SweepResult:
    """Evaluate the proxy at the levels that ``sweep`` chooses, on the model as it is now.

    ``spectrum`` is of the model's in-scope weights now, ``previous`` the curve of the snapshot
    before, for sweeps that go on from it. Where memory does not suffice it begins again with
    batches of half the size, which the proxy keeps.

    Raises:
        MeasurementError: a canary failed: level 0 is not the dense model bit for bit, or
            removing everything changes nothing (a stale autocast cache, a compiled graph
            that holds old weights, a value function that does not run this model).
    """
    points = () if previous is None else points_of(previous, allowed)

    masks: Masks | None
    levels: _Levels | None
    while True:
        try:
            # on several ranks, what fails on one while the model is opened or put back fails on all
            with _together(proxy, "an evaluation"), model.session(proxy.value) as masks:
                levels = _Levels(model.module, proxy, masks, pattern, spectrum)
                levels.begin(sweep.levels if isinstance(sweep, Grid | Bisection) else (), allowed)
                levels.choose(sweep, points)
            return levels.result()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not proxy.halve():
                raise
        # only without the error, and the tensors that its traceback holds, is there room
        masks = levels = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _logger.warning(
            "sparsitywatch: out of memory while evaluating; going on with smaller batches, %d "
            "in all. A smaller proxy avoids this.",
            proxy.num_batches,
        )


def _together(proxy: Proxy, what: str) -> contextlib.AbstractContextManager[None]:
    """Where several ranks evaluate: what is done inside succeeds, or fails, on all of them."""
    return contextlib.nullcontext() if proxy.ranks is None else proxy.ranks.together(what)


class _Level(NamedTuple):
    """What was measured at one level."""

    cut: Cut
    value: float
    stderr: float
    point: Point


class _Levels:
    """What each level costs, measured once."""

    def __init__(
        self,
        module: nn.Module,
        proxy: Proxy,
        masks: Masks,
        pattern: Pattern,
        spectrum: MagnitudeSpectrum,
    ) -> None:
        self._module, self._proxy, self._masks = module, proxy, masks
        self._pattern, self._weights = pattern, Weights(spectrum, masks.shapes)
        self._cuts: dict[float, Cut] = {}
        self._values: dict[float, np.ndarray] = {}
        self._found: dict[float, _Level] = {}
        self._num_evaluations = 1  # of the dense model

    def begin(self, expected: Iterable[float], allowed: Allowed) -> None:
        """Evaluate the dense model, level 0 and level 1, and refuse what cannot be right."""
        dense = self._evaluated_dense()
        self._dense, self._allowed = float(dense.mean()), allowed(float(dense.mean()))
        at = sorted({0.0, 1.0, *map(float, expected)})  # in one go
        self._cuts = dict(zip(at, self._make_cuts(at), strict=True))
        self.measure(0.0)
        masked = self._values[0.0]
        is_same = np.array_equal(dense, masked, equal_nan=True)
        if not is_same and not self._is_noise(dense, masked):
            raise MeasurementError(
                "Expected level 0 to equal the dense model bit for bit, but the values differ by "
                f"up to {np.nanmax(np.abs(dense - masked)):.3g}: masking does not reach the model "
                "as it runs, or the value function is random. Put all randomness into the batches."
            )
        self.measure(1.0)
        # a model that has broken down gives NaN with and without its weights
        if np.isfinite(dense).all() and np.array_equal(dense, self._values[1.0]):
            raise MeasurementError(
                "Expected the value to change when every in-scope weight is removed, but it is the "
                "same bit for bit: the value function does not run the watched weights (another "
                "model, a stale autocast cache, or a compiled graph that holds old weights)."
            )

    def _make_cuts(self, levels: Sequence[float]) -> list[Cut]:
        return self._pattern.cuts(self._weights, levels)

    def _evaluated_dense(self) -> np.ndarray:
        """The values of the dense model; on the way, what the pattern has to know of its layers."""
        if getattr(self._pattern, "ranks", "replicas") == "shards":  # magnitudes are all it needs
            return self._proxy.evaluate(self._module)
        from sparsitywatch.pruning.criteria import input_axes, inputs_of

        names = list(self._weights.shapes)
        self._weights = replace(self._weights, input_axes=input_axes(self._module, names))
        needs = getattr(self._pattern, "needs_inputs", "")
        if not needs:
            return self._proxy.evaluate(self._module)
        found: list[np.ndarray] = []
        inputs = inputs_of(
            self._module,
            names,
            lambda: found.append(self._proxy.evaluate(self._module)),
            products=needs == "products",
        )
        self._weights = replace(self._weights, inputs=inputs)
        return found[0]

    def _is_noise(self, dense: np.ndarray, masked: np.ndarray) -> bool:
        """Whether two dense evaluations differ as much: kernels that are not deterministic.

        They differ in the last digits only; more than that is a random value function.
        """
        self._masks.remove()
        self._num_evaluations += 1
        noise = np.abs(self._proxy.evaluate(self._module) - dense).max()
        is_rounding = 0.0 < noise <= _ROUNDING * np.abs(dense).max()
        return bool(is_rounding and np.abs(masked - dense).max() <= 10 * noise)

    def measure(self, level: float) -> Point:
        """What ``level`` costs."""
        level = float(level)
        if level not in self._found:
            with _together(self._proxy, "masking"):
                if level not in self._cuts:
                    (self._cuts[level],) = self._make_cuts([level])
                self._masks.apply(self._cuts[level])
            self._num_evaluations += 1
            self._values[level] = values = self._proxy.evaluate(self._module)
            value, dense = float(values.mean()), self._dense
            harm = dense - value if self._proxy.higher_is_better else value - dense
            stderr = standard_error(values, self._values[0.0])
            point = Point.of(level, harm, stderr, self._allowed)
            self._found[level] = _Level(self._cuts[level], value, stderr, point)
        return self._found[level].point

    def choose(self, sweep: Sweep, points: Sequence[Point]) -> None:
        """Measure the levels that a sweep chooses; on several ranks rank 0 chooses for all.

        What the ranks compute may differ in the last digits, and then what they would choose.
        """
        ranks = self._proxy.ranks
        if ranks is None:
            sweep.choose(self.measure, points)
            return
        if ranks.rank > 0:
            while bits := ranks.agree("the next level"):
                self.measure(struct.unpack("d", struct.pack("q", bits))[0])
            return
        is_known_to_all = False

        def announced(level: float) -> Point:
            nonlocal is_known_to_all
            if float(level) not in self._found:
                (bits,) = struct.unpack("q", struct.pack("d", level))
                ranks.agree("the next level", value=bits)
                is_known_to_all = True  # what fails from here on fails on every rank
                self.measure(level)
                is_known_to_all = False
            return self.measure(level)

        try:
            sweep.choose(announced, points)
        except Exception as error:
            if not is_known_to_all:
                ranks.agree("the next level", error)
            raise
        ranks.agree("the next level", value=0)  # level 0 is measured already: there is no more

    def result(self) -> SweepResult:
        """The curve of everything measured."""
        levels = sorted(self._found)
        cuts, values, stderrs, _ = zip(*map(self._found.__getitem__, levels), strict=True)
        curve = SparsityCurve(
            sparsity=[cut.sparsity for cut in cuts],
            value=values,
            stderr=stderrs,
            higher_is_better=self._proxy.higher_is_better,
            level=levels,
            num_examples=len(self._values[0.0]),
        )
        return SweepResult(curve, cuts, self._num_evaluations * self._proxy.num_batches)


def standard_error(values: np.ndarray, dense: np.ndarray) -> float:
    """Standard error of the mean of ``values - dense``, both float64 [N], N >= 2; NaN if broken.

    The same examples are compared, so what all share drops out.

    >>> round(standard_error(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])), 6)
    0.57735
    """
    difference = values - dense
    if not np.isfinite(difference).all():
        return math.nan
    return float(difference.std(ddof=1) / math.sqrt(len(difference)))
