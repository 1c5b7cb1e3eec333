"""What the picture of several runs shows, read off the figure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from contracts import fake_run
from matplotlib.figure import Figure
from matplotlib.text import Text

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event, Record
from sparsitywatch.sinks.comparison import comparison_figure

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
    words = " ".join(t.get_text() for t in figure.findobj(Text))
    assert "interval" not in words
    assert "Events" not in words


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
