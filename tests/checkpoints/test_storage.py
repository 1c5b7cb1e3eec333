"""Ranges of bytes on any storage: exactly those asked for, and what goes wrong in one line."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from contracts.reader_contract import small_bert
from fsspec.implementations.memory import MemoryFileSystem

from sparsitywatch.checkpoints import storage
from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.storage import DescriptionFile, Location, SourceFile, Window
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


class CountingFileSystem(MemoryFileSystem):
    """A storage that keeps count of what is fetched, and fails on request."""

    protocol = "counting"
    store: dict = {}  # noqa: RUF012 as its base class has it
    fetched: list[int] = []  # noqa: RUF012
    failure: BaseException | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("counting://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options) -> bytes:
        if type(self).failure is not None:
            raise type(self).failure
        data = super().cat_file(path, start=start, end=end, **options)
        self.fetched.append(len(data))
        return data

    def _open(self, path, mode="rb", **options):
        assert mode != "rb", "files are read by ranges only"
        return super()._open(path, mode, **options)


@pytest.fixture
def counting() -> Iterator[CountingFileSystem]:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    fs = fsspec.filesystem("counting", skip_instance_cache=True)
    CountingFileSystem.fetched.clear()
    yield fs
    CountingFileSystem.failure = None
    fs.store.clear()


@pytest.mark.parametrize("how", ["whole", "in chunks"])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_only_what_is_in_scope_is_fetched(
    kind: str, how: str, counting: CountingFileSystem
) -> None:
    model = small_bert(hidden_size=64, intermediate_size=256, num_hidden_layers=3, vocab_size=5000)
    if kind == "safetensors":
        weights = {n: t for n, t in model.state_dict().items() if "decoder" not in n}
        data = safetensors.torch.save({n: t.clone() for n, t in weights.items()})
        url = "counting://run/model.safetensors"
    else:
        optimizer = {n: {"exp_avg": torch.zeros_like(p)} for n, p in model.named_parameters()}
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer}, buffer)
        data, url = buffer.getvalue(), "counting://run/ckpt.pt"
    counting.pipe_file(url, data)
    with open_checkpoint(url) as checkpoint:
        scope = Scope.of_entries(checkpoint.entries())
        snapshot = stored_snapshot(checkpoint, scope, 1)
        if how == "whole":
            wanted = sum(tensor.nbytes for tensor in snapshot.tensors.values())
        else:
            wanted = MagnitudeSpectrum.of(snapshot.tensors, num_threads=2).num_weights * 4
        assert sum(counting.fetched) == checkpoint.num_bytes_read
    assert wanted == scope.summary.num_weights * 4
    assert sum(counting.fetched) <= 1.1 * wanted < 0.6 * len(data)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (PermissionError("Forbidden"), r"permission denied \(PermissionError: Forbidden\)"),
        (FileNotFoundError("gone"), "expected a file, found none"),
        (TimeoutError("slow\nstorage"), "TimeoutError: slow storage, also when asked 4 more times"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_what_a_storage_raises_is_one_line(failure, message, counting, monkeypatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    data = safetensors.torch.save({"w": torch.ones(3)})
    counting.pipe_file("counting://w.safetensors", data)
    with open_checkpoint("counting://w.safetensors") as checkpoint:
        CountingFileSystem.failure = failure
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.read("w")
    assert "counting:///w.safetensors" in str(caught.value) or "w.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["read", "counted"])
def test_a_file_that_is_replaced_meanwhile_is_noticed(how: str, counting) -> None:
    url = "counting://w.safetensors"
    data = safetensors.torch.save({"w": torch.ones(3, 3), "v": torch.ones(2, 2)})
    counting.pipe_file(url, data)
    with open_checkpoint(url) as checkpoint:
        scope = Scope.of_entries(checkpoint.entries(), lambda *_: True)
        snapshot = stored_snapshot(checkpoint, scope, 1)
        counting.pipe_file(url, data)
        with pytest.raises(CheckpointError, match="written meanwhile"):
            list(checkpoint.tensors()) if how == "read" else MagnitudeSpectrum.of(snapshot.tensors)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    small_bert().save_pretrained(tmp_path / "hf")
    monkeypatch.setattr(storage.io, "FileIO", deny)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: permission denied"):
        open_checkpoint(tmp_path / "hf")


def test_a_folder_keeps_to_itself(tmp_path: Path) -> None:
    folder = Location.of(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"abc")
    file = folder.inside("a.bin")
    assert file.open().read(1, 2) == b"bc"
    assert file.open() is file.open()
    folder.close()
    with pytest.raises(ValueError, match="closed"):
        file.open().read(1, 2)
    for name in ("../x", "/x", "a/../../x", "..\\x", ""):
        with pytest.raises(CheckpointError, match="inside the folder"):
            folder.inside(name)


def test_a_part_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    source = Location.of(tmp_path / "a.bin").source()
    file = DescriptionFile(Window(source, 2, 5), max_read=5)
    assert (file.read(2), file.tell(), file.read(), file.read()) == (b"23", 2, b"456", b"")
    assert (file.seek(-1, 2), file.read()) == (4, b"6")
    with pytest.raises(OSError, match="before the beginning"):
        file.seek(-1)
    with pytest.raises(ValueError, match="5 bytes at once in a description"):
        DescriptionFile(Window(source, 2, 5), max_read=4).read()
    with pytest.raises(CheckpointError, match="expected at least 11 bytes, got 10"):
        source.read(5, 6)
    source.close()


def test_a_buffer_is_filled_with_the_bytes_in_their_order(
    counting, tmp_path: Path, monkeypatch
) -> None:
    data = bytes(range(256)) * 2
    (tmp_path / "f").write_bytes(data)
    counting.pipe_file("counting://f", data)
    monkeypatch.setattr(storage, "_MAX_FETCH_BYTES", 104)
    buffer = memoryview(bytearray(451))
    local = Location.of(tmp_path / "f").source()
    remote = SourceFile(counting, "/f", "counting:///f")
    for source in (local, remote):
        buffer[:] = bytes(451)
        source.fill(buffer, 5)
        assert buffer == data[5:456]
        assert source.num_bytes_read == 451
        source.fill(buffer[:0], 512)
        with pytest.raises(IncompleteCheckpointError, match="at least 513 bytes, got 512"):
            source.fill(buffer, 62)
        source.close()
    assert counting.fetched == [104] * 4 + [35]
    part = Window(remote, 100, 90)
    assert part.read(10, 80) == data[110:190]
    with pytest.raises(IncompleteCheckpointError):
        part.fill(buffer[:81], 10)
    assert counting.fetched[5:] == [90]  # at once


def test_a_storage_that_gives_less_is_asked_again(counting, monkeypatch) -> None:
    data = bytes(range(200))
    counting.pipe_file("counting://f", data)
    plain = CountingFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **options) -> bytes:
        return plain(self, path, start=start, end=min(end, start + 60), **options)

    monkeypatch.setattr(CountingFileSystem, "cat_file", cat_file)
    source = SourceFile(counting, "/f", "counting:///f")
    assert source.read(3, 190) == data[3:193]
    assert source.num_bytes_read == 190


def test_without_preadv_the_same(tmp_path: Path, monkeypatch) -> None:
    data = random.Random(0).randbytes(1 << 18)
    (tmp_path / "f").write_bytes(data)
    monkeypatch.delattr(os, "preadv", raising=False)
    source = Location.of(tmp_path / "f").source()

    def read(start: int) -> bool:
        return source.read(start, 100) == data[start : start + 100]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(0, len(data) - 100, 501)))
    source.close()


@pytest.mark.parametrize("is_async", [False, True])
def test_only_storages_made_for_it_are_asked_at_once(is_async, counting, monkeypatch) -> None:
    counting.pipe_file("counting://f", bytes(1000))
    monkeypatch.setattr(CountingFileSystem, "async_impl", is_async)
    monkeypatch.setattr(storage, "_MAX_FETCH_BYTES", 8)
    source = SourceFile(counting, "/f", "counting:///f")
    both = threading.Barrier(2)

    def cat_file(self, path, start=None, end=None, **options) -> bytes:
        if is_async:
            both.wait(60)
        else:
            assert source._fetching.locked()
        return bytes(end - start)

    monkeypatch.setattr(CountingFileSystem, "cat_file", cat_file)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: source.read(500 * i, 400), range(2)))
    assert source.num_bytes_read == 800
