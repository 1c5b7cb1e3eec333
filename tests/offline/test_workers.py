"""Jobs by any executor give the records of jobs here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from contracts.families import some_of
from contracts.live_runs import held_out, save_torch, tiny_bert, told_by_weights, train
from contracts.stored_run import NUM, detectors, on_disk

import sparsitywatch as sw
from sparsitywatch.checkpoints.series import ListedCheckpoint
from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.offline import driver
from sparsitywatch.offline.jobs import Outcome, Plan, processes, window_of

Pool = Callable[[int], ProcessPoolExecutor]


@pytest.fixture
def pool(forking: ForkServerContext) -> Pool:
    """Makes processes that compute as this one does."""
    threads = (torch.get_num_threads(),)
    return lambda num: ProcessPoolExecutor(num, forking, torch.set_num_threads, threads)


@pytest.fixture(scope="module")
def bert_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    train(None, save_torch(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", some_of(["processes", "threads"], 2))
def test_the_same_files_as_in_series(run, bert_run, tmp_path: Path, kind: str, pool: Pool) -> None:
    sw.replay(run, logdir=tmp_path / "series", detectors=detectors())
    evaluated = sw.replay(bert_run, logdir=None, model=tiny_bert, proxy=held_out())
    model = tiny_bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ThreadPoolExecutor(4) if kind == "threads" else pool(2) as executor:
        sw.replay(run, logdir=tmp_path / "many", detectors=detectors(), executor=executor)
        for given in (tiny_bert, model):
            many = sw.replay(
                bert_run, logdir=None, model=given, proxy=held_out(), executor=executor
            )
            assert not many.failures
            assert list(map(told_by_weights, many.records)) == list(
                map(told_by_weights, evaluated.records)
            )
        assert executor.submit(abs, -1).result() == 1  # closing it is the caller's
    assert on_disk(tmp_path / "many") == on_disk(tmp_path / "series")
    # workers have models of their own
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Counting(Executor):
    """Threads that are slower the earlier they are asked; counts what is under way."""

    def __init__(self) -> None:
        self.pool, self.lock = ThreadPoolExecutor(8), threading.Lock()
        self.now = self.most = self.asked = 0

    def submit(self, function, /, *arguments, **options) -> Future:
        with self.lock:
            self.now, self.asked = self.now + 1, self.asked + 1
            self.most = max(self.most, self.now)
        delay_s = 0.02 / self.asked
        return self.pool.submit(self._run, delay_s, function, *arguments, **options)

    def _run(self, delay_s: float, function, *arguments, **options):
        time.sleep(delay_s)
        found = function(*arguments, **options)
        with self.lock:
            self.now -= 1
        return found


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3, 100])
def test_in_order_and_never_too_many_at_once(run, window: int) -> None:
    executor, steps = Counting(), []
    sw.replay(
        run,
        logdir=None,
        executor=executor,
        max_in_flight=window,
        on_record=[lambda record: steps.append(record.step)],
    )
    assert steps == sorted(steps)
    assert (len(steps), executor.asked) == (NUM, NUM)
    assert executor.most <= min(window, NUM)
    assert executor.most >= min(window, 2)
    executor.pool.shutdown()


@pytest.mark.slow
def test_without_a_model_one_checkpoint_is_read_ahead(run, monkeypatch) -> None:
    begun: list[int] = []
    next_one = threading.Condition()

    def measure(plan: Plan, step: int, url: str) -> Outcome:
        with next_one:
            begun.append(step)
            next_one.notify_all()
        return plain(plan, step, url)

    def on_record(record: sw.Record) -> None:
        done.append(record.step)
        if 1 < len(done) < NUM:  # the first one has to be alone
            with next_one:
                assert next_one.wait_for(lambda: len(begun) > len(done), timeout=60)
        assert len(begun) <= len(done) + 1

    plain, done = driver.measure, list[int]()
    monkeypatch.setattr(driver, "measure", measure)
    sw.replay(run, logdir=None, on_record=[on_record])
    assert begun == done == sorted(done)
    assert len(done) == NUM
    assert not [t for t in threading.enumerate() if t.name.startswith("sparsitywatch-replay")]


def test_how_many_at_once() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert window_of(pool) == 6
    assert window_of(Counting()) == 16
    assert window_of(None) == 16


def test_what_waits_is_cancelled_when_nobody_asks_any_more() -> None:
    submitted = []
    one = ListedCheckpoint(url="u", step=1, step_from="name", format="torch", state="complete")

    def submit(*_: object) -> Future:
        submitted.append(Future())
        if len(submitted) == 1:
            submitted[0].set_result(CheckpointError("first"))
        return submitted[-1]

    looks = driver.in_order(dict.fromkeys(range(1, 6), one), submit, window=lambda: 3)
    step, outcome = next(looks)
    assert (step, str(outcome)) == (1, "first")
    looks.close()
    assert [future.cancelled() for future in submitted] == [False, True, True]


def die(*_: object) -> None:
    os._exit(3)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_replay_and_the_next_one_goes_on(
    run, tmp_path: Path, pool: Pool
) -> None:
    done = []

    def killing(record: sw.Record) -> None:
        done.append(record.step)
        if len(done) == 5:
            executor.submit(die)

    with pool(1) as executor, pytest.raises(BrokenProcessPool):
        sw.replay(
            run, logdir=tmp_path, detectors=detectors(), executor=executor, on_record=[killing]
        )
    assert 5 <= len(done) < NUM
    again = sw.replay(run, logdir=tmp_path, detectors=detectors())
    assert again.num_snapshots == NUM - len(done)
    sw.replay(run, logdir=tmp_path / "whole", detectors=detectors())
    assert on_disk(tmp_path) == on_disk(tmp_path / "whole")


def test_failures_come_back_from_workers(run, tmp_path: Path) -> None:
    (tmp_path / "step-5.pt").write_bytes(b"")
    (tmp_path / "step-6.pt").write_bytes((run / "step-10.pt").read_bytes()[:-100])
    (tmp_path / "step-7.pt").write_bytes((run / "step-10.pt").read_bytes())
    with ThreadPoolExecutor(2) as executor:
        replayed = sw.replay(tmp_path, logdir=None, executor=executor)
    assert [failure.step for failure in replayed.failures] == [5, 6]
    assert [record.valid for record in replayed.records] == [False, False, True]


def test_what_cannot_be_sent_is_refused_before_anything_is_done(
    bert_run, tmp_path: Path, pool: Pool
) -> None:
    value = held_out().value
    local = sw.Proxy([{"input_ids": torch.ones(2, 4).long(), "labels": torch.ones(2, 4).long()}],
                     lambda model, batch: value(model, batch))  # fmt: skip
    with pool(1) as executor:
        with pytest.raises(ConfigurationError, match="can be sent to other processes"):
            sw.replay(
                bert_run, logdir=tmp_path / "x", model=tiny_bert, proxy=local, executor=executor
            )
        unsendable = tiny_bert()
        unsendable.register_forward_hook(lambda *_: None)
        with pytest.raises(ConfigurationError, match="Give a function that makes it instead"):
            sw.replay(
                bert_run, logdir=tmp_path / "x", model=unsendable, proxy=local, executor=executor
            )
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------ processes of our own

SCRIPT = """
import os, time
from sparsitywatch.offline.jobs import processes

if __name__ == "__main__":
    with processes(2) as pool:
        found = [pool.submit(time.sleep, 0.5), pool.submit(os.getpid), pool.submit(os.getpid)]
        print(*{one.result() for one in found if one.result()}, flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_they_share_the_cores() -> None:
    expected = max(1, (os.cpu_count() or 1) // 2)
    with processes(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == expected
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked how


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_they_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        assert all(map(is_running, pids))
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, pids))
