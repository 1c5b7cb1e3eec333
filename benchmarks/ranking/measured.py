"""What ranks measure together; each process runs this file as ``ranks.py`` starts it.

Before each time that is taken the ranks meet, so that none pays for another that comes late.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from overhead import batch_of, bert, loss_per_example
from reporting import timed
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import sparsitywatch as sw
from sparsitywatch.evaluation.masked import MaskedModel, run_sweep
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.group import RankGroup
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader, marks_of
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

Found = dict[str, Any]

#: Models whose spectrum is summed, layers and width; the last one is BERT-base.
SIZES = ((4, 256), (8, 512), (12, 768))
#: Words of the models that are evaluated: few, so that little but the in-scope weights takes time.
VOCABULARY = 1000
#: Sequences of a batch, and their length.
TOKENS = (8, 64)


def together_s(ranks: RankGroup, run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the slowest rank, by the wall and by the processor."""
    ranks.agree("begin")
    started = time.process_time()
    wall = timed(run)
    every = ranks.gather((wall, time.process_time() - started))
    return max(wall for wall, _ in every), max(cpu for _, cpu in every)


def interleaved(ranks: RankGroup, cases: Mapping[str, Callable[[], object]], repeats: int) -> Found:
    """Medians of each case, so that a busy moment hits all of them alike."""
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            times[name].append(together_s(ranks, case))
    return {f"{name}_s": medians(found) for name, found in times.items()}


def medians(times: Sequence[tuple[float, ...]]) -> list[float]:
    """Of each column."""
    return [statistics.median(column) for column in zip(*times, strict=True)]


def shortest(times: Sequence[tuple[float, ...]]) -> list[float]:
    """Of each column: for what needs all cores of a machine that others use, too."""
    return [min(column) for column in zip(*times, strict=True)]


def sharded(model: nn.Module) -> nn.Module:
    """The model, each block of it in shards of FSDP2."""
    for layer in model.bert.encoder.layer:  # type: ignore[union-attr]
        fully_shard(layer)
    fully_shard(model)
    return model


def spectrum_of(ranks: RankGroup, size: tuple[int, int], repeats: int) -> Found:
    """What adding up the spectrum of a model in shards of FSDP2 moves, and takes."""
    model = sharded(bert(*size, VOCABULARY))
    scope = Scope.of(model, "blocks")
    parameters = scope.parameters(model)
    reader = ShardedReader.of(parameters, ranks)
    snapshot = Snapshot.of(model, scope, 0)
    spectrum = MagnitudeSpectrum.of(snapshot.tensors)
    before = ranks.num_bytes
    whole = reader.summed(spectrum)
    num_bytes = ranks.num_bytes - before
    cases = {
        "count": lambda: MagnitudeSpectrum.of(snapshot.tensors),
        "sum": lambda: reader.summed(spectrum),
    }
    return {
        "layers": size[0],
        "hidden": size[1],
        "sizes": [p.numel() for p in parameters.values()],
        "weight_bytes": sum(p.numel() * p.element_size() for p in parameters.values()),
        "bins": sum(len(whole.histograms[name].keys) for name in whole.names),
        "bytes": num_bytes,
    } | interleaved(ranks, cases, repeats)


def replicas(ranks: RankGroup, size: tuple[int, int], repeats: int) -> Found:
    """What comparing two replicas moves and takes, beside adding up their spectrum."""
    model = bert(*size, VOCABULARY)
    scope = Scope.of(model, "blocks")
    reader = ShardedReader.of(scope.parameters(model), ranks)
    snapshot = Snapshot.of(model, scope, 0)
    spectrum = MagnitudeSpectrum.of(snapshot.tensors)
    before = ranks.num_bytes
    assert reader.compared(marks_of(spectrum, snapshot)) is not None
    num_bytes = ranks.num_bytes - before
    marks = marks_of(spectrum, snapshot)
    cases = {
        "count": lambda: MagnitudeSpectrum.of(snapshot.tensors),
        "marks": lambda: marks_of(spectrum, snapshot),
        "compare": lambda: reader.compared(marks),
        "sum": lambda: reader.summed(spectrum),
    }
    return {"bytes": num_bytes} | interleaved(ranks, cases, repeats)


def curve(ranks: RankGroup, size: tuple[int, int], repeats: int) -> Found:
    """A curve of a replica, by rank 0 alone and by all of them."""
    model = bert(*size, VOCABULARY).eval()
    scope = Scope.of(model, "blocks")
    reader = ShardedReader.of(scope.parameters(model), ranks)
    spectrum = MagnitudeSpectrum.of(Snapshot.of(model, scope, 0).tensors)
    batches = [batch_of(*TOKENS, VOCABULARY)] * (2 * ranks.size)
    alone = Proxy(batches, loss_per_example)
    shared = alone.shared(ranks)
    settings = sw.Settings()
    num_forwards = []

    def sweep(proxy: Proxy) -> None:
        done = run_sweep(
            MaskedModel(model, scope, reader if proxy is shared else WHOLE_MODEL),
            proxy,
            spectrum,
            pattern=settings.pattern,
            sweep=settings.effective_sweep,
            allowed=lambda dense: settings.tolerance * dense,
        )
        num_forwards.append(done.num_forwards)

    times: dict[str, list[tuple[float, ...]]] = {"alone": [], "shared": []}
    with torch.no_grad():
        for _ in range(repeats):
            for name, proxy in (("alone", alone), ("shared", shared)):
                is_mine = proxy is shared or ranks.rank == 0
                times[name].append(together_s(ranks, partial(sweep, proxy) if is_mine else int))
    return {
        "forwards": num_forwards[0],
        **{f"{name}_s": shortest(found) for name, found in times.items()},
    }


def look(ranks: RankGroup, size: tuple[int, int], repeats: int) -> Found:
    """A snapshot of a model in shards of FSDP2: its forward passes, and all the rest."""
    model = sharded(bert(*size, VOCABULARY))
    spent = [0.0, 0.0]

    def value(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        start, cpu = time.perf_counter(), time.process_time()
        losses = loss_per_example(model, batch)
        spent[0] += time.perf_counter() - start
        spent[1] += time.process_time() - cpu
        return losses

    proxy = sw.Proxy([batch_of(*TOKENS, VOCABULARY)] * ranks.size, value)
    times = []
    with (
        tempfile.TemporaryDirectory() as folder,
        sw.watch(
            model,
            None,
            proxy=proxy,
            logdir=Path(ranks.of_first(folder)),
            every=1,
            max_overhead=None,
            background=False,
        ) as watcher,  # fmt: skip
    ):
        for _ in range(repeats + 1):
            spent[:] = 0.0, 0.0
            wall, cpu = together_s(ranks, watcher.step)
            forwards = ranks.gather(tuple(spent))
            own = [max(column) for column in zip(*forwards, strict=True)]
            times.append((own[0], wall - own[0], own[1], cpu - own[1]))
        records = watcher.records
    assert all(record.valid for record in records), records[-1].reason
    found = medians(times[1:])
    return {
        "forwards": records[-1].cost.num_forwards,
        "forwards_s": found[::2],
        "beside_s": found[1::2],
    }


def pair(*, small: bool) -> Found:
    """All that two ranks measure."""
    ranks = met()
    repeats = 3 if small else 9
    return {
        "spectra": [spectrum_of(ranks, size, repeats) for size in SIZES],
        "replicas": replicas(ranks, SIZES[-1], repeats),
        "curve": curve(ranks, (2, 256) if small else (4, 256), 2 if small else 7),
        "look": look(ranks, (2, 512) if small else (4, 768), 1 if small else 2),
        "tokens": f"{TOKENS[0]} x {TOKENS[1]}",
        "load": os.getloadavg()[0],
    }


def attach(*, small: bool) -> Found:
    """Seconds of an attach: by rank 0 alone, as before there are others, and by all of them."""
    model = bert(*SIZES[0 if small else -1], VOCABULARY)
    proxy = Proxy([batch_of(2, 64, VOCABULARY)], loss_per_example)
    repeats = 1 if small else 4

    seconds: list[tuple[float, float]] = []

    def attached() -> None:
        start, cpu = time.perf_counter(), time.process_time()
        watcher = sw.watch(model, None, proxy=proxy, logdir=None, every=1)
        seconds.append((time.perf_counter() - start, time.process_time() - cpu))
        watcher.close()

    if os.environ["RANK"] == "0":
        for _ in range(repeats + 1):
            attached()
    alone = seconds[1:] or [(0.0, 0.0)]
    ranks = met()
    seconds.clear()
    for _ in range(repeats + 1):
        together_s(ranks, attached)
    every = ranks.gather(seconds[1:])
    slowest = [tuple(map(max, zip(*own, strict=True))) for own in zip(*every, strict=True)]
    return {
        "ranks": ranks.size,
        "alone_s": shortest(alone),
        "together_s": shortest(slowest),
        "load": os.getloadavg()[0],
    }


def met() -> RankGroup:
    """The ranks, once all of them have come."""
    distributed.init_process_group("gloo")
    return RankGroup(distributed.new_group(backend="gloo"))


PARTS: dict[str, Callable[..., Found]] = {"pair": pair, "attach": attach}


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("sparsitywatch").setLevel(logging.ERROR)
    name, path, is_small = sys.argv[1:]
    result = PARTS[name](small=bool(int(is_small)))
    if os.environ["RANK"] == "0":
        Path(path).write_text(json.dumps(result))
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch 2.13 at times hangs when it lets go of a process group
