"""Checkpoints that are forged, damaged or unusual: read, or refused in one line, in linear time.

python -m faulting.readers --files 20000 --seed 0     (in benchmarks/)

mutates small checkpoints of every format, byte by byte and by what their descriptions mean, and
prints how many were read, refused and crashed, the slowest one and the most work for a byte.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.state_dict_saver import save

from faulting.case import Case
from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.opening import open_checkpoint
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.scope import Scope

__all__ = [
    "CASES",
    "HOSTILE",
    "KINDS",
    "UNUSUAL",
    "Sound",
    "Tally",
    "attempt",
    "bomb",
    "lines_run",
    "look_at",
    "mutated",
    "sound",
]

#: A file that takes longer is one of the faults; in seconds of this process.
LIMIT_S = 2.0

Weights = Mapping[str, torch.Tensor]


# ------------------------------------------------------------------ sound checkpoints


def _weights() -> dict[str, torch.Tensor]:
    return {
        "layers.0.attn.weight": torch.arange(6.0).reshape(3, 2),
        "layers.0.fc.weight": torch.ones(2, 3).bfloat16(),
        "norm.weight": torch.ones(4),
    }


def _distributed(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save(state, checkpoint_id=str(folder), no_dist=True)


def _safetensors(folder: Path) -> Path:
    safetensors.torch.save_file(_weights(), str(folder / "step-3.safetensors"))
    return folder / "step-3.safetensors"


def _sharded(folder: Path) -> Path:
    places = {}
    for number, (name, tensor) in enumerate(_weights().items()):
        file = f"model-{number}-of-3.safetensors"
        safetensors.torch.save_file({name: tensor}, str(folder / file))
        places[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def _torch(folder: Path) -> Path:
    torch.save({"model": _weights(), "step": 3, "args": Path("a")}, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def _legacy(folder: Path) -> Path:
    content = {"state_dict": _weights(), "step": 3}
    torch.save(content, folder / "ckpt.pth", _use_new_zipfile_serialization=False)
    return folder / "ckpt.pth"


def _trainer(folder: Path) -> Path:
    safetensors.torch.save_file(_weights(), str(folder / "model.safetensors"))
    (folder / "training_args.bin").write_bytes(b"never read")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": []}))
    return folder


def _dcp(folder: Path) -> Path:
    _distributed({"model": _weights(), "step": 3}, folder)
    return folder


# ------------------------------------------------------------------ formats of others


def _block_weights() -> dict[str, torch.Tensor]:
    """A model of two blocks, as its state dict."""
    return {
        f"layers.{block}.{name}.weight": torch.randn(8, 8)
        for block in (0, 1)
        for name in ("attn", "fc")
    }


def _peft(folder: Path) -> Path:
    place = folder / "checkpoint-4"
    place.mkdir()
    adapter = {
        f"base_model.model.layers.0.attn.lora_{side}.weight": torch.ones(2, 2) for side in "AB"
    }
    safetensors.torch.save_file(adapter, str(place / "adapter_model.safetensors"))
    (place / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (place / "trainer_state.json").write_text('{"global_step": 4}')
    (place / "training_args.bin").write_bytes(b"never read")
    return place


def _peft_alone(folder: Path) -> Path:
    place = _peft(folder)
    (place / "adapter_model.safetensors").rename(folder / "step-4.safetensors")
    return folder / "step-4.safetensors"


def _fsdp(folder: Path) -> Path:
    """As a Trainer with FSDP and SHARDED_STATE_DICT writes it."""
    place = folder / "checkpoint-4"
    _distributed({"model": _block_weights()}, place / "pytorch_model_fsdp_0")
    _distributed({"optimizer": {"state": torch.ones(3)}}, place / "optimizer_0")
    torch.save({"a": torch.ones(3)}, place / "rng_state_0.pth")
    (place / "trainer_state.json").write_text('{"global_step": 4}')
    (place / "training_args.bin").write_bytes(b"never read")
    return place


def _fsdp_full(folder: Path) -> Path:
    torch.save(_block_weights(), folder / "pytorch_model_fsdp.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    return folder


def _fsdp_local(folder: Path) -> Path:
    for rank in (0, 1):
        torch.save(_block_weights(), folder / f"pytorch_model_fsdp_rank{rank}.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    return folder


_COMPOSER = {"timestamp": {"Timestamp": {"epoch": 0, "batch": 4, "sample": 64}}}


def _composer(folder: Path) -> Path:
    optimizers = {"AdamW": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}}
    state = {"model": _block_weights(), "optimizers": optimizers, **_COMPOSER}
    torch.save({"state": state, "rng": [{"python": (3, (1, 2), None)}]}, folder / "latest.pt")
    return folder / "latest.pt"


def _composer_sharded(folder: Path) -> Path:
    state = {"model": _block_weights(), "optimizers": {"AdamW": {"exp_avg": torch.ones(3)}}}
    _distributed({"state": state}, folder / "ep0-ba4")
    return folder / "ep0-ba4"


def _nanotron(folder: Path, num_ranks: int = 1) -> Path:
    place = folder / "4"
    for name, tensor in _block_weights().items():
        *modules, attribute = name.split(".")
        file = f"model_{attribute}_pp-rank-0-of-1_tp-rank-0-of-{num_ranks}.safetensors"
        path = place.joinpath("model", "model", *modules, file)
        path.parent.mkdir(parents=True)
        safetensors.torch.save_file({"data": tensor}, str(path))
    metas = {"last_train_step": 4, "consumed_train_samples": 64}
    (place / "checkpoint_metadata.json").write_text(json.dumps({"version": "1.4", "metas": metas}))
    return place


def _deepspeed(folder: Path) -> Path:
    place = folder / "global_step4"
    place.mkdir()
    content = {"module": _block_weights(), "global_steps": 4, "mp_world_size": 1}
    torch.save(content, place / "mp_rank_00_model_states.pt")
    for rank in (0, 1):
        torch.save({}, place / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text("global_step4\n")
    return folder


def _deepspeed_zero3(folder: Path) -> Path:
    torch.save({"module": {}}, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return folder


def _state(folder: Path, **others: Any) -> Path:
    torch.save({**_block_weights(), **others}, folder / "step-4.pt")
    return folder / "step-4.pt"


def _torchscript(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        program = torch.jit.script(torch.nn.Linear(2, 2))
        torch.jit.save(program, str(folder / "step-4.pt"))
    return folder / "step-4.pt"


def _packed(folder: Path, kind: str, name: str, shape: tuple[int, ...], num_bytes: int) -> Path:
    """A model with one tensor of a dtype that torch need not have."""
    header: dict[str, Any] = {}
    data = b""
    for key, tensor in _block_weights().items():
        end = len(data) + tensor.nbytes
        header[key] = {"dtype": "F32", "shape": [8, 8], "data_offsets": [len(data), end]}
        data += tensor.numpy().tobytes()
    offsets = [len(data), len(data) + num_bytes]
    header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
    text = json.dumps(header)
    path = folder / "step-4.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data + bytes(num_bytes))
    return path


def _quantised(folder: Path, weights: Weights) -> Path:
    kept = {name: tensor for name, tensor in _block_weights().items() if name not in weights}
    safetensors.torch.save_file({**kept, **weights}, str(folder / "step-4.safetensors"))
    return folder / "step-4.safetensors"


def _fp8(folder: Path) -> Path:
    scale = torch.full((1, 1), 0.5)
    codes = torch.ones(8, 8).to(torch.float8_e4m3fn)
    name = "layers.0.attn.weight"
    return _quantised(folder, {name: codes, f"{name}_scale_inv": scale})


def _int8(folder: Path) -> Path:
    name = "layers.0.attn.weight"
    codes = torch.ones(8, 8, dtype=torch.int8)
    return _quantised(folder, {name: codes, "layers.0.attn.SCB": torch.ones(8)})


def _gptq(folder: Path) -> Path:
    path = folder / "step-4.safetensors"
    weights = {f"{name[:-6]}qweight": torch.ones(1, 8).int() for name in _block_weights()}
    safetensors.torch.save_file({**weights, "norm.weight": torch.ones(8)}, str(path))
    return path


def _files(*names: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")
        return folder

    return write


def look_at(path: Path) -> str:
    """What a replay without a model makes of a checkpoint: its format and step, or the reason."""
    try:
        found = [one for one in discover(path) if one.state != "duplicate"]
        if len(found) != 1:
            return f"{len(found)} checkpoints"
        with open_checkpoint(found[0].url) as checkpoint:
            scope = Scope.of_entries(checkpoint.entries())
            snapshot = stored_snapshot(checkpoint, scope, 4)
            num_weights = sum(tensor.numel() for tensor in snapshot.tensors.values())
            return f"{checkpoint.format}, step {found[0].step}, {num_weights} weights"
    except CheckpointError as error:
        return str(error)


#: Checkpoints as other libraries write them, and what comes of each: words that it says.
UNUSUAL: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a Trainer's checkpoint of a PEFT adapter": (_peft, "got an adapter of PEFT"),
    "a file of a PEFT adapter": (_peft_alone, "got an adapter of PEFT"),
    "a Trainer's checkpoint with FSDP's sharded state": (
        _fsdp, "huggingface/distributed, step 4, 256 weights",
    ),
    "a Trainer's checkpoint with FSDP's full state": (
        _fsdp_full, "huggingface/torch, step 4, 256 weights",
    ),
    "FSDP's local state, one file a rank": (_fsdp_local, "one file for each rank of FSDP"),
    "Composer": (_composer, "composer, step 4, 256 weights"),
    "Composer, sharded": (_composer_sharded, "distributed, step 4, 256 weights"),
    "nanotron": (_nanotron, "nanotron, step 4, 256 weights"),
    "nanotron, tensors in two parts": (
        lambda f: _nanotron(f, 2), "nanotron's tensor or expert parallelism in parts",
    ),
    "DeepSpeed, one model-parallel file": (_deepspeed, "deepspeed, step 4, 256 weights"),
    "DeepSpeed ZeRO-3": (_deepspeed_zero3, "got the partitions of DeepSpeed ZeRO"),
    "an expanded tensor": (
        lambda f: _state(f, **{"layers.0.mlp.weight": torch.ones(1).expand(8, 8)}),
        "torch, step 4, 320 weights",
    ),
    "a tensor expanded to 2^42 bytes": (
        lambda f: _state(f, **{"layers.0.mlp.weight": torch.ones(1).expand(2**20, 2**20)}),
        "it is expanded to 4398046511104 bytes that are not in the file",
    ),
    "a sparse tensor out of scope": (
        lambda f: _state(f, mask=torch.ones(8, 8).to_sparse()), "torch, step 4, 256 weights",
    ),
    "a sparse tensor in scope": (
        lambda f: _state(f, **{"layers.0.mlp.weight": torch.ones(8, 8).to_sparse()}),
        "tensor 'layers.0.mlp.weight': expected weights, but it is sparse",
    ),
    "a TorchScript program": (_torchscript, "got a TorchScript program"),
    "scales of F8_E8M0 out of scope": (
        lambda f: _packed(f, "F8_E8M0", "layers.0.mlp.weight_scale", (8,), 8),
        "safetensors, step 4, 256 weights",
    ),
    "a dtype of the future out of scope": (
        lambda f: _packed(f, "F3_E1M1", "buffer", (8,), 3), "safetensors, step 4, 256 weights",
    ),
    "a dtype of the future in scope": (
        lambda f: _packed(f, "F4", "layers.0.mlp.weight", (8, 8), 32),
        "tensor 'layers.0.mlp.weight': expected weights, but it is of dtype F4",
    ),
    "int8 codes": (_int8, "it is stored as int8 codes of a quantised weight (weight)"),
    "GPTQ": (_gptq, "it is stored as int32 codes of a quantised weight (qweight)"),
    "fp8 with scales": (_fp8, "safetensors, step 4, 256 weights"),
    "a folder of GGUF": (_files("model-q4.gguf"), "a format of GGUF"),
    "a folder of flax": (_files("flax_model.msgpack", "config.json"), "a format of flax or JAX"),
    "a folder of orbax": (_files("4/_CHECKPOINT_METADATA", "4/d/0"), "a format of orbax"),
    "a folder of TensorFlow": (_files("tf_model.h5"), "a format of TensorFlow or Keras"),
    "a folder of ONNX": (_files("model.onnx"), "a format of ONNX"),
}  # fmt: skip


def _unusual(name: str) -> Callable[[Path], str]:
    write, expected = UNUSUAL[name]

    def run(folder: Path) -> str:
        place = folder / "run"
        place.mkdir()
        came = look_at(write(place))
        return expected if expected in came and "\n" not in came else came

    return run


#: A small checkpoint of every format, written into an empty folder.
KINDS: dict[str, Callable[[Path], Path]] = {
    "safetensors": _safetensors,
    "safetensors, sharded": _sharded,
    "torch": _torch,
    "torch, before 1.6": _legacy,
    "trainer": _trainer,
    "distributed": _dcp,
    "trainer, FSDP": _fsdp,
    "deepspeed": _deepspeed,
    "nanotron": _nanotron,
    "fp8 with scales": _fp8,
}


#: Beside the weights; never read.
_BESIDE = ("training_args.bin", "optimizer_0/", "rng_state", "adapter", "_optim_states.pt")


@dataclass(frozen=True)
class Sound:
    """A checkpoint in memory: its files by their paths, and which of them is opened."""

    files: Mapping[str, bytes]
    opened: str

    @property
    def read(self) -> list[str]:
        """The files that whoever opens it reads from."""
        return [name for name in sorted(self.files) if not any(b in name for b in _BESIDE)]

    def write(self, folder: Path) -> Path:
        """Write it into a folder that is empty."""
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder / self.opened


def sound(kind: str) -> Sound:
    """A small checkpoint of a format, as the library that owns it writes it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        opened = KINDS[kind](folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        return Sound(files, str(opened.relative_to(folder)))


# ------------------------------------------------------------------ what is done to one


def attempt(path: Path) -> str:
    """Everything that a replay does with a checkpoint: "read", "refused", or what is wrong."""
    size = sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else _size(path)
    try:
        (*_, found) = discover(path)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.step is None or checkpoint.step >= 0
            for entry in checkpoint.entries():
                if entry.num_bytes > 4 * size + 2**26 and not entry.problem:
                    return f"{entry.num_bytes} bytes on the word of {size}"
                tensor = checkpoint.read(entry.name)
                if (tuple(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
                    return "another tensor than it says"
    except CheckpointError as error:
        message = str(error)
        return "refused" if "\n" not in message and len(message) < 2000 else "not one short line"
    except Exception as error:  # noqa: BLE001 that is the fault
        return f"crashed with {type(error).__name__}"
    return "read" if found.state in ("complete", "duplicate") else "read, but not discovered"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def lines_run() -> Iterator[list[int]]:
    """Counts the lines of Python that run meanwhile: work that no clock and no neighbour change."""
    count = [0]

    def trace(_: FrameType, event: str, __: Any) -> Any:
        if event == "line":
            count[0] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


# ------------------------------------------------------------------ mutations of bytes

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**50, 2**63, 2**64 - 1)


def _bytes_changed(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.choice((0, 1, 1, 2, 4, 8, 32))
        new = chance.choice(
            (
                chance.randbytes(length),
                bytes(length),
                chance.randbytes(chance.randint(0, 9)),
                chance.choice(_INTERESTING).to_bytes(8, "little")[: chance.choice((1, 2, 4, 8))],
                data[at : at + length] * 2,
                data[(start := chance.randrange(len(data) + 1)) : start + length],
                b"",
            )
        )
        data = data[:at] + new + data[at + length :]
    return data[: chance.randrange(len(data) + 1)] if chance.random() < 0.1 else data


# ------------------------------------------------------------------ mutations of what is meant


def bomb(depth: int = 64) -> bytes:
    """Pickle opcodes that push a tuple of one tuple twice, and so on; hashing it never ends."""
    return b")" + b"2\x86" * depth


#: What may stand in a pickle where a value is expected.
_VALUES = (
    bomb(), b"]" + b"2\x86" * 40, b"N", b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"}", b"]", b")",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"\x94", b"\x90",
    b"G" + b"\x7f\xf0" * 4, b"X\x00\x00\x00\x00", b"cos\nsystem\n", b"\x88", b"h\x00", b"h\x05",
    b"(K\x01" + b"2" * 300 + b"l", b"(" + b"K\x02" * 90 + b"t", b"0", b"1", b"2", b"(",
    b"\x8e" + (2**50).to_bytes(8, "little"), b"\x8d" + (2**62).to_bytes(8, "little"),
    b"\x8b" + (5000).to_bytes(4, "little") + b"\x7f" * 5000, b"p99999999999999999999999\n",
    b"cos\nsystem\n(S'true'\ntR",
)  # fmt: skip


def _pickle_changed(data: bytes, chance: random.Random) -> bytes:
    """Opcodes left out, doubled, exchanged, or replaced by values that nobody expects there."""
    places = [at for _, _, at in pickletools.genops(io.BytesIO(data)) if at is not None]
    stop = places[-1] + 1
    parts = [data[a:b] for a, b in zip(places, [*places[1:], stop], strict=True)]
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(parts))
        action = chance.randrange(5)
        if action == 0:
            parts[at] = b""
        elif action == 1:
            parts[at] *= 2
        elif action == 2:
            other = chance.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif action == 3:
            parts[at] = chance.choice(_VALUES)
        else:
            parts.insert(at, chance.choice(_VALUES))
    return b"".join(parts) + data[stop:]


def _header_changed(data: bytes, chance: random.Random) -> bytes:
    """The JSON header of a safetensors file, with another value in some place."""
    length = int.from_bytes(data[:8], "little")
    text = _json_changed(data[8 : 8 + length], chance)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


_JSON = (
    "null", "[]", "{}", '""', "-1", "1e400", "0.5", "NaN", "true", str(2**63), str(2**62),
    "9" * 5000, str([2**62] * 300), "[" * 5000, str([1] * 3000), '"\\ud800"',
    '"' + "module." * 900 + '"',
    '"F8_E8M0"', '"F4"', '"../../etc/passwd"', '"/etc/passwd"', '"a:b"', '"' + "n" * 9000 + '"',
    '{"a": 1, "a": 2}', "[0, 0]", "[2, 0, 4611686018427387904, 4611686018427387904]",
)  # fmt: skip


def _json_changed(data: bytes, chance: random.Random) -> bytes:
    """A value or a name of a JSON text replaced by one that nobody expects there."""
    marks = [at for at, byte in enumerate(data) if byte in b'{}[]:,"']
    begin = chance.choice(marks)
    end = next((at for at in marks if at > begin), len(data))
    if chance.random() < 0.2:  # twice the same
        return data[:end] + data[begin:end] + data[end:]
    return data[: begin + 1] + chance.choice(_JSON).encode() + data[end:]


def _archive_changed(data: bytes, chance: random.Random) -> bytes:
    """One record of an archive: its pickle changed, or the record left out, doubled, renamed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    at = chance.randrange(len(records))
    action = chance.randrange(8)
    if action == 0:
        del records[at]
    elif action == 1:
        records[at] = (records[at][0], _bytes_changed(records[at][1], chance))
    elif action == 2:
        records[at] = (chance.choice(records)[0] + chance.choice(("", "x", "/")), records[at][1])
    else:
        at = next(n for n, (name, _) in enumerate(records) if name.endswith("data.pkl"))
        records[at] = (records[at][0], _pickle_changed(records[at][1], chance))
    target = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that is there twice
        with zipfile.ZipFile(target, "w", packed) as archive:
            for name, content in records:
                archive.writestr(name, content)
    return target.getvalue()


def _pickles_changed(data: bytes, chance: random.Random) -> bytes:
    """One of the five pickles at the beginning of an old file."""
    ends = [0]
    file = io.BytesIO(data)
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    at = chance.choice((2, 3, 3, 3, 4))
    begin, end = ends[at], ends[at + 1]
    return data[:begin] + _pickle_changed(data[begin:end], chance) + data[end:]


def _meaning_changed(name: str, data: bytes, chance: random.Random) -> bytes:
    if name.endswith(".json"):
        return _json_changed(data, chance)
    if name.endswith(".safetensors"):
        return _header_changed(data, chance)
    if name.endswith(".pt"):
        return _archive_changed(data, chance)
    if name.endswith(".pth"):
        return _pickles_changed(data, chance)
    return (
        _pickle_changed(data, chance)
        if name.endswith(".metadata")
        else _bytes_changed(data, chance)
    )


def mutated(whole: Sound, chance: random.Random) -> Sound:
    """A checkpoint with one of its files changed: some bytes of it, or what it means."""
    name = chance.choice(whole.read)
    change = _bytes_changed if chance.random() < 0.4 else None
    data = whole.files[name]
    new = change(data, chance) if change else _meaning_changed(name, data, chance)
    return Sound({**whole.files, name: new}, whole.opened)


@dataclass
class Tally:
    """What came of many mutated files."""

    outcomes: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    most_lines: float = 0.0
    worst: str = ""

    def run(self, folder: Path, num_files: int, seed: int, *, counts_lines: bool = True) -> None:
        """Mutate and try so many files; the same ones for the same seed.

        Args:
            folder: an empty one.
            num_files: how many, over all formats.
            seed: of the mutations.
            counts_lines: count the lines that run, which makes it some times slower.
        """
        chance = random.Random(seed)  # noqa: S311
        wholes = {kind: sound(kind) for kind in KINDS}
        kinds = sorted(wholes)
        for number in range(num_files):
            kind = kinds[number % len(kinds)]
            changed = mutated(wholes[kind], chance)
            place = folder / "one"
            place.mkdir()
            self._try(kind, changed.write(place), changed, counts_lines=counts_lines)
            shutil.rmtree(place)

    def _try(self, kind: str, path: Path, changed: Sound, *, counts_lines: bool) -> None:
        started = time.process_time()
        if counts_lines:
            with lines_run() as count:
                outcome = attempt(path)
            num_bytes = sum(map(len, changed.files.values()))
            self.most_lines = max(self.most_lines, count[0] / num_bytes)
        else:
            outcome = attempt(path)
        took = time.process_time() - started
        self.slowest_s = max(self.slowest_s, took)
        if took > LIMIT_S:
            outcome = f"slow: {took:.1f} s"
        if outcome not in ("read", "refused"):
            self.worst = f"{kind}: {outcome}"
            outcome = f"crashed ({kind}: {outcome})"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    @property
    def num_crashed(self) -> int:
        """How many did something else than being read or refused."""
        return sum(n for outcome, n in self.outcomes.items() if outcome.startswith("crashed"))


# ------------------------------------------------------------------ crafted to cost time or memory


def _header(folder: Path, text: str, data: bytes = b"") -> Path:
    path = folder / "step-5.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return path


def _archive(folder: Path, described: bytes) -> Path:
    path = folder / "step-5.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + described + b".")
        archive.writestr("archive/version", b"3\n")
    return path


def _old(folder: Path, described: bytes) -> Path:
    path = folder / "step-5.pth"
    start = io.BytesIO()
    torch.save({}, start, _use_new_zipfile_serialization=False)
    data = start.getvalue()
    at = data.index(b"}q\x00.", 40)
    path.write_bytes(data[:at] + described + b"." + data[at + 4 :])
    return path


def _metadata(folder: Path, changed: Callable[[bytes], bytes]) -> Path:
    data = _dcp_metadata((4, 2), [((at, 0), (2, 2)) for at in (0, 2)])
    (folder / ".metadata").write_bytes(changed(data))
    (folder / "__0_0.distcp").write_bytes(bytes(3000))
    return folder


def _dcp_metadata(
    shape: tuple[int, ...], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> bytes:
    """The ``.metadata`` of one tensor in pieces."""
    tensor = md.TensorStorageMetadata(
        md.TensorProperties(dtype=torch.float32), torch.Size(shape),
        [md.ChunkStorageMetadata(torch.Size(begin), torch.Size(size)) for begin, size in boxes],
    )  # fmt: skip
    storage = {
        md.MetadataIndex("w", torch.Size(begin)): _StorageInfo("__0_0.distcp", 0, 1500)
        for begin, _ in boxes
    }
    return pickle.dumps(md.Metadata({"w": tensor}, {"w": ("model", "w")}, storage))


def _string(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _many_pieces(num: int) -> bytes:
    """As many elements as the tensor has, one of them twice and one of them never."""
    boxes: dict[tuple[int, ...], tuple[int, ...]] = {
        (row, column): (1, 1) for row in range(num) for column in (0, 1)
    }
    boxes[0, 0] = (1, 2)
    del boxes[num - 1, 1]
    return _dcp_metadata((num, 2), list(boxes.items()))


def _index(folder: Path, places: Mapping[str, str]) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    safetensors.torch.save_file(_weights(), str(folder / "model-0.safetensors"))
    return folder


def _colliding(num: int) -> list[int]:
    """Whole numbers with one hash."""
    return [k * (2**61 - 1) for k in range(2**70, 2**70 + num)]


def _long(number: int) -> bytes:
    data = number.to_bytes(24, "little")
    return b"\x8a\x18" + data


def _storm(folder: Path) -> Path:
    """An archive of very many empty records."""
    path = folder / "step-5.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(5000):
            archive.writestr(f"archive/data/{number}", b"")
    return path


def _overlapping(folder: Path) -> Path:
    path = _torch(folder)
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first = archive.infolist()[0].header_offset
    # where the second entry of the table of contents says that its record begins
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4) + 42
    path.write_bytes(data[:at] + (first + 8).to_bytes(4, "little") + data[at + 4 :])
    return path


def _packed_bomb(folder: Path) -> Path:
    path = folder / "step-5.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 * 2**20))
    return path


def _piece(shape: tuple[int, ...]) -> str:
    return json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})


_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"

#: Small files, each made to cost more than its bytes; all are one line that names the file.
HOSTILE: dict[str, Callable[[Path], Path]] = {
    "safetensors: a shape whose product has 5,000 digits": lambda f: _header(
        f, _piece((2**62,) * 300)
    ),
    "safetensors: a shape of 2 MB": lambda f: _header(f, _piece((2**62,) * 100_000)),
    "safetensors: a shape that is empty and beyond memory": lambda f: _header(
        f, _piece((0, 2**62, 2**62))
    ),
    "safetensors: 100,000 names, the last one twice": lambda f: _header(
        f, "{" + ",".join(f'"{n}":0' for n in [*range(100_000), 99_999]) + "}"
    ),
    "safetensors: lists 100,000 deep": lambda f: _header(f, '{"w":' + "[" * 100_000),
    "safetensors: a number of 5,000 digits": lambda f: _header(
        f, '{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,0]}}'
    ),
    "safetensors: a name of a million times module.": lambda f: _header(
        f, json.dumps({"module." * 10**6: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})
    ),
    "safetensors: half a character in a name": lambda f: _header(
        f, '{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "torch: nested tuples as a key": lambda f: _archive(f, b"}" + bomb() + b"Ns"),
    "torch: nested tuples as the name of a tensor": lambda f: _archive(
        f, b"}" + bomb() + _TENSOR + b")Rs"
    ),
    "torch: nested tuples in a set": lambda f: _archive(f, b"\x8f(" + bomb() + b"\x90"),
    "torch: nested tuples in a frozen set": lambda f: _archive(f, b"(" + bomb() + b"\x91"),
    "torch: nested tuples in place of a file": lambda f: _archive(f, bomb()),
    "torch: nested tuples in place of a function": lambda f: _archive(f, bomb() + b")R"),
    "torch: nested tuples in place of a storage": lambda f: _archive(
        f, b"}" + _string("w") + _TENSOR + b"((" + _string("storage") + bomb()
        + _string("0") + _string("cpu") + b"K\x01tQK\x00))\x89NtRs",
    ),
    "torch: nested tuples as a key, twice": lambda f: _archive(
        f, b"}" + bomb() + b"Ns" + bomb() + b"Ns"
    ),
    "torch: 30,000 keys with one hash": lambda f: _archive(
        f, b"}(" + b"".join(_long(n) + b"N" for n in _colliding(30_000)) + b"u"
    ),
    "torch: 30,000 places in the memo with one hash": lambda f: _archive(
        f, b"N" + b"".join(b"p%d\n" % n for n in _colliding(30_000))
    ),
    "torch: state dicts in a ring": lambda f: _archive(
        f, b"}q\x00" + b"".join(_string(k) + b"h\x00s" for k in ("model", "state_dict", "module"))
        + b"(" + b"".join(b"J" + n.to_bytes(4, "little") + b"N" for n in range(100_000)) + b"u",
    ),
    "torch: 5,000 records": _storm,
    "torch: records one inside the other": _overlapping,
    "torch: a record that unpacks to 50 MB": _packed_bomb,
    "torch, before 1.6: a text of 2^50 bytes": lambda f: _old(
        f, b"\x8e" + (2**50).to_bytes(8, "little")
    ),
    "torch, before 1.6: nested tuples as a key": lambda f: _old(f, b"}" + bomb() + b"Ns"),
    "torch, before 1.6: nested tuples as a storage's key": lambda f: _old(
        f, b"(" + _string("storage") + b"ctorch\nFloatStorage\n" + bomb() + _string("cpu")
        + b"K\x01NtQ",
    ),
    "index: 50,000 names of one file": lambda f: _index(
        f, dict.fromkeys(map(str, range(50_000)), "model-0.safetensors")
    ),
    "index: a file outside": lambda f: _index(f, {"w": "../../etc/passwd"}),
    "index: a file with a name of a million letters": lambda f: _index(f, {"w": "n" * 10**6}),
    "index: a file whose name is half a character": lambda f: _index(f, {"w": "\ud800"}),
    "distributed: nested tuples as a path": lambda f: _metadata(
        f, lambda d: d.replace(b"\x8c\x05model", bomb())
    ),
    "distributed: nested tuples as a name": lambda f: _metadata(
        f, lambda d: d.replace(b"\x8c\x01w", bomb(), 1)
    ),
    "distributed: nested tuples in place of all": lambda f: _metadata(f, lambda _: bomb() + b"."),
    "distributed: 2,000 pieces that overlap": lambda f: _metadata(
        f, lambda _: _many_pieces(1000)
    ),
}  # fmt: skip


# ------------------------------------------------------------------ the cases


def _hostile(name: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        place = folder / "run"
        place.mkdir()
        path = HOSTILE[name](place)
        started = time.process_time()
        came = attempt(path)
        took = time.process_time() - started
        return came if took <= LIMIT_S else f"{came} after {took:.1f} s"

    return run


def _fuzz(folder: Path) -> str:
    tally = Tally()
    tally.run(folder, 3000, seed=1, counts_lines=False)
    return f"{tally.num_crashed} crashed" + (f", such as {tally.worst}" if tally.worst else "")


CASES = (
    *(
        Case(point="hostile files", what=name, expected="refused", run=_hostile(name))
        for name in HOSTILE
    ),
    *(
        Case(point="formats", what=name, expected=expected, run=_unusual(name))
        for name, (_, expected) in UNUSUAL.items()
    ),
    Case(
        point="hostile files",
        what="3,000 mutated files of every format",
        expected="0 crashed",
        run=_fuzz,
    ),
)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", action="store_true", help="count the lines that run, slower")
    arguments = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        tally.run(Path(folder), arguments.files, arguments.seed, counts_lines=arguments.lines)
    for outcome, number in sorted(tally.outcomes.items()):
        print(f"{number:8,} {outcome}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{tally.num_crashed} of {arguments.files:,} crashed; slowest {tally.slowest_s:.3f} s")
    print(f"most work: {tally.most_lines:.1f} lines of Python a byte; peak {peak:.2f} GB")
    sys.exit(bool(tally.num_crashed))


if __name__ == "__main__":
    _main()
