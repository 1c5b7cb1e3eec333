"""When the weights of a step are used next: at the next training forward, or the next step."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparsitywatch.live.schedule import Due
from sparsitywatch.live.snapshots import SnapshotTaker
from sparsitywatch.live.trace import StepHook

#: So many first steps show whether something writes to weights after them.
_TRIED = 2


class NextForward:
    """Calls a method of a watch before training forwards of a model, from ``wait`` to ``remove``.

    A forward of training is one in train mode, with gradients, in the thread that waits. The method
    is held weakly; a copy of the model, or its file, has a hook that does nothing.
    """

    def __init__(self, *modules: weakref.ref[nn.Module]) -> None:
        self._modules = dict.fromkeys(modules)
        self._handles: list[RemovableHandle] = []
        self._call: weakref.WeakMethod[Callable[[], None]] | None = None
        self._thread = -1

    def wait(self, call: Callable[[], None]) -> None:
        """Call it from now on."""
        self.remove()
        self._call, self._thread = weakref.WeakMethod(call), threading.get_ident()
        for ref in self._modules:
            module = ref()
            if module is not None and not isinstance(module, torch.jit.ScriptModule):
                self._handles.append(module.register_forward_pre_hook(self))

    def remove(self) -> None:
        """Call it no more, and leave nothing in the model; may be called in a call, and again."""
        while self._handles:
            self._handles.pop().remove()

    def __call__(self, module: nn.Module, _: object) -> None:
        """A forward begins: call, if it is one of training."""
        # whoever compiles or traces a forward now finds nothing here
        is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if is_traced or not (module.training and torch.is_grad_enabled()):
            return
        call = None if self._call is None else self._call()
        if call is None:  # the watch is gone
            self.remove()
        elif self._handles and threading.get_ident() == self._thread:
            call()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ({}, "get")  # called with a module and its inputs it returns the inputs


class NextUse:
    """What is to be measured of the weights of a step where they are used next."""

    def __init__(self, taker: SnapshotTaker, hook: StepHook) -> None:
        self._taker = taker
        self._hook = hook
        self._is_waiting = False
        # of the model in its wrappers, and without: whichever the training calls
        self._forward = NextForward(taker.model.given, weakref.ref(taker.model.module))
        self._owed = Due.NOTHING

    def due_now(self, due: Due, step: int) -> Due:
        """What of it is measured at once: nothing if something may write to the weights."""
        after = self._taker.after
        self._owed = due if after.is_written or not after.num_looks else Due.NOTHING
        if self._owed:
            self._taker.begin_late(step)
        return Due.NOTHING if self._owed else due

    def wait(self, call: Callable[..., None], *, is_due: bool) -> None:
        """Have this method of the watch called before what uses the weights, after some steps."""
        taker = self._taker
        is_trial = taker.after.num_looks < _TRIED and taker.is_on_cpu  # else a step would wait
        if is_due or is_trial:
            taker.note(is_read=is_due)
            self._is_waiting = True
            self._hook.wait(call)
            self._forward.wait(call)

    def used(self, before: str) -> tuple[Due, str]:
        """See what was written to weights that are used now; what is owed of them, and why late."""
        if not self._is_waiting or not self._taker.look(is_forward=before == "forward"):
            return Due.NOTHING, ""
        owed = self._owed
        self._stop_looking()
        return owed, before if self._taker.after.is_written else ""

    def asked(self) -> Due:
        """What is owed, if that may be measured now."""
        if self._taker.after.is_written:
            return Due.NOTHING
        owed, self._owed = self._owed, Due.NOTHING
        return owed

    def stop(self) -> None:
        """Wait no more; nothing is owed."""
        self._stop_looking()
        self._hook.begin()

    def _stop_looking(self) -> None:
        self._owed, self._is_waiting = Due.NOTHING, False
        self._forward.remove()


@contextmanager
def without_autocast() -> Iterator[None]:
    """As between steps, where a forward may be inside autocast."""
    accelerator = torch.accelerator
    # without one torch 2.6 raises where it is asked for
    found = accelerator.current_accelerator() if accelerator.is_available() else None
    with ExitStack() as stack:
        for kind in ("cpu", *([] if found is None else [found.type])):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
