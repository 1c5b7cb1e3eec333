"""Files of torch.save, as people nest and wrap what is in them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from contracts.reader_contract import ReaderContract, failure, in_chunks, same_bits, small_bert
from torch import nn

from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.torch_file import as_sizes, extent
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.snapshot import LazyTensors
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return optimizer


class TestNanoGPT(ReaderContract):
    """``ckpt.pt`` of a compiled model, with the optimizer beside it."""

    format = "torch"
    step = 7

    def write(self, model: nn.Module, folder: Path) -> Path:
        optimizer = trained(model)
        compiled = torch.compile(model, backend="eager")
        assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())
        torch.save(
            {
                "model": compiled.state_dict(),
                "optimizer": optimizer.state_dict(),
                "model_args": {"n_layer": 2},
                "iter_num": 7,
                "best_val_loss": torch.tensor(3.1),
                "config": {"folder": folder},
            },
            folder / "ckpt.pt",
        )
        return folder / "ckpt.pt"


class TestBeforeVersion16(ReaderContract):
    """As BERT's own were saved: pickles, and the storages behind them."""

    format = "torch"

    def write(self, model: nn.Module, folder: Path) -> Path:
        target = folder / "pytorch_model.bin"
        torch.save(model.state_dict(), target, _use_new_zipfile_serialization=False)
        return target


class TestShardedBin(ReaderContract):
    """``pytorch_model.bin.index.json``, as transformers wrote it before version 5."""

    format = "huggingface/torch"

    def write(self, model: nn.Module, folder: Path) -> Path:
        target = folder / "bin"
        target.mkdir()
        weights = model.state_dict()
        names = list(weights)
        half = len(names) // 2
        places = {}
        for number, chosen in enumerate((names[:half], names[half:]), 1):
            file = f"pytorch_model-{number:05}-of-00002.bin"
            # clones, or each shard would hold the storage of the tied pair
            torch.save({name: weights[name] for name in chosen}, target / file)
            places |= dict.fromkeys(chosen, file)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return target

    def model(self) -> nn.Module:
        model = small_bert()
        model.cls.predictions.decoder.weight = nn.Parameter(torch.randn(50, 16))
        return model


def test_where_the_weights_may_be(tmp_path: Path) -> None:
    weights = nn.Linear(3, 2).state_dict()
    nestings = {
        "top": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}}},
        "module": {"module": weights},
        "twice": {"model": {"state_dict": weights}},
        "both": {"model_state_dict": weights, "ema": {"weight": torch.ones(1)}},
        "with more": weights | {"_extra_state": None, "version": 3},
    }
    for name, content in nestings.items():
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        with open_checkpoint(path) as checkpoint:
            found = dict(checkpoint.tensors())
        assert found.keys() == weights.keys()
        assert all(same_bits(found[n], weights[n]) for n in weights)


@pytest.mark.parametrize("is_old", [False, True])
def test_tensors_of_every_form(is_old: bool, tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(6, 10)
    weights = {
        "base": base,
        "transposed": base.t(),
        "slice": base[2:4, 1:9:3],
        "row": base[3],
        "parameter": nn.Parameter(torch.randn(3, 3)),
        "overlapping": base.as_strided((2, 2), (1, 1)),
        "repeated": base.as_strided((2, 3), (0, 5)),
        "permuted": torch.randn(2, 3, 4).permute(1, 2, 0),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "float64": torch.randn(3, dtype=torch.float64),
        "bfloat16": torch.randn(3).bfloat16(),
        "float16": torch.randn(3).half(),
        "float8": torch.randn(3).to(torch.float8_e4m3fn),
        "int64": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "uint16": torch.arange(3).to(torch.uint16),
    }
    path = tmp_path / "w.pt"
    torch.save(weights, path, _use_new_zipfile_serialization=not is_old)
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.entries()) == len(weights)
        for name, tensor in checkpoint.tensors():
            assert same_bits(tensor, weights[name].detach()), name
            assert in_chunks(checkpoint, name), name


def test_ties_share_their_storage_and_slices_do_not(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    torch.save({"a": weight, "b": weight, "c": weight[:2], "d": weight.clone()}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        storages = {entry.name: entry.storage for entry in checkpoint.entries()}
    assert storages["a"] == storages["b"]
    assert len(set(storages.values())) == 3


@pytest.mark.parametrize("loss", [3.1, torch.tensor(3.1)])
def test_a_model_one_dictionary_further_in_is_found_with_its_step(
    loss: object, tmp_path: Path
) -> None:
    model = nn.Linear(3, 2)
    training = {"model": model.state_dict(), "optimizer": trained(model).state_dict()}
    torch.save(
        {"training": {**training, "steps_done": 60}, "watch": {"step": 50}, "loss": loss},
        tmp_path / "checkpoint.pt",
    )
    with open_checkpoint(tmp_path / "checkpoint.pt") as checkpoint:
        assert [entry.name for entry in checkpoint.entries()] == ["weight", "bias"]
        assert checkpoint.step == 60


def test_of_two_models_none_is_taken_for_the_one(tmp_path: Path) -> None:
    models = {name: {"model": nn.Linear(3, 2).state_dict()} for name in ("training", "teacher")}
    torch.save(models, tmp_path / "checkpoint.pt")
    told = failure(tmp_path / "checkpoint.pt")
    assert "got several: 'training.model' (2 tensors), 'teacher.model' (2 tensors)" in told


def test_a_part_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        assert {entry.name for entry in checkpoint.entries()} == set(model.state_dict())


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(5)}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        assert checkpoint.read("w").tolist() == [1.0] * 5
        assert in_chunks(checkpoint, "w")


def test_a_flipped_bit_in_a_weight_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    weight = torch.randn(1000)
    torch.save({"good": torch.ones(3), "bad": weight}, path)
    data = bytearray(path.read_bytes())
    at = bytes(data).index(weight.numpy().tobytes())
    data[at + 99] ^= 4
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("good").tolist() == [1.0] * 3
        with pytest.raises(CheckpointError, match="tensor 'bad': its bytes do not match the check"):
            checkpoint.read("bad")
        entries = {entry.name: entry for entry in checkpoint.entries()}
        lazy = LazyTensors(entries, checkpoint)
        with pytest.raises(CheckpointError, match="tensor 'bad': its bytes do not match the check"):
            MagnitudeSpectrum.of(lazy)


def test_what_is_no_state_dict_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for content, message in (
        ({"a": 1, "b": {"c": 2}}, "got a dictionary of a, b. Save model.state_dict"),
        ([torch.ones(1)], "got a list"),
        (Path("a"), "got an object of pathlib.PosixPath, which is never made"),
    ):
        torch.save(content, path)
        assert message in failure(path)
    torch.save({"w": torch.ones(3).to_sparse()}, path)
    assert "tensor 'w': expected weights, but it is sparse" in failure(path)
    path.write_bytes(b"no checkpoint at all")
    assert "expected a file of safetensors or of torch.save, got one that begins" in failure(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some/file.txt", "text")
    assert "zip archive without a data.pkl" in failure(path)


class Record:
    """A zip of torch.save, taken apart to be put together differently."""

    def __init__(self, path: Path, content: object) -> None:
        self.path = path
        torch.save(content, path)
        with zipfile.ZipFile(path) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}

    def write(self, compression: int = zipfile.ZIP_STORED, **changes: bytes | None) -> str:
        with zipfile.ZipFile(self.path, "w", compression) as archive:
            for name, data in self.members.items():
                key = name.partition("/")[2].replace("/", "_").replace(".", "_")
                changed = changes.get(key, data)
                if changed is not None:
                    archive.writestr(name, changed)
        return failure(self.path) or "read"


def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    record = Record(tmp_path / "w.pt", {"w": torch.ones(3, 2)})
    pickle = record.members["w/data.pkl"]
    assert record.write() == "read"
    assert "is packed" in record.write(zipfile.ZIP_DEFLATED)
    assert "its storage '0' is not in the file" in record.write(data_0=None)
    assert "inside its storage of 8 bytes, it needs 24" in record.write(data_0=bytes(8))
    assert "got byte order b'big'" in record.write(byteorder=b"big")
    assert "got byte order b''" in record.write(byteorder=b"a much longer word")
    # shape (3, 2) to (255, 2)
    assert "tensor 'w': expected shape (255, 2)" in record.write(
        data_pkl=pickle.replace(b"K\x03K\x02\x86", b"K\xffK\x02\x86", 1)
    )
    assert "expected a dtype that torch has" in record.write(
        data_pkl=pickle.replace(b"FloatStorage", b"FlootStorage")
    )
    assert "its description is broken" in record.write(data_pkl=pickle[:-1])


def test_what_is_expanded_beyond_the_file_is_refused_under_each_of_its_names(
    tmp_path: Path,
) -> None:
    wide = torch.ones(1).expand(2**13, 2**12)  # 128 MiB out of four bytes
    small = torch.ones(3, 2)
    torch.save({"a.weight": wide, "b.weight": wide, "c.weight": small}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        problems = {entry.name: entry.problem for entry in checkpoint.entries()}
        assert torch.equal(checkpoint.read("c.weight"), small)
    said = "it is expanded to 134217728 bytes that are not in the file"
    assert problems == {"a.weight": said, "b.weight": said, "c.weight": ""}


def test_sizes_are_what_a_tensor_can_have() -> None:
    assert as_sizes([2, 3]) == (2, 3)
    assert [as_sizes(node) for node in ((2**63,), [2.0], [1] * 1000)] == [None] * 3


def test_how_far_a_tensor_reaches_over_its_storage_and_whether_in_order() -> None:
    assert extent((3, 1, 2), (2, 9, 1)) == (6, True)
    assert extent((3, 2), (5, 1)) == (12, False)
    assert extent((3, 2), (1, 3)) == (6, False)
