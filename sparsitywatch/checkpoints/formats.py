"""From a URL to the reader of what lies there: the formats of Hugging Face, and the list of all.

Reference: https://github.com/huggingface/safetensors (README, section "Format").
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sparsitywatch.checkpoints.base import Checkpoint, Contents, Tree, choose, everything
from sparsitywatch.checkpoints.distributed import read_distributed
from sparsitywatch.checkpoints.inert_pickle import whole_of
from sparsitywatch.checkpoints.storage import Location, Options, Range, SourceFile, Url
from sparsitywatch.checkpoints.tensors import (
    ARCHIVE_START,
    ReadingError,
    RefusedError,
    StoredTensor,
    StridedTensor,
    UnfinishedError,
    cut_off,
    reading,
)
from sparsitywatch.checkpoints.torch_file import (
    OLD_START,
    as_sizes,
    read_beside,
    read_deepspeed,
    read_torch,
)
from sparsitywatch.errors import is_number
from sparsitywatch.weights.layout import Entry

# ------------------------------------------------------------------ safetensors

#: The cap of the safetensors library.
_MAX_HEADER_BYTES = 100_000_000

#: Some of them only newer versions of torch have: scales and codes of quantised weights.
DTYPES: Mapping[str, torch.dtype] = {
    kind: vars(torch)[name]
    for kind, name in {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
        "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
        "C64": "complex64",
    }.items()
    if name in vars(torch)
}  # fmt: skip
#: dtypes of which several elements share bytes, by the bits of one.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
#: How names of dtypes look; one that is not known here is of a newer format.
_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,23}")
#: A tensor in a header, its first byte among those of all, and the one behind its last.
Described = tuple[Entry, int, int]


def read_safetensors(file: Location) -> Contents:
    """One file; only its header is read."""
    source = file.open()
    length = int.from_bytes(source.read(0, 8), "little")
    if length > _MAX_HEADER_BYTES:
        raise RefusedError(f"expected a header of at most {_MAX_HEADER_BYTES} bytes, got {length}")
    header, words = _parse(source.read(8, length))
    tree = Tree(words | _placed(source, header, 8 + length))
    return Contents(place=file, format="safetensors", tree=tree)


def _placed(source: SourceFile, header: Iterable[Described], start: int) -> dict[str, StoredTensor]:
    """The described tensors, which lie one behind the other from ``start`` to the end."""
    stored: dict[str, StoredTensor] = {}
    end = 0
    for entry, begin, stop in sorted(header, key=lambda one: (one[1:], one[0].name)):
        name, place = entry.name, (source.url, start + begin)
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise RefusedError(f"it {what} (from byte {begin}, expected {end})", name)
        end = stop
        if start + end > source.size:
            raise cut_off(name, start + end, source.size)
        stored[name] = StoredTensor(entry=entry, position=place)
        if not entry.problem:
            stored[name] = StridedTensor(
                entry=entry, position=place, source=source, start=place[1], num_bytes=stop - begin
            )
    if start + end != source.size:
        raise RefusedError(
            f"expected the file to end with its last tensor at byte {start + end}, but it has "
            f"{source.size}"
        )
    return stored


def _parse(data: bytes) -> tuple[list[Described], dict[str, Any]]:
    """The description of every tensor in a header, and the words beside them."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
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
    words = header.pop("__metadata__", None)
    described = [_described(name, value) for name, value in header.items()]
    return described, words if isinstance(words, dict) else {}


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
    # of a dtype that nobody here knows at most a number is as long as the longest one
    bits = 8 * DTYPES[kind].itemsize if kind in DTYPES else _BITS.get(kind)
    size = -(-math.prod(shape) * (bits or 128) // 8)
    if num_bytes > size or (bits and num_bytes < size):
        raise RefusedError(
            f"expected {str(size)[:40]} bytes for shape {str(shape)[:80]} of {kind}, got offsets "
            f"for {num_bytes}",
            name,
        )
    entry = Entry(name=name, shape=shape, dtype=DTYPES.get(kind, torch.uint8))
    if kind not in DTYPES:
        problem = f"it is of dtype {kind}, which cannot be read here"
        entry = replace(entry, stored_as=kind, problem=problem)
    return entry, offsets[0], offsets[1]


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
#: One shard of one is the model, and needs no index.
_ONLY_SHARD = re.compile(r"-0*1-of-0*1\.(?:safetensors|bin)$")
#: The Trainer writes it last.
_TRAINER_STATE = "trainer_state.json"
_OF_A_RANK = re.compile(r"pytorch_model_fsdp(?:_\d+)?_rank\d+\.bin")
_TRAINER_MARK = "training_args.bin"
#: Where a Trainer and Accelerate keep the state of the optimizer.
_OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
#: Accelerate writes it beside the weights, in folders that it counts: ``checkpoint_0``.
_ACCELERATE_MARK = "random_states_"


_WEIGHTS = "|".join(map(re.escape, _WEIGHT_FILES))
#: What belongs to a folder of transformers and is no checkpoint of its own.
INSIDE = re.compile(
    rf"{_WEIGHTS}|adapter_model\.(?:safetensors|bin)|trainer_state\.json|{_OF_A_RANK.pattern}"
)


def _read_huggingface(place: Location, names: Collection[str]) -> Contents:
    """A folder of transformers. Pickled settings beside it are never read."""
    # the longer suffix is that of safetensors, the better one
    alone = sorted(filter(_ONLY_SHARD.search, names), key=lambda name: (-len(name), name))
    main = next((name for name in (*_WEIGHT_FILES, *alone) if name in names), None)
    if main is None and any(name in names for name in _ADAPTERS):
        raise ReadingError(_ADAPTER)
    if main is None and any(_OF_A_RANK.fullmatch(name) for name in names):
        raise ReadingError(
            "expected whole weights, got one file for each rank of FSDP (a local state dict). Save "
            "with state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT."
        )
    is_short = main is None and FSDP_FOLDER not in names
    if is_short or (_TRAINER_MARK in names and _TRAINER_STATE not in names):
        what = " or ".join(_WEIGHT_FILES) if is_short else _TRAINER_STATE
        raise UnfinishedError(
            f"expected {what}, found none. The Trainer may still be writing the checkpoint."
        )
    step = None
    if _TRAINER_STATE in names:
        step = whole_of(_read_json(place.inside(_TRAINER_STATE)).get("global_step"))
    if main is None:
        found = read_distributed(place.inside(FSDP_FOLDER))
    elif main.endswith(_INDEX):
        kind = "safetensors" if ".safetensors" in main else "torch"
        found = Contents(place=place, format=kind, tree=Tree(_read_sharded(place, main)))
    else:
        found = _read_file(place.inside(main))
    is_save = place.path.rsplit("/", 1)[-1].startswith("checkpoint_")
    is_save &= any(name.startswith(_ACCELERATE_MARK) for name in names)
    optimizer = next((name for name in _OPTIMIZER_FILES if name in names), None)
    return replace(
        found,
        place=place,
        format=f"huggingface/{found.format}",
        step=step,
        counts_saves=is_save,
        beside=partial(read_beside, place.inside(optimizer)) if optimizer else None,
    )


def _read_file(file: Location) -> Contents:
    with reading(file.shown):
        return (read_safetensors if file.path.endswith(".safetensors") else read_torch)(file)


def _read_sharded(place: Location, index: str) -> dict[str, StoredTensor]:
    """The tensors of all shards by name, in the order of the index."""
    files = _read_json(place.inside(index)).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        cause = "expected a weight_map from names to files"
        raise RefusedError(cause).at(place.inside(index).shown)
    found: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(files.values()):
        tree = _read_file(place.inside(file)).tree
        with reading(place.inside(file).shown):
            tensors = everything(tree)
            mine = {name: one for name, one in tensors.items() if files.get(name) == file}
            for name, one in tree.stored(mine).items():
                # files of torch count their storages, each of them from 0 on
                storage = one.entry.storage and (file, one.entry.storage)
                found[name] = replace(one, entry=replace(one.entry, storage=storage))
    for name, file in files.items():
        if name not in found:
            cause = f"{index} places it there, but the file has none of this name"
            error = UnfinishedError(f"{cause}. It may be of another save.", name)
            raise error.at(f"{place.shown}/{file[:120]}")
    return {name: found[name] for name in files}


def learning_rates(url: Url, storage_options: Options = None) -> dict[int, float]:
    """The learning rates of the first parameter group that a Trainer logged, by step."""
    place = Location.of(url, storage_options)
    if not place.is_folder() or _TRAINER_STATE not in place.names():
        return {}
    file = place.inside(_TRAINER_STATE)
    rows = _read_json(file).get("log_history", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RefusedError("expected a log_history of objects").at(file.shown)
    found = {}
    for row in rows:  # those of an evaluation have no learning rate
        step, rate = whole_of(row.get("step")), row.get("learning_rate")
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
    names = {entry.name for entry in entries}
    adapted = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
    bases = {f"{name}{end}" for name in adapted for end in (".weight", ".base_layer.weight")}
    is_own = all(name.startswith("base_model.model.") for name in names)
    return is_own and bool(adapted) and names.isdisjoint(bases)


_ADAPTER = (
    "expected the weights of a model, got an adapter of PEFT, such as LoRA: small matrices on top "
    "of a base model that lies elsewhere. Merge the two and read that: "
    "model.merge_and_unload().save_pretrained(folder)."
)


# ------------------------------------------------------------------ what is not read


_NANOTRON = (
    "expected a checkpoint, got a folder of nanotron, which is not read. Convert it with "
    "nanotron's examples/llama/convert_nanotron_to_hf.py and read the result."
)
_LOAD = (
    "Load it with the library that wrote it, and save the weights with torch.save or as safetensors"
)
_REWRITE = (
    "Save it anew: reader = tf.train.load_checkpoint(name without the end), then torch.save({n: "
    "torch.as_tensor(reader.get_tensor(n)) for n in reader.get_variable_to_shape_map()}, path)"
)
#: What other libraries write: of which kind it is, the ends of names, and what to do.
_FOREIGN = (
    ("GGUF, as llama.cpp takes it", r"\.gguf", _LOAD),
    ("flax or JAX, as msgpack", r"\.msgpack", _LOAD),
    ("orbax (JAX)", r"_CHECKPOINT_METADATA|manifest\.ocdbt|orbax\.checkpoint", _LOAD),
    ("TensorFlow or Keras", r"\.h5|\.keras|saved_model\.pb", _LOAD),
    ("TensorFlow's checkpoints", r"ckpt[^/]*\.(?:index|meta)|\.data-\d+-of-\d+", _REWRITE),
    ("ONNX", r"\.onnx", _LOAD),
    ("numpy or MLX", r"\.npz|\.npy", _LOAD),
    (
        "torch.export",
        r"\.pt2",
        "Save its weights: torch.save(torch.export.load(path).state_dict, other_path)",
    ),
    (
        "pickle",
        r"\.(?:pkl|pickle|joblib|dill)",
        "If you trust it, as loading it runs its code: torch.save(pickle.load(file), other_path)",
    ),
    ("an archive", r"\.zip", "Name what is inside of it: zip://::{name}, for all of it"),
    ("an archive", r"\.tar|\.nemo", "Name what is inside of it: tar://::{name}, for all of it"),
    ("a packed file", r"\.(?:tgz|gz|bz2|xz|zst|7z|rar)", "Unpack it first"),
)


def foreign(names: Iterable[str]) -> str:
    """What files of other libraries there are, a sentence each; empty if there are none."""
    found = []
    names = sorted(names)
    for kind, ends, what_to_do in _FOREIGN:
        some = [name for name in names if re.search(f"(?:{ends})$", name)]
        if some:
            name, more = some[0][-80:], f" and {len(some) - 1:,} more" if len(some) > 1 else ""
            what = f"There is {name!r}{more}, a format of {kind}, which is not read"
            found.append(f"{what}. {what_to_do.replace('{name}', name)}.")
    return " ".join(found)


# ------------------------------------------------------------------ the list, and what it opens

_READERS: Mapping[str, Callable[[Location, Collection[str]], Contents]] = {
    "distributed": read_distributed,
    "huggingface": _read_huggingface,
    "deepspeed": read_deepspeed,
}
#: How a folder is known: by the first of which every pattern is the name of something in it.
_FOLDERS = tuple(
    (kind, tuple(map(re.compile, patterns)))
    for kind, *patterns in (
        ("distributed", r"\.metadata|.*\.distcp"),
        # a Trainer under DeepSpeed writes whole weights beside the partitions where it can
        ("huggingface", f"{FSDP_FOLDER}|{_WEIGHTS}"),
        ("nanotron", r"checkpoint_metadata\.json", "model"),
        ("deepspeed", r".*_(?:model|optim)_states\.pt"),
        ("deepspeed", "global_step.*", r"latest|zero_to_fp32\.py"),
        # whatever has come of its weights; shards come before the index that says which there are
        ("huggingface", rf"{INSIDE.pattern}|.*-\d+-of-\d+\.(?:safetensors|bin)"),
    )
)


def format_of(names: Collection[str]) -> str | None:
    """The format of a folder with these files and folders; None if it is no checkpoint."""
    for kind, patterns in _FOLDERS:
        if all(any(map(pattern.fullmatch, names)) for pattern in patterns):
            return kind
    return None


def open_checkpoint(
    url: Url,
    storage_options: Options = None,
    key: str | None = None,  # what leads to the model in it; by default the only one that may be it
) -> Checkpoint:
    """Open one checkpoint, whatever its format, a file or a folder; no weight is read."""
    place = Location.of(url, storage_options)
    with ExitStack() as unless_open, reading(place.shown):
        unless_open.callback(place.close)
        parent, _, name = place.path.rpartition("/")
        if place.is_folder():
            contents = _read_folder(place, place.names())
        elif name.endswith(_INDEX):
            contents = _read_folder(place.at(parent), [name])
        else:
            contents = _read_single(place, name)
        checkpoint = Checkpoint(contents, choose(contents.tree, key))
        if _is_adapter(checkpoint.entries()):
            raise ReadingError(_ADAPTER)
        unless_open.pop_all()
        return checkpoint


def _read_folder(place: Location, names: Collection[str]) -> Contents:
    kind = format_of(names)
    if kind == "nanotron":
        raise ReadingError(_NANOTRON)
    if kind is not None:
        return _READERS[kind](place, names)
    if found := foreign(names):
        raise ReadingError(f"expected a checkpoint. {found}")
    some = ", ".join(list(names)[:8]) or "nothing"
    raise UnfinishedError(
        f"expected a checkpoint, got a folder with {some} in it. Name the file that holds the "
        "weights."
    )


def _read_single(file: Location, name: str) -> Contents:
    source = file.open()
    if source.size == 0:
        raise UnfinishedError("expected weights, got an empty file. It may be half-written.")
    length = min(len(OLD_START), source.size)
    source.expect([Range(0, length, source.size + 1)])  # safetensors' reader begins there, too
    start = source.read(0, length)
    if start.startswith((ARCHIVE_START, OLD_START)):
        return read_torch(file)
    if name.endswith(".safetensors") or start[8:9] == b"{":
        return read_safetensors(file)
    if found := foreign([name]):
        raise ReadingError(f"expected a checkpoint. {found}")
    raise ReadingError(
        f"expected a file of safetensors or of torch.save, got one that begins with {start!r}."
    )
