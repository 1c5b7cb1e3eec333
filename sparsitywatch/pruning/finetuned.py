"""The curve of a model that is trained on after it was pruned: prune once, train, evaluate."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparsitywatch.errors import (
    ConfigurationError,
    MeasurementError,
    StateError,
    expect,
    expect_mapping,
    expect_whole,
    listed,
)
from sparsitywatch.progress import Progress
from sparsitywatch.pruning.batches import preserve_rng
from sparsitywatch.pruning.checks import check_forward
from sparsitywatch.pruning.criteria import input_axes, inputs_on
from sparsitywatch.pruning.model_copy import Runnable
from sparsitywatch.pruning.patterns import Cut, Inputs, Pattern, Weights, as_pattern
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.pruning.selections import WORDS
from sparsitywatch.pruning.sweeps import check_levels, standard_error
from sparsitywatch.records import SparsityCurve
from sparsitywatch.redact import printable
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope, ScopeLike, named_parameters

_logger = logging.getLogger("sparsitywatch")


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
    """

    seeds: tuple[int, ...] = ()
    by_seed: tuple[tuple[float, ...], ...] = ()
    evaluation: str = "fine-tuned"
    unit: str = "seed"

    @property
    def degrees_of_freedom(self) -> int | None:
        """Degrees of freedom of the standard errors, which come from the seeds."""
        return len(self.seeds) - 1 if len(self.seeds) > 1 else super().degrees_of_freedom

    def __repr__(self) -> str:
        num = len(self.seeds)
        return f"<FinetunedCurve over {num} seed{'s' if num != 1 else ''}, {super().__repr__()[1:]}"


def finetuned_curve(
    make_model: Callable[[], nn.Module],
    train: Callable[[nn.Module], object],
    evaluate: Callable[[nn.Module], float],
    levels: Sequence[float],
    pattern: str | Pattern = "global",
    seeds: Sequence[int] = (0,),
    *,
    scope: ScopeLike = "blocks",
    higher_is_better: bool = True,
    proxy: Proxy | None = None,
    log: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> FinetunedCurve:
    """Prune once at each level, train with the mask held fixed, evaluate; over several seeds.

    At every level the same model is made, with the same new layers, and sees the same data in
    the same order: the global generators of torch, numpy and python are seeded before
    ``make_model`` and before ``train``. What was removed stays exactly zero, whatever the
    optimizer: its gradient is masked, and it is set to zero again after each step.

    Args:
        make_model: a new model with the pretrained weights, and new heads where there are some.
        train: trains it, in place. Everything random in it draws from the global generators.
        evaluate: what the trained model is worth, such as its accuracy on held-out examples.
        levels: sparsities in [0, 1); the dense model, level 0, is always among them.
        pattern: as of ``Settings``.
        seeds: one training for each, at every level.
        scope: as of ``Settings``: which weights are pruned.
        higher_is_better: False if ``evaluate`` gives a loss.
        proxy: whose batches give the inputs of the layers, for patterns that look at them.
        log: a file of one line for each training; the same call goes on from what is there, and
            may add seeds. A log of another pattern, of other levels or settings is refused.
        settings: what else the trainings depend on, such as ``{"steps": 100, "lr": 2e-5}``:
            numbers, texts, lists and dicts of them. Only kept in ``log``, to tell it from others.

    Returns:
        The curve of the means over seeds. The standard errors are those of the differences to
        the dense model of the same seed; None with one seed.

    Raises:
        ConfigurationError: an argument cannot be used.
        StateError: ``log`` is no such file, or one of other settings.
        MeasurementError: a removed weight was not zero after the training.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, sections 3 and 4 (figures 2 to 6).
    """
    for name, function in (("make_model", make_model), ("train", train), ("evaluate", evaluate)):
        expect(callable(function), name, "a function", function)
    check_levels(levels)
    seeds = listed("seeds", seeds, "a list of whole numbers")
    expect(seeds, "seeds", "at least one", seeds)
    for index, seed in enumerate(seeds):
        expect_whole(f"seeds[{index}]", seed, 0)
    chosen = as_pattern(pattern)
    at = sorted({0.0, *map(float, levels)})
    experiment = _experiment(chosen, scope, at, seeds, settings)
    runs = _Runs(None if log is None else Path(log), experiment)
    wanted = [(seed, level) for seed in seeds for level in at]
    progress = Progress("trainings")
    with preserve_rng():
        for done, (seed, level) in enumerate(wanted, start=1):
            if (seed, level) in runs.found:
                continue
            _seed(seed)
            model = make_model()
            sparsity, masks = _pruned(unwrap_model(model), chosen, level, scope, seed, proxy)
            _seed(seed)
            with _held(unwrap_model(model), masks):
                train(model)
            runs.add(seed, level, sparsity, float(evaluate(model)))
            progress.show(done, len(wanted))
    progress.clear()
    return _curve(runs.found, seeds, at, higher_is_better=higher_is_better)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 what user code draws from
    torch.manual_seed(seed)


def _pruned(
    model: nn.Module,
    pattern: Pattern,
    level: float,
    scope: ScopeLike,
    seed: int,
    proxy: Proxy | None,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Prune a model in place; its counted sparsity, and what is removed, by name."""
    parameters = Scope.of(model, scope).parameters(model)
    dense = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    axes, inputs = input_axes(model, list(dense)), _inputs(model, pattern, list(dense), proxy)
    weights = Weights.of(dense, input_axes=axes, seed=seed, inputs=inputs)
    cut: Cut
    (cut,) = pattern.cuts(weights, [level])
    masks = {}
    with torch.no_grad():
        for name, parameter in parameters.items():
            cut.prune(name, dense[name], out=parameter.data)
            # a weight that was zero already is not held: training may use it
            masks[name] = (parameter == 0) & (dense[name] != 0)
    return cut.sparsity, masks


def _inputs(
    model: nn.Module, pattern: Pattern, names: Sequence[str], proxy: Proxy | None
) -> Inputs | None:
    if not pattern.needs_inputs:
        return None
    if proxy is None:
        raise ConfigurationError(
            f"Expected a `proxy` for the pattern {pattern.name!r}, which looks at the inputs of "
            "the layers on its batches, got None."
        )

    def run(fresh: Callable[[], Runnable]) -> Inputs:
        return inputs_on(proxy, fresh(), names, pattern)[0]

    return check_forward(model, proxy.value, run, proxy.ranks)


@contextlib.contextmanager
def _held(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Keep what is removed at zero while the model is trained; a MeasurementError if it is not."""
    named = dict(named_parameters(model))
    # bits of what is kept: "and" is as exact as masked_fill_, and on a CPU eight times as fast
    held = [(named[name], mask.to(torch.int8) - 1) for name, mask in masks.items() if mask.any()]

    def zero(*_: object) -> None:
        for parameter, kept in held:
            _clear(parameter, kept)

    def zero_gradient(parameter: torch.Tensor, kept: torch.Tensor) -> None:
        if parameter.grad is not None:
            _clear(parameter.grad, kept)

    with contextlib.ExitStack() as stack:
        for parameter, kept in held:
            if parameter.requires_grad:  # so that its momentum stays zero too
                hook = functools.partial(zero_gradient, kept=kept)
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


def _experiment(
    pattern: Pattern,
    scope: ScopeLike,
    levels: Sequence[float],
    seeds: Sequence[int],
    settings: Mapping[str, Any] | None,
) -> Any:
    """What trainings are of, as it comes back from a file."""
    expect_mapping("settings", settings or {}, "numbers and texts by name")
    made_with = {
        name: value
        for name, value in getattr(pattern, "__dict__", {}).items()
        if isinstance(value, int | float | str) and not name.startswith("_")
    }
    found = {
        "pattern": made_with | {"name": pattern.name},
        "scope": "a function" if callable(scope) else scope,
        "levels": levels,
        "seeds": [int(seed) for seed in seeds],
        "settings": dict(settings or {}),
    }
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"Expected `settings` to be numbers, texts, lists and dicts of them, got: {error}."
        ) from error


class _Runs:
    """The trainings that are done, by seed and level; in a file too, under what they are of."""

    def __init__(self, file: Path | None, begun: Mapping[str, Any]) -> None:
        self._file = file
        self.found: dict[tuple[int, float], tuple[float, float]] = {}
        if file is None:
            return
        text = file.read_bytes() if file.exists() else b""
        *lines, rest = text.split(b"\n")
        if rest:  # a kill came while it was written
            file.write_bytes(text[: len(text) - len(rest)])
        if not lines:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._write(begun)
            return
        self._check(self._read(1, lines[0], dict), begun)
        for number, line in enumerate(lines[1:], start=2):
            self.found |= self._read(number, line, _run_of)

    def _read(self, number: int, line: bytes, read: Callable[[Any], Any]) -> Any:
        try:
            return read(json.loads(line))
        except (ValueError, LookupError, TypeError) as error:
            what = "what it is of" if number == 1 else "a training"
            raise StateError(
                f"Expected {what} in line {number} of `log` {str(self._file)!r}, got {error!r}."
            ) from error

    def _check(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to go on with anything else; seeds may be added."""
        for name, given in now.items():
            had = then.get(name)
            is_added_to = name == "seeds" and isinstance(had, list) and set(had) <= set(given)
            if had == given or is_added_to:
                continue
            raise StateError(
                f"Expected `log` {str(self._file)!r} to be of `{name}` {given!r}, got one that was "
                f"begun with {had!r}. Give it the same ones (seeds may be added), or each "
                "experiment a file of its own."
            )

    def add(self, seed: int, level: float, sparsity: float, value: float) -> None:
        self.found[seed, level] = sparsity, value
        _logger.info("sparsitywatch: seed %d, sparsity %.3f: %.6g", seed, sparsity, value)
        self._write({"seed": seed, "level": level, "sparsity": sparsity, "value": value})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _run_of(line: Mapping[str, Any]) -> dict[tuple[int, float], tuple[float, float]]:
    return {(line["seed"], line["level"]): (line["sparsity"], line["value"])}


def _curve(
    found: Mapping[tuple[int, float], tuple[float, float]],
    seeds: Sequence[int],
    levels: Sequence[float],
    *,
    higher_is_better: bool,
) -> FinetunedCurve:
    """The means over seeds, with the errors of the paired differences."""
    values = np.array([[found[seed, level][1] for level in levels] for seed in seeds])
    stderr = None
    if len(seeds) > 1:
        differences = values - values[:, :1]
        # seeds that agree may be alike by chance: as much as some level or the dense model is off
        most = float(np.abs(differences).max(initial=0.0) or np.abs(values).max())
        stderr = [0.0, *(standard_error(column, most, most) for column in differences.T[1:])]
    return FinetunedCurve(
        sparsity=[float(np.mean([found[s, level][0] for s in seeds])) for level in levels],
        value=values.mean(0).tolist(),
        stderr=stderr,
        higher_is_better=higher_is_better,
        level=list(levels),
        seeds=tuple(seeds),
        by_seed=tuple(map(tuple, values.tolist())),
    )
