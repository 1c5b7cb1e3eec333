"""Where records and events go: for ``sw.watch(sinks=)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsitywatch.sinks.base import MemorySink, Sink
from sparsitywatch.sinks.jsonl import JsonlSink
from sparsitywatch.sinks.mirror import Mirror

if TYPE_CHECKING:
    from sparsitywatch.sinks.tensorboard import TensorBoardSink

__all__ = ["JsonlSink", "MemorySink", "Mirror", "Sink", "TensorBoardSink"]


def __getattr__(name: str) -> object:
    if name != "TensorBoardSink":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # TensorBoard takes a second to import; who reads a log needs none
    from sparsitywatch.sinks.tensorboard import TensorBoardSink

    return TensorBoardSink


def __dir__() -> list[str]:
    return __all__
