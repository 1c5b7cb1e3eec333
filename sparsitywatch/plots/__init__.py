"""Drawings of runs, for ``sparsitywatch plot`` and ``compare``: data in, a figure out.

They need matplotlib, which the extra ``plots`` installs. Importing this takes a second.
"""

from sparsitywatch.errors import MissingExtraError

try:
    import matplotlib as mpl  # noqa: F401
except ImportError as error:
    raise MissingExtraError("matplotlib", "plots", "drawings") from error

from sparsitywatch.plots.figures import comparison_figure, overview_figure, save_figure

__all__ = ["comparison_figure", "overview_figure", "save_figure"]
