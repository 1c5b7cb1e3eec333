"""Running a model with some of its weights removed, and putting every bit back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.pruning.patterns import Cut
from sparsitywatch.pruning.preserve import ModelState, insist, preserve_state
from sparsitywatch.weights.fsdp import reshard
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope, is_sharded
from sparsitywatch.weights.shards import Shards, why_not_whole
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy, local_of

__all__ = ["MaskedModel", "Masks"]


class MaskedModel:
    """A model whose in-scope weights can be masked for a while.

    Masks are written in place, from a copy of the dense weights: parameters keep their
    identity and address, so compiled and wrapped modules see them. Memory: one copy of
    the in-scope weights while a session is open, or none where ``spare`` holds one that nobody
    needs meanwhile. Of a wrapped model the inner module runs.

    Args:
        model: in whatever wrappers.
        scope: which weights count.
        shards: what this rank holds of them, where all ranks mask what they hold together; None
            where this process holds all and runs alone.
    """

    def __init__(self, model: nn.Module, scope: Scope, shards: Shards | None = None) -> None:
        self.module = unwrap_model(model)
        self._scope, self._shards = scope, shards
        self._open: Masks | None = None
        self.spare: WarmCopy | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The in-scope parameters as they are now, by name.

        Raises:
            ScopeError: one is gone or has another shape, or the model has been sharded since.
        """
        shards = self._shards
        if why := why_not_whole(self.module, together=shards is not None):
            raise ScopeError(f"Expected a model that this process holds all of, but {why}")
        if shards is None:
            return self._scope.parameters(self.module)
        reshard(self.module.modules())
        parameters = self._scope.parameters(self.module)
        shards.check(parameters)
        return parameters

    def all_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter as it is now, in scope or not, by name."""
        return self._scope.all_parameters(self.module)

    @contextlib.contextmanager
    def session(self, value: object = None) -> Iterator[Masks]:
        """Evaluation by ``value`` without a trace: masks may be applied until the session ends.

        On leaving, also by an exception, the dense weights are back bit for bit.
        """
        parameters = self.parameters()
        together = self._shards is not None
        with preserve_state(self.module, value, together=together) as state:
            self._open = masks = Masks(parameters, state, self._dense(parameters))
            try:
                yield masks
            finally:
                self.restore()

    def _dense(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
        """A copy of what is held here of each parameter."""
        if self.spare is not None and self.spare.is_warm:
            return dict(self.spare.take(Snapshot.of_parameters(parameters, self._scope, 0)).tensors)
        return {name: local_of(parameter).clone() for name, parameter in parameters.items()}

    def restore(self) -> None:
        """Put back the dense weights of a session, if its end was interrupted before it began."""
        masks, self._open = self._open, None
        if masks is not None:
            insist(masks.remove)


class Masks:
    """The masks of one open session; each starts from the model as it was before."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        state: ModelState,
        dense: Mapping[str, torch.Tensor],
    ) -> None:
        self._state, self._has_run = state, False
        self._weights = [(n, p, is_sharded(p), dense[n]) for n, p in parameters.items()]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what is held here of each tensor, by name."""
        return {name: tuple(dense.shape) for name, _, _, dense in self._weights}

    def apply(self, cut: Cut) -> None:
        """Remove what ``cut`` removes from the dense weights, in the model as it was before."""
        # the first forward shows which tensors are written to without a trace in their version
        self._state.put_back(fully=not self._has_run)
        self._has_run = True
        # .data: no version counter moves, so a graph that is still alive stays usable
        for name, parameter, is_part, dense in self._weights:
            cut.prune(name, dense, out=(local_of(parameter) if is_part else parameter).data)
        torch.clear_autocast_cache()

    def remove(self) -> None:
        """Put the dense weights back, and what the forwards have left behind."""
        try:
            self._state.put_back()
        finally:
            for _, parameter, is_part, dense in self._weights:
                (local_of(parameter) if is_part else parameter).data.copy_(dense)
