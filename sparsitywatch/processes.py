"""Which process this is, whether another one still lives, and whose turn it is among several."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


class Process(NamedTuple):
    """A process among all of them; what the system does not say is empty, or -1."""

    # a number is another process's on another kernel, after a boot, in another container, later
    pid: int = -1
    host: str = ""
    boot: str = ""
    namespace: str = ""  # of pids
    started: int = -1  # clock ticks after the boot

    @property
    def has_died(self) -> bool:
        """Whether it is known to be gone, which of another kernel or container nobody knows."""
        here = this_process()
        if not self.namespace or self.started < 0 or self[1:4] != here[1:4]:
            return False
        try:
            os.kill(self.pid, 0)  # signal 0 asks, and sends nothing
        except OSError as error:  # any other: it is somebody else's
            return isinstance(error, ProcessLookupError)
        # /proc may be that of the host, whose numbers are others
        is_own = Path("/proc/self").readlink() == Path(str(os.getpid()))
        return is_own and _started(self.pid) not in (-1, self.started)


def this_process() -> Process:
    """The process that asks."""
    return _process(os.getpid())


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> Process:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        return Process(pid, socket.gethostname())
    return Process(pid, socket.gethostname(), boot, namespace, _started("self"))


def _started(pid: int | str) -> int:
    """When a process started, by its number in /proc; -1 if that is not known."""
    return int((stat_of(pid)[19:20] or [b"-1"])[0])


def stat_of(pid: int | str) -> list[bytes]:
    """What Linux says of a process after its name; nothing where it is gone, or no Linux."""
    try:  # the name may hold spaces and brackets
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


# ------------------------------------------------------------------ locks

#: Files that this process holds locked.
_locked: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child holds no lock: it may outlive this process."""
    for descriptor in _locked:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, descriptor, inheritable=False)  # who closes it later closes no other file
        os.close(nowhere)
    _locked.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


def try_lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Whether the lock was free, or is by now, and is ours; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    _locked.add(descriptor)
    return True


def unlock(descriptor: int) -> None:
    """Give a lock back, before its file is closed."""
    _locked.discard(descriptor)
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, which is made if need be; says whether it is ours, or nobody's."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield try_lock(descriptor, wait=wait) is not False
    finally:
        unlock(descriptor)
        os.close(descriptor)
