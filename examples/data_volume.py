r"""Does more text make a model sparser? The paper's data-volume experiment, in small.

    python examples/data_volume.py

pretrains the small BERT of the demo on 100, 60 and 20 % of the text, over three seeds, each
run under watch: nine runs of one to two minutes on one CPU core. Then it prints what each run
showed, the mean and the spread over the seeds for each share of the text, and what follows
from them: whether the shares differ by more than the seeds do.

The paper (arXiv:2306.03805, Figure 8) reports for BERT-base, with one run per share, that more
data makes the model sparser, and earlier so. This is a small model with strong weight decay;
whatever it shows does not carry over.

Finished runs are skipped and one that was killed goes on, so the same command may be given
again at any time; other ``--seeds`` and ``--fractions`` add runs to those that are there.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import checkpoint
import torch
from arguments import parser as pretraining_parser
from console import Console
from milestones import Breakthrough
from pretrain_bert import train, watched
from run import Run, prepare, take_up
from volumes import conclusion, read_run, table

from sparsitywatch.analysis.comparison import require_comparable
from sparsitywatch.records import Event
from sparsitywatch.sinks.comparison import comparison_figure
from sparsitywatch.sinks.figures import save_figure

__all__ = ["main"]


def _arguments() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description="The data-volume experiment: a small BERT on shares of the text.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out.add_argument("--fractions", type=float, nargs="+", default=(1.0, 0.6, 0.2), metavar="SHARE")
    out.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    out.add_argument("--steps", type=int, default=1600)
    out.add_argument("--every", type=int, default=50, help="steps between two looks")
    out.add_argument("--logdir", type=Path, default=Path("runs/data-volume"))
    out.add_argument("--text", help="file, folder or fsspec URL (Python's documentation)")
    out.add_argument(
        "--pretraining", nargs=argparse.REMAINDER, default=[], metavar="ARGUMENT",
        help="all that follows goes to pretrain_bert.py",
    )  # fmt: skip
    return out


def _folder(args: argparse.Namespace, fraction: float, seed: int) -> Path:
    return Path(args.logdir) / f"text-{round(100 * fraction)}-seed-{seed}"


def run_of(args: argparse.Namespace, fraction: float, seed: int) -> Run:
    """One of the runs, at its start.

    Raises:
        ValueError: an argument cannot be used; it is named.
    """
    words = [
        "--steps", args.steps, "--every", args.every, "--seed", seed, "--fraction", fraction,
        "--logdir", _folder(args, fraction, seed), "--quiet", *args.pretraining,
    ]  # fmt: skip
    if args.text:
        words += ["--text", args.text]
    return prepare(pretraining_parser().parse_args([str(word) for word in words]))


class _Silent(Console):
    """Says only what went wrong; what was seen is in the table at the end."""

    def event(self, event: Event) -> None:
        """Nothing."""

    def breakthrough(self, found: Breakthrough) -> None:
        """Nothing."""


def finish(run: Run) -> str:
    """Train the run to its end, unless that was done before; returns what was done.

    Raises:
        ValueError: its folder holds a run with other arguments.
        FloatingPointError: the loss is not finite any more.
    """
    logdir = run.args.logdir
    logdir.mkdir(parents=True, exist_ok=True)
    state = checkpoint.load(run.checkpoint)
    if state is not None and state["finished"]:
        differences = checkpoint.differences(state["identity"], run.identity())
        if differences:
            raise ValueError(
                f"{logdir} holds a finished run with other arguments ({'; '.join(differences)}). "
                "Give the same arguments, or another `--logdir`."
            )
        return "finished before"
    take_up(run)
    console = _Silent(run.args.steps, run.training.steps_done, quiet=True)
    try:
        with watched(run, console) as watcher:
            train(run, watcher, console)
    finally:
        console.close()
    run.save(watcher, finished=True)
    return f"{run.wall_s:.0f} s"


def report(args: argparse.Namespace) -> str:
    """Table and conclusion; draws the picture, too.

    Raises:
        ConfigurationError: the runs cannot be compared (the text has changed, say).
    """
    runs = [
        read_run(_folder(args, fraction, seed), fraction, seed)
        for fraction in sorted(args.fractions, reverse=True)
        for seed in sorted(args.seeds)
    ]
    require_comparable({run.name: run.records for run in runs})
    figure = comparison_figure(
        {run.name: (run.records, run.events) for run in runs},
        groups=[run.group for run in runs],
        title="Shares of the text, each over several seeds",
    )
    picture = args.logdir / "data_volume.png"
    save_figure(figure, picture)
    return f"\n{table(runs)}\n\n{conclusion(runs)}\n\nLook at {picture}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = _arguments()
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        for seed, fraction in itertools.product(args.seeds, args.fractions):
            run = run_of(args, fraction, seed)
            print(f"{fraction:.0%} of the text, seed {seed}:", end=" ", flush=True)
            print(finish(run), flush=True)
        print(report(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except FloatingPointError as error:
        print(f"Stopped: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
