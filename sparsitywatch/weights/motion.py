"""What moved since the last snapshot, on a fixed random sample of the in-scope weights.

A weight is *dormant* between two snapshots if weight decay alone explains its change:
``|w_now - shrink * w_before| <= 1e-3 * (sum of lr)``. Adam moves every weight that gets
any gradient by about lr a step, so a dormant weight got none: it belongs to a dead unit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from sparsitywatch.errors import StateError
from sparsitywatch.records import DecayProjection, Dormant, Movement
from sparsitywatch.weights.clock import DecayClock, GroupClock, OptimizerReading
from sparsitywatch.weights.dormancy import (
    STILL,
    TensorMotion,
    compare,
    decay_projection,
    estimate_shrink,
    float64_of,
    values_of,
)
from sparsitywatch.weights.sample import Sampler

__all__ = ["Motion", "Moved", "why_not_measurable"]

#: Tensors that cannot tell may hold this share of the sample; above it nothing is told.
_MAX_UNKNOWN = 0.05
_STATE_KEYS = ("seed", "num_samples", "step", "clock", "before")


def why_not_measurable(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Why dormant weights cannot be told, by param group; empty where they can.

    The rule needs updates of about lr for every weight with a gradient (the Adam family
    and Lion, not SGD), and decay that is decoupled from the gradient.
    """
    name = type(optimizer).__name__
    lower = name.lower()
    if not any(family in lower for family in ("adam", "lion")):
        return (f"updates of {name} are not of the size of lr",) * len(optimizer.param_groups)
    is_decoupled = "adamw" in lower or "lion" in lower
    return tuple(
        f"weight decay of {name} is part of the gradient, not decoupled"
        if group.get("weight_decay", 0.0)
        and not group.get("decoupled_weight_decay", is_decoupled)
        and not is_decoupled
        else ""
        for group in optimizer.param_groups
    )


@dataclass(frozen=True)
class Moved:
    """What one snapshot says about motion.

    Args:
        dormant, movement: as they are recorded.
        layers: dormant fraction by tensor; a tensor that cannot tell is absent.
    """

    dormant: Dormant
    movement: Movement
    layers: Mapping[str, float] = field(default_factory=dict)


class Motion:
    """Remembers a sample of the weights and compares it with that of the next snapshot.

    Args:
        num_samples: size of the sample; None, or more than there are: every in-scope weight.
        seed: of the sample's own generator; the same model gives the same sample.
    """

    def __init__(self, num_samples: int | None = 1_000_000, seed: int = 0) -> None:
        self._sampler = Sampler(num_samples, seed)
        self._before: dict[str, torch.Tensor] = {}
        self._clock = DecayClock()
        self._step = -1

    def compare(
        self,
        now: Mapping[str, torch.Tensor],
        step: int,
        optimizer: OptimizerReading | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Moved:
        """Compare a sample with that of the last snapshot, and remember it.

        Args:
            now: what ``sampler`` took of the weights, by name.
            step: optimizer steps done.
            optimizer: what it has done; None if nothing is known of it, as in a replay: shrink
                and size of the updates are then estimated from the two samples.
            thresholds: below which a weight is near zero, by name, for the projection of their
                decay; without them there is none.
        """
        since, before = self._step, self._before
        earlier, later = dict[str, np.ndarray](), dict[str, np.ndarray]()
        if optimizer is None:
            eps = max((torch.finfo(tensor.dtype).eps for tensor in now.values()), default=0.0)
            earlier, later = values_of(before), values_of(now)  # all of them are needed at once
            clocks, estimate_failed = _estimated(earlier, later, step - since, eps)
        else:
            clocks, estimate_failed = self._clocks(now, optimizer), ""
        compared: dict[str, tuple[TensorMotion, GroupClock]] = {}
        for name, between in clocks.items():
            why = optimizer.not_measurable[optimizer.membership[name] :][:1] if optimizer else ()
            motion = compare(
                earlier[name] if earlier else float64_of(before[name]),
                later[name] if later else float64_of(now[name]),
                between,
                dtype=now[name].dtype,
                has_master=optimizer is None or name in optimizer.masters,
                not_measurable=why[0] if why else estimate_failed,
            )
            compared[name] = motion, between
        num_sampled = sum(t.numel() for t in now.values())
        reason = "" if compared else STILL if before else "no earlier look"
        self._before, self._step = dict(now), step
        clock = None if optimizer is None else optimizer.clock
        self._clock = DecayClock() if clock is None else clock.copy()
        if reason:
            return _unmeasured(reason, num_sampled, since)
        ahead = decay_projection(compared, now, thresholds) if thresholds else None
        motions = {name: motion for name, (motion, _) in compared.items()}
        return _moved(motions, since, ahead, estimated=optimizer is None)

    def _clocks(self, names: Iterable[str], optimizer: OptimizerReading) -> dict[str, GroupClock]:
        """What was done since the last snapshot to each tensor that was trained since."""
        if not self._before or optimizer.clock is None:
            return {}
        groups, membership = optimizer.clock.groups, optimizer.membership
        found = {name: self._between(groups, membership.get(name)) for name in names}
        return {name: c for name, c in found.items() if c is not None and c.lr > 0.0}

    def _between(self, groups: Sequence[GroupClock], index: int | None) -> GroupClock | None:
        """What happened to a param group since the last snapshot; None if it is not trained."""
        if index is None or index >= len(groups):
            return None  # its standing still says nothing
        earlier = self._clock.groups
        return groups[index].since(earlier[index] if index < len(earlier) else GroupClock())

    def forget(self) -> None:
        """The next snapshot has none before it: what was done since is not known."""
        self._before, self._clock, self._step = {}, DecayClock(), -1

    @property
    def sampler(self) -> Sampler:
        """Takes the sample of a snapshot."""
        return self._sampler

    def state_dict(self) -> dict[str, Any]:
        """The sample of the last snapshot; holds tensors of ``num_samples`` values."""
        return {
            "seed": self._sampler.seed,
            "num_samples": self._sampler.num_samples,
            "step": self._step,
            "clock": self._clock.state_dict(),
            "before": dict(self._before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing.
        """
        for key in _STATE_KEYS:
            if key not in state:
                raise StateError(f"Expected key {key!r} in the motion's state, got {list(state)}.")
        size = state["num_samples"]
        self._sampler = Sampler(None if size is None else int(size), int(state["seed"]))
        self._step = int(state["step"])
        self._clock.load_state_dict(state["clock"])
        self._before = {name: t.clone() for name, t in state["before"].items()}


def _estimated(
    before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], num_steps: int, eps: float
) -> tuple[dict[str, GroupClock], str]:
    """What was done to each tensor that moved, without an optimizer at hand; why not, if so."""
    if not before:
        return {}, ""
    moved = {n: values for n, values in now.items() if not np.array_equal(values, before[n])}
    estimate = estimate_shrink(before, moved, num_steps, eps)
    return dict.fromkeys(moved, estimate.clock), estimate.reason


def _moved(
    motions: Mapping[str, TensorMotion],
    since: int,
    ahead: DecayProjection | None,
    *,
    estimated: bool,
) -> Moved:
    """The tensors' motions as one."""
    sizes = {name: len(motion.dormant) for name, motion in motions.items()}
    total = sum(sizes.values())
    size = sum(m.size for m in motions.values())
    movement = Movement(
        update_to_weight=math.sqrt(sum(m.change for m in motions.values()) / size)
        if size > 0
        else math.nan,
        sign_flips=sum(m.num_flips for m in motions.values()) / total,
        num_sampled=total,
        since_step=since,
    )
    known = {name: motion for name, motion in motions.items() if not motion.reason}
    seen = sum(sizes[name] for name in known)
    if seen < (1.0 - _MAX_UNKNOWN) * total:
        reasons = Counter(m.reason for m in motions.values() if m.reason)
        reason, count = reasons.most_common(1)[0]
        where = "" if count == len(motions) else f" in {count} of {len(motions)} tensors"
        dormant = _unmeasured(reason + where, total, since).dormant
        dormant = replace(dormant, estimated=estimated)
    else:
        dormant = Dormant(
            fraction=sum(int(m.dormant.sum()) for m in known.values()) / seen,
            num_sampled=seen,
            since_step=since,
            chance=sum(sizes[name] * m.chance for name, m in known.items()) / seen,
            estimated=estimated,
            projection=ahead,
        )
    layers = {name: float(motion.dormant.mean()) for name, motion in known.items()}
    return Moved(dormant=dormant, movement=movement, layers=layers)


def _unmeasured(reason: str, num_sampled: int, since_step: int) -> Moved:
    nan = math.nan
    return Moved(
        Dormant(fraction=nan, num_sampled=num_sampled, since_step=since_step, reason=reason),
        Movement(
            update_to_weight=nan, sign_flips=nan, num_sampled=num_sampled, since_step=since_step
        ),
    )
