"""What optimizers do to weights, tensor by tensor: steps, learning rates and decay, summed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Container, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from operator import add, itemgetter, sub
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import optim
from torch.utils.weak import WeakTensorKeyDictionary

from sparsitywatch.weights.sharded import Tensors, local_of, stepped_on


class Clock(NamedTuple):
    """Sums over the optimizer steps of one tensor."""

    lr: float = 0.0
    decay: float = 0.0  # of lr * weight decay, or of lr times what momentum made of it
    # of log(1 - lr * weight decay): decoupled decay multiplies a weight without gradient by its exp
    log_shrink: float = 0.0
    lr_squared: float = 0.0  # its root is how far random steps of size lr lead
    steps: float = 0.0  # with a learning rate above 0
    num_unknown: float = 0.0  # of these, whose decay is not known

    @classmethod
    def of_step(cls, lr: float, weight_decay: float) -> Clock:
        """One step; of a decay that is NaN it is not known."""
        steps = float(lr > 0.0)
        if math.isnan(weight_decay):
            return cls(lr, 0.0, 0.0, lr * lr, steps, steps)
        shrink = lr * weight_decay
        # lr * weight_decay >= 1 would wipe the weights out; then no shrink factor exists
        log_shrink = math.log1p(-shrink) if shrink < 1.0 else -math.inf
        return cls(lr, shrink, log_shrink, lr * lr, steps)

    def since(self, earlier: Clock) -> Clock:
        """What happened between ``earlier`` and now."""
        return Clock(*map(sub, self, earlier))

    def plus(self, other: Clock) -> Clock:
        """Both together."""
        return Clock(*map(add, self, other))

    @property
    def known_decay(self) -> float:
        """The sum of decay; NaN where some of it is not known."""
        return math.nan if self.num_unknown else self.decay


class Kind(NamedTuple):
    """What one step does to a weight, as the class of the optimizer has it."""

    #: "decoupled": lr * weight_decay of it goes; "raw": the same through the gradient and its
    #: momentum; "normalised": through a gradient that is divided by its own size, so that it is no
    #: law; "none"; "unknown"
    decay: str
    #: "lr": a weight with a gradient moves by about lr; "gradient": by lr times the gradient;
    #: "relative": by lr times the tensor's own size; "unknown"
    size: str
    #: what says how far a step can go at most, in units of that: "betas", as Adam's; "one";
    #: "clip_d"; empty where nothing does
    bound: str = ""


_UNKNOWN = Kind("unknown", "unknown")
_SHARDED = Kind("of its `optim`", "of its `optim`")
#: By the class that defines ``step``, as its source has it. In the families of Adam a param group
#: may say that its decay is decoupled, as those of AdamW do.
_KINDS = {
    "torch.optim.sgd.SGD": Kind("raw", "gradient"),
    "torch.optim.adam.Adam": Kind("normalised", "lr", "betas"),
    # before torch 2.7; then it is an Adam
    "torch.optim.adamw.AdamW": Kind("decoupled", "lr", "betas"),
    "torch.optim.nadam.NAdam": Kind("normalised", "lr"),
    "torch.optim.radam.RAdam": Kind("normalised", "lr"),
    "torch.optim.adamax.Adamax": Kind("normalised", "lr"),
    "torch.optim.sparse_adam.SparseAdam": Kind("none", "lr", "betas"),
    "torch.optim.adagrad.Adagrad": Kind("normalised", "unknown"),
    "torch.optim.adadelta.Adadelta": Kind("normalised", "unknown"),
    "torch.optim.rmsprop.RMSprop": Kind("normalised", "unknown"),
    "torch.optim.rprop.Rprop": Kind("none", "unknown"),
    "torch.optim.lbfgs.LBFGS": Kind("none", "unknown"),
    "torch.optim.Adafactor": Kind("decoupled", "relative", "clip_d"),
    "torch.optim.Muon": Kind("decoupled", "unknown"),
    "lion_pytorch.lion_pytorch.Lion": Kind("decoupled", "lr", "one"),
    "torch.distributed.optim.zero_redundancy_optimizer.ZeroRedundancyOptimizer": _SHARDED,
}


def kind_of(optimizer: optim.Optimizer, group: Mapping[str, Any]) -> Kind:
    """What a step does to the weights of one of its param groups, as that stands."""
    kind = _kind_of_classes(type(optimizer).__mro__)
    if kind == _SHARDED:
        return kind_of(optimizer.optim, group)  # type: ignore[attr-defined]
    if kind.decay == "normalised" and group.get("decoupled_weight_decay"):
        return kind._replace(decay="decoupled")
    if kind.decay == "normalised" and not group.get("weight_decay"):
        return kind._replace(decay="none")
    return kind


@lru_cache(maxsize=64)  # it is asked of each param group at each step
def _kind_of_classes(bases: tuple[type, ...]) -> Kind:
    base = next(base for base in bases if "step" in vars(base))
    return _KINDS.get(f"{base.__module__}.{base.__qualname__}", _UNKNOWN)


def farthest(kind: Kind, group: Mapping[str, Any], step: float) -> float:
    """The largest step, in units of ``Kind.size``, at the ``step`` of that number; or infinity."""
    if kind.bound == "betas":
        first, second = map(float, group["betas"])
        return _farthest_of_adam(first, second, step)
    if kind.bound == "clip_d":  # of the root mean square: most weights go no farther than this
        return math.sqrt(2.0) * float(group["d"])
    return 1.0 if kind.bound == "one" else math.inf


@lru_cache(maxsize=64)  # the same for all tensors that are in training as long
def _farthest_of_adam(first: float, second: float, step: float) -> float:
    """The most that a mean of gradients can be of the root of that of their squares."""
    # Kingma & Ba 2015 (arXiv:1412.6980, section 2.1) bound it for a gradient that comes alone. By
    # Cauchy and Schwarz it is, of all gradients, that of those that grow by second / first a step
    if not (0.0 <= first < 1.0 and 0.0 < second < 1.0 and step >= 1.0):
        return math.inf
    ratio = first * first / second
    if ratio >= 1.0:
        return math.inf
    all_alike = (1.0 - first) / math.sqrt((1.0 - second) * (1.0 - ratio))
    of_so_few = math.sqrt((1.0 - second**step) * (1.0 - ratio**step)) / (1.0 - first**step)
    return float(max(all_alike * of_so_few, 1.0))


#: Why decay does not shrink weights by a law that is known, by ``Kind.decay``.
_WHY_NO_CLOCK = {
    "normalised": "weight decay of {} is part of the gradient that it normalises, not decoupled",
    "unknown": "how {} applies weight decay is not known",
}


def why_no_clock(optimizer: optim.Optimizer, kind: Kind) -> str:
    """The same of one optimizer; empty if it does."""
    return _WHY_NO_CLOCK.get(kind.decay, "").format(type(optimizer).__name__)


def why_not_measurable(optimizer: optim.Optimizer, kind: Kind) -> str:
    """Why dormant weights cannot be told; empty if they can."""
    # the rule needs updates of about lr for every weight with a gradient, and decay beside it
    if kind.size != "lr":
        return f"updates of {type(optimizer).__name__} are not of the size of lr"
    return why_no_clock(optimizer, kind)


#: A tensor that was reached within so many steps is in training, however close the snapshots.
FEW_STEPS = 10


class Sums(NamedTuple):
    """What has been done to one tensor."""

    taken: Clock = Clock()
    offered: Clock = Clock()
    momentum: float = 0.0  # what SGD's buffer holds of the decay, per unit of weight; no sum

    def plus(self, other: Sums) -> Sums:
        """Both together, with the later buffer."""
        taken, offered = self.taken.plus(other.taken), self.offered.plus(other.offered)
        return Sums(taken, offered, other.momentum)


def united(parts: Iterable[Mapping[str, Sums]]) -> dict[str, Sums]:
    """What was done to each tensor in all of them, the earliest first."""
    found: dict[str, Sums] = {}
    for part in parts:
        for name, sums in part.items():
            found[name] = found[name].plus(sums) if name in found else sums
    return found


#: Steps are added up so many at a time: caches are cold between the steps of a model.
_MANY_STEPS = 64
#: What a param group says of a step, beside its kind.
_READ = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "decoupled_weight_decay")


class _GroupStep(NamedTuple):
    """What one step does to the tensors of one param group."""

    decay_by: str  # as ``Kind.decay``
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: float = 0.0

    @classmethod
    def of(cls, optimizer: optim.Optimizer, group: Mapping[str, Any]) -> _GroupStep:
        """As the group stands."""
        by = kind_of(optimizer, group).decay
        # of other optimizers the same words may mean something else
        names = ["lr", "weight_decay"] if by != "none" else ["lr"]
        names += ["momentum", "dampening", "nesterov"] if by == "raw" else []
        return cls(by, **{name: float(group.get(name, 0.0)) for name in names})

    @property
    def clock(self) -> Clock:
        """Of a step without momentum."""
        is_known = self.decay_by not in _WHY_NO_CLOCK
        return Clock.of_step(self.lr, self.weight_decay if is_known else math.nan)


class _Step(NamedTuple):
    """One step that is not added up yet."""

    groups: list[_GroupStep]
    is_own: np.ndarray | None  # bool [H], which tensors are its own, by place; None: all
    is_taken: np.ndarray | None  # which it reached; None: all


class Account:
    """What one optimizer has done to each tensor that it holds, by row.

    A step reaches the tensors that have a gradient then: torch's optimizers leave out the others,
    and their decay.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.num_steps = 0
        self.num_in_scope = 0  # weights that it holds
        # in the model: of one tensor, of several that lie flat in one (FSDP1), or of none
        self.names: list[tuple[str, ...]] = []
        self.is_of_model = False  # whether any of them is in it
        #: copies of higher precision that it holds, by the name of the weight
        self.copied: dict[str, weakref.ref[torch.Tensor]] = {}
        #: Of each row what reached it, as ``Clock``; what would have if there were always a
        #: gradient; the momentum, as of ``Sums``; the step that reached it last.
        self._table = np.zeros((14, 0))
        self.looked_at = 0  # steps at the last snapshot
        self._steps: list[_Step] = []  # the latest, which are not added up yet
        self._said: list[list[Any]] = []  # by the param groups, when ...
        self._group_steps: list[_GroupStep] = []  # ... this followed
        self._row_of: MutableMapping[torch.Tensor, int] = WeakTensorKeyDictionary()
        self._held: list[int] = []  # ids in the order of the groups, which ...
        self._rows = self._groups = np.empty(0, int)  # ... these follow

    @property
    def is_current(self) -> bool:
        """Whether the optimizer holds the tensors that are known."""
        optimizer = self.optimizer()
        groups = () if optimizer is None else optimizer.param_groups
        # as _held_by has it; caches are cold at each step, and a call costs more than what it does
        return self._held == list(map(id, chain.from_iterable(map(_params, groups))))

    def identify(
        self,
        optimizer: optim.Optimizer,
        parameters: Tensors,
        sizes: Mapping[str, int],  # of the weights in scope, by name
    ) -> None:
        """Take up what its ``optimizer`` holds now, and its names; rows of the past stay."""
        unknown = {name: one for name, one in parameters.items() if name not in self.copied}
        copies = masters_of(optimizer, unknown)
        self.copied |= {name: weakref.ref(copy) for name, copy in copies.items()}
        known = {name: one for name, ref in self.copied.items() if (one := ref()) is not None}
        names = names_of(parameters) | names_of(known)
        self._add_up()
        tensors = _held_by(optimizer)
        for tensor in tensors:
            called, row = names.get(id(tensor), ()), self._row_of.get(tensor)
            if row is None or self.names[row] not in ((), called):
                row = self._row_of[tensor] = len(self.names)
                self.names.append(called)
            self.names[row] = called
        self.is_of_model = any(self.names)
        more = len(self.names) - self._table.shape[1]
        self._table = np.pad(self._table, ((0, 0), (0, more)))
        groups = optimizer.param_groups
        self._held = list(map(id, tensors))
        self._rows = np.array([self._row_of[tensor] for tensor in tensors], int)
        self._groups = np.repeat(np.arange(len(groups)), [len(g["params"]) for g in groups])
        held = (name for row in self._rows.tolist() for name in self.names[row])
        self.num_in_scope = sum(sizes.get(name, 0) for name in held)

    def advance(self, reached: Collection[int] = (), *, is_seen: bool = True) -> None:
        """One step; tensors whose ids optimizers inside it have ``reached`` are left out."""
        optimizer = self.optimizer()
        if optimizer is None or not self._held:
            return
        self.num_steps += 1
        said = [list(map(group.get, _READ)) for group in optimizer.param_groups]
        if said != self._said:  # else nobody asks again; a tensor waits for the device
            # a tensor may change in place
            self._said = [[x.item() if torch.is_tensor(x) else x for x in one] for one in said]
            self._group_steps = [_GroupStep.of(optimizer, g) for g in optimizer.param_groups]
        # of a step that was not seen the gradients are gone: it reached all
        held = chain.from_iterable(map(_params, optimizer.param_groups)) if is_seen else ()
        is_reached = [tensor.grad is not None for tensor in held]
        is_own = is_taken = None
        if is_seen and not any(is_reached):
            # an optimizer that is not known may have dropped them
            is_reached = [self._group_steps[0].decay_by == _UNKNOWN.decay] * len(self._held)
        if reached or not all(is_reached):
            is_own = np.array([key not in reached for key in self._held])
            is_taken = is_own & is_reached if is_seen else is_own
        self._steps.append(_Step(self._group_steps, is_own, is_taken))
        if len(self._steps) == _MANY_STEPS:
            self._add_up()

    def _add_up(self) -> None:
        """Add the latest steps to what was done, in their order."""
        steps, self._steps = self._steps, []
        held = self._table[:, self._rows]
        taken, offered, (momentum, last) = held[:6], held[6:12], held[12:]
        groups: list[_GroupStep] = []
        added, buffered = held[:6], None  # of the step before
        for number, step in enumerate(steps, self.num_steps - len(steps) + 1):
            if step.groups is not groups or buffered is not None:
                groups = step.groups
                added, buffered = self._one_step(groups, momentum)
            own = slice(None) if step.is_own is None else step.is_own
            reached = slice(None) if step.is_taken is None else step.is_taken
            offered[:, own] += added[:, own]
            taken[:, reached] += added[:, reached]
            last[reached] = number
            if buffered is not None:
                momentum[reached] = buffered[reached]
        self._table[:, self._rows] = held

    def _one_step(
        self, groups: Sequence[_GroupStep], before: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What a step adds to the clocks of H held tensors, [6, H], and SGD's buffer."""
        added = np.array([group.clock for group in groups]).T[:, self._groups]
        is_buffered = [group.decay_by == "raw" and group.momentum != 0.0 for group in groups]
        if not any(is_buffered):
            return added, None
        # SGD's decay goes through the buffer: in the end 1 / (1 - momentum) times as much
        decay, mu, dampening, nesterov = np.array([g[2:] for g in groups]).T[:, self._groups]
        # the first gradient enters the buffer whole, dampened or not, as in torch
        now = mu * before + np.where(before != 0.0, 1.0 - dampening, 1.0) * decay
        where = np.array(is_buffered)[self._groups]
        shrink = added[0] * np.where(nesterov > 0.0, decay + mu * now, now)
        with np.errstate(divide="ignore"):
            added[1:3, where] = np.stack([shrink, np.log1p(-np.minimum(shrink, 1.0))])[:, where]
        return added, np.where(where, now, before)

    def sums(self) -> dict[str, Sums]:
        """By the names of the model."""
        self._add_up()
        rows = [Sums(Clock(*row[:6]), Clock(*row[6:12]), row[12]) for row in self._table.T.tolist()]
        held = zip(self.names, rows, strict=True)
        return united({name: sums} for names, sums in held for name in names)

    def take_over(self, earlier: dict[str, Sums]) -> None:
        """Go on from what was done before, to the last bit; what is taken over is taken out."""
        self._add_up()
        for row, names in enumerate(self.names):
            known = {earlier.get(name, Sums()) for name in names}
            if len(known) != 1 or known == {Sums()}:
                continue
            before = known.pop()  # with no momentum, of an optimizer that is gone
            self._table[:13, row] += [*before.taken, *before.offered, before.momentum]
            for name in names:
                del earlier[name]

    def forget(self) -> None:
        """What was done, to go on from what a state says instead."""
        self._add_up()
        self._table[:13] = 0.0

    def trainers(self) -> dict[str, Trainer]:
        """By name what it is to each tensor of the model; to be asked once a snapshot."""
        optimizer = self.optimizer()
        if optimizer is None:
            return {}
        self._add_up()
        looked_at, self.looked_at = self.looked_at, self.num_steps
        since = max(min(looked_at, self.num_steps - FEW_STEPS), 0)
        found: dict[str, Trainer] = {}
        held = zip(self._rows.tolist(), self._groups.tolist(), _held_by(optimizer), strict=True)
        for row, index, tensor in held:
            group = optimizer.param_groups[index]
            kind, step = kind_of(optimizer, group), _step_of(optimizer, tensor)
            num_taken, last = self._table[[4, 13], row]
            trainer = Trainer(
                optimizer=optimizer,
                kind=kind,
                lr=float(group.get("lr", 0.0)),
                farthest=farthest(kind, group, step),
                has_past=step > num_taken,
                momentum=float(group.get("momentum", 0.0)),
                is_active=bool(last > since),
                num_missed=int(self.num_steps - last) if last <= looked_at else 0,
            )
            found |= dict.fromkeys(self.names[row], trainer)
        return found


def _step_of(optimizer: optim.Optimizer, tensor: torch.Tensor) -> float:
    """How many steps it has taken for a tensor, as it counts them itself; infinity if unknown."""
    step = optimizer.state.get(tensor, {}).get("step", math.inf)  # .get: it may be a defaultdict
    is_near = not torch.is_tensor(step) or step.is_cpu  # else it would be waited for
    return float(step) if is_near else math.inf


_params = itemgetter("params")


def _held_by(optimizer: optim.Optimizer) -> list[torch.Tensor]:
    return list(chain.from_iterable(map(_params, optimizer.param_groups)))


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What steps on one tensor, and how."""

    optimizer: optim.Optimizer
    kind: Kind
    lr: float  # as it stands
    momentum: float
    farthest: float  # that a step can go, in units of ``Kind.size``; infinity if unknown
    has_past: bool  # whether it may have taken steps for the tensor that nobody saw
    is_active: bool  # whether a step has reached the tensor since the last snapshot, or lately
    num_missed: int  # steps since one has; 0 if one has since the last snapshot


@dataclass(frozen=True, kw_only=True)
class Training:
    """Who trains the parameters, and what has been done to them so far; by name."""

    trainers: Mapping[str, Trainer] = field(default_factory=dict)
    done: Mapping[str, Sums] = field(default_factory=dict)
    has_begun: bool = False  # whether any step was seen
    has_stepped: bool = False  # whether one was since the last snapshot
    copied: Container[str] = frozenset()  # of which a copy of higher precision is stepped on
    frozen: Container[str] = frozenset()  # that require no grad


@dataclass(frozen=True, kw_only=True)
class OptimizerReading:
    """What optimizers have done up to one step; means are over what they reached of the scope."""

    decay_clock: float = math.nan  # sum of lr * weight decay; NaN if some of it is unknown
    why_no_clock: str = ""  # why it is NaN; empty if it is not, and where no optimizer is seen
    lr_clock: float = math.nan
    lr: float = math.nan  # as it stands
    trained: float = math.nan  # share of the in-scope weights that steps have reached lately
    clocks: Mapping[str, Clock] = field(default_factory=dict)  # by in-scope name
    not_measurable: Mapping[str, str] = field(default_factory=dict)  # why not dormant weights
    masters: Container[str] = frozenset()  # stepped on is a copy of higher precision
    # of those to be trained that none has reached since the last snapshot, since how many steps
    missed: Mapping[str, int] = field(default_factory=dict)


def reading_of(training: Training, sizes: Mapping[str, int]) -> OptimizerReading:
    """What that says of the weights in scope, given how many each tensor has."""
    trainers = {name: one for name, one in training.trainers.items() if name in sizes}
    taken = {name: sums.taken for name, sums in training.done.items() if name in sizes}
    reached = {name: clock for name, clock in taken.items() if clock.lr > 0.0}
    decay = mean_over(sizes, {name: clock.known_decay for name, clock in reached.items()})
    lr = mean_over(sizes, {name: clock.lr for name, clock in reached.items()})
    active = sum(sizes[name] for name, one in trainers.items() if one.is_active)
    whys = [why_no_clock(one.optimizer, one.kind) for one in trainers.values()]
    return OptimizerReading(
        decay_clock=decay if reached else 0.0,
        why_no_clock=next(filter(None, whys), "") if math.isnan(decay) else "",
        lr_clock=lr if reached else 0.0,
        lr=mean_over(sizes, {name: one.lr for name, one in trainers.items()}),
        trained=active / sum(sizes.values()) if training.has_begun else math.nan,
        clocks=taken,
        not_measurable={n: why_not_measurable(o.optimizer, o.kind) for n, o in trainers.items()},
        masters=training.copied,
        missed={
            name: one.num_missed
            for name, one in trainers.items()
            if one.num_missed and name not in training.frozen
        },
    )


def mean_over(sizes: Mapping[str, int], values: Mapping[str, float]) -> float:
    """The mean of tensors' values over their weights; NaN of none."""
    total = sum(sizes[name] for name in values)
    return sum(sizes[name] * x for name, x in values.items()) / total if total else math.nan


def names_of(parameters: Tensors) -> dict[int, tuple[str, ...]]:
    """What the model calls each tensor that an optimizer may hold, by id."""
    found: dict[int, tuple[str, ...]] = {}
    for name, parameter in parameters.items():
        key = id(stepped_on(parameter))
        found[key] = (*found.get(key, ()), name)
    return found


def masters_of(optimizer: torch.optim.Optimizer, parameters: Tensors) -> dict[str, torch.Tensor]:
    """By name the copies of higher precision that an optimizer steps on instead of weights."""
    # one is the weight when rounded, right after a step; those in several groups are not told apart
    trained = [(p, k) for k, group in enumerate(optimizer.param_groups) for p in group["params"]]
    own = {id(p) for p, _ in trained}
    finest = max((p.dtype.itemsize for p, _ in trained), default=0)
    found = {}
    for name, weight in parameters.items():
        is_own = id(weight) in own or hasattr(weight, "flat_shard")
        if is_own or weight.dtype.itemsize >= finest:
            continue
        alike = [(p, k) for p, k in trained if _is_master(p, weight)]
        if len({group for _, group in alike}) == 1:
            found[name] = alike[0][0]
    return found


def _is_master(copy: torch.Tensor, weight: torch.Tensor) -> bool:
    is_finer = weight.is_floating_point() and copy.dtype.itemsize > weight.dtype.itemsize
    if not is_finer or copy.shape != weight.shape:
        return False
    copy, weight = local_of(copy), local_of(weight)
    if copy.shape != weight.shape:  # what is split is split alike, or is no copy
        return False
    first, rounded = weight.reshape(-1)[:8], copy.reshape(-1)[:8]
    if copy.device != weight.device or not torch.equal(rounded.to(weight.dtype), first):
        return False  # the cheap test first
    return torch.equal(copy.to(weight.dtype), weight)
