"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align", "count", "visible"]


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "look"), count(1200, "look")
    ('1 look', '1,200 looks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def visible(text: str) -> str:
    r"""Text of a file that a terminal shows and never obeys: control characters escaped.

    >>> print(visible("a\x1b[2J\n"))
    a\x1b[2J\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def align(rows: Sequence[tuple[str, ...]], right: set[int]) -> list[str]:
    """Lines with the cells below each other; the columns in ``right`` end together.

    >>> align([("run", "step"), ("a", "5")], right={1})
    ['run  step', 'a       5']
    """
    rows = [tuple(map(visible, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
