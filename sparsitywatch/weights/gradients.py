"""What the gradients of some parameters are, and what their optimizer keeps of them.

Ranks that hold parts of the parameters say together what one process would say of the whole: each
looks at what it holds, and the values of the sampled weights are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from sparsitywatch.weights.clock import stepped_on
from sparsitywatch.weights.sharded import kept_for
from sparsitywatch.weights.snapshot import Chosen, float64_of
from sparsitywatch.weights.together import Together

__all__ = ["Gradients", "Look"]

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
_NO_PART = Chosen(0, np.empty(0, np.int64))


class Look(NamedTuple):
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
        together: with which other ranks; then each of these calls the same.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        together: Together | None = None,
    ) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self._together = together

    def looks(self, chosen: Mapping[str, Chosen], unmoved: Mapping[str, bool]) -> dict[str, Look]:
        """What is known of some.

        Args:
            chosen: the sampled weights of each whole tensor, by name.
            unmoved: whether a tensor stands still or shrinks. Of those alone all of the gradient is
                read where what is sampled is zero.
        """
        together = self._together
        if together is None:
            return {name: self._look(name, some, unmoved) for name, some in chosen.items()}
        with together.reading("gradients", chosen):
            parts = together.own(chosen)
            own = {name: self._look(name, parts.get(name, _NO_PART), unmoved) for name in chosen}
        said = np.array([[look.code, look.is_kept_apart] for look in own.values()])
        codes, kept = together.highest(said.T.copy())
        some = {name: chosen[name] for name, code in zip(own, codes, strict=True) if code == _SOME}
        values = together.gathered(some, {name: own[name].values for name in some})
        return {
            name: Look(int(code), values.get(name, np.zeros(chosen[name].num)), bool(is_kept))
            for name, code, is_kept in zip(own, codes, kept, strict=True)
        }

    def recalled(self, names: Iterable[str]) -> list[str]:
        """Whether there were gradients, as the optimizer's means of them tell."""
        if self._together is None:
            return [_RECALLED[self._recalled(name)] for name in names]
        with self._together.reading("means of gradients", names):
            own = np.array([self._recalled(name) for name in names])
        return [_RECALLED[code] for code in self._together.highest(own)]

    def _look(self, name: str, some: Chosen, unmoved: Mapping[str, bool]) -> Look:
        """What this rank knows of one, of which it reads some weights; without any, others do."""
        parameter = self._parameters[name]
        held = stepped_on(parameter).grad
        is_kept_apart, values = self._keeps_apart(name), np.zeros(some.num)
        if held is None:
            return Look(_NO_TENSOR, values, is_kept_apart)
        gradient = kept_for(parameter, held)
        if gradient is None or not gradient.is_floating_point():
            return Look(_UNREADABLE, values, is_kept_apart)
        if not some.num:
            return Look(_ALL_ZERO, values, is_kept_apart)
        found = float64_of(some.of(gradient))
        if not np.isfinite(found).all():
            return Look(_UNREADABLE, values, is_kept_apart)
        if found.any() or (unmoved[name] and bool(gradient.any())):
            return Look(_SOME, found, is_kept_apart)
        return Look(_ALL_ZERO if unmoved[name] else _ZERO_HERE, found, is_kept_apart)

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
