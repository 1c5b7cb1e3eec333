"""The histograms of a spectrum as a few plain arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sparsitywatch.errors import StateError
from sparsitywatch.weights.spectrum.bins import STORAGES
from sparsitywatch.weights.spectrum.histogram import Histogram

__all__ = ["pack", "unpack"]

#: Meaning of the keys; raised when the bins of a dtype change.
FORMAT = 1
_NAMES = ("format", "names", "dtypes", "num_bins", "num_inf", "num_nan", "keys", "counts")


def pack(histograms: Mapping[str, Histogram]) -> dict[str, np.ndarray]:
    """T tensors as arrays of length T, and ``keys`` and ``counts`` of all, one after another.

    Integers are as narrow as their largest value allows.
    """
    found = list(histograms.values())
    return {
        "format": np.array(FORMAT),
        "names": np.array(list(histograms), dtype=np.str_),
        "dtypes": np.array([STORAGES[h.dtype].name for h in found], dtype=np.str_),
        "num_bins": _narrow([np.array([len(h.keys) for h in found], np.int64)]),
        "num_inf": _narrow([np.array([h.num_inf for h in found], np.int64)]),
        "num_nan": _narrow([np.array([h.num_nan for h in found], np.int64)]),
        "keys": _narrow([h.keys for h in found]),
        "counts": _narrow([h.counts for h in found]),
    }


def unpack(stored: Mapping[str, np.ndarray]) -> dict[str, Histogram]:
    """The histograms that ``pack`` was given.

    Raises:
        StateError: an array is missing, or they contradict each other.
    """
    missing = [name for name in _NAMES if name not in stored]
    if missing:
        raise StateError(f"Expected the arrays of a spectrum, got none named {missing[0]!r}.")
    if int(stored["format"]) != FORMAT:
        raise StateError(
            f"Expected a spectrum of format {FORMAT}, got {int(stored['format'])}. Read it with "
            "the version of sparsitywatch that wrote it."
        )
    ends = np.cumsum(stored["num_bins"].astype(np.int64)).tolist()
    lengths = {name: len(stored[name]) for name in ("names", "dtypes", "num_inf", "num_nan")}
    total = ends[-1] if ends else 0
    if set(lengths.values()) != {len(ends)} or not (
        len(stored["keys"]) == len(stored["counts"]) == total
    ):
        raise StateError(
            f"Expected the arrays of a spectrum to agree on {len(ends)} tensors and {total} "
            f"bins, got {lengths}, {len(stored['keys'])} keys, {len(stored['counts'])} counts."
        )
    names = stored["names"].tolist()
    return {name: _unpack_one(stored, i, ends) for i, name in enumerate(names)}


def _unpack_one(stored: Mapping[str, np.ndarray], i: int, ends: list[int]) -> Histogram:
    part = slice(ends[i - 1] if i else 0, ends[i])
    name, dtype_name = str(stored["names"][i]), str(stored["dtypes"][i])
    dtype = getattr(torch, dtype_name, None)
    keys = stored["keys"][part].astype(np.int32)
    counts = stored["counts"][part].astype(np.int64)
    if dtype not in STORAGES:
        raise StateError(f"Expected a float dtype of torch for {name!r}, got {dtype_name!r}.")
    is_rising = bool(np.all(np.diff(keys, prepend=-1) > 0))
    if not is_rising or np.any(counts <= 0) or np.any(keys >= STORAGES[dtype].bins.inf_key):
        raise StateError(f"Expected rising bins with positive counts for {name!r}.")
    return Histogram(dtype, keys, counts, int(stored["num_inf"][i]), int(stored["num_nan"][i]))


def _narrow(parts: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return joined.astype(np.min_scalar_type(int(joined.max(initial=0))))
