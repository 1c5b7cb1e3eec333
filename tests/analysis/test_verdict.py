"""How it stands, what happened and what to do: in every state that a watch and a run can be in."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from contracts import fake_run

from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import STATES, main_event
from sparsitywatch.cli import main
from sparsitywatch.page.data import page_data
from sparsitywatch.records import Began, Finding, Movement, Vital, WatchState
from sparsitywatch.series import percent

RELIANCE, TAKE_OFF = fake_run.events()
NOW = 1.7e9 + 2010


def records(last: int = 2000, every: int = 200):
    return [record for record, _ in fake_run.looks(range(0, last + 1, every))]


def state(**fields) -> WatchState:
    return WatchState(**{"status": "closed", "step": 2000, "wall_time": NOW - 10.0,
                         "last_step": 2000, "num_due": 11, "num_taken": 11,
                         "num_evaluated": 11, "last_evaluated_step": 2000, "overhead": 0.008,
                         **fields})  # fmt: skip


def run_of(events=(), watch: WatchState | None = None, **fields) -> Run:
    info = replace(fake_run.run_info(), state=watch or state())
    return Run(fields.get("records", records()), events, info, now=NOW)


def test_a_quiet_run_is_healthy() -> None:
    verdict = run_of().verdict
    assert (verdict.state, verdict.badge, verdict.event) == ("healthy", "healthy", 0)
    assert verdict.headline == "No alarm in 11 snapshots"
    assert verdict.advice == "No action needed."


def test_what_belongs_to_a_healthy_training_is_a_note() -> None:
    """The model begins to use its weights: nobody has to look."""
    verdict = run_of([RELIANCE]).verdict
    assert (RELIANCE.severity, verdict.state, verdict.exit_code) == ("note", "healthy", 0)
    worse = replace(RELIANCE, value_trend="worse")
    assert run_of([worse]).verdict.state == "look"


def test_two_changes_against_each_other_are_joined() -> None:
    needs_more = replace(TAKE_OFF, series="essential_sparsity/value", direction="down", id="e")
    joined = "many weights become tiny, yet the model needs more of the rest"
    assert joined in run_of([TAKE_OFF, needs_more]).verdict.cause
    assert joined not in run_of([TAKE_OFF]).verdict.cause
    over = replace(needs_more, reverted_step=1900)
    assert joined not in run_of([TAKE_OFF, over]).verdict.cause


@pytest.mark.parametrize(("number", "state"), [(1, "too early to tell"), (8, "too early to tell"),
                                               (9, "healthy")])  # fmt: skip
def test_few_snapshots_tell_nothing(number: int, state: str) -> None:
    verdict = run_of(records=records()[:number]).verdict
    assert verdict.state == state
    if state != "healthy":
        assert verdict.headline == f"{number} of about 9 snapshots so far"


def test_a_nan_run_sends_people_where_its_event_does() -> None:
    made = records()
    broken = [replace(r, num_nan=3) if r.step >= 1600 else r for r in made]
    assert run_of(records=broken).verdict.advice.endswith("a checkpoint of step 1,400 or before.")
    assert run_of(records=broken).verdict.since == 1600
    sign = replace(TAKE_OFF, kind="not_finite", series="vital/not_finite", value=2.0, id="n",
                   before_step=1500, reason="weights are NaN or infinite")  # fmt: skip
    verdict = run_of([sign], records=broken).verdict
    assert (verdict.advice, verdict.event) == (sign.advice, 1)
    assert "1,500" in verdict.advice


def test_what_nobody_watches_is_said() -> None:
    last = records()[-1]
    bare = replace(last, provenance=replace(last.provenance, proxy_hash=""), trained=0.5,
                   why_no_clock="Adam divides the decay by the size of the gradient")  # fmt: skip
    found = run_of(records=[*records()[:-1], bare]).verdict.not_watched
    assert found == (
        "essential sparsity and reliance: no proxy was given",
        "weight decay as a cause: Adam divides the decay by the size of the gradient",
        "50 % of the weights in scope: no step reaches them",
    )
    whole = [replace(r, trained=1.0) for r in records()]
    assert run_of(records=whole).verdict.not_watched == ()
    off = state(status="off", step=900, reason="the disk is full")
    assert "the disk is full" in run_of([], off, records=whole).verdict.cause


def test_a_run_says_its_verdict() -> None:
    assert repr(run_of()) == "<Run run, healthy: No alarm in 11 snapshots>"


def test_an_event_is_worth_a_look_and_says_what_to_do() -> None:
    verdict = run_of([RELIANCE, TAKE_OFF]).verdict
    assert (verdict.state, verdict.badge, verdict.event) == ("look", "2 events", 2)
    assert verdict.headline == TAKE_OFF.headline
    assert verdict.advice == TAKE_OFF.advice
    assert (verdict.onset_low, verdict.onset_high) == (TAKE_OFF.onset_low, TAKE_OFF.onset_high)
    assert verdict.where == TAKE_OFF.layers


@pytest.mark.parametrize(
    ("trained", "level", "badge"),
    [
        ((1.0, 1.0, 1.0, 1.0, 1.0), "healthy", "healthy"),
        ((math.nan, 0.09, 0.09, 0.09, 0.09), "healthy", "healthy"),  # an adapter
        ((0.2, 0.4, 0.6, 0.8, 1.0), "healthy", "healthy"),  # thawed layer by layer
        ((1.0, 1.0, 1.0, 1.0, 0.5), "healthy", "healthy"),  # layers are dropped at random
        ((1.0, 1.0, 1.0, 0.4, 0.5), "look", "trained in part"),
        ((1.0, 1.0, 1.0, 1.0, 0.0), "broken", "not trained"),
        ((0.0, 0.0, 0.0, 0.0, 0.0), "broken", "not trained"),
        ((math.nan,) * 5, "healthy", "healthy"),  # no optimizer is seen
    ],
)
def test_weights_that_no_step_reaches_are_said(trained, level: str, badge: str) -> None:
    shares = [*trained[:1] * 6, *trained]
    made = [replace(r, trained=share) for r, share in zip(records(), shares, strict=True)]
    verdict = run_of(records=made).verdict
    assert (verdict.state, verdict.badge) == (level, badge)


def test_what_is_gone_matters_more_than_what_announces_it() -> None:
    dormant = replace(TAKE_OFF, series="motion/dormant", id="d")
    assert main_event([dormant, RELIANCE, TAKE_OFF]) is TAKE_OFF
    assert main_event([dormant, RELIANCE]) is dormant
    gone = replace(TAKE_OFF, reverted_step=1500)
    assert main_event([gone, dormant, RELIANCE]) is gone  # as large, and it explains the other
    smaller = replace(TAKE_OFF, value=0.08, id="s")
    assert main_event([smaller, TAKE_OFF]) is TAKE_OFF
    assert main_event([replace(gone, value=0.07), smaller]) is smaller  # by what is left of it
    dead = replace(TAKE_OFF, kind="dead_units", series="xray/dead_units", value=1.0, id="x")
    assert main_event([dead, smaller]) is smaller
    assert run_of([gone]).verdict.headline.endswith(", and was back by half at step 1,500")


def test_a_watch_that_is_off_is_the_headline() -> None:
    off = state(status="off", step=900, reason="the disk is full")
    verdict = run_of([TAKE_OFF], off).verdict
    assert verdict.state == "broken"
    assert verdict.headline.startswith(
        "The watch has been off since step 900; before that: near-zero weights"
    )
    assert verdict.advice.startswith("Mend what the reason names")
    assert "the disk is full" in verdict.watch[0]


def test_a_watch_that_is_silent_is_the_headline() -> None:
    verdict = run_of([], state(status="on", wall_time=NOW - 4000.0)).verdict
    assert verdict.state == "broken"
    assert verdict.headline.startswith("The watch was last heard of at step 2,000")


def test_what_has_ended_a_training_is_worth_a_look_but_nan_matters_more() -> None:
    ended = state(status="ended", reason="KeyboardInterrupt", step=2120)
    verdict = run_of([TAKE_OFF], ended).verdict
    assert (verdict.state, verdict.badge) == ("look", "1 event")
    assert verdict.headline.startswith(
        "The training was ended by KeyboardInterrupt at step 2,120; before that: near-zero"
    )
    verdict = run_of([], ended).verdict
    assert (verdict.state, verdict.badge) == ("look", "ended early")
    last = replace(records()[-1], num_nan=12)
    verdict = run_of([], ended, records=[*records()[:-1], last]).verdict
    assert (verdict.state, verdict.badge) == ("broken", "NaN or infinite weights")


@pytest.mark.parametrize(
    ("number", "fields", "events", "level", "headline"),
    [
        (0, {}, [], "look", "No snapshot was taken"),
        (0, {"status": "off", "reason": "x"}, [], "broken",
         "The watch has been off since step 2,000"),
        (0, {"status": "ended", "reason": "OSError"}, [], "look",
         "The training was ended by OSError at step 2,000"),
        (2, {"num_evaluated": 0}, [], "look",
         "Essential sparsity was never measured; 2 of about 9 snapshots so far"),
        (2, {"num_evaluated": 0}, [TAKE_OFF], "look",
         "Essential sparsity was never measured; near-zero weights "),
        (2, {"status": "ended", "reason": "OSError", "num_evaluated": 0}, [], "look",
         "The training was ended by OSError at step 2,000; before that: 2 of about 9"),
    ],
)  # fmt: skip
def test_a_headline_says_of_trouble_only_what_can_be_said(
    number: int, fields, events, level: str, headline: str
) -> None:
    """Before is what was seen before an end, and of no snapshots nothing is said."""
    verdict = run_of(events, state(**fields), records=records()[:number]).verdict
    assert verdict.state == level
    assert verdict.headline.startswith(headline)
    assert len(verdict.headline) == len(headline) or number


def test_snapshots_that_failed() -> None:
    failed = replace(records()[-1], valid=False, reason="it broke.", step=2500)
    verdict = run_of(records=[*records(), failed]).verdict
    assert (verdict.state, verdict.badge) == ("look", "snapshot failed")
    assert verdict.cause == "the last snapshot, of step 2,500, failed: it broke"
    blind = [replace(r, valid=False, reason="it broke") for r in records()]
    assert run_of(records=blind).verdict.state == "broken"


def test_weights_that_are_nan_are_broken() -> None:
    last = replace(records()[-1], num_nan=12)
    verdict = run_of(records=[*records()[:-1], last]).verdict
    assert verdict.state == "broken"
    assert verdict.headline == "12 weights are NaN or infinite at step 2,000"


def test_a_run_that_has_just_begun() -> None:
    verdict = run_of(records=[], watch=state(status="on", step=3, last_step=-1)).verdict
    assert (verdict.state, verdict.badge) == ("too early to tell", "no snapshot yet")
    verdict = run_of(records=records(0), watch=state(status="on", step=3, last_step=0)).verdict
    assert verdict.headline == "1 of about 9 snapshots so far"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "weights 11 of 11, proxy evaluated 11 times, last at step 2,000"),
        (
            {"num_due": 40, "num_taken": 40, "num_evaluated": 1, "last_evaluated_step": 5},
            "weights 40 of 40, proxy evaluated once, at step 5",
        ),
        ({"num_due": 19, "num_evaluated": -1, "num_failed": 2}, "weights 11 of 19, 2 failed"),
        ({"num_evaluated": 0}, "weights 11 of 11, proxy never evaluated"),
        ({"num_due": 0, "num_taken": 0}, "no snapshot was due"),
    ],
)
def test_a_state_says_how_much_of_what_was_due_was_measured(fields, told: str) -> None:
    one = state(**fields, left_out="4 to keep within `max_overhead`", step=2100)
    assert one.watched == told
    assert one.describe() == (
        f"The watch was closed at step 2,100. Watched: {told}. Left out: 4 to keep within "
        "`max_overhead`. Last snapshot at step 2,000. The watch took 0.8 % of the wall time."
    )


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((6, 6), "next snapshot about step 6"),
        ((6, 1750), "next snapshot about step 6, next evaluation about step 1,750"),
        ((-1, 12), "next evaluation about step 12"),
        ((-1, -1), ""),
    ],
)
def test_a_state_says_what_comes_next(steps, told: str) -> None:
    one = state(status="on", next_due_step=steps[0], next_evaluation_step=steps[1])
    assert one.coming == told
    assert replace(one, status="closed").coming == ""


def test_what_has_to_be_acted_on_comes_before_all_else() -> None:
    """Also where it is a change of a series, such as a value that is lost."""
    lost = replace(TAKE_OFF, series="value/dense", kind="lost", id="l")
    verdict = run_of([TAKE_OFF, lost]).verdict
    assert (verdict.state, verdict.event) == ("broken", 2)
    assert run_of([TAKE_OFF, replace(lost, reverted_step=1900)]).verdict.event == 1


@pytest.mark.parametrize(
    ("kind", "level"),
    [("untrained", "broken"), ("not_finite", "broken"), ("rounding", "look"), ("decay", "look")],
)
def test_what_is_wrong_with_the_training_comes_first(kind: str, level: str) -> None:
    sign = replace(
        TAKE_OFF, kind=kind, series=f"vital/{kind}", direction="up", trend="", baseline=0.0,
        value=3.0, id=kind, reason="no bit of them moved",
    )  # fmt: skip
    verdict = run_of([TAKE_OFF, sign]).verdict
    assert (verdict.state, verdict.event) == (level, 2)
    assert verdict.headline.startswith("3 tensors ")
    assert verdict.advice == sign.advice
    over = replace(sign, reverted_step=1500)
    assert run_of([TAKE_OFF, over]).verdict.event == 1
    assert run_of([over]).verdict.state == "look"
    assert "no bit of them moved" in page_data(run_of([sign]))["events"][0]["why"]


# ------------------------------------------------------------------ status, for schedulers


@pytest.mark.parametrize(
    ("watch", "events", "code"),
    [(state(), [], 0), (state(), [TAKE_OFF], 1), (state(status="off", reason="x"), [], 2)],
)
def test_the_exit_status_says_it(watch, events, code: int, tmp_path: Path, capsys) -> None:
    looks = fake_run.looks(range(0, 2001, 200))
    log = fake_run.write_run(tmp_path / "run", looks, events, state=watch)
    level = ("healthy", "look", "broken")[code]
    assert STATES[level] == code
    assert main(["status", str(log)]) == code
    told = capsys.readouterr().out
    assert told.startswith(f"{level}: ")
    assert main(["status", str(log), "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == level
    assert told["last_step"] == 2000
    assert [event["id"] for event in told["events"]] == [event.id for event in events]


def test_a_folder_is_a_table_with_the_worst_on_top(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "9999")
    looks = fake_run.looks(range(0, 2001, 200))
    for name, events, watch in [("a", [], state()), ("b", [TAKE_OFF], state()),
                                ("c", [], state(status="off", reason="x"))]:  # fmt: skip
        fake_run.write_run(tmp_path / "runs" / name, looks, events, state=watch)
    assert main(["status", str(tmp_path)]) == 2
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "last", "age", "events"]
    cells = [re.split(r" {2,}", row) for row in rows[::2]]
    assert [(name, level, last, events) for name, level, last, _, events in cells] == [
        ("runs/c", "broken", "2,000", "0"), ("runs/b", "look", "2,000", "1"),
        ("runs/a", "healthy", "2,000", "0"),
    ]  # fmt: skip
    assert all(cell[3].endswith(" days") for cell in cells)
    headline = "  The watch has been off since step 2,000; before that: no alarm"
    assert rows[1].startswith(headline)
    (tmp_path / "runs" / "c" / "sparsitywatch" / "records.jsonl").write_text("{}\n")
    assert main(["status", str(tmp_path), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["runs"]
    assert [run["name"] for run in told] == ["runs/c", "runs/b", "runs/a"]
    assert told[0]["headline"].startswith("The log cannot be read: ")
    assert told[1]["advice"] == TAKE_OFF.advice
    assert main(["status", str(tmp_path / "runs" / "a")]) == 0


def test_a_smaller_every_is_advised_only_where_it_was_why() -> None:
    none = {"last_step": -1, "num_taken": 0}
    advice = run_of([], state(num_due=0, **none), records=()).verdict.advice
    assert advice == "Choose a smaller `every`: the run ended before a snapshot was due."
    left = run_of([], state(num_due=3, left_out="3 to keep within `max_overhead`", **none),
                  records=()).verdict  # fmt: skip
    assert left.advice.startswith("Choose a larger `max_overhead`")
    assert "every" not in left.advice


def test_before_the_first_snapshot_it_says_how_small_the_weights_began() -> None:
    info = fake_run.run_info()
    sizes = {entry.name: entry.num_weights for entry in info.ledger if entry.in_scope}
    names, shares = list(sizes), [0.1, 0.4]
    own = dict(zip(names, shares * len(names), strict=False))
    whole = sum(own[name] * sizes[name] for name in names) / sum(sizes.values())
    began = Began(step=3, near_zero={"initial_0.1": own})
    run = Run([], [], replace(info, state=state(), began=began))
    assert (
        f"Now: near zero {percent(whole)} at step 3, as the watch began" in run.verdict.describe()
    )


def test_the_parts_that_move_least_and_most_are_named_and_what_does_not_train() -> None:
    last = records()[-1]
    moved = Movement(update_to_weight=0.01, sign_flips=0.0, num_sampled=9, since_step=last.step - 5,
                     by_block={"h.1": 0.001, "h.0": 0.004, "h.2": 0.02})  # fmt: skip
    stuck = Finding(kind="no_gradient", num=2, tensors=("a.lora_A", "a.lora_B"))
    vital = Vital(num_tensors=9, num_sampled=9, findings=(stuck,))
    told = run_of([], state(), records=[replace(last, movement=moved, vital=vital)]).verdict
    assert told.training == (
        "2 tensors reached by no gradient: a.lora_A, a.lora_B",
        "update to weight 1 % in 5 steps, least h.1 0.1 %, most h.2 2 %",
    )
    assert "\nTraining: 2 tensors reached by no gradient: a.lora_A" in told.describe()


def test_what_cannot_be_read_is_broken(tmp_path: Path, capsys) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "Expected `logdir` to hold the log" in capsys.readouterr().err


def test_numbers_that_are_not_known_are_left_out() -> None:
    verdict = run_of([replace(TAKE_OFF, baseline=math.nan, value=math.nan)]).verdict
    assert "nan" not in f"{verdict}".lower().replace("nan or", "")
