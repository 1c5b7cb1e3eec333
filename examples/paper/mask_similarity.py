"""Figure 10: how alike the masks before and after fine-tuning are, and how unlike they can be.

    python examples/paper/mask_similarity.py

fine-tunes MiniLM (six layers, 10.6 M weights in scope) on genres at the paper's own rate, 2e-5 with
linear decay, for as many steps as three epochs of its smallest task, RTE, take: 234 of 32. At each
sparsity it compares the mask of one-shot pruning before and after: their cosine, beside that of
two random masks, and the lowest that is possible when every weight moves as far as the optimizer
can carry it, in the worst direction. The paper finds a cosine above 0.96 up to 40 %.

A step of AdamW moves a weight by its rate where gradients stay alike, and by at most 7.3 of them
where they grow without end (Kingma & Ba 2015, section 2.1). A cosine near the lowest possible
tells of the rate, not of the task or the masks. It cannot show the paper's models; its longer tasks
take up to 150 times as many steps, and allow any mask.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Line, Results, arguments, begin, draw, load, parsed, report
from fetch import MATERIAL
from torch import nn
from tuning import TOY, Tuning, add_sizes, tuning_of

import sparsitywatch as sw
from sparsitywatch.weights.clock import Kind, farthest
from sparsitywatch.weights.scope import Scope

LEVELS = (0.1, 0.2, 0.3, 0.4)
RATE, STEPS, PAPER = 2e-5, 234, 0.96
_ADAM = Kind("decoupled", "lr", "betas")


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the weights in scope, by name."""
    return {name: p.detach().clone() for name, p in Scope.of(model).parameters(model).items()}


def kept(weights: Mapping[str, torch.Tensor], level: float) -> dict[str, torch.Tensor]:
    """What one-shot pruning keeps, bool, by name."""
    (cut,) = sw.patterns.GlobalMagnitude().cuts(sw.patterns.Weights.of(weights), [level])
    found = {}
    for name, tensor in weights.items():
        cut.prune(name, tensor, out=(pruned := torch.empty_like(tensor)))
        found[name] = pruned != 0
    return found


def reach(steps: int, rate: float, *, at_most: bool) -> float:
    """How far a weight can come in a training like ``texts.finetune``, decay left out.

    Args:
        steps: with a tenth of warm-up, then linear decay to zero.
        rate: the highest one.
        at_most: by the most that Adam allows; else by the rate at each step.
    """
    warmup, group = max(1, steps // 10), {"betas": (0.9, 0.999)}
    rates = [rate * min((t + 1) / warmup, (steps - t) / (steps - warmup + 1)) for t in range(steps)]
    return sum(r * (farthest(_ADAM, group, t + 1.0) if at_most else 1.0)
               for t, r in enumerate(rates))  # fmt: skip


def lowest_cosine(magnitudes: np.ndarray, level: float, moved: float) -> float:
    """The lowest cosine of the masks before and after no weight has moved by more than ``moved``.

    The largest of those that go and the smallest of those that stay change places, as many pairs
    as lie within two moves of each other.

    Args:
        magnitudes: of all weights, rising, [n].
        level: the sparsity of both masks.
        moved: at most, in units of the weights.

    >>> float(lowest_cosine(np.array([1.0, 2.0, 3.0, 4.0]), 0.5, 0.5))
    0.5
    """
    num, gone = len(magnitudes), round(level * len(magnitudes))
    pairs = min(gone, num - gone)
    apart = magnitudes[gone : gone + pairs] - magnitudes[gone - pairs : gone][::-1]
    swapped = int(np.searchsorted(apart, 2.0 * moved, "right"))
    return (num - gone - swapped) / (num - gone)


def trained(tuning: Tuning, seed: int, levels: Sequence[float]) -> list[float]:
    """The cosine at each level, of one training."""
    torch.manual_seed(seed)
    model = tuning.make_model()
    before = weights_of(model)
    tuning.train(model)
    after = weights_of(model)
    return [sw.mask_similarity(kept(before, x), kept(after, x)).cosine for x in levels]


def conclusion(level: float, cosine: float, lowest: float) -> str:
    """What the numbers at one level say."""
    return (
        f"At {level:.0%} the cosine is {cosine:.3f}. Steps of the size of the rate keep it above "
        f"{lowest:.3f} whatever is learnt, where two random masks have {1 - level:.2f}: read the "
        f"paper's {PAPER} beside that."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = arguments("mask_similarity", __doc__ or "")
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=RATE)
    add_sizes(parser)
    parser.set_defaults(steps=STEPS)
    args = parsed(parser, argv, {**TOY, "steps": 6})
    begin(args)
    tuning = tuning_of(args, "genres", "genres", args.steps)._replace(lr=args.lr)
    settings: dict[str, Any] = {"lr": args.lr, "steps": args.steps, "small": args.small}
    results = Results(args.out / "results.jsonl", settings)
    found = [results.once(f"seed {s}", partial(trained, tuning, s, LEVELS)) for s in args.seeds]
    flat = torch.cat([w.flatten() for w in weights_of(tuning.make_model()).values()])
    magnitudes = np.sort(flat.abs().numpy())
    moves = [reach(args.steps, args.lr, at_most=at_most) for at_most in (False, True)]
    lowest = [[lowest_cosine(magnitudes, x, moved) for x in LEVELS] for moved in moves]
    means = np.mean(found, 0).tolist()
    rms = float(flat.square().mean().sqrt())
    print(f"{args.steps} steps at {args.lr:g}: a weight comes as far as {moves[0] / rms:.3f} of "
          f"the weights' rms by steps of the rate, {moves[1] / rms:.3f} at most\n")  # fmt: skip
    head = ["sparsity", "cosine, each seed", "lowest by steps of the rate", "lowest possible",
            "by chance"]  # fmt: skip
    rows = [
        [f"{x:.2f}", " ".join(f"{of_seed[i]:.4f}" for of_seed in found), f"{lowest[0][i]:.3f}",
         f"{lowest[1][i]:.3f}", f"{1 - x:.2f}"]
        for i, x in enumerate(LEVELS)
    ]  # fmt: skip
    said = [conclusion(LEVELS[-1], means[-1], lowest[0][-1])]
    reached = [moved / rms for moved in moves]
    report(args, head, rows, said, cosines=found, lowest=lowest, reached=reached)
    path = args.out / "mask_similarity.png"
    lines = [
        Line("before and after fine-tuning", LEVELS, means),
        Line("lowest by steps of the rate", LEVELS, lowest[0], style="s--"),
        Line("lowest possible", LEVELS, lowest[1], style="^:"),
        Line("two random masks", LEVELS, [1 - x for x in LEVELS], style="k:"),
        Line("the paper: above", LEVELS, [PAPER] * len(LEVELS), style="r-"),
    ]
    draw(path, {"genres, the paper's rate": lines}, "sparsity", "cosine of the masks")
    print(f"Look at {path}. {load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
