"""Who trains parameters, what the gradients of some are, and what their optimizer keeps of them.

Ranks that hold parts of the parameters say together what one process would say of the whole: each
looks at what it holds, and the values of the sampled weights are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.weights.clock import DecayClock, group_membership, stepped_on
from sparsitywatch.weights.sharded import kept_for
from sparsitywatch.weights.snapshot import SampleIndex, float64_of

__all__ = ["GradientSummary", "Gradients", "Training"]

#: Who may train a parameter. Where ranks differ the last one holds: on each of them an optimizer
#: may step on some tensors only.
_ROLES = ("frozen", "none", "unknown", "other", "master", "own")
#: There is no tensor; all of it is zero; what was looked at is; it is not; nobody knows. Where
#: ranks differ the last one holds: one of them may hold nothing of it.
_NO_TENSOR, _ALL_ZERO, _ZERO_HERE, _SOME, _UNREADABLE = range(5)
_SAID = ("none", "zero", "unknown", "some", "unknown")
#: What means of gradients say of them, likewise.
_RECALLED = ("unknown", "zero", "some")
#: Names under which optimizers keep a mean of the gradients.
_MEANS = ("exp_avg", "momentum_buffer")
#: Parts of names under which they keep what a weight's own dtype cannot hold.
_KEPT_APART = ("kahan", "comp", "shift", "resid", "error", "master")
#: Of a tensor of which this rank reads nothing.
_NO_PART = SampleIndex(0, np.empty(0, np.int64))


@dataclass(frozen=True, kw_only=True)
class Training:
    """Who trains the parameters.

    Args:
        optimizer: the one that is watched.
        clock: its param groups' sums of learning rate and decay.
        masters: copies of higher precision that it steps on, by the names of the weights.
        others: more optimizers that were seen to step.
    """

    optimizer: torch.optim.Optimizer
    clock: DecayClock
    masters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    others: Iterable[torch.optim.Optimizer] = ()

    def roles(
        self, parameters: Mapping[str, torch.Tensor], reader: ShardedReader = WHOLE_MODEL
    ) -> tuple[np.ndarray, np.ndarray]:
        """Who trains each parameter, as in ``TensorFacts``, and in which of the watched groups.

        The group is -1 where there is none. Ranks that ask together say the same.
        """
        own = group_membership(self.optimizer, parameters)
        copied = group_membership(self.optimizer, self.masters)
        elsewhere: set[str] = set()
        for other in self.others:
            elsewhere |= group_membership(other, parameters).keys()
        who, groups = [], []
        for name, parameter in parameters.items():
            group = -1
            if not parameter.requires_grad:
                role = "frozen"
            elif name in own:
                role, group = "own", own[name]
            elif name in copied:
                role, group = "master", copied[name]
            elif name in elsewhere:
                role = "other"
            else:
                # an optimizer with no parameter of the model may step on copies that are not known
                is_known = own or copied or parameter.dtype.itemsize >= 4
                role = "none" if is_known else "unknown"
            who.append(role)
            groups.append(group)
        codes = np.array([[_ROLES.index(role) for role in who], groups])
        highest, of_groups = reader.ranks.highest(codes)
        return np.array(_ROLES)[highest], of_groups


class GradientSummary(NamedTuple):
    """What is known of one gradient.

    Args:
        code: what it is.
        values: of the sampled weights, float64; zeros where they are not known.
        is_kept_apart: the optimizer keeps what the weight's own numbers cannot hold.
    """

    code: int
    values: np.ndarray
    is_kept_apart: bool

    @property
    def said(self) -> str:
        """As in ``TensorFacts``: "some", "zero", "none" or "unknown"."""
        return _SAID[self.code]

    @property
    def is_known(self) -> bool:
        """Whether there is one that can be read."""
        return self.code not in (_NO_TENSOR, _UNREADABLE)


class Gradients:
    """Those of a model's parameters, as they are after a step.

    Args:
        parameters: by name.
        optimizer: that steps on them.
        reader: of the parameters.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        reader: ShardedReader = WHOLE_MODEL,
    ) -> None:
        self._parameters, self._optimizer, self._reader = parameters, optimizer, reader

    def summaries(
        self, chosen: Mapping[str, SampleIndex], unmoved: Mapping[str, bool]
    ) -> dict[str, GradientSummary]:
        """What is known of some.

        Args:
            chosen: the sampled weights of each whole tensor, by name.
            unmoved: whether a tensor stands still or shrinks. Of those alone all of the gradient is
                read where what is sampled is zero.
        """
        reader = self._reader
        with reader.ranks.all_or_none("gradients", chosen):
            parts = reader.own(chosen)
            own = {name: self._look(name, parts.get(name, _NO_PART), unmoved) for name in chosen}
        said = np.array([[look.code, look.is_kept_apart] for look in own.values()])
        codes, kept = reader.ranks.highest(said.T.copy())
        some = {name: chosen[name] for name, code in zip(own, codes, strict=True) if code == _SOME}
        values = reader.united(some, {name: own[name].values for name in some})
        return {
            name: GradientSummary(
                int(code), values.get(name, np.zeros(chosen[name].num)), bool(is_kept)
            )
            for name, code, is_kept in zip(own, codes, kept, strict=True)
        }

    def recalled(self, names: Iterable[str]) -> list[str]:
        """Whether there were gradients, as the optimizer's means of them tell."""
        with self._reader.ranks.all_or_none("means of gradients", names):
            own = np.array([self._recalled(name) for name in names])
        return [_RECALLED[code] for code in self._reader.ranks.highest(own)]

    def _look(self, name: str, some: SampleIndex, unmoved: Mapping[str, bool]) -> GradientSummary:
        """What this rank knows of one, of which it reads some weights; without any, others do."""
        parameter = self._parameters[name]
        held = stepped_on(parameter).grad
        is_kept_apart, values = self._keeps_apart(name), np.zeros(some.num)
        if held is None:
            return GradientSummary(_NO_TENSOR, values, is_kept_apart)
        gradient = kept_for(parameter, held)
        if gradient is None or not gradient.is_floating_point():
            return GradientSummary(_UNREADABLE, values, is_kept_apart)
        if not some.num:
            return GradientSummary(_ALL_ZERO, values, is_kept_apart)
        found = float64_of(some.of(gradient))
        if not np.isfinite(found).all():
            return GradientSummary(_UNREADABLE, values, is_kept_apart)
        if found.any() or (unmoved[name] and bool(gradient.any())):
            return GradientSummary(_SOME, found, is_kept_apart)
        return GradientSummary(_ALL_ZERO if unmoved[name] else _ZERO_HERE, found, is_kept_apart)

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
        state: Mapping[str, object] = self._optimizer.state.get(
            stepped_on(self._parameters[name]), {}
        )
        return state
