"""What happened, in a headline and a few sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timezone

import numpy as np
from markupsafe import Markup, escape

from sparsitywatch.page.data import Number, RunLog, count, fraction, number_of, plain, several
from sparsitywatch.records import EssentialSparsity, Event, Record
from sparsitywatch.series import describe

__all__ = ["headline", "sentences", "snapshots_taken"]


def headline(run: RunLog) -> Markup:
    """The first thing to know: what happened, and whether the watch could see it."""
    trouble = run.standing.trouble
    if not trouble:
        return _what_happened(run)
    return Markup("{}; {}").format(_what_happened(run), trouble)


def _what_happened(run: RunLog) -> Markup:
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


def sentences(run: RunLog) -> list[Markup]:
    """What to know next, each for itself; what was not measured is said."""
    told = [*_near_zero(run), *_dormant(run), _essential(run), *_forecast(run), *_trouble(run)]
    return [*map(escape, run.standing.sentences), *map(_event, run.events), *told]


def snapshots_taken(run: RunLog) -> Markup:
    """When the snapshots were taken, of how much, and whether during the training."""
    told = _snapshots(run)
    if run.replayed_from:
        told += Markup(" They are of saved checkpoints, read later.")
    return told


def _snapshots(run: RunLog) -> Markup:
    scope, steps, when = run.records[-1].scope, run.steps, _taken(run)
    where = Markup("{} in {}").format(
        several(scope.num_weights, "weight"), several(scope.num_tensors, "tensor")
    )
    if len(run.records) == 1:
        return Markup("One snapshot of {}, at step {}{}.").format(where, count(steps[0]), when)
    return Markup("{} of {}, from step {} to step {}{}.").format(
        several(len(run.records), "snapshot"), where, count(steps[0]), count(steps[-1]), when
    )


def _taken(run: RunLog) -> str:
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


def _near_zero(run: RunLog) -> Iterator[Markup]:
    for rule in run.rules[:1]:
        series = f"near_zero/{rule}"
        if run.has(series):
            yield _course(run, series, with_floor=True)


def _dormant(run: RunLog) -> Iterator[Markup]:
    if run.has("motion/dormant"):
        yield _course(run, "motion/dormant", with_floor=False)


def _course(run: RunLog, series: str, *, with_floor: bool) -> Markup:
    """From where to where a series went."""
    values = run.series(series)
    known = np.flatnonzero(np.isfinite(values))
    first, last = known[0], known[-1]
    name = _capitalised(describe(series).label)
    if first == last:
        return Markup("{}: {} at step {}.").format(
            name, number_of(series, values[first]), count(run.steps[first])
        )
    text = Markup("{}: {} at step {}, {} at step {}").format(
        name, number_of(series, values[first]), count(run.steps[first]),
        number_of(series, values[last]), count(run.steps[last]),
    )  # fmt: skip
    lowest = known[int(np.argmin(values[known]))]
    if with_floor and lowest not in (first, last):
        text += Markup("; lowest {} at step {}").format(
            number_of(series, values[lowest]), count(run.steps[lowest])
        )
    return text + Markup(".")


def _essential(run: RunLog) -> Markup:
    measured = [r for r in run.records if r.essential_sparsity is not None]
    if not measured and run.records[-1].provenance.proxy_hash:
        return Markup("Essential sparsity is not known: no evaluation has succeeded.")
    if not measured:
        return Markup(
            "Essential sparsity was not measured: the run had no proxy, no examples to evaluate."
        )
    last = measured[-1]
    estimate = last.essential_sparsity
    where = Markup("At step {} ").format(count(last.step))
    if estimate is None or not estimate.informative:
        reason = "" if estimate is None else estimate.reason
        return where + Markup("the essential sparsity was not informative: {}.").format(reason)
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


def _forecast(run: RunLog) -> Iterator[Markup]:
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


def _trouble(run: RunLog) -> Iterator[Markup]:
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
