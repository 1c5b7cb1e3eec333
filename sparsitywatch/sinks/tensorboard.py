"""A TensorBoard run of its own: charts, pictures, histograms and texts.

The file format is that of torch's SummaryWriter, whose record writer is used, but not its
thread: a record is with the operating system when the call returns, what fails fails in
the call that caused it, and a forked child cannot hang.
"""

from __future__ import annotations

import math
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    Provenance,
    Record,
    RunInfo,
    WatchState,
    ledger_in_short,
)
from sparsitywatch.series import SERIES, Series, describe
from sparsitywatch.shown import shown_name
from sparsitywatch.sinks.base import AppendingFile, Session, first_lost_step, local_directory

__all__ = ["OTHER_TAGS", "TensorBoardSink", "charts", "scope_table"]

# fmt: off
#: What there is beside series: names and meanings; the unit is the kind of thing.
OTHER_TAGS = (
    Series("log10_magnitude/*", "histogram", "magnitudes of *",
           "How large the weights of one tensor are: histogram of log10|w|, without exact zeros. "
           "Mass that wanders to the left is weights that shrink."),
    Series("pictures/sparsity_value_curve", "picture", "sparsity-value curve",
           "The value at rising sparsity, with the tolerance and what was read off the curve."),
    Series("pictures/removed_per_layer", "picture", "where the removed weights come from",
           "Share of each tensor's weights that goes at each level."),
    Series("events/*", "text", "events in *",
           "An abrupt change in the series of that name; revised, at a later step, when more is "
           "known about it."),
    Series("notes", "text", "notes",
           "What to know beside the numbers of a snapshot: weights that are NaN, or the same as "
           "at an earlier step, a value that is not finite. Reported when it begins."),
    Series("watch/state", "text", "state of the watch",
           "How the watch is: on, off and why, or closed; its last snapshot and evaluation, what "
           "is due next, its share of the time. Reported whenever that changes."),
    Series("watch/reason", "text", "what failed", "Why a snapshot is not valid."),
    Series("explanation", "text", "explanation", "What the charts mean."),
    Series("scope", "text", "scope", "Every parameter of the model, watched or not, and why."),
    Series("custom_scalars__config__", "layout", "charts",
           'Which charts the page "Custom Scalars" has.'),
)
_TAGS = (*OTHER_TAGS, *SERIES)
# fmt: on

_IN_EVERY_RECORD = "watch/valid"
#: TensorBoard draws at most 51 histograms of a tag, in thirty buckets each. So many records have
#: them all, later ones every so many.
_ALL_WITH_HISTOGRAMS, _HISTOGRAMS_EVERY = 50, 10
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
            self._status = ""
            self._until_picture = 0
            self._last: Record | None = None
            self._undrawn: Record | None = None  # the latest that can be drawn, until it is
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = _EventFile(self._directory, first_step)
            self._num = sum(tag == _IN_EVERY_RECORD for _, tag in self._file.held)
            values = [
                _layout(charts(run.provenance)),
                _text("explanation", _explanation(run.provenance)),
                _text("scope", scope_table(run.ledger)),
            ]
            self._file.add(values, first_step, time.time())

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
        reported: dict[int, list[Event]] = {}
        for event in events:
            reported.setdefault(event.reported_step, []).append(event)
        for record in records:
            if (record.step, _IN_EVERY_RECORD) not in self._file.held:
                self.write(record, detail_of(record))
            self._last = record
            for event in reported.get(record.step, ()):
                if (record.step, f"events/{event.series}") not in self._file.held:
                    self.event(event)

    def write(self, record: Record, detail: Detail) -> None:
        """Show one record: scalars and histograms, and pictures where they are due.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        values = _scalars(_with_band(record.series()))
        if self._num < _ALL_WITH_HISTOGRAMS or self._num % _HISTOGRAMS_EVERY == 0:
            values += _histograms(detail.histograms)
        self._num += 1
        if remarks := record.remarks(self._last):
            values.append(_text("notes", _notes(remarks)))
        if not record.valid:
            values.append(_text("watch/reason", record.reason))
        self._last = record
        self._file.add(values, record.step, record.wall_time)
        if record.valid and record.curve is not None:
            self._undrawn = record
            if self._until_picture == 0:
                self._draw_last()
                self._until_picture = self._picture_every
            self._until_picture -= 1

    def event(self, event: Event) -> None:
        """Tell of one event, and draw the record that it was seen in.

        A new version of an event is one more text, at the step at which it was reported.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._session.require()
        seen_in = self._last if self._last and self._last.step == event.reported_step else None
        wall_time = time.time() if seen_in is None else seen_in.wall_time
        # a tag per series: two events at one step would replace each other
        value = _text(f"events/{event.series}", _event_text(event))
        self._file.add([value], event.reported_step, wall_time)
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
        values = [_text("watch/state", state.describe())]
        if state.status != "on" and math.isfinite(state.overhead):
            values += _scalars({"watch/overhead": state.overhead})
        self._file.add(values, state.step, state.wall_time)

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

    def _draw_last(self) -> None:
        record = self._undrawn
        if record is None:
            return
        # matplotlib takes a second to import, and a run without a proxy draws nothing
        from sparsitywatch import plots

        drawings: dict[str, Any] = {"pictures/sparsity_value_curve": plots.curve_figure(record)}
        if any(layer.removed for layer in record.layers):
            drawings["pictures/removed_per_layer"] = plots.heatmap_figure(record)
        values = [_picture(tag, *plots.encode_png(figure)) for tag, figure in drawings.items()]
        # readers cut a file off at its first lost step, so steps have to rise in it
        step = record.step if self._last is None else max(record.step, self._last.step)
        self._file.add(values, step, record.wall_time)
        self._undrawn = None


def _with_band(series: dict[str, float]) -> dict[str, float]:
    """A series of scalars whose essential sparsity has both ends of its interval.

    The chart with the band refuses all three lines if their steps differ; an end that is
    not known is NaN there.
    """
    if "essential_sparsity/value" not in series:
        return series
    return {**dict.fromkeys(_BAND, math.nan), **series}


#: Charts by title, by title of their category. A chart is ("margin", [value, low, high]) with
#: three tags, or ("lines", patterns) with regular expressions of tags.
_Charts = Mapping[str, Mapping[str, tuple[str, Sequence[str]]]]
_SPARSE: _Charts = {
    "Is it turning sparse?": {
        "near-zero weights (beside their first size), and their forecast": (
            "lines",
            ["near_zero/initial_.+", "forecast/near_zero_in_1$"],
        ),
        "dormant weights (got no gradient)": ("lines", ["motion/dormant(_by_chance)?"]),
    },
}
_RULES: _Charts = {
    "Near-zero weights, by every rule": {"near-zero weights": ("lines", ["near_zero/.+"])}
}
_VALUE: _Charts = {
    "How much could be thrown away?": {
        "essential sparsity and its interval": (
            "margin",
            [f"essential_sparsity/{part}" for part in ("value", "low", "high")],
        ),
    },
    "What the model needs": {
        "value of the model as it is": ("lines", ["value/dense"]),
        "reliance: harm of removing all in-scope weights": ("lines", ["value/reliance"]),
        "first crossing, last crossing, knee": (
            "lines",
            ["essential_sparsity/(value|last_crossing|knee)"],
        ),
    },
}


def charts(provenance: Provenance) -> _Charts:
    """The charts of the page "Custom Scalars", what matters most first.

    Without a proxy there are those of weights alone. TensorBoard puts a chart with a band last in
    its category, so it has one of its own.
    """
    return {**_SPARSE, **(_VALUE if provenance.proxy_hash else {}), **_RULES}


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
    """Histograms by tensor, but for empty ones.

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
        tag = f"log10_magnitude/{shown_name(name)}"
        values.append(Summary.Value(tag=tag, histo=proto, metadata=_HISTOGRAM))
    return values


def _picture(tag: str, png: bytes, size: tuple[int, int]) -> Any:
    """One picture of ``size`` (width, height) in pixels, encoded as PNG."""
    width, height = size
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return Summary.Value(tag=tag, image=image, metadata=_PICTURE)


def _text(tag: str, markdown: str) -> Any:
    metadata = text_plugin.create_summary_metadata(tag, "")
    return Summary.Value(tag=tag, metadata=metadata, tensor=_strings([markdown.encode()], [1]))


def _layout(categories: _Charts) -> Any:
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
        held: step and tag of every value in the earlier files, as far as they are kept.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        earlier = sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
        self.held = {value for path in earlier for value in _cut(path, first_step)}
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
                value.metadata.summary_description = describe(value.tag, _TAGS).sentence
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


def _cut(path: Path, first_lost_step: int) -> set[tuple[int, str]]:
    """Cut a file off before its first summary of a lost step; returns what stays.

    Steps rise within a file, but for what was missing when it began.
    """
    held: set[tuple[int, str]] = set()
    for offset, event in _events(path):
        if event.HasField("summary") and event.step >= first_lost_step:
            os.truncate(path, offset)
            break
        held.update((event.step, value.tag) for value in event.summary.value)
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


# ------------------------------------------------------------------ in words, as Markdown


def _explanation(provenance: Provenance) -> str:
    """What the charts mean, for somebody who sees them for the first time."""
    of_what = "times the dense value"
    if provenance.tolerance_mode != "relative":
        of_what = "in units of the value"
    proxy = provenance.proxy_hash or "none: nothing is evaluated, so there is no essential sparsity"
    return f"""\
### How much of this model could be thrown away right now?

At every snapshot the smallest in-scope weights are masked, more and more of them, and the same \
held-out examples are evaluated each time. Training itself is not touched.

- **essential sparsity**: the largest share of weights whose removal leaves the value within \
the tolerance ({provenance.tolerance:.3g} {of_what}). The band is its confidence interval. It is \
*zero-shot*, measured without retraining, and so usually lower than what pruning with fine-tuning \
reaches.
- **informative**: 0 while the model does not rely on these weights yet. Then anything can be \
removed, which says nothing, and no essential sparsity is shown: its line begins where it means \
something.
- **reliance**: the harm of removing *all* in-scope weights. It jumps when the model starts to \
use them.
- **near-zero fraction**: the share of weights that are tiny, by several rules of what tiny is.
- **dormant fraction**: the share of weights that only weight decay has moved since the last \
snapshot: they got no gradient. It can rise long before near-zero counts do. What passes \
*by chance* is drawn beside it.
- **decay clock**: the sum of learning rate times weight decay. A weight without gradient shrinks \
as exp(-clock), and becomes near-zero by decay alone.
- **forecast**: the near-zero fraction to come, from the dormant weights and the clock. \
`doubling_step` is when it will be twice its floor; it is absent where that cannot be foreseen.
- **Images**: the curve that essential sparsity is read off, and which tensors the removed \
weights come from; drawn every few snapshots.
- **Histograms**: log10 of the magnitudes in each tensor; -3 means 0.001.
- **Text**: `events` are abrupt changes; `notes` are what to know beside the numbers, such as \
weights that are NaN; `scope` says which parameters are watched, and why.

Numbers of different provenance cannot be compared. This run: scope `{provenance.scope_hash}`, \
proxy `{proxy}`, pattern {_code(provenance.pattern)}, weights in {", ".join(provenance.dtypes)}, \
sparsitywatch {provenance.sparsitywatch}, torch {provenance.torch}. \
All of it, and more, is in `records.jsonl` beside this run's event file.
"""


def scope_table(ledger: Sequence[LedgerEntry]) -> str:
    """Every parameter, in or out of scope, and why."""
    rows = []
    for entry in ledger:
        why = _prose(shown_name(entry.reason))
        if entry.aliases:
            why += f"; the same as {', '.join(map(_code, entry.aliases))}"
        rows.append(
            f"| {'**in**' if entry.in_scope else 'out'} | {_code(entry.name)} "
            f"| {'x'.join(map(str, entry.shape)) or 'scalar'} | {entry.num_weights:,} | {why} |"
        )
    head = f"**{ledger_in_short(ledger)}**"
    titles = "| | parameter | shape | weights | why |"
    return "\n".join([head, "", titles, "|---|---|---|---:|---|", *rows])


#: What Markdown and HTML take for a mark; an underscore inside a word is none.
_MARK = re.compile(r"[\\`*\[\]|<&]|(?<!\w)_|_(?!\w)")


def _code(name: str) -> str:
    """A name of whatever characters as a piece of code in Markdown, also in a table."""
    name = shown_name(name)
    return f"<code>{_prose(name)}</code>" if re.search(r"[\\`|<&]", name) else f"`{name}`"


def _prose(text: str) -> str:
    """A text in Markdown in which nothing is a mark."""
    return _MARK.sub(lambda mark: f"&#{ord(mark[0])};", text)


def _notes(remarks: Sequence[str]) -> str:
    """What to know beside the numbers of a snapshot."""
    return "\n".join(f"- {remark[:1].upper()}{remark[1:]}." for remark in remarks)


def _event_text(event: Event) -> str:
    """One event: a sentence or two, then its numbers."""
    facts = [f"{event.baseline:.4g} before, {event.value:.4g} when seen"]
    if not math.isnan(event.noise):
        times = f": {abs(event.size_in_noise):.3g} of them" if event.noise > 0.0 else ""
        facts.append(f"noise before: standard deviation {event.noise:.2g}{times}")
    if not math.isnan(event.decay_clock):
        facts.append(f"decay clock when seen: {event.decay_clock:.2f}")
    facts += [f"much of it in {_code(name)}" for name in event.layers]
    if event.before_step >= 0:
        facts.append(f"spectra to compare: steps {event.before_step} and {event.detected_step}")
    if event.revised_step >= 0:
        facts.append(f"revised at step {event.revised_step}, with what was learned since")
    title = f"**{_prose(event.describe())}**"
    advice = _prose(event.advice)
    return "\n".join([title, "", advice, "", *(f"- {fact}" for fact in facts), "", _code(event.id)])
