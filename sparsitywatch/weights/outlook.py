"""How far the decay clock must advance until dormant weights are near zero.

A weight that gets no gradient shrinks as exp(-clock): with magnitude m it is below the
threshold t when its clock has advanced by ln(m / t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from sparsitywatch.records import Outlook
from sparsitywatch.weights.clock import GroupClock
from sparsitywatch.weights.dormancy import TensorMotion, float64_of

__all__ = ["ADVANCES", "outlook"]

#: Advances of the decay clock that an outlook is told for: 0 to 2 in steps of 0.1.
ADVANCES = tuple(round(0.1 * k, 1) for k in range(21))


@np.errstate(all="ignore")  # a weight of exactly zero has been near zero for ever
def outlook(
    compared: Mapping[str, tuple[TensorMotion, GroupClock]],
    now: Mapping[str, torch.Tensor],
    thresholds: Mapping[str, float],
) -> Outlook | None:
    """The share of the weights that is dormant and will be near zero, by the clock's advance.

    Args:
        compared: motion of each tensor, and what the optimizer did to it in between.
        now: the same weights, [N] each.
        thresholds: below which a weight is near zero, by name.

    Returns:
        None if the decay clock stands still, or a threshold is not known.
    """
    known = {n: both for n, both in compared.items() if not both[0].reason}
    total = sum(now[name].numel() for name in known)
    advance = sum(clock.decay * now[name].numel() for name, (_, clock) in known.items())
    if advance <= 0.0 or any(not thresholds.get(name, 0.0) > 0.0 for name in known):
        return None
    grid = np.array(ADVANCES)
    dormant, entering, weight_of_all = np.zeros(len(grid)), np.zeros(len(grid)), 0.0
    for name, (motion, _) in known.items():
        size = now[name].numel()
        rate = -motion.log_shrink / (advance / total)  # of this tensor's clock to the mean one
        due = _due(np.abs(float64_of(now[name])), thresholds[name], rate)
        num_dormant = int(np.count_nonzero(motion.dormant))
        num_living = size - num_dormant
        share = _below(due[~motion.dormant], grid) / max(num_living, 1)
        by_chance = min(motion.chance * num_living, float(num_dormant))
        passing = _below(due[motion.dormant], grid)
        dormant += np.maximum(passing - by_chance * share, 0.0) / total
        # tensors where weights go dormant are where more will
        weight = max(num_dormant - 2.0 * by_chance, 0.0) + 1e-6 * size
        entering += weight * share
        weight_of_all += weight
    return Outlook(
        advance=ADVANCES,
        dormant=_rounded(np.maximum.accumulate(dormant)),
        entering=_rounded(entering / weight_of_all),
    )


def _due(magnitudes: np.ndarray, threshold: float, rate: float) -> np.ndarray:
    """By how much the mean clock advances until a weight is near zero; inf if never."""
    far = np.log(magnitudes / threshold)
    return np.where(far <= 0.0, 0.0, far / rate if rate > 0.0 else math.inf)


def _below(due: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """How many are due at each point of the grid."""
    counts = np.bincount(grid.searchsorted(due), minlength=len(grid) + 1)
    below: np.ndarray = counts[: len(grid)].cumsum()
    return below


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{x:.6g}") for x in values.tolist())
