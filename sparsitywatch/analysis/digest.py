"""A run in short, and whether runs can be compared at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError
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

__all__ = [
    "Difference",
    "Digest",
    "SeriesDigest",
    "decay_clock_at",
    "differences",
    "digest",
    "require_comparable",
]

#: Fields of a record's provenance that its curve depends on, and those that all of it does.
_CURVE_FIELDS = (
    "scope_hash",
    "proxy_hash",
    "tolerance",
    "tolerance_mode",
    "pattern",
    "evaluation",
    "dtypes",
)
_WEIGHT_FIELDS = ("scope_hash",)


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
    """A run in short.

    Args:
        name: what the run is called.
        num_records: snapshots so far.
        num_invalid: those whose measurement failed.
        num_informative: those with an informative essential sparsity.
        num_evaluated: those with an evaluation that succeeded.
        first_step, last_step: steps of the first and the last snapshot.
        cost: of all snapshots together; ``overhead`` as last known.
        scope, provenance: as in the last record.
        essential_sparsity: as in the last record that has one, be it informative or not, which is
            of ``estimated_step``; None and -1 if none has, and where only weights count.
        trouble: in a few words, what keeps the silence of the watch from meaning anything.
        standing: sentences on how the watch itself is, the most important one first; nothing of
            a replay without faults.
        state: the watch's own word on that; None of a replay, and in earlier logs.
        series: every series of the records but the watch's own costs, by name.
        events: in the order in which they were seen.
        onset_clock: the decay clock at the onset of each event, by its id; NaN if unknown.
        notes: what to know beside the numbers, by step, where it begins.
    """

    name: str
    num_records: int
    num_invalid: int
    num_informative: int
    num_evaluated: int
    first_step: int
    last_step: int
    cost: Cost
    scope: ScopeSummary
    provenance: Provenance
    essential_sparsity: EssentialSparsity | None
    estimated_step: int
    trouble: str
    standing: tuple[str, ...]
    state: WatchState | None
    series: Mapping[str, SeriesDigest]
    events: tuple[Event, ...]
    onset_clock: Mapping[str, float]
    notes: Mapping[int, Sequence[str]]

    def last(self, series: str) -> float:
        """A series at the last snapshot that could measure it; NaN if none could."""
        return self.series[series].last if series in self.series else math.nan


def digest(run: Run, *, weights_only: bool = False) -> Digest:
    """A run in short.

    Args:
        run: with at least one record.
        weights_only: leave out what depends on a proxy.

    Raises:
        ConfigurationError: there is no record.
        StateError: the log is damaged.
    """
    run.require_records()
    records, info = run.records, run.info
    last = records[-1]
    estimated = [r for r in records if r.essential_sparsity is not None and not weights_only]
    events = _without_proxy(run.events) if weights_only else run.events
    return Digest(
        name=run.name,
        num_records=len(records),
        num_invalid=sum(not record.valid for record in records),
        num_informative=int(np.isfinite(run.column("essential_sparsity/value")).sum()),
        num_evaluated=sum(record.curve is not None for record in records),
        first_step=records[0].step,
        last_step=last.step,
        cost=_total_cost(run),
        scope=last.scope,
        provenance=last.provenance,
        essential_sparsity=estimated[-1].essential_sparsity if estimated else None,
        estimated_step=estimated[-1].step if estimated else -1,
        trouble=run.standing.trouble,
        standing=run.standing.sentences,
        state=None if info is None else info.state,
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
            for before, record in zip([None, *records], records, strict=False)
            if (remarks := record.remarks(before))
        },
    )


def _digest_series(steps: np.ndarray, values: np.ndarray) -> SeriesDigest:
    """Of a series that was measured at one snapshot at least."""
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    lowest, highest = int(values.argmin()), int(values.argmax())
    return SeriesDigest(
        first=float(values[0]),
        first_step=int(steps[0]),
        last=float(values[-1]),
        last_step=int(steps[-1]),
        lowest=float(values[lowest]),
        lowest_step=int(steps[lowest]),
        highest=float(values[highest]),
        highest_step=int(steps[highest]),
    )


def _total_cost(run: Run) -> Cost:
    costs = [record.cost for record in run.records]
    state = None if run.info is None else run.info.state
    overheads = [cost.overhead for cost in costs] + ([] if state is None else [state.overhead])
    return Cost(
        stall_s=math.fsum(cost.stall_s for cost in costs),
        spectrum_s=math.fsum(cost.spectrum_s for cost in costs),
        evaluation_s=math.fsum(cost.evaluation_s for cost in costs),
        publish_s=math.fsum(cost.publish_s for cost in costs),
        num_forwards=sum(cost.num_forwards for cost in costs),
        overhead=next((x for x in reversed(overheads) if math.isfinite(x)), math.nan),
        num_left_out=sum(cost.num_left_out for cost in costs),
        num_evaluations_left_out=sum(cost.num_evaluations_left_out for cost in costs),
    )


def _without_proxy(events: Sequence[Event]) -> list[Event]:
    """Events as the weights alone saw them.

    Where a series that needs a proxy saw one first, the first other series that saw it stands for
    it, with an unknown size; what only such series saw is left out.
    """
    found = []
    for event in events:
        seen_in = [s for s in (event.series, *event.related) if not describe(s).needs_proxy]
        if not seen_in:
            continue
        if seen_in[0] != event.series:
            event = replace(
                event, series=seen_in[0], direction="", trend="",
                baseline=math.nan, value=math.nan, noise=math.nan,
            )  # fmt: skip
        found.append(replace(event, related=tuple(seen_in[1:])))
    return found


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field of the provenance that is not the same in all runs.

    Args:
        field: its name.
        runs: names of the runs, by the field's value as text.
    """

    field: str
    runs: Mapping[str, tuple[str, ...]]

    def describe(self) -> str:
        """One line for a person."""
        parts = [f"{value} in {', '.join(names)}" for value, names in self.runs.items()]
        return f"{self.field}: {'; '.join(parts)}"


def decay_clock_at(records: Sequence[Record], step: int) -> float:
    """The decay clock at a step, on the straight line between the snapshots around it.

    Returns:
        NaN where no snapshot knows the clock, or all that do are on one side of ``step``.
    """
    known = [(r.step, r.decay_clock) for r in records if math.isfinite(r.decay_clock)]
    if not known:
        return math.nan
    steps, clock = zip(*known, strict=True)
    return float(np.interp(step, steps, clock, left=math.nan, right=math.nan))


def differences(runs: Sequence[Run], *, weights_only: bool = False) -> tuple[Difference, ...]:
    """What keeps runs from being compared; nothing if they can be.

    Args:
        runs: each with a name of its own. One whose provenance changed on the way (it was
            resumed with another proxy, say) is reported with the step of the change.
        weights_only: what only the weights tell is compared: the scope must agree, and the
            proxy, the tolerance and the pattern do not matter.
    """
    found = []
    for field in _WEIGHT_FIELDS if weights_only else _CURVE_FIELDS:
        by_value: dict[str, list[str]] = {}
        for run in runs:
            for value, step in _first_steps(run.records, field).items():
                since = "" if step == run.records[0].step else f" from step {step}"
                by_value.setdefault(value, []).append(f"{run.name}{since}")
        if len(by_value) > 1:
            values = {value: tuple(names) for value, names in by_value.items()}
            found.append(Difference(field=field, runs=values))
    return tuple(found)


def _first_steps(records: Sequence[Record], field: str) -> dict[str, int]:
    """Step of the first snapshot with each value of a field, by the value as text."""
    steps: dict[str, int] = {}
    for record in records:
        value = getattr(record.provenance, field)
        text = ", ".join(value) if isinstance(value, tuple) else f"{value}"
        steps.setdefault(text or "none", record.step)
    return steps


def require_comparable(runs: Sequence[Run], *, weights_only: bool = False) -> None:
    """Refuse runs that cannot be compared.

    Args:
        runs, weights_only: see ``differences``.

    Raises:
        ConfigurationError: they differ in what their numbers depend on; the fields and the
            runs are named.
    """
    found = differences(runs, weights_only=weights_only)
    if not found:
        return
    what = "watch the same weights" if weights_only else "measure the same thing"
    lines = [f"Expected runs that {what}, got runs that differ in"]
    lines += [f"  {difference.describe()}" for difference in found]
    if not weights_only and not differences(runs, weights_only=True):
        lines.append(
            "Their scopes agree: near-zero and dormant weights can be compared with --weights-only."
        )
    raise ConfigurationError("\n".join(lines))
