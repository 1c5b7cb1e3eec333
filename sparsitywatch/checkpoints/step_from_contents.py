"""How far a training had come, as its file states it beside the weights."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sparsitywatch.checkpoints.inert_pickle import Call, Global

#: Keys under which a checkpoint keeps the number of optimizer steps done, and that of epochs.
STEP_KEYS = ("global_step", "step_count", "iter_num", "step", "global_steps", "iteration",
             "num_updates", "steps_done", "iter", "global_iter", "current_step", "n_iter",
             "n_total_iter", "ss_steps")  # fmt: skip
EPOCH_KEYS = ("epoch", "current_epoch", "epoch_num", "ss_epoch")
#: Dictionaries beside the model, or around it, in which they lie as well. Settings are none.
PROGRESS = ("trainer", "trainer_state", "train_state", "training_state", "train_iterator", "meta",
            "metadata", "extra_state", "optimizer_history", "timestamp", "Timestamp")  # fmt: skip
#: As Composer calls the number of optimizer steps in its time stamp.
_COMPOSER_STAMP, _COMPOSER_KEYS = "Timestamp", ("batch",)

#: A whole number out of a node of a file, such as a tensor with one element.
Whole = Callable[[Any], int | None]


def stated(around: Sequence[Mapping[Any, Any]], keys: Sequence[str], whole: Whole) -> int | None:
    """The first whole number under one of ``keys``, from the top of a checkpoint to its model."""
    for place, name in _places(around):
        own = _COMPOSER_KEYS if name == _COMPOSER_STAMP and keys is STEP_KEYS else keys
        found = (whole(place[key]) for key in own if key in place)
        number = next((number for number in found if number is not None), None)
        if number is not None:
            return number
    return None


def _places(around: Sequence[Mapping[Any, Any]]) -> Iterator[tuple[Mapping[Any, Any], str]]:
    for place in around:
        yield place, ""
    for place in around:
        yield from _inside(place, 2)


def _inside(place: Mapping[Any, Any], depth: int) -> Iterator[tuple[Mapping[Any, Any], str]]:
    for name in PROGRESS:
        child = place.get(name)
        if isinstance(child, list) and child:  # fairseq's history of its optimizers
            child = child[-1]
        if isinstance(child, dict):
            yield child, name
            if depth > 1:
                yield from _inside(child, depth - 1)


# ------------------------------------------------------------------ numbers


def as_step(node: object) -> int | None:
    """A number of optimizer steps out of a file; None if it is something else.

    >>> as_step(500), as_step(True), as_step(-1), as_step(10**5000)
    (500, None, None, None)
    """
    return node if type(node) is int and 0 <= node < 2**63 else None


_SCALAR = re.compile(r"numpy\.(?:core|_core)\.multiarray$")
_FORMATS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
            "f4": "f", "f8": "d"}  # fmt: skip


def whole_of(node: Any) -> int | None:
    """The number of steps that a node of a pickle, or a word of a header, stands for.

    >>> whole_of(500), whole_of(500.0), whole_of("500"), whole_of(0.5), whole_of(True)
    (500, 500, 500, None, None)
    """
    if isinstance(node, str):
        return int(node) if re.fullmatch(r"[0-9]{1,18}", node) else None
    if isinstance(node, Call):
        node = _of_numpy(node)
    if isinstance(node, float) and node.is_integer():
        node = int(node)
    return as_step(node)


def _of_numpy(call: Call) -> int | float | None:
    """The value of a scalar of numpy, or of an array with one element."""
    function, arguments = call.function, call.arguments
    if not isinstance(function, Global) or not _SCALAR.match(function.module):
        return None
    if function.name == "_reconstruct" and isinstance(call.state, tuple) and len(call.state) > 4:
        arguments = (call.state[2], call.state[4])
    elif function.name != "scalar" or not isinstance(arguments, tuple) or len(arguments) != 2:
        return None
    dtype, data = arguments
    if isinstance(data, Call) and isinstance(data.arguments, tuple) and data.arguments:
        data = data.arguments[0]  # bytes as a pickle of protocol 2 has them
        data = data.encode("latin-1", "replace") if isinstance(data, str) else data
    kind = dtype.arguments[0] if isinstance(dtype, Call) and dtype.arguments else None
    if not isinstance(kind, str) or kind not in _FORMATS or not isinstance(data, bytes):
        return None
    order = ">" if isinstance(dtype.state, tuple) and ">" in dtype.state[:2] else "<"
    layout = struct.Struct(order + _FORMATS[kind])
    return layout.unpack(data)[0] if len(data) == layout.size else None
