"""Running a model with some of its weights removed: what each level costs, and every bit back."""

from __future__ import annotations

import contextlib
import logging
import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MeasurementError, is_out_of_memory
from sparsitywatch.pruning.partial import Losses, Point, largest_step, shares_of
from sparsitywatch.pruning.patterns import Cut, Pattern, Weights
from sparsitywatch.pruning.preserve import ModelState, insist, preserve_state
from sparsitywatch.pruning.proxy import Part, Proxy
from sparsitywatch.pruning.sweep import Allowed, Bisection, Grid, Sweep, points_of
from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.records import SparsityCurve
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import local_of
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["MaskedModel", "Masks", "SweepResult", "run_sweep"]

_logger = logging.getLogger("sparsitywatch")

#: Relative size up to which repeated evaluations may differ by the order of additions.
_ROUNDING = 1e-4
#: In another batch the value of an example may differ by this share of the harm allowed and is
#: compared with that of the dense model in any.
_ROUNDED = 1e-3
#: Where it differs by this share of the spread of the examples, it depends on the others.
_DEPENDS = 0.1


class MaskedModel:
    """A model whose in-scope weights can be masked for a while.

    Masks are written in place, from a copy of the dense weights: parameters keep their
    identity and address, so compiled and wrapped modules see them. Memory: one copy of
    the in-scope weights while a session is open, or none where ``spare`` holds one that nobody
    needs meanwhile. Of a wrapped model the inner module runs.

    Args:
        model: in whatever wrappers.
        scope: which weights count.
        reader: of these, which may be spread over ranks; each then masks what it holds.
    """

    def __init__(self, model: nn.Module, scope: Scope, reader: ShardedReader = WHOLE_MODEL) -> None:
        self.module = unwrap_model(model)
        self._scope, self._reader = scope, reader
        self._open: Masks | None = None
        self.spare: WarmCopy | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The in-scope parameters as they are now, by name.

        Raises:
            ScopeError: one is gone or has another shape, or the model has been sharded since.
        """
        return self.lookup()[0]

    def lookup(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The in-scope parameters as they are now, by name; and every one.

        Raises:
            ScopeError: as of ``parameters``.
        """
        return self._reader.lookup(self.module, self._scope)

    @contextlib.contextmanager
    def session(self, value: object = None) -> Iterator[Masks]:
        """Evaluation by ``value`` without a trace: masks may be applied until the session ends.

        On leaving, also by an exception, the dense weights are back bit for bit.
        """
        parameters = self.parameters()
        with preserve_state(self.module, value, ranks=self._reader.ranks) as state:
            self._open = masks = Masks(parameters, state, self._dense(parameters))
            try:
                yield masks
            finally:
                self.restore()

    def _dense(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
        """A copy of what is held here of each parameter."""
        if self.spare is not None and self.spare.is_warm:
            return dict(self.spare.take(Snapshot.of_parameters(parameters, self._scope, 0)).tensors)
        return {name: local_of(parameter).clone() for name, parameter in parameters.items()}

    def restore(self) -> None:
        """Put back the dense weights of a session, if its end was interrupted before it began."""
        masks, self._open = self._open, None
        if masks is not None:
            insist(masks.remove)


class Masks:
    """The masks of one open session; each starts from the model as it was before."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        state: ModelState,
        dense: Mapping[str, torch.Tensor],
    ) -> None:
        self._state, self._has_run = state, False
        # .data: no version counter moves, so a graph that is still alive stays usable
        self._weights = [(n, local_of(p).data, dense[n]) for n, p in parameters.items()]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what is held here of each tensor, by name."""
        return {name: tuple(dense.shape) for name, _, dense in self._weights}

    def apply(self, cut: Cut) -> None:
        """Remove what ``cut`` removes from the dense weights, in the model as it was before."""
        # the first forward shows which tensors are written to without a trace in their version
        self._state.put_back(fully=not self._has_run)
        self._has_run = True
        for name, weights, dense in self._weights:
            cut.prune(name, dense, out=weights)
        torch.clear_autocast_cache()

    def remove(self) -> None:
        """Put the dense weights back, and what the forwards have left behind."""
        try:
            self._state.put_back()
        finally:
            for _, weights, dense in self._weights:
                weights.copy_(dense)


# ------------------------------------------------------------------ what each level costs


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
    points = [] if previous is None else points_of(previous, allowed)

    masks: Masks | None
    levels: _Levels | None
    while True:
        try:
            # on several ranks, what fails on one while the model is opened or put back fails on all
            is_ours = proxy.ranks.all_or_none("an evaluation")
            with is_ours, model.session(proxy.value) as masks:
                levels = _Levels(model.module, proxy, masks, pattern, spectrum)
                levels.begin(sweep, allowed)
                if proxy.ranks.is_alone:
                    sweep.choose(levels, points)
                else:
                    levels.choose_together(sweep, points, proxy.ranks)
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
        self._sign = -1.0 if proxy.higher_is_better else 1.0
        self.shares: tuple[float, ...] = (1.0,)

    def begin(self, sweep: Sweep, allowed: Allowed) -> None:
        """Evaluate the dense model, level 0 and level 1, and refuse what cannot be right."""
        self._dense = self._evaluated_dense()
        self._whole = Part(self._proxy, np.arange(len(self._dense)), self._proxy.num_batches)
        self._num_forwards = self._whole.num_batches
        self._mean, self._allowed = float(self._dense.mean()), allowed(float(self._dense.mean()))
        self._divide(getattr(sweep, "examples", None))
        order = np.concatenate([np.zeros(0, np.int64), *(part.places for part in self._parts)])
        self._losses = Losses(len(self._dense), order, largest_step(self._dense))
        is_known = isinstance(sweep, Grid | Bisection) or hasattr(sweep, "examples")
        expected = getattr(sweep, "levels", ()) if is_known else ()
        self._cut({0.0, 1.0, *map(float, expected)})
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
        self.after([(1.0, smallest)])

    def _divide(self, examples: int | None) -> None:
        """Draw the parts, if a sweep wants to begin with so many examples and that can be done."""
        if examples is None or not self._allowed > 0.0 or not np.isfinite(self._dense).all():
            return
        shares = shares_of(len(self._dense), examples, largest_step(self._dense) / self._allowed)
        parts = self._proxy.parts((*shares, 1.0)) if shares else ()
        if not parts:
            return
        self._num_forwards += parts[0].num_batches
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
        return _at(level, self.after([(level, share)]))

    def after(self, steps: Sequence[tuple[float, float]]) -> list[Point]:
        """What every level costs after some more were evaluated, each on its share at least."""
        new = [(float(level), share) for level, share in steps if self.is_new(level, share)]
        if without := {level for level, _ in new} - self._cuts.keys():
            with self._proxy.ranks.all_or_none("masking"):
                self._cut(without)
        for level, share in new:
            self._evaluated(level, share)
        return self._losses.points(self._allowed, self._sign)

    def is_new(self, level: float, share: float) -> bool:
        """Whether it takes an evaluation to say what a level costs."""
        return self.stage_of(share) > self._stage.get(float(level), 0)

    def stage_of(self, share: float) -> int:
        """How many parts make up a share; for all examples one more than there are."""
        return 1 + next(i for i, found in enumerate(self.shares) if found >= min(share, 1.0) - 1e-9)

    def _cut(self, levels: Collection[float]) -> None:
        """Find what goes at some levels, in one go."""
        rising = sorted(levels)
        self._cuts |= zip(rising, self._pattern.cuts(self._weights, rising), strict=True)

    def _evaluated(self, level: float, share: float) -> np.ndarray:
        """Mask a level and evaluate what is missing up to a share; the values of that."""
        before, stage = self._stage.get(level, 0), self.stage_of(share)
        is_whole = stage == len(self.shares) and not (before and self._is_exact)
        if not is_whole and stage > len(self._dense_parts):
            self._masks.remove()
            for part in self._parts[len(self._dense_parts) : stage]:
                self._dense_parts.append(part.proxy.evaluate(self._module))
                self._num_forwards += part.num_batches
        with self._proxy.ranks.all_or_none("masking"):
            self._masks.apply(self._cuts[level])
        found = []
        for part in [self._whole] if is_whole else self._parts[before:stage]:
            found.append(part.proxy.evaluate(self._module))
            self._num_forwards += part.num_batches
        values = np.concatenate(found)
        if is_whole:
            self._wholes[level] = float(values.mean())
        dense = self._dense if is_whole else np.concatenate(self._dense_parts[before:stage])
        self._losses.add(level, values - dense)
        self._stage[level] = stage
        return values

    def choose_together(self, sweep: Sweep, points: Sequence[Point], ranks: Ranks) -> None:
        """Measure the levels that the sweep of rank 0 chooses.

        What the ranks compute may differ in the last digits, and then what they would choose.
        """
        if ranks.rank > 0:
            while stage := ranks.agree("the next share"):
                (level,) = struct.unpack("d", struct.pack("q", ranks.agree("the next level")))
                self.after([(level, self.shares[stage - 1])])
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
        means = [*map(self._losses.means().__getitem__, levels)]
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
            num_seen=[mean.num_seen for mean in means] if self._parts else None,
        )
        return SweepResult(curve, cuts, self._num_forwards)


class _Announced:
    """What rank 0 measures, told to all others first."""

    def __init__(self, levels: _Levels, ranks: Ranks) -> None:
        self._levels, self._ranks = levels, ranks
        self.shares = levels.shares
        self.is_known_to_all = False  # what fails then fails on every rank

    def __call__(self, level: float, share: float = 1.0) -> Point:
        return _at(level, self.after([(level, share)]))

    def after(self, steps: Sequence[tuple[float, float]]) -> list[Point]:
        for level, share in steps:
            if self._levels.is_new(level, share):
                self._ranks.agree("the next share", value=self._levels.stage_of(share))
                (bits,) = struct.unpack("q", struct.pack("d", level))
                self._ranks.agree("the next level", value=bits)
                self.is_known_to_all = True
                self._levels.after([(level, share)])
                self.is_known_to_all = False
        return self._levels.after(())


def _at(level: float, points: Sequence[Point]) -> Point:
    return next(point for point in points if point.level == level)
