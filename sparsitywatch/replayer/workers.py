"""Looks by the workers of an executor: in order, and never too many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future

from sparsitywatch.replayer.look import Look, Task, look

__all__ = ["in_order", "window_of"]

#: Looks at once for executors that do not say how many workers they have.
_MANY = 16


def window_of(executor: Executor | None) -> int:
    """How many looks to have under way: two to each worker, so that none waits for work."""
    num_workers = getattr(executor, "_max_workers", None)
    return 2 * num_workers if isinstance(num_workers, int) and num_workers > 0 else _MANY


def in_order(
    tasks: Iterable[Task | Look], executor: Executor | None, window: int
) -> Iterator[Look]:
    """What comes of each task, in the order of the tasks.

    Args:
        tasks: asked for one by one: without an executor only when the look before has been
            taken. One that is a look already is passed through in its turn.
        executor: None to look here and now.
        window: looks under way at once, at most; bounds the memory of what waits its turn.

    Raises:
        Exception: the executor failed, such as ``BrokenProcessPool``; looks themselves
            raise nothing.
    """
    waiting: deque[Look | Future[Look]] = deque()
    try:
        for task in tasks:
            if isinstance(task, Look):
                waiting.append(task)
            else:
                waiting.append(look(task) if executor is None else executor.submit(look, task))
            if executor is None or len(waiting) >= window:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for left in waiting:
            if isinstance(left, Future):
                left.cancel()


def _result(one: Look | Future[Look]) -> Look:
    return one if isinstance(one, Look) else one.result()
