"""Which levels to evaluate, and what each costs: levels in, SparsityCurve out."""

from __future__ import annotations

import contextlib
import logging
import math
import struct
from collections.abc import Callable, Sequence
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
from sparsitywatch.pruning.partial import Losses, largest_step, shares_of
from sparsitywatch.pruning.patterns import Cut, Pattern, Weights
from sparsitywatch.pruning.proxy import Part, Proxy
from sparsitywatch.records import SparsityCurve
from sparsitywatch.weights.shards import Ranks
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = [
    "Allowed",
    "Bisection",
    "Grid",
    "Measure",
    "Point",
    "Sweep",
    "SweepResult",
    "check_levels",
    "points_of",
    "run_sweep",
]

_logger = logging.getLogger("sparsitywatch")

#: Relative size up to which repeated evaluations may differ by the order of additions.
_ROUNDING = 1e-4
#: In another batch the value of an example may differ by this share of the harm allowed and is
#: compared with that of the dense model in any.
_ROUNDED = 1e-3
#: Where it differs by this share of the spread of the examples, it depends on the others.
_DEPENDS = 0.1

#: The harm that is accepted, given the mean value of the dense model; both in the value's units.
Allowed = Callable[[float], float]


class Point(NamedTuple):
    """What one level costs, in units of the harm that is allowed: beyond 1 is too much.

    ``harm`` is inf where the value is not finite; ``stderr``, its standard error, is 0 there. A
    level that was evaluated on a ``share`` of the examples has an estimate of the harm on all of
    them, and ``doubt`` is its standard error about that, with ``freedom`` degrees of freedom.
    """

    level: float
    harm: float
    stderr: float = 0.0
    doubt: float = 0.0
    freedom: int = 0
    share: float = 1.0

    @property
    def is_within(self) -> bool:
        """Whether the tolerance is kept."""
        return self.harm <= 1.0

    @classmethod
    def of(cls, level: float, harm: float, stderr: float, allowed: float) -> Point:
        """From a harm and its error in the units of the value.

        >>> Point.of(0.5, 0.06, 0.01, allowed=0.02)[:3]
        (0.5, 3.0, 0.5)
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


class Measure(Protocol):
    """What a sweep calls."""

    @property
    def shares(self) -> Sequence[float]:
        """Shares of the examples on which a level can be evaluated, rising to 1.

        There is only 1 unless the sweep has an attribute ``examples``: how many it wants to
        begin with.
        """

    def __call__(self, level: float, share: float = 1.0, /) -> Point:
        """What a level costs, evaluated on this share of the examples at least, in drawn order.

        Other levels may have made the estimate better since it was asked for last.
        """


class Sweep(Protocol):
    """Chooses the levels between 0 and 1; both ends are always measured.

    Levels are evaluated on all examples, but by a sweep with an attribute ``examples``, see
    ``Measure``.
    """

    def choose(self, measure: Measure, previous: Sequence[Point]) -> None:
        """Call ``measure(level)`` for the levels to evaluate.

        Args:
            measure: evaluates a level in [0, 1]; measuring one twice costs nothing, and 0
                and 1 have been measured already, on the smallest share there is.
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
                levels.begin(sweep, allowed)
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
        self._stage: dict[float, int] = {}  # how many parts were seen; all examples are one more
        self._parts: tuple[Part, ...] = ()
        self._dense_parts: list[np.ndarray] = []
        self._wholes: dict[float, float] = {}  # the mean where all were evaluated at once
        self._is_exact = False  # whether the batch that an example is in changes nothing
        self._num_forwards = 0
        self.shares: tuple[float, ...] = (1.0,)

    def begin(self, sweep: Sweep, allowed: Allowed) -> None:
        """Evaluate the dense model, level 0 and level 1, and refuse what cannot be right."""
        self._num_forwards = self._proxy.num_batches
        self._dense = self._evaluated_dense()
        self._mean, self._allowed = float(self._dense.mean()), allowed(float(self._dense.mean()))
        self._divide(getattr(sweep, "examples", None))
        order = np.concatenate([np.zeros(0, np.int64), *(part.places for part in self._parts)])
        self._losses = Losses(len(self._dense), order, largest_step(self._dense))
        is_known = isinstance(sweep, Grid | Bisection) or hasattr(sweep, "examples")
        expected = getattr(sweep, "levels", ()) if is_known else ()
        at = sorted({0.0, 1.0, *map(float, expected)})  # in one go
        self._cuts = dict(zip(at, self._make_cuts(at), strict=True))
        smallest = self.shares[0]
        dense = self._dense_parts[0] if self._parts else self._dense
        masked = self._evaluated(0.0, smallest)
        is_same = np.array_equal(dense, masked, equal_nan=True)
        if not is_same and not self._is_noise(dense, masked):
            raise MeasurementError(
                "Expected level 0 to equal the dense model bit for bit, but the values differ by "
                f"up to {np.nanmax(np.abs(dense - masked)):.3g}: masking does not reach the model "
                "as it runs, or the value function is random. Put all randomness into the batches."
            )
        # a model that has broken down gives NaN with and without its weights
        if np.isfinite(dense).all() and np.array_equal(dense, self._evaluated(1.0, smallest)):
            raise MeasurementError(
                "Expected the value to change when every in-scope weight is removed, but it is the "
                "same bit for bit: the value function does not run the watched weights (another "
                "model, a stale autocast cache, or a compiled graph that holds old weights)."
            )
        self.measure(1.0, smallest)

    def _divide(self, examples: int | None) -> None:
        """Draw the parts, if a sweep wants to begin with so many examples and that can be done."""
        if examples is None or not self._allowed > 0.0 or not np.isfinite(self._dense).all():
            return
        shares = shares_of(len(self._dense), examples, largest_step(self._dense) / self._allowed)
        parts = self._proxy.parts((*shares, 1.0)) if shares else ()
        if not parts:
            return
        self._num_forwards += parts[0].proxy.num_batches
        first, among_all = parts[0].proxy.evaluate(self._module), self._dense[parts[0].places]
        apart = float(np.abs(first - among_all).max()) if len(first) == len(among_all) else math.inf
        if apart > max(_DEPENDS * float(self._dense.std()), self._allowed):
            self._proxy.keep_whole(
                f"the value of an example depends on the others in its batch, by up to {apart:.3g}"
            )
            return
        self._parts, self.shares = parts, (*shares, 1.0)
        self._dense_parts = [first]
        self._is_exact = apart <= _ROUNDED * self._allowed
        if self._is_exact:
            self._dense_parts += [self._dense[part.places] for part in parts[1:]]

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
        proxy = self._parts[0].proxy if self._parts else self._proxy
        self._num_forwards += proxy.num_batches
        noise = np.abs(proxy.evaluate(self._module) - dense).max()
        is_rounding = 0.0 < noise <= _ROUNDING * np.abs(dense).max()
        return bool(is_rounding and np.abs(masked - dense).max() <= 10 * noise)

    def __call__(self, level: float, share: float = 1.0) -> Point:
        """What ``level`` costs, evaluated on this share of the examples at least."""
        return self.measure(level, share)

    def measure(self, level: float, share: float = 1.0) -> Point:
        """What ``level`` costs, evaluated on this share of the examples at least."""
        level = float(level)
        if self.is_new(level, share):
            self._evaluated(level, share)
        mean = self._losses.mean(level)
        harm = -mean.value if self._proxy.higher_is_better else mean.value
        point = Point.of(level, harm, mean.stderr, self._allowed)
        if not math.isfinite(point.harm) or self._allowed == 0.0:
            return point
        return point._replace(
            doubt=mean.doubt / self._allowed,
            freedom=mean.freedom,
            share=self._losses.num_seen(level) / len(self._dense),
        )

    def is_new(self, level: float, share: float) -> bool:
        """Whether it takes an evaluation to say what a level costs."""
        return self._stage_of(share) > self._stage.get(float(level), 0)

    def _dense_of(self, index: int) -> np.ndarray:
        """The values of the dense model on a part, in the batches of the part."""
        if len(self._dense_parts) <= index:
            self._masks.remove()
        for part in self._parts[len(self._dense_parts) : index + 1]:
            self._num_forwards += part.proxy.num_batches
            self._dense_parts.append(part.proxy.evaluate(self._module))
        return self._dense_parts[index]

    def _stage_of(self, share: float) -> int:
        """How many parts make up a share; for all examples one more than there are."""
        return 1 + next(i for i, found in enumerate(self.shares) if found >= min(share, 1.0) - 1e-9)

    def _evaluated(self, level: float, share: float) -> np.ndarray:
        """Mask a level and evaluate what is missing up to a share; the values of the last part."""
        stage = self._stage_of(share)
        before = self._stage.get(level, 0)
        is_whole = stage == len(self.shares) and not (before and self._is_exact)
        if not is_whole:
            self._dense_of(stage - 1)
        with _together(self._proxy, "masking"):
            if level not in self._cuts:
                (self._cuts[level],) = self._make_cuts([level])
            self._masks.apply(self._cuts[level])
        if is_whole:
            self._num_forwards += self._proxy.num_batches
            values = self._proxy.evaluate(self._module)
            self._losses.add(level, values - self._dense)
            self._wholes[level] = float(values.mean())
        else:
            for index in range(before, stage):
                proxy = self._parts[index].proxy
                self._num_forwards += proxy.num_batches
                values = proxy.evaluate(self._module)
                self._losses.add(level, values - self._dense_of(index))
        self._stage[level] = stage
        return values

    def choose(self, sweep: Sweep, points: Sequence[Point]) -> None:
        """Measure the levels that a sweep chooses; on several ranks rank 0 chooses for all.

        What the ranks compute may differ in the last digits, and then what they would choose.
        """
        ranks = self._proxy.ranks
        if ranks is None:
            sweep.choose(self, points)
            return
        if ranks.rank > 0:
            while stage := ranks.agree("the next share"):
                (level,) = struct.unpack("d", struct.pack("q", ranks.agree("the next level")))
                self.measure(level, self.shares[stage - 1])
            return
        announced = _Announced(self, ranks)
        try:
            sweep.choose(announced, points)
        except Exception as error:
            if not announced.is_known_to_all:
                ranks.agree("the next share", error)
            raise
        ranks.agree("the next share", value=0)  # there is no more

    def result(self) -> SweepResult:
        """The curve of everything measured."""
        levels = sorted(self._stage)
        means = [self._losses.mean(level) for level in levels]
        num_seen = [self._losses.num_seen(level) for level in levels]
        cuts = tuple(map(self._cuts.__getitem__, levels))
        curve = SparsityCurve(
            sparsity=[cut.sparsity for cut in cuts],
            value=[
                self._wholes.get(level, self._mean + mean.value)
                for level, mean in zip(levels, means, strict=True)
            ],
            stderr=[mean.stderr for mean in means],
            higher_is_better=self._proxy.higher_is_better,
            level=levels,
            num_examples=len(self._dense),
            num_seen=num_seen if self._parts else None,
        )
        return SweepResult(curve, cuts, self._num_forwards)


class _Announced:
    """What rank 0 measures, told to all others first."""

    def __init__(self, levels: _Levels, ranks: Ranks) -> None:
        self._levels, self._ranks = levels, ranks
        self.shares = levels.shares
        self.is_known_to_all = False  # what fails then fails on every rank

    def __call__(self, level: float, share: float = 1.0) -> Point:
        if self._levels.is_new(level, share):
            stage = 1 + self.shares.index(next(s for s in self.shares if s >= share - 1e-9))
            self._ranks.agree("the next share", value=stage)
            (bits,) = struct.unpack("q", struct.pack("d", level))
            self._ranks.agree("the next level", value=bits)
            self.is_known_to_all = True
            self._levels.measure(level, share)
            self.is_known_to_all = False
        return self._levels.measure(level, share)
