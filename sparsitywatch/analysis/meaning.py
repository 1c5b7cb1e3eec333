"""What the direction of a series says: does the model turn sparser, or denser?"""

from __future__ import annotations

__all__ = ["meaning_of"]

#: Series beside the near-zero fractions that rise when a model turns sparser.
_RISES_WITH_SPARSITY = (
    "motion/dormant",
    "weights/num_zero",
    "essential_sparsity/value",
    "essential_sparsity/last_crossing",
    "essential_sparsity/low",
    "essential_sparsity/high",
    "essential_sparsity/knee",
)


def meaning_of(series: str, direction: str) -> str:
    """Whether a model turns sparser or denser; empty for a series that does not say.

    The words are "sparsifying" and "densifying".

    Args:
        series: its name, as in ``Record.series()``.
        direction: "up" or "down".

    >>> meaning_of("near_zero/initial_0.1", "up"), meaning_of("essential_sparsity/value", "down")
    ('sparsifying', 'densifying')
    >>> meaning_of("value/reliance", "up"), meaning_of("motion/dormant_by_chance", "up")
    ('', '')
    """
    if not series.startswith("near_zero/") and series not in _RISES_WITH_SPARSITY:
        return ""
    return "sparsifying" if direction == "up" else "densifying"
