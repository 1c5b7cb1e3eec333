"""One pass over |w|: additive integer histograms that answer for every sparsity level."""

from sparsitywatch.weights.spectrum.magnitude import MagnitudeSpectrum, num_pruned

__all__ = ["MagnitudeSpectrum", "num_pruned"]
