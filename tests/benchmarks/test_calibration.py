"""False alarms are counted on every kind of series in which nothing happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detecting import calibration, quiet
from detecting.work import Job, Plan, Results


@pytest.mark.parametrize("kind", quiet.KINDS)
def test_every_series_of_a_kind_is_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def every_fiftieth(min_effect: float) -> Any:
        looks: list[int] = []
        return lambda step, value, context: looks.append(step) or len(looks) % 50 == 0

    monkeypatch.setattr(calibration, "ours", every_fiftieth)
    found = calibration.told(kind, range(3, 5))
    lengths = [len(quiet.quiet(kind, seed).values) for seed in (3, 4)]
    assert sum(o.num_quiet for o in found.outcomes) == sum(lengths)
    assert sum(o.num_false for o in found.outcomes) == sum(length // 50 for length in lengths)
    results = Results({Job(calibration.told, (kind, range(3, 5))): found})
    (goal,) = calibration.goals(results)
    assert (goal.reach, goal.measured) == (0.2, found.figures["false_per_1000"])
    assert f"{sum(n // 50 for n in lengths)} in {sum(lengths)}" in "".join(
        calibration.lines(results)
    )


@pytest.mark.parametrize(("kind", "rho"), [("ar_5", 0.5), ("ar_9", 0.9)])
def test_noise_is_as_correlated_as_its_kind_says(kind: str, rho: float) -> None:
    pairs = []
    for seed in range(60):
        values = quiet.quiet(kind, seed).values
        values = (values - values.mean()) / values.std()
        pairs.append(values[1:] @ values[:-1] / len(values))
    assert np.mean(pairs) == pytest.approx(rho, abs=0.07)


def test_there_is_a_job_for_each_kind() -> None:
    jobs = calibration.jobs(Plan(1, True, True))
    assert [job.arguments[0] for job in jobs] == list(quiet.KINDS)
