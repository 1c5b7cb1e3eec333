"""Running a model on one rank of many: in step with all others, or without them.

FSDP2 gathers weights for a forward, each rank at the same places. A forward that fails in its
middle leaves FSDP in a state of "forward", and the other ranks waiting for gathers. Where other
ranks do not run the model at all, a collective would wait for ever.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from sparsitywatch.errors import MeasurementError

# ------------------------------------------------------------------ FSDP2


class ForwardOrder:
    """What FSDP gathers and lets go of in a forward of a model, so that one can be ended."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._modules = modules  # that FSDP2 shards; their order is the first guess
        # FSDP takes the first module to run for the outermost one, and a value function may run an
        # inner part first. Outer ones come first; they settle the inner ones
        for module in modules:
            module._get_fsdp_state()._lazy_init()
        groups = [group for m in self._modules for group in _groups(m._get_fsdp_state())]
        self._groups = list(dict.fromkeys(groups))  # several modules may be in one
        self._order = [(group, is_gather) for group in self._groups for is_gather in (True, False)]

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Around a forward: what is left of it when it fails here is gathered for the others."""
        # so they, too, end their forward, and can be told that it failed
        # FSDP notes each forward for a backward to come. Here there is none, and where a forward
        # has failed, the next one would gather weights after other notes on each rank
        notes = [group.comm_ctx.post_forward_order for group in self._groups]
        notes += [group._post_forward_indices for group in self._groups]
        before = [(each, len(each)) for each in notes]
        seen: list[tuple[Any, bool]] = []
        for group in self._groups:
            group.unshard = _noting(seen, group, group.unshard, is_gather=True)
            group.reshard = _noting(seen, group, group.reshard, is_gather=False)
        try:
            yield
            self._order = seen or self._order
        except Exception:
            self._follow(sum(is_gather for _, is_gather in seen))
            raise
        finally:
            for group in self._groups:
                del group.unshard, group.reshard  # those of its class are back
            for each, length in before:
                del each[length:]

    def _follow(self, num_gathers: int) -> None:
        """After so many gathers: gather, and let go of, what the others do, one by one."""
        try:
            for group, is_gather in list(self._order):
                if num_gathers > 0:
                    num_gathers -= is_gather
                    continue
                # gathered already, or kept after the forward: then it does nothing here as there
                group._training_state = type(group._training_state).FORWARD
                if is_gather:
                    group.unshard()
                    group.wait_for_unshard()
                else:
                    group.reshard()
        finally:
            self._set_idle()

    def _set_idle(self) -> None:
        """No forward goes on: else FSDP would not wait for the optimizer's step before the next."""
        for module in self._modules:
            state = module._get_fsdp_state()
            state._state_ctx.iter_forward_root = None
            state._modules_to_run_forward.clear()
            for one in (state, *_groups(state)):
                one._training_state = type(one._training_state).IDLE
            module.reshard()


def _noting(seen: list[tuple[Any, bool]], group: Any, call: Any, *, is_gather: bool) -> Any:
    """A call by which FSDP asks for the weights of a group, or lets them go, noted."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append((group, is_gather))
        return call(*args, **kwargs)

    return noted


def _groups(state: Any) -> list[Any]:
    """Of the parameters that a call of ``fully_shard`` took: one of them in older torch."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [group for group in [state._fsdp_param_group] if group is not None]


# ------------------------------------------------------------------ without the others

#: Where torch keeps its collectives: those that act, the functional ones, DTensor's own.
_NAMESPACES = (
    *("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional"),
    *("_dtensor", "symm_mem"),
)
#: Methods of a process group that other processes take part in, by what is in their names.
_GROUP_METHODS = re.compile("gather|reduce|to_?all|barrier|broadcast|scatter|send|recv")
#: They count the names of new groups first, which have to be the same numbers on each rank.
_GROUP_MAKERS = ("_new_group_with_tag", "split_group", "_new_process_group_helper")


@contextlib.contextmanager
def without_collectives() -> Iterator[None]:
    """Refuse, before it begins, every collective of this thread and of those it starts."""
    # that is a MeasurementError, also where the model caught the one that it was given. Seen are
    # the operators of torch, also from C++ (a wrapper that broadcasts buffers), and the process
    # groups themselves, in Python, in threads that the model starts, too. Those that were there
    # before are the training's own: what they send, all ranks send. Not seen: libraries that do
    # without torch.distributed, and a captured CUDA graph.
    guard = _Guard()
    try:
        with _on_the_groups(guard), guard:
            yield
    except Exception:
        guard.raise_if_refused()  # what came of it says less
        raise
    guard.raise_if_refused()


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One evaluation: sees each operator before it runs, and what it was refused."""

    supports_higher_order_operators = True  # such as flex_attention: passed through

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        there = {thread.ident for thread in threading.enumerate()}
        self._not_ours = there - {threading.get_ident()}
        self._refused = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "namespace", "") in _NAMESPACES and "wait_tensor" not in str(func):
            self.refuse(str(func), _group_size([*args, *kwargs.values()]))
        return func(*args, **kwargs)

    def refuse(self, operation: str, group_size: int | None) -> None:
        """Raise if this is a call of the evaluation that other processes take part in."""
        if group_size != 1 and threading.get_ident() not in self._not_ours:
            self._refused = self._refused or operation
            self.raise_if_refused()

    def raise_if_refused(self) -> None:
        if self._refused:
            raise MeasurementError(
                "Expected a forward without communication, since rank 0 evaluates alone and the "
                f"other ranks would never answer, but it began {self._refused}. Let the value "
                "function run a part of the model that does not communicate, or leave `proxy` out "
                "(the weights are watched all the same), or evaluate the checkpoints with "
                "`sparsitywatch replay`."
            )


def _group_size(arguments: list[Any]) -> int | None:
    """How many processes take part in an operator; None if its arguments do not tell."""
    group_named: Any = vars(distributed.distributed_c10d)["_resolve_process_group"]
    for argument in arguments:
        with contextlib.suppress(RuntimeError, TypeError, ValueError):
            if isinstance(argument, torch.ScriptObject):
                return int(distributed.ProcessGroup.unbox(argument).size())
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
            for kind in (distributed.ProcessGroup, torch._C._distributed_c10d.Backend):
                for name in filter(_GROUP_METHODS.search, [*vars(kind)]):
                    _patch(kind, name, lambda group, *_, **__: group.size())
            for name in _GROUP_MAKERS:
                _patch(distributed.distributed_c10d, name, lambda *_, **__: None)
        _guards.append(guard)
    try:
        yield
    finally:
        with _lock:
            _guards.remove(guard)
            if not _guards:
                _patches.close()


def _patch(owner: Any, name: str, size_of: Callable[..., int | None]) -> None:
    original = vars(owner).get(name)
    if not callable(original):  # not in this version of torch, or a property
        return

    @functools.wraps(original)
    def asking(*args: Any, **kwargs: Any) -> Any:
        for guard in _guards:
            guard.refuse(f"torch.distributed's {name}", size_of(*args, **kwargs))
        return original(*args, **kwargs)

    setattr(owner, name, asking)
    _patches.callback(setattr, owner, name, original)
