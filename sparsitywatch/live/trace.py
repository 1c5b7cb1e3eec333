"""The optimizer of a training: its steps, who takes its place, and its clocks."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from sparsitywatch.errors import ConfigurationError, StateError, reraise_foreign
from sparsitywatch.pipeline.parts import Examined, Examiner
from sparsitywatch.records import Vital
from sparsitywatch.redact import redacted_error
from sparsitywatch.weights.clock import (
    DecayClock,
    OptimizerReading,
    Training,
    group_membership,
    masters_of,
    weight_average,
)
from sparsitywatch.weights.motion import MotionTracker, why_not_measurable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

_logger = logging.getLogger("sparsitywatch")

#: After this many steps of another optimizer, and none of the watched one, it has taken over.
_FEW_STEPS = 10


def unwrap_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The optimizer that takes the steps, inside wrappers such as Accelerate's."""
    inner = optimizer
    while not (
        isinstance(inner, torch.optim.Optimizer) and "_optimizer_step_post_hooks" in vars(inner)
    ):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise ConfigurationError(
                "Expected `optimizer` to be a torch.optim.Optimizer or a wrapper that holds one as "
                f"`.optimizer`, got {type(optimizer).__name__}. Pass optimizer=None and call "
                "watcher.step() after each step instead."
            )
    return inner


def step_was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a gradient scaler skipped this update inside a fused optimizer.

    Other optimizers are not called at all for a skipped step. The flag exists only while
    ``GradScaler.step`` runs, so it costs nothing elsewhere.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) > 0.0


class StepHook:
    """Calls a method after each step of every optimizer in the process; without one, never.

    The watch lives as long as the optimizer that it was last given, also if nobody else holds it.
    One hook of torch serves all watches of a process. torch goes through its hooks while they run,
    so it is taken off between steps only, never by the garbage collector in the middle of one.
    """

    _alive: ClassVar[weakref.WeakSet[StepHook]] = weakref.WeakSet()
    _of_torch: ClassVar[RemovableHandle | None] = None
    _depth: ClassVar[int] = 0

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
        after_step: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        self._after_step = after_step
        self._stays: RemovableHandle | None = None
        if optimizer is not None:
            self._alive.add(self)
            if StepHook._of_torch is None:
                hook = _uncompiled(StepHook._call_all)
                StepHook._of_torch = register_optimizer_step_post_hook(hook)
            self.move(optimizer)

    def move(self, optimizer: torch.optim.Optimizer) -> None:
        """Live as long as this optimizer."""
        if self._stays is not None:
            self._stays.remove()
        self._stays = optimizer.register_step_post_hook(_uncompiled(self._stay))

    def _stay(self, *_: object) -> None:
        """Nothing: who holds this method holds the hook."""

    def remove(self) -> None:
        """Call no more; may be called in a call, and again."""
        self._alive.discard(self)
        if self._stays is not None:
            self._stays.remove()
        if StepHook._of_torch is not None and not self._alive and self._depth == 0:
            StepHook._of_torch.remove()
            StepHook._of_torch = None

    @staticmethod
    def _call_all(optimizer: torch.optim.Optimizer, *_: object) -> None:
        StepHook._depth += 1
        try:
            for hook in [*StepHook._alive]:
                if hook in StepHook._alive:  # else another one has taken it off
                    hook._after_step(optimizer)
        finally:
            StepHook._depth -= 1


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A compiled optimizer step must not trace into the watch."""
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


class StepCounter:
    """Counts the steps of the watched optimizer, or of the one that has taken its place.

    A copied or unpickled optimizer has no hooks, and neither has a new one. It is known by
    stepping the same weights again and again while the watched one takes no step. Two that take
    turns are none: neither those of the halves of a model, nor one inside the other, nor
    several steps of an inner one to each of an outer one.
    """

    def __init__(self, in_scope: Callable[[], Iterable[torch.Tensor]]) -> None:
        self._in_scope = in_scope
        self._kinds: weakref.WeakKeyDictionary[torch.optim.Optimizer, str] = (
            weakref.WeakKeyDictionary()
        )
        self._streaks = {"same": 0, "alike": 0}
        self._needed = _FEW_STEPS
        self._has_warned = False

    def count(self, optimizer: torch.optim.Optimizer, watched: torch.optim.Optimizer | None) -> int:
        """How many steps count now that ``optimizer`` took one: several where it took over."""
        if optimizer is watched:
            # what steps in between may do so again, and for as long
            self._needed = max(self._needed, 2 * self._streaks["same"])
            self._streaks = dict.fromkeys(self._streaks, 0)
            return 0 if step_was_skipped(optimizer) else 1
        kind = self._kinds.get(optimizer)
        if kind is None:
            kind = self._kinds[optimizer] = self._kind(optimizer, watched)
        if not kind or step_was_skipped(optimizer):
            return 0
        self._streaks[kind] += 1
        number = self._streaks[kind]
        if number < self._needed:
            return 0
        self._streaks[kind] = 0
        if kind == "alike":
            self._warn_once(optimizer)
            return 0
        self._kinds.clear()
        self._needed = _FEW_STEPS
        return number

    def _kind(self, optimizer: torch.optim.Optimizer, watched: torch.optim.Optimizer | None) -> str:
        """What another one steps: the "same" weights, others that are "alike", or neither: ""."""
        if watched is None or _holds(watched, optimizer) or _holds(optimizer, watched):
            return ""  # one wraps the other
        own, other = _trained(watched), _trained(optimizer)
        ids, in_scope = {id(p) for p in own}, {id(p) for p in self._in_scope()}
        if {id(p) for p in other} & ((ids & in_scope) or ids | in_scope):
            return "same"
        return "alike" if [p.shape for p in other] == [p.shape for p in own] else ""

    def _warn_once(self, optimizer: torch.optim.Optimizer) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        _logger.warning(
            "sparsitywatch: the watched optimizer takes no steps, while another %s steps "
            "%d weights of the same shapes: if the training goes on with a copied or "
            "unpickled model, nothing more is seen of it. Attach a watch to that one.",
            type(optimizer).__name__,
            sum(p.numel() for p in _trained(optimizer)),
        )


def _trained(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _holds(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> bool:
    return any(value is inner for value in vars(outer).values())


class OptimizerTrace:
    """The decay clock and the motion of the weights under one optimizer; None if none is seen."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
        scope: Scope,
        motion: MotionTracker | None,
        examiner: Examiner,
    ) -> None:
        self.optimizer = optimizer
        #: more optimizers that were seen to step
        self.others: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        #: compares the weights; nobody knows what moves them where no optimizer is seen
        self.motion = None if optimizer is None else motion
        self._scope = scope
        self._examiner = examiner
        self._clock = DecayClock()
        self._start = (0.0, 0.0)  # decay and lr when the clock began to run here
        self._masters: dict[str, torch.Tensor] | None = None  # found at the first reading

    @property
    def steps_done(self) -> int:
        """Steps as the optimizer itself counts them, as the Adam family does; 0 if it does not."""
        states = [] if self.optimizer is None else list(self.optimizer.state.values())[:1]
        return int(max((float(state["step"]) for state in states if "step" in state), default=0.0))

    def advance(self) -> None:
        """One optimizer step was taken."""
        if self.optimizer is not None:
            self._clock.advance(self.optimizer)

    def follow(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
    ) -> None:
        """Go on with another optimizer."""
        # what moves until the next snapshot is known if its groups hold the same in-scope weights
        known = {} if self.optimizer is None else group_membership(self.optimizer, parameters)
        if known != group_membership(optimizer, parameters):
            self._start = self._totals(known)
            self._clock = DecayClock()
            if self.motion is not None:
                self.motion.forget()
            self._examiner.forget()
        self.optimizer = optimizer
        self._masters = None

    def examine(
        self, step: int, parameters: Mapping[str, torch.Tensor], *, strict: bool
    ) -> Examined:
        """What says what became of all ``parameters``, in scope or not, in any thread, once.

        Read is here what the next step may change. What fails is told, and the rest is measured.
        """
        training = None
        if self.optimizer is not None:
            training = Training(
                optimizer=self.optimizer,
                clock=self._clock,
                masters=self._masters_among(parameters),
                others=tuple(self.others),
            )

        def failed(error: Exception) -> Examined:
            reraise_foreign(error, strict=strict)
            _logger.error("sparsitywatch: no vital signs at step %d", step, exc_info=error)
            return self._examiner.failed(redacted_error(error))

        try:
            finish = self._examiner.read(step, parameters, training)
        except Exception as error:  # noqa: BLE001 sorted by failed
            return failed(error)

        def examined(spectrum: MagnitudeSpectrum | None) -> Vital | None:
            try:
                return finish(spectrum)
            except Exception as error:  # noqa: BLE001 sorted by failed
                return failed(error)(spectrum)

        return examined

    def reading(self, parameters: Mapping[str, torch.Tensor]) -> OptimizerReading:
        """What the optimizer has done so far; ``parameters`` are all of the model's, by name."""
        if self.optimizer is None:
            return OptimizerReading()
        masters = self._masters_among(parameters)
        membership = group_membership(self.optimizer, {**parameters, **masters})
        rates = [float(group.get("lr", 0.0)) for group in self.optimizer.param_groups]
        decay, lr = self._totals(membership)
        return OptimizerReading(
            decay_clock=decay,
            lr_clock=lr,
            lr=weight_average(rates, membership, self._scope),
            clock=self._clock.copy(),
            membership=membership,
            not_measurable=why_not_measurable(self.optimizer),
            masters=frozenset(masters),
        )

    def _masters_among(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._masters is None and self.optimizer is not None:
            self._masters = masters_of(self.optimizer, parameters)
        return self._masters or {}

    def groups(self, parameters: Mapping[str, torch.Tensor]) -> list[Any]:
        """Learning rate and decay of each param group, and which in-scope weights it trains."""
        if self.optimizer is None:
            return []
        rates = [
            (float(group.get("lr", 0.0)), float(group.get("weight_decay", 0.0)))
            for group in self.optimizer.param_groups
        ]
        return [rates, sorted(group_membership(self.optimizer, parameters).items())]

    def continue_from(self, decay: float, lr: float) -> None:
        """Restore clocks from the log, unless a state was loaded; NaN for those the log lacks."""
        if not self._clock.groups:
            self._start = (decay, lr)

    def _totals(self, membership: Mapping[str, int]) -> tuple[float, float]:
        """Decay and lr since the run began, averaged over the in-scope weights."""
        decay, lr = self._clock.averages(membership, self._scope)
        return self._start[0] + decay, self._start[1] + lr

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""
        return {
            "start": self._start[0],
            "lr_start": self._start[1],
            "clock": self._clock.state_dict(),
            **({"motion": None} if self.motion is None else self.motion.state_dict()),
            "examiner": self._examiner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; StateError if a key is missing."""
        for key in ("start", "lr_start", "clock", "motion", "examiner"):
            if key not in state:
                raise StateError(f"Expected key {key!r} in the trace's state, got {list(state)}.")
        self._start = (float(state["start"]), float(state["lr_start"]))
        self._clock.load_state_dict(state["clock"])
        if self.motion is not None and state["motion"] is not None:
            self.motion.load_state_dict(state)
        if state["examiner"]:
            self._examiner.load_state_dict(state["examiner"])
