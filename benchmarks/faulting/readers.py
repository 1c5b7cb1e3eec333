"""Checkpoints that are forged, damaged or unusual: read, or refused in one line, in linear time.

python -m faulting.readers --files 20000 --seed 0     (in benchmarks/)

mutates small checkpoints of every format, byte by byte and by what their descriptions mean, and
prints how many were read, refused and crashed, the slowest one and the most work for a byte.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.state_dict_saver import save

from faulting.case import Case
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.opening import open_checkpoint
from sparsitywatch.errors import CheckpointError

__all__ = ["CASES", "HOSTILE", "KINDS", "Tally", "attempt", "lines_run", "mutated", "sound"]

#: A file that takes longer is one of the faults; in seconds of this process.
LIMIT_S = 2.0

Weights = Mapping[str, torch.Tensor]


# ------------------------------------------------------------------ sound checkpoints


def _weights() -> dict[str, torch.Tensor]:
    return {
        "layers.0.attn.weight": torch.arange(6.0).reshape(3, 2),
        "layers.0.fc.weight": torch.ones(2, 3).bfloat16(),
        "norm.weight": torch.ones(4),
    }


def _distributed(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save(state, checkpoint_id=str(folder), no_dist=True)


def _safetensors(folder: Path) -> Path:
    safetensors.torch.save_file(_weights(), str(folder / "step-3.safetensors"))
    return folder / "step-3.safetensors"


def _sharded(folder: Path) -> Path:
    places = {}
    for number, (name, tensor) in enumerate(_weights().items()):
        file = f"model-{number}-of-3.safetensors"
        safetensors.torch.save_file({name: tensor}, str(folder / file))
        places[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def _torch(folder: Path) -> Path:
    torch.save({"model": _weights(), "step": 3, "args": Path("a")}, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def _legacy(folder: Path) -> Path:
    content = {"state_dict": _weights(), "step": 3}
    torch.save(content, folder / "ckpt.pth", _use_new_zipfile_serialization=False)
    return folder / "ckpt.pth"


def _trainer(folder: Path) -> Path:
    safetensors.torch.save_file(_weights(), str(folder / "model.safetensors"))
    (folder / "training_args.bin").write_bytes(b"never read")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": []}))
    return folder


def _dcp(folder: Path) -> Path:
    _distributed({"model": _weights(), "step": 3}, folder)
    return folder


#: A small checkpoint of every format, written into an empty folder.
KINDS: dict[str, Callable[[Path], Path]] = {
    "safetensors": _safetensors,
    "safetensors, sharded": _sharded,
    "torch": _torch,
    "torch, before 1.6": _legacy,
    "trainer": _trainer,
    "distributed": _dcp,
}


@dataclass(frozen=True)
class Sound:
    """A checkpoint in memory: its files, and which of them is opened."""

    files: Mapping[str, bytes]
    opened: str

    def write(self, folder: Path) -> Path:
        """Write it into a folder that is empty."""
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder / self.opened


def sound(kind: str) -> Sound:
    """A small checkpoint of a format, as the library that owns it writes it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        opened = KINDS[kind](folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return Sound(files, str(opened.relative_to(folder)))


# ------------------------------------------------------------------ what is done to one


def attempt(path: Path) -> str:
    """Everything that a replay does with a checkpoint: "read", "refused", or what is wrong."""
    size = sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else _size(path)
    try:
        (*_, found) = discover(path)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.step is None or checkpoint.step >= 0
            for entry in checkpoint.entries():
                if entry.num_bytes > size:
                    return f"{entry.num_bytes} bytes on the word of {size}"
                tensor = checkpoint.read(entry.name)
                if (tuple(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
                    return "another tensor than it says"
    except CheckpointError as error:
        message = str(error)
        return "refused" if "\n" not in message and len(message) < 2000 else "not one short line"
    except Exception as error:  # noqa: BLE001 that is the fault
        return f"crashed with {type(error).__name__}"
    return "read" if found.state in ("complete", "duplicate") else "read, but not discovered"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def lines_run() -> Iterator[list[int]]:
    """Counts the lines of Python that run meanwhile: work that no clock and no neighbour change."""
    count = [0]

    def trace(_: FrameType, event: str, __: Any) -> Any:
        if event == "line":
            count[0] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


# ------------------------------------------------------------------ mutations of bytes

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**50, 2**63, 2**64 - 1)


def _bytes_changed(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.choice((0, 1, 1, 2, 4, 8, 32))
        new = chance.choice(
            (
                chance.randbytes(length),
                bytes(length),
                chance.randbytes(chance.randint(0, 9)),
                chance.choice(_INTERESTING).to_bytes(8, "little")[: chance.choice((1, 2, 4, 8))],
                data[at : at + length] * 2,
                data[(start := chance.randrange(len(data) + 1)) : start + length],
                b"",
            )
        )
        data = data[:at] + new + data[at + length :]
    return data[: chance.randrange(len(data) + 1)] if chance.random() < 0.1 else data


# ------------------------------------------------------------------ mutations of what is meant


def bomb(depth: int = 64) -> bytes:
    """Pickle opcodes that push a tuple of one tuple twice, and so on; hashing it never ends."""
    return b")" + b"2\x86" * depth


#: What may stand in a pickle where a value is expected.
_VALUES = (
    bomb(), b"]" + b"2\x86" * 40, b"N", b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"}", b"]", b")",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"\x94", b"\x90",
    b"G" + b"\x7f\xf0" * 4, b"X\x00\x00\x00\x00", b"cos\nsystem\n", b"\x88", b"h\x00", b"h\x05",
    b"(K\x01" + b"2" * 300 + b"l", b"(" + b"K\x02" * 90 + b"t", b"0", b"1", b"2", b"(",
    b"\x8e" + (2**50).to_bytes(8, "little"), b"\x8d" + (2**62).to_bytes(8, "little"),
    b"\x8b" + (5000).to_bytes(4, "little") + b"\x7f" * 5000, b"p99999999999999999999999\n",
    b"cos\nsystem\n(S'true'\ntR",
)  # fmt: skip


def _pickle_changed(data: bytes, chance: random.Random) -> bytes:
    """Opcodes left out, doubled, exchanged, or replaced by values that nobody expects there."""
    places = [at for _, _, at in pickletools.genops(io.BytesIO(data)) if at is not None]
    stop = places[-1] + 1
    parts = [data[a:b] for a, b in zip(places, [*places[1:], stop], strict=True)]
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(parts))
        action = chance.randrange(5)
        if action == 0:
            parts[at] = b""
        elif action == 1:
            parts[at] *= 2
        elif action == 2:
            other = chance.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif action == 3:
            parts[at] = chance.choice(_VALUES)
        else:
            parts.insert(at, chance.choice(_VALUES))
    return b"".join(parts) + data[stop:]


def _header_changed(data: bytes, chance: random.Random) -> bytes:
    """The JSON header of a safetensors file, with another value in some place."""
    length = int.from_bytes(data[:8], "little")
    text = _json_changed(data[8 : 8 + length], chance)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


_JSON = (
    "null", "[]", "{}", '""', "-1", "1e400", "0.5", "NaN", "true", str(2**63), str(2**62),
    "9" * 5000, str([2**62] * 300), "[" * 5000, str([1] * 3000), '"\\ud800"',
    '"' + "module." * 900 + '"',
    '"F8_E8M0"', '"F4"', '"../../etc/passwd"', '"/etc/passwd"', '"a:b"', '"' + "n" * 9000 + '"',
    '{"a": 1, "a": 2}', "[0, 0]", "[2, 0, 4611686018427387904, 4611686018427387904]",
)  # fmt: skip


def _json_changed(data: bytes, chance: random.Random) -> bytes:
    """A value or a name of a JSON text replaced by one that nobody expects there."""
    marks = [at for at, byte in enumerate(data) if byte in b'{}[]:,"']
    begin = chance.choice(marks)
    end = next((at for at in marks if at > begin), len(data))
    if chance.random() < 0.2:  # twice the same
        return data[:end] + data[begin:end] + data[end:]
    return data[: begin + 1] + chance.choice(_JSON).encode() + data[end:]


def _archive_changed(data: bytes, chance: random.Random) -> bytes:
    """One record of an archive: its pickle changed, or the record left out, doubled, renamed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    at = chance.randrange(len(records))
    action = chance.randrange(8)
    if action == 0:
        del records[at]
    elif action == 1:
        records[at] = (records[at][0], _bytes_changed(records[at][1], chance))
    elif action == 2:
        records[at] = (chance.choice(records)[0] + chance.choice(("", "x", "/")), records[at][1])
    else:
        at = next(n for n, (name, _) in enumerate(records) if name.endswith("data.pkl"))
        records[at] = (records[at][0], _pickle_changed(records[at][1], chance))
    target = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that is there twice
        with zipfile.ZipFile(target, "w", packed) as archive:
            for name, content in records:
                archive.writestr(name, content)
    return target.getvalue()


def _pickles_changed(data: bytes, chance: random.Random) -> bytes:
    """One of the five pickles at the beginning of an old file."""
    ends = [0]
    file = io.BytesIO(data)
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    at = chance.choice((2, 3, 3, 3, 4))
    begin, end = ends[at], ends[at + 1]
    return data[:begin] + _pickle_changed(data[begin:end], chance) + data[end:]


def _meaning_changed(name: str, data: bytes, chance: random.Random) -> bytes:
    if name.endswith(".json"):
        return _json_changed(data, chance)
    if name.endswith(".safetensors"):
        return _header_changed(data, chance)
    if name.endswith(".pt"):
        return _archive_changed(data, chance)
    if name.endswith(".pth"):
        return _pickles_changed(data, chance)
    return _pickle_changed(data, chance) if name == ".metadata" else _bytes_changed(data, chance)


def mutated(whole: Sound, chance: random.Random) -> Sound:
    """A checkpoint with one of its files changed: some bytes of it, or what it means."""
    name = chance.choice([name for name in sorted(whole.files) if name != "training_args.bin"])
    change = _bytes_changed if chance.random() < 0.4 else None
    data = whole.files[name]
    new = change(data, chance) if change else _meaning_changed(name, data, chance)
    return Sound({**whole.files, name: new}, whole.opened)


@dataclass
class Tally:
    """What came of many mutated files."""

    outcomes: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    most_lines: float = 0.0
    worst: str = ""

    def run(self, folder: Path, num_files: int, seed: int, *, counts_lines: bool = True) -> None:
        """Mutate and try so many files; the same ones for the same seed.

        Args:
            folder: an empty one.
            num_files: how many, over all formats.
            seed: of the mutations.
            counts_lines: count the lines that run, which makes it some times slower.
        """
        chance = random.Random(seed)  # noqa: S311
        wholes = {kind: sound(kind) for kind in KINDS}
        kinds = sorted(wholes)
        for number in range(num_files):
            kind = kinds[number % len(kinds)]
            changed = mutated(wholes[kind], chance)
            place = folder / "one"
            place.mkdir()
            self._try(kind, changed.write(place), changed, counts_lines=counts_lines)
            shutil.rmtree(place)

    def _try(self, kind: str, path: Path, changed: Sound, *, counts_lines: bool) -> None:
        started = time.process_time()
        if counts_lines:
            with lines_run() as count:
                outcome = attempt(path)
            num_bytes = sum(map(len, changed.files.values()))
            self.most_lines = max(self.most_lines, count[0] / num_bytes)
        else:
            outcome = attempt(path)
        took = time.process_time() - started
        self.slowest_s = max(self.slowest_s, took)
        if took > LIMIT_S:
            outcome = f"slow: {took:.1f} s"
        if outcome not in ("read", "refused"):
            self.worst = f"{kind}: {outcome}"
            outcome = f"crashed ({kind}: {outcome})"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    @property
    def num_crashed(self) -> int:
        """How many did something else than being read or refused."""
        return sum(n for outcome, n in self.outcomes.items() if outcome.startswith("crashed"))


# ------------------------------------------------------------------ crafted to cost time or memory


def _header(folder: Path, text: str, data: bytes = b"") -> Path:
    path = folder / "step-5.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return path


def _archive(folder: Path, described: bytes) -> Path:
    path = folder / "step-5.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + described + b".")
        archive.writestr("archive/version", b"3\n")
    return path


def _old(folder: Path, described: bytes) -> Path:
    path = folder / "step-5.pth"
    start = io.BytesIO()
    torch.save({}, start, _use_new_zipfile_serialization=False)
    data = start.getvalue()
    at = data.index(b"}q\x00.", 40)
    path.write_bytes(data[:at] + described + b"." + data[at + 4 :])
    return path


def _metadata(folder: Path, changed: Callable[[bytes], bytes]) -> Path:
    data = _dcp_metadata((4, 2), [((at, 0), (2, 2)) for at in (0, 2)])
    (folder / ".metadata").write_bytes(changed(data))
    (folder / "__0_0.distcp").write_bytes(bytes(3000))
    return folder


def _dcp_metadata(
    shape: tuple[int, ...], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> bytes:
    """The ``.metadata`` of one tensor in pieces."""
    tensor = md.TensorStorageMetadata(
        md.TensorProperties(dtype=torch.float32), torch.Size(shape),
        [md.ChunkStorageMetadata(torch.Size(begin), torch.Size(size)) for begin, size in boxes],
    )  # fmt: skip
    storage = {
        md.MetadataIndex("w", torch.Size(begin)): _StorageInfo("__0_0.distcp", 0, 1500)
        for begin, _ in boxes
    }
    return pickle.dumps(md.Metadata({"w": tensor}, {"w": ("model", "w")}, storage))


def _string(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _many_pieces(num: int) -> bytes:
    """As many elements as the tensor has, one of them twice and one of them never."""
    boxes: dict[tuple[int, ...], tuple[int, ...]] = {
        (row, column): (1, 1) for row in range(num) for column in (0, 1)
    }
    boxes[0, 0] = (1, 2)
    del boxes[num - 1, 1]
    return _dcp_metadata((num, 2), list(boxes.items()))


def _index(folder: Path, places: Mapping[str, str]) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    safetensors.torch.save_file(_weights(), str(folder / "model-0.safetensors"))
    return folder


def _colliding(num: int) -> list[int]:
    """Whole numbers with one hash."""
    return [k * (2**61 - 1) for k in range(2**70, 2**70 + num)]


def _long(number: int) -> bytes:
    data = number.to_bytes(24, "little")
    return b"\x8a\x18" + data


def _storm(folder: Path) -> Path:
    """An archive of very many empty records."""
    path = folder / "step-5.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(5000):
            archive.writestr(f"archive/data/{number}", b"")
    return path


def _overlapping(folder: Path) -> Path:
    path = _torch(folder)
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first = archive.infolist()[0].header_offset
    # where the second entry of the table of contents says that its record begins
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4) + 42
    path.write_bytes(data[:at] + (first + 8).to_bytes(4, "little") + data[at + 4 :])
    return path


def _packed_bomb(folder: Path) -> Path:
    path = folder / "step-5.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 * 2**20))
    return path


def _piece(shape: tuple[int, ...]) -> str:
    return json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})


_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"

#: Small files, each made to cost more than its bytes; all are one line that names the file.
HOSTILE: dict[str, Callable[[Path], Path]] = {
    "safetensors: a shape whose product has 5,000 digits": lambda f: _header(
        f, _piece((2**62,) * 300)
    ),
    "safetensors: a shape of 2 MB": lambda f: _header(f, _piece((2**62,) * 100_000)),
    "safetensors: a shape that is empty and beyond memory": lambda f: _header(
        f, _piece((0, 2**62, 2**62))
    ),
    "safetensors: 100,000 names that are there twice": lambda f: _header(
        f, "{" + ",".join(f'"{n}":0' for n in [*range(100_000), *range(100_000)][::-1]) + "}"
    ),
    "safetensors: lists 100,000 deep": lambda f: _header(f, '{"w":' + "[" * 100_000),
    "safetensors: a number of 5,000 digits": lambda f: _header(
        f, '{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,0]}}'
    ),
    "safetensors: a name of a million times module.": lambda f: _header(
        f, json.dumps({"module." * 10**6: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})
    ),
    "safetensors: half a character in a name": lambda f: _header(
        f, '{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "torch: nested tuples as a key": lambda f: _archive(f, b"}" + bomb() + b"Ns"),
    "torch: nested tuples as the name of a tensor": lambda f: _archive(
        f, b"}" + bomb() + _TENSOR + b")Rs"
    ),
    "torch: nested tuples in a set": lambda f: _archive(f, b"\x8f(" + bomb() + b"\x90"),
    "torch: nested tuples in a frozen set": lambda f: _archive(f, b"(" + bomb() + b"\x91"),
    "torch: nested tuples in place of a file": lambda f: _archive(f, bomb()),
    "torch: nested tuples in place of a function": lambda f: _archive(f, bomb() + b")R"),
    "torch: nested tuples in place of a storage": lambda f: _archive(
        f, b"}" + _string("w") + _TENSOR + b"((" + _string("storage") + bomb()
        + _string("0") + _string("cpu") + b"K\x01tQK\x00))\x89NtRs",
    ),
    "torch: nested tuples as a key, twice": lambda f: _archive(
        f, b"}" + bomb() + b"Ns" + bomb() + b"Ns"
    ),
    "torch: 30,000 keys with one hash": lambda f: _archive(
        f, b"}(" + b"".join(_long(n) + b"N" for n in _colliding(30_000)) + b"u"
    ),
    "torch: 30,000 places in the memo with one hash": lambda f: _archive(
        f, b"N" + b"".join(b"p%d\n" % n for n in _colliding(30_000))
    ),
    "torch: state dicts in a ring": lambda f: _archive(
        f, b"}q\x00" + b"".join(_string(k) + b"h\x00s" for k in ("model", "state_dict", "module"))
        + b"(" + b"".join(b"J" + n.to_bytes(4, "little") + b"N" for n in range(100_000)) + b"u",
    ),
    "torch: 5,000 records": _storm,
    "torch: records one inside the other": _overlapping,
    "torch: a record that unpacks to 50 MB": _packed_bomb,
    "torch, before 1.6: a text of 2^50 bytes": lambda f: _old(
        f, b"\x8e" + (2**50).to_bytes(8, "little")
    ),
    "torch, before 1.6: nested tuples as a key": lambda f: _old(f, b"}" + bomb() + b"Ns"),
    "torch, before 1.6: nested tuples as a storage's key": lambda f: _old(
        f, b"(" + _string("storage") + b"ctorch\nFloatStorage\n" + bomb() + _string("cpu")
        + b"K\x01NtQ",
    ),
    "index: 200,000 names of one file": lambda f: _index(
        f, dict.fromkeys(map(str, range(200_000)), "model-0.safetensors")
    ),
    "index: a file outside": lambda f: _index(f, {"w": "../../etc/passwd"}),
    "index: a file with a name of a million letters": lambda f: _index(f, {"w": "n" * 10**6}),
    "index: a file whose name is half a character": lambda f: _index(f, {"w": "\ud800"}),
    "distributed: nested tuples as a path": lambda f: _metadata(
        f, lambda d: d.replace(b"\x8c\x05model", bomb() + b"\x8c\x05other")
    ),
    "distributed: nested tuples as a name": lambda f: _metadata(
        f, lambda d: d.replace(b"\x8c\x01w", bomb(), 1)
    ),
    "distributed: nested tuples in place of all": lambda f: _metadata(f, lambda _: bomb() + b"."),
    "distributed: 3,000 pieces that overlap": lambda f: _metadata(
        f, lambda _: _many_pieces(1500)
    ),
}  # fmt: skip


# ------------------------------------------------------------------ the cases


def _hostile(name: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        place = folder / "run"
        place.mkdir()
        path = HOSTILE[name](place)
        started = time.process_time()
        came = attempt(path)
        took = time.process_time() - started
        return came if took <= LIMIT_S else f"{came} after {took:.1f} s"

    return run


def _fuzz(folder: Path) -> str:
    tally = Tally()
    tally.run(folder, 3000, seed=1, counts_lines=False)
    return f"{tally.num_crashed} crashed" + (f", such as {tally.worst}" if tally.worst else "")


CASES = (
    *(
        Case(point="hostile files", what=name, expected="refused", run=_hostile(name), limit_s=30.0)
        for name in HOSTILE
    ),
    Case(
        point="hostile files",
        what="3,000 mutated files of every format",
        expected="0 crashed",
        run=_fuzz,
    ),
)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", action="store_true", help="count the lines that run, slower")
    arguments = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        tally.run(Path(folder), arguments.files, arguments.seed, counts_lines=arguments.lines)
    for outcome, number in sorted(tally.outcomes.items()):
        print(f"{number:8,} {outcome}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{tally.num_crashed} of {arguments.files:,} crashed; slowest {tally.slowest_s:.3f} s")
    print(f"most work: {tally.most_lines:.1f} lines of Python a byte; peak {peak:.2f} GB")
    sys.exit(bool(tally.num_crashed))


if __name__ == "__main__":
    _main()
