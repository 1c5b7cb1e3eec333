"""What a fine-tuned curve promises of its trainings: whose they are, and what is zero in them."""

from __future__ import annotations

import copy
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import finetuned
from contracts.finetuned import WEIGHT, X, Y, curve_of, losses, make_model, noted, right, train
from scipy import stats
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, MeasurementError, StateError


class Counted:
    """Trains, and counts how often."""

    def __init__(self) -> None:
        self.runs: list[Any] = []

    def __call__(self, model: nn.Module, run: Any) -> None:
        self.runs.append(run)
        train(model)


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()[1:]]


# ------------------------------------------------------------------ what is zero


@pytest.mark.parametrize("pattern", ["global", "layerwise", "random"])
def test_zeros_of_before_stay_zero_and_count(pattern: str) -> None:
    """Issue 30: a checkpoint that is 40 % zero said .50 and was evaluated at .20."""
    sparse = WEIGHT.clone()
    sparse[torch.rand(24, 8, generator=torch.Generator().manual_seed(1)) < 0.4] = 0.0
    evaluated: dict[float, float] = {}

    def evaluate(model: nn.Module, run: Any) -> float:
        evaluated[run.level] = float((model[0].weight == 0).float().mean())
        assert evaluated[run.level] == pytest.approx(run.sparsity, abs=1e-6)
        kept_zero = (model[0].weight == 0)[sparse == 0].float().mean()
        assert float(kept_zero) == (0.0 if run.level == 0.0 else 1.0)
        return 1.0

    curve = curve_of(
        make_model=lambda: make_model(sparse), evaluate=evaluate, levels=[0.2, 0.5],
        pattern=pattern, seeds=[0],
    )  # fmt: skip
    assert list(evaluated.values()) == pytest.approx(curve.sparsity, abs=1e-6)
    zero = float((sparse == 0).float().mean())
    if pattern == "random":
        assert curve.sparsity[1] > zero + 0.1 * (1 - zero)
    else:
        assert curve.sparsity == pytest.approx((0.0, zero, 0.5), abs=0.01)


# ------------------------------------------------------------------ whose seeds


def trainer_of(folder: Path, **arguments: Any) -> Callable[..., None]:
    """A real Trainer, which seeds itself."""
    transformers = pytest.importorskip("transformers")
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]

    class Trainer(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(model(inputs["x"]), inputs["labels"])

    def run_trainer(model: nn.Module, seed: int | None = None) -> None:
        seeds = {} if seed is None else {"seed": seed}
        given = transformers.TrainingArguments(
            str(folder), max_steps=4, learning_rate=0.01, per_device_train_batch_size=16,
            use_cpu=True, disable_tqdm=True, report_to=[], save_strategy="no",
            remove_unused_columns=False, **seeds, **arguments,
        )  # fmt: skip
        Trainer(model=model, args=given, train_dataset=data).train()

    return run_trainer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_trainer_that_seeds_itself_is_found_and_takes_the_seed_of_the_run(tmp_path: Path) -> None:
    def same_head() -> nn.Module:
        torch.manual_seed(5)
        return make_model()

    run_trainer = trainer_of(tmp_path)
    log = tmp_path / "runs.jsonl"
    options = {"make_model": same_head, "levels": [0.5], "seeds": [0, 1, 2]}
    said = (
        r"of seed 1 than of seed 0.*level 0: `train` seeds the generators itself.*"
        r"TrainingArguments\(seed=42\).*run\.seed"
    )
    with pytest.raises(MeasurementError, match=said):
        curve_of(log, train=lambda model: run_trainer(model), **options)
    assert {line["seed"] for line in lines_of(log)} == {0}
    curve = curve_of(train=lambda model, run: run_trainer(model, run.seed), **options)
    assert len({one.trained for one in curve.trainings}) == 6
    assert curve.sparsity[1] == pytest.approx(0.5, abs=0.01)  # held under accelerate, too


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (lambda model: model[0].weight.data.mul_(2.0), "`train` draws nothing from the global"),
        (lambda model: None, "nothing was trained, and nothing drawn"),
        (lambda model: model[0].weight.data.add_(0.0 * torch.rand(1) + 1), "makes no difference"),
    ],
)
def test_seeds_that_give_the_same_weights_are_no_seeds(training: Callable, said: str) -> None:
    def same_head() -> nn.Module:
        model = make_model()
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        nn.init.zeros_(model[0].bias)
        return model

    options = {"make_model": same_head, "train": training, "levels": [0.0]}
    with pytest.raises(MeasurementError, match=f"the same bit for bit at level 0: .*{said}"):
        curve_of(**options)
    assert len(curve_of(**options, seeds=[3]).trainings) == 1


def test_ties_of_a_score_are_honest_and_so_is_a_dense_model_that_is_not_trained() -> None:
    curve = curve_of(evaluate=lambda model: 0.5)
    assert curve.by_seed == ((0.5, 0.5, 0.5),) * 2
    zero_shot = curve_of(
        make_model=_fixed, train=lambda model: None, pattern="random",
        evaluate=lambda model: model[0].weight.sum(),
    )  # fmt: skip
    dense, *pruned = zip(*zero_shot.by_seed, strict=True)
    assert dense[0] == dense[1]
    assert all(first != second for first, second in pruned)


def _fixed() -> nn.Module:
    torch.manual_seed(5)
    return make_model()


def test_equal_seeds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`seeds` to be different .* \[0, 0\]"):
        curve_of(seeds=[0, 0])


# ------------------------------------------------------------------ whose model


def test_one_object_again_and_again_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    model, counted = make_model(), Counted()
    before = copy.deepcopy(model.state_dict())
    for seeds in ([0], [0, 1]):
        with pytest.raises(ConfigurationError, match="new model each time, got the same object"):
            curve_of(tmp_path / "log", make_model=lambda: model, train=counted, seeds=seeds)
    assert not counted.runs
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not lines_of(tmp_path / "log")


def test_a_model_that_shares_what_is_trained_is_refused() -> None:
    shared, counted = make_model()[0], Counted()

    def wrapped() -> nn.Module:
        return nn.Sequential(shared, nn.ReLU(), nn.Linear(24, 2))

    with pytest.raises(ConfigurationError, match=r"same model for seed 0 .* level 0\.3 .*a copy"):
        curve_of(make_model=wrapped, train=counted)
    assert len(counted.runs) == 1


def test_a_model_that_is_not_the_same_twice_is_refused() -> None:
    own = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigurationError, match="What it draws must come from the global"):
        curve_of(make_model=lambda: make_model(torch.randn(24, 8, generator=own)))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"make_model": lambda: make_model(2 * WEIGHT)}, "`dense model of seed 0`"),
        ({"scope": lambda name, _: name == "2.weight"}, "`scope` .*1 tensors"),
        ({"proxy": sw.Proxy([(X[:9], Y[:9])], lambda m, b: m(b[0]).sum(1))}, "`proxy`"),
    ],
)
def test_a_log_of_another_model_scope_or_proxy_is_refused(
    tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    """Issue 30: it trained nothing, and gave the old values."""
    log, counted = tmp_path / "runs.jsonl", Counted()
    proxy = sw.Proxy([(X, Y)], lambda m, b: m(b[0]).square().sum(1))
    own = {"pattern": "wanda", "proxy": proxy, "scope": lambda name, _: name == "0.weight",
           "seeds": [0], "levels": [0.5]}  # fmt: skip
    curve_of(log, **own)
    before = log.read_bytes()
    with pytest.raises(StateError, match=f"to be of {said}"):
        curve_of(log, train=counted, **(own | other))
    assert not counted.runs
    assert log.read_bytes() == before
    again = curve_of(log, train=counted, **own)
    assert not counted.runs
    for line in lines_of(log):
        assert line["proxy"] == proxy.hash
        assert line["pattern"]["name"] == "wanda"
        assert line["scope"]["selected"].startswith("1 tensors, ")
        assert line["dense"] == again.trainings[0].dense


# ------------------------------------------------------------------ levels and seeds


def test_levels_beside_those_of_n_m_are_refused() -> None:
    """Issue 30: every level of N:M was the same one, under another name."""
    said = r"`levels` to be of .* 'keep_2_of_4' has, \[0\.5\], got 0\.3"
    with pytest.raises(ConfigurationError, match=said):
        curve_of(pattern="keep_2_of_4", levels=[0.3, 0.5])
    assert curve_of(pattern="keep_2_of_4", levels=[0.5]).sparsity == (0.0, 0.5)


def test_levels_and_seeds_are_added_to_a_log(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    curve_of(log, levels=[0.3], seeds=[0])
    counted = Counted()
    curve = curve_of(log, train=counted, levels=[0.8, 0.3])
    assert [(run.seed, run.level) for run in counted.runs] == [
        (0, 0.8),
        (1, 0.0),
        (1, 0.3),
        (1, 0.8),
    ]
    assert curve == curve_of()
    some = curve_of(log, train=counted, levels=[0.8], seeds=[1])
    assert len(counted.runs) == 4
    assert some.by_seed == ((curve.by_seed[1][0], curve.by_seed[1][2]),)


def test_a_file_that_is_no_log_stays_what_it_is(tmp_path: Path) -> None:
    for text in ('{"title": "my notes"}', "notes without an end of line", "\n"):
        log = tmp_path / "notes.txt"
        log.write_text(text)
        with pytest.raises(StateError, match="what it is of in line 1 of `log`"):
            curve_of(log)
        assert log.read_text() == text


def test_functions_are_told_which_training_it_is_if_they_ask(tmp_path: Path) -> None:
    told: list[tuple[str, int, float, bool]] = []

    def make(run: Any) -> nn.Module:
        told.append(("make", run.seed, run.level, run.sparsity == run.sparsity))
        return make_model()

    def evaluate(model: nn.Module, run: Any) -> float:
        told.append(("evaluate", run.seed, run.level, run.sparsity == run.sparsity))
        return 0.5

    notes = tmp_path / "notes"
    curve_of(make_model=make, train=partial(noted, notes=notes), evaluate=evaluate, levels=[0.5],
             seeds=[4])  # fmt: skip
    assert told == [
        ("make", 4, 0.0, False),  # to know the model by
        ("make", 4, 0.0, False), ("evaluate", 4, 0.0, True),
        ("make", 4, 0.5, False), ("evaluate", 4, 0.5, True),
    ]  # fmt: skip
    assert [line.split()[1:] for line in notes.read_text().splitlines()] == [
        ["4", "0.0"],
        ["4", "0.5"],
    ]


# ------------------------------------------------------------------ values of examples


def test_values_of_examples_are_kept_and_paired(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    curve = curve_of(log, seeds=[0, 1, 2])
    assert curve.by_example.shape == (3, 3, 128)
    assert curve.value == pytest.approx(curve.by_example.mean((0, 2)).tolist())
    counted = Counted()
    again = curve_of(log, train=counted, seeds=[0, 1, 2])
    assert not counted.runs
    np.testing.assert_array_equal(again.by_example, curve.by_example)
    for index, level in enumerate(curve.level):
        drops = curve.values_at(0.0) - curve.values_at(level)
        np.testing.assert_array_equal(curve.values_at(level), curve.by_example[:, index])
        of_seeds, of_examples = (drops.mean(axis).var(ddof=1) / n for axis, n in ((1, 3), (0, 128)))
        if index:
            total = of_seeds + of_examples
            free = int(total**2 / (of_seeds**2 / 2 + of_examples**2 / 127))
            width = stats.t.ppf(0.95, max(free, 1)) * total**0.5
            assert stats.t.ppf(0.95, 127) * curve.stderr[index] == pytest.approx(width)
    assert (curve.unit, curve.degrees_of_freedom) == ("example", 127)


def test_one_seed_has_an_error_by_its_examples_and_groups_widen_it() -> None:
    curve = curve_of(seeds=[0])
    drops = (curve.values_at(0.0) - curve.values_at(0.8))[0]
    assert curve.stderr[2] == pytest.approx(stats.sem(drops))
    assert sw.essential_sparsity(curve, float(drops.mean()) / 2, "absolute").low > 0.0
    grouped = curve_of(seeds=[0], groups=[i // 16 for i in range(128)])
    assert (grouped.unit, grouped.degrees_of_freedom) == ("group", 7)
    assert grouped.stderr[2] == pytest.approx(stats.sem(drops.reshape(8, 16).mean(1)))
    with pytest.raises(ConfigurationError, match="`groups` to be one for each of 128 examples"):
        curve_of(seeds=[0], groups=[1, 2])


def test_pairing_by_example_makes_three_seeds_enough() -> None:
    by_example = curve_of(evaluate=right, seeds=[0, 1, 2])
    by_seed = curve_of(evaluate=lambda model: right(model).float().mean(), seeds=[0, 1, 2])
    assert by_example.value == pytest.approx(by_seed.value)
    assert by_seed.by_example is None
    assert (by_seed.unit, by_seed.degrees_of_freedom) == ("seed", 2)


@pytest.mark.parametrize("values", [None, "good", [], torch.ones(2, 2), {"accuracy": 0.5}])
def test_what_is_no_value_is_said(values: object) -> None:
    with pytest.raises(MeasurementError, match="`evaluate` to return a number, or a list of one"):
        curve_of(evaluate=lambda model: values, levels=[0.0], seeds=[0])


def test_other_examples_in_one_log_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    curve_of(log, levels=[0.3], seeds=[0])
    with pytest.raises(
        MeasurementError, match="as many numbers after each training, got 64 and 128"
    ):
        curve_of(log, evaluate=lambda model: losses(model)[:64])


# ------------------------------------------------------------------ dense trainings, shared


def test_dense_trainings_are_taken_over(tmp_path: Path) -> None:
    settings = {"steps": 16}
    first = curve_of(settings=settings)
    counted, log = Counted(), tmp_path / "random.jsonl"
    own = {"pattern": "random", "settings": settings}
    curve = curve_of(log, train=counted, dense=first, **own, seeds=[0, 1, 2])
    assert [(r.seed, r.level) for r in counted.runs if r.level == 0.0] == [(2, 0.0)]
    assert curve == curve_of(**own, seeds=[0, 1, 2])
    assert curve == curve_of(log, train=counted, **own, seeds=[0, 1, 2])
    with pytest.raises(ConfigurationError, match="`dense` to be a curve of the same `settings`"):
        curve_of(dense=first)
    with pytest.raises(ConfigurationError, match="`dense` to be a curve of the dense models"):
        curve_of(dense=first, make_model=lambda: make_model(2 * WEIGHT), **own)
    with pytest.raises(ConfigurationError, match=r"`dense` to be a curve of sw\.finetuned_curve"):
        curve_of(dense=sw.SparsityCurve([0.0], [1.0]))


# ------------------------------------------------------------------ several processes


@pytest.fixture(scope="module")
def forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo"])  # an optimizer imports it
    return context


@pytest.fixture
def pool(forking: ForkServerContext) -> Iterator[ProcessPoolExecutor]:
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(2, forking, torch.set_num_threads, threads) as executor:
        yield executor


@pytest.mark.slow
def test_an_executor_gives_what_this_process_gives(tmp_path: Path, pool: Any) -> None:
    alone, log = curve_of(), tmp_path / "runs.jsonl"
    assert curve_of(executor=pool) == alone
    curve = curve_of(log, executor=pool, train=partial(noted, notes=tmp_path / "notes"))
    assert curve == alone
    np.testing.assert_array_equal(curve.by_example, alone.by_example)
    assert len((tmp_path / "notes").read_text().splitlines()) == 6
    assert len(lines_of(log)) == 6
    assert not [*tmp_path.glob("*.claim")]


def test_threads_are_refused() -> None:
    with (
        ThreadPoolExecutor(2) as executor,
        pytest.raises(ConfigurationError, match="not of threads, which share the global"),
    ):
        curve_of(executor=executor)
    with pytest.raises(ConfigurationError, match="`executor`"):
        curve_of(executor=2)


@pytest.mark.slow
def test_two_processes_share_a_log_and_no_training(
    tmp_path: Path, forking: ForkServerContext
) -> None:
    log, notes = tmp_path / "runs.jsonl", tmp_path / "notes"
    barrier = forking.Barrier(2)
    both = [forking.Process(target=finetuned.share, args=(log, notes, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(90)
        assert process.exitcode == 0
    done = [line.split() for line in notes.read_text().splitlines()]
    assert len({pid for pid, _, _ in done}) == 2
    assert sorted(map(tuple, (one[1:] for one in done))) == [
        (seed, level) for seed in ("0", "1") for level in ("0.0", "0.3", "0.8")
    ]
    counted = Counted()
    assert curve_of(log, train=counted) == curve_of()
    assert not counted.runs
    assert not [*tmp_path.glob("*.claim")]


@pytest.mark.slow
def test_what_a_killed_process_had_begun_is_done_by_another(
    tmp_path: Path, forking: ForkServerContext
) -> None:
    log = tmp_path / "runs.jsonl"
    process = forking.Process(target=finetuned.killed, args=(log,))
    process.start()
    process.join(90)
    assert process.exitcode == -9
    assert len(lines_of(log)) == 1
    counted = Counted()
    assert curve_of(log, train=counted) == curve_of()
    assert len(counted.runs) == 5


def test_what_is_refused_writes_nothing(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    first = curve_of(levels=[0.3], seeds=[0])
    for wrong in (
        {"dense": first, "settings": {"steps": 1}},
        {"pattern": "wanda"},
        {"seeds": [1, 1]},
    ):
        with pytest.raises(ConfigurationError):
            curve_of(log, **wrong)
        assert not log.exists()
