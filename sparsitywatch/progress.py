"""How far long work is: one line on a terminal, written over again; nothing where nobody looks."""

from __future__ import annotations

import shutil
import sys
import time


class Progress:
    """Counts what is done; the time left is guessed from what this process has done of it."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._is_seen = sys.stderr.isatty()
        self._length = 0  # of the line on the terminal
        self._begun = time.monotonic()
        self._earlier: int | None = None  # done before this process began

    def show(self, done: int, total: int) -> None:
        """Say that another one is done."""
        if not self._is_seen:
            return
        if self._earlier is None:
            self._earlier = done - 1
        left_s = (time.monotonic() - self._begun) * (total - done) / (done - self._earlier)
        minutes, seconds = divmod(round(left_s), 60)
        text = f"{done:,} of {total:,} {self._unit}, {minutes}:{seconds:02} to go"
        text = text[: shutil.get_terminal_size().columns - 1]
        self.clear()
        self._length = len(text)
        self._write(text)

    def clear(self) -> None:
        """Wipe the line: at the end, and before another one is printed."""
        if self._length:
            self._write(f"\r{' ' * self._length}\r")
            self._length = 0

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
