"""How far each block of a model moved at each of the latest steps; kept on its device.

An update is what the weights differ by from those before it. Of all weights that takes a copy of
the model, and 6 to 13 % of a step of BERT on a CPU. So norms are estimated from a fixed sample of
each block, 8,192 weights in runs of 16: 0.1 to 0.5 % of such a step, and off by 5 % (rms), 16 % at
most. Nothing waits for the device until the ring is read. Of shards a rank samples what it holds.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparsitywatch.analysis.spikes import Moves, find_spikes
from sparsitywatch.errors import LogTakenError, contain_faults
from sparsitywatch.pipeline.pipeline import Reviewer
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.records import Event, Record
from sparsitywatch.records.run import block_of
from sparsitywatch.redact import NEWS, logger
from sparsitywatch.sinks.jsonl import write_moves
from sparsitywatch.weights.sharded import Tensors, is_encoded, is_sharded

#: Steps that are kept; runs of weights that are sampled of a block, weights of a run.
_CAPACITY, _NUM_RUNS, _RUN = 2000, 512, 16
#: A ring that nobody asked for takes at most this share of a step, as these many first ones took.
_MOST_SHARE, _TRIAL_STEPS = 0.003, 20


class Ring(Reviewer):
    """Root mean squares of update, weight and gradient by block at each step, and the loss."""

    # weights that are frozen, few, no dense floats, or on another device than the first are left
    # out; unless it was asked for, it stays if its first steps show that it costs little

    def __init__(self, asked: bool | None, claim: Claim, *, strict: bool = False) -> None:
        self._asked, self._claim, self._strict = asked, claim, strict
        self._trial: list[tuple[float, float]] = []  # when each first step ended, what it took
        self._addresses: list[int] = []
        self._loss: torch.Tensor | float = math.nan  # of the next step
        self._make_room({}, 0)
        self.look()

    def attach(self, parameters: Tensors, capacity: int = _CAPACITY) -> None:
        """Begin, unless it is not wanted."""
        if self._asked is not False:
            with contain_faults(self._fail, strict=self._strict):
                self._make_room(parameters, capacity)
            if self._asked and not self._tensors:
                logger.warning(
                    "no updates by block (`ring`): all weights are frozen, quantised, or of FSDP1"
                )

    def _make_room(self, parameters: Tensors, capacity: int) -> None:
        found = {name: one for name, one in parameters.items() if _can_sample(one)}
        device = next((one.device for one in found.values()), torch.device("cpu"))
        blocks: dict[str, list[torch.Tensor]] = {}
        for name, one in found.items():
            if one.device == device:
                blocks.setdefault(block_of(name), []).append(one)
        self._blocks = np.array([*blocks], np.str_)
        self._tensors = [one for block in blocks.values() for one in block]
        runs = [_runs_of(block) for block in blocks.values()]
        self._runs = [run for block in runs for run in block]
        sizes = [sum(num for num, _ in block) for block in runs]
        # of each sampled weight: its update, itself, its gradient, and itself before
        self._values = torch.zeros(4, sum(sizes), _RUN, device=device)
        self._parts = [part for values in self._values[:3] for part in values.split(sizes)]
        self._scale = torch.tensor(sizes, device=device).mul(_RUN).rsqrt().repeat(3)
        self._rows = torch.full((capacity, 3 * len(sizes) + 1), math.nan, device=device)
        self._steps = np.full(capacity, -1)
        self._num = 0

    def say_loss(self, value: torch.Tensor | float, step: int | None = None) -> None:
        """The loss of the latest step, if that is ``step``, else of the next one."""
        with contain_faults(self._fail, strict=self._strict):
            loss = _inner(torch.as_tensor(value).detach()).float().mean().nan_to_num(nan=math.inf)
            self._loss = loss.item() if loss.device.type == "cpu" else loss
            if self._num and self._steps[latest := (self._num - 1) % len(self._steps)] == step:
                self._rows[latest, -1], self._loss = self._loss, math.nan

    def after_step(self, step: int, num_steps: int = 1) -> None:
        """A step was taken; several at once have no update of their own."""
        if not self._tensors:
            return
        with contain_faults(self._fail, strict=self._strict), torch.no_grad():
            began_s = time.perf_counter()
            self._record(step, is_one=num_steps == 1)
            if len(self._trial) < _TRIAL_STEPS:
                self._trial.append((began_s, time.perf_counter() - began_s))
                if len(self._trial) == _TRIAL_STEPS:
                    self._end_trial()

    def _record(self, step: int, *, is_one: bool) -> None:
        self._steps[self._steps >= step] = -1  # a future that was lost
        place = self._num % len(self._steps)
        self._steps[place], self._num = step, self._num + 1
        update, now, gradient, before = self._values
        weights = [_inner(one) for one in self._tensors]
        addresses = [one.data_ptr() for one in weights]
        if is_new := addresses != self._addresses:
            self._addresses, self._views = addresses, self._sampled(weights)
        torch.cat(self._views, out=now)
        torch.sub(now, before, out=update)
        before.copy_(now)
        if is_new or not is_one:
            update.fill_(math.nan)
        try:
            torch.cat(self._sampled([_inner(one.grad) for one in self._tensors]), out=gradient)
        except (AttributeError, RuntimeError):  # there are none, or sparse ones
            gradient.fill_(math.nan)
        norms = torch.stack(torch._foreach_norm(self._parts))
        torch.mul(norms, self._scale, out=self._rows[place, :-1])
        self._rows[place, -1], self._loss = self._loss, math.nan

    def _sampled(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        pairs = zip(tensors, self._runs, strict=True)
        return [one.as_strided((num, _RUN), (apart, 1)) for one, (num, apart) in pairs]

    def _end_trial(self) -> None:
        """Say what it costs; unless it was asked for it ends where that is too much."""
        began_s, took_s = np.array(self._trial).T
        share = np.median(took_s) / np.median(np.diff(began_s))
        words = f"{1e3 * np.median(took_s):.2g} ms, {100 * share:.2g} % of a step"
        if self._asked or share <= _MOST_SHARE:
            logger.info("updates by block are kept at every step (`ring`): %s", words)
        else:
            logger.debug("no updates by block, which `ring=True` would keep for %s", words)
            self._make_room({}, 0)

    def look(self) -> None:
        """Read all that it holds; waits for the device."""
        with contain_faults(self._fail, strict=self._strict):
            places = np.argsort(self._steps)[(self._steps < 0).sum() :]
            rows = self._rows.cpu().numpy()[places].astype(float)
            norms = rows[:, :-1].reshape(len(rows), 3, len(self._blocks)).swapaxes(0, 1)
            self.moves = Moves(self._blocks, self._steps[places], rows[:, -1], *norms)

    def events(self, record: Record, _: Sequence[Record], told: Sequence[Event]) -> list[Event]:
        """Each spike since the last one that was told; if there is one the ring is written."""
        return self._news(told, record.step)

    def _news(self, told: Sequence[Event], seen_at: int = -1) -> list[Event]:
        last = max((event.onset_high for event in told if event.kind == "spike"), default=-1)
        with contain_faults(self._fail, strict=self._strict):
            found = find_spikes(self.moves, seen_at=seen_at, after=last)
            if self._claim.directory is not None and (found or seen_at < 0):
                write_moves(self._claim.directory, self.moves)
            return found
        return []

    def end(self, told: Sequence[Event]) -> None:
        """Read it for the last time, and say what is new in it."""
        if self._tensors and (self._asked or len(self._trial) == _TRIAL_STEPS):
            self.look()
            with contextlib.suppress(LogTakenError), self._claim.writing():
                for event in self._news(told):
                    logger.warning("%s", event.describe(), extra=NEWS)

    def _fail(self, error: BaseException) -> None:
        self._make_room({}, 0)
        logger.error("updates by block are kept no more", exc_info=error)


def _can_sample(parameter: torch.Tensor) -> bool:
    """Whether it is trained, and its values lie in memory without gaps."""
    if hasattr(parameter, "flat_shard") or (is_encoded(parameter) and not is_sharded(parameter)):
        return False
    held = _inner(parameter)
    span = sum((size - 1) * stride for size, stride in zip(held.shape, held.stride(), strict=True))
    is_dense = span + 1 == held.numel() >= _RUN and held.device.type != "meta"
    return is_dense and parameter.requires_grad and held.is_floating_point()


def _runs_of(block: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """How many runs of weights are sampled of each tensor of a block, and how far apart."""
    sizes = [_inner(one).numel() for one in block]
    nums = [min(_NUM_RUNS * size // sum(sizes), size // _RUN) or 1 for size in sizes]
    # not always in the same columns: those of most matrices are even in number
    return [(n, max((size // n - 1) | 1, _RUN)) for size, n in zip(sizes, nums, strict=True)]


def _inner(tensor: Any) -> Any:
    """What a DTensor holds here: ``to_local`` takes as long as all the rest."""
    return getattr(tensor, "_local_tensor", tensor)
