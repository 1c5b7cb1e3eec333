"""Prune the encoder once, train it on with the mask held fixed, and keep what each example gave."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import multiprocessing
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

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
from texts import Classifier, Examples, classifiers, finetune, probe, right, tasks
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

import sparsitywatch as sw

logging.getLogger("sparsitywatch").setLevel(logging.WARNING)

#: The trainings of the dense encoder: all steps, and half of them.
WITHOUT_MASK = ("dense", "half")
#: Each takes about a gigabyte.
MOST_PROCESSES = 8


@dataclass(frozen=True)
class Setting:
    """What trainings are of, in a few words: another process makes the same of them.

    Args:
        task: what the encoder is trained on, by name.
        folder: where the results are kept.
        steps: of a training; 0 only prunes ("zero-shot").
        length, train, held_out: tokens of a text, texts to learn from, texts that are judged.
        split: what is judged on: "held_out", or "validation" to choose settings by.
        material: where ``fetch.py`` put things.
        small: made-up data and a tiny encoder instead.
        batch, lr: of AdamW.
        calibration: examples of the training part that Wanda and SparseGPT look at.
    """

    task: str
    folder: Path
    steps: int
    length: int
    train: int
    held_out: int
    split: str
    material: Path
    small: bool
    batch: int = 32
    lr: float = 5e-5
    calibration: int = 128


class Tuning:
    """Trainings of one encoder on one task, kept in a folder; what is there is not done again.

    All begin with the same head, fitted to the features of the dense encoder. Each pattern has
    files of its own, so that processes can work on several at once.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.steps = setting, setting.steps
        material, small = setting.material, setting.small
        sizes = {name: getattr(setting, name) for name in ("length", "train", "held_out")}
        (self.task,) = tasks([setting.task], material, small=small, **sizes)
        self._make = classifiers(material, small=small)
        self.judged_on: Examples = getattr(self.task, setting.split)
        num = [len(self.task.train), len(self.judged_on), self.task.train.ids.shape[1]]
        self.settings = {
            "task": setting.task, "split": setting.split, "sizes": num, "steps": setting.steps,
            "batch": setting.batch, "lr": setting.lr,
        }  # fmt: skip
        self._found: dict[str, Results] = {}
        head = self._results("head").once("head", self._fitted)
        self._head = {name: torch.tensor(values) for name, values in head.items()}
        some: Examples = self.task.train[: setting.calibration]
        self._proxy = sw.Proxy(some.batches(64), loss_of_each, name="loss")

    def _results(self, name: str) -> Results:
        """Those of a pattern, read when they are asked for first."""
        if name not in self._found:
            file = self.setting.folder / f"{name}-examples.jsonl"
            self._found[name] = Results(file, self.settings)
        return self._found[name]

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
            batch, lr = self.setting.batch, self.setting.lr
            finetune(model, self.task.train, steps=steps, batch=batch, lr=lr)

    def measure(self, pattern: str, levels: Sequence[float], seeds: Sequence[int]) -> None:
        """The trainings of a pattern; of the dense encoder those of "dense" and "half"."""
        if pattern not in WITHOUT_MASK:
            self.curve(pattern, levels, seeds)
            return
        steps = self.steps // 2 if pattern == "half" else self.steps
        for seed in seeds:
            dense = functools.partial(self._dense, steps, seed)
            self._results(pattern).once(f"{pattern}/{seed}", dense)

    def _dense(self, steps: int, seed: int) -> str:
        torch.manual_seed(seed)
        model = self.make_model()
        torch.manual_seed(seed)
        self.train(model, steps)
        return packed(right(model, self.judged_on))

    def curve(
        self, pattern: str, levels: Sequence[float], seeds: Sequence[int]
    ) -> sw.FinetunedCurve:
        """The curve of a pattern by ``sw.finetuned_curve``; the dense trainings are shared."""

        def kept(model: Classifier) -> tuple[Results, str]:
            sparsity, seed = share_of_zeros(model), torch.initial_seed()
            if sparsity <= 0.001:
                return self._results("dense"), f"dense/{seed}"
            return self._results(pattern), f"{pattern}/{sparsity:.4f}/{seed}"

        def train(model: Classifier) -> None:
            results, key = kept(model)
            if key not in results:  # as the dense one of another pattern's curve
                self.train(model)

        def evaluate(model: Classifier) -> float:
            results, key = kept(model)
            found = results.once(key, lambda: packed(right(model, self.judged_on)))
            return float(unpacked(found).mean())

        return sw.finetuned_curve(
            self.make_model,
            train,  # type: ignore[arg-type]
            evaluate,  # type: ignore[arg-type]
            levels,
            pattern,
            seeds,
            proxy=self._proxy,
            log=self.setting.folder / f"{pattern}.jsonl",
            settings=self.settings,
        )

    def right(self, pattern: str, level: float, seeds: Sequence[int]) -> np.ndarray:
        """Whether each held-out example is given its label, bool [S, N].

        Of "dense" and "half", the encoder after all steps and after half of them, at level 0.
        """
        results = self._results(pattern)
        keys = [self._key(results, pattern, level, seed) for seed in seeds]
        return np.stack([unpacked(results[key]) for key in keys])

    def _key(self, results: Results, pattern: str, level: float, seed: int) -> str:
        if pattern in WITHOUT_MASK:
            return f"{pattern}/{seed}"
        keys = [key for key in results.found if re.fullmatch(rf"{pattern}/.*/{seed}", key)]
        return min(keys, key=lambda key: abs(float(key.split("/")[1]) - level))

    def drop(self, pattern: str, level: float, seeds: Sequence[int]) -> Difference:
        """From the dense model to the pruned one, paired."""
        return self.difference(self.right("dense", 0.0, seeds), self.right(pattern, level, seeds))

    def difference(self, first: np.ndarray, second: np.ndarray) -> Difference:
        """From one to another [S, N], paired, by file or mail."""
        return difference(first, second, self.judged_on.sources)

    def levelled_off(self, seeds: Sequence[int]) -> tuple[bool, str]:
        """Whether the dense model is no better after all steps than after half of them."""
        self.measure("half", (), seeds)
        return has_levelled_off(
            self.difference(self.right("dense", 0.0, seeds), self.right("half", 0.0, seeds))
        )

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


# ------------------------------------------------------------------ several at once


class Unit(NamedTuple):
    """What a process does in one go: the trainings of ``Tuning.measure``."""

    setting: Setting
    pattern: str
    levels: Sequence[float]
    seeds: Sequence[int]


def one_thread_each() -> int:
    """Let torch use one thread from now on; how many processes there may be instead.

    Two trainings at once are faster than one after the other with two threads each, of which many
    steps are too small to be shared. And the results are the same on any number of cores.
    """
    num = min(torch.get_num_threads(), MOST_PROCESSES)
    torch.set_num_threads(1)
    return num


def ahead(processes: int, *stages: Sequence[Unit]) -> None:
    """Do in several processes what will be asked for, a stage after the other.

    No two units of a stage may write the same file: what several need, such as the dense
    trainings, is for an earlier stage. With one process nothing is done ahead.
    """
    if processes == 1:
        return
    spawn = multiprocessing.get_context("spawn")  # after fork the threads of torch may hang
    with ProcessPoolExecutor(processes, spawn, torch.set_num_threads, (1,)) as pool:
        try:
            for stage in stages:
                waiting = [pool.submit(_measure, unit) for unit in stage]
                for unit in tqdm(
                    as_completed(waiting), total=len(stage), desc="training", disable=None
                ):
                    unit.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _measure(unit: Unit) -> None:
    said = io.StringIO()  # bars of several processes on one screen tell nobody anything
    with contextlib.redirect_stderr(said):
        _tuning_of(unit.setting).measure(unit.pattern, unit.levels, unit.seeds)
    sys.stderr.write(said.getvalue())


@functools.cache
def _tuning_of(setting: Setting) -> Tuning:
    return Tuning(setting)


# ------------------------------------------------------------------ arguments


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The arguments of trainings on texts."""
    add = parser.add_argument
    add("--steps", type=int, default=120)
    add("--length", type=int, default=16, help="tokens of a text")
    add("--train", type=int, default=2000, help="texts to learn from")
    add("--held-out", type=int, default=3000, help="texts that are judged")
    add("--validation", action="store_true", help="judge on the part to choose settings by")


def setting_of(args: argparse.Namespace, task: str, folder: str, steps: int) -> Setting:
    """Of a task, by the arguments."""
    split = "validation" if args.validation else "held_out"
    sizes = args.length, args.train, args.held_out
    return Setting(task, args.out / folder, steps, *sizes, split, args.material, args.small)


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
