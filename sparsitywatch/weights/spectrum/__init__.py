"""One pass over |w|: additive integer histograms that answer for every sparsity level.

::

    bins.py          the bins of each float dtype: where they end, what they weigh
    histogram.py     integer counts of one tensor in those bins; they add
    reading.py       tensors in, pieces of words out, by a pool of threads
    keys.py          from words to the bins that they belong to
    counter.py       what one thread counts into
    counting.py      one histogram per tensor: threads on CPU, one transfer per device
    stored.py        the same of stored tensors, counted while they are read
    kernel.py        the same counting compiled, where numba is installed
    loops.py         what is compiled
    distribution.py  cumulative counts: how many weights lie below t, which t reaches k
    layered.py       the same asked of every tensor at once, and their log10 histograms
    exact.py         a second pass inside the boundary bins only
    magnitude.py     MagnitudeSpectrum, the public face
"""

from sparsitywatch.weights.spectrum.distribution import num_pruned
from sparsitywatch.weights.spectrum.magnitude import MagnitudeSpectrum

__all__ = ["MagnitudeSpectrum", "num_pruned"]
