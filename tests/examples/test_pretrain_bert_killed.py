"""Killed or interrupted at random instants: the same command goes on, and no result shows it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from contracts import event_readers, logged
from contracts.families import whole
from contracts.forked import WATCHED_BERT, Child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked from a warm process"),
]

STEPS, EVERY, NUM_KILLS = 200, 4, 6
#: The last kill comes well before the last step.
LAST_GOAL = 150
TIMEOUT_S = 60.0


def _last_step(records: Path) -> int:
    """Step of the last whole line; 0 while there is none."""
    if not records.exists():
        return 0
    lines = records.read_bytes().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def _end_at(pid: int, how: signal.Signals, records: Path, goal: int, delay_s: float) -> None:
    """The signal, ``delay_s`` after the records have reached step ``goal``."""
    deadline = time.monotonic() + TIMEOUT_S
    while _last_step(records) < goal:
        assert time.monotonic() < deadline, f"step {goal} is not reached"
        os.kill(pid, 0)  # raises when the run has ended by itself
        time.sleep(0.002)
    time.sleep(delay_s)
    os.kill(pid, how)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _deterministic(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("wall_time", "cost")}


def _curves(scalars: event_readers.Scalars) -> event_readers.Scalars:
    """All but the times, whose values differ from run to run; their steps do not.

    A run that is interrupted closes its watch, which writes its share of the time once more.
    """
    return {
        tag: sorted({(step, 0.0) for step, _ in points}) if "/watch/" in tag else points
        for tag, points in scalars.items()
    }


def _assert_same_results(killed: Path, whole: Path, how: signal.Signals) -> None:
    records = logged.records(killed / "sparsitywatch")
    assert [r["step"] for r in records] == list(range(EVERY, STEPS + 1, EVERY))
    expected = logged.records(whole / "sparsitywatch")
    assert list(map(_deterministic, records)) == list(map(_deterministic, expected))

    events = _lines(whole / "sparsitywatch" / "events.jsonl")
    assert events  # or this would show nothing
    told = _lines(killed / "sparsitywatch" / "events.jsonl")
    if how == signal.SIGINT:  # each interrupted run has said how its events stood at its end
        events, told = ([*{e["id"]: e for e in lines}.values()] for lines in (events, told))
    assert told == events

    states = [torch.load(logdir / "checkpoint.pt") for logdir in (killed, whole)]
    assert [state["step"] for state in states] == [STEPS, STEPS]
    for name, tensor in states[1]["model"].items():
        assert torch.equal(states[0]["model"][name], tensor), name

    for read in (
        event_readers.scalars_of_accumulator,
        event_readers.scalars_of_plugin_accumulator,
    ):
        curves, reference = (_curves(read(d / "sparsitywatch")) for d in (killed, whole))
        assert reference["0_sparsity/1_near_zero/initial_0.1"]
        assert curves == reference


@whole
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_at_random_instants_a_run_ends_as_if_it_had_not_been(tmp_path, script, tiny, how):
    rng = random.Random(0)
    arguments = [*tiny, "--steps", str(STEPS), "--every", str(EVERY), "--logdir"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(logdir: Path) -> Child:
        output = tmp_path / f"{logdir.name}.txt"
        return Child(Path(script), *arguments, logdir, imports=WATCHED_BERT, output=output)

    uninterrupted = start(whole)

    records = killed / "sparsitywatch" / "records.jsonl"
    # at the first ones the goal is reached already: they die in start-up, at any point of it
    goals = sorted([0] * 2 + [rng.randrange(1, LAST_GOAL) for _ in range(NUM_KILLS - 2)])
    for goal in goals:
        run = start(killed)
        _end_at(run.pid, how, records, goal, rng.uniform(0.0, 1.0 if goal == 0 else 0.1))
        assert run.wait() != 0
    assert start(killed).wait() == 0, (tmp_path / "killed.txt").read_text()
    assert uninterrupted.wait() == 0, (tmp_path / "whole.txt").read_text()

    told = (tmp_path / "killed.txt").read_text()
    assert told.count("Going on from step") >= NUM_KILLS // 3
    assert how == signal.SIGINT or "Traceback" not in told  # Ctrl-C has one
    _assert_same_results(killed, whole, how)
