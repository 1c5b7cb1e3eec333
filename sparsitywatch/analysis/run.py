"""A run as its log tells it: its series over the steps, its events, and how its watch stands.

A watch that sees nothing must not look like a quiet one.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from sparsitywatch.errors import ConfigurationError, MissingExtraError
from sparsitywatch.records import Event, Layers, Record, RunInfo, WatchState, html_of
from sparsitywatch.series import describe
from sparsitywatch.shown import shown_name

__all__ = ["Run", "Standing", "standing"]

#: A living watch says how it is once a minute, at a step; after three it is late.
_LATE_S = 180.0
#: Where steps are longer than that it is late after so many of them.
_LATE_STEPS = 5
#: Snapshots that failed at the end of a log make a watch that no longer sees.
_FEW_FAILURES = 3


class Run:
    """A run: what was measured, what was detected, what was said once, and how its watch stands.

    Nothing is read before it is asked for, and what was read is kept: ask ``again`` for news.

    Args:
        records: in the order of the steps, or a function that reads them.
        events: each once, in the order in which they were seen, or a function that reads them.
        info: what was said once about the run (run.json), None if that is not known, or a
            function that reads it.
        name: what the run is called.
        directory: where its log lies; None if it has none.
        now: seconds since the epoch, to see whether a watch that says that it is on still is; None
            to take its word.
    """

    def __init__(
        self,
        records: Sequence[Record] | Callable[[], Sequence[Record]],
        events: Sequence[Event] | Callable[[], Sequence[Event]] = (),
        info: RunInfo | Callable[[], RunInfo | None] | None = None,
        *,
        name: str = "run",
        directory: Path | None = None,
        now: float | None = None,
    ) -> None:
        self._records, self._events, self._info = records, events, info
        self._name, self._directory, self._now = name, directory, now
        self._known: list[tuple[Record, dict[str, float]]] = []  # records, and what they measured

    def again(self, *, now: float | None = None) -> Run:
        """The run as its log is by now; this one stays as it is.

        What was appended is all that is read, and computed, of one that ``load`` has given.

        Args:
            now: as of a new one.
        """
        later = type(self)(self._records, self._events, self._info,
                           name=self._name, directory=self._directory, now=now)  # fmt: skip
        if "_measured" in vars(self):
            later._known = list(zip(self.records, self._measured, strict=True))
        return later

    @property
    def name(self) -> str:
        """What the run is called."""
        return self._name

    @property
    def directory(self) -> Path | None:
        """Where its log lies; None if it has none."""
        return self._directory

    @cached_property
    def records(self) -> Sequence[Record]:
        """One for each snapshot, in the order of the steps.

        Raises:
            StateError: the log is damaged; the file and the line are named.
        """
        return self._records() if callable(self._records) else self._records

    def require_records(self) -> None:
        """Refuse a run that there is nothing to show of.

        Raises:
            ConfigurationError: it has no record.
        """
        if not self.records:
            raise ConfigurationError(
                "Expected `records` with at least one record, got none: the run "
                f"{self.name!r} has taken no snapshot yet."
            )

    @cached_property
    def events(self) -> Sequence[Event]:
        """Each event once, in its last version, in the order in which they were seen.

        Raises:
            StateError: the log is damaged; the file and the line are named.
        """
        return self._events() if callable(self._events) else self._events

    @cached_property
    def info(self) -> RunInfo | None:
        """The manifest: scope ledger, provenance, first sizes, state of the watch; None without.

        Raises:
            StateError: the manifest is damaged.
        """
        return self._info() if callable(self._info) else self._info

    @cached_property
    def standing(self) -> Standing:
        """How the watch itself is: in a few words what is wrong with it, and in sentences."""
        return standing(self.records, self.info, now=self._now)

    @cached_property
    def steps(self) -> np.ndarray:
        """Steps of all snapshots, int [T]."""
        return np.array([record.step for record in self.records], dtype=int)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every series that was measured at any snapshot."""
        return tuple(dict.fromkeys(name for series in self._measured for name in series))

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Series that were asked for at every snapshot."""
        return {}

    @cached_property
    def _measured(self) -> list[dict[str, float]]:
        known, self._known = self._known, []
        pairs = zip(self.records, known, strict=False)
        same = list(takewhile(lambda pair: pair[0] is pair[1][0], pairs))
        new = [record.series() for record in self.records[len(same) :]]
        return [measured for _, (_, measured) in same] + new

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One series over the steps.

        Snapshots that left the evaluation out are left out of what an evaluation measures: what
        is missing there is no gap.

        Args:
            name: such as "near_zero/initial_0.1"; docs/tags.md has all of them.

        Returns:
            Steps, int [S], and values, float [S]: NaN where it could not be measured.

        Raises:
            ConfigurationError: there is no such series; those of the run are named.
        """
        if name not in self.names and not describe(name).source:
            known = ", ".join(map(shown_name, self.names)) or "none yet"
            raise ConfigurationError(
                f"Expected the name of a series, got {name!r}. Those of run {self.name!r}: {known}."
            )
        asked = self.asked(name)
        return self.steps[asked], self.column(name)[asked]

    def column(self, name: str) -> np.ndarray:
        """One series at every snapshot, float [T]; NaN where it was not measured."""
        if name not in self._columns:
            values = [series.get(name, math.nan) for series in self._measured]
            self._columns[name] = np.array(values, dtype=float)
            self._columns[name].flags.writeable = False
        return self._columns[name]

    def asked(self, name: str) -> np.ndarray:
        """Which snapshots could have had a series, bool [T]: not those without an evaluation."""
        return np.array([record.was_asked(name) for record in self.records], dtype=bool)

    def has(self, name: str) -> bool:
        """Whether a series was measured at any snapshot."""
        return name in self.names

    def frame(self) -> Any:
        """All series as a ``pandas.DataFrame``: a row a step, a column a series, NaN for gaps.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "pandas", "run.frame()") from error
        columns = {name: self.column(name) for name in self.names}
        return pd.DataFrame(columns, index=pd.Index(self.steps, name="step"))

    @property
    def replayed_from(self) -> tuple[str, ...]:
        """Where the checkpoints lay, in a replay; empty for a live watch."""
        return () if self.info is None else self.info.replayed_from

    @property
    def rules(self) -> tuple[str, ...]:
        """The near-zero rules of the run, the first one first."""
        return tuple(dict.fromkeys(rule for record in self.records for rule in record.near_zero))

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Names of the in-scope tensors of all snapshots, in the model's order, length N."""
        every = dict.fromkeys(Layers.of(record.layers).columns.names for record in self.records)
        return tuple(dict.fromkeys(name for names in every for name in names))

    def __repr__(self) -> str:
        return f"<Run {shown_name(self.name)[:80]}>"

    def _repr_html_(self) -> str:
        return html_of(f"Run {self.name}", self.records, self.events)


# ------------------------------------------------------------------ how its watch stands


@dataclass(frozen=True)
class Standing:
    """How a watch is, for whoever looks at its numbers.

    Args:
        trouble: in a few words, what keeps its silence from meaning anything; empty if nothing.
        sentences: what is known of it; the first one is worth the first line. None in a replay
            where nothing failed.
    """

    trouble: str = ""
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Finding:
    """Something that is wrong: in a few words, and in a sentence."""

    trouble: str
    sentence: str


def standing(
    records: Sequence[Record], info: RunInfo | None = None, *, now: float | None = None
) -> Standing:
    """How the watch of a log is: on, off, closed, gone, overdue or blind.

    Args:
        records: in the order of the steps.
        info: what was said about the run; its state is the watch's own word.
        now: seconds since the epoch; None to take that word without asking the clock, or whether
            its process is there.
    """
    state = None if info is None else _up_to_date(info.state, records)
    lost = _lost(state, now, max((r.cost.stall_s for r in records), default=0.0))
    found = [f for f in (_ended(state), lost, _blind(records), _overdue(state)) if f is not None]
    sentences = [finding.sentence for finding in found]
    if state is not None and state.status != "off" and lost is None:
        sentences.append(state.describe())
    return Standing(found[0].trouble if found else "", tuple(sentences))


def _up_to_date(state: WatchState | None, records: Sequence[Record]) -> WatchState | None:
    """The state with what the log knows better: it is not written anew with every record."""
    if state is None or not records or records[-1].step <= state.last_step:
        return state
    last = records[-1].step
    evaluated = max((r.step for r in records if r.curve is not None), default=-1)
    return replace(
        state,
        step=max(state.step, last),
        wall_time=max(state.wall_time, records[-1].wall_time),
        last_step=last,
        last_evaluated_step=max(state.last_evaluated_step, evaluated),
        next_due_step=-1 if state.next_due_step <= last else state.next_due_step,
    )


def _ended(state: WatchState | None) -> _Finding | None:
    if state is None or state.status != "off":
        return None
    return _Finding(f"the watch has been off since step {state.step:,}", state.describe())


def _lost(state: WatchState | None, now: float | None, longest_s: float) -> _Finding | None:
    """A watch that was on when it was last heard of, and may not be any more.

    ``longest_s``: for which a snapshot held the training up, as the next one may.
    """
    if state is None or state.status != "on" or now is None:
        return None
    sign = f"The last sign of life is of step {state.step:,}, {_moment(state.wall_time)}"
    trouble = f"the watch was last heard of at step {state.step:,}"
    if _is_gone(state):
        return _Finding(
            trouble,
            f"The watch was never closed, and its process {state.pid} is gone: it was killed, or "
            f"ended without closing it. {sign}.",
        )
    step_s = state.step_s if math.isfinite(state.step_s) else 0.0
    silent_s = now - state.wall_time
    if silent_s <= max(_LATE_S, _LATE_STEPS * step_s) + 2.0 * longest_s:
        return None
    due = ""
    if state.next_due_step >= 0:
        due = f" The snapshot of step {state.next_due_step:,} has not come."
    return _Finding(
        trouble,
        f"No step was seen for {_duration(silent_s)}: the training stands still, was killed, or "
        f"steps with an optimizer that is not watched. {sign}.{due}",
    )


def _moment(wall_time: float) -> str:
    try:
        moment = datetime.fromtimestamp(wall_time, timezone.utc)
    except (OverflowError, OSError, ValueError):  # a clock was wrong
        return "at a time that is not known"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _is_gone(state: WatchState) -> bool:
    """Whether the process that watched is known to be gone."""
    if sys.platform == "win32" or state.pid <= 0 or state.host != socket.gethostname():
        return False
    try:
        os.kill(state.pid, 0)  # signal 0 asks, and sends nothing
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        return False
    return False


def _blind(records: Sequence[Record]) -> _Finding | None:
    """Records that say nothing, though they were made."""
    if not records:
        return None
    failed = 0
    for record in reversed(records):
        if record.valid:
            break
        failed += 1
    if failed == len(records) or failed >= _FEW_FAILURES:
        which = "all snapshots" if failed == len(records) else f"the last {failed:,} snapshots"
        return _Finding(
            f"{which} failed",
            f"Blind: {which} failed, the last because of: {records[-1].reason.rstrip('.')}.",
        )
    attempts = [r for r in records if r.provenance.proxy_hash and not r.not_evaluated]
    if attempts and all(record.curve is None for record in attempts):
        return _Finding(
            "no evaluation has succeeded",
            f"Blind for essential sparsity: none of {len(attempts):,} evaluations succeeded, the "
            f"last because of: {(attempts[-1].reason or 'no reason given').rstrip('.')}.",
        )
    return None


def _overdue(state: WatchState | None) -> _Finding | None:
    if state is None or state.status == "off" or not 0 <= state.next_due_step < state.step:
        return None
    return _Finding(
        f"no snapshot was taken since step {max(state.last_step, 0):,}",
        f"Overdue: a snapshot was due at step {state.next_due_step:,}, and at step "
        f"{state.step:,} there was none.",
    )


def _duration(seconds: float) -> str:
    """A time in words.

    >>> _duration(200.0), _duration(7300.0), _duration(200_000.0)
    ('3 minutes', '2 hours', '2 days')
    """
    sizes = {"day": 86400.0, "hour": 3600.0, "minute": 60.0}
    name = next((name for name, size in sizes.items() if seconds >= 1.5 * size), "minute")
    number = round(seconds / sizes[name])
    return f"{number} {name}{'' if number == 1 else 's'}"
