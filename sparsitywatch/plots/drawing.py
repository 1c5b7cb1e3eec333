"""How drawings look: one style, whatever the user's own matplotlib settings are."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = [
    "BLACK",
    "BLUE",
    "DASHED",
    "DOTTED",
    "GREEN",
    "GREY",
    "LIGHT",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "RED",
    "SKY",
    "encode_png",
    "new_figure",
    "percent",
    "save_figure",
    "styled",
    "value_axis",
]

P = ParamSpec("P")
T = TypeVar("T")

# Okabe and Ito's colours, which colour-blind people can tell apart
BLUE, GREEN, ORANGE, PURPLE = "#0072b2", "#009e73", "#e69f00", "#cc79a7"
RED, SKY, GREY, LIGHT = "#d55e00", "#56b4e9", "#6e6e6e", "#dedede"
BLACK, PAPER = "#101010", "#fefefe"
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


def value_axis(axes: Any, unit: str) -> None:
    """Round numbers along the vertical axis; a "fraction" is shown in per cent."""
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if unit == "fraction":
        percent(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
