"""What a figure says, read off its artists."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure


def words(figure: Figure) -> str:
    """All text on a figure, in one line."""
    return " ".join(" ".join(t.get_text() for t in figure.findobj(mpl.text.Text)).split())


def lines(figure: Figure, panel: int = 0) -> dict[str, mpl.lines.Line2D]:
    handles, labels = figure.axes[panel].get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def starting(handles: dict, start: str) -> object:
    (found,) = (handle for label, handle in handles.items() if label.startswith(start))
    return found
