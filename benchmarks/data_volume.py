r"""Does more text make a model sparser? The paper's data-volume experiment, in small.

    python benchmarks/data_volume.py

pretrains the small BERT of the demo on 100, 60 and 20 % of the text, over three seeds, each run
under watch: nine runs of one to two minutes on one CPU core. Then it prints what each run showed,
the mean and the spread over the seeds for each share, and what follows: whether the shares differ
by more than the seeds do. docs/data_volume.md has what came out.

The paper (arXiv:2306.03805, Figure 8) reports for BERT-base, with one run per share, that more
data makes the model sparser, and earlier so. This is a small model with strong weight decay;
whatever it shows does not carry over. What follows ``--pretraining`` goes to the example, so that
the same experiment can be done with a model of any size.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from milestones import NEAR_ZERO, find_takeoff
from pretrain_bert import Pretraining, parser, take_up, train

import sparsitywatch as sw

__all__ = ["chance_of_gap", "conclusion", "gap", "main", "read_run", "share_of", "table"]

#: All measures together take a difference for real that is chance this often.
FALSE_ALARMS = 0.05
PIECE = 1024  # tokens
DEALS = 9_999


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
    takeoff, estimate = find_takeoff(run.records), last.essential_sparsity
    doubled = takeoff.doubling_step if takeoff else None
    doubled_clock = takeoff.decay_clock if takeoff else None
    rise = next((float(event.onset_step) for event in run.events if _is_rise(event)), math.nan)
    steps, near_zero = run.series(f"near_zero/{NEAR_ZERO}")
    clock = run.series("motion/decay_clock")
    measured = VolumeRun(
        fraction=fraction,
        seed=seed,
        near_zero=last.near_zero[NEAR_ZERO],
        doubled=math.nan if doubled is None else float(doubled),
        doubled_clock=math.nan if doubled_clock is None else doubled_clock,
        began=rise,
        began_clock=math.nan if math.isnan(rise) else float(np.interp(rise, *clock)),
        steps=steps.tolist(),
        series=near_zero.tolist(),
        proxy_hash=last.provenance.proxy_hash,
    )
    if estimate is None or not estimate.informative:
        return measured
    return replace(measured, essential=(estimate.value, estimate.low, estimate.high))


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


def gap(groups: Mapping[str, Sequence[float]]) -> float:
    """Largest mean of a group minus the smallest.

    >>> gap({"a": [1.0, 2.0], "b": [4.0, 6.0]})
    3.5
    """
    means = [statistics.fmean(values) for values in groups.values()]
    return max(means) - min(means)


def chance_of_gap(groups: Mapping[str, Sequence[float]]) -> float:
    """How often runs dealt to the groups at random would lie as far apart as these do.

    A permutation test of the ``gap``, by 9,999 random deals with a fixed seed: the share of
    them with a gap at least as large, the deal at hand counted in.

    Args:
        groups: values by group, at least one each.

    Reference: Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    rng = np.random.default_rng(0)
    pooled = np.concatenate([np.asarray(values, dtype=float) for values in groups.values()])
    ends = np.cumsum([len(values) for values in groups.values()])[:-1]
    deals = rng.permuted(np.tile(pooled, (DEALS, 1)), axis=1)
    means = np.stack([part.mean(axis=1) for part in np.split(deals, ends, axis=1)])
    slack = 1e-9 * (1.0 + np.abs(pooled).max())  # the same means in another order
    as_large = int(np.sum(np.ptp(means, axis=0) >= gap(groups) - slack))
    return (as_large + 1) / (DEALS + 1)


def table(runs: Sequence[VolumeRun]) -> str:
    """One line a run, then mean and standard deviation for each share of the text (Markdown)."""
    head = (
        "text", "seed", "near zero at the end", "doubled at step (decay clock)",
        "event began at step (decay clock)", "essential sparsity at the end",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [head, ("---", *["---:"] * (len(head) - 1))]
    rows += [_row(run) for run in runs]
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        cells = [
            _mean_cell([value(run) for run in members], digits) for _, value, digits in MEASURES
        ]
        rows.append((f"**{group}**", "mean ± sd", *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


def conclusion(runs: Sequence[VolumeRun]) -> str:
    """What can be said from these runs, and what cannot; computed, not judged by eye."""
    groups = list(dict.fromkeys(run.group for run in runs))
    sizes = {group: sum(run.group == group for run in runs) for group in groups}
    if len(groups) < 2 or min(sizes.values()) < 2:
        return "Nothing follows: it takes two shares of the text and two seeds or more of each."
    lines, real = [], []
    for name, value, digits in MEASURES:
        values = {g: [value(run) for run in runs if run.group == g] for g in groups}
        if not all(math.isfinite(x) for group in values.values() for x in group):
            lines.append(f"- {name}: some runs have none, so it is not compared.")
            continue
        chance = chance_of_gap(values)
        spread = math.sqrt(sum(mean_and_spread(x)[1] ** 2 for x in values.values()) / len(values))
        lines.append(
            f"- {name}: the means of the shares lie up to {gap(values):.{digits}f} apart; seeds "
            f"spread by {spread:.{digits}f} (sd). Runs dealt to the shares at random lie as far "
            f"apart in {chance:.1%} of all deals."
        )
        if chance <= FALSE_ALARMS / len(MEASURES):
            real.append(name)
    return "\n".join([*lines, "", _verdict(runs, real)])


def _verdict(runs: Sequence[VolumeRun], real: Sequence[str]) -> str:
    most, least = (pick(run.fraction for run in runs) for pick in (max, min))
    means = {
        share: mean_and_spread([run.near_zero for run in runs if run.fraction == share])[0]
        for share in (most, least)
    }
    limit = f"(limit: {FALSE_ALARMS / len(MEASURES):.2%} for each of {len(MEASURES)} measures)"
    if not real:
        told = f"The differences between the shares are within the spread of the seeds {limit}."
    else:
        told = f"The shares differ by more than the seeds do in: {', '.join(real)} {limit}."
    is_sparser = means[most] > means[least]
    if "near zero at the end" in real:
        more = "more" if is_sparser else "fewer"
        told += f" With {most:.0%} of the text {more} weights end near zero than with {least:.0%}."
    seen = is_sparser and "near zero at the end" in real
    return told + f' "More data, sparser" is {"" if seen else "not "}seen here.'


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
    figure.savefig(path)


# ---------------------------------------------------------------- the experiment


def _arguments() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description="The data-volume experiment: a small BERT on shares of the text.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out.add_argument("--fractions", type=float, nargs="+", default=(1.0, 0.6, 0.2), metavar="SHARE")
    out.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    out.add_argument("--steps", type=int, default=1600)
    out.add_argument("--every", type=int, default=50, help="steps between two snapshots")
    out.add_argument("--logdir", type=Path, default=Path("runs/data-volume"))
    out.add_argument(
        "--pretraining", nargs=argparse.REMAINDER, default=[], metavar="ARGUMENT",
        help="all that follows goes to examples/pretrain_bert.py",
    )  # fmt: skip
    return out


def _folder(args: argparse.Namespace, fraction: float, seed: int) -> Path:
    return Path(args.logdir) / f"text-{round(100 * fraction)}-seed-{seed}"


def finish(args: argparse.Namespace, fraction: float, seed: int) -> str:
    """Train one of the runs to its end, unless that was done before; returns what was done.

    Raises:
        ValueError: an argument cannot be used, or its folder holds a run with other ones.
    """
    logdir = _folder(args, fraction, seed)
    words = [
        "--steps", args.steps, "--every", args.every, "--seed", seed, "--logdir", logdir,
        *args.pretraining,
    ]  # fmt: skip
    run = Pretraining(parser().parse_args([str(word) for word in words]))
    run.text = share_of(run.text, fraction)
    state = take_up(run, logdir / "checkpoint.pt", fresh=False)
    if run.steps_done == args.steps:
        return "finished before"
    logdir.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # a line for each snapshot
        train(run, state and state["watch"])
    return "done"


def report(args: argparse.Namespace) -> str:
    """Table and conclusion; draws the picture, too.

    Raises:
        ValueError: the runs cannot be compared.
    """
    runs = [
        read_run(_folder(args, fraction, seed), fraction, seed)
        for fraction in sorted(args.fractions, reverse=True)
        for seed in sorted(args.seeds)
    ]
    if len({run.proxy_hash for run in runs}) > 1:
        raise ValueError("Expected the same held-out text in all runs. Use another `--logdir`.")
    picture = args.logdir / "data_volume.png"
    draw(runs, picture)
    return f"\n{table(runs)}\n\n{conclusion(runs)}\n\nLook at {picture}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    arguments = _arguments()
    args = arguments.parse_args(argv)
    torch.set_num_threads(1)
    try:
        for seed, fraction in itertools.product(args.seeds, args.fractions):
            done = finish(args, fraction, seed)
            print(f"{fraction:.0%} of the text, seed {seed}: {done}", flush=True)
        print(report(args))
    except (ValueError, OSError) as error:
        arguments.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
