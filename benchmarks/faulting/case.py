"""One fault: what is done, and what has to come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault that a watch or a replay has to survive, or a number that has to be true.

    Args:
        point: the family, such as "resume"; rows are grouped by it.
        what: the fault, in a few words.
        expected: what has to come, as ``run`` words it when all is well.
        run: does it in an empty folder, in a process of its own; returns what came, in a few words.
            An exception that leaves it is what came, too.
        limit_s: seconds after which it counts as hanging.
    """

    point: str
    what: str
    expected: str
    run: Callable[[Path], str]
    limit_s: float = 120.0
