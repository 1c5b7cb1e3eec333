"""A disk that is full, a folder that is deleted: what a log loses by that, and what is said.

The disk is one of its own, so small that it is filled in a moment, where one may be mounted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from contracts import event_readers
from contracts.watched import Run, told

from sparsitywatch.cli import main
from sparsitywatch.live.watcher import Watcher
from sparsitywatch.sinks.jsonl import read_events, read_manifest, read_records

ROOM = 4 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that pauses are measured by."""
    time = [1000.0]
    monkeypatch.setattr("sparsitywatch.pipeline.outlets.time.monotonic", lambda: time[0])
    return time


def fill(disk: Path) -> Path:
    """A file that leaves no byte free."""
    path = disk / "checkpoint"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while file.write(b"x" * size) == size:
                    continue
            except OSError:
                continue
    return path


def watch(run: Run, logdir: Path, **options) -> Watcher:
    given = {"every": 1, "proxy": None, "strict": False, "background": False}
    return run.watch(logdir, **given | options)


def status(logdir: Path, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["status", str(logdir)])
    return code, capsys.readouterr().out


def state_of(logdir: Path):
    return read_manifest(logdir / "sparsitywatch").state


def assert_whole(logdir: Path, watcher: Watcher, num_steps: int) -> None:
    """The log and the event files hold each record and each event of the watch, once."""
    records = read_records(logdir / "sparsitywatch")
    assert [r.step for r in records] == list(range(1, num_steps + 1))
    assert told(records) == told(watcher.records)
    assert read_events(logdir / "sparsitywatch") == watcher.events
    scalars = event_readers.scalars_of_plugin_accumulator(logdir / "sparsitywatch")
    assert [step for step, _ in scalars["z_sparsity/watch/valid"]] == list(range(1, num_steps + 1))
    assert not list((logdir / "sparsitywatch").glob("*.torn"))
    assert not (logdir / "sparsitywatch" / "superseded.jsonl").exists()


def weights_of(num_steps: int) -> list[torch.Tensor]:
    plain = Run()
    plain.train(num_steps)
    return list(plain.model.parameters())


def test_a_disk_that_is_full_for_a_while_costs_no_record(disk: Path, now, capsys, caplog) -> None:
    run = Run()
    with watch(run, disk) as watcher:
        run.train(10)
        assert watcher.off == ""
        filler = fill(disk)
        now[0] += 100.0
        run.train(5)
        assert watcher.off.startswith("JsonlSink lacks all since step 11: ")
        assert watcher.why_idle == ""  # it watches on, and its state can be saved
        assert watcher.state_dict()["step"] == 15
        assert "No space left on device" in watcher.off
        assert "JsonlSink lacks all since step 11" in repr(watcher)
        watcher._report()
        code, told = status(disk, capsys)
        assert (code, told.splitlines()[0]) == (
            2, "broken: The log lacks what was measured since step 11; no alarm in 10 snapshots",
        )  # fmt: skip
        assert "No space left on device" in told
        filler.unlink()
        now[0] += 100.0
        run.train(5)
        assert watcher.off == ""
        assert "lacks" not in repr(watcher)
        watcher._report()
        code, told = status(disk, capsys)
        assert (code, "JsonlSink was lost at step 11 to 16, and is back" in told) == (0, True)
        assert_whole(disk, watcher, 20)
    assert caplog.text.count("JsonlSink failed and is tried again") == 1
    assert all(
        torch.equal(a, b) for a, b in zip(run.model.parameters(), weights_of(20), strict=False)
    )


def test_what_a_full_disk_has_not_taken_is_written_at_the_end(disk: Path, now) -> None:
    run = Run()
    with watch(run, disk) as watcher:
        run.train(5)
        filler = fill(disk)
        run.train(10)
        filler.unlink()  # and no time passes
    assert_whole(disk, watcher, 15)
    assert state_of(disk).unlogged_since == -1


@pytest.mark.part(3)
@pytest.mark.parametrize("end", ["close", "exception", "off", "dropped"])
def test_a_disk_that_stays_full_takes_the_last_word(end: str, disk: Path, now, capsys) -> None:
    run = Run()
    watcher = watch(run, disk)
    run.train(12)
    fill(disk)
    run.train(12)
    expected = {
        "close": "the watch was closed at step 24",
        "exception": "the training was ended by ZeroDivisionError at step 24",
        "off": "switched itself off at step 24: a reason",
        "dropped": "the watch was closed at step 24, when its optimizer was let go",
    }[end]
    if end == "exception":
        with pytest.raises(ZeroDivisionError), watcher:
            _ = 1 / 0
    elif end == "off":
        watcher._switch_off("a reason " + "that is long " * 300)
    elif end == "dropped":
        watcher.__del__()  # what pytest keeps of the errors above holds it
        watcher._closed = True
        watcher._hook.remove()
    else:
        watcher.close()
    state = state_of(disk)
    assert (state.status != "on", state.unlogged_since) == (True, 13)
    code, told = status(disk, capsys)
    assert code == 2
    assert expected in told
    assert "JsonlSink lacks all since step 13: " in told
    assert "killed" not in told
    assert "without closing" not in told
    # all before; at the end the room that is left in the last page of a file may take one more
    steps = [r.step for r in read_records(disk / "sparsitywatch")]
    assert steps in (list(range(1, 13)), list(range(1, 14)))


@pytest.mark.part(3)
@pytest.mark.parametrize("what", ["sparsitywatch", "."], ids=["its folder", "the logdir"])
@pytest.mark.parametrize("how", ["deleted", "moved"])
@pytest.mark.parametrize("background", [False, True])
def test_a_folder_that_is_gone_comes_back_with_all_of_it(
    what: str, how: str, background: bool, tmp_path: Path, now, capsys, caplog
) -> None:
    logdir = tmp_path / "run"
    run = Run()
    with watch(run, logdir, background=background) as watcher:
        run.train(12)
        assert len(watcher.records) == 12
        if how == "deleted":
            shutil.rmtree(logdir / what)
        else:
            (logdir / what).resolve().rename(tmp_path / "elsewhere")
        now[0] += 100.0
        run.train(12)
        assert watcher.off == ""
        assert (logdir / "sparsitywatch" / ".writer").exists()  # nobody else may write into it
    assert_whole(logdir, watcher, 24)
    assert json.loads((logdir / "sparsitywatch" / "run.json").read_text())["ledger"]
    code, told = status(logdir, capsys)
    assert "the watch was closed at step 24" in told
    assert "JsonlSink was lost at step 13, and is back" in told
    assert code == 0


def test_a_file_of_the_log_that_is_gone_comes_back(tmp_path: Path, now) -> None:
    names = ("records.jsonl", "events.jsonl", "layers.npys", "run.json")
    run = Run()
    with watch(run, tmp_path) as watcher:
        for i, name in enumerate(names):
            run.train(3)
            now[0] += 100.0
            (tmp_path / "sparsitywatch" / name).unlink()
            run.train(1)
            watcher._report()
            assert (watcher.off, watcher.step_count) == ("", 4 * (i + 1))
    records = read_records(tmp_path / "sparsitywatch")
    assert [r.step for r in records] == list(range(1, 17))


def test_where_nothing_can_be_written_any_more_the_training_goes_on(
    tmp_path: Path, now, capsys
) -> None:
    run = Run()
    with watch(run, tmp_path / "run") as watcher:
        run.train(3)
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("in the way")
        for _ in range(9):
            now[0] += 100.0
            run.train(1)
        assert watcher.off.startswith("JsonlSink lacks all since step 4: ")
        assert [r.step for r in watcher.records] == list(range(1, 13))
    assert all(
        torch.equal(a, b) for a, b in zip(run.model.parameters(), weights_of(12), strict=False)
    )
    assert main(["status", str(tmp_path / "run")]) == 2


def test_another_run_that_has_taken_the_place_of_a_deleted_folder_keeps_it(tmp_path: Path) -> None:
    first, second = Run(), Run(seed=1)
    watcher = watch(first, tmp_path)
    first.train(3)
    shutil.rmtree(tmp_path / "sparsitywatch")
    with watch(second, tmp_path):
        second.train(5)
        first.train(3)
        second.train(2)
    watcher.close()
    records = read_records(tmp_path / "sparsitywatch")
    assert [r.step for r in records] == list(range(1, 8))


def test_no_file_stays_open_however_often_it_is_tried(tmp_path: Path, now) -> None:
    run = Run()
    with watch(run, tmp_path / "run") as watcher:
        run.train(2)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").write_text("in the way")
            for _ in range(5):
                now[0] += 100.0
                run.train(1)
            (tmp_path / "run").unlink()
            now[0] += 100.0
            run.train(1)
            assert watcher.off == ""
        assert len(list(Path("/proc/self/fd").iterdir())) == before
