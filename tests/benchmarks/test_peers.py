"""Each peer sees what it must and keeps quiet on noise, as far as it can."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from detecting.detectors import DETECTORS, OURS, FrontEnd, naive, ours
from detecting.series import Series

PEERS = {name: peer for name, peer in DETECTORS.items() if name != OURS}
RNG = np.random.default_rng(7)
LOOKS, ONSET = 160, 100
NOISE = 0.002 * RNG.standard_normal(LOOKS)
STEPS = 100 * np.arange(1, LOOKS + 1)
JUMP = Series(
    "jump", 0, STEPS, 0.05 + NOISE + 0.08 * (np.arange(LOOKS) >= ONSET), 1.0, ONSET, ONSET
)
NONE = Series("none", 0, STEPS, 0.05 + NOISE)
#: What looks at windows of a hundred values cannot see a jump within five.
BLIND = ("river ADWIN, as is", "river PageHinkley, as is", "river KSWIN, as is",
         "river KSWIN, behind our front end")  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PEERS if name not in BLIND])
def test_a_clear_jump_is_seen_in_time(name: str) -> None:
    alarms = PEERS[name].detect(JUMP)
    assert any(ONSET - 1 <= alarm <= ONSET + 5 for alarm in alarms)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_gaps_are_no_values_and_detectors_start_afresh(name: str) -> None:
    values = JUMP.values.copy()
    values[[3, 40, 41, 103]] = np.nan
    gappy = Series("gaps", 0, STEPS, values)
    dense = Series("dense", 0, STEPS[np.isfinite(values)], values[np.isfinite(values)])
    first = [int(gappy.steps[i]) for i in PEERS[name].detect(gappy)]
    assert first == [int(dense.steps[i]) for i in PEERS[name].detect(dense)]
    assert first == [int(gappy.steps[i]) for i in PEERS[name].detect(gappy)]


@pytest.mark.parametrize("name", [name for name in PEERS if "KSWIN" not in name])
def test_white_noise_is_no_rise(name: str) -> None:
    assert not list(PEERS[name].detect(NONE))


def test_the_naive_rule_by_hand() -> None:
    update = naive(0.01)
    values = [0.05, 0.04, 0.04, 0.04, 0.05, 0.06, 0.04, 0.06, 0.07, 0.08, 0.03, 0.06, 0.06]
    # from the fifth look on the floor is 0.04: 0.06 is 1.5 times it, the second in a row counts
    assert [i for i, x in enumerate(values) if update(i, x)] == [8, 12]
    small = naive(0.01)
    assert not any(small(i, x) for i, x in enumerate([0.001] * 9 + [0.01] * 9))


@pytest.mark.slow
def test_errors_of_the_front_end_are_standard_normal_on_a_noisy_line() -> None:
    rng = np.random.default_rng(1)
    front = FrontEnd(min_effect=0.01)
    values = 3.0 - 0.2 * np.arange(3000) + 0.5 * rng.standard_normal(3000)
    errors = [front.update(25 * i, x) for i, x in enumerate(values)]
    told = np.array([e for e in errors if e is not None])
    assert errors[:8] == [None] * 8
    assert len(told) == 2992
    assert abs(np.median(told)) < 0.1
    assert 0.9 < 1.4826 * np.median(np.abs(told)) < 1.25


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(ModuleNotFoundError, match=r"'river'.*--group bench"):
        PEERS["river ADWIN, as is"].detect(NONE)


def test_ours_is_fed_as_the_others_are() -> None:
    update = ours(0.01)
    found = [i for i, x in enumerate(JUMP.values) if update(100 * i, x, None)]
    assert len(found) == 1
    assert ONSET <= found[0] <= ONSET + 5
