"""Tables, goals and pictures say what the results say, worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from detecting import tables
from detecting.calibration import Told
from detecting.early import Early
from detecting.figures import draw_calibration, draw_runs
from detecting.goals import goals_of
from detecting.recorded import EVERY, RULES, Alarm, Case, Truth, Verdict
from detecting.scoring import Outcome, Score
from detecting.work import OURS, SUITES, Asked, Made, Real, Results, Signals, run_all
from PIL import Image

STEPS = np.arange(25, 2001, 25)
RISE = Truth("take-off", began=500, visible=700, doubled=900, limit=1000)


def verdict(every: int, phase: int, step: int | None, name: str = "x", **of: object) -> Verdict:
    truth = of.get("truth", RISE)
    assert isinstance(truth, Truth)
    seen = slice(phase, None, every // 25)
    case = Case(
        name, str(of.get("split", "design")), truth.kind, None, str(of.get("rule", RULES[0])),
        every, phase, STEPS[seen], np.linspace(0.1, 0.4, len(STEPS))[seen], {}, truth,
    )  # fmt: skip
    alarms = () if step is None else (Alarm(step, 600, 575, 650),)
    is_control = truth.kind == "control"
    caught = None if is_control or not alarms or step >= 1000 else alarms[0]
    return Verdict(case, alarms, caught, len(alarms) if is_control else 0)


def take_off(name: str = "x", split: str = "design", *, missed: int = 0) -> list[Verdict]:
    """Caught at 800, 850, 900 and 950; ``missed`` of the first looks at 200 steps find nothing."""
    return [
        verdict(every, phase, None if every == 200 and phase < missed else at, name, split=split)
        for every, at in zip(EVERY, (800, 850, 900, 950), strict=True)
        for phase in range(every // 25)
    ]


def results() -> Results:
    outcomes = (
        Outcome("change_flat", 0, True, 2, 0, 100),
        Outcome("change_flat", 1, True, None, 1, 100),
        Outcome("stable_flat", 1, False, None, 3, 1000),
    )
    made = {Made(OURS, suite, range(2)): (Score(outcomes), 1e-3) for suite in SUITES}
    made[Made("BOCPD", "easy", range(2))] = (Score(outcomes[:1]), 2e-3)
    control = [verdict(25, 0, 400, "quiet", truth=Truth("control"), split="report")]
    real = [*take_off(), *take_off("y", "report", missed=4), *control]
    early = [
        Early("x", "design", "dead units", 25, 400, 900),
        Early("x", "design", "dead units", 50, None, 900),
        Early("s", "design", "smooth", 25, 100, None),
    ]
    told = [Told(0.1, "made up", 0.25, 0.1, 0.4, 5, 60_000)]
    return Results(made, {OURS: real}, early, told)


def test_goals_are_measured_on_the_runs_they_name() -> None:
    goals = {goal.what: goal for goal in goals_of(results())}
    assert goals["recorded, design: take-offs caught at 200 steps"].measured == 100.0
    assert goals["recorded, report: take-offs caught at 200 steps"].measured == 50.0
    assert goals["recorded, report: take-offs caught at 100 steps"].measured == 100.0
    assert goals["recorded, report: false alarms"].measured == 1
    # 800, 850, 900 and 950: 150 apart, of a median of 875
    spread = goals["recorded, design: alarms at the cadences apart, median"].measured
    assert spread == pytest.approx(100 * 150 / 875)
    assert goals["dormant, design: lead, median"].measured == 250.0  # of 500 and a miss
    assert goals["dormant, design: missed of 2"].measured == 1
    assert goals["dormant, design: false alarms on 1 smooth ones"].measured == 1
    assert goals["easy: recall"].measured == 0.5
    assert goals["hard: false alarms per 1000"].measured == pytest.approx(4000 / 1200)
    assert goals["asked for 0.1 per 1000: off by"].measured == pytest.approx(2.5)
    assert goals["time a snapshot"].measured == pytest.approx(1.0)
    assert "not reached" in goals["easy: recall"].row()


def test_tables_show_every_detector_run_and_signal() -> None:
    found = results()
    made = tables.made_rows(found, "easy")
    assert [row.split(" | ")[0] for row in made[2:]] == ["| ours", "| BOCPD"]
    assert made[3].endswith("| 2 |")
    assert "| 2 / 2 |" in made[2]
    assert tables.family_rows(found)[0] == (
        "- easy: misses flat 1 of 2; false stable_flat 3, change_flat 1."
    )
    (design, report) = tables.real_rows(found)[2:]
    assert "1 of 1 | 2 of 2 | 4 of 4 | 8 of 8" in design
    assert "4 of 8" in report
    assert "1 in 80 snapshots" in report
    rows = tables.run_rows(found.real[OURS])
    assert len(rows) == 2 + 2
    assert "| 500 | 700 | 900 | 1000 | 1/1 at 800 (from 600) |" in rows[2]
    assert "4/8 at 950" in rows[3]
    assert tables.early_rows(found.early)[2] == "| x | design | dead units | 900 | 400 (+500) | - |"
    assert (
        "0.1 | made up | 0.25 | 0.1 to 0.4 | 5 in 60000 | no" in tables.calibration_rows(found)[2]
    )


def test_a_take_off_that_one_cadence_misses_has_no_spread() -> None:
    assert math.isnan(tables.spread_of(take_off(missed=8)))
    assert tables.spreads([*take_off(missed=8), *take_off("y")]) == [pytest.approx(150 / 875)]


def test_jobs_run_here_and_are_sorted_into_the_results() -> None:
    quick = "ruptures PELT, offline"
    found = run_all([Made(quick, "slow", range(1)), Made(quick, "hard", range(1))], processes=1)
    assert {job.suite for job in found.made} == {"slow", "hard"}
    assert found.merged(quick, "hard").outcomes
    assert found.seconds(quick) > 0.0
    assert (found.real, found.early, found.told) == ({}, [], [])


def test_every_kind_of_job_can_be_sent_to_another_process() -> None:
    import pickle

    for job in (Made(OURS, "easy", range(2)), Real(OURS), Signals(), Asked(0.1, range(2))):
        assert pickle.loads(pickle.dumps(job)) == job


def test_pictures_have_a_panel_for_each_rule_of_each_run(tmp_path: Path) -> None:
    real = [
        verdict(every, 0, 800, name, rule=rule)
        for name in ("x", "y", "z")
        for rule in RULES
        for every in EVERY
    ]
    draw_runs(real, tmp_path / "runs.png")
    draw_calibration(results().told, tmp_path / "calibration.png")
    two, three = (tmp_path / f"{n}.png" for n in (2, 3))
    draw_runs([v for v in real if v.case.name != "z"], two)
    draw_runs(real, three)
    with Image.open(two) as one_row, Image.open(three) as two_rows:
        assert one_row.width == two_rows.width
        assert two_rows.height > one_row.height + 100
