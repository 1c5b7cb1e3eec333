"""What vital signs and detection add to a snapshot of BERT-base's weights."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

import sparsitywatch as sw

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """Processor time of a snapshot without a proxy, in seconds, of one thread.

    Args:
        num_layers: of the BERT; BERT-base has 12.
        bare: with neither vital signs nor detectors.
        whole: with both, as by default.
    """

    num_layers: int
    bare: float
    whole: float

    def added_percent(self, detection: float) -> float:
        """What both add.

        Args:
            detection: seconds that a detector takes once it remembers a long series, which those of
                so short a run do not.
        """
        return 100.0 * (self.whole - self.bare + detection) / self.bare


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
    return Cost(num_layers, *(statistics.median(times[1:]) for times in spent.values()))
