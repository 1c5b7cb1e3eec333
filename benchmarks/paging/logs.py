"""Logs of made-up runs with every kind of number in them, as noisy as those of real ones."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsitywatch.records import (
    Cost,
    Detail,
    Dormant,
    EssentialSparsity,
    Event,
    Forecast,
    LayerColumns,
    Layers,
    MaskOverlap,
    Movement,
    Provenance,
    Record,
    RunInfo,
    ScopeSummary,
    SparsityCurve,
    Vital,
)
from sparsitywatch.sinks.jsonl import JsonlSink

__all__ = ["EVERY", "write_log"]

#: Steps from snapshot to snapshot.
EVERY = 25
ROLES = ("attention.self.query", "attention.self.key", "attention.self.value",
         "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
LEVELS = np.array([0.0, *np.linspace(0.05, 0.95, 19).round(2), 1.0])
#: Weights a tensor, and in its spectrum, of which there are so many different ones.
SIZE, SAMPLE, NUM_SPECTRA = 1 << 20, 4096, 20
#: How much a share that is measured on a sample differs from snapshot to snapshot.
NOISE = 0.002
PROVENANCE = Provenance(
    sparsitywatch="0.1.0", torch="2.13.0", scope_hash="5c0pe", proxy_hash="9r0xy",
    dtypes=("float32",), tolerance=0.01, tolerance_mode="relative", pattern="global",
)  # fmt: skip


def write_log(logdir: Path, num_snapshots: int, num_tensors: int) -> Path:
    """A run on a plateau, which then begins to use its weights, and turns sparse.

    Every snapshot has a curve of 21 levels and a spectrum; there are NUM_SPECTRA different ones.

    Args:
        logdir: where it goes.
        num_snapshots: EVERY steps apart.
        num_tensors: of six roles a block.

    Returns:
        ``logdir``.
    """
    draw = np.random.default_rng(0)
    names = tuple(
        f"encoder.layer.{i // len(ROLES)}.{ROLES[i % len(ROLES)]}.weight"
        for i in range(num_tensors)
    )
    sink = JsonlSink(logdir / "sparsitywatch")
    sink.open(RunInfo(initial_step=0, provenance=PROVENANCE))
    each = max(num_snapshots // NUM_SPECTRA, 1)
    for index, record in enumerate(_records(names, num_snapshots, draw)):
        if index % each == 0:
            last = logdir / "sparsitywatch" / "spectra" / f"step-{record.step:08d}.npz"
            sink.write(record, Detail(spectrum=_spectrum(names, index / num_snapshots, draw)))
        else:
            sink.write(record, Detail())
            shutil.copyfile(last, last.with_name(f"step-{record.step:08d}.npz"))
    for event in _events(names, num_snapshots):
        sink.event(event)
    sink.close()
    return logdir


def _records(
    names: tuple[str, ...], num_snapshots: int, draw: np.random.Generator
) -> Iterator[Record]:
    weight = np.array([1.6 if "dense" in n and "attention" not in n else 0.6 for n in names])
    weight *= draw.uniform(0.8, 1.2, len(names))
    for index in range(num_snapshots):
        time = index / max(num_snapshots - 1, 1)
        broken = 1.0 / (1.0 + math.exp(-60.0 * (time - 0.33)))
        small = weight * (0.06 + 0.27 / (1.0 + math.exp(-12.0 * (time - 0.75))))
        dormant = weight * (0.01 + 0.36 * broken * math.sqrt(time))
        noise = NOISE * draw.normal(size=(2, len(names)))
        share = np.clip(np.stack([small, dormant]) + noise, 0.0, 1.0)
        removed = LEVELS[:, None] ** (1.0 / weight) + NOISE * draw.normal(
            size=(len(LEVELS), len(names))
        )
        columns = LayerColumns(
            names=names, num_weights=np.full(len(names), SIZE), rms=0.02 + 0.01 * time * weight,
            near_zero={"initial_0.1": share[0], "zero": np.zeros(len(names))},
            removed=np.clip(removed, 0.0, 1.0), dormant=share[1],
        )  # fmt: skip
        yield _record(EVERY * index, time, broken, columns, draw)


def _record(
    step: int, time: float, broken: float, layers: LayerColumns, draw: np.random.Generator
) -> Record:
    """Every number that a live watch gives; each is noisy by a hundredth of itself."""
    near_zero = float(layers.near_zero["initial_0.1"].mean())
    fraction = tuple(near_zero + x for x in (0.0, 0.03, 0.05))
    knee = 0.86 - 0.3 * broken
    jitter = _Jitter(draw)
    dense = jitter(2.9 - 0.9 * broken * time)
    harm = (0.1 + broken) * np.clip((LEVELS - knee + 0.3) / (1.3 - knee), 0.0, None) ** 3
    curve = SparsityCurve(
        sparsity=LEVELS.tolist(), level=LEVELS.tolist(), num_examples=192,
        value=[dense + jitter(x) for x in harm.tolist()], stderr=(0.02 * LEVELS).tolist(),
        higher_is_better=False,
    )  # fmt: skip
    return Record(
        step=step, wall_time=1.7e9 + step, num_nan=0, num_inf=0, num_zero=0, largest=jitter(0.3),
        scope=ScopeSummary(num_tensors=len(layers.names), num_weights=SIZE * len(layers.names)),
        near_zero={"initial_0.1": near_zero, "rms_0.1": jitter(0.08 + 0.4 * near_zero),
                   "abs_0.001": jitter(0.6 * near_zero), "zero": 0.0},
        decay_clock=1e-4 * step, lr_clock=1e-3 * step, lr=1e-3 * (1.0 - 0.9 * time),
        dormant=Dormant(fraction=float(layers.dormant.mean()), num_sampled=10_000,
                        since_step=step - EVERY, chance=jitter(0.007)),
        movement=jitter(Movement(update_to_weight=0.25, sign_flips=0.06, num_sampled=10_000,
                                 since_step=step - EVERY)),
        masks=MaskOverlap(level=(0.5, 0.9), overlap=(jitter(0.8), jitter(0.95)),
                          num_sampled=10_000, since_step=step - EVERY),
        forecast=Forecast(rule="initial_0.1", advance=(0.0, 0.5, 1.0), fraction=fraction,
                          low=tuple(0.9 * x for x in fraction), clock_per_step=1e-4,
                          high=tuple(1.1 * x for x in fraction), doubling_step=step + jitter(3e3)),
        curve=curve, reliance=curve.reliance,
        essential_sparsity=EssentialSparsity(
            value=knee - 0.1, last_crossing=knee - 0.08, low=knee - 0.14, high=knee - 0.05,
            knee=jitter(knee), sharpness=jitter(9.5), informative=broken > 0.15, tolerance=0.01,
            reason="" if broken > 0.15 else "nothing relies on these weights yet", mode="relative",
        ),
        vital=jitter(Vital(num_tensors=len(layers.names), num_sampled=12_000, still=0.02,
                           still_since_start=0.01, since_step=step - EVERY)),
        layers=Layers(layers), provenance=PROVENANCE,
        cost=jitter(Cost(stall_s=0.31, spectrum_s=0.01, evaluation_s=0.29, publish_s=0.02,
                         num_forwards=26, overhead=0.009)),
    )  # fmt: skip


class _Jitter:
    """Numbers, or the numbers of a part of a record, each off by a hundredth."""

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw

    def __call__(self, value: Any) -> Any:
        if is_dataclass(value):
            numbers = {f.name: getattr(value, f.name) for f in fields(value)}
            own = {name: self(x) for name, x in numbers.items() if isinstance(x, float)}
            return replace(value, **own)  # type: ignore[type-var]
        return value * (1.0 + 0.01 * float(self._draw.normal()))


def _spectrum(
    names: tuple[str, ...], time: float, draw: np.random.Generator
) -> dict[str, np.ndarray]:
    """The counts of normal weights, part of which decay."""
    keys, counts = [], []
    for _ in names:
        weights = draw.normal(0.0, 0.02, SAMPLE).astype(np.float32)
        weights[: int(0.4 * time * SAMPLE)] *= np.float32(math.exp(-4.0 * time))
        bits = np.abs(weights).view(np.uint32).astype(np.int64)
        own, number = np.unique(-(-bits >> 15), return_counts=True)  # a bin ends at its key
        keys.append(own)
        counts.append(number)
    zeros = np.zeros(len(names), np.uint8)
    return {
        "format": np.array(1), "names": np.array(names),
        "dtypes": np.array(["float32"] * len(names)),
        "num_bins": np.array([len(own) for own in keys]), "num_inf": zeros, "num_nan": zeros,
        "keys": np.concatenate(keys), "counts": np.concatenate(counts),
    }  # fmt: skip


def _events(names: tuple[str, ...], num_snapshots: int) -> list[Event]:
    def at(part: float) -> int:
        return EVERY * int(part * num_snapshots)

    dying = Event(series="motion/dormant", direction="up", onset_step=at(0.33),
                  detected_step=at(0.35), baseline=0.01, value=0.1, noise=0.002,
                  onset_low=at(0.32), onset_high=at(0.34), kind="abrupt")  # fmt: skip
    sparse = Event(series="near_zero/initial_0.1", direction="up", onset_step=at(0.6),
                   detected_step=at(0.65), baseline=0.06, value=0.09, noise=0.002,
                   layers=names[5:12:6], onset_low=at(0.58), onset_high=at(0.62),
                   trend="sparsifying", before_step=at(0.6) - EVERY,
                   explained_by_decay=True)  # fmt: skip
    return [dying, sparse]
