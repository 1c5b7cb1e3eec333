"""The gate: red for each fault of the zoo, green for trainings that only look odd."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from importlib.metadata import entry_points
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.families import whole
from contracts.fault_zoo import (
    CUTS,
    EVERY,
    FAULTS,
    MODELS,
    ONSET,
    OPTIMIZERS,
    Fault,
    Training,
)
from contracts.forked import Child
from contracts.healthy_zoo import ODDITIES
from torch import nn

import sparsitywatch as sw
from sparsitywatch.analysis.verdict import verdict

SEED = 11
#: The zoo's, and gradients that end in the middle of a run.
TWENTY = {**FAULTS, "cut": Fault("untrained", lambda t: CUTS["taken away"](t, ONSET), ONSET)}
FIRSTS = [*{fault.kind: name for name, fault in reversed(FAULTS.items())}.values(), "cut"]
#: Those that are one training, and not a loop of their own.
HEALTHY = (
    "plain", "each step", "frozen", "lora", "warm up", "down to zero", "restarts", "skipped steps",
    "experts", "unseen tokens", "tied", "accumulated", "averaged", "random rounding",
    "dropped layers", "two optimizers", "held to bounds", "autocast", "pruned", "looking ahead",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other at each small step
    yield
    torch.set_num_threads(before)


def optimizer_of(index: int) -> Iterator[tuple[str, str]]:
    """Every model, each with another optimizer; the next index begins with the next ones."""
    models = islice(cycle(MODELS), index % len(MODELS), index % len(MODELS) + len(MODELS))
    return zip(models, islice(cycle(OPTIMIZERS), index % len(OPTIMIZERS), None), strict=False)


def maker(model: str, optimizer: str, change: Callable[[Training], Any]) -> Callable[[], Any]:
    """Makes a training of the zoo, changed."""

    def make_training() -> tuple[Any, ...]:
        training = Training(model, optimizer, SEED)
        change(training)
        return training.model, training.optimizer, training.stepper()

    return make_training


def cases(names: Iterable[str], part: Collection[str]) -> list[Any]:
    """Each name with all models; one model of those in the part, and the rest with ``--whole``."""
    return [
        pytest.param(name, *pair, marks=whole if which or name not in part else pytest.mark.slow)
        for index, name in enumerate(names)
        for which, pair in enumerate(optimizer_of(index))
    ]


@pytest.mark.part(2)
@pytest.mark.parametrize(("name", "model", "optimizer"), cases(TWENTY, FIRSTS))
def test_each_fault_is_red_and_names_tensors(name: str, model: str, optimizer: str) -> None:
    fault = TWENTY[name]
    truth = set(fault.plant(Training(model, optimizer, SEED)))
    make_training = maker(model, optimizer, fault.plant)
    with pytest.raises(sw.errors.TrainingError) as caught:
        sw.assert_trains(make_training, fault.onset + 2 * EVERY, every=EVERY)
    first, named = caught.value.tensors[0], set(caught.value.tensors)
    assert fault.spreads or first in truth
    # what is not finite is everywhere two snapshots later
    assert fault.spreads or fault.kind == "not_finite" or named <= truth
    assert 2 * len(named & truth) >= len(truth)
    assert first in str(caught.value)


@pytest.mark.part(2)
@pytest.mark.parametrize(("name", "model", "optimizer"), cases(HEALTHY, HEALTHY[::4]))
def test_each_training_that_is_well_is_green(name: str, model: str, optimizer: str) -> None:
    allow = ["*experts*"] * (name == "experts")  # no token is sent to one of them
    report = sw.assert_trains(maker(model, optimizer, ODDITIES[name]), 16, allow=allow)
    assert report.equal
    assert report.deterministic
    assert len(report.records) == 5


# ------------------------------------------------------------------ what it says


def make_training(forgotten: str = "") -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    trained = [p for name, p in model.named_parameters() if name != forgotten]
    optimizer = torch.optim.AdamW(trained, lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()

    return model, optimizer, step


def test_a_forgotten_tensor_is_an_assertion_that_names_it_and_says_what_to_do() -> None:
    with pytest.raises(AssertionError) as caught:
        sw.assert_trains(lambda: make_training("2.bias"))
    assert isinstance(caught.value, sw.SparsityWatchError)
    assert caught.value.tensors == ("2.bias",)
    assert str(caught.value) == (
        "Expected a training in which every tensor trains.\n"
        "  Act: 1 tensor not trained: 2.bias; they have gradients, and no optimizer steps on them; "
        "began between steps 0 and 4, seen at step 4. Stop the run and put these tensors into the "
        "optimizer, or let the gradient reach them. If they are frozen on purpose, set "
        "requires_grad to False: that says so and is faster."
    )


def test_what_is_frozen_on_purpose_passes() -> None:
    def make_frozen() -> tuple[Any, ...]:
        model, optimizer, step = make_training("2.bias")
        model[2].bias.requires_grad_(False)
        return model, optimizer, step

    report = sw.assert_trains(make_frozen)
    assert [record.step for record in report.records] == [4, 8, 12, 16, 20]
    assert report.records[0].scope.num_tensors == 3


def test_a_watch_that_changes_bits_is_red() -> None:
    with pytest.raises(sw.errors.TrainingError, match="The watch disturbs this training") as caught:
        sw.assert_trains(
            make_training, 8, every=2, on_record=[lambda _: torch.rand(1)], background=False
        )
    assert {"0.weight", "2.bias"} <= set(caught.value.tensors)


def test_of_a_training_that_is_never_the_same_nobody_knows_what_a_watch_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = count()

    def make_unstable() -> tuple[Any, ...]:
        model, optimizer, step = make_training()
        model[0].bias.data.fill_(float(next(runs)))
        return model, optimizer, step

    assert not sw.assert_trains(make_unstable).deterministic
    assert "not deterministic by itself" in caplog.text


def test_where_no_parameter_is_compared_it_does_not_pass() -> None:
    with pytest.raises(sw.MeasurementError, match="that can be compared, but") as caught:
        sw.assert_trains(make_training, dormant_samples=0)
    assert not isinstance(caught.value, AssertionError)
    with pytest.raises(sw.ConfigurationError, match="`steps` to be a whole number >= 8, got 7"):
        sw.assert_trains(make_training, 7)


def make_apart(kind: str) -> Callable[[], tuple[Any, ...]]:
    """A training with a part beside the others that is not reached, left behind, or untied."""

    def make() -> tuple[Any, ...]:
        tokens, inner, part = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        head = nn.Linear(16, 50, bias=False)
        is_tied = kind != "untied"
        head.weight = tokens.weight if is_tied else nn.Parameter(tokens.weight.detach().clone())
        names = ("tokens", "inner", "experts" if kind == "expert" else "side", "head")
        model = nn.ModuleDict(dict(zip(names, (tokens, inner, part, head), strict=True)))
        sgd = {"lr": 0.1} if kind in ("scaled", "slow by SGD") else {}
        for p in part.parameters():
            if kind in ("hooked", "scaled"):
                p.register_hook(lambda g: g * (1e-6 if sgd else 0.0))
            p.requires_grad_(kind != "frozen")
        own = {id(p) for p in part.parameters()}
        groups = [{"params": [p for p in model.parameters() if id(p) not in own]}]
        rate = {"lr": 1e-9} if kind.startswith("slow") else {}
        groups.append({"params": list(part.parameters()), **rate})
        optimizer = torch.optim.SGD(groups, **sgd) if sgd else torch.optim.AdamW(groups, lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            x = torch.randint(50, (8, 12))
            h = tokens(x)
            z = part(h + torch.tanh(inner(h)))
            out = head(h + torch.tanh(inner(h)) + (z.detach() if kind in CUT else z))
            nn.functional.cross_entropy(out.flatten(0, 1), x.flatten()).backward()
            optimizer.step()

        return model, optimizer, step

    return make


CUT = ("detached", "expert")
#: Kinds that are told, by the name of what is named first.
APART = {
    "detached": ("reached by no gradient", "side."), "hooked": ("reached by no gradient", "side."),
    "expert": ("not used by these inputs", "experts."),
    "slow": ("next to nowhere", "side."), "slow by SGD": ("next to nowhere", "side."),
    "scaled": ("next to nowhere", "side."), "untied": ("no longer tied", "head.weight"),
}  # fmt: skip


@pytest.mark.part(2)
@pytest.mark.parametrize("kind", APART)
def test_what_is_not_reached_is_red_and_green_where_it_is_allowed(kind: str) -> None:
    words, name = APART[kind]
    with pytest.raises(sw.errors.TrainingError, match=words) as caught:
        sw.assert_trains(make_apart(kind))
    assert all(one.startswith(name) for one in caught.value.tensors)
    assert sw.assert_trains(make_apart(kind), allow=[f"{name}*"]).equal
    with pytest.raises(sw.errors.TrainingError, match=words):
        sw.assert_trains(make_apart(kind), allow=["inner.*"])


def make_resting(rate: float, scale: float, optimizer: Any) -> Callable[[], tuple[Any, ...]]:
    """A training of one rate, with gradients scaled."""

    def make() -> tuple[Any, ...]:
        model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4))
        own = optimizer(model.parameters(), lr=rate)

        def step() -> None:
            own.zero_grad()
            (scale * model(torch.randn(8, 12)).square().mean()).backward()
            own.step()

        return model, own, step

    return make


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_training_in_which_nothing_moves_is_red(optimizer: Any) -> None:
    words = "2 tensors moving next to nowhere: .*; their learning rate has been 0 all the time"
    with pytest.raises(sw.errors.TrainingError, match=words):
        sw.assert_trains(make_resting(0.0, 1.0, optimizer))
    sw.assert_trains(make_resting(1e-3, 1.0, optimizer))
    if optimizer is torch.optim.SGD:  # the others scale it back
        words = "they have gradients, and no matrix has moved, but by weight decay"
        with pytest.raises(sw.errors.TrainingError, match=words):
            sw.assert_trains(make_resting(1e-3, 1e-12, optimizer))


def test_a_rate_of_0_is_told_once_after_a_patience_and_is_over_when_it_rises() -> None:
    torch.manual_seed(0)
    model, optimizer, step = make_resting(0.0, 1.0, torch.optim.SGD)()
    with sw.watch(model, optimizer, every=4, logdir=None, max_overhead=None, scope="matrices",
                  on_event=()) as watcher:  # fmt: skip
        for _ in range(60):
            step()
        optimizer.param_groups[0]["lr"] = 0.1
        for _ in range(20):
            step()
    (event,) = (e for e in watcher.events if e.kind == "slow")
    assert 32 <= event.detected_step <= 36
    assert event.onset_low <= 4


@pytest.mark.parametrize("kind", ["well", "frozen"])
def test_beside_them_what_is_well_or_frozen_is_green(kind: str) -> None:
    sw.assert_trains(make_apart(kind))


@pytest.mark.parametrize(("kind", "severity"), [("detached", "look"), ("expert", "note")])
def test_a_watch_tells_it_once_and_a_hint_in_the_name_makes_it_a_note(
    kind: str, severity: str
) -> None:
    torch.manual_seed(0)
    model, optimizer, step = make_apart(kind)()
    with sw.watch(model, optimizer, every=10, logdir=None, max_overhead=None, scope="layers",
                  on_event=()) as watcher:  # fmt: skip
        for _ in range(90):
            step()
    (event,) = watcher.events
    assert (event.severity, event.detected_step) == (severity, 50)


@pytest.mark.parametrize("optimized", [True, False])
def test_a_layer_that_is_frozen_is_healthy(optimized: bool) -> None:
    torch.manual_seed(0)
    model, optimizer, step = make_apart("frozen" if not optimized else "well")()
    with sw.watch(model, optimizer, every=5, logdir=None, max_overhead=None, scope="layers",
                  on_event=()) as watcher:  # fmt: skip
        for number in range(100):
            if number == 40:
                model.side.requires_grad_(False)
            step()
    assert watcher.events == []
    assert verdict(watcher.records, watcher.events).state == "healthy"
    assert watcher.records[-1].trained == 1.0


def test_patterns_are_given_in_a_list() -> None:
    with pytest.raises(sw.ConfigurationError, match="`allow` to be patterns of names"):
        sw.assert_trains(make_training, allow="experts.*")


TESTS = """
import pytest, torch, unittest
from torch import nn


@pytest.fixture
def width():
    return 8


def make_training(width, trained=lambda model: model.parameters()):
    model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)

    def step():
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()

    return model, optimizer, step


@pytest.mark.assert_trains(steps=10)
def test_well(width):
    return make_training(width)


@pytest.mark.assert_trains
def test_forgotten(width):
    return make_training(width, lambda model: model[0].parameters())


def test_by_the_fixture(assert_trains, width):
    assert assert_trains(lambda: make_training(width), steps=8).equal


def test_another():
    pass


class TestOfUnittest(unittest.TestCase):
    @pytest.mark.assert_trains
    def test_what_it_returns_nobody_sees(self):
        return make_training(8, lambda model: model[0].parameters())
"""


@pytest.mark.slow
def test_the_plugin_has_a_marker_and_a_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_training.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    plugin = "sparsitywatch.integrations.pytest_plugin"
    is_installed = any(one.value == plugin for one in entry_points(group="pytest11"))
    options = ["-p", "no:cacheprovider", *([] if is_installed else ["-p", plugin])]
    options += ["--strict-markers", "-W", "error", "-q", "--tb=short"]
    options += ["-W", "ignore:Module already imported"]  # by the process that is forked
    code = f"import pytest, sys; sys.exit(pytest.main({options}))"
    returned, output, errors = Child(code, cwd=tmp_path).communicate()
    assert returned == 1, output + errors
    assert "1 failed, 3 passed, 1 error" in output, errors
    assert "Failed: Expected a function for the marker assert_trains, got a unit" in output
    assert "FAILED test_training.py::test_forgotten" in output
    assert "TrainingError: Expected a training in which every tensor trains." in output
    assert "2 tensors not trained: 2.weight, 2.bias" in output
    assert "verification.py" not in output  # it is the test's training that is wrong
