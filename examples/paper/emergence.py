r"""Figure 8 (i): does a BERT turn sparse abruptly in the middle of pretraining, by any threshold?

    python examples/paper/emergence.py

pretrains the small BERT of ``examples/pretrain_bert.py`` with what BERT-base has (warm-up, linear
decay of the rate, dropout), with GELU and ReLU, decay .01, .1 and 1, and three seeds, and watches
it. Then every threshold of near zero is asked for an abrupt turn: ``run.emergence()``.

The 18 runs take six minutes each on a quiet core; ``--only`` and ``--seed`` train some of them, so
that two can go side by side. Killed and started again it goes on. The paper (Jaiswal et al. 2023,
arXiv:2306.03805) saw the turn at 22,000 to 40,000 of 50,000 steps of BERT-base, one run each; its
optimizer, decay and rule for "zero" are not given. This model has 2 layers and reads single
characters: what it shows, either way, is about this scale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, begin, load, table
from kept import counted, keep, kept
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other examples

from pretrain_bert import main as pretrain

import sparsitywatch as sw

#: Activation and weight decay.
SETTINGS = [f"{name}-{decay}" for decay in ("0.01", "0.1", "1.0") for name in ("gelu", "relu")]
SEEDS = (0, 1, 2)
SERIES = ("motion/lr", "motion/lr_clock", "motion/decay_clock", "motion/dormant", "value/dense",
          "essential_sparsity/value")  # fmt: skip
Kept = Mapping[str, Any]


def train(args: argparse.Namespace, setting: str, seed: int) -> None:
    """Train what is missing of a run, and keep its series."""
    activation, _, decay = setting.partition("-")
    logdir = args.out / f"{setting}-s{seed}"
    small = ["--layers", "1", "--hidden", "16", "--heads", "2", "--ffn", "32"]
    status = pretrain(
        [
            "--activation", activation, "--decay", decay, "--schedule", "linear",
            "--warmup", str(max(args.steps // 5, 1)), "--dropout", "0.1", "--batch", "16",
            "--steps", str(args.steps), "--every", str(args.every),
            "--save-every", str(5 * args.every), "--seed", str(seed),
            "--threads", str(args.threads), "--logdir", str(logdir), *(small if args.small else []),
        ]
    )  # fmt: skip
    if status:
        sys.exit(status)
    keep(args.kept / f"{logdir.name}.json.gz", measured(sw.load(logdir)))


def measured(run: sw.Run) -> dict[str, Any]:
    """The counts below every threshold, the turns and other series of a run."""
    found = counted(run)
    at = np.isin(run.steps, found["steps"])
    return {**found, **{name: run.column(name)[at].tolist() for name in SERIES}}


def turns(one: Kept, direction: str, kind: str = "abrupt") -> list[dict[str, Any]]:
    """The turns of a run that are abrupt, or gradual: "up", to sparse, or "down", to dense."""
    return [t for t in one["turns"] if (t["direction"], t["kind"]) == (direction, kind)]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The least and the most, of the seeds."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def report(runs: Mapping[str, Kept]) -> str:
    """A row for each setting: at how many thresholds it turns, and how it ends."""
    head = ("setting", "seeds", "abrupt to sparse", "gradual", "abrupt to dense", "decay clock",
            "dormant", "held-out loss", "essential sparsity")  # fmt: skip
    ways = (("up", "abrupt"), ("up", "gradual"), ("down", "abrupt"))
    rows = []
    for setting in SETTINGS:
        own = [one for name, one in runs.items() if name.startswith(f"{setting}-s")]
        if own:
            numbers = [
                spread([len({t["series"] for t in turns(one, *way)}) for one in own], "d")
                for way in ways
            ]
            ends = [spread([one[name][-1] for one in own]) for name in SERIES[2:]]
            rows.append([setting, len(own), *numbers, *ends])
    return table(head, rows)


def draw(runs: Mapping[str, Kept], path: Path) -> None:
    """The share below each threshold of the first rms, over the steps; and where it turns."""
    shown = {setting: runs[f"{setting}-s0"] for setting in SETTINGS if f"{setting}-s0" in runs}
    figure = Figure(figsize=(9.0, 8.0), layout="constrained")
    grid = figure.subplots(3, 2, sharex=True, sharey=True)
    for axes, (setting, one) in zip(grid.flat, shown.items(), strict=False):
        own = [k for k, name in enumerate(one["thresholds"]) if name.startswith("initial_")]
        shares = np.cumsum(one["count_changes"], axis=1)[own] / one["num_weights"]
        factors = [float(one["thresholds"][k].partition("_")[2]) for k in own]
        axes.pcolormesh(one["steps"], factors, np.sqrt(shares), vmin=0.0, vmax=1.0)
        for turn in one["turns"]:
            stem, _, factor = turn["series"].partition("initial_")
            if (stem, turn["kind"]) == ("near_zero/", "abrupt"):
                mark = "^" if turn["direction"] == "up" else "v"
                axes.plot(turn["onset_step"], float(factor), mark, color="white", markersize=4)
        axes.set(title=setting, yscale="log")
    figure.suptitle("Share of the weights below each threshold, bright: all (square root)")
    figure.supylabel("threshold, in first rms")
    figure.supxlabel("optimizer step; triangles: an abrupt turn began, up: to sparse")
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = arguments("emergence", __doc__ or "")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("--steps", type=int, default=15_000)
    add("--every", type=int, default=100, help="steps between two snapshots")
    add("--seed", type=int, choices=SEEDS, help="this one alone")
    add("--only", choices=SETTINGS, help="this one alone")
    add("--kept", type=Path, help="where series are kept (in --out)")
    add("--report", action="store_true", help="train nothing: tell what is kept")
    args = parser.parse_args(argv)
    begin(args)
    args.kept = args.kept or args.out / "kept"
    for seed in SEEDS if args.seed is None else (args.seed,):
        for setting in [] if args.report else [args.only] if args.only else SETTINGS:
            train(args, setting, seed)
    runs = kept(args.kept)
    if not runs:
        parser.error(f"Expected runs in {args.kept}, found none. Leave out `--report` to train.")
    text = report(runs)
    draw(runs, args.out / "emergence.png")
    (args.out / "emergence.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nLook at {args.out / 'emergence.png'}. {load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
