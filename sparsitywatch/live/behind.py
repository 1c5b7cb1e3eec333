"""Where a watch evaluates: in the training's thread, in a fork beside it, or in one it waits for.

In a fork the weights are those of that step: whatever a value function uses is there, and the
system copies, page by page, only what the training writes to meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch

from sparsitywatch.evaluation.masked import MaskedModel, SweepResult
from sparsitywatch.pipeline.measure import RunContext, Sweeps, evaluated
from sparsitywatch.proxy.apart import Fork, ForkError, others, why_no_fork
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.reading import ShardedReader
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.weights.snapshot import Snapshot

#: Where a proxy is evaluated: "auto" is behind where that gives the same bits, else inline.
Where = Literal["inline", "behind", "auto"]
#: The time of a step without a fork is the median of so many; known from so many on.
_NUM_STEPS, _FEWEST_STEPS = 32, 4
#: After so many forks in a row that failed none is tried any more.
_MOST_FAILURES = 2


def why_unsafe(model: MaskedModel, reader: ShardedReader, *, same_bits: bool) -> str:
    """Why an evaluation is not to run beside the training now; empty if it may."""
    num, why = torch.get_num_threads(), why_no_fork(model.module, reader.ranks)
    if why:
        return why
    if threading.current_thread() is not threading.main_thread():
        why = "the training does not run in the main thread"
    elif same_bits and num > 1:
        why = f"torch has {num} threads and a fork one, so that last digits might differ"
    elif (cores := _num_cores()) < num + 1:
        why = f"no core is idle: torch uses {num} of {cores:g}"
    elif (spare := _spare_bytes()) < 0:
        why = f"for two of this process {-spare / 2**30:.2g} GiB of memory are missing"
    return why


def _num_cores() -> float:
    """Cores that this process may use."""

    def quota(folder: Path) -> float:
        share_us, period_us = map(float, (folder / "cpu.max").read_text().split())
        return share_us / period_us

    return min(len(os.sched_getaffinity(0)), *_of_groups(quota), math.inf)


def _spare_bytes() -> float:
    """Memory that is left if this process takes as much again, as it may beside a fork."""

    def left(folder: Path) -> float:
        limit, used = (int((folder / f"memory.{x}").read_text()) for x in ("max", "current"))
        cached = re.findall(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
        return float(limit - used + int(cached[0]))

    kib = re.findall(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    used = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return min(1024.0 * int(kib[0]), *_of_groups(left), math.inf) - used


def _of_groups(read: Callable[[Path], float]) -> Iterator[float]:
    """What is read in the folders of the control groups of this process, where there is a limit."""
    for own in re.findall(r"^0::(.*)", Path("/proc/self/cgroup").read_text(), re.M):
        folder = Path(f"/sys/fs/cgroup{own}")
        for one in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):
                yield read(one)


class Behind:
    """Evaluates a model in forks, one at a time: beside the training, or waited for."""

    def __init__(self, where: Where, model: MaskedModel, reader: ShardedReader) -> None:
        self.is_on = False  # whether a fork is beside the training, or was, and is unaccounted for
        self.since_s = math.nan  # when the step that is going on has begun
        self.usual_s = math.inf  # that an evaluation takes in the training's thread
        self.untried = ""  # why none was tried at the attach
        self._alone_s: deque[float] = deque(maxlen=_NUM_STEPS)  # what steps took without a fork
        self._lost_s = 0.0
        self._where, self._model, self._reader = where, model, reader
        self._off = ""  # why none is beside the training
        self._failures: list[str] = []  # of the latest forks, in a row
        self._took_s: dict[bool, float] = {}  # the latest fork, by whether it was waited for
        self._told: set[str] = set()

    def step(self, now_s: float) -> None:
        """A step is done: beside a fork it may take longer."""
        took_s, self.since_s = now_s - self.since_s, now_s
        if not self.is_on and took_s > 0.0:
            self._alone_s.append(took_s)
        elif took_s > 0.0 and len(self._alone_s) >= _FEWEST_STEPS:
            usual_s = statistics.median(self._alone_s)
            # what takes much longer than a step, such as a validation, is no matter of the fork
            self._lost_s += min(took_s - usual_s, usual_s)

    @property
    def lost_s(self) -> float:
        """What the training has lost to the fork that is on its way; to none, nothing."""
        return max(self._lost_s, 0.0) if self.is_on else 0.0

    def why_left_out(self, proxy: Proxy) -> str:
        """Why an evaluation that is due is left out; empty if it is not."""
        if self.untried:
            return f"none could be tried at the attach: {self.untried}"
        if len(self._failures) >= _MOST_FAILURES:
            return f"{len(self._failures)} evaluations in a row have failed; {self._failures[-1]}"
        why = why_no_fork(self._model.module, self._reader.ranks) if self._failures else ""
        return why or proxy.why_left_out(self._model.module)

    def is_apart(self, proxy: Proxy) -> bool:
        """Whether the next evaluation has to run in a fork: one that hung there would hang here."""
        return bool(self._failures) or (proxy.threads_draw and bool(others()))

    def is_safe(self) -> bool:
        """Whether the next evaluation may run beside the training."""
        if self._where == "inline":
            return False
        is_auto = self._where == "auto"
        why = self._off or why_unsafe(self._model, self._reader, same_bits=is_auto)
        if why and why not in self._told:
            self._told.add(why)
            tell = logger.info if is_auto else logger.warning
            tell("the training waits for evaluations: %s", why)
        return not why

    def rehearse(self, proxy: Proxy, dense: np.ndarray | None) -> None:
        """Try a fork, at the attach: it is to give the values of the dense model."""
        if not self.is_safe():
            return

        def values() -> np.ndarray:
            with self._model.session(proxy.value) as masks:
                return proxy.values(*masks.dense())

        try:
            found = Fork(values).result()
        except Exception as error:  # noqa: BLE001 a value function may do without what no fork has
            self._off = redacted_error(error)
            return
        is_same = dense is None or np.array_equal(found, dense, equal_nan=True)
        if self._where == "auto" and not is_same:
            self._off = "a fork gives other values, perhaps only in their last digits"

    def start(
        self, snapshot: Snapshot, run: RunContext, *, is_waited_for: bool
    ) -> Callable[[], Sweeps]:
        """Evaluate the live weights of a snapshot in a fork; gives what waits for it."""
        model, proxy = self._model, run.proxy
        assert proxy is not None  # noqa: S101 for the type checker
        num_threads = torch.get_num_threads()

        def evaluate() -> Sweeps:
            if not is_waited_for:
                os.nice(5)  # should the cores not be idle after all
            spectrum = self._reader.counted(snapshot)[0]
            result, controls, reason = evaluated(snapshot.step, spectrum, run, model)
            plain = {name: _plain(control) for name, control in controls.items()}
            return result and _plain(result), plain, reason

        began_s, fork = time.monotonic(), None
        try:
            fork = Fork(evaluate, proxy, model, num_threads=num_threads if is_waited_for else 1)
        except (ForkError, OSError) as error:
            self._failures.append(redacted_error(error))
        self.is_on, self._lost_s = fork is not None and not is_waited_for, 0.0
        # with one thread it takes longer than with all of them
        first_s = self.usual_s * (1 if is_waited_for else num_threads)
        expected_s = self._took_s.get(is_waited_for, first_s)

        def result() -> Sweeps:
            try:
                if fork is None:
                    return None, {}, self._failures[-1]
                found = fork.result(expected_s)
            except ForkError as error:
                self._failures.append(redacted_error(error))
                return None, {}, self._failures[-1]
            self._failures.clear()
            self._took_s[is_waited_for] = time.monotonic() - began_s
            return found

        return result


def _plain(result: SweepResult) -> SweepResult:
    """What can be sent: a cut that only says what it has removed."""
    cuts: Any = tuple(SimpleNamespace(shares=dict(cut.shares)) for cut in result.cuts)
    return replace(result, cuts=cuts)
