"""Layers as columns: the same numbers, equal to a tuple, read when they are asked for."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from contracts import fake_run
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import LayerColumns, Layers, LayerShare

SHARES = fake_run.look(1000)[0].layers
NUMBERS = st.floats()


@st.composite
def shares(draw: st.DrawFn) -> tuple[LayerShare, ...]:
    """Some tensors with the same rules and as many levels."""
    rules = draw(st.lists(st.text(), unique=True, max_size=3))
    num_levels = draw(st.integers(min_value=0, max_value=3))
    one = st.builds(
        LayerShare,
        name=st.text(),
        num_weights=st.integers(min_value=0, max_value=2**60),
        rms=NUMBERS,
        near_zero=st.fixed_dictionaries(dict.fromkeys(rules, NUMBERS)),
        removed=st.lists(NUMBERS, min_size=num_levels, max_size=num_levels).map(tuple),
        dormant=NUMBERS,
    )
    return tuple(draw(st.lists(one, max_size=4)))


def told(layers: tuple[LayerShare, ...] | Layers) -> list[str]:
    """Every number of every tensor; reprs tell -0.0, NaN and int from float."""
    by_rule = [sorted(layer.near_zero.items()) for layer in layers]
    return [repr({**vars(x), "near_zero": near}) for x, near in zip(layers, by_rule, strict=True)]


@pytest.mark.slow
@given(shares())
def test_columns_hold_every_number(layers: tuple[LayerShare, ...]) -> None:
    assert told(Layers.of(layers)) == told(layers)
    assert told(pickle.loads(pickle.dumps(Layers.of(layers)))) == told(layers)
    assert len(Layers.of(layers)) == len(layers)


def test_they_are_equal_to_a_tuple_of_the_same() -> None:
    layers = Layers.of(SHARES)
    assert layers == SHARES
    assert (SHARES == layers) is True  # noqa: SIM300 the tuple is asked first
    assert layers == Layers.of(list(SHARES))
    assert layers != SHARES[:-1]
    assert layers != (replace(SHARES[0], rms=1.0), *SHARES[1:])
    assert (layers == 3, layers != None) == (False, True)  # noqa: E711
    assert (layers[2], layers[-1], layers[1:3]) == (SHARES[2], SHARES[-1], SHARES[1:3])
    assert (repr(layers), SHARES[3] in layers) == (repr(SHARES), True)
    assert Layers.of(layers) is layers
    with pytest.raises(IndexError):
        layers[len(SHARES)]


def test_unknown_numbers_of_equal_records_are_equal() -> None:
    unknown = tuple(replace(layer, dormant=math.nan) for layer in SHARES)
    assert Layers.of(unknown) == unknown
    assert Layers.of(unknown) == Layers.of(unknown)


def test_a_record_with_columns_is_the_same_record() -> None:
    record = fake_run.look(1000)[0]
    assert replace(record, layers=Layers.of(record.layers)) == record


def test_columns_by_hand() -> None:
    columns = LayerColumns.of(SHARES)
    assert columns.removed.shape == (len(fake_run.LEVELS), 12)
    assert columns.removed[3, 5] == SHARES[5].removed[3]
    assert columns.near_zero["zero"].tolist() == [0.0] * 12
    assert columns.num_weights.dtype == np.int64


def test_they_are_read_once_and_not_before() -> None:
    calls = []

    def read() -> LayerColumns:
        calls.append(1)
        return LayerColumns.of(SHARES)

    layers = Layers(read)
    assert calls == []
    assert (len(layers), layers[0], calls) == (12, SHARES[0], [1])
    assert bool(layers)


def test_what_reading_raises_is_raised_each_time() -> None:
    def read() -> LayerColumns:
        raise StateError("Expected layers")

    layers = Layers(read)
    for _ in range(2):
        with pytest.raises(StateError, match="Expected layers"):
            list(layers)


@pytest.mark.parametrize("change", [{"near_zero": {"zero": 0.0}}, {"removed": (0.5,)}])
def test_tensors_of_which_other_things_are_known_are_refused(change: dict) -> None:
    odd = replace(SHARES[1], **change)
    with pytest.raises(ConfigurationError, match=rf"Expected `layers` .* for '{odd.name}'"):
        Layers.of((SHARES[0], odd))
