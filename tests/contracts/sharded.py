"""A small training that can be spread over processes in every way that is watched."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contracts.watched import sees_step_6
from torch import distributed, nn
from torch.nn import functional

import sparsitywatch as sw
from sparsitywatch.records import Record, to_json

STEPS, EVERY = 9, 3
WIDTH, NUM_TOKENS = 8, 11
_kept: list[nn.Module] = []  # torch 2.13 at times hangs when it lets go of a DDP


class Running(nn.Module):
    """Takes off a running mean: a buffer that training steps write to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().float().mean(0), alpha=0.1)
        return x - self.mean.to(x.dtype)


class Block(nn.Module):
    """A layer with ``num_rows`` rows, and one with a single row: fewer than there are ranks."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, num_rows), nn.Linear(num_rows, WIDTH)
        self.gate = nn.Linear(WIDTH, 1, bias=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return x + self.drop(self.down(torch.relu(self.up(h)))) * torch.sigmoid(self.gate(h))


class Net(nn.Module):
    """Input and output embeddings are tied; ``mix`` stays with every rank under FSDP2."""

    def __init__(self, num_rows: int = 13) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_TOKENS, WIDTH)
        self.mix = nn.Parameter(torch.randn(2, WIDTH // 2))
        self.running = Running()
        self.layers = nn.ModuleList([Block(num_rows) for _ in range(2)])
        self.head = nn.Linear(WIDTH, NUM_TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.running(self.embed(tokens).mean(1)) * (1 + self.mix.reshape(-1))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


Batch = tuple[torch.Tensor, torch.Tensor]
Value = Callable[[nn.Module, Batch], torch.Tensor]


def batch(seed: int, num: int = 6) -> Batch:
    """Three tokens each, and the one to be told."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(NUM_TOKENS, (num, 3), generator=generator)
    return tokens, tokens.sum(1) % NUM_TOKENS


def loss(model: nn.Module, one: Batch) -> torch.Tensor:
    """Of each example."""
    return functional.cross_entropy(model(one[0]).float(), one[1], reduction="none")


#: Three, so that two ranks share them unevenly and a fourth rank has none.
HELD_OUT = [batch(1), batch(2), batch(3, num=4)]


# ------------------------------------------------------------------ how it is spread


def _ddp(model: nn.Module) -> nn.Module:
    wrapped = nn.parallel.DistributedDataParallel(model)
    _kept.append(wrapped)
    return wrapped


def _fsdp(model: Any, mesh: Any, parts: str = "fsdp", **given: Any) -> nn.Module:
    """``parts``: what is sharded outside the layers: by the root, by itself, or not at all."""
    from torch.distributed.fsdp import fully_shard

    whole = {model.mix} if parts != "layers" else {model.mix, model.embed.weight}
    if parts == "each":
        fully_shard([model.embed, model.head], mesh=mesh, **given)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **given)
    return fully_shard(model, mesh=mesh, ignored_params=whole, **given)


def _tp(model: Any, mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    for layer in model.layers:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def _fsdp1(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel, wrap

    policy = wrap.ModuleWrapPolicy({Block})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
    )


def _mesh(*shape: int, names: tuple[str, ...] | None = None) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def spread(model: nn.Module, way: str) -> nn.Module:
    """The model as it is trained: wrapped, or its parameters in pieces."""
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    if way == "ddp":
        return _ddp(model)
    if way in ("fsdp", "each", "layers"):
        return _fsdp(model, _mesh(size), way)
    if way == "kept":
        return _fsdp(model, _mesh(size), "each", reshard_after_forward=False)
    if way == "prefetch":
        wrapped: Any = _fsdp(model, _mesh(size), "each")
        wrapped.embed.set_modules_to_forward_prefetch([wrapped.layers[0]])
        wrapped.layers[0].set_modules_to_forward_prefetch([wrapped.layers[1]])
        return wrapped
    if way == "bf16":
        from torch.distributed.fsdp import MixedPrecisionPolicy

        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        return _fsdp(model, _mesh(size), mp_policy=policy)
    if way == "hsdp":
        return _fsdp(model, _mesh(2, size // 2, names=("replicate", "shard")))
    if way == "fsdp1":
        return _fsdp1(model)
    if way == "tp":
        return _tp(model, _mesh(size))
    if way == "tp_fsdp":
        mesh = _mesh(2, size // 2, names=("dp", "tp"))
        return _fsdp(_tp(model, mesh["tp"]), mesh["dp"])
    assert way == "one"
    return model


# ------------------------------------------------------------------ the training


def adamw(parameters: Iterable[nn.Parameter], **given: Any) -> torch.optim.AdamW:
    """A step of many tensors at once takes a fifth; those of one step lie on one mesh, or none."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    given = {"lr": 0.01, "weight_decay": 0.1, "foreach": True} | given
    return torch.optim.AdamW([{"params": group} for group in groups.values()], **given)


class Training:
    """One training, the same numbers on every rank.

    Args:
        way: how it is spread.
        num_rows: of a layer; a multiple of the ranks that split it (tensor parallel).
    """

    def __init__(self, way: str = "one", num_rows: int = 13) -> None:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 what users seed
        random.seed(0)
        self.way, self.model = way, Net(num_rows)
        self.run = spread(self.model, way)
        self.optimizer = adamw(self.model.parameters())
        self.step = 0

    def train(self, until: int = STEPS, after: Callable[[int], object] = lambda _: None) -> None:
        """Steps up to a number of them; ``after`` is called with each."""
        while self.step < until:
            self.step += 1
            self.optimizer.zero_grad()
            loss(self.run, batch(100 + self.step)).mean().backward()
            self.average_what_is_whole()
            self.optimizer.step()
            after(self.step)

    def average_what_is_whole(self) -> None:
        """What FSDP2 leaves with every rank, as its users do; DDP and FSDP1 do all themselves."""
        if distributed.is_initialized() and self.way not in ("ddp", "fsdp1"):
            for parameter in self.model.parameters():
                if not hasattr(parameter, "placements"):
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= distributed.get_world_size()

    def watch(self, logdir: Path | None = None, **given: Any) -> sw.Watcher:
        optimizer = given.pop("optimizer", self.optimizer)
        return sw.watch(self.run, optimizer, logdir=logdir, **(options() | given))

    def state(self) -> dict[str, bytes]:
        """Every bit of it that this rank holds, by name."""
        found: dict[str, Any] = {"torch's generator": torch.get_rng_state()}
        found["numpy's generator"] = np.random.get_state()  # noqa: NPY002
        found["python's generator"] = random.getstate()
        for name, parameter in self.model.named_parameters():
            found[f"parameter {name}"] = parameter
            found[f"gradient {name}"] = parameter.grad
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key} of {name}"] = value
        found |= {f"buffer {name}": buffer for name, buffer in self.model.named_buffers()}
        return {name: _bits(value) for name, value in found.items()}

    def checkpoint(self) -> dict[str, Any]:
        """All of it, in whole tensors; every rank calls it."""
        optimizer = {
            name: {key: _full(value).clone() for key, value in self.optimizer.state[p].items()}
            for name, p in self.model.named_parameters()
        }
        return {
            "model": whole(self.model),
            "optimizer": optimizer,
            "generator": torch.get_rng_state(),
            "step": self.step,
        }

    @torch.no_grad()
    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint, on any number of ranks."""
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            local_of(tensor).copy_(local_of(_spread_as(tensor, saved["model"][name])))
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: value.clone() if value.ndim == 0 else _spread_as(parameter, value)
                for key, value in saved["optimizer"][name].items()
            }
        torch.set_rng_state(saved["generator"])
        self.step = saved["step"]


def unwatched(way: str, until: int = STEPS, num_rows: int = 13) -> dict[str, bytes]:
    """Every bit that this rank holds at the end of a run without a watch; called before another."""
    size = distributed.get_world_size() if distributed.is_initialized() else 0
    return _unwatched(way, until, num_rows, size)


@functools.cache  # several cases train alike; all ranks of one ask for the same
def _unwatched(way: str, until: int, num_rows: int, _: int) -> dict[str, bytes]:
    training = Training(way, num_rows)
    training.train(until)
    return training.state()


def options() -> dict[str, Any]:
    """How it is watched unless a test says otherwise; made anew, since a proxy remembers."""
    return {
        "proxy": sw.Proxy(HELD_OUT, loss),
        "every": EVERY,
        "scope": "matrices",
        "sweep": sw.sweeps.Bisection([0.5, 0.9], resolution=0.1),
        "max_overhead": None,
        "detectors": {**sees_step_6()["detectors"], "motion/dormant": sw.detectors.DormantRise()},
        "on_event": (),
        "strict": True,
    }


def _full(tensor: torch.Tensor) -> torch.Tensor:
    detached: Any = tensor.detach()
    return detached.full_tensor() if hasattr(detached, "full_tensor") else detached


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds, in the same memory."""
    detached: Any = tensor.detach()
    return detached.to_local() if hasattr(detached, "to_local") else detached


def _spread_as(like: Any, full: torch.Tensor) -> torch.Tensor:
    if not hasattr(like, "placements"):
        return full.clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements)


def _bits(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return local_of(value).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return pickle.dumps(value)


def unlike(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of what differs."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# ------------------------------------------------------------------ what is compared


def plain(record: Record) -> Record:
    """A record without what depends on when, how fast and by how many it was made."""
    cost = dataclasses.replace(
        record.cost, stall_s=0.0, spectrum_s=0.0, evaluation_s=0.0, publish_s=0.0, overhead=0.0
    )
    return dataclasses.replace(record, wall_time=0.0, cost=cost, replicas=None, xray=None)


def lines(records: list[Record]) -> list[str]:
    """Every field of records, NaN equal to NaN."""
    return [to_json(plain(record)) for record in records]


def log_of(logdir: Path) -> dict[str, Any]:
    """Everything that a log holds, by file."""
    from sparsitywatch.sinks.jsonl import read_events, read_records, read_spectrum

    folder = logdir / "sparsitywatch"
    records = read_records(folder)
    return {
        "records": lines(records),
        "events": [to_json(event) for event in read_events(folder)],
        "spectra": {
            record.step: {
                name: (array.dtype.str, array.tolist())
                for name, array in read_spectrum(folder, record.step).items()
            }
            for record in records
        },
        "files": sorted(
            path.name
            for path in folder.rglob("*")
            # whether there is a ring depends on a clock
            if path.is_file() and not path.name.startswith(("events.out", "ring"))
        ),
    }


def differences(one: Any, other: Any, bound: float, path: str = "") -> list[str]:
    """Where two JSON values differ: numbers by more than ``bound`` of their size."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [differences(one[key], other[key], bound, f"{path}.{key}") for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        parts = [differences(*pair, bound, f"{path}.{index}") for index, pair in pairs]
    elif isinstance(one, float) and isinstance(other, float):
        parts = [[] if abs(one - other) <= bound * max(abs(one), abs(other)) else [path[1:]]]
    else:
        parts = [[] if one == other else [path[1:]]]
    return [found for part in parts for found in part]


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers as one process would have them; every rank calls it."""
    return {name: _full(t).clone() for name, t in model.state_dict(keep_vars=True).items()}
