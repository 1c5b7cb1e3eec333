"""One job at a time behind the training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Background"]

T = TypeVar("T")


class Background(Generic[T]):
    """A single thread that is never given a second job before the first one is collected.

    At the end of the interpreter a job that has begun is still finished.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[T] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the job is still running."""
        return self._job is not None and not self._job.done()

    def submit(self, function: Callable[[], T]) -> None:
        """Run ``function`` behind the caller; what the job before gave must be collected."""
        if self._job is not None:
            raise RuntimeError("Expected the job before to be collected, it is not.")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="sparsitywatch")
        self._job = self._pool.submit(function)

    def collect(self, *, wait: bool = False) -> T | None:
        """What the job gave, once; None if there is none, or it runs and ``wait`` is False.

        Raises:
            Exception: what the job raised.
        """
        if self._job is None or (self.is_busy and not wait):
            return None
        try:
            return self._job.result()
        finally:
            if not self.is_busy:  # a signal may have interrupted the wait
                self._job = None

    def close(self) -> None:
        """End the thread; a job that runs is finished first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
