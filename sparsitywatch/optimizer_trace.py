"""What an optimizer does to the in-scope weights, followed from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sparsitywatch.errors import StateError
from sparsitywatch.optimizers import steps_done
from sparsitywatch.records import Dormant
from sparsitywatch.weights.clock import DecayClock, group_membership
from sparsitywatch.weights.motion import Motion, why_not_measurable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot

__all__ = ["OptimizerTrace"]


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

    def look(
        self, snapshot: Snapshot, parameters: Mapping[str, torch.Tensor]
    ) -> tuple[float, Dormant | None]:
        """The decay clock now (NaN if unknown), and what moved since the last look.

        Args:
            snapshot: the weights now.
            parameters: the same weights as the optimizer holds them.
        """
        if self._optimizer is None:
            return math.nan, None
        membership = group_membership(self._optimizer, parameters)
        reading = self._start + self._clock.reading(membership, self._scope)
        if self._motion is None:
            return reading, None
        why_not = why_not_measurable(self._optimizer)
        return reading, self._motion.look(snapshot, self._clock, membership, why_not)

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
