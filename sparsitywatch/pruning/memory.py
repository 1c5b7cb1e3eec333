"""Going on with smaller batches when the memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from sparsitywatch.pruning.proxy import Proxy

__all__ = ["is_out_of_memory", "with_less_memory"]

_logger = logging.getLogger("sparsitywatch")

T = TypeVar("T")

#: What torch's CPU allocators say in a plain RuntimeError.
_CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in _CPU_MESSAGES)


def with_less_memory(evaluate: Callable[[], T], proxy: Proxy) -> T:
    """``evaluate()``; as long as memory does not suffice, again with batches of half the size.

    The smaller batches are kept for later looks.

    Raises:
        Exception: what ``evaluate`` raised, if it was something else, or if no batch can be
            made smaller.
    """
    while True:
        try:
            return evaluate()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not proxy.halve():
                raise
        # only here, without the error and the tensors that its traceback holds, is there room
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _logger.warning(
            "sparsitywatch: out of memory while evaluating; going on with smaller batches, %d "
            "in all. A smaller proxy avoids this.",
            proxy.num_batches,
        )
