"""Which process this is, and whether another one still lives."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import NamedTuple


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
