"""``inspect`` on s3, from a real server over HTTP, told of it by options of the command line."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts.reader_contract import small_bert

from sparsitywatch.cli import main
from sparsitywatch.weights.scope import Scope

pytestmark = pytest.mark.filterwarnings("ignore")  # boto's and aiohttp's own

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    moto_server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A running server with the bucket "runs"."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_checkpoints_in_a_bucket(endpoint: str, tmp_path: Path, capsys) -> None:
    fs = s3fs.S3FileSystem(key="testing", secret="testing", endpoint_url=endpoint)
    fs.mkdir("runs")
    model = small_bert()
    for step in (20, 3):
        model.save_pretrained(tmp_path / str(step))
        (tmp_path / str(step) / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        fs.put(str(tmp_path / str(step)), f"runs/bert/checkpoint-{step}", recursive=True)
    options = [
        word
        for option in (
            "key=testing",
            "secret=testing",
            f"endpoint_url={endpoint}",
            'client_kwargs={"region_name": "eu-central-1"}',
        )
        for word in ("--storage-option", option)
    ]
    assert main(["inspect", "s3://runs/bert", *options, "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["step"], one["step_from"]) for one in listed] == [
        (3, "trainer state"),
        (20, "trainer state"),
    ]
    assert main(["inspect", listed[1]["url"], *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scope_hash"] == Scope.of(model).hash
    weights = fs.size("runs/bert/checkpoint-20/model.safetensors")
    assert told["num_bytes_read"] < weights / 4
    assert main(["inspect", "s3://runs/none", *options]) == 2
    assert "expected checkpoints, found none" in capsys.readouterr().err
