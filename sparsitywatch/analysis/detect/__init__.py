"""Detection of abrupt changes; :class:`AbruptChange` is the detector."""

from sparsitywatch.analysis.detect.detector import AbruptChange

__all__ = ["AbruptChange"]
