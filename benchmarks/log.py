"""What a log takes: bytes a snapshot against what the counts hold, and the time to open one.

python benchmarks/log.py [--small] [--save] [--repeats N] [--threads N] [--log LOGDIR ...]

The snapshot is one of a BERT-base of float32 N(0, 0.02) without a proxy. Entropy is that of its
counts if the density is known: of a Poisson number for each bin. A log of 2,000 snapshots
of 200 tensors, each evaluated at 19 levels, is opened as ``sparsitywatch summary`` does it; times
are processor times. ``--log`` asks logs of trainings whether an earlier spectrum tells a later one:
the correlation of the noise in the counts of two neighbouring snapshots.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from replaying.checkpoints import write_bert
from replaying.series import write_series
from reporting import Goal, goal_rows, machine, run

import sparsitywatch as sw
from sparsitywatch.analysis.digest import digest
from sparsitywatch.records import Detail, LayerColumns, Layers, RunInfo, SparsityCurve
from sparsitywatch.sinks.jsonl import JsonlSink, read_records, read_spectrum

Rows = tuple[list[str], list[Goal]]

SCALE = 0.02
NUM_SNAPSHOTS = 3
FIRST_KEY, LAST_KEY = 24_000, 32_600
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


def files_table(folder: Path, num_layers: int, repeats: int) -> Rows:
    """Bytes of each file for a snapshot of a replay, and the time to write and read a spectrum."""
    bert = write_bert(folder / "model.safetensors", num_layers)
    write_series(folder / "run", bert.path, NUM_SNAPSHOTS)
    sw.replay(folder / "run", logdir=folder / "log", on_event=[])
    log = folder / "log" / "sparsitywatch"
    plain = [read_spectrum(log, step) for step in range(NUM_SNAPSHOTS)]
    record = read_records(log)[0]
    sizes = {
        "records.jsonl": (log / "records.jsonl").stat().st_size,
        "layers.npys": (log / "layers.npys").stat().st_size,
        "spectra": sum(path.stat().st_size for path in (log / "spectra").iterdir()),
        "TensorBoard": sum(path.stat().st_size for path in log.glob("events.out.*")),
    }
    each = {name: size / NUM_SNAPSHOTS for name, size in sizes.items()}
    tensors = np.repeat(np.arange(len(plain[0]["num_bins"])), plain[0]["num_bins"])
    held = sum(map(entropy_bytes, np.bincount(tensors, plain[0]["counts"]).tolist()))
    deflated, arrays = io.BytesIO(), dict[str, Any](plain[0])
    np.savez_compressed(deflated, **arrays)
    lines = ["| a snapshot | kB |", "|---|---:|"]
    lines += [f"| {name} | {size / 1e3:,.1f} |" for name, size in each.items()]
    lines += [
        f"| entropy of the counts | {held / 1e3:,.1f} |",
        f"| the counts as numpy's savez_compressed has them | {deflated.tell() / 1e3:,.1f} |",
    ]
    sink = JsonlSink(folder / "again")
    sink.open(RunInfo(initial_step=0, provenance=record.provenance))
    bare, detail = replace(record, layers=()), Detail(spectrum=plain[0])
    lines += ["", "| a spectrum | processor time, ms |", "|---|---:|"]
    for name, call in (
        ("written", lambda: sink.write(bare, detail)),
        ("read", lambda: read_spectrum(log, 0)),
    ):
        lines.append(f"| {name} | {1e3 * processor_s(call, repeats):,.1f} |")
    sink.close()
    return lines, [
        Goal("spectrum against the entropy of its counts", 1.3, each["spectra"] / held),
        Goal("a snapshot", 120.0, sum(each.values()) / 1e3, unit=" kB"),
    ]


def write_long_log(directory: Path, num_snapshots: int, num_tensors: int) -> None:
    """A log as a watch writes it, of made-up numbers, but for the spectra."""
    draw = np.random.default_rng(0)
    levels = [0.0, *np.linspace(0.05, 0.95, 19).tolist(), 1.0]
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    template = sw.measure(model, scope="layers")
    names = tuple(f"encoder.layer.{i // 6}.block.{i % 6}.weight" for i in range(num_tensors))
    sink = JsonlSink(directory)
    sink.open(RunInfo(initial_step=0, provenance=template.provenance))
    for index in range(num_snapshots):
        columns = LayerColumns(
            names=names,
            num_weights=np.full(num_tensors, 1 << 20),
            rms=draw.random(num_tensors),
            near_zero={rule: draw.random(num_tensors) for rule in template.near_zero},
            removed=draw.random((len(levels), num_tensors)),
            dormant=draw.random(num_tensors),
        )
        value = draw.random(len(levels)).tolist()
        curve = SparsityCurve(sparsity=levels, value=value, stderr=value, level=levels)
        record = replace(template, step=500 * index, curve=curve, layers=Layers(columns))
        sink.write(record, Detail())
    sink.close()


def opening_table(folder: Path, num_snapshots: int, num_tensors: int, repeats: int) -> Rows:
    """Processor time to open a log, as ``sw.load`` and ``summary`` do, and with every layer."""
    write_long_log(folder / "long", num_snapshots, num_tensors)

    def layers() -> None:
        for record in sw.load(folder / "long").records:
            len(record.layers)

    cases: dict[str, Callable[[], object]] = {
        "records": lambda: sw.load(folder / "long").records,
        "records, and summary": lambda: digest(sw.load(folder / "long")),
        "records, and their layers as columns": layers,
    }
    times = {name: processor_s(call, min(repeats, 3)) for name, call in cases.items()}
    head = f"| {num_snapshots:,} snapshots of {num_tensors} tensors | processor time, s |"
    lines = [head, "|---|---:|", *(f"| {name} | {s:.2f} |" for name, s in times.items())]
    return lines, [Goal("summary of a long log", 1.0, times["records, and summary"], unit=" s")]


def noise_table(logs: Sequence[Path]) -> list[str]:
    """Whether the noise in the counts of a snapshot tells that of the next one."""
    lines = ["", "| log | snapshots | correlation of the noise, median | largest |"]
    lines.append("|---|---|---:|---:|")
    for log in logs:
        steps = sw.load(log).steps.tolist()
        pairs = list(pairwise(steps))
        some = pairs[:: max(len(pairs) // 20, 1)]
        found = [abs(_correlation(log / "sparsitywatch", *pair)) for pair in some]
        every = pairs[0][1] - pairs[0][0]
        numbers = f"{statistics.median(found):.3f} | {max(found):.3f}"
        lines.append(f"| {log.name} | {len(steps)}, every {every} steps | {numbers} |")
    return lines


def _correlation(directory: Path, step: int, following: int) -> float:
    """Of what two spectra have beyond the mean of nine bins, in standard deviations."""
    noise, is_full = [], []
    for counts in (_dense(directory, step), _dense(directory, following)):
        mean = np.apply_along_axis(np.convolve, 1, counts, np.full(9, 1.0 / 9.0), "same")
        is_full.append(mean > 4.0)
        noise.append((counts - mean) / np.sqrt(np.maximum(mean, 1.0)))
    place = (
        np.arange(FIRST_KEY - 1, LAST_KEY - 1) % 256
    )  # within an octave, at whose ends bins widen
    both = is_full[0] & is_full[1] & (place >= 4) & (place < 252)
    return float(np.corrcoef(noise[0][both], noise[1][both])[0, 1])


def _dense(directory: Path, step: int) -> np.ndarray:
    """Counts by tensor and bin of a float32 spectrum, from some 1e-10 to 1."""
    arrays = read_spectrum(directory, step)
    tensors = np.repeat(np.arange(len(arrays["num_bins"])), arrays["num_bins"])
    counts = np.zeros((len(arrays["num_bins"]), 65_536))
    counts[tensors, arrays["keys"]] = arrays["counts"]
    return counts[:, FIRST_KEY:LAST_KEY]


def whole_report(arguments: argparse.Namespace) -> str:
    """All tables, in Markdown."""
    num_layers, shape = (2, (200, 50)) if arguments.small else (12, (2_000, 200))
    with tempfile.TemporaryDirectory() as place:
        tables = [
            files_table(Path(place), num_layers, arguments.repeats),
            opening_table(Path(place), *shape, arguments.repeats),
        ]
    lines = [f"# A log, BERT of {num_layers} layers", "", machine(arguments.threads)]
    lines += [line for table, _ in tables for line in ["", *table]]
    lines += noise_table(arguments.log) if arguments.log else []
    return "\n".join([*lines, "", *goal_rows([g for _, goals in tables for g in goals])]) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Logs to look into."""
    parser.add_argument("--log", metavar="LOGDIR", type=Path, nargs="*", help="of a training")


if __name__ == "__main__":
    run("log", (__doc__ or "").splitlines()[0], whole_report, add_arguments)
