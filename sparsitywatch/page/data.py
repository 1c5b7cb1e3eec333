"""What the page shows of a run, as plain JSON: a pure function of the run.

::

    Run ──► page_data ──► the file: inline, with maps and magnitudes
                     └──► the server of the tab: maps and magnitudes when they are asked for

web/data.js describes the same object for those who read it there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.analysis.run import Run
from sparsitywatch.page.facts import facts_of, snapshots_taken, watch_line
from sparsitywatch.page.tensors import chosen, magnitudes, maps
from sparsitywatch.records import Event, Record, WatchState
from sparsitywatch.records.run import __version__
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import describe

#: Of more snapshots some are left out; the log has all.
MAX_SNAPSHOTS = 2000
#: Curves of removal that are kept, and numbers in maps and magnitudes.
_MAX_CURVES, _MAX_CELLS, _MAX_MAGNITUDES, _MAX_COLUMNS = 240, 40_000, 120_000, 240
_DIGITS = 7
#: Large numbers at the top: series and name; ``{rule}`` is the first near-zero rule, ``{kind}`` is
#: loss or score.
_TILES = (
    ("near_zero/{rule}", "near zero", "Weights so small that they count as nothing."),
    ("motion/dormant", "dormant", "Weights that got no gradient since the snapshot before."),
    ("forecast/near_zero_in_1", "forecast of near zero",
     "Near-zero weights one unit of the decay clock ahead."),
    ("essential_sparsity/value", "essential sparsity",
     "Share of the weights you could remove now, smallest first, within the tolerance."),
    ("value/dense", "held-out {kind}", "Held-out examples, on the model as it is."),
    ("value/reliance", "reliance on the weights", "Harm of removing every in-scope weight."),
)  # fmt: skip


def page_data(run: Run) -> dict[str, Any]:
    """What the page shows of a run, but for its details by tensor: JSON, seven digits a number."""
    verdict = run.verdict
    kept = chosen(run, MAX_SNAPSHOTS)
    first_rule = next(iter(run.rules), "")
    return {
        "version": __version__,
        "name": printable(run.name),
        "verdict": asdict(verdict),
        "state": _state(None if run.info is None else run.info.state),
        "watch": watch_line(run),
        "taken": snapshots_taken(run),
        "tiles": _tiles(run, first_rule, verdict.event),
        "rule": first_rule,
        "better": _better(run),
        "num_snapshots": len(run.records),
        "steps": [int(run.steps[i]) for i in kept],
        "failed": [t for t, i in enumerate(kept) if not run.records[i].valid],
        "unasked": [t for t, i in enumerate(kept) if run.records[i].not_evaluated],
        "series": {
            name: _rounded(run.column(name)[kept])
            for name in run.names
            if describe(name).source or len(run.names) < _MAX_CURVES
        },
        "about": {name: _about(name) for name in run.names},
        "events": [_event(number, event) for number, event in enumerate(run.events, start=1)],
        "curves": _curves(run, kept),
        "tensors": [printable(name) for name in run.tensors],
        "facts": facts_of(run),
    }


def details_of(run: Run, *, for_file: bool) -> dict[str, Any]:
    """Maps and magnitudes by tensor: small for a file, else as fine as a screen shows."""
    number = max(len(run.tensors), 1)
    most = min(_MAX_COLUMNS, _MAX_CELLS // number) if for_file else MAX_SNAPSHOTS
    deep = min(_MAX_COLUMNS // 2, _MAX_MAGNITUDES // (40 * number))
    return {
        "maps": maps(run, chosen(run, max(most, 24))),
        "magnitudes": magnitudes(run, chosen(run, max(deep, 12))),
    }


def column(data: dict[str, Any], name: str) -> np.ndarray:
    """A series of the page's data, float [T]; NaN where it was not measured."""
    return np.array([math.nan if x is None else x for x in data["series"][name]], dtype=float)


def _state(state: WatchState | None) -> dict[str, Any] | None:
    """What the page counts time from."""
    if state is None:
        return None
    wall_time = _number(state.wall_time, ".13g")
    return {"status": state.status, "step": state.step, "wall_time": wall_time}


def _about(name: str) -> dict[str, str]:
    row = describe(name)
    return {"label": row.label, "unit": row.unit, "sentence": row.sentence}


def _better(run: Run) -> str:
    """Which way the value of the model gets better: "lower", of a loss, or "higher", of a score."""
    curve = next((r.curve for r in reversed(run.records) if r.curve is not None), None)
    return "higher" if curve is not None and curve.higher_is_better else "lower"


def _tiles(run: Run, rule: str, event: int) -> list[dict[str, Any]]:
    """The latest of what matters most, beside what it was when it all began."""
    main = run.events[event - 1] if event else None
    since = main.onset_step if main else -1
    kind = "score" if _better(run) == "higher" else "loss"
    tiles = []
    for series, label, sentence in _TILES:
        name = series.format(rule=rule)
        why = _why_unknown(run) if name == "motion/dormant" else ""
        tile = {"series": name, "label": label.format(kind=kind), "sentence": sentence, "why": why}
        if not run.has(name):
            if why:
                tiles.append(tile | {"value": "unknown", "step": int(run.steps[-1]), "was": ""})
            continue
        values, row = run.column(name), describe(name)
        known = np.flatnonzero(np.isfinite(values))
        before = [i for i in known if run.steps[i] <= since] or [known[0]]
        then, last = int(before[-1]), int(known[-1])
        # one baseline for one moment: that of the event, in its own series
        is_own = main is not None and main.series == name and math.isfinite(main.baseline)
        level = main.baseline if main is not None and is_own else values[then]
        was = f"{row.shown(level)} at step {run.steps[then]:,}" if then != last else ""
        tiles.append(
            tile | {"value": row.shown(values[last]), "step": int(run.steps[last]), "was": was}
        )
    return tiles


def _why_unknown(run: Run) -> str:
    """Why the latest snapshot does not know which weights are dormant; empty if it does."""
    dormant = run.records[-1].dormant if run.records else None
    if dormant is None or dormant.since_step < 0 or not dormant.reason:
        return ""
    return f"not known now: {redacted(dormant.reason)}"


def _event(number: int, event: Event) -> dict[str, Any]:
    return {
        "number": number,
        "series": event.series,
        "title": event.headline,
        "when": event.when,
        "where": [printable(name) for name in event.layers],
        "why": [*event.causes, *([redacted(event.reason)] if event.reason else [])],
        "also": event.sequel,
        "do": event.advice,
        "severity": event.severity,
        "onset": event.onset_step,
        "low": event.onset_low,
        "high": event.onset_high,
        "seen": event.detected_step,
        "reverted": event.reverted_step,
    }


# ------------------------------------------------------------------ curves of removal


def _curves(run: Run, kept: Sequence[int]) -> list[dict[str, Any]]:
    """What removing weights costs, in units of what is tolerated, at some snapshots."""
    evaluated = [i for i in kept if run.records[i].curve is not None]
    if len(evaluated) > _MAX_CURVES:
        some = np.linspace(0, len(evaluated) - 1, _MAX_CURVES).round().astype(int)
        told = {event.detected_step for event in run.events}
        marked = [j for j, i in enumerate(evaluated) if int(run.steps[i]) in told]
        evaluated = [evaluated[j] for j in sorted({*some.tolist(), *marked})]
    found = [_curve(run.records[i]) for i in evaluated]
    return [curve for curve in found if curve is not None]


def _curve(record: Record) -> dict[str, Any] | None:
    curve, provenance = record.curve, record.provenance
    if curve is None:
        return None
    allowed = allowed_harm(curve.dense, provenance.tolerance, provenance.tolerance_mode)
    if not (math.isfinite(allowed) and allowed > 0.0):
        return None
    sign = -1.0 if curve.higher_is_better else 1.0
    order = np.argsort(curve.sparsity, kind="stable")
    if curve.num_seen is not None:  # what a part of the examples lost is no point of the curve
        is_whole = np.array(curve.num_seen) == curve.num_examples
        order = order[(is_whole | (np.array(curve.sparsity) == 0.0))[order]]
    sparsity, value = np.array(curve.sparsity)[order], np.array(curve.value)[order]
    with np.errstate(invalid="ignore"):
        harm = sign * (value - curve.dense) / allowed
    estimate = record.essential_sparsity
    return {
        "step": record.step,
        "sparsity": _rounded(sparsity, digits=4),
        "harm": _rounded(harm, digits=4),
        "reason": "" if estimate is None or estimate.informative else estimate.reason,
    }


# ------------------------------------------------------------------ numbers


def _rounded(values: Iterable[float], digits: int = _DIGITS) -> list[float | int | None]:
    return [_number(x, f".{digits}g") for x in np.fromiter(values, float).tolist()]


def _number(x: float, form: str = f".{_DIGITS}g") -> float | int | None:
    """A number for JSON: null if it is none, whole if it is whole."""
    if not math.isfinite(x):
        return None
    if x.is_integer() and abs(x) < 2**53:
        return int(x)
    return float(format(x, form))
