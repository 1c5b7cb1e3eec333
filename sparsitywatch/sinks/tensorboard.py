"""A TensorBoard run of its own: charts, histograms and texts.

The file format is that of torch's SummaryWriter, whose record writer is used, but not its
thread: a record is with the operating system when the call returns, what fails fails in
the call that caused it, and a forked child cannot hang.

TensorBoard sorts its cards by their tags. What matters most stands under a prefix that sorts first,
in the order of importance; the rest under one that sorts last. There are at most forty tags, and
one for each of at most 24 blocks: thousands make TensorBoard slow. The log and the page have all.
"""

from __future__ import annotations

import functools
import math
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_plugin
from tensorboard.plugins.scalar import metadata as scalar_plugin
from tensorboard.plugins.text import metadata as text_plugin
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

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
from sparsitywatch.redact import printable
from sparsitywatch.series import LEADING, PANELS, SERIES, Panel, Series, describe, numbered
from sparsitywatch.sinks.base import AppendingFile, GuardedSink, first_lost_step, local_directory

#: Histograms are written with every tenth record.
_HISTOGRAMS_EVERY = 10


class TensorBoardSink(GuardedSink):
    """Shows records and events in TensorBoard; what a call was given survives a kill.

    What a full disk refuses is an OSError. docs/tags.md lists all tags.

    Args:
        directory: a local directory; made by ``open`` if it does not exist. It becomes a
            run of its own: nobody else may write event files there, since resuming a run
            makes TensorBoard forget the lost steps of every tag in it.

    Raises:
        ConfigurationError: ``directory`` is not local.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = local_directory(directory)

    def open(self, run: RunInfo) -> None:
        """Begin an event file that continues the earlier ones up to ``run.initial_step``."""
        with self._opening(self._directory):
            first_step = first_lost_step(run)
            self._status = ""
            self._last: Record | None = None
            self._told: tuple[int, list[str]] = (-1, [])  # a step, and the texts of its events
            self._kinds = kinds_of(run.ledger)
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = _EventFile(self._directory, first_step, self._begin)
            self._num = sum(tag == IN_EVERY_RECORD for _, tag in self._file.held)
            values = [
                _layout(run.provenance),
                _text(f"{LAST}/about", _explanation(run.provenance)),
                _text(f"{LAST}/scope", scope_table(run.ledger)),
            ]
            self._file.add(values, first_step, time.time())

    def catch_up(
        self,
        records: Sequence[Record],
        events: Sequence[Event],
        detail_of: Callable[[Record], Detail],
    ) -> None:
        """Show what a log holds and the event files do not, after a kill or a full disk."""
        self._require()
        for record in records:
            if (record.step, IN_EVERY_RECORD) not in self._file.held:
                self._show(record, detail_of)
            self._last = record
            own = [event for event in events if event.reported_step == record.step]
            for i, event in enumerate(own):
                self._tell(event, is_new=i >= self._file.held[record.step, EVENTS])

    def renew(self, run: RunInfo) -> None:
        """Show the scope of a model that has changed."""
        self._require()
        self._kinds = kinds_of(run.ledger)
        step = first_lost_step(run) if self._last is None else self._last.step + 1
        self._file.add([_text(f"{LAST}/scope", scope_table(run.ledger))], step, time.time())

    def write(self, record: Record, detail: Detail) -> None:
        """Show one record: its scalars, notes on it, and histograms where they are due."""
        self._require()
        self._show(record, lambda _: detail)
        self._last = record

    def _show(self, record: Record, detail_of: Callable[[Record], Detail]) -> None:
        values = _scalars(_shown(record))
        if self._num % _HISTOGRAMS_EVERY == 0:
            values += _histograms(detail_of(record).histograms, self._kinds)
        self._num += 1
        remarks = record.remarks(self._last)
        if not record.valid:
            remarks.append(f"the snapshot failed: {record.reason.rstrip('.') or 'no reason given'}")
        if remarks:
            lines = [f"- {remark[:1].upper()}{remark[1:]}." for remark in remarks]
            values.append(_text(f"{LAST}/notes", "\n".join(lines)))
        self._file.add(values, record.step, record.wall_time)

    def event(self, event: Event) -> None:
        """Tell of one event; a new version of one is one more text, at the step that it is of."""
        self._require()
        self._tell(event, is_new=True)

    def _tell(self, event: Event, *, is_new: bool) -> None:
        """A text of one event. The default server keeps one text a step: the last has them all."""
        step, before = self._told
        texts = [*(before if step == event.reported_step else ()), _event_text(event)]
        self._told = (event.reported_step, texts)
        if is_new:
            is_seen_in = self._last is not None and self._last.step == event.reported_step
            wall_time = self._last.wall_time if self._last and is_seen_in else time.time()
            self._file.add([_text(EVENTS, "\n\n".join(texts))], event.reported_step, wall_time)

    def state(self, state: WatchState) -> None:
        """Tell how the watch is when that changes, and at the end its share of the time."""
        self._require()
        if state.status == self._status:
            return
        self._status = state.status
        values = [_text(f"{FIRST}/watch", state.describe())]
        if state.status != "on" and math.isfinite(state.overhead):
            values += _scalars({tag_of("watch/overhead"): state.overhead})
        self._file.add(values, state.step, state.wall_time)

    def close(self) -> None:
        self._end()

    def _begin(self, path: Path) -> AppendingFile:
        """A new event file, which goes again if ``open`` fails."""

        def take_back(error: object, *_: object) -> None:
            if error is not None:
                path.unlink(missing_ok=True)

        self._files.push(take_back)
        return self._appending(path)


# ------------------------------------------------------------------ tags

#: Prefixes of tags: TensorBoard puts digits before letters, and z after the user's own.
FIRST, LAST = "0_sparsity", "z_sparsity"
EVENTS, IN_EVERY_RECORD = f"{FIRST}/events", f"{LAST}/watch/valid"
_MAGNITUDES = f"{LAST}/log10_magnitude"
#: So many near-zero rules are charts beside the first.
_MORE_RULES = 3
#: Of more blocks as many are shown, evenly spread over the model.
_MOST_BLOCKS = 24
_BLOCK = "gradient/block/"

# fmt: off
#: What there is beside series: tags and meanings; the unit is the kind of thing.
OTHER_TAGS = (
    Series(f"{_MAGNITUDES}/*", "", "histogram", "magnitudes of *",
           "How large the weights are in all tensors of a kind, such as the queries of all blocks: "
           "histogram of log10|w|, without exact zeros. Mass that wanders to the left is weights "
           "that shrink."),
    Series(EVENTS, "", "text", "events",
           "What happened, and what to do about it; told again, at a later step, when more is "
           "known."),
    Series(f"{FIRST}/watch", "", "text", "state of the watch",
           "How the watch is: on, off and why, closed, or ended by an exception; what was due, "
           "measured and left out, what comes next, its share of the time. Reported whenever "
           "that changes."),
    Series(f"{LAST}/about", "", "text", "about", "What the charts mean."),
    Series(f"{LAST}/notes", "", "text", "notes",
           "What to know beside the numbers of a snapshot: weights that are NaN, or the same as "
           "at an earlier step, a value that is not finite. Reported when it begins; and why a "
           "snapshot is not valid."),
    Series(f"{LAST}/scope", "", "text", "scope",
           "Every parameter of the model, watched or not, and why."),
    Series("custom_scalars__config__", "", "layout", "charts",
           'Which charts the page "Custom Scalars" has.'),
)
# fmt: on


@functools.lru_cache(maxsize=4096)
def tag_of(series: str, first_rule: str = "") -> str:
    """Tag of a series in TensorBoard; empty if it is no chart."""
    for place, name in enumerate(LEADING, start=1):
        if series == name.format(rule=first_rule):
            return f"{FIRST}/{place}_{series}"
    row = describe(series)
    is_chart = row.is_chart or row.beside or series.startswith(("near_zero/", _BLOCK))
    return f"{LAST}/{printable(series)}" if is_chart else ""


def _shown(record: Record) -> dict[str, float]:
    """The scalars of a record by their tags; a band needs both its ends at every step."""
    series = record.series()
    rules = list(record.near_zero)
    if "essential_sparsity/value" in series:
        series = {"essential_sparsity/low": math.nan, "essential_sparsity/high": math.nan} | series
    left_out = {f"near_zero/{rule}" for rule in rules[1 + _MORE_RULES :]}
    blocks = [name for name in series if name.startswith(_BLOCK)]
    left_out |= {*blocks} - {*blocks[:: len(blocks) // (_MOST_BLOCKS + 1) + 1]}
    first_rule = next(iter(rules), "")
    tags = {tag_of(name, first_rule): x for name, x in series.items() if name not in left_out}
    tags.pop("", None)
    return tags


def _plugin(name: str, data_class: Any) -> Any:
    """Metadata; TensorBoard's default server drops the description without a data class."""
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name=name)
    return summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=data_class)


_SCALAR = _plugin(scalar_plugin.PLUGIN_NAME, summary_pb2.DATA_CLASS_SCALAR)
_HISTOGRAM = _plugin(histogram_plugin.PLUGIN_NAME, summary_pb2.DATA_CLASS_TENSOR)
_Value = summary_pb2.Summary.Value


def _scalars(numbers: Mapping[str, float]) -> list[Any]:
    return [_Value(tag=tag, simple_value=x, metadata=_SCALAR) for tag, x in numbers.items()]


#: Histograms are of all tensors of a kind, and of the kinds only the largest have their own.
_MOST_KINDS, _OTHERS = 6, "others"


def kinds_of(ledger: Sequence[LedgerEntry]) -> dict[str, str]:
    """Each in-scope tensor's kind: its name without its block; small kinds share one."""
    kinds = {entry.name: _kind_of(entry) for entry in ledger if entry.in_scope}
    sizes = Counter[str]()
    for entry in ledger:
        if entry.in_scope:
            sizes[kinds[entry.name]] += entry.num_weights
    by_size = sorted(sizes, key=lambda kind: (-sizes[kind], kind))
    small = by_size[_MOST_KINDS - 1 :] if len(by_size) > _MOST_KINDS else []
    return {name: _OTHERS if kind in small else kind for name, kind in kinds.items()}


def _kind_of(entry: LedgerEntry) -> str:
    """A name without its block; numbers that are left in it are left open."""
    parts, block = entry.name.removesuffix(".weight").split("."), entry.block.split(".")
    inside = parts[len(block) :] if any(map(str.isdecimal, block)) else parts
    return ".".join("*" if part.isdecimal() else part for part in inside or parts[-1:])


def _histograms(histograms: Mapping[str, LogHistogram], kinds: Mapping[str, str]) -> list[Any]:
    """One histogram for the tensors of each kind, without empty buckets at its ends."""
    members: dict[str, list[LogHistogram]] = {}
    for name, histogram in histograms.items():
        if histogram.counts.any():
            members.setdefault(kinds.get(name, _OTHERS), []).append(histogram)
    values = []
    for kind, own in members.items():
        edges = np.unique(np.round(np.concatenate([one.edges for one in own]), 9))
        counts = np.zeros(len(edges) - 1)
        for one in own:
            np.add.at(counts, np.searchsorted(edges, np.round(one.edges[:-1], 9)), one.counts)
        first, last = np.flatnonzero(counts)[[0, -1]]
        edges = edges[first : last + 2]
        counts = counts[first : last + 1]
        middles = (edges[:-1] + edges[1:]) / 2
        proto = summary_pb2.HistogramProto(
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=counts @ middles,
            sum_squares=counts @ middles**2,
            bucket_limit=edges[1:].tolist(),
            bucket=counts.tolist(),
        )
        tag = f"{_MAGNITUDES}/{printable(kind)}"
        values.append(_Value(tag=tag, histo=proto, metadata=_HISTOGRAM))
    return values


# ------------------------------------------------------------------ the page "Custom Scalars"


def _tags(panel: Panel) -> list[str]:
    """Those of its lines and of its band, as regular expressions."""
    names = [*(line.series for line in panel.lines), *panel.band]
    found = [
        f".+{name}" if name.endswith("*") else tag_of(name.format(rule="*"), "*") for name in names
    ]
    return [tag.replace("*", ".+") for tag in found if tag]


def _beside(tags: Sequence[str]) -> list[str]:
    """Tags of the series that stand beside those of a chart, as regular expressions."""
    rows = [(row, tag_of(row.beside.format(rule="*"), "*")) for row in SERIES if row.beside]
    found = [row for row, beside in rows if any(re.fullmatch(tag, beside) for tag in tags)]
    return [f"{LAST}/{row.name.replace('*', '.+')}$" for row in found]


def _layout(provenance: Provenance) -> Any:
    """The page "Custom Scalars"; without a proxy it has the charts of weights alone."""
    from torch.utils.tensorboard.summary import custom_scalars  # takes long to import

    shown: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for panel in PANELS:
        is_known = provenance.proxy_hash or not describe(panel.lines[0].series).needs_proxy
        if panel.group and is_known:
            tags = _tags(panel)
            chart = ("Margin", tags) if panel.band else ("Multiline", [*tags, *_beside(tags)])
            shown.setdefault(panel.group, {})[panel.title] = chart
    return custom_scalars(shown).value[0]  # type: ignore[no-untyped-call]


# ------------------------------------------------------------------ texts, as Markdown


def _text(tag: str, markdown: str) -> Any:
    metadata = text_plugin.create_summary_metadata(tag, "")
    return _Value(tag=tag, metadata=metadata, tensor=make_tensor_proto([markdown], np.object_))


def _explanation(provenance: Provenance) -> str:
    """What the charts mean, for somebody who sees them for the first time."""
    leading = (describe(name.format(rule="initial_*")) for name in LEADING)
    meanings = "\n".join(f"- **{row.label.partition(',')[0]}**: {row.sentence}" for row in leading)
    proxy = provenance.proxy_hash or "none: nothing is evaluated, so there is no essential sparsity"
    return f"""\
### How much of this model could be thrown away right now?

At every snapshot the smallest in-scope weights are masked, more and more of them, and the same \
held-out examples are evaluated each time. The tolerance is {provenance.tolerated}. \
Training itself is not touched. What matters most stands first, under `{FIRST}`, the rest under \
`{LAST}`:

{meanings}

The band of essential sparsity is its confidence interval; it is usually lower than what pruning \
with fine-tuning reaches. Reliance jumps when the model starts to use these weights: before that \
anything can be removed, which says nothing, and no essential sparsity is shown. Dormant weights \
can rise long before near-zero counts do. In histograms of log10 magnitudes -3 means 0.001.

The tab *Sparsity* has all of it on one page, with its events in the charts, and `sparsitywatch \
report` makes a file of it. All of it, and more, is in `records.jsonl` beside this run's event file.

Numbers of different provenance cannot be compared. This run: scope `{provenance.scope_hash}`, \
proxy `{proxy}`, pattern {_code(provenance.pattern)}, weights in {", ".join(provenance.dtypes)}, \
sparsitywatch {provenance.sparsitywatch}, torch {provenance.torch}.
"""


def scope_table(ledger: Sequence[LedgerEntry]) -> str:
    """Every parameter, in or out of scope, and why."""
    rows = []
    for entry in ledger:
        why = _prose(printable(entry.reason))
        if entry.aliases:
            why += f"; the same as {', '.join(map(_code, entry.aliases))}"
        rows.append(
            f"| {'**in**' if entry.in_scope else 'out'} | {_code(entry.name)} "
            f"| {entry.dimensions} | {entry.num_weights:,} | {why} |"
        )
    head = f"**{ledger_in_short(ledger)}**"
    titles = "| | parameter | shape | weights | why |"
    return "\n".join([head, "", titles, "|---|---|---|---:|---|", *rows])


#: What Markdown and HTML take for a mark; an underscore inside a word is none.
_MARK = re.compile(r"[\\`*\[\]|<&]|(?<!\w)_|_(?!\w)")


def _code(name: str) -> str:
    """A name of whatever characters as a piece of code in Markdown, also in a table."""
    name = printable(name)
    return f"<code>{_prose(name)}</code>" if re.search(r"[\\`|<&]", name) else f"`{name}`"


def _prose(text: str) -> str:
    """A text in Markdown in which nothing is a mark."""
    return _MARK.sub(lambda mark: f"&#{ord(mark[0])};", text)


def _event_text(event: Event) -> str:
    """One event in words, then its numbers."""
    facts = [f"{event.baseline:.4g} before, {event.value:.4g} by now"]
    if not math.isnan(event.noise):
        times = f": {abs(event.size_in_noise):.3g} of them" if event.noise > 0.0 else ""
        facts.append(f"noise before: standard deviation {event.noise:.2g}{times}")
    if not math.isnan(event.decay_clock):
        facts.append(f"decay clock by now: {event.decay_clock:.2f}")
    facts += [f"much of it in {_code(name)}" for name in event.layers]
    if event.before_step >= 0:
        both = f"{event.before_step} and {event.reported_step}"  # as their files are named
        facts.append(f"spectra to compare: {event.unit}s {both}")
    if event.revised_step >= 0:
        at = numbered(event.unit, event.revised_step)
        facts.append(f"revised at {at}, with what was learned since")
    title = f"**{_prose(event.report().removesuffix(event.advice).rstrip())}**"
    advice = _prose(event.advice)
    return "\n".join([title, "", advice, "", *(f"- {fact}" for fact in facts), "", _code(event.id)])


_ProtoEvent = event_pb2.Event
_NAME = re.compile(r"events\.out\.tfevents\.\d+\..*")


class _EventFile:
    """The next event file of a run that nobody else writes to, after a cut of the others."""

    def __init__(self, directory: Path, first_step: int, begin: Callable[[Path], Any]) -> None:
        earlier = sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
        # how many values of a step and a tag are kept of the earlier files
        self.held = Counter(value for path in earlier for value in _cut(path, first_step))
        self._described: set[str] = set()
        # the name sorts last, also within one second or with a clock that is behind
        stamp = max([int(time.time()), *(int(path.name.split(".")[3]) + 1 for path in earlier)])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._writer = RecordWriter(begin(directory / name))
        self._add(_ProtoEvent(wall_time=time.time(), file_version="brain.Event:2"))
        # tells TensorBoard of the cut; in every file, since its first one is ignored
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(_ProtoEvent(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, values: Sequence[Any], step: int, wall_time: float) -> None:
        """Write values that belong to one step as one record; each tag is described once."""
        for value in values:
            if value.tag not in self._described:
                self._described.add(value.tag)  # readers keep the first description
                series = describe(re.sub(rf"^({FIRST}/\d+_|{LAST}/)", "", value.tag))
                sentence = series.sentence or describe(value.tag, OTHER_TAGS).sentence
                value.metadata.summary_description = sentence
                if series.source:
                    value.metadata.display_name = series.label
        summary = summary_pb2.Summary(value=values)
        self._add(_ProtoEvent(wall_time=wall_time, step=step, summary=summary))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


def _cut(path: Path, first_lost_step: int) -> list[tuple[int, str]]:
    """Cut a file off before its first summary of a lost step; returns what stays."""
    held: list[tuple[int, str]] = []
    content, start = path.read_bytes(), 0
    while start + 12 <= len(content):  # length of the data and its checksum; the data and its own
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + length + 16
        if end > len(content):
            break
        try:
            event = _ProtoEvent.FromString(content[start + 12 : end - 4])
        except DecodeError:
            break
        if event.HasField("summary") and event.step >= first_lost_step:
            os.truncate(path, start)
            break
        held += [(event.step, value.tag) for value in event.summary.value]
        start = end
    return held
