r"""Grokking under watch: near-zero weights rise before the model understands, take off after.

    python examples/grokking.py

teaches a small ReLU network a + b modulo 53 from half of all pairs. It does so twice: with weight
decay 1.0, and without, as a control. Both soon know the pairs they are shown. With decay the
network goes on to *understand*: around step 400 it begins to get the pairs right that it never
saw (grokking, arXiv:2201.02177). A first, small rise of its near-zero weights begins before that,
near step 160 (1.5 to 2.7 %). They take off some 600 steps after it (to 18 %), and dormant weights
rise at the same time, not earlier. With ``--steps 4000`` part of them comes back. The control does
none of this. It takes about a minute on one CPU core.

Dormant weights mean nothing in the control. Its loss sinks below 1e-5, and the gradients that are
left are too small to tell from none.

The watch is one call; the loop is an ordinary one. Afterwards

    sparsitywatch compare runs/grokking/decay runs/grokking/control

puts the two runs side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F  # noqa: N812

import sparsitywatch as sw

MODULUS, WIDTH = 53, 256
NEAR_ZERO = "initial_0.1"
UNDERSTOOD = 0.9
COLUMNS = ("run", "step", "loss", "accuracy", "near zero", "dormant", "clock")


class Adder(nn.Module):
    """Two numbers as learned vectors, side by side into a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(MODULUS, WIDTH // 2)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, MODULUS)

    def forward(self, pairs: torch.Tensor) -> Any:
        """Logits, float [N, 53], of the sums of ``pairs``, int64 [N, 2]."""
        return self.output(F.relu(self.hidden(self.embedding(pairs).flatten(1))))


@dataclass
class Outcome:
    """One training: its watch, and accuracy on unseen pairs by step."""

    name: str
    watcher: sw.Watcher
    accuracy: dict[int, float] = field(default_factory=dict)

    def near_zero(self) -> dict[int, float]:
        """Fraction of near-zero weights by step."""
        return {r.step: r.near_zero[NEAR_ZERO] for r in self.watcher.records}


def train(name: str, decay: float, args: argparse.Namespace) -> Outcome:
    """Teach one network, and print a line of the table now and then."""
    torch.manual_seed(args.seed)
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    order = torch.randperm(len(pairs))
    seen, unseen = pairs[order].chunk(2)
    model = Adder()
    # as usual, biases do not decay
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), weight_decay=decay)

    with sw.watch(
        model,
        optimizer,
        every=args.every,
        logdir=args.logdir / name,
        max_overhead=None,  # take every snapshot, though these steps are short
        background=False,  # the record of a step is there when the step is done
        on_event=[lambda event: print(f">> {name}: {event.describe()}")],
    ) as watcher:
        outcome = Outcome(name, watcher)
        for step in range(1, args.steps + 1):
            loss = F.cross_entropy(model(seen), seen.sum(1) % MODULUS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % args.every == 0:
                with torch.no_grad():
                    right = model(unseen).argmax(1) == unseen.sum(1) % MODULUS
                outcome.accuracy[step] = float(right.float().mean())
            if step % (5 * args.every) == 0:
                print(row(outcome, float(loss.detach())), flush=True)
    return outcome


def row(outcome: Outcome, loss: float) -> str:
    """The latest snapshot as a line of the table."""
    record = outcome.watcher.records[-1]
    numbers = (
        f"{loss:.2e}",
        f"{outcome.accuracy[record.step]:.3f}",
        f"{record.near_zero[NEAR_ZERO]:.4f}",
        f"{record.dormant.fraction:.4f}" if record.dormant else "-",
        f"{record.decay_clock:.2f}",
    )
    return line(outcome.name, str(record.step), *numbers)


def line(*cells: str) -> str:
    """Cells below those of the other lines."""
    return f"{cells[0]:<8}" + "".join(f"{cell:>11}" for cell in cells[1:])


def summary(outcome: Outcome) -> str:
    """What happened, in words."""
    understood = [s for s, accuracy in outcome.accuracy.items() if accuracy >= UNDERSTOOD]
    near_zero = outcome.near_zero()
    floor_step = min(near_zero, key=lambda s: near_zero[s])
    floor = near_zero[floor_step]
    peak = max((s for s in near_zero if s >= floor_step), key=lambda s: near_zero[s])
    tripled = [s for s, x in near_zero.items() if s > floor_step and x > 3 * floor]
    events = [event.describe() for event in outcome.watcher.events]
    return "\n".join(
        [
            f"{outcome.name}: "
            + (f"understood at step {understood[0]}" if understood else "never understood")
            + f"; near zero {floor:.4f} at its lowest, "
            + (f"three times that at step {tripled[0]}" if tripled else "never three times that")
            + f", {near_zero[peak]:.4f} at its highest (step {peak}), "
            f"{list(near_zero.values())[-1]:.4f} at the end.",
            *(f"  Event: {event}." for event in events or ["none"]),
        ]
    )


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Accuracy on unseen pairs above near-zero weights, with the events in these."""
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for outcome in outcomes:
        for axes, series in ((top, outcome.accuracy), (bottom, outcome.near_zero())):
            axes.plot(list(series), list(series.values()), label=outcome.name)
        for event in outcome.watcher.events:
            if event.series.startswith("near_zero/"):
                for axes in (top, bottom):
                    axes.axvline(event.onset_step, color="black", linestyle="dotted")
                    axes.axvline(event.detected_step, color="black")
    top.set_title(f"a + b mod {MODULUS}: a first rise before it understands, the take-off after")
    top.set_ylabel("accuracy on unseen pairs")
    top.legend()
    bottom.set_ylabel("near zero: |w| ≤ 0.1 x first RMS")
    bottom.set_xlabel("optimizer step (events: dotted where one began, solid where it was seen)")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Grokking under watch, and a control without weight decay.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=20, help="steps between two snapshots")
    parser.add_argument("--logdir", type=Path, default=Path("runs/grokking"))
    args = parser.parse_args(argv)
    if not 1 <= args.every <= args.steps:
        parser.error(f"Expected 1 <= `--every` <= `--steps`, got {args.every} and {args.steps}.")
    torch.set_num_threads(1)
    print(line(*COLUMNS))
    outcomes = [train("decay", 1.0, args), train("control", 0.0, args)]
    print("", *map(summary, outcomes), sep="\n")
    picture = args.logdir / "grokking.png"
    draw(outcomes, picture)
    print(f"\nLook at {picture}, or: tensorboard --logdir {args.logdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
