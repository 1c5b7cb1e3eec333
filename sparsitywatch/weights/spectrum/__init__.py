"""One pass over |w|: additive integer histograms that answer for every sparsity level.

::

    bins.py       the bins of each float dtype: where they end, what they weigh
    histogram.py  integer counts of one tensor in those bins, which add; of many, which answer
    counting.py   one histogram per tensor: threads on CPU, few transfers from a device
    kernel.py     the same counting compiled, where numba is installed
    stored.py     the same of stored tensors, counted while they are read
    magnitude.py  MagnitudeSpectrum, the public face
"""

from sparsitywatch.weights.spectrum.magnitude import MagnitudeSpectrum, num_pruned

__all__ = ["MagnitudeSpectrum", "num_pruned"]
