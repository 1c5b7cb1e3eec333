"""A replay that is killed and started again ends with the files of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from contracts import logged
from contracts.forked import Child
from contracts.stored_run import EVERY, NUM, detectors, on_disk, weights

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.sinks.jsonl import JsonlSink, read_records
from sparsitywatch.sinks.tensorboard import TensorBoardSink


class Killed(BaseException):
    """What no code catches: the end of a process."""


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The files of a replay that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    replay(run, folder)
    found = on_disk(folder)
    assert len(found["records"]) == NUM
    assert len(found["events"]) >= 1
    return found


def replay(run: Path, logdir: Path, **options) -> sw.replay:
    return sw.replay(run, logdir=logdir, detectors=detectors(), **options)


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch):
    """Ends a replay as a kill would: nothing is closed, nothing is flushed."""

    def kill_at(run: Path, logdir: Path, owner: type, method: str, call: int, when: str) -> bool:
        original, calls = getattr(owner, method), []

        def dying(*arguments):
            calls.append(0)
            if len(calls) == call and when == "before":
                raise Killed
            original(*arguments)
            if len(calls) == call and when == "after":
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, dying)
            patch.setattr(Pipeline, "close", lambda self: None)
            try:
                replay(run, logdir)
            except Killed:
                return True
        return False

    return kill_at


# TensorBoard is written before the log: after the one is before the other, but for its events
@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "method", "when"),
    [
        (JsonlSink, "write", "before"),
        (JsonlSink, "write", "after"),
        (JsonlSink, "event", "before"),
        (JsonlSink, "event", "after"),
        (TensorBoardSink, "write", "after"),
    ],
)
def test_killed_at_any_write(run, whole, tmp_path: Path, kill, owner, method, when) -> None:
    """At each second write on one of its sides; at the ends and at an event on both."""
    events = [json.loads(line) for line in whole["events"]]
    with_events = {max(e["detected_step"], e["revised_step"]) // EVERY for e in events}
    calls = range(1, 1 + (len(events) if method == "event" else NUM))
    if method == "event":
        chosen = [*calls]
    elif owner is TensorBoardSink:
        chosen = sorted(with_events)
    else:
        side = 1 if when == "before" else 3
        chosen = [c for c in calls if c in {1, NUM} | with_events or c % 4 == side]
    for call in chosen:
        logdir = tmp_path / str(call)
        assert kill(run, logdir, owner, method, call, when)
        again = replay(run, logdir)
        assert on_disk(logdir) == whole, call
        num_kept = again.num_snapshots
        assert num_kept in (NUM - call, NUM - call + 1) or method == "event"
    assert not kill(run, tmp_path, owner, method, calls.stop, when)  # these were all


@pytest.mark.slow
def test_killed_while_the_log_is_opened(run, whole, tmp_path: Path, kill) -> None:
    for owner in (JsonlSink, TensorBoardSink):
        for when in ("before", "after"):
            logdir = tmp_path / f"{owner.__name__}-{when}"
            assert kill(run, logdir, owner, "open", 1, when)
            replay(run, logdir)
            assert on_disk(logdir) == whole


@pytest.mark.slow
def test_killed_again_and_again(run, whole, tmp_path: Path, kill) -> None:
    for number in range(NUM):
        owner = (JsonlSink, TensorBoardSink)[number % 2]
        kill(run, tmp_path, owner, "write", 1 + number % 3, ("before", "after")[number % 2])
    replay(run, tmp_path)
    assert on_disk(tmp_path) == whole


@pytest.mark.slow
def test_a_replay_that_keeps_few_spectra_goes_on_as_one_that_keeps_all(
    run, whole, tmp_path: Path
) -> None:
    checkpoints = sorted(run.iterdir(), key=lambda path: int(path.stem[5:]))
    for num in (5, 6, 14, NUM):  # where it stops, its last spectrum is one that is not to stay
        replay(checkpoints[:num], tmp_path, keep_spectra=7)
    records = logged.records(tmp_path / "sparsitywatch")
    for record in records:
        del record["wall_time"], record["cost"], record["source"]["address"]
    assert records == whole["records"]
    kept = sorted(path.name for path in (tmp_path / "sparsitywatch" / "spectra").glob("*.npz"))
    steps = [EVERY * (index + 1) for index in (0, 7, 14, 21, NUM - 1)]
    assert kept == [f"step-{step:08d}.npz" for step in steps]


@pytest.mark.slow
def test_a_finished_one_does_nothing_more(run, whole, tmp_path: Path) -> None:
    first = replay(run, tmp_path)

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("[!.]*") if p.is_file()}

    before = files()
    again = replay(run, tmp_path)
    assert files() == before
    assert (first.num_snapshots, again.num_snapshots) == (NUM, 0)
    assert [record.step for record in again.records] == [record.step for record in first.records]
    assert repr(again.events) == repr(first.events)  # NaN is no equal of itself


SCRIPT = """
import sys
import sparsitywatch as sw
from contracts.stored_run import detectors

def told(record):
    print(record.step, flush=True)

sw.replay(sys.argv[1], logdir=sys.argv[2], detectors=detectors(), on_record=[told])
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_real_kill(run, whole, tmp_path: Path) -> None:
    for num_lines in (1, 9, NUM + 1):
        process = Child(SCRIPT, run, tmp_path)
        lines = [line for _, line in zip(range(num_lines), process.stdout, strict=False)]
        if lines[-1] == "done\n":
            break
        os.kill(process.pid, signal.SIGKILL)
        assert process.communicate()[0] == -signal.SIGKILL
    assert process.communicate()[0] == 0
    found = on_disk(tmp_path)
    # the kill may have come between a spectrum and its record: then the first one was set aside
    aside = [path.name for path in (tmp_path / "sparsitywatch" / "spectra").glob("superseded/*")]
    for name in [*aside, "superseded"] if aside else []:
        found["names"].remove(name)
    assert found == whole


@pytest.mark.slow
def test_checkpoints_that_came_later_are_added(run, whole, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    for looks in (range(7), range(7, 8), range(8, NUM)):
        for look in looks:
            name = f"step-{EVERY * (look + 1)}.pt"
            shutil.copy(run / name, place / name)
        assert replay(place, tmp_path).num_snapshots == len(looks)
    assert _of(whole, tmp_path) == on_disk(tmp_path)


def _of(whole: dict, folder: Path) -> dict:
    return {**whole, "run": {**whole["run"], "replayed_from": [str(folder / "run")]}}


@pytest.mark.slow
def test_a_gap_that_is_filled_is_taken_in(run, whole, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    hidden = place / "step-50.pt"
    hidden.rename(tmp_path / "hidden")
    replay(place, tmp_path)
    (tmp_path / "hidden").rename(hidden)
    again = replay(place, tmp_path)
    assert (again.num_snapshots, len(again.records)) == (NUM - 4, NUM)
    found = on_disk(tmp_path)
    assert {**found, "names": []} == {**_of(whole, tmp_path), "names": []}
    # nothing is thrown away
    lost = (tmp_path / "sparsitywatch" / "superseded.jsonl").read_text().splitlines()
    assert len(lost) >= NUM - 5


@pytest.mark.slow
def test_a_gap_is_not_filled_at_the_price_of_records_whose_checkpoints_are_gone(
    run, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    (place / "step-50.pt").rename(tmp_path / "hidden")
    replay(place, tmp_path)
    (tmp_path / "hidden").rename(place / "step-50.pt")
    (place / "step-100.pt").unlink()
    again = replay(place, tmp_path)
    assert len(again.records) == NUM - 1
    (failure,) = again.failures
    assert (failure.step, again.num_snapshots) == (50, 0)
    assert "came after later ones had been measured" in failure.reason


@pytest.mark.slow
def test_gone_checkpoints_stay_in_the_log(run, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    for name in ("step-10.pt", "step-20.pt"):
        shutil.copy(run / name, place)
    replay(place, tmp_path)
    (place / "step-10.pt").unlink()
    (place / "step-20.pt").unlink()
    shutil.copy(run / "step-30.pt", place)
    again = replay(place, tmp_path)
    assert [record.step for record in again.records] == [10, 20, 30]
    assert again.records[-1].movement.since_step == -1  # what moved is not known
    assert again.records[-1].near_zero == sw.replay(run, logdir=None).records[2].near_zero


@pytest.mark.slow
def test_the_log_of_something_else_is_refused(run, tmp_path: Path) -> None:
    replay(run, tmp_path)
    before = on_disk(tmp_path)
    for options, message in (
        ({"tolerance": 0.02}, r"tolerance 0\.01, now 0\.02"),
        ({"scope": "layers"}, "scope_hash"),
        ({"near_zero": ["zero"]}, "near_zero"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            replay(run, tmp_path, **options)
    model = torch.nn.Linear(3, 3)
    live = tmp_path / "live"
    with sw.watch(model, None, logdir=live, scope="layers", max_overhead=None) as watcher:
        watcher.step()
        watcher.snapshot()
    with pytest.raises(ConfigurationError, match="the log of a live watch"):
        replay(run, live)
    just_begun = tmp_path / "begun"
    with sw.watch(model, None, logdir=just_begun, scope="layers", every=9) as watcher:
        watcher.step()
        with pytest.raises(ConfigurationError, match="another one writes to"):
            replay(run, just_begun)
    with pytest.raises(ConfigurationError, match="the log of a live watch"):
        replay(run, just_begun)
    assert on_disk(tmp_path) == before
    assert len(read_records(live / "sparsitywatch")) == 1


def test_step_zero_is_kept(tmp_path: Path) -> None:
    for look in range(3):
        torch.save(weights(look), tmp_path / f"step-{look}.pt")
        again = sw.replay(tmp_path, logdir=tmp_path / "log", detectors=detectors())
        assert again.num_snapshots == 1
    assert [record.step for record in again.records] == [0, 1, 2]
    assert not (tmp_path / "log" / "sparsitywatch" / "superseded.jsonl").exists()


@pytest.mark.slow
def test_two_at_once_do_not_write_to_one_log(run, tmp_path: Path) -> None:
    refused = []

    def again(record: sw.Record) -> None:
        if record.step == 10 * EVERY:
            for other in (tmp_path, tmp_path / "x" / ".."):
                with pytest.raises(ConfigurationError, match="another one writes to") as error:
                    replay(run, other)
                refused.append(error)

    (tmp_path / "x").mkdir()
    first = replay(run, tmp_path, on_record=[again])
    assert (len(refused), len(first.records)) == (2, NUM)
    assert replay(run, tmp_path).num_snapshots == 0  # the claim ended with it


@pytest.mark.slow
def test_a_live_watch_does_not_go_on_from_a_replay(
    run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replay(run, tmp_path)
    before = on_disk(tmp_path)
    model = torch.nn.Linear(3, 3)
    with sw.watch(
        model, None, logdir=tmp_path, scope="layers", initial_step=500, max_overhead=None
    ) as watcher:
        watcher.step()
        watcher.snapshot()
    assert [record.step for record in read_records(tmp_path / "sparsitywatch")] == [501]
    assert "held an earlier run, which this one does not go on from" in caplog.text
    (tmp_path / "kept").mkdir()
    (tmp_path / "sparsitywatch-earlier-1").rename(tmp_path / "kept" / "sparsitywatch")
    assert on_disk(tmp_path / "kept") == before


# ------------------------------------------------------------------ files that are odd


@pytest.fixture(scope="module")
def odd(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run with zeros in three of its files, at both ends, too; and the files of its replay."""
    folder = tmp_path_factory.mktemp("odd")
    for place in (1, 8, NUM):
        stored = torch.load(run / f"step-{EVERY * place}.pt", weights_only=True)
        for one in (stored.get("model", stored) or {}).values():
            if isinstance(one, torch.Tensor) and one.ndim > 1:
                one.view(-1)[one.numel() // 2 :] = 0.0
        torch.save(stored, folder / f"step-{EVERY * place}.pt")
    for file in run.iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    replay(folder, folder / "log")
    found = on_disk(folder / "log")
    told = [json.loads(line) for line in found["events"]]
    at = {e["onset_high"] // EVERY for e in told if e["kind"] == "contents"}
    assert at == {1, 8, NUM}
    return folder, found


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [6, pytest.param(40, marks=pytest.mark.whole)])
def test_what_odd_files_hold_is_told_once_whenever_a_replay_is_killed(
    odd: tuple[Path, dict], tmp_path: Path, kill, num_kills: int
) -> None:
    folder, whole = odd
    chance = random.Random(num_kills)
    moments = [(owner, method, when) for owner in (JsonlSink, TensorBoardSink)
               for method in ("write", "event") for when in ("before", "after")]  # fmt: skip
    num_killed = 0
    for number in range(num_kills):
        owner, method, when = chance.choice(moments)
        num = NUM if method == "write" else len(whole["events"])
        logdir = tmp_path / str(number)
        num_killed += kill(folder, logdir, owner, method, chance.randint(1, num), when)
        replay(folder, logdir)
        assert on_disk(logdir) == whole, (owner, method, when)
    assert num_killed > num_kills // 2


@pytest.mark.slow
def test_what_odd_files_hold_is_told_as_they_come(odd: tuple[Path, dict], tmp_path: Path) -> None:
    folder, whole = odd
    place = tmp_path / "run"
    place.mkdir()
    for look in range(NUM):
        name = f"step-{EVERY * (look + 1)}.pt"
        shutil.copy(folder / name, place / name)
        replay(place, tmp_path)
    told = [json.loads(line) for line in on_disk(tmp_path)["events"]]
    of_contents = [
        [(e["series"], e["onset_low"], e["onset_high"], e["layers"]) for e in events
         if e["kind"] == "contents"]
        for events in (told, [json.loads(line) for line in whole["events"]])
    ]  # fmt: skip
    assert of_contents[0] == of_contents[1]
