"""A run as one page of HTML that needs nothing else: no network, no script, no server.

::

    Run ── headline and sentences ───────────┐
        ── figures of plots/, as SVG ────────┼─► page.html
        ── events, provenance, costs ────────┘

Each chart is drawn twice, for a wide page and for a narrow one, and every number in it stands
in a table below it as well. The same log gives the same bytes.
"""

from sparsitywatch.page.render import render

__all__ = ["render"]
