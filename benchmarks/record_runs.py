"""Record small trainings under watch, for judging detectors on.

python benchmarks/record_runs.py [--proxy] [--list] [--only NAME ...] [--part I/N]

trains each run of the catalog that has no file in ``recorded/runs/`` yet, a minute or two each, and
labels all of them by the rules as they are now. ``--list`` only prints the labels. ``--part 1/2``
and ``--part 2/2`` share the work between two processes; ``--again`` records also what has a file.
``--proxy`` records some of them again, with a proxy, in ``recorded/proxy/``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from recording.catalog import FOLDER, PROXY_FOLDER, RUNS, WITH_PROXY, RunSpec, label, load, write
from recording.labels import DECISIVE
from reporting import table


def main(argv: Sequence[str] | None = None) -> int:
    """Record what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(description="Record small trainings under watch.")
    parser.add_argument("--proxy", action="store_true", help="essential sparsity and reliance")
    parser.add_argument("--list", action="store_true", help="print the labels and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these runs")
    parser.add_argument("--again", action="store_true", help="also those that have a file")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th run")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(label_rows()))
        return 0
    runs = WITH_PROXY if args.proxy else RUNS
    unknown = set(args.only or ()) - {spec.name for spec in runs}
    if unknown:
        parser.error(f"Expected `--only` to name runs of --list, got {sorted(unknown)}.")
    index, number = (int(x) for x in args.part.split("/"))
    chosen = [spec for spec in runs if not args.only or spec.name in args.only]
    torch.set_num_threads(1)
    folder = PROXY_FOLDER if args.proxy else FOLDER
    failed = []
    for spec in chosen[index - 1 :: number]:
        if args.again or not (folder / f"{spec.name}.json").exists():
            failed += [] if _record(spec, with_proxy=args.proxy) else [spec.name]
    if not args.proxy:
        _label_again()
    if failed:
        print(f"Not recorded: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def label_rows() -> list[str]:
    """The labels of all recorded runs, as recorded/runs/README.md explains them."""
    rows = []
    for name, run in load().items():
        found, dormant = run["label"]["near_zero"][DECISIVE], run["label"]["dormant"] or {}
        cells: list[Any] = [run["label"]["known_step"], found["floor"], *found["steps"].values()]
        cells += [found["largest_ratio"], dormant.get("step"), dormant.get("largest")]
        cells.append(run["label"]["breakthrough"])
        shown = [f"{x:.3g}" if isinstance(x, float) else str(x or "-") for x in cells]
        rows.append([name, run["split"], run["label"]["kind"], *shown])
    head = ["run", "split", "kind", "at", "floor", "1.5 x", "2 x", "2.5 x", "ratio", "dormant"]
    return table([*head, "largest dormant", "breakthrough"], rows, left=3)


def _label_again() -> None:
    """Bring the labels of recorded runs up to the rules."""
    recorded = load()
    for spec in RUNS:
        run = recorded.get(spec.name)
        if run is not None:
            found = label(spec, run["steps"], run["series"])
            if found != run["label"]:
                write({**run, "label": found}, FOLDER / f"{spec.name}.json")


def _record(spec: RunSpec, *, with_proxy: bool) -> bool:
    """Record the run; False if its loss left the finite numbers."""
    from recording.recorder import record, record_with_proxy  # here: transformers takes seconds

    started = time.perf_counter()
    try:
        run = record_with_proxy(spec) if with_proxy else record(spec)
    except FloatingPointError as error:
        print(f"{spec.name}: {error}", file=sys.stderr)
        return False
    write(run, (PROXY_FOLDER if with_proxy else FOLDER) / f"{spec.name}.json")
    told = {key: x for key, x in run["label"].items() if key != "near_zero"}
    print(f"{spec.name:28s} {time.perf_counter() - started:4.0f} s  {told}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
