"""What an optimizer does to the in-scope weights, followed from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sparsitywatch.analysis.overlap import MASK_LEVELS, MaskHistory
from sparsitywatch.errors import StateError
from sparsitywatch.optimizers import steps_done
from sparsitywatch.weights.clock import (
    ClockReading,
    DecayClock,
    group_membership,
    masters_of,
    weight_average,
)
from sparsitywatch.weights.masks import removed
from sparsitywatch.weights.motion import Motion, why_not_measurable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["Moment", "OptimizerTrace"]


@dataclass(frozen=True)
class Moment:
    """What an optimizer has done up to one step.

    Args:
        decay_clock: sum of lr times weight decay, averaged over the in-scope weights; NaN if
            unknown.
        lr_clock: sum of lr, likewise.
        lr: the learning rate as it stands, likewise.
        clock: the clocks of the param groups; None if the optimizer cannot be seen.
        membership: in-scope name to index of its param group.
        not_measurable: why dormant weights cannot be told, by param group; empty if they can.
        masters: names whose steps are taken on a copy of higher precision.
    """

    decay_clock: float = math.nan
    lr_clock: float = math.nan
    lr: float = math.nan
    clock: DecayClock | None = None
    membership: Mapping[str, int] = field(default_factory=dict)
    not_measurable: tuple[str, ...] = ()
    masters: frozenset[str] = frozenset()


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
        self._masks = MaskHistory()
        self._clock = DecayClock()
        self._masters: dict[str, torch.Tensor] | None = None  # found at the first moment
        self._start = ClockReading(0.0, 0.0)  # what it read when it began to run here

    @property
    def steps_done(self) -> int:
        """Steps as the optimizer itself counts them; 0 if it does not."""
        return 0 if self._optimizer is None else steps_done(self._optimizer)

    def advance(self) -> None:
        """One optimizer step was taken."""
        if self._optimizer is not None:
            self._clock.advance(self._optimizer.param_groups)

    def follow(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, torch.Tensor],
        num_missed: int,
    ) -> None:
        """Go on with another optimizer, which has taken steps already that were not counted.

        What moved until the next look is not told, unless its param groups hold the same
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
        self._optimizer, self._masters = optimizer, None
        for _ in range(num_missed):
            self.advance()

    def moment(self, parameters: Mapping[str, torch.Tensor]) -> Moment:
        """What the optimizer has done so far; it stays as it is when training goes on.

        Args:
            parameters: the in-scope weights as the optimizer holds them, by name.
        """
        if self._optimizer is None:
            return Moment()
        if self._masters is None:
            self._masters = masters_of(self._optimizer, parameters)
        membership = group_membership(self._optimizer, {**parameters, **self._masters})
        since = self._clock.reading(membership, self._scope)
        rates = [float(group.get("lr", 0.0)) for group in self._optimizer.param_groups]
        return Moment(
            decay_clock=self._start.decay + since.decay,
            lr_clock=self._start.lr + since.lr,
            lr=weight_average(rates, membership, self._scope),
            clock=self._clock.copy(),
            membership=membership,
            not_measurable=why_not_measurable(self._optimizer),
            masters=frozenset(self._masters),
        )

    def look(
        self,
        snapshot: Snapshot,
        moment: Moment,
        thresholds: Mapping[str, float] | None = None,
        spectrum: MagnitudeSpectrum | None = None,
    ) -> dict[str, Any]:
        """What the optimizer did and what moved since the last look.

        Args:
            snapshot: the weights at that moment.
            moment: from ``moment``; nothing else of the optimizer is read, so that this
                may run behind the training.
            thresholds: below which a weight is near zero, by name; None if not known.
            spectrum: of these weights; without it nothing is told of masks.

        Returns:
            ``driver``: fields of the record; ``dormant``, ``movement`` and ``masks`` are absent
            if motion is not watched. ``dormant_by_layer``: fractions by tensor.
        """
        fields: dict[str, Any] = {
            "decay_clock": moment.decay_clock,
            "lr_clock": moment.lr_clock,
            "lr": moment.lr,
        }
        if self._motion is None or moment.clock is None:
            return {"driver": fields, "dormant_by_layer": {}}
        moved = self._motion.look(
            snapshot,
            moment.clock,
            moment.membership,
            moment.not_measurable,
            masters=moment.masters,
            thresholds=thresholds,
        )
        fields |= {"dormant": moved.dormant, "movement": moved.movement}
        if spectrum is not None:
            sample = self._motion.sample
            bits = removed(sample, spectrum.thresholds(MASK_LEVELS))
            num_sampled = sum(tensor.numel() for tensor in sample.values())
            fields["masks"] = self._masks.look(snapshot.step, bits, num_sampled)
        return {"driver": fields, "dormant_by_layer": moved.layers}

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
            "motion": self._motion.state_dict() if self._motion else None,
            "masks": {
                k: torch.as_tensor(v, device="cpu") for k, v in self._masks.state_dict().items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing.
        """
        for key in ("start", "lr_start", "clock", "motion", "masks"):
            if key not in state:
                raise StateError(f"Expected key {key!r} in the trace's state, got {list(state)}.")
        self._start = ClockReading(float(state["start"]), float(state["lr_start"]))
        self._clock.load_state_dict(state["clock"])
        if self._motion is not None and state["motion"] is not None:
            self._motion.load_state_dict(state["motion"])
        self._masks.load_state_dict({k: v.numpy() for k, v in state["masks"].items()})
