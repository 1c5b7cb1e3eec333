"""Detection of changes: of any series, and of weights that no longer get a gradient."""

from sparsitywatch.analysis.detect.detector import AbruptChange, Detector
from sparsitywatch.analysis.detect.dormant import DormantRise
from sparsitywatch.analysis.detect.measured import MeasuredChange

__all__ = ["AbruptChange", "Detector", "DormantRise", "MeasuredChange"]
