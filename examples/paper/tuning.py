"""Prune the encoder once, train it on with the mask held fixed, and keep what each example gave."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from common import (
    CONFIDENCE,
    Difference,
    Results,
    difference,
    has_levelled_off,
    packed,
    unpacked,
)
from texts import Classifier, Examples, Task, finetune, probe, right
from torch.nn import functional as F  # noqa: N812

import sparsitywatch as sw

logging.getLogger("sparsitywatch").setLevel(logging.WARNING)


class Tuning:
    """Trainings of one encoder on one task, kept in a folder; what is there is not done again.

    All begin with the same head, fitted to the features of the dense encoder.

    Args:
        task: what it is trained on.
        make: makes the pretrained encoder.
        folder: where the results are kept.
        steps: of a training; 0 only prunes ("zero-shot").
        split: what is judged on: "held_out", or "validation" to choose settings by.
        batch, lr: of AdamW.
        calibration: examples of the training part that Wanda and SparseGPT look at.
    """

    def __init__(
        self,
        task: Task,
        make: Callable[[], Classifier],
        folder: Path,
        *,
        steps: int,
        split: str = "held_out",
        batch: int = 32,
        lr: float = 5e-5,
        calibration: int = 128,
    ) -> None:
        self.task, self.folder, self.steps, self.batch, self.lr = task, folder, steps, batch, lr
        self._make = make
        self.judged_on: Examples = getattr(task, split)
        sizes = [len(task.train), len(self.judged_on), task.train.ids.shape[1]]
        self.settings = {
            "task": task.name, "split": split, "sizes": sizes, "steps": steps, "batch": batch,
            "lr": lr,
        }  # fmt: skip
        self.results = Results(folder / "examples.jsonl", self.settings)
        head = self.results.once("head", self._fitted)
        self._head = {name: torch.tensor(values) for name, values in head.items()}
        some: Examples = task.train[:calibration]
        self._proxy = sw.Proxy(some.batches(64), loss_of_each, name="loss")

    def _fitted(self) -> dict[str, Any]:
        return {k: v.tolist() for k, v in probe(self._make(), self.task.train).items()}

    def make_model(self) -> Classifier:
        """The dense encoder with the fitted head."""
        model = self._make()
        model.head.load_state_dict(self._head)
        return model

    def train(self, model: Classifier, steps: int | None = None) -> None:
        """Train it on."""
        steps = self.steps if steps is None else steps
        if steps:
            finetune(model, self.task.train, steps=steps, batch=self.batch, lr=self.lr)

    def curve(
        self, pattern: str, levels: Sequence[float], seeds: Sequence[int]
    ) -> sw.FinetunedCurve:
        """The curve of a pattern by ``sw.finetuned_curve``; the dense trainings are shared."""

        def key_of(model: Classifier) -> str:
            sparsity = share_of_zeros(model)
            name = f"{pattern}/{sparsity:.4f}" if sparsity > 0.001 else "dense"
            return f"{name}/{torch.initial_seed()}"

        def train(model: Classifier) -> None:
            if key_of(model) not in self.results:  # as the dense one of another pattern's curve
                self.train(model)

        def evaluate(model: Classifier) -> float:
            found = self.results.once(key_of(model), lambda: packed(right(model, self.judged_on)))
            return float(unpacked(found).mean())

        return sw.finetuned_curve(
            self.make_model,
            train,  # type: ignore[arg-type]
            evaluate,  # type: ignore[arg-type]
            levels,
            pattern,
            seeds,
            proxy=self._proxy,
            log=self.folder / f"{pattern}.jsonl",
            settings=self.settings,
        )

    def right(self, pattern: str, level: float, seeds: Sequence[int]) -> np.ndarray:
        """Whether each held-out example is given its label, bool [S, N]; "dense" for the dense."""
        return np.stack([unpacked(self.results[self._key(pattern, level, s)]) for s in seeds])

    def _key(self, pattern: str, level: float, seed: int) -> str:
        if pattern == "dense":
            return f"dense/{seed}"
        keys = [key for key in self.results.found if re.fullmatch(rf"{pattern}/.*/{seed}", key)]
        return min(keys, key=lambda key: abs(float(key.split("/")[1]) - level))

    def drop(self, pattern: str, level: float, seeds: Sequence[int]) -> Difference:
        """From the dense model to the pruned one, paired."""
        return self.difference(self.right("dense", 0.0, seeds), self.right(pattern, level, seeds))

    def difference(self, first: np.ndarray, second: np.ndarray) -> Difference:
        """From one to another [S, N], paired, by file or mail."""
        return difference(first, second, self.judged_on.sources)

    def levelled_off(self, seeds: Sequence[int]) -> tuple[bool, str]:
        """Whether the dense model is no better after all steps than after half of them."""
        for seed in seeds:
            self.results.once(f"half/{seed}", partial(self._half, seed))
        half = np.stack([unpacked(self.results[f"half/{seed}"]) for seed in seeds])
        return has_levelled_off(self.difference(self.right("dense", 0.0, seeds), half))

    def _half(self, seed: int) -> str:
        torch.manual_seed(seed)
        model = self.make_model()
        torch.manual_seed(seed)
        self.train(model, self.steps // 2)
        return packed(right(model, self.judged_on))

    def judged(self, pattern: str, curve: sw.FinetunedCurve) -> sw.EssentialSparsity:
        """Essential sparsity at one point of accuracy, from the intervals of the drops.

        With three seeds the normal interval of the curve itself would be too narrow: the errors
        here are such that it becomes that of ``difference``.
        """
        z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
        drops = [self.drop(pattern, level, curve.seeds) for level in pruned_levels(curve)]
        stderr = [0.0, *((drop.high - drop.low) / 2 / z / 100 for drop in drops)]
        wider = sw.SparsityCurve(
            sparsity=curve.sparsity, value=curve.value, stderr=stderr, higher_is_better=True
        )
        return sw.essential_sparsity(wider, 0.01, "absolute", CONFIDENCE)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The arguments of trainings on texts."""
    add = parser.add_argument
    add("--steps", type=int, default=120)
    add("--length", type=int, default=16, help="tokens of a text")
    add("--train", type=int, default=2000, help="texts to learn from")
    add("--held-out", type=int, default=3000, help="texts that are judged")
    add("--validation", action="store_true", help="judge on the part to choose settings by")


def split_of(args: argparse.Namespace) -> str:
    """What is judged on, by the arguments."""
    return "validation" if args.validation else "held_out"


def pruned_levels(curve: sw.FinetunedCurve) -> list[float]:
    """The levels that were asked for, without that of the dense model."""
    return [level for level in curve.level or () if level > 0.0]


def loss_of_each(model: Any, batch: Any) -> torch.Tensor:
    """Cross-entropy of each example, for ``sw.Proxy``."""
    ids, mask, labels = batch
    return F.cross_entropy(model(ids, mask), labels, reduction="none")


def share_of_zeros(model: Classifier) -> float:
    """Of the matrices of the encoder's blocks, the set that the paper prunes."""
    named = model.encoder.named_parameters()
    weights = [p for name, p in named if ".layer." in name and p.ndim == 2]
    num = sum(p.numel() for p in weights)
    return sum(int((p == 0).sum()) for p in weights) / num
