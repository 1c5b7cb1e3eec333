"""What a watch costs the training that it watches.

python benchmarks/overhead.py [--small] [--save] [--repeats N] [--threads N]

Single operations are timed on BERT-base's weights (84.9 M in scope, float32), interleaved,
medians. A whole snapshot is one on a real ``BertForMaskedLM`` of that size with a proxy of 8
sequences of 128 tokens, against the time spent in its forward passes. The whole training is
two trainings of one small BERT in one process, one of them watched at the defaults of
``sw.watch``, in alternating stretches, so that a busy moment hits both alike. The training under a
budget is one whose full snapshot costs ten of its steps: what of it is left out, and what is not.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reporting import Goal, Part, run, table, timed
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import BertConfig, BertForMaskedLM

import sparsitywatch as sw
from sparsitywatch.pruning.evaluation import MaskedModel
from sparsitywatch.pruning.patterns import GlobalMagnitude, Weights
from sparsitywatch.sinks.jsonl import read_manifest
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot

#: Batch and length of the proxy of the whole snapshot.
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


def single_operations(num_layers: int, repeats: int, logdir: Path) -> dict[str, float]:
    """Medians of what a snapshot is made of, and what it stands beside, in seconds."""
    model = bert(num_layers)
    scope = Scope.of(model, "blocks")
    weights = dict(Snapshot.of(model, scope, 0).tensors)
    sources, buffers = list(weights.values()), [w.clone() for w in weights.values()]
    (cut,) = GlobalMagnitude().cuts(Weights.of(weights), [0.5])
    watcher = sw.watch(model, None, logdir=logdir / "stall", every=1, max_overhead=None)
    writer = SummaryWriter(str(logdir / "writer"))
    step = 0

    def add_histograms() -> None:
        for name, weight in weights.items():
            writer.add_histogram(name, weight, step)

    times: dict[str, list[float]] = {n: [] for n in ("copy", "mask", "stall", "add_histogram")}
    with MaskedModel(model, scope).session(loss_per_example) as masks:
        for step in range(repeats + 1):
            found = {
                "copy": timed(lambda: torch._foreach_copy_(buffers, sources)),
                "mask": timed(lambda: masks.masked(cut)),
                "stall": timed(watcher.step),
            }
            len(watcher.records)  # waits, so that nothing else is timed beside it
            if step < 3:  # slow
                found["add_histogram"] = timed(add_histograms)
            if step:  # the first one is a warm-up
                for name, seconds in found.items():
                    times[name].append(seconds)
    costs = [record.cost for record in watcher.records[2:]]
    whole_s = statistics.median(c.stall_s + c.spectrum_s + c.publish_s for c in costs)
    watcher.close()
    writer.close()
    return {n: statistics.median(found) for n, found in times.items()} | {"whole": whole_s}


def whole_look(num_layers: int, repeats: int) -> tuple[float, float]:
    """Median seconds (in forward passes, beside them) of a snapshot with a proxy."""
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


def whole_training(num_rounds: int) -> Part:
    """Two trainings in turns, one of them watched at the defaults of ``sw.watch``.

    Ratios are of sums over all stretches, so that a snapshot is in them at its weight; the interval
    is a bootstrap over pairs of stretches. Processor times are steadier where others use the
    machine.
    """
    plain, watched = SmallTraining(), SmallTraining()
    proxy = sw.Proxy([batch_of(8, 64, 1000)], loss_per_example)
    for training in (plain, watched):
        training.steps(20)
    wall, cpu = np.zeros((num_rounds, 2)), np.zeros((num_rounds, 2))
    with (
        tempfile.TemporaryDirectory() as logdir,
        sw.watch(watched.model, watched.optimizer, proxy=proxy, logdir=logdir) as watcher,
    ):

        def stretch() -> None:
            watched.steps(25)
            len(watcher.records)  # what is on its way is part of the price

        cases = [lambda: plain.steps(25), stretch]
        for number in range(num_rounds):
            for case in (0, 1) if number % 2 else (1, 0):
                started_s = time.process_time()
                wall[number, case] = timed(cases[case])
                cpu[number, case] = time.process_time() - started_s
        watcher.snapshot()
        overhead = watcher.records[-1].cost.overhead
        num_snapshots = len(watcher.records) - 1
    drawn = np.random.default_rng(0).integers(num_rounds, size=(2000, num_rounds))
    sums = wall[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 1] / sums[:, 0], [0.05, 0.95])
    ratio, cpu_ratio = (float(t[:, 1].sum() / t[:, 0].sum()) for t in (wall, cpu))
    told = (
        f"The whole training: wall time {ratio:.3f} x, 90 % interval {low:.3f} to {high:.3f}; "
        f"processor time {cpu_ratio:.3f} x; {num_snapshots} snapshots, {100 * overhead:.2f} % by "
        "its own count."
    )
    return [told], [Goal("whole training, watched at the defaults", 1.01, ratio)]


def budgeted(*, small: bool) -> Part:
    """A training whose full snapshot costs some ten steps, watched at the defaults.

    A BERT of 11.6 million parameters for 500 steps, every 50th due; the rest as it comes. The share
    from outside is all that the steps took beyond the median one, over all that they took: the
    watch, and whatever else disturbed the machine.
    """
    num_steps, every = 110 if small else 500, 50
    model = bert(4, hidden=384, vocabulary=10_000).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = batch_of(8, 64, 10_000)
    # sixteen forward passes over two such batches are some ten steps
    proxy = sw.Proxy([batch, batch], loss_per_example)
    times = np.zeros(num_steps)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    step()
    with tempfile.TemporaryDirectory() as logdir:
        with sw.watch(model, optimizer, proxy=proxy, logdir=logdir, every=every) as watcher:
            for number in range(num_steps):
                times[number] = timed(step)
        info = read_manifest(Path(logdir) / "sparsitywatch")
    records = watcher.records
    costs = [record.cost for record in records]
    step_s = float(np.median(times))
    first = records[0].step - 1 - (watcher.step_count - num_steps)
    rest = np.delete(times, first)  # without the one evaluation that is always made
    num_due = len(records) + sum(cost.num_left_out for cost in costs)
    shares = {
        "share, own count": math.nan if info is None or info.state is None else info.state.overhead,
        "share, from outside": 1.0 - num_steps * step_s / float(times.sum()),
        "without the first evaluation": 1.0 - len(rest) * step_s / float(rest.sum()),
    }
    steps = max(cost.evaluation_s for cost in costs) / step_s
    told = (
        f"A training whose evaluation takes {steps:.1f} of its steps of {1e3 * step_s:,.0f} ms, at "
        "the default budget:"
    )
    num_evaluated = sum(record.curve is not None for record in records)
    cells = [str(num_due), str(len(records)), str(num_evaluated)]
    cells += [f"{100 * share:.2f} %" for share in shares.values()]
    what = "due looks at the weights that are taken, by a training whose evaluation is ten steps"
    return (
        [told, "", *table(["due", "looked at", "evaluated", *shares], [cells], left=0)],
        [Goal(what, 95.0, 100.0 * len(records) / num_due, False, " %")],
    )


def operations_part(num_layers: int, repeats: int, num_looks: int) -> Part:
    """Single operations and whole snapshots against a copy of the weights."""
    with tempfile.TemporaryDirectory() as logdir:
        times = single_operations(num_layers, repeats, Path(logdir))
    forwards_s, beside_s = whole_look(num_layers, num_looks)
    copy_s = times["copy"]
    rows = {
        "one copy of the weights into warm buffers": copy_s,
        "masking them at one level": times["mask"],
        "stall of a snapshot without a proxy": times["stall"],
        "all of that snapshot, in front and behind": times["whole"],
        "SummaryWriter.add_histogram of each tensor": times["add_histogram"],
        f"a snapshot with a proxy, {BATCH} x {LENGTH} tokens: forward passes": forwards_s,
        "the same snapshot, all the rest": beside_s,
    }
    cells = [[name, f"{1e3 * s:,.1f}", f"{s / copy_s:,.2f}"] for name, s in rows.items()]
    return table(["case", "time, ms", "against a copy"], cells), [
        Goal("masking against a copy", 1.2, times["mask"] / copy_s),
        Goal("a snapshot beyond its forward passes", 10.0, 100 * beside_s / forwards_s, unit=" %"),
        Goal("stall without a proxy against a copy", 1.3, times["stall"] / copy_s),
        Goal("our snapshot against add_histogram", 1.0, times["whole"] / times["add_histogram"]),
    ]


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """All of it."""
    logging.getLogger("sparsitywatch").setLevel(logging.ERROR)  # snapshots are left out on purpose
    small = arguments.small
    num_layers = 2 if small else 12
    return f"A watch on a BERT of {num_layers} layers", [
        operations_part(num_layers, arguments.repeats, 1 if small else 3),
        whole_training(40 if small else 120),
        budgeted(small=small),
    ]


if __name__ == "__main__":
    run("overhead", __doc__, measure)
