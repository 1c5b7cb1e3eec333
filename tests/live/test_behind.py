"""Evaluations in a fork of the training: the same numbers, and no end of either harms the other."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from contracts.watched import Run, steps_of
from torch.utils.data import DataLoader, TensorDataset

import sparsitywatch as sw
from sparsitywatch.live import behind
from sparsitywatch.live.behind import Behind
from sparsitywatch.live.schedule import BudgetedSchedule, Due, OverheadBudget
from sparsitywatch.proxy import apart
from sparsitywatch.records import Record, to_json
from sparsitywatch.sinks.jsonl import read_records


@pytest.fixture(autouse=True)
def _one_of_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(behind, "_num_cores", lambda: 2)
    monkeypatch.setattr(behind, "_spare_bytes", lambda: 0)
    monkeypatch.setattr(apart, "_LOOK_S", 0.02)


class InFork:
    """A training whose value function does something in forks, once it is told to."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.run, self.is_armed, self._pid = Run(), False, os.getpid()
        value = self.run.proxy().value

        def acts(model, batch) -> torch.Tensor:
            if self.is_armed and os.getpid() != self._pid:
                act()
            return value(model, batch)

        self.proxy = sw.Proxy([[self.run.inputs[:10], self.run.targets[:10]]], acts)

    def watch(self, logdir: Path | None = None, **options) -> sw.Watcher:
        options = {"proxy": self.proxy, "evaluate": "behind", "levels": [0.5], **options}
        watcher = self.run.watch(logdir, **options)
        self.is_armed = True
        return watcher


class Gate:
    """Holds a fork until it is opened."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "open"

    def open(self) -> None:
        self._file.touch()

    def wait(self) -> None:
        while not self._file.exists():
            time.sleep(0.005)


def untimed(records: list[Record]) -> list[str]:
    """All that records say, but for times."""
    times = dict.fromkeys(("stall_s", "spectrum_s", "evaluation_s", "publish_s", "overhead"), 0.0)
    return [to_json(replace(r, wall_time=0.0, cost=replace(r.cost, **times))) for r in records]


# ------------------------------------------------------------------ evaluations


@pytest.mark.parametrize("options", [{}, {"controls": ["random"], "levels": [0.3, 0.6]}])
def test_a_log_and_a_training_are_the_same_behind_and_inline(tmp_path: Path, options) -> None:
    found = []
    for where in ("inline", "behind", "auto"):
        run = Run()
        options = {"near_zero": ["abs_0.1"], **options}
        with run.watch(tmp_path / where, evaluate=where, every=2, **options) as watcher:
            run.train(7)
        records = untimed(watcher.records)
        assert untimed(read_records(tmp_path / where / "sparsitywatch")) == records
        bits = [tensor.numpy().tobytes() for tensor in run.model.state_dict().values()]
        found.append((records, bits, torch.get_rng_state().tolist()))
        assert watcher._taker.behind._told == set()
        assert steps_of(watcher.records) == [2, 4, 6]
        assert all(record.curve is not None for record in watcher.records)
    assert found[0] == found[1] == found[2]


def test_the_training_goes_on_and_what_asks_for_records_waits(tmp_path: Path) -> None:
    gate, seen = Gate(tmp_path), []
    trial = InFork(gate.wait)
    with trial.watch(every=2, max_overhead=1.0, on_record=[seen.append]) as watcher:
        watcher._budget.wait_s = lambda *_, **__: 0.0
        trial.run.train(7)
        assert seen == []
        gate.open()
        state = watcher.state_dict()
        assert steps_of(watcher._pipeline.records) == [1]
        assert (state["step"], state["optimizer"]["motion"]["step"]) == (7, 1)
        trial.run.train(1)
    assert steps_of(seen) == [1, 8]
    # three were left out, so that twelve of the weights come before another evaluation
    assert [record.curve is None for record in seen] == [False, True]
    assert seen[1].cost.num_left_out == 3


def test_without_a_limit_one_that_is_due_waits(tmp_path: Path) -> None:
    trial = InFork(lambda: time.sleep(0.01))
    with trial.watch(every=1) as watcher:
        trial.run.train(3)
        trial.run.train(1)  # one is in flight when it is closed
    assert steps_of(watcher.records) == [1, 2, 3, 4]
    assert all(record.curve is not None for record in watcher.records)


def test_an_exception_in_the_training_waits_for_the_evaluation(tmp_path: Path) -> None:
    trial = InFork(lambda: time.sleep(0.01))

    def train() -> None:
        with trial.watch(tmp_path, every=2):
            trial.run.train(2)
            raise KeyError("of the training")

    with pytest.raises(KeyError):
        train()
    (record,) = read_records(tmp_path / "sparsitywatch")
    assert record.step == 2
    assert record.curve is not None


def test_an_evaluation_that_raises_is_marked_as_inline(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no loss today")

    trial = InFork(fail)
    with trial.watch(every=1, strict=False) as watcher:
        trial.run.train(2)
        assert not watcher.off
    assert {record.reason for record in watcher.records} == {"ValueError: no loss today"}
    assert watcher.records[0].near_zero  # the weights were measured


def test_after_two_forks_that_failed_no_evaluation_is_tried_any_more(caplog) -> None:
    trial = InFork(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with trial.watch(every=1, strict=False) as watcher:
        trial.run.train(4)
    assert [record.valid for record in watcher.records] == [False, False, True, True]
    assert "signal 9 has ended it" in watcher.records[0].reason
    assert all("2 evaluations in a row have failed" in r.not_evaluated for r in watcher.records[2:])
    assert all(record.near_zero for record in watcher.records)


def test_a_fork_that_failed_once_is_followed_by_one_that_is_waited_for(tmp_path, caplog) -> None:
    first = tmp_path / "first"

    def fail_once() -> None:
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    trial = InFork(fail_once)
    with trial.watch(every=1, strict=False) as watcher:
        trial.run.train(1)
        watcher.snapshot()
        watcher._taker.behind._where = "inline"  # as where no core is idle any more
        trial.run.train(2)
    assert [record.valid for record in watcher.records] == [False, True, True]
    assert all(record.curve is not None for record in watcher.records[1:])


@pytest.mark.parametrize("act", ["hang", "spin", "die", "lock"])
def test_a_fork_is_ended_at_ten_times_what_is_usual_and_some_seconds(act, monkeypatch) -> None:
    monkeypatch.setattr(apart, "_MORE_S", 60.0 if act == "die" else 0.2)
    held = threading.Lock()

    def spin() -> None:
        while True:
            continue

    acts = {"hang": lambda: time.sleep(60), "spin": spin, "die": lambda: os._exit(3)}
    trial = InFork(acts.get(act, held.acquire))
    held.acquire()
    with trial.watch(every=1, strict=False) as watcher:
        watcher._taker.behind.usual_s = 0.01
        trial.run.train(3)
    why = "it returned 3" if act == "die" else "it took more than 0.3 s"
    assert [why in record.reason for record in watcher.records] == [True, True, False]
    assert "2 evaluations in a row have failed" in watcher.records[2].not_evaluated


def test_what_a_fork_had_to_learn_is_known_to_the_next_one() -> None:
    def learn() -> None:
        model.renews = proxy.is_kept_whole = True
        if proxy.num_batches == 1:
            raise MemoryError

    trial = InFork(learn)
    with trial.watch(every=1) as watcher:
        proxy, model = watcher._taker.run.proxy, watcher._taker.model
        trial.run.train(1)
        (record,) = watcher.records
    assert record.valid
    assert (model.renews, proxy.is_kept_whole, proxy.num_batches) == (True, True, 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_of_a_loader_beside_a_fork(method: str) -> None:
    trial = InFork(lambda: time.sleep(0.001))
    data = TensorDataset(torch.arange(6.0))
    loader = DataLoader(data, num_workers=1, multiprocessing_context=method)
    seen = []
    with trial.watch(every=2) as watcher:
        trial.run.train(2)  # the worker is made beside a fork
        for (batch,) in loader:
            trial.run.train(1)
            seen.append(float(batch))
    assert seen == [*range(6)]
    assert steps_of(watcher.records) == [2, 4, 6, 8]
    assert all(record.curve is not None for record in watcher.records)


# ------------------------------------------------------------------ where, and what it costs


UNSAFE = {
    "only Linux": ("proxy.apart.sys.platform", "darwin"),
    "several processes": ("proxy.apart.is_distributed", lambda: True),
    "not run in the main thread": (
        "live.behind.threading",
        SimpleNamespace(current_thread=int, main_thread=str),
    ),
    "a device is in use": ("proxy.apart.torch.cuda.is_initialized", lambda: True),
    "last digits might differ": ("live.behind.torch.get_num_threads", lambda: 2),
    "no core is idle: torch uses 1 of 1": ("live.behind._num_cores", lambda: 1),
    "0.5 GiB of memory are missing": ("live.behind._spare_bytes", lambda: -(2**29)),
}


@pytest.mark.parametrize("why", UNSAFE)
def test_where_a_fork_is_not_safe_the_training_waits_and_is_told_why(why, monkeypatch, caplog):
    caplog.set_level("INFO", "sparsitywatch")
    place, instead = UNSAFE[why]
    if why == "last digits might differ":
        monkeypatch.setattr(behind, "_num_cores", lambda: 3)
    monkeypatch.setattr(f"sparsitywatch.{place}", instead)
    run = Run()
    with run.watch(None, evaluate="auto", every=1) as watcher:
        run.train(1)
        assert watcher._taker.behind.is_on is False
    monkeypatch.undo()
    assert watcher.records[0].curve is not None
    assert caplog.text.count(why) == 1


def test_with_several_threads_a_fork_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(behind, "_num_cores", lambda: 4)
    for where, is_safe in {"behind": True, "auto": False, "inline": False}.items():
        with Run().watch(None, evaluate=where) as watcher:
            assert watcher._taker.behind.is_safe() is is_safe
    with Run().watch(None, evaluate="behind", background=False) as watcher:
        assert not watcher._taker.behind.is_safe()
    with pytest.raises(
        sw.errors.ConfigurationError, match="`evaluate` to be 'inline', 'behind' or"
    ):
        Run().watch(None, evaluate="apart")


def test_auto_is_inline_where_a_fork_gives_other_values(caplog) -> None:
    caplog.set_level("INFO", "sparsitywatch")
    run, pid = Run(), os.getpid()
    value = run.proxy().value
    batches = [[run.inputs[:10], run.targets[:10]]]
    proxy = sw.Proxy(batches, lambda *given: value(*given) + 1e-6 * (os.getpid() != pid))
    with run.watch(None, evaluate="auto", proxy=proxy) as watcher:
        assert not watcher._taker.behind.is_safe()
    assert "a fork gives other values" in caplog.text


def test_cores_and_memory_are_those_of_the_control_group(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    inner = tmp_path / "pod" / "box"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000")
    (tmp_path / "pod" / "cpu.max").write_text("50000 100000")
    (inner / "memory.max").write_text(str(2**40))
    (inner / "memory.current").write_text(str(2**40))
    (inner / "memory.stat").write_text(f"anon 5\ninactive_file {2**20}\nactive_file 7\n")
    without = behind._num_cores(), behind._spare_bytes()
    groups = behind.Path

    def path(where: str) -> Path:
        if where == "/proc/self/cgroup":
            (tmp_path / "cgroup").write_text("12:cpu:/old\n0::/pod/box\n")
            return tmp_path / "cgroup"
        return groups(where.replace("/sys/fs/cgroup", str(tmp_path)))

    monkeypatch.setattr(behind, "Path", path)
    assert behind._num_cores() == 0.5 < without[0]
    assert behind._spare_bytes() < 0


def test_the_budget_counts_by_how_much_steps_are_slower_beside_a_fork() -> None:
    beside = Behind("auto", None, None)
    took_s = [1.0] * 9 + [1.2, 1.1, 1.0, 100.0]
    now_s = [*itertools.accumulate([0.0, *took_s])]
    for now in now_s[:10]:
        beside.step(now)
    assert beside.lost_s == 0.0
    beside.is_on = True
    for now in now_s[10:]:
        beside.step(now)
    assert beside.lost_s == pytest.approx(0.2 + 0.1 + 1.0)  # at most as much again of any step
    beside.is_on = False
    assert beside.lost_s == 0.0


def test_the_last_one_which_is_waited_for_is_not_cheap() -> None:
    budget = OverheadBudget(0.5, evaluates=True, now=lambda: 100.0)
    budget._started = 90.0
    budget.evaluations.add(0.1)
    assert budget.wait_s(Due.EVERYTHING, is_last=True) <= 0.0
    budget.inline_s = 9.0
    assert budget.wait_s(Due.EVERYTHING) <= 0.0 < budget.wait_s(Due.EVERYTHING, is_last=True)


def test_snapshots_that_an_evaluation_beside_them_has_cost_are_owed() -> None:
    schedule = BudgetedSchedule(1, 0.5, evaluates=True)
    schedule.budget.wait_s = lambda *_, **__: 0.0
    taken = [schedule.due(1, is_busy=False), schedule.due(2, is_busy=True, is_apart=True)]
    taken += [schedule.due(step, is_busy=False) for step in range(3, 9)]
    assert taken == [Due.EVERYTHING, Due.NOTHING, *[Due.WEIGHTS] * 4, *[Due.EVERYTHING] * 2]
    schedule.due(9, is_busy=True)  # by a snapshot of the weights, which is no matter of this
    assert schedule.due(10, is_busy=False) is Due.EVERYTHING
