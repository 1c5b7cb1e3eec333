"""One chart of the page: two drawings of the same thing, its legend, its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from sparsitywatch.report.numbers import Number
from sparsitywatch.report.svg import Strip, inline_svg
from sparsitywatch.report.theme import NARROW, WIDE, Paper

__all__ = ["Chart", "Key", "Table", "on_both_papers"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One line of a legend.

    Args:
        label: what it is.
        colour: a variable of the page, such as "blue".
        shape: "line", "dashed", "band" or "cross".
    """

    label: str
    colour: str
    shape: str = "line"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers in rows.

    Args:
        caption: what they are, with units.
        header: one text a column, and what the column is called in the records, if anything.
        rows: each as long as the header; the first cell names the row.
    """

    caption: str
    header: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Number | Markup | str]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the page shows of one thing.

    Args:
        key: its anchor.
        title: in a few words.
        text: what is seen and in which unit.
        unit: of the vertical axis, or of the colours.
        keys: the legend.
        wide, narrow: the drawings.
        table: the same in numbers.
        scale: colours of a heatmap as the ends of their range; None for lines.
    """

    key: str
    title: str
    text: str
    unit: str
    keys: Sequence[Key]
    wide: Markup
    narrow: Markup
    table: Table
    scale: tuple[Number, Number] | None = None


def on_both_papers(
    draw: Callable[[Paper], Figure],
    key: str,
    title: str,
    description: str,
    strips: Sequence[Strip] = (),
    marks: Sequence[str] = (),
) -> tuple[Markup, Markup]:
    """The wide and the narrow drawing; a narrow page is touched, and has no strips."""
    wide = inline_svg(draw(WIDE), f"{key}-wide", title, description, strips, marks)
    narrow = inline_svg(draw(NARROW), f"{key}-narrow", title, description, (), marks)
    return wide, narrow
