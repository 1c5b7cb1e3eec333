"""A device that is none: its tensors lie on the CPU and say otherwise; who waits for it is seen.

What a program asks of a tensor that an accelerator has still to compute holds it up until that is
done: ``item``, ``bool``, ``tolist``, copies to the CPU and back, and whatever has a shape that
depends on numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import sparsitywatch

PACKAGE = str(Path(sparsitywatch.__file__).parent)
DEVICE = torch.device("privateuseone", 0)
#: Operators that need numbers of a device to go on.
_WAITING = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "bincount", "histc",
    "allclose", "is_nonzero", "repeat_interleave",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Wait(NamedTuple):
    """What waited, and where in the package: the innermost function of it."""

    what: str
    file: str
    function: str
    line: int


class OnDevice(torch.Tensor):
    """A tensor of the fake device."""

    seen: ClassVar[list[Wait]] = []

    device = property(lambda _: DEVICE)
    is_cpu = property(lambda _: False)

    def cpu(self) -> torch.Tensor:
        """A copy on the CPU."""
        note("cpu")
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor).clone()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """On the device, or a copy on the CPU."""
        asked = [torch.device(x) for x in (*args, *kwargs.values())
                 if isinstance(x, str | torch.device)]  # fmt: skip
        rest = [x for x in args if not isinstance(x, str | torch.device)]
        kept = {name: x for name, x in kwargs.items() if name != "device"}
        moved = self.cpu() if asked and asked[0].type == "cpu" else self
        return torch.Tensor.to(moved, *rest, **kept) if rest or kept else moved

    def tolist(self) -> Any:
        """As numbers."""
        note("tolist")
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as by any device."""
        raise TypeError("can't convert a device's tensor to numpy. Use Tensor.cpu() first.")


def note(what: str) -> None:
    """Remember who waits."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is not None:
        file = str(Path(frame.f_code.co_filename).relative_to(PACKAGE))
        OnDevice.seen.append(Wait(what, file, frame.f_code.co_name, frame.f_lineno))


class _Made(TorchFunctionMode):
    """What is made on the device, or goes there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = (*args, kwargs.get("device"))
        wanted = [x for x in given if isinstance(x, torch.device) and x == DEVICE]
        if not wanted or isinstance(args[0] if args else None, OnDevice):
            return func(*args, **kwargs)
        if func in (torch.Tensor.to, torch.tensor, torch.as_tensor):
            note("copy to the device")
        kwargs.pop("device", None)
        made = func(*(x if x is not wanted[0] else torch.device("cpu") for x in args), **kwargs)
        return made.as_subclass(OnDevice)


class _Run(TorchDispatchMode):
    """What operators inside of operators do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(one, OnDevice) for one in leaves):
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
        masks = [one for one in tensors[1:] if one.dtype in (torch.bool, torch.uint8)]
        if name in _WAITING or (name in _INDEXING and masks):
            note(name)
        if name == "copy_" and type(args[0]) is not type(args[1]) and args[1].dim():
            note("copy between devices")
        made = func(*args, **(kwargs or {}))
        return tree_map_only(torch.Tensor, lambda one: one.as_subclass(OnDevice), made)


class FakeDevice:
    """Context in which ``to_device`` has a meaning; ``waits`` says who has waited meanwhile."""

    def __enter__(self) -> FakeDevice:  # noqa: PYI034 typing.Self needs Python 3.11
        OnDevice.seen.clear()
        self._modes = [_Made(), _Run()]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def waits(self) -> list[Wait]:
        """Since this was asked last."""
        seen = [*OnDevice.seen]
        OnDevice.seen.clear()
        return seen


def to_device(model: nn.Module) -> nn.Module:
    """A model whose parameters and buffers are on the device."""
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None:
                module._parameters[name] = nn.Parameter(one.detach().as_subclass(OnDevice))
        for name, one in module._buffers.items():
            if one is not None:
                module._buffers[name] = one.as_subclass(OnDevice)
    return model
