"""What the pictures of a whole run and of several show, read off the figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts import fake_run
from matplotlib.figure import Figure
from PIL import Image
from plots.reading import lines, starting, words

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots import comparison_figure, overview_figure, save_figure
from sparsitywatch.records import Event, Record

VALUE, ESSENTIAL = "Value of the model", "Essential sparsity"
WEIGHTS = ("Near-zero weights", "Dormant weights")
RECORDS = [record for record, _ in fake_run.looks(range(0, 2001, 100))]


def panel(figure: Figure, label: str) -> int:
    (found,) = (i for i, axes in enumerate(figure.axes) if axes.get_ylabel() == label)
    return found


def test_the_overview_holds_the_series() -> None:
    loss = [(step, 3.0 - step / 2000) for step in range(1, 2001)]
    figure = overview_figure(RECORDS, fake_run.events(), loss=loss, title="A run")
    steps = [record.step for record in RECORDS]

    def data(label: str, line: str) -> tuple[list, list]:
        found = starting(lines(figure, panel(figure, label)), line)
        return list(found.get_xdata()), list(found.get_ydata())

    assert data("Value of the model", "training loss") == tuple(map(list, zip(*loss, strict=True)))
    dense = [record.curve.value[0] for record in RECORDS]
    assert data("Value of the model", "as it is") == (steps, dense)
    near_zero = [record.near_zero["initial_0.1"] for record in RECORDS]
    assert data("Near-zero weights", "|w| ≤ 0.1 × first rms") == (steps, near_zero)
    dormant = [record.dormant.fraction for record in RECORDS]
    assert data("Dormant weights", "dormant") == (steps, dormant)
    reliance = [record.reliance for record in RECORDS]
    assert data("Reliance", "harm of removing") == (steps, reliance)
    assert "A run" in words(figure)


def test_essential_sparsity_has_gaps_where_it_is_not_informative() -> None:
    figure = overview_figure(RECORDS)
    index = panel(figure, "Essential sparsity")
    line = starting(lines(figure, index), "essential sparsity")
    informative = [record.essential_sparsity.informative for record in RECORDS]
    assert list(np.isfinite(line.get_ydata())) == informative
    assert 2 < sum(informative) < len(RECORDS)
    gap = starting(lines(figure, index), "not informative")
    first = RECORDS[informative.index(True)].step
    assert (gap.get_x(), gap.get_x() + gap.get_width()) == (0.0, first - 50.0)


def test_events_are_marked_and_told() -> None:
    events = fake_run.events()
    figure = overview_figure(RECORDS, events)
    for axes in figure.axes[:5]:
        marks = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert marks == [s for event in events for s in (event.onset_step, event.detected_step)]
    numbers = {
        axes.get_ylabel(): [t.get_text() for t in axes.texts] for axes in figure.axes if axes.texts
    }
    assert numbers == {"Reliance": ["1"], "Near-zero weights": ["2"]}
    told = words(figure)
    for number, event in enumerate(events, start=1):
        assert f"({number}) {event.describe()}" in told
    assert "dotted where they began by estimate" in told
    assert "zero-shot" in told


def test_the_interval_of_an_onset_and_a_fall_are_marked() -> None:
    rise = fake_run.events()[1]
    plain = replace(rise, onset_low=rise.onset_step, onset_high=rise.onset_step)
    assert "band over" not in words(overview_figure(RECORDS, [plain]))
    figure = overview_figure(RECORDS, [fake_run.fallen(rise, 1900)])
    band = pytest.approx((rise.onset_low, rise.onset_high))
    homes = [
        axes.get_ylabel()
        for axes in figure.axes[:5]
        if band in [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]
    ]
    assert homes == ["Near-zero weights"]  # bands of all events in all panels would hide them
    axes = figure.axes[0]
    assert 1875 in [line.get_xdata()[0] for line in axes.lines]
    assert "a band over the interval of the beginning, dashed where half" in words(figure)


def test_the_decay_clock_runs_along_the_top() -> None:
    figure = overview_figure(RECORDS)
    (top,) = figure.axes[0].child_axes
    ticks = dict(zip([t.get_text() for t in top.get_xticklabels()], top.get_xticks(), strict=True))
    # the clock of the run is 0.003 a step
    assert ticks == pytest.approx({str(clock): clock / 0.003 for clock in range(7)})
    assert "by decay alone" in words(figure)
    still = [replace(record, decay_clock=0.0) for record in RECORDS]
    assert not overview_figure(still).axes[0].child_axes
    assert "decay" not in words(overview_figure(still))


@pytest.mark.parametrize(
    ("parts", "labels"),
    [
        ((), {VALUE, *WEIGHTS, ESSENTIAL, "Reliance"}),
        (("curve", "essential_sparsity", "reliance"), set(WEIGHTS)),
        (("dormant",), {VALUE, WEIGHTS[0], ESSENTIAL, "Reliance"}),
    ],
)
def test_panels_are_those_there_is_something_for(parts: tuple, labels: set[str]) -> None:
    figure = overview_figure([fake_run.without(record, *parts) for record in RECORDS])
    assert {axes.get_ylabel() for axes in figure.axes} == labels


@pytest.mark.parametrize("num_records", [1, 2])
def test_short_runs_are_drawn(tmp_path: Path, num_records: int) -> None:
    for records in (RECORDS[:num_records], RECORDS[-num_records:]):
        save_figure(overview_figure(records, fake_run.events()), tmp_path / "new" / "run.png")
        with Image.open(tmp_path / "new" / "run.png") as image:
            image.load()
            assert image.format == "PNG"


def test_events_of_one_step_stay_apart() -> None:
    def event(series: str) -> Event:
        return replace(fake_run.events()[0], series=series)

    events = [event("near_zero/zero"), event("near_zero/abs_9"), event("near_zero/rms_0.1")]
    axes = overview_figure(RECORDS, events).axes[1]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    assert len({text.xy[1] for text in axes.texts}) == 3


def test_no_records_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="`records` with at least one record, got none"):
        overview_figure([])


# Several runs

Run = tuple[list[Record], list[Event]]


def run(seed: int, *, events: bool = True) -> Run:
    records = [record for record, _ in fake_run.looks(range(0, 2001, 100), seed=seed)]
    return records, fake_run.events() if events else []


RUNS = {"a": run(0), "b": run(1, events=False), "c": run(2)}


def panels(figure: Figure) -> dict[str, object]:
    return {axes.get_ylabel().partition("\n")[0]: axes for axes in figure.axes}


def test_every_panel_has_each_run_with_its_values() -> None:
    found = panels(comparison_figure(RUNS))
    assert list(found) == ["near zero", "dormant", "essential sparsity"]
    handles, labels = found["near zero"].get_legend_handles_labels()
    assert labels == ["a", "b", "c"]
    for line, (records, _) in zip(handles, RUNS.values(), strict=True):
        assert line.get_xdata().tolist() == [r.step for r in records]
        assert line.get_ydata().tolist() == [r.near_zero["initial_0.1"] for r in records]
    assert len({line.get_color() for line in handles}) == 3


def test_an_essential_sparsity_that_is_not_informative_is_not_drawn() -> None:
    axes = panels(comparison_figure(RUNS))["essential sparsity"]
    line = axes.get_lines()[0]
    known = [r.essential_sparsity.informative for r in RUNS["a"][0]]
    assert not all(known)
    assert np.isfinite(line.get_ydata()).tolist() == known
    assert len(axes.collections) == len(RUNS)  # one band a run


def test_events_are_marked_on_the_line_of_their_run_in_the_panel_of_their_series() -> None:
    found = panels(comparison_figure(RUNS))
    marks = [line for line in found["near zero"].get_lines() if len(line.get_xdata()) == 1]
    (_, take_off) = fake_run.events()
    assert [(m.get_marker(), m.get_xdata()[0]) for m in marks] == [
        ("|", take_off.onset_step), ("o", take_off.detected_step),
    ] * 2  # fmt: skip
    line = found["near zero"].get_lines()[0]
    assert marks[0].get_color() == line.get_color()
    expected = np.interp(take_off.detected_step, line.get_xdata(), line.get_ydata())
    assert marks[1].get_ydata()[0] == pytest.approx(expected)
    assert all(len(line.get_xdata()) > 1 for line in found["dormant"].get_lines())


def test_an_event_is_marked_in_the_panel_of_every_series_that_saw_it() -> None:
    records, events = RUNS["a"]
    seen = [replace(events[1], related=("motion/dormant",))]
    found = panels(comparison_figure({"a": (records, seen)}))
    marks = [line for line in found["dormant"].get_lines() if len(line.get_xdata()) == 1]
    assert len(marks) == 2


def test_runs_of_a_group_share_a_colour_and_differ_in_dashes() -> None:
    figure = comparison_figure(RUNS, groups=["one", "two", "one"])
    a, b, c = figure.axes[0].get_legend_handles_labels()[0]
    assert a.get_color() == c.get_color() != b.get_color()
    assert a.get_linestyle() != c.get_linestyle()


def test_many_runs_stay_apart() -> None:
    runs = {f"run {i}": RUNS["b"] for i in range(20)}
    lines = comparison_figure(runs).axes[0].get_legend_handles_labels()[0]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in lines}
    assert len(looks) == 20


def test_what_needs_a_proxy_can_be_left_out() -> None:
    assert list(panels(comparison_figure(RUNS, weights_only=True))) == ["near zero", "dormant"]
    parts = ("curve", "essential_sparsity", "reliance")
    bare = {
        name: ([fake_run.without(record, *parts) for record in records], [])
        for name, (records, _) in RUNS.items()
    }
    figure = comparison_figure(bare)
    assert list(panels(figure)) == ["near zero", "dormant"]
    assert "interval" not in words(figure)
    assert "Events" not in words(figure)


def test_a_series_that_nobody_has_leaves_an_empty_panel_and_no_fault() -> None:
    records = [replace(r, near_zero={"zero": math.nan}, dormant=None) for r in RUNS["a"][0]]
    assert len(comparison_figure({"a": (records, fake_run.events())}, weights_only=True).axes) == 1


@pytest.mark.parametrize("runs", [{}, {"a": ([], [])}])
def test_nothing_to_draw_is_refused(runs: dict[str, Run]) -> None:
    with pytest.raises(ConfigurationError, match="Expected `runs` with at least one"):
        comparison_figure(runs)


def test_groups_need_one_name_a_run() -> None:
    with pytest.raises(ConfigurationError, match="one name for each of 3 runs, got 1"):
        comparison_figure(RUNS, groups=["one"])
