"""Tables, goals and pictures say what the results say, worked out by hand."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import detection
import numpy as np
import pytest
from detecting import breakthroughs, cost, early, made_up, takeoffs, zoo
from detecting.breakthroughs import Left
from detecting.cost import Cost
from detecting.detectors import OURS
from detecting.early import Early
from detecting.figures import draw_runs
from detecting.recorded import EVERY, RULES, Alarm, Case, Truth, Verdict
from detecting.scoring import Outcome, Score
from detecting.work import Job, Plan, Results, run_all
from detecting.zoo import Tried
from PIL import Image
from reporting import Goal, page

STEPS = np.arange(25, 2001, 25)
RISE = Truth("take-off", began=500, visible=700, doubled=900, limit=1000)


def verdict(every: int, phase: int, step: int | None, name: str = "x", **of: Any) -> Verdict:
    truth = of.get("truth", RISE)
    seen = slice(phase, None, every // 25)
    case = Case(
        name, of.get("split", "design"), truth.kind, None, of.get("rule", RULES[0]), every, phase,
        STEPS[seen], np.linspace(0.1, 0.4, len(STEPS))[seen], {}, truth,
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


def on_recorded(*detectors: tuple[str, list[Verdict]], **bare: list[Verdict]) -> Results:
    found = {Job(takeoffs.judged, (name, 1)): verdicts for name, verdicts in detectors}
    told = {"nothing": (), "estimated": ("estimated_advance",), "decay": ("decay_clock",)}
    return Results(found | {Job(takeoffs.bare, (told[n], 1)): of for n, of in bare.items()})


def measured(goals: list[Goal]) -> dict[str, float]:
    return {goal.what: goal.measured for goal in goals}


def test_take_offs_are_counted_on_the_runs_that_they_are_of() -> None:
    control = [verdict(25, 0, 400, "quiet", truth=Truth("control"), split="report")]
    real = [*take_off(), *take_off("y", "report", missed=4), *control]
    bare = [*take_off(missed=4), *take_off("y", "report")]
    by_clock = [*take_off(missed=2), *take_off("y", "report")]
    results = on_recorded((OURS, real), nothing=bare, estimated=by_clock, decay=bare)
    goals = measured(takeoffs.goals(results))
    assert goals["recorded, design: take-offs caught at 200 steps"] == 100.0
    assert goals["recorded, report: take-offs caught at 200 steps"] == 50.0
    assert goals["recorded, report: take-offs caught at 100 steps"] == 100.0
    assert goals["recorded, report: false alarms"] == 1
    # 800, 850, 900 and 950: 150 apart, of a median of 875
    apart = goals["recorded, design: alarms at the cadences apart, median"]
    assert apart == pytest.approx(100 * 150 / 875)
    assert goals["recorded, nothing told, design: take-offs caught at 200 steps"] == 50.0
    assert goals["recorded, nothing told, report: take-offs caught at 200 steps"] == 100.0
    assert goals["recorded, by the estimated clock, design: take-offs caught at 200 steps"] == 75.0
    assert not any("by the decay clock" in what for what in goals)
    design, report = takeoffs.lines(results)[2:4]
    assert "1 of 1 | 2 of 2 | 4 of 4 | 8 of 8" in design
    assert "4 of 8" in report
    assert "1 in 80 snapshots" in report


def test_a_take_off_that_one_cadence_misses_has_no_spread() -> None:
    assert math.isnan(takeoffs.spread_of(take_off(missed=8)))
    found = takeoffs.spreads([*take_off(missed=8), *take_off("y")])
    assert found == [pytest.approx(150 / 875)]


@pytest.mark.slow
def test_nothing_but_what_is_named_is_told_of_recorded_runs() -> None:
    for told in ((), ("decay_clock",)):
        found = [v.case for v in takeoffs.bare(told, 56)]
        assert [(c.rule, c.every) for c in found] == [(r, e) for r in RULES for e in EVERY]
        assert {c.phase for c in found} == {0}
        assert {tuple(c.context) for c in found} == {told}


def test_the_early_signal_has_a_row_a_run_and_its_lead() -> None:
    found = [
        Early("x", "design", "dead units", 25, 400, 900),
        Early("x", "design", "dead units", 50, None, 900),
        Early("s", "design", "smooth", 25, 100, None),
    ]
    results = Results({Job(early.signals): found})
    goals = measured(early.goals(results))
    assert goals["dormant, design: lead, median"] == 250.0  # of 500 and a miss
    assert goals["dormant, design: missed of 2"] == 1
    assert goals["dormant, design: false alarms on 1 smooth ones"] == 1
    assert early.lines(results)[2] == "| x | design | dead units | 900 | 400 (+500) | - |"


def test_falls_are_counted_at_the_finest_cadence() -> None:
    found = [
        Left("a", "design", 25, 800, (800,)), Left("a", "design", 50, 800, (2000,)),
        Left("b", "report", 25, 800, (1000,)), Left("c", "report", 25, 800, (725,)),
        Left("d", "design", 25, None, (500,), (600,), 2), Left("d", "design", 50, None, (500,)),
    ]  # fmt: skip
    fall, events = breakthroughs.goals(Results({Job(breakthroughs.left): found}))
    assert fall.what == "essential sparsity's fall seen in time at 3 breakthroughs"
    assert (fall.measured, fall.reach) == (2, 3)  # 11 of 13, rounded up
    assert events.what == "events of essential sparsity on 1 controls"
    assert events.measured == 3


OUTCOMES = (
    Outcome("change_flat", 0, True, 2, 0, 100),
    Outcome("change_flat", 1, True, None, 1, 100),
    Outcome("stable_flat", 1, False, None, 3, 1000),
)


def on_made_up(*more: tuple[tuple[Any, ...], Score, float]) -> Results:
    found = {
        Job(made_up.scored, (OURS, suite, range(2))): (Score(OUTCOMES), 1e-3)
        for suite in made_up.SUITES
    }
    return Results(found | {Job(made_up.scored, of): (score, s) for of, score, s in more})


def test_a_suite_has_a_row_for_each_detector() -> None:
    results = on_made_up((("BOCPD", "easy", range(2)), Score(OUTCOMES[:1]), 2e-3))
    lines = made_up.lines(results)
    ours = next(row for row in lines if row.startswith(f"| {OURS} |"))
    other = next(row for row in lines if row.startswith("| BOCPD |"))
    assert "| 2 / 2 |" in ours
    assert other.endswith("| 2 |")
    goals = {goal.what: goal for goal in made_up.goals(results)}
    assert goals["easy: recall"].measured == 0.5
    assert goals["hard: false alarms per 1000"].measured == pytest.approx(4000 / 1200)
    assert "not reached" in goals["easy: recall"].row()
    assert not any("the rate told" in what for what in goals)


def test_series_with_the_rate_told_stand_in_for_those_without() -> None:
    untold = (
        Outcome("change_wsd", 0, True, None, 0, 100), Outcome("stable_wsd", 0, False, None, 4, 100),
        Outcome("stable_flat", 0, False, None, 1, 100), Outcome("change_flat", 0, True, 1, 0, 100),
    )  # fmt: skip
    told = (
        Outcome("change_wsd", 0, True, 2, 0, 100), Outcome("stable_wsd", 0, False, None, 0, 100),
    )  # fmt: skip
    results = on_made_up(
        ((OURS, "easy", range(2)), Score(untold), 1e-3),
        ((OURS, "easy", range(2), True), Score(told), 9.0),
    )
    alone = made_up.merged(results, "easy").figures
    assert alone["false_per_1000"] == pytest.approx(1000 * 5 / 400)
    merged = made_up.merged(results, "easy", rate_is_told=True)
    assert set(merged.outcomes) == {*untold[2:], *told}
    assert merged.figures["recall"] == 1.0
    assert merged.figures["false_per_1000"] == pytest.approx(1000 / 400)
    lines = made_up.lines(results)
    assert [row.split(" | ")[0] for row in lines if row.startswith("| ours, ")] == [
        "| ours, the rate told"
    ]


def test_onset_intervals_hold_as_often_as_they_are_counted() -> None:
    outcomes = [Outcome("change_flat", 0, True, 1, 0, 100, x) for x in (0, 0, 1, 5, None)]
    results = on_made_up(((OURS, "easy", range(2)), Score(tuple(outcomes)), 1e-3))
    assert made_up.lines(results)[-5:-3] == ["| easy | 4 | 2 (50.0%) |", "| standard | 0 | - |"]
    goals = [goal for goal in made_up.goals(results) if "onset intervals" in goal.what]
    assert [(g.reach, g.measured, g.at_most) for g in goals] == [(85, 50, False), (95, 50, True)]


def test_the_zoo_is_told_by_kind() -> None:
    faults = [Tried("a", "rounding", 12, ()), Tried("b", "rounding", 12, ("x: why", "y: why"))]
    results = Results({Job(zoo.planted): faults, Job(zoo.well): [Tried("c", "well", 6, ())]})
    assert zoo.lines(results)[2:4] == [
        "| `rounding`, 2 faults | 24 | 22 | b, x: why; b, y: why |",
        "| well, and odd | 6 | 6 |  |",
    ]
    named, quiet = (goal.row() for goal in zoo.goals(results))
    assert named[2:] == ["22 of 24", "not reached"]
    assert quiet[2:] == ["6 of 6", "reached"]


def test_the_cost_is_what_is_added_to_a_bare_snapshot() -> None:
    results = Results({Job(cost.cost, (12,)): Cost(12, bare=0.1, more=0.005)})
    assert "100 ms of one thread" in cost.lines(results)[0]
    assert list(measured(cost.goals(results)).values()) == pytest.approx([5.0])


def test_jobs_run_here_and_are_kept_in_their_order() -> None:
    quick = "ruptures PELT, offline"
    jobs = [Job(made_up.scored, (quick, suite, range(1))) for suite in ("slow", "hard")]
    found = run_all(jobs, processes=1)
    assert list(found) == jobs
    assert all(score.outcomes and seconds > 0.0 for score, seconds in found.values())


def test_every_job_can_be_sent_to_another_process() -> None:
    jobs = [job for of in detection.SECTIONS for job in of.jobs(Plan(1, small=True, alone=True))]
    assert {of.TITLE for of in detection.SECTIONS if not of.jobs(Plan())} == set()
    assert len(set(jobs)) == len(jobs) > 30
    for job in jobs:
        assert pickle.loads(pickle.dumps(job)) == job
    assert [job.measure for job in jobs if job.is_alone] == [cost.cost]


def test_a_page_has_its_parts_and_then_all_goals() -> None:
    parts = [(["## one", ""], [Goal("a", 1.0, 2.0)]), (["two"], [Goal("b", 1.0, 2.0, False, " s")])]
    assert page("title", parts, "a machine").splitlines() == [
        "# title", "", "a machine", "", "## one", "", "two", "",
        "| goal | reach | measured |  |", "|---|---:|---:|---:|",
        "| a | <= 1 x | 2 x | not reached |", "| b | >= 1 s | 2 s | reached |",
    ]  # fmt: skip


@pytest.mark.slow
def test_pictures_have_a_panel_for_each_rule_of_each_run(tmp_path: Path) -> None:
    real = [
        verdict(every, 0, 800, name, rule=rule)
        for name in ("x", "y", "z")
        for rule in RULES
        for every in EVERY
    ]
    draw_runs([v for v in real if v.case.name != "z"], tmp_path / "2.png")
    draw_runs(real, tmp_path / "3.png")
    with Image.open(tmp_path / "2.png") as one_row, Image.open(tmp_path / "3.png") as two_rows:
        assert one_row.width == two_rows.width
        assert two_rows.height > one_row.height + 100
