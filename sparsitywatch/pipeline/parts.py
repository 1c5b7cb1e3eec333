"""The seams of parts that the core does not know by name, such as vital signs.

An examiner looks at what a snapshot of the weights in scope leaves out; a reviewer looks at whole
records as they come.
"""
# ruff: noqa: ARG002 by default a part does nothing with what it is given

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sparsitywatch.records import Event, Record, Vital
from sparsitywatch.weights.clock import Training
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: Finishes what was read, once, in any thread, given the spectrum of the weights in scope; None
#: where they were not counted.
Examined = Callable[[MagnitudeSpectrum | None], Vital | None]


def nothing_examined(_: MagnitudeSpectrum | None) -> Vital | None:
    """What is said where nobody looked."""
    return None


class Examiner:
    """Looks at every parameter of a model in training; this one looks at nothing.

    Ranks that watch together call each of theirs at the same snapshots.
    """

    def read(
        self, step: int, parameters: Mapping[str, torch.Tensor], training: Training | None
    ) -> Examined:
        """Read what the next step may change of every parameter, in the training's thread."""
        return nothing_examined

    def failed(self, reason: str) -> Examined:
        """What is said of a snapshot at which ``read`` failed."""
        return nothing_examined

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


class Reviewer:
    """Looks at whole records in the order of their steps; this one sees nothing in them."""

    def reviewed(
        self,
        vital: Vital | None,
        record: Record,
        same_weights_as: int | None,
        earlier: Sequence[Record],
    ) -> Vital | None:
        """The vital signs of a record with what the ``earlier`` ones say, by rising step."""
        return vital

    def events(
        self, record: Record, earlier: Sequence[Record], told: Sequence[Event]
    ) -> list[Event]:
        """What is new in it, beside the ``earlier`` records and the events ``told`` so far."""
        return []
