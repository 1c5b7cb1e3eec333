"""Checkpoints that are damaged: read, or refused in one line, in linear time.

python -m contracts.mutated_files --files 20000 --seed 0     (in tests/)

mutates small checkpoints of every format, byte by byte and by what their descriptions mean, and
prints how many were read, refused and crashed, the slowest one and the most work for a byte.
"""

from __future__ import annotations

import argparse
import io
import pickletools
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from contracts.sound_files import KINDS, Sound, sound

from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import CheckpointError

#: A file that takes longer is one of the faults; in seconds of this process.
LIMIT_S = 4.0

# ------------------------------------------------------------------ what is done to one


def attempt(path: Path) -> str:
    """Everything that a replay does with a checkpoint: "read", "refused", or what is wrong."""
    size = sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else _size(path)
    try:
        (*_, found) = discover(path)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.step is None or checkpoint.step >= 0
            for entry in checkpoint.entries():
                if entry.num_bytes > 4 * size + 2**26 and not entry.problem:
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


def _old_changed(data: bytes, chance: random.Random) -> bytes:
    """One of the five pickles changed that a file from before torch 1.6 begins with."""
    file, starts = io.BytesIO(data), [0]
    for _ in range(4):
        list(pickletools.genops(file))
        starts.append(file.tell())
    start = chance.choice(starts)
    return data[:start] + _pickle_changed(data[start:], chance)


def _meaning_changed(name: str, data: bytes, chance: random.Random) -> bytes:
    if name.endswith(".json"):
        return _json_changed(data, chance)
    if name.endswith(".safetensors"):
        return _header_changed(data, chance)
    if name.endswith(".pt"):
        changed = _archive_changed if data.startswith(b"PK") else _old_changed
        return changed(data, chance)
    return (
        _pickle_changed(data, chance)
        if name.endswith(".metadata")
        else _bytes_changed(data, chance)
    )


def mutated(whole: Sound, chance: random.Random) -> Sound:
    """A checkpoint with one of its files changed: some bytes of it, or what it means."""
    name = chance.choice(whole.read)
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
        chance = random.Random(seed)
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
            # opening any file takes a thousand lines, however few bytes are left of it
            num_bytes = max(100, sum(map(len, changed.files.values())))
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
