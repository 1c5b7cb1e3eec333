"""From a URL to the reader of what lies there: the list of formats, and transformers' folders."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from sparsitywatch.checkpoints.base import (
    Checkpoint,
    ReadingError,
    RefusedError,
    Signature,
    StoredTensor,
    UnfinishedError,
    as_step,
    reading,
)
from sparsitywatch.checkpoints.distributed import is_distributed, open_distributed, read_distributed
from sparsitywatch.checkpoints.safetensors import is_safetensors, open_safetensors, read_safetensors
from sparsitywatch.checkpoints.storage import Location
from sparsitywatch.checkpoints.torch_file import (
    is_deepspeed,
    is_torch,
    open_deepspeed,
    open_torch,
    read_torch,
)
from sparsitywatch.errors import is_number
from sparsitywatch.weights.layout import Entry

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
_INDEX = ".index.json"
#: Where a Trainer, or Accelerate, keeps what FSDP has sharded: a folder of its own format.
FSDP_FOLDER = "pytorch_model_fsdp_0"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
#: Shards come before the index that says which there are.
_SHARD = re.compile(r"-\d+-of-\d+\.(?:safetensors|bin)$")
#: The Trainer writes it last.
_TRAINER_STATE = "trainer_state.json"
_OF_A_RANK = re.compile(r"pytorch_model_fsdp(?:_\d+)?_rank\d+\.bin$")
_TRAINER_MARK = "training_args.bin"


def _has_weights(seen: Signature) -> bool:
    """Whether a folder of transformers has its weights, or what leads to them."""
    return FSDP_FOLDER in seen.names or any(name in _WEIGHT_FILES for name in seen.names)


def _is_begun(seen: Signature) -> bool:
    """Whether a folder is one of transformers, whatever has come of its weights."""
    return any(is_inside(name) or _SHARD.search(name) for name in seen.names)


def is_inside(name: str) -> bool:
    """Whether a file belongs to a folder of transformers and is no checkpoint of its own."""
    is_known = name in _WEIGHT_FILES or name in _ADAPTERS or name == _TRAINER_STATE
    return is_known or _OF_A_RANK.match(name) is not None


def _open_huggingface(place: Location, seen: Signature) -> Checkpoint:
    """A folder of transformers as a checkpoint. Pickled settings beside it are never read."""
    names = seen.names
    main = next((name for name in _WEIGHT_FILES if name in names), None)
    is_sharded = main is None and FSDP_FOLDER in names
    if main is None and any(name in names for name in _ADAPTERS):
        raise ReadingError(_ADAPTER)
    if main is None and any(_OF_A_RANK.match(name) for name in names):
        raise ReadingError(
            "expected whole weights, got one file for each rank of FSDP (a local state dict). Save "
            "with state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT."
        )
    is_short = main is None and not is_sharded
    if is_short or (_TRAINER_MARK in names and _TRAINER_STATE not in names):
        what = " or ".join(_WEIGHT_FILES) if is_short else _TRAINER_STATE
        raise UnfinishedError(
            f"expected {what}, found none. The Trainer may still be writing the checkpoint."
        )
    step: int | Callable[[], int | None] | None = None
    if _TRAINER_STATE in names:
        step = as_step(_read_json(place.inside(_TRAINER_STATE)).get("global_step"))
    if main is None:
        stored, find_step = read_distributed(place.inside(FSDP_FOLDER))
        kind, step = "distributed", find_step if step is None else step
    else:
        stored = _read_sharded(place, main) if main.endswith(_INDEX) else _read(place.inside(main))
        kind = "safetensors" if ".safetensors" in main else "torch"
    return Checkpoint(place, f"huggingface/{kind}", stored, step)


def _read(file: Location) -> dict[str, StoredTensor]:
    return read_safetensors(file) if file.path.endswith(".safetensors") else read_torch(file)[0]


def _read_sharded(place: Location, index: str) -> dict[str, StoredTensor]:
    """The tensors of all shards by name, in the order of the index."""
    files = _read_json(place.inside(index)).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise RefusedError("expected a weight_map from names to files").at(
            place.inside(index).shown
        )
    found: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(files.values()):
        shard = _read(place.inside(file))
        found |= {name: shard[name] for name in shard if files.get(name) == file}
    for name, file in files.items():
        if name not in found:
            cause = f"{index} places it there, but the file has none of this name"
            error = UnfinishedError(f"{cause}. It may be of another save.", name)
            raise error.at(f"{place.shown}/{file[:120]}")
    return {name: found[name] for name in files}


def learning_rates(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> dict[int, float]:
    """What a Trainer logged as its learning rate up to a checkpoint, by step; empty if nothing.

    It is that of the first parameter group. Its weight decay is in a pickle, which is never read.
    """
    place = Location.of(url, storage_options)
    if not place.is_folder() or _TRAINER_STATE not in place.names():
        return {}
    file = place.inside(_TRAINER_STATE)
    rows = _read_json(file).get("log_history", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RefusedError("expected a log_history of objects").at(file.shown)
    found = {}
    for row in rows:  # those of an evaluation have no learning rate
        step, rate = as_step(row.get("step")), row.get("learning_rate")
        if step is not None and is_number(rate) and 0.0 <= rate < math.inf:
            found[step] = float(rate)
    return found


#: A trainer state with a million logged lines has about 200 MB.
_MAX_JSON_BYTES = 512 * 2**20


def _read_json(file: Location) -> dict[str, Any]:
    """The object in a small JSON file beside the weights."""
    with closing(file.source()) as source, reading(file.shown):
        if source.size > _MAX_JSON_BYTES:
            raise RefusedError(f"expected at most {_MAX_JSON_BYTES} bytes of JSON, got more")
        data = source.read(0, source.size)
        try:
            content = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UnfinishedError(
                "expected an object in JSON, got something that is not or ends too early "
                f"({type(error).__name__}). It may be half-written."
            ) from error
        if not isinstance(content, dict):
            raise RefusedError("expected an object in JSON, got something else")
        return content


def _is_adapter(entries: Iterable[Entry]) -> bool:
    """Whether tensors are those of an adapter of PEFT alone, by the names that it gives them."""
    has_adapter = False
    for entry in entries:
        if ".base_layer." in entry.name or not entry.name.startswith("base_model.model."):
            return False
        has_adapter |= ".lora_" in entry.name
    return has_adapter


_ADAPTER = (
    "expected the weights of a model, got an adapter of PEFT, such as LoRA: small matrices on top "
    "of a base model that lies elsewhere. Merge the two and read that: "
    "model.merge_and_unload().save_pretrained(folder)."
)


# ------------------------------------------------------------------ what is not read


def _is_nanotron(seen: Signature) -> bool:
    return "checkpoint_metadata.json" in seen.names and "model" in seen.names


def _refuse_nanotron(*_: object) -> Checkpoint:
    raise ReadingError(
        "expected a checkpoint, got a folder of nanotron, which is not read. Convert it with "
        "nanotron's examples/llama/convert_nanotron_to_hf.py and read the result."
    )


#: What other libraries write, by the ends of names.
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


# ------------------------------------------------------------------ the list, and what it opens

Matches = Callable[[Signature], bool]
Open = Callable[[Location, Signature], Checkpoint]

#: How a place is read: by the first that matches.
FORMATS: Sequence[tuple[str, Matches, Open]] = (
    ("torch", is_torch, open_torch),
    ("safetensors", is_safetensors, open_safetensors),
    ("distributed", is_distributed, open_distributed),
    # a Trainer under DeepSpeed writes whole weights beside the partitions where it can
    ("huggingface", _has_weights, _open_huggingface),
    ("nanotron", _is_nanotron, _refuse_nanotron),
    ("deepspeed", is_deepspeed, open_deepspeed),
    ("huggingface", _is_begun, _open_huggingface),
)

_START_BYTES = 14


def format_of(names: Collection[str]) -> str | None:
    """The format of a folder with these files and folders; None if it is no checkpoint."""
    seen = Signature(names=names)
    return next((kind for kind, matches, _ in FORMATS if matches(seen)), None)


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
    place = Location.of(url, storage_options)
    with ExitStack() as unless_open, reading(place.shown):
        unless_open.callback(place.close)
        parent, _, name = place.path.rpartition("/")
        if place.is_folder():
            seen = Signature(names=place.names())
        elif name.endswith(_INDEX):
            place, seen = place.at(parent), Signature(names=[name])
        else:
            seen = Signature(own_name=name, start=_start(place))
        for _, matches, open_it in FORMATS:
            if matches(seen):
                checkpoint = open_it(place, seen)
                break
        else:
            raise _unknown(seen)
        if _is_adapter(checkpoint.entries()):
            raise ReadingError(_ADAPTER)
        unless_open.pop_all()
        return checkpoint


def _start(file: Location) -> bytes:
    source = file.open()
    if source.size == 0:
        raise UnfinishedError("expected weights, got an empty file. It may be half-written.")
    return source.read(0, min(_START_BYTES, source.size))


def _unknown(seen: Signature) -> ReadingError:
    if found := foreign([*seen.names, seen.own_name]):
        return ReadingError(f"expected a checkpoint. {found}")
    if seen.start:
        return ReadingError(
            "expected a file of safetensors or of torch.save, got one that begins with "
            f"{seen.start!r}."
        )
    some = ", ".join(list(seen.names)[:8]) or "nothing"
    return UnfinishedError(
        f"expected a checkpoint, got a folder with {some} in it. Name the file that holds the "
        "weights."
    )
