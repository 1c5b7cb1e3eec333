"""The layers that account for a change, by counting."""

from __future__ import annotations

import dataclasses
import math

import pytest

from sparsitywatch.analysis.events import accountable_layers
from sparsitywatch.records import Cost, LayerShare, Provenance, Record, ScopeSummary

SIZES = {"a": 100, "b": 1000, "c": 10, "d": 100}


def record(**near_zero: float) -> Record:
    layers = tuple(
        LayerShare(name=n, num_weights=SIZES[n], rms=1.0, near_zero={"rms_0.1": x})
        for n, x in near_zero.items()
    )
    return Record(
        step=1,
        wall_time=0.0,
        scope=ScopeSummary(num_tensors=4, num_weights=1210),
        num_nan=0,
        num_inf=0,
        num_zero=0,
        near_zero={},
        layers=layers,
        cost=Cost(stall_s=0.0, spectrum_s=0.0, evaluation_s=0.0, num_forwards=0),
        provenance=Provenance(
            sparsitywatch="",
            torch="",
            scope_hash="",
            proxy_hash="",
            dtypes=(),
            tolerance=0.01,
            tolerance_mode="relative",
            pattern="global",
        ),
    )


BEFORE = record(a=0.1, b=0.1, c=0.1, d=0.1)


def test_weights_count_not_fractions() -> None:
    # +90 weights in a, +150 in b, +9 in c, -5 in d
    after = record(a=1.0, b=0.25, c=1.0, d=0.05)
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1") == ("b",)
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1", share=0.9) == ("b", "a")
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1", share=1.0) == ("b", "a", "c")


def test_a_fall_is_explained_by_what_fell() -> None:
    after = record(a=0.0, b=0.0, c=0.9, d=0.1)
    assert accountable_layers(BEFORE, after, "near_zero/rms_0.1") == ("b",)


@pytest.mark.parametrize("series", ["essential_sparsity/value", "motion/dormant"])
def test_other_series_have_no_layers(series: str) -> None:
    assert accountable_layers(BEFORE, record(a=1.0, b=1.0, c=1.0, d=1.0), series) == ()


def test_dormant_weights_have_layers_where_they_are_known() -> None:
    def dormant(**fractions: float) -> Record:
        bare = record(a=0.1, b=0.1, c=0.1)
        layers = (dataclasses.replace(x, dormant=fractions[x.name]) for x in bare.layers)
        return dataclasses.replace(bare, layers=tuple(layers))

    before, after = dormant(a=0.0, b=0.01, c=0.0), dormant(a=0.5, b=0.02, c=math.nan)
    assert accountable_layers(before, after, "motion/dormant") == ("a",)
    assert accountable_layers(before, after, "motion/dormant", share=1.0) == ("a", "b")


def test_records_without_layers_explain_nothing() -> None:
    bare = dataclasses.replace(BEFORE, layers=())
    assert accountable_layers(bare, BEFORE, "near_zero/rms_0.1") == ()
    assert accountable_layers(BEFORE, bare, "near_zero/rms_0.1") == ()
