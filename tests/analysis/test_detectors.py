"""What all detectors have in common: checks of what they are told, and a state to go on from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.detect import (
    AbruptChange,
    Detector,
    DormantRise,
    MeasuredChange,
    ValueChange,
)
from sparsitywatch.errors import ConfigurationError, StateError

DETECTORS = (AbruptChange, DormantRise, MeasuredChange, ValueChange)
BAD: dict[type[Detector], dict[str, tuple[object, ...]]] = {
    AbruptChange: {
        "min_effect": (0, -0.01, math.nan, math.inf, "1%", None, True),
        "ratio": (1, 0.5, math.nan, math.inf, "2"),
        "direction": ("upward", "", None, np.array(["up", "down"])),
        "family": (0, -1, 1.5, "4", True),
    },
    DormantRise: {
        "min_effect": (0, 1, -0.1, math.nan, "3%", None, True),
        "ratio": (0.9, math.nan, math.inf, "2"),
    },
    MeasuredChange: {
        "min_effect": (-0.1, math.nan), "ratio": (0.5,),
        "direction": ("upward", ["up"], np.array(["up", "down"])),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (make, name, x)
        for make, some in BAD.items()
        for name, values in some.items()
        for x in values
    ],
)
def test_bad_arguments_are_named(make: Any, argument: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected `{argument}`"):
        make(**{argument: value})


@pytest.mark.parametrize("make", DETECTORS)
def test_what_it_is_told_is_checked(make: Any) -> None:
    detector = make()
    detector.update(100, 0.1)
    for step in (100, 50):
        with pytest.raises(ConfigurationError, match="Expected `step` to be after 100, the last"):
            detector.update(step, 0.1)
    with pytest.raises(ConfigurationError, match="Expected `value` to be a number, NaN for a gap"):
        detector.update(200, "0.1")
    with pytest.raises(ConfigurationError, match="Expected `context` to be numbers by name"):
        detector.update(200, 0.1, [0.1])


def stored(detector: Detector) -> Any:
    return json.loads(json.dumps(detector.state_dict(), allow_nan=False))


values = st.integers(0, 200).map(lambda x: x / 200) | st.just(math.nan)


@pytest.mark.slow
@pytest.mark.parametrize("make", DETECTORS)
@settings(max_examples=40, deadline=None)
@given(st.lists(values, min_size=12, max_size=60), st.integers(0, 59))
def test_taken_up_at_any_snapshot_it_goes_on_as_if_nothing_had_been(
    make: Any, series: list[float], cut: int
) -> None:
    whole, part = make(), make()
    for i, x in enumerate(series):
        context = {"decay_clock": 0.01 * i, "dormant_by_chance": 0.01, "low": x - 0.05,
                   "high": x + 0.05}  # fmt: skip
        if i == cut:
            state = stored(part)
            part = make()
            part.load_state_dict(state)
        seen, other = (detector.update(i, x, context) for detector in (whole, part))
        assert repr(seen) == repr(other)
        assert whole.is_suspicious == part.is_suspicious
        assert stored(whole) == stored(part)


def without_one(state: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state without one of its keys, or one of those of its parts."""
    for key, part in state.items():
        yield key, {name: x for name, x in state.items() if name != key}
        if isinstance(part, Mapping):
            yield from ((name, {**state, key: less}) for name, less in without_one(part))


@pytest.mark.parametrize("make", DETECTORS)
def test_a_state_that_lacks_a_key_is_refused(make: Any) -> None:
    for key, state in without_one(make().state_dict()):
        with pytest.raises(StateError, match=f"Expected a field '{key}'"):
            make().load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "parts", "message"),
    [
        (AbruptChange, {"history": {"width": 4, "rows": [[1, 0.1, None]]}}, "rows of 4 numbers"),
        (AbruptChange, {"jumps": {"beliefs": [[1], []], "scores": [], "surprise": 0}},
         r"an array at AbruptMemory\.jumps\.beliefs"),
        (MeasuredChange, {"history": {"width": 6, "rows": [[1, 0.5]]}}, "rows of 6 numbers"),
        (AbruptChange, {"history": {"width": 4, "rows": "none"}}, "rows of 4 numbers"),
        (AbruptChange, {"history": {"width": 4, "rows": [1, 2, 3, 4]}}, "rows of 4 numbers"),
    ],
)  # fmt: skip
def test_a_state_whose_parts_do_not_go_together_is_refused(
    make: Any, parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(StateError, match=message):
        make().load_state_dict({**make().state_dict(), **parts})


def test_a_state_that_was_written_before_is_read_number_by_number() -> None:
    rows = [[25, 0.30000000000000004, None, 0], [50, 0.1, 1e-300, 1], [75, 0.2, "Infinity", 2]]
    detector = AbruptChange()
    state = {**stored(detector), "history": {"width": 4, "rows": rows}}
    detector.load_state_dict(state)
    assert stored(detector)["history"]["rows"] == rows
    steps, values, rates, places = detector.memory.history.columns().tolist()
    assert (steps, values, places) == ([25, 50, 75], [0.30000000000000004, 0.1, 0.2], [0, 1, 2])
    assert math.isnan(rates[0])
    assert rates[1:] == [1e-300, math.inf]


@pytest.mark.slow
@pytest.mark.parametrize("make", DETECTORS)
def test_the_state_is_a_copy_and_bounded(make: Any) -> None:
    detector = make()
    for i, x in enumerate(0.07 + 0.001 * np.random.default_rng(0).standard_normal(1000)):
        detector.update(25 * i, float(x))
    state = detector.state_dict()
    size = len(json.dumps(state))
    detector.update(10**6, 0.07)
    assert len(json.dumps(state)) == size < 25_000
