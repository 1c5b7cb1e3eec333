"""What vital signs and detection add to a snapshot of BERT-base's weights."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

import sparsitywatch as sw
from detecting import jumps
from detecting.ours import online, ours
from detecting.series import DESIGN_SEEDS

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """Processor time of a snapshot without a proxy, in seconds, of one thread.

    Args:
        num_layers: of the BERT; BERT-base has 12.
        bare: with neither vital signs nor detectors.
        whole: with both, as by default.
        detection: of a detector, a snapshot of a made-up series: it remembers a long one, which
            those of so short a run do not.
    """

    num_layers: int
    bare: float
    whole: float
    detection: float

    @property
    def added_percent(self) -> float:
        """What both add."""
        return 100.0 * (self.whole - self.bare + self.detection) / self.bare


def cost(num_layers: int = 12, repeats: int = 15) -> Cost:
    """Medians of snapshots in turns."""
    from overhead import bert  # here, since it loads TensorBoard

    torch.set_num_threads(1)
    model = bert(num_layers)
    options: dict[str, Any] = {
        "logdir": None,
        "every": 1,
        "max_overhead": None,
        "background": False,
    }
    with mock.patch("sparsitywatch.live.watch._vital", return_value=None):
        bare = sw.watch(model, None, detectors={}, **options)
    spent: dict[str, list[float]] = {"bare": [], "whole": []}
    with bare, sw.watch(model, None, **options) as whole:
        for _ in range(repeats + 1):
            for name, watcher in (("bare", bare), ("whole", whole)):
                started = time.process_time()
                watcher.step()
                spent[name].append(time.process_time() - started)
    assert bare.records[-1].vital is None
    assert whole.records[-1].vital is not None
    medians = {name: statistics.median(times[1:]) for name, times in spent.items()}
    return Cost(num_layers, medians["bare"], medians["whole"], _detection_s())


def _detection_s() -> float:
    """A detector's processor time a snapshot, over one series of each family."""
    detect, made = online(ours), list(jumps.suite(DESIGN_SEEDS[:1], "standard"))
    detect(made[0])  # what is loaded or compiled at first is not counted
    started = time.process_time()
    for series in made:
        detect(series)
    return (time.process_time() - started) / sum(len(series.values) for series in made)
