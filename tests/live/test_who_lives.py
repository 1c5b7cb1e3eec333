"""What a status says of a training in another container, of another boot, of another time.

Expected is what can be known: a process that is missing is gone where its number means the same
here as where it was written down. Elsewhere the silence of its watch alone counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contracts import fake_run
from contracts.watched import Run, child

from sparsitywatch.cli import main
from sparsitywatch.processes import Process, this_process
from sparsitywatch.records import WatchState
from sparsitywatch.sinks.jsonl import read_manifest

linux = pytest.mark.skipif(
    not Path("/proc/self/ns/pid").exists(), reason="what a process is among all is read in /proc"
)
GONE, LATE = "ended without closing its watch", "was last heard of"


@pytest.fixture(scope="module")
def gone() -> Process:
    """A process that has ended, and whose number is free."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return this_process()._replace(pid=ended.pid)


def status(logdir: Path, capsys, who: Process, age_s: float = 1.0) -> tuple[int, str]:
    """Exit code and text for a log that ``who`` has left ``age_s`` ago, on."""
    state = WatchState(
        status="on", step=230, wall_time=time.time() - age_s, last_step=200, num_due=9,
        num_taken=9, step_s=0.1, **who._asdict(),
    )  # fmt: skip
    looks = fake_run.looks(range(0, 201, 25))
    fake_run.write_run(logdir, looks, state=state)
    code = main(["status", str(logdir)])
    return code, capsys.readouterr().out


#: What differs from a process that is gone, the age of its last sign; the exit code, the words.
CASES = {
    "gone": ({}, 1.0, 2, GONE),
    "gone long ago": ({}, 1e6, 2, GONE),
    "another host": ({"host": "elsewhere"}, 1.0, 0, ""),
    "another host, silent": ({"host": "elsewhere"}, 600.0, 2, LATE),
    "another boot": ({"boot": "0-0"}, 1.0, 0, ""),
    "another boot, silent": ({"boot": "0-0"}, 600.0, 2, LATE),
    "another container": ({"namespace": "pid:[1]"}, 1.0, 0, ""),
    "another container, silent": ({"namespace": "pid:[1]"}, 600.0, 2, LATE),
    "a log of before": ({"boot": "", "namespace": "", "started": -1}, 1.0, 0, ""),
    "a log of before, silent": ({"boot": "", "namespace": "", "started": -1}, 600.0, 2, LATE),
    "its number has another process": ({"pid": os.getpid(), "started": 1}, 1.0, 2, GONE),
    "it lives": ({"pid": os.getpid()}, 1.0, 0, ""),
    "it lives and is silent": ({"pid": os.getpid()}, 600.0, 2, LATE),
    "the first process lives": ({"pid": 1, "started": -1}, 1.0, 0, ""),
}


@linux
@pytest.mark.parametrize("case", CASES)
def test_a_missing_process_is_gone_only_where_its_number_means_the_same(
    case: str, gone: Process, tmp_path: Path, capsys
) -> None:
    differs, age_s, expected, words = CASES[case]
    code, told = status(tmp_path, capsys, gone._replace(**differs), age_s)
    assert (code, words in told) == (expected, True), told
    assert "killed" not in told
    assert (f"The training {GONE}" in told) == (words == GONE)


@linux
def test_a_process_knows_itself_and_a_fork_is_another() -> None:
    here = this_process()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (here.pid, here.boot) == (os.getpid(), boot)
    assert not here.has_died
    # an oracle of its own: the system's clock since the boot, and how old ps says that it is
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    age_s = uptime_s - here.started / os.sysconf("SC_CLK_TCK")
    asked = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True)
    assert abs(age_s - int(asked.stdout)) < 2.0
    read, write = os.pipe()
    if (number := os.fork()) == 0:
        other = this_process()
        os.write(write, f"{other.pid} {other.started}".encode())
        os._exit(0)
    os.waitpid(number, 0)
    pid, started = map(int, os.read(read, 99).split())
    os.close(read)
    os.close(write)
    assert (pid, started >= here.started) == (number, True)
    assert here._replace(pid=pid, started=started).has_died


def test_of_a_system_that_says_nothing_nobody_is_known_to_be_gone() -> None:
    assert not Process().has_died
    assert not this_process()._replace(pid=2**22 + 1, namespace="", started=-1).has_died


def isolated(*command: str, proc: bool = True) -> subprocess.CompletedProcess[str]:
    """A command in a pid namespace of its own, with its own /proc or with ours."""
    own = ["unshare", "--pid", "--fork", *["--mount-proc"][:proc]]
    return subprocess.run([*own, *command], capture_output=True, text=True, timeout=90, check=False)


def may_isolate() -> bool:
    try:
        return isolated("true").returncode == 0
    except OSError:
        return False


container = pytest.mark.skipif(not may_isolate(), reason="no pid namespace may be made here")

TRAINING = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from contracts.watched import Run
run = Run()
watcher = run.watch(Path(sys.argv[1]), proxy=None, every=1)
run.train(12)
len(watcher.records)
"""
ASKING = """
from sparsitywatch.cli import main
code = main(["status", sys.argv[1]])
sys.stdout.flush()
os._exit(code)
"""
TRAINING = TRAINING.format(tests=str(Path(fake_run.__file__).parents[1]))
#: Asked by a child of the training, while it lives; and after it has ended, by its parent.
ASKED_BY_A_CHILD = TRAINING + "if os.fork():\n    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))"
ASKED_BY_THE_PARENT = "import os, sys\nif os.fork() == 0:\n    exec(sys.argv[2])\nos.wait()"


@container
@pytest.mark.slow
def test_a_training_that_another_container_asks_about_lives(tmp_path: Path) -> None:
    run = Run()
    with run.watch(tmp_path, proxy=None, every=1) as watcher:
        run.train(12)
        assert len(watcher.records) == 12
        asked = isolated(sys.executable, "-c", f"import os, sys{ASKING}", str(tmp_path))
    assert "healthy: No alarm in 12 snapshots" in asked.stdout, asked.stderr
    assert asked.returncode == 0


@container
@pytest.mark.slow
@pytest.mark.parametrize(
    "proc",
    [
        pytest.param(True, id="its own /proc"),
        pytest.param(False, id="the /proc of the host", marks=pytest.mark.whole),
    ],
)
def test_inside_a_container_who_lives_and_who_is_gone_is_known(tmp_path: Path, proc: bool) -> None:
    program = ASKED_BY_A_CHILD + ASKING
    asked = isolated(sys.executable, "-c", program, str(tmp_path / "on"), proc=proc)
    assert "healthy: No alarm in 12 snapshots" in asked.stdout, asked.stderr
    program = ASKED_BY_THE_PARENT + ASKING
    given = (str(tmp_path / "gone"), TRAINING + "os._exit(0)")
    asked = isolated(sys.executable, "-c", program, *given, proc=proc)
    assert f"The training {GONE}, after step 12" in asked.stdout, asked.stderr
    assert asked.returncode == 2


@container
@pytest.mark.slow
def test_a_training_whose_container_is_gone_is_judged_by_its_silence(tmp_path: Path, capsys):
    program = (
        TRAINING + "os.kill(os.getpid(), 9)  # of the first process: it is not heard\nos._exit(0)"
    )
    assert isolated(sys.executable, "-c", program, str(tmp_path)).returncode == 0
    assert main(["status", str(tmp_path)]) == 0
    state = read_manifest(tmp_path / "sparsitywatch").state
    assert (state.status, state.pid, state.host) == ("on", 1, this_process().host)
    assert "the watch is on, at step 12" in capsys.readouterr().out


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        "os._exit(0)",
        pytest.param("os.kill(os.getpid(), 9)", marks=pytest.mark.whole),
        pytest.param("os.abort()", marks=pytest.mark.whole),
    ],
)
def test_an_end_without_a_word_is_not_called_a_kill(end: str, tmp_path: Path, capsys) -> None:
    code = child(TRAINING + end, tmp_path).communicate()[0]
    assert (code == 0) == (end == "os._exit(0)")
    assert main(["status", str(tmp_path)]) == 2
    told = capsys.readouterr().out
    assert told.startswith(f"broken: The training {GONE}, after step 12; before that: no alarm in")
    assert "killed" not in told
