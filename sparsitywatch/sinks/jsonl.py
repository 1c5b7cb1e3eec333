"""Records and events as lines of JSON, with what is large beside them: files of docs/tags.md."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter, index
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from sparsitywatch.analysis.spikes import Moves
from sparsitywatch.errors import StateError, expect_whole
from sparsitywatch.records import (
    LAYER_NUMBERS,
    SCHEMA_VERSION,
    Detail,
    Event,
    LayerColumns,
    Layers,
    Record,
    RunInfo,
    WatchState,
    from_data,
    from_json,
    latest_versions,
    to_json,
)
from sparsitywatch.sinks.base import AppendingFile, GuardedSink, first_lost_step, local_directory

_MANIFEST = "run.json"
_LAYERS = "layers.npys"
_MOVES = "ring.npz"
#: Ends the manifest: room for longer words on how the watch ended, also on a full disk.
_ROOM = b" " * 8191 + b"\n"
_SPECTRUM = re.compile(r"step-(\d+)\.npz")

T = TypeVar("T")


class JsonlSink(GuardedSink):
    """Writes records and events as lines of JSON; what a call was given survives a kill.

    What a full disk refuses is an OSError, and nothing of it is there; but the state of the watch
    has its room in the manifest.

    Args:
        directory: a local directory; made by ``open`` if it does not exist.
        keep_spectra: keep the spectrum of the first record and of every so many after it; and of
            the last one, which a replay goes on from, until there is another.

    Raises:
        ConfigurationError: ``directory`` is not local, or ``keep_spectra`` below 1.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep_spectra: int = 1) -> None:
        expect_whole("keep_spectra", keep_spectra, 1)
        self._keep_spectra = keep_spectra
        self._directory = local_directory(directory)
        self._spectra = self._directory / "spectra"

    def open(self, run: RunInfo) -> None:
        """Move aside what is held beyond ``run.initial_step``, and write the manifest.

        The ``initial_rms`` of a run that is resumed are kept: from when the watch first saw it.

        Raises:
            StateError: a file is damaged above its end, or of another schema version.
        """
        with self._opening(self._directory):
            self._spectra.mkdir(parents=True, exist_ok=True)
            earlier = read_manifest(self._directory)
            own = run.provenance.scope_hash
            is_same = earlier is not None and earlier.provenance.scope_hash == own
            if earlier is not None and is_same and run.initial_step > 0:
                run = replace(run, initial_rms={**run.initial_rms, **earlier.initial_rms})
            lost = first_lost_step(run)
            superseded = self._directory / "superseded.jsonl"
            reader = JsonlReader(self._directory)
            records = reader._records.rewind(lost, superseded)
            events = reader._events.rewind(lost, superseded)
            self._held = {(event.id, event.reported_step) for event in events}
            _rewind_spectra(self._spectra, lost)
            self._num = len(records)
            self._last_step = records[-1].step if records else -1
            self._transient = self._spectrum_to_drop(self._last_step) if records else None
            self._run = run
            self._write_manifest()
            self._layers = _LayersFile(self._appending(self._directory / _LAYERS))
            self._records = self._appending(reader._records.path)
            self._events = self._appending(reader._events.path)

    def _write_manifest(self) -> None:
        """Write it with room to grow, and where the disk is full into what it has there already."""
        path, content = self._directory / _MANIFEST, _line(vars(self._run))
        try:
            replace_file(path, [content[:-1], _ROOM])
        except OSError:
            if len(content) > (room := path.stat().st_size):
                raise
            with path.open("r+b", buffering=0) as file:
                file.write(content.ljust(room))

    def catch_up(self, records: Sequence[Record], events: Sequence[Event], _: object) -> None:
        """Write what comes after the last record that is held; spectra are not known any more."""
        self._require()
        for record in records:
            if record.step > self._last_step:
                self.write(record, Detail())
        for event in events:
            if (event.id, event.reported_step) not in self._held:
                self.event(event)

    def write(self, record: Record, detail: Detail) -> None:
        """Write spectrum and layers, then the record: what a line points to is there when it is."""
        self._require()
        if detail.spectrum:
            replace_file(self._spectra / _spectrum_name(record.step), _as_npz(detail.spectrum))
        start = self._layers.file.end
        try:
            self._records.write(_line({**vars(record), "layers": self._layers.add(record)}))
        except OSError:
            self._layers.file.cut(start)
            raise
        if self._transient is not None:
            self._transient.unlink(missing_ok=True)
        self._num += 1
        self._transient = self._spectrum_to_drop(record.step)

    def _spectrum_to_drop(self, step: int) -> Path | None:
        """The spectrum of the latest record, if it is kept only until there is another."""
        is_kept = (self._num - 1) % self._keep_spectra == 0
        return None if is_kept else self._spectra / _spectrum_name(step)

    def event(self, event: Event) -> None:
        self._require()
        self._events.write(_line(vars(event)))

    def renew(self, run: RunInfo) -> None:
        """Write the manifest of a model that has changed."""
        self._require()
        self._run = run
        self._write_manifest()

    def state(self, state: WatchState) -> None:
        """Put the state of the watch into the manifest, which is always a whole one."""
        self._require()
        self._run = replace(self._run, state=state)
        self._write_manifest()

    def close(self) -> None:
        self._end()


class JsonlReader:
    """Reads a directory again and again, only what is new in it, also while it is written to."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        folder = Path(directory)
        as_record = functools.partial(_read_record, folder / _LAYERS)
        as_event = functools.partial(from_data, Event)
        self._records = _AppendLog(folder / "records.jsonl", as_record, attrgetter("step"))
        self._events = _AppendLog(folder / "events.jsonl", as_event, attrgetter("reported_step"))

    def records(self, *, max_step: int | None = None) -> list[Record]:
        """The records up to ``max_step``, oldest first; a StateError names a damaged line."""
        records = self._records.values()
        return [record for record in records if max_step is None or record.step <= max_step]

    def events(self, *, max_step: int | None = None) -> list[Event]:
        """Each event in its last version, in the order of their detection; errors as of records."""
        return latest_versions(self.versions(max_step=max_step))

    def versions(self, *, max_step: int | None = None) -> list[Event]:
        """All versions of all events, as they were reported."""
        events = self._events.values()
        return [e for e in events if max_step is None or e.reported_step <= max_step]


def read_records(directory: str | os.PathLike[str], *, max_step: int | None = None) -> list[Record]:
    """What a ``JsonlReader`` of the directory reads the first time."""
    return JsonlReader(directory).records(max_step=max_step)


def read_events(directory: str | os.PathLike[str], *, max_step: int | None = None) -> list[Event]:
    """What a ``JsonlReader`` of the directory reads the first time."""
    return JsonlReader(directory).events(max_step=max_step)


def read_manifest(directory: str | os.PathLike[str]) -> RunInfo | None:
    """What was said once about a run; None if there is none, a StateError if damaged."""
    path = Path(directory) / _MANIFEST
    try:
        return from_json(RunInfo, path.read_bytes().decode())
    except FileNotFoundError:
        return None
    except (StateError, UnicodeDecodeError) as error:
        raise StateError(f"{path}: {error}") from error


def replace_file(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader sees the old one or the new one, whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_moves(directory: Path, moves: Moves) -> None:
    """Write what moved at each of the latest steps."""
    replace_file(directory / _MOVES, _as_npz(vars(moves)))


def read_moves(directory: Path) -> Moves | None:
    """What ``write_moves`` wrote; None where that is damaged, or is not there."""
    try:
        with np.load(io.BytesIO((directory / _MOVES).read_bytes()), allow_pickle=False) as file:
            return Moves(**file)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile):
        return None


# ------------------------------------------------------------------ spectra
#
# Keys rise, and counts are noise around a smooth density: of both the differences are stored, which
# are small, without their signs (zigzag). Their bytes are stored apart, first the low ones of all,
# then the higher ones, which hardly change. So deflate comes within a fourteenth of bz2, which
# takes ten times the time to write and seven times the time to read (benchmarks/log.py).

_LEVEL = 4  # of deflate: 6, the usual one, takes two to three times as long for a fortieth less
_STEPS = "_steps"  # what is added to the name of a column that is stored as its differences


def read_spectrum(directory: str | os.PathLike[str], step: int) -> dict[str, np.ndarray]:
    """The arrays of ``MagnitudeSpectrum.from_arrays`` of a step; a StateError if there are none."""
    path = Path(directory) / "spectra" / _spectrum_name(step)
    if not path.exists():
        raise StateError(f"Expected a spectrum of step {step}, found no file {str(path)!r}.")
    with np.load(path, allow_pickle=False) as file:
        stored = dict(file)
    return {
        name.removesuffix(_STEPS): _added_up(array) if name.endswith(_STEPS) else array
        for name, array in stored.items()
    }


def _as_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of an .npz file, which never holds a pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            stored = np.asanyarray(array)
            if name in ("keys", "counts") and stored.ndim == 1 and stored.dtype.kind == "u":
                name, stored = f"{name}{_STEPS}", _steps_of(stored)
            member, block = zipfile.ZipInfo(f"{name}.npy"), _as_npy(stored)
            archive.writestr(member, block, zipfile.ZIP_DEFLATED, _LEVEL)
    return content.getvalue()


def _as_npy(array: np.ndarray) -> bytes:
    """The content of an .npy file."""
    return _head_of(array.dtype, array.shape) + array.tobytes()


@functools.lru_cache(maxsize=64)  # a head takes numpy longer than what follows it
def _head_of(kind: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    if kind.hasobject:
        raise ValueError(f"Expected numbers or texts, got {kind}: as with allow_pickle=False.")
    file, descr = io.BytesIO(), np.lib.format.dtype_to_descr(kind)
    said = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue()


def _steps_of(column: np.ndarray) -> np.ndarray:
    """The differences of a column, zigzag: uint8 [their bytes, N]."""
    steps: np.ndarray = np.diff(column.astype(np.int64), prepend=0)
    numbers = ((steps << 1) ^ (steps >> 63)).view(np.uint64)
    width = np.min_scalar_type(numbers.max(initial=0)).newbyteorder("<")
    own_bytes = numbers.astype(width).view(np.uint8).reshape(len(column), width.itemsize)
    return np.ascontiguousarray(own_bytes.T)


def _added_up(stored: np.ndarray) -> np.ndarray:
    """The column that ``_steps_of`` made ``stored`` from, as narrow as its numbers allow."""
    own_bytes = np.ascontiguousarray(stored.T)
    numbers = own_bytes.view(f"<u{own_bytes.shape[1]}")[:, 0].astype(np.uint64)
    steps = (numbers >> np.uint64(1)).view(np.int64) ^ -(numbers & np.uint64(1)).view(np.int64)
    found: np.ndarray = np.cumsum(steps)
    return found.astype(np.min_scalar_type(found.max(initial=0)))


def _spectrum_name(step: int) -> str:
    return f"step-{step:08d}.npz"


def _rewind_spectra(directory: Path, first_lost_step: int) -> None:
    for path in list(directory.iterdir()):
        match = _SPECTRUM.fullmatch(path.name)
        if path.suffix == ".tmp":
            path.unlink()  # what a kill left of a file that was never complete
        elif match is not None and int(match[1]) >= first_lost_step:
            (directory / "superseded").mkdir(exist_ok=True)
            path.replace(directory / "superseded" / path.name)


# ------------------------------------------------------------------ layers
#
# Where the layers of a record are stands in its line. So nothing is searched for, and nothing cut
# off: what a kill or a lost future leaves in the file is what no line points to, or a superseded
# one, which can still be read.


class _Place(NamedTuple):
    """Where an array is."""

    start: int  # offset of its first byte
    num_bytes: int
    checksum: int  # their CRC-32


class _LayersFile:
    """Appends records' layers: names when they change, numbers as a structured value."""

    def __init__(self, file: AppendingFile) -> None:
        self.file = file
        self._names: dict[bytes, _Place] = {}  # the latest

    def add(self, record: Record) -> dict[str, _Place] | None:
        """Append the layers of a record; returns where they are, None without any."""
        if not record.layers:
            return None
        columns = Layers.of(record.layers).columns
        names = to_json({"tensors": columns.names, "rules": list(columns.near_zero)}).encode()
        if names not in self._names:
            self._names = {names: self._append(np.frombuffer(names, np.uint8))}
        return {"names": self._names[names], "numbers": self._append(_packed(record.step, columns))}

    def _append(self, array: np.ndarray) -> _Place:
        content = _as_npy(array)
        place = _Place(self.file.end, len(content), zlib.crc32(content))
        self.file.write(content)
        return place


def _packed(step: int, columns: LayerColumns) -> np.ndarray:
    """All columns of N tensors, R rules and K levels as one structured value."""
    near_zero = np.array(list(columns.near_zero.values()), np.float64)
    fields = {
        "step": np.array(step, np.int64),
        "num_weights": columns.num_weights,
        "near_zero": near_zero.reshape(len(columns.near_zero), len(columns.names)),
        "removed": columns.removed,
        **columns.numbers,
    }
    packed = np.zeros((), [(name, f"<{of.dtype.kind}8", of.shape) for name, of in fields.items()])
    for name, column in fields.items():
        packed[name] = column
    return packed


def _read_record(layers: Path, data: Any) -> Record:
    """A record whose layers are read when they are asked for; its line says where they are."""
    if not isinstance(data, dict):
        return from_data(Record, data)  # says that it is no object
    record = from_data(Record, {**data, "layers": []})
    places = data.get("layers")
    if places is None:
        return record
    try:
        names, numbers = (_Place(*map(index, places[x])) for x in ("names", "numbers"))
    except (TypeError, KeyError) as error:
        raise StateError(
            f"Expected where its names and numbers are at Record.layers, got {places!r}."
        ) from error
    read = functools.partial(_read_layers, layers, record.step, names, numbers)
    return replace(record, layers=Layers(read))


def _read_layers(path: Path, step: int, names: _Place, numbers: _Place) -> LayerColumns:
    """What ``_LayersFile`` wrote of a step; a StateError if it is not there, or not whole."""
    tensors, rules = _names_at(path, names)
    packed = _array_at(path, numbers)
    if int(packed["step"]) != step:
        raise StateError(f"{path}: Expected the layers of step {step}, got {packed['step']}.")
    return LayerColumns(
        names=tensors,
        num_weights=packed["num_weights"],
        numbers={x: packed[x] for x in LAYER_NUMBERS if x in (packed.dtype.names or ())},
        near_zero=dict(zip(rules, packed["near_zero"], strict=True)),
        removed=packed["removed"],
    )


@functools.lru_cache(maxsize=16)
def _names_at(path: Path, place: _Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = json.loads(_array_at(path, place).tobytes())
    return tuple(names["tensors"]), tuple(names["rules"])


def _array_at(path: Path, place: _Place) -> np.ndarray:
    try:
        with path.open("rb") as file:
            file.seek(place.start)
            content = file.read(place.num_bytes)
    except OSError as error:
        raise StateError(
            f"Expected layers in {str(path)!r}, cannot read it: {error}. If the log was moved "
            "meanwhile, load the run again."
        ) from error
    if zlib.crc32(content) != place.checksum:
        raise StateError(
            f"{path}: Expected {place.num_bytes} bytes of layers from byte {place.start} on, with "
            f"checksum {place.checksum}, got {len(content)} with another. The file is damaged: "
            "restore it."
        )
    head = 10 + int.from_bytes(content[8:10], "little")  # version 1.0 of the format
    kind, shape = _header_of(content[:head])
    return np.frombuffer(content, kind, offset=head).reshape(shape)


@functools.lru_cache(maxsize=64)
def _header_of(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype and shape; a log has thousands of arrays with one header."""
    file = io.BytesIO(head)
    np.lib.format.read_magic(file)
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    return kind, shape


# ------------------------------------------------------------------ an append-only log
#
# A line counts once it ends in a newline. The end of the file may be torn: a kill, or a full
# disk, in the middle of a write. Anything wrong further up is not ours to repair and is an
# error that names the file and the line.


def _line(fields: Mapping[str, Any]) -> bytes:
    """The fields of a dataclass of the package as a line of JSON that names its version."""
    return to_json({"schema": SCHEMA_VERSION, **fields}).encode() + b"\n"


class _AppendLog(Generic[T]):
    """What ``read`` makes of each whole line of a growing file, once; a torn end is left out."""

    def __init__(self, path: Path, read: Callable[[Any], T], step_of: Callable[[T], int]) -> None:
        self.path = path
        self._read = read
        self._step_of = step_of
        self._forget()

    def _forget(self) -> None:
        self._values: list[T] = []
        self._starts: list[int] = []  # offsets of their lines
        self._end = self._checksum = 0  # of the bytes that were read

    def values(self) -> list[T]:
        """Of every whole line, oldest first; [] if there is no file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._forget()
            return []
        with file:
            if zlib.crc32(file.read(self._end)) != self._checksum:  # not what was read of it
                self._forget()
                file.seek(0)
            *lines, _ = file.read().split(b"\n")
        for i, line in enumerate(lines, start=1):
            where = f"{self.path}, line {len(self._values) + 1}"
            try:
                data = json.loads(line)
            except ValueError as error:  # or no UTF-8
                if i == len(lines):
                    break  # torn, too
                raise StateError(f"{where}: Expected one JSON object: {error}.") from error
            try:
                self._values.append(self._read(data))
            except StateError as error:
                raise StateError(f"{where}: {error}") from error
            self._starts.append(self._end)
            self._end += len(line) + 1
            self._checksum = zlib.crc32(line + b"\n", self._checksum)
        return list(self._values)

    def rewind(self, first_lost_step: int, superseded: Path) -> list[T]:
        """Cut off a torn end, and all from the first lost step on; returns what stays."""
        values = self.values()
        if self.path.exists():
            _move_end(self.path, self._end, self.path.with_suffix(".torn"))
        for i, value in enumerate(values):
            if self._step_of(value) >= first_lost_step:
                _move_end(self.path, self._starts[i], superseded)
                return values[:i]
        return values


def _move_end(path: Path, start: int, target: Path) -> None:
    """Append what ``path`` holds from ``start`` on to ``target``, then cut it off."""
    # in this order: a kill in between leaves a line twice rather than not at all
    with path.open("rb") as file:
        file.seek(start)
        end = file.read()
    if end:
        with contextlib.closing(AppendingFile(target)) as copy:
            copy.write(end if end.endswith(b"\n") else end + b"\n")
        os.truncate(path, start)
