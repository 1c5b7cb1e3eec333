"""From a URL to the reader of what lies there: one file, or a folder of a training library."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, closing
from typing import Any

from sparsitywatch.checkpoints.base import (
    Checkpoint,
    StoredTensor,
    as_step,
    reading,
    refused,
)
from sparsitywatch.checkpoints.distributed import is_distributed, open_distributed
from sparsitywatch.checkpoints.safetensors import CODES, read_safetensors, with_codes_told
from sparsitywatch.checkpoints.storage import Folder, Source, filesystem, url_at
from sparsitywatch.checkpoints.torch_file import TORCH_STARTS, open_torch, read_torch, step_in
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError, is_number
from sparsitywatch.shown import shown_url
from sparsitywatch.weights.layout import Entry

__all__ = [
    "FSDP_FOLDER",
    "foreign",
    "format_of",
    "is_inside",
    "learning_rates",
    "open_checkpoint",
]

_START_BYTES = 14
_SHARDED = ".index.json"


def open_checkpoint(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Open one checkpoint, whatever its format; reads descriptions, no weights.

    Args:
        url: a file or a folder, local or on any storage that fsspec knows.
        storage_options: passed on to fsspec, such as credentials and an endpoint.

    Returns:
        The open checkpoint, a context manager.

    Raises:
        IncompleteCheckpointError: something is missing or cut off; it may still be written.
        CheckpointError: it cannot be read, or is refused. One line with file and cause.
    """
    fs, path = filesystem(url, storage_options)
    full = url_at(os.fspath(url), fs, path, path)
    folder = Folder(fs, path, shown_url(full))
    is_folder = folder.is_folder()
    with ExitStack() as unless_open, reading(folder.url):
        unless_open.callback(folder.close)
        if is_folder:
            checkpoint = _open_folder(folder)
        elif path.endswith(_SHARDED):
            parent, _, name = path.rpartition("/")
            beside = Folder(fs, parent, shown_url(url_at(full, fs, path, parent)))
            unless_open.callback(beside.close)
            checkpoint = _open_huggingface(beside, [name])
        else:
            source = Source(fs, path, folder.url)
            unless_open.callback(source.close)
            checkpoint = _open_file(source)
        entries = checkpoint.entries()
        if _is_adapter(entries):
            raise _not_a_model(checkpoint.url)
        if any(entry.dtype in CODES for entry in entries):
            checkpoint.resolve(with_codes_told)
        unless_open.pop_all()
        return checkpoint


def _open_folder(folder: Folder) -> Checkpoint:
    names = folder.names()
    kind = format_of(names)
    if kind == "distributed":
        return open_distributed(folder)
    if kind == "huggingface":
        return _open_huggingface(folder, names)
    if kind == "deepspeed":
        return _open_deepspeed(folder, names)
    if kind == "nanotron":
        raise _not_read(folder.url)
    if found := foreign(names):
        raise CheckpointError(f"Cannot read {folder.url}: expected a checkpoint. {found}")
    raise IncompleteCheckpointError(
        f"Cannot read {folder.url}: expected a checkpoint, got a folder with "
        f"{', '.join(names[:8]) or 'nothing'} in it. Name the file that holds the weights."
    )


def _open_file(source: Source) -> Checkpoint:
    if source.size == 0:
        raise IncompleteCheckpointError(
            f"Cannot read {source.url}: expected weights, got an empty file. It may be "
            "half-written."
        )
    start = source.read(0, min(_START_BYTES, source.size))
    if start.startswith(TORCH_STARTS):
        return open_torch(source)
    if source.path.endswith(".safetensors") or start[8:9] == b"{":
        return Checkpoint(source.url, "safetensors", read_safetensors(source), [source])
    if found := foreign([source.path]):
        raise CheckpointError(f"Cannot read {source.url}: expected a checkpoint. {found}")
    raise CheckpointError(
        f"Cannot read {source.url}: expected a file of safetensors or of torch.save, got one "
        f"that begins with {start!r}."
    )


def format_of(names: Collection[str]) -> str | None:
    """The format of a folder with these files and folders; None if it is no checkpoint."""
    if is_distributed(names):
        return "distributed"
    # a Trainer under DeepSpeed writes whole weights beside the partitions where it can
    if _weights_in(names) or FSDP_FOLDER in names:
        return "huggingface"
    if _is_nanotron(names):
        return "nanotron"
    if _is_deepspeed(names):
        return "deepspeed"
    return "huggingface" if _is_begun(names) else None


#: What other libraries write, by the ends of names; none of it is read.
_FOREIGN = (
    ("GGUF, as llama.cpp takes it", (".gguf",)),
    ("flax or JAX, as msgpack", (".msgpack",)),
    ("orbax (JAX)", ("_CHECKPOINT_METADATA", "manifest.ocdbt", "orbax.checkpoint")),
    ("TensorFlow or Keras", (".h5", ".keras", "saved_model.pb", ".ckpt.index", ".ckpt.meta")),
    ("ONNX", (".onnx",)),
    ("numpy or MLX", (".npz", ".npy")),
    ("NeMo, an archive", (".nemo",)),
)


def foreign(names: Iterable[str]) -> str:
    """What files of other libraries there are, in a sentence; empty if there are none."""
    names = list(names)
    for kind, ends in _FOREIGN:
        one = next((name for name in names if name.endswith(ends)), None)
        if one is not None:
            return (
                f"There is {one[-80:]!r}, a format of {kind}, which is not read. Load it with the "
                "library that wrote it, and save the weights with torch.save or as safetensors."
            )
    return ""


# ------------------------------------------------------------------ transformers

#: What may hold the weights, best first. The rest of the name is the format.
_WEIGHT_FILES = (
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
_TRAINER_STATE = "trainer_state.json"
_OF_A_RANK = re.compile(r"pytorch_model_fsdp(?:_\d+)?_rank\d+\.bin$")
_TRAINER_MARK = "training_args.bin"


def _weights_in(names: Collection[str]) -> str | None:
    """The file of a folder that leads to the weights."""
    return next((name for name in _WEIGHT_FILES if name in names), None)


def _is_begun(names: Collection[str]) -> bool:
    """Whether a folder is one of transformers, whatever has come of its weights."""
    return FSDP_FOLDER in names or any(is_inside(name) or _SHARD.search(name) for name in names)


def is_inside(name: str) -> bool:
    """Whether a file belongs to a folder of transformers and is no checkpoint of its own."""
    is_known = name in _WEIGHT_FILES or name in _ADAPTERS or name == _TRAINER_STATE
    return is_known or _OF_A_RANK.match(name) is not None


def _is_adapter(entries: Iterable[Entry]) -> bool:
    """Whether tensors are those of an adapter of PEFT alone, by the names that it gives them."""
    has_adapter = False
    for entry in entries:
        if ".base_layer." in entry.name or not entry.name.startswith("base_model.model."):
            return False
        has_adapter |= ".lora_" in entry.name
    return has_adapter


def _not_a_model(url: str) -> CheckpointError:
    return CheckpointError(
        f"Cannot read {url}: expected the weights of a model, got an adapter of PEFT, such as "
        "LoRA: small matrices on top of a base model that lies elsewhere. Merge the two and read "
        "that: model.merge_and_unload().save_pretrained(folder)."
    )


def _open_huggingface(folder: Folder, names: Collection[str]) -> Checkpoint:
    """A folder of transformers as a checkpoint. Pickled settings beside it are never read."""
    main = _weights_in(names)
    is_sharded = main is None and FSDP_FOLDER in names
    if main is None and any(name in names for name in _ADAPTERS):
        raise _not_a_model(folder.url)
    if main is None and any(_OF_A_RANK.match(name) for name in names):
        raise CheckpointError(
            f"Cannot read {folder.url}: expected whole weights, got one file for each rank of FSDP "
            "(a local state dict). Save with state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT."
        )
    is_short = main is None and not is_sharded
    if is_short or (_TRAINER_MARK in names and _TRAINER_STATE not in names):
        what = " or ".join(_WEIGHT_FILES) if is_short else _TRAINER_STATE
        raise IncompleteCheckpointError(
            f"Cannot read {folder.url}: expected {what}, found none. The Trainer may still be "
            "writing the checkpoint."
        )
    step = None
    if _TRAINER_STATE in names:
        step = as_step(_read_json(folder, _TRAINER_STATE).get("global_step"))
    if main is None:
        return open_distributed(
            folder.sub(FSDP_FOLDER), folder.url, "huggingface/distributed", step
        )
    read: Callable[[Source], dict[str, StoredTensor]]
    read = read_safetensors if ".safetensors" in main else lambda source: read_torch(source)[0]
    if main.endswith(".index.json"):
        stored, sources = _read_sharded(folder, main, read)
    else:
        sources = [folder.open(main)]
        with reading(sources[0].url):
            stored = read(sources[0])
    kind = "safetensors" if ".safetensors" in main else "torch"
    return Checkpoint(folder.url, f"huggingface/{kind}", stored, sources, step)


def _read_sharded(
    folder: Folder, index: str, read: Callable[[Source], dict[str, StoredTensor]]
) -> tuple[dict[str, StoredTensor], list[Source]]:
    """The tensors of all shards by name, in the order of the index, and the open files."""
    places = _read_json(folder, index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise refused(f"{folder.url}/{index}", "expected a weight_map from names to files")
    sources: list[Source] = []
    found: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(places.values()):
        sources.append(folder.open(file))
        with reading(sources[-1].url):
            shard = read(sources[-1])
        found |= {name: shard[name] for name in shard if places.get(name) == file}
    for name, file in places.items():
        if name not in found:
            raise IncompleteCheckpointError(
                f"Cannot read {folder.url}/{file[:120]}, tensor {name[:120]!r}: {index} places it "
                "there, but the file has none of this name. It may be of another save."
            )
    return {name: found[name] for name in places}, sources


def learning_rates(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> dict[int, float]:
    """What a Trainer logged as its learning rate up to a checkpoint, by step; empty if nothing.

    It is that of the first parameter group. Its weight decay is in a pickle, which is never read.

    Raises:
        CheckpointError: there is a trainer state, and it cannot be read.
    """
    fs, path = filesystem(url, storage_options)
    full = url_at(os.fspath(url), fs, path, path)
    with closing(Folder(fs, path, shown_url(full))) as folder:
        if not folder.is_folder() or _TRAINER_STATE not in folder.names():
            return {}
        rows = _read_json(folder, _TRAINER_STATE).get("log_history", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise refused(f"{folder.url}/{_TRAINER_STATE}", "expected a log_history of objects")
    found = {}
    for row in rows:  # those of an evaluation have no learning rate
        step, rate = as_step(row.get("step")), row.get("learning_rate")
        if step is not None and is_number(rate) and 0.0 <= rate < math.inf:
            found[step] = float(rate)
    return found


#: A trainer state with a million logged lines has about 200 MB.
_MAX_JSON_BYTES = 512 * 2**20


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
    """The object in a small JSON file beside the weights."""
    source = folder.open(name)
    try:
        if source.size > _MAX_JSON_BYTES:
            raise refused(source.url, f"expected at most {_MAX_JSON_BYTES} bytes of JSON, got more")
        content = json.loads(source.read(0, source.size).decode("utf-8"))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise IncompleteCheckpointError(
            f"Cannot read {source.url}: expected an object in JSON, got something that is not or "
            f"ends too early ({type(error).__name__}). It may be half-written."
        ) from error
    finally:
        source.close()
    if not isinstance(content, dict):
        raise refused(source.url, "expected an object in JSON, got something else")
    return content


# ------------------------------------------------------------------ DeepSpeed

_STATES = "_model_states.pt"
#: All weights of a model, where it is neither sharded (ZeRO-3) nor split between ranks.
_WHOLE = "mp_rank_00_model_states.pt"
_LATEST = "latest"
_MAX_TAG_BYTES = 256


def _is_deepspeed(names: Collection[str]) -> bool:
    """Whether a folder with these files and folders was written by DeepSpeed."""
    if any(name.endswith((_STATES, "_optim_states.pt")) for name in names):
        return True
    tags = [name for name in names if name.startswith("global_step")]
    return bool(tags) and (_LATEST in names or "zero_to_fp32.py" in names)


def _open_deepspeed(folder: Folder, names: Collection[str]) -> Checkpoint:
    """A folder of DeepSpeed, or the one inside that its ``latest`` names, as a checkpoint.

    The weights are in the precision that the training computes in; what ZeRO keeps in single
    precision beside them is in partitions.
    """
    states = [name for name in names if name.endswith(_STATES)]
    if not states and _LATEST in names:
        with closing(folder.open(_LATEST)) as latest:
            tag = latest.read(0, min(latest.size, _MAX_TAG_BYTES)).decode(errors="replace").strip()
        if tag in names:
            inside = folder.sub(tag)
            return _open_deepspeed(inside, [name for name in inside.names() if name != _LATEST])
    if states != [_WHOLE]:
        raise _in_partitions(folder.url)
    source = folder.open(_WHOLE)
    with reading(source.url):
        stored, tree = read_torch(source)
    if isinstance(tree, dict) and (as_step(tree.get("mp_world_size")) or 1) > 1:
        raise _in_partitions(folder.url)
    return Checkpoint(folder.url, "deepspeed", stored, [source], step_in(tree))


def _in_partitions(url: str) -> CheckpointError:
    return CheckpointError(
        f"Cannot read {url}: expected whole tensors, got the partitions of DeepSpeed ZeRO. Make "
        "them whole: run `python zero_to_fp32.py . consolidated --safe_serialization` in that "
        "folder and read `consolidated`, or train with stage3_gather_16bit_weights_on_model_save."
    )


# ------------------------------------------------------------------ nanotron


def _is_nanotron(names: Collection[str]) -> bool:
    """Whether a folder with these files and folders was written by nanotron."""
    return "checkpoint_metadata.json" in names and "model" in names


def _not_read(url: str) -> CheckpointError:
    return CheckpointError(
        f"Cannot read {url}: expected a checkpoint, got a folder of nanotron, which is not read. "
        "Convert it with nanotron's examples/llama/convert_nanotron_to_hf.py and read the result."
    )
