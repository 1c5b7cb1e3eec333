"""What the curve of one record shows: read off the figure."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from contracts import fake_run
from plots.reading import lines, starting, words

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots import curve_figure, encode_png
from sparsitywatch.records import Record, SparsityCurve

FULL = fake_run.look(1500)[0]
EARLY = fake_run.look(0)[0]


def with_curve(record: Record, **columns: object) -> Record:
    return replace(record, curve=replace(record.curve, **columns))


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
    with pytest.raises(ConfigurationError, match=r"`record` with a curve.* of step 1500"):
        curve_figure(fake_run.without(FULL, "curve"))


def test_figures_do_not_follow_the_users_style() -> None:
    plain, _ = encode_png(curve_figure(FULL))
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "text.usetex": True}):
        assert encode_png(curve_figure(FULL))[0] == plain
        assert mpl.rcParams["font.size"] == 30
    assert mpl.rcParams["font.size"] != 30


def test_points_that_saw_a_part_of_the_examples_are_drawn_hollow() -> None:
    curve = SparsityCurve(
        [0.0, 0.5, 1.0], [2.0, 2.01, 4.0], [0.0, 0.01, 0.1], higher_is_better=False,
        num_examples=64, num_seen=[8, 64, 16],
    )  # fmt: skip
    axes = curve_figure(replace(FULL, curve=curve)).axes[0]
    (hollow,) = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert hollow.get_xdata().tolist() == [0.0, 1.0]
    assert hollow.get_label() == "estimated from 8 examples or more"
