"""Which steps are this run's: the watch's count beside that of the loop, over many ways to step."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from contracts.watched import Run, told
from torch import nn

import sparsitywatch as sw
from sparsitywatch.live import trace

Optimizer = torch.optim.Optimizer


class Plain(torch.optim.AdamW):
    """A subclass without a step of its own."""


class CallsSuper(torch.optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


class CallsSuperTwice(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        return super().step(closure)


class CallsSuperOfSuper(CallsSuper):
    def step(self, closure=None):
        return super().step(closure)


class Around(Optimizer):
    """Wraps others, and holds their weights itself or none of them."""

    def __init__(self, inner: list[Optimizer], *, holds: bool) -> None:
        held = [p for one in inner for group in one.param_groups for p in group["params"]]
        super().__init__(held if holds else [nn.Parameter(torch.zeros(1))], {})
        self.around = inner

    def step(self, closure=None):
        for one in self.around:
            one.step()


class Sharpness(Optimizer):
    """SAM: steps uphill by hand, then has its base step."""

    def __init__(self, parameters, base: type) -> None:
        super().__init__(list(parameters), {})
        self.base = base(self.param_groups, lr=0.01)
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        self.base.step()


class Fails(torch.optim.AdamW):
    """Raises in every second step, before or after the weights were written."""

    calls = 0
    is_late = False

    def step(self, closure=None):
        self.calls += 1
        if self.calls % 2 == 0 and not self.is_late:
            raise ValueError("not this one")
        found = super().step(closure)
        if self.calls % 2 == 0:
            raise ValueError("not this one, after all")
        return found


class FailsLate(Fails):
    is_late = True


def halves(run: Run) -> tuple[Optimizer, Optimizer]:
    first, second = run.model[0], run.model[2]
    return tuple(torch.optim.SGD(one.parameters(), lr=0.01) for one in (first, second))


def backward(run: Run) -> torch.Tensor:
    run.model.zero_grad()
    loss = nn.functional.mse_loss(run.model(run.inputs), run.targets)
    loss.backward()
    return loss


class Loop:
    """A loop that counts its own steps."""

    def __init__(self) -> None:
        self.run, self.done = Run(), 0

    def watch(self, optimizer: object) -> sw.Watcher:
        return self.run.watch(None, every=4, proxy=None, optimizer=optimizer)

    def step(self, optimizer: Optimizer, times: int = 1, closure: Callable | None = None) -> None:
        for _ in range(times):
            if closure is None:
                backward(self.run)
                optimizer.step()
            else:
                optimizer.step(closure)
            self.done += 1

    def may_fail(self, optimizer: Optimizer, times: int) -> None:
        for _ in range(times):
            backward(self.run)
            try:
                optimizer.step()
            except ValueError:
                continue
            self.done += 1


#: Gives what holds the weights, which is watched or found; then it trains.
Way = Callable[[Loop], Iterator[object]]


def of_kind(kind: type) -> Way:
    def train(loop: Loop) -> Iterator[object]:
        yield (own := kind(loop.run.model.parameters(), lr=0.01))
        loop.step(own, 12)

    return train


def with_closures(loop: Loop) -> Iterator[object]:
    yield (own := torch.optim.LBFGS(loop.run.model.parameters(), lr=0.1, max_iter=3))
    loop.step(own, 12, lambda: backward(loop.run))


def by_sharpness(loop: Loop) -> Iterator[object]:
    yield (own := Sharpness(loop.run.model.parameters(), CallsSuper))
    loop.step(own, 12, lambda: backward(loop.run))


def by_the_base_alone(loop: Loop) -> Iterator[object]:
    yield (own := Sharpness(loop.run.model.parameters(), CallsSuper))
    loop.step(own.base, 12)


def around(*, holds: bool, gives_inner: bool) -> Way:
    def train(loop: Loop) -> Iterator[object]:
        inner = list(halves(loop.run))
        own = Around(inner, holds=holds)
        yield inner if gives_inner else own
        loop.step(own, 12)

    return train


def beside_inner_loops(loop: Loop) -> Iterator[object]:
    """Of another model, as of MAML's fast weights."""
    other = Run(seed=1)
    yield loop.run.optimizer
    for number in range(12):
        other.optimizer = CallsSuper(other.model.parameters(), lr=0.01)
        other.train(1 + number)
        loop.step(loop.run.optimizer)


def that_fails(kind: type) -> Way:
    def train(loop: Loop) -> Iterator[object]:
        yield (own := kind(loop.run.model.parameters(), lr=0.01))
        loop.may_fail(own, 24)

    return train


def in_a_thread(loop: Loop) -> Iterator[object]:
    yield loop.run.optimizer
    thread = threading.Thread(target=loop.step, args=(loop.run.optimizer, 12))
    thread.start()
    thread.join()


def in_a_pool(loop: Loop) -> Iterator[object]:
    yield loop.run.optimizer
    with ThreadPoolExecutor(3) as pool:
        for _ in range(12):
            pool.submit(loop.step, loop.run.optimizer).result()


def beside_another_thread(loop: Loop) -> Iterator[object]:
    """Whose steps begin and end within those of this one, and the other way round."""
    others = [Run(seed=1), Run(seed=2)]
    yield loop.run.optimizer
    meets = threading.Barrier(3)

    def meeting() -> None:
        meets.wait(30)  # all of them are in a step now

    def beside(other: Run) -> None:
        for _ in range(12):
            other.optimizer.step(meeting)

    threads = [threading.Thread(target=beside, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    loop.step(loop.run.optimizer, 12, meeting)
    for thread in threads:
        thread.join()


def made_after_the_attach(loop: Loop) -> Iterator[object]:
    yield loop.run.optimizer
    # the first one is gone before it steps
    loop.run.optimizer = CallsSuper(loop.run.model.parameters(), lr=0.01)
    gc.collect()
    loop.step(loop.run.optimizer, 12)


def made_anew(loop: Loop) -> Iterator[object]:
    yield loop.run.optimizer
    for kind in (torch.optim.AdamW, torch.optim.SGD, CallsSuper):
        loop.run.optimizer = kind(loop.run.model.parameters(), lr=0.01)
        gc.collect()
        loop.step(loop.run.optimizer, 4)


def after_a_stranger(loop: Loop) -> Iterator[object]:
    yield loop.run.optimizer
    Run(seed=1).train(100)
    loop.step(loop.run.optimizer, 12)


WAYS = {
    "a plain subclass": of_kind(Plain),
    "a subclass that calls super().step()": of_kind(CallsSuper),
    "one that calls it twice": of_kind(CallsSuperTwice),
    "a subclass of that": of_kind(CallsSuperOfSuper),
    "closures": with_closures,
    "SAM": by_sharpness,
    "SAM's base alone": by_the_base_alone,
    "inside one that holds the weights": around(holds=True, gives_inner=False),
    "inside it, the inner ones given": around(holds=True, gives_inner=True),
    "inside one that holds none": around(holds=False, gives_inner=True),
    "beside inner loops": beside_inner_loops,
    "steps that raise": that_fails(Fails),
    "steps that raise late": that_fails(FailsLate),
    "in a thread": in_a_thread,
    "in a pool": in_a_pool,
    "beside other threads": beside_another_thread,
    "made after the attach": made_after_the_attach,
    "made anew": made_anew,
    "after a stranger": after_a_stranger,
}


@pytest.fixture(autouse=True)
def _others_were_made() -> None:
    """torch hooks a class's step when the first one of it is made; its own may be made before."""
    for kind in (torch.optim.AdamW, torch.optim.SGD, CallsSuper):
        kind([nn.Parameter(torch.zeros(1))], lr=0.01)


@pytest.mark.part(3)
@pytest.mark.parametrize("is_given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("way", WAYS)
def test_the_watch_counts_what_the_loop_counts(way: str, is_given: bool) -> None:
    loop = Loop()
    train = WAYS[way](loop)
    holder = next(train)
    watcher = loop.watch(holder if is_given else None)
    del holder  # nothing else holds what is made anew
    next(train, None)
    watcher.close()
    assert loop.done == 12
    assert watcher.step_count == loop.done
    assert [record.step for record in watcher.records] == [4, 8, 12]
    assert not watcher.off


def test_nothing_is_left_of_steps_that_raised_or_of_other_threads() -> None:
    def begun() -> list[object]:
        return [one for stack in trace.StepHook._begun.values() for one in stack]

    loop, of_others = Loop(), begun()  # a thread of another test may have died in its step
    own = Fails(loop.run.model.parameters(), lr=0.01)
    with loop.watch(own) as watcher, ThreadPoolExecutor(1) as stays:
        stays.submit(Run(seed=1).train, 3).result()
        loop.may_fail(own, 6)
        thread = threading.Thread(target=Run(seed=1).train, args=(3,))
        thread.start()
        thread.join()
        assert [one for one in begun() if one not in of_others]
        watcher.close()
        assert not [one for one in begun() if one not in of_others]


def test_weights_written_by_hand_after_the_attach_are_where_the_run_begins() -> None:
    found = []
    for is_late in (False, True):
        run = Run()
        written = [torch.randn_like(p) for p in run.model.parameters()]

        def write(run: Run = run, written: list[torch.Tensor] = written) -> None:
            for parameter, values in zip(run.model.parameters(), written, strict=True):
                parameter.data.copy_(values)  # torch counts no version of it

        if not is_late:
            write()
        with run.watch(None, every=4, proxy=None) as watcher:
            if is_late:
                write()
            run.train(8)
        found.append((told(watcher.records), watcher._taker.run.initial_rms))
    assert found[0] == found[1]
