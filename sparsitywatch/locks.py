"""Locks of files among processes; each ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


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
