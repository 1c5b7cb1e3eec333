"""Checkpoints forged to cost time or memory: refused in one line, in linear time."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from contracts.mutated_files import bomb
from contracts.sound_files import KINDS, headed, weights
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint.filesystem import _StorageInfo

# ------------------------------------------------------------------ crafted to cost time or memory


def _header(folder: Path, text: str) -> Path:
    return headed(folder / "step-5.safetensors", text.encode())


def _archive(folder: Path, described: bytes) -> Path:
    path = folder / "step-5.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + described + b".")
        archive.writestr("archive/version", b"3\n")
    return path


def _metadata(folder: Path, changed: Callable[[bytes], bytes]) -> Path:
    data = dcp_metadata((4, 2), [((at, 0), (2, 2)) for at in (0, 2)])
    (folder / ".metadata").write_bytes(changed(data))
    (folder / "__0_0.distcp").write_bytes(bytes(3000))
    return folder


def dcp_metadata(
    shape: tuple[int, ...], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], **place: Any
) -> bytes:
    """The ``.metadata`` of one tensor in pieces, pickled as torch does."""
    where = {"relative_path": "__0_0.distcp", "offset": 0, "length": 1500} | place
    tensor = md.TensorStorageMetadata(
        md.TensorProperties(dtype=torch.float32), torch.Size(shape),
        [md.ChunkStorageMetadata(torch.Size(begin), torch.Size(size)) for begin, size in boxes],
    )  # fmt: skip
    storage = {
        md.MetadataIndex("w", torch.Size(begin)): _StorageInfo(**where) for begin, _ in boxes
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
    return dcp_metadata((num, 2), list(boxes.items()))


def _index(folder: Path, places: Mapping[str, str]) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    safetensors.torch.save_file(weights(), str(folder / "model-0.safetensors"))
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
    path = KINDS["torch"](folder)
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
    "safetensors: 100,000 names, the last one twice": lambda f: _header(
        f, "{" + ",".join(f'"{n}":0' for n in [*range(100_000), 99_999]) + "}"
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
    "index: 50,000 names of one file": lambda f: _index(
        f, dict.fromkeys(map(str, range(50_000)), "model-0.safetensors")
    ),
    "index: a file outside": lambda f: _index(f, {"w": "../../etc/passwd"}),
    "index: a file with a name of a million letters": lambda f: _index(f, {"w": "n" * 10**6}),
    "index: a file whose name is half a character": lambda f: _index(f, {"w": "\ud800"}),
    "distributed: nested tuples as a path": lambda f: _metadata(
        f, lambda d: d.replace(b"\x8c\x05model", bomb())
    ),
    "distributed: nested tuples as a name": lambda f: _metadata(
        f, lambda d: d.replace(b"\x8c\x01w", bomb(), 1)
    ),
    "distributed: nested tuples in place of all": lambda f: _metadata(f, lambda _: bomb() + b"."),
    "distributed: 2,000 pieces that overlap": lambda f: _metadata(
        f, lambda _: _many_pieces(1000)
    ),
}  # fmt: skip
