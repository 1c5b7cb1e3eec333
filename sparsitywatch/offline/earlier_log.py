"""The log of an earlier replay: what it holds, and whether this one may go on from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sparsitywatch.analysis.run import Run
from sparsitywatch.checkpoints.addresses import templates
from sparsitywatch.checkpoints.series import ListedCheckpoint
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.offline.jobs import Plan, mark_at
from sparsitywatch.offline.rates import Rates
from sparsitywatch.records import Record
from sparsitywatch.redact import redacted_url
from sparsitywatch.series import numbered
from sparsitywatch.sinks.jsonl import read_events, read_manifest, read_records


def read_log(directory: Path | None) -> Run | None:
    """What an earlier replay has left in ``directory``; None if there is no record in it."""
    if directory is None:
        return None
    info, records = read_manifest(directory), read_records(directory)
    is_live = not info.replayed_from if info is not None else bool(records)
    if is_live:
        raise ConfigurationError(
            f"Expected `logdir` to be new or of an earlier replay, but {str(directory)!r} holds "
            "the log of a live watch. Give another one."
        )
    return Run(records, read_events(directory), info) if info is not None and records else None


def logged_until(log: Run, step: int) -> Run:
    """The log without what came after a step."""
    return Run(
        [record for record in log.records if record.step <= step],
        [event for event in log.events if event.reported_step <= step],
        log.info,
    )


def check_same(log: Run, plan: Plan) -> None:
    """Refuse to go on with other settings than those of the log; the message says which."""
    assert log.info is not None  # noqa: S101 for the type checker
    then, now = log.info.provenance.settings(), plan.run.provenance.settings()
    pairs = {name: (then[name], value) for name, value in now.items()}
    rules = plan.settings.near_zero
    logged = next((tuple(r.near_zero) for r in log.records if r.near_zero), rules)
    pairs["near_zero"] = (sorted(logged), sorted(rules))
    if log.records[-1].step:  # zero is zero in any unit
        pairs["steps that count"] = (f"{log.unit}s", f"{plan.unit}s")
    wrong = [f"{name} {then!r}, now {now!r}" for name, (then, now) in pairs.items() if then != now]
    if plan.initial_rms is not None and dict(plan.initial_rms) != dict(log.info.initial_rms):
        wrong.append("another initial_rms")
    if wrong:
        raise ConfigurationError(
            "Expected `logdir` to be new or of a replay with the same settings, but it was written "
            f"with {'; '.join(wrong)}. Give another one."
        )


#: Checkpoints whose marks are read at once: each waits for a storage several times.
_MARKED_AT_ONCE = 8


def unlike_log(
    records: Sequence[Record], pending: Mapping[int, ListedCheckpoint], plan: Plan
) -> str:
    """Why these checkpoints are not those of a log, by some bytes or else by their addresses."""
    logged = {record.step: record.source for record in records if record.source is not None}
    there = {step: one for step, one in pending.items() if one.error is None}
    both = {step: there[step] for step, source in logged.items() if source.mark and step in there}
    with ThreadPoolExecutor(_MARKED_AT_ONCE, "sparsitywatch-marks") as pool:
        marks = pool.map(lambda one: mark_at(plan, one.url), both.values())
        for (step, one), mark in zip(both.items(), marks, strict=True):
            if mark and mark != logged[step].mark:
                shown = redacted_url(one.url)
                where = "there" if shown == logged[step].address else f"at {logged[step].address}"
                at = numbered(plan.unit, step)
                return f"other weights of {at} than {shown} holds now lay {where}"
    if both or not logged:
        return ""
    steps = {source.address: step for step, source in logged.items()}
    steps |= {redacted_url(one.url): step for step, one in there.items()}
    series = sorted(set(templates(steps).values()))
    return f"it is of another series: {' and '.join(series)}" if len(series) > 1 else ""


def check_same_rates(log: Run, rates: Rates) -> None:
    """Refuse to go on with another schedule: the clocks of the log's last record are others."""
    last = next((record for record in reversed(log.records) if record.was_read), None)
    if last is None:
        return
    now = rates.reading(last.step, ()) if rates.is_known else None
    clocks = {"decay_clock": (last.decay_clock, now.decay_clock if now else math.nan)}
    if not (rates.is_logged and math.isnan(last.lr_clock)):  # else logged for the first time since
        clocks["lr_clock"] = (last.lr_clock, now.lr_clock if now else math.nan)
    for name, (then, known) in clocks.items():
        if not np.isclose(then, known, rtol=1e-6, atol=0.0, equal_nan=True):
            raise ConfigurationError(
                "Expected `logdir` to be new or of a replay with the same `lr` and "
                f"`weight_decay`, but its {name} at {last.place} is {then:g}, now {known:g}. "
                "Give another one."
            )
