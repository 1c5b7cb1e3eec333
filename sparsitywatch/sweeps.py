"""Which levels are evaluated, and on how many examples: for ``sw.Settings(sweep=)``."""

from sparsitywatch.pruning.racing import Racing
from sparsitywatch.pruning.sweeps import Bisection, Grid, Point, Sweep

__all__ = ["Bisection", "Grid", "Point", "Racing", "Sweep"]
