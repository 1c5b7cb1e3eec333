"""What decay did between two checkpoints, estimated from the weights alone.

Weights that got no gradient have all shrunk by one factor; those that did are scattered. So
the factor is where the ratios ``now / before`` pile up, and without such a pile nothing is
dormant, or it cannot be told. From the weights that moved follows the size of the updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sparsitywatch.weights.clock import GroupClock
from sparsitywatch.weights.dormancy import USUAL_SPEED, median, unexplained_change

__all__ = ["Shrink", "estimate_shrink"]

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

NO_PILE = "no weights shrank by one factor, so that decay cannot be told from gradients"


@dataclass(frozen=True)
class Shrink:
    """What decay and gradients did between two looks, as estimated.

    Args:
        clock: as if the optimizer had been watched: log_shrink, the sums of lr and its square
            and the decay clock, all of them estimates.
        num_agreeing: weights whose ratio is within the pile, of those that were looked at.
        num_by_chance: how many would be there if it were none.
        reason: why there is no estimate; empty if there is one. Then ``clock.log_shrink`` is 0.
    """

    clock: GroupClock
    num_agreeing: int
    num_by_chance: float
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
        before, now: float64 [N], the same weights at two looks, by name; names of ``before``
            that are not in ``now`` are left out.
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
        decay=max(-log_shrink, 0.0),
        log_shrink=log_shrink,
        lr_squared=typical**2,
        steps=num_steps,
    )
    return Shrink(clock, count, by_chance, "" if is_pile else NO_PILE)


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
