"""What a watch costs the training that it watches.

python benchmarks/overhead.py [--small] [--save] [--repeats N] [--threads N]

Single operations are timed on BERT-base's weights (84.9 M in scope, float32), interleaved,
medians. A whole look is one on a real ``BertForMaskedLM`` of that size with a proxy of 8
sequences of 128 tokens, against the time spent in its forward passes. The whole training is
two trainings of one small BERT in one process, one of them watched at the defaults of
``sw.watch``, in alternating stretches, so that a busy moment hits both alike.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from reporting import Goal, goal_rows, machine, run, timed
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import BertConfig, BertForMaskedLM

import sparsitywatch as sw
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.pruning.patterns import GlobalMagnitude
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: Batch and length of the proxy of the whole look.
BATCH, LENGTH = 8, 128


def bert(num_layers: int, hidden: int = 768, vocabulary: int = 30522) -> Any:
    """A ``BertForMaskedLM`` with random weights; BERT-base at twelve layers."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=num_layers,
        hidden_size=hidden,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
    )
    return BertForMaskedLM(config)


def batch_of(size: int, length: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Random tokens, all of them to be predicted."""
    tokens = torch.randint(vocabulary, (size, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "labels": tokens}


def loss_per_example(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of each sequence, float [N]."""
    logits = model(input_ids=batch["input_ids"]).logits
    losses = nn.functional.cross_entropy(logits.mT, batch["labels"], reduction="none")
    return losses.mean(dim=1)


class Stall:
    """How long a look without a proxy holds up the training thread.

    Args:
        model: what is watched.
        logdir: where its log goes.
    """

    def __init__(self, model: nn.Module, logdir: Path) -> None:
        self._watcher = sw.watch(model, None, logdir=logdir, every=1, max_overhead=None)

    def __call__(self) -> float:
        """Seconds of one step that looks; the background is idle before and after it."""
        seconds = timed(self._watcher.step)
        len(self._watcher.records)  # waits, so that nothing else is timed beside it
        return seconds

    def close(self) -> None:
        """End the watch."""
        self._watcher.close()

    def whole_s(self) -> float:
        """Median of what all of a look took, in front and behind."""
        costs = [record.cost for record in self._watcher.records[2:]]
        return statistics.median(c.stall_s + c.spectrum_s + c.publish_s for c in costs)


def single_operations(num_layers: int, repeats: int, logdir: Path) -> dict[str, float]:
    """Medians of what a look is made of, and what it stands beside, in seconds."""
    model = bert(num_layers)
    scope = Scope.of(model, "blocks")
    weights = dict(Snapshot.of(model, scope, 0).tensors)
    sources, buffers = list(weights.values()), [w.clone() for w in weights.values()]
    (cut,) = GlobalMagnitude().cuts(MagnitudeSpectrum.of(weights), [0.5])
    stall = Stall(model, logdir / "stall")
    writer = SummaryWriter(str(logdir / "writer"))
    step = 0

    def add_histograms() -> None:
        for name, weight in weights.items():
            writer.add_histogram(name, weight, step)

    times: dict[str, list[float]] = {n: [] for n in ("copy", "mask", "stall", "add_histogram")}
    with MaskedModel(model, scope).session() as masks:
        for step in range(repeats + 1):
            found = {
                "copy": timed(lambda: torch._foreach_copy_(buffers, sources)),
                "mask": timed(lambda: masks.apply(cut)),
                "stall": stall(),
            }
            if step < 3:  # slow
                found["add_histogram"] = timed(add_histograms)
            if step:  # the first one is a warm-up
                for name, seconds in found.items():
                    times[name].append(seconds)
    whole_s = stall.whole_s()
    stall.close()
    writer.close()
    return {n: statistics.median(found) for n, found in times.items()} | {"whole": whole_s}


def whole_look(num_layers: int, repeats: int) -> tuple[float, float]:
    """Median seconds (in forward passes, beside them) of a look with a proxy."""
    model = bert(num_layers)
    spent = [0.0]

    def value(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        start = time.perf_counter()
        losses = loss_per_example(model, batch)
        spent[0] += time.perf_counter() - start
        return losses

    proxy = sw.Proxy([batch_of(BATCH, LENGTH, 30522)], value)
    forwards, beside = [], []
    with (
        tempfile.TemporaryDirectory() as logdir,
        sw.watch(
            model, None, proxy=proxy, logdir=logdir, every=1, max_overhead=None, background=False
        ) as watcher,
    ):
        for _ in range(repeats):
            spent[0] = 0.0
            total = timed(watcher.step)
            forwards.append(spent[0])
            beside.append(total - spent[0])
    return statistics.median(forwards), statistics.median(beside)


class SmallTraining:
    """A small BERT in training, always on the same batch: every step costs the same."""

    def __init__(self) -> None:
        self.model = bert(2, hidden=128, vocabulary=1000).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batch = batch_of(8, 64, 1000)

    def steps(self, number: int) -> None:
        """So many optimizer steps."""
        for _ in range(number):
            self.optimizer.zero_grad()
            self.model(**self.batch).loss.backward()
            self.optimizer.step()


def whole_training(num_rounds: int) -> tuple[float, float, int]:
    """Training time watched over not watched, the watch's own share, and its looks.

    The sums over all stretches are compared, so that a look is in them at its weight.
    """
    plain, watched = SmallTraining(), SmallTraining()
    proxy = sw.Proxy([batch_of(8, 64, 1000)], loss_per_example)
    for training in (plain, watched):
        training.steps(20)
    with (
        tempfile.TemporaryDirectory() as logdir,
        sw.watch(watched.model, watched.optimizer, proxy=proxy, logdir=logdir) as watcher,
    ):
        times: dict[str, list[float]] = {"plain": [], "watched": []}

        def stretch() -> None:
            watched.steps(50)
            len(watcher.records)  # what is on its way is part of the price

        for number in range(num_rounds):
            cases = [("plain", lambda: plain.steps(50)), ("watched", stretch)]
            for name, case in cases if number % 2 else reversed(cases):
                times[name].append(timed(case))
        watcher.snapshot()
        overhead = watcher.records[-1].cost.overhead
        num_looks = len(watcher.records) - 1
    return sum(times["watched"]) / sum(times["plain"]), overhead, num_looks


def report(arguments: argparse.Namespace) -> str:
    """The whole table, in Markdown."""
    logging.getLogger("sparsitywatch").setLevel(logging.ERROR)  # looks are left out on purpose
    num_layers = 2 if arguments.small else 12
    with tempfile.TemporaryDirectory() as logdir:
        times = single_operations(num_layers, arguments.repeats, Path(logdir))
    forwards_s, beside_s = whole_look(num_layers, 1 if arguments.small else 3)
    ratio, overhead, num_looks = whole_training(20 if arguments.small else 60)
    copy_s = times["copy"]
    counted = (
        f"Looks in the watched training: {num_looks}; their share of its time by the watch's own "
        f"count: {100 * overhead:.2f} %."
    )
    rows = [
        ("one copy of the weights into warm buffers", copy_s),
        ("masking them at one level", times["mask"]),
        ("stall of a look without a proxy", times["stall"]),
        ("all of that look, in front and behind", times["whole"]),
        ("SummaryWriter.add_histogram of each tensor", times["add_histogram"]),
        (f"a look with a proxy, {BATCH} x {LENGTH} tokens: forward passes", forwards_s),
        ("the same look, all the rest", beside_s),
    ]
    goals = [
        Goal("masking against a copy", 1.2, times["mask"] / copy_s),
        Goal("a look beyond its forward passes", 10.0, 100 * beside_s / forwards_s, unit=" %"),
        Goal("stall without a proxy against a copy", 1.3, times["stall"] / copy_s),
        Goal("whole training, watched at the defaults", 1.01, ratio),
        Goal("our look against add_histogram", 1.0, times["whole"] / times["add_histogram"]),
    ]
    return "\n".join(
        [
            f"# A watch on a BERT of {num_layers} layers",
            "",
            machine(arguments.threads),
            "",
            "| case | time, ms | against a copy |",
            "|---|---:|---:|",
            *(f"| {name} | {1e3 * s:,.1f} | {s / copy_s:,.2f} |" for name, s in rows),
            "",
            counted,
            "",
            *goal_rows(goals),
            "",
        ]
    )


if __name__ == "__main__":
    run("overhead", (__doc__ or "").splitlines()[0], report)
