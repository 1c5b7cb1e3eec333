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
    #: law; "swings": through momentum that carries weights beyond zero; "none"; "unknown"
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
    kind = _kind_of_any(optimizer)
    if kind.decay == "normalised" and group.get("decoupled_weight_decay"):
        return kind._replace(decay="decoupled")
    if kind.decay == "normalised" and not group.get("weight_decay"):
        return kind._replace(decay="none")
    if kind.decay == "raw" and _swings(*(float(group[word]) for word in _READ["raw"])):
        return kind._replace(decay="swings")
    return kind


def _kind_of_any(optimizer: optim.Optimizer) -> Kind:
    """The same, whatever a group says of its decay."""
    kind = _kind_of_classes(type(optimizer).__mro__)
    return _kind_of_any(optimizer.optim) if kind == _SHARDED else kind  # type: ignore[attr-defined]


@lru_cache(maxsize=64)  # it is asked of each param group at each snapshot
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
    "swings": "weight decay of {} through its momentum carries weights beyond zero and back",
    "unknown": "how {} applies weight decay is not known",
}


_NO_LAW_EARLIER = "at an earlier step weight decay shrank the weights by no law that is known"


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
#: What each param group says of a step, by ``Kind.decay`` of the optimizer's class: of other
#: optimizers the same words may mean something else.
_READ = {
    "decoupled": ("lr", "weight_decay"),
    "raw": ("lr", "weight_decay", "momentum", "dampening", "nesterov"),
    "normalised": ("lr", "weight_decay", "decoupled_weight_decay"),
    "none": ("lr",),
    "unknown": ("lr",),
}
#: What a group says as it is; a tensor is asked for its number.
_NUMBERS = {float, int, bool, np.float64}


class _Step(NamedTuple):
    """One step that is not added up yet."""

    rates: np.ndarray  # [words of _READ, groups]; the same object as long as nothing changes
    is_own: np.ndarray | None  # bool [H], which tensors are its own, by place; None: all
    is_taken: np.ndarray | None  # which it reached; None: all


def _clocks_of(decay: str, rates: np.ndarray) -> np.ndarray:
    """What steps without momentum add to each ``Clock``, [6, ...], by rates [words, ...]."""
    lr, *others = rates
    weight_decay = others[0] if others else np.zeros_like(lr)
    if decay != "normalised":
        return _clocks(lr, weight_decay, np.full(lr.shape, decay != "unknown"))
    return _clocks(lr, weight_decay, (others[1] != 0.0) | (weight_decay == 0.0))


def _clocks(lr: np.ndarray, weight_decay: np.ndarray, is_law: np.ndarray) -> np.ndarray:
    """As ``Clock.of_step``, of many, [6, ...]; where decay is no law it is not known."""
    steps, shrink = (lr > 0.0) * 1.0, np.where(is_law, lr * weight_decay, 0.0)
    log_shrink = np.log1p(-np.minimum(shrink, 1.0))
    return np.stack([lr, shrink, log_shrink, lr * lr, steps, np.where(is_law, 0.0, steps)])


def _clocks_by_momentum(rates: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a step of SGD adds to the clocks of H tensors, [6, H], and their buffers after it."""
    # decay goes through the buffer: in the end 1 / (1 - momentum) times as much of it. The first
    # gradient enters the buffer whole, dampened or not, as in torch
    lr, decay, mu, dampening, nesterov = rates
    now = mu * before + np.where(before != 0.0, 1.0 - dampening, 1.0) * decay
    has_buffer = mu != 0.0
    through = np.where(nesterov > 0.0, decay + mu * now, now)
    clocks = _clocks(lr, np.where(has_buffer, through, decay), ~np.asarray(_swings(*rates)))
    return clocks, np.where(has_buffer, now, before)


def _swings(
    lr: Any, weight_decay: Any, momentum: Any, dampening: Any, nesterov: Any
) -> bool | np.ndarray:
    """Whether a weight that only SGD's decay moves goes through zero, as a weak damping lets it."""
    # its steps and the buffer's are a linear map; weights swing where its eigenvalues are complex
    most = np.where(
        nesterov, ((1.0 - momentum) / (1.0 + momentum)) ** 2,
        (1.0 - np.sqrt(momentum)) ** 2 / np.maximum(1.0 - dampening, 1e-300),
    )  # fmt: skip
    return np.asarray((momentum > 0.0) & (lr * weight_decay > (1.0 + 1e-12) * most))


class Account:
    """What one optimizer has done to each tensor that it holds, by row.

    A step reaches the tensors that have a gradient then: torch's optimizers leave out the others,
    and their decay.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = weakref.ref(optimizer)
        self._decay = _kind_of_any(optimizer).decay
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
        #: What the param groups said of each word of _READ, None to ask again; what followed.
        self._said: list[list[Any] | None] = []
        self._rates = np.empty((0, 0))
        self.called: dict[int, tuple[str, ...]] = {}  # names in the model by id, that rows follow
        self._row_of: MutableMapping[torch.Tensor, int] = WeakTensorKeyDictionary()
        self._sizes: list[int] = []  # of the groups
        self._held: list[int] = []  # ids in their order, which ...
        self._rows = self._groups = np.empty(0, int)  # ... these follow

    @property
    def is_current(self) -> bool:
        """Whether the optimizer holds the tensors that are known."""
        optimizer = self.optimizer()
        groups = [] if optimizer is None else list(map(_params, optimizer.param_groups))
        # caches are cold at each step, and a call costs more than what it does
        is_alike = self._sizes == list(map(len, groups))
        return is_alike and self._held == list(map(id, chain.from_iterable(groups)))

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
        if names == self.called and self.is_current:  # as at most snapshots
            return
        self.called = names
        self._add_up()
        groups = list(map(_params, optimizer.param_groups))
        tensors = list(chain.from_iterable(groups))
        for tensor in tensors:
            called, row = names.get(id(tensor), ()), self._row_of.get(tensor)
            if row is None or self.names[row] not in ((), called):
                row = self._row_of[tensor] = len(self.names)
                self.names.append(called)
            self.names[row] = called
        self.is_of_model = any(self.names)
        more = len(self.names) - self._table.shape[1]
        self._table = np.pad(self._table, ((0, 0), (0, more)))
        self._sizes, self._held = list(map(len, groups)), list(map(id, tensors))
        self._said = [None] * len(_READ[self._decay])
        self._rates = np.empty((len(self._said), len(groups)))
        self._rows = np.array([self._row_of[tensor] for tensor in tensors], int)
        self._groups = np.repeat(np.arange(len(groups)), self._sizes)
        held = (name for row in self._rows.tolist() for name in self.names[row])
        self.num_in_scope = sum(sizes.get(name, 0) for name in held)

    def advance(self, reached: Collection[int] = (), *, is_seen: bool = True) -> None:
        """One step; tensors whose ids optimizers inside it have ``reached`` are left out."""
        optimizer = self.optimizer()
        if optimizer is None or not self._held:
            return
        self.num_steps += 1
        groups = optimizer.param_groups
        # of a step that was not seen the gradients are gone: it reached all
        held = chain.from_iterable(map(_params, groups)) if is_seen else ()
        is_reached = [tensor.grad is not None for tensor in held]
        is_own = is_taken = None
        if is_seen and True not in is_reached:
            # an optimizer that is not known may have dropped them
            is_reached = [self._decay == _UNKNOWN.decay] * len(self._held)
        if reached:
            is_own = is_taken = np.array([key not in reached for key in self._held])
        if not all(is_reached):
            is_taken = np.logical_and(is_reached, True if is_own is None else is_own)
        self._steps.append(_Step(self._rates_of(groups), is_own, is_taken))
        if len(self._steps) == _MANY_STEPS:
            self._add_up()

    def _rates_of(self, groups: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What the param groups say now, as of ``_Step``."""
        rates = self._rates
        for place, word in enumerate(_READ[self._decay]):
            said: list[Any] = [group.get(word, 0.0) for group in groups]
            if said == self._said[place]:
                continue
            self._said[place] = said
            if not _NUMBERS.issuperset(map(type, said)):
                # a tensor may change in place, and be that of all groups: it waits for the device,
                # once a step
                numbers = {id(x): x.item() for x in dict.fromkeys(said) if torch.is_tensor(x)}
                self._said[place], said = None, [numbers.get(id(x), x) for x in said]
            if rates is self._rates:  # the steps before have theirs
                rates = rates.copy()
            rates[place] = np.array(said, np.float64)
        self._rates = rates
        return rates

    @np.errstate(all="ignore")  # of rates that are not finite, and of decay that wipes weights out
    def _add_up(self) -> None:
        """Add the latest steps to what was done, in their order."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        held = self._table.take(self._rows, axis=1)
        taken, offered, momentum, last = held[:6], held[6:12], held[12], held[13]
        each = {id(step.rates): step.rates for step in steps}
        has_buffers = self._decay == "raw" and any(rates[2].any() for rates in each.values())
        if not has_buffers:
            clocks = _clocks_of(self._decay, np.stack([*each.values()], axis=1))
            each = dict(zip(each, clocks.swapaxes(0, 1), strict=True))
        rates, added = None, held[:6]
        for number, step in enumerate(steps, self.num_steps - len(steps) + 1):
            is_own = True if step.is_own is None else step.is_own
            is_taken = True if step.is_taken is None else step.is_taken
            if has_buffers:
                own_rates = step.rates.take(self._groups, axis=1)
                added, now = _clocks_by_momentum(own_rates, momentum)
                np.copyto(momentum, now, where=is_taken)
            elif step.rates is not rates:
                rates = step.rates
                added = each[id(rates)].take(self._groups, axis=1)
            np.add(taken, added, out=taken, where=is_taken)
            np.add(offered, added, out=offered, where=is_own)
            np.copyto(last, number, where=is_taken)
        self._table[:, self._rows] = held

    def sums(self) -> dict[str, Sums]:
        """By the names of the model."""
        self._add_up()
        rows = [Sums(Clock(*row[:6]), Clock(*row[6:12]), row[12]) for row in self._table.T.tolist()]
        held = zip(self.names, rows, strict=True)
        return united({name: sums} for names, sums in held for name in names)

    def take_over(self, earlier: dict[str, Sums]) -> None:
        """Go on from what was done before, to the last bit; what is taken over is taken out."""
        self._add_up()
        for row, names in enumerate(self.names if earlier else ()):
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

    def begin_anew(self) -> None:
        """What was done, and the names, of a model that has changed; momentum goes on."""
        self._add_up()
        self._table[:12] = 0.0
        self.names, self.called, self._held = [()] * len(self.names), {}, []

    def trainers(self) -> dict[str, Trainer]:
        """By name what it is to each tensor of the model; to be asked once a snapshot."""
        optimizer = self.optimizer()
        if optimizer is None:
            return {}
        self._add_up()
        looked_at, self.looked_at = self.looked_at, self.num_steps
        since = max(min(looked_at, self.num_steps - FEW_STEPS), 0)
        found: dict[str, Trainer] = {}
        made: dict[tuple[float, ...], Trainer] = {}  # most tensors of a group have one alike
        done = self._table[[4, 13]].take(self._rows, axis=1).T.tolist()
        held = zip(self._rows.tolist(), self._groups.tolist(), _held_by(optimizer), strict=True)
        for (row, index, tensor), (num_taken, last) in zip(held, done, strict=True):
            step = _step_of(optimizer, tensor)
            key = (index, step, num_taken, last)
            if key not in made:
                group = optimizer.param_groups[index]
                kind = kind_of(optimizer, group)
                made[key] = Trainer(
                    optimizer=optimizer,
                    kind=kind,
                    lr=float(group.get("lr", 0.0)),
                    farthest=farthest(kind, group, step),
                    has_past=step > num_taken,
                    momentum=float(group.get("momentum", 0.0)),
                    is_active=last > since,
                    num_missed=int(self.num_steps - last) if last <= looked_at else 0,
                )
            found |= dict.fromkeys(self.names[row], made[key])
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
    before_clip: float = math.nan  # norm of the gradients before a clip, as the training said it
    not_decayed: Container[str] = frozenset()  # of which steps do not have the decay that is stated


@dataclass(frozen=True, kw_only=True)
class OptimizerReading:
    """What optimizers have done up to one step; means are over what they reached of the scope."""

    decay_clock: float = math.nan  # sum of lr * weight decay; NaN if some of it is unknown
    why_no_clock: str = ""  # why it is NaN; empty if it is not, and where no optimizer is seen
    lr_clock: float = math.nan
    lr: float = math.nan  # as it stands
    trained: float = math.nan  # share of those that require grad that steps have reached lately
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
    to_train = {name for name in sizes if name not in training.frozen}
    active = sum(sizes[n] for n, one in trainers.items() if one.is_active and n in to_train)
    whole = sum(sizes[name] for name in to_train)
    whys = [why_no_clock(one.optimizer, one.kind) for one in trainers.values()]
    return OptimizerReading(
        decay_clock=decay if reached else 0.0,
        why_no_clock=next(filter(None, whys), _NO_LAW_EARLIER)
        if reached and math.isnan(decay)
        else "",
        lr_clock=lr if reached else 0.0,
        lr=mean_over(sizes, {name: one.lr for name, one in trainers.items()}),
        trained=active / whole if training.has_begun and whole else math.nan,
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
