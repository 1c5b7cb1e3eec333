"""The optimizer of a training: its steps, who takes its place, and its clocks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.pipeline.parts import Examined, Examiner
from sparsitywatch.weights.clock import (
    ClockReading,
    DecayClock,
    OptimizerReading,
    group_membership,
    masters_of,
    weight_averages,
)
from sparsitywatch.weights.gradients import Training
from sparsitywatch.weights.motion import MotionTracker, why_not_measurable
from sparsitywatch.weights.scope import Scope

__all__ = [
    "OptimizerTrace",
    "StepHooks",
    "Successor",
    "step_was_skipped",
    "steps_done",
    "unwrap_optimizer",
]

#: So many steps of another optimizer, none of the watched one between them, and it has taken over.
_FEW_STEPS = 10


def unwrap_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The optimizer that takes the steps, inside wrappers such as Accelerate's.

    Raises:
        ConfigurationError: there is none.
    """
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


def steps_done(optimizer: torch.optim.Optimizer) -> int:
    """How many steps the optimizer itself has counted; 0 if it does not count.

    The Adam family counts per parameter and keeps the count in its state, so that it is
    there again after ``load_state_dict``.
    """
    counts = [
        float(state["step"]) for state in list(optimizer.state.values())[:1] if "step" in state
    ]
    return int(max(counts, default=0.0))


class StepHooks:
    """Calls back after the steps of one optimizer, and after those of all others.

    The second hook is torch's own for every optimizer in the process. It holds ``on_other`` weakly:
    a watch that is dropped takes it along.

    Args:
        optimizer: the one that is watched; None for no hooks.
        on_step: called with it after each of its steps.
        on_other: a method, called with each other optimizer after each of its steps.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
        on_step: Callable[[torch.optim.Optimizer], None],
        on_other: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        self._on_step, self._is_on, self._depth = on_step, False, 0
        self._own: Any = None
        if optimizer is None:
            return
        self._is_on = True
        self._hook_to(optimizer)
        hooks, method = weakref.ref(self), weakref.WeakMethod(on_other)

        def other(optimizer: torch.optim.Optimizer, *_: object) -> None:
            living, call = hooks(), method()
            if living is not None and call is not None and not living.are_of(optimizer):
                living._call(call, optimizer)

        handle = register_optimizer_step_post_hook(_uncompiled(other))
        self._remove_other = weakref.finalize(self, handle.remove)
        self._remove_other.atexit = False

    def are_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this is the optimizer that is watched."""
        return self._own is not None and self._own() is optimizer

    def move(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch another optimizer from here on; may be called from ``on_other`` with it."""
        self._handle.remove()
        self._hook_to(optimizer)

    def remove(self) -> None:
        """Call back no more; may be called from a callback, and again."""
        if self._is_on and self._depth == 0:  # torch is going through its hooks otherwise
            self._handle.remove()
            self._remove_other()
        self._is_on = False

    def _hook_to(self, optimizer: torch.optim.Optimizer) -> None:
        self._own = weakref.ref(optimizer)

        def step(optimizer: torch.optim.Optimizer, *_: object) -> None:
            self._call(self._on_step, optimizer)

        self._handle = optimizer.register_step_post_hook(_uncompiled(step))

    def _call(
        self,
        function: Callable[[torch.optim.Optimizer], None],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if not self._is_on:
            return
        self._depth += 1
        try:
            function(optimizer)
        finally:
            self._depth -= 1


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A compiled optimizer step must not trace into the watch."""
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


class Successor:
    """Finds the optimizer that has taken the place of the watched one.

    A copied or unpickled optimizer has no hooks, and neither has a new one. It is known by
    stepping the same weights again and again while the watched one takes no step. Two that take
    turns are none: neither those of the halves of a model, nor one inside the other, nor
    several steps of an inner one to each of an outer one.

    Args:
        optimizer: the one that is watched.
        in_scope: gives the weights that are watched, as the model holds them.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, in_scope: Callable[[], Iterable[torch.Tensor]]
    ) -> None:
        self._optimizer, self._in_scope = optimizer, in_scope
        self._kinds: weakref.WeakKeyDictionary[torch.optim.Optimizer, str] = (
            weakref.WeakKeyDictionary()
        )
        self._streaks = {"same": 0, "alike": 0}
        self._needed = _FEW_STEPS

    def own_step(self) -> None:
        """The watched optimizer took a step."""
        # what steps in between may do so again, and for as long
        self._needed = max(self._needed, 2 * self._streaks["same"])
        self._streaks = dict.fromkeys(self._streaks, 0)

    def other_step(self, optimizer: torch.optim.Optimizer) -> tuple[str, int]:
        """Another optimizer took a step.

        Returns:
            What it steps, once it has done so often enough, and the number of these steps: "same"
            for the watched weights; "alike" for others of the same shapes, as those of a copied
            model; "" for anything else, and until then.
        """
        kind = self._kinds.get(optimizer)
        if kind is None:
            kind = self._kinds[optimizer] = self._kind(optimizer)
        if not kind or step_was_skipped(optimizer):
            return "", 0
        self._streaks[kind] += 1
        if self._streaks[kind] < self._needed:
            return "", 0
        number, self._streaks[kind] = self._streaks[kind], 0
        return kind, number

    def _kind(self, optimizer: torch.optim.Optimizer) -> str:
        watched = self._optimizer
        if _holds(watched, optimizer) or _holds(optimizer, watched):
            return ""  # one wraps the other
        own, other = _trained(watched), _trained(optimizer)
        ids, in_scope = {id(p) for p in own}, {id(p) for p in self._in_scope()}
        if {id(p) for p in other} & ((ids & in_scope) or ids | in_scope):
            return "same"
        return "alike" if [p.shape for p in other] == [p.shape for p in own] else ""


def _trained(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _holds(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> bool:
    return any(value is inner for value in vars(outer).values())


class OptimizerTrace:
    """The decay clock and the motion of the weights under one optimizer.

    Args:
        optimizer: None if it cannot be seen; then nothing is known.
        scope: which weights count.
        motion: remembers the weights of the last snapshot; None to leave motion out.
        examiner: looks at every parameter, in scope or not.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
        scope: Scope,
        motion: MotionTracker | None,
        examiner: Examiner,
    ) -> None:
        self._optimizer, self._scope, self._motion = optimizer, scope, motion
        self._examiner = examiner
        self._others: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._copies: dict[str, torch.Tensor] | None = None  # of all parameters; found likewise
        self._clock = DecayClock()
        self._masters: dict[str, torch.Tensor] | None = None  # found at the first reading
        self._start = ClockReading(0.0, 0.0)  # what it read when it began to run here

    @property
    def steps_done(self) -> int:
        """Steps as the optimizer itself counts them; 0 if it does not."""
        return 0 if self._optimizer is None else steps_done(self._optimizer)

    def advance(self) -> None:
        """One optimizer step was taken."""
        if self._optimizer is not None:
            self._clock.advance(self._optimizer)

    def follow(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, torch.Tensor],
        num_missed: int,
    ) -> None:
        """Go on with another optimizer, which has taken steps already that were not counted.

        What moved until the next snapshot is not known, unless its param groups hold the same
        weights.

        Args:
            optimizer: the other one.
            parameters: the in-scope weights, by name.
            num_missed: its steps so far, taken to be like the last one.
        """
        before, now = self._optimizer, group_membership(optimizer, parameters)
        known = group_membership(before, parameters) if before is not None else {}
        if before is not None and known != now:
            since = self._clock.reading(known, self._scope)
            self._start = ClockReading(self._start.decay + since.decay, self._start.lr + since.lr)
            self._clock = DecayClock()
            if self._motion is not None:
                self._motion.forget()
            self._examiner.forget()
        self._optimizer, self._masters, self._copies = optimizer, None, None
        for _ in range(num_missed):
            self.advance()

    def see_other(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer took a step."""
        self._others.add(optimizer)

    def examine(self, step: int, parameters: Mapping[str, torch.Tensor]) -> Examined:
        """What became of every parameter since it was last asked.

        Args:
            step: optimizer steps done.
            parameters: all of the model's, in scope or not, by name.
        """
        if self._optimizer is None:
            return self._examiner.read(step, parameters, None)
        if self._copies is None:
            self._copies = masters_of(self._optimizer, parameters)
        training = Training(
            optimizer=self._optimizer,
            clock=self._clock,
            masters=self._copies,
            others=tuple(self._others),
        )
        return self._examiner.read(step, parameters, training)

    def reading(self, parameters: Mapping[str, torch.Tensor]) -> OptimizerReading:
        """What the optimizer has done so far; it stays as it is when training goes on.

        Args:
            parameters: the in-scope weights as the optimizer holds them, by name.
        """
        if self._optimizer is None:
            return OptimizerReading()
        if self._masters is None:
            self._masters = masters_of(self._optimizer, parameters)
        membership = group_membership(self._optimizer, {**parameters, **self._masters})
        since = self._clock.reading(membership, self._scope)
        rates = [float(group.get("lr", 0.0)) for group in self._optimizer.param_groups]
        return OptimizerReading(
            decay_clock=self._start.decay + since.decay,
            lr_clock=self._start.lr + since.lr,
            lr=weight_averages([rates], membership, self._scope)[0],
            clock=self._clock.copy(),
            membership=membership,
            not_measurable=why_not_measurable(self._optimizer),
            masters=frozenset(self._masters),
        )

    def groups(self, parameters: Mapping[str, torch.Tensor]) -> list[Any]:
        """Learning rate and decay of each param group, and which in-scope weights it trains.

        Args:
            parameters: the in-scope weights as the optimizer holds them, by name.
        """
        if self._optimizer is None:
            return []
        membership = group_membership(self._optimizer, parameters)
        rates = [
            (float(group.get("lr", 0.0)), float(group.get("weight_decay", 0.0)))
            for group in self._optimizer.param_groups
        ]
        return [rates, sorted(membership.items())]

    def continue_from(self, reading: ClockReading) -> None:
        """Take up clocks that only a log knows; NaN what not even that does.

        Does nothing once a state was loaded.
        """
        if not self._clock.groups:
            self._start = reading

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""
        return {
            "start": self._start.decay,
            "lr_start": self._start.lr,
            "clock": self._clock.state_dict(),
            **({"motion": None} if self._motion is None else self._motion.state_dict()),
            "examiner": self._examiner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing.
        """
        for key in ("start", "lr_start", "clock", "motion", "examiner"):
            if key not in state:
                raise StateError(f"Expected key {key!r} in the trace's state, got {list(state)}.")
        self._start = ClockReading(float(state["start"]), float(state["lr_start"]))
        self._clock.load_state_dict(state["clock"])
        if self._motion is not None and state["motion"] is not None:
            self._motion.load_state_dict(state)
        if state["examiner"]:
            self._examiner.load_state_dict(state["examiner"])
