"""What the page is given: every number of it is the number in the log, read here as raw JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts import fake_run
from hypothesis import given
from hypothesis import strategies as st
from page.conftest import EVIL, SCRIPT, Make, Page

from sparsitywatch.analysis.estimate import essential_sparsity
from sparsitywatch.analysis.run import Run
from sparsitywatch.page import data as page_data_module
from sparsitywatch.page.data import MAX_SNAPSHOTS, chosen, cumulative, details_of, page_data
from sparsitywatch.records import LAYER_NUMBERS, Dormant, Record, SparsityCurve
from sparsitywatch.series import OF_TENSORS
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

SERIES = (
    *(f"near_zero/{rule}" for rule in ("initial_0.1", "rms_0.1", "abs_0.001", "zero")),
    *(f"motion/{name}" for name in ("dormant", "dormant_by_chance", "update_to_weight")),
    *(f"motion/{name}" for name in ("sign_flips", "mask_overlap_0.5", "mask_overlap_0.9")),
    *(f"essential_sparsity/{part}" for part in ("value", "low", "high")),
    "motion/decay_clock", "motion/lr", "value/reliance", "value/dense", "value/all_removed",
)  # fmt: skip


@pytest.fixture(params=["page", "troubled_page"])
def either(request) -> Page:
    return request.getfixturevalue(request.param)


def rounded(x: float, digits: int = 7) -> float | None:
    return None if math.isnan(x) else float(f"{x:.{digits}g}")


# ------------------------------------------------------------------ series, curves, events


@pytest.mark.slow
@pytest.mark.parametrize("name", SERIES)
def test_a_series_is_the_log_in_seven_digits(name: str, either: Page) -> None:
    assert either.data["steps"] == either.steps
    assert either.data["series"][name] == [rounded(x) for x in either.series(name)]
    about = either.data["about"][name]
    assert about["label"]
    assert about["sentence"]


@pytest.mark.slow
def test_curves_are_in_units_of_what_is_tolerated(either: Page) -> None:
    by_step = {record["step"]: record for record in either.records}
    expected = {r["step"] for r in either.records if r["curve"] and r["curve"]["value"][0]}
    assert {curve["step"] for curve in either.data["curves"]} == expected
    for curve in either.data["curves"]:
        raw = by_step[curve["step"]]["curve"]
        assert curve["sparsity"] == [rounded(x, 4) for x in raw["sparsity"]]
        dense = raw["value"][0]
        for harm, value in zip(curve["harm"], raw["value"], strict=True):
            if isinstance(value, float):
                assert harm == pytest.approx((value - dense) / (0.01 * dense), rel=1e-3, abs=1e-9)
            else:
                assert harm is None


def test_a_score_hurts_where_it_falls_and_its_tolerance_may_be_absolute(make_page: Make) -> None:
    looks = []
    for record, detail in fake_run.looks(range(0, 2001, 1000)):
        value = [3.0 - v / 2 for v in record.curve.value]
        curve = replace(record.curve, higher_is_better=True, value=value)
        provenance = replace(record.provenance, tolerance_mode="absolute", tolerance=0.02)
        looks.append((replace(record, curve=curve, provenance=provenance), detail))
    page = make_page(looks)
    for curve, record in zip(page.data["curves"], page.records, strict=True):
        value = record["curve"]["value"]
        expected = [(value[0] - x) / 0.02 for x in value]
        np.testing.assert_allclose(curve["harm"], expected, rtol=1e-3, atol=1e-9)
    tolerance = {f[0]: f[1] for f in page.data["facts"]["provenance"][0]["facts"]}
    assert tolerance["tolerance"] == "0.02 in units of the value"


def test_only_levels_that_all_examples_have_seen_are_points_of_a_curve(make_page: Make) -> None:
    """The loss of a few examples may lie anywhere, also far below that of the dense model."""
    (look,) = fake_run.looks([2000])
    curve = look[0].curve
    number = curve.num_examples or 8
    num_seen = [number if i % 2 else 1 for i in range(len(curve.sparsity))]
    odd = replace(curve, num_examples=number, num_seen=num_seen)
    (drawn,) = make_page([(replace(look[0], curve=odd), look[1])]).data["curves"]
    expected = [0.0, *curve.sparsity[1::2]]  # that of the dense model is harm 0 in any case
    assert drawn["sparsity"] == pytest.approx(expected, rel=1e-3)
    assert len(drawn["harm"]) == len(drawn["sparsity"]) < len(curve.sparsity)


def test_events_say_what_when_where_why_and_what_to_do(page: Page) -> None:
    first, second = page.data["events"]
    assert (first["number"], second["number"]) == (1, 2)
    assert second["title"] == (
        "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise from 6.3 % to 8.5 % "
        "(22 times the noise) between steps 1,000 and 1,100"
    )
    assert second["when"] == "began between steps 1,000 and 1,100, seen at step 1,125"
    assert second["where"] == page.events[1]["layers"]
    assert second["why"] == [
        "the shape of the weights' distribution changed",
        "weight decay explains it",
    ]
    assert second["do"].startswith("Compare the checkpoints around steps 1,050 and 1,125")
    assert (second["onset"], second["low"], second["high"]) == (1050, 1000, 1100)
    assert (second["seen"], second["reverted"]) == (1125, -1)


def test_tiles_say_what_is_and_what_it_was_when_it_began(page: Page) -> None:
    tiles = {tile["series"]: tile for tile in page.data["tiles"]}
    values = page.series("near_zero/initial_0.1")
    tile = tiles["near_zero/initial_0.1"]
    assert float(tile["value"].removesuffix(" %")) == pytest.approx(100 * values[-1], rel=5e-3)
    was, _, step = tile["was"].partition(" % at step ")
    assert int(step.replace(",", "")) == 1050
    assert float(was) == pytest.approx(100 * page.events[1]["baseline"], rel=5e-3)
    assert list(tiles) == [
        "near_zero/initial_0.1", "motion/dormant", "forecast/near_zero_in_1",
        "essential_sparsity/value", "value/dense", "value/reliance",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stderr", "value"),
    [(0.03, r"at least \d+ %, at most \d+ %"), (0.2, r"at most \d+ %"), (30.0, "not known")],
)
def test_where_examples_are_too_few_the_tile_has_the_bound_and_how_many_would_tell(
    stderr: float, value: str
) -> None:
    levels = np.linspace(0.0, 1.0, 11)
    curve = SparsityCurve(
        levels, 2.0 + levels**4, stderr * (levels > 0), higher_is_better=False, num_examples=50
    )
    estimate = essential_sparsity(curve)
    record = replace(fake_run.look(2000)[0], curve=curve, essential_sparsity=estimate)
    tiles = {tile["series"]: tile for tile in page_data(Run([record]))["tiles"]}
    tile = tiles["essential_sparsity/value"]
    assert re.fullmatch(value, tile["value"])
    assert tile["why"] == f"about {estimate.examples_needed:,} examples would tell"


@pytest.mark.parametrize(("num_known", "value"), [(0, "unknown"), (2, "5 %")])
def test_why_dormant_weights_are_not_known_stands_at_their_place(
    num_known: int, value: str
) -> None:
    records = [fake_run.look(step)[0] for step in (25, 50, 75)]
    why = Dormant(fraction=math.nan, num_sampled=9, since_step=25, reason="rounding")
    known = Dormant(fraction=0.05, num_sampled=9, since_step=0)
    found = [known] * num_known + [why] * (3 - num_known)
    pairs = zip(records, found, strict=True)
    data = page_data(Run([replace(record, dormant=one) for record, one in pairs]))
    (tile,) = [one for one in data["tiles"] if one["label"] == "dormant"]
    assert (tile["value"], tile["why"]) == (value, "not known now: rounding")


def test_what_failed_and_what_changed_is_said(troubled_page: Page) -> None:
    data = troubled_page.data
    assert [data["steps"][t] for t in data["failed"]] == [250, 300, 1000]
    assert data["facts"]["failed"] == [[s, f"{SCRIPT} the value is NaN"] for s in (250, 300, 1000)]
    parts = data["facts"]["provenance"]
    assert [(p["first"], p["last"]) for p in parts] == [(0, 1750), (1800, 2000)]
    assert EVIL in data["tensors"]
    assert any("NaN" in text for _, text in data["facts"]["notes"])


def test_a_replay_says_so_and_what_was_estimated() -> None:
    records = [
        replace(record, dormant=replace(record.dormant, estimated=True))
        for record, _ in fake_run.looks(range(0, 2001, 1000))
    ]
    info = replace(fake_run.run_info(), replayed_from=("s3://bucket/<b>run</b>", "runs/x"))
    data = page_data(Run(records, info=info))
    assert data["taken"].endswith("They are of saved checkpoints, read later.")
    assert data["watch"] == ["replayed from saved checkpoints", "last snapshot at step 2,000"]
    assert data["facts"]["replayed_from"] == ["s3://bucket/<b>run</b>", "runs/x"]
    assert [name for name, *_ in data["facts"]["costs"]] == ["reading weights", "evaluating"]
    told = [fact[:2] for fact in data["facts"]["provenance"][0]["facts"]]
    assert ("dormant weights", "estimated") in told


def test_costs_add_up(troubled_page: Page) -> None:
    costs = {name: value for name, value, _ in troubled_page.data["facts"]["costs"]}
    stalls = [record["cost"]["stall_s"] for record in troubled_page.records]
    assert float(costs["held up the training"].split()[0]) == pytest.approx(sum(stalls), rel=5e-3)
    assert float(costs["one snapshot"].split()[0]) == pytest.approx(np.median(stalls), rel=5e-3)
    left_out = sum(record["cost"]["num_left_out"] for record in troubled_page.records)
    assert costs["snapshots left out"] == f"{left_out:,}"


@pytest.mark.slow
def test_a_run_without_a_proxy_has_nothing_of_the_model(weights_page: Page) -> None:
    data = weights_page.data
    assert data["curves"] == []
    assert not [name for name in data["series"] if name.startswith(("value/", "essential"))]
    assert [tile["label"] for tile in data["tiles"]] == ["near zero", "dormant"]
    kinds = {"near_zero", "dormant", "gradient", "gradient_zeros", "update_to_weight"}
    assert set(weights_page.details["maps"]["rows"]) == kinds
    assert weights_page.details["maps"]["level"] is None


def test_a_run_without_a_snapshot_has_a_page(make_page: Make) -> None:
    page = make_page([])
    assert page.data["steps"] == []
    assert page.data["taken"] == "No snapshot has been taken yet."
    maps = {"columns": [], "level": None, "labels": OF_TENSORS, "rows": {}}
    assert page.details == {"maps": maps, "magnitudes": None, "experts": None}


# ------------------------------------------------------------------ by tensor


def test_each_row_of_the_map_is_a_number_of_a_tensor() -> None:
    assert {*OF_TENSORS} <= {*LAYER_NUMBERS, "alone", "dead", "near_zero", "removed"}


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("near_zero", lambda r, layer: layer["near_zero"].get("initial_0.1")),
        ("dormant", lambda r, layer: layer["dormant"]),
        ("removed", lambda r, layer: r["curve"]
         and layer["removed"][r["curve"]["level"].index(0.5)]),
    ],
)  # fmt: skip
def test_a_map_is_the_log_in_thousandths(kind: str, cell, either: Page) -> None:
    maps = either.details["maps"]
    assert maps["columns"] == list(range(len(either.records)))
    assert maps["level"] == 0.5
    names = [layer["name"] for layer in either.records[0]["layers"]]
    expected = np.full((len(names), len(either.records)), -1)
    for t, record in enumerate(either.records):
        for layer in record["layers"]:
            value = cell(record, layer)
            if value is not None:
                expected[names.index(layer["name"]), t] = round(1000 * value)
    np.testing.assert_array_equal(maps["rows"][kind], expected)


@pytest.mark.slow
def test_magnitudes_are_the_weights_counted_one_by_one(page: Page) -> None:
    magnitudes = page.details["magnitudes"]
    ends = np.array(magnitudes["ends"])
    np.testing.assert_allclose(np.diff(ends), 0.25)
    looks = [fake_run.look(step) for step in page.steps]
    for column, t in enumerate(magnitudes["columns"]):
        record, detail = looks[t]
        spectrum = MagnitudeSpectrum.from_arrays(detail.spectrum)
        layers = spectrum.layers()
        for i, layer in enumerate(record.layers):
            # a limit inside a bin leaves that bin out: 0.4 % wide, so far less of the weights
            got = magnitudes["below"][i, column] / 1000
            expected = [layers[layer.name].sparsity_at(10.0**end) for end in ends]
            np.testing.assert_allclose(got, expected, atol=0.0045)
        exact = np.array([spectrum.sparsity_at(10.0**end) for end in ends])
        np.testing.assert_allclose(magnitudes["all"][column] / 1e6, exact, atol=0.004)


DTYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("name", DTYPES)
def test_shares_below_a_limit_are_those_of_the_spectrum(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(40, 50, generator=generator).mul(0.1).to(getattr(torch, name)),
        "b": torch.zeros(8, 8, dtype=getattr(torch, name)),
    }
    weights["a"][0] = 0.0
    stored = MagnitudeSpectrum.of(weights).to_arrays()
    limits = np.array([1e-6, 2.0**-7, 2.0**-4, 2.0**-3, 0.5, 1e3])  # powers of two end bins
    shares, num_weights = cumulative(stored, limits)
    for row, values in zip(shares, weights.values(), strict=True):
        magnitudes = values.double().abs().numpy()
        np.testing.assert_array_equal(row, [(magnitudes <= limit).mean() for limit in limits])
    np.testing.assert_array_equal(num_weights, [2000, 64])


def test_weights_that_are_not_finite_are_in_no_share() -> None:
    weights = {
        "a": torch.tensor([[0.5, math.nan, math.inf, 2.0]]),
        "b": torch.full((2, 2), math.nan),
    }
    shares, num_weights = cumulative(MagnitudeSpectrum.of(weights).to_arrays(), np.array([1.0]))
    assert num_weights.tolist() == [2, 0]
    assert shares[0, 0] == 0.5
    assert math.isnan(shares[1, 0])


# ------------------------------------------------------------------ large ones


@pytest.mark.slow
@given(
    number=st.integers(1, 400),
    most=st.integers(2, 50),
    seen=st.lists(st.integers(0, 399), max_size=3),
)
def test_chosen_snapshots_have_the_ends_and_the_events(
    number: int, most: int, seen: list[int]
) -> None:
    record, _ = fake_run.look(0)
    records = [replace(record, step=10 * i) for i in range(number)]
    told = [replace(fake_run.events()[0], id=f"e{i}", onset_step=10 * i, onset_low=-1,
                    onset_high=-1, detected_step=10 * i) for i in seen if i < number]  # fmt: skip
    kept = chosen(Run(records, told), most)
    assert kept == sorted(set(kept))
    assert {0, number - 1} <= set(kept)
    assert {i for i in seen if i < number} <= set(kept)
    assert len(kept) <= max(most, 2) + len(told)
    if number > most:
        assert max(np.diff(kept), default=1) <= math.ceil((number - 1) / (most - 1))


def test_a_long_run_is_thinned_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr(page_data_module, "MAX_SNAPSHOTS", 50)
    record, _ = fake_run.look(0)
    records = [replace(record, step=i) for i in range(501)]
    events = fake_run.events(500)
    data = page_data(Run(records, events))
    assert 50 <= len(data["steps"]) <= 56
    assert data["num_snapshots"] == 501
    assert {0, 500, events[1].detected_step} <= set(data["steps"])
    assert len(data["series"]["motion/lr"]) == len(data["steps"])
    assert MAX_SNAPSHOTS == 2000


def test_a_map_of_what_is_essential_of_each_tensor_alone() -> None:
    record, _ = fake_run.look(1000)
    estimate, first = record.essential_sparsity, record.layers[0].name
    alone = {layer.name: replace(estimate, value=0.625) for layer in record.layers}
    alone[first] = replace(estimate, value=math.nan, informative=False)
    rows = details_of(Run([replace(record, alone=alone)]), for_file=True)["maps"]["rows"]
    assert next(iter(rows)) == "alone"  # is asked for, so it is shown first
    assert rows["alone"] == [[-1], *[[625]] * 11]


def test_the_load_of_experts_by_layer_and_snapshot() -> None:
    def record(step: int, **load: tuple[int, ...]) -> Record:
        one = fake_run.look(step)[0]
        assert one.xray is not None
        return replace(one, xray=replace(one.xray, expert_load=load))

    without = replace(fake_run.look(20)[0], xray=None)
    records = [record(10, a=(3, 0), b=(1, 2, 3)), without, record(30, b=(4, 5, 6))]
    assert details_of(Run(records), for_file=True)["experts"] == {
        "columns": [0, 2],
        "names": ["a", "b"],
        "loads": [[[3, 0], []], [[1, 2, 3], [4, 5, 6]]],
    }
    many = [record(10 * i, a=(1,) * 3000) for i in range(100)]
    assert len(details_of(Run(many), for_file=False)["experts"]["columns"]) == 120_000 // 3000
    assert details_of(Run([without]), for_file=True)["experts"] is None


@pytest.mark.slow
def test_many_tensors_have_fewer_columns_and_every_row() -> None:
    looks = [fake_run.look(step, num_tensors=300) for step in (0, 1000, 2000)]
    records = [replace(looks[i % 3][0], step=10 * i) for i in range(150)]
    details = details_of(Run(records), for_file=True)
    assert len(details["maps"]["rows"]["near_zero"]) == 300
    assert 100 < len(details["maps"]["columns"]) < 150
    assert len(details_of(Run(records), for_file=False)["maps"]["columns"]) == 150


def test_it_is_strict_json(either: Page) -> None:
    json.dumps(either.data, allow_nan=False)


def test_first_rms_is_left_out_where_there_was_no_first() -> None:
    records = [fake_run.look(step)[0] for step in (0, 1000)]
    assert page_data(Run(records))["rule"] == "initial_0.1"
    alone = fake_run.look(0)[0]  # its own first look: both rules say the same
    alone = replace(alone, near_zero={**alone.near_zero, "initial_0.1": alone.near_zero["rms_0.1"]})
    data = page_data(Run([alone]))
    assert data["rule"] == "rms_0.1"
    assert data["tiles"][0]["series"] == "near_zero/rms_0.1"
    only = replace(alone, near_zero={"initial_0.1": 0.1})
    assert page_data(Run([only]))["rule"] == "initial_0.1"


def test_why_there_is_no_essential_sparsity(troubled_page: Page) -> None:
    gaps = troubled_page.data["gaps"]
    assert gaps[0].startswith("the model does not rely on these weights yet")
    assert gaps[5].startswith("the snapshot failed: ")
    assert gaps[5].endswith("the value is NaN")
    assert gaps[40] == ""
