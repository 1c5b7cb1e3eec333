"""Whole modules, arrays of numpy, files of others with advice that works, layouts side by side."""

from __future__ import annotations

import functools
import pickle
import tarfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from contracts.reader_contract import failure, same_bits, small_bert
from fsspec.implementations.http import HTTPFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import CheckpointError


class Loud(nn.Module):
    """Says if anybody makes one of a file."""

    made: list[str] = []  # noqa: RUF012 of the class, on purpose

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6, bias=False))
        self.head = nn.Linear(6, 8, bias=False)
        self.inner[2].weight = nn.Parameter(torch.randn(6, 8))
        self.head.weight = self.inner[0].weight  # tied
        self.register_buffer("kept", torch.randn(3, 2))
        self.register_buffer("passing", torch.randn(3, 2), persistent=False)

    def __setstate__(self, state: dict) -> None:
        self.made.append("state")
        super().__setstate__(state)


def read(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {entry.name: checkpoint.read(entry.name).clone() for entry in checkpoint.entries()}


def expect_same(path: Path, weights: dict[str, torch.Tensor]) -> None:
    found = read(path)
    assert found.keys() == weights.keys()
    assert all(same_bits(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("make", [Loud, small_bert, lambda: nn.DataParallel(Loud())])
def test_a_whole_module_is_read_by_its_tensors(make, protocol: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make()
    torch.save(module, tmp_path / "step-4.pt", pickle_protocol=protocol)
    torch.save({"net": module, "step": 4}, tmp_path / "n.pt", pickle_protocol=protocol)
    Loud.made.clear()
    own = getattr(module, "module", module)
    for name in ("step-4.pt", "n.pt"):
        expect_same(tmp_path / name, own.state_dict())
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.step in (4, None)
            assert checkpoint.format.endswith(type(module).__name__)
    assert Loud.made == []


SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=3)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    shape=SHAPES,
    kind=st.sampled_from(["<f4", ">f4", "<f8", "<f2", ">f8"]),
    order=st.sampled_from("CF"),
    protocol=st.sampled_from([2, 3, 4]),
)
def test_arrays_are_tensors(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], kind: str, order: str, protocol: int
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "step-1.pt"
    values = np.arange(np.prod(shape)).reshape(shape)
    made = {"a.weight": np.array(values, kind, order=order), "b.weight": np.ones((2, 2), kind)}
    torch.save({"model": made, "step": np.int64(7)}, path, pickle_protocol=protocol)
    found = read(path)
    assert found.keys() == made.keys()
    for name, array in made.items():
        assert found[name].numpy().dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found[name].numpy(), array)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.step == 7


def test_an_array_of_objects_is_none(tmp_path: Path) -> None:
    torch.save({"a.weight": np.array([[1, "x"]], object)}, tmp_path / "step-1.pt")
    assert "step-1.pt" in failure(tmp_path / "step-1.pt")


# ------------------------------------------------------------------ what is not read

WEIGHTS = nn.Linear(6, 8).state_dict()


def _advised(folder: Path, kind: str) -> str:
    """What is said of a folder where a file of another library lies alone."""
    with pytest.raises(CheckpointError) as caught:
        discover(folder)
    assert kind in str(caught.value)
    return str(caught.value)


def test_the_advice_for_exported_programs_works(tmp_path: Path) -> None:
    path, other_path = tmp_path / "step-3.pt2", tmp_path / "step-3.pt"
    model = nn.Linear(6, 8)
    torch.export.save(torch.export.export(model, (torch.ones(1, 6),)), path)
    words = "torch.save(torch.export.load(path).state_dict, other_path)"
    assert words in _advised(tmp_path, "'step-3.pt2', a format of torch.export")
    eval(words, {"torch": torch, "path": path, "other_path": other_path})
    expect_same(other_path, model.state_dict())


def test_the_advice_for_pickles_works(tmp_path: Path) -> None:
    path, other_path = tmp_path / "step-3.pkl", tmp_path / "step-3.pt"
    path.write_bytes(pickle.dumps(WEIGHTS))
    words = "torch.save(pickle.load(file), other_path)"
    assert words in _advised(tmp_path, "'step-3.pkl', a format of pickle")
    with path.open("rb") as file:
        eval(words, {"torch": torch, "pickle": pickle, "file": file, "other_path": other_path})
    expect_same(other_path, WEIGHTS)


def test_the_advice_for_packed_archives_works(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "step-3.pt")
    with tarfile.open(tmp_path / "run.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "step-3.pt", "inside/step-3.pt")
    (tmp_path / "step-3.pt").unlink()
    assert "Unpack it first" in _advised(tmp_path, "'run.tar.gz', a format of a packed file")
    with tarfile.open(tmp_path / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    expect_same(tmp_path / "inside/step-3.pt", WEIGHTS)


def test_each_kind_of_file_that_is_not_read_is_told(tmp_path: Path) -> None:
    for name in ("a.pt2", "b.pkl", "c.pkl", "d.onnx"):
        (tmp_path / name).write_bytes(b"x")
    words = _advised(tmp_path, "'a.pt2'")
    assert "'b.pkl' and 1 more" in words
    assert "'d.onnx'" in words


# ------------------------------------------------------------------ places

BLOCKS = {f"layers.{i}.fc.weight": torch.randn(8, 8) for i in range(2)}


@pytest.fixture
def strict_server(tmp_path: Path) -> Iterator[str]:
    """Serves a folder, and knows it by its address with a slash at the end alone."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def send_head(self):
            if Path(self.translate_path(self.path)).is_dir() and not self.path.endswith("/"):
                self.send_error(404)
                return None
            return super().send_head()

    handler = functools.partial(Handler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()
    HTTPFileSystem.clear_instance_cache()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_on_a_server_that_wants_the_slash(
    strict_server: str, tmp_path: Path, end: str
) -> None:
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        torch.save(BLOCKS, tmp_path / f"run/step-{step}.pt")
        BLOCKS["layers.0.fc.weight"] += 1
    assert [one.step for one in discover(f"{strict_server}/run{end}")] == [1, 2]


def test_a_model_with_lora_in_it_has_its_base_weights(tmp_path: Path) -> None:
    base = "base_model.model.layers.0.fc"
    lora = {f"{base}.lora_{side}.default.weight": torch.randn(2, 2) for side in "AB"}
    torch.save({**lora, f"{base}.base_layer.weight": torch.randn(8, 8)}, tmp_path / "step-1.pt")
    torch.save(lora, tmp_path / "step-2.pt")
    first, second = discover(tmp_path)
    assert (first.state, second.state) == ("complete", "refused")
    assert "adapter" in second.reason


def _save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = torch.Generator().manual_seed(seed)
    torch.save({name: torch.randn(8, 8, generator=made) for name in BLOCKS}, path)


def test_a_layout_beside_a_longer_one_is_left_out_with_a_word(tmp_path: Path) -> None:
    for number, name in enumerate(("checkpoint-100/a.pt", "checkpoint-150/a.pt")):
        _save(tmp_path / name.replace("a.pt", "pytorch_model.bin"), number)
    _save(tmp_path / "checkpoint-200/ckpt.pt", 5)
    found = {one.step: one for one in discover(tmp_path)}
    assert [found[step].state for step in (100, 150, 200)] == ["complete", "complete", "foreign"]
    assert "saved in another way" in found[200].reason


@pytest.mark.parametrize(("name", "states"), [
    ("run_ema/step-2.pt", ["complete"] * 2),
    ("step-2/model_ema.pt", ["complete", "foreign"]),
])  # fmt: skip
def test_names_speak_for_the_file_that_bears_them(
    name: str, states: list[str], tmp_path: Path
) -> None:
    own = tmp_path / name
    _save(own, 1)
    _save(own.parent / ("step-3.pt" if "run_ema" in name else "model.pt"), 2)
    assert sorted(one.state for one in discover(tmp_path)) == sorted(states)
