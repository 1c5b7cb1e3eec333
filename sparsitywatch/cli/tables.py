"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence

from sparsitywatch.shown import shown_name

__all__ = ["align", "count"]


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "look"), count(1200, "look")
    ('1 look', '1,200 looks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def align(rows: Sequence[tuple[str, ...]], right: set[int]) -> list[str]:
    """Lines with the cells below each other; the columns in ``right`` end together.

    >>> align([("run", "step"), ("a", "5")], right={1})
    ['run  step', 'a       5']
    """
    rows = [tuple(map(shown_name, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
