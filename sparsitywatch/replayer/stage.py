"""The model that checkpoints are evaluated on, one to each thread that evaluates."""

from __future__ import annotations

import io
import pickle
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pruning.proxy import Proxy

__all__ = ["Given", "Skeleton", "Stage"]

_mine = threading.local()


@dataclass(frozen=True)
class Stage:
    """How a worker comes by its model, and what it evaluates.

    Args:
        make: makes the model; called once in each thread. Its weights do not matter.
        proxy: what is evaluated; None to evaluate nothing.
        id: tells this stage from others in a worker that outlives it.
    """

    make: Callable[[], nn.Module]
    proxy: Proxy | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def model(self) -> nn.Module:
        """This thread's model; the same one at every call."""
        if getattr(_mine, "id", None) != self.id:
            _mine.model, _mine.id = self.make(), self.id
        model: nn.Module = _mine.model
        return model


@dataclass(frozen=True)
class Given:
    """The user's own model, for looks in the caller's thread."""

    model: nn.Module

    def __call__(self) -> nn.Module:
        """The model."""
        return self.model


class Skeleton:
    """A model without the values of its parameters, small enough to send to every worker.

    Buffers keep theirs: some of them are in no checkpoint.

    Args:
        model: of classes that can be pickled.

    Raises:
        ConfigurationError: it cannot be pickled.
    """

    def __init__(self, model: nn.Module) -> None:
        buffer = io.BytesIO()
        try:
            _SkeletonPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
        except Exception as error:
            raise ConfigurationError(
                "Expected a `model` that can be sent to the workers of `executor`, but pickling it "
                f"raised {type(error).__name__}: {error}. Give a function that makes it instead, "
                "defined at the top of a module."
            ) from error
        self._pickled = buffer.getvalue()

    def __call__(self) -> nn.Module:
        """A model of its own, its parameters not yet set."""
        # what this process or its parent has pickled itself, never a file
        model: nn.Module = pickle.loads(self._pickled)  # noqa: S301
        return model


class _SkeletonPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is nn.Parameter:
            return _empty, (tuple(obj.shape), obj.dtype, str(obj.device), obj.requires_grad)
        return NotImplemented


def _empty(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    requires_grad: bool,
) -> nn.Parameter:
    data = torch.empty(shape, dtype=dtype, device=device)
    return nn.Parameter(data, requires_grad=requires_grad)
