"""What a log takes: bytes a snapshot against what the counts hold, and the time to open one.

python benchmarks/log.py [--small] [--save] [--repeats N] [--threads N]

The snapshot is one of a BERT-base of float32 N(0, 0.02) without a proxy. Entropy is that of its
counts if the density is known: of a Poisson number for each bin. A log of 2,000 snapshots
of 200 tensors, each evaluated at 19 levels, is opened as ``sparsitywatch summary`` does it; times
are processor times.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from replaying.checkpoints import write_bert, write_series
from reporting import Goal, Part, run, shared_with_tests, table

import sparsitywatch as sw
from sparsitywatch.analysis.digest import digest
from sparsitywatch.records import Detail, RunInfo
from sparsitywatch.sinks.jsonl import JsonlSink, read_records, read_spectrum

SCALE = 0.02
NUM_SNAPSHOTS = 3
#: A bin of float32 keeps so many bits of a magnitude less than the dtype has.
SHIFT = 15


def processor_s(call: Callable[[], object], repeats: int) -> float:
    """Least processor time of some calls, seconds."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def entropy_bytes(num_weights: int) -> float:
    """What the counts of normal float32 weights hold, if their density is known.

    Of a Poisson number in its normal limit, or term by term where few are expected.
    """
    edges = (np.arange(65_000, dtype=np.uint32) << SHIFT).view(np.float32).astype(np.float64)
    edges = edges[edges < 12 * SCALE]
    below = np.array([math.erf(x / SCALE / math.sqrt(2.0)) for x in edges])
    mean = num_weights * np.diff(below)
    mean = mean[mean > 1e-12]
    bits = 0.5 * np.log2(2.0 * math.pi * math.e * mean)
    few = mean < 100.0
    k = np.arange(250)
    log_factorials = np.array([math.lgamma(x + 1.0) for x in k])
    log_p = k * np.log(mean[few][:, None]) - mean[few][:, None] - log_factorials
    bits[few] = -(np.exp(log_p) * log_p).sum(axis=1) / math.log(2.0)
    return float(bits.sum()) / 8.0


def files_part(folder: Path, num_layers: int, repeats: int) -> Part:
    """Bytes of each file for a snapshot of a replay, and the time to write and read a spectrum."""
    bert = write_bert(folder / "model.safetensors", num_layers)
    write_series(folder / "run", bert.path, NUM_SNAPSHOTS)
    sw.replay(folder / "run", logdir=folder / "log", on_event=[])
    log = folder / "log" / "sparsitywatch"
    plain = read_spectrum(log, 0)
    record = read_records(log)[0]
    sizes = {
        "records.jsonl": (log / "records.jsonl").stat().st_size,
        "layers.npys": (log / "layers.npys").stat().st_size,
        "spectra": sum(path.stat().st_size for path in (log / "spectra").iterdir()),
        "TensorBoard": sum(path.stat().st_size for path in log.glob("events.out.*")),
    }
    each = {name: size / NUM_SNAPSHOTS for name, size in sizes.items()}
    tensors = np.repeat(np.arange(len(plain["num_bins"])), plain["num_bins"])
    held = sum(map(entropy_bytes, np.bincount(tensors, plain["counts"]).tolist()))
    shown = each | {"entropy of the counts": held}
    sink = JsonlSink(folder / "again")
    sink.open(RunInfo(initial_step=0, provenance=record.provenance))
    bare, detail = replace(record, layers=()), Detail(spectrum=plain)
    calls: dict[str, Callable[[], object]] = {
        "written": lambda: sink.write(bare, detail),
        "read": lambda: read_spectrum(log, 0),
    }
    times = [[name, f"{1e3 * processor_s(call, repeats):,.1f}"] for name, call in calls.items()]
    sink.close()
    lines = table(["a snapshot", "kB"], [[name, f"{b / 1e3:,.1f}"] for name, b in shown.items()])
    lines += table(["a spectrum", "processor time, ms"], times)
    return lines, [
        Goal("spectrum against the entropy of its counts", 1.3, each["spectra"] / held),
        Goal("a snapshot", 120.0, sum(each.values()) / 1e3, unit=" kB"),
    ]


def opening_part(folder: Path, num_snapshots: int, num_tensors: int, repeats: int) -> Part:
    """Processor time to open a log, as ``sw.load`` and ``summary`` do, and with every layer."""
    fake_run = shared_with_tests("fake_run")
    log = fake_run.write_long_run(folder / "long", num_snapshots, num_tensors)

    def layers() -> None:
        for record in sw.load(log).records:
            len(record.layers)

    calls: dict[str, Callable[[], object]] = {
        "records": lambda: sw.load(log).records,
        "records, and summary": lambda: digest(sw.load(log)),
        "records, and their layers as columns": layers,
    }
    times = {name: processor_s(call, min(repeats, 3)) for name, call in calls.items()}
    head = [f"{num_snapshots:,} snapshots of {num_tensors} tensors", "processor time, s"]
    goal = Goal("summary of a long log", 1.0, times["records, and summary"], unit=" s")
    return table(head, [[name, f"{s:.2f}"] for name, s in times.items()]), [goal]


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """Both of it."""
    num_layers, shape = (2, (200, 50)) if arguments.small else (12, (2_000, 200))
    with tempfile.TemporaryDirectory() as place:
        return f"A log, BERT of {num_layers} layers", [
            files_part(Path(place), num_layers, arguments.repeats),
            opening_part(Path(place), *shape, arguments.repeats),
        ]


if __name__ == "__main__":
    run("log", __doc__, measure)
