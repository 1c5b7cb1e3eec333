"""What a user asked of a replay, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsitywatch.arguments import expect_functions
from sparsitywatch.measurement import Settings
from sparsitywatch.replayer.result import Failure
from sparsitywatch.replayer.stage import Stage
from sparsitywatch.weights.scope import Scope, ScopeLike

__all__ = ["Listeners", "Orders"]


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What was asked for, checked.

    Args:
        settings: what is measured.
        scope: which weights count; decided already if there is a model.
        stage: the model and the proxy; None to read the weights only.
        initial_rms: what "initial" near-zero rules refer to; None: the first checkpoint.
        num_samples: weights that are compared from look to look, as of ``Motion``.
        storage_options: passed on to fsspec.
        executor: None to look in this thread.
        window: looks under way at once, at most.
        goes_on: whether a sweep goes on from the look before.
        directory: of the log, or None.
        replayed_from: where the checkpoints lie, as asked for.
        strict: let what goes wrong out, for tests.
    """

    settings: Settings
    scope: Scope | ScopeLike
    stage: Stage | None
    initial_rms: Mapping[str, float] | None
    num_samples: int | None
    storage_options: Mapping[str, Any]
    executor: Executor | None
    window: int
    goes_on: bool
    directory: Path | None
    replayed_from: tuple[str, ...]
    strict: bool = False


@dataclass(frozen=True)
class Listeners:
    """Who is told what while a replay goes on.

    Args:
        on_failure: called with each checkpoint that could not be looked at.
        on_progress: called with how many checkpoints are done, and how many there are.
        on_waiting: called with why nothing can be listed yet.
    """

    on_failure: Sequence[Callable[[Failure], object]] = ()
    on_progress: Sequence[Callable[[int, int], object]] = ()
    on_waiting: Sequence[Callable[[str], object]] = ()

    def __post_init__(self) -> None:
        for name in ("on_failure", "on_progress", "on_waiting"):
            expect_functions(name, getattr(self, name))
