"""Checkpoints that are sound: small ones of every format, and formats of others."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.scope import Scope

Weights = Mapping[str, torch.Tensor]


# ------------------------------------------------------------------ sound checkpoints


def weights() -> dict[str, torch.Tensor]:
    """Three small tensors, two of them in layers."""
    return {
        "layers.0.attn.weight": torch.arange(6.0).reshape(3, 2),
        "layers.0.fc.weight": torch.ones(2, 3).bfloat16(),
        "norm.weight": torch.ones(4),
    }


def saved(path: Path, content: object, **options: Any) -> Path:
    """A file of torch.save."""
    torch.save(content, path, **options)
    return path


def headed(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file of safetensors with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def _distributed(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save(state, checkpoint_id=str(folder), no_dist=True)


def _safetensors(folder: Path) -> Path:
    safetensors.torch.save_file(weights(), str(folder / "step-3.safetensors"))
    return folder / "step-3.safetensors"


def _sharded(folder: Path) -> Path:
    places = {}
    for number, (name, tensor) in enumerate(weights().items()):
        file = f"model-{number}-of-3.safetensors"
        safetensors.torch.save_file({name: tensor}, str(folder / file))
        places[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def _torch(folder: Path) -> Path:
    return saved(folder / "ckpt.pt", {"model": weights(), "step": 3, "args": Path("a")})


def _torch_old(folder: Path) -> Path:
    content = {"model": weights(), "step": 3, "args": Path("a")}
    return saved(folder / "ckpt.pt", content, _use_new_zipfile_serialization=False)


def _trainer(folder: Path) -> Path:
    safetensors.torch.save_file(weights(), str(folder / "model.safetensors"))
    (folder / "training_args.bin").write_bytes(b"never read")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": []}))
    return folder


def _dcp(folder: Path) -> Path:
    _distributed({"model": weights(), "step": 3}, folder)
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
    content = {"state": state, "rng": [{"python": (3, (1, 2), None)}]}
    return saved(folder / "latest.pt", content)


def _composer_sharded(folder: Path) -> Path:
    state = {"model": _block_weights(), "optimizers": {"AdamW": {"exp_avg": torch.ones(3)}}}
    _distributed({"state": state}, folder / "ep0-ba4")
    return folder / "ep0-ba4"


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
    return saved(folder / "step-4.pt", {**_block_weights(), **others})


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
    return headed(folder / "step-4.safetensors", header, data + bytes(num_bytes))


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
    "a folder of nanotron": (
        _files("4/checkpoint_metadata.json", "4/model/model/a/model_weight.safetensors"),
        "got a folder of nanotron, which is not read",
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
    "fp8 with scales": (
        _fp8, "it is stored as float8_e4m3fn codes of a quantised weight, beside their scale",
    ),
    "a folder of GGUF": (_files("model-q4.gguf"), "a format of GGUF"),
    "a folder of flax": (_files("flax_model.msgpack", "config.json"), "a format of flax or JAX"),
    "a folder of orbax": (_files("4/_CHECKPOINT_METADATA", "4/d/0"), "a format of orbax"),
    "a folder of TensorFlow": (_files("tf_model.h5"), "a format of TensorFlow or Keras"),
    "a folder of ONNX": (_files("model.onnx"), "a format of ONNX"),
}  # fmt: skip


#: A small checkpoint of every format, written into an empty folder.
KINDS: dict[str, Callable[[Path], Path]] = {
    "safetensors": _safetensors,
    "safetensors, sharded": _sharded,
    "torch": _torch,
    "torch, before 1.6": _torch_old,
    "trainer": _trainer,
    "distributed": _dcp,
    "trainer, FSDP": _fsdp,
    "deepspeed": _deepspeed,
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
