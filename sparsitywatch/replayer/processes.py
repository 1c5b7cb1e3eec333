"""Worker processes on this machine that share its cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["processes"]


@contextmanager
def processes(num: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of ``num`` processes; what has not begun at the end is dropped.

    Each computes with its share of the cores. They are spawned: the clients of remote
    storages, and torch's threads, do not survive a fork. They end with this process, however
    that ends.
    """
    threads = max(1, (os.cpu_count() or 1) // num)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num, context, initializer=_begin, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(num_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker would wait for ever for the next task of a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
