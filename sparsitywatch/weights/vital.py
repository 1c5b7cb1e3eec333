"""What two snapshots, the gradients and the optimizer say of every parameter of the model.

A fixed sample of each tensor is compared bit for bit with the snapshot before: all of a small one,
some of a large one. What stands still, or shrinks by one factor alone, is looked at more closely:
whether it has a gradient, and whether its updates are large enough to be stored. Of a training that
is well next to nothing is, so that this costs next to nothing.

Everything is read in the training's thread, where gradients belong to the step that was just taken.
Facts only: ``sparsitywatch.analysis.vital`` judges them.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from sparsitywatch.records import TensorFacts
from sparsitywatch.weights.clock import DecayClock, GroupClock, group_membership
from sparsitywatch.weights.motion import spacing
from sparsitywatch.weights.snapshot import Chosen, float64_of, picked

__all__ = ["Signs", "Training", "VitalTracker"]

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
#: Updates of these optimizers are as large as the learning rate times the weights' own size.
_RELATIVE = ("adafactor", "lamb", "lars")
#: Parts of names under which optimizers keep what a weight's own dtype cannot hold.
_KEPT_APART = ("kahan", "comp", "shift", "resid", "error", "master")
#: Names under which optimizers keep a mean of the gradients.
_MEANS = ("exp_avg", "momentum_buffer")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Who trains the parameters.

    Args:
        optimizer: the one that is watched.
        clock: its param groups' sums of learning rate and decay.
        masters: copies of higher precision that it steps on, by the names of the weights.
        others: more optimizers that were seen to step.
    """

    optimizer: torch.optim.Optimizer
    clock: DecayClock
    masters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    others: Iterable[torch.optim.Optimizer] = ()

    def roles(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, int]]:
        """Who trains each parameter, as in ``TensorFacts``, and in which of the watched groups."""
        own = group_membership(self.optimizer, parameters)
        copied = group_membership(self.optimizer, self.masters)
        elsewhere: set[str] = set()
        for other in self.others:
            elsewhere |= group_membership(other, parameters).keys()
        found = {}
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                found[name] = "frozen", -1
            elif name in own:
                found[name] = "own", own[name]
            elif name in copied:
                found[name] = "master", copied[name]
            elif name in elsewhere:
                found[name] = "other", -1
            else:
                # an optimizer with no parameter of the model may step on copies that are not known
                is_known = own or copied or parameter.dtype.itemsize >= 4
                found[name] = ("none" if is_known else "unknown"), -1
        return found


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What is known of every parameter at one snapshot.

    Args:
        facts: in the order of the model.
        since_step: of the snapshot before; -1 if there was none to compare with.
        reason: why there are no facts; empty if there are.
    """

    facts: tuple[TensorFacts, ...] = ()
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

    def values(self) -> np.ndarray:
        """The same as numbers, float32 [N], or float64 if they are stored so."""
        if self.dtype is torch.float32 or self.dtype is torch.float64:
            stored: np.ndarray = self.words.view(f"f{self.dtype.itemsize}")
            return stored
        return float64_of(torch.from_numpy(self.words).view(self.dtype)).astype(np.float32)

    @cached_property
    def nums(self) -> np.ndarray:
        """How many weights each tensor has in the sample, int64 [T]."""
        return np.diff(self.starts, append=len(self.words))

    def slice_of(self, index: int) -> slice:
        """Where the weights of one tensor are."""
        start = int(self.starts[index])
        return slice(start, start + int(self.nums[index]))

    def per_tensor(self, of_weights: np.ndarray, how: np.ufunc = np.add) -> np.ndarray:
        """What each weight has, added up over those of each tensor."""
        wide = of_weights.astype(np.int64) if of_weights.dtype == bool else of_weights
        found: np.ndarray = how.reduceat(wide, self.starts)
        return found


@lru_cache(maxsize=1 << 13)  # of the same tensors at every snapshot
def _chosen(name: str, size: int) -> Chosen:
    """Which weights of a tensor are compared; by its name and size alone."""
    if size <= WHOLE:
        return Chosen(size, None)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    where = torch.randint(size, (SOME,), generator=generator, device="cpu").numpy()
    return Chosen(SOME, np.sort(where))


def sampled(parameters: Mapping[str, torch.Tensor]) -> list[_Part]:
    """The weights of each tensor that are compared; those of a device come in one transfer."""
    by_dtype: dict[torch.dtype, dict[str, torch.Tensor]] = {}
    for name, parameter in parameters.items():
        if parameter.is_floating_point() and parameter.numel() and not parameter.is_meta:
            by_dtype.setdefault(parameter.dtype, {})[name] = parameter.detach()
    parts = []
    for dtype, tensors in by_dtype.items():
        some = {name: _chosen(name, t.numel()) for name, t in tensors.items()}
        nums = np.array([0, *(each.num for each in some.values())])
        words = picked(tensors, some).numpy()
        parts.append(_Part(dtype, tuple(tensors), nums.cumsum()[:-1], words))
    return parts


class VitalTracker:
    """Remembers a sample of every parameter, to say what became of it since.

    A tensor's sample is its own: the same whatever else the model has.
    """

    def __init__(self) -> None:
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
    ) -> Signs:
        """What became of every parameter since the snapshot before; remember this one.

        Args:
            step: optimizer steps done.
            parameters: every one of the model, by name, in its order; tied ones once.
            training: None if nobody knows how they are trained.
        """
        done = [] if training is None else training.clock.since(self._clock)
        trained = None if training is None else self._trained(parameters, training, done)
        shapes = {name: (p.numel(), p.dim()) for name, p in parameters.items()}
        signs = self._seen(step, sampled(parameters), shapes, trained)
        self._clock = DecayClock() if training is None else training.clock.copy()
        return signs

    def _seen(
        self,
        step: int,
        now: Sequence[_Part],
        shapes: Mapping[str, tuple[int, int]],
        trained: _Trained | None,
    ) -> Signs:
        """The facts of a sample; ``shapes`` has the size and the dimensions of each tensor."""
        before, since = self._before, self._step
        if not _fit(self._start, now):
            self._start = list(now)
        if not _fit(before, now):
            self.forget()
            before = []
        names = [name for part in now for name in part.names]
        not_finite = [part.per_tensor(~np.isfinite(part.values())) for part in now]
        columns: dict[str, Sequence[Any]] = {
            "name": names,
            "size": [shapes[name][0] for name in names],
            "num_dims": [shapes[name][1] for name in names],
            "num": [num for part in now for num in part.nums.tolist()],
            "num_not_finite": [num for part in not_finite for num in part.tolist()],
        }
        marks = _marks(now)
        seen = _Seen.of(self._start, before, now) if before else None
        if seen is not None:
            columns |= self._compared(seen, marks)
            columns |= {} if trained is None else trained.columns(names)
        rows = zip(*columns.values(), strict=True)
        facts = {row[0]: TensorFacts(**dict(zip(columns, row, strict=True))) for row in rows}
        if seen is not None and trained is not None:
            facts = self._counted_dead(trained.told(facts, seen))
        if seen is None or not (marks == self._marks[-1][1]).all():
            self._marks.append((step, marks))
        self._before, self._step = list(now), step
        return Signs(facts=tuple(facts[name] for name in shapes if name in facts), since_step=since)

    def _trained(
        self,
        parameters: Mapping[str, torch.Tensor],
        training: Training,
        done: Sequence[GroupClock],
    ) -> _Trained:
        """How each parameter was trained since the snapshot before."""
        groups = training.optimizer.param_groups
        rates = [float(group.get("lr", 0.0)) for group in groups]
        known = self._peaks + [0.0] * (len(rates) - len(self._peaks))
        means = [clock.lr / max(clock.steps, 1) for clock in done]
        self._peaks = [max(each) for each in zip(known, rates, means, strict=False)]
        return _Trained(parameters, training, done, rates, self._peaks)

    def _compared(self, seen: _Seen, marks: np.ndarray) -> dict[str, Sequence[Any]]:
        """What the snapshot before says, by field, in the order of the sample."""
        streaks = self._streaks
        if not streaks:
            for name in ("still", "shrinks", "dead", "steps", "moved"):
                streaks[name] = np.zeros(len(seen.names), np.int64)
        streaks["moved"] |= ~(seen.is_still | seen.is_shrinking)
        for name, is_so in (("still", seen.is_still), ("shrinks", seen.is_shrinking)):
            streaks[name] = np.where(is_so, streaks[name] + 1, 0)
        past = np.array(self._updates).T.tolist() if self._updates else [()] * len(seen.names)
        back = self._back_at(marks, seen)
        self._updates.append(seen.update)
        return {
            "num_still": seen.num_still.tolist(),
            "num_still_since_start": seen.num_start_still.tolist(),
            "update": seen.update.tolist(),
            "rms": seen.rms.tolist(),
            "past_updates": list(map(tuple, past)),
            "has_moved": list(map(bool, streaks["moved"].tolist())),
            "still_for": streaks["still"].tolist(),
            "shrinks_for": streaks["shrinks"].tolist(),
            "back_at": [back.get(i, -1) for i in range(len(seen.names))],
        }

    def _counted_dead(self, facts: dict[str, TensorFacts]) -> dict[str, TensorFacts]:
        """The facts with how long no gradient has been seen; they are in the sample's order."""
        dead, steps = self._streaks["dead"], self._streaks["steps"]
        for i, (name, one) in enumerate(facts.items()):
            if one.gradient not in ("none", "zero") or not one.lr > 0.0 or not one.is_unmoved:
                dead[i] = steps[i] = 0
                continue
            dead[i] += 1
            steps[i] += one.num_steps
            facts[name] = replace(one, dead_for=int(dead[i]), dead_steps=int(steps[i]))
        return facts

    def _back_at(self, marks: np.ndarray, seen: _Seen) -> dict[int, int]:
        """Tensors that have the bits of an earlier snapshot again, by index, and its step."""
        found: dict[int, int] = {}
        moved = ~seen.is_still & ~seen.is_zero  # reset to zero, such as one half of a LoRA
        for step, earlier in list(self._marks)[:-1]:
            for i in np.flatnonzero(moved & (earlier == marks)).tolist():
                found[i] = step  # the latest one stays
        return found

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


def _fit(before: Sequence[_Part], now: Sequence[_Part]) -> bool:
    """Whether two samples are of the same weights."""
    return [(p.dtype, p.names, len(p.words)) for p in before] == [
        (p.dtype, p.names, len(p.words)) for p in now
    ]


def _marks(parts: Sequence[_Part]) -> np.ndarray:
    """A checksum of each tensor's sample, int64 [T]."""
    found = []
    for part in parts:
        data = part.words.data.cast("B")
        ends = [*(part.starts * part.dtype.itemsize).tolist(), len(data)]
        found += [zlib.crc32(data[a:b]) for a, b in itertools.pairwise(ends)]
    return np.array(found, np.int64)


# ------------------------------------------------------------------ two snapshots


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Two samples of the same weights, compared; arrays are [T], by tensor.

    Args:
        parts: before and now, by dtype.
        names: of the tensors.
        num_still, num_start_still: weights whose bits are those of before, and of the start.
        update, rms: of the change, and of the weights before.
        is_still: whether no bit has changed.
        is_shrinking: whether all weights were multiplied by one factor below 1.
        is_zero: whether all weights are 0 now.
    """

    parts: Sequence[tuple[_Part, _Part]]
    names: tuple[str, ...]
    num_still: np.ndarray
    num_start_still: np.ndarray
    update: np.ndarray
    rms: np.ndarray
    is_still: np.ndarray
    is_shrinking: np.ndarray
    is_zero: np.ndarray

    @classmethod
    @np.errstate(all="ignore")  # what is not finite is told beside
    def of(cls, start: Sequence[_Part], before: Sequence[_Part], now: Sequence[_Part]) -> _Seen:
        """What has changed."""
        columns: list[tuple[np.ndarray, ...]] = []
        for first, old, new in zip(start, before, now, strict=True):
            was, is_now = old.values(), new.values()
            num_still = new.per_tensor(old.words == new.words)
            change = is_now - was
            columns.append(
                (
                    num_still,
                    new.per_tensor(first.words == new.words),
                    np.sqrt(new.per_tensor(change * change) / new.nums),
                    np.sqrt(new.per_tensor(was * was) / new.nums),
                    num_still == new.nums,
                    _is_shrinking(new, was, is_now),
                    new.per_tensor(is_now != 0.0) == 0,
                )
            )
        joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
        return cls(
            parts=list(zip(before, now, strict=True)),
            names=tuple(name for part in now for name in part.names),
            num_still=joined[0],
            num_start_still=joined[1],
            update=joined[2].astype(float),
            rms=joined[3].astype(float),
            is_still=joined[4],
            is_shrinking=joined[5],
            is_zero=joined[6],
        )

    def weights_of(self, name: str) -> tuple[torch.dtype, np.ndarray, np.ndarray]:
        """Dtype, values before and whether each of them stands still, for one tensor."""
        for before, now in self.parts:
            if name in now.names:
                where = now.slice_of(now.names.index(name))
                is_still = before.words[where] == now.words[where]
                return now.dtype, before.values()[where].astype(float), is_still
        raise LookupError(name)


def _is_shrinking(part: _Part, was: np.ndarray, is_now: np.ndarray) -> np.ndarray:
    """Of each tensor whether its weights were all multiplied by one factor below 1."""
    ratio = is_now / was
    ratio[was == 0.0] = np.nan
    low, high = part.per_tensor(ratio, np.fmin), part.per_tensor(ratio, np.fmax)
    num = part.per_tensor(was != 0.0)
    eps = torch.finfo(part.dtype).eps
    # each of some thousand steps rounds by up to half an eps, up or down
    found: np.ndarray = (high < 1.0 - eps) & (low > 0.0) & (high - low <= 32 * eps)
    return found & (num >= _FEW)


# ------------------------------------------------------------------ the optimizer and gradients


class _Trained:
    """What the optimizer did in one interval, and what the gradients say of what stands still.

    Args:
        parameters: every one of the model.
        training: who trains them.
        done: what was done to each param group since the snapshot before.
        rates, peaks: learning rates as they stand, and the highest that were seen.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        training: Training,
        done: Sequence[GroupClock],
        rates: Sequence[float],
        peaks: Sequence[float],
    ) -> None:
        self._parameters, self._training = parameters, training
        self._done, self._rates, self._peaks = done, rates, peaks
        self._roles = training.roles(parameters)
        self._lr_of_all = max((clock.lr for clock in done), default=0.0)

    def columns(self, names: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Who trains each tensor, and how, by field."""
        nobody = (0, 0.0, 0.0, 1.0, 0.0)
        groups = [nobody]
        for clock, rate, peak in zip(self._done, self._rates, self._peaks, strict=False):
            mean = clock.lr / max(clock.steps, 1)
            share = rate / peak if peak > 0.0 else 0.0
            rise = rate / mean if mean > 0.0 else 1.0
            decay = clock.decay / clock.lr if clock.lr > 0.0 else 0.0
            groups.append((clock.steps, mean, share, rise, decay))
        roles = [self._roles[name] for name in names]
        found = [groups[group + 1] if group + 1 < len(groups) else nobody for _, group in roles]
        fields = ("num_steps", "lr", "lr_share", "lr_rise", "weight_decay")
        return {
            "trained_by": [role for role, _ in roles],
            **{field: [row[i] for row in found] for i, field in enumerate(fields)},
        }

    def told(self, facts: Mapping[str, TensorFacts], seen: _Seen) -> dict[str, TensorFacts]:
        """The facts with the gradients of what needs a look at them."""
        known = dict(facts)
        odd = {name for name, one in known.items() if self._is_odd(one)}
        if not odd or not self._lr_of_all > 0.0:
            return known
        reference = self._reference(known)
        for name in odd:
            known[name] = self._looked_into(known[name], seen, reference)
        if math.isnan(reference) and not any(known[n].gradient == "some" for n in odd):
            for name in odd:  # all were set to none or zero, perhaps, before this was asked
                known[name] = replace(known[name], gradient=self._remembered(name))
        return known

    @staticmethod
    def _is_odd(one: TensorFacts) -> bool:
        """Whether it needs a look at the gradient: few do in a training that is well."""
        if one.trained_by not in ("own", "master", "none"):
            return False
        by_chance = max(_FEW, one.num // 64)  # some zeros, some that came back
        return one.is_still or one.shrinks_for > 0 or one.num_still > by_chance

    def _reference(self, known: Mapping[str, TensorFacts]) -> float:
        """What the gradient of a tensor that moves is like: its rms; NaN if none has one."""
        moving = [
            one.name
            for one in known.values()
            if one.trained_by in ("own", "master") and not one.is_still and not one.shrinks_for
        ]
        sizes = []
        for name in moving[:: max(len(moving) // _NUM_REFERENCE, 1)]:
            gradient = self._gradient(name)
            if gradient is not None and gradient.any():
                sizes.append(float(np.sqrt(np.mean(np.square(gradient)))))
        return float(np.median(sizes)) if sizes else math.nan

    def _gradient(self, name: str) -> np.ndarray | None:
        """The sampled weights' gradient, float64; None if there is none that can be read."""
        gradient, parameter = self._parameters[name].grad, self._parameters[name]
        if gradient is None or gradient.layout is not torch.strided:
            return None
        if gradient.shape != parameter.shape or not gradient.is_floating_point():
            return None
        found = float64_of(
            picked({name: gradient}, {name: _chosen(name, gradient.numel())}).view(gradient.dtype)
        )
        return found if np.isfinite(found).all() else None

    def _remembered(self, name: str) -> str:
        """Whether there was a gradient, as the optimizer's means of them tell."""
        state = self._training.optimizer.state.get(self._parameters[name], {})
        for key in _MEANS:
            mean = state.get(key)
            if isinstance(mean, torch.Tensor) and mean.layout is torch.strided:
                return "some" if bool(mean.any()) else "zero"
        return "unknown"

    def _looked_into(self, one: TensorFacts, seen: _Seen, reference: float) -> TensorFacts:
        """The facts of a tensor that stands still, in part or whole, or shrinks as one."""
        raw, gradient = self._parameters[one.name].grad, self._gradient(one.name)
        if raw is None:
            return replace(one, gradient="none")
        if gradient is None:
            return replace(one, gradient="unknown")
        if not gradient.any() and (one.is_still or one.shrinks_for) and not bool(raw.any()):
            one = replace(one, gradient="zero")
        else:
            one = replace(one, gradient="some")
        size = float(np.sqrt(np.mean(np.square(gradient))))
        ratio = size / reference if reference > 0.0 else 1.0
        dtype, before, is_still = seen.weights_of(one.name)
        spaces = spacing(before, dtype)
        update = self._update(one, before, gradient)
        is_reached = gradient != 0.0
        later = _STILL_TO_RISE if one.lr_rise > 1.0 + 1e-6 else 1.0
        is_lossy = is_reached & (0.5 * spaces > _FAR_BELOW * later * update)
        if self._keeps_apart(one.name):
            is_lossy[:] = False
        moves = _AT_LEAST * one.num_steps * update / np.maximum(spaces, 1e-300)
        expected = np.minimum(moves, 1.0)
        # decay moves a weight by less than a spacing, and still off its place
        must_decay = ~is_reached & (before != 0.0)
        must_decay &= one.lr * one.weight_decay * np.abs(before) > _SEEN * 0.5 * spaces
        must_decay &= one.trained_by == "own"
        return replace(
            one,
            gradient_ratio=ratio,
            num_gradients=int(is_reached.sum()),
            num_lossy=int(is_lossy.sum()),
            num_lossy_moved=int((is_lossy & ~is_still).sum()),
            num_lossy_expected=float(expected[is_lossy].sum()),
            num_could_round=int((is_reached & (0.5 * spaces > _NOT_FAR_ABOVE * update)).sum()),
            num_not_decayed=int((must_decay & is_still).sum()),
            num_to_decay=int(must_decay.sum()),
        )

    def _update(self, one: TensorFacts, before: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """About the size of one step of each weight, before it is rounded."""
        kind = type(self._training.optimizer).__name__.lower()
        if kind.startswith("sgd"):
            group = self._training.optimizer.param_groups[max(self._roles[one.name][1], 0)]
            momentum = float(group.get("momentum", 0.0))
            found: np.ndarray = one.lr * np.abs(gradient) / (1.0 - min(momentum, 0.99))
            return found
        relative = any(name in kind for name in _RELATIVE)
        return np.full(len(before), one.lr * (max(one.rms, 1e-3) if relative else 1.0))

    def _keeps_apart(self, name: str) -> bool:
        """Whether the optimizer keeps what the weight's own numbers cannot hold."""
        if self._roles[name][0] != "own":
            return True
        keys = self._training.optimizer.state.get(self._parameters[name], {})
        return any(part in str(key).lower() for key in keys for part in _KEPT_APART)
