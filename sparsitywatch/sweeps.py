"""Which levels are evaluated, and on how many examples: for ``sw.Settings(sweep=)``."""

from sparsitywatch.pruning.sweeps import Bisection, Grid, Point, Racing, Sweep

__all__ = ["Bisection", "Grid", "Point", "Racing", "Sweep"]
