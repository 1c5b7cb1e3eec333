r"""Pruning a causal language model without training it again (the paper's figure 11).

    python examples/paper/decoder.py

trains a small decoder on the docstrings of Python's own library, character by character, with three
seeds. Then ``sw.measure`` prunes each, zero-shot, at rising sparsity: by magnitude over all
weights (the paper's OMP), by Wanda, by SparseGPT, and at random as a control. It shows the held-out
loss at each level, and up to which sparsity it rises by less than one percent.

It cannot show what Vicuna-7B does on MMLU: this model has some hundred thousand weights and is
judged by its loss. Wanda and SparseGPT look at the inputs of the layers on the very batches that
the loss is measured on, as ``sw.measure`` does it. The last line therefore compares it with what
it is by inputs from the text that the model was trained on.

A run that was killed goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import Results, arguments, begin, by_seed, load, report
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F  # noqa: N812
from trained_here import (
    Characters,
    TextModel,
    documentation,
    fit,
    parsed,
    pretrained,
    settings_of,
    windows,
)

import sparsitywatch as sw

PATTERNS = {
    "global": "magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "random": "random",
}
TOLERANCE = 1.0  # percent of the dense loss
SMALL = ("asyncio", "email", "logging")


def losses(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of the next character, the mean of each window [N] of tokens [N, L]."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


class Experiment:
    """Text, models, and what is measured of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        found = documentation(SMALL if args.small else ())
        texts = sorted({text for texts in found.values() for text in texts})
        random.Random(0).shuffle(texts)  # noqa: S311 nothing secret
        cut = len(texts) // 10
        joined = "\n".join(texts[cut:])
        self.characters = Characters(joined[:200_000])
        self.train = self.characters.encode(joined)
        held_out = self.characters.encode("\n".join(texts[:cut]))
        starts = torch.linspace(0, len(held_out) - args.length - 2, args.examples).long()
        self.held_out = held_out[starts[:, None] + torch.arange(args.length + 1)]

    def proxy(self, tokens: torch.Tensor) -> sw.Proxy:
        """The loss of windows."""
        return sw.Proxy(tokens.split(64), losses, name="held-out loss")

    def new(self, seed: int) -> TextModel:
        """A decoder of random weights."""
        torch.manual_seed(seed)
        args = self.args
        return TextModel(len(self.characters), args.length, args.width, args.depth, causal=True)

    def model(self, seed: int, share: float = 1.0) -> TextModel:
        """A trained decoder; after a share of the steps, with a schedule of its own."""
        args = self.args

        def train(model: TextModel) -> None:
            draw = lambda: losses(model, windows(self.train, args.batch, args.length + 1)).mean()  # noqa: E731
            fit(model, draw, steps=round(share * args.steps), lr=3e-3, title=f"seed {seed}")

        file = args.out / f"decoder-{seed}{'-half' if share < 1.0 else ''}.pt"
        weights = pretrained(file, lambda: self.new(seed), train)
        model = self.new(seed)
        model.load_state_dict(weights)
        return model.eval()

    def measure(self, seed: int, pattern: str) -> dict[str, Any]:
        """Prune and evaluate: "loss" at each of "levels", and "essential" sparsity in words."""
        record = sw.measure(
            self.model(seed),
            self.proxy(self.held_out),
            pattern=pattern,
            levels=self.args.levels,
            tolerance=TOLERANCE / 100,
        )
        curve, estimate = record.curve, record.essential_sparsity
        assert curve is not None  # noqa: S101 there was a proxy
        assert estimate is not None  # noqa: S101
        return {
            "levels": list(curve.level or ()),
            "loss": list(curve.value),
            "essential": estimate.describe(),
        }

    @torch.no_grad()
    def held_out_loss(self, model: nn.Module) -> float:
        """The mean over the held-out windows."""
        return float(self.proxy(self.held_out).evaluate(model).mean())

    def loss_of_half(self, seed: int) -> float:
        """The held-out loss after half of the steps, with a schedule of its own."""
        return self.held_out_loss(self.model(seed, share=0.5))

    def losses_at(self, pattern: str, level: float, *, others: bool = False) -> list[list[float]]:
        """The loss of each held-out window under a pattern, by seed, not trained again.

        Args:
            pattern, level: what is pruned.
            others: whether inputs of layers come from the text to train on, not from the windows.
        """
        inputs = self.held_out
        if others:
            torch.manual_seed(0)
            inputs = windows(self.train, self.args.examples, self.args.length + 1)
        curve = sw.finetuned_curve(
            lambda run: self.model(run.seed),
            lambda _model: None,
            self.proxy(self.held_out).evaluate,
            [level],
            pattern,
            range(self.args.seeds),
            proxy=self.proxy(inputs),
            higher_is_better=False,
        )
        found: list[list[float]] = curve.values_at(level).tolist()
        return found


# ---------------- What came out


class Outcome:
    """Every seed and pattern."""

    def __init__(self, experiment: Experiment, results: Results) -> None:
        args, seeds = experiment.args, range(experiment.args.seeds)
        self.levels = [0.0, *args.levels, 1.0]
        self.at = min(args.levels, key=lambda level: abs(level - 0.5))
        self.found: dict[str, list[dict[str, Any]]] = {pattern: [] for pattern in PATTERNS}
        self.half: list[float] = []
        self.at_each: dict[str, np.ndarray] = {}  # losses [S, N] there
        for seed in seeds:
            for pattern, found in self.found.items():
                measure = partial(experiment.measure, seed, pattern)
                found.append(results.once(f"{seed} {pattern}", measure))
            half = partial(experiment.loss_of_half, seed)
            self.half.append(results.once(f"{seed} half", half))
        for name in (*PATTERNS, "other"):
            pattern = "sparsegpt" if name == "other" else name
            losses = partial(experiment.losses_at, pattern, self.at, others=name == "other")
            self.at_each[name] = np.array(results.once(f"{name} at {self.at}", losses))

    def losses(self, pattern: str, level: float) -> list[float]:
        """By seed."""
        return [of["loss"][of["levels"].index(level)] for of in self.found[pattern]]

    def rise(self, pattern: str, level: float) -> sw.Difference:
        """By how much the loss is above dense, in percent of it."""
        return rise(self.losses(pattern, level), self.losses(pattern, 0.0))

    def rows(self) -> list[list[str]]:
        """Of the table, one a level."""
        rows = []
        for level in self.levels:
            rows.append([f"{level:.2f}"])
            for pattern in PATTERNS:
                loss = f"{mean(self.losses(pattern, level)):.3f}"
                rows[-1].append(f"{loss} {self.rise(pattern, level)}" if level else loss)
        return rows

    def estimates(self) -> list[str]:
        """Essential sparsity, and how far training went, in words."""
        said = []
        for pattern, name in PATTERNS.items():
            values = ", ".join(found["essential"] for found in self.found[pattern])
            said.append(f"Essential sparsity by {name}, by seed: {values}.")
        gain = rise(self.half, self.losses("global", 0.0))
        said.append(f"With half of the steps the dense loss is {gain} % higher.")
        return said

    def compared(self) -> list[tuple[str, sw.Comparison]]:
        """Each pattern and magnitude, paired by seed and window; and SparseGPT by its inputs."""
        dense = np.mean(self.losses("global", 0.0))
        of = {name: 100 * losses / dense for name, losses in self.at_each.items()}
        names = PATTERNS | {"other": "SparseGPT by the inputs of other text"}
        pairs = [("global", name) for name in PATTERNS if name != "global"]
        return [
            (
                f"loss at {self.at:.2f}",
                sw.Comparison(names[a], names[b], sw.Difference.paired(of[a], of[b])),
            )
            for a, b in [*pairs, ("other", "sparsegpt")]
        ]


def rise(losses: Sequence[float], dense: Sequence[float]) -> sw.Difference:
    """By how much losses are above those of the same seeds, in percent."""
    ratios = [100 * loss / of_dense for loss, of_dense in zip(losses, dense, strict=True)]
    return by_seed(ratios, [100.0] * len(ratios))


def draw(outcome: Outcome, path: Path) -> None:
    """Loss over sparsity, all of it and its beginning."""
    figure = Figure(figsize=(10.0, 4.5), layout="constrained")
    whole, start = figure.subplots(1, 2)
    for pattern, name in PATTERNS.items():
        means = [mean(outcome.losses(pattern, level)) for level in outcome.levels]
        whole.plot(outcome.levels, means, "-o", label=name, markersize=3)
        rises = [outcome.rise(pattern, level) for level in outcome.levels]
        bars = [found.interval()[1] - found.mean for found in rises]
        start.errorbar(outcome.levels, [found.mean for found in rises], bars, label=name, capsize=3)
    start.axhline(TOLERANCE, color="black", linestyle="dotted")
    start.set(ylim=(-1.0, 20.0), xlim=(0.0, 0.9), xlabel="sparsity")
    start.set_title("its rise above dense, % (90 %)")
    whole.set(xlabel="sparsity", ylabel="held-out loss", title="zero-shot, not trained again")
    whole.legend()
    figure.savefig(path)


LEVELS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
TOY = {
    "seeds": 2, "levels": [0.2, 0.5], "steps": 10, "batch": 8, "examples": 32, "width": 16,
    "depth": 1, "length": 32,
}  # fmt: skip


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = arguments("decoder", __doc__ or "")
    add = parser.add_argument
    add("--seeds", type=int, default=3)
    add("--levels", type=float, nargs="+", default=LEVELS)
    add("--steps", type=int, default=1600, help="of each training")
    add("--batch", type=int, default=16)
    add("--examples", type=int, default=512, help="held-out windows")
    add("--length", type=int, default=64, help="characters of a window")
    add("--width", type=int, default=64)
    add("--depth", type=int, default=2)
    return parsed(parser, argv, TOY)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    args = arguments_of(argv)
    begin(args)
    results = Results(args.out / "results.jsonl", settings_of(args))
    experiment = Experiment(args)
    outcome = Outcome(experiment, results)
    named = experiment.new(0).named_parameters()
    size = sum(w.numel() for name, w in named if "blocks" in name and w.ndim == 2)
    print(f"{size:,} weights, {args.seeds} seeds, {args.steps} steps; {load()}")
    print("held-out loss, and its rise above dense in percent with 90 % intervals\n")
    head = ("sparsity", *PATTERNS.values())
    unit = "% of the dense loss"
    report(
        args, head, outcome.rows(), outcome.estimates(), outcome.compared(), unit=unit, size=size
    )
    draw(outcome, args.out / "decoder.png")
    print(f"\nLook at {args.out / 'decoder.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
