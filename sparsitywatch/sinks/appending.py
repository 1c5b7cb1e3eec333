"""A file that only grows, whose bytes outlive the process from the moment they are written."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["AppendingFile"]


class AppendingFile:
    """Appends blocks of bytes in order, each handed to the operating system at once.

    There is no buffer in the process and no thread, so that a kill loses nothing and a
    forked child neither hangs nor writes twice. What a full disk does not take stays
    pending and goes first at the next call, continuing where the file ends: readers never
    see a hole, only an end that is still to come.

    Args:
        path: created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._pending = bytearray()

    def write(self, block: bytes) -> None:
        """Append ``block``, after anything that is still pending.

        Raises:
            OSError: the operating system did not take everything; the rest is pending.
        """
        self._pending += block
        while self._pending:
            num_written = os.write(self._descriptor, self._pending)
            del self._pending[:num_written]

    def close(self) -> None:
        """Try once more to write what is pending, and close the file in any case."""
        try:
            self.write(b"")
        finally:
            os.close(self._descriptor)

    def abandon(self) -> None:
        """Close the file without what is pending."""
        os.close(self._descriptor)
