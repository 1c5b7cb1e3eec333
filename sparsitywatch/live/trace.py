"""The optimizers of a training: their steps, which of them count, and what they do to weights."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import iscode
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from sparsitywatch.errors import (
    ConfigurationError,
    StateError,
    expect,
    is_number,
    reraise_foreign,
)
from sparsitywatch.pipeline.measure import Examined, Examiner, Seen
from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.vital.one_step import OneStep
from sparsitywatch.weights.clock import (
    Account,
    Clock,
    OptimizerReading,
    Sums,
    Trainer,
    Training,
    names_of,
    reading_of,
    united,
)
from sparsitywatch.weights.motion import MotionTracker
from sparsitywatch.weights.sharded import Tensors, is_sharded
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

Optimizer = torch.optim.Optimizer

#: After this many steps of others, and none that counts, it is said.
_FEW_STEPS = 10


def unwrap_optimizers(given: object) -> tuple[Optimizer, ...]:
    """The optimizers that take the steps, inside wrappers such as Accelerate's; none of None."""
    if given is None:
        return ()
    listed = given if isinstance(given, list | tuple) else [given]
    expect(listed, "optimizer", "at least one, or None for whatever steps this model", given)
    return tuple(dict.fromkeys(map(_unwrap_optimizer, listed)))


def _unwrap_optimizer(optimizer: object) -> Optimizer:
    inner = optimizer
    while not (isinstance(inner, Optimizer) and "_optimizer_step_post_hooks" in vars(inner)):
        held = (getattr(inner, name, None) for name in ("optimizer", "opt"))
        inner = next((one for one in held if one is not None), None)
        if inner is None:
            raise ConfigurationError(
                "Expected `optimizer` to be a torch.optim.Optimizer, a wrapper that holds one as "
                f"`.optimizer` or `.opt`, a list of them or None, got {type(optimizer)}. "
                "Pass optimizer=None and call watcher.step() after each step instead."
            )
    return inner


class Step(NamedTuple):
    """A step of an optimizer that has ended."""

    optimizer: Optimizer
    reached: Collection[int] = ()  # ids of the tensors that optimizers inside it have stepped on
    inner: Sequence[Optimizer] = ()  # these optimizers
    outer: Sequence[Optimizer] = ()  # in whose steps it was
    since_s: float = 0.0  # for which hooks have been called so far


class _Begun:
    """A step that has begun, and what was done inside it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)  # one that has raised may be let go
        self.reached: set[int] = set()
        self.inner: list[Optimizer] = []
        self.spent_s = 0.0

    @property
    def optimizer(self) -> Optimizer | None:
        """Whose step it is; None if that is gone."""
        return self._optimizer()


class StepHook:
    """Calls ``before(optimizer)``, until ``begin``, and ``after(step)`` around every step.

    That is, every step that an optimizer takes in the process; what one does in a step of its own,
    as a subclass that calls ``super().step()``, is part of that.

    Both are methods of a watch, held weakly. It lives as long as an optimizer that it is tied to,
    also if nobody else holds it; until then the process holds it. Two hooks of torch serve all
    watches of a process. torch goes through its hooks while they run, so they are taken off between
    steps only, never by the garbage collector in the middle of one, nor while another thread may be
    in one.
    """

    _alive: ClassVar[tuple[weakref.ref[StepHook], ...]] = ()
    _untied: ClassVar[dict[int, object]] = {}  # watches, by the id of their hook
    _of_torch: ClassVar[list[RemovableHandle]] = []
    #: whose hooks run now; to set attributes of the class would make Python forget where they are
    _called: ClassVar[list[Optimizer]] = []
    #: the steps that have begun in each thread that has stepped, the outermost first
    _begun: ClassVar[dict[int, list[_Begun]]] = {}
    _lock: ClassVar[Any] = threading.RLock()  # the garbage collector may remove one anywhere

    def __init__(self, before: Callable[[Optimizer], None], after: Callable[[Step], None]) -> None:
        self._before: weakref.WeakMethod[Any] | None = weakref.WeakMethod(before)
        self._after = weakref.WeakMethod(after)
        self._is_on = True
        self.tie: RemovableHandle | None = None  # what the watch lives by
        self._untied[id(self)] = before.__self__  # type: ignore[attr-defined]
        with self._lock:
            StepHook._alive = (*StepHook._alive, weakref.ref(self))
            if not StepHook._of_torch:
                StepHook._of_torch += [
                    register_optimizer_step_pre_hook(_uncompiled(StepHook._call_before)),
                    register_optimizer_step_post_hook(_uncompiled(StepHook._call_after)),
                ]

    @classmethod
    def alive(cls) -> list[StepHook]:
        """Those that are called."""
        found = (ref() for ref in cls._alive)
        return [hook for hook in found if hook is not None and hook._is_on]

    def tie_to(self, optimizer: Optimizer) -> None:
        """Live as long as ``optimizer``."""
        self._untied.pop(id(self), None)
        # who holds this method holds the watch; no step calls it
        self.tie = optimizer.register_state_dict_pre_hook(partial(_stay, self._after()))

    def wait(self, before: Callable[[Optimizer], None]) -> None:
        """Call this method of the watch before steps, until ``begin``."""
        self._before = weakref.WeakMethod(before)

    def begin(self) -> None:
        """Call no more before steps."""
        self._before = None

    def remove(self) -> None:
        """Call no more; may be called in a call, and again."""
        self._is_on = False
        self._untied.pop(id(self), None)
        if self.tie is not None:
            self.tie.remove()
        with self._lock:
            StepHook._alive = tuple(map(weakref.ref, self.alive()))
            if begun := self._begun.get(threading.get_ident()):  # the last may have raised
                begun[:] = _running(begun)
            threads = self._begun.keys() & sys._current_frames().keys()
            if not (StepHook._alive or self._called or threads - {threading.get_ident()}):
                self._begun.clear()
                while StepHook._of_torch:
                    StepHook._of_torch.pop().remove()

    @staticmethod
    def _call_before(optimizer: Optimizer) -> None:
        since = time.perf_counter()
        begun = StepHook._begun.setdefault(threading.get_ident(), [])
        if begun:
            begun[:] = _running(begun, optimizer)
        is_part = any(one.optimizer is optimizer for one in begun)
        begun.append(this := _Begun(optimizer))
        for ref in () if is_part else StepHook._alive:
            hook = ref()
            before = hook._before if hook is not None and hook._is_on else None
            if before is not None and (call := before()) is not None:
                StepHook._called.append(optimizer)
                try:
                    call(optimizer)
                finally:
                    StepHook._called.pop()
                since = time.perf_counter()  # the watch counts that itself
        this.spent_s = time.perf_counter() - since

    @staticmethod
    def _call_after(optimizer: Optimizer) -> None:
        since = time.perf_counter()
        begun = StepHook._begun.get(threading.get_ident(), [])
        this = _Begun(optimizer)  # if hooks began in the middle of it
        for place in range(len(begun) - 1, -1, -1):
            if begun[place].optimizer is optimizer:
                this = begun[place]
                since -= this.spent_s
                del begun[place:]
                break
        outer = [one for begin in begun if (one := begin.optimizer) is not None]
        if begun:
            begun[-1].reached |= this.reached
            begun[-1].inner += this.inner
        if optimizer in outer:
            return
        if begun:
            begun[-1].reached.update(id(p) for g in optimizer.param_groups for p in g["params"])
            begun[-1].inner.append(optimizer)
        StepHook._called.append(optimizer)
        try:
            for ref in StepHook._alive:
                hook = ref()
                # another one may have taken it off
                call = hook._after() if hook is not None and hook._is_on else None
                if call is not None:
                    since_s = time.perf_counter() - since
                    call(Step(optimizer, this.reached, this.inner, outer, since_s))
                    since = time.perf_counter()
        finally:
            StepHook._called.pop()


def _stay(_: object, __: Optimizer) -> None:
    """Nothing: it holds a watch."""


if hasattr(os, "register_at_fork"):  # another thread may hold it when a child is forked
    os.register_at_fork(after_in_child=StepHook._lock._at_fork_reinit)


#: What torch has wrapped a step in, which calls the hooks.
_WRAPPERS = {one for one in Optimizer.profile_hook_step.__code__.co_consts if iscode(one)}


def _running(begun: Sequence[_Begun], optimizer: Optimizer | None = None) -> list[_Begun]:
    """The steps that are not over, as one that has raised is, where ``optimizer`` begins one."""
    # a method of an optimizer has called, over whatever way, what asks
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe(1))]
    called = [(frame.f_locals.get("self"), frame.f_code in _WRAPPERS) for frame in frames]
    others = {id(one) for one, _ in called if one is not optimizer and one is not None}
    num_own = sum(one is optimizer and is_step for one, is_step in called) - 1
    own = [one for one in begun if one.optimizer is optimizer][: max(num_own, 0)]
    return [one for one in begun if one in own or id(one.optimizer) in others]


def _is_made_up(optimizer: Optimizer) -> bool:
    """Whether torch.distributed.checkpoint steps, to have an optimizer's state before any step."""
    stack = traceback.walk_stack(sys._getframe())
    is_still = not any(group.get("lr") for group in optimizer.param_groups)
    return is_still and any(frame.f_code.co_name == "_init_optim_state" for frame, _ in stack)


def _uncompiled(hook: Callable[[Optimizer], None]) -> Callable[..., None]:
    """A compiled optimizer step must not trace into the watch."""
    disabled = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]

    def called(optimizer: Optimizer, given: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        if [*given[1:], *keywords.values()] == [None] and _is_made_up(optimizer):
            return
        # a step that is not compiled need not pay for it
        (disabled if torch.compiler.is_compiling() else hook)(optimizer)

    return called


class StepCounter:
    """Counts the steps of a training.

    A step is an outermost one of an optimizer that holds weights in scope. Of optimizers that were
    given, one round of all of them is a step, also where one of them steps inside another
    optimizer, or through one that it holds, as that of SAM does; one that is gone is not waited
    for. If none is left, it is one of the optimizer that holds most of the weights, of several the
    first. That has been replaced if it takes no step while another steps these weights: the steps
    of that one count from its first on.
    """

    def __init__(self, given: Sequence[Optimizer]) -> None:
        self._given = tuple(map(weakref.ref, given))
        self._leader: tuple[weakref.ref[Optimizer], int] | None = None
        self._beside: Counter[int] = Counter()  # steps since the last that counted, by id
        self._has_told = False

    def count(
        self,
        step: Step,
        num_held: int,
        is_of_copy: Callable[[Optimizer], bool],  # it seems to train a copy of the model
    ) -> int:
        """How many steps count now that an outermost step on that many weights was taken."""
        optimizer = step.optimizer
        given = [one for ref in self._given if (one := ref()) is not None]
        if not num_held and optimizer not in given:
            self._beside[id(optimizer)] += 1
            if self._beside[id(optimizer)] == _FEW_STEPS and is_of_copy(optimizer):
                self._tell_once(optimizer, "a copy of this model, it seems", "Watch that one")
            return 0
        if given:
            num_steps = self._of_given(step, num_held, given)
        else:
            num_steps = self._of_leader(optimizer, num_held)
        if num_steps:
            self._beside.clear()
        return num_steps

    def _of_given(self, step: Step, num_held: int, given: Sequence[Optimizer]) -> int:
        optimizer = step.optimizer
        took = [one for one in given if one is optimizer or one in step.inner] or [
            one for one in given if any(value is optimizer for value in vars(one).values())
        ]
        for one in took or [optimizer]:
            self._beside[id(one)] += 1
        is_round = all(self._beside[id(one)] for one in given)
        if self._beside[id(optimizer)] == _FEW_STEPS and not is_round:
            self._tell_once(
                optimizer,
                f"{num_held} weights in scope",
                "If it has taken the place of what was given, give all optimizers of these "
                "weights, or optimizer=None for whatever steps this model",
            )
        return int(is_round)

    def _of_leader(self, optimizer: Optimizer, num_held: int) -> int:
        leader, most = (None, 0) if self._leader is None else (self._leader[0](), self._leader[1])
        if optimizer is leader:
            return 1
        self._beside[id(optimizer)] += 1
        num_steps = self._beside[id(optimizer)]
        has_stopped = leader is None or num_steps >= _FEW_STEPS
        if num_held <= most and not has_stopped:
            return 0
        is_first = self._leader is None
        self._leader = weakref.ref(optimizer), num_held
        # one that holds more begins beside the leader: this step is counted already
        return num_steps if is_first or has_stopped else 0

    def _tell_once(self, optimizer: Optimizer, what: str, advice: str) -> None:
        if self._has_told:
            return
        self._has_told = True
        words = "no step has been counted during %d steps of %s on %s. %s."
        logger.warning(words, _FEW_STEPS, type(optimizer).__name__, what, advice)


class OptimizerTrace:
    """What every optimizer of the process does to the weights of one model, and what moves them."""

    _watched: ClassVar[weakref.WeakSet[Optimizer]] = weakref.WeakSet()  # by any watch

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        sizes: Mapping[str, int],
        motion: MotionTracker | None,
        examiner: Examiner,
    ) -> None:
        self.has_given = bool(optimizers)
        self._given = tuple(map(weakref.ref, optimizers))  # who is watched does not live by that
        self.tracker = motion  # compares the weights
        #: Gives every parameter of the model as it is now; set by whoever reads the model.
        self.lookup: Callable[[], Tensors] = dict
        self._sizes = sizes  # of the weights in scope, by name
        self._examiner = examiner
        self._accounts: list[Account] = []  # of an optimizer each
        self._is_restored = False  # whether a state was loaded
        # a step, and the norm of its gradients before a clip, as the training says it
        self._said: tuple[int, torch.Tensor | float] = (-1, math.nan)
        self._counter = StepCounter(optimizers)
        self._is_counting = False  # whether hooks have counted a step
        self.is_said = False  # whether the training says which steps it takes
        self._has_hooks = False  # whether a step of what was given has been seen
        self.one_step = OneStep()
        self._start = (0.0, 0.0)  # decay and lr of the run, where nobody knows of which weights
        # by name what was done in an earlier process, and by optimizers that are gone
        self._earlier: dict[str, Sums] = {}

    @property
    def given(self) -> tuple[Optimizer, ...]:
        """The optimizers that were given and are not gone."""
        return tuple(one for ref in self._given if (one := ref()) is not None)

    @property
    def is_seen(self) -> bool:
        """Whether an optimizer of these weights is known."""
        return self.has_given or any(account.num_in_scope for account in self._accounts)

    @property
    def motion(self) -> MotionTracker | None:
        """What compares the weights; None while nobody knows what moves them."""
        return self.tracker if self.is_seen else None

    @property
    def steps_done(self) -> int:
        """Steps as an optimizer itself counts them, as the Adam family does; 0 if none does."""
        held = [account.optimizer() for account in self._accounts if account.num_in_scope]
        every = self.given or [one for one in held if one is not None]
        firsts = [s for one in every for s in [*one.state.values()][:1]]
        return int(max((float(state.get("step", 0.0)) for state in firsts), default=0.0))

    @property
    def _alive(self) -> list[Optimizer]:
        found = (account.optimizer() for account in self._accounts)
        return [optimizer for optimizer in found if optimizer is not None]

    def attach(self, ranks: Ranks) -> None:
        """Take up the optimizers that were given; refuse those that train nothing in scope."""
        if not self.given:
            return
        accounts = list(map(self._known, self.given))
        held = {name for account in accounts for names in account.names for name in names}
        every = self.lookup()
        parameters = {name: every[name] for name in self._sizes}
        own = held & parameters.keys()
        # on each rank an optimizer may step on some tensors only
        num_held = int(ranks.highest(np.array([len(own)]))[0])
        names = " and ".join(type(optimizer).__name__ for optimizer in self.given)
        # what is finer than weights in scope may be copies of them, in whatever shape
        sizes = [p.dtype.itemsize for o in self.given for g in o.param_groups for p in g["params"]]
        coarsest = min(parameter.dtype.itemsize for parameter in parameters.values())
        if not num_held and max(sizes, default=0) <= coarsest:
            modules = sorted({name.rpartition(".")[0] for name in held})[:3]
            alone = f"those of {', '.join(modules)} alone" if modules else "none of this model"
            raise ConfigurationError(
                f"Expected `optimizer` to hold weights in scope, but {names} holds {alone}. Give "
                "the optimizer that trains this very model, not a copy of it, or optimizer=None "
                "for whatever steps it."
            )

    def begins(self, optimizer: Optimizer) -> None:
        """An optimizer that is known is about to step."""
        self.one_step.begin(optimizer, self._known(optimizer).called)

    def saw(self, step: Step) -> int:
        """An optimizer took a step; returns how many of the training's."""
        optimizer = step.optimizer
        account = self._known(optimizer)
        self.one_step.end(optimizer)
        self._has_hooks = self._has_hooks or optimizer in self.given
        if account.is_of_model:
            account.advance(step.reached)
        if self.is_said or any(map(self.knows, step.outer)):
            return 0
        num_held = account.num_in_scope
        num_steps = self._counter.count(step, num_held, self._is_of_copy)
        self._is_counting |= num_steps > 0
        return num_steps

    def said(self, step: int | None) -> bool:
        """The training says that it took a step; whether no hook did, or its number is given."""
        is_counted, self.is_said = self._is_counting and not self.is_said, True
        if is_counted and step is None:
            return False
        for account in () if self._has_hooks else self._accounts:
            optimizer = account.optimizer()
            if optimizer in self.given:
                self._known(optimizer).advance(is_seen=False)
        return True

    def say_norm(self, norm: torch.Tensor | float | None, step: int) -> None:
        """The norm of the gradients of a step before they are clipped, if it is known."""
        if norm is not None and (
            is_sharded(norm) if torch.is_tensor(norm) else not is_number(norm)
        ):
            words = "no gradient norm before the clip: a number is expected, or `.full_tensor()`"
            logger.warning("%s of a DTensor, got %s", words, type(norm).__name__)
        elif norm is not None:
            self._said = step, norm.detach() if torch.is_tensor(norm) else norm

    def knows(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer was given, or holds weights in scope."""
        account = self._known(optimizer)
        return optimizer in self.given or account.num_in_scope > 0

    def _is_of_copy(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer that no watch knows holds tensors shaped as this model's."""
        held = [p.shape for group in optimizer.param_groups for p in group["params"]]
        shapes = [p.shape for p in self.lookup().values() if p.requires_grad]
        return optimizer not in self._watched and Counter(held) == Counter(shapes)

    def _known(self, optimizer: Optimizer) -> Account:
        for account in self._accounts:
            if account.optimizer() is optimizer:
                break
        else:
            account = Account(optimizer)
            self._accounts.append(account)
        # after some steps a copy of higher precision is the weight, if it was not at first
        if not account.is_current or account.num_steps == _FEW_STEPS:
            self._identify(optimizer, account, self.lookup())
        return account

    def _identify(self, optimizer: Optimizer, account: Account, parameters: Tensors) -> None:
        """Say what the model calls what an optimizer holds."""
        before = account.num_in_scope
        account.identify(optimizer, parameters, self._sizes)
        account.take_over(self._earlier)
        if account.is_of_model:
            self._watched.add(optimizer)
        if before and not account.num_in_scope:
            logger.warning(
                "%s holds no weight in scope any more: the model has other parameters now, as "
                "after load_state_dict(assign=True). Make an optimizer of them.",
                type(optimizer).__name__,
            )

    def training(self, parameters: Tensors) -> Training | None:
        """Who has trained the model's ``parameters`` since this was asked last; None: unseen."""
        if not self.is_seen:
            return None
        gone = [account for account in self._accounts if account.optimizer() is None]
        past = united([self._earlier, *(account.sums() for account in gone)])
        self._earlier = {name: sums._replace(momentum=0.0) for name, sums in past.items()}
        self._accounts = [account for account in self._accounts if account not in gone]
        has_begun, has_stepped = bool(gone), False
        self.one_step.tell()
        trainers: dict[str, Trainer] = {}
        for account in self._accounts:
            has_begun |= account.num_steps > 0
            has_stepped |= account.num_steps > account.looked_at
            if (optimizer := account.optimizer()) is not None:
                self._identify(optimizer, account, parameters)
            for name, trainer in account.trainers().items():
                other = trainers.get(name)
                if other is not None and other.is_active and trainer.is_active:
                    trainers[name] = replace(trainer, farthest=math.inf)  # both move it
                elif other is None or trainer.is_active:
                    trainers[name] = trainer
        return Training(
            trainers=trainers,
            done=self._done(),
            has_stepped=has_stepped,
            has_begun=has_begun,
            copied=frozenset(name for account in self._accounts for name in account.copied),
            frozen=frozenset(name for name, one in parameters.items() if not one.requires_grad),
            not_decayed=self.one_step.not_decayed,
        )

    def _done(self) -> dict[str, Sums]:
        return united([self._earlier, *(account.sums() for account in self._accounts)])

    def reading(self, training: Training | None) -> OptimizerReading:
        """What that says of the weights in scope, since the run began."""
        if training is None:
            return OptimizerReading()
        read, (decay, lr) = reading_of(training, self._sizes), self._start
        return replace(read, decay_clock=decay + read.decay_clock, lr_clock=lr + read.lr_clock)

    def examine(
        self, step: int, parameters: Tensors, training: Training | None, *, strict: bool
    ) -> Examined:
        """As ``Examiner.read`` of all ``parameters``; what fails is told, the rest is measured."""

        def failed(error: Exception) -> Examined:
            reraise_foreign(error, strict=strict)
            logger.error("no vital signs at step %d", step, exc_info=error)
            return self._examiner.failed(redacted_error(error))

        try:
            if training is not None and self._said[0] == step:
                training = replace(training, before_clip=float(self._said[1]))
            finish = self._examiner.read(step, parameters, training)
        except Exception as error:  # noqa: BLE001 sorted by failed
            return failed(error)

        def examined(spectrum: MagnitudeSpectrum | None) -> Seen:
            try:
                return finish(spectrum)
            except Exception as error:  # noqa: BLE001 sorted by failed
                return failed(error)(spectrum)

        return examined

    @property
    def sampled(self) -> Tensors:
        """Some weights of every parameter as they were examined last."""
        return self._examiner.sampled

    def begin_anew(self, sizes: Mapping[str, int], motion: MotionTracker | None) -> None:
        """Follow the tensors of a model that has changed; the clocks of the run go on."""
        read = reading_of(Training(trainers={}, done=self._done()), self._sizes)
        self._start = (self._start[0] + read.decay_clock, self._start[1] + read.lr_clock)
        self._sizes, self.tracker, self._earlier = sizes, motion, {}
        for account in self._accounts:
            account.begin_anew()

    def groups(self) -> list[Any]:
        """Learning rate, decay and names of each param group, to be compared between ranks."""
        names = names_of(self.lookup())
        return [
            [
                float(group.get("lr", 0.0)),
                float(group.get("weight_decay", 0.0)),
                sorted(name for p in group["params"] for name in names.get(id(p), ())),
            ]
            for optimizer in self._alive
            for group in optimizer.param_groups
        ]

    def continue_from(self, decay: float, lr: float) -> None:
        """Restore clocks from the log, unless a state was loaded; NaN for those the log lacks."""
        if not self._is_restored:
            self._start = (decay, lr)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""
        done = self._done().items()
        return {
            "start": self._start[0],
            "lr_start": self._start[1],
            "clocks": {n: [list(s.taken), list(s.offered), s.momentum] for n, s in done},
            **({"motion": None} if self.tracker is None else self.tracker.state_dict()),
            "examiner": self._examiner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; StateError if a key is missing."""
        for key in ("start", "lr_start", "clocks", "motion", "examiner"):
            if key not in state:
                raise StateError(f"Expected key {key!r} in the trace's state, got {list(state)}.")
        self._start = (float(state["start"]), float(state["lr_start"]))
        self._earlier = {
            name: Sums(Clock(*taken), Clock(*offered), momentum)
            for name, (taken, offered, momentum) in state["clocks"].items()
        }
        self._is_restored = True
        for account in self._accounts:
            account.forget()
            account.take_over(self._earlier)
        if self.tracker is not None and state["motion"] is not None:
            self.tracker.load_state_dict(state)
        if state["examiner"]:
            self._examiner.load_state_dict(state["examiner"])
