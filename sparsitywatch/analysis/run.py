"""A run as its log tells it: its series over the steps, its events, how its watch stands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from sparsitywatch.analysis.emergence import Emergence, Look, emergence, is_counted
from sparsitywatch.analysis.verdict import Verdict, verdict
from sparsitywatch.errors import (
    ConfigurationError,
    MissingExtraError,
    SparsityWatchError,
    StateError,
)
from sparsitywatch.records import Event, Layers, Record, RunInfo, html_of, of_one_model
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import LEADING, count, describe, with_beside


class Run:
    """What ``sparsitywatch.Run`` reads and knows; its page and its picture are drawn elsewhere."""

    def __init__(
        self,
        records: Sequence[Record] | Callable[[], Sequence[Record]],
        events: Sequence[Event] | Callable[[], Sequence[Event]] = (),
        info: RunInfo | Callable[[], RunInfo | None] | None = None,
        spectrum: Callable[[int], Mapping[str, np.ndarray]] | None = None,
        *,
        name: str = "run",
        directory: Path | None = None,
        now: float | None = None,
    ) -> None:
        self.name = name
        self.directory = directory
        self._sources = records, events, info, spectrum
        self._now = now
        self._known: list[tuple[Record, dict[str, float]]] = []  # records, and what they measured

    def again(self, *, now: float | None = None) -> Self:
        """The run as its log is by now, of which only what was appended is read; this one stays."""
        later = type(self)(*self._sources, name=self.name, directory=self.directory, now=now)
        if "_measured" in vars(self):
            later._known = list(zip(self.records, self._measured, strict=True))
        return later

    @cached_property
    def records(self) -> Sequence[Record]:
        """One for each snapshot, in the order of the steps.

        Raises:
            StateError: the log is damaged; the file and the line are named.
        """
        records = self._sources[0]
        return records() if callable(records) else records

    def require_records(self) -> None:
        """Refuse a run that has nothing to show, with a ConfigurationError."""
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
        events = self._sources[1]
        return events() if callable(events) else events

    @cached_property
    def info(self) -> RunInfo | None:
        """The manifest: scope ledger, provenance, first sizes, state of the watch; None without.

        Raises:
            StateError: the manifest is damaged.
        """
        info = self._sources[2]
        return info() if callable(info) else info

    @cached_property
    def verdict(self) -> Verdict:
        """How the run stands, what happened, since when, where, why, and what to do."""
        return verdict(self.records, self.events, self.info, now=self._now)

    @cached_property
    def steps(self) -> np.ndarray:
        """Steps of all snapshots, int [T]."""
        return np.array([record.step for record in self.records], dtype=int)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every series that was measured at any snapshot; what matters most is first."""
        found = dict.fromkeys(name for series in self._measured for name in series)
        rule = next(iter(self.rules), "")
        leading = with_beside((name.format(rule=rule) for name in LEADING), found, rule)
        return tuple(dict.fromkeys([*(name for name in leading if name in found), *found]))

    @cached_property
    def _measured(self) -> list[dict[str, float]]:
        """The series of each record; those that an earlier ``Run`` knows are not computed again."""
        pairs = zip(self.records, self._known, strict=False)
        known = [series for _, (_, series) in takewhile(lambda p: p[0] is p[1][0], pairs)]
        self._known = []
        return known + [record.series() for record in self.records[len(known) :]]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One series over the steps.

        Series of an evaluation leave out the snapshots that were not evaluated.

        Args:
            name: such as "near_zero/initial_0.1"; docs/tags.md has all of them.

        Returns:
            Steps, int [S], and values, float [S]: NaN where it could not be measured.

        Raises:
            ConfigurationError: there is no such series; those of the run are named.
        """
        if name not in self.names and not describe(name).source:
            known = ", ".join(map(printable, self.names)) or "none yet"
            raise ConfigurationError(
                f"Expected the name of a series, got {name!r}. Those of run {self.name!r}: {known}."
            )
        asked = np.array([record.was_asked(name) for record in self.records], dtype=bool)
        return self.steps[asked], self.column(name)[asked]

    def column(self, name: str) -> np.ndarray:
        """One series at every snapshot, float [T]; NaN where it was not measured."""
        return np.array([series.get(name, math.nan) for series in self._measured], dtype=float)

    def spectrum(self, step: int) -> Mapping[str, np.ndarray]:
        """The arrays of the spectrum of a snapshot; a StateError if the log has none of it."""
        read = self._sources[3]
        if read is None:
            raise StateError(f"Expected a log with spectra, got none with the run {self.name!r}.")
        return read(step)

    def emergence(self) -> Emergence:
        """Near zero by every threshold, and which of them makes an abrupt turn, if any.

        All thresholds are tested together, at every snapshot whose spectrum the log has, so that
        they alarm no more often by chance than one does. It takes seconds for a hundred snapshots.

        Returns:
            Thresholds, steps, shares, turns, and sentences that say it.

        Raises:
            ConfigurationError: there is no snapshot yet.
            StateError: the log has no spectra, or not the first sizes of the tensors.
        """
        self.require_records()
        looks = [*self._looks()]
        if not looks:
            raise StateError(
                f"Expected spectra in the log of run {self.name!r}, which say how many weights lie "
                f"below any threshold, found none for its {count(len(self.records), 'snapshot')}. "
                "They are files in spectra/ beside records.jsonl: copy them, too, or replay the "
                "checkpoints."
            )
        initial = {} if self.info is None else self.info.initial_rms
        lacking = sorted(set(looks[0][1]["names"].tolist()) - initial.keys())
        if lacking:
            raise StateError(
                "Expected the first root mean square of each tensor in run.json of run "
                f"{self.name!r}, got none of {lacking[0]!r}. Restore the file, or replay the "
                "checkpoints."
            )
        return emergence(looks, initial, self.events, self.unit)

    def _looks(self) -> Iterator[Look]:
        for record in of_one_model(self.records):
            if record.was_read and record.all_finite:
                # ``keep_spectra`` says which ones are kept
                with contextlib.suppress(StateError):
                    stored = self.spectrum(record.step)
                    if is_counted(stored):
                        yield record, stored

    def frame(self) -> Any:
        """All series as a ``pandas.DataFrame``: a row a step, a column a series, NaN for gaps.

        The columns are as in ``names``: near-zero and dormant weights, the forecast, essential
        sparsity, the value and the reliance are first.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "pandas", "run.frame()") from error
        columns = {name: self.column(name) for name in self.names}
        return pd.DataFrame(columns, index=pd.Index(self.steps, name=self.unit))

    @property
    def replayed_from(self) -> tuple[str, ...]:
        """Where the checkpoints lay, in a replay; empty for a live watch."""
        return () if self.info is None else self.info.replayed_from

    @property
    def unit(self) -> str:
        """What its steps count: "step", or in a replay what its checkpoints are numbered by."""
        if self.records:
            return self.records[-1].provenance.unit
        return "step" if self.info is None else self.info.unit

    @property
    def rules(self) -> tuple[str, ...]:
        """The near-zero rules of the run, the first one first."""
        return tuple(dict.fromkeys(rule for record in self.records for rule in record.near_zero))

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Names of the in-scope tensors of all snapshots, in the model's order, length N."""
        every = dict.fromkeys(Layers.of(record.layers).columns.names for record in self.records)
        return tuple(dict.fromkeys(name for names in every for name in names))

    def __dir__(self) -> list[str]:
        # what the surfaces ask is not offered where names are completed
        return sorted({*super().__dir__()} - {"again", "require_records", "rules"})

    def __repr__(self) -> str:
        try:
            said = f"{self.verdict.state}: {redacted(self.verdict.headline)}"
        except SparsityWatchError as error:  # a damaged log; repr must not raise
            said = f"cannot be read: {type(error).__name__}"
        return f"<Run {printable(self.name)[:80]}, {printable(said)[:120]}>"

    def _repr_html_(self) -> str:
        return html_of(repr(self)[1:-1], self.records, self.events)
