"""Histogram of log10|w| from the counts of a spectrum."""

from __future__ import annotations

import numpy as np

from sparsitywatch.records import LogHistogram
from sparsitywatch.weights.spectrum.histogram import Histogram

__all__ = ["log10_histogram"]


def log10_histogram(histogram: Histogram, bins_per_decade: int) -> LogHistogram:
    """Counts of the finite non-zero weights by decade fraction, trimmed to what is there."""
    start = int(histogram.keys.searchsorted(1))
    keys, counts = histogram.keys[start:], histogram.counts[start:]
    if not len(keys):
        return LogHistogram(edges=np.empty(0), counts=np.empty(0, np.int64))
    places = np.floor(histogram.bins.log10_middles[keys] * bins_per_decade).astype(np.int64)
    first, last = int(places[0]), int(places[-1])
    summed = np.zeros(last - first + 1, np.int64)
    np.add.at(summed, places - first, counts)
    return LogHistogram(edges=np.arange(first, last + 2) / bins_per_decade, counts=summed)
