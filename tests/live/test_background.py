"""Looks behind the training: the same records, nothing lost, the training not held up."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest
import torch
from contracts.watched import Run, steps_of, told

import sparsitywatch as sw
from sparsitywatch.live import snapshots
from sparsitywatch.live.schedule import Adaptive, Due
from sparsitywatch.records import to_json
from sparsitywatch.sinks.jsonl import JsonlSink, read_records


@pytest.mark.slow
@pytest.mark.parametrize("with_proxy", [True, False])
def test_records_are_the_same_behind_and_in_front(tmp_path: Path, with_proxy: bool) -> None:
    found = []
    for background in (False, True):
        run = Run()
        logdir = tmp_path / str(background)
        options = {} if with_proxy else {"proxy": None}
        with run.watch(logdir, background=background, every=1, **options) as watcher:
            run.train(20)
        found.append(told(watcher.records))
        assert told(read_records(logdir / "sparsitywatch")) == found[-1]
        # without a limit one that is due waits for the one on its way
        assert steps_of(watcher.records) == list(range(1, 21))
        assert all(r.cost.num_left_out == 0 for r in watcher.records)
    assert found[0] == found[1]


def test_a_step_is_counted_from_when_torch_calls_before_it(monkeypatch) -> None:
    run = Run()
    with run.watch(None, every=1000, proxy=None) as watcher:
        run.train(2)
        before, ticks = watcher._budget._spent_s, itertools.count()
        # the budget goes on with the clock that it has; of this one each look is a second later
        monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
        run.train(1)
        monkeypatch.undo()
        spent_s = watcher._budget._spent_s - before
    assert spent_s == pytest.approx(2.0, abs=0.9)  # calls before and after the step, a tick each


def test_the_thread_behind_is_counted_whole_however_many_threads_train(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    with Run().watch(None, every=1000, proxy=None) as watcher:
        busy = watcher._taker.pipeline
        take = busy.take

        def slow(*args: object) -> object:
            until = time.thread_time() + 0.2
            while time.thread_time() < until:
                pass
            return take(*args)

        monkeypatch.setattr(busy, "take", slow)
        watcher._advance(1)
        watcher._take(Due.WEIGHTS, behind=True)
        assert watcher.records
        assert watcher._budget.weights.spent_s >= 0.2


class SlowSink(sw.sinks.MemorySink):
    """Holds what is written until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.thread = ""

    def write(self, record, detail) -> None:
        self.thread = threading.current_thread().name
        assert self.go_on.wait(60)
        super().write(record, detail)


def test_training_goes_on_while_a_look_is_on_its_way() -> None:
    run, sink, seen = Run(), SlowSink(), []
    options = {"every": 1, "proxy": None, "sinks": [sink], "max_overhead": 1.0}
    threads = set()
    actions = [lambda r: threads.add(threading.current_thread().name), seen.append]
    with run.watch(None, **options, on_record=actions) as watcher:
        watcher._budget.wait_s = lambda *_, **__: 0.0  # only being busy counts here
        run.train(5)  # the first look waits in the sink: the others are left out
        assert watcher.step_count == 5
        assert seen == []
        sink.go_on.set()
        assert steps_of(watcher.records) == [1]
        run.train(1)
    assert steps_of(watcher.records) == [1, 6]
    assert seen == watcher.records
    assert watcher.records[1].cost.num_left_out == 4
    assert sink.thread.startswith("sparsitywatch")
    assert threads == {threading.main_thread().name}


def test_the_copy_is_of_the_step_of_the_look() -> None:
    """Training goes on before the copy is read: the record is about the weights before."""
    run, sink = Run(), SlowSink()
    expected = []
    with run.watch(None, every=2, proxy=None, sinks=[sink], near_zero=["abs_0.1"]) as watcher:
        sink.go_on.set()
        for _ in range(4):
            run.train(2)
            weight = run.model[0].weight.detach()
            expected.append(float((weight.abs() <= 0.1).double().mean()))
            run.model(run.inputs)  # uses these weights
            with torch.no_grad():
                weight += 0.05
    assert [r.near_zero["abs_0.1"] for r in watcher.records] == expected


def test_state_is_saved_with_the_look_on_its_way() -> None:
    run, sink = Run(), SlowSink()
    with run.watch(None, every=2, proxy=None, sinks=[sink]) as watcher:
        run.train(2)
        sink.go_on.set()
        state = watcher.state_dict()
        assert state["step"] == 2
        assert len(watcher._pipeline.records) == 1
        assert state["optimizer"]["motion"]["step"] == 2


@pytest.mark.parametrize(
    "place", ["pipeline.measure.MagnitudeSpectrum.of", "live.snapshots.WarmCopy.take"]
)
def test_what_fails_behind_or_in_the_copy_is_marked_and_three_switch_the_watch_off(
    place: str, monkeypatch
) -> None:
    run = Run()
    with run.watch(None, every=1, proxy=None, strict=False) as watcher:

        def broken(*_: object, **__: object) -> None:
            raise MemoryError("no room today")

        monkeypatch.setattr(f"sparsitywatch.{place}", broken)
        run.train(6)
        assert "no room today" in watcher.off
    assert [r.valid for r in watcher.records] == [False] * 3
    assert watcher.records[0].reason == "MemoryError: no room today"


def test_by_default_the_watch_keeps_to_one_percent(caplog) -> None:
    run = Run()
    with run.watch(None, every=1, max_overhead=0.01) as watcher:
        run.train(300)
    assert len(watcher.records) < 100
    assert sum(r.curve is not None for r in watcher.records) < 10
    assert "leaves out what is not paid for yet" in caplog.text


class Costly:
    """A run on a clock of its own: a step takes 0.45 s, an evaluation ten steps."""

    def __init__(self, **options) -> None:
        self.now = 0.0
        self.run = Run()
        value = self.run.proxy().value

        def costly(model, batch) -> torch.Tensor:
            self.now += 4.5 / 16
            return value(model, batch)

        proxy = sw.Proxy([[self.run.inputs, self.run.targets]], costly)
        options = {"max_overhead": 0.01, "proxy": proxy, **options}
        options["levels"] = [i / 16 for i in range(1, 14)]  # some sixteen forward passes
        self.watcher = self.run.watch(options.pop("logdir", None), **options)
        budget = self.watcher._budget
        budget.now = lambda: self.now
        for _ in range(2):  # the attach has seen another clock
            budget.evaluations.expect(4.5)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.now += 0.45
            self.run.train(1)
            len(self.watcher.records)  # nothing is busy, however slow this machine is


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_an_evaluation_of_ten_steps_does_not_blind_the_watch(tmp_path: Path, background) -> None:
    sinks = [JsonlSink(tmp_path)]  # TensorBoard's draws, which takes real time
    costly = Costly(every=10, background=background, sinks=sinks, max_overhead=0.1)
    costly.train(450)
    costly.watcher.close()
    records = costly.watcher.records
    assert steps_of(records) == [1, *range(10, 451, 10)]
    assert all(r.valid and r.dormant is not None for r in records)
    evaluated = [r.step for r in records if r.curve is not None]
    assert evaluated[:2] == [1, 130]  # 4.5 s / 0.08 are 125 steps; the first is beside that
    assert len(evaluated) == 4
    for record in records:
        left_out = record.step not in evaluated
        assert (record.not_evaluated != "") == left_out
        assert (record.essential_sparsity is None) == left_out
        assert record.cost.num_evaluations_left_out == left_out
        assert record.cost.num_left_out == 0
    assert all(record.cost.overhead <= 0.1 for record in records)
    logged = read_records(tmp_path)
    assert [to_json(record) for record in logged] == [to_json(record) for record in records]


def test_a_snapshot_of_the_weights_is_behind_the_training_with_a_proxy_too(monkeypatch) -> None:
    sink = SlowSink()
    costly = Costly(every=1, sinks=[sink])
    costly.watcher._budget.wait_s = lambda due, **_: float(
        due is Due.EVERYTHING and costly.watcher.step_count > 1
    )
    sink.go_on.set()
    costly.train(1)
    names = []
    measure = snapshots.measure_snapshot
    monkeypatch.setattr(
        snapshots,
        "measure_snapshot",
        lambda *a, **k: names.append(threading.current_thread().name) or measure(*a, **k),
    )
    costly.train(1)
    costly.watcher.close()
    assert [r.curve is None for r in costly.watcher.records] == [False, True]
    assert names[0].startswith("sparsitywatch")


def test_the_share_of_a_record_includes_its_own_snapshot() -> None:
    costly = Costly(every=10, background=False, max_overhead=None)
    costly.train(10)
    record = costly.watcher.records[0]
    # ten steps of 0.45 s, the first of which is before the watch's clock begins
    assert record.cost.num_forwards == 15 or record.cost.num_forwards == 16
    spent = record.cost.num_forwards * 4.5 / 16
    # and the few real microseconds of the hooks
    assert record.cost.overhead == pytest.approx(spent / (9 * 0.45 + spent), rel=1e-3)
    costly.watcher.close()


class NotedAlerts(Adaptive):
    """An adaptive schedule that remembers its alerts."""

    def __init__(self) -> None:
        super().__init__(5, closer=5, intervals=2)
        self.alerts: list[int] = []

    def alert(self, step: int) -> None:
        self.alerts.append(step)
        super().alert(step)


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_an_alerted_watch_looks_closer_after_an_event(background: bool) -> None:
    run, schedule = Run(), NotedAlerts()
    # of less than a hundred weights a few are near zero by chance
    detectors = {"near_zero/initial_0.1": sw.detectors.AbruptChange(min_effect=0.2)}
    options = {"every": schedule, "proxy": None, "detectors": detectors, "background": background}
    with run.watch(None, **options) as watcher:
        for step in range(1, 121):
            run.train(1)
            if step >= 62:  # pruned, and held at that
                with torch.no_grad():
                    run.model[0].weight[:8] = 0.0
    (event,) = (one for one in watcher.events if one.is_of_series)
    steps = steps_of(watcher.records)
    assert set(range(5, 121, 5)) <= set(steps)
    # The first record after the change is suspicious, and a later one makes the event. How far
    # the training has gone meanwhile is another thread's matter; a further suspicion may follow.
    assert schedule.alerts[0] == 65
    assert event.detected_step in schedule.alerts
    closer = [s for s in steps if s % 5]
    assert all(any(a < s <= a + 10 for a in schedule.alerts) for s in closer)
    assert closer if background else closer == [66, 67, 68, 69, 71, 72, 73, 74, 76]
