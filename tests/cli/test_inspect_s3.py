"""``inspect`` on s3, from a real server over HTTP, told of it by options of the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from contracts.reader_contract import small_bert
from contracts.s3_server import s3_server

from sparsitywatch.cli import main
from sparsitywatch.weights.scope import Scope

pytestmark = pytest.mark.filterwarnings("ignore")  # boto's and aiohttp's own

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")


def test_checkpoints_in_a_bucket(tmp_path: Path, capsys) -> None:
    with s3_server("inspected") as storage:
        inspect_bucket(storage, tmp_path, capsys)


def inspect_bucket(storage: dict[str, Any], tmp_path: Path, capsys) -> None:
    capsys.readouterr()  # the server has said that it starts
    fs = s3fs.S3FileSystem(**storage)
    model = small_bert()
    for step in (20, 3):
        model.save_pretrained(tmp_path / str(step))
        (tmp_path / str(step) / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        fs.put(str(tmp_path / str(step)), f"inspected/bert/checkpoint-{step}", recursive=True)
    options = [
        word
        for option in (
            f"key={storage['key']}",
            f"secret={storage['secret']}",
            f"endpoint_url={storage['endpoint_url']}",
            f"client_kwargs={json.dumps(storage['client_kwargs'])}",
        )
        for word in ("--storage-option", option)
    ]
    assert main(["inspect", "s3://inspected/bert", *options, "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["step"], one["step_from"]) for one in listed] == [
        (3, "trainer state"),
        (20, "trainer state"),
    ]
    assert main(["inspect", listed[1]["url"], *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scope_hash"] == Scope.of(model).hash
    weights = fs.size("inspected/bert/checkpoint-20/model.safetensors")
    assert told["num_bytes_read"] < weights / 4
    assert main(["inspect", "s3://inspected/none", *options]) == 2
    assert "expected checkpoints, found none" in capsys.readouterr().err
