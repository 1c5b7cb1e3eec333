"""What the drawing of a whole run shows, read off the figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from contracts import fake_run
from matplotlib.figure import Figure
from PIL import Image

from sparsitywatch.analysis.run import Run
from sparsitywatch.cli import main
from sparsitywatch.errors import ConfigurationError, MissingExtraError
from sparsitywatch.plots import overview_figure, save_figure
from sparsitywatch.records import Detail, Event

VALUE, ESSENTIAL = "Model", "Essential sparsity"
WEIGHTS = ("Near-zero weights", "Dormant weights")
RECORDS = [record for record, _ in fake_run.looks(range(0, 2001, 100))]


def words(figure: Figure) -> str:
    """All text on a figure, in one line."""
    return " ".join(" ".join(t.get_text() for t in figure.findobj(mpl.text.Text)).split())


def lines(figure: Figure, panel: int = 0) -> dict[str, mpl.lines.Line2D]:
    handles, labels = figure.axes[panel].get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def starting(handles: dict, start: str) -> object:
    (found,) = (handle for label, handle in handles.items() if label.startswith(start))
    return found


def panel(figure: Figure, label: str) -> int:
    (found,) = (i for i, axes in enumerate(figure.axes) if axes.get_ylabel() == label)
    return found


@pytest.mark.slow
def test_the_overview_holds_the_series() -> None:
    figure = overview_figure(Run(RECORDS, fake_run.events()), title="A run")
    steps = [record.step for record in RECORDS]

    def data(label: str, line: str) -> tuple[list, list]:
        found = starting(lines(figure, panel(figure, label)), line)
        return list(found.get_xdata()), list(found.get_ydata())

    dense = [record.curve.value[0] for record in RECORDS]
    assert data(VALUE, "as it is") == (steps, dense)
    near_zero = [record.near_zero["initial_0.1"] for record in RECORDS]
    assert data("Near-zero weights", "|w| ≤ 0.1 × first rms") == (steps, near_zero)
    dormant = [record.dormant.fraction for record in RECORDS]
    assert data("Dormant weights", "dormant") == (steps, dormant)
    reliance = [record.reliance for record in RECORDS]
    assert data("Reliance", "harm of removing") == (steps, reliance)
    assert "A run" in words(figure)


def test_essential_sparsity_has_gaps_where_it_is_not_informative() -> None:
    figure = overview_figure(Run(RECORDS))
    index = panel(figure, "Essential sparsity")
    line = starting(lines(figure, index), "essential sparsity")
    informative = [record.essential_sparsity.informative for record in RECORDS]
    assert list(np.isfinite(line.get_ydata())) == informative
    assert 2 < sum(informative) < len(RECORDS)
    gap = starting(lines(figure, index), "not informative")
    first = RECORDS[informative.index(True)].step
    box = gap.get_paths()[0].get_extents()
    assert (box.x0, box.x1) == (0.0, first - 50.0)


def test_events_are_marked_and_told() -> None:
    events = fake_run.events()
    figure = overview_figure(Run(RECORDS, events))
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
    assert "band over" not in words(overview_figure(Run(RECORDS, [plain])))
    figure = overview_figure(Run(RECORDS, [fake_run.fallen(rise, 1900)]))
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
    figure = overview_figure(Run(RECORDS))
    (top,) = figure.axes[0].child_axes
    ticks = dict(zip([t.get_text() for t in top.get_xticklabels()], top.get_xticks(), strict=True))
    # the clock of the run is 0.003 a step
    assert ticks == pytest.approx({str(clock): clock / 0.003 for clock in range(7)})
    assert "by decay alone" in words(figure)
    still = [replace(record, decay_clock=0.0) for record in RECORDS]
    assert not overview_figure(Run(still)).axes[0].child_axes
    assert "decay" not in words(overview_figure(Run(still)))


@pytest.mark.parametrize(
    ("parts", "labels"),
    [
        ((), {VALUE, *WEIGHTS, ESSENTIAL, "Reliance"}),
        (("curve", "essential_sparsity", "reliance"), set(WEIGHTS)),
        (("dormant",), {VALUE, WEIGHTS[0], ESSENTIAL, "Reliance"}),
    ],
)
def test_panels_are_those_there_is_something_for(parts: tuple, labels: set[str]) -> None:
    figure = overview_figure(Run([fake_run.without(record, *parts) for record in RECORDS]))
    assert {axes.get_ylabel() for axes in figure.axes} == labels


@pytest.mark.slow
@pytest.mark.parametrize("num_records", [1, 2])
def test_short_runs_are_drawn(tmp_path: Path, num_records: int) -> None:
    for records in (RECORDS[:num_records], RECORDS[-num_records:]):
        figure = overview_figure(Run(records, fake_run.events()))
        save_figure(figure, tmp_path / "new" / "run.png")
        with Image.open(tmp_path / "new" / "run.png") as image:
            image.load()
            assert image.format == "PNG"


def test_events_of_one_step_stay_apart() -> None:
    def event(series: str) -> Event:
        return replace(fake_run.events()[0], series=series)

    events = [event("near_zero/zero"), event("near_zero/abs_9"), event("near_zero/rms_0.1")]
    axes = overview_figure(Run(RECORDS, events)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    assert len({text.xy[1] for text in axes.texts}) == 3


def test_no_records_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="`records` with at least one record, got none"):
        overview_figure(Run([]))


@pytest.mark.slow
def test_drawings_do_not_follow_the_users_style(tmp_path: Path) -> None:
    def drawn() -> bytes:
        save_figure(overview_figure(Run(RECORDS, fake_run.events())), tmp_path / "run.png")
        return (tmp_path / "run.png").read_bytes()

    plain = drawn()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "text.usetex": True}):
        assert drawn() == plain
        assert mpl.rcParams["font.size"] == 30
    assert mpl.rcParams["font.size"] != 30


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in sys.modules if n.startswith(("matplotlib", "sparsitywatch.plots"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"'matplotlib' .* 'sparsitywatch\[plots\]'"):
        import sparsitywatch.plots  # noqa: F401
    fake_run.write_run(tmp_path, [(RECORDS[0], Detail())])
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "run.png")]) == 2
    assert "pip install 'sparsitywatch[plots]'" in capsys.readouterr().err
