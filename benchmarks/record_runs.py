"""Record small trainings under watch, for judging detectors on.

python benchmarks/record_runs.py [--proxy] [--list] [--only NAME ...] [--part I/N]

trains each run of the catalog that has no file in ``recorded/runs/`` yet, a minute or two each,
labels all of them by the rules as they are now, and writes the table in that folder.
``--part 1/2`` and ``--part 2/2`` share the work between two processes; ``--again`` records also
what has a file. ``--proxy`` records some of them again, with a proxy, in ``recorded/proxy/``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from recording import measured
from recording.catalog import RUNS, WITH_PROXY, RunSpec
from recording.labels import split_of
from recording.recorder import label, record, write
from recording.table import FOLDER, load, write_table

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Record what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(description="Record small trainings under watch.")
    parser.add_argument("--proxy", action="store_true", help="essential sparsity and reliance")
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these runs")
    parser.add_argument("--again", action="store_true", help="also those that have a file")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th run")
    args = parser.parse_args(argv)
    runs = WITH_PROXY if args.proxy else RUNS
    unknown = set(args.only or ()) - {spec.name for spec in runs}
    if unknown:
        parser.error(f"Expected `--only` to name runs of --list, got {sorted(unknown)}.")
    index, number = (int(x) for x in args.part.split("/"))
    chosen = [spec for spec in runs if not args.only or spec.name in args.only]
    if args.list:
        print("\n".join(f"{spec.name:28s} {split_of(spec.seed)}" for spec in chosen))
        return 0
    torch.set_num_threads(1)
    make, folder = (measured.record, measured.FOLDER) if args.proxy else (record, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    failed = [
        spec.name
        for spec in chosen[index - 1 :: number]
        if not _done(spec, make, folder, again=args.again)
    ]
    if not args.proxy:
        _label_again()
        write_table(spec.name for spec in RUNS)
    if failed:
        print(f"Not recorded: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _label_again() -> None:
    """Bring the labels of recorded runs up to the rules."""
    runs = load()
    for spec in RUNS:
        run = runs.get(spec.name)
        if run is None:
            continue
        found = label(spec, run["steps"], run["series"])
        if found != run["label"]:
            write({**run, "label": found}, FOLDER / f"{spec.name}.json")


def _done(
    spec: RunSpec, make: Callable[[RunSpec], dict[str, Any]], folder: Path, *, again: bool
) -> bool:
    """Record the run unless it is there; False if its loss left the finite numbers."""
    path = folder / f"{spec.name}.json"
    if path.exists() and not again:
        return True
    started = time.perf_counter()
    try:
        run = make(spec)
    except FloatingPointError as error:
        print(f"{spec.name}: {error}", file=sys.stderr)
        return False
    write(run, path)
    told = {key: x for key, x in run["label"].items() if key != "near_zero"}
    print(f"{spec.name:28s} {time.perf_counter() - started:4.0f} s  {told}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
