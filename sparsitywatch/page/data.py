"""What the page shows of a run, as plain JSON: a pure function of the run.

web/data.js describes the same object for those who read it there.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np

from sparsitywatch.analysis.digest import CURVE_FIELDS, Digest, digest, first_steps
from sparsitywatch.analysis.emergence import bin_ends, counted, is_counted
from sparsitywatch.analysis.estimate import allowed_harm, bounds
from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.spikes import find_spikes
from sparsitywatch.analysis.verdict import essential_sparsity_of, moment
from sparsitywatch.errors import StateError
from sparsitywatch.records import Event, Layers, Record, ledger_in_short
from sparsitywatch.records.curve import units
from sparsitywatch.records.run import __version__, block_of
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import (
    CHOICES,
    LEADING,
    OF_TENSORS,
    PANELS,
    count,
    describe,
    numbered,
    percent,
)
from sparsitywatch.sinks.jsonl import read_moves

#: Of more snapshots some are left out; the log has all.
MAX_SNAPSHOTS = 2000
#: Curves of removal that are kept, and numbers in maps and magnitudes.
_MAX_CURVES, _MAX_CELLS, _MAX_MAGNITUDES, _MAX_COLUMNS = 240, 40_000, 120_000, 240
_DIGITS = 7
#: Steps around a spike that are drawn.
_STEPS_AROUND = 60
#: Longer lists are for `sparsitywatch scope` and for a program.
_MAX_LEDGER, _MAX_FAILED = 1500, 200
#: What the words mean, beside those of the series.
_WORDS = {
    "in-scope weights": "The weights that count: by default the matrices inside the transformer "
    "blocks. Embeddings, norms, biases and heads do not.",
    "snapshot": "One measurement of the weights, at one {unit}.",
    "event": "A change that a watched number made, against the whole run before it, and beyond "
    "what the learning rate explains.",
}

#: A thing, what it is, and what to know about it.
Fact = tuple[str, str, str]


def page_data(run: Run) -> dict[str, Any]:
    """What the page shows of a run, but for its details by tensor: JSON, seven digits a number."""
    verdict, state = run.verdict, None if run.info is None else run.info.state
    is_on = state is not None and state.status == "on"
    kept = chosen(run, MAX_SNAPSHOTS)
    first_rule = _first_rule(run)
    return {
        "version": __version__,
        "name": printable(run.name),
        "verdict": asdict(verdict),
        "alive": _number(verdict.heard, ".13g") if is_on else None,
        "watch": list(verdict.standing),
        "taken": _taken(run),
        "tiles": _tiles(run, first_rule, verdict.event),
        "unit": run.unit,
        "measured": {name: [*first_steps(run.records, name)] for name in CURVE_FIELDS},
        "rule": first_rule,
        "better": _better(run),
        "num_snapshots": len(run.records),
        "steps": [int(run.steps[i]) for i in kept],
        # a replay was not there: its times are those of reading
        "times": [
            None if run.replayed_from else _number(run.records[i].wall_time, ".13g") for i in kept
        ],
        "failed": [t for t, i in enumerate(kept) if not run.records[i].valid],
        "unasked": [t for t, i in enumerate(kept) if run.records[i].not_evaluated],
        "gaps": [_why_none(run.records[i]) for i in kept],
        "series": {
            name: _rounded(run.column(name)[kept])
            for name in run.names
            if describe(name).source or len(run.names) < _MAX_CURVES
        },
        "about": {
            name: {key: vars(describe(name))[key] for key in ("label", "unit", "sentence")}
            for name in run.names
        },
        "panels": _panels(run, first_rule),
        "choices": CHOICES,
        "events": [_event(number, event) for number, event in enumerate(run.events, start=1)],
        "curves": _curves(run, kept),
        "spike": _spike(run),
        "tensors": [printable(name) for name in run.tensors],
        "blocks": [printable(block_of(name)) for name in run.tensors],
        "facts": _facts(run),
    }


def _spike(run: Run) -> dict[str, Any] | None:
    """The steps around the last spike of the ring: the loss, and each block's updates."""
    moves = None if run.directory is None else read_moves(run.directory)
    spikes = [] if moves is None else find_spikes(moves)
    if moves is None or not spikes:
        return None
    began, at = np.searchsorted(moves.steps, [spikes[-1].onset_low, spikes[-1].onset_high])
    first = max(int(began) - _STEPS_AROUND, 0)
    rows = slice(first, int(at) + _STEPS_AROUND)
    before = np.nan_to_num(moves.relative[max(began - 200, 0) : began], nan=-99.0)
    doublings = (moves.relative[rows] - np.median(before, axis=0)) / math.log(2.0)
    return {
        "told": spikes[-1].describe(),
        "steps": moves.steps[rows].tolist(),
        "loss": _rounded(moves.loss[rows], 4),
        "blocks": [printable(block) for block in moves.blocks],
        "rises": [_rounded((1000.0 * column).round()) for column in doublings.T],
        "began": int(began) - first if spikes[-1].layers else -1,
        "at": int(at) - first,
    }


def summary_of(run: Run) -> dict[str, Any]:
    """How a run stands, for a table of several."""
    verdict, last = run.verdict, run.records[-1] if run.records else None
    return {
        **{name: getattr(verdict, name) for name in ("state", "badge", "headline")},
        "last": "" if last is None else last.place,
        "time": None if last is None else _number(last.wall_time, ".13g"),
        "heard": _number(verdict.heard, ".13g"),
        "events": len(run.events),
    }


def _first_rule(run: Run) -> str:
    """The first near-zero rule; of the present rms where that of a first look is the same."""
    rule = next(iter(run.rules), "")
    twin = rule.replace("initial", "rms")
    first, now = (run.column(f"near_zero/{name}") for name in (rule, twin))
    return twin if twin in run.rules and np.array_equal(first, now, equal_nan=True) else rule


def _why_none(record: Record) -> str:
    """Why there is no essential sparsity; empty if there is."""
    estimate = record.essential_sparsity
    if record.valid:
        return "" if estimate is None or estimate.informative else redacted(estimate.reason)
    return f"the snapshot failed: {redacted(record.reason) or 'no reason given'}"


def chosen(run: Run, most: int) -> list[int]:
    """Indices of snapshots to show: at most so many, evenly spread, and those of events."""
    number = len(run.records)
    if number <= most:
        return list(range(number))
    spread = np.linspace(0, number - 1, max(most, 2)).round().astype(int)
    told = {s for e in run.events for s in (e.onset_step, e.before_step, e.detected_step)}
    marked = np.flatnonzero(np.isin(run.steps, list(told)))
    return sorted({*spread.tolist(), *marked.tolist()})


def column(data: dict[str, Any], name: str) -> np.ndarray:
    """A series of the page's data, float [T]; NaN where it was not measured."""
    return np.array([math.nan if x is None else x for x in data["series"][name]], dtype=float)


def _better(run: Run) -> str:
    """Which way the value of the model gets better: "lower", of a loss, or "higher", of a score."""
    curve = next((r.curve for r in reversed(run.records) if r.curve is not None), None)
    return "higher" if curve is not None and curve.higher_is_better else "lower"


def _names_of(run: Run, rule: str) -> dict[str, str]:
    """What stands in the places that the tables of series leave open."""
    better = _better(run)
    kind = "score" if better == "higher" else "loss"
    near_zero = describe(f"near_zero/{rule}").short_label
    return {"rule": rule, "kind": kind, "better": better, "near_zero": near_zero}


def _panels(run: Run, rule: str) -> list[dict[str, Any]]:
    """The charts, with the series that stand beside one of theirs."""
    names, found = _names_of(run, rule), []
    for panel in PANELS:
        if "page" not in panel.on:
            continue
        lines = []
        for line in panel.drawn(run.names, rule):
            told = asdict(line) | {"label": line.label.format(**names)}
            lines.append({key: value for key, value in told.items() if value})
        found.append(asdict(panel) | {"note": panel.note.format(**names), "lines": lines})
    return found


def _tiles(run: Run, rule: str, event: int) -> list[dict[str, Any]]:
    """The latest of what matters most, beside what it was when it all began."""
    main = run.events[event - 1] if event else None
    since = main.onset_step if main else -1
    names, tiles = _names_of(run, rule), []
    for name in (series.format(rule=rule) for series in LEADING):
        row = describe(name)
        if not row.tile:
            continue
        value, why = "", _why_unknown(run) if name == "motion/dormant" else ""
        if name == "essential_sparsity/value":
            value, why, seen = essential_sparsity_of(run.records)
            value, why = _bound(seen) or (value, why)
        tile = {"series": name, "label": row.tile.format(**names), "why": why}
        last, was = -1, ""
        if name in run.names:
            values = run.column(name)
            known = np.flatnonzero(np.isfinite(values))
            before = [i for i in known if run.steps[i] <= since] or [known[0]]
            then, last = int(before[-1]), int(known[-1])
            # one baseline for one moment: that of the event, in its own series
            is_own = main is not None and main.series == name and math.isfinite(main.baseline)
            level = main.baseline if main is not None and is_own else values[then]
            then_step = int(run.steps[then])
            was = f"{row.shown(level)} at {numbered(run.unit, then_step)}" if then != last else ""
            value = value or row.shown(values[last])
        elif not why:
            continue
        step = int(run.steps[last])
        tiles.append(tile | {"value": value or "unknown", "step": step, "was": was})
    return tiles


def _bound(record: Record | None) -> tuple[str, str] | None:
    """Where examples are too few for a value, the bound that is known, and how many would tell."""
    estimate = None if record is None else record.essential_sparsity
    if record is None or record.curve is None or estimate is None or not estimate.examples_needed:
        return None
    low, high = bounds(record.curve, estimate)
    least, most = math.floor(100.0 * low), math.ceil(100.0 * high)
    ends = f"at least {least} %" * (least > 0), f"at most {most} %" * (most < 100)
    known = ", ".join(filter(None, ends))
    return (
        known or "not known",
        f"about {estimate.examples_needed:,} {units(estimate.unit)} would tell",
    )


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
        "drop": estimate.describe_drop(percent) if estimate and estimate.informative else "",
    }


# ------------------------------------------------------------------ how the watch is, and when


def _taken(run: Run) -> str:
    """When the snapshots were taken, of how much, and whether during the training."""
    if not run.records:
        return "No snapshot has been taken yet."
    first, last = run.records[0], run.records[-1]
    steps, times = f"at {first.place}", moment(first.wall_time)
    if len(run.records) > 1:
        steps = f"from {first.place} to {last.place}"
        times += f" to {moment(last.wall_time)}"
    later = " They are of saved checkpoints, read later." if run.replayed_from else ""
    number = count(len(run.records), "snapshot")
    return f"{number} of {last.scope.describe()}, {steps}, taken {times}.{later}"


# ------------------------------------------------------------------ at the foot


def _facts(run: Run) -> dict[str, Any]:
    """What failed, what to know, what is watched, what numbers depend on, what it cost."""
    failed = [
        [record.step, redacted(record.reason) or "no reason given"]
        for record in run.records
        if not record.valid
    ]
    summary = digest(run) if run.records else None
    notes = {} if summary is None else summary.notes
    ledger = () if run.info is None else run.info.ledger
    at_one = "optimizer step" if run.unit == "step" else run.unit
    return {
        "failed": failed[:_MAX_FAILED],
        "num_failed": len(failed),
        "notes": [[step, text] for step, texts in notes.items() for text in texts][:_MAX_FAILED],
        "scope": ledger_in_short(ledger) if ledger else "",
        "ledger": [
            [
                printable(entry.name),
                "in" if entry.in_scope else "out",
                entry.dimensions,
                entry.num_weights,
                redacted(entry.why),
            ]
            for entry in ledger[:_MAX_LEDGER]
        ],
        "replayed_from": [redacted(place) for place in run.replayed_from],
        "provenance": [
            {"first": own[0].step, "last": own[-1].step, "facts": _provenance(own)}
            for own in (list(chunk) for _, chunk in groupby(run.records, lambda r: r.provenance))
        ],
        "costs": [] if summary is None else _costs(run, summary),
        "words": [(word, text.format(unit=at_one)) for word, text in _WORDS.items()],
    }


def _provenance(records: Sequence[Record]) -> list[Fact]:
    """What the numbers of snapshots depend on that share it."""
    provenance = records[-1].provenance
    curve = next((r.curve for r in reversed(records) if r.curve is not None), None)
    examples = "none: nothing was evaluated"
    if provenance.proxy_hash:
        number = None if curve is None else curve.num_examples
        examples = provenance.proxy_hash + ("" if number is None else f", {number:,} examples")
    rows = [
        ("scope", records[-1].scope.describe(), f"hash {provenance.scope_hash}"),
        ("proxy", examples, "hash of the held-out examples" if provenance.proxy_hash else ""),
        ("tolerance", provenance.tolerated, "harm that counts as none"),
        ("pattern", provenance.pattern, "which weights a sparsity removes"),
        ("evaluation", provenance.evaluation, "zero-shot: nothing is trained after removal"),
        ("dtypes", ", ".join(provenance.dtypes) or "none", "of the in-scope weights"),
        ("sparsitywatch", provenance.sparsitywatch, "version"),
        ("torch", provenance.torch, "version"),
    ]  # fmt: skip
    if any(record.dormant is not None and record.dormant.estimated for record in records):
        remark = "weight decay and updates were not known, and were read off the weights"
        rows.append(("dormant weights", "estimated", remark))
    return [(name, redacted(value), redacted(remark)) for name, value, remark in rows]


def _costs(run: Run, summary: Digest) -> list[Fact]:
    """What the watch took from the training; a replay has no training to hold up."""
    total, state = summary.cost, summary.state
    reading = _seconds(total.spectrum_s)
    evaluating = "evaluating", _seconds(total.evaluation_s), f"{total.num_forwards:,} evaluations"
    if run.replayed_from:
        return [("reading weights", reading, "all snapshots together"), evaluating]
    median_s = statistics.median(record.cost.stall_s for record in run.records)
    facts = [
        ("held up the training", _seconds(total.stall_s), "all snapshots together"),
        ("one snapshot", _seconds(median_s), "median time held up"),
        ("reading weights", reading, "all snapshots, behind the training where it can be"),
        evaluating,
        ("snapshots left out", f"{total.num_left_out:,}", "due, and would have cost too much"),
        ("evaluations left out", f"{total.num_evaluations_left_out:,}", "only weights were read"),
    ]
    if math.isfinite(total.overhead):
        is_later = state is not None and math.isfinite(state.overhead)
        until = f"step {state.step:,}" if state is not None and is_later else "the last snapshot"
        facts.append(("share of the wall time", percent(total.overhead), f"up to {until}"))
    return facts


def _seconds(x: float) -> str:
    """A time in seconds, or in a larger unit where it is long."""
    if x >= 3600.0:
        return f"{x / 3600.0:.3g} h"
    return f"{x / 60.0:.3g} min" if x >= 600.0 else f"{x:.3g} s"


# ------------------------------------------------------------------ by tensor
#
# As small integers. A share is a whole number of thousandths, so that it is shown as it is stored:
# 818 is 81.8 %. Rows are stored as differences of neighbours, which are mostly 0 and cost nothing.

#: Instead of thousandths, where nothing was measured.
_UNKNOWN = -1
#: Ends of the magnitude bins: a quarter of a decade each.
_PER_DECADE = 4


def details_of(run: Run, *, for_file: bool) -> dict[str, Any]:
    """Maps and magnitudes by tensor: small for a file, else as fine as a screen shows."""
    number = max(len(run.tensors), 1)
    most = min(_MAX_COLUMNS, _MAX_CELLS // number) if for_file else MAX_SNAPSHOTS
    deep = min(_MAX_COLUMNS // 2, _MAX_MAGNITUDES // (40 * number))
    return {
        "maps": maps(run, chosen(run, max(most, 24))),
        "magnitudes": magnitudes(run, chosen(run, max(deep, 12))),
        "experts": experts(run),
    }


def experts(run: Run) -> dict[str, Any] | None:
    """Positions that came to each expert, by layer and snapshot; None without experts."""
    known = [None if r.xray is None else r.xray.expert_load or None for r in run.records]
    names = list(dict.fromkeys(name for loads in known for name in loads or ()))
    most = max((sum(map(len, loads.values())) for loads in known if loads), default=1)
    kept = chosen(run, max(_MAX_MAGNITUDES // most, 12))
    found = [(i, loads) for i in kept if (loads := known[i]) is not None]
    by_layer = [[list(loads.get(name, ())) for _, loads in found] for name in names]
    own = [printable(name) for name in names]
    return {"columns": [i for i, _ in found], "names": own, "loads": by_layer} if found else None


def maps(run: Run, columns: Sequence[int]) -> dict[str, Any]:
    """Shares by tensor and snapshot, as differences of thousandths from column to column."""
    rule = next(iter(run.rules), "")
    level = removal_level(run.records)
    place_of = {name: i for i, name in enumerate(run.tensors)}
    cells = {kind: np.full((len(place_of), len(columns)), math.nan) for kind in OF_TENSORS}
    for t, index in enumerate(columns):
        record = run.records[index]
        layers = Layers.of(record.layers).columns
        levels = list(record.curve.level or ()) if record.curve is not None else []
        rows = [place_of[name] for name in layers.names]
        known: dict[str, Any] = {**layers.numbers}
        known["near_zero"] = layers.near_zero.get(rule, math.nan)
        whole = None if record.vital is None else record.vital.gradient
        norm = whole.norm if whole is not None and whole.norm > 0.0 else math.nan
        known["gradient"] = known.get("gradient", math.nan) / norm
        if record.alone:
            known["alone"] = [record.alone[name].value for name in layers.names]
        if level in levels and len(layers.removed):
            known["removed"] = layers.removed[levels.index(level)]
        for kind in cells.keys() & known.keys():
            cells[kind][rows, t] = known[kind]
        if record.xray is not None:
            seen = record.xray.layers
            pairs = zip(seen.names, seen.dead, strict=True)
            # what no example reached reads nothing
            for name, share in (*pairs, *((name, 1.0) for name in record.xray.unreached)):
                if name in place_of:
                    cells["dead"][place_of[name], t] = share
    return {
        "columns": list(columns),
        "level": level,
        "labels": OF_TENSORS,
        "rows": {
            kind: np.diff(_thousandths(values), prepend=0).tolist()
            for kind, values in cells.items()
            if np.isfinite(values).any()
        },
    }


def removal_level(records: Sequence[Record]) -> float | None:
    """Of the levels that most snapshots asked for, the one nearest to a half; None without."""
    asked: Counter[float] = Counter()
    for record in records:
        if record.curve is not None:
            asked.update(level for level in record.curve.level or () if 0.0 < level < 1.0)
    most = max(asked.values(), default=0)
    candidates = [level for level, number in asked.items() if number == most]
    return min(candidates, key=lambda level: (abs(level - 0.5), level), default=None)


def _thousandths(shares: np.ndarray) -> np.ndarray:
    known = np.isfinite(shares)
    return np.where(known, np.round(1000.0 * np.where(known, shares, 0.0)), _UNKNOWN).astype(int)


def magnitudes(run: Run, columns: Sequence[int]) -> dict[str, Any] | None:
    """How large the weights are, by tensor and snapshot, from the stored spectra; None without."""
    found: list[tuple[int, Mapping[str, np.ndarray]]] = []
    for index in columns:
        try:
            stored = run.spectrum(int(run.steps[index]))
        except StateError:  # not of every snapshot: of one that failed there is none
            continue
        if is_counted(stored):
            found.append((index, stored))
    if not found:
        return None
    limits = _limits([(bin_ends(arrays), arrays["counts"]) for _, arrays in found])
    ends = np.log10(limits)
    row = {name: i for i, name in enumerate(run.tensors)}
    below = np.full((len(row), len(found), len(ends)), _UNKNOWN, dtype=int)
    whole = np.zeros((len(found), len(ends)), dtype=int)
    for t, (_, arrays) in enumerate(found):
        shares, num_weights = cumulative(arrays, limits)
        rows = [row[name] for name in arrays["names"].tolist() if name in row]
        below[rows, t] = _thousandths(shares[np.isin(arrays["names"], run.tensors)])
        total = (num_weights[:, None] * np.nan_to_num(shares)).sum(0) / max(num_weights.sum(), 1)
        whole[t] = np.round(1e6 * total)
    return {
        "columns": [index for index, _ in found],
        "ends": np.round(ends, 2).tolist(),  # log10; up to each the shares below
        "below": np.diff(below, prepend=0).tolist(),
        "all": np.diff(whole, prepend=0).tolist(),
    }


def cumulative(
    stored: Mapping[str, np.ndarray], limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Share of each tensor's finite weights with |w| up to each limit, and their number."""
    found, total = counted(stored, limits)
    with np.errstate(invalid="ignore", divide="ignore"):
        return found / total[:, None], total


def _limits(spectra: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Magnitudes, four a decade, around all but the smallest ten-thousandth of the weights."""
    low, high = [0], [0]
    for ends, counts in spectra:
        some = (ends > 0.0) & np.isfinite(ends)
        if not some.any():
            continue
        places = np.ceil(_PER_DECADE * np.log10(ends[some])).astype(int)
        first = int(places.min())
        shares = np.cumsum(np.bincount(places - first, weights=counts[some])) / counts.sum()
        low.append(first + int(np.searchsorted(shares, 1e-4)))
        high.append(int(places.max()))
    last = max(high[1:] or high)
    first = max(min(low[1:] or low), last - 12 * _PER_DECADE)  # what is smaller is as good as zero
    return 10.0 ** (np.arange(first, last + 1) / _PER_DECADE)


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
