r"""A vision transformer pretrained with labels, and without (the paper's figures 3, 6 and 7).

    python examples/paper/vision.py

pretrains the same small ViT on the same half of scikit-learn's digits (8 x 8 pixels) twice, with
the same steps, batches, learning rate and weight decay: *supervised*, by the labels, and
*self-supervised*, as a masked autoencoder (MAE, arXiv:2111.06377). Each has three seeds. Then it
asks what the paper asks of ViT-base and DINO-base:

- Figure 7: which has more weights near zero, as they are and relative to the root mean square of
  their tensor, and in which layers?
- Figures 3 and 6: which bears pruning better? Both are pruned once at rising sparsity and
  fine-tuned with the mask held fixed on two tasks: *digit*, which digit it is, and *turned*, by
  how many quarter turns the picture was rotated. The other half of the pictures is for testing.

It cannot show what large models do: there are 898 pictures to train on, and the supervised model
has seen the labels of *digit* before. MAE stands in for DINO: another kind of self-supervision.

A run that was killed goes on when the same command is given again. It needs scikit-learn:
pip install --group paper.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import (
    TOLERANCE,
    Difference,
    Results,
    arguments,
    begin,
    difference_of_seeds,
    judged,
    load,
    table,
)
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F  # noqa: N812
from trained_here import (
    Transformer,
    draw_curve,
    fit,
    grouped,
    in_points,
    levelled_off,
    parsed,
    pretrained,
    settings_of,
)

import sparsitywatch as sw

ARMS = ("supervised", "self-supervised")
TASKS = {"digit": 10, "turned": 4}
RULES = ("abs_0.001", "abs_0.01", "rms_0.01", "rms_0.1")
PATCH, SIDE = 2, 8
NUM_PATCHES = (SIDE // PATCH) ** 2


# ---------------- The model


class ViT(nn.Module):
    """Patches of a picture and a token of its own into a transformer, a class out."""

    def __init__(self, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Linear(PATCH**2, width)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(NUM_PATCHES + 1, width))
        self.trunk = Transformer(width, depth)
        self.head = nn.Linear(width, num_classes)

    def hidden(self, pictures: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """States [N, 1 + patches, width] of pictures [N, 8, 8]; of the ``visible`` patches only."""
        x = self.patches(cut_up(pictures)) + self.positions[1:]
        if visible is not None:
            x = x.gather(1, visible.unsqueeze(2).expand(-1, -1, x.shape[2]))
        first = (self.first + self.positions[:1]).expand(len(x), -1, -1)
        states: torch.Tensor = self.trunk(torch.cat([first, x], 1))
        return states

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 8, 8] to logits [N, classes]."""
        logits: torch.Tensor = self.head(self.hidden(pictures)[:, 0])
        return logits


class Autoencoder(nn.Module):
    """A ViT that sees some patches, and a small decoder that draws the others."""

    def __init__(self, vit: ViT, share_hidden: float) -> None:
        super().__init__()
        width = vit.head.in_features
        self.vit, self.num_hidden = vit, round(share_hidden * NUM_PATCHES)
        self.mask = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(NUM_PATCHES + 1, width))
        self.decoder = Transformer(width, 1)
        self.pixels = nn.Linear(width, PATCH**2)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """The squared error of the patches that were hidden, in pictures [N, 8, 8]."""
        order = torch.rand(len(pictures), NUM_PATCHES).argsort(1)
        hidden, visible = order[:, : self.num_hidden], order[:, self.num_hidden :]
        states = self.vit.hidden(pictures, visible)
        width = states.shape[2]
        masked = self.mask.expand(len(states), NUM_PATCHES, -1)
        where = visible.unsqueeze(2).expand(-1, -1, width)
        x = torch.cat([states[:, :1], masked.scatter(1, where, states[:, 1:])], 1)
        drawn = self.pixels(self.decoder(x + self.positions))[:, 1:]
        errors = (drawn - cut_up(pictures)).square().mean(2)
        error: torch.Tensor = errors.gather(1, hidden).mean()
        return error


def cut_up(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 8, 8] to patches [N, patches, pixels]."""
    return F.unfold(pictures.unsqueeze(1), PATCH, stride=PATCH).transpose(1, 2)


# ---------------- The pictures


class Pictures:
    """Half of scikit-learn's digits to train on, the others to test."""

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise SystemExit(
                "Expected scikit-learn, whose digits this runs on, found none. Install it: "
                "pip install --group paper."
            ) from error
        found = load_digits()
        pictures = torch.from_numpy(found.images).float() / 8 - 1
        labels = torch.from_numpy(found.target).long()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        half = len(order) // 2
        self.train, self.test = (
            (pictures[part], labels[part]) for part in (order[:half], order[half:])
        )

    def batch(self, num: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pictures to train on, and their digits."""
        drawn = torch.randint(len(self.train[1]), (num,))
        return self.train[0][drawn], self.train[1][drawn]

    def of_task(self, task: str, num: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pictures to train on, and their classes."""
        pictures, digits = self.batch(num)
        if task == "digit":
            return pictures, digits
        turns = torch.randint(4, (num,))
        return turned(pictures, turns), turns

    def to_test(self, task: str) -> tuple[torch.Tensor, torch.Tensor]:
        """All pictures of the test; by each number of turns where that is the task."""
        pictures, digits = self.test
        if task == "digit":
            return pictures, digits
        turns = torch.arange(4).repeat_interleave(len(pictures))
        return turned(pictures.repeat(4, 1, 1), turns), turns


def turned(pictures: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 8, 8], each rotated by its number of quarter turns."""
    out = pictures.clone()
    for turn in range(1, 4):
        out[turns == turn] = pictures[turns == turn].rot90(turn, (1, 2))
    return out


# ---------------- The experiment


class Experiment:
    """Pretraining, counting, fine-tuning."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.pictures = args, Pictures()
        self.seeds = range(args.seeds)
        self.weights = {
            (arm, seed): pretrained(
                args.out / f"{arm}-{seed}.pt",
                lambda seed=seed: self._new(seed),  # type: ignore[misc]
                lambda vit, arm=arm: self._pretrain(vit, arm),  # type: ignore[misc]
            )
            for arm in ARMS
            for seed in self.seeds
        }

    def _new(self, seed: int) -> ViT:
        torch.manual_seed(seed)
        return ViT(self.args.width, self.args.depth, 10)

    def _pretrain(self, vit: ViT, arm: str) -> None:
        """With labels, or without; all else is the same."""
        args, pictures = self.args, self.pictures
        model: nn.Module = vit if arm == "supervised" else Autoencoder(vit, args.hidden)

        def loss() -> torch.Tensor:
            seen, digits = pictures.batch(args.batch)
            if isinstance(model, Autoencoder):
                error: torch.Tensor = model(seen)
                return error
            return F.cross_entropy(model(seen), digits)

        fit(model, loss, steps=args.pretrain_steps, lr=1e-3, decay=args.decay, title=arm)

    def near_zero(self) -> dict[str, list[sw.Record]]:
        """What is near zero in each pretrained model, by arm and seed; and "at first" in both."""
        found: dict[str, list[sw.Record]] = {arm: [] for arm in ARMS}
        found["at first"] = [sw.measure(self._new(seed), near_zero=RULES) for seed in self.seeds]
        for (arm, seed), weights in self.weights.items():
            vit = self._new(seed)
            vit.load_state_dict(weights)
            found[arm].append(sw.measure(vit, near_zero=RULES))
        return found

    def curve(self, arm: str, task: str, share: float = 1.0) -> sw.FinetunedCurve:
        """Fine-tuned at each level; seeds are of the pretraining and of the fine-tuning."""
        args, pictures = self.args, self.pictures
        tested, classes = pictures.to_test(task)

        def make() -> ViT:
            vit = ViT(args.width, args.depth, 10)
            # the generator was seeded with the seed of this training
            vit.load_state_dict(self.weights[arm, torch.initial_seed()])
            vit.head = nn.Linear(args.width, TASKS[task])
            return vit

        def train(model: nn.Module) -> None:
            def loss() -> torch.Tensor:
                seen, wanted = pictures.of_task(task, args.batch)
                return F.cross_entropy(model(seen), wanted)

            fit(model, loss, steps=round(share * args.steps), lr=1e-3)

        def evaluate(model: nn.Module) -> float:
            with torch.no_grad():
                return float((model(tested).argmax(1) == classes).float().mean())

        log = args.out / f"{task}-{arm}{'-half' if share < 1.0 else ''}.jsonl"
        levels = args.levels if share == 1.0 else [0.0]
        return sw.finetuned_curve(make, train, evaluate, levels, seeds=self.seeds, log=log)


# ---------------- What came out


@dataclass
class Tuned:
    """The curves of one task, by arm."""

    task: str
    curves: dict[str, sw.FinetunedCurve]
    half: dict[str, sw.FinetunedCurve]  # dense, after half of the steps

    def drop(self, arm: str, index: int) -> Difference:
        """From dense to a level, in points."""
        curve = self.curves[arm]
        return difference_of_seeds(in_points(curve, 0), in_points(curve, index))

    def saved(self, index: int) -> Difference:
        """By how much the self-supervised model drops less than the supervised one."""
        first, second = (
            [
                dense - pruned
                for dense, pruned in zip(in_points(c, 0), in_points(c, index), strict=True)
            ]
            for c in (self.curves[arm] for arm in ARMS)
        )
        return difference_of_seeds(first, second)

    def rows(self) -> list[list[str]]:
        """Of the table, one a level."""
        rows = []
        for i, sparsity in enumerate(self.curves[ARMS[0]].sparsity):
            values = [f"{100 * self.curves[arm].value[i]:.1f}" for arm in ARMS]
            drops = [str(self.drop(arm, i)) if i else "-" for arm in ARMS]
            rows.append([self.task, f"{sparsity:.2f}", *values, *drops])
            rows[-1].append(str(self.saved(i)) if i else "-")
        return rows

    def conclusions(self) -> list[str]:
        """In words, from the intervals."""
        lines, all_level = [], True
        for arm, curve in self.curves.items():
            is_level, said = levelled_off(self.half[arm], curve)
            lines.append(f"{self.task}, {arm}: {said}.")
            all_level = all_level and is_level
            if not is_level:
                lines.append(f"{self.task}, {arm}: so nobody can tell how much of it can go.")
                continue
            estimate = sw.essential_sparsity(curve, TOLERANCE / 100)
            because = f" ({estimate.reason})" if estimate.reason else ""
            drops = [self.drop(arm, i) for i in range(1, len(curve.value))]
            lines.append(
                f"{self.task}, {arm}: essential sparsity {estimate.describe()}{because}; "
                f"{within_tolerance(curve.sparsity[1:], drops)}."
            )
        if not all_level:
            return [*lines, f"{self.task}: so nobody can tell which bears pruning better."]
        levels = self.curves[ARMS[0]].sparsity[1:]
        words = [
            judged(self.saved(i), "self-supervised loses less", "supervised loses less")
            for i in range(1, len(levels) + 1)
        ]
        return [*lines, f"{self.task}: {grouped(levels, words)}."]


def within_tolerance(levels: Sequence[float], drops: Sequence[Difference]) -> str:
    """The largest level up to which every interval of the drop lies within the tolerance."""
    safe = 0.0
    for level, drop in zip(levels, drops, strict=True):
        if not drop.is_precise or drop.high > TOLERANCE:
            break
        safe = level
    if safe == 0.0:
        return "no level is shown to cost at most one point"
    return f"up to {safe:.2f} it is shown to cost at most one point"


def counted(found: Mapping[str, Sequence[sw.Record]]) -> tuple[list[list[str]], list[str]]:
    """Near-zero shares by rule: rows of a table, and what they say."""
    rows, said = [], []
    for rule in RULES:
        first, second = ([100 * r.near_zero[rule] for r in found[arm]] for arm in ARMS)
        more = difference_of_seeds(second, first)
        initial = [100 * record.near_zero[rule] for record in found["at first"]]
        shares = [f"{sum(x) / len(x):.2f}" for x in (initial, first, second)]
        rows.append([rule, *shares, str(more)])
        if more.low > 0.0 or more.high < 0.0:
            said.append(f"{rule}: {ARMS[more.mean > 0]} has more weights near zero.")
        else:
            said.append(f"{rule}: no difference is seen.")
    return rows, said


def draw(
    tuned: Sequence[Tuned], found: Mapping[str, Sequence[sw.Record]], weights: Any, path: Path
) -> None:
    """Curves above near-zero shares by layer and the weights relative to their tensor's rms."""
    figure = Figure(figsize=(11.0, 7.5), layout="constrained")
    (top, bottom) = figure.subplots(2, 2)
    for outcome, axes in zip(tuned, top, strict=False):
        for arm, curve in outcome.curves.items():
            draw_curve(axes, curve, arm)
        axes.axhline(-TOLERANCE, color="black", linestyle="dotted")
        axes.set(title=f"{outcome.task}, fine-tuned", xlabel="sparsity")
    top[0].set_ylabel("accuracy against dense, points (90 %)")
    top[0].legend()
    names = [layer.name for layer in found[ARMS[0]][0].layers]
    draw_layers(figure, bottom[0], found, names)
    for arm in ARMS:
        normalised = torch.cat([
            (tensors[name] / tensors[name].square().mean().sqrt()).flatten()
            for (of, _), tensors in weights.items() if of == arm for name in names
        ])  # fmt: skip
        counts, edges = normalised.histogram(bins=120, range=(-4.0, 4.0), density=True)
        bottom[1].stairs(counts.tolist(), edges.tolist(), label=arm)
    bottom[1].set(title="all weights over their tensor's rms", xlabel="w / rms", ylabel="density")
    bottom[1].legend()
    figure.savefig(path)


def draw_layers(
    figure: Figure, axes: Any, found: Mapping[str, Sequence[sw.Record]], names: Sequence[str]
) -> None:
    """The share near zero of each tensor, a row for each kind of pretraining."""
    shares = [
        [
            100
            * sum(record.layers[i].near_zero["rms_0.1"] for record in found[arm])
            / len(found[arm])
            for i in range(len(names))
        ]
        for arm in ARMS
    ]
    image = axes.imshow(shares, aspect="auto", cmap="viridis")
    axes.set_yticks(range(2), ARMS)
    short = [name.removeprefix("trunk.blocks.").removesuffix(".weight") for name in names]
    axes.set_xticks(range(len(names)), short, rotation=90, fontsize=7)
    axes.set_title("% of |w| ≤ 0.1 x the tensor's rms")
    figure.colorbar(image, ax=axes)


HEAD = (
    "task",
    "sparsity",
    "sup. %",
    "self-sup. %",
    "sup. drop",
    "self-sup. drop",
    "sup. - self-sup.",
)
TOY = {"seeds": 2, "levels": [0.5], "pretrain_steps": 10, "steps": 6, "width": 16, "depth": 1}


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = arguments("vision", __doc__ or "")
    add = parser.add_argument
    add("--seeds", type=int, default=3)
    add("--levels", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9])
    add("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="to fine-tune on")
    add("--pretrain-steps", type=int, default=800)
    add("--steps", type=int, default=120, help="of each fine-tuning")
    add("--batch", type=int, default=64)
    add("--decay", type=float, default=0.05, help="weight decay of both pretrainings")
    add("--hidden", type=float, default=0.5, help="share of the patches that MAE has to draw")
    add("--width", type=int, default=48)
    add("--depth", type=int, default=3)
    return parsed(parser, argv, TOY)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    args = arguments_of(argv)
    begin(args)
    Results(args.out / "results.jsonl", settings_of(args))  # refuses those of other settings
    experiment = Experiment(args)
    found = experiment.near_zero()
    tuned = [
        Tuned(
            task,
            {arm: experiment.curve(arm, task) for arm in ARMS},
            {arm: experiment.curve(arm, task, share=0.5) for arm in ARMS},
        )
        for task in args.tasks
    ]
    rows, said = counted(found)
    size = found[ARMS[0]][0].scope.num_weights
    print(f"{size:,} weights, {args.seeds} seeds, {args.pretrain_steps} steps of pretraining,")
    print(f"{args.steps} of each fine-tuning; points with 90 % intervals; {load()}\n")
    print(table(("near zero", "at first %", "sup. %", "self-sup. %", "self-sup. - sup."), rows))
    print("", *said, "", sep="\n")
    print(table(HEAD, [row for outcome in tuned for row in outcome.rows()]))
    print("", *(line for outcome in tuned for line in outcome.conclusions()), sep="\n")
    draw(tuned, found, experiment.weights, args.out / "vision.png")
    print(f"\nLook at {args.out / 'vision.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
