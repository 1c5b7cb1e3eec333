"""Promise 1 beside other threads: what they draw is what they would draw without a watch."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
import torch
from contracts.watched import Run, steps_of
from torch import nn

import sparsitywatch as sw
from sparsitywatch.proxy import apart

STEPS = 18
Draw = Callable[[], torch.Tensor]


def numpys() -> torch.Tensor:
    return torch.from_numpy(np.random.rand(8, 6).astype("f4"))  # noqa: NPY002 as users do


def pythons() -> torch.Tensor:
    return torch.tensor([[random.gauss(0.0, 1.0) for _ in range(6)] for _ in range(8)])


def torchs() -> torch.Tensor:
    return torch.randn(8, 6)


def of_all() -> torch.Tensor:
    return numpys() + pythons() + torchs()


class Loader:
    """Batches that another thread draws ahead, in one of the ways in which people do so.

    The thread is there when it is made; it draws once it is started, a few batches ahead.
    """

    def __init__(self, draw: Draw, kind: str) -> None:
        self._draw, self._made, self._start = draw, queue.Queue[Any](3), threading.Event()
        self._stack = contextlib.ExitStack()
        getattr(self, f"_{kind}")()

    def start(self) -> None:
        self._start.set()

    def close(self) -> None:
        self._start.set()
        self._stack.close()

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(STEPS):
            made = self._made.get(timeout=60)
            yield made.result() if hasattr(made, "result") else made

    def _work(self) -> None:
        self._start.wait()
        for _ in range(STEPS):
            self._made.put(self._draw())

    def _thread(self) -> None:
        thread = threading.Thread(target=self._work)
        thread.start()
        self._stack.callback(thread.join)

    def _subclass(self) -> None:
        class Worker(threading.Thread):
            def run(worker) -> None:  # noqa: N805
                self._work()

        worker = Worker()
        worker.start()
        self._stack.callback(worker.join)

    def _pool(self) -> None:
        pool = self._stack.enter_context(ThreadPoolExecutor(1))
        pool.submit(self._work)

    def _thread_pool(self) -> None:
        pool = self._stack.enter_context(ThreadPool(1))
        work = pool.apply_async(self._work)
        self._stack.callback(work.wait)

    def _loop(self) -> None:
        loop = asyncio.new_event_loop()

        async def work() -> None:
            while not self._start.is_set():
                await asyncio.sleep(0.001)
            for _ in range(STEPS):
                while self._made.full():
                    await asyncio.sleep(0.0005)
                self._made.put(self._draw())
            loop.stop()

        def run() -> None:
            task = loop.create_task(work())
            loop.run_forever()
            del task

        thread = threading.Thread(target=run)
        thread.start()
        self._stack.callback(loop.close)
        self._stack.callback(thread.join)


def trained(draw: Draw, kind: str, when: str, options: dict | None) -> tuple[list, list]:
    """The bits of a training whose batches another thread draws, and what its watch has seen."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 as users do
    random.seed(0)
    run, records, watcher = Run(), [], None
    proxy = run.proxy()
    loader = Loader(draw, kind)
    try:
        if when == "before":
            loader.start()
        if options is not None:
            watcher = run.watch(None, proxy=proxy, levels=[0.5], strict=False, **options)
        loader.start()
        for batch in loader:
            run.optimizer.zero_grad()
            run.model(batch).square().mean().backward()
            run.optimizer.step()
        if watcher is not None:
            watcher.close()
            records = watcher.records
    finally:
        loader.close()
    state = np.random.get_state()  # noqa: NPY002 as users do
    bits = [tensor.numpy().tobytes() for tensor in run.model.state_dict().values()]
    generators = [torch.get_rng_state().numpy().tobytes(), state[1].tobytes(), state[2]]
    return [*bits, *generators, random.getstate()], records


KINDS = {
    "numpy, a thread": (numpys, "thread"),
    "python, a subclass": (pythons, "subclass"),
    "torch, a pool": (torchs, "pool"),
    "all, a thread": (of_all, "thread"),
    "numpy, a pool of threads": (numpys, "thread_pool"),
    "all, an event loop": (of_all, "loop"),
    "torch, a thread": (torchs, "thread"),
    "python, a pool": (pythons, "pool"),
}


@pytest.mark.part(3)
@pytest.mark.parametrize(
    "kind", [k if n < 4 else pytest.param(k, marks=pytest.mark.whole) for n, k in enumerate(KINDS)]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_thread_draws_is_what_it_would_draw_without_a_watch(kind, when, monkeypatch) -> None:
    monkeypatch.setattr("sparsitywatch.live.behind._num_cores", lambda: 8)
    draw, how = KINDS[kind]
    plain, _ = trained(draw, how, when, None)
    for options in ({}, {"evaluate": "behind"}, {"evaluate": "auto"}):
        bits, records = trained(draw, how, when, options)
        assert bits == plain, options
        assert steps_of(records) == [*range(3, STEPS + 1, 3)]
        assert all(record.valid and record.curve is not None for record in records)


@pytest.mark.parametrize("kind", ["all, a thread", "torch, a pool", "all, an event loop"])
def test_where_no_fork_is_safe_evaluations_are_left_out_and_said(kind, monkeypatch, caplog) -> None:
    monkeypatch.setattr("sparsitywatch.proxy.apart.torch.cuda.is_initialized", lambda: True)
    draw, how = KINDS[kind]
    plain, _ = trained(draw, how, "before", None)
    bits, records = trained(draw, how, "before", {})
    assert bits == plain
    assert all(r.valid and r.curve is None and r.near_zero for r in records)
    assert {"other threads (" in record.not_evaluated for record in records} == {True}
    assert caplog.text.count("the proxy is not evaluated: other threads (") == 1


def test_who_says_that_threads_draw_nothing_is_believed(monkeypatch) -> None:
    monkeypatch.setattr("sparsitywatch.proxy.apart.torch.cuda.is_initialized", lambda: True)

    def fixed() -> torch.Tensor:
        return torch.linspace(-1.0, 1.0, 48).reshape(8, 6)

    plain, _ = trained(fixed, "thread", "before", None)
    bits, records = trained(fixed, "thread", "before", {"threads_draw": False})
    assert bits == plain
    assert all(record.curve is not None for record in records)


def test_a_thread_that_begins_or_ends_in_mid_run(monkeypatch) -> None:
    monkeypatch.setattr("sparsitywatch.proxy.apart.torch.cuda.is_initialized", lambda: True)
    others = {thread.name for thread in threading.enumerate()}  # of other tests
    is_harmless = apart._is_harmless
    monkeypatch.setattr(apart, "_is_harmless", lambda f, n: n in others or is_harmless(f, n))
    run, end = Run(), threading.Event()
    with run.watch(None, every=2, strict=False) as watcher:
        run.train(4)
        thread = threading.Thread(target=end.wait, name="late")
        thread.start()
        run.train(4)
        end.set()
        thread.join()
        run.train(2)
    assert [record.curve is not None for record in watcher.records] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert "(late)" in watcher.records[2].not_evaluated


def test_trainings_in_threads_of_their_own_end_as_without_a_watch() -> None:
    def train(is_watched: bool) -> tuple[list, list]:
        torch.manual_seed(0)
        runs = [Run(seed) for seed in range(3)]
        watchers = [run.watch(None, strict=False) for run in runs] if is_watched else []

        def steps(run: Run) -> None:
            for _ in range(STEPS):
                torch.rand(1)
                random.random()
                run.train(1)

        threads = [threading.Thread(target=steps, args=[run]) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for watcher in watchers:
            watcher.close()
        bits = [t.numpy().tobytes() for run in runs for t in run.model.state_dict().values()]
        return [*bits, torch.get_rng_state().tolist(), random.getstate()], watchers

    random.seed(5)
    plain, _ = train(is_watched=False)
    random.seed(5)
    bits, watchers = train(is_watched=True)
    assert bits == plain
    for watcher in watchers:
        assert steps_of(watcher.records) == [*range(3, STEPS + 1, 3)]
        assert all(record.curve is not None for record in watcher.records)


def test_what_an_evaluation_changes_beside_the_model_is_there_for_no_other_thread() -> None:
    class Counted(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            type(self).calls += 1
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Counted(6, 6), Counted(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, end = set(), threading.Event()

    def look() -> None:
        while not end.is_set():
            seen.add(Counted.calls)
            time.sleep(0)

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean(1)

    proxy = sw.Proxy([torch.ones(4, 6), torch.zeros(4, 6)], value)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        with sw.watch(
            model, optimizer, proxy=proxy, every=1, logdir=None, scope="layers"
        ) as watcher:
            for _ in range(3):
                optimizer.step()
                watcher.snapshot()
    finally:
        end.set()
        thread.join()
    assert seen == {0}
    assert all(record.curve is not None for record in watcher.records)
