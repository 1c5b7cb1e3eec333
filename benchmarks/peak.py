"""Peak resident memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["forget_peak", "peak_bytes"]


def forget_peak() -> int:
    """Resident bytes now; where Linux allows it, the peak starts again from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_bytes()  # elsewhere: the peak so far, which the weights dominate
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most resident bytes of this process so far."""
    if sys.platform == "linux":
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int:
    """A field of this process's status on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"Expected {field} in /proc/self/status.")
