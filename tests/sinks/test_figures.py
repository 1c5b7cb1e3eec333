"""What the pictures show: read off the figures, and off the pixels where it matters."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from contracts import fake_run
from matplotlib.figure import Figure
from PIL import Image

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event, Record, SparsityCurve
from sparsitywatch.sinks.figures import (
    curve_figure,
    encode_png,
    heatmap_figure,
    overview_figure,
    save_figure,
)
from sparsitywatch.sinks.heatmap import short_names

FULL = fake_run.look(1500)[0]
EARLY = fake_run.look(0)[0]
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


def with_curve(record: Record, **columns: object) -> Record:
    return replace(record, curve=replace(record.curve, **columns))


# The curve of one record


def test_the_curve_shows_its_points_and_errors() -> None:
    order = [5, 0, 11, 3, 1, 2, 4, 7, 6, 8, 10, 9]  # points may come in any order
    columns = {
        name: [getattr(FULL.curve, name)[i] for i in order]
        for name in ("sparsity", "value", "stderr", "level")
    }
    figure = curve_figure(replace(FULL, curve=replace(FULL.curve, **columns)))
    bars = starting(lines(figure), "value when masked")
    points = bars.lines[0]
    np.testing.assert_allclose(points.get_xdata(), FULL.curve.sparsity)
    np.testing.assert_allclose(points.get_ydata(), FULL.curve.value)
    (segments,) = (collection.get_segments() for collection in bars.lines[2])
    half_widths = [(segment[1][1] - segment[0][1]) / 2 for segment in segments]
    # 1.6449: both tails of a normal distribution beyond it hold 10 %
    np.testing.assert_allclose(half_widths, 1.6449 * np.array(FULL.curve.stderr), rtol=1e-4)


def test_the_curve_marks_what_was_read_off_it() -> None:
    estimate = FULL.essential_sparsity
    figure = curve_figure(FULL)
    handles = lines(figure)
    assert starting(handles, "first crossing").get_xdata() == [estimate.value] * 2
    assert starting(handles, "last crossing").get_xdata() == [estimate.last_crossing] * 2
    interval = (
        starting(handles, "90% interval")
        .get_extents()
        .transformed(figure.axes[0].transData.inverted())
    )
    assert (interval.x0, interval.x1) == pytest.approx((estimate.low, estimate.high))
    assert f"Step 1,500: essential sparsity {estimate.value:.1%} (zero-shot)" in words(figure)
    assert "lower is better, mean of 192 examples" in words(figure)


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize(("mode", "width"), [("relative", 0.02), ("absolute", 0.01)])
def test_the_tolerance_lies_on_the_side_of_harm(
    higher_is_better: bool, mode: str, width: float
) -> None:
    curve = SparsityCurve(
        sparsity=[0.0, 0.5, 1.0], value=[2.0, 2.0, 2.0], higher_is_better=higher_is_better
    )
    estimate = replace(FULL.essential_sparsity, mode=mode, tolerance=0.01)
    figure = curve_figure(replace(FULL, curve=curve, essential_sparsity=estimate))
    box = (
        starting(lines(figure), "within the tolerance")
        .get_extents()
        .transformed(figure.axes[0].transData.inverted())
    )
    limit = 2.0 - width if higher_is_better else 2.0 + width
    assert sorted((box.y0, box.y1)) == pytest.approx(sorted((2.0, limit)))


def test_a_curve_that_says_nothing_marks_nothing_and_says_why() -> None:
    figure = curve_figure(EARLY)
    assert "no informative essential sparsity yet" in words(figure)
    assert "the model does not rely on these" in words(figure)
    assert not [label for label in lines(figure) if "crossing" in label or "interval:" in label]


def test_values_beyond_the_chart_are_marked_at_its_edge() -> None:
    """One model that broke down must not squeeze the rest into a line."""
    value = list(FULL.curve.value)
    value[8], value[9] = 1e6, math.inf
    figure = curve_figure(with_curve(FULL, value=value))
    low, high = figure.axes[0].get_ylim()
    assert high - low < 5
    beyond = starting(lines(figure), "beyond this chart")
    np.testing.assert_allclose(beyond.get_xdata(), np.array(FULL.curve.sparsity)[8:10])
    assert set(beyond.get_ydata()) == {high}


@pytest.mark.parametrize(
    "columns",
    [
        {"stderr": None},
        {"stderr": [math.nan] * 12},
        {"value": [1.0] * 12},
        {"value": [math.nan] * 12},
        {"value": [math.inf] * 11 + [1.0]},
        {"num_examples": None},
        {"higher_is_better": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("record", [FULL, EARLY, replace(FULL, essential_sparsity=None)])
def test_odd_curves_are_drawn(record: Record, columns: dict) -> None:
    png, size = encode_png(curve_figure(with_curve(record, **columns)))
    assert png.startswith(b"\x89PNG")
    assert size == (800, 500)


def test_a_record_without_a_curve_is_named() -> None:
    for draw in (curve_figure, heatmap_figure):
        with pytest.raises(ConfigurationError, match=r"`record` with a curve.* of step 1500"):
            draw(fake_run.without(FULL, "curve"))


# Where the removed weights come from


def test_the_heatmap_holds_the_shares() -> None:
    figure = heatmap_figure(FULL)
    axes = figure.axes[0]
    (image,) = axes.images
    expected = np.array([layer.removed for layer in FULL.layers])[:, 1:-1]
    np.testing.assert_allclose(image.get_array(), expected)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == [
        "0.attention.self.query",
        "0.attention.self.key",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()][::9] == ["10%", "95%"]
    assert image.get_clim() == (0.0, 1.0)


def test_columns_of_the_heatmap_rise_whatever_the_order_of_the_curve() -> None:
    order = np.random.default_rng(0).permutation(12)
    curve = replace(
        FULL.curve,
        **{
            name: [getattr(FULL.curve, name)[i] for i in order]
            for name in ("sparsity", "value", "stderr", "level")
        },
    )
    layers = tuple(
        replace(layer, removed=tuple(layer.removed[i] for i in order)) for layer in FULL.layers
    )
    shuffled = heatmap_figure(replace(FULL, curve=curve, layers=layers))
    np.testing.assert_array_equal(
        shuffled.axes[0].images[0].get_array(),
        heatmap_figure(FULL).axes[0].images[0].get_array(),
    )


def test_72_rows_do_not_run_into_each_other() -> None:
    figure = heatmap_figure(fake_run.look(1500, num_tensors=72)[0])
    encode_png(figure)  # lays it out
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 72
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
    assert min(box.height for box in boxes) >= 8  # pixels: legible
    assert min(box.x0 for box in boxes) >= 0


def test_many_tensors_become_means_by_block() -> None:
    record = fake_run.look(1500, num_tensors=240)[0]
    weights = [1 + i % 5 for i in range(240)]
    layers = tuple(
        replace(layer, num_weights=w) for layer, w in zip(record.layers, weights, strict=True)
    )
    axes = heatmap_figure(replace(record, layers=layers)).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{block} (mean)" for block in range(40)]
    shares = np.array([layer.removed for layer in layers[6:12]])[:, 1:-1]
    expected = (shares.T @ weights[6:12]) / sum(weights[6:12])
    np.testing.assert_allclose(axes.images[0].get_array()[1], expected)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.0.q.weight", "a.1.q.weight"], [("0", "q"), ("1", "q")]),
        (["enc.0.q.weight", "dec.0.q.weight"], [("enc.0", "q"), ("dec.0", "q")]),
        (["fc.weight"], [("", "fc")]),
        (["fc1.weight", "fc2.weight"], [("", "fc1"), ("", "fc2")]),
        (["0.weight", "2.weight"], [("", "0"), ("", "2")]),
        (["h.0.experts.3", "h.0.gate.weight"], [("0", "experts.3"), ("0", "gate.weight")]),
        (["weight"], [("", "weight")]),
    ],
)
def test_short_names_by_hand(names: list[str], short: list[tuple[str, str]]) -> None:
    assert short_names(names) == short


# A whole run


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

    assert data("loss", "training loss") == tuple(map(list, zip(*loss, strict=True)))
    dense = [record.curve.value[0] for record in RECORDS]
    assert data("loss", "held-out value") == (steps, dense)
    near_zero = [record.near_zero["initial_0.1"] for record in RECORDS]
    assert data("share of weights", "|w| ≤ 0.1 × first rms") == (steps, near_zero)
    dormant = [record.dormant.fraction for record in RECORDS]
    assert data("share of weights", "dormant") == (steps, dormant)
    reliance = [record.reliance for record in RECORDS]
    assert data("reliance", "harm of removing") == (steps, reliance)
    assert "A run" in words(figure)


def test_essential_sparsity_has_gaps_where_it_is_not_informative() -> None:
    figure = overview_figure(RECORDS)
    index = panel(figure, "essential sparsity")
    line = starting(lines(figure, index), "first crossing")
    informative = [record.essential_sparsity.informative for record in RECORDS]
    assert list(np.isfinite(line.get_ydata())) == informative
    assert 2 < sum(informative) < len(RECORDS)
    gap = starting(lines(figure, index), "not informative")
    first = RECORDS[informative.index(True)].step
    assert (gap.get_x(), gap.get_x() + gap.get_width()) == (0.0, first - 50.0)


def test_events_are_marked_and_told() -> None:
    events = fake_run.events()
    figure = overview_figure(RECORDS, events)
    for axes in figure.axes[:4]:
        marks = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert marks == [s for event in events for s in (event.onset_step, event.detected_step)]
    numbers = {
        axes.get_ylabel(): [t.get_text() for t in axes.texts] for axes in figure.axes if axes.texts
    }
    assert numbers == {"reliance": ["1"], "share of weights": ["2"]}
    told = words(figure)
    for number, event in enumerate(events, start=1):
        assert f"({number}) {event.describe()}" in told
    assert "dotted where they began by estimate" in told
    assert "zero-shot" in told


def test_the_interval_of_an_onset_and_a_fall_are_marked() -> None:
    rise = fake_run.events()[1]
    plain = replace(rise, onset_low=rise.onset_step, onset_high=rise.onset_step)
    assert "bar over" not in words(overview_figure(RECORDS, [plain]))
    figure = overview_figure(RECORDS, [fake_run.fallen(rise, 1900)])
    axes = figure.axes[0]
    spans = [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]
    assert (rise.onset_low, rise.onset_high) in [pytest.approx(span) for span in spans]
    assert 1875 in [line.get_xdata()[0] for line in axes.lines]
    assert "a bar over the interval of the beginning, dashed where half" in words(figure)


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
        ((), {"value", "share of weights", "essential sparsity", "reliance"}),
        (("curve", "essential_sparsity", "reliance"), {"share of weights"}),
        (("dormant",), {"value", "share of weights", "essential sparsity", "reliance"}),
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

    events = [event("near_zero/zero"), event("motion/dormant"), event("near_zero/rms_0.1")]
    axes = overview_figure(RECORDS, events).axes[1]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    assert len({text.xy[1] for text in axes.texts}) == 3


def test_no_records_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="`records` with at least one record, got none"):
        overview_figure([])


def test_figures_do_not_follow_the_users_style() -> None:
    plain, _ = encode_png(curve_figure(FULL))
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "text.usetex": True}):
        assert encode_png(curve_figure(FULL))[0] == plain
        assert mpl.rcParams["font.size"] == 30
    assert mpl.rcParams["font.size"] != 30
