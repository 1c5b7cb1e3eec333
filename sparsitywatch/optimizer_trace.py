"""What an optimizer does to the in-scope weights, followed from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sparsitywatch.errors import StateError
from sparsitywatch.optimizers import steps_done
from sparsitywatch.records import Dormant
from sparsitywatch.weights.clock import DecayClock, group_membership
from sparsitywatch.weights.motion import Motion, why_not_measurable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot

__all__ = ["Moment", "OptimizerTrace"]


@dataclass(frozen=True)
class Moment:
    """What an optimizer has done up to one step.

    Args:
        decay_clock: sum of lr times weight decay; NaN if unknown.
        clock: the clocks of the param groups; None if the optimizer cannot be seen.
        membership: in-scope name to index of its param group.
        not_measurable: why motion cannot be told; empty if it can.
    """

    decay_clock: float = math.nan
    clock: DecayClock | None = None
    membership: Mapping[str, int] = field(default_factory=dict)
    not_measurable: str = ""


class OptimizerTrace:
    """The decay clock and the motion of the weights under one optimizer.

    Args:
        optimizer: None if it cannot be seen; then nothing is known.
        scope: which weights count.
        motion: remembers the weights of the last look; None to leave motion out.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | None, scope: Scope, motion: Motion | None
    ) -> None:
        self._optimizer, self._scope, self._motion = optimizer, scope, motion
        self._clock = DecayClock()
        self._start = 0.0  # what the clock read when it began to run here

    @property
    def steps_done(self) -> int:
        """Steps as the optimizer itself counts them; 0 if it does not."""
        return 0 if self._optimizer is None else steps_done(self._optimizer)

    def advance(self) -> None:
        """One optimizer step was taken."""
        if self._optimizer is not None:
            self._clock.advance(self._optimizer.param_groups)

    def moment(self, parameters: Mapping[str, torch.Tensor]) -> Moment:
        """What the optimizer has done so far; it stays as it is when training goes on.

        Args:
            parameters: the in-scope weights as the optimizer holds them, by name.
        """
        if self._optimizer is None:
            return Moment()
        membership = group_membership(self._optimizer, parameters)
        return Moment(
            decay_clock=self._start + self._clock.reading(membership, self._scope),
            clock=self._clock.copy(),
            membership=membership,
            not_measurable=why_not_measurable(self._optimizer),
        )

    def look(self, snapshot: Snapshot, moment: Moment) -> Dormant | None:
        """What moved since the last look; None if motion is not watched.

        Args:
            snapshot: the weights at that moment.
            moment: from ``moment``; nothing else of the optimizer is read, so that this
                may run behind the training.
        """
        if self._motion is None or moment.clock is None:
            return None
        return self._motion.look(snapshot, moment.clock, moment.membership, moment.not_measurable)

    def continue_from(self, reading: float) -> None:
        """Take up a clock that only a log knows; NaN if not even that.

        Does nothing once a state was loaded.
        """
        if not self._clock.groups:
            self._start = reading

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""
        return {
            "start": self._start,
            "clock": self._clock.state_dict(),
            "motion": self._motion.state_dict() if self._motion else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing.
        """
        for key in ("start", "clock", "motion"):
            if key not in state:
                raise StateError(f"Expected key {key!r} in the trace's state, got {list(state)}.")
        self._start = float(state["start"])
        self._clock.load_state_dict(state["clock"])
        if self._motion is not None and state["motion"] is not None:
            self._motion.load_state_dict(state["motion"])
