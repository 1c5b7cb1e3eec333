"""One line that says how far long work has come, and other lines above it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress", "duration"]

_WIDTH = 24
#: Seconds between two drawings.
_PAUSE_S = 0.1


class Progress:
    """A bar on a terminal; nowhere else.

    Args:
        unit: what is counted, in the plural.
        stream: where it is drawn; by default standard error.
        clock: of time in seconds; for tests.
    """

    def __init__(
        self,
        unit: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._unit, self._clock = unit, clock
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty()
        self._started, self._begun_at = clock(), 0
        self._drawn_at = -_PAUSE_S
        self._line = ""

    def begin(self, done: int) -> None:
        """So many were done before; the rate is that of the others."""
        self._begun_at = done

    def update(self, done: int, total: int) -> None:
        """So many are done of so many."""
        now = self._clock()
        if self._is_shown and (done >= total or now - self._drawn_at >= _PAUSE_S):
            self._drawn_at = now
            self._draw(bar(done, total, self._unit, done - self._begun_at, now - self._started))

    def say(self, text: str, stream: TextIO | None = None) -> None:
        """A line of its own, above the bar.

        Args:
            text: without the end of the line.
            stream: where to; by default where the bar is.
        """
        line = self._line
        self.clear()
        print(text, file=self._stream if stream is None else stream, flush=True)
        if line:
            self._draw(line)

    def clear(self) -> None:
        """Take the bar away."""
        if self._line:
            self._draw("")

    def _draw(self, line: str) -> None:
        self._stream.write(f"\r{line:<{len(self._line)}}\r{line}")
        self._stream.flush()
        self._line = line


def bar(done: int, total: int, unit: str, num_new: int, spent_s: float) -> str:
    """How far, how fast, how long still.

    >>> bar(6, 24, "checkpoints", 4, 2.0)
    '[######------------------] 6/24 checkpoints, 2.0 a second, 0:09 left'
    """
    filled = _WIDTH * done // max(total, 1)
    text = f"[{'#' * filled}{'-' * (_WIDTH - filled)}] {done}/{total} {unit}"
    if num_new < 1 or spent_s <= 0.0:
        return text
    each_s = spent_s / num_new
    rate = f"{1 / each_s:.1f} a second" if each_s < 1.0 else f"{each_s:.1f} s each"
    return f"{text}, {rate}, {duration(each_s * (total - done))} left"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(59.6), duration(3661)
    ('1:00', '1:01:01')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
