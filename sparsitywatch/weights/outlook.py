"""How far the decay clock must advance until dormant weights are near zero.

A weight that gets no gradient shrinks as exp(-clock): with magnitude m it is below the
threshold t when its clock has advanced by ln(m / t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sparsitywatch.records import Outlook
from sparsitywatch.weights.clock import GroupClock
from sparsitywatch.weights.dormancy import TensorMotion, selected

__all__ = ["ADVANCES", "outlook"]

#: Advances of the decay clock that an outlook is told for: 0 to 2 in steps of 0.1.
ADVANCES = tuple(round(0.1 * k, 1) for k in range(21))


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
    grid = torch.tensor(ADVANCES, dtype=torch.float64)
    dormant = torch.zeros_like(grid)
    entering, weight_of_all = torch.zeros_like(grid), 0.0
    for name, (motion, _) in known.items():
        size = now[name].numel()
        rate = -motion.log_shrink / (advance / total)  # of this tensor's clock to the mean one
        due = _due(now[name].double().abs(), thresholds[name], rate)
        living = _below(selected(due, ~motion.dormant), grid)
        num_living = int((~motion.dormant).sum())
        share = living / max(num_living, 1)
        by_chance = min(motion.chance * num_living, float(motion.dormant.sum()))
        passing = _below(selected(due, motion.dormant), grid)
        dormant += (passing - by_chance * share).clamp_min(0.0) / total
        # tensors where weights go dormant are where more will
        weight = max(float(motion.dormant.sum()) - 2.0 * by_chance, 0.0) + 1e-6 * size
        entering += weight * share
        weight_of_all += weight
    return Outlook(
        advance=ADVANCES,
        dormant=_rounded(torch.cummax(dormant, 0).values),
        entering=_rounded(entering / weight_of_all),
    )


def _due(magnitudes: torch.Tensor, threshold: float, rate: float) -> torch.Tensor:
    """By how much the mean clock advances until a weight is near zero; inf if never."""
    far = torch.log(magnitudes / threshold)
    return torch.where(far <= 0.0, 0.0, far / rate if rate > 0.0 else math.inf)


def _below(due: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """How many are due at each point of the grid."""
    counts = torch.bincount(torch.bucketize(due, grid), minlength=len(grid) + 1)
    return counts[: len(grid)].double().cumsum(0)


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(f"{x:.6g}") for x in values.tolist())
