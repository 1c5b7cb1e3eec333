"""The TensorBoard run, read back by everything that reads one."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts import event_readers, fake_run
from contracts.sink_contract import STEPS, DurableSinkContract
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Detail, LogHistogram, Record
from sparsitywatch.sinks.tensorboard import TensorBoardSink

LOOKS = fake_run.looks(STEPS)
RECORDS = [record for record, _ in LOOKS]


def write_run(directory: Path, looks: list = LOOKS, **options: int) -> None:
    sink = TensorBoardSink(directory, **options)
    sink.open(fake_run.run_info())
    for record, detail in looks:
        sink.write(record, detail)
    sink.close()


def texts(directory: Path) -> dict[str, list[tuple[int, str]]]:
    reader = event_readers.plugin_accumulator(directory)
    return {
        tag: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).item().decode())
            for event in reader.Tensors(tag)
        ]
        for tag in event_readers.tags_of(reader, "text")
    }


def pictures(directory: Path) -> dict[str, list[int]]:
    reader = event_readers.accumulator(directory)
    return {tag: [event.step for event in reader.Images(tag)] for tag in reader.Tags()["images"]}


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at other things than pictures."""
    figures = "sparsitywatch.plots"
    monkeypatch.setattr(f"{figures}.curve_figure", lambda record: record)
    monkeypatch.setattr(f"{figures}.heatmap_figure", lambda record: record)
    monkeypatch.setattr(f"{figures}.encode_png", lambda figure: (b"PNG", (1, 1)))


@pytest.mark.usefixtures("quick_pictures")
class TestTensorBoardSink(DurableSinkContract):
    import_path = "sparsitywatch.sinks.tensorboard:TensorBoardSink"

    def steps(self, sink: TensorBoardSink, directory: Path) -> list[int]:
        scalars = event_readers.scalars_of_plugin_accumulator(directory)
        by_script = event_readers.scalars_of_accumulator(directory)
        steps = {tag: [step for step, _ in points] for tag, points in scalars.items()}
        assert steps == {tag: [s for s, _ in points] for tag, points in by_script.items()}
        return steps.get("watch/valid", [])

    def events(self, sink: TensorBoardSink, directory: Path) -> list[tuple[str, int]]:
        found = [
            (step, tag.removeprefix("events/"))
            for tag, events in texts(directory).items()
            for step, _ in events
            if tag.startswith("events/")
        ]
        return [(series, step) for step, series in sorted(found)]

    def fallen_events(self, sink: TensorBoardSink, directory: Path) -> list[str]:
        return [
            tag.removeprefix("events/")
            for tag, told in texts(directory).items()
            if tag.startswith("events/") and "back by half" in told[-1][1]
        ]


def expected_scalars(records: list[Record]) -> dict[str, list[tuple[int, float]]]:
    """In single precision, as TensorBoard keeps them."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.series().items():
            expected.setdefault(name, []).append((record.step, float(np.float32(value))))
    return dict(sorted(expected.items()))


@pytest.mark.usefixtures("quick_pictures")
def test_scalars_are_the_series_of_the_records(tmp_path: Path) -> None:
    write_run(tmp_path)
    expected = expected_scalars(RECORDS)
    assert len(expected["essential_sparsity/value"]) < len(RECORDS)  # absent, not NaN
    assert event_readers.scalars_of_accumulator(tmp_path) == expected
    assert event_readers.scalars_of_plugin_accumulator(tmp_path) == expected


def resumed_run(directory: Path) -> None:
    """Four sessions, each killed and resumed at once; num_nan says which one wrote a record."""
    sink = TensorBoardSink(directory)
    for session, (initial_step, last_step) in enumerate(
        [(0, 125), (75, 100), (75, 175), (150, 200)], start=1
    ):
        sink.open(fake_run.run_info(initial_step))
        first = initial_step + 25 if initial_step else 0
        for step in range(first, last_step + 1, 25):
            record, detail = LOOKS[STEPS.index(step)]
            sink.write(replace(record, num_nan=session), detail)
        sink.close()


def session_of(step: int) -> int:
    """Which of the sessions above wrote what is left of a step."""
    return 1 if step <= 75 else 3 if step <= 150 else 4


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize(
    "read",
    [
        lambda logdir: event_readers.scalars_of_accumulator(logdir / "run"),
        lambda logdir: event_readers.scalars_of_plugin_accumulator(logdir / "run"),
        lambda logdir: event_readers.scalars_of_server(logdir, "run"),
        lambda logdir: event_readers.scalars_of_server(logdir, "run", "--load_fast=false"),
    ],
    ids=["EventAccumulator", "plugin_event_accumulator", "server", "server --load_fast=false"],
)
def test_a_resumed_run_reads_like_an_uninterrupted_one(tmp_path: Path, read: object) -> None:
    resumed_run(tmp_path / "run")
    records = [replace(record, num_nan=session_of(record.step)) for record in RECORDS]
    assert read(tmp_path) == expected_scalars(records)


@pytest.mark.usefixtures("quick_pictures")
def test_a_lost_future_is_gone_even_where_nothing_follows(tmp_path: Path) -> None:
    """TensorBoard's default server heeds no START event: it waits for points that follow."""
    sink = TensorBoardSink(tmp_path / "run")
    sink.open(fake_run.run_info())
    for record, detail in LOOKS:
        sink.write(record, detail)
    sink.close()
    sink.open(fake_run.run_info(60))
    sink.close()
    scalars = event_readers.scalars_of_server(tmp_path, "run")
    assert [step for step, _ in scalars["watch/valid"]] == [0, 25, 50]


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("flags", [(), ("--load_fast=false",)], ids=["fast", "python"])
def test_a_server_that_watches_meanwhile_forgets_the_lost_future(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """The files are cut off after it has read them: the START events must do."""

    def valid(url: str) -> list[int]:
        points = event_readers.fetch(
            f"{url}/data/plugin/scalars/scalars", tag="watch/valid", run="run"
        )
        return [step for _, step, _ in points or ()]

    sink = TensorBoardSink(tmp_path / "run")
    sink.open(fake_run.run_info())
    for record, detail in LOOKS[:6]:
        sink.write(record, detail)
    sink.close()
    with event_readers.server(tmp_path, *flags) as url:
        event_readers.wait_until(lambda: valid(url) == [0, 25, 50, 75, 100, 125])
        sink.open(fake_run.run_info(50))
        for record, detail in LOOKS[3:5]:
            sink.write(record, detail)
        event_readers.wait_until(lambda: valid(url) == [0, 25, 50, 75, 100])
        sink.write(*LOOKS[5])
        event_readers.wait_until(lambda: valid(url) == [0, 25, 50, 75, 100, 125])
        sink.close()


@pytest.mark.usefixtures("quick_pictures")
def test_a_name_that_sorts_last_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([2e9, 1e9, 1e9, 3e9])
    for initial_step in (0, 25, 50, 75):
        now = next(times)
        monkeypatch.setattr("sparsitywatch.sinks.tensorboard.time.time", lambda now=now: now)
        sink = TensorBoardSink(tmp_path)
        sink.open(fake_run.run_info(initial_step))
        sink.close()
    stamps = [int(path.name.split(".")[3]) for path in sorted(tmp_path.iterdir())]
    assert stamps == [2_000_000_000, 2_000_000_001, 2_000_000_002, 3_000_000_000]


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("num_bytes", [1, 5, 12, 40, 1000])
def test_a_torn_end_costs_only_itself(tmp_path: Path, num_bytes: int) -> None:
    killed, sink = TensorBoardSink(tmp_path), TensorBoardSink(tmp_path)
    killed.open(fake_run.run_info())
    for record, detail in LOOKS[:3]:
        killed.write(record, detail)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    killed.write(*LOOKS[3])
    assert path.stat().st_size > size + num_bytes
    os.truncate(path, size + num_bytes)
    sink.open(fake_run.run_info(50))
    sink.write(*LOOKS[3])
    sink.close()
    steps = event_readers.scalars_of_plugin_accumulator(tmp_path)["watch/valid"]
    assert [step for step, _ in steps] == [0, 25, 50, 75]


@pytest.mark.usefixtures("quick_pictures")
def test_an_interval_that_is_not_known_keeps_in_step_with_its_value(tmp_path: Path) -> None:
    """The chart with the band refuses to draw if the steps of its three tags differ."""
    record = RECORDS[-1]
    estimate = replace(record.essential_sparsity, low=math.nan, high=math.nan)
    looks = [LOOKS[-2], (replace(record, essential_sparsity=estimate), Detail())]
    write_run(tmp_path, looks)
    scalars = event_readers.scalars_of_plugin_accumulator(tmp_path)
    band = [scalars[f"essential_sparsity/{part}"] for part in ("value", "low", "high")]
    assert [[step for step, _ in points] for points in band] == [[175, 200]] * 3
    assert [math.isnan(points[1][1]) for points in band] == [False, True, True]


@pytest.mark.usefixtures("quick_pictures")
def test_histograms_read_back_count_by_count(tmp_path: Path) -> None:
    write_run(tmp_path)
    reader = event_readers.plugin_accumulator(tmp_path)
    names = fake_run.names(12)
    assert event_readers.tags_of(reader, "histograms") == sorted(
        f"log10_magnitude/{name}" for name in names
    )
    for name in names:
        events = reader.Tensors(f"log10_magnitude/{name}")
        assert [event.step for event in events] == list(STEPS)
        for event, (_, detail) in zip(events, LOOKS, strict=True):
            buckets = tensor_util.make_ndarray(event.tensor_proto)
            expected = detail.histograms[name]
            np.testing.assert_allclose(buckets[:, 0], expected.edges[:-1], rtol=1e-6)
            np.testing.assert_allclose(buckets[:, 1], expected.edges[1:], rtol=1e-6)
            np.testing.assert_array_equal(buckets[:, 2], expected.counts)


@pytest.mark.usefixtures("quick_pictures")
def test_the_server_sees_the_same_histograms(tmp_path: Path) -> None:
    write_run(tmp_path / "run", LOOKS[:2])
    name = fake_run.names(1)[0]
    with event_readers.server(tmp_path) as url:
        plugin = f"{url}/data/plugin/histograms"
        event_readers.wait_until(lambda: (event_readers.fetch(f"{plugin}/tags") or {}).get("run"))
        found = event_readers.fetch(
            f"{plugin}/histograms", tag=f"log10_magnitude/{name}", run="run"
        )
    for (_, step, buckets), (record, detail) in zip(found, LOOKS[:2], strict=True):
        expected = detail.histograms[name]
        assert step == record.step
        np.testing.assert_allclose([b[0] for b in buckets], expected.edges[:-1], rtol=1e-6)
        np.testing.assert_allclose([b[1] for b in buckets], expected.edges[1:], rtol=1e-6)
        assert [b[2] for b in buckets] == list(expected.counts)


@pytest.mark.usefixtures("quick_pictures")
def test_of_many_records_every_tenth_has_histograms_also_when_a_run_is_taken_up(
    tmp_path: Path,
) -> None:
    _, detail = fake_run.look(0, num_tensors=1)
    bare = fake_run.without(fake_run.look(0)[0], "curve", "essential_sparsity", "reliance")
    for first, last in ((0, 40), (40, 63), (63, 75)):
        sink = TensorBoardSink(tmp_path)
        sink.open(fake_run.run_info(10 * first))
        for i in range(first, last):
            sink.write(replace(bare, step=10 * i + 1), detail)
        sink.close()
    reader = event_readers.accumulator(tmp_path)
    (tag,) = reader.Tags()["histograms"]
    steps = [event.step for event in reader.Histograms(tag)]
    assert steps == [10 * i + 1 for i in (*range(50), 50, 60, 70)]


def test_histograms_are_trimmed_and_empty_ones_left_out(tmp_path: Path) -> None:
    wide = LogHistogram(edges=np.arange(-5.0, 0.0), counts=np.array([0, 3, 5, 0]))
    nothing = LogHistogram(edges=np.array([]), counts=np.array([], dtype=np.int64))
    zeros = LogHistogram(edges=np.arange(3.0), counts=np.zeros(2, dtype=np.int64))
    detail = Detail(histograms={"wide": wide, "nothing": nothing, "zeros": zeros})
    write_run(tmp_path, [(RECORDS[0], detail)])
    reader = event_readers.accumulator(tmp_path)
    assert reader.Tags()["histograms"] == ["log10_magnitude/wide"]
    (event,) = reader.Histograms("log10_magnitude/wide")
    value = event.histogram_value
    assert (value.min, value.max, value.num) == (-4.0, -2.0, 8.0)
    assert (list(value.bucket_limit), list(value.bucket)) == ([-3.0, -2.0], [3.0, 5.0])
    assert value.sum == -3.5 * 3 - 2.5 * 5
    assert value.sum_squares == 3.5**2 * 3 + 2.5**2 * 5


def test_pictures_come_first_last_every_so_often_and_with_events(tmp_path: Path) -> None:
    looks = fake_run.looks(range(0, 251, 10))
    sink = TensorBoardSink(tmp_path, picture_every=10)
    sink.open(fake_run.run_info())
    for record, detail in looks:
        sink.write(record, detail)
        if record.step in (130, 200):  # 200 is due anyway
            for event in fake_run.events():
                sink.event(replace(event, detected_step=record.step))
    sink.close()
    steps = [0, 100, 130, 200, 250]
    assert pictures(tmp_path) == {
        "pictures/sparsity_value_curve": steps,
        "pictures/removed_per_layer": steps,
    }


def test_pictures_decode(tmp_path: Path) -> None:
    write_run(tmp_path)
    reader = event_readers.accumulator(tmp_path)
    for tag in reader.Tags()["images"]:
        for event in reader.Images(tag):
            image = Image.open(io.BytesIO(event.encoded_image_string))
            image.load()
            assert (image.format, image.size) == ("PNG", (event.width, event.height))
            assert min(image.size) >= 300
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # something is drawn


@pytest.mark.parametrize(
    "change", [{"valid": False, "reason": "a canary failed"}, {"curve": None}], ids=str
)
def test_what_cannot_be_trusted_or_is_not_there_is_not_drawn(tmp_path: Path, change: dict) -> None:
    write_run(tmp_path, [(replace(RECORDS[-1], **change), Detail()), *LOOKS[:3]])
    assert set(map(tuple, pictures(tmp_path).values())) == {(0, 50)}


def test_a_drawing_that_fails_loses_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: Record) -> None:
        raise RuntimeError("no ink")

    sink = TensorBoardSink(tmp_path)
    sink.open(fake_run.run_info())
    with monkeypatch.context() as patch:
        patch.setattr("sparsitywatch.plots.curve_figure", fail)
        with pytest.raises(RuntimeError, match="no ink"):
            sink.write(*LOOKS[0])
    sink.write(*LOOKS[1])
    sink.close()
    scalars = event_readers.scalars_of_accumulator(tmp_path)
    assert scalars == expected_scalars(RECORDS[:2])


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


@pytest.mark.usefixtures("quick_pictures")
def test_every_chart_of_the_layout_has_data(tmp_path: Path) -> None:
    write_run(tmp_path)
    tags = event_readers.scalars_of_accumulator(tmp_path)
    charts = charts_of(layout_of(tmp_path))
    assert len(charts) == 7
    for patterns in charts:
        for pattern in patterns:
            assert any(re.fullmatch(pattern, tag) for tag in tags), pattern
    assert [
        "essential_sparsity/value",
        "essential_sparsity/low",
        "essential_sparsity/high",
    ] in charts
    # what matters most is first, by the first rule alone; and each quantity has its own scale
    assert [tag for tag in tags if re.fullmatch(charts[0][0], tag)] == ["near_zero/initial_0.1"]
    assert ["value/dense"] in charts
    assert ["value/reliance"] in charts


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
    assert "no essential sparsity" in texts(tmp_path)["explanation"][0][1]
    assert pictures(tmp_path) == {}


@pytest.mark.usefixtures("quick_pictures")
def test_texts_say_what_is_watched_and_what_happened(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    run = fake_run.run_info()
    sink.open(run)
    sink.write(*LOOKS[0])
    event = replace(fake_run.events()[1], detected_step=0)
    sink.event(event)
    sink.close()
    found = texts(tmp_path)
    assert list(found) == ["events/near_zero/initial_0.1", "explanation", "scope"]
    ((step, scope),) = found["scope"]
    assert step == 0
    assert "12 of 13 parameters in scope, 49,152 of 54,272 weights (90.6%)" in scope
    rows = [line for line in scope.splitlines() if line.startswith(("| **in**", "| out"))]
    assert len(rows) == len(run.ledger)
    for row, entry in zip(rows, run.ledger, strict=True):
        assert f"`{entry.name}`" in row
        assert entry.reason in row
        assert f"{entry.num_weights:,}" in row
        assert all(f"`{alias}`" in row for alias in entry.aliases)
    ((_, about),) = found["explanation"]
    for word in ("zero-shot", "informative", "decay clock", "dormant", "0.01 times the dense"):
        assert word in about
    ((_, text),) = found["events/near_zero/initial_0.1"]
    assert f"**{event.describe()}**\n\n{event.advice}\n" in html.unescape(text)
    assert all(f"`{name}`" in text for name in (*event.layers, event.id))
    assert f"steps {event.before_step} and {event.detected_step}" in text


def test_every_tag_says_what_it_means(tmp_path: Path) -> None:
    """Through the default server too, which is where people see it."""
    write_run(tmp_path / "run")
    reader = event_readers.plugin_accumulator(tmp_path / "run")
    for plugin in ("scalars", "histograms", "images"):
        for tag in event_readers.tags_of(reader, plugin):
            assert reader.SummaryMetadata(tag).summary_description, tag
    with event_readers.server(tmp_path) as url:
        plugin = f"{url}/data/plugin/scalars/tags"
        event_readers.wait_until(lambda: (event_readers.fetch(plugin) or {}).get("run"))
        tags = event_readers.fetch(plugin)["run"]
    assert len(tags) == len(expected_scalars(RECORDS))
    assert all("<p>" in entry["description"] for entry in tags.values()), json.dumps(tags)


@pytest.mark.usefixtures("quick_pictures")
def test_wall_times_are_those_of_the_records(tmp_path: Path) -> None:
    write_run(tmp_path)
    events = event_readers.accumulator(tmp_path).Scalars("watch/valid")
    assert [event.wall_time for event in events] == [record.wall_time for record in RECORDS]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="`picture_every` to be a whole number >= 1, got 0"
    ):
        TensorBoardSink(tmp_path, picture_every=0)
    with pytest.raises(ConfigurationError, match="local path, got 'gs://bucket'"):
        TensorBoardSink("gs://bucket")
    (tmp_path / "file").write_text("")
    sink = TensorBoardSink(tmp_path / "file")
    with pytest.raises(ConfigurationError, match=r"`directory` .* written to, got '.*file'"):
        sink.open(fake_run.run_info())


def test_importing_it_draws_in_neither_matplotlib_nor_torch() -> None:
    program = (
        "import sys, sparsitywatch.sinks.tensorboard;"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.stdout == "[]\n"


def test_logging_leaves_the_random_numbers_and_the_plot_style_of_the_user_alone(
    tmp_path: Path,
) -> None:
    import random

    import matplotlib as mpl

    state, numpy_state, style = random.getstate(), np.random.get_state(), dict(mpl.rcParams)  # noqa: NPY002
    write_run(tmp_path)
    assert random.getstate() == state
    assert str(np.random.get_state()) == str(numpy_state)  # noqa: NPY002
    assert dict(mpl.rcParams) == style
