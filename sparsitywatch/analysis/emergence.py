"""Near zero by every threshold at once, and which threshold makes an abrupt turn, if any.

What counts as near zero is a choice, and a turn that one choice shows may be that choice's own. The
spectra of a log hold the share of the weights below any threshold, so all of them are asked.

Shapes: K thresholds, T snapshots, N tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsitywatch.analysis.detect.abrupt import AbruptChange
from sparsitywatch.analysis.detect.detector import LATEST, Array
from sparsitywatch.analysis.detect.jumps import MIN_SNAPSHOTS
from sparsitywatch.analysis.events import context_of
from sparsitywatch.records import Event, Layers, Record
from sparsitywatch.series import count, describe, numbered

#: Grid: preferred numbers, six a decade, from where hardly a weight of a root mean square of 1 is
#: below to where hardly one is above.
_GRID = [float(f"{x}e{d}") for d in range(-4, 1) for x in ("1", "1.5", "2.2", "3.3", "4.7", "6.8")]
#: Smallest change of a share that is worth a word, as of the rules that a watch follows.
_MIN_EFFECT = 0.01


# ------------------------------------------------------------------ stored spectra

#: Dtype of the spectra by name: the integers and floats of its bits, and the bits that a key drops.
_HALVES = ("float16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
_BITS = {
    **dict.fromkeys(_HALVES, ("u2", "f2", 0)),
    **dict.fromkeys(("float32", "float8_e8m0fnu"), ("u4", "f4", 15)),
    "bfloat16": ("u4", "f4", 16),
    "float64": ("u8", "f8", 44),
}


def is_counted(stored: Mapping[str, np.ndarray]) -> bool:
    """Whether stored arrays are of a spectrum whose bins are known here."""
    return "keys" in stored and set(stored["dtypes"].tolist()) <= set(_BITS)


def bin_ends(stored: Mapping[str, np.ndarray]) -> Array:
    """The largest magnitude of each stored bin, float64."""
    keys, lengths = stored["keys"], stored["num_bins"].astype(np.int64)
    dtypes, kind_of = np.unique(stored["dtypes"], return_inverse=True)
    kinds = np.repeat(kind_of, lengths) if len(dtypes) > 1 else np.zeros(len(keys), np.int8)
    ends = np.zeros(len(keys))
    for kind, name in enumerate(dtypes.tolist()):
        integers, floats, shift = _BITS[name]
        own = kinds == kind
        bits = keys[own].astype(integers) << np.dtype(integers).type(shift)
        ends[own] = bits.view(floats)
    return ends


def counted(stored: Mapping[str, np.ndarray], limits: Array) -> tuple[np.ndarray, np.ndarray]:
    """Weights of each tensor up to limits, [K] or [N, K], as [N, K]; and all finite ones, [N]."""
    lengths = stored["num_bins"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    ends = bin_ends(stored)
    counts = np.concatenate([[0], np.cumsum(stored["counts"].astype(np.int64))])
    each = np.broadcast_to(limits, (len(lengths), limits.shape[-1]))
    found = np.zeros(each.shape, np.int64)
    for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        places = np.searchsorted(ends[start : start + length], each[i], side="right")
        found[i] = counts[start + places] - counts[start]
    return found, counts[starts + lengths] - counts[starts]


def to_bin_end(x: Array) -> Array:
    """The nearest number of nine significant bits: no bin of any dtype has it inside."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 512.0) / 512.0, exponent)


# ------------------------------------------------------------------ the surface


@dataclass(frozen=True, kw_only=True)
class Emergence:
    """The share of near-zero weights by threshold and step, and where it turns abruptly.

    Attributes:
        unit: what steps count.
        steps: of the T snapshots whose spectra the log has, int [T].
        thresholds: names of the K near-zero rules: "abs_0.001", "initial_0.1" (of each tensor's
            first root mean square), "rms_0.1" (of its present one). Each is taken to the nearest
            end of a bin, at most 0.2 % away, so that shares are counted exactly.
        shares: of the in-scope weights, float [K, T].
        turns: events of ``AbruptChange`` in the order of the thresholds; their ``series`` is
            "near_zero/" and the threshold. The ``kind`` is "abrupt" if its onset is known to a
            quarter of the run so far, and if a neighbouring threshold shows the same; else
            "gradual", or "steady". It is "by itself" if no event of the log tells of it: no rule
            that the watch follows counts these weights.
        told: the events of the log in near-zero weights.
    """

    unit: str
    steps: np.ndarray
    thresholds: tuple[str, ...]
    shares: np.ndarray
    turns: tuple[Event, ...]
    told: tuple[Event, ...] = ()

    @property
    def tested(self) -> np.ndarray:
        """Which shares move by a point or more, and are tested for a turn, bool [K]."""
        return np.asarray(np.ptp(self.shares, axis=1) >= _MIN_EFFECT)

    @property
    def conclusions(self) -> list[str]:
        """What the thresholds say together: of turns to sparse, and of turns to dense."""
        if len(self.steps) < MIN_SNAPSHOTS and not self.turns:
            few = count(len(self.steps), "snapshot")
            return [f"{few} cannot show a turn: it takes about {MIN_SNAPSHOTS}."]
        return [_conclusion(self, "up", "sparse"), _conclusion(self, "down", "dense")]


def _conclusion(found: Emergence, direction: str, where: str) -> str:
    own = [turn for turn in found.turns if turn.direction == direction]
    turns, alone = ([t for t in own if t.kind == kind] for kind in ("abrupt", "by itself"))
    words = f"No threshold makes an abrupt turn to {where}."
    if turns:
        number, of = len({t.series for t in turns}), count(len(found.thresholds), "threshold")
        words = f"{number} of {of} make an abrupt turn to {where}, {_largest(turns)}, "
        turn = max(turns, key=lambda turn: abs(turn.size))
        words += f"begun between {numbered(found.unit, turn.onset_low, turn.onset_high)}."
    elif rises := [event for event in found.told if _way(event) == direction]:
        words += f" The watch told of another change: {rises[-1].headline}."
    if alone:
        few = count(len({t.series for t in alone}), "threshold")
        words += f" By {few} alone it turns, {_largest(alone)}: no rule of the watch shows that."
    return words


def _largest(turns: Sequence[Event]) -> str:
    turn = max(turns, key=lambda turn: abs(turn.size))
    row = describe(turn.series)
    return f"the largest {row.short_label}: {row.shown(turn.baseline)} to {row.shown(turn.value)}"


def _way(event: Event) -> str:
    """Where near-zero weights go by an event of the log; of single tensors they rise."""
    return "up" if event.kind in ("sparser", "sparse") else event.direction


def _is_told(turn: Event, told: Sequence[Event]) -> bool:
    """Whether an event of the log is of the same change."""
    return any(
        _way(event) == turn.direction
        and event.onset_low <= turn.detected_step
        and turn.onset_low <= event.detected_step
        for event in told
    )


#: A record of finite weights, and the arrays of its spectrum.
Look = tuple[Record, Mapping[str, Any]]


def emergence(
    looks: Sequence[Look], initial: Mapping[str, float], events: Sequence[Event], unit_of_steps: str
) -> Emergence:
    """What ``Run.emergence`` returns, of what its log has."""
    largest = max((rms for rms in initial.values() if 0.0 < rms < math.inf), default=1.0)
    unit = 10.0 ** math.ceil(math.log10(largest))
    shares = np.array([_shares(*look, unit, initial) for look in looks]).T
    kinds = ((f"abs_{x * unit:g}", f"initial_{x:g}", f"rms_{x:g}") for x in _GRID)
    thresholds = tuple(name for names in zip(*kinds, strict=True) for name in names)
    steps = np.array([record.step for record, _ in looks])
    contexts = [context_of(record, record.series()) for record, _ in looks]
    seen = turns_of(steps, shares, contexts)
    told = tuple(e for e in events if e.series.startswith(("near_zero/", "tensors/")))
    turns = [
        replace(
            turn, series=f"near_zero/{name}", unit=unit_of_steps,
            kind="by itself" if turn.kind == "abrupt" and not _is_told(turn, told) else turn.kind,
        )
        for name, own in zip(thresholds, seen, strict=True)
        for turn in own
    ]  # fmt: skip
    return Emergence(
        unit=unit_of_steps, steps=steps, thresholds=thresholds, shares=shares, turns=tuple(turns),
        told=told,
    )  # fmt: skip


def _shares(
    record: Record, stored: Mapping[str, np.ndarray], unit: float, initial: Mapping[str, float]
) -> Array:
    """Of all weights of one snapshot up to each threshold, [K]."""
    columns = Layers.of(record.layers).columns
    names = stored["names"].tolist()
    rms = dict(zip(columns.names, columns.numbers["rms"].tolist(), strict=True))
    scales = [[unit] * len(names), [initial[name] for name in names], [rms[name] for name in names]]
    limits = np.concatenate([np.outer(own, _GRID) for own in scales], axis=1)
    limits = np.nan_to_num(to_bin_end(limits), nan=-1.0)  # without a scale nothing is near zero
    counts, totals = counted(stored, limits)
    return np.asarray(counts.sum(axis=0) / max(int(totals.sum()), 1))


# ------------------------------------------------------------------ the turns


def turns_of(
    steps: np.ndarray, shares: Array, contexts: Sequence[Mapping[str, float]]
) -> list[list[Event]]:
    """The events of each of K thresholds of rising size, as one family."""
    tested = np.flatnonzero(np.ptp(shares, axis=1) >= _MIN_EFFECT)
    seen: list[list[Event]] = [[] for _ in shares]
    for k in tested:
        # each is a chance to be fooled, though neighbours are correlated: at scores of 5 and more
        # two of them with correlation 0.8 are hardly ever high together (docs/reports/detection.md)
        detector = AbruptChange(_MIN_EFFECT, family=len(tested))
        each = zip(steps.tolist(), shares[k].tolist(), contexts, strict=True)
        found = [detector.update(step, value, context) for step, value, context in each]
        seen[k] = [event for event in found if event is not None]
    near = [[*below, *above] for below, above in zip([[], *seen], [*seen[1:], []], strict=False)]
    first = int(steps[0])
    return [
        [_judged(event, others, first) for event in own]
        for own, others in zip(seen, near, strict=True)
    ]


def _judged(event: Event, near: Sequence[Event], first: int) -> Event:
    """An event as "gradual", unless it can be dated and a neighbouring threshold shows it, too."""
    # growth without a date came all along; chance, or a curve that no model fits, is of one alone
    is_shown = any(
        _is_dated(one, first)
        and one.direction == event.direction
        and one.onset_low <= event.detected_step
        and event.onset_low <= one.detected_step
        for one in near
    )
    is_turn = event.kind != "abrupt" or (is_shown and _is_dated(event, first))
    return event if is_turn else replace(event, kind="gradual")


def _is_dated(event: Event, first: int) -> bool:
    """Whether the onset of an abrupt change is known to a quarter of the run until it was seen."""
    so_far = event.detected_step - first
    return event.kind == "abrupt" and event.onset_high - event.onset_low <= LATEST * so_far
