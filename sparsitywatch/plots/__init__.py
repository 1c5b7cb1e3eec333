"""Every figure, once: for TensorBoard's pictures, ``sparsitywatch plot``, and docs.

Data in, a figure of matplotlib out. Importing this takes a second: import it where it is needed.
"""

from sparsitywatch.plots.curves import curve_figure, heatmap_figure
from sparsitywatch.plots.drawing import encode_png, save_figure
from sparsitywatch.plots.overview import comparison_figure, overview_figure

__all__ = [
    "comparison_figure",
    "curve_figure",
    "encode_png",
    "heatmap_figure",
    "overview_figure",
    "save_figure",
]
