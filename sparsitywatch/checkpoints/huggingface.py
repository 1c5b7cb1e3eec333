"""Folders of ``save_pretrained`` and of the transformers Trainer's ``checkpoint-N``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from sparsitywatch.checkpoints.base import StoredTensor, TensorTable, as_step, reading
from sparsitywatch.checkpoints.distributed import open_distributed
from sparsitywatch.checkpoints.json_file import read_json
from sparsitywatch.checkpoints.safetensors import read_safetensors
from sparsitywatch.checkpoints.sharded import read_sharded
from sparsitywatch.checkpoints.storage import Folder, Source
from sparsitywatch.checkpoints.torch_file import read_torch
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = [
    "FSDP_FOLDER",
    "TRAINER_STATE",
    "WEIGHT_FILES",
    "is_adapter",
    "is_begun",
    "is_inside",
    "not_a_model",
    "open_huggingface",
    "weights_in",
]

#: What may hold the weights, best first. The rest of the name is the format.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
)
#: Where a Trainer, or Accelerate, keeps what FSDP has sharded: a folder of its own format.
FSDP_FOLDER = "pytorch_model_fsdp_0"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
#: Shards come before the index that says which there are.
_SHARD = re.compile(r"-\d+-of-\d+\.(?:safetensors|bin)$")
#: The Trainer writes it last.
TRAINER_STATE = "trainer_state.json"
_OF_A_RANK = re.compile(r"pytorch_model_fsdp(?:_\d+)?_rank\d+\.bin$")
_TRAINER_MARK = "training_args.bin"


def weights_in(names: Collection[str]) -> str | None:
    """The file of a folder that leads to the weights."""
    return next((name for name in WEIGHT_FILES if name in names), None)


def is_begun(names: Collection[str]) -> bool:
    """Whether a folder is one of transformers, whatever has come of its weights."""
    return FSDP_FOLDER in names or any(is_inside(name) or _SHARD.search(name) for name in names)


def is_inside(name: str) -> bool:
    """Whether a file belongs to a folder of transformers and is no checkpoint of its own."""
    is_known = name in WEIGHT_FILES or name in _ADAPTERS or name == TRAINER_STATE
    return is_known or _OF_A_RANK.match(name) is not None


def is_adapter(names: Collection[str]) -> bool:
    """Whether tensors are those of an adapter of PEFT alone, by the names that it gives them."""
    has_base = any(".base_layer." in name for name in names)
    all_inside = all(name.startswith("base_model.model.") for name in names)
    return all_inside and not has_base and any(".lora_" in name for name in names)


def not_a_model(url: str) -> CheckpointError:
    """What to do about an adapter."""
    return CheckpointError(
        f"Cannot read {url}: expected the weights of a model, got an adapter of PEFT, such as "
        "LoRA: small matrices on top of a base model that lies elsewhere. Merge the two and read "
        "that: model.merge_and_unload().save_pretrained(folder)."
    )


def open_huggingface(folder: Folder, names: Collection[str]) -> TensorTable:
    """A folder of transformers as a checkpoint. Pickled settings beside it are never read.

    Raises:
        IncompleteCheckpointError: the Trainer is still writing it, or a shard is missing.
        CheckpointError: it holds an adapter, or one part for each rank.
    """
    main = weights_in(names)
    is_sharded = main is None and FSDP_FOLDER in names
    if main is None and any(name in names for name in _ADAPTERS):
        raise not_a_model(folder.url)
    if main is None and any(_OF_A_RANK.match(name) for name in names):
        raise CheckpointError(
            f"Cannot read {folder.url}: expected whole weights, got one file for each rank of FSDP "
            "(a local state dict). Save with state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT."
        )
    is_short = main is None and not is_sharded
    if is_short or (_TRAINER_MARK in names and TRAINER_STATE not in names):
        what = " or ".join(WEIGHT_FILES) if is_short else TRAINER_STATE
        raise IncompleteCheckpointError(
            f"Cannot read {folder.url}: expected {what}, found none. The Trainer may still be "
            "writing the checkpoint."
        )
    step = _trainer_step(folder) if TRAINER_STATE in names else None
    if main is None:
        return open_distributed(
            folder.sub(FSDP_FOLDER), folder.url, "huggingface/distributed", step
        )
    read: Callable[[Source], dict[str, StoredTensor]]
    read = read_safetensors if ".safetensors" in main else lambda source: read_torch(source)[0]
    if main.endswith(".index.json"):
        stored, sources = read_sharded(folder, main, read)
    else:
        sources = [folder.open(main)]
        with reading(sources[0].url):
            stored = read(sources[0])
    kind = "safetensors" if ".safetensors" in main else "torch"
    return TensorTable(folder.url, f"huggingface/{kind}", stored, sources, step)


def _trainer_step(folder: Folder) -> int | None:
    content, _ = read_json(folder, TRAINER_STATE)
    return as_step(content.get("global_step"))
