"""Evaluation off the training's path, in a fork of its process: the weights are those of that step.

Whatever a value function uses is there, and the system copies, page by page, only what the training
writes to meanwhile. A fork has one thread, ends with the training at the latest, and has no part in
its end: no handler of a signal, nothing at exit, no buffer of a file that would be written twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import pickle
import random
import re
import select
import signal
import statistics
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from logging.handlers import BufferingHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast

import numpy as np
import torch

from sparsitywatch.errors import MeasurementError
from sparsitywatch.pipeline.measure import Evaluated, RunContext, evaluated
from sparsitywatch.pruning.evaluation import MaskedModel, SweepResult
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.ranks.protocol import is_distributed
from sparsitywatch.ranks.reading import ShardedReader
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.weights.snapshot import Snapshot

T = TypeVar("T")

#: Where a proxy is evaluated: "auto" is behind where that gives the same bits, else inline.
Where = Literal["inline", "behind", "auto"]
#: A fork that has used no processor for so long hangs, in a lock that another thread held, say.
_STILL_S = 60.0
#: So often a fork that says nothing is looked at.
_LOOK_S = 1.0
#: The time of a step without a fork is the median of so many; known from so many on.
_NUM_STEPS, _FEWEST_STEPS = 32, 4


class ForkError(MeasurementError):
    """A fork has ended, or was ended, without a result."""


class Fork(Generic[T]):
    """A function on its way in a fork of this process; ``result`` is called once."""

    def __init__(self, run: Callable[[], T]) -> None:
        self._pipe, writer = os.pipe()
        self._status = 0
        _flush()
        state, parent = random.getstate(), os.getpid()  # a fork has Python seed it anew
        try:
            with _forking():
                self.pid = os.fork()
                if not self.pid:
                    _be_the_fork(run, writer, parent, state)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(writer)

    def result(self) -> T:
        """Wait for what the function returns or raises; a ForkError if the fork ends before."""
        said, used, since, why = bytearray(), "", time.monotonic(), ""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            if poll.poll(1e3 * _LOOK_S):
                if not (some := os.read(self._pipe, 2**20)):
                    break
                said += some
            elif self._has_ended():  # a process of somebody else may hold the pipe open
                break
            elif (now := self._used()) != used:
                used, since = now, time.monotonic()
            elif time.monotonic() - since > _STILL_S and not why:
                why = f"it used no processor for {_STILL_S:g} s"
                os.kill(self.pid, signal.SIGKILL)
        self._has_ended(wait=True)
        os.close(self._pipe)
        code = os.waitstatus_to_exitcode(self._status)
        if code or not said:
            why = why or (f"signal {-code} has ended it" if code < 0 else f"it returned {code}")
            raise ForkError(f"Expected a result of the process that evaluates, but {why}.")
        value, error, records = pickle.loads(said)  # noqa: S301 of this very program
        for record in records:
            logger.handle(record)
        if error is not None:
            raise error
        return cast("T", value)

    def _has_ended(self, *, wait: bool = False) -> bool:
        with contextlib.suppress(ChildProcessError):  # who waits for any child has seen it
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            if not pid:
                return False
            self._status = status
        return True

    def _used(self) -> str:
        """Processor time that it has used, as Linux has it."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return " ".join(fields[11:13])
        return ""


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Around a fork: no handler of a signal runs in it, and nobody warns of what is seen to."""
    name = "TOKENIZERS_PARALLELISM"  # once they were used they print lines at each fork
    is_unsaid = "tokenizers" in sys.modules and name not in os.environ
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if is_unsaid:
            os.environ[name] = "false"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside: see _STILL_S
            yield
    finally:
        if is_unsaid:
            os.environ.pop(name, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _be_the_fork(run: Callable[[], Any], writer: int, parent: int, state: Any) -> NoReturn:
    """Run the function, say what has come of it, and end."""
    code, value, error = 1, None, None
    try:
        torch.set_num_threads(1)  # first of all: others would wait for threads that are not here
        _part_from(parent)
        random.setstate(state)
        kept = BufferingHandler(sys.maxsize)
        logger.handlers, logger.propagate = [kept], False
        try:
            value = run()
        except BaseException as raised:  # noqa: BLE001 raised again in the training's process
            error = raised
        for record in kept.buffer:  # its text is there already
            record.exc_info = None
        with open(writer, "wb") as pipe:
            pickle.dump((value, error, kept.buffer), pipe)
        code = 0
    except BaseException:  # noqa: BLE001 nobody else would see it
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _part_from(parent: int) -> None:
    """Leave signals to the training, end with it, and be what the system ends first."""
    of_groups = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    handled = {one for one in signal.valid_signals() if callable(signal.getsignal(one))}
    for number in of_groups | handled:  # a terminal, or a scheduler, sends them to both
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(5)  # should the cores not be idle after all
    gc.freeze()  # nothing of the training's is finalized here


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # there may be none, or it is closed
            stream.flush()


def why_unsafe(model: MaskedModel, reader: ShardedReader, *, same_bits: bool) -> str:
    """Why an evaluation is not to go into a fork now; empty if it may."""
    tensors = chain(model.module.parameters(), model.module.buffers())
    num, why = torch.get_num_threads(), ""
    if sys.platform != "linux":
        why = "only Linux ends a fork together with the training"
    elif not reader.ranks.is_alone or is_distributed():
        why = "the training has several processes"
    elif threading.current_thread() is not threading.main_thread():
        why = "the training does not run in the main thread"
    elif torch.cuda.is_initialized() or any(not tensor.is_cpu for tensor in tensors):  # type: ignore[no-untyped-call]
        why = "a device is in use, and a fork knows nothing of it"
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
    """Evaluates a model in forks, one at a time, where that is asked for and safe."""

    def __init__(self, where: Where, model: MaskedModel, reader: ShardedReader) -> None:
        self.is_on = False  # whether a fork is on its way, or was, and is not accounted for
        self.since_s = math.nan  # when the step that is going on has begun
        self._alone_s: deque[float] = deque(maxlen=_NUM_STEPS)  # what steps took without a fork
        self._lost_s = 0.0
        self._where, self._model, self._reader = where, model, reader
        self._off = ""  # why none is made any more
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

    def is_safe(self) -> bool:
        """Whether the next evaluation may go into a fork."""
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

    def start(self, snapshot: Snapshot, run: RunContext) -> Callable[[], Evaluated] | None:
        """Evaluate the live weights of a snapshot in a fork; gives what waits for it, if it can."""
        model, proxy = self._model, run.proxy
        assert proxy is not None  # noqa: S101 for the type checker

        def evaluate() -> tuple[Evaluated, tuple[bool, bool, int]]:
            spectrum = self._reader.counted(snapshot)[0]
            result, controls, reason = evaluated(snapshot.step, spectrum, run, model)
            plain = {name: _plain(control) for name, control in controls.items()}
            learned = model.renews, proxy.is_kept_whole, proxy.num_batches
            return (result and _plain(result), plain, reason), learned

        try:
            fork = Fork(evaluate)
        except OSError as error:
            self._off = redacted_error(error)
            return None
        self.is_on, self._lost_s = True, 0.0

        def result() -> Evaluated:
            try:
                found, (model.renews, proxy.is_kept_whole, num_batches) = fork.result()
            except ForkError as error:
                self._off = redacted_error(error)
                return None, {}, self._off
            while proxy.num_batches < num_batches and proxy.halve():
                continue
            return found

        return result


def _plain(result: SweepResult) -> SweepResult:
    """What can be sent: a cut that only says what it has removed."""
    cuts: Any = tuple(SimpleNamespace(shares=dict(cut.shares)) for cut in result.cuts)
    return replace(result, cuts=cuts)
