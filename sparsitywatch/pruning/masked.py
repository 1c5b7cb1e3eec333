"""Running a model with some of its weights removed, and putting every bit back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from sparsitywatch.pruning.patterns import Cut
from sparsitywatch.pruning.undisturbed import undisturbed
from sparsitywatch.weights.names import unwrap_model
from sparsitywatch.weights.scope import Scope

__all__ = ["MaskedModel"]


class MaskedModel:
    """A model whose in-scope weights can be masked for a while.

    Masks are written in place, from a copy of the dense weights: parameters keep their
    identity and address, so compiled and wrapped modules see them. Memory: one copy of
    the in-scope weights while a session is open.

    Args:
        model: the model, in whatever wrappers; its inner module is what runs.
        scope: which weights are masked.
    """

    def __init__(self, model: nn.Module, scope: Scope) -> None:
        self.module = unwrap_model(model)
        self._scope = scope

    @contextlib.contextmanager
    def session(self) -> Iterator[Masks]:
        """Evaluation without a trace: masks may be applied until the session ends.

        On leaving, also by an exception, the dense weights are back bit for bit.
        """
        parameters = self._scope.parameters(self.module)
        with undisturbed(self.module):
            dense = {name: p.detach().clone() for name, p in parameters.items()}
            masks = Masks(parameters, dense)
            try:
                yield masks
            finally:
                masks.restore()


class Masks:
    """The masks of one open session."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], dense: Mapping[str, torch.Tensor]
    ) -> None:
        self._parameters = parameters
        self._dense = dense

    def apply(self, cut: Cut) -> None:
        """Remove what ``cut`` removes from the dense weights."""
        for name, parameter in self._parameters.items():
            # .data: no version counter moves, so a graph that is still alive stays usable
            cut.prune(name, self._dense[name], out=parameter.data)
        torch.clear_autocast_cache()

    def restore(self) -> None:
        """Put the dense weights back, whatever interrupts."""
        try:
            self._copy_back()
        except BaseException:  # a second Ctrl-C in the middle: finish first, then let it out
            self._copy_back()
            raise

    def _copy_back(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._dense[name])
