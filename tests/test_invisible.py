"""Promise 1 over everything that a training is made of: the watch leaves no trace.

Each cell is an optimizer, a precision and a feature of the model or the loop, and any two of
these meet in some cell. It is trained for 12 steps without a watch, twice, and once with each
way to watch, and everything that ``sw.verify`` compares must be the same bits after every step.
What a careless watch does is caught by the same comparison, each act by itself.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from contracts.families import some_of
from contracts.leftovers import LEFTOVERS, REFUSED, refused, verified
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparsitywatch as sw
from sparsitywatch.verification import BuiltTraining, compare, trace

STEPS, EVERY = 12, 3
WIDTH = 6


def mean_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """A user's value function that draws from every generator, as random masking would."""
    torch.rand(1)
    np.random.rand()  # noqa: NPY002
    random.random()
    return model(batch).float().square().mean(dim=1)


#: Makes further arguments of ``sw.watch``. A way to watch is one line here.
WATCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "weights only": lambda: {"background": False},
    "with proxy": lambda: {
        "background": True,
        "proxy": sw.Proxy([torch.ones(4, WIDTH), held_out()], mean_square),
    },
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2, history_size=4),
}

#: The dtype of autocast, if any, and whether a gradient scaler is used.
PRECISIONS: dict[str, tuple[torch.dtype | None, bool]] = {
    "fp32": (None, False),
    "bf16 autocast": (torch.bfloat16, False),
    "fp16 autocast and scaler": (torch.float16, True),
}

FEATURES = ("dropout", "batchnorm", "accumulation", "checkpointing", "compiled")

#: All pairs of an optimizer and a feature. With each of them the precisions take turns, so that
#: each meets every optimizer and every feature.
CELLS = [
    (optimizer, precisions[(row + column) % len(precisions)], feature)
    for row, optimizer in enumerate(OPTIMIZERS)
    # the scaler refuses closures, see the test of it below
    for precisions in [[p for p in PRECISIONS if not (optimizer == "LBFGS" and PRECISIONS[p][1])]]
    for column, feature in enumerate(FEATURES)
]


def held_out() -> torch.Tensor:
    return torch.linspace(-1, 1, 8 * WIDTH).reshape(8, WIDTH)


class Net(nn.Module):
    """Three layers with one feature, or with all that are compiled together.

    It counts its forwards in a buffer, also in evaluation mode.
    """

    def __init__(self, feature: str) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.Identity() if feature == "dropout" else nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Identity() if feature == "batchnorm" else nn.Dropout(0.2)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 2)
        self.register_buffer("num_forwards", torch.zeros((), dtype=torch.long))
        self.is_checkpointed = feature == "checkpointing"

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.second(torch.relu(self.first(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_forwards += 1
        if self.is_checkpointed and self.training:
            return self.head(self.norm(checkpoint(self.body, x, use_reentrant=False)))
        return self.head(self.norm(self.body(x)))


class Loop:
    """A training loop as people write it, one step at a time."""

    def __init__(self, optimizer: str, precision: str, feature: str) -> None:
        self.dtype, is_scaled = PRECISIONS[precision]
        self.model: nn.Module = Net(feature)
        if feature == "compiled":
            self.model = torch.compile(self.model, backend="aot_eager")
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.num_micro_batches = 2 if feature == "accumulation" else 1
        # so large a scale overflows in fp16, and again each time that it grows
        self.scaler = (
            torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
            if is_scaled
            else None
        )
        self.num_skipped = 0

    def loss_and_gradients(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for _ in range(self.num_micro_batches):
            x = torch.randn(8, WIDTH)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                loss = self.model(x).float().square().mean() / self.num_micro_batches
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total += loss.detach()
        return total

    def step(self) -> torch.Tensor:
        if isinstance(self.optimizer, torch.optim.LBFGS):
            return self.optimizer.step(self.loss_and_gradients)
        loss = self.loss_and_gradients()
        if self.scaler is None:
            self.optimizer.step()
            return loss
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.num_skipped += self.scaler.get_scale() < scale
        return loss

    def parts(self) -> tuple[Any, ...]:
        others = {} if self.scaler is None else {"scaler": self.scaler}
        return self.model, self.optimizer, self.step, others


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These matrices are too small to share; two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Cell:
    """One cell's training, and the loop that was made last."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.loop: Loop | None = None
        self.baseline: sw.Verification | None = None

    def __call__(self) -> tuple[Any, ...]:
        self.loop = Loop(*self.names)
        return self.loop.parts()


@functools.cache
def cell_of(*names: str) -> Cell:
    """Kept, so that all ways to watch a cell are held against the same baseline."""
    if "compiled" in names:
        torch.compiler.reset()  # the compiler gives up on code that it has seen too often
    return Cell(*names)


@pytest.mark.part(3)
@pytest.mark.slow
@pytest.mark.parametrize("watch", WATCHES)
@pytest.mark.parametrize(("optimizer", "precision", "feature"), CELLS)
def test_a_watch_leaves_no_trace(optimizer: str, precision: str, feature: str, watch: str) -> None:
    cell = cell_of(optimizer, precision, feature)
    report = sw.verify(
        cell, STEPS, every=EVERY, baseline=cell.baseline, strict=True, **WATCHES[watch]()
    )
    cell.baseline = report
    assert report.deterministic, report
    assert report.equal, report
    # it has really looked, and a real training has gone on
    steps_taken = STEPS - cell.loop.num_skipped
    assert (cell.loop.num_skipped > 0) == PRECISIONS[precision][1]
    assert [record.step for record in report.records] == list(range(EVERY, steps_taken + 1, EVERY))
    assert all(record.valid for record in report.records)
    if watch == "with proxy":
        assert all(record.curve is not None for record in report.records)


def test_any_two_that_can_meet_do() -> None:
    pairs = {frozenset(pair) for cell in CELLS for pair in combinations(cell, 2)}
    kinds = (OPTIMIZERS, PRECISIONS, FEATURES)
    wanted = {
        frozenset(pair) for one, other in combinations(kinds, 2) for pair in product(one, other)
    }
    assert wanted - pairs == {frozenset(("LBFGS", "fp16 autocast and scaler"))}


def test_the_cells_that_are_left_out_are_no_training() -> None:
    loop = Loop("LBFGS", "fp16 autocast and scaler", "dropout")
    loop.loss_and_gradients()
    with pytest.raises(RuntimeError, match=r"[Cc]losure use is not currently supported"):
        loop.scaler.step(loop.optimizer, closure=loop.loss_and_gradients)


# ---------------------------------------------------------------- what a forward leaves behind


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("what", some_of(LEFTOVERS, 4))
def test_a_training_is_the_same_whatever_its_forward_leaves_behind(what: str) -> None:
    assert verified(*LEFTOVERS[what]) == "the same bits"


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_put_back_is_refused_by_name(what: str) -> None:
    assert refused(*REFUSED[what]) == "refused by name"


# ---------------------------------------------------------------- the negative control


def multiply_a_mask_in(model: Net) -> None:
    with torch.no_grad():
        weight = model.first.weight
        weight.mul_((weight.abs() > weight.abs().median()).to(weight.dtype))


def mask_and_multiply_back(model: Net) -> None:
    """Almost restored: x / 3 * 3 is not x."""
    with torch.no_grad():
        model.first.weight.div_(3.0).mul_(3.0)


def toggle_evaluation(model: Net) -> None:
    """Thaws what the user had frozen."""
    model.eval()
    model.train()


def forget_to_train(model: Net) -> None:
    model.eval()


def evaluate_in_training_mode(model: Net) -> None:
    with torch.no_grad():
        model.norm(held_out())


def draw_from_torch(model: Net) -> None:
    torch.randn(2)


def draw_from_numpy(model: Net) -> None:
    np.random.rand()  # noqa: NPY002


def draw_from_python(model: Net) -> None:
    random.random()


def backward_for_saliency(model: Net) -> None:
    model.first.weight.sum().backward()


def drop_gradients(model: Net) -> None:
    model.zero_grad()


def freeze(model: Net) -> None:
    model.head.bias.requires_grad_(False)


def keep_a_mask_on_the_model(model: Net) -> None:
    model.first.register_buffer("mask", torch.ones(WIDTH, WIDTH))


def keep_a_note_on_the_model(model: Net) -> None:
    model.first.last_mask = torch.ones(WIDTH, WIDTH)


def leave_no_grad_on(model: Net) -> None:
    torch.set_grad_enabled(False)


#: What it does, and what must be among the first things to differ.
CARELESS: dict[Callable[[Net], None], str] = {
    multiply_a_mask_in: "parameter first.weight",
    mask_and_multiply_back: "parameter first.weight",
    toggle_evaluation: "train/eval flag norm",
    forget_to_train: "train/eval flag dropout",
    evaluate_in_training_mode: "buffer norm.running_mean",
    draw_from_torch: "torch generator",
    draw_from_numpy: "numpy generator's position",
    draw_from_python: "python generator",
    backward_for_saliency: "gradient first.weight",
    drop_gradients: "gradient first.weight",
    freeze: "requires_grad head.bias",
    keep_a_mask_on_the_model: "state_dict keys",
    keep_a_note_on_the_model: "attributes first",
    leave_no_grad_on: "grad mode",
}


def loop_with_a_frozen_norm(optimizer: str = "AdamW") -> tuple[Any, ...]:
    loop = Loop(optimizer, "fp32", "accumulation")
    if optimizer == "AdamW":
        loop.model.norm.eval()
    return loop.parts()


def careless_watch(act: Callable[[Net], None], at_step: int) -> Callable[[BuiltTraining], Any]:
    """A watch that does ``act`` once, in the place where a real one looks."""

    @contextlib.contextmanager
    def attach(training: BuiltTraining) -> Iterator[None]:
        num_steps = 0

        def look(*_: object) -> None:
            nonlocal num_steps
            num_steps += 1
            if num_steps == at_step:
                act(training.model)

        handle = training.optimizer.register_step_post_hook(look)
        yield
        handle.remove()

    return attach


@pytest.mark.slow
@pytest.mark.parametrize("act", CARELESS, ids=lambda act: act.__name__)
def test_each_careless_act_is_caught(act: Callable[[Net], None]) -> None:
    at_step = 3
    make = loop_with_a_frozen_norm
    if act is evaluate_in_training_mode:  # a frozen norm would not move
        make = functools.partial(loop_with_a_frozen_norm, "SGD")
    steps = at_step if act is leave_no_grad_on else 6  # there is no next step without gradients
    try:
        differences = compare(
            trace(make, steps), trace(make, steps, attach=careless_watch(act, at_step))
        )
    finally:
        torch.set_grad_enabled(True)
    assert differences[0].first_step == at_step
    first = {d.name for d in differences if d.first_step == at_step}
    assert CARELESS[act] in first


def test_what_a_careful_watch_does_is_not_caught() -> None:
    def nothing(model: Net) -> None:
        model.first.weight.detach().abs().median()

    make = loop_with_a_frozen_norm
    assert compare(trace(make, 6), trace(make, 6, attach=careless_watch(nothing, 3))) == ()


def test_a_disturbance_that_heals_is_caught() -> None:
    make = functools.partial(loop_with_a_frozen_norm, "SGD")
    (difference,) = {
        d
        for d in compare(trace(make, 6), trace(make, 6, attach=careless_watch(drop_gradients, 3)))
        if d.name == "gradient head.bias"
    }
    assert str(difference) == "gradient head.bias: equal at the end, first at step 3"
