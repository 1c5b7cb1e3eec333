"""One look at one stored checkpoint, without a model; and what it stands beside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.pipeline.measure import Context, measure_snapshot
from sparsitywatch.settings import Settings
from sparsitywatch.weights.scope import Scope

__all__ = ["look", "read_in_order"]

#: What is read at once: longer or shorter is slower here.
_BUFFER_BYTES = 1 << 19


def look(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> int:
    """Everything that a record without a model says; the number of weights in scope."""
    with open_checkpoint(url, options) as checkpoint:
        scope = Scope.of_entries(checkpoint.entries())
        snapshot = stored_snapshot(checkpoint, scope, 1)
        initial_rms = dict.fromkeys(scope.names, 0.02)
        context = Context(
            settings=Settings(), scope=scope, initial_rms=initial_rms, dtypes=snapshot.dtypes
        )
        record = measure_snapshot(snapshot, context).record
    return record.scope.num_weights


def read_in_order(path: Path) -> int:
    """Read each byte of a file, or of the files of a folder, once, in order; how many."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    total = 0
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                total += count
    return total
