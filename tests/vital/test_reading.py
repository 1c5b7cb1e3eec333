"""The facts of every parameter, against numpy; and that nothing is touched for them."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from contracts.traced import Traced
from contracts.vital_rows import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.vital.reading import VitalTracker, goes_on_by_itself

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def looked(*snapshots: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The facts of the last of some snapshots, by name."""
    tracker = VitalTracker()
    for step, tensors in enumerate(snapshots):
        signs = tracker.look(step, tensors)()
    return rows(signs.facts)


@given(seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES), share=st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_counts_and_sizes_are_those_of_numpy(seed: int, dtype: torch.dtype, share: float) -> None:
    draw = np.random.default_rng(seed)
    before = draw.normal(size=300)
    now = np.where(draw.random(300) < share, before, draw.normal(size=300))
    now[draw.random(300) < 0.02] = np.nan
    old, new = (torch.from_numpy(x).to(dtype) for x in (before, now))
    first = looked({"a": old, "b": new[:7]}, {"a": new, "b": new[:7]})
    was, is_now = (x.double().numpy() for x in (old, new))
    assert first["a"].num_not_finite == np.isnan(is_now).sum()
    assert first["a"].num_still == (was == is_now).sum()
    assert first["a"].rms == pytest.approx(np.sqrt(np.mean(was**2)), rel=1e-5)
    if not np.isnan(is_now).any():
        expected = np.sqrt(np.mean((is_now - was) ** 2))
        assert first["a"].update == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert first["b"].num_still == 7  # NaN has the same bits, too
    assert first["b"].still_for


def test_bits_are_compared_not_values() -> None:
    zero, nan = torch.zeros(9), torch.full((9,), torch.nan)
    found = looked({"zero": zero, "nan": nan}, {"zero": -zero, "nan": nan.clone()})
    assert found["zero"].num_still == 0
    assert found["nan"].num_still == 9


def test_a_second_look_at_a_step_is_no_interval() -> None:
    """FSDP1 replaces its parameters at the first step, so the first weights are read twice."""
    tracker, model = VitalTracker(), {"a": torch.randn(9, generator=torch.manual_seed(0))}
    for step, still_for in ((0, 0), (0, 0), (3, 1), (3, 1), (6, 2)):
        facts = tracker.look(step, model)().facts
        assert facts.still_for.tolist() == [still_for]
    assert facts.past_updates.shape == (1, 1)


def test_facts_come_in_the_order_of_the_model_whatever_the_dtypes() -> None:
    draw = torch.Generator().manual_seed(0)
    model = {f"{i}": torch.randn(5 + i, generator=draw).to(DTYPES[i % 4]) for i in range(9)}
    model["whole numbers"] = torch.arange(5)
    model["empty"] = torch.zeros(0)
    found = looked(model, model)
    assert list(found) == [f"{i}" for i in range(9)]
    assert [one.num_weights for one in found.values()] == [5 + i for i in range(9)]
    for name, one in found.items():
        assert one.rms == pytest.approx(
            model[name].double().square().mean().sqrt().item(), rel=1e-3
        )


def test_a_model_without_weights_has_no_facts() -> None:
    assert looked({"n": torch.arange(5)}, {"n": torch.arange(5)}) == {}


def test_a_small_tensor_is_compared_whole_and_a_large_one_by_a_sample_of_its_own() -> None:
    small, one_more, large = torch.randn(4096), torch.randn(4097), torch.randn(64, 4096)
    moved = {"large": large + (torch.arange(4096) % 2)}
    alone = looked({"large": large}, moved)
    beside = {"small": small, "one more": one_more}
    both = looked(beside | {"large": large}, beside | moved)
    assert [one.num for one in both.values()] == [4096, 512, 512]
    assert alone["large"] == both["large"]
    assert both["large"].num_still / 512 == pytest.approx(0.5, abs=0.06)


def test_a_transposed_tensor_is_read_in_the_order_of_its_indices() -> None:
    weight = torch.randn(80, 90)
    found = looked({"w": weight}, {"w": weight.T.contiguous().T})
    assert found["w"].still_for


def test_shrinking_by_one_factor_is_told_from_anything_else() -> None:
    weight = torch.randn(50)
    other = weight * 0.999
    other[3] *= 1.0001
    found = looked({"one": weight, "all": weight, "few": weight[:5], "grows": weight},
                   {"one": other, "all": weight * 0.999, "few": weight[:5] * 0.999,
                    "grows": weight * 1.001})  # fmt: skip
    assert {n: one.shrinks_for for n, one in found.items()} == {
        "one": 0, "all": 1, "few": 0, "grows": 0
    }  # fmt: skip
    assert [one.has_moved for one in found.values()] == [True, False, True, True]


@pytest.mark.parametrize(
    ("num", "num_eps", "is_one"), [(7, 0, False), (8, 0, True), (8, 31, True), (8, 33, False)]
)
def test_one_factor_is_told_of_eight_weights_and_to_thirty_two_eps(
    num: int, num_eps: int, *, is_one: bool
) -> None:
    now = torch.full((num,), 0.75, dtype=torch.float64)
    now[-1] += num_eps * 2.0**-52
    (found,) = looked({"w": torch.ones(num).double()}, {"w": now}).values()
    assert bool(found.shrinks_for) == is_one


@pytest.mark.slow
@given(
    seed=st.integers(0, 999),
    size=st.integers(1, 40),
    special=st.sampled_from([0.0, np.nan, np.inf]),
    num_special=st.integers(0, 12),
    at_start=st.booleans(),
    factor=st.sampled_from([0.9, 0.999, 1.0, -0.5]),
    odd_one=st.integers(0, 80),
)
@settings(max_examples=80, deadline=None)
def test_shrinking_is_seen_wherever_zeros_and_what_is_not_finite_stand(
    seed: int, size: int, special: float, num_special: int, at_start: bool, factor: float,
    odd_one: int,
) -> None:  # fmt: skip
    draw = np.random.default_rng(seed)
    before = draw.normal(size=size)
    before[slice(num_special) if at_start else slice(size - num_special, None)] = special
    now = before * factor
    if odd_one < size:
        now[odd_one] *= 1.01
    old, new = torch.from_numpy(before), torch.from_numpy(now)
    (found,) = looked({"w": old}, {"w": new}).values()
    tells = before[before != 0.0]  # NaN is not 0
    ratios = now[np.isfinite(before) & (before != 0.0)] / tells[np.isfinite(tells)]
    is_one = len(ratios) > 0 and ratios.max() - ratios.min() < 1e-14
    expected = len(tells) >= 8 and is_one and 0.0 < ratios.max() < 1.0
    assert found.shrinks_for == int(expected)


def test_streaks_and_returns_are_counted_over_snapshots() -> None:
    first, second = torch.randn(40), torch.randn(40)
    found = looked(*({"w": w, "still": first} for w in (first, second, second, first)))
    assert (found["w"].still_for, found["w"].back_at, found["w"].has_moved) == (0, 0, True)
    assert (found["still"].still_for, found["still"].has_moved) == (3, False)
    assert found["still"].back_at == -1
    zeros = torch.zeros(40)
    reset = looked(*({"w": w} for w in (zeros, second, first, zeros)))
    assert reset["w"].back_at == -1  # one half of an adapter, merged and begun anew


def test_another_shape_or_dtype_is_compared_with_nothing() -> None:
    weight = torch.randn(40)
    found = looked({"w": weight}, {"w": weight.bfloat16()})
    assert np.isnan(found["w"].update)


class Looked:
    """A tracker that knows the optimizer of some parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer, **parameters: torch.Tensor) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self.traced = Traced(optimizer, parameters=parameters)
        self.tracker, self.num_looks = VitalTracker(), 0

    def step(self) -> None:
        self.optimizer.step()
        self.traced.stepped(self.optimizer)

    def begin(self) -> Any:
        self.num_looks += 1
        return self.tracker.look(self.num_looks - 1, self.parameters, self.traced.training())

    def rows(self) -> dict[str, Any]:
        return rows(self.begin()().facts)


class Trained(Looked):
    """A layer of each role under AdamW."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = {name: nn.Linear(8, 8) for name in ("own", "left_out", "frozen", "elsewhere")}
        layers["frozen"].requires_grad_(False)
        own = torch.optim.AdamW(layers["own"].parameters(), lr=0.01, weight_decay=0.1)
        super().__init__(own, **dict(nn.ModuleDict(layers).named_parameters()))
        self.other = torch.optim.SGD(layers["elsewhere"].parameters(), lr=0.01)

    def train(self, *, zero: bool = False) -> None:
        for parameter in self.parameters.values():
            if parameter.requires_grad:
                gradient = torch.randn(parameter.shape)
                parameter.grad = torch.zeros_like(parameter) if zero else gradient
        self.step()
        self.traced.stepped(self.other)


@pytest.mark.slow
def test_who_trains_a_tensor_and_whether_it_has_a_gradient() -> None:
    trained = Trained()
    trained.rows()
    trained.train()
    found = trained.rows()
    roles = {name: one.trained_by for name, one in found.items() if name.endswith("weight")}
    assert roles == {"own.weight": "own", "left_out.weight": "none", "frozen.weight": "frozen",
                     "elsewhere.weight": "own"}  # fmt: skip
    assert found["left_out.weight"].gradient == "some"
    assert found["left_out.weight"].still_for
    assert found["own.weight"].gradient == "some"
    assert found["own.weight"].lr == pytest.approx(0.01)
    assert found["own.weight"].weight_decay == pytest.approx(0.1)


def test_a_tensor_that_decay_alone_moves_has_no_gradient() -> None:
    trained = Trained()
    trained.rows()
    for _ in range(3):
        trained.train(zero=True)
        found = trained.rows()
    one = found["own.weight"]
    # where all gradients are zero it may be that they were reset before
    assert (one.shrinks_for, one.gradient, one.has_moved) == (3, "zero", False)


def test_nothing_is_touched() -> None:
    trained = Trained()
    trained.rows()
    trained.train()
    state = copy.deepcopy((trained.optimizer.state_dict(), trained.parameters))
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in
                 trained.parameters.items()}  # fmt: skip
    known = len(trained.optimizer.state)
    trained.rows()
    assert len(trained.optimizer.state) == known  # a defaultdict grows by being asked
    assert str(state[0]) == str(trained.optimizer.state_dict())
    for name, parameter in trained.parameters.items():
        assert torch.equal(parameter, state[1][name])
        assert (parameter.grad is None) == (gradients[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])


def test_it_goes_on_from_its_state() -> None:
    trained = Trained()
    for _ in range(5):
        trained.rows()
        trained.train()
    file = io.BytesIO()
    torch.save(trained.tracker.state_dict(), file)
    file.seek(0)
    again = VitalTracker()
    again.load_state_dict(torch.load(file, weights_only=True))
    training = trained.traced.training()
    first, second = (
        rows(tracker.look(5, trained.parameters, training)().facts)
        for tracker in (trained.tracker, again)
    )
    assert second == first


def test_updates_below_the_spacing_of_bfloat16_are_counted_as_lost() -> None:
    weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    looked = Looked(torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.0), w=weight)
    for _ in range(2):
        looked.rows()
        weight.grad = torch.randn(64).bfloat16()
        looked.step()
    one = looked.rows()["w"]
    assert (one.num_still, one.num_lossy, one.num_lossy_moved) == (64, 64, 0)
    # bfloat16 numbers are 2**-7 apart from 1 on; in each of two intervals
    assert one.num_lossy_expected == pytest.approx(2 * 64 * 0.25 * 1e-4 * 2**7)


def test_what_is_lost_adds_up_although_a_weight_moves_and_until_most_do() -> None:
    """A norm of which one weight moves now and then, as under SGD with its uneven gradients."""
    weight = nn.Parameter(torch.ones(16, dtype=torch.bfloat16))
    looked, found = Looked(torch.optim.SGD([weight], lr=0.02), w=weight), []
    for step in range(5):
        one = looked.rows()["w"]
        found.append((one.num_lossy_expected, one.num_lossy_moved))
        weight.grad = torch.full((16,), 0.02 if step < 3 else 2.0).bfloat16()
        with torch.no_grad():
            weight[step] += 0.0625  # by something else
        looked.step()
    update = 0.02 * weight.grad.new_tensor(0.02).item()
    one = 16 * update * 2**7  # that would have moved, of an interval
    assert [expected / one for expected, _ in found] == pytest.approx([0, 1, 2, 3, 0], abs=1e-3)
    assert [moved for _, moved in found] == [0, 1, 2, 3, 0]


SPACING = 2.0**-7
"""Between the numbers of bfloat16 from 1 to 2."""


def held_still(
    optimizer: type, gradients: list[torch.Tensor], next_lr: float | None = None, **options: float
) -> Any:
    """The facts of 64 weights of 1.5, in bfloat16, that are put back after the last step."""
    weight = nn.Parameter(torch.full((64,), 1.5, dtype=torch.bfloat16))
    looked = Looked(optimizer([weight], **options), w=weight)
    for gradient in gradients:
        looked.rows()
        before = weight.detach().clone()
        weight.grad = gradient.bfloat16()
        looked.step()
    with torch.no_grad():
        weight.copy_(before)
    looked.optimizer.param_groups[0]["lr"] = next_lr or options["lr"]
    return looked.rows()["w"]


@pytest.mark.parametrize(
    ("spacings", "num_lossy", "num_could_round"),
    [(0.24, 64, 64), (0.26, 0, 64), (3.9, 0, 64), (4.1, 0, 0)],
)
def test_an_update_is_lost_below_a_quarter_of_a_spacing_and_may_be_up_to_four(
    spacings: float, num_lossy: int, num_could_round: int
) -> None:
    one = held_still(torch.optim.AdamW, [torch.randn(64)], lr=spacings * SPACING, weight_decay=0.0)
    assert (one.num_still, one.num_lossy) == (64, num_lossy)
    assert one.num_could_round == num_could_round


@pytest.mark.parametrize(("times", "num_lossy"), [(29.0, 0), (31.0, 64)])
def test_while_the_rate_rises_an_update_is_lost_if_thirty_times_as_large_a_one_is(
    times: float, num_lossy: int
) -> None:
    lr = 0.25 * SPACING / times
    one = held_still(torch.optim.AdamW, [torch.randn(64)], 2 * lr, lr=lr, weight_decay=0.0)
    assert one.num_lossy == num_lossy


@pytest.mark.parametrize(("spacings", "num"), [(0.98, 0), (1.02, 32)])
def test_decay_by_a_spacing_has_to_show(spacings: float, num: int) -> None:
    gradient = torch.randn(64) * (torch.arange(64) < 32)
    decay = spacings * SPACING / (0.1 * 1.5)
    one = held_still(torch.optim.AdamW, [gradient], lr=0.1, weight_decay=decay)
    assert (one.num_to_decay, one.num_not_decayed) == (num, num)


@pytest.mark.parametrize(("share", "num_lossy"), [(0.0095, 0), (0.011, 64)])
def test_below_a_hundredth_of_what_it_moved_before_a_gradient_has_ended(
    share: float, num_lossy: int
) -> None:
    one = held_still(torch.optim.SGD, [torch.ones(64), torch.full((64,), share)], lr=0.1)
    assert (one.num_still, one.num_lossy) == (64, num_lossy)


@pytest.mark.parametrize(("sizes", "num_lossy"), [((1.0, 1e-9), 0), ((1e-9, 1e-9), 64)])
def test_steps_that_end_with_the_gradient_are_not_lost(sizes: tuple, num_lossy: int) -> None:
    """SGD that has learned all there is, and SGD whose learning rate is too small."""
    weight = nn.Parameter(torch.ones(64))
    looked = Looked(torch.optim.SGD([weight], lr=0.1), w=weight)
    for size in sizes:
        looked.rows()
        weight.grad = torch.full((64,), size)
        looked.step()
    one = looked.rows()["w"]
    assert (one.num_still, one.num_lossy) == (64, num_lossy)


def test_what_is_said_behind_the_training_is_of_the_step_that_was_read() -> None:
    def said(*, is_late: bool) -> Any:
        still, moving = (nn.Parameter(torch.ones(64).bfloat16()) for _ in range(2))
        optimizer = torch.optim.SGD([still, moving], lr=1e-2, momentum=0.5)
        looked = Looked(optimizer, still=still, moving=moving)
        for step in range(3):
            still.grad, moving.grad = (torch.full((64,), size).bfloat16() for size in (1e-2, 1.0))
            looked.step()
            last = looked.begin()
            if step < 2:
                last()
        if is_late:  # training goes on meanwhile, in the same memory
            for tensor in (still.data, moving.data, still.grad, moving.grad):
                tensor.fill_(7.0)
            optimizer.param_groups[0].update(lr=9.0, momentum=0.0)
            looked.step()
            still.requires_grad_(False)
            optimizer.zero_grad()
        return last().facts

    now, late = (said(is_late=is_late) for is_late in (False, True))
    assert now.num_lossy.tolist() == [64, 0]
    assert now.gradient[0] == "some"
    for name, column in vars(now).items():
        np.testing.assert_array_equal(vars(late)[name], column, err_msg=name)


# ------------------------------------------------------------------ gradients that end


MAKERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "SGD, decay": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "SGD, Nesterov": lambda p: torch.optim.SGD(
        p, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
}


@pytest.mark.parametrize("make", MAKERS)
@given(
    seed=st.integers(0, 99), num_steps=st.integers(1, 40), one_at=st.integers(-1, 39),
    size=st.sampled_from([1.0, 100.0]), falls=st.booleans(),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_a_mean_that_goes_on_by_itself_proves_that_no_gradient_came(
    make: str, seed: int, num_steps: int, one_at: int, size: float, falls: bool
) -> None:
    """Whatever the learning rate does meanwhile; a single gradient on the way shows."""
    torch.manual_seed(seed)
    weight = nn.Parameter(torch.randn(60))
    optimizer = MAKERS[make]([weight])
    key = "exp_avg" if make == "AdamW" else "momentum_buffer"
    for _ in range(5):
        weight.grad = torch.randn(60)
        optimizer.step()
    mean = optimizer.state[weight][key]
    before, was = mean.double().numpy().copy(), weight.detach().double().numpy().copy()
    for step in range(num_steps):
        weight.grad = torch.randn(60) * size * (step == one_at)
        optimizer.param_groups[0]["lr"] *= 0.9 if falls else 1.0
        optimizer.step()
    found = goes_on_by_itself(before, was, mean.double().numpy(), 1.2e-7)
    assert found == (one_at not in range(num_steps))


class Played(Looked):
    """Tensors under AdamW that have a gradient, one of zero, or none, as is written."""

    def __init__(self, **parts: str) -> None:
        torch.manual_seed(0)
        weights = {name: nn.Parameter(torch.randn(20)) for name in parts}
        super().__init__(torch.optim.AdamW(weights.values(), lr=1e-3), **weights)
        self.parts = parts
        self.rows()

    def play(self, every: int) -> dict[str, Any]:
        """At each step "x" is a gradient, "0" one of zero, "-" none, "f" a frozen tensor."""
        (length,) = {len(part) for part in self.parts.values()}
        for step in range(length):
            for name, part in self.parts.items():
                weight = self.parameters[name]
                weight.requires_grad_(part[step] != "f")
                size = {"x": 1.0, "0": 0.0}.get(part[step])
                weight.grad = None if size is None else torch.randn(20) * size
            self.step()
            if (step + 1) % every == 0:
                found = self.rows()
        return found


@pytest.mark.parametrize(
    ("part", "expected"),
    [  # intervals and steps without a gradient by now, steps with, the longest absence before
        ("xxxx xxxx xxxx", (0, 0, 12, 0)),
        ("xxxx ---- ----", (2, 8, 4, 0)),
        ("xxxx xx-- ----", (1, 4, 6, 0)),
        ("xxxx 0000 0000", (1, 4, 4, 0)),  # of the first interval only its end is known
        ("xxxx x000 0000", (1, 4, 4, 0)),
        ("xxxx 0000 x000", (0, 0, 4, 0)),
        ("xxxx ---- --xx", (0, 0, 6, 7)),
        ("xxxx x-xx xxxx", (0, 0, 11, 1)),
        ("---- ---- ----", (3, 12, 0, 0)),
        ("---- ---- -xxx", (0, 0, 3, 0)),  # it begins
        ("xxxx ffff ffff", (0, 0, 4, 0)),
        ("xxxx ffff xxxx", (0, 0, 8, 0)),
        ("ffff xxxx ----", (1, 4, 4, 0)),
    ],
)
def test_how_long_a_gradient_has_been_away(part: str, expected: tuple[int, ...]) -> None:
    part = part.replace(" ", "")
    one = Played(other="x" * 12, x=part).play(4)["x"]
    assert (one.dead_for, one.dead_steps, one.alive_steps, one.absence) == expected


@pytest.mark.parametrize(
    ("part", "well_at"),
    [  # snapshots 0 to 3; what is gone by the last one was well at this one
        ("xxxx xxxx xxxx", 2),
        ("xxxx xxxx ----", 2),
        ("xxxx ---- ----", 1),
        ("xxxx xx-- ----", 1),  # it ended within the interval
        ("xxxx 0000 0000", 1),
        ("x--- ---- ----", 0),
        ("---- ---- ----", 0),  # never: since the watch began
        ("xxxx ---- xxxx", 2),
    ],
)
def test_when_a_gradient_was_there_for_the_last_time(part: str, well_at: int) -> None:
    part = part.replace(" ", "")
    assert Played(other="x" * 12, x=part).play(4)["x"].well_at == well_at


def test_when_a_tensor_moved_for_the_last_time() -> None:
    """It has gradients, and is put back to the bit from the second interval on."""
    weight, other = nn.Parameter(torch.randn(20)), nn.Parameter(torch.randn(20))
    looked = Looked(torch.optim.AdamW([weight, other], lr=1e-3), x=weight, other=other)
    found, at = looked.rows(), []
    for is_still in (False, True, True, True):
        was = weight.detach().clone()
        for one in (weight, other):
            one.grad = torch.randn(20)
        looked.step()
        if is_still:
            weight.data.copy_(was)
        found = looked.rows()
        at.append((found["x"].well_at, found["other"].well_at))
    assert at == [(0, 0), (0, 1), (0, 2), (0, 3)]  # it may have stopped before snapshot 1


@pytest.mark.parametrize(
    ("first", "second", "is_relieved"),
    [
        ("xxxx ---- ----", "---- xxxx xxxx", True),
        ("xxxx xx-- ----", "---- --xx xxxx", True),
        ("xxxx xxx- ----", "---- ---- xxxx", True),
        ("xxxx ---- ----", "ffff xxxx xxxx", True),
        ("xxxx ---- ----", "xxxx xxxx xxxx", False),
        ("xxxx xxxx ----", "---- xxxx xxxx", False),
    ],
)
def test_what_takes_the_place_of_a_gradient_that_ends(
    first: str, second: str, is_relieved: bool
) -> None:
    played = Played(first=first.replace(" ", ""), second=second.replace(" ", ""))
    assert played.play(4)["first"].is_relieved == is_relieved


# ------------------------------------------------------------------ beyond an optimizer's reach


def test_weights_beyond_the_reach_are_counted_as_numpy_would() -> None:
    """Adam's first steps go as far as lr each; what is held to a bound, or masked, is left out."""
    torch.manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(400)) for name in ("moved", "held", "masked", "own")}
    looked = Looked(torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=0.5), **weights)
    looked.rows()
    for _ in range(4):
        for weight in weights.values():
            weight.grad = torch.randn(400)
        looked.step()
    was = {name: weight.detach().clone() for name, weight in weights.items()}
    assert all(one.num_beyond == 0 for one in looked.rows().values())
    for weight in weights.values():
        weight.grad = torch.randn(400)
    looked.step()
    with torch.no_grad():
        weights["moved"].add_(torch.linspace(0.0, 0.05, 400))
        weights["held"].clamp_(-0.5, 0.5)
        weights["masked"][100:] = 0.0
    found = looked.rows()
    change = (weights["moved"].detach() - was["moved"]).abs().numpy()
    decay = 1e-2 * 0.5 * was["moved"].abs().numpy()
    assert found["moved"].reach == pytest.approx(1e-2, rel=0.02)
    assert found["moved"].num_beyond == (change > found["moved"].reach + decay + 1e-6).sum()
    assert (found["held"].num_beyond, found["masked"].num_beyond) == (0, 0)
    assert found["own"].num_beyond == 0
    # of a mask, as of a bound, nothing is far
    assert found["masked"].num_far <= 100
    assert found["held"].num_far <= 200
    assert not found["own"].has_past


@pytest.mark.parametrize(
    ("momentum", "num_steps", "is_known"),
    [(0.0, 1, True), (0.0, 2, False), (0.9, 1, True), (0.9, 4, True)],
)
def test_sgd_goes_no_farther_than_its_momentum_remembers(
    momentum: float, num_steps: int, is_known: bool
) -> None:
    """Gradients of any size, at any of the steps; and a weight that something else moves."""
    for seed in range(12):
        torch.manual_seed(seed)
        weights = {name: nn.Parameter(torch.randn(50) * 1e-3) for name in ("own", "other")}
        optimizer = torch.optim.SGD(weights.values(), lr=0.1, momentum=momentum)
        looked = Looked(optimizer, **weights)
        looked.rows()
        for _ in range(num_steps):
            size = 10.0 ** torch.randint(-2, 3, ()).item()
            for weight in weights.values():
                weight.grad = torch.randn(50) * size
            looked.step()
        with torch.no_grad():
            weights["other"].add_(torch.randn(50) * 1e4)
        found = looked.rows()
        assert found["own"].num_beyond <= 25
        assert np.isfinite(found["other"].reach) == is_known
        assert (found["other"].num_beyond > 25) == is_known


@pytest.mark.parametrize(("times", "num_beyond"), [(3.9, 0), (4.1, 50)])
def test_a_step_of_sgd_goes_four_times_as_far_as_its_gradient_says(
    times: float, num_beyond: int
) -> None:
    """Gradients may have swung by that much within the interval."""
    weight = nn.Parameter(torch.randn(50) * 1e-3)
    looked = Looked(torch.optim.SGD([weight], lr=0.1), w=weight)
    looked.rows()
    weight.grad = torch.ones(50)
    looked.step()
    with torch.no_grad():
        weight -= (times - 1.0) * 0.1
    assert looked.rows()["w"].num_beyond == num_beyond


def test_the_changes_of_the_latest_8_intervals_are_remembered() -> None:
    levels = np.cumsum(np.arange(13.0))
    one = looked(*({"w": torch.full((40,), level)} for level in levels))["w"]
    assert (one.update, one.past_updates) == (12.0, tuple(np.arange(4.0, 12.0)))


@pytest.mark.parametrize(("num_between", "back_at"), [(63, 0), (64, -1)])
def test_the_latest_64_states_are_remembered(num_between: int, back_at: int) -> None:
    first = torch.randn(40)
    between = [torch.full((40,), float(i)) for i in range(num_between)]
    assert looked(*({"w": w} for w in (first, *between, first)))["w"].back_at == back_at
