"""Records of given numbers, and a detector of them, for tests of what reads records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import repeat

import numpy as np
from contracts import fake_run

from sparsitywatch.detectors import Detector
from sparsitywatch.records import (
    Cost,
    Dormant,
    EssentialSparsity,
    Event,
    LayerShare,
    Record,
    ScopeSummary,
)

PROVENANCE = replace(fake_run.provenance(), proxy_hash="")


def made_record(
    step: int,
    near_zero: Mapping[str, float] | float = 0.05,
    *,
    clock: float = math.nan,
    dormant: float | None = None,
    layers: tuple[LayerShare, ...] = (),
    num_weights: int = 100_000,
    essential: float | None = None,
) -> Record:
    """A record of one step; a bare number is the near-zero fraction of the first rule.

    ``essential`` is an essential sparsity, NaN for one that is not informative.
    """
    rules = near_zero if isinstance(near_zero, Mapping) else {"initial_0.1": near_zero}
    estimate = None
    if essential is not None:
        estimate = EssentialSparsity(
            value=essential,
            last_crossing=essential,
            informative=not math.isnan(essential),
            tolerance=0.01,
            mode="relative",
        )
    return Record(
        step=step,
        wall_time=0.0,
        scope=ScopeSummary(num_tensors=max(len(layers), 1), num_weights=num_weights),
        num_nan=0,
        num_inf=0,
        num_zero=0,
        near_zero=dict(rules),
        decay_clock=clock,
        dormant=None
        if dormant is None
        else Dormant(fraction=dormant, num_sampled=1000, since_step=step - 1),
        essential_sparsity=estimate,
        layers=layers,
        cost=Cost(stall_s=0.0, spectrum_s=0.0, evaluation_s=0.0, num_forwards=0),
        provenance=PROVENANCE,
    )


def seen_by(
    detector: Detector,
    series: Iterable[float],
    contexts: Iterable[Mapping[str, float]] | None = None,
    every: int = 25,
) -> list[Event]:
    """The events of a series with a snapshot every ``every`` steps, from step ``every`` on."""
    snapshots = enumerate(zip(series, contexts or repeat({})), start=1)  # noqa: B905 endless
    told = [detector.update(every * i, float(x), known) for i, (x, known) in snapshots]
    return [event for event in told if event is not None]


def counted(
    step: int,
    weights: Mapping[str, np.ndarray],
    initial_rms: Mapping[str, float],
    rules: tuple[str, ...] = ("initial_0.1", "rms_0.1", "abs_0.001", "zero"),
) -> Record:
    """A record of these weights, by counting them one by one."""
    layers = []
    for name, values in weights.items():
        rms = float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
        units = {"initial": initial_rms[name], "rms": rms, "abs": 1.0}
        near_zero = {}
        for rule in rules:
            kind, _, number = rule.partition("_")
            limit = 0.0 if kind == "zero" else float(number) * units[kind]
            near_zero[rule] = float(np.mean(np.abs(values) <= limit))
        layers.append(LayerShare(name=name, num_weights=values.size, rms=rms, near_zero=near_zero))
    total = sum(layer.num_weights for layer in layers)
    whole = {
        rule: sum(layer.num_weights * layer.near_zero[rule] for layer in layers) / total
        for rule in rules
    }
    return made_record(step, whole, layers=tuple(layers), num_weights=total)


class Above(Detector):
    """A detector that is easy to predict: an event at the first value above a limit."""

    def __init__(self, limit: float = 0.4) -> None:
        self.limit, self.seen, self.last = limit, 0, 0.0

    def update(self, step, value, context=None):
        if value <= self.limit or self.seen:
            self.last = value
            return None
        self.seen = step
        return Event(
            series="", direction="up", onset_step=step - 1, detected_step=step,
            baseline=self.last, value=value, noise=0.01,
        )  # fmt: skip

    def state_dict(self):
        return {"seen": self.seen, "last": self.last}

    def load_state_dict(self, state):
        self.seen, self.last = state["seen"], state["last"]
