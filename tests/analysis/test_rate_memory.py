"""A series that follows a rate that comes back: what it did before is what it may do again."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from sparsitywatch.analysis.detect.detector import Array
from sparsitywatch.detectors import AbruptChange

NUM, EVERY = 160, 100


def growing(period: int) -> Array:
    """Cosine restarts, each half as long again as the one before."""
    rates: list[float] = []
    while len(rates) < NUM:
        rates += [0.5 * (1.0 + math.cos(math.pi * i / period)) for i in range(period)]
        period = int(1.5 * period)
    return np.array(rates[:NUM])


def schedules(period: int) -> dict[str, Array]:
    part = np.arange(NUM) % period / period
    return {
        "cosine": 0.5 * (1.0 + np.cos(np.pi * part)),
        "triangle": 1.0 - np.abs(2.0 * part - 1.0),
        "step": np.where(part < 0.5, 1.0, 0.1),
        "saw": 1.0 - part,
        "growing": growing(period),
    }


def remembered(rates: Array, memory: float) -> Array:
    """As weights with an exponential memory have seen the rate."""
    found = rates.copy()
    for i in range(1, len(rates)) if memory else ():
        found[i] = found[i - 1] + (rates[i] - found[i - 1]) * -math.expm1(-1.0 / memory)
    return found


def alarms(values: Array, rates: Array) -> list[tuple[int, str]]:
    """Snapshots at which it is alarmed, and which way."""
    detector, found = AbruptChange(family=4), []
    clock = np.cumsum(rates) * EVERY
    for i, (value, rate) in enumerate(zip(values, rates, strict=True)):
        known = {"lr": float(rate), "lr_clock": float(clock[i])}
        event = detector.update(EVERY * (i + 1), float(value), known)
        if event is not None:
            found.append((i, event.direction))
    return found


def following(name: str, period: int, memory: float, size: float) -> tuple[Array, Array]:
    """A series in proportion to its answer, with a hundredth of noise, and the rates."""
    rates = schedules(period)[name]
    noise = np.exp(0.01 * np.random.default_rng(period).normal(size=NUM))
    return 0.08 * (1.0 + size * remembered(rates, memory)) * noise, 1e-3 * rates


CASES = list(itertools.product(schedules(16), (16, 24, 40), (0, 2, 6), (-0.6, 0.5, 1.5)))


def _is_quiet(name: str, period: int, memory: float, size: float) -> None:
    found = alarms(*following(name, period, memory, size))
    returned = period + period // 2 + 8  # once, and time to see it
    assert not [alarm for alarm in found if alarm[0] > returned], found


@pytest.mark.part(2)
@pytest.mark.parametrize("case", CASES[::9], ids=str)
def test_what_a_restart_did_once_it_may_do_again(case: tuple[str, int, int, float]) -> None:
    _is_quiet(*case)


@pytest.mark.whole
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_restart_is_told_twice(case: tuple[str, int, int, float]) -> None:
    _is_quiet(*case)


def test_a_restart_that_was_not_seen_before_is_told() -> None:
    assert alarms(*following("step", 40, 0, 0.5))[0] == (21, "down")


@pytest.mark.parametrize("name", schedules(24))
def test_what_the_rate_never_did_is_told_all_the_same(name: str) -> None:
    values, rates = following(name, 24, 2, 0.5)
    values[100:] += 0.06
    assert [way for at, way in alarms(values, rates) if 100 <= at <= 110] == ["up"]


def test_without_a_rate_every_return_is_told() -> None:
    values, _ = following("step", 40, 0, 0.5)
    assert len(alarms(values, np.full(NUM, 1e-3))) == 7


def test_what_was_negative_has_no_logarithm() -> None:
    """A growth in what is positive by now asks the past in its values alone."""
    rates = schedules(40)["step"]
    values = np.where(np.arange(NUM) < 60, -0.1, 0.1) + 0.05 * rates
    values[130:] += np.linspace(0.05, 0.5, 30)
    noise = 1e-3 * np.random.default_rng(0).normal(size=NUM)
    found = alarms(values + noise, 1e-3 * rates)
    assert any(at >= 130 for at, _ in found)


def test_the_past_is_part_of_the_state_and_bounded() -> None:
    values, rates = following("step", 16, 0, 1.5)
    one, sizes = AbruptChange(), []
    for i in range(5 * NUM):
        if i == NUM:
            two = AbruptChange()
            two.load_state_dict(json.loads(json.dumps(one.state_dict())))
        known = {"lr": float(rates[i % NUM])}
        told = one.update(i, float(values[i % NUM]), known)
        if NUM <= i < 2 * NUM:
            again = two.update(i, float(values[i % NUM]), known)
            assert (told is None) == (again is None)
        sizes.append(len(one.memory.past.rows))
    assert 0 < max(sizes) <= 192
