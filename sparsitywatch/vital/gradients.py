"""Who trains parameters, what the gradients of some are, and what their optimizer keeps of them.

Ranks that hold parts of the parameters say together what one process would say of the whole: each
looks at what it holds, and the values of the sampled weights are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch

from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.weights.clock import Training, group_membership, stepped_on
from sparsitywatch.weights.sharded import kept_for
from sparsitywatch.weights.snapshot import SampleIndex, float64_of

#: Who may train a parameter. Where ranks differ the last one holds: on each of them an optimizer
#: may step on some tensors only.
_ROLES = ("frozen", "none", "unknown", "other", "master", "own")
#: What an optimizer's means of gradients say of them; where ranks differ the last one holds.
_RECALLED = ("unknown", "zero", "some")
#: Names under which optimizers keep a mean of the gradients.
_MEANS = ("exp_avg", "momentum_buffer")
#: Parts of names under which they keep what a weight's own dtype cannot hold.
_KEPT_APART = ("kahan", "comp", "shift", "resid", "error", "master")
#: Of a tensor of which this rank reads nothing.
_NO_PART = SampleIndex(0, np.empty(0, np.int64))


def roles(
    training: Training, parameters: Mapping[str, torch.Tensor], reader: ShardedReader = WHOLE_MODEL
) -> tuple[np.ndarray, np.ndarray]:
    """Who trains each parameter, as in the facts; in which watched group, or -1."""
    own = group_membership(training.optimizer, parameters)
    copied = group_membership(training.optimizer, training.masters)
    elsewhere: set[str] = set()
    for other in training.others:
        elsewhere |= group_membership(other, parameters).keys()
    # an optimizer with no parameter of the model may step on copies that are not known
    is_blind = not (own or copied)
    who, groups = [], []
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            role = "frozen"
        elif name in own:
            role = "own"
        elif name in copied:
            role = "master"
        elif name in elsewhere:
            role = "other"
        else:
            role = "unknown" if is_blind and parameter.dtype.itemsize < 4 else "none"
        who.append(role)
        groups.append({"own": own, "master": copied}.get(role, {}).get(name, -1))
    codes = np.array([[_ROLES.index(role) for role in who], groups])
    highest, of_groups = reader.ranks.highest(codes)
    return np.array(_ROLES)[highest], of_groups


class GradientState(IntEnum):
    """What a gradient is. Where ranks differ the last one holds: one may hold nothing of it."""

    NONE = 0
    ALL_ZERO = 1
    SAMPLE_ZERO = 2
    NONZERO = 3
    UNKNOWN = 4


_SAID = ("none", "zero", "unknown", "some", "unknown")


class GradientSummary(NamedTuple):
    """What is known of one gradient."""

    state: GradientState
    values: np.ndarray  # of the sampled weights, float64; zeros where they are not known
    is_kept_apart: bool  # whether the optimizer keeps what the weight's own numbers cannot hold

    @property
    def said(self) -> str:
        """As in the facts: "some", "zero", "none" or "unknown"."""
        return _SAID[self.state]

    @property
    def is_known(self) -> bool:
        """Whether there is one that can be read."""
        return self.state not in (GradientState.NONE, GradientState.UNKNOWN)


class Gradients:
    """Those of a model's parameters, as they are after a step."""

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        reader: ShardedReader = WHOLE_MODEL,
    ) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self._reader = reader

    def summaries(
        self, chosen: Mapping[str, SampleIndex], unmoved: Mapping[str, bool]
    ) -> dict[str, GradientSummary]:
        """What is known of some, given the sampled weights of each whole tensor.

        ``unmoved``: whether a tensor stands still or shrinks. Where its sampled gradient is zero,
        all of its gradient is read.
        """
        reader = self._reader
        with reader.ranks.all_or_none(f"gradients of {' '.join(chosen)}"):
            parts = reader.own(chosen)
            own = {
                name: self._summary(name, parts.get(name, _NO_PART), is_unmoved=unmoved[name])
                for name in chosen
            }
        codes = np.array([[one.state, one.is_kept_apart] for one in own.values()])
        states, kept = reader.ranks.highest(codes.T.copy())
        nonzero = [
            n for n, state in zip(own, states, strict=True) if state == GradientState.NONZERO
        ]
        read = {name: own[name].values for name in nonzero}
        values = reader.united({name: chosen[name] for name in nonzero}, read)
        return {
            name: GradientSummary(
                GradientState(state), values.get(name, np.zeros(chosen[name].num)), bool(is_kept)
            )
            for name, state, is_kept in zip(own, states, kept, strict=True)
        }

    def recalled(self, names: Iterable[str]) -> list[str]:
        """Whether there were gradients, as the optimizer's means of them tell."""
        with self._reader.ranks.all_or_none(f"means of gradients of {' '.join(names)}"):
            own = np.array([self._recalled(name) for name in names])
        return [_RECALLED[code] for code in self._reader.ranks.highest(own)]

    def _summary(self, name: str, some: SampleIndex, *, is_unmoved: bool) -> GradientSummary:
        """What this rank knows of one, of which it reads some weights; without any, others do."""
        parameter, values = self._parameters[name], np.zeros(some.num)
        held = stepped_on(parameter).grad
        gradient = None if held is None else kept_for(parameter, held)
        if held is None:
            state = GradientState.NONE
        elif gradient is None or not gradient.is_floating_point():
            state = GradientState.UNKNOWN
        elif not some.num:
            state = GradientState.ALL_ZERO
        else:
            values = float64_of(some.of(gradient))
            state = _state_of(gradient, values, is_unmoved=is_unmoved)
        if state is GradientState.UNKNOWN:
            values = np.zeros(some.num)
        return GradientSummary(state, values, self._keeps_apart(name))

    def _keeps_apart(self, name: str) -> bool:
        return any(part in str(key).lower() for key in self._state(name) for part in _KEPT_APART)

    def _recalled(self, name: str) -> int:
        state = self._state(name)
        for key in _MEANS:
            held = state.get(key)
            mean = kept_for(self._parameters[name], held) if torch.is_tensor(held) else None
            if mean is not None:
                return 1 + bool(mean.any())
        return 0

    def _state(self, name: str) -> Mapping[str, object]:
        # .get: a defaultdict grows by being asked
        trained = stepped_on(self._parameters[name])
        state: Mapping[str, object] = self._optimizer.state.get(trained, {})
        return state


def _state_of(gradient: torch.Tensor, values: np.ndarray, *, is_unmoved: bool) -> GradientState:
    """Of a gradient that can be read, given the ``values`` of its sample."""
    if not np.isfinite(values).all():
        return GradientState.UNKNOWN
    if values.any() or (is_unmoved and bool(gradient.any())):
        return GradientState.NONZERO
    return GradientState.ALL_ZERO if is_unmoved else GradientState.SAMPLE_ZERO
