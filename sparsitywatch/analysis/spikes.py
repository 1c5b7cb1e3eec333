"""Where a spike of the loss began: in which blocks of a model updates rose before it, and when.

A series rises where a value, and the median of the five from it on, lie above the usual, a median
of earlier ones. How far noise comes is read off the past of all blocks, each in its own units:
noise that comes in waves, or in bursts, has risen as far before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sparsitywatch.records import Event
from sparsitywatch.records.event import some_of

#: Steps that updates are looked at ahead of a spike; values that the loss is compared over.
_LEAD, _LAG = 60, 25
#: Values that the past has at least, of a block at most; those that a rise is about.
_LEAST, _PAST, _GOES_ON = 80, 300, 5
#: A spike, and a block's rise, lies so many times as far above the middle as 19 of 20 values of the
#: past, and that many times as far as any; it is by such a share at least, or to so many times.
_SPIKE, _CLEAR, _BEYOND, _LEAST_RISE, _RISE = 3.5, 2.5, 1.25, {"loss": 0.01, "updates": 0.33}, 1.5
_NOT_KNOWN = "no block's updates are known to have risen before it"
#: Spikes so many steps apart are one, and so are rises of a block.
_SAME, _APART = 200, 20


@dataclass(frozen=True)
class Moves:
    """What each of T steps did to each of B blocks of a model; NaN where that is not known."""

    blocks: np.ndarray  # str [B]
    steps: np.ndarray  # int [T], rising
    loss: np.ndarray  # [T], as the training reports it; infinite where it was no number
    update: np.ndarray  # [T, B], root mean squares
    weight: np.ndarray  # [T, B]
    gradient: np.ndarray  # [T, B]

    @property
    def relative(self) -> np.ndarray:
        """[T, B], logarithms of updates as shares of the weights; NaN where one of them is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.log(self.update / self.weight)
        return np.where(np.isfinite(found), found, np.nan)


def find_spikes(moves: Moves, *, seen_at: int = -1, after: int = -1) -> list[Event]:
    """Each spike later than a step, by rising steps; of several within 200 steps the first.

    Its onset lies between the first rise of updates, those of ``layers``, and the spike.
    """
    relative = moves.relative
    is_loss_known = int((~np.isnan(moves.loss)).sum()) >= _LEAST
    of_all = np.sqrt(np.nansum(np.exp(2.0 * relative), axis=1))
    series, what = (moves.loss, "loss") if is_loss_known else (of_all, "updates")
    rows = np.flatnonzero(~np.isnan(series))
    places, found = _spikes_in(series[rows], _LEAST_RISE[what]), []
    for number, place in enumerate(places):
        row = int(rows[place])
        if moves.steps[row] <= after:
            continue
        # a spike of the updates themselves begins with them
        began, blocks, rise = _began(relative, row + (what == "updates"), rows[places[:number]])
        before, value = float(np.median(series[rows[place - 2 * _LAG : place]])), float(series[row])
        first, step = int(moves.steps[began if len(blocks) else row]), int(moves.steps[row])
        layers = tuple(map(str, moves.blocks[blocks]))
        where = f"it began in {some_of(layers, len(layers))} at step {first:,}"
        told = f"{where}, where updates rose {rise:.1f}-fold" if layers else _NOT_KNOWN
        event = Event(
            series=f"spike/{what}",
            kind="spike",
            direction="up",
            onset_step=first,
            onset_high=step,
            detected_step=seen_at,
            baseline=before,
            value=value,
            layers=layers,
            reason=f"from {before:.3g} to {value:.3g}; {told}",
        )
        found.append(event)
    return found


def _spikes_in(values: np.ndarray, least: float) -> list[int]:
    """Where a series without NaN spikes, by at least such a share of its value."""
    found: list[int] = []
    if len(values) < 2 * _LAG + _LEAST:
        return found
    rises = _rises(values[:, None], _LAG)
    highest = sliding_window_view(values, 2 * _LAG)[:-1].max(axis=-1)
    for place in (np.flatnonzero(values[2 * _LAG :] > highest) + 2 * _LAG).tolist():
        past = rises[:place][~np.isnan(rises[:place, 0])]
        if len(past) < _LEAST or (found and place - found[-1] < _SAME):
            continue
        height = values[place]
        if height == math.inf or rises[place] > sum(_noise(past, _SPIKE, least * abs(height))):
            rises[place : place + _SAME] = math.nan
            found.append(place)
    return found


def _began(relative: np.ndarray, row: int, earlier: np.ndarray) -> tuple[int, np.ndarray, float]:
    """Where the first blocks rose ahead of a row, which they are, and how many times."""
    rises = _rises(relative[: row + _GOES_ON], _LEAD)
    rows = np.arange(row - _LEAD)
    for spike in earlier:
        rows = rows[(rows < spike - _LEAD) | (rows >= spike + _SAME)]
    past = rises[rows[-_PAST:]]
    known = np.flatnonzero(np.isfinite(past).sum(axis=0) >= _LEAST)
    if not len(known):
        return row, known, math.nan
    middle, limit = _noise(past[:, known], _CLEAR, math.log(_RISE))
    recent = rises[row - _LEAD : row, known] - middle
    onsets = np.array([_onset(column) for column in (recent > limit).T])
    began = onsets.min()
    if began == _LEAD:
        return row, known[:0], math.nan
    # noise may hide the first steps of a block that rises with others
    foot = np.median(recent[began : began + 2 * _GOES_ON], axis=0)
    first = known[(onsets == began) | ((onsets < _LEAD) & (foot > limit / 2))]
    start = row - _LEAD + began
    before, since = relative[start - _LEAD : start, first], relative[start:row, first]
    rise = np.nanmedian(since, axis=0) - np.nanmedian(before, axis=0)
    return start, first[rise >= math.log(_RISE)], math.exp(rise.max())


def _onset(is_above: np.ndarray) -> int:
    """Where that begins which goes on to the end, or nearly; the end if nothing does."""
    rows = np.append(np.flatnonzero(is_above), len(is_above))
    gaps = np.flatnonzero(np.diff(rows) > _APART)
    return int(rows[gaps[-1] + 1 if len(gaps) else 0])


def _rises(values: np.ndarray, lag: int) -> np.ndarray:
    """[T, K]: how far each lies above the median of those ``lag`` to twice as many before it."""
    known = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    filled = np.take_along_axis(values, np.maximum.accumulate(known), axis=0)
    padded = np.pad(filled, [(0, _GOES_ON - 1), (0, 0)], constant_values=-math.inf)
    lasting = np.median(sliding_window_view(padded, _GOES_ON, axis=0), axis=-1)
    usual = np.median(sliding_window_view(filled, lag, axis=0), axis=-1)
    found = np.full(values.shape, math.nan)
    with np.errstate(invalid="ignore"):  # of infinite ones
        found[2 * lag :] = np.minimum(filled, lasting)[2 * lag :] - usual[: len(values) - 2 * lag]
    return found


def _noise(past: np.ndarray, clear: float, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The middle of the past, and how far above it noise comes, by column."""
    middle, high, most = np.nanquantile(past, [0.5, 0.95, 1.0], axis=0)
    spread = np.maximum(high - middle, least / clear + 1e-30)
    return middle, spread * max(clear, _BEYOND * ((most - middle) / spread).max(initial=0.0))
