"""``sw.verify`` tells what differs, and apart from what differs anyway."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from contracts import leftovers
from torch import nn

import sparsitywatch as sw
from sparsitywatch.verification import BuiltTraining, compare, trace


def make_training() -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(torch.randn(5, 3)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return model, optimizer, step


def draws(record: sw.Record) -> None:
    """An action that disturbs a training."""
    torch.rand(1)


def test_equal_says_so_and_what_was_seen() -> None:
    report = sw.verify(make_training, steps=6, every=2)
    assert report.equal
    assert report.deterministic
    assert [record.step for record in report.records] == [2, 4, 6]
    assert str(report).startswith("Bit for bit the same with and without a watch: ")
    assert str(report).endswith("things after each of 6 steps, 3 snapshots.")
    report.raise_if_different()


def test_arguments_go_to_the_watch(tmp_path) -> None:
    sink = sw.sinks.MemorySink()
    options = {"logdir": tmp_path, "sinks": [sink], "scope": "layers"}
    report = sw.verify(make_training, steps=4, every=sw.schedules.at([3]), **options)
    assert [record.step for record in report.records] == [3]
    assert [record.step for record in sink.records] == [3]
    assert (tmp_path / "sparsitywatch" / "records.jsonl").is_file()


def test_what_disturbs_is_named_with_its_step() -> None:
    report = sw.verify(make_training, steps=6, every=2, on_record=[draws], background=False)
    assert report.deterministic
    assert not report.equal
    assert report.differences[0].name == "torch generator"
    by_name = {difference.name: difference for difference in report.differences}
    assert by_name["torch generator"].first_step == 2
    assert by_name["parameter 0.weight"].first_step == 3
    assert by_name["optimizer state 0.weight exp_avg"].first_step == 3
    assert by_name["returned by step()"].first_step == 3
    text = str(report)
    assert text.startswith("The watch disturbs this training (")
    assert "\n  parameter 0.weight: " in text
    assert " of 12 elements differ, first at step 3" in text
    with pytest.raises(sw.MeasurementError, match="The watch disturbs this training"):
        report.raise_if_different()


def test_a_training_that_differs_by_itself_is_told_apart() -> None:
    runs = itertools.count()

    def make_unstable() -> tuple[Any, ...]:
        model, optimizer, step = make_training()
        with torch.no_grad():
            model[2].bias[0] = float(next(runs))
        return model, optimizer, step

    report = sw.verify(make_unstable, steps=2, every=1)
    assert not report.deterministic
    assert report.unstable[0].name == "parameter 2.bias"
    assert report.unstable[0].first_step == 0
    assert "is not deterministic by itself" in str(report)
    assert "parameter 2.bias: " in str(report)
    assert "first before the first step" in str(report)
    with pytest.raises(sw.MeasurementError, match="not deterministic by itself"):
        report.raise_if_different()


def test_a_failing_watch_is_equal_and_says_that_it_failed() -> None:
    calls = itertools.count()

    def breaks(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if next(calls) > 3:  # the attach evaluates the batch four times
            raise RuntimeError("no more values")
        return model(batch).square().mean(dim=1)

    proxy = sw.Proxy([torch.ones(4, 3)], breaks)
    report = sw.verify(make_training, steps=4, every=2, proxy=proxy)
    assert report.equal
    assert "2 snapshots, 2 of them invalid: " in str(report)
    assert "no more values" in str(report)


def test_long_texts_are_cut(monkeypatch) -> None:
    monkeypatch.setattr("sparsitywatch.verification._MAX_LINES", 3)

    report = sw.verify(make_training, steps=4, every=1, on_record=[draws])
    lines = str(report).splitlines()
    assert len(lines) == 5
    assert lines[-1] == f"  and {len(report.differences) - 3} more"


def test_a_baseline_is_used_again() -> None:
    made = []

    def make() -> tuple[Any, ...]:
        made.append(1)
        return make_training()

    first = sw.verify(make, steps=3, every=1)
    assert len(made) == 3
    second = sw.verify(make, steps=3, every=2, baseline=first)
    assert len(made) == 4
    assert second.equal
    assert second.deterministic
    assert second.baseline is first.baseline


def test_generators_of_the_caller_are_put_back() -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    sw.verify(make_training, steps=2, every=1)

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sw.verify(broken)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002


def test_without_an_optimizer_the_watch_is_told_of_each_step() -> None:
    def make() -> tuple[Any, ...]:
        model, optimizer, step = make_training()
        return model, None, step, {"hidden optimizer": optimizer}

    report = sw.verify(make, steps=4, every=2)
    assert report.equal
    assert [record.step for record in report.records] == [2, 4]
    assert "hidden optimizer state 0 exp_avg" in report.baseline.last


def test_parameters_that_only_the_optimizer_knows_are_compared() -> None:
    temperatures: list[torch.Tensor] = []

    def make() -> tuple[Any, ...]:
        model, _, _ = make_training()
        temperatures[:] = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
        optimizer = torch.optim.AdamW([*temperatures, *model.parameters()])

        def step() -> None:
            optimizer.zero_grad()
            (model(torch.randn(5, 3)).sum() * temperatures[0].sum()).backward()
            optimizer.step()

        return model, optimizer, step

    def disturb(record: sw.Record) -> None:
        temperatures[1].data.mul_(2)

    report = sw.verify(make, steps=2, every=2, on_record=[disturb], background=False)
    assert [str(difference) for difference in report.differences] == [
        "parameter 1 of the optimizer: 3 of 3 elements differ, first at step 2"
    ]
    assert "optimizer state 0 of the optimizer exp_avg" in report.baseline.last
    assert "optimizer state 2.bias exp_avg" in report.baseline.last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"make_training": 3}, "`make_training` to be a function that builds a training, got 3"),
        ({"steps": 0}, "`steps` to be a whole number >= 1, got 0"),
        ({"steps": 2.0}, "`steps` to be a whole number >= 1, got 2.0"),
        ({"seed": -1}, "`seed` to be a whole number >= 0, got -1"),
        ({"evry": 3}, "arguments of sw.watch beside model and optimizer, got `evry`"),
        ({"model": nn.Linear(2, 2)}, "beside model and optimizer, got `model`"),
        ({"baseline": 3}, "`baseline` to be what verify returned, got 3"),
        ({"make_training": lambda: None}, r"`make_training\(\)` to return .*, got NoneType"),
        ({"make_training": lambda: (1, 2)}, r"`make_training\(\)` to return .*, got 2 of them"),
        ({"make_training": lambda: (1, None, print)}, "`model` .* torch.nn.Module, got int"),
        ({"make_training": lambda: (*make_training()[:2], 0)}, "`step` .* a function .* got int"),
        (
            {"make_training": lambda: (nn.Linear(2, 2), [], print)},
            "`optimizer` .* an optimizer or None, got list",
        ),
        ({"make_training": lambda: (*make_training(), [])}, "`others` .* a dict by name, got list"),
        (
            {"make_training": lambda: (*make_training(), {"clock": 3})},
            r"others\['clock'\] .* have a state_dict\(\), got int",
        ),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(sw.ConfigurationError, match=message):
        sw.verify(**{"make_training": make_training, "steps": 2, "every": 1, **arguments})


def test_a_baseline_of_another_seed_is_refused() -> None:
    first = sw.verify(make_training, steps=2, every=1)
    with pytest.raises(sw.ConfigurationError, match="of 2 steps from seed 1, got one of 2 steps"):
        sw.verify(make_training, steps=2, every=1, seed=1, baseline=first)


def test_a_watch_that_never_looked_is_an_error(monkeypatch) -> None:
    with pytest.raises(sw.MeasurementError, match="it saw 3 optimizer steps and none was due"):
        sw.verify(make_training, steps=3)
    monkeypatch.setenv("SPARSITYWATCH_DISABLED", "1")
    with pytest.raises(sw.MeasurementError, match="off: SPARSITYWATCH_DISABLED is set"):
        sw.verify(make_training, steps=3, every=1)


# ------------------------------------------------------------------ bits, not values


def differences_of(one: Any, other: Any) -> list[str]:
    """What is said about two trainings that differ in this one thing."""

    def made(thing: Any) -> BuiltTraining:
        class Holder:
            def state_dict(self) -> dict[str, Any]:
                return {"x": thing}

        model = nn.Linear(1, 1)
        return BuiltTraining(model, None, lambda: None, {"holder": Holder()})

    pair = [trace(lambda thing=thing: made(thing), steps=1) for thing in (one, other)]
    return [str(difference) for difference in compare(*pair)]


NAN, ODD_NAN = (torch.tensor([0x7FC00000 + n], dtype=torch.int32) for n in (0, 1))


CONJUGATED = torch.ones(2, dtype=torch.complex64).conj()


@pytest.mark.parametrize(
    ("one", "other", "detail"),
    [
        (NAN.view(torch.float32), NAN.view(torch.float32).clone(), None),
        (float("nan"), float("nan"), None),
        (torch.zeros(0), torch.zeros(0), None),
        (torch.eye(2).to_sparse(), torch.eye(2).to_sparse(), None),
        (CONJUGATED, CONJUGATED.resolve_conj(), None),
        (object(), object(), None),  # an address is no state
        (NAN.view(torch.float32), ODD_NAN.view(torch.float32), "1 of 1 elements differ"),
        (torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]), "1 of 2 elements differ"),
        (0.0, -0.0, "expected 0.0, got -0.0"),
        (1, True, "expected 1, got True"),
        (torch.eye(2), torch.eye(2).double(), "expected float32 [2, 2], got float64 [2, 2]"),
        (torch.zeros(2), torch.zeros(1, 2), "expected float32 [2], got float32 [1, 2]"),
        (np.arange(3), np.arange(3) * 2, "2 of 3 elements differ"),
        (torch.tensor(True), torch.tensor(False), "1 of 1 elements differ"),
        (torch.zeros(2, dtype=torch.bfloat16), None, "expected bfloat16 [2], got None"),
        ([], {}, "expected empty list, got empty dict"),
    ],
)
def test_bits_are_compared(one: Any, other: Any, detail: str | None) -> None:
    expected = [] if detail is None else [f"holder x: {detail}, first before the first step"]
    assert differences_of(one, other) == expected


def test_what_is_only_in_one_is_named() -> None:
    assert differences_of([1], [1, 2]) == [
        "holder x 1: expected nothing, got 2, first before the first step"
    ]
    words = " ".join(f"word{n}" for n in range(20))
    (text,) = differences_of(words, words.replace("word7", "other"))
    assert "only in one of the two: other word7" in text
    (text,) = differences_of("a " + words, words + " a")
    assert "only in one of the two: " in text


def test_the_model_s_own_state_is_compared() -> None:
    counts = iter([1, 2])

    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": self.count}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    def made() -> BuiltTraining:
        model = Counting(1, 1)
        model.count = next(counts)
        return BuiltTraining(model, None, lambda: None)

    stored, held = compare(trace(made, 1), trace(made, 1))
    assert (stored.name, held.name) == ("state_dict _extra_state count", "state count")
    assert stored.detail == held.detail == "expected 1, got 2"


@pytest.mark.parametrize("what", ["a Python counter", "an RNN's self.state", "a torch.Generator"])
def test_verify_sees_what_a_forward_leaves_behind(what: str) -> None:
    """A record's action runs the model as a careless watch would."""
    make = leftovers.make_training(*leftovers.LEFTOVERS[what])
    models: list[Any] = []

    def made() -> tuple[Any, ...]:
        model, optimizer, step = make()
        models.append(model)
        return model, optimizer, step

    def careless(_: sw.Record) -> None:
        with torch.no_grad():
            models[-1](torch.ones(5, 6))

    report = sw.verify(
        made, steps=3, every=2, scope="layers", on_record=[careless], background=False
    )
    assert report.differences[0].name.startswith("state ")
    assert report.differences[0].first_step == 2


def test_what_differs_from_run_to_run_says_nothing_about_the_watch() -> None:
    runs = itertools.count()
    make = leftovers.make_training(*leftovers.LEFTOVERS["a Python counter"])

    def made() -> tuple[Any, ...]:
        model, optimizer, step = make()
        model.made_at = next(runs)
        return model, optimizer, step

    report = sw.verify(made, steps=2, every=1, scope="layers")
    assert report.deterministic
    assert report.equal
    assert report.by_itself == {"state made_at"}
    assert sw.verify(made, steps=2, every=2, scope="layers", baseline=report).equal
