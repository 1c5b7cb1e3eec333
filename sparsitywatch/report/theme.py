"""How charts look: colours that the page turns for dark and light, and two sizes of paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsitywatch.sinks.drawing import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
)

__all__ = [
    "INK",
    "NARROW",
    "PAPER",
    "STYLE",
    "VARIABLES",
    "WIDE",
    "Paper",
    "new_axes",
    "value_axis",
]

#: Not quite black: matplotlib leaves out what is black, and the page could not turn it.
INK = "#101010"
#: Nor quite white: numbers on their badges turn with the page, lines on heatmaps do not.
PAPER = "#fefefe"

#: Colours of the drawings, and the variables of the page that they become.
VARIABLES = {
    INK: "ink",
    PAPER: "paper",
    BLUE: "blue",
    GREEN: "green",
    ORANGE: "orange",
    PURPLE: "purple",
    RED: "red",
    SKY: "sky",
    GREY: "grey",
    LIGHT: "light",
}

STYLE: dict[Any, object] = {
    "axes.labelcolor": INK,
    "lines.linewidth": 1.6,
    "path.simplify": False,  # every look is in the picture
    "text.color": INK,
    "text.parse_math": False,  # names of tensors are no formulas
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Paper:
    """A width to draw for; one inch is 96 pixels of the page.

    Args:
        name: "wide" or "narrow".
        width, left, right: of the whole and of its margins, in inches.
        num_ticks: labels that find room along the steps.
        font_size: in points.
    """

    name: str
    width: float
    left: float
    right: float
    num_ticks: int
    font_size: float


WIDE = Paper("wide", width=9.4, left=0.62, right=0.2, num_ticks=9, font_size=10.0)
NARROW = Paper("narrow", width=3.75, left=0.58, right=0.12, num_ticks=4, font_size=9.0)

_TOP, _BOTTOM = 0.3, 0.52


def new_axes(paper: Paper, height: float) -> tuple[Figure, Any]:
    """A figure with one set of axes whose margins are the same in every chart."""
    figure = new_figure(paper.width, height + _TOP + _BOTTOM)
    figure.set_layout_engine("none")
    whole = height + _TOP + _BOTTOM
    box = (
        paper.left / paper.width,
        _BOTTOM / whole,
        1.0 - (paper.left + paper.right) / paper.width,
        height / whole,
    )
    axes = figure.add_axes(box)
    axes.tick_params(labelsize=paper.font_size)
    return figure, axes


def value_axis(axes: Any, kind: str) -> None:
    """Round numbers along the vertical axis; the page says in words what they count.

    Args:
        kind: "fraction" is shown in per cent.
    """
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if kind == "fraction":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g} %"))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
