"""Folders of torch.distributed.checkpoint, written by two processes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from contracts.forked import forked
from contracts.hostile_files import dcp_metadata
from contracts.reader_contract import ReaderContract, failure, same_bits, small_bert
from torch import nn

from sparsitywatch.checkpoints.distributed import parse_metadata
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.tensors import RefusedError
from sparsitywatch.errors import IncompleteCheckpointError


def save(state: dict[str, object], folder: Path) -> None:
    """Save from this process alone; torch warns that it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder), no_dist=True)


@pytest.mark.slow
class TestDistributed(ReaderContract):
    format = "distributed"
    step = 11
    tells_ties = False
    ends_with_weights = False

    def write(self, model: nn.Module, folder: Path) -> Path:
        script = Path(__file__).with_name("distributed_save.py")
        status, output = forked(
            script,
            str(folder / "step-11"),
            imports="contracts.reader_contract,torch.distributed.tensor",
        )
        assert status == 0, output
        assert len(list(folder.glob("step-11/*.distcp"))) == 2
        return folder / "step-11"

    def test_as_torch_itself_loads_it(self, written) -> None:
        expected = {name: torch.empty_like(t) for name, t in written[0].state_dict().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is one process
            dcp.load({"model": expected}, checkpoint_id=str(written[1]), no_dist=True)
        with open_checkpoint(written[1]) as checkpoint:
            assert {n: same_bits(t, expected[n]) for n, t in checkpoint.tensors()} == dict.fromkeys(
                expected, True
            )

    def test_the_optimizer_is_never_fetched(self, written) -> None:
        with open_checkpoint(written[1]) as checkpoint:
            weights = sum(entry.num_bytes for entry in checkpoint.entries())
            before = checkpoint.num_bytes_read
            for _ in checkpoint.tensors():
                pass
            around = checkpoint.num_bytes_read - before - weights
        # every piece is an archive of its own, of about 1 kB besides its bytes
        assert 0 < around < 2000 * 2 * 44


def test_a_state_dict_at_the_top(tmp_path: Path) -> None:
    model = small_bert()
    save(model.state_dict(), tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.step is None
        found = dict(checkpoint.tensors())
    assert all(same_bits(found[n], t) for n, t in model.state_dict().items())


def test_without_its_metadata_it_is_not_yet_complete(tmp_path: Path) -> None:
    save({"model": {"w": torch.ones(3)}}, tmp_path)
    (tmp_path / ".metadata").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"\.metadata: expected a file, found none"):
        open_checkpoint(tmp_path)


def test_only_an_optimizer_is_told(tmp_path: Path) -> None:
    save({"optim": {"w": torch.ones(3)}}, tmp_path)
    assert "expected tensors of a model" in failure(tmp_path)


def test_a_described_tensor() -> None:
    ((path, found),) = parse_metadata(dcp_metadata((4, 2), [((0, 0), (3, 2)), ((3, 0), (1, 2))]))
    assert (found.entry.shape, path, len(found.pieces)) == ((4, 2), ("model", "w"), 2)


@pytest.mark.parametrize(
    ("shape", "chunks", "message"),
    [
        ((4, 2), [((0, 0), (3, 2))], "pieces of 8 elements together, got 6"),
        ((4, 2), [((0, 0), (5, 2))], r"the piece at \(0, 0\) reaches beyond \(4, 2\)"),
        ((4, 2), [((0, 0), (3, 2)), ((2, 0), (1, 2))], "two of its pieces overlap"),
        ((4, 4), [((0, 0), (2, 4)), ((1, 0), (2, 4))], "two of its pieces overlap"),
        ((2**40, 2**40), [((0, 0), (2**40, 2**40))], "a shape that memory could hold"),
        ((4, 2), [((0,), (8,))], "its pieces and its shape contradict each other"),
    ],
)  # fmt: skip
def test_pieces_that_are_no_tensor_are_refused(shape, chunks, message) -> None:
    with pytest.raises(RefusedError, match=message):
        parse_metadata(dcp_metadata(shape, chunks))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"relative_path": "../x"}, "names of files inside the folder, got '../x'"),
        ({"relative_path": "x.distcp"}, "expected a file, found none"),
        ({"offset": 4500}, "expected it to end at byte 6000, but the file ends at 5000"),
        ({"length": 30}, "expected a piece of 36 bytes and a little around it, got 30"),
        ({"length": -1}, "expected a file and a range"),
        ({"transform_descriptors": ["zstd"]}, "Save without extensions"),
        ({}, "table of contents"),
    ],
)
def test_places_that_lie_are_refused(place, message: str, tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(bytes(5000))
    (tmp_path / ".metadata").write_bytes(dcp_metadata((9,), [((0,), (9,))], **place))
    assert message in failure(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(8), "expected a piece of shape (9,) and torch.float32, got (8,)"),
        (torch.ones(9).double(), "got (9,) and torch.float64"),
        ([torch.ones(9)], "expected a dense tensor"),
    ],
)
def test_a_piece_of_another_kind_is_refused(content, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "__0_0.distcp")
    size = (tmp_path / "__0_0.distcp").stat().st_size
    (tmp_path / ".metadata").write_bytes(dcp_metadata((9,), [((0,), (9,))], length=size))
    assert message in failure(tmp_path)
