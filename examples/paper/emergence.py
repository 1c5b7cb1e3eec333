r"""Figure 8 (i): does a BERT turn sparse abruptly in the middle of pretraining?

    python examples/paper/emergence.py

pretrains the small BERT of ``examples/pretrain_bert.py`` with what BERT-base has, GELU, weight
decay 0.01, warm-up and linear decay of the learning rate, for 50,000 steps; and two twins: with
decay 0.1, and with ReLU. All the while they are watched. Then it says for each: near-zero weights
by four rules at the start, at their lowest and at the end; dormant weights; the decay clock;
essential sparsity; and whether there was an abrupt turn, when, and in which layers.

It takes about an hour on one core; ``--only`` trains one of the three, so that two can go side by
side. Killed and started again it goes on. A step reads 16 sequences of 32 characters, so that
50,000 steps read the text some thirteen times. The paper (Jaiswal et al. 2023,
arXiv:2306.03805) saw the turn at 22,000 to 40,000 of 50,000 steps of BERT-base on BookCorpus,
one run each; its optimizer, decay and rule for "zero" are not given. This model has 2 layers and
reads single characters: what it shows, either way, is about this scale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import arguments, begin, load, table
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other examples

from pretrain_bert import main as pretrain

import sparsitywatch as sw

#: What differs between the three runs.
RUNS = {
    "as BERT-base": ("--activation", "gelu", "--decay", "0.01"),
    "decay 0.1": ("--activation", "gelu", "--decay", "0.1"),
    "ReLU": ("--activation", "relu", "--decay", "0.01"),
}
SERIES = ("near_zero/initial_0.1", "near_zero/rms_0.1", "near_zero/abs_0.001", "near_zero/zero")
LINES = ("motion/dormant", "motion/decay_clock", "essential_sparsity/value", "value/dense")


def folder(args: argparse.Namespace, name: str) -> Path:
    """Where a run is logged."""
    return Path(args.out) / name.lower().replace(" ", "-")


def finish(args: argparse.Namespace, name: str) -> None:
    """Train what is missing of a run."""
    small = ["--layers", "1", "--hidden", "16", "--heads", "2", "--ffn", "32"]
    status = pretrain(
        [
            *RUNS[name], "--schedule", "linear", "--warmup", str(max(args.steps // 5, 1)),
            "--dropout", "0.1", "--batch", str(args.batch),
            "--steps", str(args.steps), "--every", str(args.every),
            "--save-every", str(args.every), "--seed", str(args.seed),
            "--threads", str(args.threads), "--logdir", str(folder(args, name)),
            *(small if args.small else []),
        ]
    )  # fmt: skip
    if status:
        sys.exit(status)


def course(run: sw.Run, series: str) -> str:
    """First, lowest and last value of a series."""
    steps, values = run.series(series)
    if not np.isfinite(values).any():
        return "-"
    lowest = int(np.nanargmin(values))
    return f"{values[0]:.3g} -> {values[lowest]:.3g} at {steps[lowest]:,} -> {values[-1]:.3g}"


def verdict(name: str, run: sw.Run, steps: int) -> str:
    """Whether the run turned sparse abruptly, by its events; how far it came, if not to the end.

    Args:
        name: of the run.
        run: what was logged.
        steps: of the whole run.
    """
    last = run.records[-1].step
    if last < steps:
        name = f"{name}, unfinished at step {last:,} of {steps:,}"
    rises = [
        event
        for event in run.events
        if event.trend == "sparsifying" and event.series.startswith("near_zero/")
    ]
    if not rises:
        early = [event for event in run.events if event.series == "motion/dormant"]
        more = f"; weights went dormant from step {early[0].onset_step:,} on" if early else ""
        falls = [event for event in run.events if event.series.startswith("near_zero/")]
        if falls:
            more += f"; they fell abruptly from step {falls[0].onset_step:,} on"
        return f"{name}: no abrupt turn of the near-zero weights to sparse{more}."
    first = rises[0]
    back = (
        f"; half of it was gone again at {first.reverted_step:,}" if first.reverted_step > 0 else ""
    )
    where = f", most in {', '.join(first.layers[:3])}" if first.layers else ""
    return (
        f"{name}: an abrupt turn began at step {first.onset_step:,} ({first.onset_low:,} to "
        f"{first.onset_high:,}): {first.baseline:.3g} -> {first.value:.3g}{where}{back}."
    )


def draw(runs: dict[str, sw.Run], path: Path) -> None:
    """Near-zero and dormant weights, essential sparsity and the loss, over the steps."""
    shown = ("near_zero/initial_0.1", "motion/dormant", "essential_sparsity/value", "value/dense")
    labels = ("near zero, 0.1 x first rms", "dormant", "essential sparsity", "held-out loss")
    figure = Figure(figsize=(8.0, 9.0), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True)
    for axis, series, label in zip(axes, shown, labels, strict=True):
        for index, (name, run) in enumerate(runs.items()):
            steps, values = run.series(series)
            axis.plot(steps, values, color=f"C{index}", label=name)
            for event in run.events:
                if event.series == series:
                    axis.axvline(event.onset_step, color=f"C{index}", linestyle=":")
        axis.set_ylabel(label)
    axes[0].legend()
    axes[0].set_title("Pretraining with BERT-base's settings, in small (dotted: an event began)")
    axes[-1].set_xlabel("optimizer step")
    figure.savefig(path, dpi=100)


def report(runs: dict[str, sw.Run], steps: int) -> str:
    """A table of the courses, first -> lowest -> last, and what follows."""
    rows = [(s, *(course(run, s) for run in runs.values())) for s in (*SERIES, *LINES)]
    said = [verdict(name, run, steps) for name, run in runs.items()]
    return "\n".join([table(("series", *runs), rows), "", *said])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = arguments("emergence", __doc__ or "")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("--steps", type=int, default=50_000)
    add("--every", type=int, default=250, help="steps between two snapshots")
    add("--batch", type=int, default=16, help="sequences of 32 characters a step")
    add("--seed", type=int, default=0)
    add("--only", choices=tuple(RUNS), help="train this run alone")
    add("--report", action="store_true", help="train nothing: tell what is there")
    args = parser.parse_args(argv)
    begin(args)
    wanted = [args.only] if args.only else list(RUNS)
    for name in [] if args.report else wanted:
        finish(args, name)
    runs = {name: sw.load(folder(args, name)) for name in RUNS if folder(args, name).is_dir()}
    if not runs:
        parser.error(f"Expected runs in {args.out}, found none. Leave out `--report` to train.")
    text = report(runs, args.steps)
    draw(runs, args.out / "emergence.png")
    (args.out / "emergence.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nLook at {args.out / 'emergence.png'}. {load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
