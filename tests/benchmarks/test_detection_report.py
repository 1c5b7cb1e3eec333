"""Tables, goals and pictures say what the results say, worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from detecting import tables
from detecting.breakthroughs import Left
from detecting.calibration import Told
from detecting.cost import Cost
from detecting.early import Early
from detecting.figures import draw_calibration, draw_runs
from detecting.goals import goals_of
from detecting.recorded import EVERY, RULES, Alarm, Case, Truth, Verdict
from detecting.scoring import Outcome, Score
from detecting.work import (
    OURS,
    SUITES,
    Asked,
    Bare,
    Costs,
    Made,
    Proxied,
    Real,
    Results,
    Signals,
    Zoo,
    run_all,
)
from detecting.zoo import Tried
from detection import _jobs
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
    assert "not reached" in goals["easy: recall"].row()


def test_goals_of_what_is_beside_are_there_if_it_was_measured() -> None:
    found = results()
    before = {goal.what for goal in goals_of(found)}
    found.bare = {
        (): [*take_off(missed=4), *take_off("y", "report")],
        ("estimated_advance",): [*take_off(missed=2), *take_off("y", "report")],
        ("decay_clock",): take_off(missed=8),
    }
    found.left = [
        Left("a", "design", 25, 800, (800,)), Left("a", "design", 50, 800, (2000,)),
        Left("b", "report", 25, 800, (1000,)), Left("c", "report", 25, 800, (725,)),
        Left("d", "design", 25, None, (500,), (600,), 2), Left("d", "design", 50, None, (500,)),
    ]  # fmt: skip
    found.told.append(Told(0.1, "loss-like", 0.2, 0.1, 0.4, 12, 60_000))
    found.told.append(Told(0.1, "near_zero-like", 0.2, 0.1, 0.4, 2, 6_000))  # too few
    found.tried = [
        Tried("x", "decay", 12, ("why",)), Tried("y", "decay", 12, ()), Tried("z", "well", 6, ()),
    ]  # fmt: skip
    found.cost = Cost(12, bare=0.1, more=0.005, detection=0.001)
    assert found.cost.added_percent == pytest.approx(5.0)
    goals = {goal.what: goal for goal in goals_of(found) if goal.what not in before}
    assert goals["time a snapshot"].measured == pytest.approx(1.0)
    assert goals["recorded, nothing told, design: take-offs caught at 200 steps"].measured == 50.0
    assert goals["recorded, nothing told, report: take-offs caught at 200 steps"].measured == 100.0
    by_clock = "recorded, by the estimated clock, design: take-offs caught at 200 steps"
    assert goals[by_clock].measured == 75.0
    fall = goals["essential sparsity's fall seen in time at 3 breakthroughs"]
    assert (fall.measured, fall.reach) == (2, 3)  # 11 of 13, rounded up
    assert goals["events of essential sparsity on 1 controls"].measured == 3
    assert goals["asked for 0.1 per 1000 on loss-like series: off by"].measured == pytest.approx(2)
    assert not any("near_zero-like" in what for what in goals)
    assert "| 23 of 24 | not reached |" in goals["faults of the zoo named"].row()
    assert "| 6 of 6 | reached |" in goals["trainings that are well quiet"].row()
    added = goals["vital signs and detection, on a snapshot of 12 layers"]
    assert added.measured == pytest.approx(5.0)


def test_series_with_the_rate_told_stand_in_for_those_without() -> None:
    untold = (
        Outcome("change_wsd", 0, True, None, 0, 100), Outcome("stable_wsd", 0, False, None, 4, 100),
        Outcome("stable_flat", 0, False, None, 1, 100), Outcome("change_flat", 0, True, 1, 0, 100),
    )  # fmt: skip
    told = (
        Outcome("change_wsd", 0, True, 2, 0, 100), Outcome("stable_wsd", 0, False, None, 0, 100),
    )  # fmt: skip
    found = results()
    found.made = {
        Made(OURS, "easy", range(1)): (Score(untold), 1e-3),
        Made(OURS, "easy", range(1), rate_is_told=True): (Score(told), 9.0),
    }
    assert found.merged(OURS, "easy").false_per_1000 == pytest.approx(1000 * 5 / 400)
    merged = found.merged(OURS, "easy", rate_is_told=True)
    assert set(merged.outcomes) == {*untold[2:], *told}
    assert (merged.recall, merged.false_per_1000) == (1.0, pytest.approx(1000 / 400))
    assert found.seconds(OURS) == 1e-3
    rows = tables.made_rows(found, "easy")
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| ours", "| ours, the rate told"]
    assert tables.family_rows(found) == [
        "- easy: misses wsd 1 of 1; false stable_wsd 4, stable_flat 1.",
        "- easy, the rate told: misses none; false stable_flat 1.",
    ]
    goals = {goal.what: goal for goal in goals_of(results())}
    assert not any("the rate told" in what for what in goals)


def test_onset_intervals_hold_as_often_as_they_are_counted() -> None:
    found = results()
    outcomes = [Outcome("change_flat", 0, True, 1, 0, 100, x) for x in (0, 0, 1, 5, None)]
    found.made[Made(OURS, "easy", range(2))] = (Score(tuple(outcomes)), 1e-3)
    assert tables.onset_rows(found)[2:4] == ["| easy | 4 | 2 (50.0%) |",
                                             "| standard | 0 | - |"]  # fmt: skip
    goals = [goal for goal in goals_of(found) if "onset intervals" in goal.what]
    assert [(g.reach, g.measured, g.at_most) for g in goals] == [(85, 50, False), (95, 50, True)]


def test_tables_show_every_detector_run_and_signal() -> None:
    found = results()
    made = tables.made_rows(found, "easy")
    assert [row.split(" | ")[0] for row in made[2:]] == ["| ours", "| BOCPD"]
    assert made[3].endswith("| 2 |")
    assert "| 2 / 2 |" in made[2]
    assert tables.family_rows(found)[0] == (
        "- easy: misses flat 1 of 2; false stable_flat 3, change_flat 1."
    )
    (design, report) = tables.real_rows(found.real)[2:]
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

    jobs = _jobs(1, small=True, alone=True)
    kinds = (Made, Real, Signals, Asked, Bare, Proxied, Zoo, Costs)
    assert all(any(isinstance(job, kind) for job in jobs) for kind in kinds)
    assert len(set(jobs)) == len(jobs)
    for job in jobs:
        assert pickle.loads(pickle.dumps(job)) == job


def test_nothing_but_what_is_named_is_told_of_recorded_runs() -> None:
    jobs = [Bare((), 56), Bare(("decay_clock",), 56)]
    found = run_all(jobs, processes=1).bare
    assert {*found} == {(), ("decay_clock",)}
    for told, verdicts in found.items():
        cases = [v.case for v in verdicts]
        assert [(c.rule, c.every) for c in cases] == [(r, e) for r in RULES for e in EVERY]
        assert {c.phase for c in cases} == {0}
        assert {tuple(c.context) for c in cases} == {told}


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
