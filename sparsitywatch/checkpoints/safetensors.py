"""The safetensors format: a length, a JSON header, then the bytes of the tensors.

Reference: https://github.com/huggingface/safetensors (README, section "Format").

Quantised weights, which mostly come in it, are codes with scales beside them: they are reported
to be codes, and refused where they are in scope. The layouts: fp8 of DeepSeek-V3 and transformers
(``weight_scale_inv``), of compressed-tensors, FBGEMM and ModelOpt (``weight_scale``), bitsandbytes
(``SCB``, ``quant_state``), GPTQ and AWQ (``qweight``), MXFP4 as of gpt-oss (``_blocks``).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sparsitywatch.checkpoints.base import Stored, StoredTensor, StridedTensor, cut_off, refused
from sparsitywatch.checkpoints.inert_pickle import as_sizes
from sparsitywatch.checkpoints.storage import Source
from sparsitywatch.weights.layout import Entry

__all__ = ["CODES", "DTYPES", "MAX_HEADER_BYTES", "read_safetensors", "with_codes_told"]

#: The cap of the safetensors library.
MAX_HEADER_BYTES = 100_000_000

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
#: dtypes of which several elements share bytes, by the bits of one.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
#: How names of dtypes look; one that is not known here is of a newer format.
_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,23}")


def read_safetensors(source: Source) -> dict[str, StoredTensor]:
    """The tensors of one file by name; only its header is read."""
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise refused(
            source.url, f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}"
        )
    header = _parse(source.url, source.read(8, length))
    start = 8 + length
    stored: dict[str, StoredTensor] = {}
    end = 0
    for name, (kind, shape, begin, stop) in sorted(
        header.items(), key=lambda item: (item[1][2:], item[0])
    ):
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise refused(source.url, f"it {what} (from byte {begin}, expected {end})", name)
        if start + stop > source.size:
            raise cut_off(source, f", tensor {name[:120]!r}: expected it", start + stop)
        dtype = _dtype(kind)
        if dtype is None:
            entry = Entry(
                name=name, shape=shape, dtype=torch.uint8, stored_as=kind,
                problem=f"it is of dtype {kind}, which cannot be read here",
            )  # fmt: skip
            stored[name] = StoredTensor(entry=entry, position=(source.path, start + begin))
        else:
            stored[name] = StridedTensor(
                entry=Entry(name=name, shape=shape, dtype=dtype),
                position=(source.path, start + begin),
                source=source,
                start=start + begin,
                num_bytes=stop - begin,
            )
        end = stop
    if start + end != source.size:
        raise refused(
            source.url,
            f"expected the file to end with its last tensor at byte {start + end}, but it has "
            f"{source.size}",
        )
    return stored


def _dtype(kind: str) -> torch.dtype | None:
    found = DTYPES.get(kind) or getattr(torch, _NEWER.get(kind, ""), None)
    return found if isinstance(found, torch.dtype) else None


def _parse(url: str, data: bytes) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """dtype, shape, first and last byte of every tensor in a header."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise refused(url, f"expected names that occur once, got {twice[:80]!r} twice")
        return found

    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise refused(url, "expected a safetensors header in JSON, got something else") from error
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise refused(url, "a header with a number of thousands of digits") from error
    if not isinstance(header, dict):
        raise refused(url, "expected a safetensors header in JSON, got something else")
    header.pop("__metadata__", None)
    return {name: _described(url, name, value) for name, value in header.items()}


def _described(url: str, name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(value, dict):
        raise refused(url, f"expected a description, got {str(value)[:80]!r}", name)
    kind = value.get("dtype")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        known = ", ".join(DTYPES)
        raise refused(url, f"expected a dtype such as {known}, got {str(kind)[:40]!r}", name)
    shape, offsets = as_sizes(value.get("shape")), as_sizes(value.get("data_offsets"))
    if shape is None:
        came = str(value.get("shape"))[:80]
        raise refused(url, f"expected a shape of some whole numbers, got {came}", name)
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        came = str(value.get("data_offsets"))[:80]
        raise refused(url, f"expected two rising offsets, got {came}", name)
    dtype, came_bytes = _dtype(kind), offsets[1] - offsets[0]
    bits = _BITS.get(kind) if dtype is None else 8 * dtype.itemsize
    size = None if bits is None else -(-math.prod(shape) * bits // 8)
    # of a dtype that nobody here knows at most a number is as long as the longest one
    is_true = came_bytes <= math.prod(shape) * 16 if size is None else came_bytes == size
    if not is_true:
        raise refused(
            url,
            f"expected {str(size)[:40]} bytes for shape {str(shape)[:80]} of {kind}, got offsets "
            f"for {came_bytes}",
            name,
        )
    return kind, shape, offsets[0], offsets[1]


# ------------------------------------------------------------------ codes of weights

#: Scales that codes are multiplied by, by what follows the name of the codes.
_SCALES = ("_scale_inv", "_scale")
_FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
#: Attributes that hold packed codes.
_PACKED = ("qweight", "weight_packed")
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"
_WHOLE_CODES = frozenset({torch.int8, torch.uint8, torch.int32})
#: dtypes of what may be codes of weights.
CODES = _FP8 | _WHOLE_CODES


def with_codes_told(stored: Stored) -> Stored:
    """The tensors of a checkpoint; those that are codes of a weight have its name, and say so."""
    found: dict[str, StoredTensor] = {}
    for name, one in stored.items():
        module, _, attribute = name.rpartition(".")
        entry = one.entry
        is_matrix = len(entry.shape) >= 2 and not entry.problem
        weight = problem = ""
        if is_matrix and entry.dtype in _FP8:
            scale = next((end for end in _SCALES if name + end in stored), "")
            problem = (
                f"a quantised weight, beside their scale ({attribute}{scale})" if scale else ""
            )
        elif is_matrix and entry.dtype in _WHOLE_CODES:
            if name.removesuffix(_BLOCKS) + _BLOCK_SCALES in stored:
                weight = attribute.removesuffix(_BLOCKS)
            elif attribute in _PACKED:
                weight = "weight"
            of = f"{module}.{weight}" if module else weight
            is_packed = weight != "" and of not in stored
            if is_packed or (attribute == "weight" and entry.dtype != torch.int32):
                problem = f"a quantised weight ({attribute})"
                name = of if is_packed else name
        if problem:
            kind = f"{str(entry.dtype).removeprefix('torch.')} codes"
            problem = f"it is stored as {kind} of {problem}"
            one = StoredTensor(entry=replace(entry, stored_as=kind, problem=problem))
        found[name] = one
    return found
