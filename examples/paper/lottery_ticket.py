r"""One-shot pruning against lottery tickets (the paper's figures 9 and 10).

    python examples/paper/lottery_ticket.py

pretrains a small transformer on the docstrings of Python's own library, character by character
with masked ones, and fine-tunes it on two tasks: *package*, which of the four largest packages a
passage comes from, and *next*, of which kind the character after it is, each from 500 passages.
Two masks are compared at the same sparsities, over three seeds. One-shot magnitude pruning (OMP)
takes the smallest pretrained weights. A lottery ticket (IMP) is made round by round: train, prune a
fifth of what is left, go back to the pretrained weights. Both are then fine-tuned with the mask
held fixed, by ``sw.finetuned_curve``: for it IMP is a pattern of one's own, whose mask at a level
comes from the training at the level before.

It shows quality, and how alike the masks are beside what chance gives (``sw.mask_similarity``).
It cannot show what large models do: this one has some hundred thousand weights, and its tasks are
easy. The three seeds are of fine-tuning; there is one pretraining.

A run that was killed goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, arguments, begin, learned, load, points, remark, report
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F  # noqa: N812
from trained_here import (
    Characters,
    TextModel,
    documentation,
    draw_curve,
    fit,
    parsed,
    pretrained,
    save,
    settings_of,
    windows,
)

import sparsitywatch as sw
from sparsitywatch.patterns.cuts import Cut, Weights
from sparsitywatch.weights.spectrum.magnitude import num_pruned

ROUND = 0.2  # of what is left goes in each round
SMALL = ("asyncio", "email", "logging")
KINDS = ("aeiou", "bcdfghjklmnpqrstvwxyz", " ", "0123456789")  # and any other
Masks = dict[str, torch.Tensor]


# ---------------- Lottery tickets as a pattern


@dataclass(frozen=True)
class GivenMasks(sw.patterns.Cut):
    """A cut that removes what its masks say."""

    masks: Masks

    @classmethod
    def of(cls, level: float, masks: Masks) -> GivenMasks:
        """With the counted fractions that are removed, of all weights and of each tensor."""
        removed = sum(int((~mask).sum()) for mask in masks.values())
        sparsity = removed / sum(mask.numel() for mask in masks.values())
        shares = {name: float((~mask).float().mean()) for name, mask in masks.items()}
        return cls(level, sparsity, shares, masks)

    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Write ``weights`` without the removed ones to ``out``."""
        torch.mul(weights, self.masks[name], out=out)


@dataclass
class LotteryTickets(sw.patterns.Pattern):
    """Iterative magnitude pruning: a level's mask comes from the training at the level before.

    Args:
        folder: where the trained weights of each seed and level are kept.
        levels: rising, from 0.
    """

    folder: Path
    levels: Sequence[float]
    name: str = "imp"

    def file(self, seed: int, level: float) -> Path:
        """Where the weights are that were trained at a level."""
        return self.folder / f"{seed}-{level:.4f}.pt"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        """The cut of one level."""
        (level,) = levels
        return [GivenMasks.of(level, self.masks(weights.seed, level))]

    def masks(self, seed: int, level: float) -> Masks:
        """What is kept at a level, by name of the tensor."""
        before = self.levels[self.levels.index(level) - 1]
        trained = torch.load(self.file(seed, before), weights_only=True)
        kept = torch.cat([w[w != 0].abs().flatten() for w in trained.values()])
        threshold = kept.sort().values[num_pruned(len(kept), ROUND) - 1]
        return {name: weights.abs() > threshold for name, weights in trained.items()}

    def keep(self, model: nn.Module, run: Any) -> None:
        """Keep what was trained, for the mask of the next level."""
        named = model.named_parameters()
        pruned = {n: w.detach() for n, w in named if "blocks" in n and w.ndim == 2}
        save(self.file(run.seed, run.level), pruned)


# ---------------- Model and tasks


class Classifier(nn.Module):
    """The pretrained model with a new head on the mean of its states, or on the last one."""

    def __init__(self, body: TextModel, num_classes: int, *, mean: bool) -> None:
        super().__init__()
        self.body, self.mean = body, mean
        self.output = nn.Linear(body.head.in_features, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [N, L], to logits, float [N, classes]."""
        states = self.body.hidden(tokens)
        logits: torch.Tensor = self.output(states.mean(1) if self.mean else states[:, -1])
        return logits


@dataclass
class Task:
    """Passages and their classes."""

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    held_out: tuple[torch.Tensor, torch.Tensor]
    num_classes: int

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endlessly, in a new order in each epoch, from the global generator."""
        passages, labels = self.train
        while True:
            for part in torch.randperm(len(labels)).split(size):
                yield passages[part], labels[part]


class Texts:
    """The text by package, a fifth of the docstrings of each held out."""

    def __init__(self, args: argparse.Namespace) -> None:
        found = documentation(SMALL if args.small else ())
        self.packages = sorted(found, key=lambda n: -sum(map(len, found[n])))[: args.packages]
        self.characters = Characters("\n".join(found[self.packages[0]]))
        train, held_out, held = [], [], set()
        for name in self.packages:
            texts = list(found[name])
            random.Random(0).shuffle(texts)  # noqa: S311 nothing secret
            cut = len(texts) // 5
            held |= set(texts[:cut])
            held_out.append(self.characters.encode("\n".join(texts[:cut])))
            train.append(self.characters.encode("\n".join(texts[cut:])))
        rest = [t for n in found for t in found[n] if t not in held]
        self.all = self.characters.encode("\n".join(rest))
        self.train, self.held_out, self.args = train, held_out, args

    def task(self, name: str) -> Task:
        """One of the two."""
        make = {"package": self._package, "next": self._next}[name]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            train = make(self.train, self.args.train)
            held_out = make(self.held_out, self.args.examples)
        num_classes = len(self.packages) if name == "package" else len(KINDS) + 1
        return Task(name, train, held_out, num_classes)

    def _package(self, texts: list[torch.Tensor], num: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(len(texts), (num,))
        passages = torch.empty(num, self.args.length, dtype=torch.long)
        for label, text in enumerate(texts):
            chosen = labels == label
            passages[chosen] = windows(text, int(chosen.sum()), self.args.length)
        return passages, labels

    def _next(self, texts: list[torch.Tensor], num: int) -> tuple[torch.Tensor, torch.Tensor]:
        passages = windows(torch.cat(texts), num, self.args.length + 1)
        of = [next((i for i, k in enumerate(KINDS) if c in k), len(KINDS)) for c in
              self.characters.characters]  # fmt: skip
        return passages[:, :-1], torch.tensor(of)[passages[:, -1]]


def masked_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of the characters that are hidden, 15 % of a batch."""
    hidden = torch.rand(tokens.shape) < 0.15
    states = model.hidden(tokens.masked_fill(hidden, 1))[hidden]  # type: ignore[operator]
    return F.cross_entropy(model.head(states), tokens[hidden])  # type: ignore[operator]


# ---------------- The experiment


class Experiment:
    """What is trained, and what came out."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.texts = Texts(args)
        self.weights = pretrained(args.out / "pretrained.pt", self._new, self._pretrain)
        self.levels = [1 - (1 - ROUND) ** k for k in range(args.rounds + 1)]

    def _new(self) -> TextModel:
        torch.manual_seed(0)
        args = self.args
        return TextModel(len(self.texts.characters), args.length, args.width, args.depth)

    def _pretrain(self, model: TextModel) -> None:
        args = self.args
        loss = lambda: masked_loss(model, windows(self.texts.all, args.batch, args.length))  # noqa: E731
        fit(model, loss, steps=args.pretrain_steps, lr=3e-3, title="pretraining")

    def make(self, task: Task) -> Classifier:
        """The pretrained model with a new head."""
        args = self.args
        body = TextModel(len(self.texts.characters), args.length, args.width, args.depth)
        body.load_state_dict(self.weights)
        return Classifier(body, task.num_classes, mean=task.name == "package")

    def train(self, model: nn.Module, task: Task, share: float = 1.0) -> None:
        """Fine-tune it."""
        batches = task.batches(self.args.batch)

        def loss() -> torch.Tensor:
            passages, labels = next(batches)
            return F.cross_entropy(model(passages), labels)

        fit(model, loss, steps=round(share * self.args.steps), lr=1e-3)

    @torch.no_grad()
    def right(self, model: nn.Module, task: Task) -> torch.Tensor:
        """Whether each held-out passage gets its label."""
        parts = zip(*(tensor.split(500) for tensor in task.held_out), strict=True)
        return torch.cat([model(x).argmax(1) == y for x, y in parts])

    def curve(
        self, task: Task, pattern: sw.patterns.Pattern, share: float = 1.0
    ) -> tuple[sw.FinetunedCurve, dict[float, list[sw.patterns.MaskSimilarity]]]:
        """Fine-tuned by seed and level; of lottery tickets also how alike OMP's masks are."""
        tickets = pattern if isinstance(pattern, LotteryTickets) else None

        def train(model: nn.Module, run: Any) -> None:
            self.train(model, task, share)
            if tickets is not None:
                tickets.keep(model, run)

        name = f"{task.name}-{pattern.name}" + ("-half" if share < 1.0 else "")
        seeds = range(self.args.seeds)
        curve = sw.finetuned_curve(
            lambda: self.make(task),
            train,
            lambda model: self.right(model, task),
            self.levels if share == 1.0 else [0.0],
            pattern,
            seeds,
            log=self.args.out / f"{name}.jsonl",
        )
        alike = {} if tickets is None else {
            level: [mask_like_omp(self.weights, tickets.masks(s, level), level) for s in seeds]
            for level in self.levels[1:]
        }  # fmt: skip
        return curve, alike

    def outcome(self, name: str) -> Outcome:
        """Of one task."""
        task = self.texts.task(name)
        omp, _ = self.curve(task, sw.patterns.GlobalMagnitude())
        tickets = LotteryTickets(self.args.out / f"tickets-{name}", self.levels)
        imp, alike = self.curve(task, tickets)
        half, _ = self.curve(task, sw.patterns.GlobalMagnitude(), share=0.5)
        return Outcome(name, omp, imp, half, alike, learned(omp, task.held_out[1]))


def mask_like_omp(weights: Masks, ticket: Masks, level: float) -> sw.patterns.MaskSimilarity:
    """A ticket's mask beside the mask of one-shot pruning at the same level."""
    dense = {name: weights[name.removeprefix("body.")] for name in ticket}
    (cut,) = sw.patterns.GlobalMagnitude().cuts(Weights.of(dense), [level])
    pruned = {name: torch.empty_like(tensor) for name, tensor in dense.items()}
    for name, tensor in dense.items():
        cut.prune(name, tensor, out=pruned[name])
    return sw.mask_similarity({name: tensor != 0 for name, tensor in pruned.items()}, ticket)


# ---------------- What came out


@dataclass
class Outcome:
    """Of one task."""

    task: str
    omp: sw.FinetunedCurve
    imp: sw.FinetunedCurve
    half: sw.FinetunedCurve  # dense, after half of the steps
    alike: dict[float, list[sw.patterns.MaskSimilarity]]
    learned: sw.Difference  # of the dense model

    def better(self, level: float) -> sw.Difference:
        """How much better IMP is than OMP at a level."""
        return points(self.imp.values_at(level), self.omp.values_at(level))

    def rows(self) -> list[list[str]]:
        """Of the table, one a level."""
        rows = []
        for i, level in enumerate(self.omp.level or ()):
            row = [self.task, f"{self.omp.sparsity[i]:.3f}"]
            row += [f"{100 * curve.value[i]:.1f}" for curve in (self.omp, self.imp)]
            if i == 0:
                rows.append([*row, *["-"] * 7])
                continue
            for curve in (self.omp, self.imp):
                row.append(str(points(curve.values_at(level), curve.values_at(0.0))))
            found = self.alike[sorted(self.alike)[i - 1]]
            row.append(str(self.better(level)))
            row += [f"{mean_of(found, name):.3f}" for name in ALIKE]
            rows.append(row)
        return rows

    def compared(self) -> list[tuple[str, sw.Comparison]]:
        """Both masks, of all sparsities below a half together: each alone would show less."""
        levels = [level for level in (self.omp.level or ())[1:] if level < 0.5]
        tickets, omp = (
            np.mean([curve.values_at(level) for level in levels], axis=0)
            for curve in (self.imp, self.omp)
        )
        about = f"{self.task}, {len(levels)} sparsities below a half together"
        return [(about, sw.Comparison("tickets", "OMP", points(tickets, omp), self.learned))]


def mean_of(found: Sequence[sw.patterns.MaskSimilarity], name: str) -> float:
    """The mean over seeds."""
    return float(sum(getattr(one, name) for one in found) / len(found))


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """The drop of accuracy above the similarity of masks, a column for each task."""
    figure = Figure(figsize=(9.0, 6.5), layout="constrained")
    axes = figure.subplots(2, len(outcomes), squeeze=False, sharex=True)
    for outcome, (top, bottom) in zip(outcomes, axes.T, strict=True):
        for name, curve in (("one-shot (OMP)", outcome.omp), ("lottery tickets", outcome.imp)):
            draw_curve(top, curve, name)
        for name, style in zip(ALIKE, ("o-", ":", "s-", "--"), strict=True):
            means = [mean_of(found, name) for found in outcome.alike.values()]
            bottom.plot(outcome.imp.sparsity[1:], means, style, label=name.replace("_", " "))
        top.set_title(f"{outcome.task}, fine-tuned, {len(outcome.omp.seeds)} seeds")
        bottom.set_xlabel("sparsity")
    axes[0, 0].set_ylabel("accuracy against dense, points (90 %)")
    axes[1, 0].set_ylabel("OMP's mask and the ticket's")
    axes[0, 0].legend()
    axes[1, 0].legend()
    figure.savefig(path)


ALIKE = ("cosine", "cosine_by_chance", "overlap", "overlap_by_chance")
HEAD = ("task", "sparsity", "OMP %", "IMP %", "OMP - dense", "IMP - dense", "IMP - OMP",
        "cosine", "by chance", "overlap", "by chance")  # fmt: skip
TOY = {
    "seeds": 2, "rounds": 2, "pretrain_steps": 10, "steps": 6, "examples": 200, "batch": 16,
    "width": 16, "depth": 1,
}  # fmt: skip


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = arguments("lottery_ticket", __doc__ or "")
    add = parser.add_argument
    add("--seeds", type=int, default=3)
    add("--rounds", type=int, default=4, help="of IMP; each takes a fifth of what is left")
    add("--pretrain-steps", type=int, default=2000)
    add("--steps", type=int, default=160, help="of each fine-tuning")
    add("--batch", type=int, default=32)
    add("--packages", type=int, default=4, help="between which one task tells")
    add("--train", type=int, default=500, help="passages of each task to train on")
    add("--examples", type=int, default=3000, help="held-out passages of each task")
    add("--length", type=int, default=32, help="characters of a passage")
    add("--width", type=int, default=64)
    add("--depth", type=int, default=2)
    args = parsed(parser, argv, TOY)
    if args.rounds < 1:
        parser.error("Expected one of `--rounds` at least.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    args = arguments_of(argv)
    begin(args)
    Results(args.out / "results.jsonl", settings_of(args))  # refuses those of other settings
    experiment = Experiment(args)
    outcomes = [experiment.outcome(name) for name in ("package", "next")]
    size = sum(w.numel() for n, w in experiment.weights.items() if "blocks" in n and w.ndim == 2)
    print(f"{size:,} weights, {args.seeds} seeds, {args.pretrain_steps} steps of pretraining, ")
    print(f"{args.steps} of each fine-tuning; points with 90 % intervals; {load()}")
    print(f"packages: {', '.join(experiment.texts.packages)}\n")
    said = [f"{o.task}: {remark(o.half, o.omp)}" for o in outcomes]
    pairs = [one for o in outcomes for one in o.compared()]
    report(args, HEAD, [row for o in outcomes for row in o.rows()], said, pairs, size=size)
    draw(outcomes, args.out / "lottery_ticket.png")
    print(f"\nLook at {args.out / 'lottery_ticket.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
