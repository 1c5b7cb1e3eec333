"""What ``inspect`` tells of checkpoints, against what the saving libraries say of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import fsspec
import pytest
import safetensors
import safetensors.torch
import torch
from contracts.reader_contract import small_bert
from fsspec.implementations.memory import MemoryFileSystem

from sparsitywatch.cli import main
from sparsitywatch.series import percent
from sparsitywatch.weights.scope import Scope


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Trainer's two checkpoints, one of torch.save with its step inside, a lone file."""
    folder = tmp_path_factory.mktemp("run")
    model = small_bert()
    for step in (20, 3):
        model.save_pretrained(folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(
            json.dumps({"global_step": step})
        )
    torch.save({"model": model.state_dict(), "iter_num": 30}, folder / "ckpt.pt")
    safetensors.torch.save_file({"w": torch.ones(3, 2)}, folder / "step-40.safetensors")
    return folder


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main(["inspect", *map(str, arguments)]) == status
    return capsys.readouterr().out


def test_every_tensor_is_told_as_the_file_has_it(run: Path, capsys) -> None:
    place = run / "checkpoint-3"
    told = json.loads(inspected(capsys, place, "--json"))
    with safetensors.safe_open(place / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor["name"] for tensor in told["tensors"]} == stored.keys()
    for tensor in told["tensors"]:
        expected = stored[tensor["name"]]
        assert tensor["shape"] == list(expected.shape)
        assert f"torch.{tensor['dtype']}" == str(expected.dtype)
        assert tensor["num_weights"] == expected.numel()
        assert tensor["num_bytes"] == expected.numel() * expected.element_size()
    assert (told["format"], told["step"], told["step_from"]) == (
        "huggingface/safetensors", 3, "trainer state",
    )  # fmt: skip
    assert told["url"] == str(place)


@pytest.mark.parametrize("scope", ["blocks", "layers", "*.query.weight"])
def test_what_is_in_scope_is_what_a_live_watch_takes(scope: str, run: Path, capsys) -> None:
    live = Scope.of(small_bert(), scope if "*" not in scope else [scope])
    told = json.loads(inspected(capsys, run / "ckpt.pt", "--scope", scope, "--json"))
    chosen = [tensor for tensor in told["tensors"] if tensor["in_scope"]]
    assert {tensor["name"] for tensor in chosen} == set(live.names)
    assert told["scope_hash"] == live.hash
    assert told["in_scope"] == {
        "num_tensors": live.summary.num_tensors,
        "num_weights": live.summary.num_weights,
        "num_bytes": 4 * live.summary.num_weights,
    }
    assert all(tensor["reason"] for tensor in told["tensors"])


def test_tied_weights_count_once(run: Path, capsys) -> None:
    told = json.loads(inspected(capsys, run / "ckpt.pt", "--json"))
    (embedding,) = (t for t in told["tensors"] if t["name"].endswith("word_embeddings.weight"))
    assert embedding["aliases"] == ["cls.predictions.decoder.weight"]
    num_weights = sum(p.numel() for p in small_bert().parameters())  # which names ties once
    assert told["total"]["num_weights"] == num_weights
    assert told["total"]["num_bytes"] == 4 * num_weights


def test_the_page_for_people(run: Path, capsys) -> None:
    lines = inspected(capsys, run / "ckpt.pt").splitlines()
    assert lines[0] == str(run / "ckpt.pt")
    assert lines[1] == "torch, step 30 (from its contents)"
    live = Scope.of(small_bert())
    share = live.summary.num_weights / sum(e.num_weights for e in live.ledger)
    assert lines[2].startswith(f"12 of {len(live.ledger)} tensors in scope, ")
    assert f"({percent(share)})" in lines[2]
    assert lines[2].endswith(f"scope {live.hash}")
    (line,) = (line for line in lines if " bert.encoder.layer.0.output.dense.weight " in line)
    assert line.split(maxsplit=7) == [
        "in", "bert.encoder.layer.0.output.dense.weight", "16", "x", "32", "float32", "2,048",
        "weight inside a block",
    ]  # fmt: skip


def test_a_scope_that_selects_nothing_still_shows_the_names(run: Path, capsys) -> None:
    assert main(["inspect", str(run / "ckpt.pt"), "--scope", "no.such.*"]) == 2
    shown = capsys.readouterr()
    assert "bert.encoder.layer.1.attention.self.key.weight" in shown.out
    assert "'no.such.*' matches none of" in shown.err
    assert "read to learn this" in shown.out
    assert main(["inspect", str(run / "ckpt.pt"), "--scope", "no.such.*", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["in_scope"], told["scope_hash"]) == (None, "")
    assert "no.such.*" in told["scope_problem"]
    assert told["total"]["num_weights"] == sum(p.numel() for p in small_bert().parameters())


# ------------------------------------------------------------------ several


def test_a_folder_of_checkpoints_is_listed_in_order(run: Path, capsys) -> None:
    lines = inspected(capsys, run).splitlines()
    assert lines[0] == "4 checkpoints: 4 complete"
    assert [line.split() for line in lines[3:7]] == [
        ["3", "trainer", "state", "huggingface/safetensors", "complete", f"{run}/checkpoint-3"],
        ["20", "trainer", "state", "huggingface/safetensors", "complete", f"{run}/checkpoint-20"],
        ["30", "contents", "torch", "complete", f"{run}/ckpt.pt"],
        ["40", "name", "safetensors", "complete", f"{run}/step-40.safetensors"],
    ]
    told = [json.loads(line) for line in inspected(capsys, run, "--json").splitlines()]
    assert [(one["step"], one["step_from"]) for one in told] == [
        (3, "trainer state"), (20, "trainer state"), (30, "contents"), (40, "name"),
    ]  # fmt: skip


def test_a_folder_shows_what_would_be_one_series(tmp_path: Path, capsys) -> None:
    for step in (1, 2):
        tree = {"net": {"layers.0.fc.weight": torch.ones(3, 2) * step}, "epoch": step}
        torch.save(tree, tmp_path / f"checkpoint-{step}.pt")
    lines = inspected(capsys, tmp_path).splitlines()
    assert lines[5:] == [
        "",
        "1 series, in a replay one run",
        f"  {tmp_path}/checkpoint-{{step}}.pt: 2, epochs 1 to 2",
        "the model is what lies under 'net'",
    ]
    (tmp_path / "seed2").mkdir()
    tree = {"layers.0.fc.weight": torch.ones(3, 2), "epoch": 7}
    torch.save(tree, tmp_path / "seed2" / "checkpoint-7.pt")
    output = inspected(capsys, tmp_path)
    assert "2 series, in a replay a run each: name one of them, or give `--each`" in output
    assert f"  {tmp_path}/seed2/checkpoint-{{step}}.pt: 1, epochs 7 to 7\n" in output
    told = [json.loads(line) for line in inspected(capsys, tmp_path, "--json").splitlines()]
    assert [(one["step"], one["unit"], one["key"]) for one in told] == [
        (1, "epoch", "net"), (2, "epoch", "net"), (7, "epoch", ""),
    ]  # fmt: skip


def test_what_cannot_be_read_is_in_the_list_with_its_reason(tmp_path: Path, capsys) -> None:
    safetensors.torch.save_file({"w": torch.ones(3, 2)}, tmp_path / "step-1.safetensors")
    data = (tmp_path / "step-1.safetensors").read_bytes()
    (tmp_path / "step-2.safetensors").write_bytes(data[:-1])
    (tmp_path / "step-3.pt").write_bytes(b"no checkpoint at all")
    output = inspected(capsys, tmp_path, status=2)
    assert "3 checkpoints: 1 complete, 1 incomplete, 1 refused" in output
    assert "step-2.safetensors, tensor 'w': expected it to end at byte" in output
    assert "expected a file of safetensors or of torch.save" in output


# ------------------------------------------------------------------ one that is no use


def truncated(folder: Path) -> None:
    folder.mkdir()
    safetensors.torch.save_file({"w": torch.ones(3, 2)}, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "It may be half-written"),
        (lambda folder: None, "expected checkpoints, found none"),
        (lambda folder: folder.write_bytes(b"not a checkpoint"), "expected checkpoints, found"),
        (lambda folder: folder.mkdir(), "expected checkpoints, found none"),
    ],
    ids=["truncated", "absent", "something else", "empty"],
)
def test_one_line_says_what_is_wrong(make, message: str, tmp_path: Path, capsys) -> None:
    place = tmp_path / "run"
    make(place)
    status = main(["inspect", str(place)])
    shown = capsys.readouterr()
    if place.is_file():  # a single file is taken at its word, and refused for what it holds
        message = "expected a file of safetensors or of torch.save"
    assert (status, shown.out) == (2, "")
    assert message in shown.err
    assert str(place) in shown.err
    assert shown.err.count("\n") == 1


# ------------------------------------------------------------------ any storage


class CountingFileSystem(MemoryFileSystem):
    """One file of 64 GB that is not there, and how much of it was asked for."""

    protocol = "counting"
    cachable = False
    start = b""
    size = 64_000_000_000
    fetched: list[tuple[int, int]] = []  # noqa: RUF012
    options: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, **options: object) -> None:
        super().__init__()
        type(self).options = options

    def info(self, path: str, **_: object) -> dict[str, object]:
        if not path.endswith("step-5.safetensors"):
            raise FileNotFoundError(path)
        return {"name": path, "size": self.size, "type": "file"}

    def isdir(self, path: str) -> bool:
        return False

    def exists(self, path: str, **_: object) -> bool:
        return path.endswith("step-5.safetensors")

    def cat_file(self, path: str, start: int = 0, end: int | None = None, **_: object) -> bytes:
        assert end is not None, "a file was asked for whole"
        self.fetched.append((start, end))
        return self.start[start:end].ljust(end - start, b"\0")


def test_of_a_large_file_only_the_description_is_fetched(capsys) -> None:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    num_layers, rows = 8, 500_000_000
    tensors = {
        f"model.layers.{i}.mlp.weight": {
            "dtype": "BF16",
            "shape": [rows, 8],
            "data_offsets": [i * rows * 16, (i + 1) * rows * 16],
        }
        for i in range(num_layers)
    }
    header = json.dumps(tensors).encode()
    CountingFileSystem.start = struct.pack("<Q", len(header)) + header
    CountingFileSystem.size = len(CountingFileSystem.start) + num_layers * rows * 16
    CountingFileSystem.fetched.clear()
    options = ["--storage-option", "anon=true", "--storage-option", "endpoint_url=http://x:9"]
    told = json.loads(inspected(capsys, "counting://run/step-5.safetensors", *options, "--json"))
    assert CountingFileSystem.options == {"anon": True, "endpoint_url": "http://x:9"}
    assert told["total"] == {
        "num_tensors": 8, "num_weights": 8 * 8 * rows, "num_bytes": 64_000_000_000,
    }  # fmt: skip
    assert (told["step"], told["step_from"]) == (5, "name")
    assert max(end for _, end in CountingFileSystem.fetched) <= len(CountingFileSystem.start)
    # discovered, then opened: the description is fetched twice at most
    fetched = sum(end - start for start, end in CountingFileSystem.fetched)
    assert told["num_bytes_read"] <= fetched <= 2 * (len(CountingFileSystem.start) + 14)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hunter2"], "of the form KEY=VALUE"),
        (["=hunter2"], "of the form KEY=VALUE"),
        (["secret=hunter2", "secret=hunter2"], "`--storage-option` secret once"),
    ],
)
def test_a_mistaken_storage_option_is_told_without_its_value(
    given: list[str], message: str, run: Path, capsys
) -> None:
    options = [word for value in given for word in ("--storage-option", value)]
    assert main(["inspect", str(run), *options]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "hunter2" not in shown.err + shown.out


def test_a_name_cannot_command_the_terminal(tmp_path: Path, capsys) -> None:
    path = tmp_path / "step-1.safetensors"
    names = ["blocks.0.\x1b[2J\x07\n.weight", "blocks.0.größe.weight"]
    safetensors.torch.save_file({name: torch.ones(3, 2) for name in names}, path)
    output = inspected(capsys, path)
    assert "blocks.0.\\x1b[2J\\x07\\n.weight" in output
    assert "blocks.0.größe.weight" in output
    assert all(c.isprintable() or c == "\n" for c in output)
