"""Quantised weights: codes with scales beside them, read as the weights that they stand for.

In floating point (fp8) the weight is code times scale, and that is what is read. Whole numbers
are packed in many ways: they are told to be codes, and refused where they are in scope.

The layouts: DeepSeek-V3 and transformers' fine-grained fp8 (``weight_scale_inv``, blocks),
compressed-tensors, FBGEMM and ModelOpt (``weight_scale``, for a tensor or a row), bitsandbytes
(``SCB``, ``quant_state``), GPTQ and AWQ (``qweight``), MXFP4 as of gpt-oss (``_blocks``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sparsitywatch.checkpoints.base import Resolved, StoredTensor, Unreadable
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.stored import LoadedStretch, Stretch

__all__ = ["as_weights"]

#: Scales that codes are multiplied by, by what follows the name of the codes.
_SCALES = ("_scale_inv", "_scale")
#: Rows and columns that share a scale where the shapes leave a choice.
_BLOCK = 128
_FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
#: Attributes that hold packed codes, and what of.
_PACKED = {"qweight": "weight", "weight_packed": "weight"}
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"
_CODES = frozenset({torch.int8, torch.uint8, torch.int32})


def as_weights(stored: Resolved) -> Resolved:
    """The tensors of a checkpoint with codes taken as the weights that they stand for.

    Scales that have been taken into account are no tensors of the model any longer; all others
    stay as they are.
    """
    found: dict[str, StoredTensor] = {}
    used: set[str] = set()
    for name, one in stored.items():
        module, _, attribute = name.rpartition(".")
        entry = one.entry
        if entry.dtype in _FP8 and len(entry.shape) >= 2:
            scale = next((name + end for end in _SCALES if name + end in stored), None)
            if scale is not None:
                used.add(scale)
                one = _scaled(one, stored[scale], scale)
        elif entry.dtype in _CODES and len(entry.shape) >= 2 and not entry.problem:
            weight = _PACKED.get(attribute, "")
            if name.removesuffix(_BLOCKS) + _BLOCK_SCALES in stored:
                weight = attribute.removesuffix(_BLOCKS)
            of = f"{module}.{weight}" if module else weight
            is_packed = weight != "" and of not in stored
            if is_packed or (attribute == "weight" and entry.dtype != torch.int32):
                what = str(entry.dtype).removeprefix("torch.")
                problem = f"it is stored as {what} codes of a quantised weight ({attribute})"
                one = Unreadable(replace(entry, stored_as=f"{what} codes", problem=problem))
                name = of if is_packed else name
        found[name] = one
    return {name: one for name, one in found.items() if name not in used}


def _scaled(codes: StoredTensor, scale: StoredTensor, name: str) -> StoredTensor:
    entry, own = codes.entry, scale.entry
    sizes = _block(entry.shape, own.shape)
    problem = own.problem
    if not problem and (sizes is None or not own.dtype.is_floating_point):
        problem = f"its scale has shape {own.shape} and {own.dtype}, which is not known here"
    if problem or sizes is None:
        words = f"it is fp8 codes, and {name[-80:]} cannot be applied to them: {problem}"
        return Unreadable(replace(entry, stored_as="fp8 codes", problem=words))
    return _Scaled(codes, scale, sizes)


def _block(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many elements share a scale, along each dimension; None if the shapes do not say.

    >>> _block((256, 300), (2, 3)), _block((4, 6), ()), _block((4, 6), (4,)), _block((4, 6), (3, 3))
    ((128, 128), (4, 6), (1, 6), None)
    """
    if math.prod(scales) == 1:
        return shape
    if len(scales) == 1 and len(shape) == 2:
        scales = (*scales, 1)  # one for each row
    if len(scales) != len(shape):
        return None
    sizes = []
    for size, number in zip(shape, scales, strict=True):
        if number in (1, size):
            sizes.append(size // number)
        elif number == -(-size // _BLOCK):
            sizes.append(_BLOCK)
        elif number and size % number == 0 and size // number >= _BLOCK // 4:
            sizes.append(size // number)
        else:
            return None
    return tuple(sizes)


@dataclass(frozen=True)
class _Scaled:
    """Codes times their scales, in single precision."""

    codes: StoredTensor
    scale: StoredTensor
    block: tuple[int, ...]

    @property
    def entry(self) -> Entry:
        """As the weight that they stand for."""
        own = self.codes.entry
        kind = str(own.dtype).removeprefix("torch.")
        storage = None if own.storage is None else ("scaled", own.storage)
        return replace(own, dtype=torch.float32, storage=storage, stored_as=f"{kind} times a scale")

    @property
    def position(self) -> tuple[str, int]:
        """Where the codes lie."""
        return self.codes.position

    def load(self) -> torch.Tensor:
        """Read both and multiply; memory: four times that of the codes, and some for scales."""
        weight = self.codes.load().to(torch.float32)
        scale = self.scale.load().to(torch.float32)
        scale = scale.reshape([-(-n // b) for n, b in zip(weight.shape, self.block, strict=True)])
        for dim, (size, block) in enumerate(zip(weight.shape, self.block, strict=True)):
            if block != size:  # one of all its elements is broadcast
                scale = scale.repeat_interleave(block, dim).narrow(dim, 0, size)
        return weight.mul_(scale)

    def stretches(self) -> Sequence[Stretch]:
        """All of it at once: codes and scales lie apart."""
        entry = self.entry
        return (
            [LoadedStretch(self.position, entry.num_bytes, self.load)] if entry.num_weights else []
        )
