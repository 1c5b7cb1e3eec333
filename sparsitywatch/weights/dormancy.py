"""One tensor at two looks: which of its weights only decay has moved. Pure functions.

Adam moves a weight that gets any gradient by about lr a step, in a direction that changes:
over an interval by some 0.2 to 0.5 times the root of the sum of lr squared (measured on small
transformers at 25 to 200 steps; median over the weights that move). A weight passes as dormant
*by chance* if it happens to come back to where it was; as its change has a density that is flat
at zero, the share that does so is in proportion to the tolerance.

Arrays are numpy's: its loops run in the thread that asked, where torch would wake all of its own
for each of many small steps and wait for the last one, beside a training that needs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    "float64_of",
    "median",
    "unexplained_change",
    "values_of",
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
_EXPONENT = np.uint64(0x7FF << 52)

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

    dormant: np.ndarray
    chance: float
    change: float
    size: float
    num_flips: int
    log_shrink: float
    reason: str = ""


def float64_of(*tensors: torch.Tensor) -> np.ndarray:
    """The values of CPU tensors of any float dtype, one after another, in memory of their own.

    >>> float64_of(torch.tensor([[1.5, -2.0]]).bfloat16(), torch.tensor(3.0))
    array([ 1.5, -2. ,  3. ])
    """
    found, end = np.empty(sum(tensor.numel() for tensor in tensors)), 0
    for tensor in tensors:
        start, end = end, end + tensor.numel()
        found[start:end] = _as_numpy(tensor.detach().reshape(-1))
    return found


def values_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same by name: float64 [N] each, parts of one piece of memory."""
    ends = np.cumsum([tensor.numel() for tensor in tensors.values()])
    parts = np.split(float64_of(*tensors.values()), ends[:-1])
    return dict(zip(tensors, parts, strict=True)) if tensors else {}


def _as_numpy(flat: torch.Tensor) -> np.ndarray:
    """The same values in a dtype that numpy has."""
    if flat.dtype is torch.bfloat16:  # the upper half of a float32
        words = flat.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
        values: np.ndarray = (words << np.uint32(16)).view(np.float32)
        return values
    return (flat.float() if flat.dtype.itemsize == 1 else flat).numpy()


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


@np.errstate(all="ignore")  # what is not finite is not dormant
def compare(
    before: np.ndarray,
    now: np.ndarray,
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
    allowed = tolerance * between.lr + rounding
    dormant = change <= allowed
    finer = int((change <= 0.1 * tolerance * between.lr + rounding).sum())
    chance, slow = _chance(change[~dormant], allowed, finer, between)
    if not why:
        why = _too_coarse(before, rounding, between, dtype, has_master=has_master) or slow
    return TensorMotion(
        dormant=dormant,
        chance=chance,
        change=float(np.square(change).sum()),
        size=float(np.square(before).sum()),
        num_flips=int(np.count_nonzero(before * now < 0)),
        log_shrink=log_shrink,
        reason=why,
    )


def _spacing(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Distance of the neighbouring numbers of ``dtype`` at each value.

    >>> _spacing(np.array([1.0, 1.5, 2.0]), torch.bfloat16).tolist()
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

    Of a copy: half a spacing at either look. Of the weights themselves: half a spacing at each
    step, up or down, which adds up as a random walk; what gets no gradient and is stored in 16
    bits stays exactly what it is.
    """
    if has_master:
        halves = _spacing(before, dtype)
        halves += _spacing(now, dtype)
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
        share = (_spacing(before, dtype) > typical).mean()
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
