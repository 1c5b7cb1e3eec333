"""A TensorBoard run of its own: charts, pictures, histograms and texts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState
from sparsitywatch.shown import shown_name
from sparsitywatch.sinks import summaries, tags, texts
from sparsitywatch.sinks.event_file import EventFile
from sparsitywatch.sinks.session import Session, first_lost_step, local_directory

__all__ = ["TensorBoardSink"]

_REASON, _STATE, _SHARE = "watch/reason", "watch/state", "watch/overhead"
_IN_EVERY_RECORD = "watch/valid"
_BAND = ("essential_sparsity/low", "essential_sparsity/high")


class TensorBoardSink:
    """Shows records and events in TensorBoard; what a call was given survives a kill.

    Every series of a record is a scalar of the same name. docs/tags.md lists all tags.

    Args:
        directory: a local directory; made by ``open`` if it does not exist. It becomes a
            run of its own: nobody else may write event files there, since resuming a run
            makes TensorBoard forget the lost steps of every tag in it.
        picture_every: draw the first record and every so many after it, and those with an
            event and the last one; drawing takes some tenths of a second.

    Raises:
        ConfigurationError: ``directory`` is not local, or ``picture_every`` below 1.
    """

    def __init__(self, directory: str | os.PathLike[str], *, picture_every: int = 10) -> None:
        if picture_every < 1:
            raise ConfigurationError(f"Expected `picture_every` >= 1, got {picture_every!r}.")
        self._directory = local_directory(directory)
        self._picture_every = picture_every
        self._session = Session("TensorBoardSink")

    def open(self, run: RunInfo) -> None:
        """Begin an event file that continues the earlier ones up to ``run.initial_step``.

        Raises:
            ConfigurationError: the directory cannot be written to.
        """
        with self._session.opening():
            first_step = first_lost_step(run)
            self._described: set[str] = set()
            self._status = ""
            self._until_picture = 0
            self._last: Record | None = None
            self._undrawn: Record | None = None  # the latest that can be drawn, until it is
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._file = EventFile(self._directory, first_step)
            except OSError as error:
                raise ConfigurationError(
                    f"Expected `directory` to be a directory that can be written to, got "
                    f"{str(self._directory)!r}: {error}."
                ) from error
            words = {"about": texts.about(run.provenance), "scope": texts.scope_table(run.ledger)}
            values = [
                summaries.layout(tags.layout(run.provenance)),
                *(summaries.text(tag, text, tags.describe(tag)) for tag, text in words.items()),
            ]
            self._add(values, first_step, time.time())

    def catch_up(
        self,
        records: Sequence[Record],
        events: Sequence[Event],
        detail_of: Callable[[Record], Detail],
    ) -> None:
        """Show what a log holds and the earlier event files do not.

        A kill between the two leaves it so, or a disk that was full to the end.

        Args:
            records, events: what is known of the run, by rising step.
            detail_of: what can still be known of a record.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        told: dict[int, list[Event]] = {}
        for event in events:
            told.setdefault(event.told_step, []).append(event)
        for record in records:
            if (record.step, _IN_EVERY_RECORD) not in self._file.held:
                self.write(record, detail_of(record))
            self._last = record
            for event in told.get(record.step, ()):
                if (record.step, f"events/{event.series}") not in self._file.held:
                    self.event(event)

    def write(self, record: Record, detail: Detail) -> None:
        """Show one record: scalars and histograms, and pictures where they are due.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        values = [
            summaries.scalar(tag, value, self._meaning(tag))
            for tag, value in _with_band(record.series()).items()
        ]
        for name, histogram in detail.histograms.items():
            tag = f"log10_magnitude/{shown_name(name)}"
            value = summaries.histogram(tag, histogram, self._meaning(tag))
            values += [] if value is None else [value]
        if remarks := record.remarks(self._last):
            values.append(summaries.text("notes", texts.notes(remarks), self._meaning("notes")))
        if not record.valid:
            values.append(summaries.text(_REASON, record.reason, self._meaning(_REASON)))
        self._last = record
        self._add(values, record.step, record.wall_time)
        if _can_be_drawn(record):
            self._undrawn = record
            if self._until_picture == 0:
                self._draw_last()
                self._until_picture = self._picture_every
            self._until_picture -= 1

    def event(self, event: Event) -> None:
        """Tell of one event, and draw the record that it was seen in.

        A new version of an event is one more text, at the step at which it was told.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        # a tag per series: two events at one step would replace each other
        tag = f"events/{event.series}"
        seen_in = self._last if self._last and self._last.step == event.told_step else None
        wall_time = time.time() if seen_in is None else seen_in.wall_time
        value = summaries.text(tag, texts.event_text(event), self._meaning(tag))
        self._add([value], event.told_step, wall_time)
        if seen_in is not None and seen_in is self._undrawn:
            self._draw_last()

    def state(self, state: WatchState) -> None:
        """Tell how the watch is when that changes, and at the end what share of the time it took.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        if state.status == self._status:
            return
        self._status = state.status
        values = [summaries.text(_STATE, state.describe(), self._meaning(_STATE))]
        if state.status != "on" and math.isfinite(state.overhead):
            values.append(summaries.scalar(_SHARE, state.overhead, self._meaning(_SHARE)))
        self._add(values, state.step, state.wall_time)

    def close(self) -> None:
        """Draw the last record with a curve, unless it is drawn, and close the file."""
        if self._session.end():
            try:
                self._draw_last()
            finally:
                self._file.close()

    def abandon(self) -> None:
        """Close the file as it is: the directory is another's now."""
        if self._session.end():
            self._file.abandon()

    def _add(self, values: Sequence[Any], step: int, wall_time: float) -> None:
        self._described.update(value.tag for value in values)
        self._file.add(values, step, wall_time)

    def _meaning(self, tag: str) -> str:
        """The meaning of a tag, the first time it is written; readers keep the first."""
        return "" if tag in self._described else tags.describe(tag)

    def _draw_last(self) -> None:
        record = self._undrawn
        if record is None:
            return
        # matplotlib takes a second to import, and a run without a proxy draws nothing
        from sparsitywatch.sinks import figures

        drawings: dict[str, Any] = {"pictures/sparsity_value_curve": figures.curve_figure(record)}
        if any(layer.removed for layer in record.layers):
            drawings["pictures/removed_per_layer"] = figures.heatmap_figure(record)
        values = [
            summaries.picture(tag, *figures.encode_png(figure), self._meaning(tag))
            for tag, figure in drawings.items()
        ]
        # readers cut a file off at its first lost step, so steps have to rise in it
        step = record.step if self._last is None else max(record.step, self._last.step)
        self._add(values, step, record.wall_time)
        self._undrawn = None


def _can_be_drawn(record: Record) -> bool:
    return record.valid and record.curve is not None


def _with_band(series: Mapping[str, float]) -> dict[str, float]:
    """A series of scalars whose essential sparsity has both ends of its interval.

    The chart with the band refuses all three lines if their steps differ; an end that is
    not known is NaN there.
    """
    if "essential_sparsity/value" not in series:
        return dict(series)
    return {**dict.fromkeys(_BAND, math.nan), **series}
