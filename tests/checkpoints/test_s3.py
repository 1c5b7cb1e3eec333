"""Checkpoints on s3, from a real server over HTTP that the test starts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from contracts.reader_contract import same_bits, small_bert
from contracts.s3_server import s3_server

from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.cli import main
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.scope import Scope

pytestmark = pytest.mark.filterwarnings("ignore")  # boto's and aiohttp's own

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, object]]:
    """Storage options of a running server with the bucket "runs"."""
    with s3_server("runs") as options:
        yield options


@pytest.mark.slow
def test_a_run_on_s3(options, tmp_path: Path, capsys) -> None:
    fs = s3fs.S3FileSystem(**options)
    model = small_bert()
    for step in (20, 3):
        folder = tmp_path / f"checkpoint-{step}"
        model.save_pretrained(folder, max_shard_size="20KB")
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        fs.put(str(folder), f"runs/bert/checkpoint-{step}", recursive=True)
    torch.save({"model": model.state_dict(), "iter_num": 30}, tmp_path / "ckpt.pt")
    fs.put(str(tmp_path / "ckpt.pt"), "runs/bert/ckpt.pt")
    for place in ("s3://runs/bert", ["s3://runs/bert/checkpoint-*", "s3://runs/bert/ckpt.pt"]):
        found = discover(place, options)
        assert [(f.step, f.state, f.step_from) for f in found] == [
            (3, "complete", "trainer state"),
            (20, "complete", "trainer state"),
            (30, "complete", "contents"),
        ]
    expected = model.state_dict()
    for one in found:
        assert one.url.startswith("s3://runs/bert/")
        with open_checkpoint(one.url, options) as checkpoint:
            assert all(same_bits(t, expected[n]) for n, t in checkpoint.tensors())
    told = dict(options, client_kwargs=json.dumps(options["client_kwargs"]))
    given = [word for key in ("key", "secret", "endpoint_url", "client_kwargs")
             for word in ("--storage-option", f"{key}={told[key]}")]  # fmt: skip
    assert main(["inspect", "s3://runs/bert", *given, "--json"]) == 0
    listed = [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()]
    assert listed == [3, 20, 30]
    assert main(["inspect", found[1].url, *given, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["scope_hash"] == Scope.of(model).hash


def test_a_new_checkpoint_is_seen(options) -> None:
    fs = s3fs.S3FileSystem(**options)
    for count, step in enumerate((1, 2), 1):
        fs.pipe_file(f"runs/live/checkpoint-{step}/model.safetensors", b"")
        assert len(discover("s3://runs/live", options)) == count


def test_what_is_not_there_or_not_allowed_is_one_line(options) -> None:
    with pytest.raises(CheckpointError, match=r"s3://runs/none\.pt: expected a file, found none"):
        open_checkpoint("s3://runs/none.pt", options)
    with pytest.raises(CheckpointError, match="Cannot list s3://no-such-bucket/run"):
        discover("s3://no-such-bucket/run", options)
