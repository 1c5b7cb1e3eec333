"""What a watch costs the training that it watches.

python benchmarks/overhead.py [--small] [--save] [--repeats N] [--threads N]

Single operations are timed on BERT-base's weights (84.9 M in scope, float32), interleaved,
medians. A whole snapshot is one on a real ``BertForMaskedLM`` of that size with a proxy of 8
sequences of 128 tokens, against the time spent in its forward passes. Whole runs of 30 s and 5
minutes are measured from outside, from the first step to the end of ``close``, at the defaults of
``sw.watch``: one training takes every other step with torch's hooks taken off, so that nobody sees
it. Compared is processor time, of the training's thread in both kinds of steps, to which that of
all other threads is added: what a watch takes of a wall on which no core is free, and so the most
that it takes of any. Unwatched steps are told apart in the same way, every other one: by how much
they differ stands beside, and is what this can tell. Where an evaluation may run behind the
training, on a core that is idle, wall time is compared, of 50 steps that begin with an evaluation
and of the next 50, in one training: medians of the ratios of neighbours. Close what else uses the
cores.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from reporting import Goal, Part, run, table, timed
from torch import nn
from torch.optim import optimizer as optimizers
from torch.utils.tensorboard import SummaryWriter
from transformers import BertConfig, BertForMaskedLM

import sparsitywatch as sw
from sparsitywatch.evaluation.masked import MaskedModel
from sparsitywatch.live.ring import Ring
from sparsitywatch.patterns.cuts import Weights
from sparsitywatch.patterns.pattern import GlobalMagnitude
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.ranks.reading import WHOLE_MODEL
from sparsitywatch.sinks.jsonl import read_manifest
from sparsitywatch.vital.gradients import GradientSums
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


def sizes_of_gradients(num_layers: int, repeats: int) -> float:
    """Median seconds of counting every gradient of the model, as a snapshot does."""
    named = dict(bert(num_layers).named_parameters())
    for parameter in named.values():
        parameter.grad = torch.randn_like(parameter)
    count = partial(GradientSums.of, named, [*named], WHOLE_MODEL, 0.0)
    return statistics.median(timed(count) for _ in range(repeats))


def norms_of_a_step(num_layers: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a step of the ring, and of the same norms of all weights, with a copy."""
    model = bert(num_layers)
    weights = [parameter.detach() for parameter in model.parameters()]
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.grad = weight
    ring, before = Ring(True, Claim(None)), [weight.clone() for weight in weights]
    ring.attach(dict(model.named_parameters()))

    def of_all() -> None:
        torch._foreach_sub_(before, weights)
        for tensors in (before, weights, weights):
            torch._foreach_norm(tensors)
        torch._foreach_copy_(before, weights)

    pairs = [(timed(partial(ring.after_step, step)), timed(of_all)) for step in range(repeats + 1)]
    sampled_s, of_all_s = zip(*pairs[1:], strict=True)  # the first one is a warm-up
    return statistics.median(sampled_s), statistics.median(of_all_s)


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


class Digits:
    """A small classifier in training, with steps of a few milliseconds, as of MNIST.

    Half of the labels are drawn anew at each step, so that there is always something to learn.
    Where all are, every unit dies in the end.
    """

    def __init__(self, batch: int = 128) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.images, self.digits = torch.randn(4096, 784), torch.randint(10, (4096,))

    def step(self) -> None:
        """One optimizer step."""
        chosen = torch.randint(4096, (self.batch,))
        self.optimizer.zero_grad()
        drawn = torch.randint(10, (self.batch,))
        drawn = torch.where(torch.rand(self.batch) < 0.5, self.digits[chosen], drawn)
        loss = nn.functional.cross_entropy(self.model(self.images[chosen]), drawn)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def proxy(self) -> sw.Proxy:
        """The loss of 1,024 images."""

        def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

        parts = [slice(i, i + 256) for i in range(0, 1024, 256)]
        return sw.Proxy([[self.images[part], self.digits[part]] for part in parts], loss)


class Sentences:
    """A BERT of 11.6 million parameters, with steps of some tenths of a second, as ``Digits``."""

    def __init__(self, batch: int, hidden: int = 384, vocabulary: int = 10_000) -> None:
        self.batch, self.vocabulary = batch, vocabulary
        self.model = bert(4, hidden, vocabulary).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        """One optimizer step."""
        tokens = torch.randint(self.vocabulary, (self.batch, 64))
        self.optimizer.zero_grad()
        self.model(input_ids=tokens, labels=tokens.flip(0)).loss.backward()
        self.optimizer.step()

    def proxy(self, num_batches: int = 2) -> sw.Proxy:
        """The loss of 16 sequences, or of another multiple of 8."""
        batch = batch_of(8, 64, self.vocabulary)
        return sw.Proxy([batch] * num_batches, loss_per_example)


#: Of torch, by which a watch sees the steps of every optimizer.
HOOKS: tuple[dict[int, Any], ...] = (
    optimizers._global_optimizer_pre_hooks,
    optimizers._global_optimizer_post_hooks,
)


def in_pairs(training: Digits | Sentences, seconds: float) -> tuple[np.ndarray, float]:
    """Processor time of steps with hooks and without, [2, steps]; of all other threads meanwhile.

    Of each pair of steps either may come first. The steps with hooks take ``seconds`` altogether.
    """
    found: list[list[float]] = [[], []]
    hooks = [dict(table) for table in HOOKS]
    others_s = time.thread_time() - time.process_time()
    took_s = 0.0
    while took_s < seconds:
        for way in random.sample((0, 1), 2) if took_s else (0, 1):
            for place, called in zip(HOOKS, hooks, strict=True):
                place.clear()
                place.update({} if way else called)
            began = time.thread_time()
            training.step()
            found[way].append(time.thread_time() - began)
        took_s += found[0][-1]
    for place, called in zip(HOOKS, hooks, strict=True):
        place.update(called)
    return np.array(found), others_s + time.process_time() - time.thread_time()


def short_run(training: Digits | Sentences, seconds: float, every: int) -> list[str]:
    """A row about a whole run under the default budget."""
    for _ in range(20):
        training.step()
    with tempfile.TemporaryDirectory() as logdir:
        watcher = sw.watch(
            training.model, training.optimizer, proxy=training.proxy(), logdir=logdir,
            every=every, max_overhead=0.005,  # 1 %: half of the time on its clock is the others'
        )  # fmt: skip
        both, others_s = in_pairs(training, seconds)
        began = time.process_time()
        watcher.close()
        close_s = time.process_time() - began
        info = read_manifest(Path(logdir) / "sparsitywatch")
    assert info is not None
    assert info.state is not None
    watched, alone = both
    at_each = float(np.median(watched) - np.median(alone))
    took = np.array([watched.sum() + others_s + close_s - alone.sum(), others_s, close_s])
    shares = took / (alone.sum() + took[0])
    off_by = alone[::2].mean() / alone[1::2].mean() - 1.0
    state = info.state
    return [
        f"{type(training).__name__}, {1e3 * alone.mean():,.1f} ms a step, {seconds:g} s",
        f"{state.num_due:,d}, {state.num_taken:,d}, {state.num_evaluated:,d}",
        f"{1e6 * at_each:,.0f}",
        *(f"{100 * share:.2f} %" for share in (2.0 * state.overhead, *shares, off_by)),
    ]


def quieten() -> None:
    """Say nothing of snapshots that are left out on purpose; flush what is hardly above zero.

    The moments of a unit that is dead shrink to numbers that a processor is slow with: a training
    of minutes would take up to three times as long per step at its end.
    """
    logging.getLogger("sparsitywatch").setLevel(logging.ERROR)
    torch.set_flush_denormal(True)


def budgeted(*, small: bool) -> Part:
    """Short runs, watched at the default budget."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = [
        short_run(training, seconds, every)
        for seconds in ([2.0] if small else [30.0, 300.0])
        for training, every in ((Digits(128), 100), (Digits(320), 100), (Sentences(2), 20))
    ]
    torch.set_num_threads(num_threads)
    header = ["training", "due, taken, evaluated", "at each step, us", "own count",
              "processor time", "of it behind", "of it closing", "unwatched, off by"]  # fmt: skip
    worst = max(float(row[4].split()[0]) for row in rows)
    return (
        ["Whole runs at the default budget, one thread, against steps that nobody watches:", "",
         *table(header, rows)],
        [Goal("share of the processor time of a whole run", 1.2, worst, unit=" %")],
    )  # fmt: skip


def windows_s(where: Literal["inline", "behind"], num: int, *, small: bool) -> np.ndarray:
    """Wall and processor time of 50 steps from an evaluation on, and of the next 50, [num, 2, 2].

    The first two windows, in which all is new, are left out.
    """
    hidden, vocabulary = (64, 1000) if small else (512, 30_522)
    training = Sentences(2, hidden, vocabulary)
    found = []
    with sw.watch(
        training.model, training.optimizer, proxy=training.proxy(1), logdir=None, every=100,
        evaluate=where, levels=[i / 10 for i in range(1, 10)], initial_step=0, max_overhead=None,
    ) as watcher:  # fmt: skip
        for _ in range(99):
            training.step()
        for _ in range(2 * num + 2):
            began = time.perf_counter(), time.process_time()  # without that of forks
            for _ in range(50):
                training.step()
            found.append(np.array([time.perf_counter(), time.process_time()]) - began)
    assert all(record.curve is not None for record in watcher.records)
    return np.reshape(found[2:], (num, 2, 2))


def behind_part(*, small: bool) -> Part:
    """A training on one of the cores, its evaluations on the same one and on another."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, ratio = [], 0.0
    ways: dict[Literal["inline", "behind"], int] = {"inline": 3, "behind": 2 if small else 7}
    for where, num in ways.items():
        with_s, without_s = windows_s(where, num, small=small).swapaxes(0, 1)
        ratios = with_s / without_s
        ratio, of_processor = np.median(ratios, axis=0)
        low, high = ratios[:, 0].min(), ratios[:, 0].max()
        rows.append([where, *(f"{np.median(x):.2f}" for x in (without_s[:, 0], with_s[:, 0])),
                     f"{ratio:.3f} ({low:.3f} to {high:.3f})", f"{of_processor:.3f}"])  # fmt: skip
    torch.set_num_threads(num_threads)
    head = ["evaluated", "50 steps, s", "from an evaluation on, s", "wall time, ratio",
            "processor time, ratio"]  # fmt: skip
    title = f"A BERT of 4 layers and width {64 if small else 512}, one thread, every 50 steps with"
    goal = Goal("wall time with evaluations behind the training", 1.05, ratio)
    return [f"{title} an evaluation against the 50 that follow:", "", *table(head, rows)], [goal]


def operations_part(num_layers: int, repeats: int, num_looks: int) -> Part:
    """Single operations and whole snapshots against a copy of the weights."""
    with tempfile.TemporaryDirectory() as logdir:
        times = single_operations(num_layers, repeats, Path(logdir))
    forwards_s, beside_s = whole_look(num_layers, num_looks)
    ring_s, of_all_s = norms_of_a_step(num_layers, repeats)
    gradients_s, copy_s = sizes_of_gradients(num_layers, repeats), times["copy"]
    rows = {
        "one copy of the weights into warm buffers": copy_s,
        "masking them at one level": times["mask"],
        "stall of a snapshot without a proxy": times["stall"],
        "all of that snapshot, in front and behind": times["whole"],
        "sizes of all gradients, at a snapshot after steps": gradients_s,
        "SummaryWriter.add_histogram of each tensor": times["add_histogram"],
        f"a snapshot with a proxy, {BATCH} x {LENGTH} tokens: forward passes": forwards_s,
        "the same snapshot, all the rest": beside_s,
        "a step of the ring, 8,192 weights of each block (`ring=True`)": ring_s,
        "the same norms of all weights": of_all_s,
    }
    cells = [[name, f"{1e3 * s:,.1f}", f"{s / copy_s:,.2f}"] for name, s in rows.items()]
    return table(["case", "time, ms", "against a copy"], cells), [
        Goal("masking against a copy", 1.2, times["mask"] / copy_s),
        Goal("a snapshot beyond its forward passes", 10.0, 100 * beside_s / forwards_s, unit=" %"),
        Goal("stall without a proxy against a copy", 1.3, times["stall"] / copy_s),
        # of the one percent that `max_overhead` leaves to snapshots
        Goal(
            "sizes of gradients in the time of a training, at the defaults",
            0.3,
            gradients_s / (gradients_s + times["whole"]),
            unit=" %",
        ),
        Goal("a step of the ring against a copy", 0.3, ring_s / copy_s),
        Goal("our snapshot against add_histogram", 1.0, times["whole"] / times["add_histogram"]),
    ]


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """All of it."""
    quieten()
    small = arguments.small
    num_layers = 2 if small else 12
    return f"A watch on a BERT of {num_layers} layers", [
        operations_part(num_layers, arguments.repeats, 1 if small else 3),
        budgeted(small=small),
        behind_part(small=small),
    ]


if __name__ == "__main__":
    run("overhead", __doc__, measure)
