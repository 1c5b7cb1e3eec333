"""What vital signs and detection add to a snapshot of BERT-base's weights.

Measured last, with nothing beside it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from reporting import Goal

import sparsitywatch as sw
from detecting.work import Job, Plan, Results
from sparsitywatch.pipeline.measure import Examiner

TITLE = "What they cost"
_ADDED_PERCENT = 10.0


@dataclass(frozen=True)
class Cost:
    """Processor time of a snapshot without a proxy, in seconds, of one thread."""

    # of the BERT; BERT-base has 12
    num_layers: int
    # with neither vital signs nor detectors, and what both make it longer by, as by default
    bare: float
    more: float

    @property
    def added_percent(self) -> float:
        """What both add."""
        return 100.0 * self.more / self.bare


def cost(num_layers: int = 12, repeats: int = 101, hidden: int = 768) -> Cost:
    """Medians of snapshots in turns, and of what the second of two takes longer.

    Every weight drifts between them, and the detectors' history grows as long as in a long run.
    """
    from overhead import bert  # here, since it loads TensorBoard

    torch.set_num_threads(1)
    model = bert(num_layers, hidden)
    weights = [p.detach() for p in model.parameters()]
    drift = [1e-4 * torch.randn_like(w) for w in weights]
    options: dict[str, Any] = {"logdir": None, "every": 1, "max_overhead": None}
    options["background"] = False
    with mock.patch("sparsitywatch.live.watch.VitalTracker", return_value=Examiner()):
        bare = sw.watch(model, None, detectors={}, **options)
    spent: dict[str, list[float]] = {"bare": [], "whole": []}
    with bare, sw.watch(model, None, **options) as whole:
        for _ in range(repeats + 1):
            torch._foreach_add_(weights, drift)
            for name, watcher in (("bare", bare), ("whole", whole)):
                started = time.process_time()
                watcher.step()
                spent[name].append(time.process_time() - started)
    assert bare.records[-1].vital is None
    assert whole.records[-1].vital is not None
    pairs = list(zip(spent["bare"], spent["whole"], strict=True))[1:]
    more = statistics.median(both - alone for alone, both in pairs)
    return Cost(num_layers, statistics.median(spent["bare"][1:]), more)


def jobs(plan: Plan) -> list[Job]:
    """One, alone."""
    return [Job(cost, (2 if plan.small else 12,), is_alone=True)]


def lines(results: Results) -> list[str]:
    """In one sentence."""
    ((_, found),) = results.of(cost)
    text = (
        f"A snapshot of the weights of a BERT of {found.num_layers} layers takes "
        f"{1e3 * found.bare:.0f} ms of one thread without vital signs and detectors, and "
        f"{1e3 * found.more:.1f} ms more with both (medians, in turns; the weights drift)."
    )
    return [text]


def goals(results: Results) -> list[Goal]:
    """Of a snapshot."""
    ((_, found),) = results.of(cost)
    what = f"vital signs and detection, on a snapshot of {found.num_layers} layers"
    return [Goal(what, _ADDED_PERCENT, found.added_percent, unit=" % more")]
