"""From a run to its page."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sparsitywatch.analysis.digest import Digest, digest
from sparsitywatch.analysis.run import Run
from sparsitywatch.page.charts import charts_of
from sparsitywatch.page.narrative import headline, sentences, snapshots_taken
from sparsitywatch.page.tables import (
    Number,
    cost_facts,
    event_rows,
    invalid_table,
    ledger_table,
    number_of,
    printable,
    provenances,
)
from sparsitywatch.records.run import __version__

__all__ = ["render"]

_COLOUR_STOPS = 12


@dataclass(frozen=True)
class _Figure:
    """One of the large numbers at the top."""

    label: str
    value: Number
    remark: str


def render(run: Run) -> str:
    """The page of a run: one HTML document that needs nothing else.

    Args:
        run: its log, with at least one record.

    Returns:
        HTML, in UTF-8 when it is written. The same log gives the same text.

    Raises:
        ConfigurationError: there is no record.
    """
    summary = digest(run)
    context = {
        "run": run,
        "headline": headline(run),
        "snapshots_taken": snapshots_taken(run),
        "sentences": sentences(run, summary),
        "figures": _figures(run, summary),
        "events": event_rows(run),
        "charts": charts_of(run),
        "invalid": invalid_table(run),
        "provenances": provenances(run),
        "costs": cost_facts(run, summary),
        "ledger": ledger_table(run),
        "viridis": _viridis(),
        "version": __version__,
    }
    return _environment().get_template("page.html").render(context)


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["include_raw"] = lambda name: Markup(_template(name))  # noqa: S704 our own
    return environment


def _template(name: str) -> str:
    return (resources.files("sparsitywatch.page") / "templates" / name).read_text("utf-8")


def _finalize(value: Any) -> Any:
    """Text from a log may hold what no page can."""
    if isinstance(value, Markup):
        return Markup(printable(value))  # noqa: S704 escaped already
    return printable(value) if isinstance(value, str) else value


def _figures(run: Run, summary: Digest) -> list[_Figure]:
    """The latest of what matters most."""
    wanted = [
        (f"near_zero/{rule}", "near zero", "of the in-scope weights") for rule in run.rules[:1]
    ]
    wanted += [
        ("essential_sparsity/value", "essential sparsity", "could be removed at once"),
        ("motion/dormant", "dormant", "got no gradient"),
        ("value/dense", "value", "of the model as it is"),
        ("value/reliance", "reliance", "harm of removing all weights"),
    ]
    figures = []
    for series, label, remark in wanted:
        if series in summary.series:
            one = summary.series[series]
            remark = f"{remark}, at step {one.last_step:,}"
            figures.append(_Figure(label, number_of(series, one.last), remark))
    return figures


def _viridis() -> str:
    """The colours of the heatmaps as the stops of a CSS gradient."""
    stops = mpl.colormaps["viridis"](np.linspace(0.0, 1.0, _COLOUR_STOPS))
    return ", ".join(f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in 255 * stops[:, :3])
