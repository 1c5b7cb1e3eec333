"""TensorBoard event files, written so that a resumed run continues them.

The file format is that of torch's SummaryWriter, whose record writer is used, but not its
thread: a record is with the operating system when the call returns, what fails fails in
the call that caused it, and a forked child cannot hang.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from sparsitywatch.sinks.appending import AppendingFile

__all__ = ["EventFile"]

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\..*")


class EventFile:
    """The next event file of a run.

    The points of a future that was lost are cut off the earlier files. A TensorBoard that
    has read them already is told as well, by a START event with the step from which on it
    should forget; one must stand in every file, since its first one is ignored.

    Args:
        directory: of one run that nobody else writes to.
        first_step: step of the first point that may follow.

    Attributes:
        held: step and tag of every value in the earlier files, as far as they are kept.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        earlier = sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
        self.held = {value for path in earlier for value in _cut(path, first_step)}
        self._file = AppendingFile(directory / _next_name(earlier))
        self._writer = RecordWriter(self._file)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, values: Sequence[Any], step: int, wall_time: float) -> None:
        """Write summary values that belong to one step, as one record.

        Args:
            values: Summary.Value protocol buffers.
            step: optimizer steps done.
            wall_time: seconds since the epoch.

        Raises:
            OSError: the disk did not take everything; the rest follows at the next call.
        """
        self._add(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def abandon(self) -> None:
        """Close the file without what is pending."""
        self._file.abandon()


def _next_name(earlier: Sequence[Path]) -> str:
    """A name that sorts last, as readers take files in the order of their names.

    The names start with a time in seconds, and a run may be resumed within one, or on a
    machine whose clock is behind.
    """
    stamps = [int(match[1]) + 1 for path in earlier if (match := _NAME.fullmatch(path.name))]
    stamp = max([int(time.time()), *stamps])
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _cut(path: Path, first_lost_step: int) -> set[tuple[int, str]]:
    """Cut a file off before its first summary of a lost step; returns what stays.

    Steps rise within a file, but for what was missing when it began.
    """
    held: set[tuple[int, str]] = set()
    for offset, event in _events(path):
        if event.HasField("summary") and event.step >= first_lost_step:
            os.truncate(path, offset)
            break
        held.update((event.step, value.tag) for value in event.summary.value)
    return held


def _events(path: Path) -> Iterator[tuple[int, Any]]:
    """The whole events of a file with their offsets, up to the first damaged one."""
    with path.open("rb") as file:
        while True:
            offset = file.tell()
            header = file.read(12)  # length of the data, checksum of the length
            if len(header) < 12:
                return
            (length,) = struct.unpack("<Q", header[:8])
            data = file.read(length + 4)  # the data, its checksum
            if len(data) < length + 4:
                return
            try:
                event = Event.FromString(data[:-4])
            except DecodeError:
                return
            yield offset, event
