"""What people put into ``torch.save``: the model's state dict somewhere, a step somewhere."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from sparsitywatch.checkpoints.base import StoredTensor, TensorTable, as_step, refused
from sparsitywatch.checkpoints.inert_pickle import Call, in_words
from sparsitywatch.checkpoints.storage import Source
from sparsitywatch.checkpoints.torch_legacy import LEGACY_START, read_torch_legacy
from sparsitywatch.checkpoints.torch_tensors import is_tensor, stored_tensor
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
    stored: dict[str, StoredTensor] = {}
    for key, node in weights.items():
        if not is_tensor(node):
            continue
        name = str(key) if type(key) is int else key
        if not isinstance(name, str) or name in stored:
            problem = f"names of tensors that occur once, got {in_words(key)}"
            raise refused(source.url, f"expected {problem}")
        stored[name] = stored_tensor(source, name, node, regions)
    return stored, tree


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
    return None


def open_torch(source: Source) -> TensorTable:
    """A file of torch.save as a checkpoint: nanoGPT's, Lightning's, a bare state dict."""
    stored, tree = read_torch(source)
    is_lightning = isinstance(tree, dict) and "pytorch-lightning_version" in tree
    return TensorTable(
        source.url, "lightning" if is_lightning else "torch", stored, [source], step_in(tree)
    )
