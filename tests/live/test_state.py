"""How a watch is, told wherever its numbers are shown: live, after its end, after a kill."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from contracts import event_readers
from contracts.watched import Run, child

from sparsitywatch.cli import main
from sparsitywatch.records import WatchState
from sparsitywatch.sinks import jsonl
from sparsitywatch.sinks.jsonl import read_manifest, read_records
from sparsitywatch.sinks.tensorboard import FIRST, LAST


def state_of(logdir: Path) -> WatchState:
    info = read_manifest(logdir / "sparsitywatch")
    assert info is not None
    assert info.state is not None
    return info.state


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which each line is whole."""
    monkeypatch.setenv("COLUMNS", "9999")


def summary(logdir: Path, capsys) -> list[str]:
    assert main(["summary", str(logdir)]) == 0
    return capsys.readouterr().out.splitlines()


def page(logdir: Path) -> str:
    assert main(["report", str(logdir), "-o", str(logdir / "page.html")]) == 0
    return (logdir / "page.html").read_text()


def texts(logdir: Path, tag: str) -> list[str]:
    """Every text of a tag in TensorBoard's files."""
    reader = event_readers.plugin_accumulator(logdir / "sparsitywatch")
    return [e.tensor_proto.string_val[0].decode() for e in reader.Tensors(tag)]


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("the disk of weights is on fire")


def test_a_watch_that_is_on_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    for interval in ("_REPORT_S", "_SIGN_OF_LIFE_S"):  # whenever the snapshot has ended
        monkeypatch.setattr(f"sparsitywatch.live.watcher.{interval}", 0.0)
    run = Run()
    with run.watch(tmp_path, every=3, proxy=None) as watcher:
        run.train(4)
        assert len(watcher.records) == 1
        state = state_of(tmp_path)
        assert (state.status, state.step, state.last_step, state.next_due_step) == ("on", 4, 3, 6)
        assert state.last_evaluated_step == -1
        assert (state.pid, state.num_failed) == (os.getpid(), 0)
        assert 0.0 < state.step_s < 60.0
        lines = summary(tmp_path, capsys)
        assert lines[0] == "too early to tell: 1 of about 9 snapshots so far"
        words = (
            "the watch is on, at step 4; watched: weights 1 of 1; last snapshot at step 3; next "
            "snapshot about step 6; the watch took"
        )
        assert any(line.startswith(words) for line in lines)
    lines = summary(tmp_path, capsys)
    assert any(line.startswith("the watch was closed at step 4; ") for line in lines)


@pytest.mark.slow
def test_a_watch_that_switched_itself_off_does_not_look_like_a_quiet_one(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    run = Run()
    with run.watch(tmp_path, every=3, strict=False) as watcher:
        run.train(3)
        assert len(watcher.records) == 1
        monkeypatch.setattr("sparsitywatch.pipeline.measure.MagnitudeSpectrum.of", broken)
        run.train(17)
    state = state_of(tmp_path)
    assert (state.status, state.last_step, state.last_evaluated_step) == ("off", 12, 3)
    assert 12 <= state.step <= 15  # the third failure is known when it comes from behind
    assert "on fire" in state.reason
    first, why, *_ = summary(tmp_path, capsys)
    assert first.startswith(f"broken: The watch has been off since step {state.step};")
    assert why.startswith(
        f"Why: The watch switched itself off at step {state.step}: 3 snapshots in a row"
    )
    assert "on fire" in why
    html = page(tmp_path)
    headline = html.split("<h1>")[1].split("</h1>")[0]
    assert "the watch has been off since step" in headline.lower()
    assert "switched itself off at step" in html
    assert "on fire" in html
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "run.svg")]) == 0
    assert "the watch has been off since step" in (tmp_path / "run.svg").read_text()
    told = texts(tmp_path, f"{FIRST}/watch")
    assert told[0].startswith("The watch is on")
    assert told[-1].startswith("The watch switched itself off")
    assert "on fire" in told[-1]
    assert len(texts(tmp_path, f"{LAST}/notes")) == 3


def test_a_failed_last_record_does_not_hide_the_last_estimate(
    tmp_path, capsys, monkeypatch
) -> None:
    run = Run()
    with run.watch(tmp_path, every=3, strict=False, background=False):
        run.train(3)
        monkeypatch.setattr("sparsitywatch.pipeline.measure.MagnitudeSpectrum.of", broken)
        run.train(3)
    (line,) = (line for line in summary(tmp_path, capsys) if line.startswith("Now: "))
    assert re.search(r"essential sparsity .* at step 3\b", line)


def test_a_watch_whose_evaluations_all_fail_is_blind(tmp_path: Path, capsys, monkeypatch) -> None:
    run = Run()
    with run.watch(tmp_path, every=3, strict=False, background=False):
        monkeypatch.setattr("sparsitywatch.pipeline.measure.run_sweep", broken)
        run.train(6)
    lines = summary(tmp_path, capsys)
    assert lines[0] == "broken: All snapshots failed"
    assert lines[1].startswith("Why: Blind: all snapshots failed")
    (now,) = (line for line in lines if line.startswith("Now: "))
    assert now.endswith("; essential sparsity not known: no evaluation has succeeded; 0 events")


def test_the_last_share_of_the_time_is_written_at_the_end(tmp_path: Path) -> None:
    run = Run()
    with run.watch(tmp_path, every=3, proxy=None, background=False) as watcher:
        run.train(10)
        # so short a training is all watch, and the share stays 1: the last step took a minute
        watcher._budget.now = lambda: time.perf_counter() + 60.0
    state, records = state_of(tmp_path), watcher.records
    scalars = event_readers.scalars_of_plugin_accumulator(tmp_path / "sparsitywatch")
    points = scalars[f"{LAST}/watch/overhead"]
    assert [step for step, _ in points] == [3, 6, 9, 10]
    assert points[-1][1] == pytest.approx(state.overhead, rel=1e-6)
    assert state.overhead < records[-1].cost.overhead / 2


@pytest.mark.slow
def test_a_watch_that_was_not_closed_is_known_by_its_process(tmp_path: Path, capsys) -> None:
    program = """
run = Run()
watcher = run.watch(Path(sys.argv[1]), proxy=None)
run.train(7)
len(watcher.records)
os._exit(9)
"""
    assert child(program, tmp_path).communicate()[0] == 9
    assert state_of(tmp_path).status == "on"
    first = summary(tmp_path, capsys)[0]
    assert first.startswith("broken: The training ended without closing its watch, after step 6;")


def test_a_living_watch_tells_that_it_lives_between_snapshots(tmp_path: Path, monkeypatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("sparsitywatch.live.watcher.time.monotonic", lambda: clock[0])
    run = Run()
    with run.watch(tmp_path, every=1000, proxy=None):
        run.train(5)
        assert state_of(tmp_path).step == 0  # told when it began, and not at each step
        clock[0] += 61.0
        run.train(2)
        assert state_of(tmp_path).step == 6
        assert state_of(tmp_path).next_due_step == 1000


def test_a_resumed_watch_knows_its_last_snapshot(tmp_path: Path) -> None:
    first = Run()
    watcher = first.watch(tmp_path)
    first.train(7)
    checkpoint = first.checkpoint(watcher)
    watcher.close()
    second = Run.resumed(checkpoint)
    with second.watch(tmp_path) as resumed:
        resumed.load_state_dict(checkpoint["watch"])
        state = state_of(tmp_path)
        assert (state.status, state.last_step, state.last_evaluated_step) == ("on", 6, 6)
        assert state.next_due_step == 9


@pytest.mark.parametrize("is_there", [True, False])
def test_a_manifest_that_cannot_be_written_costs_no_record(
    is_there: bool, tmp_path: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr("sparsitywatch.live.watcher._REPORT_S", 0.0)
    run = Run()
    with run.watch(tmp_path, every=1, proxy=None, strict=False) as watcher:
        run.train(1)
        if not is_there:
            (tmp_path / "sparsitywatch" / "run.json").unlink()

        def full(path: Path, content: bytes) -> None:
            if path.name == "run.json":
                raise OSError(28, "No space left on device")
            write(path, content)

        write = jsonl.replace_file
        monkeypatch.setattr(jsonl, "replace_file", full)
        run.train(9)
        assert len(watcher.records) == 10
    assert len(read_records(tmp_path / "sparsitywatch")) == 10
    assert ("JsonlSink did not take the watch's state" in caplog.text) == (not is_there)
    if is_there:  # what it has on the disk has room for the state
        assert (state_of(tmp_path).status, state_of(tmp_path).step) == ("closed", 10)
