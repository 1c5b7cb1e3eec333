"""The TensorBoard run, read back by everything that reads one."""

from __future__ import annotations

import html
import json
import math
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from contracts import event_readers, fake_run
from contracts.sink_contract import STEPS, DurableSinkContract
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from sparsitywatch.records import Detail, Event, LedgerEntry, LogHistogram, Record
from sparsitywatch.series import SERIES, describe
from sparsitywatch.sinks.tensorboard import TensorBoardSink, kinds_of, tag_of

LOOKS = fake_run.looks(STEPS)
RECORDS = [record for record, _ in LOOKS]


def write_run(
    directory: Path, looks: Sequence = LOOKS, events: Sequence[Event] = (), first: int = 0
) -> None:
    """Some records and events after step ``first`` of the made-up run."""
    fake_run.write_to(TensorBoardSink(directory), looks, events, first)


def texts(directory: Path) -> dict[str, list[tuple[int, str]]]:
    reader = event_readers.plugin_accumulator(directory)
    return {
        tag: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).item().decode())
            for event in reader.Tensors(tag)
        ]
        for tag in event_readers.tags_of(reader, "text")
    }


class TestTensorBoardSink(DurableSinkContract):
    import_path = "sparsitywatch.sinks.tensorboard:TensorBoardSink"

    def steps(self, sink: TensorBoardSink, directory: Path) -> list[int]:
        scalars = event_readers.scalars_of_plugin_accumulator(directory)
        by_script = event_readers.scalars_of_accumulator(directory)
        steps = {tag: [step for step, _ in points] for tag, points in scalars.items()}
        assert steps == {tag: [s for s, _ in points] for tag, points in by_script.items()}
        return steps.get(VALID, [])

    def events(self, sink: TensorBoardSink, directory: Path) -> list[tuple[str, int]]:
        return [(series, step) for step, series, _ in told(directory)]

    def fallen_events(self, sink: TensorBoardSink, directory: Path) -> list[str]:
        last = {series: text for _, series, text in told(directory)}
        return [series for series, text in last.items() if "back by half" in text]


VALID = "z_sparsity/watch/valid"


def told(directory: Path) -> list[tuple[int, str, str]]:
    """Step, series and text of each text of an event, in the order of the steps."""
    found = texts(directory).get("0_sparsity/events", [])
    return [(step, re.findall(r"^`(.+)@\d+`$", text, re.MULTILINE)[-1], text)
            for step, text in found]  # fmt: skip


def expected_scalars(records: list[Record]) -> dict[str, list[tuple[int, float]]]:
    """In single precision, as TensorBoard keeps them."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.series().items():
            if tag := tag_of(name, "initial_0.1"):
                expected.setdefault(tag, []).append((record.step, float(np.float32(value))))
    return dict(sorted(expected.items()))


def test_scalars_are_the_series_of_the_records(tmp_path: Path) -> None:
    write_run(tmp_path)
    expected = expected_scalars(RECORDS)
    assert len(expected["0_sparsity/4_essential_sparsity/value"]) < len(RECORDS)  # absent, not NaN
    assert event_readers.scalars_of_accumulator(tmp_path) == expected
    assert event_readers.scalars_of_plugin_accumulator(tmp_path) == expected


# ------------------------------------------------------------------ what a server shows


class Served(NamedTuple):
    """A real TensorBoard, and the folder whose runs it shows."""

    logdir: Path
    url: str

    def show(self, directory: Path) -> str:
        """Let it see a run that is whole; returns its name there."""
        name = directory.parent.name
        directory.rename(self.logdir / name)
        return name


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The default one."""
    logdir = tmp_path_factory.mktemp("fast")
    with event_readers.server(logdir) as url:
        yield Served(logdir, url)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With the loader in Python."""
    logdir = tmp_path_factory.mktemp("python")
    with event_readers.server(logdir, "--load_fast=false") as url:
        yield Served(logdir, url)


def resumed_run(directory: Path) -> None:
    """Four sessions, each killed and resumed at once; num_nan says which one wrote a record."""
    sink = TensorBoardSink(directory)
    for session, (initial_step, last_step) in enumerate(
        [(0, 125), (75, 100), (75, 175), (150, 200)], start=1
    ):
        looks = LOOKS[(initial_step + 25 if initial_step else 0) // 25 : last_step // 25 + 1]
        looks = [(replace(record, num_nan=session), detail) for record, detail in looks]
        fake_run.write_to(sink, looks, first=initial_step)


def session_of(step: int) -> int:
    """Which of the sessions above wrote what is left of a step."""
    return 1 if step <= 75 else 3 if step <= 150 else 4


@pytest.mark.slow
def test_a_resumed_run_reads_like_an_uninterrupted_one(
    tmp_path: Path, fast: Served, python: Served
) -> None:
    run = tmp_path / "run"
    resumed_run(run)
    records = [replace(record, num_nan=session_of(record.step)) for record in RECORDS]
    expected = expected_scalars(records)
    assert event_readers.scalars_of_accumulator(run) == expected
    assert event_readers.scalars_of_plugin_accumulator(run) == expected
    shutil.copytree(run, tmp_path / "again")
    for server, directory in ((fast, run), (python, tmp_path / "again")):
        name = server.show(directory)
        assert event_readers.scalars_of_server(server.url, name) == expected


@pytest.mark.slow
def test_a_lost_future_is_gone_even_where_nothing_follows(tmp_path: Path, fast: Served) -> None:
    """TensorBoard's default server heeds no START event: it waits for points that follow."""
    write_run(tmp_path / "run")
    write_run(tmp_path / "run", [], first=60)
    scalars = event_readers.scalars_of_server(fast.url, fast.show(tmp_path / "run"))
    assert [step for step, _ in scalars[VALID]] == [0, 25, 50]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["fast", "python"])
def test_a_server_that_watches_meanwhile_forgets_the_lost_future(which: str, request) -> None:
    """The files are cut off after it has read them: the START events must do."""
    logdir, url = request.getfixturevalue(which)

    def valid() -> list[int]:
        scalars = f"{url}/data/plugin/scalars/scalars"
        points = event_readers.fetch(scalars, tag=VALID, run="meanwhile")
        return [step for _, step, _ in points or ()]

    sink = TensorBoardSink(logdir / "meanwhile")
    fake_run.write_to(sink, LOOKS[:6])
    event_readers.wait_until(lambda: valid() == [0, 25, 50, 75, 100, 125])
    sink.open(fake_run.run_info(50))
    for record, detail in LOOKS[3:5]:
        sink.write(record, detail)
    event_readers.wait_until(lambda: valid() == [0, 25, 50, 75, 100])
    sink.write(*LOOKS[5])
    event_readers.wait_until(lambda: valid() == [0, 25, 50, 75, 100, 125])
    sink.close()


def test_a_name_that_sorts_last_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([2e9, 1e9, 1e9, 3e9])
    for initial_step in (0, 25, 50, 75):
        now = next(times)
        monkeypatch.setattr("sparsitywatch.sinks.tensorboard.time.time", lambda now=now: now)
        write_run(tmp_path, [], first=initial_step)
    stamps = [int(path.name.split(".")[3]) for path in sorted(tmp_path.iterdir())]
    assert stamps == [2_000_000_000, 2_000_000_001, 2_000_000_002, 3_000_000_000]


@pytest.mark.parametrize("num_bytes", [1, 5, 12, 40, 1000])
def test_a_torn_end_costs_only_itself(tmp_path: Path, num_bytes: int) -> None:
    killed = TensorBoardSink(tmp_path)
    killed.open(fake_run.run_info())
    for record, detail in LOOKS[:3]:
        killed.write(record, detail)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    killed.write(*LOOKS[3])
    assert path.stat().st_size > size + num_bytes
    os.truncate(path, size + num_bytes)
    write_run(tmp_path, LOOKS[3:4], first=50)
    steps = event_readers.scalars_of_plugin_accumulator(tmp_path)[VALID]
    assert [step for step, _ in steps] == [0, 25, 50, 75]


def test_an_interval_that_is_not_known_keeps_in_step_with_its_value(tmp_path: Path) -> None:
    """The chart with the band refuses to draw if the steps of its three tags differ."""
    record = RECORDS[-1]
    estimate = replace(record.essential_sparsity, low=math.nan, high=math.nan)
    looks = [LOOKS[-2], (replace(record, essential_sparsity=estimate), Detail())]
    write_run(tmp_path, looks)
    scalars = event_readers.scalars_of_plugin_accumulator(tmp_path)
    band = [scalars[tag_of(f"essential_sparsity/{part}")] for part in ("value", "low", "high")]
    assert [[step for step, _ in points] for points in band] == [[175, 200]] * 3
    assert [math.isnan(points[1][1]) for points in band] == [False, True, True]


def summed(names: list[str], detail: Detail) -> dict[float, int]:
    """Weights of some tensors together by the left edge of their bin."""
    found: dict[float, int] = {}
    for name in names:
        histogram = detail.histograms[name]
        for edge, count in zip(histogram.edges[:-1], histogram.counts, strict=True):
            found[round(edge, 6)] = found.get(round(edge, 6), 0) + int(count)
    return dict(sorted(found.items()))


def test_histograms_are_the_sums_of_a_kind_count_by_count(tmp_path: Path) -> None:
    write_run(tmp_path)
    reader = event_readers.plugin_accumulator(tmp_path)
    names = fake_run.names(12)
    assert event_readers.tags_of(reader, "histograms") == sorted(
        f"z_sparsity/log10_magnitude/{role}" for role in fake_run.ROLES
    )
    for role in fake_run.ROLES:
        (event,) = reader.Tensors(f"z_sparsity/log10_magnitude/{role}")  # the first of nine
        assert event.step == 0
        buckets = tensor_util.make_ndarray(event.tensor_proto)
        own = [name for name in names if re.search(rf"layer\.\d\.{re.escape(role)}\.", name)]
        assert len(own) == 2
        expected = summed(own, LOOKS[0][1])
        np.testing.assert_allclose(buckets[:, 0], list(expected), rtol=1e-6)
        np.testing.assert_allclose(buckets[:, 1], np.array(list(expected)) + 0.1, rtol=1e-6)
        np.testing.assert_array_equal(buckets[:, 2], list(expected.values()))


@pytest.mark.slow
def test_the_server_sees_the_same_histograms(tmp_path: Path, fast: Served) -> None:
    write_run(tmp_path / "run", LOOKS[:2])
    run, tag = fast.show(tmp_path / "run"), f"z_sparsity/log10_magnitude/{fake_run.ROLES[0]}"
    assert tag in event_readers.tags_of_server(fast.url, "histograms", run)
    histograms = f"{fast.url}/data/plugin/histograms/histograms"
    ((_, step, buckets),) = event_readers.fetch(histograms, tag=tag, run=run)
    expected = summed(fake_run.names(12)[::6], LOOKS[0][1])
    assert step == 0
    np.testing.assert_allclose([b[0] for b in buckets], list(expected), rtol=1e-6)
    assert [b[2] for b in buckets] == list(expected.values())


def test_every_tenth_record_has_histograms_also_when_a_run_is_taken_up(tmp_path: Path) -> None:
    _, detail = fake_run.look(0, num_tensors=1)
    made: list[int] = []

    def noted(step: int) -> Detail:
        def make() -> Mapping[str, LogHistogram]:
            made.append(step)
            return detail.histograms

        return replace(detail, make_histograms=make)

    bare = fake_run.without(fake_run.look(0)[0], "curve", "essential_sparsity", "reliance")
    for first, last in ((0, 14), (14, 23), (23, 35)):
        steps = [10 * i + 1 for i in range(first, last)]
        looks = [(replace(bare, step=step), noted(step)) for step in steps]
        write_run(tmp_path, looks, first=10 * first)
    assert made == [1, 101, 201, 301]  # and for no other record
    reader = event_readers.accumulator(tmp_path)
    (tag,) = reader.Tags()["histograms"]
    assert [event.step for event in reader.Histograms(tag)] == [1, 101, 201, 301]


def test_kinds_are_names_without_their_blocks_and_small_ones_are_together() -> None:
    def entry(name: str, num_weights: int, *, in_scope: bool = True) -> LedgerEntry:
        return LedgerEntry(name=name, shape=(num_weights,), num_weights=num_weights,
                           in_scope=in_scope, reason="")  # fmt: skip

    names = ["h.0.attn.weight", "h.11.attn.weight", "h.0.experts.3.up.weight", "layers.7", "head"]
    found = kinds_of([*(entry(name, 10) for name in names), entry("norm", 5, in_scope=False)])
    kinds = ["attn", "attn", "experts.*.up", "layers.*", "head"]
    assert found == dict(zip(names, kinds, strict=True))
    many = [entry(f"h.{block}.part{i}", 100 - i) for i in range(9) for block in range(3)]
    found = kinds_of(many)
    assert sorted(set(found.values())) == ["others", "part0", "part1", "part2", "part3", "part4"]
    assert {name for name, kind in found.items() if kind == "others"} == {
        f"h.{block}.part{i}" for i in range(5, 9) for block in range(3)
    }


@pytest.mark.parametrize("num_tensors", [1, 200])
def test_at_most_forty_tags_at_any_size_of_the_model(tmp_path: Path, num_tensors: int) -> None:
    record, detail = fake_run.look(2000, num_tensors=num_tensors)
    rules = {f"abs_{x}": 0.1 for x in range(20)}
    names = [f"block.{i}.part{i % 50}.weight" for i in range(num_tensors)]
    histograms = dict(zip(names, detail.histograms.values(), strict=True))
    entry = fake_run.run_info().ledger[1]
    ledger = tuple(replace(entry, name=name) for name in names)
    record = replace(record, near_zero={**record.near_zero, **rules}, layers=())
    sink = TensorBoardSink(tmp_path)
    sink.open(replace(fake_run.run_info(), ledger=ledger))
    for step in range(1, 6):
        sink.write(replace(record, step=step), Detail(make_histograms=histograms.copy))
    for kind in ("untrained", "decay", "blew_up"):
        event = replace(fake_run.events()[0], kind=kind, series=f"vital/{kind}", reason="because")
        sink.event(replace(event, detected_step=5))
    sink.close()
    reader = event_readers.plugin_accumulator(tmp_path)
    tags = {t for plugin in reader.ActivePlugins() for t in event_readers.tags_of(reader, plugin)}
    assert len(tags) <= 40
    assert len([tag for tag in tags if tag.startswith("0_sparsity/") and tag[11].isdigit()]) == 9


def test_every_tag_is_of_a_series_and_what_matters_most_sorts_first() -> None:
    names = [row.name.rstrip("*") for row in SERIES]
    tags = {tag_of(f"{name}initial_0.1" if name.endswith("_") else name): name for name in names}
    leading = sorted(tag for tag in tags if tag.startswith("0_sparsity/"))
    assert [describe(tag[13:]).name for tag in leading] == [tag[13:] for tag in leading]
    first = tag_of("near_zero/rms_0.1", "rms_0.1")
    assert sorted([*leading, first, "loss", "train/loss", "z_sparsity/watch/valid"]) == [
        first, *leading, "loss", "train/loss", "z_sparsity/watch/valid",
    ]  # fmt: skip
    assert [tags[tag] for tag in leading[:3]] == [
        "motion/dormant", "forecast/near_zero_in_1", "essential_sparsity/value",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_events_of_one_step_are_told_together(tmp_path: Path, fast: Served) -> None:
    """The default server keeps one text of a step: the last."""
    first, second = (replace(event, detected_step=25) for event in fake_run.events())
    write_run(tmp_path / "run", LOOKS[:2], [first, second])
    run, tag = fast.show(tmp_path / "run"), "0_sparsity/events"
    assert tag in event_readers.tags_of_server(fast.url, "text", run)
    texts = event_readers.fetch(f"{fast.url}/data/plugin/text/text", tag=tag, run=run)
    assert [text["step"] for text in texts][-1] == 25
    assert all(event.advice in html.unescape(texts[-1]["text"]) for event in (first, second))


@pytest.mark.parametrize("num_told", [0, 1, 2])
def test_what_the_event_files_lack_is_shown_when_a_run_is_taken_up(
    tmp_path: Path, num_told: int
) -> None:
    """A kill left it so, or a file whose tags have the names of an earlier version."""
    events = [replace(event, detected_step=50) for event in fake_run.events()]
    sink = TensorBoardSink(tmp_path)
    sink.open(fake_run.run_info())
    for look in LOOKS[: 3 if num_told else 2]:
        sink.write(*look)
    for event in events[:num_told]:
        sink.event(event)
    sink.abandon()
    asked = []
    sink.open(fake_run.run_info(75))
    sink.catch_up(RECORDS[:4], events, lambda record: asked.append(record.step) or Detail())
    sink.write(*LOOKS[4])
    sink.close()
    scalars = event_readers.scalars_of_plugin_accumulator(tmp_path)
    assert scalars == expected_scalars(RECORDS[:5])
    assert [(step, series) for step, series, _ in told(tmp_path)] == [
        (50, event.series) for event in events
    ]
    assert all(event.advice in html.unescape(told(tmp_path)[-1][2]) for event in events)
    assert asked == []  # spectra are read for the histograms of every tenth record alone


def test_histograms_are_trimmed_and_empty_ones_left_out(tmp_path: Path) -> None:
    wide = LogHistogram(edges=np.arange(-5.0, 0.0), counts=np.array([0, 3, 5, 0]))
    nothing = LogHistogram(edges=np.array([]), counts=np.array([], dtype=np.int64))
    zeros = LogHistogram(edges=np.arange(3.0), counts=np.zeros(2, dtype=np.int64))
    histograms = {"wide": wide, "nothing": nothing, "zeros": zeros}
    detail = Detail(make_histograms=histograms.copy)
    write_run(tmp_path, [(RECORDS[0], detail)])
    reader = event_readers.accumulator(tmp_path)
    assert reader.Tags()["histograms"] == ["z_sparsity/log10_magnitude/others"]
    (event,) = reader.Histograms("z_sparsity/log10_magnitude/others")
    value = event.histogram_value
    assert (value.min, value.max, value.num) == (-4.0, -2.0, 8.0)
    assert (list(value.bucket_limit), list(value.bucket)) == ([-3.0, -2.0], [3.0, 5.0])
    assert value.sum == -3.5 * 3 - 2.5 * 5
    assert value.sum_squares == 3.5**2 * 3 + 2.5**2 * 5


def layout_of(directory: Path) -> layout_pb2.Layout:
    reader = event_readers.plugin_accumulator(directory)
    (tag,) = event_readers.tags_of(reader, "custom_scalars")
    content = tensor_util.make_ndarray(reader.Tensors(tag)[-1].tensor_proto).item()
    return layout_pb2.Layout.FromString(content)


def charts_of(layout: layout_pb2.Layout) -> list[list[str]]:
    """Patterns of tags, by chart."""
    charts = [chart for category in layout.category for chart in category.chart]
    return [
        [*chart.multiline.tag]
        + [tag for s in chart.margin.series for tag in (s.value, s.lower, s.upper)]
        for chart in charts
    ]


def test_every_chart_of_the_layout_has_data(tmp_path: Path) -> None:
    write_run(tmp_path)
    tags = event_readers.scalars_of_accumulator(tmp_path)
    charts = charts_of(layout_of(tmp_path))
    assert len(charts) == 7
    for patterns in charts:
        for pattern in patterns:
            assert any(re.fullmatch(pattern, tag) for tag in tags), pattern
    assert [tag_of(f"essential_sparsity/{part}") for part in ("value", "low", "high")] in charts
    # what matters most is first, by the first rule alone; and each quantity has its own scale
    assert [tag for tag in tags if re.fullmatch(charts[0][0], tag)] == [
        "0_sparsity/1_near_zero/initial_0.1"
    ]
    assert ["0_sparsity/5_value/dense"] in charts
    assert ["0_sparsity/6_value/reliance"] in charts


def test_without_a_proxy_the_layout_promises_no_essential_sparsity(tmp_path: Path) -> None:
    run = fake_run.run_info()
    sink = TensorBoardSink(tmp_path)
    sink.open(replace(run, provenance=replace(run.provenance, proxy_hash="")))
    parts = ("curve", "essential_sparsity", "reliance")
    sink.write(fake_run.without(RECORDS[0], *parts), LOOKS[0][1])
    sink.close()
    tags = event_readers.scalars_of_accumulator(tmp_path)
    for patterns in charts_of(layout_of(tmp_path)):
        assert all(any(re.fullmatch(p, tag) for tag in tags) for p in patterns)
    assert "proxy `none: nothing is evaluated" in texts(tmp_path)["z_sparsity/about"][0][1]


def test_texts_say_what_is_watched_and_what_happened(tmp_path: Path) -> None:
    run, event = fake_run.run_info(), replace(fake_run.events()[1], detected_step=0)
    write_run(tmp_path, LOOKS[:1], [event])
    found = texts(tmp_path)
    # events first: tags stand in this order
    assert list(found) == ["0_sparsity/events", "z_sparsity/about", "z_sparsity/scope"]
    ((step, scope),) = found["z_sparsity/scope"]
    assert step == 0
    assert "12 of 13 parameters in scope, 49,152 of 54,272 weights (90.6 %)" in scope
    rows = [line for line in scope.splitlines() if line.startswith(("| **in**", "| out"))]
    assert len(rows) == len(run.ledger)
    for row, entry in zip(rows, run.ledger, strict=True):
        assert f"`{entry.name}`" in row
        assert entry.reason in row
        assert f"{entry.num_weights:,}" in row
        assert all(f"`{alias}`" in row for alias in entry.aliases)
    ((_, about),) = found["z_sparsity/about"]
    for word in ("zero-shot", "reliance", "decay clock", "dormant", "1 % of the dense value"):
        assert word in about
    ((_, text),) = found["0_sparsity/events"]
    assert event.severity == "look"
    assert f"**Look: {event.describe()}.**\n\n{event.advice}\n" in html.unescape(text)
    assert all(f"`{name}`" in text for name in (*event.layers, event.id))
    assert f"steps {event.before_step} and {event.detected_step}" in text


@pytest.mark.slow
def test_every_tag_says_what_it_means(tmp_path: Path, fast: Served) -> None:
    """Through the default server too, which is where people see it."""
    write_run(tmp_path / "run")
    reader = event_readers.plugin_accumulator(tmp_path / "run")
    for plugin in ("scalars", "histograms"):
        for tag in event_readers.tags_of(reader, plugin):
            assert reader.SummaryMetadata(tag).summary_description, tag
    tags = event_readers.tags_of_server(fast.url, "scalars", fast.show(tmp_path / "run"))
    assert len(tags) == len(expected_scalars(RECORDS))
    assert all("<p>" in entry["description"] for entry in tags.values()), json.dumps(tags)


def test_wall_times_are_those_of_the_records(tmp_path: Path) -> None:
    write_run(tmp_path)
    events = event_readers.accumulator(tmp_path).Scalars(VALID)
    assert [event.wall_time for event in events] == [record.wall_time for record in RECORDS]


def test_logging_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    state, numpy_state = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    write_run(tmp_path)
    assert random.getstate() == state
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
