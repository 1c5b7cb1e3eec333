"""Masks compared over time: are the weights that could go the same ones as before?

While a model forms, the smallest weights of one look are others at the next. Once pruning would
remove the same ones look after look, its sparse structure is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsitywatch.records import MaskOverlap

__all__ = ["MASK_LEVELS", "MaskHistory", "overlap"]

#: Sparsities whose masks are compared.
MASK_LEVELS = (0.5, 0.7, 0.9)

#: Bits that are set in each byte; numpy counts them itself from version 2 on.
_NUM_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)

Bits = npt.NDArray[np.uint8]


def overlap(before: Bits, now: Bits) -> float:
    """Of what was removed before, the fraction that is removed now; NaN if that was nothing.

    Args:
        before, now: packed bits, uint8 [B].

    >>> overlap(np.packbits([1, 1, 1, 0]), np.packbits([0, 1, 1, 1]))
    0.6666666666666666
    """
    num_before = int(_NUM_BITS[before].sum())
    return int(_NUM_BITS[before & now].sum()) / num_before if num_before else math.nan


class MaskHistory:
    """Remembers what pruning would have removed at the last look."""

    def __init__(self) -> None:
        self._step, self._removed = -1, np.empty((0, 0), np.uint8)

    def look(self, step: int, removed: Bits, num_sampled: int) -> MaskOverlap:
        """Compare with the last look, and remember this one.

        Args:
            step: of the look.
            removed: packed bits, uint8 [K, B], one row for each of ``MASK_LEVELS``.
            num_sampled: weights that the bits stand for.
        """
        since, before = self._step, self._removed
        self._step, self._removed = step, removed
        if before.shape != removed.shape:
            since, found = -1, (math.nan,) * len(removed)
        else:
            found = tuple(overlap(*pair) for pair in zip(before, removed, strict=True))
        return MaskOverlap(
            level=MASK_LEVELS, overlap=found, num_sampled=num_sampled, since_step=since
        )

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last look."""
        return {"step": self._step, "removed": self._removed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._step = int(state["step"])
        self._removed = np.array(state["removed"], np.uint8)
