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


class NextForward:
    """Calls a method of a watch before training forwards of a model, from ``wait`` to ``remove``.

    A forward of training is one in train mode, with gradients, in the thread that waits. The method
    is held weakly; a copy of the model, or its file, has a hook that does nothing.
    """

    def __init__(self, *modules: nn.Module) -> None:
        # of the model in its wrappers, and without: whichever the training calls
        self._modules = [weakref.ref(one) for one in dict.fromkeys(modules)]
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


@contextmanager
def without_autocast() -> Iterator[None]:
    """As between steps, where a forward may be inside autocast."""
    found = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in ("cpu", *([] if found is None else [found.type])):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
