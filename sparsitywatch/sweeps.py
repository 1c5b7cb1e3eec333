"""Which levels are evaluated, and on how many examples: for ``sw.Settings(levels=)``."""

from sparsitywatch.pruning.sweep import Bisection, Grid, Racing, Sweep
from sparsitywatch.pruning.tracking import Tracking

__all__ = ["Bisection", "Grid", "Racing", "Sweep", "Tracking"]
