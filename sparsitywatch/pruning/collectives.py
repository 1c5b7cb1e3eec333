"""Running a model on one process of many: a collective would wait for ever for the others."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsitywatch.errors import MeasurementError

__all__ = ["without_collectives"]

#: Where torch keeps its collectives: those that act, the functional ones, DTensor's own.
_NAMESPACES = (
    "c10d",
    "_c10d_functional",
    "_c10d_functional_autograd",
    "c10d_functional",
    "_dtensor",
    "symm_mem",
)
_GROUP_METHODS = (
    *("allgather", "_allgather_base", "allgather_coalesced", "allgather_into_tensor_coalesced"),
    *("all_gather_single", "all_gather_single_coalesced", "all_to_all_single"),
    *("allreduce", "allreduce_coalesced", "alltoall", "alltoall_base", "barrier", "broadcast"),
    *("gather", "monitored_barrier", "recv", "recv_anysource", "reduce", "reduce_scatter"),
    *("_reduce_scatter_base", "reduce_scatter_single", "reduce_scatter_single_coalesced"),
    *("reduce_scatter_tensor_coalesced", "scatter", "send"),
)


@contextlib.contextmanager
def without_collectives() -> Iterator[None]:
    """Refuse, before it begins, every collective of this thread and of those it starts.

    A collective of a group of one goes on. Seen are the operators of torch, whoever calls them,
    also from C++ (a wrapper that broadcasts buffers); and in Python the process groups
    themselves, so that a thread which the model starts is seen too. Threads that were there
    before are the training's own: what they send, all ranks send. Not seen: libraries that do
    without torch.distributed, and a captured CUDA graph.

    Raises:
        MeasurementError: a collective was about to begin; also where the model caught the
            exception that it was given.
    """
    guard = _Guard()
    try:
        with _on_the_groups(guard), _Refusing(guard):
            yield
    except Exception:
        guard.raise_if_refused()  # what came of it says less
        raise
    guard.raise_if_refused()


class _Guard:
    """One evaluation: which threads belong to it, and what it was refused."""

    def __init__(self) -> None:
        others = {thread.ident for thread in threading.enumerate()}
        self._not_ours = others - {threading.get_ident()}
        self._refused: list[str] = []

    def refuse(self, operation: str, group_size: int | None) -> None:
        """Raise if this is a call of the evaluation that other processes take part in."""
        if group_size == 1 or threading.get_ident() in self._not_ours:
            return
        self._refused.append(operation)
        self.raise_if_refused()

    def raise_if_refused(self) -> None:
        if self._refused:
            raise MeasurementError(
                "Expected a forward without communication, since rank 0 evaluates alone and the "
                f"other ranks would never answer, but it began {self._refused[0]}. Let the value "
                "function run a part of the model that does not communicate, or leave `proxy` out "
                "(the weights are watched all the same), or evaluate the checkpoints with "
                "`sparsitywatch replay`."
            )


class _Refusing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator before it runs."""

    supports_higher_order_operators = True  # such as flex_attention: passed through

    def __init__(self, guard: _Guard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._guard = guard

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if getattr(func, "namespace", "") in _NAMESPACES and "wait_tensor" not in str(func):
            self._guard.refuse(str(func), _group_size([*args, *kwargs.values()]))
        return func(*args, **kwargs)


def _group_size(arguments: list[Any]) -> int | None:
    """How many processes take part in an operator; None if its arguments do not tell."""
    from torch.distributed import distributed_c10d

    group_named: Any = vars(distributed_c10d)["_resolve_process_group"]
    for argument in arguments:
        with contextlib.suppress(RuntimeError, TypeError, ValueError):
            if isinstance(argument, torch.ScriptObject):
                return int(torch.distributed.ProcessGroup.unbox(argument).size())
            if isinstance(argument, str):  # also "sum": that names no group
                return int(group_named(argument).size())
    return None


# What a process has patched while at least one evaluation is running in it.
_lock = threading.Lock()
_guards: list[_Guard] = []
_patches = contextlib.ExitStack()


@contextlib.contextmanager
def _on_the_groups(guard: _Guard) -> Iterator[None]:
    """Ask the guard before each call of a process group's method, in any thread."""
    with _lock:
        if not _guards:
            _patch_all()
        _guards.append(guard)
    try:
        yield
    finally:
        with _lock:
            _guards.remove(guard)
            if not _guards:
                _patches.close()


def _patch_all() -> None:
    from torch._C import _distributed_c10d
    from torch.distributed import distributed_c10d

    for kind in (_distributed_c10d.ProcessGroup, _distributed_c10d.Backend):
        for name in _GROUP_METHODS:
            _patch(kind, name, lambda group, *_, **__: group.size())
    # before the name of the new group is counted, which has to be the same number on each rank
    for name in ("_new_group_with_tag", "split_group", "_new_process_group_helper"):
        _patch(distributed_c10d, name, lambda *_, **__: None)


def _patch(owner: Any, name: str, size_of: Callable[..., int | None]) -> None:
    original = vars(owner).get(name)
    if original is None:
        return

    @functools.wraps(original)
    def asking(*args: Any, **kwargs: Any) -> Any:
        for guard in _guards:
            guard.refuse(f"torch.distributed's {name}", size_of(*args, **kwargs))
        return original(*args, **kwargs)

    setattr(owner, name, asking)
    _patches.callback(setattr, owner, name, original)
