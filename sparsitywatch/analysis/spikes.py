"""Where a spike of the loss began: in which blocks of a model updates rose before it, and when.

A series rises where a value, and the median of the five from it on, lie above the usual, a median
of earlier ones; a lone value jumps that lies far above those before it. How far noise comes is read
off the past of all blocks, each in its own units: noise that comes in waves, or in bursts, has
risen as far before.
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
#: Values that a lone one is compared with, and jumps that the past has at least.
_BEFORE, _FEW = 10, 20
#: A spike, and a block's rise, lies so many times as far above the middle as 19 of 20 values of the
#: past, and that many times as far as any; it is by such a share at least, or to so many times.
_SPIKE, _CLEAR, _BEYOND, _LEAST_RISE, _RISE = 3.5, 2.5, 1.25, {"loss": 0.01, "updates": 0.33}, 1.5
#: Noise jumps once in so many values: of the loss, and of all blocks one step before a spike. No
#: tail is heavier than this power: short pasts make any look heavy.
_ALONE, _BESIDE, _HEAVIEST = 3e5, 1e3, 0.33
#: A block that jumps though nothing spikes does so at least so far beside others, as a logarithm.
_LOUD = math.log(4.0)
#: Spikes so many steps apart are one, and so are rises of a block.
_SAME, _APART = 200, 20


@dataclass(frozen=True)
class Moves:
    """What each of T steps did to each of B blocks of a model; NaN where that is not known."""

    blocks: np.ndarray  # str [B]
    steps: np.ndarray  # int [T], rising
    loss: np.ndarray  # [T], as the training reports it; infinite where it was no number
    update: np.ndarray  # [T, B], root mean squares; NaN of some blocks alone: no numbers
    weight: np.ndarray  # [T, B]
    gradient: np.ndarray  # [T, B]

    @property
    def relative(self) -> np.ndarray:
        """[T, B], logarithms of updates as shares of the weights; NaN where one of them is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.log(self.update / self.weight)
        return np.where(np.isfinite(found), found, np.nan)

    @property
    def jumps(self) -> np.ndarray:
        """[3, T, B], how far logarithms of update, weight and gradient jump beside others."""
        with np.errstate(divide="ignore", invalid="ignore"):
            # a step that was skipped since its gradients were too large has moved nothing
            taken = np.where(self.update == 0, 0.0, self.gradient)
            logs = np.log(np.stack([self.update, self.weight, taken]))
            is_odd = np.isnan(logs) & ~np.isnan(logs).all(axis=2, keepdims=True)  # no number
            logs = np.where(np.isneginf(logs), math.nan, np.where(is_odd, math.inf, logs))
            own = np.stack([_rises(one, _BEFORE, 0, 1) for one in logs])
            own -= np.sort(own, axis=2)[:, :, [(len(self.blocks) - 1) // 2]]
            return own


def find_spikes(moves: Moves, *, seen_at: int = -1, after: int = -1) -> list[Event]:
    """Each spike later than a step, by rising steps; of several within 200 steps the first.

    Its onset lies between the first rise or jump of ``layers`` and the spike. A block that jumps
    far beside the others is a spike, too.
    """
    relative = moves.relative
    found: list[Event] = []
    earlier: list[int] = []
    is_loss_known = int((~np.isnan(moves.loss)).sum()) >= min(_LEAST, len(moves.loss) / 2)
    of_all = np.sqrt(np.nansum(np.exp(2.0 * relative), axis=1))
    series, what = (moves.loss, "loss") if is_loss_known else (of_all, "updates")
    rows = np.flatnonzero(~np.isnan(series))
    if not len(rows):
        return found
    # where a series spikes, and how far the row before lies
    away = {int(rows[p]): int(rows[p] - rows[p - 1]) for p in _spikes_in(series[rows], what)}
    jumps = moves.jumps
    most = np.where(np.isnan(jumps), -math.inf, jumps).max(axis=2)
    is_loud = (most > _LOUD) & [_is_highest(one, _LEAD) for one in most]
    for row in sorted({*away, *np.flatnonzero(is_loud.any(axis=0)).tolist()}):
        if any(row - _SAME < one <= row + _LEAD for one in [*away, *earlier] if row not in away):
            continue
        # a block that jumps though nothing spikes does so as rarely as far ahead of a spike
        past = sorted([*earlier, *(one for one in away if one < row)])
        jump = _jumped(jumps, row, away.get(row, -_LEAD), past)
        kind, values = what, series
        if row not in away:
            if jump[0] != row or not len(jump[1]):
                continue
            kind = jump[2].split()[0]
            values = getattr(moves, kind[:-1])[:, jump[1][0]]
        earlier.append(row)
        if moves.steps[row] <= after:
            continue
        # a spike of the updates themselves begins with them
        rise = _began(relative, row + (what == "updates"), past)
        is_rise = len(rise[1]) and (rise[0] <= jump[0] or not len(jump[1]))
        first = rise if is_rise else jump
        began, blocks, told = first[0], first[1], _words(moves, first, bool(rise[2]))
        before = float(np.nanmedian(values[:row][-2 * _LAG :]))
        value = math.inf if np.isnan(values[row]) else float(values[row])
        event = Event(
            series=f"spike/{kind}",
            kind="spike",
            direction="up",
            onset_step=int(moves.steps[began]),
            onset_high=int(moves.steps[row]),
            detected_step=seen_at,
            baseline=before,
            value=value,
            layers=tuple(map(str, moves.blocks[blocks])),
            reason=f"from {before:.3g} to {value:.3g}; {told}",
        )
        found.append(event)
    return found


#: A row, the blocks that rose there first, what rose and how far; no words if that is not judged.
_First = tuple[int, np.ndarray, str]
_NONE = "no block is known to have moved first"


def _words(moves: Moves, first: _First, is_rise_judged: bool) -> str:
    """Where a spike began; what could not be judged is said."""
    row, blocks, told = first
    if len(blocks):
        names = some_of(tuple(map(str, moves.blocks[blocks])), len(blocks))
        return f"it began in {names} at step {moves.steps[row]:,}, where {told}"
    late = ("; slower rises are" if told else "its blocks are") * (not is_rise_judged or not told)
    return told + (late and f"{late} not yet judged: too few steps before it are known")


def _spikes_in(values: np.ndarray, what: str) -> list[int]:
    """Where a series without NaN spikes."""
    found: list[int] = []
    lasting, lone = _rises(values[:, None], _LAG), _rises(values[:, None], _BEFORE, 0, 1)
    for place in np.flatnonzero(_is_highest(values, 2 * _LAG)).tolist():
        height, is_spike = values[place], False
        for rises, num, once in ((lasting, _LEAST, 0.0), (lone, _FEW, _ALONE)):
            past = rises[:place][np.isfinite(rises[:place, 0])]
            if len(past) >= num and not (found and place - found[-1] < _SAME):
                reach = sum(_noise(past, _SPIKE, _LEAST_RISE[what] * abs(height), once))
                is_spike |= bool(height == math.inf or rises[place] > reach)
        if is_spike:
            lasting[place : place + _SAME] = lone[place : place + _SAME] = math.nan
            found.append(place)
    return found


def _began(relative: np.ndarray, row: int, earlier: list[int]) -> _First:
    """Where the first blocks rose ahead of a row, which they are, and how many times."""
    rises = _rises(relative[: row + _GOES_ON], _LEAD)
    past = rises[_past(row - _LEAD, earlier)]
    known = np.flatnonzero(np.isfinite(past).sum(axis=0) >= _LEAST)
    if not len(known):
        return row, known, ""
    middle, limit = _noise(past[:, known], _CLEAR, math.log(_RISE))
    recent = rises[row - _LEAD : row, known] - middle
    onsets = np.array([_onset(column) for column in (recent > limit).T])
    began = onsets.min()
    if began == _LEAD:
        return row, known[:0], _NONE
    # noise may hide the first steps of a block that rises with others
    foot = np.median(recent[began : began + 2 * _GOES_ON], axis=0)
    first = known[(onsets == began) | ((onsets < _LEAD) & (foot > limit / 2))]
    start = row - _LEAD + began
    before, since = relative[start - _LEAD : start, first], relative[start:row, first]
    rise = np.nanmedian(since, axis=0) - np.nanmedian(before, axis=0)
    first = first[rise >= math.log(_RISE)]
    return start, first, f"updates rose {math.exp(rise.max()):.1f}-fold"


def _jumped(jumps: np.ndarray, row: int, away: int, earlier: list[int]) -> _First:
    """Where the first blocks jumped at a row or ahead of it, ``away`` from the value before it."""
    lead = min(_LEAD, row // 3)
    columns = np.concatenate([*jumps], axis=1)
    past = columns[_past(row + 1 - lead, earlier)]
    known = np.flatnonzero(np.isfinite(past).sum(axis=0) >= _FEW)
    if not len(known):
        return row, known, ""
    # noise comes farther in many steps than in the one before the spike
    ahead = np.maximum(np.arange(lead, 0, -1) - away, 1)[:, None]
    middle, limit = _noise(past[:, known], _CLEAR, math.log(_RISE), _BESIDE * ahead)
    recent = columns[row + 1 - lead : row + 1, known] - middle
    far = np.where(np.isnan(recent), 0.0, recent / limit)
    began = _onset(np.any(far > 1.0, axis=1, keepdims=True)[:, 0])
    if began == lead:
        return row, known[:0], _NONE
    is_first = far[began] >= min(far[began].max() / 2, 1e300)
    kinds, first = np.divmod(known[is_first], jumps.shape[2])
    rise = recent[began, is_first]
    if rise.max() == math.inf and len(np.unique(first)) > 1:
        return row, known[:0], "several blocks at once had numbers that are not finite"
    much = f"{math.exp(rise.max()):,.1f}-fold" if rise.max() < 700 else "beyond all numbers"
    kind = ("updates", "weights", "gradients")[kinds[rise.argmax()]]
    return row + 1 - lead + began, np.unique(first), f"{kind} jumped {much} beside the others'"


def _past(end: int, earlier: list[int]) -> np.ndarray:
    """The latest rows before an end that are not of an earlier spike."""
    rows = np.arange(end)
    for spike in earlier:
        rows = rows[(rows < spike - _LEAD) | (rows >= spike + _SAME)]
    return rows[-_PAST:]


def _is_highest(values: np.ndarray, num: int) -> np.ndarray:
    """Whether each lies above as many before it."""
    padded = np.pad(values, (num, 0), constant_values=-math.inf)
    is_highest: np.ndarray = values > sliding_window_view(padded, num)[:-1].max(axis=-1)
    return is_highest


def _onset(is_above: np.ndarray) -> int:
    """Where that begins which goes on to the end, or nearly; the end if nothing does."""
    rows = np.append(np.flatnonzero(is_above), len(is_above))
    gaps = np.flatnonzero(np.diff(rows) > _APART)
    return int(rows[gaps[-1] + 1 if len(gaps) else 0])


def _rises(values: np.ndarray, lag: int, gap: int = -1, goes_on: int = _GOES_ON) -> np.ndarray:
    """[T, K]: how far each lies above the median of ``lag`` values, those ``gap`` before it."""
    first = lag + (lag if gap < 0 else gap)
    found = np.full(values.shape, math.nan)
    if len(values) <= first:
        return found
    known = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    filled = np.take_along_axis(values, np.maximum.accumulate(known), axis=0)
    padded = np.pad(filled, [(0, goes_on - 1), (0, 0)], constant_values=-math.inf)
    lasting = np.median(sliding_window_view(padded, goes_on, axis=0), axis=-1)
    with np.errstate(invalid="ignore"):  # of infinite ones
        usual = np.median(sliding_window_view(filled, lag, axis=0), axis=-1)
        found[first:] = np.minimum(filled, lasting)[first:] - usual[: len(values) - first]
    return found


def _noise(
    past: np.ndarray, clear: float, least: float, once: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The middle of the past, and how far above it noise comes, once in so many rows, by column."""
    middle, high = np.nanquantile(past, [0.5, 0.95], axis=0)
    spread = np.maximum(high - middle, least / clear + 1e-30)
    far = (past - middle) / spread
    far = np.sort(far[np.isfinite(far)]).clip(1e-9)
    # its tail as a power of how rare it is (Hill 1975)
    num = max(min(len(far) // 10, 100), min(len(far) // 4, 20))
    tail = min(float(np.log(far[-num:] / far[-num - 1]).mean()), _HEAVIEST)
    rarer = once / len(far) * past.shape[1]
    return middle, spread * np.maximum(clear, far[-1] * np.maximum(_BEYOND, rarer**tail))
