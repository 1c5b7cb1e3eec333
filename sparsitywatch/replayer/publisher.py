"""From looks, in the order of their steps, to records and on to the sinks."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import torch

from sparsitywatch.analysis.overlap import MaskHistory
from sparsitywatch.errors import MeasurementError
from sparsitywatch.logdir import prepare
from sparsitywatch.measurement import Measurement
from sparsitywatch.pipeline import Pipeline
from sparsitywatch.records import Detail, MaskOverlap, Record, RunInfo
from sparsitywatch.replayer.log import Log
from sparsitywatch.replayer.look import Look, Plan, unpacked
from sparsitywatch.replayer.orders import Orders
from sparsitywatch.weights.masks import removed
from sparsitywatch.weights.motion import Motion

__all__ = ["Publisher"]


class Publisher:
    """Adds to a record what needs the look before, and passes it on.

    Args:
        pipeline: detects, remembers, tells the sinks.
        orders: what was asked for.
        motion: compares the weights with those of the look before; None to leave that out.

    Attributes:
        last_step: of the latest record, -1 if there is none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        orders: Orders,
        motion: Motion | None,
    ) -> None:
        self._pipeline, self._orders = pipeline, orders
        self._motion, self._masks = motion, MaskHistory()
        self._measurement: Measurement | None = None  # None until the sinks are open
        self._held: list[tuple[int, str]] = []  # what failed before
        self.last_step = -1

    def go_on(self, log: Log, plan: Plan) -> None:
        """Take up what is kept of an earlier replay, at least one record, and open the sinks.

        Args:
            log: what is kept.
            plan: of this replay; ``initial_rms`` are those of the log.
        """
        self._pipeline.recall(log.records, log.events)
        self.last_step = log.records[-1].step
        self._open(plan, log.records[-1].provenance.dtypes)

    def remember(
        self, step: int, sample: Mapping[str, torch.Tensor], mask_thresholds: Sequence[float]
    ) -> None:
        """Take up a look that is in the log, to compare the next one with.

        Args:
            step: of the look.
            sample: its sampled weights; empty if they are gone.
            mask_thresholds: below which a weight would have gone, at each of ``MASK_LEVELS``;
                empty if that is not known any more.
        """
        if self._motion is not None and sample:
            self._motion.compare(sample, step, None, {})
            self._compared_masks(step, sample, mask_thresholds)

    def take(self, step: int, look: Look, plan: Plan | None) -> None:
        """Pass on one look; steps rise from call to call.

        Args:
            step: optimizer steps done.
            look: at the checkpoint of that step.
            plan: of the look, if it has a record.
        """
        if look.record is None:
            self._held.append((step, look.reason))
        elif self._measurement is None and plan is not None:
            known = dataclasses.replace(plan, initial_rms=look.initial_rms)
            self._open(known, look.record.provenance.dtypes)
        if self._measurement is None:
            return  # without any weights seen nothing can be said of the run
        for failed_step, reason in self._held:
            self._publish(_failed(self._measurement, failed_step, reason), Detail())
        self._held.clear()
        if look.record is not None:
            self._publish(self._with_motion(look, look.record), look.detail)

    def close(self) -> None:
        """Finish the sinks."""
        if self._measurement is not None:
            self._pipeline.close()
            self._measurement = None

    def _open(self, plan: Plan, dtypes: tuple[str, ...]) -> None:
        proxy = None if plan.stage is None else plan.stage.proxy
        measurement = Measurement(plan.settings, plan.scope, plan.initial_rms, proxy, dtypes)
        if self._orders.directory is not None:
            prepare(self._orders.directory)
            self._pipeline.claim.take(over="none")
        info = RunInfo(
            initial_step=self.last_step,
            provenance=measurement.provenance,
            ledger=plan.scope.ledger,
            initial_rms=measurement.initial_rms,
            replayed_from=self._orders.replayed_from,
        )
        self._measurement = measurement  # from here on the sinks are to be closed
        self._pipeline.open(info)

    def _with_motion(self, look: Look, record: Record) -> Record:
        if self._motion is None:
            return record
        sample = unpacked(look.sample)
        moved = self._motion.compare(sample, record.step, None, {})
        layers = tuple(
            dataclasses.replace(layer, dormant=moved.layers.get(layer.name, math.nan))
            for layer in record.layers
        )
        return dataclasses.replace(
            record,
            dormant=moved.dormant,
            movement=moved.movement,
            masks=self._compared_masks(record.step, sample, look.mask_thresholds),
            layers=layers,
        )

    def _compared_masks(
        self, step: int, sample: Mapping[str, torch.Tensor], thresholds: Sequence[float]
    ) -> MaskOverlap | None:
        if not thresholds:
            return None
        num_sampled = sum(tensor.numel() for tensor in sample.values())
        return self._masks.look(step, removed(sample, thresholds), num_sampled)

    def _publish(self, record: Record, detail: Detail) -> None:
        cost = dataclasses.replace(record.cost, publish_s=self._pipeline.publish_s)
        record = self._pipeline.recognised(dataclasses.replace(record, cost=cost))
        self._pipeline.publish(record, detail)
        self.last_step = record.step


def _failed(measurement: Measurement, step: int, reason: str) -> Record:
    record = measurement.failed(step, MeasurementError(reason), time.perf_counter())
    return dataclasses.replace(record, reason=reason)
