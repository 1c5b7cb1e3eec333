"""Which exceptions end at the watch, and which reach the training, by real signals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.forked import Child
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import contain_faults
from sparsitywatch.proxy.batches import preserve_rng, seed_generators


class TimeIsUpError(Exception):
    """What a user's handler raises."""


def raises(number: int, frame: object) -> None:
    raise TimeIsUpError


def raises_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # the next one ends the process
    raise TimeIsUpError


def raises_exit(number: int, frame: object) -> None:
    raise SystemExit(3)


def raises_deep_inside(number: int, frame: object) -> None:
    raises(number, frame)


class Handler:
    """Handlers that are no plain functions."""

    def __call__(self, number: int, frame: object) -> None:
        raise TimeIsUpError

    def method(self, number: int, frame: object) -> None:
        raise TimeIsUpError


HANDLERS = {
    "function": raises,
    "one that takes itself off": raises_once,
    "one that exits": raises_exit,
    "one that calls another": raises_deep_inside,
    "lambda": lambda number, frame: raises(number, frame),
    "object": Handler(),
    "method": Handler().method,
    "partial": functools.partial(lambda _, number, frame: raises(number, frame), None),
}


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGVTALRM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


class Run:
    """A small training, watched at every step; ``in_value`` is called in its second snapshot."""

    def __init__(self, in_value: Callable[[], object], **options) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.calls = 0

        def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            result = model(batch).square().mean(dim=1)
            if self.calls == self.first_calls + 3:  # weights are masked
                assert any(not p.all() for p in model.parameters() if p.ndim == 2)
                in_value()
            return result

        self.first_calls = 10**9
        self.watcher = sw.watch(
            self.model, self.optimizer, proxy=sw.Proxy([torch.randn(6, 4)], value), every=1,
            max_overhead=None, **{"logdir": None, "scope": "layers"} | options,
        )  # fmt: skip

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(6, 4)).square().mean().backward()
        self.optimizer.step()

    def state(self) -> list:
        flags = [torch.is_grad_enabled(), *(m.training for m in self.model.modules())]
        tensors = [t.clone() for t in self.model.state_dict().values()]
        return [flags, tensors, torch.get_rng_state()]


def same(a: list, b: list) -> bool:
    tensors = zip([*a[1], a[2]], [*b[1], b[2]], strict=True)
    return a[0] == b[0] and all(torch.equal(x, y) for x, y in tensors)


def after_two_steps(in_value: Callable[[], object], **options) -> tuple[Run, BaseException | None]:
    """A run whose second snapshot calls ``in_value``, and what that let out."""
    run = Run(in_value, **options)
    run.step()
    assert len(run.watcher.records) <= 1  # it is done by then
    run.first_calls = run.calls
    try:
        run.step()
    except BaseException as error:  # noqa: BLE001 that is the question
        return run, error
    return run, None


def assert_undisturbed(run: Run, num_more: int = 0) -> None:
    """It is as one is in which nothing was raised."""
    plain, _ = after_two_steps(lambda: None)
    for _ in range(num_more):
        plain.step()
    assert same(run.state(), plain.state())


@pytest.mark.slow
@pytest.mark.parametrize("name", HANDLERS)
def test_what_a_signals_handler_raises_reaches_the_training(name: str) -> None:
    signal.signal(signal.SIGUSR1, HANDLERS[name])
    run, error = after_two_steps(send)
    assert isinstance(error, SystemExit if name == "one that exits" else TimeIsUpError)
    assert_undisturbed(run)
    assert run.watcher.off == ""
    run.step()
    assert [r.step for r in run.watcher.records if r.valid][-1] == 3


def test_what_a_handler_raises_is_found_behind_what_it_caused() -> None:
    signal.signal(signal.SIGUSR1, raises)

    def wrapped() -> None:
        try:
            send()
        except TimeIsUpError as error:
            raise ValueError("the value function failed") from error

    _, error = after_two_steps(wrapped)
    assert isinstance(error, TimeIsUpError)


def test_a_training_that_goes_on_in_an_except_clause_is_not_told_again() -> None:
    signal.signal(signal.SIGUSR1, raises)

    def fails() -> None:
        raise ValueError

    try:
        send()
        signal.sigtimedwait([], 0)  # a handler runs before the next line of Python at the latest
    except TimeIsUpError:
        run, error = after_two_steps(fails)
        assert error is None
        assert not run.watcher.records[-1].valid


def test_a_handler_that_returns_changes_nothing() -> None:
    seen = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    run, error = after_two_steps(send)
    assert (error, seen, run.watcher.records[-1].valid) == (None, [signal.SIGUSR1], True)


def test_generators_are_put_back_though_a_signal_comes_in_the_middle_of_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_back, states = np.random.set_state, []

    def interrupted(state) -> None:
        states.append(state)
        if len(states) == 1:
            raise TimeIsUpError
        put_back(state)

    monkeypatch.setattr(np.random, "set_state", interrupted)
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(TimeIsUpError), preserve_rng():
        seed_generators(7)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert len(states) == 2


@pytest.mark.slow
# where the signal comes in a callback of the garbage collector, nobody can catch what it raises
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_at_any_time_leave_the_training_as_it_was() -> None:
    """Each snapshot is interrupted somewhere, and the bits of the training are the same."""
    signal.signal(signal.SIGUSR1, raises)
    draw, here = random.Random(0), threading.get_ident()
    run = Run(lambda: None)
    run.step()
    before = run.state()
    run.watcher.step(2)
    began = time.perf_counter()
    run.watcher.step(3)
    one = time.perf_counter() - began
    num_raised = 0
    for number in range(40):
        with contextlib.suppress(TimeIsUpError):
            after_s = draw.uniform(0.01, 1) * one
            # sent to this thread: whatever is sent has come once the sender has ended
            sender = threading.Timer(after_s, signal.pthread_kill, [here, signal.SIGUSR1])
            num_raised += 1
            sender.start()
            run.watcher.step(number + 4)
            sender.cancel()
            sender.join()
            num_raised -= 1
        assert same(run.state(), before)
    assert num_raised > 5
    assert run.watcher.off == ""


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("kind", [SystemExit, ValueError, StopIteration])
@pytest.mark.parametrize("place", ["value", "on_record", "on_event", "sink", "detector"])
def test_a_fault_of_the_watch_ends_at_the_watch(kind: type, place: str, tmp_path: Path) -> None:
    def fails(*_: object) -> None:
        raise kind("of the watch")

    class Broken(sw.sinks.MemorySink):
        def write(self, record, detail):
            fails()

    class BrokenDetector(sw.detectors.AbruptChange):
        def update(self, step, value, context=None):
            if step > 1:
                fails()
            return super().update(step, value, context)

    class Sees(sw.detectors.AbruptChange):
        def update(self, step, value, context=None):
            return sw.Event(
                series="", direction="up", onset_step=step, detected_step=step, baseline=0.0,
                value=value,
            )  # fmt: skip

    options = {
        "value": {},
        "on_record": {"on_record": [fails]},
        "on_event": {"on_event": [fails], "detectors": {"near_zero/initial_0.1": Sees()}},
        "sink": {"sinks": [Broken()]},
        "detector": {"detectors": {"near_zero/initial_0.1": BrokenDetector()}},
    }[place]
    run, error = after_two_steps(fails if place == "value" else lambda: None, **options)
    assert error is None
    run.step()
    run.watcher.close()
    if place == "value":
        assert [r.valid for r in run.watcher.records] == [True, False, True]
        assert run.watcher.records[1].reason == f"{kind.__name__}: of the watch"
    elif place == "detector":
        assert run.watcher.off == f"{kind.__name__}: of the watch"
    else:
        assert [r.valid for r in run.watcher.records] == [True, True, True]
    assert_undisturbed(run, num_more=1)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_what_was_made_to_pass_passes(kind: type) -> None:
    def interrupted() -> None:
        raise kind

    run, error = after_two_steps(interrupted)
    assert isinstance(error, kind)
    assert_undisturbed(run)


def test_the_boundary_gives_faults_to_a_function_and_with_strict_lets_them_out() -> None:
    seen = []
    with contain_faults(seen.append):
        raise SystemExit(2)
    assert [type(error) for error in seen] == [SystemExit]
    with pytest.raises(ZeroDivisionError), contain_faults(seen.append, strict=True):
        _ = 1 / 0
    assert len(seen) == 1


AT_EXIT = """
import sys
import torch
import sparsitywatch as sw
from sparsitywatch.sinks.tensorboard import TensorBoardSink

def fails(self):
    raise SystemExit(7)

TensorBoardSink.close = fails
model = torch.nn.Linear(4, 4)
watcher = sw.watch(model, None, logdir=sys.argv[1], scope="layers")
watcher.step()
print("trained", flush=True)
"""


@pytest.mark.slow
def test_what_fails_at_the_interpreters_exit_is_logged_and_changes_no_exit_code(
    tmp_path: Path,
) -> None:
    returned, output, errors = Child(AT_EXIT, tmp_path).communicate()
    assert (returned, output) == (0, "trained\n")
    assert "TensorBoardSink failed" in errors
    assert "Exception ignored" not in errors
