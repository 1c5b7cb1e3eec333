"""One stretch of writing, from ``open`` to ``close``: who writes, where, and from which step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import RunInfo

__all__ = ["Session", "first_lost_step", "local_directory"]


def first_lost_step(run: RunInfo) -> int:
    """The first step whose record, if there is one already, is of a future that was lost.

    A record at ``initial_step`` itself was written before the checkpoint was, and stays.
    At step 0 nothing has been trained: all that is held is of another start; not so in a
    replay, which may have looked at weights of step 0.

    >>> from sparsitywatch.records import Provenance, RunInfo
    >>> provenance = Provenance(
    ...     sparsitywatch="0", torch="2", scope_hash="", proxy_hash="", dtypes=(),
    ...     tolerance=0.01, tolerance_mode="relative", pattern="global",
    ... )
    >>> [first_lost_step(RunInfo(initial_step=n, provenance=provenance)) for n in (0, 500)]
    [0, 501]
    """
    is_new = run.initial_step == 0 and not run.replayed_from
    return 0 if is_new else run.initial_step + 1


def local_directory(directory: str | os.PathLike[str]) -> Path:
    """``directory`` as a path.

    Raises:
        ConfigurationError: it is a URL.
    """
    if "://" in os.fspath(directory):
        raise ConfigurationError(
            f"Expected `directory` to be a local path, got {os.fspath(directory)!r}. Write to "
            "a local directory and sync it."
        )
    return Path(directory)


class Session:
    """Whether a sink is open, and in which process.

    A forked child inherits every open sink of its parent. What it wrote would stand
    between the parent's lines, so only the process that opened a sink may write to it.

    Args:
        sink: name of the sink, for messages.
    """

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._pid: int | None = None

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Around the work of ``open``; the session begins if it succeeds.

        Raises:
            StateError: the sink is open already.
        """
        if self._pid is not None:
            raise StateError(
                f"Expected a closed {self._sink} in open(), but it is open; close() it first."
            )
        yield
        self._pid = os.getpid()

    def require(self) -> None:
        """Check that this process may write.

        Raises:
            StateError: the sink is not open, or was opened by another process.
        """
        if self._pid is None:
            raise StateError(
                f"Expected an open {self._sink}, but it is closed; call open(run) before writing."
            )
        if self._pid != os.getpid():
            raise StateError(
                f"Expected process {self._pid}, which opened this {self._sink}, got its child "
                f"{os.getpid()}. Attach the watch in the process that trains."
            )

    def end(self) -> bool:
        """Finish; False if there is nothing to finish here (closed, or another's)."""
        if self._pid != os.getpid():
            return False
        self._pid = None
        return True
