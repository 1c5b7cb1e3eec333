"""Where the removed weights come from, read off the figure."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from contracts import fake_run

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots import encode_png, heatmap_figure
from sparsitywatch.plots.curves import short_names

FULL = fake_run.look(1500)[0]


def test_a_record_without_a_curve_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"`record` with a curve.* of step 1500"):
        heatmap_figure(fake_run.without(FULL, "curve"))


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
