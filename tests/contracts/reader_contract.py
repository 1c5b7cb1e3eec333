"""What every reader must do. A format's test module inherits the class and fills it in::

class TestMyFormat(ReaderContract):
    format = "mine"

    def write(self, model, folder):
        "Save with the real library; return the path to open."
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
import transformers
from torch import nn

from sparsitywatch.checkpoints.base import Checkpoint, stored_snapshot
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
}


_WRITTEN: dict[type, tuple[nn.Module, Path]] = {}


def small_bert(**config: int) -> nn.Module:
    """A BERT with a tied head, in which no weight is what initialisation made of it."""
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.detach().contiguous().reshape(-1).view(torch.uint8),
    )


def in_chunks(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the chunks of a tensor are its bytes in flat order."""
    tensor = checkpoint.read(name)
    expected = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    chunks = [bytes(chunk) for chunk in checkpoint.chunks(name, memoryview(bytearray(64)))]
    assert all(len(chunk) % tensor.itemsize == 0 for chunk in chunks)
    return b"".join(chunks) == expected


def failure(path: Path) -> str | None:
    """What reading all of a checkpoint fails with; None if it can be read."""
    try:
        with open_checkpoint(path) as checkpoint:
            for _ in checkpoint.tensors():
                pass
    except CheckpointError as error:
        return str(error)
    return None


def copy_to_memory(path: Path, url: str) -> str:
    """The file or folder ``path`` on the memory file system."""
    fs = fsspec.filesystem("memory")
    target = url.removeprefix("memory:/")
    if path.is_file():
        fs.pipe_file(f"{target}/{path.name}", path.read_bytes())
        return f"{url}/{path.name}"
    for file in path.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{target}/{path.name}/{file.relative_to(path)}", file.read_bytes())
    return f"{url}/{path.name}"


class ReaderContract:
    """Any reader of a format."""

    #: what ``Checkpoint.format`` says
    format: str
    #: what the contents say of the step
    step: int | None = None
    #: whether it keeps the ties between tensors, or keeps one of the names only
    tells_ties = True
    #: whether its largest file ends with a weight or a table of contents, not with other state
    ends_with_weights = True

    def model(self) -> nn.Module:
        return small_bert()

    def write(self, model: nn.Module, folder: Path) -> Path:
        """Save ``model`` as this format's own library does; the path to open."""
        raise NotImplementedError

    @pytest.fixture
    def written(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
        """The model and where it was saved: once for all tests of a class."""
        if type(self) not in _WRITTEN:
            model = self.model()
            path = self.write(model, tmp_path_factory.mktemp("saved"))
            _WRITTEN[type(self)] = model, path
        return _WRITTEN[type(self)]

    @pytest.fixture
    def own(self, written: tuple[nn.Module, Path], tmp_path: Path) -> Path:
        """A copy that a test may harm."""
        path = written[1]
        target = tmp_path / path.name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy(path, target)
        return target

    @pytest.fixture(autouse=True)
    def _no_leftovers(self) -> Iterator[None]:
        yield
        fsspec.filesystem("memory").store.clear()

    @staticmethod
    def largest_file(path: Path) -> Path:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        weights = [p for p in files if p.suffix not in (".json", ".txt") and "optim" not in p.name]
        return max(weights, key=lambda p: p.stat().st_size)

    # ------------------------------------------------------------------ what is there

    def test_it_is_a_checkpoint_of_its_format(self, written) -> None:
        with open_checkpoint(written[1]) as checkpoint:
            assert isinstance(checkpoint, Checkpoint)
            assert (checkpoint.format, checkpoint.step) == (self.format, self.step)
            assert checkpoint.url == str(written[1])

    def test_every_tensor_is_described_and_equal_bit_for_bit(self, written) -> None:
        model, path = written
        expected = model.state_dict()
        with open_checkpoint(path) as checkpoint:
            entries = {entry.name: entry for entry in checkpoint.entries()}
            # a format may leave out one of two tied names, never both, and buffers
            assert entries.keys() <= expected.keys()
            kept = {expected[name].data_ptr() for name in entries}
            assert {p.data_ptr() for p in model.parameters()} <= kept
            for name, entry in entries.items():
                tensor = checkpoint.read(name)
                assert same_bits(tensor, expected[name]), name
                assert (entry.shape, entry.dtype) == (tuple(tensor.shape), tensor.dtype)
                assert entry.num_bytes == tensor.numel() * tensor.element_size()
            assert {n: same_bits(t, expected[n]) for n, t in checkpoint.tensors()} == dict.fromkeys(
                entries, True
            )

    def test_some_tensors_in_the_order_of_the_bytes(self, written) -> None:
        with open_checkpoint(written[1]) as checkpoint:
            names = [entry.name for entry in checkpoint.entries()][::3]
            assert sorted(n for n, _ in checkpoint.tensors(names)) == sorted(names)
            with pytest.raises(KeyError):
                next(checkpoint.tensors(["no.such.name"]))
            with pytest.raises(KeyError):
                checkpoint.read("no.such.name")

    def test_chunks_are_the_bytes_in_flat_order(self, written) -> None:
        with open_checkpoint(written[1]) as checkpoint:
            for entry in checkpoint.entries():
                assert in_chunks(checkpoint, entry.name), entry.name
            with pytest.raises(KeyError):
                next(checkpoint.chunks("no.such.name", memoryview(bytearray(64))))

    def test_descriptions_are_read_without_the_weights(self, written) -> None:
        with open_checkpoint(written[1]) as checkpoint:
            before = checkpoint.num_bytes_read
            assert checkpoint.entries() == checkpoint.entries()
            assert checkpoint.num_bytes_read == before

    def test_the_scope_is_that_of_the_model(self, written) -> None:
        model, path = written
        with open_checkpoint(path) as checkpoint:
            for preset in ("blocks", "paper", *(["layers"] if self.tells_ties else [])):
                live = Scope.of(model, preset)
                stored = Scope.of_entries(checkpoint.entries(), preset)
                assert set(stored.names) == set(live.names)
                assert stored.hash == live.hash

    def test_a_snapshot_is_the_live_one(self, written) -> None:
        model, path = written
        live = Snapshot.of(model, Scope.of(model), 3)
        with open_checkpoint(path) as checkpoint:
            snapshot = stored_snapshot(checkpoint, Scope.of_entries(checkpoint.entries()), 3)
            assert snapshot.dtypes == live.dtypes
            assert set(snapshot.tensors) == set(live.tensors)
            levels = [0.1, 0.5, 0.9]
            ours = MagnitudeSpectrum.of(snapshot.tensors)
            theirs = MagnitudeSpectrum.of(live.tensors)
            assert ours.thresholds(levels) == theirs.thresholds(levels)
            assert ours == theirs
            # and with the live scope
            again = stored_snapshot(checkpoint, live.scope, 3)
            assert list(again.tensors) == list(live.tensors)

    def test_closing_twice_is_closing_once(self, written) -> None:
        checkpoint = open_checkpoint(written[1])
        checkpoint.close()
        checkpoint.close()

    def test_it_is_found(self, written) -> None:
        (found,) = [f for f in discover(written[1]) if f.state != "duplicate"]
        assert (found.url, found.state, found.format) == (str(written[1]), "complete", self.format)
        if self.step is not None:
            is_trainer = self.format.startswith("huggingface")
            where = "trainer state" if is_trainer else "contents"
            assert (found.step, found.step_from) == (self.step, where)

    # ------------------------------------------------------------------ any storage

    def test_from_memory_the_same(self, written) -> None:
        model, path = written
        url = copy_to_memory(path, "memory://saved")
        expected = model.state_dict()
        with open_checkpoint(url) as checkpoint:
            assert checkpoint.url.startswith("memory://")
            assert all(same_bits(t, expected[n]) for n, t in checkpoint.tensors())
            with open_checkpoint(path) as local:
                described = [(e.name, e.shape, e.dtype) for e in local.entries()]
            assert [(e.name, e.shape, e.dtype) for e in checkpoint.entries()] == described

    # ------------------------------------------------------------------ harm

    def test_every_truncation_is_one_line_with_the_file(self, own) -> None:
        file = self.largest_file(own)
        data = file.read_bytes()
        last = [len(data) - 1] if self.ends_with_weights else []
        for length in (0, 1, 7, 8, 9, 100, len(data) // 2, *last):
            file.write_bytes(data[:length])
            message = failure(own)
            assert message is not None, length
            assert "\n" not in message
            assert str(own) in message

    def test_half_written_is_not_yet_complete(self, own) -> None:
        file = self.largest_file(own)
        data = file.read_bytes()
        file.write_bytes(data[:-20] if self.ends_with_weights else data[: len(data) // 2])
        (found,) = discover(own)
        assert found.state == "incomplete"
        assert file.name in found.reason

    def test_a_file_that_is_gone_is_not_yet_complete(self, own) -> None:
        if own.is_file():
            own.unlink()
            with pytest.raises(CheckpointError, match="expected a file, found none"):
                open_checkpoint(own)
            return
        self.largest_file(own).unlink()
        with pytest.raises(CheckpointError, match=r"expected .*none"):
            open_checkpoint(own)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_permission_denied_is_one_line(self, own) -> None:
        self.largest_file(own).chmod(0)
        with pytest.raises(CheckpointError, match="permission denied"):
            open_checkpoint(own)

    def test_flipped_bits_never_escape_as_another_error(self, own) -> None:
        file = self.largest_file(own)
        data = file.read_bytes()
        generator = torch.Generator().manual_seed(0)
        for at in torch.randint(0, min(len(data), 5000), (60,), generator=generator).tolist():
            harmed = bytearray(data)
            harmed[at] ^= 1 << (at % 8)
            file.write_bytes(harmed)
            message = failure(own)
            assert message is None or ("\n" not in message and str(own) in message)

    def test_a_file_that_is_written_meanwhile_is_noticed(self, own) -> None:
        file = self.largest_file(own)
        with open_checkpoint(own) as checkpoint:
            data = file.read_bytes()
            os.utime(file, ns=(1, 1))
            with file.open("r+b") as opened:
                opened.write(data[: len(data) // 2])
            with pytest.raises(CheckpointError, match="written meanwhile"):
                for _ in checkpoint.tensors():
                    pass
