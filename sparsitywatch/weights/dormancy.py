"""One tensor at two looks: which of its weights only decay has moved. Pure functions.

Adam moves a weight that gets any gradient by about lr a step, in a direction that changes:
over an interval by some 0.2 to 0.5 times the root of the sum of lr squared (measured on small
transformers at 25 to 200 steps; median over the weights that move). A weight passes as dormant
*by chance* if it happens to come back to where it was; as its change has a density that is flat
at zero, the share that does so is in proportion to the tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from sparsitywatch.weights.clock import GroupClock

__all__ = [
    "DORMANT_TOLERANCE",
    "MAX_CHANCE",
    "MIN_SPEED",
    "TensorMotion",
    "compare",
    "median",
    "selected",
    "unexplained_change",
]

#: Largest unexplained change of a dormant weight, as a fraction of the sum of lr.
DORMANT_TOLERANCE = 1e-3
#: Where the weights that move do so by less than this times the root of the sum of lr squared
#: (median), dormant weights cannot be told from slow ones. Ordinary: 0.16 and more; after a
#: spike of the learning rate: 0.01 to 0.1.
MIN_SPEED = 0.14
#: What the weights that move do so by, where nothing could be measured.
USUAL_SPEED = 0.35
#: Where more than this share of living weights would pass by chance, nothing is told.
MAX_CHANCE = 0.15
#: A slow tensor can tell after all if this share of its dormant weights passes ten times finer.
CONCENTRATED = 0.5
#: Probability that a centred Gaussian lies within a small t, per t in units of the median of
#: its absolute value: 0.6745 * sqrt(2 / pi).
_CHANCE_DENSITY = 0.5382
_FEW = 20
#: Bits of a float64 that hold its exponent.
_EXPONENT = 0x7FF << 52

SLOW = "updates are far smaller than the learning rate"
COARSE = "the weights' precision is too coarse for updates of this size"
COARSE_DECAY = "decay is rounded to the weights' precision at each step"
FAR = "the looks are so far apart that too many weights pass by chance"
WIPED = "decay alone wipes the weights out"
STILL = "no in-scope weight was trained since"


@dataclass(frozen=True)
class TensorMotion:
    """What moved in one tensor.

    Args:
        dormant: bool [N], weights that pass as dormant.
        chance: share of living weights that would pass by chance; NaN if not known.
        change: sum of squares of the change that decay does not explain.
        size: sum of squares of the weights before.
        num_flips: how many weights changed their sign.
        log_shrink: logarithm of what decay alone has multiplied the weights with.
        reason: why dormant weights cannot be told; empty if they can.
    """

    dormant: torch.Tensor
    chance: float
    change: float
    size: float
    num_flips: int
    log_shrink: float
    reason: str = ""


def unexplained_change(before: torch.Tensor, now: torch.Tensor, log_shrink: float) -> torch.Tensor:
    """Magnitude of the change that shrinking by ``exp(log_shrink)`` does not explain.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> unexplained_change(one, 0.5 * one, math.log(0.5)).item()
    0.0
    """
    return (now - math.exp(log_shrink) * before).abs()


def selected(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``values[mask]``, by one thread: torch wakes all of its own even for a few values.

    >>> selected(torch.tensor([1.0, 2.0]), torch.tensor([False, True]))
    tensor([2.])
    """
    return torch.from_numpy(values.numpy()[mask.numpy()])


def median(values: torch.Tensor) -> float:
    """The middle one of an odd number of values, else the lower of the two; NaN without any.

    >>> median(torch.tensor([3.0, 1.0, 2.0, 4.0]))
    2.0
    """
    if not values.numel():
        return math.nan
    middle = (values.numel() - 1) // 2
    # four times as fast as torch's
    return float(np.partition(values.numpy(), middle)[middle])


def compare(
    before: torch.Tensor,
    now: torch.Tensor,
    between: GroupClock,
    *,
    dtype: torch.dtype = torch.float32,
    has_master: bool = False,
    not_measurable: str = "",
    tolerance: float = DORMANT_TOLERANCE,
) -> TensorMotion:
    """Which weights only decay has moved, and how far the others went.

    Args:
        before, now: float64 [N], the same weights at two looks.
        between: what the optimizer did to all of them in between.
        dtype: that they are stored in.
        has_master: the optimizer steps on a copy of higher precision; else it rounds to
            ``dtype`` at each step.
        not_measurable: why dormant weights cannot be told under this optimizer. All change then
            counts as unexplained.
        tolerance: allowed unexplained change per unit of the sum of lr.
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
    rounding = _rounding(before, now, between.steps, dtype, has_master=has_master)
    dormant = change <= tolerance * between.lr + rounding
    chance, slow = _chance(change, dormant, rounding, between, tolerance)
    if not why:
        why = _too_coarse(before, rounding, between, dtype, has_master=has_master) or slow
    return TensorMotion(
        dormant=dormant,
        chance=chance,
        change=float(change.square().sum()),
        size=float(before.square().sum()),
        num_flips=int((before * now < 0).sum()),
        log_shrink=log_shrink,
        reason=why,
    )


def _spacing(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance of the neighbouring numbers of ``dtype`` at each value.

    >>> _spacing(torch.tensor([1.0, 1.5, 2.0]).double(), torch.bfloat16).tolist()
    [0.0078125, 0.0078125, 0.015625]
    """
    info = torch.finfo(dtype)
    # the power of two at or below a number is what is left of it without its significand
    powers = values.abs().clamp_min(info.tiny).view(torch.int64) & _EXPONENT
    return powers.view(torch.float64) * info.eps


def _rounding(
    before: torch.Tensor, now: torch.Tensor, steps: int, dtype: torch.dtype, *, has_master: bool
) -> torch.Tensor:
    """What rounding alone may change.

    Of a copy: half a spacing at either look. Of the weights themselves: half a spacing at each
    step, up or down, which adds up as a random walk; what gets no gradient and is stored in 16
    bits stays exactly what it is.
    """
    if has_master:
        return 0.5 * (_spacing(before, dtype) + _spacing(now, dtype))
    if dtype.itemsize < 4:
        return torch.zeros_like(before)
    return before.abs() * (math.sqrt(max(steps, 1)) * torch.finfo(dtype).eps)


def _too_coarse(
    before: torch.Tensor,
    rounding: torch.Tensor,
    between: GroupClock,
    dtype: torch.dtype,
    *,
    has_master: bool,
) -> str:
    """Why the stored numbers cannot show what a living weight would do; empty if they can."""
    if has_master or dtype.itemsize >= 4:
        moves = USUAL_SPEED * math.sqrt(between.lr_squared)
        share = (_CHANCE_DENSITY * rounding / max(moves, 1e-300)).clamp_max(1.0).mean()
    else:  # an update of less than half a spacing is lost
        typical = math.sqrt(between.lr_squared / max(between.steps, 1))
        share = (_spacing(before, dtype) > typical).double().mean()
    return COARSE if float(share) > MAX_CHANCE else ""


def _chance(
    change: torch.Tensor,
    dormant: torch.Tensor,
    rounding: torch.Tensor,
    between: GroupClock,
    tolerance: float,
) -> tuple[float, str]:
    """The share of living weights that pass by chance, and why it would be too large."""
    moving = selected(change, ~dormant)
    allowed = tolerance * between.lr + rounding
    if moving.numel() < _FEW:
        # as good as all stand still; where they do so exactly, they are dormant
        typical, is_slow = USUAL_SPEED * math.sqrt(between.lr_squared), False
    else:
        typical = median(moving)
        is_slow = typical < MIN_SPEED * math.sqrt(between.lr_squared)
    share = (_CHANCE_DENSITY * allowed / max(typical, 1e-300)).clamp_max(1.0)
    chance = float(share.mean())
    finer = int((change <= 0.1 * tolerance * between.lr + rounding).sum())
    if finer >= CONCENTRATED * max(int(dormant.sum()), 1):
        return chance, ""
    return chance, SLOW if is_slow else FAR if chance > MAX_CHANCE else ""
