"""Evaluations apart from the training: none touches what another thread of the process may use.

A value function draws from the global generators of torch, numpy and python, which are seeded for
it and put back; it may set attributes of classes and globals. Another thread, such as one that
augments batches, would draw from that seed, and what it drew would be drawn again. So where other
threads may do so, an evaluation runs in a fork of the process that is waited for. Where no fork is
safe it is left out. Among threads that evaluate in this process one does so at a time.

A fork has one thread of the process, ends with the training at the latest, and has no part in its
end: no handler of a signal, nothing at exit, no buffer of a file that would be written twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from logging.handlers import BufferingHandler
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MeasurementError
from sparsitywatch.processes import stat_of
from sparsitywatch.ranks.protocol import Ranks, is_distributed
from sparsitywatch.redact import logger, redacted_error

T = TypeVar("T")

#: Packages whose threads neither draw nor look at a model: progress bars, loggers, debuggers, what
#: hands batches on, and this library.
_HARMLESS = (
    "sparsitywatch.threads", "sparsitywatch.live", "sparsitywatch.actions", "sparsitywatch.page",
    "sparsitywatch.offline", "asyncio.unix_events",
    "tqdm", "tensorboard", "tensorboardX", "wandb", "mlflow", "comet_ml", "neptune", "trackio",
    "torch.utils.data._utils.pin_memory", "torch._inductor", "multiprocessing.queues",
    "multiprocessing.resource_sharer", "concurrent.futures.process", "ipykernel", "IPython", "zmq",
    "debugpy", "_pydevd_bundle", "pydevd", "execnet", "psutil", "codecarbon", "sentry_sdk", "grpc",
)  # fmt: skip
#: What starts a thread runs what it was given: sentry does so for each thread of the process.
_STARTERS = ("threading", "sentry_sdk.integrations.threading")
#: The thread in which fsspec waits for remote storage; that of a snapshot, as it begins or ends.
_HARMLESS_NAMES = ("fsspecIO", "sparsitywatch")
#: A fork that has used no processor for so long hangs, in a lock that another thread held, say.
_STILL_S = 30.0
#: So often a fork that says nothing is looked at.
_LOOK_S = 1.0
#: A fork is ended that takes so many times as long as it should, and so many seconds.
_TIMES, _MORE_S = 10.0, 5.0
#: How long a new fork may wait for a generator that another thread held at its beginning, in the
#: first try and in the later ones.
_BEGIN_S = (0.2, 0.5, 1.0, 2.0, 4.0)

#: Held by who draws or evaluates in this process: what is put back is what was there before.
EVALUATING: Any = threading.RLock()


class ForkError(MeasurementError):
    """A fork has ended, or was ended, without a result."""


class SharedStateError(MeasurementError):
    """Other threads may use what an evaluation touches, and no fork is safe."""


class Learner(Protocol):
    """What learns from an evaluation; ``learn`` is given what ``learned`` says in a fork."""

    def learned(self) -> dict[str, Any]:
        """Plain data."""

    def learn(self, state: dict[str, Any]) -> None:
        """Take it up."""


# ------------------------------------------------------------------ other threads


def others() -> list[str]:
    """Names of other threads of this process that may draw, or use what an evaluation sets."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    with _uncollected():
        frames = sys._current_frames()
        # its own would hold itself, and with it all that its callers have
        del frames[threading.get_ident()]
        for ident, frame in frames.items():
            name = names.get(ident, f"thread {ident}")
            if not _is_harmless(frame, name):
                found.append(name)
    return sorted(found)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Around a look at the frames of other threads: none of them runs on in the midst of it."""
    # Python 3.11 makes the object of a frame when it is asked for, and may collect garbage then.
    # Where that runs code of Python, the thread goes on, its frame goes, and the process crashes.
    is_at_risk = sys.version_info[:2] == (3, 11) and gc.isenabled()
    try:
        if is_at_risk:
            gc.disable()
        yield
    finally:
        if is_at_risk:
            gc.enable()


def _is_harmless(frame: FrameType | None, name: str) -> bool:
    """Whether a thread is known to leave generators and models alone, by what runs it."""
    innermost, owner = frame, ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        owner, frame = (owner if module in _STARTERS else module), frame.f_back
    if owner == "concurrent.futures.thread" and innermost is not None:
        # one without work gets some from this thread, or from one that is looked at as well
        held = innermost.f_locals if innermost.f_code.co_name == "_worker" else {}
        is_idle = "work_queue" in held and held["work_queue"].empty()
        return is_idle and held.get("work_item") is None
    is_known = any(owner == one or owner.startswith(f"{one}.") for one in _HARMLESS)
    return is_known or name in _HARMLESS_NAMES


def why_no_fork(module: nn.Module | None, ranks: Ranks) -> str:
    """Why a fork cannot evaluate a model; empty if it can."""
    tensors = () if module is None else chain(module.parameters(), module.buffers())
    if sys.platform != "linux":
        return "only Linux ends a fork together with the training"
    if not ranks.is_alone or is_distributed():
        return "the training has several processes"
    is_on_device = torch.cuda.is_initialized() and module is not None  # type: ignore[no-untyped-call]
    if is_on_device or any(not tensor.is_cpu for tensor in tensors):
        return "a device is in use"
    return ""


def why_shared(module: nn.Module | None, ranks: Ranks) -> str:
    """Why nothing can be evaluated now without touching what other threads may use; or empty."""
    if not (names := others()) or not (why := why_no_fork(module, ranks)):
        return ""
    which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"other threads ({which}) may draw from the generators that an evaluation seeds, and no "
        f"fork is safe: {why}. If they draw nothing, pass `threads_draw=False`"
    )


def apart(run: Callable[[], T], module: nn.Module | None, ranks: Ranks, *learners: Learner) -> T:
    """What ``run`` gives, with nothing touched that other threads may use; or why it cannot run."""
    if not others():
        return run()
    if why := why_shared(module, ranks):
        raise SharedStateError(f"Expected an evaluation that touches nothing of others, but {why}.")
    return Fork(run, *learners, num_threads=torch.get_num_threads()).result()


# ------------------------------------------------------------------ a fork


class Fork(Generic[T]):
    """A function on its way in a fork of this process; ``result`` is called once."""

    def __init__(
        self,
        run: Callable[[], T],  # what it gives or raises is sent back
        *learners: Learner,  # what they have learned there is known here, too
        num_threads: int = 1,  # torch's; as many as here give the same bits
    ) -> None:
        self._run, self._learners, self._num_threads = run, learners, num_threads
        self._began_s = time.monotonic()
        for limit_s in _BEGIN_S:
            self._fork()
            if self._has_begun(limit_s):
                return
            self._end(kill=True)
        raise ForkError(
            f"Expected a process that evaluates, but {len(_BEGIN_S)} of them hung: another thread "
            "draws from torch's generator all the time."
        )

    def _fork(self) -> None:
        self._pipe, writer = os.pipe()
        self._status: int | None = None
        _flush()
        state, parent = random.getstate(), os.getpid()  # a fork has Python seed it anew
        try:
            with _forking():
                # who draws at this moment holds the generator, and would for ever in a fork
                torch.get_rng_state()
                self.pid = os.fork()
                if not self.pid:
                    self._be_the_fork(writer, parent, state)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(writer)

    def _has_begun(self, limit_s: float) -> bool:
        """Whether the fork has said its first byte: no generator is held there."""
        return bool(wait([self._pipe], limit_s)) and os.read(self._pipe, 1) != b""

    def result(self, expected_s: float = math.inf) -> T:
        """What the function returns or raises; a ForkError if it hangs, or is far too slow."""
        why = "interrupted"
        try:
            said, why = self._read(_TIMES * expected_s + _MORE_S)
        finally:
            self._end(kill=bool(why))
        code = os.waitstatus_to_exitcode(self._status or 0)
        if code or not said:
            why = why or (f"signal {-code} has ended it" if code < 0 else f"it returned {code}")
            raise ForkError(f"Expected a result of the process that evaluates, but {why}.")
        value, error, learned, records = pickle.loads(said)  # noqa: S301 of this very program
        for record in records:
            logger.handle(record)
        for learner, state in zip(self._learners, learned, strict=True):
            learner.learn(state)
        if error is not None:
            raise error
        return cast("T", value)

    def _read(self, limit_s: float) -> tuple[bytearray, str]:
        """All that it says, and why it is to be ended before it has said it."""
        said, used, since = bytearray(), list[bytes](), time.monotonic()
        while True:
            if wait([self._pipe], _LOOK_S):
                if not (some := os.read(self._pipe, 2**20)):
                    return said, ""
                said += some
            elif self._has_ended():  # a process of somebody else may hold the pipe open
                return said, ""
            elif (now := stat_of(self.pid)[11:13]) != used:  # processor time
                used, since = now, time.monotonic()
            elif time.monotonic() - since > _STILL_S:
                return said, f"it used no processor for {_STILL_S:g} s"
            if time.monotonic() - self._began_s > limit_s:
                return said, f"it took more than {limit_s:.3g} s, ten times what is usual and 5 s"

    def _end(self, *, kill: bool) -> None:
        """Wait for its end."""
        if kill and not self._has_ended():
            os.kill(self.pid, signal.SIGKILL)
        self._has_ended(wait=True)
        os.close(self._pipe)

    def _has_ended(self, *, wait: bool = False) -> bool:
        if self._status is not None:
            return True
        try:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
        except ChildProcessError:  # who waits for any child has seen it
            pid, status = self.pid, 0
        if pid:
            self._status = status
        return bool(pid)

    def _be_the_fork(self, writer: int, parent: int, state: Any) -> NoReturn:
        """Run the function, say what has come of it, and end."""
        code = 1
        try:
            _part_from(parent)
            random.setstate(state)
            # in a thread of its own: in this one torch would wait for threads that are not here
            thread = threading.Thread(target=self._say, args=[writer])
            thread.start()
            thread.join()
            code = 0
        except BaseException:  # noqa: BLE001 nobody else would see it
            traceback.print_exc()
        finally:
            _flush()
            os._exit(code)

    def _say(self, writer: int) -> None:
        value, error = None, None
        try:
            torch.get_rng_state()
            os.write(writer, b"+")
            torch.set_num_threads(self._num_threads)
            kept = BufferingHandler(sys.maxsize)
            logger.handlers, logger.propagate = [kept], False
            try:
                value = self._run()
            except BaseException as raised:  # noqa: BLE001 raised again in the training's process
                error = raised
                try:
                    pickle.loads(pickle.dumps(error))  # noqa: S301 of this very program
                except Exception:  # noqa: BLE001 whatever somebody's class raises
                    error = MeasurementError(redacted_error(error))
            for record in kept.buffer:  # its text is there already
                record.exc_info = None
            learned = [learner.learned() for learner in self._learners]
            with open(writer, "wb") as pipe:
                pickle.dump((value, error, learned, kept.buffer), pipe)
        except BaseException:  # noqa: BLE001 nobody else would see it
            traceback.print_exc()
            _flush()
            os._exit(1)


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Around a fork: no handler of a signal runs in it, and nobody warns of what is seen to."""
    name = "TOKENIZERS_PARALLELISM"  # once they were used they print lines at each fork
    is_unsaid = "tokenizers" in sys.modules and name not in os.environ
    with contextlib.ExitStack() as stack:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        # what has come already is handled here: its handler may raise with all blocked
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if is_unsaid:
            os.environ[name] = "false"
            stack.callback(os.environ.pop, name, None)
        if sys.version_info >= (3, 12):  # it warns of threads beside: see _STILL_S
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", DeprecationWarning)
        yield


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
    gc.freeze()  # nothing of the training's is finalized here
    # whoever held them is not here to let go
    numpys: Any = np.random.mtrand._rand._bit_generator.lock
    for lock in (numpys, EVALUATING):
        lock._at_fork_reinit()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # there may be none, or it is closed
            stream.flush()
