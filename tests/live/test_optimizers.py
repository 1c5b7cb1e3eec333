"""Whose steps count, what every optimizer does to the weights, and what is said of others."""

from __future__ import annotations

import contextlib
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
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
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
        [{"params": others}, {"params": weights, "weight_decay": 0.2}], lr=0.01, momentum=0.9
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


def warnings_in(caplog) -> list[str]:
    """Those that are no events."""
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return [message for message in told if ", seen at step" not in message]


REPLACE = [new, of_another_kind, shallow_copy, deep_copy, unpickled]


@pytest.mark.parametrize("replace", REPLACE)
def test_whatever_steps_this_model_counts_where_none_was_given(
    replace: Callable[[Run], Optimizer], caplog
) -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None, optimizer=None) as watcher:
        run.train(25)
        run.optimizer = replace(run)
        run.train(75)
    assert watcher.step_count == 100
    assert steps_of(watcher.records) == [*range(10, 101, 10)]
    assert warnings_in(caplog) == []
    assert watcher.records[-1].lr_clock == pytest.approx(100 * 0.01)
    assert watcher.records[-1].trained == 1.0


@pytest.mark.parametrize("replace", REPLACE)
def test_one_that_was_given_and_replaced_is_waited_for_and_that_is_said(
    replace: Callable[[Run], Optimizer], caplog
) -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None) as watcher:
        run.train(25)
        kept, run.optimizer = run.optimizer, replace(run)
        run.train(9)
        assert warnings_in(caplog) == []
        run.train(60)
        assert watcher.step_count == 25
        (message,) = warnings_in(caplog)
        name = type(run.optimizer).__name__
        assert f"no step has been counted during 10 steps of {name} on 96 weights" in message
        assert "optimizer=None" in message
        run.optimizer = kept
        run.train(5)
    assert watcher.step_count == 30
    # all steps were taken into the clocks, whoever took them
    assert watcher.records[-1].lr_clock == pytest.approx(99 * 0.01)


def test_the_clock_goes_on_and_the_weights_are_compared_with_other_groups() -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None, optimizer=None) as watcher:
        run.train(20)
        run.optimizer = of_another_kind(run)
        run.train(30)
    records = {r.step: r for r in watcher.records}
    # AdamW's own decay of 0.01, then 0.2 for the weights, through SGD's momentum of 0.9
    of_sgd = sum(0.01 * 0.2 * 0.9**age for step in range(30) for age in range(step + 1))
    assert records[20].decay_clock == pytest.approx(20 * 0.01 * 0.01)
    assert records[50].decay_clock == pytest.approx(20 * 0.01 * 0.01 + of_sgd)
    assert records[20].dormant.reason == ""
    assert "SGD are not of the size of lr" in records[30].dormant.reason
    assert records[30].movement.since_step == 20
    assert records[30].movement.update_to_weight > 0.0


def test_a_new_one_each_epoch_loses_no_step(caplog) -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None, optimizer=None) as watcher:
        for _ in range(5):
            run.optimizer = new(run)
            run.train(15)
    assert watcher.step_count == 75
    assert steps_of(watcher.records) == [*range(10, 71, 10)]
    assert watcher.records[-1].lr_clock == pytest.approx(70 * 0.01)
    assert caplog.records == []


# ------------------------------------------------------------------ who trains what


def frozen(run: Run) -> Optimizer:
    run.model[0].requires_grad_(False)
    return run.optimizer


def of_the_head(run: Run) -> Optimizer:
    return torch.optim.AdamW(run.model[2].parameters())


def of_a_copy(run: Run) -> Optimizer:
    return torch.optim.AdamW(copy.deepcopy(run.model).parameters())


def of_what_a_function_takes(run: Run) -> Optimizer:
    return torch.optim.AdamW([p.detach().clone().requires_grad_() for p in run.model.parameters()])


def of_what_was_there_before_the_file(run: Run) -> Optimizer:
    run.model.load_state_dict(copy.deepcopy(run.model.state_dict()), assign=True)
    return run.optimizer


def of_an_average(run: Run) -> Optimizer:
    run.model = torch.optim.swa_utils.AveragedModel(run.model)
    return run.optimizer


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (of_the_head, "those of 2 alone"),
        (of_a_copy, "none of this model"),
        (of_what_a_function_takes, "none of this model"),
        (of_what_was_there_before_the_file, "none of this model"),
        (of_an_average, "none of this model"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_optimizers_of_other_weights_are_refused(make, what: str, several: bool) -> None:
    run = Run()
    optimizer = make(run)
    with pytest.raises(sw.errors.ConfigurationError, match=what):
        run.watch(None, optimizer=[optimizer] if several else optimizer, scope="all")


def schedule_free(run: Run) -> tuple[nn.Module, Optimizer | None]:
    kind = type("AdamWScheduleFree", (torch.optim.AdamW,), {"__module__": "schedulefree.adamw"})
    return run.model, kind(run.model.parameters())


def average(run: Run) -> tuple[nn.Module, Optimizer | None]:
    return torch.optim.swa_utils.AveragedModel(run.model), None


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (schedule_free, "that AdamWScheduleFree takes gradients at"),
        (average, "an average of the weights (AveragedModel)"),
    ],
)
def test_which_weights_are_watched_is_said_where_there_are_several(make, what: str, caplog) -> None:
    model, optimizer = make(Run())
    sw.watch(model, optimizer, logdir=None).close()
    assert what in warnings_in(caplog)[0]


def in_part(run: Run) -> Optimizer:
    run.model = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 2))
    return torch.optim.AdamW(run.model[1].parameters())


@pytest.mark.parametrize(
    ("make", "which", "share"),
    [
        (in_part, "480 weights in 2 tensors, 80 % of them trained", 0.8),
        (frozen, "34 weights in 2 tensors, all that is trained, none of it in the default", 1.0),
        (of_the_head, "34 weights in 2 tensors, all that is trained, none of it in the", 1.0),
    ],
)
def test_weights_that_nobody_trains_are_said(make, which: str, share: float, caplog) -> None:
    run = Run()
    optimizer = make(run)
    with run.watch(None, proxy=None, optimizer=optimizer) as watcher:
        run.optimizer = optimizer
        run.train(3)
    message = warnings_in(caplog)[0]
    assert f"the numbers are about {which}" in message
    assert watcher.records[-1].scope.describe() in message
    assert watcher.records[-1].trained == pytest.approx(share)


def test_a_layer_that_is_frozen_keeps_its_clock_and_takes_nothing_from_the_others() -> None:
    torch.manual_seed(0)
    run = Run()
    run.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 24), nn.Linear(24, 2))
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.01, weight_decay=0.5)
    with run.watch(None, every=10, proxy=None) as watcher:
        run.train(20)
        run.model[0].requires_grad_(False)
        run.train(20)
    last = watcher.records[-1]
    first, second = 6 * 16, 16 * 24
    expected = 0.01 * 0.5 * (20 * first + 40 * second) / (first + second)
    assert last.decay_clock == pytest.approx(expected, rel=1e-9)
    assert last.trained == 1.0  # what is frozen is not to be trained
    assert [layer.name for layer in last.layers if not math.isnan(layer.dormant)] == ["2.weight"]
    assert last.dormant.reason == ""


def muon_and_adamw(run: Run) -> list[Optimizer]:
    run.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 24), nn.Linear(24, 2))
    inner = run.model[2].weight
    others = [p for p in run.model.parameters() if p is not inner]
    return [
        torch.optim.AdamW(others, lr=0.02, weight_decay=0.1),
        torch.optim.Muon([inner], lr=0.05, weight_decay=0.3),
    ]


@pytest.mark.parametrize("given", ["both", "neither", "one"])
def test_two_optimizers_of_one_model_are_one_training(given: str, caplog) -> None:
    run = Run()
    both = muon_and_adamw(run)
    chosen = {"both": both, "neither": None, "one": both[1]}[given]
    with run.watch(None, every=10, proxy=None, optimizer=chosen) as watcher:
        for _ in range(40):
            nn.functional.mse_loss(run.model(run.inputs), run.targets).backward()
            for one in both:
                one.step()
                one.zero_grad()
    assert watcher.step_count == 40
    assert steps_of(watcher.records) == [10, 20, 30, 40]
    expected = 40 * (0.02 * 0.1 * 96 + 0.05 * 0.3 * 384) / 480
    # a snapshot comes with the step of the one that counts, before or after the other's
    assert watcher.records[-1].decay_clock == pytest.approx(expected, rel=0.03)
    assert watcher.records[-1].trained == 1.0
    assert len(caplog.records) == (given == "one")


class SAM(Optimizer):
    """Sharpness-aware minimisation as people write it: nobody calls its ``step``."""

    def __init__(self, params, base, **options) -> None:
        super().__init__(params, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def second_step(self) -> None:
        self.base_optimizer.step()
        self.zero_grad()


@pytest.mark.parametrize("is_given", [True, False])
def test_steps_of_an_optimizer_inside_the_given_one_count(is_given: bool, caplog) -> None:
    run = Run()
    run.optimizer = SAM(run.model.parameters(), torch.optim.SGD, lr=0.1)
    chosen = run.optimizer if is_given else None
    with run.watch(None, every=10, proxy=None, optimizer=chosen) as watcher:
        for _ in range(40):
            nn.functional.mse_loss(run.model(run.inputs), run.targets).backward()
            run.optimizer.second_step()
    assert watcher.step_count == 40
    assert steps_of(watcher.records)[-1] == 40
    assert watcher.records[-1].lr_clock == pytest.approx(40 * 0.1)
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("is_watched", [False, True])
def test_steps_of_a_copied_model_are_said_unless_it_has_a_watch(
    is_given: bool, is_watched: bool, caplog
) -> None:
    gc.collect()  # watches of earlier tests, which nobody closed, would say it, too
    run = Run()
    chosen = run.optimizer if is_given else None
    with run.watch(None, every=10, proxy=None, optimizer=chosen) as watcher:
        run.train(25)
        kept = run.model, run.optimizer
        run.model, run.optimizer = copy.deepcopy(kept)
        another = run.watch(None, every=10, proxy=None) if is_watched else contextlib.nullcontext()
        with another:
            run.train(30)
    assert watcher.step_count == 25
    messages = warnings_in(caplog)
    assert len(messages) == (not is_watched)
    assert is_watched or "10 steps of AdamW on a copy of this model" in messages[0]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_weights_that_a_file_replaces_after_the_attach_are_what_is_compared_with(
    assign: bool, given: bool, caplog
) -> None:
    run, other = Run(), Run(seed=1)
    with run.watch(
        None, every=1, proxy=None, optimizer=run.optimizer if given else None
    ) as watcher:
        run.model.load_state_dict(other.model.state_dict(), assign=assign)
        if assign and not given:
            run.optimizer = new(run)
        run.train(12)
        if assign and given:
            assert watcher.records[-1].trained == 0.0
            assert "AdamW holds no weight in scope any more" in warnings_in(caplog)[0]
            return
    first = watcher.records[0]
    assert first.movement.sign_flips < 0.1
    assert first.near_zero["initial_0.1"] == pytest.approx(
        (other.model[0].weight.abs() <= 0.1 * other.model[0].weight.square().mean().sqrt())
        .float().mean().item(), abs=0.05,
    )  # fmt: skip


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "others"),
    [
        (of_the_other_half, 1),
        (of_the_other_half, 30),
        (of_an_opponent, 30),
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


def test_many_inner_steps_stay_inner_steps_and_are_said_once(caplog) -> None:
    run = Run()
    other = torch.optim.SGD(run.model.parameters(), lr=1e-3)
    with run.watch(None, every=10, proxy=None) as watcher:
        for number in (4, 8, 15, 29, 50):
            train_by_turns(run, (other, number), (run.optimizer, 1), rounds=2)
    assert watcher.step_count == 10
    (message,) = warnings_in(caplog)
    assert "during 10 steps of SGD on 96 weights in scope" in message


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
    assert watcher.step_count == 30  # of the outermost one
    assert caplog.records == []


class Holding:
    """Holds the optimizer that steps, under the name that a library gives it."""

    def __init__(self, name: str, inner: object) -> None:
        setattr(self, name, inner)


@pytest.mark.parametrize("name", ["optimizer", "opt"])  # of Accelerate, of fastai
def test_what_holds_an_optimizer_stands_for_it(name: str) -> None:
    run = Run()
    with run.watch(None, every=10, optimizer=Holding(name, Holding("opt", run.optimizer))) as watch:
        run.train(10)
    assert watch.step_count == 10
    with pytest.raises(sw.ConfigurationError, match=r"as `\.optimizer` or `\.opt`.*got .*Holding"):
        run.watch(None, optimizer=Holding(name, None))


class OutOfMemory(torch.optim.AdamW):
    """One whose second step fails."""

    num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        if self.num_steps == 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().step(closure)


def test_a_step_that_raised_is_over_and_the_next_optimizer_counts() -> None:
    run = Run()
    failing = run.optimizer = OutOfMemory(run.model.parameters(), lr=0.01)
    with run.watch(None, every=10, proxy=None, optimizer=None) as watcher:
        run.train(1)
        with pytest.raises(torch.OutOfMemoryError):
            run.train(1)
        run.optimizer = new(run)
        run.train(19)
    assert failing.num_steps == 2
    assert watcher.step_count == 20
    assert watcher.records[-1].lr_clock == pytest.approx(20 * 0.01)


# ------------------------------------------------------------------ the hooks themselves


@pytest.mark.slow
def test_no_hook_is_left_behind() -> None:
    gc.collect()
    others = set(trace.StepHook.alive())  # of watches that tests before have left open
    run = Run()
    watcher = run.watch(None)
    assert len(set(trace.StepHook.alive()) - others) == 1
    assert len(_global_optimizer_post_hooks) == 1
    watcher.close()
    assert not set(trace.StepHook.alive()) - others
    assert others or not _global_optimizer_post_hooks
    run.watch(None)
    del run, watcher
    gc.collect()
    assert not set(trace.StepHook.alive()) - others


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
        run.train(9)
        assert watcher.step_count == 1
        for _ in range(3):
            run.train(1)
            watcher.step()
        assert watcher.step_count == 4
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_compiled_steps_are_counted() -> None:
    run = Run()
    with run.watch(None, every=10, proxy=None, optimizer=None) as watcher:
        step = torch.compile(run.optimizer.step, backend="eager")
        for _ in range(4):
            run.optimizer.zero_grad()
            run.model(run.inputs).square().mean().backward()
            step()
        run.optimizer = new(run)
        run.train(16)
    assert watcher.step_count == 20
    assert steps_of(watcher.records) == [20]  # the compiled step keeps the first one alive


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("wrapper", ["", "a schedule", "as Accelerate's"])
def test_a_step_that_only_makes_the_state_for_a_checkpoint_is_none(kind, wrapper) -> None:
    """torch.distributed.checkpoint takes one before it saves or loads that of a new optimizer."""
    run = Run(optimizer=kind)
    step = run.optimizer.step
    if wrapper == "a schedule":
        torch.optim.lr_scheduler.ConstantLR(run.optimizer)
    elif wrapper:
        run.optimizer.step = lambda closure=None: step(closure)
    with run.watch(None, every=1) as watcher:
        saved = get_optimizer_state_dict(run.model, run.optimizer)
        assert watcher.step_count == 0
        watcher.load_state_dict(watcher.state_dict())  # nothing has begun
        run.train(2)
        set_optimizer_state_dict(run.model, run.optimizer, saved)
    assert steps_of(watcher.records) == [1, 2]
