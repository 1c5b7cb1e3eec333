"""Running a model with some of its weights removed, and putting every bit back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.pruning.patterns import Cut
from sparsitywatch.pruning.preserve import ModelState, preserve_state
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import why_not_whole

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
        self._open: Masks | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The in-scope parameters as they are now, by name.

        Raises:
            ScopeError: one is gone or has another shape, or the model has been sharded since.
        """
        if why := why_not_whole(self.module):
            raise ScopeError(f"Expected a model that this process holds all of, but {why}")
        return self._scope.parameters(self.module)

    @contextlib.contextmanager
    def session(self, value: object = None) -> Iterator[Masks]:
        """Evaluation without a trace: masks may be applied until the session ends.

        On leaving, also by an exception, the dense weights are back bit for bit.

        Args:
            value: the function that will run the model.
        """
        parameters = self.parameters()
        with preserve_state(self.module, value) as kept:
            dense = {name: p.detach().clone() for name, p in parameters.items()}
            self._open = masks = Masks(parameters, dense, kept)
            try:
                yield masks
            finally:
                self.restore()

    def restore(self) -> None:
        """Put back the dense weights of a session, if its end was interrupted before it began."""
        if self._open is not None and not self._open.is_restored:
            self._open.restore()
        self._open = None


class Masks:
    """The masks of one open session; each starts from the model as it was before."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        dense: Mapping[str, torch.Tensor],
        kept: ModelState,
    ) -> None:
        self._parameters, self._dense, self._kept = parameters, dense, kept
        self._has_run = False
        self.is_restored = False

    def apply(self, cut: Cut) -> None:
        """Remove what ``cut`` removes from the dense weights."""
        self._rewind()
        for name, parameter in self._parameters.items():
            # .data: no version counter moves, so a graph that is still alive stays usable
            cut.prune(name, self._dense[name], out=parameter.data)
        torch.clear_autocast_cache()

    def restore(self) -> None:
        """Put the dense weights back, whatever interrupts."""
        try:
            self._put_back()
        except BaseException:  # a second Ctrl-C in the middle: finish first, then let it out
            self._put_back()
            raise

    def _put_back(self) -> None:
        try:
            self._rewind()
        finally:  # whatever else the forwards have left
            self._copy_back()
            self.is_restored = True

    def _rewind(self) -> None:
        """Undo what the forwards since the last call have left behind."""
        # the first forward shows which tensors are written to without a trace in their version
        self._kept.put_back(fully=not self._has_run)
        self._has_run = True

    def _copy_back(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._dense[name])
