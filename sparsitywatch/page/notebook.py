"""A loaded run in a notebook: the page itself, in a frame of its own."""

from __future__ import annotations

import os
from html import escape

from sparsitywatch.analysis.run import Run
from sparsitywatch.page.render import render
from sparsitywatch.pipeline import rundir

__all__ = ["load"]

_HEIGHT = 900


class _PageRun(Run):
    """A run that a notebook shows as its page."""

    def _repr_html_(self) -> str:
        # a frame without the notebook's origin: the page cannot touch the notebook, nor it the page
        return (
            f'<iframe title="{escape(f"Sparsity of the run {self.name}")}" width="100%" '
            f'height="{_HEIGHT}" style="border:0" sandbox="allow-scripts allow-downloads" '
            f'srcdoc="{escape(render(self))}"></iframe>'
        )


def load(logdir: str | os.PathLike[str], *, name: str | None = None) -> Run:
    """A run from its log, also while it is still being written.

    Args:
        logdir: where the run logs to, such as "runs/bert", or the folder in it that has the log,
            such as "runs/bert/sparsitywatch".
        name: what to call the run; by default as its folder.

    Returns:
        Its records, its events, its manifest, and how its watch stands; each is read when it is
        first asked for. A line that is only half written by then is left out. A notebook shows it
        as its page.

    Raises:
        ConfigurationError: there is no run; runs that are near are named.
    """
    return rundir.load(logdir, name=name, kind=_PageRun)
