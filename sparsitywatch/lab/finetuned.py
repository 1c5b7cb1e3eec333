"""The curve of a model that is trained on after it was pruned: prune once, train, evaluate."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparsitywatch.errors import (
    ConfigurationError,
    MeasurementError,
    expect,
    expect_mapping,
    expect_whole,
    listed,
)
from sparsitywatch.evaluation.checks import check_forward
from sparsitywatch.lab.trainings import DoneTraining, TrainingLog, refuse_equal
from sparsitywatch.patterns.criteria import input_axes, inputs_on
from sparsitywatch.patterns.cuts import Weights
from sparsitywatch.patterns.pattern import Pattern, as_pattern
from sparsitywatch.patterns.selections import WORDS
from sparsitywatch.progress import Progress
from sparsitywatch.proxy.batches import Runnable, preserve_rng
from sparsitywatch.proxy.proxy import Proxy, drawn_from
from sparsitywatch.records import SparsityCurve
from sparsitywatch.records.curve import t_quantile
from sparsitywatch.records.difference import Difference
from sparsitywatch.redact import logger, printable
from sparsitywatch.sweeps import check_levels
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope, ScopeLike, named_parameters


@dataclass(frozen=True)
class FinetunedCurve(SparsityCurve):
    """The value at rising sparsity after the pruned model was trained on.

    Not to be compared with a zero-shot curve digit for digit: training makes up for a part of
    what pruning took.

    Args:
        sparsity, value, stderr, higher_is_better, level, num_examples, num_seen, unit: as of
            ``SparsityCurve``.
        seeds: of the trainings, length S.
        by_seed: the value of each training, [S][K], in the order of ``seeds`` and ``sparsity``.
        evaluation: "fine-tuned".
        by_example: the value of each example, [S, K, N], where ``evaluate`` gave these; else None.
        groups: what each example is from, [N], as ``finetuned_curve`` was told; else None.
        trainings, experiment: what the numbers are of.
    """

    seeds: tuple[int, ...] = ()
    by_seed: tuple[tuple[float, ...], ...] = ()
    evaluation: str = "fine-tuned"
    unit: str = "seed"
    by_example: np.ndarray | None = field(default=None, compare=False)
    groups: tuple[Any, ...] | None = None
    trainings: tuple[DoneTraining, ...] = field(default=(), compare=False)
    experiment: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def degrees_of_freedom(self) -> int | None:
        """Degrees of freedom of the standard errors, which come from the seeds and examples."""
        is_of_seeds = self.by_example is None and len(self.seeds) > 1
        return len(self.seeds) - 1 if is_of_seeds else super().degrees_of_freedom

    def values_at(self, level: float) -> np.ndarray:
        """Those at a level, for ``sw.Difference.paired``: [S, N], or [S, 1] of one number each."""
        for index, one in enumerate(self.level or ()):
            if math.isclose(one, level):
                of_seeds = np.array(self.by_seed)[:, index : index + 1]
                return of_seeds if self.by_example is None else self.by_example[:, index]
        raise ConfigurationError(f"Expected `level` to be one of {self.level}, got {level!r}.")

    def __repr__(self) -> str:
        num = len(self.seeds)
        return f"<FinetunedCurve over {num} seed{'s' if num != 1 else ''}, {super().__repr__()[1:]}"


@dataclass(frozen=True)
class TrainingRun:
    """Which training it is, for functions that take ``run``."""

    seed: int  # that the global generators were seeded with
    level: float  # the sparsity that was asked for; 0 is the dense model
    sparsity: float = math.nan  # the counted one; NaN until the model is pruned


def finetuned_curve(
    make_model: Callable[..., nn.Module],
    train: Callable[..., object],
    evaluate: Callable[..., ArrayLike],
    levels: Sequence[float],
    pattern: str | Pattern = "global",
    seeds: Sequence[int] = (0,),
    *,
    scope: ScopeLike = "blocks",
    higher_is_better: bool = True,
    proxy: Proxy | None = None,
    groups: Sequence[Any] | None = None,
    log: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    dense: FinetunedCurve | None = None,
    executor: Executor | None = None,
) -> FinetunedCurve:
    """Prune once at each level, train with the mask held fixed, evaluate; over several seeds.

    At every level the same model is made, with the same new layers, and sees the same data in
    the same order: the global generators of torch, numpy and python are seeded before
    ``make_model`` and before ``train``. What is zero once the model is pruned stays exactly zero
    and counts, what was zero before too, whatever the optimizer: its gradient is masked, and it is
    set to zero again after each step. The dense model, level 0, is trained as it is.

    Each function may take an argument named ``run`` beside its own: it has the training's
    ``.seed``, ``.level`` and counted ``.sparsity``. Whatever seeds itself needs ``run.seed``, such
    as transformers' ``TrainingArguments(seed=run.seed)``. Two seeds whose trained weights are the
    same are an error.

    Args:
        make_model: a new model with the pretrained weights, and new heads where there are some.
        train: trains it, in place. Everything random in it draws from the global generators, or
            is seeded by ``run.seed``.
        evaluate: what the trained model is worth: one number, such as its accuracy on held-out
            examples, or a list, array or tensor of one number for each of them. These are kept, and
            make intervals narrower: differences are then paired by example.
        levels: sparsities in [0, 1); the dense model, level 0, is always among them. Of N:M the
            ones that it has.
        pattern: as of ``Settings``.
        seeds: one training for each, at every level.
        scope: as of ``Settings``: which weights are pruned.
        higher_is_better: False if ``evaluate`` gives a loss.
        proxy: whose batches give the inputs of the layers, for patterns that look at them.
        groups: what each example is from, such as its file: those of one count together.
        log: a file of one line for each training; the same call goes on from what is there, and
            may add seeds and levels. Several processes may share it: each training is done once.
            A log of another pattern, model, proxy, scope or other settings is refused.
        settings: what else the trainings depend on, such as ``{"steps": 100, "lr": 2e-5}``:
            numbers, texts, lists and dicts of them. Only kept in ``log``, to tell it from others.
        dense: a curve of another pattern, whose dense trainings are taken over.
        executor: who trains, such as a ``concurrent.futures.ProcessPoolExecutor``; it gets the
            functions, so that they must be defined at the top of a module. By default this process.

    Returns:
        The curve of the means over seeds. The standard errors are those of the differences to
        the dense model of the same seed, and of the same examples; None with one seed and without
        values of examples. Of seeds and examples together they are such that the interval of 90 %
        is that of ``sw.Difference.paired``.

    Raises:
        ConfigurationError: an argument cannot be used, or ``make_model`` does not give the same
            model twice.
        StateError: ``log`` is no such file, or one of another experiment.
        MeasurementError: a removed weight was not zero after the training, or two seeds gave the
            same weights.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, sections 3 and 4 (figures 2 to 6).
    """
    functions = {"make_model": make_model, "train": train, "evaluate": evaluate}
    for name, function in functions.items():
        expect(callable(function), name, "a function", function)
    chosen = as_pattern(pattern)
    if chosen.needs_inputs and proxy is None:
        raise ConfigurationError(
            f"Expected a `proxy` for the pattern {chosen.name!r}, which looks at the inputs of "
            "the layers on its batches, got None."
        )
    at = _levels(levels, chosen)
    seeds = _seeds(seeds)
    is_good = executor is None or isinstance(executor, Executor)
    what = "a concurrent.futures.Executor, not of threads, which share the global generators"
    expect(is_good and not isinstance(executor, ThreadPoolExecutor), "executor", what, executor)
    work = _Work(functions, chosen, scope, proxy)
    with preserve_rng():
        models = {seed: work.identify(seed) for seed in seeds}
    experiment = work.experiment(settings)
    given = _dense_of(dense, experiment["settings"], models)
    runs = TrainingLog(None if log is None else Path(log), experiment)
    for one in runs.found.values():
        if one.seed in models:
            runs.expect_same(f"dense model of seed {one.seed}", models[one.seed], one.dense)
    for one in given:
        if (one.seed, one.level) not in runs.found:
            runs.add(one)
    wanted = [(seed, level) for seed in seeds for level in at]
    progress = Progress("trainings")
    for wait in (False, True):  # at last for those that other processes have begun
        missing = [key for key in wanted if key not in runs.found]
        jobs = [(*key, models[key[0]]) for key in missing]
        for training in _done(executor, functools.partial(work, runs, wait=wait), jobs):
            runs.found[training.seed, training.level] = training
            progress.show(sum(key in runs.found for key in wanted), len(wanted))
    progress.clear()
    refuse_equal([runs.found[key] for key in wanted], at, log=runs.file)
    return _curve(runs, seeds, at, groups, higher_is_better=higher_is_better)


def _levels(levels: Sequence[float], pattern: Pattern) -> list[float]:
    """The levels, rising from 0; a ConfigurationError for one that the pattern has not."""
    check_levels(levels)
    at = sorted({0.0, *map(float, levels)})
    if pattern.levels is not None:
        for level in at[1:]:
            is_one = any(math.isclose(level, only) for only in pattern.levels)
            what = f"of those that the pattern {pattern.name!r} has, {sorted(pattern.levels)}"
            expect(is_one, "levels", what, level)
    return at


def _seeds(seeds: Sequence[int]) -> list[int]:
    found = listed("seeds", seeds, "a list of whole numbers")
    expect(found, "seeds", "at least one", found)
    for index, seed in enumerate(found):
        expect_whole(f"seeds[{index}]", seed, 0)
    numbers = [int(seed) for seed in found]
    expect(len(set(numbers)) == len(numbers), "seeds", "different from each other", numbers)
    return numbers


def _dense_of(
    dense: FinetunedCurve | None, settings: Any, models: Mapping[int, str]
) -> list[DoneTraining]:
    """The dense trainings of a curve, refused if they are of another model or of other settings."""
    if dense is None:
        return []
    is_curve = isinstance(dense, FinetunedCurve) and bool(dense.trainings)
    expect(is_curve, "dense", "a curve of sw.finetuned_curve", dense)
    had = dense.experiment["settings"]
    expect(had == settings, "dense", f"a curve of the same `settings` {settings!r}", had)
    found = [one for one in dense.trainings if one.level == 0.0 and one.seed in models]
    of = {one.seed: one.dense for one in found}
    now = {seed: models[seed] for seed in of}
    expect(of == now, "dense", f"a curve of the dense models {now!r}", of)
    return found


# ------------------------------------------------------------------ one training


@dataclass
class _Work:
    """How a training is done, here or by a worker, which gets a copy of this."""

    functions: Mapping[str, Callable[..., Any]]
    pattern: Pattern
    scope: ScopeLike
    proxy: Proxy | None
    _scope_hash: str = ""
    #: The model that was made last, here: each training must begin with one of its own.
    _last: weakref.ref[nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_last": None}

    def identify(self, seed: int) -> str:
        """The fingerprint of a seed's dense model, which is made for that."""
        model = self._make(TrainingRun(seed, 0.0))
        decided = Scope.of(unwrap_model(model), self.scope)
        named = f"{len(decided.names)} tensors, {decided.hash}"
        if self._scope_hash not in ("", named):
            raise ConfigurationError(
                f"Expected `make_model` to give models with the same weights in scope, got {named} "
                f"of seed {seed} after {self._scope_hash}."
            )
        self._scope_hash = named
        return _fingerprint(model)

    def _make(self, run: TrainingRun) -> nn.Module:
        _seed(run.seed)
        model: nn.Module = self._call("make_model", run=run)
        expect(isinstance(model, nn.Module), "make_model", "a function that gives a model", model)
        if self._last is not None and self._last() is model:
            raise ConfigurationError(
                "Expected `make_model` to give a new model each time, got the same object, which "
                "is pruned and trained. Return a copy, such as copy.deepcopy(model)."
            )
        self._last = weakref.ref(model)
        return model

    def _call(self, name: str, *args: Any, run: TrainingRun) -> Any:
        """A function's answer; it is told which training it is if it takes ``run``."""
        function = self.functions[name]
        try:
            takes_run = "run" in inspect.signature(function).parameters
        except (TypeError, ValueError):  # of a builtin nothing is known
            takes_run = False
        return function(*args, run=run) if takes_run else function(*args)

    def __call__(
        self, runs: TrainingLog, seed: int, level: float, dense: str, *, wait: bool
    ) -> DoneTraining | None:
        """Do one training, unless another process does; then its, with ``wait``."""
        with preserve_rng(), runs.claimed(seed, level, wait=wait) as is_ours:
            if not is_ours:
                return None
            if (seed, level) not in runs.found:
                runs.add(self._train(TrainingRun(seed, level), dense))
            return runs.found[seed, level]

    def _train(self, run: TrainingRun, dense: str) -> DoneTraining:
        model = self._make(run)
        if (came := _fingerprint(model)) != dense:
            raise ConfigurationError(
                f"Expected `make_model` to give the same model for seed {run.seed} each time, got "
                f"one of other weights at level {run.level:g} ({came}, not {dense}). What it draws "
                "must come from the global generators, and the weights that it begins with must "
                "not be those that are trained: return a copy."
            )
        inner = unwrap_model(model)
        sparsity, masks = self._pruned(inner, run)
        run = TrainingRun(run.seed, run.level, sparsity)
        pruned = _fingerprint(model)
        _seed(run.seed)
        before = _drawn()
        with _held(inner, masks):
            self._call("train", model, run=run)
        drawn, trained = _drawn(), _fingerprint(model)
        examples = _numbers(self._call("evaluate", model, run=run))
        value = float(np.mean(examples))
        logger.info("seed %d, sparsity %.3f: %.6g", run.seed, sparsity, value)
        return DoneTraining(
            seed=run.seed,
            level=run.level,
            sparsity=sparsity,
            value=value,
            examples=examples if len(examples) > 1 else (),
            dense=dense,
            trained=trained,
            is_changed=trained != pruned,
            drawn="" if drawn == before else drawn,
        )

    def _pruned(self, model: nn.Module, run: TrainingRun) -> tuple[float, dict[str, torch.Tensor]]:
        """Prune a model in place; its counted sparsity, and what stays zero, by name."""
        if run.level == 0.0:  # the dense model, whatever is zero in it
            return 0.0, {}
        parameters = Scope.of(model, self.scope).parameters(model)
        dense = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        axes, proxy = input_axes(model, list(dense)), self.proxy

        def pruned(fresh: Callable[[], Runnable] | None = None) -> dict[str, torch.Tensor]:
            inputs = None
            if fresh is not None and proxy is not None:
                inputs, _ = inputs_on(proxy, fresh(), list(dense), self.pattern, fresh)
            weights = Weights.of(dense, input_axes=axes, seed=run.seed, inputs=inputs)
            (cut,) = self.pattern.cuts(weights, [run.level])
            found = {name: torch.empty_like(tensor) for name, tensor in dense.items()}
            for name, out in found.items():
                cut.prune(name, dense[name], out=out)
            return found

        with torch.no_grad():
            if self.pattern.needs_inputs and proxy is not None:
                found = check_forward(model, proxy.value, pruned, proxy.ranks)
            else:
                found = pruned()
            for name, parameter in parameters.items():
                parameter.copy_(found[name])
        masks = {name: tensor == 0 for name, tensor in found.items()}
        removed = sum(int(mask.sum()) for mask in masks.values())
        return removed / sum(mask.numel() for mask in masks.values()), masks

    def experiment(self, settings: Mapping[str, Any] | None) -> Any:
        """What trainings are of, as it comes back from a file."""
        expect_mapping("settings", settings or {}, "numbers and texts by name")
        made_with = {
            name: value
            for name, value in getattr(self.pattern, "__dict__", {}).items()
            if isinstance(value, int | float | str | Mapping)
            and not name.startswith("_")
            and name != "memory_gb"  # which changes no mask
        }
        scope = "a function" if callable(self.scope) else self.scope
        found = {
            "pattern": made_with | {"name": self.pattern.name},
            "scope": {"asked": scope, "selected": self._scope_hash},
            "proxy": None if self.proxy is None else self.proxy.hash,
            "settings": dict(settings or {}),
        }
        try:
            return json.loads(json.dumps(found))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"Expected `settings` to be numbers, texts, lists and dicts of them, got: {error}."
            ) from error


def _done(
    executor: Executor | None,
    do: Callable[..., DoneTraining | None],
    jobs: Sequence[tuple[Any, ...]],
) -> Iterator[DoneTraining]:
    """The trainings that are missing, as they are done; not those that other processes do."""
    if executor is None:
        yield from filter(None, itertools.starmap(do, jobs))
        return
    futures = [executor.submit(do, *one) for one in jobs]
    try:
        yield from filter(None, (future.result() for future in as_completed(futures)))
    finally:
        for future in futures:
            future.cancel()


def _numbers(values: Any) -> tuple[float, ...]:
    """What was evaluated; a MeasurementError if it is no number, nor one for each example."""
    given = values.detach().cpu().double() if isinstance(values, torch.Tensor) else values
    given = "" if given is None else given  # numpy makes a number of nothing
    try:
        found = np.atleast_1d(np.asarray(given, dtype=float))
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 1 or not len(found):
        raise MeasurementError(
            "Expected `evaluate` to return a number, or a list of one for each example, got "
            f"{type(values).__name__} {values!r:.80}."
        )
    return tuple(found.tolist())


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 what user code draws from
    torch.manual_seed(seed)


def _drawn() -> str:
    """What tells the states of the global generators apart."""
    return hashlib.sha256(b"".join(drawn_from())).hexdigest()[:16]


def _fingerprint(model: nn.Module) -> str:
    """What tells a model's weights and buffers from others: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for name, tensor in sorted(unwrap_model(model).state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(plain.view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


@contextlib.contextmanager
def _held(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Keep what is removed at zero while the model is trained; a MeasurementError if it is not."""
    named = dict(named_parameters(model))
    # bits of what is kept: "and" is as exact as masked_fill_, and on a CPU eight times as fast
    held = [(named[name], mask.to(torch.int8) - 1) for name, mask in masks.items() if mask.any()]

    def zero(*_: object) -> None:
        for parameter, kept in held:
            _clear(parameter, kept)

    with contextlib.ExitStack() as stack:
        for parameter, kept in held:
            if parameter.requires_grad:  # so that its momentum stays zero too
                hook = lambda one, kept=kept: _clear(one.grad, kept)  # noqa: E731
                handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
        stack.callback(register_optimizer_step_post_hook(zero).remove)
        yield
    named = dict(named_parameters(model))
    for name, mask in masks.items():
        trained = named.get(name)
        if trained is None or bool(((trained != 0) & mask.to(trained.device)).any()):
            came = "it is gone" if trained is None else "some are not"
            raise MeasurementError(
                f"Expected the removed weights of {printable(name)!r} to be zero after `train`, "
                f"but {came}. Train the parameters of the model that was given, with an optimizer "
                "of torch.optim."
            )


def _clear(tensor: torch.Tensor, kept: torch.Tensor) -> None:
    """Set all bits of some numbers to zero, where ``kept``, int8, is 0 and not -1."""
    tensor.detach().view(WORDS[tensor.itemsize]).bitwise_and_(kept.to(tensor.device))


def _curve(
    runs: TrainingLog,
    seeds: Sequence[int],
    levels: Sequence[float],
    groups: Sequence[Any] | None,
    *,
    higher_is_better: bool,
) -> FinetunedCurve:
    """The means over seeds, with the errors of the paired differences."""
    found = [[runs.found[seed, level] for level in levels] for seed in seeds]
    given = [one.examples or (one.value,) for of_seed in found for one in of_seed]
    if len(sizes := {len(one) for one in given}) > 1:
        raise MeasurementError(
            "Expected `evaluate` to give as many numbers after each training, got "
            f"{' and '.join(map(str, sorted(sizes)))}. Give another `log` for other examples."
        )
    values = np.array(given).reshape(len(seeds), len(levels), -1)  # [S, K, N]
    num = values.shape[2]
    by_example = values if num > 1 else None
    means = np.array([[one.value for one in of_seed] for of_seed in found])
    # seeds that agree may be alike by chance: as much as some level or the dense model is off
    off = np.abs(means - means[:, :1]).max(initial=0.0)
    most = float(off or np.abs(means).max()) if by_example is None else None
    losses = [
        Difference.paired(values[:, 0], values[:, k], None if num == 1 else groups, most=most)
        for k in range(1, len(levels))
    ]
    stderr = [0.0, *(one.stderr for one in losses)]
    num_groups = num if groups is None else len(set(groups))
    if by_example is not None:  # one number of degrees for all: the intervals stay what they are
        exact = t_quantile(0.95, num_groups - 1)
        stderr = [0.0, *((one.interval(0.9)[1] - one.mean) / exact for one in losses)]
    return FinetunedCurve(
        sparsity=[float(np.mean([of_seed[k].sparsity for of_seed in found]))
                  for k in range(len(levels))],
        value=means.mean(0).tolist(),
        stderr=None if len(seeds) == 1 and num == 1 else stderr,
        higher_is_better=higher_is_better,
        level=list(levels),
        num_examples=None if by_example is None else num_groups,
        unit="seed" if by_example is None else "example" if groups is None else "group",
        seeds=tuple(seeds),
        by_seed=tuple(map(tuple, means.tolist())),
        by_example=by_example,
        groups=None if groups is None else tuple(groups),
        trainings=tuple(one for of_seed in found for one in of_seed),
        experiment=runs.experiment,
    )  # fmt: skip
