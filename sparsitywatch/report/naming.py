"""What a series is called on the page, and in which unit it is shown."""

from __future__ import annotations

import unicodedata

from sparsitywatch.shown import shown_name
from sparsitywatch.sinks.overview import rule_label

__all__ = ["kind_of", "label_of", "printable"]

_MASKS = "motion/mask_overlap_"
_LABELS = {
    "essential_sparsity/value": "essential sparsity",
    "essential_sparsity/low": "lower end of its interval",
    "essential_sparsity/high": "upper end of its interval",
    "essential_sparsity/last_crossing": "last crossing of the tolerance",
    "essential_sparsity/knee": "knee of the sparsity-value curve",
    "motion/dormant": "dormant weights",
    "motion/dormant_by_chance": "what passes as dormant by chance",
    "motion/update_to_weight": "size of the update, beside that of the weights",
    "motion/sign_flips": "weights that changed sign",
    "motion/decay_clock": "decay clock",
    "motion/lr": "learning rate",
    "value/dense": "value of the model as it is",
    "value/all_removed": "value with every in-scope weight removed",
    "value/reliance": "reliance",
    "weights/num_zero": "weights that are exactly zero",
    "weights/num_nan": "weights that are NaN",
    "weights/num_inf": "weights that are infinite",
}
_NOT_ALLOWED = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")
_FRACTIONS = (
    "essential_sparsity/value",
    "essential_sparsity/low",
    "essential_sparsity/high",
    "essential_sparsity/last_crossing",
    "essential_sparsity/knee",
    "motion/dormant",
    "motion/dormant_by_chance",
    "motion/update_to_weight",
    "motion/sign_flips",
)


def label_of(series: str) -> str:
    """What a series is called in a sentence.

    >>> label_of("near_zero/initial_0.1"), label_of("motion/dormant"), label_of("new/series")
    ('near-zero weights, |w| ≤ 0.1 × first rms', 'dormant weights', 'new/series')
    >>> label_of("motion/mask_overlap_0.7")
    'weights that removing 70% takes again'
    """
    room, _, rule = series.partition("/")
    if room == "near_zero" and rule:
        return f"near-zero weights, {rule_label(rule).replace(' x ', ' × ')}"
    if series.startswith(_MASKS):
        return f"weights that removing {float(series.removeprefix(_MASKS)):.0%} takes again"
    return _LABELS.get(series, series)


def kind_of(series: str) -> str:
    """How its numbers are shown: "fraction", "count" or "plain"."""
    if series.startswith(("near_zero/", _MASKS)) or series in _FRACTIONS:
        return "fraction"
    return "count" if series.startswith("weights/num_") else "plain"


def printable(text: str) -> str:
    r"""Text that HTML and SVG can hold: the rest is escaped as on a terminal.

    So are marks that turn the direction of writing. Spaces of every width stay.

    >>> print(printable(chr(0) + "a" + chr(0x202E)))
    \x00a\u202e
    """
    return "".join(c if _is_allowed(c) else shown_name(c) for c in text)


def _is_allowed(character: str) -> bool:
    """Whether XML 1.0 takes a character, browsers do not warn of it, and it moves no other."""
    return character in "\t\n\r" or unicodedata.category(character) not in _NOT_ALLOWED
