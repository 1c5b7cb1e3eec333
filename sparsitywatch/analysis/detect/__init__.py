"""Detection of abrupt changes: of any series, and of weights that no longer get a gradient."""

from sparsitywatch.analysis.detect.detector import AbruptChange, Detector, DormantRise

__all__ = ["AbruptChange", "Detector", "DormantRise"]
