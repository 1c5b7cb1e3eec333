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
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from sparsitywatch.errors import StateError
from sparsitywatch.records import DecayProjection, Dormant, MaskOverlap, Movement
from sparsitywatch.records.curve import six_digits
from sparsitywatch.records.run import block_of
from sparsitywatch.weights.clock import FEW_STEPS, Clock, OptimizerReading
from sparsitywatch.weights.layout import REPARAMETRIZED, Place
from sparsitywatch.weights.snapshot import Sampler, float64_of

#: Largest unexplained change of a dormant weight, as a fraction of the sum of lr.
DORMANT_TOLERANCE = 1e-3
#: Where the weights that move do so by less than this times the root of the sum of lr squared
#: (median), a dormant weight may change by less in proportion, or slow ones would pass. Ordinary:
#: 0.16 and more; after a spike of the learning rate, or in a rare expert: 0.01 to 0.1.
MIN_SPEED = 0.14
#: A slow tensor can tell by itself if this share of its dormant weights passes ten times finer.
CONCENTRATED = 0.5
#: What the weights that move do so by, where nothing could be measured.
USUAL_SPEED = 0.35
#: Where more than this share of living weights would pass by chance, nothing is reported.
MAX_CHANCE = 0.15
#: Advances of the decay clock that a projection is made for: 0 to 2 in steps of 0.1.
ADVANCES = tuple(round(0.1 * k, 1) for k in range(21))
#: Probability that a centred Gaussian lies within a small t, per t in units of the median of
#: its absolute value: 0.6745 * sqrt(2 / pi).
_CHANCE_DENSITY = 0.5382
#: Of fewer weights that move there is no median speed; so many tell it to within some per cent.
_FEW, _TYPICAL = 20, 2048
#: Tensors that cannot tell may hold this share of the sample; above it nothing is told. Of a tensor
#: of which no larger share moves nobody knows whether the rest is dormant or has come to rest.
_MAX_UNKNOWN = 0.05
#: An expert of a block, and so many blocks or experts that are told from either end.
_EXPERT, _MOST_BLOCKS = re.compile(r".*?experts?\.\d+"), 16
#: Bits of a float64 that hold its exponent.
_EXPONENT = np.uint64(0x7FF << 52)

#: Sparsities whose masks are compared: a sparse structure is there once they stay the same.
MASK_LEVELS = (0.5, 0.7, 0.9)

ROUNDED = "rounding to the weights' own precision can hold them still"
COARSE = "the weights' precision is too coarse for updates of this size"
SLOW = "updates are far smaller than the learning rate"
LEFT_OUT = "the latest steps have left them out"
FAR = "the snapshots are so far apart that too many weights pass by chance"
WIPED = "decay alone wipes the weights out"
STILL = "no in-scope weight was trained since"
NO_PILE = "no weights shrank by one factor, so that decay cannot be told from gradients"


#: The sampled weights by name, float64 [N] each.
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class MotionReading:
    """What one snapshot says about motion, as it is recorded."""

    dormant: Dormant
    movement: Movement
    layers: Mapping[str, float]  # dormant fraction by tensor; one that cannot tell is absent
    masks: MaskOverlap | None = None


class MotionTracker:
    """Remembers a sample of the weights, and masks of it, to compare the next snapshot with."""

    def __init__(self, num_samples: int | None = 1_000_000, seed: int = 0) -> None:
        self.sampler = Sampler(num_samples, seed)  # takes the sample of a snapshot
        self._masked_step = -1
        self._removed = np.empty((0, 0), np.uint8)
        self.forget()

    @classmethod
    def of(cls, num_samples: int | None) -> MotionTracker | None:
        """One of the size that is asked for; None if that is 0."""
        return None if num_samples == 0 else cls(num_samples)

    def forget(self) -> None:
        """What moves until the next snapshot is not known: what was done meanwhile is not."""
        self._step = -1
        self._clocks: Mapping[str, Clock] = {}
        self._before: dict[str, torch.Tensor] = {}

    def compare(
        self,
        step: int,
        sample: Mapping[str, torch.Tensor],
        mask_thresholds: Sequence[float] = (),  # of what would go at each of ``MASK_LEVELS``
        optimizer: OptimizerReading | None = None,
        near_zero: Mapping[str, float] | None = None,  # by name, to project their decay
    ) -> MotionReading:
        """Compare a snapshot with the one before, and remember it; thresholds are largest ones."""
        # without an optimizer, as in a replay, shrink and size of the updates are estimated
        values, now = _values_of(sample)
        _, before = _values_of(self._before)
        told: dict[str, Any] = {}
        if optimizer is not None:
            between = _between(optimizer, self._clocks) if before else {}
        else:
            eps = max((torch.finfo(tensor.dtype).eps for tensor in sample.values()), default=0.0)
            between, advance = _estimated_between(before, now, step - self._step, eps)
            told = {"estimated": True, "estimated_advance": advance}
        missed = optimizer.missed if optimizer is not None and between else {}
        motions = {}
        for name, own in now.items():
            if name in between:
                why = REPARAMETRIZED if Place.of(name).is_raw else ""
                done = between[name]._replace(why_not=between[name].why_not or why)
                motions[name] = motion_of(before[name], own, done, sample[name].dtype)
            elif name in missed:
                is_dormant = missed[name] >= FEW_STEPS and np.array_equal(before[name], own)
                motions[name] = TensorMotion(
                    dormant=np.ones(len(own), bool),
                    size=float(np.square(own).sum()),
                    reason="" if is_dormant else LEFT_OUT,
                )
        dormant, movement, layers = _moved(
            motions, len(values), self._step, STILL if before else "no earlier snapshot"
        )
        if motions and near_zero and not dormant.reason:
            told["projection"] = decay_projection(motions, now, near_zero)
        masks = None
        if mask_thresholds:
            bits = removed(np.abs(values, out=values), mask_thresholds)
            masks = self._compare_masks(step, bits, len(values))
        self._step = step
        self._clocks = {} if optimizer is None else optimizer.clocks
        self._before = dict(sample)
        return MotionReading(replace(dormant, **told if motions else {}), movement, layers, masks)

    def _compare_masks(self, step: int, bits: np.ndarray, num_sampled: int) -> MaskOverlap:
        """Of what pruning would have removed at the last snapshot, how much it would again."""
        since, before = self._masked_step, self._removed
        self._masked_step, self._removed = step, bits
        if before.shape == bits.shape:
            found = tuple(map(overlap, before, bits))
        else:
            since, found = -1, (math.nan,) * len(bits)
        return MaskOverlap(
            level=MASK_LEVELS, overlap=found, num_sampled=num_sampled, since_step=since
        )

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors that ``load_state_dict`` goes on from: ``num_samples`` weights."""
        return {
            "motion": {
                "seed": self.sampler.seed,
                "num_samples": self.sampler.num_samples,
                "step": self._step,
                "clocks": {name: list(clock) for name, clock in self._clocks.items()},
                "before": dict(self._before),
            },
            "masks": {
                "step": torch.as_tensor(self._masked_step, device="cpu"),
                "removed": torch.as_tensor(self._removed, device="cpu"),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; a StateError if a key is missing."""
        motion = state["motion"]
        for key in ("seed", "num_samples", "step", "clocks", "before"):
            if key not in motion:
                raise StateError(f"Expected key {key!r} in the motion's state, got {list(motion)}.")
        size = motion["num_samples"]
        self.sampler = Sampler(None if size is None else int(size), int(motion["seed"]))
        self._step = int(motion["step"])
        self._clocks = {name: Clock(*sums) for name, sums in motion["clocks"].items()}
        self._before = {name: t.clone() for name, t in motion["before"].items()}
        self._masked_step = int(state["masks"]["step"])
        self._removed = state["masks"]["removed"].numpy().copy()


def _values_of(sample: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The values of sampled weights, float64: of all tensors, and the parts of it by name."""
    values = float64_of(*sample.values())
    ends = np.cumsum([*map(len, sample.values())], dtype=int)
    return values, dict(zip(sample, np.split(values, ends[:-1]), strict=False))


class Between(NamedTuple):
    """What the optimizer did to a tensor between two snapshots."""

    clock: Clock
    has_master: bool = False  # it steps on a copy of higher precision; else it rounds at each step
    why_not: str = ""  # dormant weights cannot be told: all change then counts as unexplained


def _between(optimizer: OptimizerReading, earlier: Mapping[str, Clock]) -> dict[str, Between]:
    """By the names of the tensors that were trained since; the others tell nothing."""
    found: dict[str, Between] = {}
    for name, clock in optimizer.clocks.items():
        since = clock.since(earlier.get(name, Clock()))
        if since.lr > 0.0:
            why_not = optimizer.not_measurable.get(name, "")
            found[name] = Between(since, name in optimizer.masters, why_not)
    return found


def _estimated_between(
    before: Values, now: Values, num_steps: int, eps: float
) -> tuple[dict[str, Between], float]:
    """The same of the tensors that moved, and by how much the clock advanced; NaN if unknown."""
    if not before:
        return {}, math.nan
    moved = {name: own for name, own in now.items() if not np.array_equal(own, before[name])}
    between = estimate_between(before, moved, num_steps, eps)
    return dict.fromkeys(moved, between), math.nan if between.why_not else between.clock.decay


def _moved(
    motions: Mapping[str, TensorMotion], num_sampled: int, since: int, why_none: str
) -> tuple[Dormant, Movement, dict[str, float]]:
    """The tensors' motions as one; if there are none, nothing of ``num_sampled`` weights."""
    total = sum(len(motion.dormant) for motion in motions.values())
    num_sampled = total or num_sampled
    seen = num_slow = num_dormant = 0
    chance = 0.0
    layers: dict[str, float] = {}
    for name, motion in motions.items():
        if not motion.reason:
            num, own = len(motion.dormant), int(np.count_nonzero(motion.dormant))
            seen += num
            num_slow += num * motion.is_slow
            num_dormant += own
            chance += num * motion.chance
            layers[name] = own / num if num else math.nan
    reason = "" if total else why_none
    # where most are slow all may be, and nothing tells what is dormant
    if num_slow > seen / 2:
        reason = SLOW
        layers = {name: share for name, share in layers.items() if not motions[name].is_slow}
    if seen < (1.0 - _MAX_UNKNOWN) * total:
        reasons = Counter(motion.reason for motion in motions.values() if motion.reason)
        reason, count = reasons.most_common(1)[0]
        if count < len(motions):
            reason += f" in {count} of {len(motions)} tensors"
    dormant = Dormant(
        fraction=math.nan if reason else num_dormant / seen,
        num_sampled=num_sampled if reason else seen,
        since_step=since,
        reason=reason,
        chance=math.nan if reason else chance / seen,
    )
    return dormant, _movement(motions, num_sampled, since), layers


def _movement(motions: Mapping[str, TensorMotion], num_sampled: int, since: int) -> Movement:
    """How far all sampled weights went, and how many changed their sign."""
    change = size = 0.0
    for motion in motions.values():
        change += motion.change
        size += motion.size
    total = sum(len(motion.dormant) for motion in motions.values())
    num_flips = sum(motion.num_flips for motion in motions.values())
    return Movement(
        update_to_weight=math.sqrt(change / size) if size > 0 else math.nan,
        sign_flips=num_flips / total if total else math.nan,
        num_sampled=num_sampled,
        since_step=since,
        by_block=_by_block(motions),
    )


def _by_block(motions: Mapping[str, TensorMotion]) -> dict[str, float]:
    """Update-to-weight by block or expert, rising; what began at zero has none yet."""
    sums: dict[str, list[float]] = {}
    for name, motion in motions.items():
        found = _EXPERT.match(name)
        own = sums.setdefault(found[0] if found else block_of(name), [0.0, 0.0])
        own[0] += motion.change
        own[1] += motion.size
    ratios = [(math.sqrt(u / w), name) for name, (u, w) in sums.items() if u < math.inf > w > 0]
    known = sorted((float(f"{ratio:.6g}"), name) for ratio, name in ratios)
    if len(known) > 2 * _MOST_BLOCKS:
        known = known[:_MOST_BLOCKS] + known[-_MOST_BLOCKS:]
    return {name: ratio for ratio, name in known}


@dataclass(frozen=True)
class TensorMotion:
    """What moved in one tensor."""

    dormant: np.ndarray  # bool [N], weights that pass as dormant; none where nobody can tell
    size: float  # sum of squares of the weights before
    chance: float = 0.0  # share of living weights that would pass by chance; NaN if not known
    change: float = 0.0  # sum of squares of the change that decay does not explain
    num_flips: int = 0  # weights that changed their sign
    log_shrink: float = 0.0  # logarithm of what decay alone has multiplied the weights with
    decay: float = 0.0  # by how much the decay clock advanced
    reason: str = ""  # why dormant weights cannot be told; empty if they can
    is_slow: bool = False  # beside the learning rate, so that little tells it from a dormant one


@np.errstate(all="ignore")  # what is not finite is not dormant
def motion_of(
    before: np.ndarray, now: np.ndarray, between: Between, dtype: torch.dtype
) -> TensorMotion:
    """Which weights only decay has moved, and how far the others went."""
    clock, why = between.clock, between.why_not
    if dtype.itemsize < 4 and not between.has_master:
        why = why or ROUNDED  # small updates, and decay, are lost at each step
    log_shrink = 0.0 if why else clock.log_shrink
    if not math.isfinite(log_shrink):
        log_shrink, why = 0.0, WIPED
    change = unexplained_change(before, now, log_shrink)
    if why:  # then nobody asks which, and telling them is most of the work
        dormant, chance, is_slow = np.zeros(len(change), bool), math.nan, False
    else:
        rounding, why = _rounding(before, now, between, dtype)
        dormant, chance, is_slow = _passing(change, rounding, clock)
        if not why and chance > MAX_CHANCE:
            why = COARSE if is_slow else FAR
    return TensorMotion(
        dormant=dormant,
        chance=chance,
        change=float(np.square(change).sum()),
        size=float(np.square(before).sum()),
        num_flips=int(np.count_nonzero(before * now < 0)),
        log_shrink=log_shrink,
        decay=clock.decay,
        reason=why,
        is_slow=is_slow,
    )


def unexplained_change(before: np.ndarray, now: np.ndarray, log_shrink: float) -> np.ndarray:
    """Magnitude of the change that shrinking by ``exp(log_shrink)`` does not explain."""
    change: np.ndarray = before * -math.exp(log_shrink)
    change += now  # in place: fresh memory costs more than the arithmetic
    np.abs(change, out=change)
    return change


def median(values: np.ndarray) -> float:
    """The middle one of an odd number of values, else the lower of the two; NaN without any."""
    # they are put into another order, where they are: fresh memory costs more than that
    if not len(values):
        return math.nan
    middle = (len(values) - 1) // 2
    values.partition(middle)
    return float(values[middle])


def spacing(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Distance of the neighbouring numbers of ``dtype`` at each value."""
    info = torch.finfo(dtype)
    # the power of two at or below a number is what is left of it without its significand
    spacing: np.ndarray = np.abs(values)
    np.maximum(spacing, info.tiny, out=spacing)
    bits = spacing.view(np.uint64)
    bits &= _EXPONENT
    spacing *= info.eps
    return spacing


def _rounding(
    before: np.ndarray, now: np.ndarray, between: Between, dtype: torch.dtype
) -> tuple[np.ndarray, str]:
    """What rounding alone may change, and whether it hides what a living weight would do."""
    clock = between.clock
    num_steps = max(clock.steps, 1)
    if between.has_master:  # half a spacing at either snapshot
        rounding = spacing(before, dtype)
        rounding += spacing(now, dtype)
        rounding *= 0.5
    else:  # half a spacing at each step, up or down, which adds up as a random walk
        rounding = np.abs(before) * (math.sqrt(num_steps) * torch.finfo(dtype).eps)
    moves = USUAL_SPEED * math.sqrt(clock.lr_squared)
    hides = _CHANCE_DENSITY / max(moves, 1e-300)
    if hides * rounding.max(initial=0.0) <= MAX_CHANCE:  # as of most tensors
        return rounding, ""
    hidden = np.minimum(hides * rounding, 1.0)
    return rounding, COARSE if float(hidden.mean()) > MAX_CHANCE else ""


def _passing(
    change: np.ndarray, rounding: np.ndarray, clock: Clock
) -> tuple[np.ndarray, float, bool]:
    """Which weights pass as dormant, the share of living ones that does by chance; is it slow?"""
    usual, share = math.sqrt(clock.lr_squared), 1.0
    if usual == 0.0:  # as good as no step: who stands still is not told from who lives
        return change <= rounding, 1.0, True
    while True:
        allowed = share * DORMANT_TOLERANCE * clock.lr + rounding
        dormant = change <= allowed
        moving = change[~dormant]
        if len(moving) >= _FEW:
            # an odd number apart they are of all rows and columns
            typical = median(moving[:: len(moving) // _TYPICAL | 1])
            slower = typical / (MIN_SPEED * usual)
        else:  # as good as all stand still: those that do exactly are dormant
            typical = USUAL_SPEED * usual
            slower = 0.1 * share if share > DORMANT_TOLERANCE else share
        if not slower <= 0.9 * share:  # else some that passed were slow ones
            break
        share = slower
    # as good as all standing still, or many that hardly move
    is_slow = len(moving) < max(min(_FEW, len(change) / 2), _MAX_UNKNOWN * len(change))
    if share < 1.0:
        tolerance, rounds = share * DORMANT_TOLERANCE * clock.lr, median(rounding.copy())
        if len(moving) >= _FEW and rounds > tolerance:
            return dormant, 1.0, True  # rounding alone holds slow ones still
        finer = np.count_nonzero(change <= 0.1 * tolerance + rounding)
        is_exact = finer >= CONCENTRATED * np.count_nonzero(dormant) and rounds <= 0.1 * tolerance
        is_slow |= not is_exact
    allowed *= _CHANCE_DENSITY / typical
    return dormant, float(np.minimum(allowed, 1.0, out=allowed).mean()), is_slow


def removed(magnitudes: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Which of N magnitudes are at most each of K thresholds, packed: uint8 [K, ceil(N / 8)]."""
    return np.packbits(magnitudes <= np.array(thresholds)[:, None], axis=1)


def overlap(before: np.ndarray, now: np.ndarray) -> float:
    """Of the packed bits that were set before, the fraction that is set now; NaN of none."""
    masks = (np.unpackbits(x).view(np.bool_) for x in (before, before & now))
    num_before, num_both = map(np.count_nonzero, masks)
    return num_both / num_before if num_before else math.nan


@np.errstate(all="ignore")  # a weight of exactly zero has been near zero for ever
def decay_projection(
    motions: Mapping[str, TensorMotion], now: Values, thresholds: Mapping[str, float]
) -> DecayProjection | None:
    """The share that is dormant and will be near zero; None without a clock or a threshold."""
    known: dict[str, TensorMotion] = {}
    total, advance = 0, 0.0
    for name, motion in motions.items():
        if not motion.reason:
            if not thresholds.get(name, 0.0) > 0.0:
                return None
            known[name] = motion
            total += len(motion.dormant)
            advance += motion.decay * len(motion.dormant)
    if advance <= 0.0:
        return None
    dormant, entering = np.zeros((2, len(ADVANCES)))
    weight_of_all = 0.0
    for name, motion in known.items():
        rate = -motion.log_shrink / (advance / total)  # of this tensor's clock to the mean one
        living, passing = _due(now[name] / thresholds[name], motion.dormant, rate)
        num = len(motion.dormant)
        num_dormant = int(np.count_nonzero(motion.dormant))
        num_living = num - num_dormant
        share = living / max(num_living, 1)
        by_chance = min(motion.chance * num_living, float(num_dormant))
        dormant += np.maximum(passing - by_chance * share, 0.0) / total
        # tensors where weights go dormant are where more will
        weight = max(num_dormant - 2.0 * by_chance, 0.0) + 1e-6 * num
        entering += weight * share
        weight_of_all += weight
    return DecayProjection(
        advance=ADVANCES,
        dormant=six_digits(np.maximum.accumulate(dormant)),
        entering=six_digits(entering / weight_of_all),
    )


def _due(far: np.ndarray, is_dormant: np.ndarray, rate: float) -> np.ndarray:
    """How many living and dormant weights are due at each advance, [2, 21]; ``far`` is changed."""
    # a weight is due when the mean clock has advanced by log(far) / rate; who is due already, at 0
    num = len(ADVANCES)
    np.abs(far, out=far)
    np.log(far, out=far)
    far *= 1.0 / (ADVANCES[1] * rate) if rate > 0.0 else 1e300
    np.ceil(far, out=far)
    np.fmin(far, num, out=far)  # never within these advances, as what is no number
    np.maximum(far, 0.0, out=far)
    places = far.astype(np.intp)
    places += (num + 1) * is_dormant
    counts = np.bincount(places, minlength=2 * (num + 1)).reshape(2, -1)
    return np.asarray(counts[:, :num].cumsum(axis=1))


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


@np.errstate(all="ignore")  # ratios of what is not finite are in no pile
def estimate_between(
    before: Values, now: Values, num_steps: int, eps: float = torch.finfo(torch.float32).eps
) -> Between:
    """The one factor that weights without gradient shrank by, and the size of the updates."""
    # the sum of lr is what Adam would need to move them as far; eps is of the coarsest dtype
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
    clock = Clock(
        lr=typical * math.sqrt(max(num_steps, 1)),
        decay=max(0.0, -log_shrink),  # 0, not -0, where nothing shrank
        log_shrink=log_shrink,
        lr_squared=typical**2,
        steps=num_steps,
    )
    # a file does not tell of a copy; if there was one, rounding explains less
    return Between(clock, has_master=True, why_not="" if is_pile else NO_PILE)


def _pile(ratios: np.ndarray, width: float) -> tuple[float, int, float]:
    """Median and number of sorted values in the fullest window, and the mean number beside it."""
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
