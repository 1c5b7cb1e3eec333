"""False alarms are counted, and compared with what was asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
from detecting import calibration, jumps, quiet, slow
from detecting.calibration import Told


@pytest.fixture(autouse=True)
def _alarms_at_every_fiftieth_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for anything: 20 in 1000."""

    def ours_at(rate: float) -> Any:
        def make(min_effect: float) -> Any:
            looks: list[int] = []
            return lambda step, value, context: looks.append(step) or len(looks) % 50 == 0

        return make

    monkeypatch.setattr(calibration, "ours_at", ours_at)


def test_every_stable_family_is_counted() -> None:
    told = calibration.told(20.0, "made up", range(2))
    made = [
        *(jumps.make(f, seed) for f in jumps.STABLE for seed in range(2)),
        *(slow.make(f, seed) for f in slow.STABLE for seed in range(2)),
    ]
    assert told.num_snapshots == sum(len(s.values) for s in made)
    assert told.num_false == sum(len(s.values) // 50 for s in made)
    assert told.low <= told.told <= told.high
    assert told.is_within_factor_two


@pytest.mark.parametrize("kind", quiet.KINDS)
def test_every_series_of_a_kind_is_counted(kind: str) -> None:
    told = calibration.told(20.0, f"{kind}-like", range(3, 5))
    lengths = [len(quiet.quiet(kind, seed).values) for seed in (3, 4)]
    assert (told.where, told.asked) == (f"{kind}-like", 20.0)
    assert told.num_snapshots == sum(lengths)
    assert told.num_false == sum(length // 50 for length in lengths)


@pytest.mark.parametrize(
    ("told", "off_by", "within"),
    [(0.0, math.inf, False), (0.049, 0.1 / 0.049, False), (0.05, 2.0, True), (0.1, 1.0, True),
     (0.2, 2.0, True), (0.21, 2.1, False)],
)  # fmt: skip
def test_a_factor_of_two_means_nothing_of_few(told: float, off_by: float, within: bool) -> None:
    found = Told(0.1, "made up", told, 0.0, 1.0, 1, 50_000)
    assert (found.off_by, found.is_within_factor_two) == (pytest.approx(off_by), within)
    assert Told(0.1, "made up", told, 0.0, 1.0, 1, 49_999).is_within_factor_two is None
