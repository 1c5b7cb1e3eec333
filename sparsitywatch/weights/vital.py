"""What two snapshots, the gradients and the optimizer say of every parameter of the model.

A fixed sample of each tensor is compared bit for bit with the snapshot before: all of a small one,
some of a large one. What stands still, or shrinks by one factor alone, is looked at more closely:
whether it has a gradient, and whether its updates are large enough to be stored. Of a training that
is well next to nothing is, so that this costs next to nothing.

What the next step may change is read in the training's thread: the samples, the optimizer, and the
gradients of what stands still. The rest is said of that alone, behind the training. Ranks that hold
parts of the parameters exchange what is read, so that each of them says what one process says of
the whole. Facts only: ``sparsitywatch.analysis.vital`` judges them.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch

from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.records import TensorFacts
from sparsitywatch.weights.clock import DecayClock
from sparsitywatch.weights.gradients import Gradients, GradientSummary, Training
from sparsitywatch.weights.motion import spacing
from sparsitywatch.weights.sharded import local_of
from sparsitywatch.weights.snapshot import SampleIndex, float64_of

__all__ = ["Signs", "VitalTracker"]

#: A tensor of at most so many weights is compared whole; of a larger one so many are.
WHOLE, SOME = 4096, 512
#: Intervals whose changes are remembered, and snapshots whose marks are.
_NUM_PAST, _NUM_MARKS = 8, 64
#: Of fewer weights nobody can say that all were multiplied by one factor.
_FEW = 8
#: So many tensors that move say what a gradient is like.
_NUM_REFERENCE = 8
#: An update is lost for sure below the spacing divided by twice the first, and may be below it
#: divided by twice the second: sizes of updates are known to within such factors.
_FAR_BELOW, _NOT_FAR_ABOVE = 2.0, 0.125
#: While the learning rate still rises, an update is lost for sure if it were at so many times it.
_STILL_TO_RISE = 30.0
#: Of weights that a random rounding would move, so many move at least: updates may be smaller than
#: the learning rate.
_AT_LEAST = 0.25
#: A gradient is taken for one that matters, and decay must be seen, in units of the spacing.
_SEEN = 2.0
#: Steps of SGD below this share of what the tensor moved before, at the same learning rate, are
#: lost to nobody: its gradient has ended.
_ENDED = 0.01
#: Updates of these optimizers are as large as the learning rate times the weights' own size.
_RELATIVE = ("adafactor", "lamb", "lars")


def _nothing() -> TensorFacts:
    nothing = np.array([], int)
    return TensorFacts(name=nothing.astype(object), size=nothing, num=nothing)


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What is known of every parameter at one snapshot.

    Args:
        facts: in the order of the model.
        since_step: of the snapshot before; -1 if there was none to compare with.
        reason: why there are no facts; empty if there are.
    """

    facts: TensorFacts = field(default_factory=_nothing)
    since_step: int = -1
    reason: str = ""


@dataclass(frozen=True)
class _Part:
    """The sampled weights of all tensors of one dtype.

    Args:
        names: of the tensors.
        starts: int64 [T], where each begins.
        words: unsigned integers [N], their bits.
    """

    dtype: torch.dtype
    names: tuple[str, ...]
    starts: np.ndarray
    words: np.ndarray

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

    @cached_property
    def num_zero(self) -> np.ndarray:
        """How many of these are 0, int64 [T]; asked of the earlier and the later snapshot."""
        return self.count(self.values == 0.0)

    def slice_of(self, index: int) -> slice:
        """Where the weights of one tensor are."""
        start = int(self.starts[index])
        return slice(start, start + int(self.nums[index]))

    def count(self, is_so: np.ndarray) -> np.ndarray:
        """Of how many weights of each tensor something holds, int64 [T]."""
        ends = np.flatnonzero(is_so).searchsorted(np.append(self.starts, len(self.words)))
        found: np.ndarray = np.diff(ends)
        return found

    def root_mean_square(self, squares: np.ndarray) -> np.ndarray:
        """Of each tensor, from what is squared already."""
        found: np.ndarray = np.sqrt(np.add.reduceat(squares, self.starts) / self.nums)
        return found


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
) -> list[_Part]:
    """The weights of each tensor that are compared; those of a device come in one transfer."""
    by_dtype: dict[torch.dtype, tuple[dict[str, torch.Tensor], dict[str, SampleIndex]]] = {}
    for name, parameter in parameters.items():
        tensors, some = by_dtype.setdefault(parameter.dtype, ({}, {}))
        tensors[name], some[name] = local_of(parameter), _chosen(name, parameter.numel())
    parts = []
    for dtype, (tensors, some) in by_dtype.items():
        starts, num = [], 0
        for chosen in some.values():
            starts.append(num)
            num += chosen.num
        words = reader.gather_sample(tensors, some).numpy()
        parts.append(_Part(dtype, tuple(tensors), np.array(starts), words))
    return parts


class VitalTracker:
    """Remembers a sample of every parameter, to say what became of it since.

    A tensor's sample is its own: the same whatever else the model has, and however it is spread.

    Args:
        reader: of all parameters.
        reason: why they cannot be compared; empty if they can.
    """

    def __init__(self, reader: ShardedReader = WHOLE_MODEL, reason: str = "") -> None:
        self._reader, self._reason = reader, reason
        self._start: list[_Part] = []
        self._marks: deque[tuple[int, np.ndarray]] = deque(maxlen=_NUM_MARKS)
        self.forget()

    def forget(self) -> None:
        """What happens until the next snapshot is not known: it is compared with nothing."""
        self._before: list[_Part] = []
        self._clock, self._step = DecayClock(), -1
        self._peaks: list[float] = []
        self._streaks: dict[str, np.ndarray] = {}
        self._updates: deque[np.ndarray] = deque(maxlen=_NUM_PAST)
        self._marks.clear()

    def look(
        self,
        step: int,
        parameters: Mapping[str, torch.Tensor],
        training: Training | None = None,
    ) -> Callable[[], Signs]:
        """What became of every parameter since the snapshot before; remember this one.

        Where several ranks read the parameters, every one of them calls it.

        Args:
            step: optimizer steps done.
            parameters: every one of the model, by name, in its order; tied ones once.
            training: None if nobody knows how they are trained.

        Returns:
            What says it: once, in any thread, before the next look. It reads nothing that is the
            training's.
        """
        if self._reason:
            return partial(Signs, reason=self._reason)
        weights = _of_weights(parameters)
        parts = sampled(weights, self._reader)
        if not _fit(self._start, parts):
            self._start = parts
        if not _fit(self._before, parts):
            self.forget()
        seen = trained = None
        if self._before:
            seen = _Seen(self._start, self._before, parts)
            if training is not None:  # compared here, to know which gradients to look at
                trained = _Trained(seen, weights, training, self._clock, self._reader)
        shapes = {name: tuple(one.shape) for name, one in weights.items()}
        said = partial(self._said, step, self._step, parts, shapes, seen, trained)
        self._before, self._step = parts, step
        self._clock = DecayClock() if training is None else training.clock.copy()
        return said

    def _said(
        self,
        step: int,
        since: int,
        parts: Sequence[_Part],
        shapes: Mapping[str, tuple[int, ...]],
        seen: _Seen | None,
        trained: _Trained | None,
    ) -> Signs:
        """What was read, put into words: arithmetic that need not hold up the training."""
        marks, columns = _marks(parts), _described(parts, shapes)
        if seen is not None:
            columns |= self._compared(seen, marks)
        found = TensorFacts(**columns)
        if seen is not None and trained is not None:
            found = self._told(found, seen, trained)
        if not self._marks or not (marks == self._marks[-1][1]).all():
            self._marks.append((step, marks))
        return Signs(facts=_in_order(found, parts, shapes), since_step=since)

    def _compared(self, seen: _Seen, marks: np.ndarray) -> dict[str, np.ndarray]:
        """What the snapshot before says, by field."""
        streaks = self._streaks
        if not streaks:
            for name in ("still", "shrinks", "dead", "steps", "moved"):
                streaks[name] = np.zeros(len(marks), np.int64)
        streaks["moved"] |= ~(seen.is_still | seen.is_shrinking)
        for name, is_so in (("still", seen.is_still), ("shrinks", seen.is_shrinking)):
            streaks[name] = np.where(is_so, streaks[name] + 1, 0)
        past = np.array(self._updates).T if self._updates else np.array(())
        update = seen.update
        self._updates.append(update)
        back_at = np.full(len(marks), -1)
        moved = ~seen.is_still & ~seen.is_zero  # reset to zero, such as one half of a LoRA
        for step, earlier in list(self._marks)[:-1]:
            back_at[moved & (earlier == marks)] = step  # the latest one stays
        return {
            "num_still": seen.num_still,
            "num_still_since_start": seen.num_start_still,
            "update": update,
            "rms": seen.rms,
            "past_updates": past,
            "has_moved": streaks["moved"] > 0,
            "still_for": streaks["still"],
            "shrinks_for": streaks["shrinks"],
            "back_at": back_at,
        }

    def _told(self, facts: TensorFacts, seen: _Seen, trained: _Trained) -> TensorFacts:
        """The facts with how each tensor was trained, and what has gone wrong up to now."""
        self._peaks += [0.0] * (len(trained.rates) - len(self._peaks))
        for i, (rate, clock) in enumerate(zip(trained.rates, trained.done, strict=False)):
            self._peaks[i] = max(self._peaks[i], rate, clock.lr / max(clock.steps, 1))
        facts = trained.told(replace(facts, **trained.columns(self._peaks)), seen)
        is_dead = (facts.gradient == "none") | (facts.gradient == "zero")
        is_dead &= (facts.lr > 0.0) & facts.is_unmoved
        streaks = self._streaks
        streaks["dead"] = np.where(is_dead, streaks["dead"] + 1, 0)
        streaks["steps"] = np.where(is_dead, streaks["steps"] + facts.num_steps, 0)
        # one weight that moves is no end of it: what is lost adds up from interval to interval
        for name in ("num_lossy_expected", "num_lossy_moved"):
            so_far = streaks.get(name, 0)  # missing in older states
            streaks[name] = np.where(facts.num_lossy > 0, so_far + getattr(facts, name), 0)
        return replace(
            facts,
            dead_for=streaks["dead"],
            dead_steps=streaks["steps"],
            num_lossy_expected=streaks["num_lossy_expected"],
            num_lossy_moved=streaks["num_lossy_moved"],
        )

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""

        def stored(parts: Sequence[_Part]) -> list[dict[str, Any]]:
            return [
                {
                    "names": list(part.names),
                    "starts": torch.from_numpy(part.starts.copy()),
                    "values": torch.from_numpy(part.words.copy()).view(part.dtype),
                }
                for part in parts
            ]

        return {
            "start": stored(self._start),
            "before": stored(self._before),
            "clock": self._clock.state_dict(),
            "step": self._step,
            "peaks": list(self._peaks),
            "streaks": {k: torch.from_numpy(v.copy()) for k, v in self._streaks.items()},
            "updates": [torch.from_numpy(each.copy()) for each in self._updates],
            "marks": [(step, torch.from_numpy(each.copy())) for step, each in self._marks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""

        def parts(stored: Sequence[Mapping[str, Any]]) -> list[_Part]:
            return [
                _Part(
                    part["values"].dtype,
                    tuple(part["names"]),
                    part["starts"].cpu().numpy().copy(),
                    part["values"].cpu().view(_WORDS[part["values"].itemsize]).numpy().copy(),
                )
                for part in stored
            ]

        self.forget()
        self._start, self._before = parts(state["start"]), parts(state["before"])
        self._clock.load_state_dict(state["clock"])
        self._step, self._peaks = int(state["step"]), list(map(float, state["peaks"]))
        self._streaks = {k: v.cpu().numpy().copy() for k, v in state["streaks"].items()}
        self._updates.extend(each.cpu().numpy().copy() for each in state["updates"])
        self._marks.extend((int(s), each.cpu().numpy().copy()) for s, each in state["marks"])


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    parts: Sequence[_Part], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """What a snapshot says by itself, by field."""
    names = [name for part in parts for name in part.names]
    not_finite = [part.count(~np.isfinite(part.values)) for part in parts]
    whole = [(math.prod(shapes[name]), len(shapes[name])) for name in names]
    sizes, dims = np.array(whole).reshape(-1, 2).T
    return {
        "name": np.array(names, object),
        "size": sizes,
        "num_dims": dims,
        "num": np.concatenate([*(part.nums for part in parts), np.array([], int)]),
        "num_not_finite": np.concatenate([*not_finite, np.array([], int)]),
    }


def _in_order(facts: TensorFacts, parts: Sequence[_Part], names: Iterable[str]) -> TensorFacts:
    """The facts in the order of the model; they came by dtype."""
    if len(parts) < 2:
        return facts
    places = {name: i for i, name in enumerate(names)}
    order = np.argsort([places[name] for name in facts.name])
    return replace(facts, **{name: column[order] for name, column in vars(facts).items()})


def _fit(before: Sequence[_Part], now: Sequence[_Part]) -> bool:
    """Whether two samples are of the same weights."""
    if len(before) != len(now):
        return False
    for old, new in zip(before, now, strict=True):
        if (old.dtype, old.names, len(old.words)) != (new.dtype, new.names, len(new.words)):
            return False
    return True


def _marks(parts: Sequence[_Part]) -> np.ndarray:
    """A checksum of each tensor's sample, int64 [T]."""
    found = []
    for part in parts:
        data = part.words.data.cast("B")
        ends = [*(part.starts * part.dtype.itemsize).tolist(), len(data)]
        for begin, end in itertools.pairwise(ends):
            found.append(zlib.crc32(data[begin:end]))
    return np.array(found, np.int64)


# ------------------------------------------------------------------ two snapshots


@dataclass(frozen=True)
class _Seen:
    """Two samples of the same weights, and that of the start; what is compared is, when asked.

    Arrays are [T], by tensor.

    Args:
        start, before, now: by dtype.
    """

    start: Sequence[_Part]
    before: Sequence[_Part]
    now: Sequence[_Part]

    @cached_property
    def names(self) -> np.ndarray:
        """Of the tensors; Python's strings."""
        return np.array([name for part in self.now for name in part.names], object)

    @cached_property
    def num(self) -> np.ndarray:
        """How many weights each has in the sample."""
        return np.concatenate([part.nums for part in self.now])

    @cached_property
    def num_still(self) -> np.ndarray:
        """Of how many the bits are those of before."""
        return _joined(_num_alike, self.before, self.now)

    @cached_property
    def num_start_still(self) -> np.ndarray:
        """Of how many they are those of the start."""
        return _joined(_num_alike, self.start, self.now)

    @property
    def is_still(self) -> np.ndarray:
        """Whether no bit has changed."""
        still: np.ndarray = self.num_still == self.num
        return still

    @cached_property
    def is_shrinking(self) -> np.ndarray:
        """Whether all weights were multiplied by one factor below 1."""
        return _joined(_is_shrinking, self.before, self.now)

    @property
    def is_zero(self) -> np.ndarray:
        """Whether all weights are 0 now."""
        zero: np.ndarray = np.concatenate([part.num_zero for part in self.now]) == self.num
        return zero

    @property
    def update(self) -> np.ndarray:
        """Root mean square of the change."""
        return _joined(_update, self.before, self.now).astype(float)

    @property
    def rms(self) -> np.ndarray:
        """Root mean square of the weights before."""
        return _joined(_size, self.before, self.now).astype(float)

    def weights_of(self, index: int) -> tuple[torch.dtype, np.ndarray, np.ndarray]:
        """Dtype, values before and whether each of them stands still, for one tensor."""
        for before, now in zip(self.before, self.now, strict=True):
            if index < len(now.names):
                where = now.slice_of(index)
                is_still = before.words[where] == now.words[where]
                return now.dtype, before.values[where].astype(float), is_still
            index -= len(now.names)
        raise LookupError(index)


@np.errstate(all="ignore")  # what is not finite is told beside
def _joined(
    compare: Callable[[_Part, _Part], np.ndarray], before: Sequence[_Part], now: Sequence[_Part]
) -> np.ndarray:
    return np.concatenate(list(map(compare, before, now)))


def _num_alike(old: _Part, new: _Part) -> np.ndarray:
    return new.count(old.words == new.words)


def _update(old: _Part, new: _Part) -> np.ndarray:
    change = new.values - old.values
    return new.root_mean_square(np.square(change, out=change))


def _size(old: _Part, new: _Part) -> np.ndarray:
    return new.root_mean_square(np.square(old.values))


def _is_shrinking(old: _Part, new: _Part) -> np.ndarray:
    # its first weights tell of most that they were not; of the others all are asked
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

    1 or 0; -1 where there is none that tells: they were 0, or are NaN.
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

    Args:
        seen: what became of the weights.
        parameters: those that were compared.
        training: who trains them.
        since: the clock at the snapshot before.
        reader: of the parameters.
    """

    def __init__(
        self,
        seen: _Seen,
        parameters: Mapping[str, torch.Tensor],
        training: Training,
        since: DecayClock,
        reader: ShardedReader,
    ) -> None:
        groups = training.optimizer.param_groups
        self.done = training.clock.since(since)
        self.rates = [float(group.get("lr", 0.0)) for group in groups]
        self._kind = type(training.optimizer).__name__.lower()
        self._is_sgd = self._kind.startswith("sgd")
        self._momenta = [float(g.get("momentum", 0.0)) for g in groups] if self._is_sgd else []
        named = {name: parameters[name] for name in seen.names}
        self._who, self._groups = training.roles(named, reader)
        self._odd: list[int] = []
        self._looks: dict[str, GradientSummary] = {}
        self._recalled: list[str] = []
        if any(clock.lr > 0.0 for clock, _ in zip(self.done, groups, strict=False)):
            self._look(seen, parameters, Gradients(parameters, training.optimizer, reader))

    def _look(
        self, seen: _Seen, parameters: Mapping[str, torch.Tensor], gradients: Gradients
    ) -> None:
        """Read the gradients of what needs a look at them.

        Few do in a training that is well: what stands still, shrinks as one, or keeps more bits
        than some zeros and some that came back.
        """
        by_chance = np.maximum(_FEW, seen.num // 64)
        is_unmoved = seen.is_still | seen.is_shrinking
        is_odd = is_unmoved | (seen.num_still > by_chance)
        is_odd &= np.isin(self._who, ("own", "master", "none"))
        self._odd = np.flatnonzero(is_odd).tolist()
        if not self._odd:
            return
        # tensors that move say what a gradient is like
        moving = seen.names[np.isin(self._who, ("own", "master")) & ~is_unmoved]
        self._usual = list(moving[:: max(len(moving) // _NUM_REFERENCE, 1)])
        unmoved = dict(zip(seen.names[self._odd], is_unmoved[self._odd], strict=True))
        unmoved = dict.fromkeys(self._usual, False) | unmoved
        chosen = {name: _chosen(name, parameters[name].numel()) for name in unmoved}
        self._looks = gradients.summaries(chosen, unmoved)
        if not any(look.said == "some" for look in self._looks.values()):
            # all were set to none or zero, perhaps, before
            self._recalled = gradients.recalled(seen.names[self._odd])

    def columns(self, peaks: Sequence[float]) -> dict[str, np.ndarray]:
        """Who trains each tensor, and how, by field.

        Args:
            peaks: the highest learning rate of each param group that was seen.
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
        found = np.array([*groups, nobody])[np.where(is_known, self._groups, -1)].T
        return {
            "trained_by": self._who,
            "num_steps": found[0].astype(int),
            "lr": found[1],
            "lr_share": found[2],
            "lr_rise": found[3],
            "weight_decay": found[4],
        }

    def told(self, facts: TensorFacts, seen: _Seen) -> TensorFacts:
        """The facts with what the gradients say."""
        if not self._odd:
            return facts
        looks = self._looks
        sizes = [_rms(looks[name].values) for name in self._usual if looks[name].said == "some"]
        reference = float(np.median(sizes)) if sizes else math.nan
        found = {
            i: self._looked_into(facts, i, seen, looks[facts.name[i]], reference) for i in self._odd
        }
        for i, recalled in zip(self._odd, self._recalled, strict=False):  # none, or of each
            found[i]["gradient"] = recalled
        columns = {}
        for field_name in sorted({name for one in found.values() for name in one}):
            column = getattr(facts, field_name).copy()
            if field_name == "gradient":
                column = column.astype(object)
            for i, one in found.items():
                column[i] = one.get(field_name, column[i])
            columns[field_name] = column
        return replace(facts, **columns)

    def _looked_into(
        self, facts: TensorFacts, index: int, seen: _Seen, look: GradientSummary, reference: float
    ) -> dict[str, Any]:
        """What is to be said of a tensor that stands still, in part or whole, or shrinks as one."""
        if not look.is_known:
            return {"gradient": look.said}
        gradient, by_own = look.values, facts.trained_by[index] == "own"
        size = _rms(gradient)
        dtype, before, is_still = seen.weights_of(index)
        spaces = spacing(before, dtype)
        update = self._update(facts, index, before, gradient)
        is_reached = gradient != 0.0
        later = _STILL_TO_RISE if facts.lr_rise[index] > 1.0 + 1e-6 else 1.0
        is_lossy = is_reached & (0.5 * spaces > _FAR_BELOW * later * update)
        if not by_own or look.is_kept_apart or self._has_learned(facts, index, update):
            is_lossy[:] = False
        moves = _AT_LEAST * facts.num_steps[index] * update / np.maximum(spaces, 1e-300)
        # decay moves a weight by less than a spacing, and still off its place
        decay = facts.lr[index] * facts.weight_decay[index] * np.abs(before)
        must_decay = ~is_reached & (before != 0.0) & (decay > _SEEN * 0.5 * spaces) & by_own
        return {
            "gradient": look.said,
            "gradient_ratio": size / reference if reference > 0.0 else 1.0,
            "num_gradients": is_reached.sum(),
            "num_lossy": is_lossy.sum(),
            "num_lossy_moved": (is_lossy & ~is_still).sum(),
            "num_lossy_expected": np.minimum(moves, 1.0)[is_lossy].sum(),
            "num_could_round": (is_reached & (0.5 * spaces > _NOT_FAR_ABOVE * update)).sum(),
            "num_not_decayed": (must_decay & is_still).sum(),
            "num_to_decay": must_decay.sum(),
        }

    def _update(
        self, facts: TensorFacts, index: int, before: np.ndarray, gradient: np.ndarray
    ) -> np.ndarray:
        """About the size of one step of each weight, before it is rounded."""
        lr = facts.lr[index]
        if self._is_sgd:
            momentum = self._momenta[max(self._groups[index], 0)]
            found: np.ndarray = lr * np.abs(gradient) / (1.0 - min(momentum, 0.99))
            return found
        is_relative = any(name in self._kind for name in _RELATIVE)
        return np.full(len(before), lr * (max(facts.rms[index], 1e-3) if is_relative else 1.0))

    def _has_learned(self, facts: TensorFacts, index: int, update: np.ndarray) -> bool:
        """Whether updates are small because its gradient has ended with what there was to learn."""
        if not self._is_sgd or not facts.past_updates.shape[1]:
            return False
        intended = _rms(update) * facts.num_steps[index]
        most = float(facts.lr_share[index] * facts.past_updates[index].max())
        return bool(intended < _ENDED * most)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
