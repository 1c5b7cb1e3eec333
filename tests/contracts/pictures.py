"""Runs whose TensorBoard pictures nobody looks at: drawing is most of the time of a short run."""

from __future__ import annotations

from sparsitywatch.sinks.tensorboard import TensorBoardSink

DRAWING = ("_draw_last", "_draw_overview")


def draw_nothing() -> None:
    """For the rest of this process, which is a script of a test."""
    for method in DRAWING:
        setattr(TensorBoardSink, method, lambda _: None)
