"""Numbers as a person reads them on the page.

A number is written as ``<data value="0.3630">36.3 %</data>``: what is shown is rounded, the
attribute is the recorded number.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from markupsafe import Markup

from sparsitywatch.series import describe
from sparsitywatch.shown import shown_name

__all__ = [
    "Cell",
    "Number",
    "count",
    "fraction",
    "number_of",
    "plain",
    "printable",
    "seconds",
    "several",
]

_NOT_ALLOWED = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Number:
    """A number and how it is shown.

    Args:
        value: as it was recorded; NaN if it was not measured.
        text: rounded, with its unit.
    """

    value: float
    text: str

    def __str__(self) -> str:
        return self.text

    def __html__(self) -> str:
        if math.isnan(self.value):
            return Markup('<span class="none" title="not measured">{}</span>').format(self.text)
        return Markup('<data value="{}">{}</data>').format(repr(self.value), self.text)


#: What stands in a table.
Cell = Number | Markup | str


def fraction(x: float) -> Number:
    """A fraction in per cent, with three digits.

    >>> [str(fraction(x)).split() for x in (0.36301, 1.0, 0.0004)]
    [['36.3', '%'], ['100', '%'], ['0.04', '%']]
    """
    return _shown(x, f"{100 * x:.3g}{_NO_BREAK}%")


def plain(x: float) -> Number:
    """A number without a unit, or in that of the value, with four digits.

    >>> str(plain(2.30258)), str(plain(math.nan))
    ('2.303', '–')
    """
    return _shown(x, f"{x:.4g}")


def count(n: float) -> Number:
    """A whole number: a step, a number of weights.

    >>> str(count(84934656))
    '84,934,656'
    """
    whole = n if math.isnan(n) or math.isinf(n) else int(n)
    return _shown(whole, f"{whole:,}")


def several(number: int, noun: str) -> Markup:
    """So many of something."""
    return Markup("{} {}").format(count(number), noun if number == 1 else f"{noun}s")


def seconds(x: float) -> Number:
    """A time in seconds, or in a larger unit where it is long.

    >>> [str(seconds(x)).split() for x in (0.0123, 75.2, 7300.0)]
    [['0.0123', 's'], ['75.2', 's'], ['2.03', 'h']]
    """
    if x >= 3600.0:
        return _shown(x, f"{x / 3600.0:.3g}{_NO_BREAK}h")
    if x >= 600.0:
        return _shown(x, f"{x / 60.0:.3g}{_NO_BREAK}min")
    return _shown(x, f"{x:.3g}{_NO_BREAK}s")


_UNITS = {"fraction": fraction, "count": count, "steps": count, "s": seconds}


def number_of(series: str, x: float) -> Number:
    """A number of a series, in its unit."""
    return _UNITS.get(describe(series).unit, plain)(x)


def _shown(x: float, text: str) -> Number:
    # a number of numpy writes its type into its exact form
    exact = x if isinstance(x, int) else float(x)
    return Number(exact, "\N{EN DASH}" if math.isnan(x) else text)


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
