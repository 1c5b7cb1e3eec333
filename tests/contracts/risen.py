"""Runs whose near-zero weights triple, in twelve ways, as records of weights counted one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from contracts.made_records import counted

from sparsitywatch.pipeline.pipeline import History
from sparsitywatch.records import Began, Event, Record
from sparsitywatch.settings import Settings, default_detectors

NUM, MIDDLE = 48, 16
#: How much of the rise has come, of the part of its time in [0, 1] that has passed.
SHAPES: dict[str, Callable[[float], float]] = {
    "jump": lambda t: float(t > 0.0),
    "line": lambda t: t,
    "fast line": lambda t: min(4.0 * t, 1.0),
    "parabola": lambda t: t * t,
    "root": math.sqrt,
    "exponential": lambda t: math.expm1(3.0 * t) / math.expm1(3.0),
    "saturating": lambda t: -math.expm1(-4.0 * t) / -math.expm1(-4.0),
    "sigmoid": lambda t: (math.tanh(6.0 * t - 3.0) / math.tanh(3.0) + 1.0) / 2.0,
    "stairs": lambda t: math.ceil(5.0 * t) / 5.0,
    "two jumps": lambda t: 0.5 * (t > 0.0) + 0.5 * (t > 0.5),
    "late": lambda t: max(2.0 * t - 1.0, 0.0),
    "wavy line": lambda t: t + 0.04 * math.sin(20.0 * t) * (t < 1.0),
}
SIZES = {"first.weight": 9000, "second.weight": 9000, "third.weight": 1800, "small.weight": 400}


def weights(rise: dict[str, float], *, is_uniform: bool = False) -> dict[str, np.ndarray]:
    """Tensors whose share of near-zero weights has risen by so many times what it was."""
    draw = np.random.default_rng(5)
    found = {}
    for name, size in SIZES.items():
        own = draw.uniform(-1.7, 1.7, size) if is_uniform else draw.normal(size=size)
        order = draw.permutation(size)
        share = float(np.mean(np.abs(own) <= 0.1 * np.sqrt(np.mean(own**2))))
        large = order[np.abs(own[order]) > 0.15]
        own[large[: round(rise.get(name, 0.0) * share * size)]] *= 1e-4
        found[name] = own / 50.0
    return found


def run_of(
    shape: str, begin: int, where: tuple[str, ...], *, times: float = 3.0, is_uniform: bool = False
) -> Iterator[Record]:
    """Its records; the first one is of the weights that the run begins with."""
    initial = {n: float(np.sqrt(np.mean(w**2))) for n, w in
               weights({}, is_uniform=is_uniform).items()}  # fmt: skip
    for i in range(NUM):
        part = min(max((i - begin) / (NUM - 12 - begin), 0.0), 1.0)
        risen = (times - 1.0) * SHAPES[shape](part)
        own = weights(dict.fromkeys(where, risen), is_uniform=is_uniform)
        jitter = np.random.default_rng(i).normal(size=len(own)) * 1e-3
        own = {n: w * (1.0 + j) for (n, w), j in zip(own.items(), jitter, strict=True)}
        yield counted(25 * i, own, initial)


def told(records: list[Record]) -> tuple[list[Event], History]:
    """What a watch that began with the first record tells of the others."""
    history = History(default_detectors(Settings()))
    history.initial_rms = {layer.name: layer.rms for layer in records[0].layers}
    history.began = Began.of(records[0])
    for record in records[1:]:
        history.add(history.with_history(record))
    return list(history.events), history


def doubled(records: list[Record], name: str) -> int:
    """Index of the first record at which a tensor, or all ("") has twice its first share."""

    def share(record: Record) -> float:
        if not name:
            return record.near_zero["initial_0.1"]
        return next(x for x in record.layers if x.name == name).near_zero["initial_0.1"]

    return next(i for i, record in enumerate(records) if share(record) >= 2.0 * share(records[0]))
