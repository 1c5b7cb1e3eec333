"""A made-up run that looks like the small BERT pretraining, for tests of whatever reads runs.

Plateau, breakthrough at about 30 % of the run, take-off of near-zero weights on the decay
clock at about 55 %; everything follows from the seed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsitywatch.records import (
    LAYER_NUMBERS,
    BlockGradient,
    Cost,
    DecayProjection,
    Detail,
    Dormant,
    EssentialSparsity,
    Event,
    Finding,
    Forecast,
    Gradient,
    LayerColumns,
    Layers,
    LayerShare,
    LedgerEntry,
    LogHistogram,
    MaskOverlap,
    Movement,
    Provenance,
    Record,
    Replicas,
    RunInfo,
    ScopeSummary,
    Source,
    SparsityCurve,
    Vital,
    WatchState,
    XRay,
    XRayLayers,
)
from sparsitywatch.sinks import JsonlSink, Sink

ROLES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def provenance() -> Provenance:
    return Provenance(
        sparsitywatch="0.1.0",
        torch="2.13.0",
        scope_hash="5c0pe",
        proxy_hash="9r0xy",
        dtypes=("float32",),
        tolerance=0.01,
        tolerance_mode="relative",
        pattern="global",
    )


def names(num_tensors: int) -> list[str]:
    return [
        f"bert.encoder.layer.{i // len(ROLES)}.{ROLES[i % len(ROLES)]}.weight"
        for i in range(num_tensors)
    ]


def run_info(initial_step: int = 0, num_tensors: int = 12) -> RunInfo:
    ledger = [
        LedgerEntry(
            name="bert.embeddings.word_embeddings.weight",
            shape=(80, 64),
            num_weights=5120,
            in_scope=False,
            reason="an embedding",
            aliases=("cls.predictions.decoder.weight",),
        ),
        *(
            LedgerEntry(
                name=name,
                shape=(64, 64),
                num_weights=4096,
                in_scope=True,
                reason="a linear layer in a transformer block",
            )
            for name in names(num_tensors)
        ),
    ]
    return RunInfo(
        initial_step=initial_step,
        provenance=provenance(),
        ledger=tuple(ledger),
        initial_rms=dict.fromkeys(names(num_tensors), 0.02),
    )


def look(
    step: int, *, last_step: int = 2000, num_tensors: int = 12, seed: int = 0
) -> tuple[Record, Detail]:
    """The record and the detail of one step; the same arguments give the same look."""
    noise = np.random.default_rng([seed, step])
    time = step / last_step
    broken = 1 / (1 + math.exp(-(time - 0.33) * 60))
    dense = 2.96 - 0.9 * broken * min(1.0, 1.6 * time) + 1.2 * math.exp(-time * 40)
    reliance = 0.09 + 0.9 * broken + 0.01 * noise.normal()
    near_zero = 0.063 + 0.27 / (1 + math.exp(-(time - 0.75) * 12)) + 0.001 * noise.normal()
    curve = _curve(dense, reliance, 0.86 - 0.3 * broken, noise)
    layers = _layers(names(num_tensors), near_zero, noise)
    record = Record(
        step=step,
        wall_time=1.7e9 + step,
        scope=ScopeSummary(num_tensors=num_tensors, num_weights=4096 * num_tensors),
        num_nan=0,
        num_inf=0,
        num_zero=0,
        near_zero={
            "initial_0.1": near_zero,
            "rms_0.1": 0.08 + 0.4 * (near_zero - 0.063),
            "abs_0.001": 0.6 * near_zero,
            "zero": 0.0,
        },
        decay_clock=0.003 * step,
        lr_clock=0.003 * step,
        lr=0.003,
        dormant=_dormant(step, 0.007 + 0.36 * broken * time**0.5),
        movement=Movement(
            update_to_weight=0.25, sign_flips=0.06, num_sampled=10_000, since_step=step - 25
        ),
        masks=MaskOverlap(
            level=(0.5, 0.9), overlap=(0.8, 0.95), num_sampled=10_000, since_step=step - 25
        ),
        forecast=_forecast(step, near_zero),
        curve=curve,
        reliance=curve.reliance,
        essential_sparsity=_estimate(broken, curve),
        layers=layers,
        replicas=Replicas(num_ranks=2),
        vital=_vital(step),
        xray=_xray(names(num_tensors), broken) if num_tensors else None,
        source=Source(address=f"/runs/bert/step-{step}.pt", mark="0123456789abcdef"),
        cost=Cost(
            stall_s=0.31,
            spectrum_s=0.01,
            evaluation_s=0.29,
            publish_s=0.02,
            num_forwards=26,
            overhead=0.009,
            num_left_out=3,
        ),
        provenance=provenance(),
    )
    unset = [f.name for f in fields(record) if _is_nan(getattr(record, f.name))]
    numbers = {name: 0.11 + i / 64 for i, name in enumerate(unset)}
    return replace(record, **numbers), _detail(layers, noise)


def _vital(step: int) -> Vital:
    finding = Finding(
        kind="untrained",
        num=2,
        tensors=("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"),
        reason="they have gradients, and no optimizer steps on them",
        since_step=step - 25,
    )
    return Vital(
        num_tensors=30,
        num_sampled=12_000,
        still=0.02,
        still_since_start=0.01,
        since_step=step - 25,
        findings=(finding,),
        gradient=gradient(step),
    )


def gradient(step: int) -> Gradient:
    """A norm that falls, and two blocks."""
    norm = 0.5 + 0.3 * math.exp(-step / 500)
    numbers = {"zeros": 0.02, "change": 0.9, "update_to_weight": 0.01}
    blocks = (
        BlockGradient(name="bert.encoder.layer.0", norm=0.8 * norm, **numbers),
        BlockGradient(name="bert.encoder.layer.1", norm=0.6 * norm, **numbers),
    )
    return Gradient(
        num_tensors=30, norm=norm, zeros=0.02, change=0.9, before_clip=1.2, blocks=blocks
    )


def _xray(tensors: list[str], broken: float) -> XRay:
    same = [0.01 * i for i in range(len(tensors))]
    layers = XRayLayers(
        names=tuple(tensors),
        num_units=(64,) * len(tensors),
        dead=tuple(broken * x for x in same),
        active_low=tuple(same),
        active=tuple(0.3 + x for x in same),
        active_high=tuple(0.6 + x for x in same),
        sign_diversity=tuple(0.8 - broken * x for x in same),
        massive=tuple(10.0 + x for x in same),
    )
    return XRay(
        dead=0.02 * broken,
        dead_units=max(layers.dead),
        sign_diversity=0.75,
        massive=1200.0,
        num_super_weights=1.0,
        num_unreached=1.0,
        max_violation=1.0,
        super_weights=(f"{tensors[-1]}[5, 17]",),
        unreached=(tensors[0],),
        unseen=(tensors[-1],),
        expert_load={"bert.experts": (30, 0, 10, 20)},
        layers=layers,
    )


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _dormant(step: int, fraction: float) -> Dormant:
    return Dormant(
        fraction=fraction,
        num_sampled=10_000,
        since_step=step - 25,
        chance=0.007,
        projection=DecayProjection(
            advance=(0.0, 1.0, 2.0),
            dormant=(0.1 * fraction, 0.3 * fraction, 0.7 * fraction),
            entering=(0.06, 0.15, 0.4),
        ),
    )


def _forecast(step: int, near_zero: float) -> Forecast:
    fraction = (near_zero, near_zero + 0.03, near_zero + 0.05)
    return Forecast(
        rule="initial_0.1",
        advance=(0.0, 0.5, 1.0),
        fraction=fraction,
        low=tuple(0.9 * x for x in fraction),
        high=tuple(1.1 * x for x in fraction),
        clock_per_step=0.003,
        doubling_step=step + 310.5,
    )


def _curve(dense: float, reliance: float, knee: float, noise: np.random.Generator) -> SparsityCurve:
    harm = [
        reliance * (max(0.0, s - knee + 0.3) / (1.3 - knee)) ** 3 + 0.0008 * s * noise.normal()
        for s in LEVELS
    ]
    value = [dense + (0.0 if s == 0.0 else h) for s, h in zip(LEVELS, harm, strict=True)]
    return SparsityCurve(
        sparsity=[s if s in (0.0, 1.0) else s + 1e-4 for s in LEVELS],
        value=value,
        stderr=[0.02 * s * reliance for s in LEVELS],
        higher_is_better=False,
        level=LEVELS,
        num_examples=192,
    )


def _estimate(broken: float, curve: SparsityCurve) -> EssentialSparsity:
    if broken < 0.15:
        return EssentialSparsity(
            value=math.nan,
            last_crossing=math.nan,
            informative=False,
            reason="the model does not rely on these weights yet: removing all of them harms by "
            "no more than the tolerance",
            tolerance=0.01,
            mode="relative",
        )
    limit = 1.01 * curve.value[0]
    inside = [s for s, v in zip(curve.sparsity, curve.value, strict=True) if v <= limit]
    k = len(inside)
    value = float(np.interp(limit, curve.value[k - 1 : k + 1], curve.sparsity[k - 1 : k + 1]))
    return EssentialSparsity(
        value=value,
        last_crossing=value + 0.02,
        low=value - 0.04,
        high=value + 0.03,
        knee=value + 0.08,
        sharpness=9.5,
        informative=True,
        tolerance=0.01,
        mode="relative",
    )


def _layers(
    tensors: list[str], near_zero: float, noise: np.random.Generator
) -> tuple[LayerShare, ...]:
    layers = []
    for i, name in enumerate(tensors):
        weight = 1.6 if "dense" in name and "attention" not in name else 0.6
        removed = [min(1.0, s ** (1 / weight) if 0 < s < 1 else s) for s in LEVELS]
        layers.append(
            LayerShare(
                name=name,
                num_weights=4096,
                rms=0.02 + 0.001 * i + 0.0002 * noise.normal(),
                near_zero={"initial_0.1": min(1.0, weight * near_zero), "zero": 0.0},
                removed=tuple(removed),
                dormant=min(1.0, weight * 0.1),
                gradient=0.1,
                gradient_zeros=0.05,
                gradient_change=0.9,
                update_to_weight=0.01,
            )
        )
    return tuple(layers)


def _detail(layers: tuple[LayerShare, ...], noise: np.random.Generator) -> Detail:
    edges = np.round(np.arange(-6.0, 1.0, 0.1), 10)
    histograms, weights = {}, {}
    for layer in layers:
        magnitudes = np.abs(noise.normal(scale=layer.rms, size=4096)).astype(np.float32)
        counts, _ = np.histogram(np.log10(magnitudes), bins=edges)
        first, last = np.flatnonzero(counts)[[0, -1]]
        histograms[layer.name] = LogHistogram(
            edges=edges[first : last + 2], counts=counts[first : last + 1].astype(np.int64)
        )
        weights[layer.name] = magnitudes
    return Detail(make_histograms=histograms.copy, spectrum=spectrum_arrays(weights))


def spectrum_arrays(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the spectrum of float32 weights, counted here without torch."""
    keys, counts = [], []
    for values in weights.values():
        bits = np.abs(values).ravel().view(np.uint32).astype(np.int64)
        own, number = np.unique(-(-bits >> 15), return_counts=True)  # rounded up
        keys.append(own)
        counts.append(number)
    zeros = np.zeros(len(weights), np.uint8)
    return {
        "format": np.array(1),
        "names": np.array(list(weights), dtype=np.str_),
        "dtypes": np.array(["float32"] * len(weights), dtype=np.str_),
        "num_bins": np.array([len(own) for own in keys]),
        "num_inf": zeros,
        "num_nan": zeros,
        "keys": np.concatenate([np.empty(0, np.int64), *keys]),
        "counts": np.concatenate([np.empty(0, np.int64), *counts]),
    }


def looks(steps: range, *, num_tensors: int = 12, seed: int = 0) -> list[tuple[Record, Detail]]:
    return [
        look(step, last_step=steps[-1] or 1, num_tensors=num_tensors, seed=seed) for step in steps
    ]


def events(last_step: int = 2000) -> list[Event]:
    breakthrough = Event(
        series="value/reliance",
        direction="up",
        onset_step=int(0.3 * last_step),
        detected_step=int(0.325 * last_step),
        baseline=0.09,
        value=0.41,
        noise=0.01,
        decay_clock=0.003 * 0.325 * last_step,
    )
    take_off = Event(
        series="near_zero/initial_0.1",
        direction="up",
        onset_step=int(0.525 * last_step),
        detected_step=int(0.5625 * last_step),
        baseline=0.063,
        value=0.085,
        noise=0.001,
        layers=tuple(name for name in names(12) if name.endswith("output.dense.weight"))[1::2],
        onset_low=int(0.5 * last_step),
        onset_high=int(0.55 * last_step),
        trend="sparsifying",
        change="shape",
        explained_by_decay=True,
        before_step=int(0.525 * last_step),
        related=("near_zero/rms_0.1",),
        agreeing=("near_zero/rms_0.1",),
        opposed=("near_zero/abs_0.001",),
        decay_clock=0.003 * 0.5625 * last_step,
    )
    return [breakthrough, take_off]


def fallen(event: Event, step: int) -> Event:
    """What is told at ``step`` of an event that fell back a look before."""
    return replace(event, reverted_step=step - 25, revised_step=step)


def without(record: Record, *parts: str) -> Record:
    """The record with some parts not measured."""
    unknown = dict.fromkeys(("reliance", "reliance_low", "reliance_high"), math.nan)
    nothing = dict.fromkeys(parts) | unknown
    return replace(record, **{part: nothing[part] for part in parts})


def write_to(
    sink: Sink,
    looks: Iterable[tuple[Record, Detail]],
    events: Iterable[Event] = (),
    first: int = 0,
    state: WatchState | None = None,
) -> None:
    """A session of a sink: some looks and events after step ``first``."""
    sink.open(run_info(first))
    for record, detail in looks:
        sink.write(record, detail)
    for event in events:
        sink.event(event)
    if state is not None:
        sink.state(state)
    sink.close()


def write_run(logdir: Path, *given: Any, **named: Any) -> Path:
    """The log of a run as a watch writes it, see ``write_to``; returns its ``logdir``."""
    write_to(JsonlSink(logdir / "sparsitywatch"), *given, **named)
    return logdir


#: Of a long run: steps from snapshot to snapshot, and by how much a tensor's shares are noisy.
LONG_EVERY = 25
LONG_NOISE = 0.002


def write_long_run(
    logdir: Path, num_snapshots: int, num_tensors: int, *, num_spectra: int = 20
) -> Path:
    """The log of many snapshots of many tensors, as noisy as in a training; returns ``logdir``.

    Every snapshot has a spectrum; there are ``num_spectra`` different ones, which take the time.
    """
    draw = np.random.default_rng(0)
    tensors = names(num_tensors)
    weight = np.array([1.6 if "dense" in n and "attention" not in n else 0.6 for n in tensors])

    def shares(mean: float) -> np.ndarray:
        return np.clip(weight * mean + LONG_NOISE * draw.normal(size=num_tensors), 0.0, 1.0)

    sink = JsonlSink(logdir / "sparsitywatch")
    sink.open(run_info(num_tensors=num_tensors))
    spectra = logdir / "sparsitywatch" / "spectra"
    last_step = LONG_EVERY * num_snapshots
    for index in range(num_snapshots):
        record, _ = look(LONG_EVERY * index, last_step=last_step, num_tensors=1)
        columns = LayerColumns(
            names=tuple(tensors),
            num_weights=np.full(num_tensors, 1 << 20),
            numbers={
                **{x: np.full(num_tensors, getattr(record.layers[0], x)) for x in LAYER_NUMBERS},
                "rms": 0.02 + 0.01 * weight * index / num_snapshots,
                "dormant": shares(record.dormant.fraction),
            },
            near_zero={"initial_0.1": shares(record.near_zero["initial_0.1"])},
            removed=np.stack([shares(level) for level in LEVELS]),
        )
        scope = ScopeSummary(num_tensors=num_tensors, num_weights=num_tensors << 20)
        record = replace(record, layers=Layers(columns), scope=scope)
        if index % max(num_snapshots // num_spectra, 1) == 0:
            scale = 0.02 * (1.0 - 0.3 * index / num_snapshots)
            weights = {name: draw.normal(0.0, scale, 4096).astype(np.float32) for name in tensors}
            sink.write(record, Detail(spectrum=spectrum_arrays(weights)))
            last = spectra / f"step-{record.step:08d}.npz"
        else:
            sink.write(record, Detail())
            shutil.copyfile(last, spectra / f"step-{record.step:08d}.npz")
    for event in events(last_step):
        sink.event(event)
    sink.close()
    return logdir
