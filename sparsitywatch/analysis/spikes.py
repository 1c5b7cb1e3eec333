"""Where a spike of the loss began: in which blocks of a model updates rose before it, and when.

A series rises where a value, and the median of the five from it on, lie above the usual, a median
of earlier ones. It jumps where a lone value lies above the ten before it, farther than the tail of
its past comes once in very many steps. How far noise comes is read off the past of all blocks, each
in its own units: noise that comes in waves, or in bursts, has risen as far before.
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
#: Values that a lone one is compared with, and that its past has at least.
_BEFORE, _FEW = 10, 20
#: A spike, and a block's rise, lies so many times as far above the middle as 19 of 20 values of the
#: past, and that many times as far as any; it is by such a share at least, or to so many times.
_SPIKE, _CLEAR, _BEYOND, _LEAST_RISE, _RISE = 3.5, 2.5, 1.25, {"loss": 0.01, "updates": 0.33}, 1.5
#: Noise comes as far as a jump once in so many values: of a block beside a spike, or by itself. No
#: tail is taken to be heavier than this power: short pasts make any look heavy.
_BESIDE, _ALONE, _HEAVIEST = 5e3, 3e5, 0.45
#: A block that jumps by itself does so at least so many times as far as half of the blocks.
_APART = 4.0
#: Spikes so many steps apart are one, and so are rises of a block.
_SAME, _GAP = 200, 20
#: What jumps, by itself or beside other blocks: the last is an update that no gradient explains.
_QUANTITIES = ("updates", "gradients", "weights") * 2 + ("updates",)
_GROUPS = slice(6, 7), slice(0, 3), slice(3, 6)
_TO_JUMP, _TO_RISE = 3 * (_BEFORE + _FEW + 1) // 2, 3 * _LEAD + _LEAST


@dataclass(frozen=True)
class Moves:
    """What each of T steps did to each of B blocks of a model; NaN where that is not known."""

    blocks: np.ndarray  # str [B]
    steps: np.ndarray  # int [T], rising
    loss: np.ndarray  # [T], as the training reports it; infinite where it was no number
    update: np.ndarray  # [T, B], root mean squares, infinite where one was no number
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
        """[7, T, B], how far logarithms of ``_QUANTITIES`` lie above the ten steps before."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.stack([self.update, self.gradient, self.weight]))
            known = np.where(np.isneginf(logs), np.nan, logs)
            own = np.stack([_rises(one, _BEFORE, 0, 1) for one in known])
            own[np.isnan(known)] = np.nan
            beside = own - _median(own)
            return np.concatenate([own, beside, own[:1] - np.fmax(own[1:2], 0.0)])


#: A row, the blocks that moved there first, what did so and how many times, which blocks are known.
_First = tuple[int, np.ndarray, str, float, np.ndarray]


def find_spikes(moves: Moves, *, seen_at: int = -1, after: int = -1) -> list[Event]:
    """Each spike later than a step, by rising steps; of several within 200 steps the first.

    Its onset lies between the first rise of updates, those of ``layers``, and the spike.
    """
    relative, jumps = moves.relative, moves.jumps
    num_known = int((~np.isnan(moves.loss)).sum())
    is_loss_known = num_known >= min(_LEAST, len(moves.loss) / 2)
    of_all = np.sqrt(np.nansum(np.exp(2.0 * relative), axis=1))
    series, what = (moves.loss, "loss") if is_loss_known else (of_all, "updates")
    rows = np.flatnonzero(~np.isnan(series))
    places = _spikes_in(series[rows], _LEAST_RISE[what])
    spikes = {int(rows[place]): int(rows[place - 1]) for place in places}
    alone, found = _alone_in(jumps, list(spikes)), []
    every = sorted([*spikes, *alone])
    for number, row in enumerate(every):
        if moves.steps[row] <= after:
            continue
        # a spike of the updates themselves begins with them
        rise = _began(relative, row + (not is_loss_known), every[:number])
        jump = _jumped(jumps, row, row - spikes.get(row, row - 1), every[:number])
        began, blocks, told = _told(moves, row, rise, jump)
        values = series
        if row in alone:
            what = jump[2].split()[0]
            values = dict(zip(_QUANTITIES, (moves.update, moves.gradient, moves.weight)))[what][:, blocks[0]]
        past = values[:row][~np.isnan(values[:row])][-2 * _LAG :]
        before, value = float(np.median(past)), float(values[row])
        event = Event(
            series=f"spike/{what}",
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


def _told(moves: Moves, row: int, rise: _First, jump: _First) -> tuple[int, np.ndarray, str]:
    """Where a spike began, in which blocks, and words; what could not be judged is said."""
    is_rise = len(rise[1]) > 0 and (rise[0] <= jump[0] or np.array_equal(rise[1], jump[1]))
    began, blocks, moved, times, _ = rise if is_rise or not len(jump[1]) else jump
    is_known = rise[4] | jump[4]
    if len(blocks):
        names = some_of(tuple(map(str, moves.blocks[blocks])), len(blocks))
        much = f"{times:,.1f}-fold" if times < math.inf else "beyond all numbers"
        told = f"it began in {names} at step {moves.steps[began]:,}, where {moved} {much}"
    elif jump[3] == math.inf:
        told = f"no block came first: at step {moves.steps[jump[0]]:,} all had numbers that are not finite"
    elif is_known.any():
        told = "no block's updates or gradients rose before it"
    else:
        told = "the block that it began in could not be judged"
    if is_known.any() and not is_known.all():
        told += f"; {(~is_known).sum()} of {len(is_known)} blocks could not be judged"
    for num, kind in ((_TO_JUMP, "blocks are"), (_TO_RISE, "slower rises are")):
        if row < num and not len(blocks):
            told += f"; {kind} judged from step {moves.steps[0] + num:,} on"
    return began if len(blocks) else row, blocks, told


def _spikes_in(values: np.ndarray, least: float) -> list[int]:
    """Where a series without NaN spikes, by at least such a share of its value."""
    found: list[int] = []
    rises, jumps = _rises(values[:, None], _LAG), _rises(values[:, None], _BEFORE, 0, 1)
    padded = np.pad(values, (2 * _LAG, 0), constant_values=-math.inf)
    highest = sliding_window_view(padded, 2 * _LAG)[:-1].max(axis=-1)
    for place in np.flatnonzero(values > highest).tolist():
        lasting, lone = (one[:place][np.isfinite(one[:place, 0])] for one in (rises, jumps))
        if len(lone) < _FEW or (found and place - found[-1] < _SAME):
            continue
        noise = (_SPIKE, least * abs(values[place]))
        is_spike = values[place] == math.inf
        if not is_spike and len(lasting) >= _LEAST:
            is_spike = rises[place] > _Noise(lasting, *noise).reach()
        if not is_spike:
            is_spike = jumps[place] > _Noise(lone, *noise).reach(_ALONE)
        if is_spike:
            rises[place : place + _SAME] = jumps[place : place + _SAME] = math.nan
            found.append(place)
    return found


def _alone_in(jumps: np.ndarray, spikes: list[int]) -> list[int]:
    """Where a block jumps so far beside others that this alone is a spike, though none is near."""
    found: list[int] = []
    beside = jumps[3:6]
    for row in np.flatnonzero((beside > math.log(_APART)).any(axis=(0, 2))).tolist():
        earlier = [one for one in spikes if one <= row] + found
        is_near = any(one - _LEAD <= row for one in spikes if one > row)
        if is_near or (earlier and row - max(earlier) < _SAME):
            continue
        if any(_beyond(one, row, earlier, _ALONE)[1][-1].any() for one in beside):
            found.append(row)
    return found


def _began(relative: np.ndarray, row: int, earlier: list[int]) -> _First:
    """Where the first blocks rose ahead of a row, which they are, and how many times."""
    rises = _rises(relative[: row + _GOES_ON], _LEAD)
    past = rises[_past(row - _LEAD, earlier)]
    is_known = np.isfinite(past).sum(axis=0) >= _LEAST
    known = np.flatnonzero(is_known)
    if not len(known):
        return row, known, "", math.nan, is_known
    noise = _Noise(past[:, known], _CLEAR, math.log(_RISE))
    recent, limit = rises[row - _LEAD : row, known] - noise.middle, noise.limit()
    onsets = np.array([_onset(column) for column in (recent > limit).T])
    began = onsets.min()
    if began == _LEAD:
        return row, known[:0], "", math.nan, is_known
    # noise may hide the first steps of a block that rises with others
    foot = np.median(recent[began : began + 2 * _GOES_ON], axis=0)
    first = known[(onsets == began) | ((onsets < _LEAD) & (foot > limit / 2))]
    start = row - _LEAD + began
    before, since = relative[start - _LEAD : start, first], relative[start:row, first]
    rise = np.nanmedian(since, axis=0) - np.nanmedian(before, axis=0)
    first = first[rise >= math.log(_RISE)]
    return start, first, "updates rose", math.exp(rise.max()), is_known


def _jumped(jumps: np.ndarray, row: int, away: int, earlier: list[int]) -> _First:
    """Where the first blocks jumped ahead of a row, or at it, ``away`` from the value before it."""
    lead = _lead(row)
    once = _BESIDE * np.maximum(np.arange(lead, 0, -1) - away, 1)[:, None]
    usual, far, known = (np.array(one) for one in zip(*(_beyond(j, row, earlier, once) for j in jumps)))
    is_known = known[:2].any(axis=0)
    began = _onset(far.any(axis=(0, 2)), _GAP + away)
    if began == lead:
        return row, np.arange(0), "", math.nan, is_known
    start = row + 1 - lead + began
    group = next(one for one in _GROUPS if far[one, began].any())
    first = np.flatnonzero(usual[group, began].any(axis=0))
    own = np.nan_to_num(jumps[:, start], nan=-math.inf, posinf=math.inf)
    if (own[:3].max(axis=0) == math.inf).all():
        return start, np.arange(0), "", math.inf, is_known
    kind, _ = np.unravel_index(own[group][:, first].argmax(), (len(own[group]), len(first)))
    kind += group.start
    beside = " beside other blocks'" if group.start == 3 else ""
    times = math.exp(min(own[kind % 6, first].max(), 700))
    return start, first, f"{_QUANTITIES[kind]} jumped{beside}", times, is_known


def _beyond(jumps, row, earlier, once):
    """[W, B]: which jumps up to a row come farther than noise does, or does once in so many steps."""
    lead = _lead(row)
    past, recent = jumps[_past(row + 1 - lead, earlier)], jumps[row + 1 - lead : row + 1]
    usual, far = np.zeros((2, *recent.shape), bool)
    known = np.isfinite(past).sum(axis=0) >= _FEW
    if known.any():
        noise = _Noise(past[:, known], _CLEAR, math.log(_RISE))
        usual[:, known] = recent[:, known] > noise.middle + noise.limit()
        far[:, known] = recent[:, known] > noise.middle + noise.limit(once)
    return usual, far, known


def _lead(row): return min(_LEAD, row // 3)


def _past(end: int, earlier: list[int]) -> np.ndarray:
    rows = np.arange(end)
    for spike in earlier:
        rows = rows[(rows < spike - _LEAD) | (rows >= spike + _SAME)]
    return rows[-_PAST:]


def _onset(is_above: np.ndarray, gap: int = _GAP) -> int:
    """Where that begins which goes on to the end, or nearly; the end if nothing does."""
    rows = np.append(np.flatnonzero(is_above), len(is_above))
    gaps = np.flatnonzero(np.diff(rows) > gap)
    return int(rows[gaps[-1] + 1 if len(gaps) else 0])


def _median(values):
    """The lower median along the last axis of what is known."""
    num = (~np.isnan(values)).sum(axis=-1, keepdims=True)
    return np.take_along_axis(np.sort(values, axis=-1), np.maximum(num - 1, 0) // 2, axis=-1)


def _rises(
    values: np.ndarray, lag: int, gap: int | None = None, goes_on: int = _GOES_ON
) -> np.ndarray:
    """[T, K]: how far each lies above the median of ``lag`` that end ``gap`` before it."""
    gap = lag if gap is None else gap
    found = np.full(values.shape, math.nan)
    if len(values) <= lag + gap:
        return found
    known = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    filled = np.take_along_axis(values, np.maximum.accumulate(known), axis=0)
    padded = np.pad(filled, [(0, goes_on - 1), (0, 0)], constant_values=-math.inf)
    lasting = np.median(sliding_window_view(padded, goes_on, axis=0), axis=-1)
    first = lag + gap
    with np.errstate(invalid="ignore"):  # of infinite ones
        usual = np.median(sliding_window_view(filled, lag, axis=0), axis=-1)
        found[first:] = np.minimum(filled, lasting)[first:] - usual[: len(values) - first]
    return found


class _Noise:
    """How far noise comes, read off the past of all columns, each in its own units."""

    def __init__(self, past: np.ndarray, clear: float, least: float) -> None:
        self.middle, high = np.nanquantile(past, [0.5, 0.95], axis=0)
        self._spread, self._clear = np.maximum(high - self.middle, least / clear + 1e-30), clear
        far = (past - self.middle) / self._spread
        self._far = np.sort(far[np.isfinite(far)]).clip(1e-9)
        self._steps = len(self._far) / past.shape[1]

    def reach(self, once=None):
        return self.middle + self.limit(once)

    def limit(self, once=None) -> np.ndarray:
        """How far above the middle noise comes, or does once in so many steps, by column."""
        far, beyond = self._far, _BEYOND
        if once is not None:
            num = max(min(len(far) // 10, 100), min(len(far) // 4, 20))
            tail = min(float(np.log(far[-num:] / far[-num - 1]).mean()), _HEAVIEST)
            beyond = np.maximum(beyond, (once / self._steps) ** tail)
        return self._spread * np.maximum(self._clear, beyond * far[-1])
