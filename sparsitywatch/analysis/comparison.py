"""Runs side by side: what each came to, and whether they can be compared at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import EssentialSparsity, Event, Record
from sparsitywatch.series import describe

__all__ = [
    "Difference",
    "EventDigest",
    "RunDigest",
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
class EventDigest:
    """An event in short.

    Args:
        series, direction: as in the event. Where only weights are compared and the event was
            first seen in a series that needs a proxy, the first other one that saw it, and "".
        onset_step, onset_low, onset_high, detected_step: as in the event.
        related: the other series that saw the same thing.
        onset_clock: decay clock at ``onset_step``, read off between two looks; NaN if unknown.
    """

    series: str
    direction: str
    onset_step: int
    onset_low: int
    onset_high: int
    detected_step: int
    related: tuple[str, ...]
    onset_clock: float


@dataclass(frozen=True, kw_only=True)
class RunDigest:
    """What a run came to.

    Args:
        name: what to call it.
        num_snapshots, num_invalid: looks at the weights, and those whose measurement failed.
        first_step, last_step: steps of the first and the last look.
        near_zero: fraction of in-scope weights near zero by rule, at the last look that has it.
        dormant: dormant fraction at the last look that could measure it; NaN if none could.
        essential_sparsity: at the last look that has one, be it informative or not; None
            without any, and where only the weights are compared.
        decay_clock: at the last look; NaN if unknown.
        events: in the order in which they were seen.
    """

    name: str
    num_snapshots: int
    num_invalid: int
    first_step: int
    last_step: int
    near_zero: Mapping[str, float]
    dormant: float
    essential_sparsity: EssentialSparsity | None
    decay_clock: float
    events: tuple[EventDigest, ...]


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


def digest(
    name: str, records: Sequence[Record], events: Iterable[Event], *, weights_only: bool = False
) -> RunDigest:
    """What a run came to.

    Args:
        name: what to call it.
        records: in the order of the steps, at least one.
        events: in the order in which they were seen.
        weights_only: leave out what depends on a proxy.

    Raises:
        ConfigurationError: there is no record.
    """
    if not records:
        raise ConfigurationError(f"Expected records of the run {name!r}, got none.")
    estimates = [r.essential_sparsity for r in records if r.essential_sparsity is not None]
    told = (_digest_event(event, records, weights_only=weights_only) for event in events)
    return RunDigest(
        name=name,
        num_snapshots=len(records),
        num_invalid=sum(not record.valid for record in records),
        first_step=records[0].step,
        last_step=records[-1].step,
        near_zero={
            rule: x
            for record in records
            for rule, x in record.near_zero.items()
            if not record.num_not_finite
        },
        dormant=_last([record.series().get("motion/dormant", math.nan) for record in records]),
        essential_sparsity=estimates[-1] if estimates and not weights_only else None,
        decay_clock=_last([record.decay_clock for record in records]),
        events=tuple(event for event in told if event is not None),
    )


def _digest_event(
    event: Event, records: Sequence[Record], *, weights_only: bool
) -> EventDigest | None:
    """An event in short; None if only series that need a proxy saw it and none may."""
    seen_in = [
        series
        for series in (event.series, *event.related)
        if not weights_only or not describe(series).needs_proxy
    ]
    if not seen_in:
        return None
    return EventDigest(
        series=seen_in[0],
        direction=event.direction if seen_in[0] == event.series else "",
        onset_step=event.onset_step,
        onset_low=event.onset_low,
        onset_high=event.onset_high,
        detected_step=event.detected_step,
        related=tuple(seen_in[1:]),
        onset_clock=decay_clock_at(records, event.onset_step),
    )


def _last(values: Sequence[float]) -> float:
    return next((x for x in reversed(values) if math.isfinite(x)), math.nan)


def decay_clock_at(records: Sequence[Record], step: int) -> float:
    """The decay clock at a step, on the straight line between the looks around it.

    Returns:
        NaN where no look knows the clock, or all that do are on one side of ``step``.
    """
    known = [(r.step, r.decay_clock) for r in records if math.isfinite(r.decay_clock)]
    if not known:
        return math.nan
    steps, clock = zip(*known, strict=True)
    return float(np.interp(step, steps, clock, left=math.nan, right=math.nan))


def differences(
    runs: Mapping[str, Sequence[Record]], *, weights_only: bool = False
) -> tuple[Difference, ...]:
    """What keeps runs from being compared; nothing if they can be.

    Args:
        runs: records by the name of the run. A run whose provenance changed on the way (it
            was resumed with another proxy, say) is told with the step of the change.
        weights_only: what only the weights tell is compared: the scope must agree, and the
            proxy, the tolerance and the pattern do not matter.
    """
    found = []
    for field in _WEIGHT_FIELDS if weights_only else _CURVE_FIELDS:
        by_value: dict[str, list[str]] = {}
        for name, records in runs.items():
            for value, step in _first_steps(records, field).items():
                since = "" if step == records[0].step else f" from step {step}"
                by_value.setdefault(value, []).append(f"{name}{since}")
        if len(by_value) > 1:
            told = {value: tuple(names) for value, names in by_value.items()}
            found.append(Difference(field=field, runs=told))
    return tuple(found)


def _first_steps(records: Sequence[Record], field: str) -> dict[str, int]:
    """Step of the first look with each value of a field, by the value as text."""
    steps: dict[str, int] = {}
    for record in records:
        value = getattr(record.provenance, field)
        text = ", ".join(value) if isinstance(value, tuple) else f"{value}"
        steps.setdefault(text or "none", record.step)
    return steps


def require_comparable(runs: Mapping[str, Sequence[Record]], *, weights_only: bool = False) -> None:
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
