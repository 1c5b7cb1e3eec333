"""Every way in which a watched training can end, and what its log says of it afterwards.

The expected words, states and exit codes are written down by hand, from what a person must know: a
run that came to its end and measured is healthy, an end that nobody planned or a run that
measured nothing is worth a look, and a watch that is gone, off or blind is broken.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts.watched import Run, child

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.live.schedule import Due


def status(logdir: Path, capsys) -> tuple[int, str]:
    """Exit code and text of ``sparsitywatch status``."""
    capsys.readouterr()
    code = main(["status", str(logdir)])
    told = capsys.readouterr()
    return code, told.out + told.err


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("the disk of weights is on fire")


def paid(watcher: sw.Watcher, allowed: Callable[[Due, int], bool]) -> None:
    """Let the budget allow what a test says, by what is due and the step."""
    wait_s = watcher._budget.wait_s
    assert wait_s(Due.WEIGHTS) is not None
    watcher._budget.wait_s = lambda due, **_: 0.0 if allowed(due, watcher.step_count) else 1e9


# ------------------------------------------------------------------ in one process


def closed(at: Path, **options) -> None:
    run = Run()
    with run.watch(at, **options):
        run.train(12)


def closed_by_a_call_twice(at: Path) -> None:
    run = Run()
    watcher = run.watch(at)
    run.train(12)
    watcher.close()
    watcher.close()


def no_step(at: Path) -> None:
    with Run().watch(at):
        pass


def budget(allowed: Callable[[Due, int], bool], **options) -> Callable[[Path], None]:
    def train(at: Path) -> None:
        run = Run()
        with run.watch(at, max_overhead=0.01, background=False, **options) as watcher:
            paid(watcher, allowed)
            run.train(13)

    return train


def failing(from_step: int, name: str = "run_sweep", steps: int = 12) -> Callable[[Path], None]:
    def train(at: Path) -> None:
        run = Run()
        with (
            pytest.MonkeyPatch.context() as patch,
            run.watch(at, strict=False, background=False),
        ):
            run.train(from_step - 1)
            patch.setattr(f"sparsitywatch.pipeline.measure.{name}", broken)
            run.train(steps + 1 - from_step)

    return train


def raised(error: type[BaseException], *arguments: object) -> Callable[[Path], None]:
    def train(at: Path) -> None:
        run = Run()
        watcher = run.watch(at)
        run.train(7)
        with pytest.raises(error), watcher:
            raise error(*arguments)

    return train


def resumed(at: Path) -> None:
    first = Run()
    with first.watch(at) as watcher:
        first.train(7)
        checkpoint = first.checkpoint(watcher)
    second = Run.resumed(checkpoint)
    with second.watch(at) as watcher:
        watcher.load_state_dict(checkpoint["watch"])
        second.train(5)


def garbage(at: Path) -> None:
    """A cell of a notebook that runs again: nobody holds the optimizer any more."""
    run = Run()
    run.watch(at, background=False)  # else its thread may hold it a moment longer
    run.train(12)
    del run
    gc.collect()


def not_trained(at: Path) -> None:
    run = Run()
    with run.watch(at, every=1, on_event=[], proxy=None):
        for _ in range(12):
            run.optimizer.zero_grad()
            run.model[2](torch.ones(4, 16)).square().sum().backward()
            run.optimizer.step()


def not_finite(at: Path) -> None:
    run = Run()
    with run.watch(at, proxy=None, on_event=[]):
        run.train(10)
        with torch.no_grad():
            run.model[0].weight[0, 0] = float("nan")
        run.train(2)


def still_on(steps: int) -> Callable[[Path], None]:
    def train(at: Path) -> None:
        run = Run()
        KEPT.append((run, run.watch(at)))
        run.train(steps)
        len(KEPT[-1][1].records)

    return train


def silent(at: Path) -> None:
    still_on(12)(at)
    file = at / "sparsitywatch" / "run.json"
    manifest = json.loads(file.read_text())
    manifest["state"] |= {"wall_time": time.time() - 4000.0, "last_step": 12}
    file.write_text(json.dumps(manifest))


def of_another_rank(at: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "1")
        patch.setenv("WORLD_SIZE", "2")
        closed(at)


def switched_off_from_outside(at: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSITYWATCH_DISABLED", "1")
        closed(at)


KEPT: list[object] = []
NEVER, ALWAYS = (lambda *_: False), (lambda *_: True)
ALL = "weights 4 of 4, proxy evaluated 4 times, last at step 12"
#: Of a run of a few snapshots.
EARLY = "too early to tell"
#: How it ends, words that the status says, the state, the exit code.
IN_PROCESS = [
    ("closed", closed, [f"watch was closed at step 12; watched: {ALL}"], EARLY, 0),
    ("closed twice", closed_by_a_call_twice, ["watch was closed at step 12;", ALL], EARLY, 0),
    ("no proxy", lambda at: closed(at, proxy=None), ["watched: weights 4 of 4;"], EARLY, 0),
    ("at some steps", lambda at: closed(at, every=sw.schedules.at([2, 9])),
     ["weights 2 of 2, proxy evaluated 2 times, last at step 9"], EARLY, 0),
    ("no limit", lambda at: closed(at, every=1, max_overhead=None), ["12 of 12,"], "healthy", 0),
    ("one snapshot", lambda at: closed(at, every=9),
     ["tell: 1 of about 9 snapshots", "weights 1 of 1, proxy evaluated once, at step 9"],
     EARLY, 0),
    ("nothing was due", lambda at: closed(at, every=500),
     ["No snapshot was taken", "watched: no snapshot was due"], "look", 1),
    ("no optimizer step", no_step, ["Expected `logdir` to hold the log"], "broken", 2),
    ("the budget left all out", budget(NEVER),
     ["weights 2 of 6, proxy evaluated 2 times, last at step 13", "for first looks"], EARLY, 0),
    ("the budget left all evaluations out", budget(lambda due, _: due is Due.WEIGHTS),
     ["weights 5 of 5, proxy evaluated once, at step 1"], EARLY, 0),
    ("the budget left the last out", budget(lambda _, step: step < 7),
     ["watch was closed at step 13", "weights 3 of 5, proxy evaluated 3 times, last at step 6"],
     EARLY, 0),
    ("the budget allowed one evaluation", budget(lambda due, step: due < 2 or 5 < step < 7),
     ["weights 5 of 5, proxy evaluated 2 times, last at step 6"], EARLY, 0),
    ("the budget allowed one at the end", budget(lambda due, step: due < 2 or step == 13),
     ["weights 6 of 6, proxy evaluated 2 times, last at step 13"], EARLY, 0),
    ("the last evaluation failed", failing(12), ["failed: RuntimeError: the disk"], "look", 1),
    ("all evaluations failed", failing(1, steps=8), ["All snapshots failed"], "broken", 2),
    ("it switched itself off", failing(1, "MagnitudeSpectrum.of"),
     ["has been off since step 9", "watch switched itself off at step 9: 3 snapshots"],
     "broken", 2),
    ("crashed", raised(ZeroDivisionError),
     ["training was ended by ZeroDivisionError at step 7", "weights 2 of 2"], "look", 1),
    ("Ctrl-C", raised(KeyboardInterrupt), ["ended by KeyboardInterrupt at step 7"], "look", 1),
    ("sys.exit()", raised(SystemExit), ["watch was closed at step 7"], EARLY, 0),
    ("sys.exit(3)", raised(SystemExit, 3), ["ended by SystemExit(3) at step 7"], "look", 1),
    ("resumed", resumed, [f"watch was closed at step 12; watched: {ALL}"], EARLY, 0),
    ("garbage", garbage, ["watch was closed at step 12, when its optimizer was let go"], EARLY, 0),
    ("nothing trained", not_trained, ["No optimizer trains the weights in scope at step 12"],
     "broken", 2),
    ("not finite", not_finite, ["weights are NaN or infinite"], "broken", 2),
    ("still on", still_on(12), ["watch is on, at step 12; watched: weights 4 of 4"], EARLY, 0),
    ("still on, before the first", still_on(2), ["Nothing has been measured so far", "watch is on"],
     EARLY, 0),
    ("silent", silent, ["The watch was last heard of at step"], "broken", 2),
    ("another rank", of_another_rank, ["Expected `logdir` to"], "broken", 2),
    ("disabled", switched_off_from_outside, ["Expected `logdir` to"], "broken", 2),
]  # fmt: skip


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "words", "state", "code"),
    [row[1:] for row in IN_PROCESS],
    ids=[str(row[0]) for row in IN_PROCESS],
)
def test_an_end_is_told_as_what_it_is(how, words, state, code, tmp_path: Path, capsys) -> None:
    how(tmp_path)
    found, told = status(tmp_path, capsys)
    assert [word for word in words if word not in told] == [], told
    assert found == code, told
    if not told.startswith("sparsitywatch"):  # of a log that is not there
        assert told.startswith(f"{state}: ")
    while KEPT:
        KEPT.pop()[1].close()


# ------------------------------------------------------------------ processes that end

HANDLED = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with watch():
    run.train(12); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)
"""
FORKED = """
watch(); run.train(6)
if os.fork() == 0: sys.exit(7)
os.wait(); run.train(6); w.close()
"""
MULTIPROCESSING = """
def fail():
    run.train(6); 1 / 0
def start(act, arguments):
    watch(); act(*arguments)
p = multiprocessing.get_context("fork").Process(target=start, args=WHAT)
p.start(); p.join()
"""
THREADED = """
watch(); run.train(12)
t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()
"""
PAID_AT_THE_END = """
watch(max_overhead=1.0)
w._budget.wait_s = lambda due, **_: 1e9 if run_is_on else 0.0
run_is_on = True; run.train(13); run_is_on = False
"""
#: In a process of its own each: how it ends, what the status says, the state, the exit code.
PROCESSES = [
    ("the script ends", "watch(); run.train(12)",
     ["watch was closed at step 12, when its process ended", ALL], EARLY, 0),
    ("killed", "watch(); run.train(12); len(w.records); os.kill(os.getpid(), signal.SIGKILL)",
     ["The training ended without closing its watch, after step", "weights 4 of 4"], "broken", 2),
    ("crashed", "watch(); run.train(12); 1 / 0",
     ["training was ended by ZeroDivisionError at step 12"], "look", 1),
    ("Ctrl-C", "watch(); run.train(12); os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
     ["training was ended by KeyboardInterrupt at step 12"], "look", 1),
    ("Ctrl-C inside", "with watch(): run.train(12); os.kill(os.getpid(), signal.SIGINT)",
     ["training was ended by KeyboardInterrupt at step 12"], "look", 1),
    ("SIGTERM", "watch(); run.train(12); len(w.records); os.kill(os.getpid(), signal.SIGTERM)",
     ["The training ended without closing its watch, after step"], "broken", 2),
    ("SIGTERM with a handler", HANDLED,
     ["training was ended by SystemExit(143) at step 12"], "look", 1),
    ("sys.exit", "watch(); run.train(12); sys.exit()",
     ["watch was closed at step 12, when its process ended"], EARLY, 0),
    ("os._exit", "watch(); run.train(12); len(w.records); os._exit(0)",
     ["The training ended without closing its watch, after step"], "broken", 2),
    ("a child that ends", FORKED, ["watch was closed at step 12;", ALL], EARLY, 0),
    ("a process of multiprocessing that ends", MULTIPROCESSING.replace("WHAT", "(run.train, [12])"),
     ["watch was closed at step 12, when its process ended", ALL], EARLY, 0),
    ("a process of multiprocessing that crashes", MULTIPROCESSING.replace("WHAT", "(fail, [])"),
     ["training was ended by ZeroDivisionError at step 6"], "look", 1),
    ("a thread that crashes", THREADED,
     ["watch was closed at step 12, when its process ended"], EARLY, 0),
    ("an error before", "sys.last_value = ValueError()\nwatch(); run.train(12)",
     ["watch was closed at step 12, when its process ended"], EARLY, 0),
    ("a hook of the user", "sys.excepthook = lambda *_: None\nwatch(); run.train(12); 1 / 0",
     ["training was ended by ZeroDivisionError at step 12"], "look", 1),
    ("before the first step", "watch(); 1 / 0", ["Expected `logdir` to hold"], "broken", 2),
    ("the last one at the end", PAID_AT_THE_END,
     ["weights 2 of 6, proxy evaluated 2 times, last at step 13"],
     EARLY, 0),
]  # fmt: skip
#: Ctrl-C is heard, also where the tests run behind a shell, which ignores it for them.
HEAD = """
import multiprocessing, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
run = Run()
def watch(**options):
    global w
    w = run.watch(Path(sys.argv[1]), **options)
    return w
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize(
    ("how", "words", "state", "code"),
    [row[1:] for row in PROCESSES],
    ids=[row[0] for row in PROCESSES],
)
def test_an_end_of_a_process_is_told_as_what_it_is(
    how, words, state, code, tmp_path: Path, capsys
) -> None:
    child(HEAD + how, tmp_path).communicate()
    found, told = status(tmp_path, capsys)
    assert [word for word in words if word not in told] == [], told
    assert found == code, told
    assert told.startswith((f"{state}: ", "sparsitywatch"))


# ------------------------------------------------------------------ what the last one costs


def test_a_crash_takes_no_last_snapshot(tmp_path: Path) -> None:
    run = Run()
    watcher = run.watch(tmp_path, max_overhead=0.01, background=False)
    paid(watcher, NEVER)
    run.train(7)
    paid(watcher, ALWAYS)
    with pytest.raises(ZeroDivisionError), watcher:
        raise ZeroDivisionError
    assert [record.step for record in watcher.records] == [1]


def test_a_watch_says_what_comes_and_what_the_attach_took(caplog) -> None:
    run = Run()
    with caplog.at_level("INFO", "sparsitywatch"), run.watch(None) as watcher:
        assert "sparsitywatch: the attach took" in caplog.text
        assert "everything that is due is done" in caplog.text
        run.train(4)
        len(watcher.records)
        words = "1 records, 0 events, on; next snapshot about step 6; the attach took "
        assert words in repr(watcher)
        assert len(repr(watcher)) < 220
    assert "closed" in repr(watcher)


def test_the_end_of_a_watch_that_nobody_holds_writes_nothing_into_a_later_one(tmp_path) -> None:
    first, later = Run(), Run()
    first.watch(tmp_path, background=False)
    first.train(3)
    watcher = later.watch(tmp_path, background=False)
    later.train(6)
    del first
    gc.collect()
    watcher.close()
    info = sw.load(tmp_path).info
    assert info is not None
    assert info.state is not None
    assert (info.state.how, info.state.num_taken) == ("the watch was closed at step 6", 2)
