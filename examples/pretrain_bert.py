r"""Pretrain a BERT from scratch under watch: masked language modelling in a plain PyTorch loop.

    python examples/pretrain_bert.py

trains a small model (2 layers, characters, ReLU, strong weight decay) on Python's own
documentation, in about two minutes on one CPU core, and shows two things. First the
*breakthrough*: after a long plateau the model begins to use its encoder; reliance jumps,
essential sparsity falls, weights go dormant. Then the *take-off* of near-zero weights,
which follows on the decay clock: it is driven by weight decay, and the control

    python examples/pretrain_bert.py --decay 0.01 --logdir runs/control

does not show it. What is seen here is not proof of Figure 8 of the paper (arXiv:2306.03805):
BERT-base uses GELU and its decay is not stated.

Everything is an argument. BERT-base on BookCorpus, from a folder of text files, is

    python examples/pretrain_bert.py --text bookcorpus/ --vocab 30522 --sequence 128 \
        --layers 12 --hidden 768 --heads 12 --ffn 3072 --activation gelu --dropout 0.1 \
        --decay 0.01 --lr 1e-4 --betas 0.9 0.999 --schedule linear --warmup 10000 \
        --steps 50000 --batch 256 --every 1000 --held-out 512 --device cuda \
        --logdir runs/bert-base

and the five data sizes of that figure are ``--fraction 1.0 0.9 0.8 0.7 0.6``, one run each.
(The whole text is held in memory, about 10 GB for BookCorpus; one device is used.)

A run that was killed goes on when the same command is given again; a finished one is moved
aside, never deleted, and a new one starts.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from arguments import parser
from console import Console
from masking import held_out_value, mask_tokens, surrounded
from milestones import find_breakthrough, summary
from run import Run, prepare, take_up

import sparsitywatch as sw
from sparsitywatch.records import Record
from sparsitywatch.sinks.figures import overview_figure, save_figure

__all__ = ["main"]

#: Steps between two readings of the loss for the bar; reading waits for a GPU.
_LOSS_EVERY = 10
#: Held-out masks are drawn once, the same in every run.
_HELD_OUT_SEED = 1_234
#: Held-out sequences per batch of the proxy.
_HELD_OUT_BATCH = 64

_CAVEAT = """\
What this shows, and what not. A take-off of near-zero weights follows the decay clock: it is
driven by weight decay (the control is --decay 0.01 --logdir runs/control). Essential sparsity
is zero-shot, without fine-tuning after pruning, so usually lower than the paper's. A small model
with strong decay is not proof of the paper's figure."""


def held_out_proxy(run: Run) -> sw.Proxy:
    """The held-out sequences, masked once and for all."""
    tokens = surrounded(run.corpus.held_out, run.vocabulary.prefix, run.vocabulary.suffix)
    generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
    masked = mask_tokens(tokens, run.vocabulary.size, generator)
    batches = [
        {name: tensor[start : start + _HELD_OUT_BATCH] for name, tensor in masked.items()}
        for start in range(0, len(tokens), _HELD_OUT_BATCH)
    ]
    return sw.Proxy(batches, held_out_value, name="held-out masked-LM loss")


def train(run: Run, watcher: sw.Watcher | None, console: Console) -> None:
    """The loop: nothing in it knows of the watch but the checkpoint.

    Raises:
        FloatingPointError: the loss is not finite any more.
    """
    args, training = run.args, run.training
    started = time.perf_counter() - run.wall_s
    losses = []
    while training.steps_done < args.steps:
        loss = training.step()
        losses.append(loss)
        step = training.steps_done
        console.step(float(loss) if step % _LOSS_EVERY == 0 else None)
        if step % args.every and step < args.steps:
            continue
        run.losses.append((step, float(torch.stack(losses).mean())))
        losses.clear()
        if not math.isfinite(run.losses[-1][1]):
            raise FloatingPointError(
                f"the loss is {run.losses[-1][1]} at step {step}: try a smaller `--lr`"
            )
        run.wall_s = time.perf_counter() - started
        if watcher is not None and step == args.steps:
            watcher.snapshot()  # the last look, whether or not it is due
        if step % (args.every * args.checkpoint_every) == 0 or step == args.steps:
            run.save(watcher)


def watched(run: Run, console: Console) -> sw.Watcher:
    """A watch on the run, going on from its checkpoint if there is one."""

    def on_record(record: Record) -> None:
        console.record(record)
        found = find_breakthrough(watcher.records, run.args.steps)
        if found is not None and found.step == record.step:
            console.breakthrough(found)

    watcher = sw.watch(
        run.training.model,
        run.training.optimizer,
        proxy=held_out_proxy(run),
        every=run.args.every,
        max_overhead=run.args.max_overhead,
        logdir=run.args.logdir,
        initial_step=run.training.steps_done,
        on_event=[console.event],
        on_record=[on_record],
    )
    if run.watch is not None:
        watcher.load_state_dict(run.watch)
    return watcher


def report(run: Run, watcher: sw.Watcher | None) -> str:
    """Draw the picture, and say what was seen and where to look."""
    args = run.args
    if watcher is None:
        return f"{args.steps} steps in {run.wall_s:.0f} s, last loss {run.losses[-1][1]:.3f}."
    title = f"BERT, {args.layers} layers, {args.activation}, decay {args.decay:g}"
    figure = overview_figure(watcher.records, watcher.events, loss=run.losses, title=title)
    save_figure(figure, run.picture)
    told = summary(watcher.records, watcher.events, steps=args.steps, wall_s=run.wall_s)
    off = f"\nThe watch switched itself off: {watcher.off}" if watcher.off else ""
    script = Path(sys.executable).with_name("tensorboard")
    command = os.path.relpath(script) if script.exists() else "tensorboard"
    return f"""
{told}{off}

{_CAVEAT}

Look at
  {run.picture}
  {args.logdir / "sparsitywatch" / "records.jsonl"}   one line per look; events.jsonl beside it
  {command} --logdir {args.logdir}   then open http://localhost:6006"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    arguments = parser()
    args = arguments.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        run = prepare(args)
        args.logdir.mkdir(parents=True, exist_ok=True)
        told = take_up(run)
    except (ValueError, OSError) as error:
        arguments.error(str(error))
    print(run.describe(), told, sep="\n" if told else "")
    console = Console(args.steps, run.training.steps_done, quiet=args.quiet)
    try:
        with contextlib.nullcontext() if args.no_watch else watched(run, console) as watcher:
            train(run, watcher, console)
    except KeyboardInterrupt:
        console.say("Interrupted; the same command goes on from the last checkpoint.")
        return 130
    except FloatingPointError as error:
        console.say(f"Stopped: {error}.")
        return 1
    finally:
        console.close()
    print(report(run, watcher))
    run.save(watcher, finished=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
