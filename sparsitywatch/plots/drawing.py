"""How drawings look: one style, whatever the user's own matplotlib settings are."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = [
    "BLACK",
    "BLUE",
    "COLOURS",
    "DASHED",
    "DOTTED",
    "GREEN",
    "GREY",
    "LIGHT",
    "NARROW",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "RED",
    "SKY",
    "WIDE",
    "Paper",
    "encode_png",
    "new_axes",
    "new_figure",
    "percent",
    "save_figure",
    "styled",
    "value_axis",
]

P = ParamSpec("P")
T = TypeVar("T")

#: Okabe and Ito's colours, which colour-blind people can tell apart, by their names in a page,
#: which turns them for dark and light. Not quite black: SVG leaves out what is.
COLOURS = {
    "blue": "#0072b2",
    "green": "#009e73",
    "orange": "#e69f00",
    "purple": "#cc79a7",
    "red": "#d55e00",
    "sky": "#56b4e9",
    "grey": "#6e6e6e",
    "light": "#dedede",
    "ink": "#101010",
    "paper": "#fefefe",
}
BLUE, GREEN, ORANGE, PURPLE, RED, SKY, GREY, LIGHT, BLACK, PAPER = COLOURS.values()
DASHED, DOTTED = (0, (4, 2)), (0, (1, 2))

_STYLE: dict[Any, object] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": BLACK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify": False,  # every snapshot is in the picture
    "text.color": BLACK,
    "text.parse_math": False,  # names of tensors are no formulas
    "xtick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.color": GREY,
    "ytick.labelcolor": BLACK,
}


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """A function that draws in the style of this package and leaves the user's untouched."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            return function(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, at 100 dots per inch, that no window knows of."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def percent(axis: Any) -> None:
    """Label an axis of fractions in per cent."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g} %"))


@styled
def encode_png(figure: Figure) -> tuple[bytes, tuple[int, int]]:
    """A figure as PNG, and its size (width, height) in pixels."""
    buffer = io.BytesIO()
    # savefig would lay out and draw everything twice
    canvas: Any = figure.canvas
    canvas.print_png(buffer)
    width, height = figure.canvas.get_width_height()
    return buffer.getvalue(), (width, height)


@styled
def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file; its ending says the format.

    Args:
        path: its folder is made if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------ for a page


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
    whole = height + _TOP + _BOTTOM
    figure = new_figure(paper.width, whole)
    figure.set_layout_engine("none")
    width = 1.0 - (paper.left + paper.right) / paper.width
    axes = figure.add_axes((paper.left / paper.width, _BOTTOM / whole, width, height / whole))
    axes.tick_params(labelsize=paper.font_size)
    return figure, axes


def value_axis(axes: Any, unit: str) -> None:
    """Round numbers along the vertical axis; a "fraction" is shown in per cent."""
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if unit == "fraction":
        percent(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
