"""Numbers by tensor over the snapshots, as small integers: maps, and magnitudes.

A share is a whole number of thousandths, so that it is shown as it is stored: 818 is 81.8 %.
Rows are stored as differences of neighbours, which are mostly 0 and cost next to nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import StateError
from sparsitywatch.records import Layers, Record
from sparsitywatch.sinks.jsonl import read_spectrum

#: Instead of thousandths, where nothing was measured.
_UNKNOWN = -1
_KINDS = ("near_zero", "dormant", "removed")
#: Ends of the magnitude bins: a quarter of a decade each.
_PER_DECADE = 4
#: Dtype of the spectra by name: the integers and floats of its bits, and the bits that a key drops.
_BITS = {
    "bfloat16": ("u4", "f4", 16),
    "float16": ("u2", "f2", 0),
    "float32": ("u4", "f4", 15),
    "float64": ("u8", "f8", 44),
    "float8_e4m3fn": ("u2", "f2", 0),
    "float8_e4m3fnuz": ("u2", "f2", 0),
    "float8_e5m2": ("u2", "f2", 0),
    "float8_e5m2fnuz": ("u2", "f2", 0),
    "float8_e8m0fnu": ("u4", "f4", 15),
}


def chosen(run: Run, most: int) -> list[int]:
    """Indices of snapshots to show: at most so many, evenly spread, and those of events."""
    number = len(run.records)
    if number <= most:
        return list(range(number))
    spread = np.linspace(0, number - 1, max(most, 2)).round().astype(int)
    told = {s for e in run.events for s in (e.onset_step, e.before_step, e.detected_step)}
    marked = np.flatnonzero(np.isin(run.steps, list(told)))
    return sorted({*spread.tolist(), *marked.tolist()})


# ------------------------------------------------------------------ maps


def maps(run: Run, columns: Sequence[int]) -> dict[str, Any]:
    """Shares by tensor and snapshot, as differences of thousandths from column to column."""
    rule = next(iter(run.rules), "")
    level = removal_level(run.records)
    place_of = {name: i for i, name in enumerate(run.tensors)}
    cells = {kind: np.full((len(place_of), len(columns)), math.nan) for kind in _KINDS}
    for t, index in enumerate(columns):
        record = run.records[index]
        layers, place = Layers.of(record.layers).columns, _place(record, level)
        rows = [place_of[name] for name in layers.names]
        cells["near_zero"][rows, t] = layers.near_zero.get(rule, math.nan)
        cells["dormant"][rows, t] = layers.dormant
        if place is not None and len(layers.removed):
            cells["removed"][rows, t] = layers.removed[place]
    return {
        "columns": list(columns),
        "level": level,
        "rows": {
            kind: np.diff(_thousandths(values), prepend=0).tolist()
            for kind, values in cells.items()
            if np.isfinite(values).any()
        },
    }


def removal_level(records: Sequence[Record]) -> float | None:
    """Of the levels that most snapshots asked for, the one nearest to a half; None without."""
    asked: Counter[float] = Counter()
    for record in records:
        if record.curve is not None:
            asked.update(level for level in record.curve.level or () if 0.0 < level < 1.0)
    most = max(asked.values(), default=0)
    candidates = [level for level, number in asked.items() if number == most]
    return min(candidates, key=lambda level: (abs(level - 0.5), level), default=None)


def _place(record: Record, level: float | None) -> int | None:
    """Where a level stands in a record's curve; None if it does not."""
    levels = list(() if record.curve is None else record.curve.level or ())
    return levels.index(level) if level is not None and level in levels else None


def _thousandths(shares: np.ndarray) -> np.ndarray:
    known = np.isfinite(shares)
    return np.where(known, np.round(1000.0 * np.where(known, shares, 0.0)), _UNKNOWN).astype(int)


# ------------------------------------------------------------------ magnitudes


def magnitudes(run: Run, columns: Sequence[int]) -> dict[str, Any] | None:
    """How large the weights are, by tensor and snapshot, from the stored spectra; None without.

    ``ends`` are log10; ``below``, in thousandths, and ``all``, in millionths, are shares up to each
    end, as differences from end to end.
    """
    found: list[tuple[int, Mapping[str, np.ndarray]]] = []
    for index in columns if run.directory is not None else ():
        try:
            stored = read_spectrum(run.directory, int(run.steps[index]))  # type: ignore[arg-type]
        except StateError:  # not of every snapshot: of one that failed there is none
            continue
        if "keys" in stored and set(stored["dtypes"].tolist()) <= set(_BITS):
            found.append((index, stored))
    if not found:
        return None
    limits = _limits([(_magnitudes(arrays), arrays["counts"]) for _, arrays in found])
    ends = np.log10(limits)
    names = run.tensors
    row = {name: i for i, name in enumerate(names)}
    below = np.full((len(names), len(found), len(ends)), _UNKNOWN, dtype=int)
    whole = np.zeros((len(found), len(ends)), dtype=int)
    for t, (_, arrays) in enumerate(found):
        shares, num_weights = cumulative(arrays, limits)
        rows = [row[name] for name in arrays["names"].tolist() if name in row]
        known = np.isin(arrays["names"], names)
        below[rows, t] = _thousandths(shares[known])
        total = (num_weights[:, None] * np.nan_to_num(shares)).sum(0) / max(num_weights.sum(), 1)
        whole[t] = np.round(1e6 * total)
    return {
        "columns": [index for index, _ in found],
        "ends": np.round(ends, 2).tolist(),
        "below": np.diff(below, prepend=0).tolist(),
        "all": np.diff(whole, prepend=0).tolist(),
    }


def cumulative(
    stored: Mapping[str, np.ndarray], limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Share of each tensor's finite weights with |w| up to each limit, and their number."""
    lengths = stored["num_bins"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    ends = _magnitudes(stored)
    counts = np.concatenate([[0], np.cumsum(stored["counts"].astype(np.int64))])
    found = np.zeros((len(lengths), len(limits)))
    total = counts[starts + lengths] - counts[starts]
    for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        places = np.searchsorted(ends[start : start + length], limits, side="right")
        found[i] = counts[start + places] - counts[start]
    with np.errstate(invalid="ignore", divide="ignore"):
        return found / total[:, None], total


def _magnitudes(stored: Mapping[str, np.ndarray]) -> np.ndarray:
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


def _limits(spectra: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Magnitudes, four a decade, around all but the smallest ten-thousandth of the weights."""
    low, high = [0], [0]
    for ends, counts in spectra:
        some = (ends > 0.0) & np.isfinite(ends)
        if not some.any():
            continue
        places = np.ceil(_PER_DECADE * np.log10(ends[some])).astype(int)
        first = int(places.min())
        shares = np.cumsum(np.bincount(places - first, weights=counts[some])) / counts.sum()
        low.append(first + int(np.searchsorted(shares, 1e-4)))
        high.append(int(places.max()))
    last = max(high[1:] or high)
    first = max(min(low[1:] or low), last - 12 * _PER_DECADE)  # what is smaller is as good as zero
    return 10.0 ** (np.arange(first, last + 1) / _PER_DECADE)
