"""Detection of changes: of any series, of measured numbers, of weights without a gradient."""

from sparsitywatch.analysis.detect.abrupt import AbruptChange
from sparsitywatch.analysis.detect.detector import Detector
from sparsitywatch.analysis.detect.measured import DormantRise, MeasuredChange

__all__ = ["AbruptChange", "Detector", "DormantRise", "MeasuredChange"]
