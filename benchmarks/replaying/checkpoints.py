"""Checkpoints to read: weights of N(0, 0.02) under the names of real models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Written:
    """A checkpoint on disk: what to open, and the sizes of all its tensors and of the largest."""

    path: Path
    num_weights: int
    num_bytes: int
    largest_bytes: int


def bert_shapes(num_layers: int, hidden: int = 768, vocab: int = 30522) -> Shapes:
    """What BERT-base has, at another depth and width if asked for."""
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": (vocab, hidden),
        "bert.embeddings.position_embeddings.weight": (512, hidden),
    }
    for layer in range(num_layers):
        for part, rows, columns in (
            *((f"attention.self.{name}", hidden, hidden) for name in ("query", "key", "value")),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", 4 * hidden, hidden),
            ("output.dense", hidden, 4 * hidden),
        ):
            shapes[f"bert.encoder.layer.{layer}.{part}.weight"] = (rows, columns)
            shapes[f"bert.encoder.layer.{layer}.{part}.bias"] = (rows,)
    return shapes


def llama_shapes(num_layers: int, hidden: int, vocab: int) -> Shapes:
    """A decoder with gated feed-forward layers, as most large models are today."""
    wide = 8 * hidden // 3 // 128 * 128
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(num_layers):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{layer}.self_attn.{part}.weight"] = (hidden, hidden)
        for part, shape in (
            ("gate_proj", (wide, hidden)),
            ("up_proj", (wide, hidden)),
            ("down_proj", (hidden, wide)),
        ):
            shapes[f"model.layers.{layer}.mlp.{part}.weight"] = shape
    shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def drawn(shapes: Shapes, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.empty(shape).normal_(0, 0.02, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }


def _written(path: Path, shapes: Shapes, itemsize: int) -> Written:
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return Written(path, sum(sizes), itemsize * sum(sizes), itemsize * max(sizes))


def write_bert(path: Path, num_layers: int, seed: int = 0) -> Written:
    """A BERT-base of so many layers: one file of safetensors, float32."""
    shapes = bert_shapes(num_layers)
    safetensors.torch.save_file(drawn(shapes, torch.float32, seed), path)
    return _written(path, shapes, 4)


def write_sharded(
    folder: Path, num_layers: int, hidden: int, vocab: int, shard_bytes: int = 500 * 10**6
) -> Written:
    """A decoder in bfloat16, sharded as ``save_pretrained`` does; never whole in memory."""
    folder.mkdir()
    shapes = llama_shapes(num_layers, hidden, vocab)
    shards = list(_shards(shapes, shard_bytes))
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        safetensors.torch.save_file(drawn(shard, torch.bfloat16, i), folder / name)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return _written(folder, shapes, 2)


def _shards(shapes: Shapes, shard_bytes: int) -> Iterator[Shapes]:
    shard: Shapes = {}
    size = 0
    for name, shape in shapes.items():
        num_bytes = 2 * torch.Size(shape).numel()
        if shard and size + num_bytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += num_bytes
    yield shard


def write_series(folder: Path, first: Path, num_checkpoints: int) -> None:
    """Checkpoints in which every weight has moved since the one before.

    There are two files, in turns, under many names: one would do for counting, but then nothing
    moves, and what did not move is not compared. The first one is a file of safetensors.
    """
    weights = safetensors.torch.load_file(first)
    generator = torch.Generator().manual_seed(1)
    for weight in weights.values():
        weight.mul_(0.999).add_(torch.empty_like(weight).normal_(0, 1e-4, generator=generator))
    other = folder.with_suffix(".safetensors")
    safetensors.torch.save_file(weights, other)
    for step in range(num_checkpoints):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        os.link((first, other)[step % 2], checkpoint / "model.safetensors")
        (checkpoint / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
