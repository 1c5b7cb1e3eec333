"""Whose steps are counted: the watched optimizer's, and those of one that takes its place."""

from __future__ import annotations

import copy
import gc
import io
import logging
import math
from collections.abc import Callable

import pytest
import torch
from contracts.watched import Run, steps_of
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import sparsitywatch as sw
from sparsitywatch.live import trace

Optimizer = torch.optim.Optimizer


def new(run: Run) -> Optimizer:
    return torch.optim.AdamW(run.model.parameters(), lr=0.01)


def of_another_kind(run: Run) -> Optimizer:
    weights = [p for p in run.model.parameters() if p.dim() > 1]
    others = [p for p in run.model.parameters() if p.dim() == 1]
    return torch.optim.SGD(
        [{"params": others}, {"params": weights, "weight_decay": 0.5}], lr=0.01, momentum=0.9
    )


def shallow_copy(run: Run) -> Optimizer:
    return copy.copy(run.optimizer)


def deep_copy(run: Run) -> Optimizer:
    shared = {id(p): p for p in run.model.parameters()}
    return copy.deepcopy(run.optimizer, shared)


def unpickled(run: Run) -> Optimizer:
    file = io.BytesIO()
    torch.save(run.optimizer, file)
    file.seek(0)
    optimizer = torch.load(file, weights_only=False)
    state = optimizer.state_dict()
    for group in optimizer.param_groups:
        group["params"] = list(run.model.parameters())
    optimizer.state.clear()
    optimizer.load_state_dict(state)
    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("replace", [new, of_another_kind, shallow_copy, deep_copy, unpickled])
def test_a_watch_goes_on_with_the_optimizer_that_takes_the_place(
    replace: Callable[[Run], Optimizer], caplog
) -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None) as watcher:
        run.train(25)
        run.optimizer = replace(run)
        run.train(75)
    assert watcher.step_count == 100
    assert steps_of(watcher.records) == [10, 20, *range(40, 101, 10)]
    assert sum(r.cost.num_left_out for r in watcher.records) == 1  # step 30
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    (message,) = [text for text in told if "optimizer" in text]
    name = type(run.optimizer).__name__
    assert f"another {name} steps the same weights: it was replaced" in message
    assert "follows it from step 26 on, and counts the 10 steps" in message
    assert watcher.records[-1].lr_clock == pytest.approx(100 * 0.01)
    assert run.optimizer._optimizer_step_post_hooks == {}


def test_the_decay_clock_goes_on_and_motion_begins_anew_with_other_groups() -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None) as watcher:
        run.train(20)
        run.optimizer = of_another_kind(run)
        run.train(30)
    records = {r.step: r for r in watcher.records}
    # AdamW's own decay of 0.01, then 0.5 for the weights, through SGD's momentum of 0.9
    of_sgd = sum(0.01 * 0.5 * 0.9**age for step in range(30) for age in range(step + 1))
    assert records[20].decay_clock == pytest.approx(20 * 0.01 * 0.01)
    assert records[50].decay_clock == pytest.approx(20 * 0.01 * 0.01 + of_sgd)
    assert records[30].dormant.reason == "no earlier snapshot"
    assert math.isnan(records[30].movement.update_to_weight)
    assert records[40].movement.since_step == 30
    assert records[40].movement.update_to_weight > 0.0


def test_one_that_is_replaced_again_and_again_is_followed_each_time(caplog) -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None) as watcher:
        for _ in range(3):
            run.optimizer = new(run)  # the first time before any step
            run.train(25)
    assert watcher.step_count == 75
    assert steps_of(watcher.records) == [10, 20, 40, 50, 60, 70]  # 30 was among uncounted ones
    assert caplog.text.count("it was replaced") == 3


def test_a_copied_model_with_its_optimizer_is_said(caplog) -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None) as watcher:
        run.train(25)
        run.model, run.optimizer = copy.deepcopy((run.model, run.optimizer))
        run.train(75)
    assert watcher.step_count == 25
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1
    assert "another AdamW steps 146 weights of the same shapes" in messages[0]
    assert "Attach a watch to that one" in messages[0]


# ------------------------------------------------------------------ others beside it


def train_by_turns(run: Run, *turns: tuple[Optimizer, int], rounds: int) -> None:
    """Each optimizer takes its number of steps, round after round."""
    for _ in range(rounds):
        for optimizer, number in turns:
            for _ in range(number):
                optimizer.zero_grad()
                nn.functional.mse_loss(run.model(run.inputs), run.targets).backward()
                optimizer.step()


def of_the_other_half(run: Run) -> Optimizer:
    run.optimizer = torch.optim.AdamW(run.model[0].parameters(), lr=0.01)
    return torch.optim.AdamW(run.model[2].parameters(), lr=0.01)


def of_an_opponent(run: Run) -> Optimizer:
    opponent = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    return torch.optim.AdamW(opponent.parameters())


def of_the_same_weights(run: Run) -> Optimizer:
    return torch.optim.SGD(run.model.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (of_the_other_half, 1),
        (of_the_other_half, 30),
        (of_an_opponent, 5),
        (of_the_same_weights, 5),
    ],
)
def test_one_that_steps_by_turns_is_not_counted(make, others: int, caplog) -> None:
    run = Run()
    other = make(run)
    with run.watch(None, every=10, proxy=None) as watcher:
        train_by_turns(run, (other, others), (run.optimizer, 1), rounds=40)
    assert watcher.step_count == 40
    assert steps_of(watcher.records) == [10, 20, 30, 40]
    assert all(r.cost.num_left_out == 0 for r in watcher.records)
    assert caplog.records == []


def test_inner_steps_that_grow_longer_stay_inner_steps(caplog) -> None:
    run = Run()
    other = torch.optim.SGD(run.model.parameters(), lr=1e-3)
    with run.watch(None, every=10, proxy=None) as watcher:
        for number in (4, 8, 15, 29, 50):
            train_by_turns(run, (other, number), (run.optimizer, 1), rounds=2)
    assert watcher.step_count == 10
    assert caplog.records == []


class Wrapping(Optimizer):
    """An optimizer around another one, which it calls twice a step."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        for _ in range(2):
            self.inner.step()


@pytest.mark.parametrize("watched", ["outer", "inner"])
def test_a_wrapper_and_what_it_wraps_are_one(watched: str, caplog) -> None:
    run = Run()
    inner = run.optimizer
    outer = Wrapping(inner)
    run.optimizer = outer if watched == "outer" else inner
    with run.watch(None, every=10, proxy=None) as watcher:
        run.optimizer = outer
        run.train(30)
    assert watcher.step_count == (30 if watched == "outer" else 60)
    assert caplog.records == []


# ------------------------------------------------------------------ the hooks themselves


@pytest.mark.slow
def test_no_hook_is_left_behind() -> None:
    gc.collect()
    others = set(trace.StepHook._alive)  # of watches that tests before have left open
    run = Run()
    watcher = run.watch(None)
    assert len(set(trace.StepHook._alive) - others) == 1
    assert len(_global_optimizer_post_hooks) == 1
    watcher.close()
    assert not set(trace.StepHook._alive) - others
    assert others or not _global_optimizer_post_hooks
    run.watch(None)
    del run, watcher
    gc.collect()
    assert not set(trace.StepHook._alive) - others


@pytest.mark.slow
def test_a_watch_that_is_collected_in_the_middle_of_a_step_disturbs_no_training() -> None:
    """The garbage collector runs when it likes, also while torch goes through its hooks."""
    kept, dropped = Run(), Run()
    watchers = [kept.watch(None, every=1), dropped.watch(None)]
    handle = kept.optimizer.register_step_post_hook(
        lambda *_: (vars(dropped).clear(), watchers.pop() if len(watchers) > 1 else 0, gc.collect())
    )
    kept.train(3)
    assert [record.step for record in watchers[0].records] == [1, 2, 3]
    handle.remove()
    watchers[0].close()


@pytest.mark.parametrize("explicit", [False, True])
def test_a_watch_may_be_closed_from_an_action(explicit: bool) -> None:
    """Torch goes through its hooks meanwhile, and raises where they change."""
    run, watchers = Run(), []
    watchers.append(
        run.watch(
            None, every=2, proxy=None, background=False, strict=False,
            on_record=[lambda _: watchers[0].step() if explicit else watchers[0].close()],
        )
    )  # fmt: skip
    run.train(10)
    assert [r.step for r in watchers[0].records] == [2]
    assert watchers[0].closed is not explicit
    watchers[0].close()


def test_explicit_steps_follow_nobody(caplog) -> None:
    run = Run()
    with sw.watch(run.model, run.optimizer, logdir=None, every=5, max_overhead=None) as watcher:
        watcher.step()
        run.optimizer = new(run)
        run.train(30)
        assert watcher.step_count == 1
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_a_compiled_step_is_counted_and_followed() -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None) as watcher:
        step = torch.compile(run.optimizer.step, backend="eager")
        for _ in range(4):
            run.optimizer.zero_grad()
            run.model(run.inputs).square().mean().backward()
            step()
        run.optimizer = new(run)
        run.train(16)
    assert watcher.step_count == 20
    assert steps_of(watcher.records) == [20]
