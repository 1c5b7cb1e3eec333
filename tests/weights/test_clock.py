"""What is known of optimizers' steps, against the weights that real optimizers shrink."""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn, optim

from sparsitywatch.weights import clock
from sparsitywatch.weights.clock import (
    Account,
    Clock,
    farthest,
    kind_of,
    masters_of,
    mean_over,
    why_no_clock,
)


def account_of(optimizer: optim.Optimizer, **tensors: torch.Tensor) -> Account:
    account = Account(optimizer)
    account.identify(optimizer, tensors, {})
    return account


def taken(account: Account, name: str) -> Clock:
    return account.sums()[name].taken


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "SGD, nesterov"])
@given(
    lrs=st.lists(st.floats(0.0, 0.5), min_size=1, max_size=150),
    asked=st.sets(st.integers(0, 150)),
    frozen=st.sets(st.integers(0, 150)),
)
def test_when_a_clock_is_read_changes_no_bit_of_it(kind, lrs, asked, frozen) -> None:
    """Steps are added up many at a time; one that is read at every step is the oracle."""
    weight = nn.Parameter(torch.ones(3))
    options = {} if kind == "AdamW" else {"momentum": 0.9, "nesterov": "nesterov" in kind}
    make = optim.AdamW if kind == "AdamW" else optim.SGD
    optimizer = make([weight], lr=0.1, weight_decay=0.1, **options)
    often, seldom = (account_of(optimizer, w=weight) for _ in range(2))
    for step, lr in enumerate(lrs):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = None if step in frozen else torch.ones(3)
        for account in (often, seldom):
            account.advance()
        often.sums()
        if step in asked:
            assert seldom.sums() == often.sums()
    assert seldom.sums() == often.sums()
    assert seldom.trainers()["w"].is_active == often.trainers()["w"].is_active


@given(lr=st.floats(0.0, 2.0), decay=st.one_of(st.floats(0.0, 3.0), st.just(math.nan)))
def test_many_clocks_are_each_that_of_its_step(lr: float, decay: float) -> None:
    is_law = not math.isnan(decay)
    column = (np.array([x]) for x in (lr, decay if is_law else 0.0, is_law))
    with np.errstate(divide="ignore"):
        (many,) = clock._clocks(*column).T
    assert tuple(many) == pytest.approx(Clock.of_step(lr, decay))


def test_steps_that_nobody_saw_are_an_optimizer_s_past() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    for num_unseen in (0, 2):
        for _ in range(num_unseen):
            optimizer.step()
        account = account_of(optimizer, w=weight)
        for _ in range(3):
            optimizer.step()
            account.advance()
        assert account.trainers()["w"].has_past == (num_unseen > 0)
        optimizer = optim.AdamW([weight], lr=0.1, weight_decay=0.1)


#: Each torch optimizer whose decay is a law, with options that change it.
LAWS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (optim.AdamW, {}),
    "AdamW, foreach": (optim.AdamW, {"foreach": True}),
    "Adam, decoupled": (optim.Adam, {"decoupled_weight_decay": True}),
    "NAdam": (optim.NAdam, {"decoupled_weight_decay": True}),
    "RAdam": (optim.RAdam, {"decoupled_weight_decay": True}),
    "Adafactor": (optim.Adafactor, {}),
    "Muon": (optim.Muon, {}),
    "SGD": (optim.SGD, {}),
    "SGD, momentum": (optim.SGD, {"momentum": 0.9}),
    "SGD, Nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD, dampened": (optim.SGD, {"momentum": 0.8, "dampening": 0.3}),
}


@pytest.mark.parametrize("case", LAWS)
def test_a_weight_without_gradient_shrinks_as_the_clock_says(case: str) -> None:
    """With a schedule, and frozen for a while in the middle."""
    make, options = LAWS[case]
    weight = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    optimizer = make([weight], lr=0.1, weight_decay=1e-4, **options)
    account = account_of(optimizer, w=weight)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        weight.grad = None if 100 <= step < 150 else torch.zeros_like(weight)
        optimizer.step()
        account.advance()
        if step in (4, 99, 149, 160):  # a buffer is still filling at first
            shrunk = -math.log(weight[0, 0].item())
            assert -taken(account, "w").log_shrink == pytest.approx(shrunk, rel=1e-3)
    shrunk = -math.log(weight[0, 0].item())
    assert -taken(account, "w").log_shrink == pytest.approx(shrunk, rel=1e-3)
    assert taken(account, "w").decay == pytest.approx(shrunk, rel=1e-3)
    assert taken(account, "w").steps == 250


#: Those whose decay is none: with a gradient that is large, decay changes next to nothing.
NO_LAWS = {
    "Adam": (optim.Adam, {}),
    "NAdam": (optim.NAdam, {}),
    "RAdam": (optim.RAdam, {}),
    "Adamax": (optim.Adamax, {}),
    "Adagrad": (optim.Adagrad, {}),
    "Adadelta": (optim.Adadelta, {}),
    "RMSprop": (optim.RMSprop, {}),
    "ASGD": (optim.ASGD, {}),
}


@pytest.mark.parametrize("case", NO_LAWS)
def test_decay_that_is_no_law_is_not_known(case: str) -> None:
    make, options = NO_LAWS[case]
    weight = nn.Parameter(torch.ones(3))
    optimizer = make([weight], lr=0.1, weight_decay=1e-2, **options)
    account = account_of(optimizer, w=weight)
    weight.grad = torch.ones(3)
    account.advance()
    assert math.isnan(taken(account, "w").known_decay)
    assert taken(account, "w").lr == pytest.approx(0.1)
    without = make([weight], lr=0.1, weight_decay=0.0, **options)
    account = account_of(without, w=weight)
    account.advance()
    if case != "ASGD":  # it has a decay of its own beside
        assert taken(account, "w").known_decay == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_one_that_is_sharded_over_ranks_steps_as_the_one_inside() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1
    )  # fmt: skip
    try:
        weight = nn.Parameter(torch.ones(3))
        sharded = ZeroRedundancyOptimizer([weight], optim.AdamW, lr=0.1, weight_decay=0.2)
        assert kind_of(sharded, sharded.param_groups[0])[:2] == ("decoupled", "lr")
        sharded = ZeroRedundancyOptimizer([weight], optim.SGD, lr=0.1, weight_decay=0.2)
        assert kind_of(sharded, sharded.param_groups[0])[:2] == ("raw", "gradient")
    finally:
        distributed.destroy_process_group()


@pytest.mark.part(5)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("times", [0.98, 1.02])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.95])
def test_decay_that_carries_weights_beyond_zero_is_no_law(momentum, times, nesterov) -> None:
    """On either side of the limit, and what torch does there."""
    limit = (1 - momentum) / (1 + momentum) if nesterov else 1 - math.sqrt(momentum)
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": times * limit**2}
    optimizer = optim.SGD([weight], lr=1.0, **options)
    account = account_of(optimizer, w=weight)
    lowest = 1.0
    for _ in range(3000):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        account.advance()
        lowest = min(lowest, weight[0].item())
    assert (lowest < 0.0) == (times > 1.0)
    assert math.isnan(taken(account, "w").known_decay) == (times > 1.0)
    kind = kind_of(optimizer, optimizer.param_groups[0])
    assert ("beyond zero" in why_no_clock(optimizer, kind)) == (times > 1.0)


def test_decay_that_ends_in_mid_run_is_still_in_the_buffer() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4)
    account = account_of(optimizer, w=weight)
    for step in range(60):
        optimizer.param_groups[0]["weight_decay"] = 1e-4 if step < 20 else 0.0
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        account.advance()
    shrunk = -math.log(weight[0].item())
    assert taken(account, "w").decay == pytest.approx(shrunk, rel=1e-3)


@pytest.mark.parametrize("is_tensor", [True, False])
def test_each_step_counts_with_the_rate_that_its_group_has_then(is_tensor: bool) -> None:
    """A scheduler sets a number anew, or changes the tensor of a captured step in place."""
    weight = nn.Parameter(torch.ones(3))
    lr = torch.tensor(0.0, dtype=torch.float64) if is_tensor else 0.0
    optimizer = optim.AdamW([weight], lr=lr, weight_decay=0.5)
    account = account_of(optimizer, weight=weight)
    weight.grad = torch.ones(3)
    (group,) = optimizer.param_groups
    rates, decays = [0.1, 0.1, 0.2, 0.2, 0.4], [0.5, 0.5, 0.5, 0.25, 0.25]
    for rate, decay in zip(rates, decays, strict=True):
        if is_tensor:
            lr.fill_(rate)
        else:
            group["lr"] = rate
        group["weight_decay"] = decay
        account.advance()
    assert taken(account, "weight").lr == pytest.approx(sum(rates), rel=1e-12)
    expected = sum(map(operator.mul, rates, decays))
    assert taken(account, "weight").decay == pytest.approx(expected, rel=1e-12)


def swings(group: dict[str, Any]) -> bool:
    """Whether a root of SGD's map of weight and buffer, without gradients, is not 0 or above."""
    lr, decay, mu, dampening = (
        Fraction(float(group[word])) for word in ("lr", "weight_decay", "momentum", "dampening")
    )
    shrink = lr * decay
    if group["nesterov"]:  # torch has it without dampening
        trace, det = 1 + mu - shrink * (1 + mu), mu * (1 - shrink)
    else:
        trace, det = 1 + mu - shrink * (1 - dampening), mu
    # at the limit itself either is right, but for rounding
    return trace <= 0 or det < 0 or trace * trace < 4 * det * (1 - Fraction(1, 10**12))


class Oracle:
    """The sums of one tensor, number by number, as ``Clock`` and ``Account`` describe them."""

    def __init__(self) -> None:
        self.taken, self.offered, self.buffer = ([0.0] * 6, [0.0] * 6, 0.0)

    def step(self, make: type, group: dict[str, Any], *, is_own: bool, has_grad: bool) -> None:
        """One step of an optimizer; tensors that are not its own are another one's."""
        lr, decay = (float(group[word]) for word in ("lr", "weight_decay"))
        is_known, buffer = True, self.buffer
        if make is optim.SGD:
            mu = group["momentum"]
            first = 1.0 if buffer == 0.0 else 1.0 - group["dampening"]
            if mu:
                is_known = not swings(group)
                buffer = mu * buffer + first * decay
                decay = decay + mu * buffer if group["nesterov"] else buffer
        elif make is optim.Adam:
            is_known = bool(group["decoupled_weight_decay"]) or decay == 0.0
        shrink = lr * decay if is_known else 0.0
        shrunk = math.log1p(-shrink) if shrink < 1.0 else -math.inf
        steps = 1.0 if lr > 0.0 else 0.0
        added = [lr, shrink, shrunk, lr * lr, steps, 0.0 if is_known else steps]
        if is_own:
            self.offered = list(map(operator.add, self.offered, added))
        if is_own and has_grad:
            self.taken, self.buffer = list(map(operator.add, self.taken, added)), buffer


RATES = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 4.0])
#: One step: what each of two groups says, which of five tensors have a gradient, and which another
#: optimizer has stepped on.
STEPS = st.fixed_dictionaries({
    "said": st.lists(st.fixed_dictionaries({
        "lr": RATES, "weight_decay": RATES, "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        "dampening": RATES, "nesterov": st.booleans(), "decoupled_weight_decay": st.booleans(),
    }), min_size=2, max_size=2),
    "frozen": st.sets(st.integers(0, 4), max_size=3),
    "others": st.sets(st.integers(0, 4), max_size=1),
    "is_tensor": st.booleans(),
})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", [optim.AdamW, optim.Adam, optim.SGD])
@given(
    steps=st.lists(STEPS, min_size=1, max_size=8),
    repeated=st.integers(1, 30),
    moved_at=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_a_plain_loop(
    make: type, steps: list[Any], repeated: int, moved_at: int
) -> None:
    """Groups that say something else at each step, and exchange a tensor in the middle."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(5)]
    names = {f"w{i}": weight for i, weight in enumerate(weights)}
    optimizer = make([{"params": weights[:2]}, {"params": weights[2:]}], lr=0.1)
    account, oracles = account_of(optimizer, **names), [Oracle() for _ in weights]
    for number, step in enumerate([one for one in steps for _ in range(repeated)]):
        if number == moved_at:  # the order of all stays the same
            optimizer.param_groups[0]["params"].append(optimizer.param_groups[1]["params"].pop(0))
        for group, said in zip(optimizer.param_groups, step["said"], strict=True):
            known = {word: x for word, x in said.items() if word in group}
            group.update(known)
            if step["is_tensor"]:
                group["lr"] = torch.tensor(said["lr"], dtype=torch.float64)
        others = step["others"] - step["frozen"]
        num_first = len(optimizer.param_groups[0]["params"])  # the groups hold them in their order
        for i, weight in enumerate(weights):
            has_grad, group = i not in step["frozen"], optimizer.param_groups[i >= num_first]
            weight.grad = torch.ones(2) if has_grad else None
            oracles[i].step(make, group, is_own=i not in others, has_grad=has_grad)
        if not account.is_current:
            account.identify(optimizer, names, {})
        account.advance({id(weights[i]) for i in others})
    for name, oracle in zip(names, oracles, strict=True):
        sums = account.sums()[name]
        for found, expected in ((sums.taken, oracle.taken), (sums.offered, oracle.offered)):
            assert found[:2] + found[3:] == tuple(expected[:2] + expected[3:])
            # numpy's logarithm may differ from that of C by a last bit
            assert found.log_shrink == pytest.approx(expected[2], rel=1e-13)
        assert sums.momentum == oracle.buffer


def test_a_tensor_that_changes_its_group_in_its_place_is_seen() -> None:
    """All tensors stay in the order of the groups, and one of them in another group."""
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optim.AdamW([{"params": [a, b]}, {"params": [], "lr": 0.3}], lr=0.1)
    account = account_of(optimizer, a=a, b=b)
    optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop())
    assert not account.is_current
    account.identify(optimizer, {"a": a, "b": b}, {})
    a.grad = b.grad = torch.ones(2)
    account.advance()
    assert (taken(account, "a").lr, taken(account, "b").lr) == (0.1, 0.3)


@pytest.mark.parametrize("make", [optim.AdamW, optim.SGD])
def test_a_rate_that_is_no_number_any_more_ends_a_clock_and_says_nothing(make: type) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make([weight], lr=0.1, weight_decay=0.1)
    account = account_of(optimizer, w=weight)
    weight.grad = torch.ones(3)
    for lr in (0.1, math.inf, math.nan):
        optimizer.param_groups[0]["lr"] = lr
        account.advance()
    assert math.isnan(taken(account, "w").lr)
    assert math.isnan(taken(account, "w").decay)


def test_decay_that_begins_in_mid_run_is_seen() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = optim.Adam([weight], lr=0.1)
    account = account_of(optimizer, w=weight)
    weight.grad = torch.ones(3)
    account.advance()
    assert taken(account, "w").known_decay == 0.0
    optimizer.param_groups[0]["weight_decay"] = 0.1
    account.advance()
    assert math.isnan(taken(account, "w").known_decay)


class SGDW(optim.Optimizer):
    """Somebody's own."""

    def step(self, closure=None):
        """Nothing."""


class Warm(optim.AdamW):
    """One that takes the steps of another."""


def test_the_kind_of_a_step_is_that_of_the_class_that_takes_it() -> None:
    weight = nn.Parameter(torch.ones(3))
    group = {"weight_decay": 0.1, "momentum": 0.9}
    assert kind_of(SGDW([weight], {"lr": 0.1}), group).decay == "unknown"
    assert kind_of(Warm([weight]), group).decay == "decoupled"
    optimizer = SGDW([weight], {"lr": 0.1, **group})
    account = account_of(optimizer, w=weight)
    account.advance()
    assert math.isnan(taken(account, "w").known_decay)
    assert taken(account, "w").steps == 1  # it may have dropped the gradients


def test_clocks_go_by_tensor_whatever_becomes_of_groups() -> None:
    """Groups are added, moved between and taken away; a count by hand beside it."""
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = optim.AdamW([{"params": [a], "weight_decay": 0.5}, {"params": [b]}], lr=0.1,
                            weight_decay=0.0)  # fmt: skip
    account = account_of(optimizer, a=a, b=b)
    expected = {"a": 0.0, "b": 0.0, "c": 0.0}

    def step(**lrs: float) -> None:
        for name, tensor in (("a", a), ("b", b), ("c", c)):
            tensor.grad = torch.ones(2) if name in lrs else None
            expected[name] += lrs.get(name, 0.0)
        optimizer.step()
        if not account.is_current:
            account.identify(optimizer, {"a": a, "b": b, "c": c}, {})
        account.advance()

    step(a=0.1, b=0.1)
    step(b=0.1)  # a is frozen
    optimizer.add_param_group({"params": [c], "lr": 0.3, "weight_decay": 1.0})
    step(a=0.1, b=0.1, c=0.3)
    optimizer.param_groups[1]["params"] = []
    step(a=0.1, c=0.3)
    for name, lr in expected.items():
        assert taken(account, name).lr == pytest.approx(lr)
    assert taken(account, "a").decay == pytest.approx(3 * 0.1 * 0.5)
    assert taken(account, "c").decay == pytest.approx(2 * 0.3 * 1.0)


def test_the_mean_is_that_over_the_weights_of_what_is_told() -> None:
    assert mean_over({"a": 12, "b": 4, "c": 99}, {"a": 2.0, "b": 6.0}) == pytest.approx(3.0)
    assert math.isnan(mean_over({"a": 12}, {}))


def test_the_masters_of_low_precision_weights_are_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    weights = {f"{k}.weight": model[k].weight for k in range(4)}
    masters = {name: nn.Parameter(w.detach().clone()) for name, w in weights.items()}
    model.to(torch.bfloat16)
    del masters["3.weight"]  # not trained
    groups = [{"params": [masters[f"{k}.weight"]]} for k in (2, 0, 1)]
    found = masters_of(optim.AdamW(groups), weights)
    assert {name: id(p) for name, p in found.items()} == {n: id(p) for n, p in masters.items()}
    with torch.no_grad():
        masters["1.weight"].mul_(1.5)
    assert masters_of(optim.AdamW(groups), weights).keys() == {"0.weight", "2.weight"}


def test_what_the_optimizer_trains_itself_has_no_master() -> None:
    layer = nn.Linear(3, 3)
    copy = nn.Parameter(layer.weight.detach().double())
    optimizer = optim.AdamW([layer.weight, copy])
    assert masters_of(optimizer, {"weight": layer.weight}) == {}


def test_equal_masters_in_different_groups_are_not_told_apart() -> None:
    weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.bfloat16))
    groups = [{"params": [nn.Parameter(torch.zeros(3, 3))]} for _ in range(2)]
    assert masters_of(optim.AdamW(groups), {"weight": weight}) == {}


def test_steps_and_squares_are_counted() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = optim.SGD([weight], lr=0.0)
    account = account_of(optimizer, w=weight)
    weight.grad = torch.ones(1)
    for lr in (0.0, 0.1, 0.3):
        optimizer.param_groups[0]["lr"] = lr
        account.advance()
    clock = taken(account, "w")
    assert clock.lr_squared == pytest.approx(0.1)
    assert clock.steps == 2
    assert clock.since(clock) == Clock()
    assert clock.plus(clock).lr == pytest.approx(0.8)


# ------------------------------------------------------------------ how far a step can go


REACHES: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (optim.AdamW, {}),
    "Adam, its betas for LLMs": (optim.Adam, {"betas": (0.9, 0.95)}),
    "Adam, amsgrad": (optim.Adam, {"amsgrad": True}),
    "Adam, for-loop": (optim.Adam, {"foreach": False, "betas": (0.5, 0.9)}),
    "Adam without momentum": (optim.Adam, {"betas": (0.0, 0.999)}),
    "Adafactor": (optim.Adafactor, {}),
}


@pytest.mark.parametrize("case", REACHES)
@given(
    seed=st.integers(0, 999), growth=st.sampled_from([0.5, 1.0, 1.1, 1.11, 2.0, 30.0]),
    num_steps=st.integers(1, 60), spike=st.integers(-1, 59),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_no_step_goes_farther(
    case: str, seed: int, growth: float, num_steps: int, spike: int
) -> None:
    """Gradients that grow, shrink, come alone or with a spike, of one sign or of any."""
    make, options = REACHES[case]
    torch.manual_seed(seed)
    weight = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    optimizer = make([weight], lr=0.01, weight_decay=0.0, eps=(None, 1e-3) if case == "Adafactor"
                     else 1e-30, **options)  # fmt: skip
    (group,) = optimizer.param_groups
    for step in range(1, num_steps + 1):
        signs = torch.ones(8, 8) if seed % 2 else torch.randn(8, 8)
        size = 1e8 if step == spike + 1 else 1.0
        weight.grad = signs.double() * size * growth**step
        before = weight.detach().clone()
        optimizer.step()
        change = (weight.detach() - before).abs()
        most = 0.01 * farthest(kind_of(optimizer, group), group, step)
        if case == "Adafactor":  # of most of a tensor, in units of its own size
            most *= max(float(before.square().mean().sqrt()), 1e-3)
            assert float((change > most).double().mean()) <= 0.5
        else:
            assert float(change.max()) <= most * (1.0 + 1e-9)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.5, 0.9), (0.0, 0.99)])
def test_gradients_that_grow_all_along_make_adam_go_as_far_as_it_can(
    betas: tuple[float, float],
) -> None:
    first, second = betas
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.Adam([weight], lr=1.0, betas=betas, eps=0.0)
    (group,) = optimizer.param_groups
    growth = second / first if first else 100.0
    for step in range(1, 91):
        before = float(weight.detach())
        weight.grad = torch.full((1,), 1e-90 * growth**step, dtype=torch.float64)
        optimizer.step()
        most = farthest(kind_of(optimizer, group), group, step)
        assert abs(float(weight.detach()) - before) == pytest.approx(most, rel=1e-3)
    assert farthest(kind_of(optimizer, group), group, math.inf) >= most


@pytest.mark.parametrize(
    "make", [optim.SGD, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adadelta]
)
def test_where_nothing_bounds_a_step_it_is_infinite(make: type[optim.Optimizer]) -> None:
    optimizer = make([nn.Parameter(torch.ones(3))], lr=0.1)
    (group,) = optimizer.param_groups
    assert farthest(kind_of(optimizer, group), group, 5) == math.inf
