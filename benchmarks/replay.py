"""What reading checkpoints costs: time and memory.

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
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from replaying.checkpoints import Written, write_bert, write_series, write_sharded
from replaying.replays import (
    NUM_WORKERS,
    executors,
    growth_bytes,
    look,
    read_in_order,
    replayed,
)  # fmt: skip
from reporting import Goal, Part, medians_s, run, table
from spectrum import WAYS, in_way

from sparsitywatch.records import Cost, Record
from sparsitywatch.records.codec import to_json

MIB = 2**20
#: Layers, width and vocabulary of the sharded decoder: a billion weights, or ninety million.
LARGE, SMALL = (19, 2048, 32_000), (2, 1024, 32_000)


def against_a_read(
    what: str, names: dict[str, str], cases: dict[str, Callable[[], object]], of: int, repeats: int
) -> Part:
    """Each way to count against one read of the files, both of so many checkpoints."""
    in_ways = {way: in_way(way, cases["ours"]) for way in WAYS}
    times = medians_s({"read": cases["read"], **in_ways}, repeats)
    rows = [
        [names["read"] if case == "read" else f"{names['ours']}, {case}",
         f"{1e3 * seconds / of:,.1f}", f"{seconds / times['read']:.2f}"]
        for case, seconds in times.items()
    ]  # fmt: skip
    goals = [Goal(f"{what} against a read, {w}", 3.0, times[w] / times["read"]) for w in WAYS]
    return table(["case", "time a checkpoint, ms", "against a read"], rows), goals


def look_part(bert: Written, repeats: int) -> Part:
    """One snapshot against one read of the file."""
    names = {
        "read": f"each of {bert.num_bytes / MIB:,.0f} MiB read once, in order",
        "ours": "one snapshot without a model",
    }
    cases: dict[str, Callable[[], object]] = {
        "read": lambda: read_in_order(bert.path),
        "ours": lambda: look(bert.path),
    }
    return against_a_read("a snapshot", names, cases, 1, repeats)


def series_part(folder: Path, repeats: int) -> Part:
    """A replay of some checkpoints against a read of each of them."""
    checkpoints = sorted(folder.iterdir())
    names = {
        "read": f"{len(checkpoints)} checkpoints read once, in order",
        "ours": "their replay without a model",
    }
    cases: dict[str, Callable[[], object]] = {
        "read": lambda: [read_in_order(checkpoint) for checkpoint in checkpoints],
        "ours": lambda: replayed(folder),
    }
    return against_a_read("a replay", names, cases, len(checkpoints), repeats)


def workers_part(folder: Path, repeats: int) -> Part:
    """Workers against none, one kind after the other: those that wait are not quite idle."""
    num_checkpoints = len(list(folder.iterdir()))
    rows, goals = [], []
    records = told(replayed(folder))
    for name, make in executors().items():
        with make() as executor:
            assert told(replayed(folder, executor)) == records
            some, none = partial(replayed, folder, executor), partial(replayed, folder)
            times = medians_s({"some": some, "none": none}, repeats)
        cells = [f"{1e3 * seconds / num_checkpoints:,.1f}" for seconds in times.values()]
        rows.append([f"{NUM_WORKERS}, {name}", *cells])
        goals.append(Goal(f"{name} against none", 1.0, times["some"] / times["none"]))
    return table(["workers", "time a checkpoint, ms", "by none"], rows), goals


def told(records: Sequence[Record]) -> list[str]:
    """What records say, but for when they were made and what that cost."""
    free = Cost(stall_s=0.0, spectrum_s=0.0, evaluation_s=0.0, num_forwards=0)
    return [to_json(replace(record, wall_time=0.0, cost=free)) for record in records]


def memory_part(bert: Written, sharded: Written, num_threads: int) -> Part:
    """Peak memory of a replay of one checkpoint."""
    rows, goals = [], []
    for name, written in (("float32", bert), ("sharded bfloat16", sharded)):
        for way in WAYS:
            growth = growth_bytes(written.path, num_threads, way)
            sizes = (written.num_bytes, written.largest_bytes, growth)
            cells = [f"{size / MIB:,.0f}" for size in sizes]
            rows.append([f"{name}, {written.num_weights:,} weights, {way}", *cells])
            largest = growth / written.largest_bytes
            goals.append(Goal(f"peak against the largest tensor, {name}, {way}", 4.0, largest))
            if written is sharded:
                goals.append(Goal(f"peak, {name}, {way}", 1024.0, growth / MIB, unit=" MiB"))
    return table(["memory, MiB", "file", "largest tensor", "peak above torch"], rows), goals


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """All of it."""
    num_layers, decoder = (2, SMALL) if arguments.small else (12, LARGE)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bert = write_bert(folder / "model.safetensors", num_layers)
        write_series(folder / "run", bert.path, 4 if arguments.small else 8)
        few = max(arguments.repeats // 3, 1)
        sharded = write_sharded(folder / "sharded", *decoder)
        return f"Reading a checkpoint, BERT of {num_layers} layers", [
            look_part(bert, arguments.repeats),
            series_part(folder / "run", few),
            workers_part(folder / "run", few),
            memory_part(bert, sharded, arguments.threads),
        ]


if __name__ == "__main__":
    run("replay", __doc__, measure)
