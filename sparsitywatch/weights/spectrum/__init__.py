"""One pass over |w|: additive integer histograms that answer for every sparsity level.

::

    histogram.py  the bins of each float dtype; counts of one tensor, which add; of many
    counting.py   one histogram per tensor: by threads, on a device, while stored ones are read
    kernel.py     the same counting compiled, where numba is installed
    magnitude.py  MagnitudeSpectrum, the public face
"""

from sparsitywatch.weights.spectrum.magnitude import MagnitudeSpectrum, num_pruned

__all__ = ["MagnitudeSpectrum", "num_pruned"]
