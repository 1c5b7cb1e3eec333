"""Threads of our own, which begin also after the main thread has ended."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.util import Finalize
from typing import TypeVar

T = TypeVar("T")


def begun(function: Callable[[], T], name: str) -> Future[T]:
    """What a function gives, in a thread that the interpreter's end waits for."""
    # executors of concurrent.futures take nothing once main has ended, though other threads train
    found: Future[T] = Future()

    def work() -> None:
        try:
            found.set_result(function())
        except BaseException as error:  # noqa: BLE001 raised where the result is asked for
            found.set_exception(error)

    try:
        context = contextvars.copy_context()  # whose watch it is
        thread = threading.Thread(target=context.run, args=(work,), name=name)
        thread.start()
        # a process that multiprocessing has started closes files before it waits for threads
        at_end = Finalize(None, thread.join, exitpriority=100)
        found.add_done_callback(lambda _: at_end.cancel())
    except RuntimeError:  # none can begin, at the very end or at a limit of the system
        work()
    return found
