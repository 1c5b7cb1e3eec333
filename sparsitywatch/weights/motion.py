"""What moved since the last snapshot, on a fixed random sample of the in-scope weights.

A weight is *dormant* between two snapshots if weight decay alone explains its change:
``|w_now - shrink * w_before| <= 1e-3 * (sum of lr)``. Adam moves every weight that gets
any gradient by about lr a step, so a dormant weight got none: it belongs to a dead unit.

These moves have a direction that changes: over an interval they add up to some 0.2 to 0.5 times
the root of the sum of lr squared (measured on small transformers at 25 to 200 steps; median over
the weights that move). A weight passes as dormant *by chance* if it happens to come back to where
it was; as its change has a density that is flat at zero, the share that does so is in proportion
to the tolerance.

Arrays are numpy's: its loops run in the thread that asked, where torch would wake all of its own
for each of many small steps and wait for the last one, beside a training that needs them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from sparsitywatch.errors import StateError
from sparsitywatch.records import DecayProjection, Dormant, MaskOverlap, Movement
from sparsitywatch.weights.clock import DecayClock, GroupClock, OptimizerReading
from sparsitywatch.weights.snapshot import MaskHistory, Sampler, float64_of, removed

__all__ = ["MotionTracker", "Moved", "estimate_shrink", "spacing", "why_not_measurable"]

#: Largest unexplained change of a dormant weight, as a fraction of the sum of lr.
DORMANT_TOLERANCE = 1e-3
#: Where the weights that move do so by less than this times the root of the sum of lr squared
#: (median), dormant weights cannot be distinguished from slow ones. Ordinary: 0.16 and more; after
#: a spike of the learning rate: 0.01 to 0.1.
MIN_SPEED = 0.14
#: What the weights that move do so by, where nothing could be measured.
USUAL_SPEED = 0.35
#: Where more than this share of living weights would pass by chance, nothing is reported.
MAX_CHANCE = 0.15
#: A slow tensor can tell after all if this share of its dormant weights passes ten times finer.
CONCENTRATED = 0.5
#: Advances of the decay clock that a projection is made for: 0 to 2 in steps of 0.1.
ADVANCES = tuple(round(0.1 * k, 1) for k in range(21))
#: Probability that a centred Gaussian lies within a small t, per t in units of the median of
#: its absolute value: 0.6745 * sqrt(2 / pi).
_CHANCE_DENSITY = 0.5382
#: Of fewer weights that move there is no median speed.
_FEW = 20
#: Tensors that cannot tell may hold this share of the sample; above it nothing is told.
_MAX_UNKNOWN = 0.05
#: Bits of a float64 that hold its exponent.
_EXPONENT = np.uint64(0x7FF << 52)

SLOW = "updates are far smaller than the learning rate"
COARSE = "the weights' precision is too coarse for updates of this size"
COARSE_DECAY = "decay is rounded to the weights' precision at each step"
FAR = "the snapshots are so far apart that too many weights pass by chance"
WIPED = "decay alone wipes the weights out"
STILL = "no in-scope weight was trained since"
NO_PILE = "no weights shrank by one factor, so that decay cannot be told from gradients"


def why_not_measurable(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Why dormant weights cannot be told, by param group; empty where they can.

    The rule needs updates of about lr for every weight with a gradient (the Adam family
    and Lion, not SGD), and decay that is decoupled from the gradient.
    """
    name = type(optimizer).__name__
    lower, groups = name.lower(), optimizer.param_groups
    if "adam" not in lower and "lion" not in lower:
        return (f"updates of {name} are not of the size of lr",) * len(groups)
    if "adamw" in lower or "lion" in lower:
        return ("",) * len(groups)
    found = []
    for group in groups:
        is_coupled = group.get("weight_decay", 0.0) and not group.get("decoupled_weight_decay")
        why = f"weight decay of {name} is part of the gradient, not decoupled"
        found.append(why if is_coupled else "")
    return tuple(found)


@dataclass(frozen=True)
class Moved:
    """What one snapshot says about motion.

    Args:
        dormant, movement, masks: as they are recorded.
        layers: dormant fraction by tensor; a tensor that cannot tell is absent.
    """

    dormant: Dormant
    movement: Movement
    layers: Mapping[str, float] = field(default_factory=dict)
    masks: MaskOverlap | None = None


class MotionTracker:
    """Remembers a sample of the weights, and masks of it, to compare the next snapshot with.

    Args:
        num_samples: size of the sample; None, or more than there are: every in-scope weight.
        seed: of the sample's own generator; the same model gives the same sample.

    ``sampler`` takes the sample of a snapshot.
    """

    def __init__(self, num_samples: int | None = 1_000_000, seed: int = 0) -> None:
        self.sampler, self._masks = Sampler(num_samples, seed), MaskHistory()
        self.forget()

    @classmethod
    def of(cls, num_samples: int | None) -> MotionTracker | None:
        """One of the size that is asked for; None if that is 0."""
        return None if num_samples == 0 else cls(num_samples)

    def forget(self) -> None:
        """What moves until the next snapshot is not known: what was done meanwhile is not."""
        self._before: dict[str, torch.Tensor] = {}
        self._clock, self._step = DecayClock(), -1

    def compare(
        self,
        step: int,
        sample: Mapping[str, torch.Tensor],
        mask_thresholds: Sequence[float] = (),
        optimizer: OptimizerReading | None = None,
        near_zero: Mapping[str, float] | None = None,
    ) -> Moved:
        """Compare a snapshot with the one before, and remember it.

        Args:
            step: optimizer steps done.
            sample: what ``sampler`` took of the weights, by name.
            mask_thresholds: below which a weight would go, at each of ``MASK_LEVELS``; empty if
                that is not known.
            optimizer: what it has done; None if nothing is known of it, as in a replay: shrink
                and size of the updates are then estimated from the two samples.
            near_zero: below which a weight is near zero, by name, for the projection of their
                decay; without them there is none.
        """
        since, before = self._step, self._before
        num_sampled, masks = sum(map(torch.numel, sample.values())), None
        advance = math.nan
        if optimizer is None:
            motions, advance = _compared_without_optimizer(before, sample, step - since)
        else:
            motions = _compared(before, sample, self._clock, optimizer)
        clock = None if optimizer is None else optimizer.clock
        self._before, self._clock, self._step = dict(sample), clock or DecayClock(), step
        if motions:
            ahead = decay_projection(motions, sample, near_zero) if near_zero else None
            moved = _moved(motions, since, ahead)
            if optimizer is None:
                told = replace(moved.dormant, estimated=True, estimated_advance=advance)
                moved = replace(moved, dormant=told)
        else:
            moved = _unmeasured(STILL if before else "no earlier snapshot", num_sampled, since)
        if mask_thresholds:
            masks = self._masks.update(step, removed(sample, mask_thresholds), num_sampled)
        return replace(moved, masks=masks)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors that ``load_state_dict`` goes on from: ``num_samples`` weights."""
        motion = {
            "seed": self.sampler.seed,
            "num_samples": self.sampler.num_samples,
            "step": self._step,
            "clock": self._clock.state_dict(),
            "before": dict(self._before),
        }
        masks = self._masks.state_dict()
        return {
            "motion": motion,
            "masks": {k: torch.as_tensor(v, device="cpu") for k, v in masks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing.
        """
        motion = state["motion"]
        for key in ("seed", "num_samples", "step", "clock", "before"):
            if key not in motion:
                raise StateError(f"Expected key {key!r} in the motion's state, got {list(motion)}.")
        size = motion["num_samples"]
        self.sampler = Sampler(None if size is None else int(size), int(motion["seed"]))
        self._clock, self._step = DecayClock(), int(motion["step"])
        self._clock.load_state_dict(motion["clock"])
        self._before = {name: t.clone() for name, t in motion["before"].items()}
        self._masks.load_state_dict({k: v.numpy() for k, v in state["masks"].items()})


def _compared(
    before: Mapping[str, torch.Tensor],
    now: Mapping[str, torch.Tensor],
    clock_before: DecayClock,
    optimizer: OptimizerReading,
) -> dict[str, TensorMotion]:
    """The motion of each tensor that the optimizer has trained since; others tell nothing."""
    found: dict[str, TensorMotion] = {}
    if not before or optimizer.clock is None:
        return found
    done = optimizer.clock.since(clock_before)
    for name, tensor in now.items():
        group = optimizer.membership.get(name, len(done))
        if group < len(done) and done[group].lr > 0.0:
            found[name] = motion_of(
                float64_of(before[name]),
                float64_of(tensor),
                done[group],
                dtype=tensor.dtype,
                has_master=name in optimizer.masters,
                # none are given where the rule holds for each group
                not_measurable=(optimizer.not_measurable or ("",) * len(done))[group],
            )
    return found


def _compared_without_optimizer(
    before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor], num_steps: int
) -> tuple[dict[str, TensorMotion], float]:
    """The motion of each tensor that moved, as far as the two samples tell what was done.

    And by how much the decay clock advanced; NaN if they do not tell.
    """
    if not before:
        return {}, math.nan
    earlier, later = {}, {}
    for name, tensor in now.items():
        earlier[name], values = float64_of(before[name]), float64_of(tensor)
        if not np.array_equal(values, earlier[name]):
            later[name] = values
    eps = max((torch.finfo(tensor.dtype).eps for tensor in now.values()), default=0.0)
    shrink = estimate_shrink(earlier, later, num_steps, eps)
    motions = {
        name: motion_of(
            earlier[name],
            values,
            shrink.clock,
            dtype=now[name].dtype,
            has_master=True,  # a file does not tell; of a copy, rounding explains less
            not_measurable=shrink.reason,
        )
        for name, values in later.items()
    }
    return motions, math.nan if shrink.reason else shrink.clock.decay


def _moved(motions: Mapping[str, TensorMotion], since: int, ahead: DecayProjection | None) -> Moved:
    """The tensors' motions as one."""
    total = seen = num_flips = num_dormant = 0
    change = size = chance = 0.0
    layers: dict[str, float] = {}
    reasons: Counter[str] = Counter()
    for name, motion in motions.items():
        num = len(motion.dormant)
        total += num
        num_flips += motion.num_flips
        change += motion.change
        size += motion.size
        if motion.reason:
            reasons[motion.reason] += 1
            continue
        seen += num
        num_dormant += int(motion.dormant.sum())
        chance += num * motion.chance
        layers[name] = float(motion.dormant.mean())
    movement = Movement(
        update_to_weight=math.sqrt(change / size) if size > 0 else math.nan,
        sign_flips=num_flips / total,
        num_sampled=total,
        since_step=since,
    )
    if seen < (1.0 - _MAX_UNKNOWN) * total:
        reason, count = reasons.most_common(1)[0]
        where = "" if count == len(motions) else f" in {count} of {len(motions)} tensors"
        return Moved(_unmeasured(reason + where, total, since).dormant, movement, layers)
    dormant = Dormant(
        fraction=num_dormant / seen,
        num_sampled=seen,
        since_step=since,
        chance=chance / seen,
        projection=ahead,
    )
    return Moved(dormant, movement, layers)


def _unmeasured(reason: str, num_sampled: int, since: int) -> Moved:
    """What a snapshot says that cannot be compared with the one before."""
    nan = math.nan
    dormant = Dormant(fraction=nan, num_sampled=num_sampled, since_step=since, reason=reason)
    movement = Movement(
        update_to_weight=nan, sign_flips=nan, num_sampled=num_sampled, since_step=since
    )
    return Moved(dormant, movement)


# ------------------------------------------------------------------ one tensor


@dataclass(frozen=True)
class TensorMotion:
    """What moved in one tensor.

    Args:
        dormant: bool [N], weights that pass as dormant; none where the optimizer forbids to tell.
        chance: share of living weights that would pass by chance; NaN if not known.
        change: sum of squares of the change that decay does not explain.
        size: sum of squares of the weights before.
        num_flips: how many weights changed their sign.
        log_shrink: logarithm of what decay alone has multiplied the weights with.
        decay: by how much the decay clock advanced.
        reason: why dormant weights cannot be told; empty if they can.
    """

    dormant: np.ndarray
    chance: float
    change: float
    size: float
    num_flips: int
    log_shrink: float
    decay: float
    reason: str = ""


@np.errstate(all="ignore")  # what is not finite is not dormant
def motion_of(
    before: np.ndarray,
    now: np.ndarray,
    between: GroupClock,
    *,
    dtype: torch.dtype = torch.float32,
    has_master: bool = False,
    not_measurable: str = "",
) -> TensorMotion:
    """Which weights only decay has moved, and how far the others went.

    Args:
        before, now: float64 [N], the same weights at two snapshots.
        between: what the optimizer did to all of them in between.
        dtype: that they are stored in.
        has_master: the optimizer steps on a copy of higher precision; else it rounds to
            ``dtype`` at each step.
        not_measurable: why dormant weights cannot be told under this optimizer. All change then
            counts as unexplained.
    """
    log_shrink, why = (0.0, not_measurable) if not_measurable else (between.log_shrink, "")
    if not why and not has_master and dtype.itemsize < 4 and between.decay > 0:
        # a decay of less than half a spacing is rounded away, step by step
        if between.decay / max(between.steps, 1) < torch.finfo(dtype).eps / 4:
            log_shrink = 0.0
        else:
            why = COARSE_DECAY
    if not math.isfinite(log_shrink):
        log_shrink, why = 0.0, WIPED
    change = unexplained_change(before, now, log_shrink)
    if why:  # then nobody asks which, and telling them is most of the work
        dormant, chance = np.zeros(len(change), bool), math.nan
    else:
        rounding = _rounding(before, now, between.steps, dtype, has_master=has_master)
        allowed = DORMANT_TOLERANCE * between.lr + rounding
        dormant = change <= allowed
        finer = int((change <= 0.1 * DORMANT_TOLERANCE * between.lr + rounding).sum())
        chance, slow = _chance(change[~dormant], allowed, finer, between)
        why = _too_coarse(before, rounding, between, dtype, has_master=has_master) or slow
    return TensorMotion(
        dormant=dormant,
        chance=chance,
        change=float(np.square(change).sum()),
        size=float(np.square(before).sum()),
        num_flips=int(np.count_nonzero(before * now < 0)),
        log_shrink=log_shrink,
        decay=between.decay,
        reason=why,
    )


def unexplained_change(before: np.ndarray, now: np.ndarray, log_shrink: float) -> np.ndarray:
    """Magnitude of the change that shrinking by ``exp(log_shrink)`` does not explain.

    >>> one = np.ones(1)
    >>> unexplained_change(one, 0.5 * one, math.log(0.5)).item()
    0.0
    """
    change: np.ndarray = before * -math.exp(log_shrink)
    change += now  # in place: fresh memory costs more than the arithmetic
    np.abs(change, out=change)
    return change


def median(values: np.ndarray) -> float:
    """The middle one of an odd number of values, else the lower of the two; NaN without any.

    >>> median(np.array([3.0, 1.0, 2.0, 4.0]))
    2.0
    """
    if not len(values):
        return math.nan
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])


def spacing(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Distance of the neighbouring numbers of ``dtype`` at each value.

    >>> spacing(np.array([1.0, 1.5, 2.0]), torch.bfloat16).tolist()
    [0.0078125, 0.0078125, 0.015625]
    """
    info = torch.finfo(dtype)
    # the power of two at or below a number is what is left of it without its significand
    spacing: np.ndarray = np.abs(values)
    np.maximum(spacing, info.tiny, out=spacing)
    bits = spacing.view(np.uint64)
    bits &= _EXPONENT
    spacing *= info.eps
    return spacing


def _rounding(
    before: np.ndarray, now: np.ndarray, steps: int, dtype: torch.dtype, *, has_master: bool
) -> np.ndarray:
    """What rounding alone may change.

    Of a copy: half a spacing at either snapshot. Of the weights themselves: half a spacing at each
    step, up or down, which adds up as a random walk; what gets no gradient and is stored in 16
    bits stays exactly what it is.
    """
    if has_master:
        halves = spacing(before, dtype)
        halves += spacing(now, dtype)
        halves *= 0.5
        return halves
    if dtype.itemsize < 4:
        return np.zeros_like(before)
    walk: np.ndarray = np.abs(before) * (math.sqrt(max(steps, 1)) * torch.finfo(dtype).eps)
    return walk


def _too_coarse(
    before: np.ndarray,
    rounding: np.ndarray,
    between: GroupClock,
    dtype: torch.dtype,
    *,
    has_master: bool,
) -> str:
    """Why the stored numbers cannot show what a living weight would do; empty if they can."""
    if has_master or dtype.itemsize >= 4:
        moves = USUAL_SPEED * math.sqrt(between.lr_squared)
        share = np.minimum(_CHANCE_DENSITY * rounding / max(moves, 1e-300), 1.0).mean()
    else:  # an update of less than half a spacing is lost
        typical = math.sqrt(between.lr_squared / max(between.steps, 1))
        share = (spacing(before, dtype) > typical).mean()
    return COARSE if float(share) > MAX_CHANCE else ""


def _chance(
    moving: np.ndarray, allowed: np.ndarray, finer: int, between: GroupClock
) -> tuple[float, str]:
    """The share of living weights that pass by chance, and why it would be too large.

    Args:
        moving: unexplained change of the weights that do not pass as dormant.
        allowed: how much is allowed to each weight.
        finer: how many would pass if the tolerance were ten times finer.
        between: what the optimizer did.
    """
    if len(moving) < _FEW:
        # as good as all stand still; where they do so exactly, they are dormant
        typical, is_slow = USUAL_SPEED * math.sqrt(between.lr_squared), False
    else:
        typical = median(moving)
        is_slow = typical < MIN_SPEED * math.sqrt(between.lr_squared)
    share = _CHANCE_DENSITY * allowed
    share /= max(typical, 1e-300)
    chance = float(np.minimum(share, 1.0, out=share).mean())
    if finer >= CONCENTRATED * max(len(allowed) - len(moving), 1):
        return chance, ""
    return chance, SLOW if is_slow else FAR if chance > MAX_CHANCE else ""


# ------------------------------------------------------------------ the projection


@np.errstate(all="ignore")  # a weight of exactly zero has been near zero for ever
def decay_projection(
    motions: Mapping[str, TensorMotion],
    now: Mapping[str, torch.Tensor],
    thresholds: Mapping[str, float],
) -> DecayProjection | None:
    """The share of the weights that is dormant and will be near zero, by the clock's advance.

    None if the decay clock stands still, or a threshold of a tensor is not known.
    """
    known: dict[str, TensorMotion] = {}
    total, advance = 0, 0.0
    for name, motion in motions.items():
        if motion.reason:
            continue
        if not thresholds.get(name, 0.0) > 0.0:
            return None
        known[name] = motion
        total += len(motion.dormant)
        advance += motion.decay * len(motion.dormant)
    if advance <= 0.0:
        return None
    grid = np.array(ADVANCES)
    dormant, entering, weight_of_all = np.zeros(len(grid)), np.zeros(len(grid)), 0.0
    for name, motion in known.items():
        rate = -motion.log_shrink / (advance / total)  # of this tensor's clock to the mean one
        far = np.log(np.abs(float64_of(now[name])) / thresholds[name])
        # by how much the mean clock advances until a weight is near zero
        due = np.where(far <= 0.0, 0.0, far / rate if rate > 0.0 else math.inf)
        size, num_dormant = len(due), int(np.count_nonzero(motion.dormant))
        num_living = size - num_dormant
        share = _below(due[~motion.dormant], grid) / max(num_living, 1)
        by_chance = min(motion.chance * num_living, float(num_dormant))
        passing = _below(due[motion.dormant], grid)
        dormant += np.maximum(passing - by_chance * share, 0.0) / total
        # tensors where weights go dormant are where more will
        weight = max(num_dormant - 2.0 * by_chance, 0.0) + 1e-6 * size
        entering += weight * share
        weight_of_all += weight
    return DecayProjection(
        advance=ADVANCES,
        dormant=_rounded(np.maximum.accumulate(dormant)),
        entering=_rounded(entering / weight_of_all),
    )


def _below(due: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """How many are due at each point of the grid."""
    counts = np.bincount(grid.searchsorted(due), minlength=len(grid) + 1)
    below: np.ndarray = counts[: len(grid)].cumsum()
    return below


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """To the six digits that are recorded."""
    return tuple(map(float, map("{:.6g}".format, values.tolist())))


# ------------------------------------------------------------------ without an optimizer

#: Log ratios that differ by less agree; a few spacings of the stored dtype if that is more.
_AGREEING = 1e-4
_SPACINGS = 4.0
#: Windows on either side, of the same width, that say how many agree by chance.
_NEIGHBOURS = 20
#: A pile is one if it stands out by so many standard deviations of what chance gives, holds so
#: many times what the windows beside it do (the ratios of bfloat16 numbers clump by themselves),
#: and at least this share of the weights.
_MIN_DEVIATIONS, _MIN_TIMES, _MIN_SHARE, _MIN_COUNT = 8.0, 3.0, 2e-3, 30

#: So many weights tell the factor; of more of them an even part is looked at.
_ENOUGH = 1 << 18
#: One in so many values is where a window begins that is always counted.
_EVERY = 512


@dataclass(frozen=True)
class Shrink:
    """What decay and gradients did between two snapshots, as estimated.

    Args:
        clock: as if the optimizer had been watched: log_shrink, the sums of lr and its square
            and the decay clock, all of them estimates.
        num_agreeing: weights whose ratio is within the pile, of those that were looked at.
        reason: why there is no estimate; empty if there is one. Then ``clock.log_shrink`` is 0.
    """

    clock: GroupClock
    num_agreeing: int
    reason: str = ""


@np.errstate(all="ignore")  # ratios of what is not finite are in no pile
def estimate_shrink(
    before: Mapping[str, np.ndarray],
    now: Mapping[str, np.ndarray],
    num_steps: int,
    eps: float = torch.finfo(torch.float32).eps,
) -> Shrink:
    """The factor that weights without gradient shrank by, and the size of the updates.

    The sum of lr is what Adam would need for weights to move as far as they did; it sets the
    tolerance for dormant weights. One factor is assumed for all tensors.

    Args:
        before, now: float64 [N], the same weights at two snapshots, by name; those of
            ``before`` that are not in ``now`` are left out.
        num_steps: optimizer steps in between.
        eps: of the coarsest dtype that they are stored in.
    """
    every = max(sum(map(len, now.values())) // _ENOUGH, 1)
    earlier = np.concatenate([np.empty(0), *(before[name][::every] for name in now)])
    later = np.concatenate([np.empty(0), *(values[::every] for values in now.values())])
    width = max(_AGREEING, _SPACINGS * eps)
    is_signed_alike = earlier * later > 0
    ratios = later[is_signed_alike]
    ratios /= earlier[is_signed_alike]
    np.log(ratios, out=ratios)
    ratios.sort()
    middle, count, by_chance = _pile(ratios, width)
    enough = max(_MIN_COUNT, _MIN_SHARE * len(earlier))
    stands_out = count - by_chance >= _MIN_DEVIATIONS * math.sqrt(by_chance + 1.0)
    # nothing grows by decay
    is_pile = count >= max(enough, _MIN_TIMES * by_chance) and stands_out and middle < width
    log_shrink = middle if is_pile else 0.0
    change = unexplained_change(earlier, later, log_shrink)
    moving = change[change > width * np.abs(earlier)] if is_pile else change
    # random steps of size lr lead sqrt(steps) * lr away
    typical = median(moving) / USUAL_SPEED if len(moving) else 0.0
    clock = GroupClock(
        lr=typical * math.sqrt(max(num_steps, 1)),
        decay=max(0.0, -log_shrink),  # 0, not -0, where nothing shrank
        log_shrink=log_shrink,
        lr_squared=typical**2,
        steps=num_steps,
    )
    return Shrink(clock, count, "" if is_pile else NO_PILE)


def _pile(ratios: np.ndarray, width: float) -> tuple[float, int, float]:
    """Where sorted values pile up.

    Returns:
        The median of the fullest window of this width, how many values it holds, and the mean
        number in the windows beside it.

    >>> _pile(np.array([-99.0, 0.0, 0.25, 0.5, 99.0]), 0.75)
    (0.25, 3, 0.0)
    """
    if not len(ratios):
        return 0.0, 0, 0.0
    # the fullest of some windows: one that begins elsewhere is worth a count if it holds as many
    some = np.arange(0, len(ratios), _EVERY)
    least = int((ratios.searchsorted(ratios[some] + width, side="right") - some).max())
    is_full = ratios[least - 1 :] <= ratios[: len(ratios) - least + 1] + width
    starts = np.flatnonzero(is_full)
    counts = ratios.searchsorted(ratios[starts] + width, side="right") - starts
    first, count = int(starts[counts.argmax()]), int(counts.max())
    last = first + count - 1
    around = [ratios[first] - _NEIGHBOURS * width, ratios[last] + _NEIGHBOURS * width]
    low, high = ratios.searchsorted(around).tolist()
    beside = max(high - low - count, 0) / (2.0 * _NEIGHBOURS)
    return float(ratios[first + (count - 1) // 2]), count, beside
