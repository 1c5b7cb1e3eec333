"""What moved since the last look, on a fixed random sample of the in-scope weights.

A weight is *dormant* between two looks if weight decay alone explains its change:
``|w_now - shrink * w_before| <= 1e-3 * (sum of lr)``. Adam moves every weight that gets
any gradient by about lr a step, so a dormant weight got none: it belongs to a dead unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sparsitywatch.errors import StateError
from sparsitywatch.records import Dormant
from sparsitywatch.weights.clock import DecayClock
from sparsitywatch.weights.snapshot import Snapshot

__all__ = ["DORMANT_TOLERANCE", "Motion", "num_dormant", "why_not_measurable"]

#: Largest unexplained change of a dormant weight, as a fraction of the sum of lr.
DORMANT_TOLERANCE = 1e-3


def num_dormant(
    before: torch.Tensor,
    now: torch.Tensor,
    *,
    lr: float,
    log_shrink: float,
    tolerance: float = DORMANT_TOLERANCE,
) -> int:
    """How many weights weight decay alone explains.

    Args:
        before, now: float64 [N], the same weights at two looks.
        lr: sum of the learning rate over the steps between.
        log_shrink: sum of log(1 - lr * weight decay) over the steps between.
        tolerance: allowed unexplained change per unit of ``lr``.

    >>> before = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    >>> now = torch.tensor([0.5, 0.9, 0.0], dtype=torch.float64)
    >>> num_dormant(before, now, lr=0.1, log_shrink=math.log(0.5))
    2
    """
    unexplained = (now - math.exp(log_shrink) * before).abs()
    return int((unexplained <= tolerance * lr).sum())


def why_not_measurable(optimizer: torch.optim.Optimizer) -> str:
    """Why dormant weights cannot be told under this optimizer; empty if they can.

    The rule needs updates of about lr for every weight with a gradient (the Adam family
    and Lion, not SGD), and decay that is decoupled from the gradient.
    """
    name = type(optimizer).__name__
    if not any(family in name.lower() for family in ("adam", "lion")):
        return f"updates of {name} are not of the size of lr"
    for group in optimizer.param_groups:
        decoupled = group.get("decoupled_weight_decay", not name.lower().endswith("adam"))
        if group.get("weight_decay", 0.0) and not decoupled:
            return f"weight decay of {name} is part of the gradient, not decoupled"
    return ""


class Motion:
    """Remembers a sample of the weights and compares it with the next look.

    Args:
        num_samples: size of the sample; every in-scope weight if it is larger than that.
        seed: of the sample's own generator; the same model gives the same sample.
    """

    def __init__(self, num_samples: int = 1_000_000, seed: int = 0) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._indices: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._clock = DecayClock()
        self._step = -1

    def look(
        self,
        snapshot: Snapshot,
        clock: DecayClock,
        membership: Mapping[str, int],
        not_measurable: str = "",
    ) -> Dormant:
        """Compare with the last look, and remember this one.

        Args:
            snapshot: the weights now.
            clock: the optimizer's clocks now.
            membership: in-scope name to index of its param group.
            not_measurable: why the rule does not apply, as ``why_not_measurable`` says.
        """
        if not_measurable:
            return _unmeasured(not_measurable, 0, -1)
        if not self._indices:
            self._indices = self._draw(snapshot)
        now = {
            name: snapshot.tensors[name]
            .reshape(-1)[index.to(snapshot.tensors[name].device)]
            .to("cpu", torch.float64, copy=True)
            for name, index in self._indices.items()
        }
        dormant = self._compare(now, clock, membership)
        self._before, self._clock, self._step = now, clock.copy(), snapshot.step
        return dormant

    def _draw(self, snapshot: Snapshot) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self._seed)
        total = sum(t.numel() for t in snapshot.tensors.values())
        share = min(1.0, self._num_samples / total)
        indices = {}
        for name, tensor in snapshot.tensors.items():
            size = math.ceil(share * tensor.numel())
            if size == tensor.numel():
                indices[name] = torch.arange(size)
            else:
                # With replacement: no permutation of a large tensor is ever built.
                indices[name] = torch.randint(tensor.numel(), (size,), generator=generator)
        return indices

    def _compare(
        self, now: Mapping[str, torch.Tensor], clock: DecayClock, membership: Mapping[str, int]
    ) -> Dormant:
        num_sampled = sum(t.numel() for t in now.values())
        if not self._before:
            return _unmeasured("no earlier look", num_sampled, -1)
        count = compared = 0
        for name, values in now.items():
            index = membership.get(name)
            if index is None or index >= len(clock.groups):
                continue  # not trained: its standing still says nothing
            earlier = self._clock.groups
            between = clock.groups[index]
            if index < len(earlier):
                between = between.since(earlier[index])
            if between.lr <= 0.0:
                continue
            compared += values.numel()
            count += num_dormant(
                self._before[name], values, lr=between.lr, log_shrink=between.log_shrink
            )
        if compared == 0:
            return _unmeasured("no in-scope weight was trained since", num_sampled, self._step)
        return Dormant(fraction=count / compared, num_sampled=compared, since_step=self._step)

    def state_dict(self) -> dict[str, Any]:
        """The sample at the last look; holds tensors of ``num_samples`` float64 values."""
        return {
            "seed": self._seed,
            "num_samples": self._num_samples,
            "step": self._step,
            "clock": self._clock.state_dict(),
            "before": dict(self._before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing.
        """
        for key in ("seed", "num_samples", "step", "clock", "before"):
            if key not in state:
                raise StateError(f"Expected key {key!r} in the motion's state, got {list(state)}.")
        self._seed, self._num_samples = int(state["seed"]), int(state["num_samples"])
        self._step = int(state["step"])
        self._clock.load_state_dict(state["clock"])
        self._before = {name: t.clone() for name, t in state["before"].items()}
        self._indices = {}


def _unmeasured(reason: str, num_sampled: int, since_step: int) -> Dormant:
    return Dormant(fraction=math.nan, num_sampled=num_sampled, since_step=since_step, reason=reason)
