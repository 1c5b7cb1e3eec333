"""What people put into ``torch.save``: the model's state dict somewhere, a step somewhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from sparsitywatch.checkpoints.base import StoredTensor, TensorTable, Unreadable, as_step, refused
from sparsitywatch.checkpoints.inert_pickle import Call, in_words
from sparsitywatch.checkpoints.storage import Source
from sparsitywatch.checkpoints.torch_legacy import LEGACY_START, read_torch_legacy
from sparsitywatch.checkpoints.torch_tensors import (
    Region,
    is_tensor,
    stored_tensor,
    unreadable_tensor,
)
from sparsitywatch.checkpoints.torch_zip import read_torch_zip
from sparsitywatch.errors import CheckpointError

__all__ = ["MODEL_KEYS", "STEP_KEYS", "TORCH_STARTS", "open_torch", "read_torch", "step_in"]

#: Keys under which a checkpoint keeps the model, in the order in which they are tried.
MODEL_KEYS = ("state_dict", "model", "module", "model_state_dict", "net")
#: Keys under which a checkpoint keeps the number of optimizer steps done.
STEP_KEYS = (
    "global_step",
    "iter_num",
    "step",
    "global_steps",
    "iteration",
    "num_updates",
    "steps_done",
)
#: How files of torch.save begin.
TORCH_STARTS = (b"PK\x03\x04", LEGACY_START)

_MAX_DEPTH = 3
#: What views of its storages may come to, as a multiple of a file and in bytes beside it.
_MAX_TIMES_SIZE, _MAX_EXPANDED_BYTES = 4, 64 * 2**20
#: Where Composer keeps the model, and the number of batches done.
_COMPOSER = "state"
_COMPOSER_STEP = (_COMPOSER, "timestamp", "Timestamp", "batch")


def read_torch(source: Source) -> tuple[dict[str, StoredTensor], Any]:
    """The tensors of the model by name, and all that the file describes.

    Raises:
        CheckpointError: the file is refused, or holds no state dict.
    """
    is_legacy = source.read(0, min(source.size, len(LEGACY_START))) == LEGACY_START
    tree, regions = read_torch_legacy(source) if is_legacy else read_torch_zip(source)
    weights = _state_dict(tree)
    if weights is None:
        raise CheckpointError(
            f"Cannot read {source.url}: expected a state dict, or one under "
            f"{', '.join(MODEL_KEYS)}; got {_what(tree)}. Save model.state_dict() and read that."
        )
    return _stored(source, weights, regions), tree


def _stored(
    source: Source, weights: Mapping[Any, Any], regions: Mapping[str, Region]
) -> dict[str, StoredTensor]:
    """The tensors of a state dict by name.

    Views of one storage may be many and large: what a few bytes of a pickle make of it can be
    read as long as all together is not much more than the file.
    """
    left = _MAX_TIMES_SIZE * source.size + _MAX_EXPANDED_BYTES
    seen: set[Hashable] = set()
    stored: dict[str, StoredTensor] = {}
    for key, node in weights.items():
        if not is_tensor(node):
            continue
        name = str(key) if type(key) is int else key
        if not isinstance(name, str) or name in stored:
            problem = f"names of tensors that occur once, got {in_words(key)}"
            raise refused(source.url, f"expected {problem}")
        one = unreadable_tensor(name, node) or stored_tensor(source, name, node, regions)
        entry = one.entry
        if not entry.problem and entry.storage not in seen:
            seen.add(entry.storage)
            if entry.num_bytes > left:
                problem = f"it is expanded to {entry.num_bytes} bytes that are not in the file"
                one = Unreadable(replace(entry, problem=problem))
            else:
                left -= entry.num_bytes
        stored[name] = one
    return stored


def _state_dict(tree: Any) -> Mapping[Any, Any] | None:
    """The tensors of the model: under its usual keys, at the top, or one dictionary further in."""
    found = _search(tree, set())
    # a loss beside it does not make the top a state dict
    inner = _around_model(tree) if found is None or found is tree else None
    return found if inner is None else _search(inner, set())


def _search(node: Any, seen: set[int], depth: int = 0) -> Mapping[Any, Any] | None:
    """The first dictionary that holds tensors, under the keys of a model or at the top.

    Each dictionary is looked at once, however often it is mentioned.
    """
    if not isinstance(node, dict) or depth == _MAX_DEPTH or id(node) in seen:
        return None
    seen.add(id(node))
    for key in MODEL_KEYS:
        found = _search(node.get(key), seen, depth + 1)
        if found is not None:
            return found
    return node if any(is_tensor(value) for value in node.values()) else None


def _around_model(tree: Any) -> Mapping[Any, Any] | None:
    """The one dictionary at the top that holds a model under its key, whatever its own is.

    None if there are several: which one is watched nobody has said.
    """
    seen: set[int] = set()
    holders = [
        node
        for node in (tree.values() if isinstance(tree, dict) else ())
        if isinstance(node, dict) and any(_search(node.get(key), seen) for key in MODEL_KEYS)
    ]
    return holders[0] if len(holders) == 1 else None


def _what(tree: Any) -> str:
    if isinstance(tree, dict):
        keys = [in_words(key)[:40] for key in islice(tree, 8)]
        return f"a dictionary of {', '.join(keys) or 'nothing'}"
    return f"{in_words(tree)}, which is never made" if isinstance(tree, Call) else in_words(tree)


def step_in(tree: Any) -> int | None:
    """The number of optimizer steps that a checkpoint states, at its top or beside the model."""
    for node in (tree, _around_model(tree)):
        if isinstance(node, dict):
            for key in STEP_KEYS:
                if (step := as_step(node.get(key))) is not None:
                    return step
    node = tree
    for key in _COMPOSER_STEP:
        node = node.get(key) if isinstance(node, dict) else None
    return as_step(node)


def open_torch(source: Source) -> TensorTable:
    """A file of torch.save as a checkpoint: nanoGPT's, Lightning's, a bare state dict."""
    stored, tree = read_torch(source)
    kind = "torch"
    if isinstance(tree, dict) and "pytorch-lightning_version" in tree:
        kind = "lightning"
    elif isinstance(tree, dict) and _around_model(tree) is tree.get(_COMPOSER, tree):
        kind = "composer"
    return TensorTable(source.url, kind, stored, [source], step_in(tree))
