"""What two snapshots, the gradients and the optimizer say of every parameter of the model.

A fixed sample of each tensor is compared bit for bit with the snapshot before: all of a small one,
some of a large one. What stands still, or shrinks by one factor alone, is looked at more closely:
whether it has a gradient, and whether its updates are large enough to be stored. Of a training that
is well next to nothing is, so that this costs next to nothing.

What the next step may change is read in the training's thread: the samples, the optimizer, and the
gradients of what stands still. The rest is told from that alone, behind the training. Ranks that
hold parts of the parameters exchange what is read, so that each tells what one process tells of
the whole.

Arrays are [T], by tensor, or [N], by sampled weight.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sparsitywatch.pipeline.parts import Examined, Examiner
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.vital.judgement import TensorFacts, VitalReading, judged, table_of, unread
from sparsitywatch.weights.clock import Clock, Trainer, Training, stepped_on
from sparsitywatch.weights.motion import spacing
from sparsitywatch.weights.sharded import kept_for, local_of
from sparsitywatch.weights.snapshot import SampleIndex, bits_of, float64_of

#: Tensors of up to this many weights are compared whole; of larger ones, this many weights are.
WHOLE, SOME = 4096, 512
#: Intervals whose changes are remembered, and snapshots whose marks are.
_NUM_PAST, _NUM_MARKS = 8, 64
#: Of fewer weights nobody can say that all were multiplied by one factor.
_FEW = 8
#: Number of moving tensors whose gradients serve as the reference.
_NUM_REFERENCE = 8
#: An update is lost for sure below the spacing divided by twice the first, and may be below it
#: divided by twice the second: sizes of updates are known to within such factors.
_FAR_BELOW, _NOT_FAR_ABOVE = 2.0, 0.125
#: While the learning rate rises, an update counts as lost only if it would be at this multiple.
_STILL_TO_RISE = 30.0
#: Of the weights that random rounding would move, at least this share moves: updates may be smaller
#: than the learning rate.
_AT_LEAST = 0.25
#: Decay of a weight must show once it exceeds this many half spacings.
_SEEN = 2.0
#: Steps of SGD below this share of what the tensor moved before, at the same learning rate, are
#: lost to nobody: its gradient has ended.
_ENDED = 0.01
#: Facts that go on from those of the snapshot before.
_CARRIED = (
    "has_moved", "still_for", "shrinks_for", "dead_for", "dead_steps", "num_lossy_moved",
    "num_lossy_expected",
)  # fmt: skip
#: Facts that an optimizer says of a tensor, beside ``lr_rise``, which is 1 without one.
_OF_TRAINER = ("num_steps", "lr", "lr_share", "lr_rise", "weight_decay")


class VitalTracker(Examiner):
    """Remembers a sample of every parameter, to say what became of it since."""

    def __init__(self, reader: ShardedReader = WHOLE_MODEL, reason: str = "") -> None:
        self._reader = reader  # of all parameters
        self._reason = reason  # why they cannot be compared; empty if they can
        self._start = Sample({})
        self._marks: deque[tuple[int, np.ndarray]] = deque(maxlen=_NUM_MARKS)
        self._updates: deque[np.ndarray] = deque(maxlen=_NUM_PAST)
        self.forget()

    def forget(self) -> None:
        self._before = Sample({})
        self._offered: Mapping[str, Clock] = {}
        self._step = -1
        self._peaks: dict[str, float] = {}  # highest learning rate of each tensor
        self._carried: dict[str, np.ndarray] = {}
        self._updates.clear()
        self._marks.clear()

    def read(
        self, step: int, parameters: Mapping[str, torch.Tensor], training: Training | None
    ) -> Examined:
        said = self.look(step, parameters, training)
        return lambda spectrum: judged(said(), spectrum)

    def failed(self, reason: str) -> Examined:
        self.forget()
        return unread(reason)

    def look(
        self,
        step: int,
        parameters: Mapping[str, torch.Tensor],
        training: Training | None = None,
    ) -> Callable[[], VitalReading]:
        """What became of every parameter since the snapshot before; remember this one.

        What is returned tells it, once, in any thread, before the next look.
        """
        if self._reason:
            return partial(VitalReading, reason=self._reason)
        weights = {name: one for name, one in parameters.items() if _has_numbers(one)}
        chosen = {name: _chosen(name, one.numel()) for name, one in weights.items()}
        held = {name: local_of(one) for name, one in weights.items()}
        now = Sample(self._reader.gather_sample(held, chosen))
        if self._start.kinds != now.kinds:
            self._start = now
        if self._before.kinds != now.kinds:
            self.forget()
        since, seen, trained = self._step, None, None
        if self._before.tensors:
            seen = _Comparison(self._start, self._before, now)
            if training is not None:  # compared here, to know which gradients to look at
                done = self._done(training)
                trained = _Trained(seen, weights, training, done, self._reader)
        shapes = [tuple(one.shape) for one in weights.values()]
        self._before, self._step = now, step
        ledger = {} if training is None else training.done
        self._offered = {name: sums.offered for name, sums in ledger.items()}

        def said() -> VitalReading:  # arithmetic that need not hold up the training
            facts, marks = table_of(list(now.tensors), len(self._updates)), now.marks()
            facts.num_weights = list(map(math.prod, shapes))
            facts.num_dims = list(map(len, shapes))
            facts.num = now.num
            facts.num_not_finite = now.count(~np.isfinite(now.values))
            if seen is not None:
                self._compare(facts, seen, marks)
                if trained is not None:
                    self._tell(facts, trained)
                self._carried = {name: facts[name].copy() for name in _CARRIED}
            if not self._marks or not (marks == self._marks[-1][1]).all():
                self._marks.append((step, marks))
            return VitalReading(facts=facts, since_step=since)

        return said

    def _compare(self, facts: TensorFacts, seen: _Comparison, marks: np.ndarray) -> None:
        """Add what the snapshot before says."""
        facts.num_still = seen.num_still
        facts.num_still_since_start = seen.now.count(seen.start.words == seen.now.words)
        with np.errstate(all="ignore"):  # what is not finite is told beside
            facts.update = seen.now.root_mean_square(seen.now.values - seen.before.values)
            facts.rms = seen.now.root_mean_square(seen.before.values)
        if self._updates:
            facts.past_updates = np.array(self._updates).T
        self._updates.append(facts.update.copy())
        last = self._last(facts)
        facts.has_moved = last["has_moved"] | ~(seen.is_still | seen.is_shrinking)
        facts.still_for = np.where(seen.is_still, last["still_for"] + 1, 0)
        facts.shrinks_for = np.where(seen.is_shrinking, last["shrinks_for"] + 1, 0)
        is_zero = seen.now.count(seen.now.values == 0.0) == seen.now.num
        moved = ~seen.is_still & ~is_zero  # reset to zero, such as one half of a LoRA
        for step, earlier in list(self._marks)[:-1]:
            facts.back_at[moved & (earlier == marks)] = step  # the latest one stays

    def _done(self, training: Training) -> dict[str, tuple[float, ...]]:
        """By name what was offered to each tensor since the snapshot before, as `_OF_TRAINER`."""
        found: dict[str, tuple[float, ...]] = {}
        for name, trainer in training.trainers.items():
            clock = training.done[name].offered.since(self._offered.get(name, Clock()))
            mean = clock.lr / max(clock.steps, 1)
            peak = self._peaks[name] = max(self._peaks.get(name, 0.0), trainer.lr, mean)
            share = trainer.lr / peak if peak > 0.0 else 0.0
            rise = trainer.lr / mean if mean > 0.0 else 1.0
            decay = clock.known_decay / clock.lr if clock.lr > 0.0 else 0.0
            found[name] = (clock.steps, mean, share, rise, decay)
        return found

    def _tell(self, facts: TensorFacts, trained: _Trained) -> None:
        """Add how each tensor was trained, and what has gone wrong up to now."""
        trained.tell(facts)
        is_unmoved = (facts.still_for > 0) | (facts.shrinks_for > 0)
        is_dead = np.isin(facts.gradient, ("none", "zero")) & (facts.lr > 0.0) & is_unmoved
        last = self._last(facts)
        facts.dead_for = np.where(is_dead, last["dead_for"] + 1, 0)
        facts.dead_steps = np.where(is_dead, last["dead_steps"] + facts.num_steps, 0)
        # one weight that moves is no end of losses: they add up from interval to interval
        for name in ("num_lossy_moved", "num_lossy_expected"):
            facts[name] = np.where(facts.num_lossy > 0, last[name] + facts[name], 0)

    def _last(self, facts: TensorFacts) -> dict[str, np.ndarray]:
        """What goes on from the snapshot before."""
        return self._carried or {name: np.zeros_like(facts[name]) for name in _CARRIED}

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": dict(self._start.tensors),
            "before": dict(self._before.tensors),
            "offered": {name: list(clock) for name, clock in self._offered.items()},
            "step": self._step,
            "peaks": dict(self._peaks),
            "carried": {name: _tensor(column) for name, column in self._carried.items()},
            "updates": list(map(_tensor, self._updates)),
            "marks": [(step, _tensor(marks)) for step, marks in self._marks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.forget()
        self._start = Sample({name: one.cpu() for name, one in state["start"].items()})
        self._before = Sample({name: one.cpu() for name, one in state["before"].items()})
        self._offered = {name: Clock(*sums) for name, sums in state["offered"].items()}
        self._step = int(state["step"])
        self._peaks = dict(state["peaks"])
        self._carried = {name: _array(column) for name, column in state["carried"].items()}
        self._updates.extend(map(_array, state["updates"]))
        self._marks.extend((int(step), _array(marks)) for step, marks in state["marks"])


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().numpy().copy()
    return array


def _has_numbers(one: torch.Tensor) -> bool:
    is_there = hasattr(one, "flat_shard") or not one.is_meta  # FSDP1
    return is_there and one.is_floating_point() and one.numel() > 0


# ------------------------------------------------------------------ samples


class Sample:
    """The sampled weights of every tensor, one tensor after another; on the CPU."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.kinds = [(name, one.dtype, len(one)) for name, one in tensors.items()]
        self.num = np.array([num for _, _, num in self.kinds], int)
        self.starts = np.cumsum(self.num) - self.num
        words = [bits_of(one).numpy() for one in tensors.values()]
        self.words = np.concatenate([np.empty(0, np.uint8), *words])  # as wide as the widest

    @cached_property
    def values(self) -> np.ndarray:
        """The weights as numbers, float64 [N]."""
        return float64_of(*self.tensors.values())

    def slice_of(self, index: int) -> slice:
        """Where the weights of one tensor are."""
        return slice(int(self.starts[index]), int(self.starts[index] + self.num[index]))

    def count(self, is_so: np.ndarray) -> np.ndarray:
        """Of how many weights of each tensor something holds, int64 [T]."""
        ends = np.flatnonzero(is_so).searchsorted(np.append(self.starts, len(self.words)))
        return np.diff(ends)

    def root_mean_square(self, values: np.ndarray) -> np.ndarray:
        """That of each tensor's part of ``values``, [T]."""
        if not len(values):
            return values
        found: np.ndarray = np.sqrt(np.add.reduceat(np.square(values), self.starts) / self.num)
        return found

    def marks(self) -> np.ndarray:
        """A checksum of each tensor's sample, int64 [T]."""
        return np.array(
            [zlib.crc32(bits_of(one).numpy().data) for one in self.tensors.values()], int
        )


@lru_cache(maxsize=1 << 13)  # of the same tensors at every snapshot
def _chosen(name: str, size: int) -> SampleIndex:
    """Which weights of a tensor are compared; by its name and size alone."""
    if size <= WHOLE:
        return SampleIndex(size, None)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    where = torch.randint(size, (SOME,), generator=generator, device="cpu").numpy()
    return SampleIndex(SOME, np.sort(where))


class _Comparison:
    """Samples of the same weights at the start, before and now."""

    def __init__(self, start: Sample, before: Sample, now: Sample) -> None:
        self.start, self.before, self.now = start, before, now
        self.is_same = before.words == now.words  # [N]
        self.num_still = now.count(self.is_same)
        self.is_still: np.ndarray = self.num_still == now.num
        self.is_shrinking = self._is_shrinking()

    @np.errstate(all="ignore")  # what is not finite is told beside
    def _is_shrinking(self) -> np.ndarray:
        # the first weights of most tensors say that they were not; of the others all are asked
        was, now = self.before.values, self.now.values
        firsts = self.now.starts[:, None] + np.minimum(np.arange(_FEW), self.now.num[:, None] - 1)
        eps = np.array([torch.finfo(dtype).eps for _, dtype, _ in self.now.kinds])
        found: np.ndarray = _have_one_factor(was[firsts], now[firsts], eps) != 0
        for index in np.flatnonzero(found).tolist():
            where = self.now.slice_of(index)
            is_enough = np.count_nonzero(was[where]) >= _FEW
            found[index] = is_enough and _have_one_factor(was[where], now[where], eps[index]) > 0
        return found


def _have_one_factor(was: np.ndarray, is_now: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """Of each row whether its weights were all multiplied by one factor below 1.

    1 or 0; -1 where no weight tells: they were 0, or are NaN.
    """
    ratio = is_now / was
    ratio[was == 0.0] = np.nan
    low, high = np.fmin.reduce(ratio, axis=-1), np.fmax.reduce(ratio, axis=-1)
    # each of some thousand steps rounds by up to half an eps, up or down
    is_so = (high < 1.0 - eps) & (low > 0.0) & (high - low <= 32 * eps)
    found: np.ndarray = np.where(np.isnan(low), -1, is_so)
    return found


# ------------------------------------------------------------------ who trains a parameter

#: Who may train a parameter. Where ranks differ the last one holds: on each of them an optimizer
#: may step on some tensors only.
_ROLES = ("frozen", "none", "unknown", "master", "own")
#: How large its updates are, as of ``Kind.size``.
_SIZES = ("unknown", "relative", "gradient", "lr")


def roles(
    training: Training,
    done: Mapping[str, Sequence[float]],
    parameters: Mapping[str, torch.Tensor],
    reader: ShardedReader,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who trains each parameter, as in the facts; how large updates are; and numbers, [7, T].

    The numbers are those of ``done``, the momentum, and whether a step was taken.
    """
    # an optimizer with no parameter of the model may step on copies that are not known
    is_blind = not training.trainers
    codes = np.zeros((2, len(parameters)), np.int64)
    numbers = np.zeros((len(_OF_TRAINER) + 2, len(parameters)))
    numbers[-1] = training.has_stepped
    for i, (name, parameter) in enumerate(parameters.items()):
        trainer = training.trainers.get(name)
        if not parameter.requires_grad:
            role = "frozen"
        elif trainer is not None:
            role = "master" if name in training.copied else "own"
            codes[1, i] = _SIZES.index(trainer.kind.size)
            numbers[:-1, i] = *done[name], trainer.momentum
        else:
            role = "unknown" if is_blind and parameter.dtype.itemsize < 4 else "none"
        codes[0, i] = _ROLES.index(role)
    # of numbers that are not negative the largest one has the largest bits
    united = reader.ranks.highest(np.concatenate([codes, numbers.view(np.int64)]))
    who, sizes = np.array(_ROLES)[united[0]], np.array(_SIZES)[united[1]]
    return who, sizes, united[2:].view(np.float64)


# ------------------------------------------------------------------ gradients

#: What an optimizer's means of gradients say of them; where ranks differ the last one holds.
_RECALLED = ("unknown", "zero", "some")
#: Names under which optimizers keep a mean of the gradients.
_MEANS = ("exp_avg", "momentum_buffer")
#: Parts of names under which they keep what a weight's own dtype cannot hold.
_KEPT_APART = ("kahan", "comp", "shift", "resid", "error", "master")
#: Of a tensor of which this rank reads nothing.
_NO_PART = SampleIndex(0, np.empty(0, np.int64))


class GradientState(IntEnum):
    """What a gradient is. Where ranks differ the last one holds: one may hold nothing of it."""

    NONE = 0
    ALL_ZERO = 1
    SAMPLE_ZERO = 2
    NONZERO = 3
    UNKNOWN = 4


_SAID = ("none", "zero", "unknown", "some", "unknown")


class GradientSummary(NamedTuple):
    """What is known of one gradient."""

    state: GradientState
    values: np.ndarray  # of the sampled weights, float64; zeros where they are not known
    is_kept_apart: bool  # whether the optimizer keeps what the weight's own numbers cannot hold

    @property
    def said(self) -> str:
        """As in the facts: "some", "zero", "none" or "unknown"."""
        return _SAID[self.state]


class Gradients:
    """Those of a model's parameters after a step; ranks exchange the values of sampled weights."""

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        trainers: Mapping[str, Trainer],
        reader: ShardedReader,
    ) -> None:
        self._parameters = parameters
        self._trainers = trainers
        self._reader = reader

    def summaries(self, unmoved: Mapping[str, bool]) -> dict[str, GradientSummary]:
        """What is known of some; all of a gradient is read where a tensor is ``unmoved``."""
        reader = self._reader
        chosen = {name: _chosen(name, self._parameters[name].numel()) for name in unmoved}
        with reader.ranks.all_or_none(f"gradients of {' '.join(chosen)}"):
            parts = reader.own(chosen)
            own = {
                name: self._summary(name, parts.get(name, _NO_PART), is_unmoved=is_unmoved)
                for name, is_unmoved in unmoved.items()
            }
        codes = np.array([[one.state, one.is_kept_apart] for one in own.values()])
        states, kept = reader.ranks.highest(codes.T.copy())
        nonzero = [name for name, state in zip(own, states, strict=True) if _SAID[state] == "some"]
        read = {name: own[name].values for name in nonzero}
        values = reader.united({name: chosen[name] for name in nonzero}, read, np.float64)
        return {
            name: GradientSummary(
                GradientState(state), values.get(name, np.zeros(chosen[name].num)), bool(is_kept)
            )
            for name, state, is_kept in zip(own, states, kept, strict=True)
        }

    def recalled(self, names: Iterable[str]) -> list[str]:
        """Whether there were gradients, as the optimizer's means of them tell."""
        with self._reader.ranks.all_or_none(f"means of gradients of {' '.join(names)}"):
            own = np.array([self._recalled(name) for name in names])
        return [_RECALLED[code] for code in self._reader.ranks.highest(own)]

    def _summary(self, name: str, some: SampleIndex, *, is_unmoved: bool) -> GradientSummary:
        """What this rank knows of one, of which it reads some weights; without any, others do."""
        parameter, values = self._parameters[name], np.zeros(some.num)
        held = stepped_on(parameter).grad
        gradient = None if held is None else kept_for(parameter, held)
        if held is None:
            state = GradientState.NONE
        elif gradient is None or not gradient.is_floating_point():
            state = GradientState.UNKNOWN
        elif not some.num:
            state = GradientState.ALL_ZERO
        else:
            read = float64_of(some.of(gradient).cpu())
            if not np.isfinite(read).all():
                state = GradientState.UNKNOWN
            elif read.any() or (is_unmoved and bool(gradient.any())):
                state, values = GradientState.NONZERO, read
            else:
                state = GradientState.ALL_ZERO if is_unmoved else GradientState.SAMPLE_ZERO
        keys = " ".join(map(str, self._state(name))).lower()
        return GradientSummary(state, values, any(part in keys for part in _KEPT_APART))

    def _recalled(self, name: str) -> int:
        state = self._state(name)
        for key in _MEANS:
            held = state.get(key)
            mean = kept_for(self._parameters[name], held) if torch.is_tensor(held) else None
            if mean is not None:
                return 1 + bool(mean.any())
        return 0

    def _state(self, name: str) -> Mapping[str, object]:
        trainer = self._trainers.get(name)
        if trainer is None:
            return {}
        # .get: a defaultdict grows by being asked
        trained = stepped_on(self._parameters[name])
        state: Mapping[str, object] = trainer.optimizer.state.get(trained, {})
        return state


# ------------------------------------------------------------------ the optimizer and gradients


class _Trained:
    """What the optimizer did in one interval, and what the gradients say of what stands still.

    All that is the training's is read when it is made. What is asked later is told from that.
    """

    def __init__(
        self,
        seen: _Comparison,
        parameters: Mapping[str, torch.Tensor],
        training: Training,
        done: Mapping[str, Sequence[float]],
        reader: ShardedReader,
    ) -> None:
        self._seen = seen
        self._who, self._sizes, self._numbers = roles(training, done, parameters, reader)
        self._odd: list[int] = []  # places of the tensors that need a look
        self._usual: list[str] = []  # tensors that move and say what a gradient is like
        self._summaries: dict[str, GradientSummary] = {}
        self._recalled: list[str] = []
        if self._numbers[-1].any():
            gradients = Gradients(parameters, training.trainers, reader)
            self._look(np.array(list(parameters)), gradients)

    def _look(self, names: np.ndarray, gradients: Gradients) -> None:
        """Read the gradients of what needs a look at them.

        Few do in a training that is well: what stands still, shrinks as one, or keeps more bits
        than some zeros and some that came back.
        """
        seen = self._seen
        by_chance = np.maximum(_FEW, seen.now.num // 64)
        is_unmoved = seen.is_still | seen.is_shrinking
        is_odd = is_unmoved | (seen.num_still > by_chance)
        is_odd &= np.isin(self._who, ("own", "master", "none"))
        self._odd = np.flatnonzero(is_odd).tolist()
        if not self._odd:
            return
        moving = names[np.isin(self._who, ("own", "master")) & ~is_unmoved].tolist()
        odd = names[self._odd].tolist()
        self._usual = moving[:: max(len(moving) // _NUM_REFERENCE, 1)]
        unmoved = dict(zip(odd, is_unmoved[self._odd], strict=True))
        self._summaries = gradients.summaries(dict.fromkeys(self._usual, False) | unmoved)
        if not any(summary.said == "some" for summary in self._summaries.values()):
            self._recalled = gradients.recalled(
                odd
            )  # all were set to none or zero, perhaps, before

    def tell(self, facts: TensorFacts) -> None:
        """Add who trains each tensor, and how, and what the gradients say."""
        facts.trained_by = self._who
        for name, column in zip(_OF_TRAINER, self._numbers, strict=False):
            facts[name] = column
        facts.lr_rise[~np.isin(self._who, ("own", "master"))] = 1.0
        usual = [self._summaries[name] for name in self._usual]
        sizes = [_rms(one.values) for one in usual if one.said == "some"]
        reference = float(np.median(sizes)) if sizes else math.nan
        for i in self._odd:
            summary = self._summaries[facts.name[i]]
            facts.gradient[i] = summary.said
            if summary.state not in (GradientState.NONE, GradientState.UNKNOWN):
                size = _rms(summary.values)
                facts.gradient_ratio[i] = size / reference if reference > 0.0 else 1.0
                self._look_into(facts[i], i, summary)
        if self._recalled:
            facts.gradient[self._odd] = self._recalled

    @np.errstate(all="ignore")  # what is not finite is told beside
    def _look_into(self, one: Any, index: int, summary: GradientSummary) -> None:
        """What follows for a tensor that stands still, in part or whole, or shrinks as one."""
        is_own, seen = one.trained_by == "own", self._seen
        where = seen.now.slice_of(index)
        before, is_still = seen.before.values[where], seen.is_same[where]
        spaces = spacing(before, seen.now.tensors[one.name].dtype)
        update = self._update(one, index, before, summary.values)
        is_reached = summary.values != 0.0
        later = _STILL_TO_RISE if one.lr_rise > 1.0 + 1e-6 else 1.0
        is_lossy = is_reached & (0.5 * spaces > _FAR_BELOW * later * update)
        if not is_own or summary.is_kept_apart or self._has_learned(one, index, update):
            is_lossy[:] = False
        moves = _AT_LEAST * one.num_steps * update / np.maximum(spaces, 1e-300)
        # decay moves a weight by less than a spacing, and still off its place
        decay = one.lr * one.weight_decay * np.abs(before)
        must_decay = ~is_reached & (before != 0.0) & (decay > _SEEN * 0.5 * spaces) & is_own
        one.num_gradients = is_reached.sum()
        one.num_lossy = is_lossy.sum()
        one.num_lossy_moved = (is_lossy & ~is_still).sum()
        one.num_lossy_expected = np.minimum(moves, 1.0)[is_lossy].sum()
        one.num_could_round = (is_reached & (0.5 * spaces > _NOT_FAR_ABOVE * update)).sum()
        one.num_not_decayed = (must_decay & is_still).sum()
        one.num_to_decay = must_decay.sum()

    def _update(self, one: Any, index: int, before: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """About the size of one step of each weight, before it is rounded."""
        size = self._sizes[index]
        if size == "gradient":
            momentum = self._numbers[-2, index]
            found: np.ndarray = one.lr * np.abs(gradient) / (1.0 - min(momentum, 0.99))
            return found
        return np.full(len(before), one.lr * (max(one.rms, 1e-3) if size == "relative" else 1.0))

    def _has_learned(self, one: Any, index: int, update: np.ndarray) -> bool:
        """Whether updates are small because its gradient has ended with what there was to learn."""
        if self._sizes[index] != "gradient" or not len(one.past_updates):
            return False
        intended = _rms(update) * one.num_steps
        most = float(one.lr_share * one.past_updates.max())
        return bool(intended < _ENDED * most)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
