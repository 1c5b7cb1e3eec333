"""Whether weight decay that a param group states is in its steps, by some of them worked out again.

Of some weights of each matrix it is kept what they, their gradient and the optimizer's state were
before a step, and after. Where these explain the step to rounding, least squares say how much of
each weight itself went, at once or by way of the state. Arrays are [N], by weight.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sparsitywatch.weights.sharded import local_of
from sparsitywatch.weights.snapshot import float64_of

#: Matrices of each param group that are looked at, and weights of each.
_MATRICES, _WEIGHTS = 64, 512
#: Steps in a row that have to agree: some optimizers decay at every second one, or fourth. And
#: those that are looked at in all, where they do not tell.
_AGREE, _TRIES = 4, 16
#: What explains a step leaves so many roundings of it, root mean square.
_EXPLAINED = 4.0
#: Less than this share of the decay that is stated is none, and from the other one on it is some.
_NONE, _SOME = 0.1, 0.5
#: A fit is trusted to so many of its standard errors.
_ERRORS = 4.0

_Parts = Mapping[str, torch.Tensor]
_WEIGHT, _GRADIENT = "the weights", "the gradient"  # beside names of an optimizer's state


class Look(NamedTuple):
    """Some weights of one matrix before a step, and after."""

    name: str
    lr: float
    weight_decay: float
    betas: Sequence[float]
    eps: float
    before: _Parts  # with the gradient
    after: _Parts = {}  # noqa: RUF012 never written to
    steps: torch.Tensor | float = 0.0  # of the optimizer for it, with this one


class OneStep:
    """Looks at matrices around steps, and says later which of them do not decay as is stated."""

    def __init__(self) -> None:
        self._begun: dict[
            int, list[tuple[weakref.ref[torch.Tensor], Look]]
        ] = {}  # by optimizers' ids
        self._looks: list[Look] = []  # what is not told yet
        self._without: dict[str, int] = {}  # steps without decay; of one with it they are over
        self._left = 0  # steps to look at before the next snapshot
        self._num_tries = 0

    @property
    def not_decayed(self) -> frozenset[str]:
        """Names of what was found, in the model."""
        return frozenset(name for name, num in self._without.items() if num == _AGREE)

    def waits(self, *, is_due: bool) -> bool:
        """Whether to look at the next step; where a snapshot is due, at some from now on."""
        if is_due:
            self._left = min(_AGREE, _TRIES - self._num_tries)
        return self._left > 0

    def begin(self, optimizer: torch.optim.Optimizer, names: Mapping[int, Sequence[str]]) -> None:
        """It is about to step on tensors that have names in the model, by id."""
        found = []
        for group in optimizer.param_groups if self._left > 0 else ():
            lr, decay = group.get("lr", 0.0), group.get("weight_decay", 0.0)
            if any(torch.is_tensor(one) and not one.is_cpu for one in (lr, decay)):
                continue  # it would be waited for
            held = [(p, names.get(id(p), ())) for p in group["params"]]
            asked = [(p, n[0]) for p, n in held if n and self._is_asked(p, n[0], float(lr * decay))]
            betas, eps = group.get("betas", ()), group.get("eps", 0.0)
            for tensor, name in asked[:: len(asked) // (_MATRICES + 1) + 1]:
                before = {**_parts(optimizer, tensor), _GRADIENT: _some(tensor.grad)}
                found.append(
                    (weakref.ref(tensor), Look(name, float(lr), float(decay), betas, eps, before))
                )
        self._begun = {id(optimizer): found}

    def _is_asked(self, tensor: torch.Tensor, name: str, decay: float) -> bool:
        """Whether it is a matrix of which nothing is known, and a step may tell."""
        if tensor.dim() < 2 or not tensor.is_floating_point():
            return False
        resolved = _NONE * decay * math.sqrt(_WEIGHTS) > _ERRORS * torch.finfo(tensor.dtype).eps
        is_known = self._without.get(name, 0) >= _AGREE
        grad = tensor.grad
        return resolved and not is_known and grad is not None and grad.layout is torch.strided

    def end(self, optimizer: torch.optim.Optimizer) -> None:
        """It has stepped."""
        begun = self._begun.pop(id(optimizer), None)
        if begun is None:
            return
        self._num_tries += bool(begun)
        self._left -= 1
        for ref, look in begun:
            if (tensor := ref()) is None:
                continue
            steps = optimizer.state.get(tensor, {}).get("step", 0.0) + 0  # it counts in place
            self._looks.append(look._replace(after=_parts(optimizer, tensor), steps=steps))

    def tell(self) -> None:
        """Work out the steps that were looked at."""
        looks, self._looks = self._looks, []
        for look in looks:
            is_so, num = decays(look), self._without.get(look.name, 0)
            if is_so is not None and num < _AGREE:
                self._without[look.name] = _AGREE + 1 if is_so else num + 1


def _some(tensor: torch.Tensor) -> torch.Tensor:
    flat = local_of(tensor).detach().reshape(-1)
    return flat[:: len(flat) // (_WEIGHTS + 1) + 1].clone()


def _parts(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some weights, and what the optimizer's state has for these."""
    state = optimizer.state.get(tensor, {})  # .get: a defaultdict grows by being asked
    alike = {n: x for n, x in state.items() if torch.is_tensor(x) and x.shape == tensor.shape}
    return {name: _some(x) for name, x in {**alike, _WEIGHT: tensor}.items()}


def _numbers(parts: _Parts) -> dict[str, np.ndarray]:
    """The same in float64."""
    together = torch.cat([*parts.values()]).cpu()  # waits for the device, once
    return dict(zip(parts, float64_of(together).reshape(len(parts), -1), strict=True))


@np.errstate(all="ignore")  # what is not finite explains nothing
def decays(look: Look) -> bool | None:
    """Whether the weights lose what the group states of themselves; None where it cannot tell."""
    before, after = map(_numbers, (look.before, look.after))
    weights, gradient = before.pop(_WEIGHT), before.pop(_GRADIENT)
    now, eps = after.pop(_WEIGHT), torch.finfo(look.before[_WEIGHT].dtype).eps
    # what is nowhere below zero is a mean of squares
    squares = [state for state in after.values() if not (state < 0.0).any()]
    means = {name: state for name, state in after.items() if (state < 0.0).any()}
    count, second = float(look.steps), look.betas[1] if len(look.betas) > 1 else 0.0
    biases = {1.0, math.sqrt(1.0 - second**count)} if 0.0 < second < 1.0 and count else {1.0}
    by = [1.0, *(np.sqrt(square) + look.eps * bias for square in squares for bias in biases)]
    steps = [mean / size for mean in (gradient, *means.values()) for size in by]
    first = look.betas[0] if look.betas else 0.0  # Lion's steps are signs (arXiv:2302.06675)
    steps += [np.sign(first * before[n] + (1.0 - first) * gradient) for n in means if n in before]
    fits = [_fitted(now - weights, [weights, *steps], eps * np.maximum(abs(weights), abs(now)))]
    for name, mean in means.items():
        was = before.get(name, np.zeros_like(mean))
        rounding = eps * np.maximum(abs(was), abs(mean))
        fits.append(_fitted(mean, [weights, gradient, was], rounding))
    told = [fit for fit in fits if fit is not None]
    if len(told) < len(fits):
        return None
    units = [look.lr, *(abs(fit[0][1]) for fit in told[1:])]
    stated = look.weight_decay * np.array(units)
    found, errors = np.array([(abs(fit[0][0]), _ERRORS * fit[1]) for fit in told]).T
    if (found - errors >= _SOME * stated).any():
        return True
    return False if (found + errors <= _NONE * stated).all() else None


def _fitted(
    target: np.ndarray, columns: Sequence[np.ndarray], rounding: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """Least squares' coefficients, and the first one's standard error; None if not explained."""
    is_there = rounding > 0.0
    rows = (np.stack(columns, axis=1) / rounding[:, None])[is_there]
    aims = (target / rounding)[is_there]
    sizes = np.linalg.norm(rows, axis=0)
    if len(rows) <= 2 * len(columns) or not (np.isfinite(sizes).all() and np.isfinite(aims).all()):
        return None
    rows = rows / np.where(sizes > 0.0, sizes, 1.0)
    inverse = np.linalg.pinv(rows)
    solution = inverse @ aims
    left = np.linalg.norm(aims - rows @ solution) / math.sqrt(len(rows) - len(columns))
    if not left <= _EXPLAINED or not sizes[0] > 0.0:
        return None
    error = max(left, 0.5) * np.linalg.norm(inverse[0]) / sizes[0]
    return solution / np.where(sizes > 0.0, sizes, 1.0), float(error)
