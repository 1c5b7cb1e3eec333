"""A TensorBoard run of its own: charts, pictures, histograms and texts.

The file format is that of torch's SummaryWriter, whose record writer is used, but not its
thread: a record is with the operating system when the call returns, what fails fails in
the call that caused it, and a forked child cannot hang.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event as ProtoEvent
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_BLOB_SEQUENCE,
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    HistogramProto,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.histogram import metadata as histogram_plugin
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_plugin
from tensorboard.plugins.image import metadata as image_plugin
from tensorboard.plugins.scalar import metadata as scalar_plugin
from tensorboard.plugins.text import metadata as text_plugin
from tensorboard.summary.writer.record_writer import RecordWriter

from sparsitywatch.errors import expect_whole
from sparsitywatch.records import (
    Detail,
    Event,
    LedgerEntry,
    LogHistogram,
    Record,
    RunInfo,
    WatchState,
    ledger_in_short,
)
from sparsitywatch.shown import shown_name
from sparsitywatch.sinks.base import AppendingFile, Session, first_lost_step, local_directory
from sparsitywatch.sinks.tensorboard_pages import (
    EVENTS,
    FIRST,
    IN_EVERY_RECORD,
    LAST,
    MORE_RULES,
    Charts,
    charts,
    event_text,
    explanation,
    notes_text,
    scope_table,
    sentence_of,
    tag_of,
)

__all__ = ["TensorBoardSink", "kinds_of"]

_BAND = ("essential_sparsity/low", "essential_sparsity/high")
#: Histograms are of all tensors of a kind, and of the kinds only the largest have their own.
_MOST_KINDS, _OTHERS = 6, "others"
_HISTOGRAMS_EVERY = 10
#: Fewer snapshots have no overview; each has twice as many as the one before, but for events.
_FEW_SNAPSHOTS, _FIRST_OVERVIEW, _MOST_IN_OVERVIEW = 5, 10, 400


class TensorBoardSink:
    """Shows records and events in TensorBoard; what a call was given survives a kill.

    docs/tags.md lists all tags.

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
        expect_whole("picture_every", picture_every, 1)
        self._directory = local_directory(directory)
        self._picture_every = picture_every
        self._session = Session("TensorBoardSink")

    def open(self, run: RunInfo) -> None:
        """Begin an event file that continues the earlier ones up to ``run.initial_step``.

        Raises:
            ConfigurationError: the directory cannot be written to.
        """
        with self._session.opening(self._directory):
            first_step = first_lost_step(run)
            self._status, self._until_picture, self._next_overview = "", 0, _FIRST_OVERVIEW
            self._first_step = first_step
            self._last: Record | None = None
            self._undrawn: Record | None = None  # the latest that can be drawn, until it is
            self._records: list[Record] = []
            self._events: dict[str, Event] = {}
            self._told: tuple[int, list[str]] = (-1, [])
            self._kinds = kinds_of(run.ledger)
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = _EventFile(self._directory, first_step)
            self._num = sum(tag == IN_EVERY_RECORD for _, tag in self._file.held)
            values = [
                _layout(charts(run.provenance)),
                _session_start(run, self._directory),
                _text(f"{LAST}/about", explanation(run.provenance)),
                _text(f"{LAST}/scope", scope_table(run.ledger)),
            ]
            self._file.add(values, first_step, time.time())

    def catch_up(
        self,
        records: Sequence[Record],
        events: Sequence[Event],
        detail_of: Callable[[Record], Detail],
    ) -> None:
        """Show what a log holds and the earlier event files do not.

        A kill between the two leaves it so, a disk that was full to the end, or files whose tags
        have the names of an earlier version.

        Args:
            records, events: what is known of the run, by rising step.
            detail_of: what can still be known of a record.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        reported: dict[int, list[Event]] = {}
        for event in events:
            reported.setdefault(event.reported_step, []).append(event)
        for record in records:
            if (record.step, IN_EVERY_RECORD) not in self._file.held:
                self._show(record, detail_of)
            self._remember(record)
            held = self._file.held[record.step, EVENTS]
            for i, event in enumerate(reported.get(record.step, ())):
                self._tell(event, record, is_new=i >= held)

    def write(self, record: Record, detail: Detail) -> None:
        """Show one record: scalars and histograms, and pictures where they are due.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        if len(self._records) >= self._next_overview:
            self._draw_overview()
        self._show(record, lambda _: detail)
        self._remember(record)
        if self._undrawn is record:
            if self._until_picture == 0:
                self._draw_last()
                self._until_picture = self._picture_every
            self._until_picture -= 1

    def _show(self, record: Record, detail_of: Callable[[Record], Detail]) -> None:
        values = _scalars(_shown(record))
        if self._num % _HISTOGRAMS_EVERY == 0:
            values += _histograms(_by_kind(detail_of(record).histograms, self._kinds))
        self._num += 1
        remarks = record.remarks(self._last)
        if not record.valid:
            remarks.append(f"the snapshot failed: {record.reason.rstrip('.') or 'no reason given'}")
        if remarks:
            values.append(_text(f"{LAST}/notes", notes_text(remarks)))
        self._file.add(values, record.step, record.wall_time)
        if record.valid and record.curve is not None:
            self._undrawn = record

    def _remember(self, record: Record) -> None:
        self._last = record
        self._records.append(replace(record, layers=()))  # which can be large

    def event(self, event: Event) -> None:
        """Tell of one event, and draw the record that it was seen in.

        A new version of an event is one more text, at the step at which it was reported.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        seen_in = self._last if self._last and self._last.step == event.reported_step else None
        self._tell(event, seen_in, is_new=True)
        self._next_overview = 0
        if seen_in is not None and seen_in is self._undrawn:
            self._draw_last()

    def _tell(self, event: Event, seen_in: Record | None, *, is_new: bool) -> None:
        """A text of one event. The default server keeps one text a step: the last has them all."""
        step, before = self._told
        texts = [*(before if step == event.reported_step else ()), event_text(event)]
        self._told = (event.reported_step, texts)
        self._events[event.id] = event
        if is_new:
            wall_time = time.time() if seen_in is None else seen_in.wall_time
            value = _text(EVENTS, "\n\n".join(texts))
            self._file.add([value], event.reported_step, wall_time)

    def state(self, state: WatchState) -> None:
        """Tell how the watch is when that changes, and at the end what share of the time it took.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        if state.status == self._status:
            return
        self._status = state.status
        values = [_text(f"{FIRST}/watch", state.describe())]
        if state.status != "on" and math.isfinite(state.overhead):
            values += _scalars({tag_of("watch/overhead"): state.overhead})
        self._file.add(values, state.step, state.wall_time)

    def close(self) -> None:
        """Draw the last record with a curve, unless it is drawn, and close the file."""
        if self._session.end():
            try:
                self._draw_last()
                self._draw_overview()
                step = self._first_step if self._last is None else self._last.step
                self._file.add([_session_end()], step, time.time())
            finally:
                self._file.close()

    def abandon(self) -> None:
        """Close the file as it is: the directory is another's now."""
        if self._session.end():
            self._file.abandon()

    def _draw_last(self) -> None:
        record = self._undrawn
        if record is None:
            return
        # matplotlib takes a second to import, and a run without a proxy may draw nothing
        from sparsitywatch import plots

        drawings: dict[str, Any] = {f"{LAST}/sparsity_value_curve": plots.curve_figure(record)}
        if any(layer.removed for layer in record.layers):
            drawings[f"{LAST}/removed_per_layer"] = plots.heatmap_figure(record)
        values = [_picture(tag, *plots.encode_png(figure)) for tag, figure in drawings.items()]
        # readers cut a file off at its first lost step, so steps have to rise in it
        step = record.step if self._last is None else max(record.step, self._last.step)
        self._file.add(values, step, record.wall_time)
        self._undrawn = None

    def _draw_overview(self) -> None:
        """The run so far; of a long one an even choice of its snapshots, which look the same."""
        number = len(self._records)
        self._next_overview = max(2 * number, _FIRST_OVERVIEW)
        if number < _FEW_SNAPSHOTS:
            return
        from sparsitywatch import plots

        every = -(-number // _MOST_IN_OVERVIEW)
        some, last = self._records[(number - 1) % every :: every], self._records[-1]
        figure = plots.overview_figure(some, list(self._events.values()))
        value = _picture(f"{FIRST}/overview", *plots.encode_png(figure))
        self._file.add([value], last.step, last.wall_time)


def _shown(record: Record) -> dict[str, float]:
    """The scalars of a record by their tags.

    Essential sparsity has both ends of its interval: the chart with the band refuses all three
    lines if their steps differ. An end that is not known is NaN there.
    """
    series, rules = record.series(), list(record.near_zero)
    if "essential_sparsity/value" in series:
        series = {**dict.fromkeys(_BAND, math.nan), **series}
    left_out = {f"near_zero/{rule}" for rule in rules[1 + MORE_RULES :]}
    tags = {tag_of(name, next(iter(rules), "")): x for name, x in series.items()
            if name not in left_out}  # fmt: skip
    tags.pop("", None)
    return tags


# ------------------------------------------------------------------ values, from plain data


def _plugin(name: str, data_class: Any) -> Any:
    """Metadata; TensorBoard's default server drops the description without a data class."""
    plugin = SummaryMetadata.PluginData(plugin_name=name)
    return SummaryMetadata(plugin_data=plugin, data_class=data_class)


_SCALAR = _plugin(scalar_plugin.PLUGIN_NAME, DATA_CLASS_SCALAR)
_HISTOGRAM = _plugin(histogram_plugin.PLUGIN_NAME, DATA_CLASS_TENSOR)
_PICTURE = _plugin(image_plugin.PLUGIN_NAME, DATA_CLASS_BLOB_SEQUENCE)


def _scalars(series: Mapping[str, float]) -> list[Any]:
    return [
        Summary.Value(tag=tag, simple_value=value, metadata=_SCALAR)
        for tag, value in series.items()
    ]


def _histograms(histograms: Mapping[str, LogHistogram]) -> list[Any]:
    """Histograms by name, but for empty ones.

    TensorBoard takes right edges of buckets, and the outermost left edge from ``min``.
    Empty buckets at the ends would give buckets with a negative width.
    """
    values = []
    for name, histogram in histograms.items():
        filled = np.flatnonzero(histogram.counts)
        if not filled.size:
            continue
        first, last = int(filled[0]), int(filled[-1])
        edges = np.asarray(histogram.edges, dtype=np.float64)[first : last + 2]
        counts = np.asarray(histogram.counts, dtype=np.float64)[first : last + 1]
        middles = (edges[:-1] + edges[1:]) / 2
        proto = HistogramProto(
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=counts @ middles,
            sum_squares=counts @ middles**2,
            bucket_limit=edges[1:].tolist(),
            bucket=counts.tolist(),
        )
        tag = f"{LAST}/log10_magnitude/{shown_name(name)}"
        values.append(Summary.Value(tag=tag, histo=proto, metadata=_HISTOGRAM))
    return values


def kinds_of(ledger: Sequence[LedgerEntry]) -> dict[str, str]:
    """Each in-scope tensor's kind: its name without its block, such as "attention.self.query".

    Small kinds are together where there are too many.
    """
    kinds, sizes = {}, Counter[str]()
    for entry in ledger:
        if entry.in_scope:
            kinds[entry.name] = kind = _kind_of(entry.name)
            sizes[kind] += entry.num_weights
    if len(sizes) > _MOST_KINDS:
        large = {kind for kind, _ in sorted(sizes.items(), key=lambda of: (-of[1], of[0]))
                 [: _MOST_KINDS - 1]}  # fmt: skip
        kinds = {name: kind if kind in large else _OTHERS for name, kind in kinds.items()}
    return kinds


def _kind_of(name: str) -> str:
    """The part of a name after the first number in it; other numbers are left open."""
    parts = name.split(".")
    if len(parts) > 1 and parts[-1] == "weight":
        del parts[-1]
    block = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), -1)
    return ".".join("*" if part.isdecimal() else part for part in parts[block + 1 :])


def _by_kind(
    histograms: Mapping[str, LogHistogram], kinds: Mapping[str, str]
) -> dict[str, LogHistogram]:
    """Histograms of the tensors of each kind together; all of a snapshot have one grid."""
    members: dict[str, list[LogHistogram]] = {}
    for name, histogram in histograms.items():
        if len(histogram.counts):
            members.setdefault(kinds.get(name, _OTHERS), []).append(histogram)
    found = {}
    for kind, own in members.items():
        edges = np.unique(np.round(np.concatenate([one.edges for one in own]), 9))
        counts = np.zeros(len(edges) - 1, np.int64)
        for one in own:
            places = np.searchsorted(edges, np.round(one.edges[:-1], 9))
            np.add.at(counts, places, one.counts)
        found[kind] = LogHistogram(edges=edges, counts=counts)
    return found


def _picture(tag: str, png: bytes, size: tuple[int, int]) -> Any:
    """One picture of ``size`` (width, height) in pixels, encoded as PNG."""
    width, height = size
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return Summary.Value(tag=tag, image=image, metadata=_PICTURE)


def _text(tag: str, markdown: str) -> Any:
    metadata = text_plugin.create_summary_metadata(tag, "")
    return Summary.Value(tag=tag, metadata=metadata, tensor=_strings([markdown.encode()], [1]))


def _session_start(run: RunInfo, directory: Path) -> Any:
    """The run as a row of the page "HParams"; each directory is a row of its own."""
    provenance = run.provenance
    place = directory.absolute()
    own = place.parent if place.name == "sparsitywatch" else place
    mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:6]
    info = plugin_data_pb2.SessionStartInfo(
        group_name=f"{shown_name(own.name)} {mark}", start_time_secs=time.time()
    )
    tolerance = f"{provenance.tolerance:.4g} {provenance.tolerance_mode}"
    for name, text in (
        ("pattern", provenance.pattern), ("scope", ledger_in_short(run.ledger)),
        ("tolerance", tolerance), ("dtypes", ", ".join(provenance.dtypes)),
        ("scope_hash", provenance.scope_hash), ("proxy_hash", provenance.proxy_hash or "none"),
        ("torch", provenance.torch), ("sparsitywatch", provenance.sparsitywatch),
    ):  # fmt: skip
        info.hparams[name].string_value = shown_name(text)
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return _of_session(hparams_plugin.SESSION_START_INFO_TAG, data)


def _session_end() -> Any:
    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    return _of_session(hparams_plugin.SESSION_END_INFO_TAG, data)


def _of_session(tag: str, data: Any) -> Any:
    metadata = hparams_plugin.create_summary_metadata(data)
    return Summary.Value(tag=tag, metadata=metadata, tensor=hparams_plugin.NULL_TENSOR)


def _layout(categories: Charts) -> Any:
    """The page "Custom Scalars"."""
    proto = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=title, chart=[_chart(name, *chart) for name, chart in charts.items()]
            )
            for title, charts in categories.items()
        ]
    )
    return Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG,
        metadata=custom_scalar.create_summary_metadata(),
        tensor=_strings([proto.SerializeToString()], []),
    )


def _chart(title: str, kind: str, patterns: Sequence[str]) -> Any:
    if kind == "margin":
        value, low, high = patterns
        series = layout_pb2.MarginChartContent.Series(value=value, lower=low, upper=high)
        return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=patterns))


def _strings(values: Sequence[bytes], shape: Sequence[int]) -> Any:
    dimensions = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(
        dtype="DT_STRING", string_val=values, tensor_shape=TensorShapeProto(dim=dimensions)
    )


# ------------------------------------------------------------------ the file

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\..*")


class _EventFile:
    """The next event file of a run.

    The points of a future that was lost are cut off the earlier files. A TensorBoard that
    has read them already is told as well, by a START event with the step from which on it
    should forget; one must stand in every file, since its first one is ignored.

    Args:
        directory: of one run that nobody else writes to.
        first_step: step of the first point that may follow.

    Attributes:
        held: how many values of a step and a tag the earlier files have, as far as they are kept.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        earlier = sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
        self.held = Counter(value for path in earlier for value in _cut(path, first_step))
        self._described: set[str] = set()
        self._file = AppendingFile(directory / _next_name(earlier))
        self._writer = RecordWriter(self._file)
        self._add(ProtoEvent(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(ProtoEvent(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, values: Sequence[Any], step: int, wall_time: float) -> None:
        """Write values that belong to one step as one record; each tag is described once.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        for value in values:
            if value.tag not in self._described:
                self._described.add(value.tag)  # readers keep the first description
                value.metadata.summary_description = sentence_of(value.tag)
        self._add(ProtoEvent(wall_time=wall_time, step=step, summary=Summary(value=values)))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        self._file.abandon()


def _next_name(earlier: Sequence[Path]) -> str:
    """A name that sorts last, as readers take files in the order of their names.

    The names start with a time in seconds, and a run may be resumed within one, or on a
    machine whose clock is behind.
    """
    stamps = [int(match[1]) + 1 for path in earlier if (match := _NAME.fullmatch(path.name))]
    stamp = max([int(time.time()), *stamps])
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _cut(path: Path, first_lost_step: int) -> list[tuple[int, str]]:
    """Cut a file off before its first summary of a lost step; returns what stays.

    Steps rise within a file, but for what was missing when it began.
    """
    held: list[tuple[int, str]] = []
    for offset, event in _events(path):
        if event.HasField("summary") and event.step >= first_lost_step:
            os.truncate(path, offset)
            break
        held += [(event.step, value.tag) for value in event.summary.value]
    return held


def _events(path: Path) -> Iterator[tuple[int, Any]]:
    """The whole events of a file with their offsets, up to the first damaged one."""
    with path.open("rb") as file:
        while True:
            offset = file.tell()
            header = file.read(12)  # length of the data, checksum of the length
            if len(header) < 12:
                return
            (length,) = struct.unpack("<Q", header[:8])
            data = file.read(length + 4)  # the data, its checksum
            if len(data) < length + 4:
                return
            try:
                event = ProtoEvent.FromString(data[:-4])
            except DecodeError:
                return
            yield offset, event
