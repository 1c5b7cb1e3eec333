"""One thread acts, and nothing of a watch outlives its training."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path

import pytest
from contracts.watched import Run, steps_of

import sparsitywatch as sw
from sparsitywatch.pipeline.rundir import _is_locked

TESTS = Path(__file__).resolve().parents[1]


def script(text: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, with one thread of torch."""
    head = (
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nimport torch\ntorch.set_num_threads(1)\n"
    )
    command = [sys.executable, "-c", head + textwrap.dedent(text), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **options
    )


# ------------------------------------------------------------------ one thread acts


@pytest.mark.parametrize("background", [True, False])
def test_whoever_reads_actions_run_once_in_the_thread_that_steps(background: bool) -> None:
    run, acted, seen = Run(), [], ([], [])
    end = threading.Event()

    def act(record) -> None:
        acted.append((record.step, threading.get_ident()))

    watcher = run.watch(None, proxy=None, every=2, background=background, on_record=[act])

    def read(counts: list[int]) -> None:
        while not end.is_set():
            counts.append(len(watcher.records) + len(watcher.events))
            watcher.state_dict()
            repr(watcher)
            time.sleep(0.001)  # leaves the interpreter to the others

    readers = [threading.Thread(target=read, args=(counts,)) for counts in seen]
    for reader in readers:
        reader.start()
    run.train(80)
    end.set()
    for reader in readers:
        reader.join()
    watcher.close()
    assert steps_of(watcher.records) == [*range(2, 81, 2)]
    assert acted == [(step, threading.get_ident()) for step in range(2, 81, 2)]
    assert [*map(len, seen)] > [2, 2]
    assert [*seen] == [*map(sorted, seen)]


def test_a_snapshot_from_another_thread_is_acted_on_by_the_one_that_steps() -> None:
    run, acted = Run(), []
    with run.watch(None, proxy=None, every=10, on_record=[lambda _: acted.append(me())]) as watcher:
        me = threading.get_ident
        run.train(3)
        taken = []
        other = threading.Thread(target=lambda: taken.append(watcher.snapshot()))
        other.start()
        other.join()
        assert taken[0].step == 3
        assert taken[0].valid
        assert acted == []
        run.train(1)
        assert acted == [threading.get_ident()]


def test_what_nobody_has_acted_on_is_acted_on_at_the_close_wherever_that_is() -> None:
    run, acted = Run(), []
    watcher = run.watch(None, proxy=None, every=4, on_record=[lambda r: acted.append(r.step)])
    trains = threading.Thread(target=run.train, args=(4,))
    trains.start()
    trains.join()
    closers = [threading.Thread(target=watcher.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    assert acted == [4]
    assert watcher.closed


def test_who_asks_for_records_in_a_sink_does_not_wait_for_itself() -> None:
    run, seen = Run(), []

    class Asks(sw.sinks.Sink):
        def open(self, run) -> None:
            """Nothing."""

        def write(self, record, detail) -> None:
            seen.append(len(watcher.records))

        def event(self, event) -> None:
            """Nothing."""

        def close(self) -> None:
            """Nothing."""

    watcher = run.watch(None, proxy=None, every=2, sinks=[Asks()], background=True)
    run.train(4)
    watcher.close()
    assert len(seen) == 2


# ------------------------------------------------------------------ a thread that outlives main


OUTLIVES = """
    import threading, time
    from contracts.watched import Run
    run = Run()
    watcher = run.watch(sys.argv[1], proxy=None, every=5, background=True)
    def train():
        threading.main_thread().join()
        run.train(40)
        print(watcher.step_count, [r.step for r in watcher.records], repr(watcher.off))
    threading.Thread(target=train).start()
"""


def test_a_training_that_outlives_main_is_watched_to_its_end(tmp_path: Path) -> None:
    done = script(OUTLIVES, tmp_path)
    assert done.stdout.strip() == f"40 {[*range(5, 41, 5)]} ''", done.stderr


@pytest.mark.whole
def test_an_unedited_script_whose_thread_outlives_main_is_watched_to_its_end(
    tmp_path: Path,
) -> None:
    file = tmp_path / "train.py"
    text = OUTLIVES.replace(
        "watcher = run.watch(sys.argv[1], proxy=None, every=5, background=True)", ""
    )
    text = text.replace(
        "print(watcher.step_count, [r.step for r in watcher.records], repr(watcher.off))", ""
    )
    file.write_text(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n" + textwrap.dedent(text))
    command = [
        sys.executable,
        "-m",
        "sparsitywatch",
        "run",
        "--every",
        "5",
        "--max-overhead",
        "none",
    ]
    command += ["--logdir", str(tmp_path / "log"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (records,) = (tmp_path / "log").rglob("records.jsonl")
    steps = [json.loads(line)["step"] for line in records.read_text().splitlines()]
    first_looks = {8, 32}
    assert [step for step in steps if step] == sorted({*range(5, 41, 5)} | first_looks)


# ------------------------------------------------------------------ what goes with a watch


def test_many_dropped_watches_leave_no_file_no_thread_and_no_lock(tmp_path: Path) -> None:
    done = script(
        """
        import gc, os, pathlib, resource, threading, time
        from contracts.watched import Run
        from sparsitywatch.pipeline.rundir import _is_locked
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        gc.disable()  # they go at once, not when somebody collects
        place = pathlib.Path(sys.argv[1])
        def train(number):
            run = Run()
            watcher = run.watch(place / str(number), proxy=None, background=number % 2 == 0)
            run.train(4)
        train(0)
        gc.collect()
        for number in range(1, 40):
            train(number)
        while threading.active_count() > 1:
            time.sleep(0.01)
        open_files = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                      if os.path.exists(f"/proc/self/fd/{n}")]
        print([name for name in open_files if name.startswith(str(place))])
        print([str(p) for p in place.rglob(".writer") if _is_locked(p)])
        """,
        tmp_path,
    )
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr
    states = [json.loads(p.read_text()) for p in tmp_path.rglob("state.json")]
    assert states == [] or {state["status"] for state in states} == {"closed"}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_an_evaluation_keeps_nothing_alive(background: bool, fails: bool) -> None:
    """Else an optimizer that is gone seems to be there, and its successor's steps are lost."""
    run = Run()
    proxy = None if fails else run.proxy()
    with run.watch(None, proxy=proxy, optimizer=None, every=2, background=background) as watcher:
        run.train(4)
        if fails:
            run.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.train(1)
        assert len(watcher.records) == 2
        gc.disable()
        try:
            kept = weakref.ref(run.optimizer)
            run.optimizer = None
            assert kept() is None
        finally:
            gc.enable()


def test_a_dropped_watch_is_closed_with_its_reason(tmp_path: Path) -> None:
    run = Run()
    run.watch(tmp_path, proxy=None, background=False)
    run.train(4)
    assert [_is_locked(path) for path in tmp_path.rglob(".writer")] == [True]
    del run
    gc.collect()
    assert [_is_locked(path) for path in tmp_path.rglob(".writer")] == [False]
    found = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert "its optimizer was let go" in found


def test_a_child_that_outlives_a_kill_holds_no_lock(tmp_path: Path) -> None:
    text = """
        import os, time
        from contracts.watched import Run
        run = Run()
        watcher = run.watch(sys.argv[1], proxy=None, every=2, background=False)
        run.train(4)
        if os.fork() == 0:
            print("child", os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
    """
    head = f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n"
    parent = subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(text), str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = int(parent.stdout.readline().split()[1])
    try:
        (writer,) = tmp_path.rglob(".writer")
        assert _is_locked(writer)
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        os.kill(child, 0)  # it lives
        deadline = time.monotonic() + 10
        while _is_locked(writer) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _is_locked(writer)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()
