"""The encoder on one task: what ``sw.finetuned_curve`` is to make, train and evaluate."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Results, learned, remark
from texts import Classifier, classifiers, finetune, probe, right, tasks
from torch.nn import functional as F  # noqa: N812

import sparsitywatch as sw

logging.getLogger("sparsitywatch").setLevel(logging.WARNING)

TOY = {"length": 8, "train": 64, "held_out": 32}


class Tuning(NamedTuple):
    """Trainings of one encoder on one task, in a few words: another process makes the same."""

    task: str
    folder: Path  # where the results are kept
    steps: int  # of a training; 0 only prunes ("zero-shot")
    length: int  # tokens of a text
    train_on: int  # texts
    held_out: int  # texts that are judged
    split: str  # what is judged on: "held_out", or "validation" to choose settings by
    material: Path  # where fetch.py put things
    small: bool  # made-up data and a tiny encoder instead
    batch: int = 32
    lr: float = 5e-5

    def make_model(self) -> Classifier:
        """The dense encoder with a head that is fitted to its features."""
        make, _, _, head = _loaded(self)
        model: Classifier = make()
        model.head.load_state_dict(head)
        return model

    def train(self, model: Classifier) -> None:
        """Train it on."""
        if self.steps:
            data = _loaded(self)[1]
            finetune(model, data, steps=self.steps, batch=self.batch, lr=self.lr)

    def evaluate(self, model: Classifier) -> np.ndarray:
        """Whether each text that is judged gets its label."""
        return right(model, _loaded(self)[2])

    def curve(
        self, pattern: str, levels: Sequence[float], seeds: Sequence[int], **options: Any
    ) -> sw.FinetunedCurve:
        """Of a pattern, paired by text; those of one file or mail count together."""
        _, train, judged, _ = _loaded(self)
        proxy = sw.Proxy(train[:128].batches(64), loss_of_each, name="loss", positions=there)
        return sw.finetuned_curve(
            self.make_model, self.train, self.evaluate, levels, pattern, seeds, proxy=proxy,
            groups=judged.sources.tolist(),
            log=self.folder / f"{pattern.replace(':', '-')}.jsonl",
            settings=_settings(self), **options,
        )  # fmt: skip

    def remark(self, whole: sw.FinetunedCurve, executor: Executor | None) -> str:
        """What half of the training gives; where that is none, nothing is drawn."""
        half = self._replace(steps=self.steps // 2, folder=self.folder / "half")
        seeds = whole.seeds if half.steps else whole.seeds[:1]
        return remark(half.curve("global", [0.0], seeds, executor=executor), whole)

    def learned(self, curve: sw.FinetunedCurve) -> sw.Difference:
        """How much better the dense encoder is than the larger class."""
        return learned(curve, _loaded(self)[2].labels.numpy())


def _settings(tuning: Tuning) -> dict[str, Any]:
    return {k: v for k, v in tuning._asdict().items() if k not in ("folder", "material")}


@functools.cache
def _loaded(tuning: Tuning) -> Any:
    """What makes the encoder, texts to learn from and to judge on, and the head; once a process."""
    sizes = {"length": tuning.length, "train": tuning.train_on, "held_out": tuning.held_out}
    (task,) = tasks([tuning.task], tuning.material, small=tuning.small, **sizes)
    make = classifiers(tuning.material, small=tuning.small)
    results = Results(tuning.folder / "head.jsonl", _settings(tuning))
    fitted = lambda: {k: v.tolist() for k, v in probe(make(), task.train).items()}  # noqa: E731
    head = {name: torch.tensor(values) for name, values in results.once("head", fitted).items()}
    return make, task.train, getattr(task, tuning.split), head


@contextlib.contextmanager
def processes() -> Iterator[Executor | None]:
    """As many as torch has threads, with one each: two trainings at once are faster than one."""
    num = min(torch.get_num_threads(), 8)  # each takes about a gigabyte
    torch.set_num_threads(1)
    if num == 1:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")  # after a fork the threads of torch may hang
    with ProcessPoolExecutor(num, spawn, torch.set_num_threads, (1,)) as pool:
        yield pool


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The arguments of trainings on texts."""
    add = parser.add_argument
    add("--steps", type=int, default=120)
    add("--length", type=int, default=16, help="tokens of a text")
    add("--train", type=int, default=2000, help="texts to learn from")
    add("--held-out", type=int, default=3000, help="texts that are judged")
    add("--validation", action="store_true", help="judge on the part to choose settings by")


def tuning_of(args: argparse.Namespace, task: str, folder: str, steps: int) -> Tuning:
    """Of a task, by the arguments."""
    split = "validation" if args.validation else "held_out"
    sizes = args.length, args.train, args.held_out
    return Tuning(task, args.out / folder, steps, *sizes, split, args.material, args.small)


def loss_of_each(model: Any, batch: Any) -> torch.Tensor:
    """Cross-entropy of each example, for ``sw.Proxy``."""
    ids, mask, labels = batch
    return F.cross_entropy(model(ids, mask), labels, reduction="none")


def there(batch: Any) -> torch.Tensor:
    """Which positions count: tokens, and no padding."""
    mask: torch.Tensor = batch[1]
    return mask
