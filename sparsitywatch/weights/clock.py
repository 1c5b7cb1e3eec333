"""What the optimizer does to every weight alike: learning rates and decay, summed over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch

from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import is_sharded, local_of


@dataclass
class GroupClock:
    """Sums over the steps of one param group."""

    lr: float = 0.0
    decay: float = 0.0  # of lr * weight decay, or lr times what momentum made of it
    # of log(1 - lr * weight decay): decoupled decay multiplies a weight without gradient by its exp
    log_shrink: float = 0.0
    lr_squared: float = 0.0  # its root is how far random steps of size lr lead
    steps: int = 0  # with a learning rate above 0
    momentum: float = 0.0  # no sum: what SGD's buffer holds of the decay, per unit of weight

    def through_momentum(self, group: Mapping[str, Any]) -> float:
        """The decay that one step of ``torch.optim.SGD`` applies to a weight without gradient.

        SGD adds decay to the gradient. So it goes through the momentum buffer and acts again at
        the steps after: 1 / (1 - momentum) times as much in the end.
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


@dataclass
class DecayClock:
    """The clocks of an optimizer's param groups, in its order."""

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

    def averages(self, membership: Mapping[str, int], scope: Scope) -> tuple[float, float]:
        """The sums of decay and of the learning rate, averaged over the in-scope weights."""
        decay = weight_average([group.decay for group in self.groups], membership, scope)
        return decay, weight_average([group.lr for group in self.groups], membership, scope)

    def state_dict(self) -> list[list[float]]:
        """Plain numbers, one row per group."""
        return [list(astuple(group)) for group in self.groups]

    def load_state_dict(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.groups = [
            GroupClock(lr, decay, log_shrink, lr_squared, int(steps), momentum)
            for lr, decay, log_shrink, lr_squared, steps, momentum in state
        ]


@dataclass(frozen=True, kw_only=True)
class OptimizerReading:
    """What an optimizer has done up to one step; sums and rates are means over in-scope weights."""

    decay_clock: float = math.nan  # sum of lr * weight decay, as of ``GroupClock``; NaN if unknown
    lr_clock: float = math.nan
    lr: float = math.nan  # as it stands
    clock: DecayClock | None = None  # of the param groups; None if the optimizer cannot be seen
    membership: Mapping[str, int] = field(default_factory=dict)  # in-scope name to param group
    not_measurable: tuple[str, ...] = ()  # why not dormant weights, by param group; "" if they are
    #: names whose steps are taken on a copy of higher precision
    masters: frozenset[str] = frozenset()


def weight_average(values: Sequence[float], membership: Mapping[str, int], scope: Scope) -> float:
    """The groups' numbers averaged over the in-scope weights, 0 for those without a group."""
    total, weighted = 0, 0.0
    for name, size in scope.sizes:
        total += size
        group = membership.get(name, len(values))
        if group < len(values):
            weighted += size * values[group]
    return weighted / max(total, 1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Who trains the parameters."""

    optimizer: torch.optim.Optimizer  # the one that is watched
    clock: DecayClock  # of its param groups
    masters: Mapping[str, torch.Tensor] = field(default_factory=dict)  # as of ``masters_of``
    others: Iterable[torch.optim.Optimizer] = ()  # that were seen to step


def group_membership(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> dict[str, int]:
    """Name to index of the param group that trains it; names without a group are absent."""
    groups = enumerate(optimizer.param_groups)
    group_of = {id(p): index for index, group in groups for p in group["params"]}
    found = {name: group_of.get(id(stepped_on(p))) for name, p in parameters.items()}
    return {name: group for name, group in found.items() if group is not None}


def stepped_on(parameter: torch.Tensor) -> torch.Tensor:
    """What an optimizer has of a parameter: itself but under FSDP1."""
    flat = getattr(parameter, "flat_shard", None)
    return parameter if flat is None else flat.owner


def masters_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The copies of higher precision that an optimizer steps on instead of some weights, by name.

    A copy is known by its shape and by being the weight when rounded to the weight's dtype, which
    it is right after a step. Copies in several groups are not told apart.
    """
    trained = [(p, k) for k, group in enumerate(optimizer.param_groups) for p in group["params"]]
    own = {id(p) for p, _ in trained}
    found = {}
    for name, weight in parameters.items():
        if id(weight) in own or hasattr(weight, "flat_shard"):
            continue
        alike = [(p, k) for p, k in trained if _is_master(p, weight)]
        if len({group for _, group in alike}) == 1:
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
