"""A file of JSON lines that is only appended to, and repaired when it is opened again.

A line counts once it ends in a newline. The end of the file may be torn: a kill, or a full
disk, in the middle of a write. Anything wrong further up is not ours to repair and is an
error that names the file and the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sparsitywatch.errors import StateError
from sparsitywatch.records import SCHEMA_VERSION, from_json, to_json
from sparsitywatch.sinks.appending import AppendingFile

__all__ = ["Line", "encode", "read", "rewind"]

T = TypeVar("T")
#: One whole line: its number, counted from 1, the offset of its first byte, and its bytes.
Line = tuple[int, int, bytes]


def encode(value: Any) -> bytes:
    """A dataclass of the package as one line of JSON that names its schema version."""
    text = to_json(value)
    if not hasattr(value, "schema"):
        text = f'{{"schema":{SCHEMA_VERSION},{text[1:]}'
    return text.encode() + b"\n"


def read(path: Path, cls: type[T]) -> Iterator[T]:
    """Every whole line of a file, oldest first; nothing if there is no file.

    The file may be written to meanwhile: a torn end is left out.

    Raises:
        StateError: a line cannot be read; the message names the file and the line.
    """
    for number, _, raw in _whole_lines(path):
        try:
            value = from_json(cls, raw.decode())
        except (StateError, UnicodeDecodeError) as error:
            raise StateError(f"{path}, line {number}: {error}") from error
        yield value


def rewind(path: Path, step_keys: Sequence[str], first_lost_step: int, superseded: Path) -> None:
    """Cut off a torn end and the lines of a future that was lost.

    Nothing is thrown away: lost lines are appended to ``superseded``, a torn end to a file
    beside ``path`` with the ending ``.torn``. The copy is made before the cut, so that a
    kill in between leaves a line twice rather than not at all.

    Args:
        path: lines by rising step; it need not exist.
        step_keys: names of the fields that hold a line's step: the largest that is there.
        first_lost_step: the first line with this step or a later one is cut off, with
            everything after it.

    Raises:
        StateError: a line cannot be read, or is of another schema version.
    """
    if not path.exists():
        return
    end = 0
    cut = None
    for number, offset, raw in _whole_lines(path):
        end = offset + len(raw)
        if cut is None and _step(path, number, raw, step_keys) >= first_lost_step:
            cut = offset
    _move_end(path, end, path.with_suffix(".torn"))
    if cut is not None:
        _move_end(path, cut, superseded)


def _whole_lines(path: Path) -> Iterator[Line]:
    """Lines that end in a newline; if the last one is not JSON it counts as torn."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    held: Line | None = None
    offset = 0
    with file:
        for number, raw in enumerate(file, start=1):
            if held is not None:
                yield held
            held = (number, offset, raw) if raw.endswith(b"\n") else None
            offset += len(raw)
    if held is not None and _is_json(held[2]):
        yield held


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def _step(path: Path, number: int, raw: bytes, keys: Sequence[str]) -> int:
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise StateError(f"{path}, line {number}: Expected a JSON object: {error}.") from error
    if not isinstance(data, dict):
        data = {}
    schema, steps = data.get("schema"), [data[key] for key in keys if key in data]
    if schema != SCHEMA_VERSION or not steps or any(type(step) is not int for step in steps):
        raise StateError(
            f"{path}, line {number}: Expected schema version {SCHEMA_VERSION} and an integer "
            f"{keys[0]!r}, got {schema!r} and {data.get(keys[0])!r}. Log into another "
            "directory, or go on with the version of sparsitywatch that wrote this one."
        )
    return int(max(steps))


def _move_end(path: Path, start: int, target: Path) -> None:
    """Append what ``path`` holds from ``start`` on to ``target``, then cut it off."""
    with path.open("rb") as file:
        file.seek(start)
        end = file.read()
    if not end:
        return
    copy = AppendingFile(target)
    try:
        copy.write(end if end.endswith(b"\n") else end + b"\n")
    finally:
        copy.close()
    os.truncate(path, start)
