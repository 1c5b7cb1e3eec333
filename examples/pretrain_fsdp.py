r"""Pretrain a small BERT that is sharded over processes (FSDP2), under watch.

    torchrun --nproc-per-node 2 examples/pretrain_fsdp.py

Each process holds a part of every matrix, and calls ``sw.watch``. Together they measure the whole
model, and the first one writes the log. What differs from a training in one process is marked with
"ranks:". One process, without torchrun,

    python examples/pretrain_fsdp.py --logdir runs/alone

writes the same records, bit for bit, but for what a clock says. For that the training itself is the
same: both ranks get the same batches, and the mean of two equal gradients is exactly that gradient.
(Of three it is rounded.) A real training gives each rank batches of its own, as ``--own-batches``
does: that is another training, of a larger batch, and has other records. The held-out batches are
the same on every rank all the same, so that the ranks share the evaluation.

A run that was killed goes on when the command is given again, on as many processes as you like.
The text is that of Python's help topics, character by character.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F  # noqa: N812
from transformers import BertConfig, BertForMaskedLM

import sparsitywatch as sw

IGNORED, MASK = -100, 0  # the label of what is not to be predicted, and the token that hides it
HELD_OUT = 64  # sequences
Batch = dict[str, torch.Tensor]


def train(args: argparse.Namespace) -> None:
    """Set everything up; then a loop that knows nothing of the watch but at its checkpoints."""
    device = start(args)
    text, held_out, vocabulary_size = read_text(args.sequence)
    model = bert(args, vocabulary_size).to(device)
    if dist.is_initialized():  # ranks: in parts, layer by layer, before there is an optimizer
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.decay)
    done, watch_state = take_up(args.logdir, model, optimizer)
    if done >= args.steps:
        return

    draw = torch.Generator().manual_seed(0)
    proxy = sw.Proxy([masked(part, draw) for part in held_out.split(16)], losses)
    with sw.watch(  # ranks: called on every one of them
        model,
        optimizer,
        proxy=proxy,
        every=args.every,
        logdir=args.logdir,
        max_overhead=None,  # take every snapshot, though these steps are short
        initial_step=done,
        on_record=[show],  # ranks: called on the first one, as are actions
    ) as watcher:
        if watch_state is not None:
            watcher.load_state_dict(watch_state)
        for step in range(done + 1, args.steps + 1):
            losses(model, next_batch(text, step, args)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % args.save_every == 0 or step == args.steps:
                save(args.logdir, step, model, optimizer, watcher)


def start(args: argparse.Namespace) -> torch.device:
    """The device of this process. It joins the others if torchrun has started it."""
    torch.set_num_threads(1)  # the same sums in the same order, whoever starts it
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # only read here
    torch.manual_seed(args.seed)  # ranks: the same weights on each of them
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:  # ranks: they know of each other before any of them attaches
        dist.init_process_group("nccl" if has_gpu else "gloo")
    return torch.device("cuda" if has_gpu else "cpu")


def show(record: sw.Record) -> None:
    """One line for each snapshot."""
    estimate, series = record.essential_sparsity, record.series()
    known = "not used yet"
    if estimate and (estimate.informative or estimate.examples_needed):
        known = f"{estimate.value:.2f}" if estimate.informative else "cannot say"
    print(
        f"step {record.step:5}  held-out loss {series.get('value/dense', math.nan):.3f}  "
        f"essential sparsity {known:12}  near zero {record.near_zero['initial_0.1']:.3f}",
        flush=True,
    )


# ---------------- Checkpoints: each rank writes its parts


def save(
    logdir: Path, step: int, model: Any, optimizer: torch.optim.Optimizer, watcher: sw.Watcher
) -> None:
    """A checkpoint, complete once its ``.metadata`` is there, which is written last."""
    folder = logdir / "checkpoints" / f"step-{step:06}"
    watch_state = watcher.state_dict()
    if not dist.is_initialized() or dist.get_rank() == 0:  # ranks: all have the same state
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(watch_state, folder / "watch.pt")
    weights, moments = get_state_dict(model, optimizer)
    state_dict_saver.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def take_up(
    logdir: Path, model: Any, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any] | None]:
    """Steps done by the last complete checkpoint, which is loaded, and the state of the watch."""
    complete = sorted((logdir / "checkpoints").glob("step-*/.metadata"))
    if not complete:
        return 0, None
    folder = complete[-1].parent
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    state_dict_loader.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    return int(folder.name.removeprefix("step-")), torch.load(folder / "watch.pt")


# ---------------- The model and its text


def bert(args: argparse.Namespace, vocabulary_size: int) -> Any:
    """A BERT with random weights, and without dropout, which each rank would draw by itself."""
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 16,
        intermediate_size=4 * args.hidden,
        hidden_act="relu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=args.sequence,
    )
    return BertForMaskedLM(config)


def losses(model: Any, batch: Batch) -> torch.Tensor:
    """The loss of each sequence [N]; ranks: through the whole model, which gathers its parts."""
    tokens, labels = batch["input_ids"].to(model.device), batch["labels"].to(model.device)
    logits = model(input_ids=tokens).logits.transpose(1, 2)
    each = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    return each.sum(1) / (labels != IGNORED).sum(1)


def read_text(length: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Characters as numbers: to train on [T], held out [HELD_OUT, length], and how many differ."""
    text = "\n".join(topics[name] for name in sorted(topics))
    known = {character: number for number, character in enumerate(sorted(set(text)), MASK + 1)}
    tokens = torch.tensor([known[character] for character in text])
    held_out, rest = tokens[: HELD_OUT * length], tokens[HELD_OUT * length :]
    return rest, held_out.reshape(HELD_OUT, length), len(known) + 1


def next_batch(text: torch.Tensor, step: int, args: argparse.Namespace) -> Batch:
    """Random windows of the text for a step; the same whenever it is asked for."""
    number = step
    if args.own_batches and dist.is_initialized():  # ranks: other ones on each of them
        number = step * dist.get_world_size() + dist.get_rank()
    draw = torch.Generator().manual_seed(number)
    starts = torch.randint(len(text) - args.sequence, (args.batch, 1), generator=draw)
    return masked(text[starts + torch.arange(args.sequence)], draw)


def masked(tokens: torch.Tensor, draw: torch.Generator) -> Batch:
    """Sequences [N, L] with their first token and 15 % of the others hidden."""
    hidden = torch.rand(tokens.shape, generator=draw) < 0.15
    hidden[:, 0] = True  # so that every sequence has a loss
    labels = tokens.masked_fill(~hidden, IGNORED)
    return {"input_ids": tokens.masked_fill(hidden, MASK), "labels": labels}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    out = argparse.ArgumentParser(
        description="Pretrain a sharded BERT under watch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = out.add_argument
    add("--layers", type=int, default=2)
    add("--hidden", type=int, default=64, help="width, a multiple of 16")
    add("--sequence", type=int, default=32, help="length in characters")
    add("--batch", type=int, default=64, help="sequences a step, on each rank")
    add("--own-batches", action="store_true", help="give each rank other batches")
    add("--steps", type=int, default=500)
    add("--lr", type=float, default=1e-3)
    add("--decay", type=float, default=1.0, help="weight decay")
    add("--seed", type=int, default=0)
    add("--every", type=int, default=25, help="steps between two snapshots")
    add("--save-every", type=int, default=100, help="steps between two checkpoints")
    add("--logdir", type=Path, default=Path("runs/fsdp"))
    train(out.parse_args(argv))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
