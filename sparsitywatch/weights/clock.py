"""What the optimizer does to every weight alike: learning rates and decay, summed over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import is_sharded, local_of

__all__ = [
    "ClockReading",
    "DecayClock",
    "GroupClock",
    "OptimizerReading",
    "group_membership",
    "masters_of",
    "stepped_on",
    "weight_averages",
]


@dataclass
class GroupClock:
    """Sums over the steps of one param group.

    Args:
        lr: sum of the learning rate.
        decay: sum of learning rate times weight decay, or times what momentum made of it.
        log_shrink: sum of log(1 - lr * weight decay), likewise: a weight without gradient has
            been multiplied by exp(log_shrink) under decoupled decay.
        lr_squared: sum of the learning rate squared: how far random steps of size lr lead is
            its root.
        steps: number of steps with a learning rate above 0.
        momentum: what SGD's momentum buffer holds of the decay, per unit of weight.
    """

    lr: float = 0.0
    decay: float = 0.0
    log_shrink: float = 0.0
    lr_squared: float = 0.0
    steps: int = 0
    momentum: float = 0.0

    def through_momentum(self, group: Mapping[str, Any]) -> float:
        """The decay that one step of ``torch.optim.SGD`` applies to a weight without gradient.

        SGD adds decay to the gradient, so that it goes through the momentum buffer and each bit
        of it acts again at the steps after: 1 / (1 - momentum) times as much in the end.
        """
        decay, mu = float(group.get("weight_decay", 0.0)), float(group.get("momentum", 0.0))
        # the first gradient enters the buffer whole, dampened or not, as in torch
        kept = 1.0 - float(group.get("dampening", 0.0)) if self.momentum else 1.0
        self.momentum = mu * self.momentum + kept * decay
        return decay + mu * self.momentum if group.get("nesterov") else self.momentum

    def advance(self, lr: float, weight_decay: float) -> None:
        """One optimizer step."""
        self.lr += lr
        self.decay += lr * weight_decay
        # lr * weight_decay >= 1 would wipe the weights out; then no shrink factor exists
        factor = 1.0 - lr * weight_decay
        self.log_shrink += math.log(factor) if factor > 0 else -math.inf
        self.lr_squared += lr * lr
        self.steps += int(lr > 0.0)

    def since(self, earlier: GroupClock) -> GroupClock:
        """What happened between ``earlier`` and now."""
        return GroupClock(
            self.lr - earlier.lr,
            self.decay - earlier.decay,
            self.log_shrink - earlier.log_shrink,
            self.lr_squared - earlier.lr_squared,
            self.steps - earlier.steps,
        )


@dataclass(frozen=True)
class ClockReading:
    """What the clocks say about the in-scope weights as a whole.

    Args:
        decay: sum of learning rate times weight decay, or times what momentum made of it.
        lr: sum of the learning rate.
    """

    decay: float
    lr: float


@dataclass
class DecayClock:
    """The clocks of an optimizer's param groups.

    Args:
        groups: one clock per param group, in the optimizer's order.
    """

    groups: list[GroupClock] = field(default_factory=list)

    def advance(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step, with the param groups as they stood when it was taken."""
        is_sgd = isinstance(optimizer, torch.optim.SGD)
        while len(self.groups) < len(optimizer.param_groups):
            self.groups.append(GroupClock())
        for clock, group in zip(self.groups, optimizer.param_groups, strict=False):
            decay = float(group.get("weight_decay", 0.0))
            if is_sgd and decay and group.get("momentum"):
                decay = clock.through_momentum(group)
            clock.advance(float(group.get("lr", 0.0)), decay)

    def copy(self) -> DecayClock:
        """The clock as it stands now."""
        return DecayClock(list(map(replace, self.groups)))

    def since(self, earlier: DecayClock) -> list[GroupClock]:
        """What happened to each param group between ``earlier`` and now."""
        before = earlier.groups + [GroupClock()] * (len(self.groups) - len(earlier.groups))
        return list(map(GroupClock.since, self.groups, before))

    def reading(self, membership: Mapping[str, int], scope: Scope) -> ClockReading:
        """The sums so far, averaged over the in-scope weights.

        Args:
            membership: in-scope name to index of its param group; names that the optimizer
                does not train stand still at 0.
            scope: gives the number of weights per name.
        """
        sums = [g.decay for g in self.groups], [g.lr for g in self.groups]
        return ClockReading(*weight_averages(sums, membership, scope))

    def state_dict(self) -> list[list[float]]:
        """Plain numbers, one row per group."""
        return [
            [g.lr, g.decay, g.log_shrink, g.lr_squared, g.steps, g.momentum] for g in self.groups
        ]

    def load_state_dict(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.groups = [
            GroupClock(lr, decay, log_shrink, lr_squared, int(steps), *momentum)
            for lr, decay, log_shrink, lr_squared, steps, *momentum in state  # older states: none
        ]


@dataclass(frozen=True, kw_only=True)
class OptimizerReading:
    """What an optimizer has done up to one step.

    Args:
        decay_clock: sum of lr times weight decay, or times what SGD's momentum made of it,
            averaged over the in-scope weights; NaN if unknown.
        lr_clock: sum of lr, likewise.
        lr: the learning rate as it stands, likewise.
        clock: the clocks of the param groups; None if the optimizer cannot be seen.
        membership: in-scope name to index of its param group.
        not_measurable: why dormant weights cannot be measured, by param group; empty if they can.
        masters: names whose steps are taken on a copy of higher precision.
    """

    decay_clock: float = math.nan
    lr_clock: float = math.nan
    lr: float = math.nan
    clock: DecayClock | None = None
    membership: Mapping[str, int] = field(default_factory=dict)
    not_measurable: tuple[str, ...] = ()
    masters: frozenset[str] = frozenset()


def weight_averages(
    values: Sequence[Sequence[float]], membership: Mapping[str, int], scope: Scope
) -> list[float]:
    """Numbers of the param groups, averaged over the in-scope weights.

    Args:
        values: K times, one number per param group.
        membership: in-scope name to index of its param group; a name without one counts as 0.
        scope: gives the number of weights per name.

    Returns:
        K averages.
    """
    total, sums = 0, [0.0] * len(values)
    for name, size in scope.sizes:
        total += size
        group = membership.get(name)
        if group is None:
            continue
        for k, one_per_group in enumerate(values):
            if group < len(one_per_group):
                sums[k] += size * one_per_group[group]
    return [weighted / max(total, 1) for weighted in sums]


def group_membership(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> dict[str, int]:
    """Name to index of the param group that trains it; names without a group are absent."""
    group_of: dict[int, int] = {}
    for index, group in enumerate(optimizer.param_groups):
        group_of.update(dict.fromkeys(map(id, group["params"]), index))
    found = {}
    for name, parameter in parameters.items():
        trained = id(stepped_on(parameter))
        if trained in group_of:
            found[name] = group_of[trained]
    return found


def stepped_on(parameter: torch.Tensor) -> torch.Tensor:
    """What an optimizer has of a parameter: itself but under FSDP1."""
    flat = getattr(parameter, "flat_shard", None)
    return parameter if flat is None else flat.owner


def masters_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The copies of higher precision that an optimizer steps on instead of some weights.

    A copy is known by its shape and by being the weight when rounded to the weight's dtype.

    Args:
        optimizer: whose parameters may be copies.
        parameters: the model's own weights by name, equal to their copies at this moment.

    Returns:
        Name to copy; names that the optimizer trains itself, or knows nothing of, are absent.
    """
    trained = [(p, k) for k, group in enumerate(optimizer.param_groups) for p in group["params"]]
    own = {id(p) for p, _ in trained}
    found = {}
    for name, weight in parameters.items():
        if id(weight) in own or hasattr(weight, "flat_shard"):
            continue
        alike = [(p, k) for p, k in trained if _is_master(p, weight)]
        if alike and len({group for _, group in alike}) == 1:
            found[name] = alike[0][0]
    return found


def _is_master(copy: torch.Tensor, weight: torch.Tensor) -> bool:
    if copy.shape != weight.shape or copy.dtype.itemsize <= weight.dtype.itemsize:
        return False
    if is_sharded(copy) or is_sharded(weight):  # what is split is split alike, or is no copy
        copy, weight = local_of(copy), local_of(weight)
        if copy.shape != weight.shape:
            return False
    first, rounded = weight.detach().reshape(-1)[:8], copy.detach().reshape(-1)[:8]
    if copy.device != weight.device or not torch.equal(rounded.to(weight.dtype), first):
        return False  # the cheap test first
    return torch.equal(copy.detach().to(weight.dtype), weight.detach())
