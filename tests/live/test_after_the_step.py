"""Weights that a loop writes to after its steps: recorded as the next forward uses them, and named.

The oracle is the loop: it keeps, in numpy, what each forward of the training is about to use.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from contracts.families import some_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

import sparsitywatch as sw
from sparsitywatch.live.after import without_autocast
from sparsitywatch.vital.after import PUT_BACK

TAU = 1 / 64  # where a bin of the spectrum ends, so that it counts as numpy does
RULE = f"abs_{TAU}"


class Loop:
    """A small training, watched or not, with places to write to its weights."""

    def __init__(
        self, *, is_watched: bool = True, kind: type = torch.optim.AdamW, **options
    ) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
        self.inputs, self.targets = torch.randn(20, 6), torch.randn(20, 2)
        self.start = [one.detach().clone() for one in self.model.parameters()]
        self.optimizer = kind(self.model.parameters(), lr=0.01)
        self.is_watched, self.options, self.watcher = is_watched, options, None
        self.used: list[np.ndarray] = []  # by each forward, and at the end

    @property
    def weights(self) -> list[nn.Parameter]:
        return [one for one in self.model.parameters() if one.dim() > 1]

    def watch(self, model: nn.Module | None = None, optimizer: object = ...) -> None:
        if self.is_watched:
            self.watcher = sw.watch(
                self.model if model is None else model,
                self.optimizer if optimizer is ... else optimizer,
                **{"logdir": None, "every": 3, "scope": "layers", "max_overhead": None,
                   "strict": True, "near_zero": [RULE], "on_event": []} | self.options,
            )  # fmt: skip

    def loss(self) -> torch.Tensor:
        return nn.functional.mse_loss(self.model(self.inputs), self.targets)

    def keep(self) -> None:
        self.used.append(np.concatenate([w.detach().numpy().ravel().copy() for w in self.weights]))

    def step(self, before=None, after_backward=None, after=None) -> None:
        if before:
            before(self)
        self.keep()
        self.optimizer.zero_grad()
        self.loss().backward()
        if after_backward:
            after_backward(self)
        self.optimizer.step()
        if after:
            after(self)

    def train(self, steps: int, **places) -> None:
        for _ in range(steps):
            self.step(**places)

    def close(self) -> None:
        self.keep()
        if self.watcher is not None:
            self.watcher.close()

    def told(self, *kinds: str) -> list[sw.Event]:
        return [event for event in self.watcher.events if event.kind in kinds]


# ------------------------------------------------------------------ habits


def _draw(loop: Loop, share: float) -> list[torch.Tensor]:
    torch_rng = torch.Generator().manual_seed(1)
    return [torch.rand(w.shape, generator=torch_rng) >= share for w in loop.weights]


@torch.no_grad()
def mask(loop: Loop, share: float = 0.4) -> None:
    for weight, kept in zip(loop.weights, _draw(loop, share), strict=True):
        weight.mul_(kept)


def prune_gradually(loop: Loop) -> None:
    mask(loop, min(len(loop.used) / 40, 0.5))


def mask_by_data(loop: Loop) -> None:
    for weight, kept in zip(loop.weights, _draw(loop, 0.4), strict=True):
        weight.data = weight.data * kept


@torch.no_grad()
def put_back(loop: Loop) -> None:
    for weight, was in zip([*loop.model.parameters()][:2], loop.start[:2], strict=True):
        weight.copy_(was)


@torch.no_grad()
def put_back_rows(loop: Loop) -> None:
    loop.weights[0][:8] = loop.start[0][:8]


@torch.no_grad()
def clip(loop: Loop) -> None:
    for weight in loop.weights:
        weight.clamp_(-0.1, 0.1)


@torch.no_grad()
def project(loop: Loop) -> None:
    for weight in loop.weights:
        weight.div_(weight.norm(dim=1, keepdim=True))


@torch.no_grad()
def quantise(loop: Loop) -> None:
    for weight in loop.weights:
        weight.mul_(8).round_().div_(8)


@torch.no_grad()
def soften(loop: Loop) -> None:
    for weight in loop.weights:
        weight.copy_(nn.functional.softshrink(weight, 0.005))


@torch.no_grad()
def average(loop: Loop) -> None:
    for weight, mean in zip(loop.model.parameters(), loop.start, strict=True):
        weight.copy_(mean.lerp_(weight, 0.5))


@torch.no_grad()
def decay(loop: Loop) -> None:
    for weight in loop.weights:
        weight.mul_(0.99)


@torch.no_grad()
def swap_in(loop: Loop, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    loop.held = [weight.clone() for weight in loop.weights]
    for weight in loop.weights:
        weight.copy_(change(weight))


@torch.no_grad()
def swap_out(loop: Loop) -> None:
    for weight, was in zip(loop.weights, loop.held, strict=True):
        weight.copy_(was)


_signs = partial(swap_in, change=lambda w: w.sign() * w.abs().mean())
_few = partial(swap_in, change=lambda w: (8 * w).round() / 8)
_other = partial(swap_in, change=lambda w: w + 0.01 * w.cos())

#: Where each habit writes, and what is said of it.
HABITS = {
    "masked": ({"after": mask}, "set to zero"),
    "masked, through data": ({"after": mask_by_data}, "set to zero"),
    "pruned gradually": ({"after": prune_gradually}, "set to zero"),
    "put back": ({"after": put_back}, PUT_BACK),
    "some rows put back": ({"after": put_back_rows}, "put back"),
    "clipped": ({"after": clip}, "held to a bound"),
    "projected": ({"after": project}, "changed"),
    "quantised": ({"after": quantise}, "moved to few values"),
    "shrunk by a threshold": ({"after": soften}, "changed"),
    "averaged": ({"after": average}, "changed"),
    "decayed by hand": ({"after": decay}, "multiplied by one factor"),
    "signs in the forward": ({"before": _signs, "after_backward": swap_out}, "few values"),
    "few values in the forward": ({"before": _few, "after_backward": swap_out}, "few values"),
    "perturbed in the forward": ({"before": _other, "after_backward": swap_out}, "changed"),
}


def check_records(loop: Loop, records: list[sw.Record]) -> None:
    """Each record has the counts of numpy over what the forward after its step has used."""
    for record in records:
        used = loop.used[record.step]
        assert record.num_zero == (used == 0.0).sum(), record.step
        assert record.near_zero[RULE] == (np.abs(used) <= np.float32(TAU)).mean(), record.step


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_is_recorded_as_the_forward_sees_it_and_named(habit: str) -> None:
    places, words = HABITS[habit]
    loop = Loop()
    loop.watch()
    loop.train(22, **places)
    loop.close()
    records = loop.watcher.records
    assert [record.step for record in records] == [*range(3, 22, 3)]
    assert {record.read_before for record in records} == {"forward"}
    check_records(loop, records)
    kind, severity = ("untrained", "act") if words == PUT_BACK else ("written", "note")
    (event,) = loop.told("written", "untrained", "overwritten", "blew_up")
    assert (event.kind, event.severity, event.reverted_step) == (kind, severity, -1)
    assert words in event.reason
    names = {"put back": ("0.weight", "0.bias"), "some rows put back": ("0.weight",)}
    if habit != "averaged":
        assert {*event.layers} == {*names.get(habit, ("0.weight", "2.weight"))}
    assert event.detected_step <= 6
    assert not loop.model._forward_pre_hooks


@given(
    habit=st.sampled_from([*HABITS]),
    every=st.integers(1, 4),
    steps=st.integers(4, 12),
    background=st.booleans(),
    kind=st.sampled_from([torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad]),
)
@settings(max_examples=15, deadline=None)
def test_the_counts_are_those_of_numpy_over_what_the_next_forward_used(
    habit: str, every: int, steps: int, background: bool, kind: type
) -> None:
    loop = Loop(kind=kind, every=every, background=background)
    loop.watch()
    loop.train(steps, **HABITS[habit][0])
    loop.close()
    assert [r.step for r in loop.watcher.records] == [*range(every, steps + 1, every)]
    check_records(loop, loop.watcher.records)


def test_a_habit_is_seen_where_no_forward_is() -> None:
    """Parts of the model are called by themselves: what the next step finds counts."""
    loop = Loop()
    first, last = loop.model[0], loop.model[2]
    loop.loss = lambda: (last(first(loop.inputs).relu()) - loop.targets).square().mean()
    loop.watch()
    loop.train(10, after=mask)
    loop.close()
    assert [record.read_before for record in loop.watcher.records] == ["step"] * 3
    check_records(loop, loop.watcher.records)


def test_the_last_step_is_read_at_the_close() -> None:
    loop = Loop()
    loop.watch()
    loop.train(9, after=mask)
    assert [record.step for record in loop.watcher.records] == [3, 6]
    loop.close()
    assert [record.read_before for record in loop.watcher.records] == ["forward"] * 2 + ["close"]
    check_records(loop, loop.watcher.records)


def test_a_habit_that_begins_late_is_seen_from_the_second_snapshot_on() -> None:
    loop = Loop()
    loop.watch()
    loop.train(8)
    loop.train(12, after=mask)
    loop.close()
    records = loop.watcher.records
    assert [r.read_before for r in records] == ["", "", "", "forward", "forward", "forward"]
    assert [r.num_zero > 50 for r in records] == [False, False, False, True, True, True]
    check_records(loop, records[3:])
    (event,) = loop.told("written")
    assert event.detected_step == 12


def test_what_is_averaged_now_and_then_is_recorded_and_is_no_habit() -> None:
    """As by a lookahead that writes beside its optimizer's step."""
    loop = Loop(every=1)
    loop.watch()
    loop.train(21, after=lambda one: len(one.used) % 4 or average(one))
    loop.close()
    assert {record.read_before for record in loop.watcher.records[4:]} == {"forward", "close"}
    check_records(loop, loop.watcher.records[4:])
    assert loop.told("written", "untrained", "overwritten") == []


def test_an_evaluation_before_a_forward_is_that_between_steps() -> None:
    """Under autocast, too, in whose midst the forward is."""
    loop = Loop(is_watched=False)

    def value(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return (model(batch[0]) - batch[1]).square().mean(dim=1)

    proxy = sw.Proxy([[loop.inputs, loop.targets]], value)
    loop.watcher = sw.watch(
        loop.model, loop.optimizer, proxy=proxy, logdir=None, every=3, scope="layers",
        max_overhead=None, strict=True, on_event=[],
    )  # fmt: skip
    values = []
    for _ in range(10):
        loop.model.eval()
        with torch.no_grad():
            values.append(float(value(loop.model, [loop.inputs, loop.targets]).double().mean()))
        loop.model.train()
        loop.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loop.loss()
        loss.backward()
        loop.optimizer.step()
        mask(loop)
    loop.watcher.close()
    records = loop.watcher.records
    assert [record.read_before for record in records] == ["forward"] * 3
    assert all(record.valid for record in records)
    assert [record.curve.dense for record in records] == pytest.approx(values[3::3], rel=1e-6)


def test_autocast_is_off_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.6 raises where one is asked for and there is none."""

    def refuse() -> None:
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", refuse)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("background", [True, False])
def test_who_asks_for_records_gets_that_of_the_step(background: bool) -> None:
    loop = Loop(every=1, background=background)
    loop.watch()
    for step in range(1, 5):
        loop.step()
        assert [record.step for record in loop.watcher.records] == [*range(1, step + 1)]
    loop.close()


def test_a_snapshot_that_is_asked_for_is_of_the_weights_as_they_are_then() -> None:
    loop = Loop()
    loop.watch()
    loop.train(6, after=mask)
    was = np.concatenate([w.detach().numpy().ravel() for w in loop.weights])
    with torch.no_grad():
        loop.weights[0].zero_()
    record = loop.watcher.snapshot()
    assert record.step == 6
    assert record.num_zero >= loop.weights[0].numel() > (was == 0.0).sum()
    loop.train(4, after=mask)
    loop.close()
    assert [record.step for record in loop.watcher.records] == [3, 6, 9]


def test_a_watch_that_is_gone_leaves_no_hook() -> None:
    loop = Loop(every=1)
    loop.watch(optimizer=None)
    loop.step()
    assert len(loop.model._forward_pre_hooks) == 1
    loop.watcher, loop.optimizer = None, torch.optim.SGD(loop.model.parameters(), lr=0.01)
    gc.collect()
    loop.step()
    assert not loop.model._forward_pre_hooks


def test_the_gate_is_green_for_what_is_masked_and_red_for_what_is_put_back() -> None:
    def make_training(after: Callable[[Loop], None]) -> tuple[nn.Module, object, Callable]:
        loop = Loop(is_watched=False)
        return loop.model, loop.optimizer, partial(loop.step, after=after)

    assert sw.assert_trains(partial(make_training, mask)).equal
    with pytest.raises(sw.errors.TrainingError, match=PUT_BACK) as caught:
        sw.assert_trains(partial(make_training, put_back))
    assert {*caught.value.tensors} == {"0.weight", "0.bias"}


def test_what_is_written_once_is_no_habit() -> None:
    loop = Loop()
    loop.watch()
    loop.train(9)
    mask(loop)
    loop.train(12)
    loop.close()
    assert loop.told("written", "untrained") == []
    check_records(loop, loop.watcher.records[3:])


def test_a_habit_that_ends_is_over() -> None:
    loop = Loop()
    loop.watch()
    loop.train(12, after=put_back)
    loop.train(12)
    loop.close()
    (event,) = loop.told("untrained")
    assert 12 < event.reverted_step <= 21


def test_an_average_that_is_evaluated_between_counts_for_nothing() -> None:
    """Nor for what a forward sees once there is a habit."""
    loop, averages = Loop(), []

    def evaluate(loop: Loop) -> None:
        mask(loop)
        swap_in(loop, torch.zeros_like)
        with torch.no_grad():
            averages.append(loop.loss())
        loop.model.eval()
        averages.append(loop.loss())
        loop.model.train()
        swap_out(loop)

    loop.watch()
    loop.train(13, after=evaluate)
    loop.close()
    assert {record.read_before for record in loop.watcher.records} == {"forward"}
    check_records(loop, loop.watcher.records)


def test_a_replay_of_the_same_weights_gives_the_same_numbers(tmp_path) -> None:
    loop, kept = Loop(), {}
    loop.watch()
    for step in range(1, 13):
        loop.step(after=mask)
        if step % 3 == 0:
            kept[step] = tmp_path / f"{step}.pt"
            torch.save(loop.model.state_dict(), kept[step])
    loop.close()
    options = {"scope": "layers", "near_zero": [RULE]}
    replayed = sw.replay(kept, logdir=None, **options).records
    names = ("step", "num_zero", "near_zero", "fingerprint", "largest", "same_weights_as")
    for live, stored in zip(loop.watcher.records, replayed, strict=True):
        assert [getattr(live, name) for name in names] == [getattr(stored, name) for name in names]
        assert [layer.rms for layer in live.layers] == [layer.rms for layer in stored.layers]


# ------------------------------------------------------------------ healthy loops


def _between(act: Callable[[Loop], object]) -> Callable[[Loop], None]:
    """A plain training with something between its steps that writes to no weight of it."""

    def train(loop: Loop) -> None:
        loop.watch()
        loop.train(13, after=act)

    return train


def _of(kind: type, **options) -> Callable[[Loop], None]:
    def train(loop: Loop) -> None:
        loop.optimizer = kind(loop.model.parameters(), **{"lr": 0.01} | options)
        loop.watch()
        loop.train(13)

    return train


def _on(
    change: Callable[[Loop], nn.Module | None], *, watches_result: bool = True
) -> Callable[[Loop], None]:
    def train(loop: Loop) -> None:
        made = change(loop)
        if made is not None:
            inner, loop.model = loop.model, made
        loop.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=0.01)
        loop.watch(loop.model if made is None or watches_result else inner)
        loop.train(13)

    return train


def evaluate_in_train_mode(loop: Loop) -> None:
    with torch.no_grad():
        loop.loss()


def evaluate(loop: Loop) -> None:
    loop.model.eval()
    with torch.inference_mode():
        loop.loss()
    loop.model.train()


def evaluate_swapped(loop: Loop) -> None:
    swap_in(loop, torch.zeros_like)
    evaluate(loop)
    swap_out(loop)


def evaluate_loaded(loop: Loop) -> None:
    own = copy.deepcopy(loop.model.state_dict())
    loop.model.load_state_dict({name: one * 0.5 for name, one in own.items()})
    evaluate(loop)
    loop.model.load_state_dict(own)


def save_whole(loop: Loop) -> None:
    torch.save(loop.model, file := io.BytesIO())
    file.seek(0)
    torch.load(file, weights_only=False)(loop.inputs)
    pickle.loads(pickle.dumps(loop.model))(loop.inputs)
    copy.deepcopy(loop.model)(loop.inputs).sum().backward()


def accumulate(loop: Loop) -> None:
    loop.watch()
    for _ in range(13):
        loop.optimizer.zero_grad()
        for _ in range(3):
            loop.loss().backward()
        loop.optimizer.step()


def zero_after(loop: Loop) -> None:
    loop.watch()
    for _ in range(13):
        loop.loss().backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=False)


def lbfgs(loop: Loop) -> None:
    loop.optimizer = torch.optim.LBFGS(loop.model.parameters(), lr=0.1, max_iter=3)

    def closure() -> torch.Tensor:
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loss.backward()
        return loss

    loop.watch()
    for _ in range(13):
        loop.optimizer.step(closure)


@torch.no_grad()
def _uphill(loop: Loop, size: float) -> None:
    for one in loop.model.parameters():
        one.add_(one.grad, alpha=size)


def sharpness(loop: Loop) -> None:
    """SAM by hand: up, a second gradient there, back down, and the step."""
    loop.watch()
    for _ in range(13):
        loop.optimizer.zero_grad()
        loop.loss().backward()
        was = [one.detach().clone() for one in loop.model.parameters()]
        _uphill(loop, 0.05)
        loop.optimizer.zero_grad()
        loop.loss().backward()
        with torch.no_grad():
            for one, held in zip(loop.model.parameters(), was, strict=True):
                one.copy_(held)
        loop.optimizer.step()


class Lookahead(torch.optim.Optimizer):
    """Averages with slow weights at each fourth of its steps."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.num = base, 0
        self.slow = [p.detach().clone() for g in base.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        self.num += 1
        if self.num % 4 == 0:
            for slow, group in zip(self.slow, self.param_groups[0]["params"], strict=True):
                group.copy_(slow.lerp_(group, 0.5))


def lookahead(loop: Loop) -> None:
    loop.optimizer = Lookahead(loop.optimizer)
    loop.watch()
    loop.train(13)


def gan(loop: Loop, given: str) -> None:
    judge = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    both = nn.ModuleDict({"made": loop.model, "judge": judge})
    others = torch.optim.Adam(judge.parameters(), lr=0.01)
    known = {"maker": (loop.model, loop.optimizer), "judge": (judge, others),
             "both": (both, [others, loop.optimizer]), "any": (both, None)}  # fmt: skip
    loop.watch(*known[given])
    for _ in range(13):
        others.zero_grad()
        (judge(loop.model(loop.inputs).detach()).mean() - judge(loop.targets).mean()).backward()
        others.step()
        loop.optimizer.zero_grad()
        (-judge(loop.model(loop.inputs)).mean()).backward()
        loop.optimizer.step()


def resume(loop: Loop) -> None:
    loop.train(5)
    model, optimizer = copy.deepcopy((loop.model.state_dict(), loop.optimizer.state_dict()))
    loop.model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    loop.optimizer = torch.optim.AdamW(loop.model.parameters(), lr=0.01)
    loop.watch()
    loop.model.load_state_dict(model)
    loop.optimizer.load_state_dict(optimizer)
    loop.train(13)


def under_autocast(loop: Loop) -> None:
    loop.watch()
    for _ in range(13):
        loop.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loop.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
        loop.optimizer.step()


def functional(loop: Loop) -> None:
    loop.watch()
    for _ in range(13):
        weights = {n: p * 1.5 for n, p in loop.model.named_parameters()}
        loop.optimizer.zero_grad()
        made = torch.func.functional_call(loop.model, weights, (loop.inputs,))
        (made - loop.targets).square().mean().backward()
        loop.optimizer.step()


def by_func_grad(loop: Loop) -> None:
    loop.watch()

    def loss(weights: dict) -> torch.Tensor:
        made = torch.func.functional_call(loop.model, weights, (loop.inputs,))
        return (made - loop.targets).square().mean()

    for _ in range(13):
        own = dict(loop.model.named_parameters())
        found = torch.func.grad(loss)({n: p.detach() for n, p in own.items()})
        for name, parameter in own.items():
            parameter.grad = found[name]
        loop.optimizer.step()


def schedule(loop: Loop, *, first: float = 1.0) -> None:
    loop.watch()
    rates = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda n: first * (n > 6))
    for _ in range(13):
        loop.step()
        rates.step()


def averaged(loop: Loop) -> None:
    mean = torch.optim.swa_utils.AveragedModel(loop.model)
    loop.watch()
    loop.train(13, after=lambda one: mean.update_parameters(one.model))


def from_a_thread(loop: Loop) -> None:
    loop.watch()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(13):
            loop.step()
            pool.submit(loop.loss).result()


def reparametrised(loop: Loop, by: Callable[[nn.Module], object]) -> None:
    by(loop.model[0])


def in_eval_mode(loop: Loop) -> None:
    loop.model.eval()


def frozen(loop: Loop) -> None:
    loop.model[0].requires_grad_(False)


def tied(loop: Loop) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    return model


class Plain(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 1.0


def compiled(loop: Loop, way: str) -> nn.Module:
    model = Plain(loop.model)
    if way == "in place":
        model.compile(backend="eager", fullgraph=True)
        return model
    return torch.compile(model, backend="eager", fullgraph=True)


def with_norm(loop: Loop) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Dropout(0.1), nn.Linear(32, 2))


def step_hook(loop: Loop) -> None:
    loop.optimizer.register_step_post_hook(lambda *_: mask(loop))
    loop.watch()
    loop.train(13)


HEALTHY: dict[str, Callable[[Loop], None]] = {
    "plain": _between(lambda _: None),
    "SGD": _of(torch.optim.SGD),
    "momentum": _of(torch.optim.SGD, momentum=0.9, nesterov=True),
    "Adam, foreach": _of(torch.optim.Adam, foreach=True),
    "Adam, fused": _of(torch.optim.Adam, fused=True),
    "RMSprop": _of(torch.optim.RMSprop),
    "Adagrad": _of(torch.optim.Adagrad),
    "Adafactor": _of(torch.optim.Adafactor),
    "decayed": _of(torch.optim.AdamW, weight_decay=0.5),
    "LBFGS": lbfgs,
    "accumulated": accumulate,
    "set to zero after the step": zero_after,
    "autocast, clipped gradients": under_autocast,
    "evaluated": _between(evaluate),
    "evaluated in train mode": _between(evaluate_in_train_mode),
    "evaluated with other weights": _between(evaluate_swapped),
    "evaluated with loaded weights": _between(evaluate_loaded),
    "averaged beside": averaged,
    "saved whole, and copied": _between(save_whole),
    "resumed": resume,
    "SAM": sharpness,
    "lookahead": lookahead,
    "GAN, its maker": partial(gan, given="maker"),
    "GAN, its judge": partial(gan, given="judge"),
    "GAN, both": partial(gan, given="both"),
    "GAN, whichever steps": partial(gan, given="any"),
    "functional": functional,
    "gradients of torch.func": by_func_grad,
    "a rate of zero at first": schedule,
    "a rate of zero": partial(schedule, first=0.0),
    "frozen in part": _on(frozen),
    "a tied part": _on(tied),
    "norms and dropout": _on(with_norm),
    "spectral norm": _on(partial(reparametrised, by=parametrizations.spectral_norm)),
    "weight norm": _on(partial(reparametrised, by=parametrizations.weight_norm)),
    "masked in the forward": _on(
        partial(reparametrised, by=partial(prune.random_unstructured, name="weight", amount=0.4))
    ),
    "compiled": _on(partial(compiled, way="around")),
    "compiled, and its inside watched": _on(partial(compiled, way="around"), watches_result=False),
    "compiled in place": _on(partial(compiled, way="in place")),
    "in eval mode": _on(in_eval_mode),
    "a forward in another thread": from_a_thread,
    "masked by a hook of the step": step_hook,
    "each snapshot asked for": _between(lambda one: one.watcher and one.watcher.records),
}


@pytest.mark.parametrize("name", some_of(HEALTHY, 3))
def test_a_healthy_loop_is_left_as_it_is_and_nothing_is_told(name: str) -> None:
    plain, loop = Loop(is_watched=False), Loop(every=2)
    for one in (plain, loop):
        torch.manual_seed(1)
        HEALTHY[name](one)
    hooks = [len(m._forward_pre_hooks) for m in plain.model.modules()]
    loop.watcher.close()
    assert [len(m._forward_pre_hooks) for m in loop.model.modules()] == hooks
    assert {record.read_before for record in loop.watcher.records} == {""}
    assert len(loop.watcher.records) >= 6
    told = loop.told("written", "untrained")
    assert [e for e in told if e.kind == "written" or PUT_BACK in e.reason] == []
    own, others = (one.model.state_dict().values() for one in (plain, loop))
    assert all(map(torch.equal, own, others))


def test_a_teacher_beside_is_recorded_as_the_forward_sees_it_and_not_told() -> None:
    loop = Loop()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.teacher = loop.model, copy.deepcopy(loop.model).requires_grad_(False)

        def forward(self, x):
            return self.own(x) + 0.1 * self.teacher(x)

    @torch.no_grad()
    def follow(loop: Loop) -> None:
        for mean, one in zip(both.teacher.parameters(), both.own.parameters(), strict=True):
            mean.lerp_(one, 0.5)

    loop.model = both = Both()
    loop.watch()
    loop.train(13, after=follow)
    loop.close()
    check_records(loop, loop.watcher.records)
    assert loop.told("written", "untrained") == []
