"""What watches a series and raises events: for ``sw.watch(detectors={series: detector})``."""

from sparsitywatch.analysis.detect import (
    AbruptChange,
    Detector,
    DormantRise,
    MeasuredChange,
    ValueChange,
)

__all__ = ["AbruptChange", "Detector", "DormantRise", "MeasuredChange", "ValueChange"]
