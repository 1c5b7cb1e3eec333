"""Optimizers as a watch sees them, without the watch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sparsitywatch.live.trace import OptimizerTrace, Step
from sparsitywatch.pipeline.measure import Examiner
from sparsitywatch.ranks.protocol import ALONE
from sparsitywatch.weights.clock import OptimizerReading, Training
from sparsitywatch.weights.sharded import local_of


class Traced:
    """What some optimizers have done to ``parameters``; their steps are told it."""

    def __init__(
        self, *optimizers: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
    ) -> None:
        self.parameters = parameters
        sizes = {name: local_of(one).numel() for name, one in parameters.items()}
        self.trace = OptimizerTrace(optimizers, sizes, None, Examiner())
        self.trace.lookup = lambda: parameters
        self.trace.attach(ALONE)

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has taken a step."""
        self.trace.saw(Step(optimizer))

    def training(self) -> Training | None:
        """Who trains what, as of now."""
        return self.trace.training(self.parameters)

    def reading(self) -> OptimizerReading:
        """What that says of all of them."""
        return self.trace.reading(self.training())
