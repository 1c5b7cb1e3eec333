"""How a watch ends with its process, with its optimizer, or by an error of the training."""

from __future__ import annotations

import sys
import weakref
from typing import Any

from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.records import WatchState


def words_of(error: BaseException | None) -> str:
    """By what a training was ended, in a few words; empty if it came to its end."""
    if error is None or isinstance(error, GeneratorExit):
        return ""
    if isinstance(error, SystemExit):
        return f"SystemExit({error.code!r})"[:40] if error.code else ""
    return type(error).__name__


def last_error() -> BaseException | None:
    """The exception that nobody has caught and Python has shown; in a notebook any may be."""
    if hasattr(sys, "ps1"):
        return None
    return sys.exc_info()[1] or getattr(sys, "last_value", None)


def close_at_exit(of: weakref.ref[Any], earlier: BaseException | None) -> None:
    """Close a watch with its process, which nobody has killed."""
    watcher, error = of(), last_error()
    if watcher is not None:
        watcher._end(None if error is earlier else error, "its process ended")


def end_dropped(pipeline: Pipeline, state: WatchState) -> None:
    """Say that a watch is no more."""
    pipeline.report(state)
    pipeline.close()
