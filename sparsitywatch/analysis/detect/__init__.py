"""Detection of changes: of any series, of measured numbers, of the value itself."""

from sparsitywatch.analysis.detect.abrupt import AbruptChange
from sparsitywatch.analysis.detect.detector import Detector
from sparsitywatch.analysis.detect.measured import DormantRise, MeasuredChange
from sparsitywatch.analysis.detect.value import ValueChange

__all__ = ["AbruptChange", "Detector", "DormantRise", "MeasuredChange", "ValueChange"]
