"""Whether neighbouring checkpoints are weights of one run, by what they still have in common.

Weights move with w' = exp(-c) w + u, c the advance of the decay clock and u what training added. As
far as u has nothing in common with w, the correlation of the two is exp(-c) |w| / |w'|: training
far beyond the scale of the weights, or decay, make them unlike, and nothing else does. Two runs
have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from sparsitywatch.pipeline.pipeline import Reviewer
from sparsitywatch.records import Event, Record
from sparsitywatch.series import numbered, percent
from sparsitywatch.vital.judgement import event_at

#: Sign flips from which on little is in common: a correlation of 0.31, if the weights were normal.
_FLIPPED = 0.4
#: The correlation that decay and growth must leave for that to be no training; 0.31 and a margin.
_LEFT = 0.45
#: At most this part of the way from chance to the same masks is chance.
_BY_CHANCE = 0.1
#: Sign flips up to which another pair of neighbours, as far apart or farther, is of one run.
_OF_ONE = 0.2
_NORMAL = NormalDist()


class OneRunReviewer(Reviewer):
    """Tells once where nothing of the weights is left from one checkpoint of a replay to the next.

    "another_run": their scale and the decay clock, or the other checkpoints, rule out that training
    did it. "unlike": it may have, as nothing is known of the decay between them.
    """

    def events(
        self, record: Record, earlier: Sequence[Record], told: Sequence[Event]
    ) -> list[Event]:
        before = next((r for r in reversed(earlier) if r.was_read), None)
        moved = record.movement
        if before is None or moved is None or not _is_unlike(before, record):
            return []
        kind, why = _judged(before, record, earlier)
        if not kind or any(event.kind in ("another_run", kind) for event in told):
            return []
        event = event_at(
            record,
            before.step,
            series="motion/sign_flips",
            direction="up",
            kind=kind,
            baseline=math.nan if before.movement is None else before.movement.sign_flips,
            value=moved.sign_flips,
            reason=f"{percent(moved.sign_flips)} of the signs differ, as between two runs{why}",
        )
        return [event]


def _is_unlike(before: Record, record: Record) -> bool:
    """Whether signs and masks have next to nothing in common with those before."""
    moved, masks = record.movement, record.masks
    if moved is None or masks is None or not before.layers or not moved.sign_flips > _FLIPPED:
        return False
    if not moved.since_step == masks.since_step == before.step:
        return False
    sizes = np.array([layer.num_weights for layer in record.layers], dtype=float)
    above = below = 0.0
    for level, overlap in zip(masks.level, masks.overlap, strict=True):
        was, is_now = (_shares(one, sizes, level) for one in (before, record))
        chance = float((sizes * was * is_now).sum() / (sizes * was).sum())
        above, below = above + overlap - chance, below + 1.0 - chance
    return above / below < _BY_CHANCE  # not where it is NaN


def _shares(record: Record, sizes: np.ndarray, level: float) -> np.ndarray:
    """What pruning removes of each tensor by its scale alone, if its weights are normal."""
    scales = np.maximum([layer.rms for layer in record.layers], 1e-30)
    low, high = 0.0, 10.0 * float(scales.max())
    for _ in range(40):
        threshold = (low + high) / 2.0
        shares = np.array([2.0 * _NORMAL.cdf(threshold / scale) - 1.0 for scale in scales])
        is_high = (sizes * shares).sum() > level * sizes.sum()
        low, high = (low, threshold) if is_high else (threshold, high)
    return shares


def _judged(before: Record, record: Record, earlier: Sequence[Record]) -> tuple[str, str]:
    """The kind of the event, and what shows it; no kind where training explains it."""
    was, is_now = (
        math.sqrt(sum(layer.num_weights * layer.rms**2 for layer in one.layers))
        for one in (before, record)
    )
    growth, advance = is_now / max(was, 1e-30), record.decay_clock - before.decay_clock
    is_known = math.isfinite(advance)
    if math.exp(-advance if is_known else 0.0) < _LEFT * growth:
        return "", ""
    if is_known:
        how = f"; weights grew by {growth:.3g}, and the decay clock came no farther than"
        return "another_run", f"{how} {advance:.3g}"
    for one, other in pairwise(earlier):
        moved = other.movement
        if moved is None or moved.since_step != one.step:
            continue
        is_as_far = other.step - one.step >= record.step - before.step
        if is_as_far and moved.sign_flips < _OF_ONE:
            both = numbered(record.provenance.unit, one.step, other.step)
            how = f"{percent(moved.sign_flips)} between {both}"
            return "another_run", f", and {how}"
    return "unlike", ", and it is not known how much the weights decayed"
