"""Small JSON files beside the weights."""

from __future__ import annotations

import json
from typing import Any

from sparsitywatch.checkpoints.base import refused
from sparsitywatch.checkpoints.storage import Folder
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = ["MAX_JSON_BYTES", "read_json"]

#: A trainer state with a million logged lines has about 200 MB.
MAX_JSON_BYTES = 512 * 2**20


def read_json(folder: Folder, name: str) -> tuple[dict[str, Any], int]:
    """The object in a JSON file, and the bytes that it took.

    Raises:
        IncompleteCheckpointError: the file is missing or ends too early.
        CheckpointError: it is something else.
    """
    source = folder.open(name)
    try:
        if source.size > MAX_JSON_BYTES:
            raise refused(source.url, f"expected at most {MAX_JSON_BYTES} bytes of JSON, got more")
        content = json.loads(source.read(0, source.size).decode("utf-8"))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise IncompleteCheckpointError(
            f"Cannot read {source.url}: expected an object in JSON, got something that is not or "
            f"ends too early ({type(error).__name__}). It may be half-written."
        ) from error
    finally:
        source.close()
    if not isinstance(content, dict):
        raise refused(source.url, "expected an object in JSON, got something else")
    return content, source.num_bytes_read
