"""Record small trainings under watch, for judging detectors on.

python benchmarks/record_runs.py NAME ... [--proxy]
python benchmarks/record_runs.py --list

trains the runs of these names again, as their files in ``recorded/runs/`` say (all of them without
a name), a minute or two each; ``--proxy`` with a proxy, into ``recorded/proxy/``. Then all are
labelled by the rules as they are now.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from recording.catalog import FOLDER, PROXY_FOLDER, RunSpec, label, load, spec_of, write
from recording.labels import DECISIVE
from reporting import table


def main() -> int:
    """Record what is named; returns the exit status."""
    parser = argparse.ArgumentParser(description="Record small trainings under watch.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of runs; by default all")
    parser.add_argument("--proxy", action="store_true", help="essential sparsity and reliance")
    parser.add_argument("--list", action="store_true", help="print the labels and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(label_rows()))
        return 0
    specs = {name: spec_of(run) for name, run in load().items()}
    unknown = set(args.names) - specs.keys()
    if unknown:
        parser.error(f"Expected names of runs in {FOLDER}, got {sorted(unknown)}.")
    torch.set_num_threads(1)
    names = args.names or list(load(PROXY_FOLDER) if args.proxy else specs)
    failed = [name for name in names if not _record(specs[name], with_proxy=args.proxy)]
    for name, run in load().items():
        found = label(specs[name], run["steps"], run["series"])
        if found != run["label"]:
            write({**run, "label": found}, FOLDER / f"{name}.json")
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
