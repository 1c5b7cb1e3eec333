"""``status --watch`` and ``--since``: for schedulers and agents, which read lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from contracts import fake_run
from contracts.watched import Run

import sparsitywatch as sw
from sparsitywatch.cli import logs, main

#: Of a watch that is quiet of itself: only vital signs are events.
QUIET: dict[str, Any] = {"proxy": None, "detectors": {}, "on_event": [], "every": 1}


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[object]], None]:
    """Let the training go on while ``status --watch`` waits."""

    def waits(training: Iterator[object]) -> None:
        monkeypatch.setattr(logs.time, "sleep", lambda _: next(training))

    return waits


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def trained(run: Run, logdir: Path, *, breaks: bool) -> Iterator[object]:
    """Twelve steps; a weight may break. The watch has begun when it is first asked."""
    with run.watch(logdir, **QUIET) as watcher:
        run.train(2)
        yield watcher.records
        run.train(8)
        yield watcher.records
        if breaks:
            run.model[0].weight.data[0, 0] = math.nan
        run.train(2)
        yield watcher.records
    yield "it was closed"


@pytest.mark.filterwarnings("ignore")
def test_each_change_of_state_is_a_line_until_the_run_ends(
    tmp_path: Path, between: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    training = trained(Run(), tmp_path / "run", breaks=True)
    next(training)
    between(training)
    assert main(["status", str(tmp_path / "run"), "--watch"]) == 2
    early, healthy, broken = lines(capsys)
    assert [one["state"] for one in (early, healthy, broken)] == [
        "too early to tell", "healthy", "broken",
    ]  # fmt: skip
    # somebody has written to weights after a step, so the last snapshot waits for the close
    assert [one["last_step"] for one in (early, healthy, broken)] == [2, 10, 11]
    assert early["events"] == healthy["events"] == []
    assert broken["events"] == ["vital/not_finite@11"]
    assert [event.id for event in sw.load(tmp_path / "run").events] == broken["events"]
    assert broken["name"] == "run"
    assert "NaN or infinite" in broken["headline"]
    assert broken["advice"].startswith("Stop the run")


@pytest.mark.filterwarnings("ignore")
def test_of_a_folder_every_run_has_its_lines_also_one_that_begins_later(
    tmp_path: Path, between: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (trained(Run(), tmp_path / name, breaks=name == "b") for name in "ab")
    next(one)

    def both() -> Iterator[object]:
        yield next(other)
        for _ in range(3):
            yield next(one), next(other)

    between(both())
    assert main(["status", str(tmp_path), "--watch"]) == 2
    told = [(line["name"], line["state"]) for line in lines(capsys)]
    assert told == [
        ("a", "too early to tell"), ("b", "too early to tell"), ("a", "healthy"), ("b", "healthy"),
        ("b", "broken"),
    ]  # fmt: skip


def test_a_run_that_has_ended_or_was_killed_or_cannot_be_read_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logdir = fake_run.write_run(tmp_path / "run", fake_run.looks(range(0, 2001, 200)))
    assert main(["status", str(logdir), "--watch"]) == main(["status", str(logdir)])
    capsys.readouterr()
    run, killed = Run(), tmp_path / "killed"
    with run.watch(killed, **QUIET):
        run.train(1)
        manifest = killed / "sparsitywatch" / "run.json"
        alive = json.loads(manifest.read_text())
    assert alive["state"]["status"] == "on"
    alive["state"]["pid"] = 2**22 + 1  # above what Linux gives to a process
    manifest.write_text(json.dumps(alive))
    assert main(["status", str(killed), "--watch"]) == 2
    (told,) = lines(capsys)
    assert told["headline"].startswith("The training ended without closing its watch, after step 1")
    manifest.write_text("{")
    assert main(["status", str(killed), "--watch"]) == 2
    (told,) = lines(capsys)
    assert told["headline"].startswith("The log cannot be read")
    assert main(["status", str(tmp_path / "nowhere"), "--watch"]) == 2
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.time, "sleep", interrupt)
    with ExitStack() as stack:
        run = Run()
        stack.enter_context(run.watch(tmp_path, **QUIET))
        run.train(1)
        assert main(["status", str(tmp_path), "--watch"]) == 130
    assert len(lines(capsys)) == 1


def test_events_up_to_a_step_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = range(0, 2001, 200)
    logdir = fake_run.write_run(tmp_path / "run", fake_run.looks(steps), fake_run.events())
    first, second = (event.reported_step for event in sw.load(logdir).events)
    assert first < second

    def since(step: int) -> tuple[int, list[str]]:
        code = main(["status", str(logdir), "--json", "--since", str(step)])
        return code, [event["id"] for event in lines(capsys)[0]["events"]]

    ids = [event.id for event in sw.load(logdir).events]
    assert since(first - 1) == (1, ids)
    assert since(first) == (1, ids[1:])
    assert since(second)[1] == []
    assert main(["status", str(logdir), "--watch", "--since", str(first)]) == 1
    assert [line["events"] for line in lines(capsys)] == [ids[1:]]
    assert main(["status", str(logdir), "--since", str(second)]) == 0
    assert "No alarm in 11 snapshots" in capsys.readouterr().out
