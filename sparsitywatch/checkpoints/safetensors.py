"""The safetensors format: a length, a JSON header, then the bytes of the tensors.

Reference: https://github.com/huggingface/safetensors (README, section "Format").
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from sparsitywatch.checkpoints.base import (
    Checkpoint,
    RefusedError,
    Signature,
    StoredTensor,
    StridedTensor,
    cut_off,
    reading,
)
from sparsitywatch.checkpoints.storage import Location, Source
from sparsitywatch.checkpoints.torch_file import as_sizes
from sparsitywatch.weights.layout import Entry

#: The cap of the safetensors library.
_MAX_HEADER_BYTES = 100_000_000

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
#: dtypes that only some versions of torch have: scales and codes of quantised weights.
_NEWER = {"F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
          "F8_E5M2FNUZ": "float8_e5m2fnuz"}  # fmt: skip
_KNOWN = {**DTYPES, **{k: vars(torch)[name] for k, name in _NEWER.items() if name in vars(torch)}}
#: dtypes of which several elements share bytes, by the bits of one.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
#: How names of dtypes look; one that is not known here is of a newer format.
_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,23}")


#: dtype, shape, first and last byte of a tensor in a header.
Described = tuple[str, tuple[int, ...], int, int]


def is_safetensors(seen: Signature) -> bool:
    """Whether a file is one of safetensors, or says so."""
    return seen.own_name.endswith(".safetensors") or seen.start[8:9] == b"{"


def open_safetensors(place: Location, _: Signature) -> Checkpoint:
    """One file as a checkpoint."""
    return Checkpoint(place, "safetensors", read_safetensors(place))


def read_safetensors(place: Location) -> dict[str, StoredTensor]:
    """The tensors of one file by name; only its header is read."""
    source = place.open()
    with reading(source.url):
        length = int.from_bytes(source.read(0, 8), "little")
        if length > _MAX_HEADER_BYTES:
            raise RefusedError(
                f"expected a header of at most {_MAX_HEADER_BYTES} bytes, got {length}"
            )
        header = _parse(source.read(8, length))
        return _placed(source, header, 8 + length)


def _placed(source: Source, header: Mapping[str, Described], start: int) -> dict[str, StoredTensor]:
    """The described tensors, which lie one behind the other from ``start`` to the end."""
    stored: dict[str, StoredTensor] = {}
    end = 0
    for name, one in sorted(header.items(), key=lambda item: (item[1][2:], item[0])):
        kind, shape, begin, stop = one
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise RefusedError(f"it {what} (from byte {begin}, expected {end})", name)
        end = stop
        if start + end > source.size:
            raise cut_off(name, start + end, source.size)
        position = (source.url, start + begin)
        if kind in _KNOWN:
            stored[name] = StridedTensor(
                entry=Entry(name=name, shape=shape, dtype=_KNOWN[kind]),
                position=position,
                source=source,
                start=start + begin,
                num_bytes=stop - begin,
            )
        else:
            problem = f"it is of dtype {kind}, which cannot be read here"
            entry = Entry(
                name=name, shape=shape, dtype=torch.uint8, stored_as=kind, problem=problem
            )
            stored[name] = StoredTensor(entry=entry, position=position)
    if start + end != source.size:
        raise RefusedError(
            f"expected the file to end with its last tensor at byte {start + end}, but it has "
            f"{source.size}"
        )
    return stored


def _parse(data: bytes) -> dict[str, Described]:
    """The description of every tensor in a header."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise RefusedError(f"expected names that occur once, got {twice[:80]!r} twice")
        return found

    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        header = None
    except ValueError as error:
        raise RefusedError("a header with a number of thousands of digits") from error
    if not isinstance(header, dict):
        raise RefusedError("expected a safetensors header in JSON, got something else")
    header.pop("__metadata__", None)
    return {name: _described(name, value) for name, value in header.items()}


def _described(name: str, value: Any) -> Described:
    if not isinstance(value, dict):
        raise RefusedError(f"expected a description, got {str(value)[:80]!r}", name)
    kind = value.get("dtype")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        known = ", ".join(DTYPES)
        raise RefusedError(f"expected a dtype such as {known}, got {str(kind)[:40]!r}", name)
    shape, offsets = as_sizes(value.get("shape")), as_sizes(value.get("data_offsets"))
    if shape is None:
        came = str(value.get("shape"))[:80]
        raise RefusedError(f"expected a shape of some whole numbers, got {came}", name)
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        came = str(value.get("data_offsets"))[:80]
        raise RefusedError(f"expected two rising offsets, got {came}", name)
    num_bytes = offsets[1] - offsets[0]
    bits = 8 * _KNOWN[kind].itemsize if kind in _KNOWN else _BITS.get(kind)
    size = None if bits is None else -(-math.prod(shape) * bits // 8)
    # of a dtype that nobody here knows at most a number is as long as the longest one
    is_true = num_bytes <= math.prod(shape) * 16 if size is None else num_bytes == size
    if not is_true:
        raise RefusedError(
            f"expected {str(size)[:40]} bytes for shape {str(shape)[:80]} of {kind}, got offsets "
            f"for {num_bytes}",
            name,
        )
    return kind, shape, offsets[0], offsets[1]
