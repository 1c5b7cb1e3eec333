"""What two snapshots, the gradients and the optimizer say of every parameter of the model.

A fixed sample of each tensor is compared bit for bit with the snapshot before. Of each gradient it
is read whether it is there, and not all zero. What stands still, or shrinks by one factor alone, is
looked at more closely: of a training that is well next to nothing is. What the next step may change
is read in the training's thread; the rest is told from that alone, behind the training. Ranks that
hold parts of the parameters exchange what is read. Arrays are [T], by tensor, or [N], by weight.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from sparsitywatch.pipeline.measure import Examined, Examiner
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.vital.gradients import GradientHistory, GradientSums
from sparsitywatch.vital.judgement import (
    FAR,
    TensorFacts,
    TensorRow,
    VitalReading,
    is_ours,
    seen_by,
    unread,
)
from sparsitywatch.vital.samples import FEW, ROUNDED, SOME, Comparison, Sample, chosen
from sparsitywatch.weights.clock import Clock, Sums, Trainer, Training
from sparsitywatch.weights.motion import spacing
from sparsitywatch.weights.sharded import Tensors, kept_for, local_of, stepped_on
from sparsitywatch.weights.snapshot import float64_of

#: Intervals whose changes are remembered, and snapshots whose marks are.
_NUM_PAST, _NUM_MARKS = 8, 64
#: An update is lost for sure below the spacing divided by twice the first, and may be below it
#: divided by twice the second: sizes of updates are known to within such factors.
_FAR_BELOW, _NOT_FAR_ABOVE = 2.0, 0.125
#: While the learning rate rises, an update counts as lost only if it would be at this multiple.
_STILL_TO_RISE = 30.0
#: Of the weights that random rounding would move, at least this share moves: updates may be smaller
#: than the learning rate. What a gradient itself says is known.
_AT_LEAST = 0.25
#: Decay of a weight must show once it exceeds this many half spacings.
_SEEN = 2.0
#: Steps of SGD below this share of what the tensor moved before, at the same learning rate, are
#: lost to nobody: its gradient has ended.
_ENDED = 0.01
#: Gradients of SGD's steps may swing, and cancel each other in its momentum, by this factor.
_CANCELLED = 4.0
#: Facts that go on from those of the snapshot before.
_CARRIED = (
    "has_moved", "still_for", "shrinks_for", "dead_for", "dead_steps", "alive_steps", "well_at",
    "is_fading", "absence", "is_relieved", "is_within", "num_lossy_moved", "num_lossy_expected",
)  # fmt: skip
#: Facts that an optimizer says of a tensor, in numbers.
_OF_TRAINER = (
    "num_steps", "num_reached", "lr", "lr_share", "lr_rise", "weight_decay", "reach", "has_past",
    "momentum", "shrunk",
)  # fmt: skip
_NO_TRAINER = (0.0,) * len(_OF_TRAINER)
#: Who may train a parameter. Where ranks differ the last one holds: on each of them an optimizer
#: may step on some tensors only.
_ROLES = ("frozen", "none", "unknown", "master", "own")
#: How large its updates are, as of ``Kind.size``.
_SIZES = ("unknown", "relative", "gradient", "lr")


class VitalTracker(Examiner):
    """Remembers a sample of every parameter, to say what became of it since."""

    def __init__(self, reader: ShardedReader = WHOLE_MODEL, reason: str = "") -> None:
        self._reader = reader  # of all parameters
        self._reason = reason  # why they cannot be compared; empty if they can
        self._start = Sample({})
        self._twins: dict[str, str] = {}  # what began as a copy of an embedding, and that
        self._marks: deque[tuple[int, np.ndarray]] = deque(maxlen=_NUM_MARKS)
        self._updates: deque[np.ndarray] = deque(maxlen=_NUM_PAST)
        self._forget()

    def _forget(self) -> None:
        """Compare the next snapshot with nothing: what happened until then is not known."""
        self._before = Sample({})
        self._done: Mapping[str, Sums] = {}
        self._means: Mapping[str, np.ndarray] = {}  # of gradients that were zero, as sampled
        self._step = -1
        self._peaks: dict[str, float] = {}  # highest learning rate of each tensor
        self._carried: dict[str, np.ndarray] = {}
        self._gradients = GradientHistory()
        self._updates.clear()
        self._marks.clear()

    def read(self, step: int, parameters: Tensors, training: Training | None) -> Examined:
        return partial(seen_by, self.look(step, parameters, training))

    @property
    def sampled(self) -> Tensors:
        return self._before.tensors

    def failed(self, reason: str) -> Examined:
        self._forget()
        return unread(reason)

    def look(
        self, step: int, parameters: Tensors, training: Training | None = None
    ) -> Callable[[], VitalReading]:
        """What became of every parameter since the last look, told once, before the next one."""
        if self._reason:
            return partial(VitalReading, reason=self._reason)
        weights = {name: one for name, one in parameters.items() if has_numbers(one)}
        picked = {name: chosen(name, one.numel()) for name, one in weights.items()}
        held = {name: local_of(one) for name, one in weights.items()}
        now = Sample(self._reader.gather_sample(held, picked))
        if self._start.kinds != now.kinds:
            self._start, self._twins = now, _twins(weights)
        if self._before.kinds != now.kinds:
            self._forget()
        facts = TensorFacts(list(now.tensors), len(self._updates))
        facts.num_weights = np.array([one.numel() for one in weights.values()], int)
        pairs = self._twins.items()
        twins = {n for n, of in pairs if not _are_alike(weights[n], weights[of])}
        facts.is_twin = np.array([name in twins for name in weights], bool)
        facts.num_dims = np.array([one.dim() for one in weights.values()], int)
        since, seen, trained, sums = self._step, None, None, None
        is_later = step > since  # a second look at one step says nothing of how long
        facts.well_at[:] = since
        if self._before.tensors:
            seen = Comparison(self._start, self._before, now)
            if training is not None:  # compared here, to know which gradients to look at
                has_stepped = self._tell_trainers(facts, training, weights)
                gradients = Gradients(weights, training.trainers, self._reader)
                trained = _Trained(seen, facts, gradients if has_stepped else None)
                sums = self._sums(facts, parameters, training) if has_stepped else None
        means, self._means = self._means, {} if trained is None else trained.means
        self._before, self._step = now, step
        self._done = {} if training is None else training.done

        def said() -> VitalReading:  # arithmetic that need not hold up the training
            marks = now.marks()
            facts.num = now.num
            facts.num_not_finite = now.count(~np.isfinite(now.values))
            if seen is not None:
                self._compare(facts, seen, marks, is_later=is_later)
                if trained is not None:
                    self._tell(facts, trained, means)
                self._carried = {name: vars(facts)[name].copy() for name in _CARRIED}
            if not self._marks or not (marks == self._marks[-1][1]).all():
                self._marks.append((step, marks))
            gradient, of_tensors = self._gradients.told(sums, facts)
            return VitalReading(
                facts=facts, since_step=since, gradient=gradient, of_tensors=of_tensors
            )

        return said

    def _sums(self, facts: TensorFacts, parameters: Tensors, training: Training) -> GradientSums:
        """The gradients of what an optimizer steps on itself: of a copy they may be scaled."""
        names = facts.name[facts.trained_by == "own"].tolist()
        names += [name for name in training.trainers if parameters[name].is_complex()]
        return GradientSums.of(parameters, names, self._reader, training.before_clip)

    def _compare(
        self, facts: TensorFacts, seen: Comparison, marks: np.ndarray, *, is_later: bool
    ) -> None:
        """Add what the snapshot before says."""
        facts.num_still = seen.num_still
        facts.num_still_since_start = seen.now.count(seen.start.words == seen.now.words)
        is_zero = seen.now.count(seen.now.values == 0.0) == seen.now.num
        with np.errstate(all="ignore"):  # what is not finite is told beside
            facts.update, facts.rms = seen.update, seen.rms
            since_start = seen.before.values - seen.start.values
            facts.from_start = seen.now.root_mean_square(since_start)
            facts.began_at_zero = seen.now.root_mean_square(seen.start.values) == 0.0
            for i in np.flatnonzero(facts.update >= FAR * facts.rms).tolist():
                facts.num_far[i] = seen.num_moved(i, FAR * facts.update[i])
        if self._updates:
            facts.past_updates = np.array(self._updates).T
        if is_later:
            self._updates.append(facts.update.copy())
        with np.errstate(all="ignore"):
            kept = np.repeat(np.exp(-facts.shrunk), seen.now.num) * seen.before.values
            facts.unexplained = seen.now.root_mean_square(seen.now.values - kept)
        facts.unexplained[facts.trained_by == "frozen"] = math.nan
        last = self._last(facts)
        facts.has_moved = last["has_moved"] | ~(seen.is_still | seen.is_shrinking)
        facts.still_for = np.where(seen.is_still, last["still_for"] + is_later, 0)
        facts.shrinks_for = np.where(seen.is_shrinking, last["shrinks_for"] + is_later, 0)
        moved = ~seen.is_still & ~is_zero  # reset to zero, such as one half of a LoRA
        steps, earlier = zip(*self._marks, strict=True)
        is_back = moved & (np.array(earlier[:-1]).reshape(-1, len(marks)) == marks)
        for snapshot in np.flatnonzero(is_back.any(axis=1)).tolist():
            facts.back_at[is_back[snapshot]] = steps[snapshot]  # the latest one stays

    def _tell_trainers(self, facts: TensorFacts, training: Training, parameters: Tensors) -> bool:
        """Add who trains each parameter, and how, on whichever rank; True if any has stepped."""
        # an optimizer with no parameter of the model may step on copies that are not known
        is_blind, done = not training.trainers, self._done_since(training)
        codes: list[tuple[int, int, int, int]] = []
        numbers: list[tuple[float, ...]] = []
        for name, parameter in parameters.items():
            size, row, trainer = "unknown", _NO_TRAINER, training.trainers.get(name)
            if not parameter.requires_grad:
                role = "frozen"
            elif trainer is not None:
                role = "master" if name in training.copied else "own"
                size, row = trainer.kind.size, done[name]
            else:
                role = "unknown" if is_blind and parameter.dtype.itemsize < 4 else "none"
            is_not_decayed = name in training.not_decayed
            codes.append(
                (_ROLES.index(role), _SIZES.index(size), training.has_stepped, is_not_decayed)
            )
            numbers.append(row)
        # of numbers that are not negative the largest one has the largest bits
        both = np.array(codes, np.int64), np.array(numbers, np.float64).view(np.int64)
        columns = np.concatenate([part.reshape(len(codes), -1) for part in both], axis=1)
        united = self._reader.ranks.highest(np.ascontiguousarray(columns.T))
        facts.trained_by, facts.sized_by = np.array(_ROLES)[united[0]], np.array(_SIZES)[united[1]]
        for name, column in zip(_OF_TRAINER, united[4:].view(np.float64), strict=True):
            vars(facts)[name] = column.astype(vars(facts)[name].dtype)
        facts.lr_rise[~is_ours(facts)] = 1.0
        facts.is_not_decayed = united[3] > 0
        return bool(united[2].any())

    def _done_since(self, training: Training) -> dict[str, tuple[float, ...]]:
        """By name what was done to each tensor since the snapshot before, as ``_OF_TRAINER``."""
        found: dict[str, tuple[float, ...]] = {}
        for name, trainer in training.trainers.items():
            done, before = training.done[name], self._done.get(name, Sums())
            clock = done.offered.since(before.offered)
            taken = done.taken.since(before.taken)
            mean = clock.lr / max(clock.steps, 1)
            peak = self._peaks[name] = max(self._peaks.get(name, 0.0), trainer.lr, mean)
            share = trainer.lr / peak if peak > 0.0 else 0.0
            rise = trainer.lr / mean if mean > 0.0 else 1.0
            decay = clock.known_decay / clock.lr if clock.lr > 0.0 else 0.0
            reach = trainer.farthest * clock.lr if clock.lr > 0.0 else math.inf
            past = float(trainer.has_past)
            found[name] = (
                clock.steps, taken.steps, mean, share, rise, decay, reach, past, trainer.momentum,
                -taken.log_shrink,
            )  # fmt: skip
        return found

    def _tell(self, facts: TensorFacts, trained: _Trained, means: Mapping[str, np.ndarray]) -> None:
        """Add how each tensor was trained, and what has gone wrong up to now."""
        last = self._last(facts)
        trained.tell()
        facts.was_within = last["is_within"]
        self._tell_of_gradients(facts, trained.are_gone(means))
        # one weight that moves is no end of losses: they add up from interval to interval
        for name in ("num_lossy_moved", "num_lossy_expected"):
            column = vars(facts)[name]
            vars(facts)[name] = np.where(facts.num_lossy > 0, last[name] + column, 0)

    def _tell_of_gradients(self, facts: TensorFacts, is_gone: np.ndarray) -> None:
        """Add how long each tensor has had gradients, and has had none (of late: ``is_gone``)."""
        last = self._last(facts)
        is_in_steps = is_ours(facts) & (facts.num_steps > 0)
        is_alive = is_in_steps & ~is_gone & (facts.num_reached > 0) & (facts.gradient != "zero")
        has_lived = last["alive_steps"] > 0
        was_away: np.ndarray = last["is_fading"] | (last["dead_for"] > 0)
        has_lasted = np.where(is_gone, was_away, facts.still_for > 0)
        facts.well_at = np.where(has_lasted, last["well_at"], facts.well_at)
        facts.dead_for = np.where(is_gone, last["dead_for"] + 1, 0)
        facts.dead_steps = np.where(is_gone, last["dead_steps"] + facts.num_steps, 0)
        facts.alive_steps = last["alive_steps"] + np.where(is_alive, facts.num_reached, 0)
        # of an interval with gradients at some steps they may have been the first ones
        is_part = is_alive & (facts.num_reached < facts.num_steps)
        facts.is_fading = is_part | (is_in_steps & ~is_gone & ~is_alive)
        missed = last["dead_steps"] + facts.num_steps - facts.num_reached + 1
        is_back = is_alive & was_away & has_lived
        facts.absence = np.maximum(last["absence"], np.where(is_back, missed, 0))
        # where something takes the place of what ends, parts are trained in turn
        is_first = bool(self._carried) and bool((is_alive & ~has_lived).any())
        is_ending = (is_gone | facts.is_fading) & (last["dead_for"] <= 1)
        is_whole = is_alive & ~is_part
        facts.is_relieved = ~is_whole & (last["is_relieved"] | (is_ending & is_first))

    def _last(self, facts: TensorFacts) -> dict[str, np.ndarray]:
        """What goes on from the snapshot before."""
        first = {name: np.zeros_like(vars(facts)[name]) for name in _CARRIED}
        return first | {"well_at": facts.well_at} | self._carried

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": dict(self._start.tensors),
            "twins": dict(self._twins),
            "before": dict(self._before.tensors),
            "done": {n: [list(s.taken), list(s.offered)] for n, s in self._done.items()},
            "step": self._step,
            "peaks": dict(self._peaks),
            "carried": {name: _tensor(column) for name, column in self._carried.items()},
            "updates": list(map(_tensor, self._updates)),
            "gradients": self._gradients.state(),
            "marks": [(step, _tensor(marks)) for step, marks in self._marks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._forget()
        self._start = Sample({name: one.cpu() for name, one in state["start"].items()})
        self._twins = dict(state["twins"])
        self._before = Sample({name: one.cpu() for name, one in state["before"].items()})
        self._done = {n: Sums(Clock(*t), Clock(*o)) for n, (t, o) in state["done"].items()}
        self._step = int(state["step"])
        self._peaks = dict(state["peaks"])
        self._carried = {name: _array(column) for name, column in state["carried"].items()}
        self._updates.extend(map(_array, state["updates"]))
        self._gradients.restore(state.get("gradients", []))
        self._marks.extend((int(step), _array(marks)) for step, marks in state["marks"])


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.cpu().numpy())


def has_numbers(one: torch.Tensor) -> bool:
    """Whether it can be compared."""
    is_there = hasattr(one, "flat_shard") or not one.is_meta  # FSDP1
    return is_there and one.is_floating_point() and one.numel() > 0


#: Names of tables of tokens.
_EMBEDS = re.compile(r"emb|wte|tok|vocab|word|shared", re.IGNORECASE)


def _twins(weights: Tensors) -> dict[str, str]:
    """What has the bits of an embedding, as a head that is to be tied to it, and that one."""
    matrices = {n: one for n, one in weights.items() if one.dim() == 2 and one.requires_grad}
    tables = {name: one for name, one in matrices.items() if _EMBEDS.search(name)}
    return {
        name: of
        for name, one in matrices.items()
        for of, table in tables.items()
        if name not in tables and one.shape == table.shape and _are_alike(one, table)
    }


@torch.no_grad()
def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors that this process holds in part or whole have the same numbers."""
    one, other = (local_of(tensor).detach() for tensor in (one, other))
    is_one = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    if not is_one or not one.numel() or bool((one == one.reshape(-1)[0]).all()):
        return False
    return torch.equal(one, other)


# ------------------------------------------------------------------ gradients

#: Names under which optimizers keep a mean of the gradients.
_MEANS = ("exp_avg", "momentum_buffer")
#: Parts of names under which they keep what a weight's own dtype cannot hold.
_KEPT_APART = ("kahan", "comp", "shift", "resid", "error", "master")


#: What a gradient is. Where ranks differ the last one holds: one may hold nothing of it.
_STATES = ("none", "zero", "some", "unknown")
_NONE, _ZERO, _SOME, _UNKNOWN = range(4)


@dataclass(frozen=True)
class Gradients:
    """Those of a model's parameters after a step; ranks exchange the values of sampled weights."""

    _parameters: Tensors
    _trainers: Mapping[str, Trainer]
    _reader: ShardedReader

    def states(self, names: Sequence[str]) -> np.ndarray:
        """What each of them is, one of ``_STATES``, [T]."""
        with self._reader.ranks.all_or_none("gradients"):
            codes, parts = np.full(len(names), _NONE, np.int64), {}
            for i, name in enumerate(names):
                held = stepped_on(self._parameters[name]).grad
                if held is not None:
                    part = kept_for(self._parameters[name], held)
                    codes[i] = _UNKNOWN
                    if part is not None and part.is_floating_point():
                        parts[i] = part
            for i, has_some in zip(parts, _have_some(list(parts.values())), strict=True):
                codes[i] = _SOME if has_some else _ZERO
        return np.asarray(np.array(_STATES)[self._reader.ranks.highest(codes)])

    def values(self, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Sampled weights' gradients, float64; of tensors that have some."""
        return self._united("gradients", names, lambda n: stepped_on(self._parameters[n]).grad)

    def means(self, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Optimizers' means of the gradients of sampled weights, float64; NaN if none is kept."""
        return self._united("means of gradients", names, self._mean)

    def _united(
        self, what: str, names: Sequence[str], held_for: Callable[[str], torch.Tensor | None]
    ) -> Mapping[str, np.ndarray]:
        """Numbers for the sampled weights of tensors, from what each rank holds."""
        picked = {name: chosen(name, self._parameters[name].numel()) for name in names}
        own: dict[str, np.ndarray] = {}
        with self._reader.ranks.all_or_none(f"{what} of {' '.join(picked)}"):
            for name, some in self._reader.own(picked).items():
                held = held_for(name)
                part = None if held is None else kept_for(self._parameters[name], held)
                own[name] = np.full(some.num, math.nan)
                if part is not None and some.num:
                    own[name] = float64_of(some.of(part).cpu())  # waits for the device
        return self._reader.united(picked, own, np.float64)

    def are_kept_apart(self, names: Sequence[str]) -> np.ndarray:
        """Whether optimizers keep what the weights' own numbers cannot hold, bool [T]."""
        keys = [" ".join(map(str, self._state(name))).lower() for name in names]
        own = np.array([any(part in key for part in _KEPT_APART) for key in keys], np.int64)
        return self._reader.ranks.highest(own) > 0

    def _mean(self, name: str) -> torch.Tensor | None:
        found = map(self._state(name).get, _MEANS)
        return next((one for one in found if torch.is_tensor(one)), None)

    def _state(self, name: str) -> Mapping[str, object]:
        trainer = self._trainers.get(name)
        if trainer is None:
            return {}
        # .get: a defaultdict grows by being asked
        trained = stepped_on(self._parameters[name])
        state: Mapping[str, object] = trainer.optimizer.state.get(trained, {})
        return state


#: Dtypes that numpy has, too.
_OF_NUMPY = (torch.float32, torch.float64, torch.float16)


def _have_some(parts: Sequence[torch.Tensor]) -> list[bool]:
    """Whether each holds anything but zeros; from a device with one transfer."""
    found = [part.is_cpu and _has_some(part) for part in parts]
    for device in {part.device for part in parts if not part.is_cpu}:
        places = [i for i, part in enumerate(parts) if part.device == device]
        said = torch.stack([parts[i].any() for i in places]).tolist()  # waits for the device
        for i, is_so in zip(places, said, strict=True):
            found[i] = is_so
    return found


def _has_some(part: torch.Tensor) -> bool:
    flat: Any = part.detach().reshape(-1)
    flat = flat if flat.dtype not in _OF_NUMPY else flat.numpy()  # in a third of the time
    return bool(flat[:: len(flat) // SOME + 1].any()) or bool(flat.any())


def goes_on_by_itself(before: np.ndarray, weights: np.ndarray, now: np.ndarray, eps: float) -> bool:
    """Whether no gradient came into a mean since it was what it was before."""
    # then it is one factor of what it was, and one of the weights, where decay goes through it: the
    # same two for all weights
    basis = np.stack([before, weights], axis=1)
    if len(now) < FEW or not np.isfinite(basis).all() or not np.isfinite(now).all():
        return False
    scale = np.abs(basis).max(0)
    basis = basis / np.where(scale > 0.0, scale, 1.0)
    rest = now - basis @ np.linalg.lstsq(basis, now, rcond=None)[0]
    return _rms(rest) <= ROUNDED * eps * _rms(now)


# ------------------------------------------------------------------ the optimizer and gradients


class _Trained:
    """What the gradients of one interval say; what is the training's is read when it is made."""

    def __init__(self, seen: Comparison, facts: TensorFacts, gradients: Gradients | None) -> None:
        self._seen, self._facts = seen, facts
        self._is_unmoved = seen.is_still | seen.is_shrinking
        self.is_ours = is_ours(facts)
        self._odd: list[int] = []  # places of the tensors that need a look
        self._are_kept_apart: np.ndarray = np.zeros(0, bool)
        self._usual: list[str] = []  # tensors that move and say what a gradient is like
        self._values: Mapping[str, np.ndarray] = {}
        self.means: Mapping[str, np.ndarray] = {}  # of what has gradients of zero
        self._far: list[int] = []  # places of what SGD has moved by much of its size, if it has
        self._buffers: Mapping[str, np.ndarray] = {}
        if gradients is not None:
            self._look(gradients)
        self._has_some = bool((facts.gradient == "some").any())  # a gradient other than 0

    def _look(self, gradients: Gradients) -> None:
        """Read which gradients there are, and those of what needs a look at them."""
        seen, facts, names = self._seen, self._facts, self._facts.name
        asked = np.flatnonzero(self.is_ours | (facts.trained_by == "none"))
        facts.gradient[asked] = gradients.states(names[asked].tolist())
        by_chance = np.maximum(FEW, seen.now.num // 64)  # some zeros, and some that came back
        is_odd = self._is_unmoved | (seen.num_still > by_chance)
        is_odd &= facts.gradient != ""
        self._odd = np.flatnonzero(is_odd).tolist()
        is_some = facts.gradient == "some"
        usual = names[self.is_ours & ~self._is_unmoved & is_some].tolist()
        is_far = self.is_ours & is_some & (facts.sized_by == "gradient")
        if is_far.any():
            with np.errstate(all="ignore"):
                is_far &= seen.update >= FAR * seen.rms
            self._far = np.flatnonzero(is_far).tolist()
        if self._odd:
            self._usual = usual[:: max(len(usual) // FEW, 1)]  # some are enough
            self._are_kept_apart = gradients.are_kept_apart(names[self._odd].tolist())
        if self._odd or self._far:
            wanted = [*self._usual, *names[(is_odd & is_some) | is_far].tolist()]
            self._values = gradients.values(list(dict.fromkeys(wanted)))
        if self._far:
            self._buffers = gradients.means(names[self._far].tolist())
        # where all were set to none or zero, perhaps before, means tell
        is_zero = (facts.gradient == "zero") & self.is_ours
        if not is_some.any():
            is_zero |= (facts.gradient == "none") & self.is_ours
        if is_zero.any():
            self.means = gradients.means(names[is_zero].tolist())

    def are_gone(self, before: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which had no gradient, or one of zero, in the whole interval; ``before``: means then."""
        seen, facts = self._seen, self._facts
        is_gone: np.ndarray = (facts.gradient == "none") & seen.is_still
        for i in np.flatnonzero(facts.gradient == "zero").tolist():
            name = facts.name[i]
            mean = self._mean_of(i)
            # else it may have been set to zero after the step
            is_true = self._has_some or not np.isfinite(mean).all() or not mean.any()
            is_gone[i] = self._is_unmoved[i] and is_true
            if not is_gone[i] and name in before:
                eps = torch.finfo(seen.now.tensors[name].dtype).eps
                weights = seen.before.values[seen.now.slice_of(i)]
                is_gone[i] = goes_on_by_itself(before[name], weights, mean, eps)
        is_gone[~self.is_ours | (facts.num_steps == 0)] = False
        return is_gone

    def _mean_of(self, index: int) -> np.ndarray:
        """The optimizer's mean of a tensor's gradients, as sampled; NaN where it was not read."""
        return self.means.get(self._facts.name[index], np.full(1, math.nan))

    def tell(self) -> None:
        """Add what the gradients say."""
        facts = self._facts
        self._tell_of_gradients_taken_away()
        sizes = [_rms(self._values[name]) for name in self._usual]
        sizes = [size for size in sizes if math.isfinite(size)]
        reference = float(np.median(sizes)) if sizes else math.nan
        for i, is_kept_apart in zip(self._odd, self._are_kept_apart, strict=True):
            values = self._values.get(facts.name[i], np.zeros(int(facts.num[i])))
            if not np.isfinite(values).all():
                facts.gradient[i] = "unknown"
            if facts.gradient[i] in ("some", "zero"):
                size = _rms(values)
                facts.gradient_ratio[i] = size / reference if reference > 0.0 else 1.0
                self._look_into(facts.row(i), i, values, is_kept_apart=is_kept_apart)
        self._tell_beyond()

    @np.errstate(all="ignore")  # what is not finite is told beside
    def _tell_beyond(self) -> None:
        """Add how many weights moved farther than steps, decay and rounding can have moved them."""
        facts, seen = self._facts, self._seen
        is_relative = self.is_ours & (facts.sized_by == "relative")  # it may grow meanwhile
        grown = np.exp(facts.reach[is_relative]) * np.maximum(facts.rms[is_relative], 1e-3)
        facts.reach[is_relative] *= grown
        for i in self._far:
            facts.reach[i] = self._reach_of_gradients(facts.row(i))
        facts.reach[~self.is_ours] = math.inf
        of_itself = facts.lr * np.nan_to_num(facts.weight_decay) + 2.0 * seen.eps
        of_itself *= facts.num_steps
        # where most weights are beyond it, the root mean square is so by nearly as much
        for i in np.flatnonzero(facts.update > 0.5 * facts.reach).tolist():
            own = np.abs(seen.before.values[seen.now.slice_of(i)])
            facts.num_beyond[i] = seen.num_moved(i, facts.reach[i] + of_itself[i] * own)
        facts.is_within = facts.num_beyond <= 0.5 * facts.num

    def _reach_of_gradients(self, one: TensorRow) -> float:
        """How far steps of SGD go, by the momentum at their end; infinity where that forgets."""
        # a gradient moves a weight at its own step and by what momentum makes of it; what is left
        # of it in the end is the least of the first one
        momentum, num_steps = float(one.momentum), max(int(one.num_steps), 1)
        left = momentum ** (num_steps - 1)
        buffer = self._buffers[one.name] if momentum > 0.0 else self._values[one.name]
        if not (left > 0.0 and momentum < 1.0 and np.isfinite(buffer).all()):
            return math.inf
        times = (1.0 - momentum**num_steps) / ((1.0 - momentum) * left)
        lr = one.lr * max(one.lr_rise, 1.0)
        return float(_CANCELLED * lr * times * _rms(buffer))

    def _tell_of_gradients_taken_away(self) -> None:
        """Where no gradient is left at all, add what the means say of each."""
        facts = self._facts
        if self._has_some:
            return
        # what a step has reached had one, which has been taken away since
        is_away = (facts.gradient == "none") & (facts.num_reached > 0)
        facts.gradient[is_away] = "unknown"
        for i in np.flatnonzero(is_away & self._is_unmoved).tolist():
            mean = self._mean_of(i)
            if np.isfinite(mean).all():
                facts.gradient[i] = "some" if mean.any() else "zero"

    @np.errstate(all="ignore")  # what is not finite is told beside
    def _look_into(
        self, one: TensorRow, index: int, values: np.ndarray, *, is_kept_apart: bool
    ) -> None:
        """What follows for a tensor that stands still, in part or whole, or shrinks as one."""
        is_own, seen = one.trained_by == "own", self._seen
        where = seen.now.slice_of(index)
        before, is_still = seen.before.values[where], seen.is_same[where]
        spaces = spacing(before, seen.now.tensors[one.name].dtype)
        update = _update(one, before, values)
        is_reached = values != 0.0
        later = _STILL_TO_RISE if one.lr_rise > 1.0 + 1e-6 else 1.0
        is_lossy = is_reached & (0.5 * spaces > _FAR_BELOW * later * update)
        if not is_own or is_kept_apart or _has_learned(one, update):
            is_lossy[:] = False
        least = 1.0 if one.sized_by == "gradient" else _AT_LEAST
        moves = least * one.num_steps * update / np.maximum(spaces, 1e-300)
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


def _update(one: TensorRow, before: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """About the size of one step of each weight of a tensor, before it is rounded."""
    if one.sized_by == "gradient":
        return np.asarray(one.lr * np.abs(gradient) / (1.0 - min(one.momentum, 0.99)))
    unit = max(one.rms, 1e-3) if one.sized_by == "relative" else 1.0
    return np.full(len(before), one.lr * unit)


def _has_learned(one: TensorRow, update: np.ndarray) -> bool:
    """Whether updates are small because its gradient has ended with what there was to learn."""
    if one.sized_by != "gradient" or not len(one.past_updates):
        return False
    most = float(one.lr_share * one.past_updates.max())
    return bool(_rms(update) * one.num_steps < _ENDED * most)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
