"""A run as one page of HTML that needs nothing else: no network, no script, no server.

::

    RunLog ── headline and sentences ────────┐
           ── charts over the steps (SVG) ───┤
           ── curves, heatmaps ──────────────┼─► page.html
           ── events, provenance, costs ─────┘

Each chart is drawn twice, for a wide page and for a narrow one, and every number in it stands
in a table below it as well. The same log gives the same bytes.
"""

from sparsitywatch.report.page import render
from sparsitywatch.report.runlog import RunLog

__all__ = ["RunLog", "render"]
