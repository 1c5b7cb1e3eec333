"""Real trainings under a live watch that save checkpoints, for replays to be held against."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn

import sparsitywatch as sw
from sparsitywatch.records import Cost, Record, to_json

STEPS, EVERY = 12, 3


#: What steps alone tell of a tensor.
_OF_STEPS = dict.fromkeys(
    ("dormant", "gradient", "gradient_zeros", "gradient_change", "update_to_weight"), math.nan
)


def told_by_weights(record: Record) -> str:
    """The part of a record that weights and settings decide, as JSON: NaN equals NaN."""
    return to_json(
        dataclasses.replace(
            record,
            wall_time=0.0,
            **dict.fromkeys(("decay_clock", "lr_clock", "lr", "trained"), math.nan),
            why_no_clock="",
            # a file tells neither gradients nor optimizers
            **dict.fromkeys(("dormant", "movement", "forecast", "vital", "source")),
            layers=tuple(dataclasses.replace(x, **_OF_STEPS) for x in record.layers),
            cost=Cost(
                stall_s=0.0,
                spectrum_s=0.0,
                evaluation_s=0.0,
                num_forwards=record.cost.num_forwards,
            ),
        )
    )


def tiny_bert(**options) -> nn.Module:
    """A BERT of two layers, made without drawing from the global generator's future."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        **options,
    )
    return transformers.BertForMaskedLM(config)


def loss_per_sentence(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The masked-LM loss of each sentence."""
    logits = model(input_ids=batch["input_ids"]).logits
    loss = nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=-100
    )
    return loss.sum(1) / (batch["labels"] != -100).sum(1)


def sentences(seed: int, num: int = 16) -> dict[str, torch.Tensor]:
    """Tokens whose neighbours predict each other; a third is masked."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(4, 30, (num, 1), generator=generator)
    labels = (start + torch.arange(8)) % 30 + 4
    masked = torch.rand(num, 8, generator=generator) < 0.33
    masked[:, 0] = True
    return {"input_ids": labels.masked_fill(masked, 3), "labels": labels.masked_fill(~masked, -100)}


def held_out() -> sw.Proxy:
    """What live watches and replays evaluate."""
    return sw.Proxy([sentences(1)], loss_per_sentence)


def train(
    logdir: Path | None,
    save: Callable[[nn.Module, int], None],
    *,
    steps: int = STEPS,
    proxy: sw.Proxy | None = None,
    **options,
) -> list[Record]:
    """Train a tiny BERT under watch, and save what each look saw; step 0 included."""
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    options = {"max_overhead": None, "background": False, "strict": True, **options}
    with sw.watch(model, optimizer, logdir=logdir, every=EVERY, proxy=proxy, **options) as watcher:
        watcher.snapshot()
        save(model, 0)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss_per_sentence(model, sentences(100 + step, 4)).mean().backward()
            optimizer.step()
            if step % EVERY == 0:
                save(model, step)
        return list(watcher.records)


def save_torch(folder: Path) -> Callable[[nn.Module, int], None]:
    """Saves with torch.save, wrapped and with an optimizer's state, as training scripts do."""
    folder.mkdir(parents=True, exist_ok=True)

    def save(model: nn.Module, step: int) -> None:
        state = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
        torch.save({"model": state, "iter_num": step}, folder / f"ckpt-{step}.pt")

    return save


def save_safetensors(folder: Path) -> Callable[[nn.Module, int], None]:
    """Saves with save_pretrained, in shards."""

    def save(model: nn.Module, step: int) -> None:
        model.save_pretrained(folder / f"checkpoint-{step}", max_shard_size="20KB")

    return save
