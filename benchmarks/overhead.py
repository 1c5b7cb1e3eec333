"""What a watch costs the training that it watches.

python benchmarks/overhead.py [--small] [--save] [--repeats N] [--threads N]

Single operations are timed on BERT-base's weights (84.9 M in scope, float32), interleaved,
medians. A whole snapshot is one on a real ``BertForMaskedLM`` of that size with a proxy of 8
sequences of 128 tokens, against the time spent in its forward passes. Whole runs of 30 s and 5
minutes are measured from outside, from the first step to the end of ``close``: a training that is
watched at the defaults of ``sw.watch`` and its twin, which nobody watches, in two processes, take
turns of a second, so that a machine that slows down hits both alike. What the watch does behind the
training is waited for, and counts as if the training had stood still. Twins differ by up to a
tenth, as their weights lie in memory. How much is measured before and after, with both unwatched;
by how much these two differ stands beside: it is what this can tell.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from reporting import Goal, Part, run, table, timed
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import BertConfig, BertForMaskedLM

import sparsitywatch as sw
from sparsitywatch.pruning.evaluation import MaskedModel
from sparsitywatch.pruning.patterns import GlobalMagnitude, Weights
from sparsitywatch.records import WatchState
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


class Digits:
    """A small classifier in training, with steps of a few milliseconds, as of MNIST.

    Half of the labels are drawn anew at each step, so that there is always something to learn.
    Where all are, every unit dies in the end.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.images, self.digits = torch.randn(4096, 784), torch.randint(10, (4096,))

    def steps(self, number: int) -> None:
        """So many optimizer steps."""
        for _ in range(number):
            chosen = torch.randint(4096, (128,))
            self.optimizer.zero_grad()
            drawn = torch.where(
                torch.rand(128) < 0.5, self.digits[chosen], torch.randint(10, (128,))
            )
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

    def __init__(self) -> None:
        self.model = bert(4, hidden=384, vocabulary=10_000).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def steps(self, number: int) -> None:
        """So many optimizer steps."""
        for _ in range(number):
            tokens = torch.randint(10_000, (8, 64))
            self.optimizer.zero_grad()
            self.model(input_ids=tokens, labels=tokens.flip(0)).loss.backward()
            self.optimizer.step()

    def proxy(self) -> sw.Proxy:
        """An evaluation of some ten steps."""
        batch = batch_of(8, 64, 10_000)
        return sw.Proxy([batch, batch], loss_per_example)


class Twin:
    """A training in a process of its own, which stands still but for its turns."""

    here: ClassVar[dict[str, Any]] = {}  # in that process: the training, its watch, its log

    def __init__(self, kind: type[Digits | Sentences], num_threads: int) -> None:
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._in_it(Twin._make, kind, num_threads)

    def _in_it(self, function: Callable[..., Any], *given: Any) -> Any:
        return self._process.submit(function, *given).result()

    @staticmethod
    def _make(kind: type[Digits | Sentences], num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        quieten()
        Twin.here["training"] = kind()
        Twin.here["training"].steps(10)

    def steps(self, number: int) -> float:
        """The wall time of so many steps, and of what a watch does behind them."""
        return float(self._in_it(Twin._steps, number))

    @staticmethod
    def _steps(number: int) -> float:
        seconds = timed(partial(Twin.here["training"].steps, number))
        watcher = Twin.here.get("watcher")
        return seconds if watcher is None else seconds + timed(lambda: watcher.records)

    def watch(self, every: int) -> None:
        """Attach one at the default budget."""
        self._in_it(Twin._watch, every)

    @staticmethod
    def _watch(every: int) -> None:
        training, folder = Twin.here["training"], tempfile.TemporaryDirectory()
        # 1 %, the default, of what it sees: the other twin has half of the time on its clock
        watcher = sw.watch(
            training.model, training.optimizer, proxy=training.proxy(), logdir=folder.name,
            every=every, max_overhead=0.005,
        )  # fmt: skip
        Twin.here.update(watcher=watcher, folder=folder)

    def close(self) -> tuple[float, WatchState]:
        """How long closing the watch takes, and how it stands in the log."""
        seconds, state = self._in_it(Twin._close)
        return seconds, state

    @staticmethod
    def _close() -> tuple[float, WatchState | None]:
        folder = Twin.here.pop("folder")
        seconds = timed(Twin.here.pop("watcher").close)
        info = read_manifest(Path(folder.name) / "sparsitywatch")
        folder.cleanup()
        return seconds, None if info is None else info.state

    def end(self) -> None:
        """End the process."""
        self._process.shutdown()


def in_turn(pair: tuple[Twin, Twin], seconds: float, step_s: float) -> np.ndarray:
    """Wall time of both, which take turns of a second: first, second, second, first, ...; [2]."""
    num_steps = max(1, round(1.0 / step_s))
    found = np.zeros(2)
    for turn in range(2 * max(1, round(seconds / (2 * num_steps * step_s)))):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            found[which] += pair[which].steps(num_steps)
    return found


def short_runs(
    kind: type[Digits | Sentences], seconds: float, every: int, number: int
) -> list[str]:
    """A row about so many whole runs under the default budget, the medians of them."""
    pair = Twin(kind, torch.get_num_threads()), Twin(kind, torch.get_num_threads())
    step_s = (pair[0].steps(10) + pair[1].steps(10)) / 20
    beside = partial(in_turn, pair, min(seconds, 60.0), step_s)
    alone, watched, states = [beside()], [], []
    for _ in range(number):
        pair[0].watch(every)
        both = in_turn(pair, seconds, step_s)
        close_s, state = pair[0].close()
        watched.append((both[0] + close_s) / both[1])
        states.append(state)
        alone.append(beside())
    for twin in pair:
        twin.end()
    apart = np.array([first / second for first, second in alone])
    shares = 1.0 - (apart[:-1] + apart[1:]) / 2.0 / watched
    off_by = np.abs(np.diff(apart)) / apart[1:] / 2.0
    counts = np.median([[s.num_due, s.num_taken, s.num_evaluated] for s in states], axis=0)
    own = [2.0 * state.overhead for state in states]
    return [
        f"{kind.__name__}, {1e3 * step_s:,.0f} ms a step, {seconds:g} s",
        f"{number:d}",
        *(f"{count:g}" for count in counts),
        *(f"{100 * np.median(found):.2f} %" for found in (own, shares, off_by)),
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
    lengths = {5.0: 1} if small else {30.0: 3, 300.0: 1}
    rows = [short_runs(kind, seconds, every, number)
            for seconds, number in lengths.items()
            for kind, every in ((Digits, 100), (Sentences, 20))]  # fmt: skip
    header = ["training", "runs", "due", "taken", "evaluated", "own count", "wall time",
              "unwatched, off by"]  # fmt: skip
    worst = max(float(row[-2].split()[0]) for row in rows)
    return (
        ["Whole runs at the default budget, against a twin that nobody watches, turn by turn:", "",
         *table(header, rows)],
        [Goal("share of the wall time of a whole run", 1.2, worst, unit=" %")],
    )  # fmt: skip


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
    quieten()
    small = arguments.small
    num_layers = 2 if small else 12
    return f"A watch on a BERT of {num_layers} layers", [
        operations_part(num_layers, arguments.repeats, 1 if small else 3),
        budgeted(small=small),
    ]


if __name__ == "__main__":
    run("overhead", __doc__, measure)
