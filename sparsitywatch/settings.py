"""What is measured and how: one object a run, shared by every way to run the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsitywatch.analysis.detect import AbruptChange, Detector, DormantRise
from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.errors import ConfigurationError, expect
from sparsitywatch.pruning.patterns import GlobalMagnitude, Pattern
from sparsitywatch.pruning.sweep import Bisection, Grid, Sweep
from sparsitywatch.weights.near_zero import DEFAULT_RULES, NearZeroRule

__all__ = ["DEFAULT_LEVELS", "Settings", "as_sweep", "default_detectors"]

#: Levels of the default sweep; the crossing is then closed in on by bisection.
DEFAULT_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured at every look, and how.

    Args:
        tolerance: the epsilon of essential sparsity.
        tolerance_mode: "relative" to the dense value, "absolute", or None: relative for
            losses, absolute for scores.
        confidence: nominal coverage of the interval.
        near_zero: names of the near-zero rules.
        pattern: what a level means.
        sweep: which levels are evaluated.

    Raises:
        ConfigurationError: a value is out of range; the argument is named.
    """

    tolerance: float = 0.01
    tolerance_mode: str | None = None
    confidence: float = 0.9
    near_zero: tuple[str, ...] = DEFAULT_RULES
    pattern: Pattern = field(default_factory=GlobalMagnitude)
    sweep: Sweep = field(default_factory=lambda: Bisection(DEFAULT_LEVELS))

    def __post_init__(self) -> None:
        mode = self.tolerance_mode
        is_mode = mode is None or (isinstance(mode, str) and mode in ("relative", "absolute"))
        expect(is_mode, "tolerance_mode", "'relative', 'absolute' or None", mode)
        allowed_harm(1.0, self.tolerance, self.mode(higher_is_better=False))  # refuses bad values
        if not 0.0 < self.confidence < 1.0:
            raise ConfigurationError(f"Expected `confidence` in (0, 1), got {self.confidence!r}.")
        if not self.near_zero:
            raise ConfigurationError("Expected `near_zero` with at least one rule, got none.")
        for name in self.near_zero:
            NearZeroRule.parse(name)

    def mode(self, *, higher_is_better: bool) -> str:
        """The tolerance mode that applies to a value of this direction."""
        if self.tolerance_mode is not None:
            return self.tolerance_mode
        return "absolute" if higher_is_better else "relative"


def default_detectors(settings: Settings) -> dict[str, Detector]:
    """What is watched, by name of the series."""
    return {
        "motion/dormant": DormantRise(),
        f"near_zero/{settings.near_zero[0]}": AbruptChange(),
    }


def as_sweep(levels: Sequence[float] | Sweep | None) -> Sweep:
    """The sweep that ``levels`` asks for.

    Raises:
        ConfigurationError: it asks for none.
    """
    if levels is None:
        return Bisection(DEFAULT_LEVELS)
    if isinstance(levels, Sequence):
        return Grid(tuple(levels))
    if not hasattr(levels, "choose"):
        raise ConfigurationError(
            f"Expected `levels` to be sparsities in [0, 1) or a sweep, got {levels!r}."
        )
    return levels
