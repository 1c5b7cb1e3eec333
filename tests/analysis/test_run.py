"""What a log says of its watch: on, off, closed, gone, overdue, blind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from contracts.made_records import PROVENANCE, made_record

import sparsitywatch as sw
from sparsitywatch.analysis.verdict import Verdict, verdict
from sparsitywatch.processes import this_process
from sparsitywatch.records import Record, RunInfo, WatchState

NOW = 1_700_000_000.0


def info(status: str = "on", **fields) -> RunInfo:
    known = {
        "step": 340,
        "wall_time": NOW,
        "last_step": 300,
        "next_due_step": 400,
        "step_s": 1.0,
        "num_due": 3,
        "num_taken": 2,
    }
    known |= this_process()._asdict()
    state = WatchState(status=status, **{**known, **fields})
    return RunInfo(initial_step=0, provenance=PROVENANCE, state=state)


def standing(records: list[Record], about: RunInfo | None = None, **now: float) -> Verdict:
    return verdict(records, (), about, **now)


def looks(*steps: int) -> list[Record]:
    return [made_record(step) for step in steps]


def failed(record: Record, reason: str = "OSError: no") -> Record:
    return dataclasses.replace(record, valid=False, reason=reason)


def with_proxy(record: Record, **fields) -> Record:
    provenance = dataclasses.replace(PROVENANCE, proxy_hash="p")
    return dataclasses.replace(record, provenance=provenance, **fields)


def test_a_watch_that_is_on_is_no_trouble() -> None:
    found = standing(looks(100, 300), info(overhead=0.0079), now=NOW + 60.0)
    assert found.trouble == ""
    (sentence,) = found.watch
    assert sentence == (
        "The watch is on, at step 340. Watched: weights 2 of 3. Last snapshot at step 300. Next "
        "snapshot about step 400. The watch took 0.79 % of the wall time."
    )


def test_a_replay_and_an_earlier_log_say_nothing_of_a_watch() -> None:
    found = standing(looks(100), RunInfo(initial_step=0, provenance=PROVENANCE), now=NOW)
    assert (found.trouble, found.watch) == ("", ())


def test_off_says_since_when_and_why() -> None:
    found = standing(looks(100, 300), info("off", reason="RuntimeError: no disk"), now=NOW + 1e6)
    assert found.trouble == "the watch has been off since step 340"
    assert "switched itself off at step 340: RuntimeError: no disk." in found.watch[0]
    assert len(found.watch) == 1


def test_closed_is_closed_however_long_ago() -> None:
    found = standing(looks(300), info("closed", pid=2**22 + 1), now=NOW + 1e9)
    assert found.trouble == ""
    assert found.watch[0].startswith("The watch was closed at step 340.")


def test_a_process_that_is_gone_is_said_with_its_last_sign_of_life() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    found = standing(looks(300), info(pid=child.pid), now=NOW + 1.0)
    assert found.trouble == "the training ended without closing its watch, after step 340"
    (sentence,) = found.watch
    assert f"The process {child.pid} of the training is gone" in sentence
    assert "step 340, 2023-11-14 22:13:20 UTC" in sentence


def test_a_process_on_another_machine_is_judged_by_the_clock_alone() -> None:
    elsewhere = info(pid=2**22 + 1, host="another machine")
    assert standing(looks(300), elsewhere, now=NOW + 60.0).trouble == ""
    late = standing(looks(300), elsewhere, now=NOW + 600.0)
    assert late.trouble == "the watch was last heard of at step 340"
    assert "No step was seen for 10 minutes" in late.watch[0]
    assert "The snapshot of step 400 has not come." in late.watch[0]


def test_slow_steps_and_long_snapshots_are_not_late() -> None:
    slow = info(step_s=300.0)
    assert standing(looks(300), slow, now=NOW + 1400.0).trouble == ""
    assert standing(looks(300), slow, now=NOW + 1600.0).trouble != ""
    long = made_record(300)
    long = dataclasses.replace(long, cost=dataclasses.replace(long.cost, stall_s=500.0))
    assert standing([long], info(), now=NOW + 1000.0).trouble == ""


def test_without_a_clock_the_word_of_the_watch_is_taken() -> None:
    assert standing(looks(300), info(pid=2**22 + 1)).trouble == ""


def test_what_the_budget_has_left_out_is_no_trouble() -> None:
    left_out = info(status="closed", step=450, num_due=9, left_out="7 to save time")
    found = standing(looks(100, 300), left_out, now=NOW)
    assert (found.trouble, found.state) == ("", "too early to tell")
    assert "weights 2 of 9. Left out: 7 to save time." in found.watch[0]


def test_a_record_that_is_newer_than_the_state_counts() -> None:
    found = standing(looks(100, 300, 400, 500), info(step=450), now=NOW)
    assert found.trouble == ""
    assert found.watch == (
        "The watch is on, at step 500. Watched: weights 4 of 5. Last snapshot at step 500.",
    )


@pytest.mark.parametrize(
    ("valid", "trouble"),
    [
        ("+++", ""),
        ("+-+", ""),
        ("++--", ""),
        ("+---", "the last 3 snapshots failed"),
        ("-", "all snapshots failed"),
        ("--", "all snapshots failed"),
    ],
)
def test_a_blind_watch_is_known_from_its_records_alone(valid: str, trouble: str) -> None:
    records = [
        made_record(i) if sign == "+" else failed(made_record(i)) for i, sign in enumerate(valid)
    ]
    found = standing(records)
    assert found.trouble == trouble
    assert [("because of: OSError: no." in s) for s in found.watch] == [True] * bool(trouble)


def test_no_evaluation_that_succeeded_is_said_and_one_left_out_is_none() -> None:
    left_out = with_proxy(made_record(2), not_evaluated="left out")
    broken = with_proxy(made_record(1), valid=False, reason="ValueError: no")
    found = standing([broken, left_out])
    assert found.trouble == "no evaluation has succeeded"
    assert (
        "none of 1 evaluations succeeded, the last because of: ValueError: no." in (found.watch[0])
    )
    assert standing([left_out]).trouble == ""


def test_completion_offers_what_the_manual_names() -> None:
    run = sw.Run(looks(0))
    offered = {name for name in dir(run) if not name.startswith("_")}
    assert offered >= {"records", "series", "frame", "report", "plot", "emergence", "verdict"}
    assert not offered & {"again", "rules", "require_records"}
    assert run.again().rules == run.rules


@pytest.mark.parametrize(("num_nan", "num_inf"), [(64, 0), (0, 3), (1, 2)])
def test_weights_that_are_no_numbers_are_not_said_to_be_valid(num_nan: int, num_inf: int) -> None:
    record = dataclasses.replace(made_record(0), num_nan=num_nan, num_inf=num_inf)
    for told in (repr(record), record._repr_html_()):
        assert f"{num_nan + num_inf:,} weights are NaN or infinite" in told
        assert "yes" not in told
    assert "yes" in repr(made_record(0))
