"""What watching on several ranks costs, beside one.

python benchmarks/ranks.py [--small] [--save] [--model]

Two processes by gloo on loopback, one thread each, and four for the attach: the ratios carry over,
the times do not. The bytes are those that a rank gives to the collectives that add up the spectrum
of a BERT in shards of FSDP2. A curve is a default sweep over four batches of 8 x 64 tokens, by rank
0 alone and by both, in turns. A snapshot in shards stands beside its own forward passes, which
gather the weights. Replicas are two whole BERTs; marks are what each rank computes of its weights,
and the comparison is what is then exchanged. Times are of the slowest rank, by the wall and by
the processor, which is steadier where others use the machine: medians, but of the curve and of the
attach the shortest, since each process needs a core for it.

``--model`` only prints what follows for large models, as docs/reports/scaling.md shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ranking.scaling import expected_bins, model_table
from reporting import HERE, Goal, Part, run, shared_with_tests, table

Found = dict[str, Any]
SCRIPT = HERE / "ranking" / "measured.py"
IMPORTS = "overhead,torch.distributed.fsdp"


def measured_on(num_ranks: int, part: str, *, small: bool, limit_s: float = 300.0) -> Any:
    """What rank 0 found of a part of ranking/measured.py, one thread a rank.

    Raises:
        RuntimeError: a rank failed, or took longer.
    """
    forked = shared_with_tests("forked").forked
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        status, said = forked(
            SCRIPT, part, str(found), str(int(small)), num_ranks=num_ranks, imports=IMPORTS,
            path=os.pathsep.join([str(HERE), str(HERE.parent)]), limit_s=limit_s,
        )  # fmt: skip
        if status:
            raise RuntimeError(f"{num_ranks} ranks could not measure {part!r}: {said[-3000:]}")
        return json.loads(found.read_text())


def bytes_rows(spectra: list[Found]) -> list[str]:
    """What the spectrum moves, by size of the model."""
    rows = []
    for found in spectra:
        share = 100 * found["bytes"] / found["weight_bytes"]
        foreseen = sum(map(expected_bins, found["sizes"]))
        numbers = (sum(found["sizes"]), len(found["sizes"]), found["bins"], foreseen)
        cells = [f"{number:,.0f}" for number in (*numbers, found["bytes"] / 1e3)]
        rows.append([f"{found['layers']} x {found['hidden']}", *cells, f"{share:.2f} %"])
    head = ["layers x width", "weights", "matrices", "occupied bins", "foreseen", "given, kB"]
    return table([*head, "share"], rows)


def times_rows(pair: Found, attach: Found) -> list[str]:
    """Every time that was taken."""
    largest, look = pair["spectra"][-1], pair["look"]
    replicas, curve = pair["replicas"], pair["curve"]
    passes = look["forwards"] // 2
    times = {
        "counting half of the weights, in shards": largest["count_s"],
        "adding up their spectrum": largest["sum_s"],
        "counting all weights of a replica": replicas["count_s"],
        "its marks": replicas["marks_s"],
        "comparing the marks": replicas["compare_s"],
        "adding up its spectrum, which is only done where replicas differ": replicas["sum_s"],
        f"a curve of {curve['forwards']} forward passes, on 1 rank": curve["alone_s"],
        "the same on 2 ranks": curve["shared_s"],
        f"a snapshot in shards: {passes} forward passes a rank": look["forwards_s"],
        "the same snapshot, all the rest": look["beside_s"],
        "attaching on 1 rank": attach["alone_s"],
        f"attaching on {attach['ranks']} ranks": attach["together_s"],
    }
    rows = [[what, *(f"{1e3 * seconds:,.1f}" for seconds in both)] for what, both in times.items()]
    return table(["case", "wall, ms", "processor, ms"], rows)


def goals(pair: Found, attach: Found) -> list[Goal]:
    """What is to be reached."""
    largest, replicas, look = pair["spectra"][-1], pair["replicas"], pair["look"]
    shares = [100 * s["bytes"] / s["weight_bytes"] for s in pair["spectra"]]
    check_s = replicas["marks_s"][1] + replicas["compare_s"][1]
    beside = [100 * b / f for b, f in zip(look["beside_s"], look["forwards_s"], strict=True)]
    alone, shared = pair["curve"]["alone_s"], pair["curve"]["shared_s"]
    wall, cpu = (two / one for one, two in zip(alone, shared, strict=True))
    given = 100 * replicas["bytes"] / largest["bytes"]
    longer_s = attach["together_s"][0] - attach["alone_s"][0]
    return [
        Goal("bytes for the spectrum, of the weights' bytes", 1.0, shares[-1], unit=" %"),
        Goal("the same, against the model a size smaller", 1.0, shares[-1] / shares[-2]),
        Goal("a DDP curve on 2 ranks against 1, wall time", 0.6, wall),
        Goal("the same, processor time", 0.6, cpu),
        Goal("an FSDP2 snapshot beyond its forward passes, wall time", 20.0, beside[0], unit=" %"),
        Goal("the same, processor time", 20.0, beside[1], unit=" %"),
        Goal("replicas compared, bytes, of the spectrum's all-reduce", 5.0, given, unit=" %"),
        Goal("the same, processor time", 5.0, 100 * check_s / replicas["sum_s"][1], unit=" %"),
        Goal(f"attaching on {attach['ranks']} ranks, longer than on 1", 2.0, longer_s, unit=" s"),
    ]


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """All that two and four processes measure, or the model alone."""
    if arguments.model:
        return "A snapshot on many devices, by the model", [(model_table(), [])]
    pair = measured_on(2, "pair", small=arguments.small)
    attach = measured_on(4, "attach", small=arguments.small)
    loads = (
        f"Load {pair['load']:.1f} with the two processes, {attach['load']:.1f} with the four. "
        f"Batches of {pair['tokens']} tokens."
    )
    lines = [loads, "", *bytes_rows(pair["spectra"]), *times_rows(pair, attach)]
    return "A watch on several ranks", [(lines, goals(pair, attach))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """That it has beside those of every benchmark."""
    parser.add_argument("--model", action="store_true", help="only what follows for large models")


if __name__ == "__main__":
    run("ranks", __doc__ or "", measure, add_arguments)
