"""What reading checkpoints costs: time, memory, and bytes from a remote storage.

python benchmarks/replay.py [--small] [--save] [--repeats N] [--threads N]

The checkpoints are a BERT-base of float32 N(0, 0.02), each in one file of safetensors, in the page
cache; from one to the next every weight moves. A snapshot is what a record says of one checkpoint
without a model: its description read and checked, the spectrum, near-zero fractions of the whole
and of each tensor, histograms of log10|w|. A replay of eight is all of that, the comparison of a
million weights with the snapshot before, events, and everything that it writes. They stand beside
reading each byte of the files once, in order, by one thread into one buffer. Workers are four,
they run already, and each snapshot of theirs has one thread.

Times are medians of interleaved repeats, with the compiled counter and without. Memory is the peak
of a process of its own above that of ``import torch``; what the library and numba load is in it.
Bytes from s3 are counted by the server, moto's over HTTP.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from replaying.checkpoints import Written, write_bert, write_sharded, write_training
from replaying.looks import look, read_in_order
from replaying.memory import growth_bytes
from replaying.s3 import serving
from replaying.series import NUM_WORKERS, executors, replayed, write_series
from replaying.weightwatcher import analysis_s, is_installed
from reporting import Goal, goal_rows, machine, medians_s, run, timed
from spectrum import WAYS, in_way

from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.records import Cost, Record
from sparsitywatch.records.codec import to_json
from sparsitywatch.weights.scope import Scope

MIB = 2**20
#: Layers, width and vocabulary of the sharded decoder: a billion weights, or ninety million.
LARGE, SMALL = (19, 2048, 32_000), (2, 1024, 32_000)

Rows = tuple[list[str], list[Goal]]


def times_table(bert: Written, repeats: int) -> Rows:
    """One snapshot against one read of the file."""
    cases: dict[str, Callable[[], object]] = {"read": lambda: read_in_order(bert.path)}
    for way in WAYS:
        cases[way] = in_way(way, lambda: look(bert.path))
    times = medians_s(cases, repeats)
    names = {"read": f"each of {bert.num_bytes / MIB:,.0f} MiB read once, in order"}
    names |= {way: f"one snapshot without a model, {way}" for way in WAYS}
    lines = ["| case | time, ms | against a read |", "|---|---:|---:|"]
    for case, name in names.items():
        lines.append(f"| {name} | {1e3 * times[case]:,.1f} | {times[case] / times['read']:.2f} |")
    goals = [
        Goal(f"a snapshot against a read, {way}", 3.0, times[way] / times["read"]) for way in WAYS
    ]
    return lines, goals


def series_table(folder: Path, repeats: int) -> Rows:
    """A replay of some checkpoints against a read of each of them."""
    checkpoints = sorted(folder.iterdir())
    cases: dict[str, Callable[[], object]] = {
        "read": lambda: [read_in_order(checkpoint) for checkpoint in checkpoints]
    }
    for way in WAYS:
        cases[way] = in_way(way, lambda: replayed(folder))
    times = medians_s(cases, repeats)
    names = {"read": f"{len(checkpoints)} checkpoints read once, in order"}
    names |= {way: f"their replay without a model, {way}" for way in WAYS}
    lines = ["| case | time a checkpoint, ms | against a read |", "|---|---:|---:|"]
    for case, name in names.items():
        one = times[case] / len(checkpoints)
        lines.append(f"| {name} | {1e3 * one:,.1f} | {times[case] / times['read']:.2f} |")
    goals = [
        Goal(f"a replay against a read, {way}", 3.0, times[way] / times["read"]) for way in WAYS
    ]
    return lines, goals


def workers_table(folder: Path, repeats: int) -> Rows:
    """Workers against none, one kind after the other: those that wait are not quite idle."""
    num_checkpoints = len(list(folder.iterdir()))
    lines = ["| workers | time a checkpoint, ms | by none |", "|---|---:|---:|"]
    goals = []
    records = told(replayed(folder))
    for name, make in executors().items():
        with make() as executor:
            assert told(replayed(folder, executor)) == records
            cases: dict[str, Callable[[], object]] = {
                "none": partial(replayed, folder),
                "some": partial(replayed, folder, executor),
            }
            times = medians_s(cases, repeats)
        cells = [f"{1e3 * times[case] / num_checkpoints:,.1f}" for case in ("some", "none")]
        lines.append(f"| {NUM_WORKERS}, {name} | {cells[0]} | {cells[1]} |")
        goals.append(Goal(f"{name} against none", 1.0, times["some"] / times["none"]))
    return lines, goals


def told(records: Sequence[Record]) -> list[str]:
    """What records say, but for when they were made and what that cost."""
    free = Cost(stall_s=0.0, spectrum_s=0.0, evaluation_s=0.0, num_forwards=0)
    return [to_json(replace(record, wall_time=0.0, cost=free)) for record in records]


def memory_table(bert: Written, sharded: Written, num_threads: int) -> Rows:
    """Peak memory of a replay of one checkpoint."""
    lines = ["| memory, MiB | file | largest tensor | peak above torch |", "|---|---:|---:|---:|"]
    goals = []
    for name, written in (("float32", bert), ("sharded bfloat16", sharded)):
        for way in WAYS:
            growth = growth_bytes(written.path, num_threads, way)
            sizes = (written.num_bytes, written.largest_bytes, growth)
            cells = " | ".join(f"{size / MIB:,.0f}" for size in sizes)
            lines.append(f"| {name}, {written.num_weights:,} weights, {way} | {cells} |")
            largest = growth / written.largest_bytes
            goals.append(Goal(f"peak against the largest tensor, {name}, {way}", 4.0, largest))
            if written is sharded:
                goals.append(Goal(f"peak, {name}, {way}", 1024.0, growth / MIB, unit=" MiB"))
    return lines, goals


def s3_table(folder: Path, num_layers: int) -> Rows:
    """Bytes that the server gave away for a replay of one checkpoint."""
    lines = ["| s3, MB | stored | in scope | fetched | requests |", "|---|---:|---:|---:|---:|"]
    goals = []
    kinds = ("checkpoint-1, safetensors beside an optimizer", "ckpt.pt, an optimizer in one file")
    with serving() as server:
        saved = write_training(folder / "checkpoint-1", num_layers)
        for name, written in zip(kinds, saved, strict=True):
            url = server.put(written.path, written.path.name)
            bytes_before, requests_before = server.num_bytes, server.num_requests
            (record,) = replayed(url, options=server.options)
            wanted = 4 * record.scope.num_weights
            fetched = server.num_bytes - bytes_before
            stored = 3 * written.num_bytes  # Adam's moments, too
            cells = " | ".join(f"{size / 1e6:,.1f}" for size in (stored, wanted, fetched))
            lines.append(f"| {name} | {cells} | {server.num_requests - requests_before} |")
            goals.append(
                Goal(f"bytes from s3 against those in scope, {name}", 1.1, fetched / wanted)
            )
    return lines, goals


def other_table(bert: Written) -> list[str]:
    """WeightWatcher beside a snapshot."""
    head = ["| another tool on the same matrices | time, s |", "|---|---:|"]
    if not is_installed():
        return [*head, "| WeightWatcher, analyze() | not installed: pip install weightwatcher |"]
    with open_checkpoint(bert.path) as checkpoint:
        scope = Scope.of_entries(checkpoint.entries())
    theirs, ours = analysis_s(bert.path, frozenset(scope.names)), timed(lambda: look(bert.path))
    name = f"WeightWatcher {version('weightwatcher')}, analyze(), weights in memory"
    return [
        *head,
        f"| {name} | {theirs:,.1f} |",
        f"| a snapshot, from the file | {ours:,.3f} |",
    ]


def whole_report(arguments: argparse.Namespace) -> str:
    """All tables, in Markdown."""
    num_layers, decoder = (2, SMALL) if arguments.small else (12, LARGE)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bert = write_bert(folder / "model.safetensors", num_layers)
        tables = [times_table(bert, arguments.repeats)]
        write_series(folder / "run", bert.path, 4 if arguments.small else 8)
        few = max(arguments.repeats // 3, 1)
        tables.append(series_table(folder / "run", few))
        tables.append(workers_table(folder / "run", few))
        sharded = write_sharded(folder / "sharded", *decoder)
        tables.append(memory_table(bert, sharded, arguments.threads))
        tables.append(s3_table(folder, min(num_layers, 4)))
        other = other_table(bert)
    goals = [goal for _, found in tables for goal in found]
    lines = [
        f"# Reading a checkpoint, BERT of {num_layers} layers",
        "",
        machine(arguments.threads),
        *(line for table, _ in tables for line in ["", *table]),
        "",
        *other,
        "",
        *goal_rows(goals),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run("replay", (__doc__ or "").splitlines()[0], whole_report)
