"""A training, every bit of it after every step, and where two trainings part."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsitywatch.bits import Leaf, detail, leaf, nested
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pruning.preserve import plain_state, preserve_rng
from sparsitywatch.shown import shown_name
from sparsitywatch.weights.names import clean_name

__all__ = ["STATE", "Difference", "Trace", "Training", "compare", "trace"]

#: What names of Python's own state begin with: attributes, closures, globals, generators held.
STATE = "state"


@dataclass(frozen=True)
class Training:
    """A training that has been built and not begun.

    Args:
        model: in whatever wrappers.
        optimizer: None if none can be seen; then ``watcher.step()`` is called after each step.
        step: does one whole step of the training, the optimizer's included. What it returns
            (a loss, say) is compared like the rest.
        others: by name what else has a ``state_dict()``: a scaler, a scheduler, a sampler.
    """

    model: nn.Module
    optimizer: Any
    step: Callable[[], Any]
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, made: object) -> Training:
        """What ``make_training()`` returned: (model, optimizer, step) or one more, others.

        Raises:
            ConfigurationError: it is something else; says which part and what it is.
        """
        if isinstance(made, cls):
            return made
        if not isinstance(made, tuple) or len(made) not in (3, 4):
            came = f"{len(made)} of them" if isinstance(made, tuple) else type(made).__name__
            raise ConfigurationError(
                "Expected `make_training()` to return (model, optimizer, step) or (model, "
                f"optimizer, step, others), got {came}."
            )
        training = cls(*made)
        for part, is_right, expected in (
            ("model", isinstance(training.model, nn.Module), "a torch.nn.Module"),
            ("optimizer", _has_state(training.optimizer, or_none=True), "an optimizer or None"),
            ("step", callable(training.step), "a function without arguments"),
            ("others", isinstance(training.others, Mapping), "a dict by name"),
        ):
            if not is_right:
                raise ConfigurationError(
                    f"Expected `{part}` from `make_training()` to be {expected}, "
                    f"got {type(getattr(training, part)).__name__}."
                )
        for name, other in training.others.items():
            if not _has_state(other):
                raise ConfigurationError(
                    f"Expected others[{name!r}] from `make_training()` to have a state_dict(), "
                    f"got {type(other).__name__}."
                )
        return training


def _has_state(thing: object, *, or_none: bool = False) -> bool:
    return callable(getattr(thing, "state_dict", None)) or (or_none and thing is None)


@dataclass(frozen=True)
class Trace:
    """What a training was, bit by bit.

    Args:
        digests: by name a hash of everything, before the first step and after each; the
            last ones are taken after the watch, if any, was closed.
        last: everything itself, at the end.
        seed: what the generators were seeded with.
    """

    digests: tuple[Mapping[str, int], ...] = field(repr=False)
    last: Mapping[str, Leaf] = field(repr=False)
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of training."""
        return len(self.digests) - 1


@dataclass(frozen=True)
class Difference:
    """One thing that two trainings do not share.

    Args:
        name: what it is, such as "parameter encoder.0.weight" or "torch generator".
        first_step: the step after which it was first seen; 0 is before the first step.
        detail: how much of it differs at the end.
    """

    name: str
    first_step: int
    detail: str

    def __repr__(self) -> str:
        return f"<Difference in {str(self)[:180]}>"

    def __str__(self) -> str:
        when = f"at step {self.first_step}" if self.first_step else "before the first step"
        return f"{shown_name(self.name)}: {self.detail}, first {when}"


def trace(
    make_training: Callable[[], Any],
    steps: int,
    seed: int = 0,
    attach: Callable[[Training], AbstractContextManager[Any]] | None = None,
) -> Trace:
    """Train from the seed on and keep what the training was after each step.

    The generators of torch (all devices), numpy and python are seeded before and put back
    afterwards, also after an exception.

    Args:
        make_training: builds everything from scratch, see ``Training``.
        steps: how often to call the training's ``step``.
        seed: for all generators.
        attach: puts what is to be tested on the training while it runs.

    Raises:
        ConfigurationError: ``make_training`` returned something else than a training.
    """
    with preserve_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 what user code draws from
        random.seed(seed)
        training = Training.of(make_training())
        with contextlib.ExitStack() as stack:
            watcher = None if attach is None else stack.enter_context(attach(training))
            returned = None
            digests = [_digests(training, returned)]
            for step in range(1, steps + 1):
                returned = training.step()
                if training.optimizer is None and watcher is not None:
                    watcher.step()
                if step < steps:
                    digests.append(_digests(training, returned))
        last = dict(_leaves(training, returned))
        digests.append({name: hash(bits) for name, bits in last.items()})
    return Trace(tuple(digests), last, seed)


def compare(expected: Trace, got: Trace) -> tuple[Difference, ...]:
    """What differs between two traces of as many steps, in the order in which it appeared.

    What differed in between is named even if it is equal at the end.
    """
    first_steps: dict[str, int] = {}
    for step, (one, other) in enumerate(zip(expected.digests, got.digests, strict=True)):
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                first_steps.setdefault(name, step)
    return tuple(
        Difference(name, step, detail(expected.last.get(name), got.last.get(name)))
        for name, step in first_steps.items()
    )


def _digests(training: Training, returned: Any) -> dict[str, int]:
    return {name: hash(bits) for name, bits in _leaves(training, returned)}


def _leaves(training: Training, returned: Any) -> Iterator[tuple[str, Leaf]]:
    """Everything that a watch could disturb, by name."""
    model, optimizer = training.model, training.optimizer
    names = _names(model, optimizer)
    for name, parameter in names.items():
        yield f"parameter {name}", leaf(parameter)
        yield f"gradient {name}", leaf(parameter.grad)
        yield f"requires_grad {name}", leaf(parameter.requires_grad)
    for raw, buffer in model.named_buffers():
        yield f"buffer {clean_name(raw)}", leaf(buffer)
    for name, module in model.named_modules():
        name = name or "of the model"
        yield f"train/eval flag {name}", leaf(module.training)
        yield f"attributes {name}", Leaf(" ".join(sorted(vars(module))))
    state = model.state_dict()
    yield "state_dict keys", Leaf(" ".join(state))
    extra = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
    yield from nested("state_dict", extra)
    if optimizer is not None:
        yield from nested("optimizer", _by_parameter(optimizer, names))
    for name, other in training.others.items():
        yield from nested(name, other.state_dict())
    yield from nested("returned by step()", returned)
    for name, value in plain_state(model):
        yield from nested(f"{STATE} {name}", value)
    yield "grad mode", leaf(torch.is_grad_enabled())
    yield from _generators()


def _names(model: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    """Parameters by name: the model's, and those that only the optimizer knows by number."""
    named: dict[str, torch.Tensor] = {clean_name(n): p for n, p in model.named_parameters()}
    known = {id(parameter) for parameter in named.values()}
    for number, parameter in enumerate(_of_optimizer(optimizer)):
        if id(parameter) not in known:
            named[f"{number} of the optimizer"] = parameter
    return named


def _of_optimizer(optimizer: Any) -> list[torch.Tensor]:
    """The optimizer's parameters in the order of the numbers in its state dict."""
    groups = getattr(optimizer, "param_groups", [])
    return [parameter for group in groups for parameter in group["params"]]


def _by_parameter(optimizer: Any, names: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The optimizer's state dict with names of parameters where it has their numbers."""
    name_of = {id(parameter): name for name, parameter in names.items()}
    name_of_number = dict(enumerate(name_of[id(p)] for p in _of_optimizer(optimizer)))
    state = dict(optimizer.state_dict())
    if isinstance(state.get("state"), Mapping):
        state["state"] = {name_of_number.get(key, key): v for key, v in state["state"].items()}
    return state


def _generators() -> Iterator[tuple[str, Leaf]]:
    yield "torch generator", leaf(torch.get_rng_state())
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            yield f"CUDA generator {index}", leaf(state)
    _, words, *position = np.random.get_state()  # noqa: NPY002
    yield "numpy generator", leaf(words)
    yield "numpy generator's position", Leaf(repr(position))
    _, state, gauss = random.getstate()
    yield "python generator", leaf(np.array(state))
    yield "python generator's next gauss", leaf(gauss)
