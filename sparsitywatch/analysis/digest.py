"""A run in short, and whether runs can be compared at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import Verdict, up_to_date
from sparsitywatch.records import (
    Cost,
    EssentialSparsity,
    Event,
    Provenance,
    Record,
    ScopeSummary,
    WatchState,
)
from sparsitywatch.series import describe


@dataclass(frozen=True, kw_only=True)
class SeriesDigest:
    """One series over a run: its ends and its extremes, with their steps."""

    first: float
    first_step: int
    last: float
    last_step: int
    lowest: float
    lowest_step: int
    highest: float
    highest_step: int


@dataclass(frozen=True, kw_only=True)
class Digest:
    """A run in short."""

    name: str
    is_whole: bool  # False where what depends on a proxy is left out
    num_records: int
    num_invalid: int  # snapshots whose measurement failed
    num_informative: int  # those with an informative essential sparsity
    num_evaluated: int  # those with an evaluation that succeeded
    first_step: int
    last_step: int
    cost: Cost  # of all snapshots together; ``overhead`` as last known
    scope: ScopeSummary  # of the last record, as is the provenance
    provenance: Provenance
    essential_sparsity: EssentialSparsity | None  # the last one, informative or not
    estimated_step: int  # its step; -1 if there is none, and where only weights count
    verdict: Verdict
    state: WatchState | None  # the watch's own word on that; None of a replay
    series: Mapping[str, SeriesDigest]  # all but the costs of the watch
    events: tuple[Event, ...]  # in the order in which they were seen
    onset_clock: Mapping[str, float]  # decay clock at the onset of each event, by its id
    notes: Mapping[int, Sequence[str]]  # what to know beside the numbers, by step

    def last(self, series: str) -> float:
        """A series at the last snapshot that could measure it; NaN if none could."""
        return self.series[series].last if series in self.series else math.nan


def digest(run: Run, *, weights_only: bool = False) -> Digest:
    """A run in short; ``weights_only`` leaves out what depends on a proxy."""
    run.require_records()
    records, last = run.records, run.records[-1]
    state = up_to_date(None if run.info is None else run.info.state, records)
    estimated = [r for r in records if r.essential_sparsity is not None and not weights_only]
    events = _without_proxy(run.events) if weights_only else run.events
    return Digest(
        name=run.name,
        is_whole=not weights_only,
        num_records=len(records),
        num_invalid=sum(not record.valid for record in records),
        num_informative=int(np.isfinite(run.column("essential_sparsity/value")).sum()),
        num_evaluated=sum(record.curve is not None for record in records),
        first_step=records[0].step,
        last_step=last.step,
        cost=_total_cost(records, state),
        scope=last.scope,
        provenance=last.provenance,
        essential_sparsity=estimated[-1].essential_sparsity if estimated else None,
        estimated_step=estimated[-1].step if estimated else -1,
        verdict=run.verdict,
        state=state,
        series={
            name: _digest_series(run.steps, run.column(name))
            for name in run.names
            if not name.startswith("watch/")
            and name != "essential_sparsity/informative"
            and not (weights_only and describe(name).needs_proxy)
        },
        events=tuple(events),
        onset_clock={event.id: decay_clock_at(records, event.onset_step) for event in events},
        notes={
            record.step: remarks
            for before, record in pairwise([None, *records])
            if record is not None and (remarks := record.remarks(before))
        },
    )


def _digest_series(steps: np.ndarray, values: np.ndarray) -> SeriesDigest:
    """Of a series that was measured at one snapshot at least."""
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    found: dict[str, Any] = {}
    ends = (0, -1, int(values.argmin()), int(values.argmax()))
    for name, i in zip(("first", "last", "lowest", "highest"), ends, strict=True):
        found |= {name: float(values[i]), f"{name}_step": int(steps[i])}
    return SeriesDigest(**found)


def _total_cost(records: Sequence[Record], state: WatchState | None) -> Cost:
    """Sums of what the snapshots cost; the share of the time that was known last."""
    costs = [vars(record.cost) for record in records]
    overheads = [cost["overhead"] for cost in costs] + ([] if state is None else [state.overhead])
    known = [x for x in overheads if math.isfinite(x)]
    sums = {name: sum(cost[name] for cost in costs) for name in costs[0]}
    return Cost(**{**sums, "overhead": known[-1] if known else math.nan})


def _without_proxy(events: Sequence[Event]) -> list[Event]:
    """Events as the weights alone saw them; what only series of the proxy saw is left out."""
    found = []
    for event in events:
        seen_in = [s for s in (event.series, *event.related) if not describe(s).needs_proxy]
        if seen_in and seen_in[0] != event.series:
            event = replace(
                event, series=seen_in[0], direction="", trend="",
                baseline=math.nan, value=math.nan, noise=math.nan,
            )  # fmt: skip
        if seen_in:
            found.append(replace(event, related=tuple(seen_in[1:])))
    return found


def decay_clock_at(records: Sequence[Record], step: int) -> float:
    """The decay clock at a step, interpolated; NaN beyond the snapshots that know it."""
    known = [(r.step, r.decay_clock) for r in records if math.isfinite(r.decay_clock)]
    if not known:
        return math.nan
    steps, clock = zip(*known, strict=True)
    return float(np.interp(step, steps, clock, left=math.nan, right=math.nan))


# ------------------------------------------------------------------ whether runs can be compared

#: Fields of a record's provenance that all of it depends on, and those that its curve does, too.
_WEIGHT_FIELDS = ("scope_hash",)
CURVE_FIELDS = (
    *_WEIGHT_FIELDS, "proxy_hash", "tolerance", "tolerance_mode", "pattern", "evaluation", "dtypes",
)  # fmt: skip


def alike(runs: Sequence[Run], *, weights_only: bool = False) -> list[list[Run]]:
    """Runs that can be compared with each other, the largest group first."""
    groups: dict[object, list[Run]] = {}
    fields = _WEIGHT_FIELDS if weights_only else CURVE_FIELDS
    for run in runs:
        key = [tuple(first_steps(run.records, field)) for field in fields]
        is_one = all(len(values) == 1 for values in key)  # else not even with itself
        groups.setdefault(tuple(key) if is_one else id(run), []).append(run)
    return sorted(groups.values(), key=len, reverse=True)


def differences(runs: Sequence[Run], *, weights_only: bool = False) -> list[str]:
    """What keeps runs from being compared, a line a field: its values, and which runs have each."""
    lines = []
    for field in _WEIGHT_FIELDS if weights_only else CURVE_FIELDS:
        by_value: dict[str, list[str]] = {}
        for run in runs:
            for value, step in first_steps(run.records, field).items():
                since = "" if step == run.records[0].step else f" from {run.unit} {step}"
                by_value.setdefault(value, []).append(f"{run.name}{since}")
        if len(by_value) > 1:
            values = [f"{value} in {', '.join(names)}" for value, names in by_value.items()]
            lines.append(f"  {field}: {'; '.join(values)}")
    return lines


def first_steps(records: Sequence[Record], field: str) -> dict[str, int]:
    """Step of the first snapshot with each value of a field, by the value as text."""
    steps: dict[str, int] = {}
    for record in records:
        value = vars(record.provenance)[field]
        text = ", ".join(value) if isinstance(value, tuple) else f"{value}"
        steps.setdefault(text or "none", record.step)
    return steps
