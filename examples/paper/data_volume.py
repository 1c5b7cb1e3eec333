r"""Does more text make a model sparser? The paper's data-volume experiment (figure 8), in small.

    python examples/paper/data_volume.py

pretrains the small BERT of the demo on 100, 60 and 20 % of the text, over three seeds, each run
under watch: nine runs of one to two minutes on one CPU core. Then it prints what each run showed,
the mean and the spread over the seeds for each share, and whether the largest share differs from
each other one, paired by seed.
docs/reports/paper.md has what came out.

The paper (arXiv:2306.03805, Figure 8) reports for BERT-base, with one run per share, that more
data makes the model sparser, and earlier so. This is a small model with strong weight decay;
whatever it shows does not carry over. What follows ``--pretraining`` goes to
examples/pretrain_bert.py, so that the same experiment can be done with a model of any size.

Finished runs are skipped and one that was killed goes on. Other ``--seeds`` and ``--fractions``
add runs to those that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, begin, by_seed, load, parsed, report
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other examples

from pretrain_bert import NEAR_ZERO, Pretraining, parser, take_up, train

import sparsitywatch as sw

PIECE = 1024  # tokens


def share_of(tokens: np.ndarray, fraction: float) -> np.ndarray:
    """A share of a text [T]: pieces of 1,024 tokens, drawn at random once and for all.

    A smaller share is a part of a larger one.

    Raises:
        ValueError: ``fraction`` is out of range.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"Expected `--fractions` in (0, 1], got {fraction}.")
    if fraction == 1.0:
        return tokens
    pieces = np.array_split(tokens, max(1, round(len(tokens) / PIECE)))
    order = np.random.default_rng(0).permutation(len(pieces))
    chosen = np.sort(order[: max(1, round(fraction * len(pieces)))])
    return np.concatenate([pieces[i] for i in chosen])


# ---------------------------------------------------------------- one run


@dataclass(frozen=True, kw_only=True)
class VolumeRun:
    """One run of the experiment.

    Args:
        fraction, seed: its share of the text, and its seed.
        near_zero: fraction of near-zero weights at the end.
        essential: essential sparsity at the end, with its interval; NaN if not informative.
        doubled: step at which near-zero weights are first twice their floor; NaN if never.
        doubled_clock: the decay clock there.
        began: onset of the first event of rising near-zero weights; NaN without any.
        began_clock: the decay clock there.
        steps, series: near-zero fractions by step.
        proxy_hash: which held-out text was evaluated.
    """

    fraction: float
    seed: int
    near_zero: float
    essential: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    doubled: float = math.nan
    doubled_clock: float = math.nan
    began: float = math.nan
    began_clock: float = math.nan
    steps: Sequence[int] = ()
    series: Sequence[float] = ()
    proxy_hash: str = ""

    @property
    def group(self) -> str:
        """The runs that only a seed tells apart."""
        return f"{self.fraction:.0%}"


Measure = Callable[[VolumeRun], float]
#: What is compared: name, value, decimals.
MEASURES: tuple[tuple[str, Measure, int], ...] = (
    ("near zero at the end", lambda run: run.near_zero, 3),
    ("near zero doubled at step", lambda run: run.doubled, 0),
    ("event began at step", lambda run: run.began, 0),
    ("essential sparsity at the end", lambda run: run.essential[0], 3),
)


def read_run(logdir: Path, fraction: float, seed: int) -> VolumeRun:
    """A run from its log."""
    run = sw.load(logdir)
    last = run.records[-1]
    estimate = last.essential_sparsity
    rise = next((float(event.onset_step) for event in run.events if _is_rise(event)), math.nan)
    steps, near_zero = run.series(f"near_zero/{NEAR_ZERO}")
    clock = run.series("motion/decay_clock")
    doubled = doubling_step(steps, near_zero)
    measured = VolumeRun(
        fraction=fraction,
        seed=seed,
        near_zero=last.near_zero[NEAR_ZERO],
        doubled=doubled,
        doubled_clock=_at(doubled, *clock),
        began=rise,
        began_clock=_at(rise, *clock),
        steps=steps.tolist(),
        series=near_zero.tolist(),
        proxy_hash=last.provenance.proxy_hash,
    )
    if estimate is None or not estimate.informative:
        return measured
    return replace(measured, essential=(estimate.value, estimate.low, estimate.high))


def doubling_step(steps: np.ndarray, values: np.ndarray) -> float:
    """The step [K] at which values [K] first exceed twice their lowest after it; NaN if never.

    >>> doubling_step(np.array([0, 50, 100, 150]), np.array([0.3, 0.1, 0.2, 0.21]))
    150.0
    """
    lowest = int(np.argmin(values))
    above = np.flatnonzero(values[lowest:] > 2 * values[lowest])
    return float(steps[lowest + above[0]]) if len(above) else math.nan


def _at(step: float, steps: np.ndarray, values: np.ndarray) -> float:
    return math.nan if math.isnan(step) else float(np.interp(step, steps, values))


def _is_rise(event: sw.Event) -> bool:
    """Whether near-zero weights rose in it, seen first by their series or by another one."""
    watched = f"near_zero/{NEAR_ZERO}"
    return event.direction == "up" and (event.series == watched or watched in event.related)


# ---------------------------------------------------------------- what follows


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample) of one value or more; 0.0 for a single one.

    >>> mean_and_spread([1.0, 3.0, 5.0])
    (3.0, 2.0)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


HEAD = (
    "text", "seed", "near zero at the end", "doubled at step (decay clock)",
    "event began at step (decay clock)", "essential sparsity at the end",
)  # fmt: skip


def rows(runs: Sequence[VolumeRun]) -> list[tuple[str, ...]]:
    """Of the table: one a run, then mean and standard deviation for each share of the text."""
    found = [_row(run) for run in runs]
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        cells = [
            _mean_cell([value(run) for run in members], digits) for _, value, digits in MEASURES
        ]
        found.append((f"**{group}**", "mean ± sd", *cells))
    return found


def _row(run: VolumeRun) -> tuple[str, ...]:
    value, low, high = run.essential
    told = "not informative" if math.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
    steps = ((run.doubled, run.doubled_clock), (run.began, run.began_clock))
    cells = ["never" if math.isnan(step) else f"{step:.0f} ({clock:.2f})" for step, clock in steps]
    return run.group, str(run.seed), f"{run.near_zero:.3f}", *cells, told


def _mean_cell(values: Sequence[float], digits: int) -> str:
    known = [x for x in values if math.isfinite(x)]
    if not known:
        return "-"
    mean, spread = mean_and_spread(known)
    some = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return f"{mean:.{digits}f} ± {spread:.{digits}f}{some}"


def compared(runs: Sequence[VolumeRun]) -> list[tuple[str, sw.Comparison]]:
    """Each measure of the whole text beside each share of it, in percent of the mean of all."""
    shares = list(dict.fromkeys(run.fraction for run in runs))
    seeds = set.intersection(*({x.seed for x in runs if x.fraction == share} for share in shares))
    if len(shares) < 2 or len(seeds) < 2:
        return []
    pairs = []
    for name, value, _ in MEASURES:
        of = {
            share: [
                value(run)
                for run in sorted(runs, key=lambda run: run.seed)
                if run.fraction == share and run.seed in seeds
            ]
            for share in shares
        }
        unit = float(np.mean(list(of.values()))) / 100 or 1.0
        of = {share: [x / unit for x in values] for share, values in of.items()}
        for share in shares[1:]:
            more = by_seed(of[shares[0]], of[share])
            pairs.append((name, sw.Comparison(f"{shares[0]:.0%}", f"{share:.0%}", more)))
    return pairs


def draw(runs: Sequence[VolumeRun], path: Path) -> None:
    """Near-zero weights of every run, coloured by its share of the text."""
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(run.group for run in runs))
    for run in runs:
        colour = f"C{groups.index(run.group)}"
        axes.plot(
            run.steps, run.series, color=colour, linewidth=1.0, label=f"{run.group} of the text"
        )
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    axes.legend(shown.values(), shown.keys(), frameon=False)
    axes.set(xlabel="optimizer step", ylabel="near zero: |w| ≤ 0.1 × first RMS", ylim=(0, None))
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------- the experiment


TINY = [
    "--layers", "1", "--hidden", "16", "--heads", "2", "--ffn", "64", "--sequence", "16",
    "--batch", "8", "--held-out", "16", "--warmup", "10", "--lr", "0.01", "--decay", "3",
]  # fmt: skip


def arguments_of(argv: Sequence[str] | None, doc: str = __doc__ or "") -> argparse.Namespace:
    """The arguments, also of what is made of these runs."""
    out = arguments("data_volume", doc)
    out.set_defaults(threads=1)
    add = out.add_argument
    add("--fractions", type=float, nargs="+", default=(1.0, 0.6, 0.2), metavar="SHARE")
    add("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    add("--steps", type=int, default=1600)
    add("--every", type=int, default=50, help="steps between two snapshots")
    add("--finetune-steps", type=int, default=200, help="of data_finetuned.py")
    add(
        "--pretraining", nargs=argparse.REMAINDER, default=[], metavar="ARGUMENT",
        help="all that follows goes to examples/pretrain_bert.py",
    )  # fmt: skip
    args = parsed(out, argv, {"steps": 12, "every": 4, "finetune_steps": 3})
    if args.small:  # what comes later counts
        args.pretraining = [*TINY, *args.pretraining]
    return args


def folder(args: argparse.Namespace, fraction: float, seed: int) -> Path:
    """Where a run is kept."""
    return Path(args.out) / f"text-{round(100 * fraction)}-seed-{seed}"


def pretrained(
    args: argparse.Namespace, fraction: float, seed: int
) -> tuple[Pretraining, dict[str, Any] | None]:
    """One of the runs, as far as it has come, with the state of its checkpoint if there is one.

    Raises:
        ValueError: an argument cannot be used, or its folder holds a run with other ones.
    """
    logdir = folder(args, fraction, seed)
    words = [
        "--steps", args.steps, "--every", args.every, "--seed", seed, "--logdir", logdir,
        *args.pretraining,
    ]  # fmt: skip
    run = Pretraining(parser().parse_args([str(word) for word in words]))
    run.text = share_of(run.text, fraction)
    with contextlib.redirect_stdout(io.StringIO()):  # that it goes on
        return run, take_up(run, logdir / "checkpoint.pt", fresh=False)


def finish(args: argparse.Namespace, fraction: float, seed: int) -> str:
    """Train one of the runs to its end, unless that was done before; returns what was done."""
    run, state = pretrained(args, fraction, seed)
    if run.steps_done == args.steps:
        return "finished before"
    folder(args, fraction, seed).mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # a line for each snapshot
        train(run, state and state["watch"])
    return "done"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    args = arguments_of(argv)
    begin(args)
    wanted = list(itertools.product(args.seeds, sorted(args.fractions, reverse=True)))
    try:
        for seed, fraction in (bar := tqdm(wanted, unit="run", disable=None)):
            done = finish(args, fraction, seed)
            bar.write(f"{fraction:.0%} of the text, seed {seed}: {done}")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    runs = [read_run(folder(args, share, seed), share, seed) for seed, share in wanted]
    if len({run.proxy_hash for run in runs}) > 1:
        sys.exit("Expected the same held-out text in all runs, got others. Use another `--out`.")
    runs.sort(key=lambda run: (-run.fraction, run.seed))
    picture = args.out / "data_volume.png"
    draw(runs, picture)
    pairs = compared(runs)
    said = ["It takes two shares of the text and two seeds or more of each."] if not pairs else []
    report(args, HEAD, rows(runs), said, pairs, unit="% of their mean")
    print(f"Look at {picture}. {load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
