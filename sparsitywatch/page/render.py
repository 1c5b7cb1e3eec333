"""From a run to its page: what happened in a headline and a few sentences, and all the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from sparsitywatch.analysis.digest import Digest, SeriesDigest, digest
from sparsitywatch.analysis.run import Run
from sparsitywatch.page.charts import charts_of
from sparsitywatch.page.tables import (
    Number,
    cost_facts,
    count,
    event_rows,
    fraction,
    invalid_table,
    ledger_table,
    number_of,
    plain,
    printable,
    provenances,
    several,
)
from sparsitywatch.records import EssentialSparsity, Event, Record
from sparsitywatch.records.run import __version__
from sparsitywatch.series import describe

__all__ = ["render", "snapshots_taken"]

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
        "headline": _headline(run),
        "snapshots_taken": snapshots_taken(run),
        "sentences": _sentences(run, summary),
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


# ------------------------------------------------------------------ in words


def _headline(run: Run) -> Markup:
    """The first thing to know: what happened, and whether the watch could see it."""
    trouble = run.standing.trouble
    if not trouble:
        return _what_happened(run)
    return Markup("{}; {}").format(_what_happened(run), trouble)


def _what_happened(run: Run) -> Markup:
    number = several(len(run.records), "snapshot")
    if not run.events:
        return Markup("No abrupt change was reported in {}").format(number)
    first = next((event for event in run.events if _is_sparse_now(event)), run.events[0])
    about = count(first.onset_step)
    if _is_sparse_now(first):
        return Markup("Weights turned sparse abruptly, from about step {} on").format(about)
    verb = "rose" if first.direction == "up" else "fell"
    return Markup("{} {} abruptly, from about step {} on").format(
        _capitalised(describe(first.series).label), verb, about
    )


def _is_sparse_now(event: Event) -> bool:
    """Whether weights are gone: dormant ones only announce it."""
    return event.trend == "sparsifying" and event.series.startswith("near_zero/")


def _sentences(run: Run, digest: Digest) -> list[Markup]:
    """What to know next, each for itself; what was not measured is said."""
    said = [*_courses(run, digest), _essential(digest), *_forecast(run), *_trouble(run)]
    return [*map(escape, run.standing.sentences), *map(_event, run.events), *said]


def snapshots_taken(run: Run) -> Markup:
    """When the snapshots were taken, of how much, and whether during the training."""
    said = _snapshots(run)
    if run.replayed_from:
        said += Markup(" They are of saved checkpoints, read later.")
    return said


def _snapshots(run: Run) -> Markup:
    scope, steps, when = run.records[-1].scope, run.steps, _taken(run)
    where = Markup("{} in {}").format(
        several(scope.num_weights, "weight"), several(scope.num_tensors, "tensor")
    )
    if len(run.records) == 1:
        return Markup("One snapshot of {}, at step {}{}.").format(where, count(steps[0]), when)
    return Markup("{} of {}, from step {} to step {}{}.").format(
        several(len(run.records), "snapshot"), where, count(steps[0]), count(steps[-1]), when
    )


def _taken(run: Run) -> str:
    """When the snapshots were taken, to the minute; empty if a clock was wrong."""
    try:
        first, last = (
            datetime.fromtimestamp(run.records[i].wall_time, timezone.utc) for i in (0, -1)
        )
    except (OverflowError, OSError, ValueError):
        return ""
    began, ended = (moment.strftime("%Y-%m-%d %H:%M") for moment in (first, last))
    if began == ended:
        return f", taken {began} UTC"
    if first.date() == last.date():
        ended = last.strftime("%H:%M")
    return f", taken {began} to {ended} UTC"


def _event(event: Event) -> Markup:
    verb = "rose" if event.direction == "up" else "fell"
    text = Markup("{} {} abruptly, from {} to {}: began at about step {}, seen at step {}.").format(
        Markup("<strong>{}</strong>").format(_capitalised(describe(event.series).label)), verb,
        number_of(event.series, event.baseline), number_of(event.series, event.value),
        count(event.onset_step), count(event.detected_step),
    )  # fmt: skip
    if event.reverted_step >= 0:
        text += Markup(" Half of it was gone again at step {}.").format(count(event.reverted_step))
    return text


def _courses(run: Run, digest: Digest) -> Iterator[Markup]:
    """From where to where near-zero weights, by the first rule, and dormant ones went."""
    for series in (*(f"near_zero/{rule}" for rule in run.rules[:1]), "motion/dormant"):
        if series in digest.series:
            yield _course(series, digest.series[series])


def _course(series: str, one: SeriesDigest) -> Markup:
    name = _capitalised(describe(series).label)
    first, last = number_of(series, one.first), number_of(series, one.last)
    if one.first_step == one.last_step:
        return Markup("{}: {} at step {}.").format(name, first, count(one.first_step))
    text = Markup("{}: {} at step {}, {} at step {}").format(
        name, first, count(one.first_step), last, count(one.last_step)
    )
    has_floor = series.startswith("near_zero/")
    if has_floor and one.lowest_step not in (one.first_step, one.last_step):
        text += Markup("; lowest {} at step {}").format(
            number_of(series, one.lowest), count(one.lowest_step)
        )
    return text + Markup(".")


def _essential(digest: Digest) -> Markup:
    estimate = digest.essential_sparsity
    if estimate is None and digest.provenance.proxy_hash:
        return Markup("Essential sparsity is not known: no evaluation has succeeded.")
    if estimate is None:
        return Markup(
            "Essential sparsity was not measured: the run had no proxy, no examples to evaluate."
        )
    where = Markup("At step {} ").format(count(digest.estimated_step))
    if not estimate.informative:
        return where + Markup("the essential sparsity was not informative: {}.").format(
            estimate.reason
        )
    return where + Markup(
        "the smallest {} of the in-scope weights could have been removed at once{} with the "
        "value staying within {} of what it was."
    ).format(fraction(estimate.value), _interval(estimate), _tolerance(estimate))


def _interval(estimate: EssentialSparsity) -> Markup:
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return Markup("")
    return Markup(" ({} interval: {} to {})").format(
        fraction(estimate.confidence), fraction(estimate.low), fraction(estimate.high)
    )


def _tolerance(estimate: EssentialSparsity) -> Number | Markup:
    if estimate.mode == "relative":
        return fraction(estimate.tolerance)
    return plain(estimate.tolerance)


def _forecast(run: Run) -> Iterator[Markup]:
    last: Record = run.records[-1]
    if last.forecast is None:
        return
    middle, low, high = last.forecast.at(1.0)
    if math.isfinite(middle):
        yield Markup(
            "Forecast at step {}: {} of the weights near zero ({} to {}) when the decay clock will "
            "have advanced by one."
        ).format(count(last.step), fraction(middle), fraction(low), fraction(high))
    if math.isfinite(last.forecast.doubling_step):
        yield Markup("Near-zero weights will be twice their floor at about step {}.").format(
            count(round(last.forecast.doubling_step))
        )


def _trouble(run: Run) -> Iterator[Markup]:
    invalid = sum(not record.valid for record in run.records)
    if invalid:
        yield Markup("{} of {} failed or contradicted themselves; see ").format(
            count(invalid), several(len(run.records), "snapshot")
        ) + Markup('<a href="#invalid">which, and why</a>.')
    broken = [r for r in run.records if r.num_not_finite]
    if broken:
        worst = max(broken, key=lambda r: r.num_not_finite)
        yield Markup(
            "{} had weights that are NaN or infinite, first at step {}; most, {}, at step {}."
        ).format(
            several(len(broken), "snapshot"), count(broken[0].step),
            count(worst.num_not_finite), count(worst.step),
        )  # fmt: skip
    again = [r for r in run.records if r.same_weights_as is not None]
    if again:
        first, others = again[0], len(again) - 1
        yield Markup(
            "{} had the same weights as an earlier one: at step {} those of step {}{}."
        ).format(
            several(len(again), "snapshot"), count(first.step), count(first.same_weights_as or 0),
            f", and {others:,} more" if others else "",
        )  # fmt: skip
    without = [r for r in run.records if r.curve is not None and "value/dense" not in r.series()]
    if without:
        yield Markup("The value was not finite at {}, first at step {}.").format(
            several(len(without), "snapshot"), count(without[0].step)
        )


def _capitalised(text: str) -> str:
    is_name = "/" in text  # of a series that has no words
    return text if is_name else text[:1].upper() + text[1:]
