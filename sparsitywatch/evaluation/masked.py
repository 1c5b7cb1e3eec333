"""What each level of sparsity costs: a masked copy of the model is evaluated beside a dense one."""

from __future__ import annotations

import bisect
import contextlib
import math
import sys
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MeasurementError, TrainingChangedError, is_out_of_memory
from sparsitywatch.evaluation.model_copy import (
    ModelCopy,
    Surroundings,
    changes_the_training,
    refuse_written,
    same_bits,
    version_of,
)
from sparsitywatch.patterns.cuts import Cut, Numbers, Weights, of_this_rank
from sparsitywatch.patterns.pattern import Pattern
from sparsitywatch.proxy.batches import ROUNDING, Runnable, finish_despite_interrupt, preserve_rng
from sparsitywatch.proxy.proxy import ExampleSubset, Proxy
from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.records import SparsityCurve
from sparsitywatch.records.curve import Array
from sparsitywatch.records.xray import XRay
from sparsitywatch.redact import logger, printable
from sparsitywatch.sweeps import Allowed, PairedDifferences, Sweep, largest_step, shares_of
from sparsitywatch.weights.layout import clean_name, unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import fsdp_modules, is_sharded, local_of
from sparsitywatch.weights.snapshot import WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: In another batch the value of an example may differ by this share of the harm allowed and is
#: compared with that of the dense model in any.
_ROUNDED = 1e-3
#: Where it differs by this share of the spread of the examples, it depends on the others.
_DEPENDS = 0.1


class NotDenseError(MeasurementError):
    """Level 0 is not the dense model."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep measured: points by rising level, from 0 to 1."""

    curve: SparsityCurve
    cuts: tuple[Cut, ...]  # what was removed at each point
    num_forwards: int  # calls of the value function
    xray: XRay | None = None  # what the dense forward showed of the layers, if it was looked at


def run_sweep(
    model: MaskedModel,
    proxy: Proxy,
    spectrum: MagnitudeSpectrum,
    *,
    pattern: Pattern,
    sweep: Sweep,
    allowed: Allowed,
    looks: bool = False,  # into the layers, on the dense pass
) -> SweepResult:
    """Evaluate the proxy at the levels that ``sweep`` chooses, on the model as it is now."""
    # where memory does not suffice it begins again with batches of half the size, which the proxy
    # keeps. A MeasurementError says that level 0 is not the dense model bit for bit, or that the
    # weights do not reach the value.
    while True:
        evaluation: Evaluation | None = None
        try:
            # on several ranks, what fails on one while the model is opened fails on all
            with proxy.ranks.all_or_none("an evaluation"), model.session(proxy.value) as masks:
                evaluation = Evaluation(masks, proxy, pattern, spectrum)
                evaluation.begin(sweep, allowed, looks=looks)
                evaluation.go_through(sweep)
            return evaluation.result()
        except TrainingChangedError as error:
            model.training_changed = str(error)
            raise
        except NotDenseError:
            if model.renews:
                raise
            model.renews = True  # forwards may leave behind what no copy shows
            continue
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not proxy.halve():
                raise
        # only without the error, and the tensors that its traceback holds, is there room
        evaluation = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory while evaluating; going on with smaller batches, %d in all. A smaller "
            "proxy avoids this.",
            proxy.num_batches,
        )


def expected_s(
    model: MaskedModel,
    proxy: Proxy,
    spectrum: MagnitudeSpectrum,
    *,
    pattern: Pattern,
    sweep: Sweep,
    allowed: Allowed,
    dense: Array | None = None,  # values of the model as it is, where they are known
) -> float:
    """Seconds that ``run_sweep`` is expected to take, from those that its ends take."""
    started = time.perf_counter()
    with proxy.ranks.all_or_none("an evaluation"), model.session(proxy.value) as masks:
        evaluation = Evaluation(masks, proxy, pattern, spectrum)
        evaluation.begin(sweep, allowed, dense)
    ends_s = time.perf_counter() - started
    level_s, pass_s = evaluation.ends_s
    num_examples, is_divided = evaluation.differences.num_examples, len(evaluation.shares) > 1
    num_levels, num_passes = sweep.expected(num_examples, divided=is_divided)
    if dense is not None and not pattern.needs_inputs:
        num_passes += 1  # of the dense model
    return ends_s + num_levels * level_s + num_passes * pass_s


class Evaluation:
    """One evaluation of a model: each level on each share of the examples at most once."""

    def __init__(
        self, masks: Masks, proxy: Proxy, pattern: Pattern, spectrum: MagnitudeSpectrum
    ) -> None:
        self._masks, self._proxy, self._pattern = masks, proxy, pattern
        tensors = {name: dense for name, dense, _ in masks.weights}
        shapes = {name: tuple(dense.shape) for name, dense in tensors.items()}
        self._weights = Weights(spectrum, shapes, tensors=tensors, united=masks.united)
        self._mask = proxy.ranks.guarded("masking", masks.masked)
        self._fresh = proxy.ranks.guarded("a model to evaluate", masks.fresh)
        self._cuts_of = proxy.ranks.guarded("finding masks", pattern.cuts)
        self._cuts: dict[float, Cut] = {}
        self._stage: dict[float, int] = {}  # how many subsets were seen; all examples are one more
        self._subsets: tuple[ExampleSubset, ...] = ()
        self._dense_of: list[Array] = []  # values of the dense model on each subset
        self._wholes: dict[float, float] = {}  # the mean where all were evaluated at once
        self._is_exact = False  # whether the batch that an example is in changes nothing
        self._num_forwards = 0
        self._xray: XRay | None = None
        self.shares: tuple[float, ...] = (1.0,)
        self.ends_s = (0.0, 0.0)  # that level 0 on the smallest share took, and level 1 on all

    # ------------------------------------------------------------------ the ends

    def begin(
        self, sweep: Sweep, allowed: Allowed, dense: Array | None = None, *, looks: bool = False
    ) -> None:
        """Evaluate the dense model, if need be, level 0 and 1, and refuse what cannot be right."""
        self._dense = self._evaluated_dense(dense, looks)
        self._whole = ExampleSubset(self._proxy, np.arange(len(self._dense)))
        self._num_forwards = self._proxy.num_batches
        tolerated = allowed(float(self._dense.mean()))
        if sweep.examples is not None and tolerated > 0.0 and np.isfinite(self._dense).all():
            self._divide(sweep.examples, tolerated)
        self.differences = PairedDifferences(
            len(self._dense), tolerated, sign=-1.0 if self._proxy.higher_is_better else 1.0
        )
        self._cut({0.0, 1.0, *map(float, sweep.levels)})  # what they remove is found in one go
        among = self._dense_of[0] if self._subsets else self._dense
        started = time.perf_counter()
        self._check_nothing_removed(among, self._evaluate(0.0, 1))
        level_s = time.perf_counter() - started
        # reliance and its error are of all examples
        started = time.perf_counter()
        everything = self._evaluate(1.0, len(self.shares))
        self.ends_s = level_s, time.perf_counter() - started
        # a model that has broken down gives NaN with and without its weights
        is_same = np.isfinite(self._dense).all() and np.array_equal(self._dense, everything)
        if not is_same:
            return
        # without units alive 0 changes nothing; NaN in the place of the weights does
        model = self._mask(self._cuts[1.0])
        for _, _, out in self._masks.weights:
            out.fill_(math.nan)
        self._num_forwards += self._proxy.num_batches
        if np.array_equal(self._dense, self._proxy.values(*model)):
            raise MeasurementError(
                "Expected the value to change when every in-scope weight is removed, but it is the "
                "same bit for bit: the value function does not run the watched weights (another "
                "model, or a compiled graph that holds old weights)."
            )

    def _evaluated_dense(self, known: Array | None, looks: bool) -> Array:
        """The values of the dense model; on the way, what the pattern has to know of its layers."""
        names = list(self._weights.shapes)
        if self._pattern.ranks != "shards":  # else magnitudes are all it needs
            from sparsitywatch.patterns.criteria import input_axes, inputs_on

            axes = input_axes(self._masks.module, names)
            self._weights = replace(self._weights, input_axes=axes)
        if not self._pattern.needs_inputs and known is not None:
            return known
        with self._looked_at(self._masks.dense(), names, looks) as copied:
            if not self._pattern.needs_inputs:
                return self._proxy.values(*copied)
            again = weakref.WeakMethod(self._dense_again)  # cuts outlive the models
            inputs, values = inputs_on(
                self._proxy, copied, names, self._pattern, lambda: cast("Any", again())()
            )
        self._weights = replace(self._weights, inputs=inputs)
        return values

    def _dense_again(self) -> Runnable:
        """The model as it is, for a further pass over the proxy."""
        self._num_forwards += self._proxy.num_batches
        return self._masks.dense()

    @contextlib.contextmanager
    def _looked_at(self, copied: Runnable, names: list[str], looks: bool) -> Iterator[Runnable]:
        """What is to be run in the place of a copy; if it looks, its layers are seen."""
        if not looks:
            yield copied
            return
        from sparsitywatch.evaluation.xray import Lens

        is_own = copied.module is self._masks.module
        reason = "shards are evaluated in the model in training, without hooks" if is_own else ""
        lens = Lens(self._proxy, copied, names, reason)
        with lens.on() as seen:
            yield seen
        self._xray = lens.developed()

    def _divide(self, examples: int, tolerated: float) -> None:
        """Draw subsets, the smallest with so many examples at least, if that can be done."""
        shares = shares_of(len(self._dense), examples, largest_step(self._dense) / tolerated)
        subsets = self._proxy.subsets((*shares, 1.0)) if shares else ()
        if not subsets:
            return
        first = subsets[0].proxy.values(*self._masks.dense())
        self._num_forwards += subsets[0].proxy.num_batches
        among_all = self._dense[subsets[0].places]
        apart = float(np.abs(first - among_all).max()) if len(first) == len(among_all) else math.inf
        if apart > max(_DEPENDS * float(self._dense.std()), tolerated):
            self._proxy.keep_whole(
                "the value of an example depends on the others in its batch, or on what is drawn, "
                f"by up to {apart:.3g}"
            )
            return
        self._subsets, self.shares = subsets, (*shares, 1.0)
        self._dense_of = [first]
        self._is_exact = apart <= _ROUNDED * tolerated
        if self._is_exact:
            self._dense_of += [self._dense[subset.places] for subset in subsets[1:]]

    def _check_nothing_removed(self, dense: Array, masked: Array) -> None:
        """Refuse a level 0 that is not dense: not even within the noise of dense evaluations."""
        if np.array_equal(dense, masked, equal_nan=True):
            return
        # kernels that are not deterministic change last digits; more is a random value function
        proxy = self._subsets[0].proxy if self._subsets else self._proxy
        self._num_forwards += proxy.num_batches
        noise = np.abs(proxy.values(*self._masks.dense()) - dense).max()
        is_rounding = 0.0 < noise <= ROUNDING * np.abs(dense).max()
        if not (is_rounding and np.abs(masked - dense).max() <= 10 * noise):
            raise NotDenseError(
                "Expected level 0 to equal the dense model bit for bit, but the values differ by "
                f"up to {np.nanmax(np.abs(dense - masked)):.3g}: masking does not reach the model "
                "as it runs, or the value function is random. Put all randomness into the batches."
            )

    # ------------------------------------------------------------------ the levels between

    def go_through(self, sweep: Sweep) -> None:
        """Evaluate what the sweep chooses, until it has seen enough."""
        # values that ranks compute may differ in the last digits, and then what would be chosen
        next_step = self._proxy.ranks.led("the next level", sweep.next_step)
        while (step := next_step(self.differences.points(), self.shares)) is not None:
            level, share = step
            stage = 1 + bisect.bisect_left(self.shares, min(1.0, share) - 1e-9)
            if not 0.0 <= level <= 1.0 or stage <= self._stage.get(level, 0):
                raise MeasurementError(
                    f"Expected the next step of {type(sweep).__name__} to be a level in [0, 1] on "
                    f"more of the examples than it has seen, or None, got {step!r}."
                )
            self._evaluate(level, stage)

    def _cut(self, levels: Collection[float]) -> None:
        """Find what goes at some levels, in one go."""
        rising = sorted(levels)
        self._cuts |= zip(rising, self._cuts_of(self._weights, rising), strict=True)

    def _evaluate(self, level: float, stage: int) -> Array:
        """The values of a level on the examples of a stage that it has not seen."""
        if level not in self._cuts:
            self._cut({level})
        before, is_last = self._stage.get(level, 0), stage == len(self.shares)
        if is_last and not (before and self._is_exact):
            values, dense = self._values([self._whole], self._cuts[level]), self._dense
            self._wholes[level] = float(values.mean())
        else:
            for subset in self._subsets[len(self._dense_of) : stage]:
                self._dense_of.append(self._values([subset]))
            values = self._values(self._subsets[before:stage], self._cuts[level])
            dense = np.concatenate(self._dense_of[before:stage])
        lost, is_same = values - dense, False
        if level > 0.0 and not lost.any():  # the cut may have taken only zeros, on every rank
            own = all(torch.equal(weights, out) for _, weights, out in self._masks.weights)
            is_same = all(self._proxy.ranks.gather(own))
        self.differences.add(level, lost, is_same=is_same)
        self._stage[level] = stage
        return values

    def _values(self, subsets: Sequence[ExampleSubset], cut: Cut | None = None) -> Array:
        """The values on some subsets without what a cut removes, or of the dense model."""
        model = self._fresh(masked=False) if cut is None else self._mask(cut)
        found: list[Array] = []
        for subset in subsets:
            if found:  # whatever the subsets before have left behind
                model = self._fresh(masked=cut is not None)
            self._num_forwards += subset.proxy.num_batches
            found.append(subset.proxy.values(*model))
        return np.concatenate(found)

    def result(self) -> SweepResult:
        """The curve of everything measured."""
        levels = sorted(self._stage)
        means = [self.differences.means[level] for level in levels]
        cuts = tuple(self._cuts[level] for level in levels)
        dense = float(self._dense.mean())
        curve = SparsityCurve(
            sparsity=[cut.sparsity for cut in cuts],
            value=[
                self._wholes.get(level, dense + mean.value)
                for level, mean in zip(levels, means, strict=True)
            ],
            stderr=[mean.stderr for mean in means],
            higher_is_better=self._proxy.higher_is_better,
            level=levels,
            num_examples=len(self._dense),
            num_seen=[mean.num_seen for mean in means] if self._subsets else None,
            unit=self._proxy.unit,
        )
        return SweepResult(curve, cuts, self._num_forwards, self._xray)


# ------------------------------------------------------------------ a model that can be masked


@contextlib.contextmanager
def undisturbed(ranks: Ranks) -> Iterator[None]:
    """Without gradients, eagerly; generators and autocast are as before afterwards."""
    # autocast keeps no casts, and no collective may begin where others would have to answer
    is_cached = torch.is_autocast_cache_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.callback(torch.set_autocast_cache_enabled, is_cached)
        torch.set_autocast_cache_enabled(False)
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(ranks.evaluating())
        yield


class MaskedModel:
    """A model whose in-scope weights can be masked, in a copy of them, while a session is open."""

    def __init__(self, model: nn.Module, scope: Scope, reader: ShardedReader = WHOLE_MODEL) -> None:
        self.module, self.given = unwrap_model(model), weakref.ref(model)  # without its wrappers
        self.spare: WarmCopy | None = None  # buffers that nobody needs meanwhile
        self.training_changed = ""  # how, where an evaluation has
        self.renews = False  # whether each evaluation gets a copy of its own
        self._scope = scope
        self._reader = reader
        self._open: Masks | None = None

    def begin_anew(self, scope: Scope) -> None:
        """Mask the weights of a model that has changed."""
        self._scope, self.renews = scope, False

    @contextlib.contextmanager
    def session(self, value: Callable[..., Any]) -> Iterator[Masks]:
        """Evaluation by ``value`` without a trace: weights may be masked until the session ends."""
        parameters = self._reader.lookup(self.module, self._scope)[0]  # as they are now
        with undisturbed(self._reader.ranks):
            if any(map(is_sharded, self.module.parameters())):
                masks: Masks = InShards(self.module, value, parameters)
            else:
                dense = dict(zip(parameters, map(local_of, parameters.values()), strict=True))
                if self.spare is not None and self.spare.is_warm:
                    memory = self.spare.buffers(dense)
                else:
                    memory = {name: torch.empty_like(tensor) for name, tensor in dense.items()}
                weights = [(name, tensor, memory[name]) for name, tensor in dense.items()]
                instead = {id(parameter): memory[name] for name, parameter in parameters.items()}
                masks = OnCopies(self.module, value, weights, ({}, instead), renews=self.renews)
            masks.united = self._reader.united_numbers
            self._open = masks
            try:
                yield masks
            finally:
                self.restore()
                refuse_written(self.module, masks.shared)  # nobody can put that back

    def learned(self) -> dict[str, Any]:
        """What evaluations have shown of the model: plain data that ``learn`` takes up."""
        return {"renews": self.renews}

    def learn(self, state: dict[str, Any]) -> None:
        """Take up what a copy of this has learned in a fork."""
        self.renews = state["renews"]

    def restore(self) -> None:
        """Put back what a session has changed, also if its end was interrupted before it began."""
        masks, self._open = self._open, None
        if masks is not None:
            finish_despite_interrupt(masks.put_back)


class Masks(ABC):
    """An open session; each evaluation starts from the model as it is in the training."""

    def __init__(
        self, module: nn.Module, weights: Sequence[tuple[str, torch.Tensor, torch.Tensor]]
    ) -> None:
        self.module = module  # in the training
        self.weights = weights  # names, dense weights, and where the masked ones go
        #: Tensors of the training that a forward may reach, with what was written to them before.
        self.shared: list[tuple[torch.Tensor, int]] = []
        #: Of numbers that are found in the dense weights.
        self.united: Callable[[Callable[[], Numbers]], Numbers] = of_this_rank

    def dense(self) -> Runnable:
        """The model as it is."""
        return self.fresh(masked=False)

    def masked(self, cut: Cut) -> Runnable:
        """The model without the weights that a cut removes, until the next call."""
        for name, dense, out in self.weights:  # for which a cut may run the dense model
            cut.prune(name, dense, out=out)
        return self.fresh(masked=True)

    @abstractmethod
    def fresh(self, *, masked: bool) -> Runnable:
        """The model as no forward has left it, on its own weights or on those that are masked."""

    def refuse_changed(self) -> None:
        """Refuse forwards without masks that have written to what belongs to the training."""
        changed = [name for name, dense, out in self.weights if not same_bits(dense, out)]
        if changed:
            raise changes_the_training([printable(clean_name(name)) for name in changed])
        refuse_written(self.module, self.shared)

    @abstractmethod
    def put_back(self) -> object:
        """Make everything that is not a copy as it was; may be called again."""


class OnCopies(Masks):
    """Evaluates copies of the model: nothing is ever written into the one in training."""

    def __init__(
        self,
        module: nn.Module,
        value: Callable[..., Any],
        weights: Sequence[tuple[str, torch.Tensor, torch.Tensor]],
        instead: Sequence[Mapping[int, torch.Tensor]],  # in place of parameters: dense, masked
        *,
        renews: bool,
    ) -> None:
        super().__init__(module, weights)
        self._value = value
        self._instead = instead
        dense = ModelCopy(module, value, instead[False])
        self._surroundings = Surroundings(dense, module)
        # buffers were copied, so that only other ways lead to them
        buffers = [(buffer, version_of(buffer)) for buffer in module.buffers()]
        self.shared = [*dense.shared, *self._surroundings.tensors, *buffers]
        self._copies = {False: dense}  # by whether it is masked
        self._first: ModelCopy | None = None  # that was given
        self._leaves_nothing = False if renews else None  # known after that

    def fresh(self, *, masked: bool) -> Runnable:
        """A copy: the one before, where forwards leave nothing behind."""
        if self._first is not None and not self._leaves_nothing:
            is_as_before = not self.put_back()
            if self._leaves_nothing is None:
                self._leaves_nothing = self._first.is_as_noted() and is_as_before
            if not self._leaves_nothing:
                self._copies.pop(masked, None)
        if masked not in self._copies:
            self._copies[masked] = ModelCopy(self.module, self._value, self._instead[masked])
        if self._first is None:
            self._first = self._copies[masked]
            self._first.note()
        return self._copies[masked].runnable

    def put_back(self) -> bool:
        """Make what lies beside the model as it was; whether anything was not."""
        return self._surroundings.put_back()


class InShards(Masks):
    """Evaluates a sharded model itself: masks are written into its local shards, and taken out."""

    def __init__(
        self, module: nn.Module, value: Callable[..., Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        self._runnable = Runnable(module, value)
        self._flags = [(one, one.training) for one in module.modules()]
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
        self._fsdp = fsdp_modules(module.modules())
        self.reshard()
        # .data: no version counter moves, so a graph that is still alive stays usable
        held = {name: local_of(parameter).data for name, parameter in parameters.items()}
        super().__init__(module, [(name, local.clone(), local) for name, local in held.items()])
        for one, _ in self._flags:
            one.training = False  # not eval(): a user's own may freeze, merge or print

    def fresh(self, *, masked: bool) -> Runnable:
        """The model itself, its shards dense again where they are not about to be masked."""
        for _, dense, local in [] if masked else self.weights:
            local.copy_(dense)
        self.reshard()
        for buffer, was in self._buffers:
            if not same_bits(buffer, was):
                buffer.data.copy_(was)
        torch.clear_autocast_cache()
        return self._runnable

    def refuse_changed(self) -> None:
        """Refuse forwards without masks that have written to what belongs to the training."""
        self.reshard()
        super().refuse_changed()

    def reshard(self) -> None:
        """Let go of what a forward has gathered, which stands in the place of the shards."""
        for one in self._fsdp:
            one.reshard()

    def put_back(self) -> None:
        """Make weights, buffers and flags as they were; may be called again."""
        self.dense()
        for one, training in self._flags:
            one.training = training
