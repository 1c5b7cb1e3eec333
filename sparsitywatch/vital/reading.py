"""What two snapshots, the gradients and the optimizer say of every parameter of the model.

A fixed sample of each tensor is compared bit for bit with the snapshot before: all of a small one,
some of a large one. What stands still, or shrinks by one factor alone, is looked at more closely:
whether it has a gradient, and whether its updates are large enough to be stored. Of a training that
is well next to nothing is, so that this costs next to nothing.

What the next step may change is read in the training's thread: the samples, the optimizer, and the
gradients of what stands still. The rest is told from that alone, behind the training. Ranks that
hold parts of the parameters exchange what is read, so that each tells what one process tells of
the whole.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch

from sparsitywatch.pipeline.parts import Examined, Examiner
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.vital.gradients import Gradients, GradientSummary, roles
from sparsitywatch.vital.judgement import TensorFacts, VitalReading, judged, table_of, unread
from sparsitywatch.weights.clock import DecayClock, Training
from sparsitywatch.weights.motion import spacing
from sparsitywatch.weights.sharded import local_of
from sparsitywatch.weights.snapshot import SampleIndex, float64_of

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
#: Updates of these optimizers are as large as the learning rate times the weights' own size.
_RELATIVE = ("adafactor", "lamb", "lars")
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Facts that go on from those of the snapshot before.
_CARRIED = (
    "has_moved", "still_for", "shrinks_for", "dead_for", "dead_steps", "num_lossy_moved",
    "num_lossy_expected",
)  # fmt: skip
#: Facts that are those of a param group.
_OF_GROUPS = ("num_steps", "lr", "lr_share", "lr_rise", "weight_decay")


class VitalTracker(Examiner):
    """Remembers a sample of every parameter, to say what became of it since.

    A tensor's sample is its own: the same whatever else the model has, and however it is spread.

    Args:
        reader: of all parameters, which may be spread over ranks.
        reason: why they cannot be compared; empty if they can.
    """

    def __init__(self, reader: ShardedReader = WHOLE_MODEL, reason: str = "") -> None:
        self._reader = reader
        self._reason = reason
        self._start: list[DtypeSample] = []
        self._marks: deque[tuple[int, np.ndarray]] = deque(maxlen=_NUM_MARKS)
        self._updates: deque[np.ndarray] = deque(maxlen=_NUM_PAST)
        self.forget()

    def forget(self) -> None:
        """Compare the next snapshot with nothing."""
        self._before: list[DtypeSample] = []
        self._clock = DecayClock()
        self._step = -1
        self._peaks: list[float] = []  # highest learning rate of each param group
        self._carried: dict[str, np.ndarray] = {}
        self._updates.clear()
        self._marks.clear()

    def read(
        self, step: int, parameters: Mapping[str, torch.Tensor], training: Training | None
    ) -> Examined:
        """Read what the next step may change; what is returned judges it."""
        said = self.look(step, parameters, training)
        return lambda spectrum: judged(said(), spectrum)

    def failed(self, reason: str) -> Examined:
        """What is said where reading failed."""
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
        weights = _of_weights(parameters)
        now = sampled(weights, self._reader)
        if not _fit(self._start, now):
            self._start = now
        if not _fit(self._before, now):
            self.forget()
        start, before, since = self._start, self._before, self._step
        trained = None
        if before and training is not None:  # compared here, to know which gradients to look at
            seen = _Comparison(start, before, now)
            trained = _Trained(seen, weights, training, self._clock, self._reader)
        shapes = {name: tuple(one.shape) for name, one in weights.items()}
        self._before, self._step = now, step
        self._clock = DecayClock() if training is None else training.clock.copy()

        def said() -> VitalReading:  # arithmetic that need not hold up the training
            facts, marks = _described(now, shapes, num_past=len(self._updates)), _marks(now)
            if before:
                seen = _Comparison(start, before, now) if trained is None else trained.seen
                self._compare(facts, seen, marks)
                if trained is not None:
                    self._tell(facts, trained)
                self._carried = {name: facts[name].copy() for name in _CARRIED}
            if not self._marks or not (marks == self._marks[-1][1]).all():
                self._marks.append((step, marks))
            places = {name: i for i, name in enumerate(shapes)}  # facts came by dtype
            order = np.argsort([places[name] for name in facts.name])
            return VitalReading(facts=facts[order].view(np.recarray), since_step=since)

        return said

    def _compare(self, facts: TensorFacts, seen: _Comparison, marks: np.ndarray) -> None:
        """Add what the snapshot before says."""
        facts.num_still = seen.num_still
        facts.num_still_since_start = seen.of_each(_num_alike, to_start=True)
        facts.update = seen.of_each(_update)
        facts.rms = seen.of_each(_rms_before)
        if self._updates:
            facts.past_updates = np.array(self._updates).T
        self._updates.append(facts.update.copy())
        last = self._last(facts)
        facts.has_moved = last["has_moved"] | ~(seen.is_still | seen.is_shrinking)
        facts.still_for = np.where(seen.is_still, last["still_for"] + 1, 0)
        facts.shrinks_for = np.where(seen.is_shrinking, last["shrinks_for"] + 1, 0)
        is_zero = seen.of_each(_num_zero) == seen.num
        moved = ~seen.is_still & ~is_zero  # reset to zero, such as one half of a LoRA
        for step, earlier in list(self._marks)[:-1]:
            facts.back_at[moved & (earlier == marks)] = step  # the latest one stays

    def _tell(self, facts: TensorFacts, trained: _Trained) -> None:
        """Add how each tensor was trained, and what has gone wrong up to now."""
        self._peaks += [0.0] * (len(trained.rates) - len(self._peaks))
        for i, (rate, clock) in enumerate(zip(trained.rates, trained.done, strict=False)):
            self._peaks[i] = max(self._peaks[i], rate, clock.lr / max(clock.steps, 1))
        trained.tell(facts, self._peaks)
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
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""
        return {
            "start": [sample.state_dict() for sample in self._start],
            "before": [sample.state_dict() for sample in self._before],
            "clock": self._clock.state_dict(),
            "step": self._step,
            "peaks": list(self._peaks),
            "carried": {name: _tensor(column) for name, column in self._carried.items()},
            "updates": list(map(_tensor, self._updates)),
            "marks": [(step, _tensor(marks)) for step, marks in self._marks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.forget()
        self._start = list(map(DtypeSample.from_state, state["start"]))
        self._before = list(map(DtypeSample.from_state, state["before"]))
        self._clock.load_state_dict(state["clock"])
        self._step = int(state["step"])
        self._peaks = list(map(float, state["peaks"]))
        self._carried = {name: _array(column) for name, column in state["carried"].items()}
        self._updates.extend(map(_array, state["updates"]))
        self._marks.extend((int(step), _array(marks)) for step, marks in state["marks"])


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().numpy().copy()
    return array


def _of_weights(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those that have numbers to compare."""
    return {
        name: one
        for name, one in parameters.items()
        if one.is_floating_point()
        and one.numel()
        and (hasattr(one, "flat_shard") or not one.is_meta)  # FSDP1
    }


def _described(
    now: Sequence[DtypeSample], shapes: Mapping[str, tuple[int, ...]], *, num_past: int
) -> TensorFacts:
    """What a snapshot says by itself."""
    facts = table_of([name for sample in now for name in sample.names], num_past)
    facts.num_weights = [math.prod(shapes[name]) for name in facts.name]
    facts.num_dims = [len(shapes[name]) for name in facts.name]
    if now:
        facts.num = np.concatenate([sample.nums for sample in now])
        broken = [sample.count(~np.isfinite(sample.values)) for sample in now]
        facts.num_not_finite = np.concatenate(broken)
    return facts


# ------------------------------------------------------------------ samples


@dataclass(frozen=True)
class DtypeSample:
    """The sampled weights of all tensors of one dtype: N weights of T tensors."""

    dtype: torch.dtype
    names: tuple[str, ...]
    starts: np.ndarray  # int64 [T], where each tensor begins
    words: np.ndarray  # integers [N], the bits of the weights

    @cached_property
    def values(self) -> np.ndarray:
        """The same as numbers, float32 [N], or float64 if they are stored so."""
        return self.numbers(slice(None))

    def numbers(self, where: np.ndarray | slice) -> np.ndarray:
        """Some of these."""
        words = self.words[where]
        if self.dtype is torch.float32 or self.dtype is torch.float64:
            stored: np.ndarray = words.view(f"f{self.dtype.itemsize}")
            return stored
        found = float64_of(torch.from_numpy(words).view(self.dtype)).astype(np.float32)
        return found.reshape(words.shape)

    @cached_property
    def nums(self) -> np.ndarray:
        """How many weights each tensor has in the sample, int64 [T]."""
        return np.diff(self.starts, append=len(self.words))

    def slice_of(self, index: int) -> slice:
        """Where the weights of one tensor are."""
        start = int(self.starts[index])
        return slice(start, start + int(self.nums[index]))

    def count(self, is_so: np.ndarray) -> np.ndarray:
        """Of how many weights of each tensor something holds, int64 [T]."""
        ends = np.flatnonzero(is_so).searchsorted(np.append(self.starts, len(self.words)))
        return np.diff(ends)

    def root_mean_square(self, squares: np.ndarray) -> np.ndarray:
        """Of each tensor, from what is squared already."""
        found: np.ndarray = np.sqrt(np.add.reduceat(squares, self.starts) / self.nums)
        return found

    def state_dict(self) -> dict[str, Any]:
        """What ``from_state`` goes on from."""
        values = _tensor(self.words).view(self.dtype)
        return {"names": list(self.names), "starts": _tensor(self.starts), "values": values}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> DtypeSample:
        """The sample that ``state_dict`` was asked of."""
        values = state["values"]
        words = _array(values.view(_WORDS[values.itemsize]))
        return cls(values.dtype, tuple(state["names"]), _array(state["starts"]), words)


@lru_cache(maxsize=1 << 13)  # of the same tensors at every snapshot
def _chosen(name: str, size: int) -> SampleIndex:
    """Which weights of a tensor are compared; by its name and size alone."""
    if size <= WHOLE:
        return SampleIndex(size, None)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    where = torch.randint(size, (SOME,), generator=generator, device="cpu").numpy()
    return SampleIndex(SOME, np.sort(where))


def sampled(
    parameters: Mapping[str, torch.Tensor], reader: ShardedReader = WHOLE_MODEL
) -> list[DtypeSample]:
    """The weights of each tensor that are compared; those of a device come in one transfer."""
    by_dtype: dict[torch.dtype, dict[str, torch.Tensor]] = {}
    for name, parameter in parameters.items():
        by_dtype.setdefault(parameter.dtype, {})[name] = parameter
    samples = []
    for dtype, tensors in by_dtype.items():
        chosen = {name: _chosen(name, tensor.numel()) for name, tensor in tensors.items()}
        held = {name: local_of(tensor) for name, tensor in tensors.items()}
        words = reader.gather_sample(held, chosen).numpy()
        ends = np.cumsum([some.num for some in chosen.values()])
        samples.append(DtypeSample(dtype, tuple(tensors), np.append(0, ends[:-1]), words))
    return samples


def _fit(before: Sequence[DtypeSample], now: Sequence[DtypeSample]) -> bool:
    """Whether two samples are of the same weights."""
    shapes = ([(one.dtype, one.names, len(one.words)) for one in each] for each in (before, now))
    return next(shapes) == next(shapes)


def _marks(samples: Sequence[DtypeSample]) -> np.ndarray:
    """A checksum of each tensor's sample, int64 [T]."""
    found = []
    for sample in samples:
        data = sample.words.data.cast("B")
        ends = [*(sample.starts * sample.dtype.itemsize).tolist(), len(data)]
        found += [zlib.crc32(data[begin:end]) for begin, end in itertools.pairwise(ends)]
    return np.array(found, np.int64)


# ------------------------------------------------------------------ two snapshots


class _Comparison:
    """Samples of the same weights at the start, before and now, by dtype; arrays are [T]."""

    def __init__(
        self,
        start: Sequence[DtypeSample],
        before: Sequence[DtypeSample],
        now: Sequence[DtypeSample],
    ) -> None:
        self._start = start
        self._before = before
        self._now = now
        self.names = np.array([name for sample in now for name in sample.names], object)
        self.num = np.concatenate([sample.nums for sample in now])
        self.num_still = self.of_each(_num_alike)
        self.is_still: np.ndarray = self.num_still == self.num
        self.is_shrinking = self.of_each(_is_shrinking)

    def weights_of(self, index: int) -> tuple[torch.dtype, np.ndarray, np.ndarray]:
        """Dtype, values before and whether each of them stands still, for one tensor."""
        for before, now in zip(self._before, self._now, strict=True):
            if index < len(now.names):
                where = now.slice_of(index)
                is_still = before.words[where] == now.words[where]
                return now.dtype, before.values[where].astype(float), is_still
            index -= len(now.names)
        raise LookupError(index)

    @np.errstate(all="ignore")  # what is not finite is told beside
    def of_each(self, compare: _Compare, *, to_start: bool = False) -> np.ndarray:
        """What comparing the present weights with those before, or at the start, says of each."""
        earlier = self._start if to_start else self._before
        return np.concatenate(list(map(compare, earlier, self._now)))


#: What is said of each tensor, from an earlier sample and the present one.
_Compare = Callable[[DtypeSample, DtypeSample], np.ndarray]


def _num_alike(old: DtypeSample, new: DtypeSample) -> np.ndarray:
    return new.count(old.words == new.words)


def _num_zero(_: DtypeSample, new: DtypeSample) -> np.ndarray:
    return new.count(new.values == 0.0)


def _update(old: DtypeSample, new: DtypeSample) -> np.ndarray:
    change = new.values - old.values
    return new.root_mean_square(np.square(change, out=change))


def _rms_before(old: DtypeSample, new: DtypeSample) -> np.ndarray:
    return new.root_mean_square(np.square(old.values))


def _is_shrinking(old: DtypeSample, new: DtypeSample) -> np.ndarray:
    # the first weights of most tensors say that they were not; of the others all are asked
    firsts = new.starts[:, None] + np.minimum(np.arange(_FEW), new.nums[:, None] - 1)
    found: np.ndarray = _have_one_factor(old.numbers(firsts), new.numbers(firsts), new.dtype) != 0
    for index in np.flatnonzero(found).tolist():
        where = new.slice_of(index)
        was, is_now = old.numbers(where), new.numbers(where)
        is_enough = np.count_nonzero(was) >= _FEW
        found[index] = is_enough and _have_one_factor(was, is_now, new.dtype) > 0
    return found


def _have_one_factor(was: np.ndarray, is_now: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Of each row whether its weights were all multiplied by one factor below 1.

    1 or 0; -1 where no weight tells: they were 0, or are NaN.
    """
    ratio = is_now / was
    ratio[was == 0.0] = np.nan
    low, high = np.fmin.reduce(ratio, axis=-1), np.fmax.reduce(ratio, axis=-1)
    eps = torch.finfo(dtype).eps
    # each of some thousand steps rounds by up to half an eps, up or down
    is_so = (high < 1.0 - eps) & (low > 0.0) & (high - low <= 32 * eps)
    found: np.ndarray = np.where(np.isnan(low), -1, is_so)
    return found


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
        since: DecayClock,
        reader: ShardedReader,
    ) -> None:
        optimizer = training.optimizer
        self.seen = seen
        self.done = training.clock.since(since)
        self.rates = [float(group.get("lr", 0.0)) for group in optimizer.param_groups]
        self._momenta = [float(g.get("momentum", 0.0)) for g in optimizer.param_groups]
        self._kind = type(optimizer).__name__.lower()
        self._is_sgd = self._kind.startswith("sgd")
        named = {name: parameters[name] for name in seen.names}
        self._who, self._groups = roles(training, named, reader)
        self._odd: list[int] = []  # places of the tensors that need a look
        self._usual: list[str] = []  # tensors that move and say what a gradient is like
        self._summaries: dict[str, GradientSummary] = {}
        self._recalled: list[str] = []
        if any(clock.lr > 0.0 for clock, _ in zip(self.done, self.rates, strict=False)):
            self._look(parameters, Gradients(parameters, optimizer, reader))

    def _look(self, parameters: Mapping[str, torch.Tensor], gradients: Gradients) -> None:
        """Read the gradients of what needs a look at them.

        Few do in a training that is well: what stands still, shrinks as one, or keeps more bits
        than some zeros and some that came back.
        """
        seen = self.seen
        by_chance = np.maximum(_FEW, seen.num // 64)
        is_unmoved = seen.is_still | seen.is_shrinking
        is_odd = is_unmoved | (seen.num_still > by_chance)
        is_odd &= np.isin(self._who, ("own", "master", "none"))
        self._odd = np.flatnonzero(is_odd).tolist()
        if not self._odd:
            return
        moving = seen.names[np.isin(self._who, ("own", "master")) & ~is_unmoved]
        self._usual = list(moving[:: max(len(moving) // _NUM_REFERENCE, 1)])
        unmoved = dict(zip(seen.names[self._odd], is_unmoved[self._odd], strict=True))
        unmoved = dict.fromkeys(self._usual, False) | unmoved
        chosen = {name: _chosen(name, parameters[name].numel()) for name in unmoved}
        self._summaries = gradients.summaries(chosen, unmoved)
        if not any(summary.said == "some" for summary in self._summaries.values()):
            # all were set to none or zero, perhaps, before
            self._recalled = gradients.recalled(seen.names[self._odd])

    def tell(self, facts: TensorFacts, peaks: Sequence[float]) -> None:
        """Add who trains each tensor, and how, and what the gradients say.

        ``peaks`` are the highest learning rates of the param groups so far.
        """
        groups = []
        for clock, rate, peak in zip(self.done, self.rates, peaks, strict=False):
            mean = clock.lr / max(clock.steps, 1)
            share = rate / peak if peak > 0.0 else 0.0
            rise = rate / mean if mean > 0.0 else 1.0
            decay = clock.decay / clock.lr if clock.lr > 0.0 else 0.0
            groups.append((clock.steps, mean, share, rise, decay))
        nobody = (0, 0.0, 0.0, 1.0, 0.0)
        is_known = (self._groups >= 0) & (self._groups < len(groups))
        found = np.array([*groups, nobody])[np.where(is_known, self._groups, -1)]
        facts.trained_by = self._who
        for name, column in zip(_OF_GROUPS, found.T, strict=True):
            facts[name] = column
        sizes = [_rms(self._summaries[name].values) for name in self._usual
                 if self._summaries[name].said == "some"]  # fmt: skip
        reference = float(np.median(sizes)) if sizes else math.nan
        for i in self._odd:
            summary = self._summaries[facts.name[i]]
            facts.gradient[i] = summary.said
            if summary.is_known:
                size = _rms(summary.values)
                facts.gradient_ratio[i] = size / reference if reference > 0.0 else 1.0
                self._look_into(facts[i], i, summary)
        if self._recalled:
            facts.gradient[self._odd] = self._recalled

    @np.errstate(all="ignore")  # what is not finite is told beside
    def _look_into(self, one: Any, index: int, summary: GradientSummary) -> None:
        """What follows for a tensor that stands still, in part or whole, or shrinks as one."""
        is_own = one.trained_by == "own"
        dtype, before, is_still = self.seen.weights_of(index)
        spaces = spacing(before, dtype)
        update = self._update(one, index, before, summary.values)
        is_reached = summary.values != 0.0
        later = _STILL_TO_RISE if one.lr_rise > 1.0 + 1e-6 else 1.0
        is_lossy = is_reached & (0.5 * spaces > _FAR_BELOW * later * update)
        if not is_own or summary.is_kept_apart or self._has_learned(one, update):
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
        if self._is_sgd:
            momentum = self._momenta[max(self._groups[index], 0)]
            found: np.ndarray = one.lr * np.abs(gradient) / (1.0 - min(momentum, 0.99))
            return found
        is_relative = any(name in self._kind for name in _RELATIVE)
        return np.full(len(before), one.lr * (max(one.rms, 1e-3) if is_relative else 1.0))

    def _has_learned(self, one: Any, update: np.ndarray) -> bool:
        """Whether updates are small because its gradient has ended with what there was to learn."""
        if not self._is_sgd or not len(one.past_updates):
            return False
        intended = _rms(update) * one.num_steps
        most = float(one.lr_share * one.past_updates.max())
        return bool(intended < _ENDED * most)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
