"""Folders of ``save_pretrained`` and of the transformers Trainer's ``checkpoint-N``."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sparsitywatch.checkpoints.base import StoredTensor, TensorTable, as_step, reading
from sparsitywatch.checkpoints.json_file import read_json
from sparsitywatch.checkpoints.safetensors import read_safetensors
from sparsitywatch.checkpoints.sharded import read_sharded
from sparsitywatch.checkpoints.storage import Folder, Source
from sparsitywatch.checkpoints.torch_file import read_torch
from sparsitywatch.errors import IncompleteCheckpointError

__all__ = ["TRAINER_STATE", "WEIGHT_FILES", "open_huggingface", "weights_in"]

#: What may hold the weights, best first. The rest of the name is the format.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
#: The Trainer writes it last.
TRAINER_STATE = "trainer_state.json"
_TRAINER_MARK = "training_args.bin"


def weights_in(names: Collection[str]) -> str | None:
    """The file of a folder that leads to the weights."""
    return next((name for name in WEIGHT_FILES if name in names), None)


def open_huggingface(folder: Folder, names: Collection[str]) -> TensorTable:
    """A folder of transformers as a checkpoint. Pickled settings beside it are never read.

    Raises:
        IncompleteCheckpointError: the Trainer is still writing it, or a shard is missing.
    """
    main = weights_in(names)
    if main is None or (_TRAINER_MARK in names and TRAINER_STATE not in names):
        what = " or ".join(WEIGHT_FILES) if main is None else TRAINER_STATE
        raise IncompleteCheckpointError(
            f"Cannot read {folder.url}: expected {what}, found none. The Trainer may still be "
            "writing the checkpoint."
        )
    read: Callable[[Source], dict[str, StoredTensor]]
    read = read_safetensors if ".safetensors" in main else lambda source: read_torch(source)[0]
    if main.endswith(".index.json"):
        stored, sources = read_sharded(folder, main, read)
    else:
        sources = [folder.open(main)]
        with reading(sources[0].url):
            stored = read(sources[0])
    step = _trainer_step(folder) if TRAINER_STATE in names else None
    kind = "safetensors" if ".safetensors" in main else "torch"
    return TensorTable(folder.url, f"huggingface/{kind}", stored, sources, step)


def _trainer_step(folder: Folder) -> int | None:
    content, _ = read_json(folder, TRAINER_STATE)
    return as_step(content.get("global_step"))
