"""No secret of a URL, and nothing that a terminal obeys, in what a run writes or prints."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import safetensors.torch
import torch
from contracts.event_readers import plugin_accumulator, tags_of
from contracts.page import inside_of, parse
from tensorboard.util import tensor_util
from torch import nn

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.records import LedgerEntry
from sparsitywatch.sinks.jsonl import read_manifest, read_records
from sparsitywatch.sinks.tensorboard import scope_table

SECRET = "pl4ntedS3cr3tpl4ntedS3cr3t"
KEYS = ("token", "X-Amz-Credential", "X-Amz-Signature", "sig")
QUERY = "&".join(["sv=2023-01-01", *(f"{key}={SECRET}%2Fus" for key in KEYS)])
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
NAMES = (
    f"block.0{ESCAPE}.weight",
    "block.1\u202egnp.weight",
    "block.2|`<script>alert(1)</script>`|*x*_y_&amp;.weight",
    "block.3\r\nsparsitywatch: all is well.weight",
    "block.4$\\frac{1}{$.weight",
)


class Handler(BaseHTTPRequestHandler):
    """Files to who has the password, by ranges; nobody else learns that there are any."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        login = base64.b64encode(f"me:{SECRET}".encode()).decode()
        is_let_in = self.headers["Authorization"] == f"Basic {login}" and unquote(query) == unquote(
            QUERY
        )
        data = self.files.get(path) if is_let_in else None
        start, end = 0, 0 if data is None else len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if asked:
            start, end = int(asked[1]), min(end, int(asked[2] or end) + 1)
        self.send_response(403 if data is None else 206 if asked else 200, f"no {self.path}")
        if data is not None:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if data is not None and self.command == "GET":
            self.wfile.write(data[start:end])

    do_HEAD = do_GET  # noqa: N815 the name is the library's

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(files: dict[str, bytes]) -> Iterator[str]:
    handler = type("Handler", (Handler,), {"files": files})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://me:{SECRET}@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def checkpoint(step: int) -> bytes:
    generator = torch.Generator().manual_seed(step)
    tensors = {name: torch.randn(8, 8, generator=generator) for name in NAMES}
    if step >= 170:
        tensors[NAMES[0]] *= 1e-4
    return safetensors.torch.save(tensors)


def assert_clean(text: str) -> None:
    assert SECRET not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def assert_no_secret_below(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        if path.suffix in (".json", ".jsonl", ".html"):
            assert b"\x1b" not in path.read_bytes(), path


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """A replay from a storage that needs secrets, one file of which is not there; what it said."""
    logdir = tmp_path_factory.mktemp("replayed")
    stream = io.StringIO()
    said = logging.StreamHandler(stream)
    logging.getLogger("sparsitywatch").addHandler(said)
    steps = range(10, 250, 10)
    files = {f"/run/checkpoint-{step}/model.safetensors": checkpoint(step) for step in steps}
    files["/run/checkpoint-300/model.safetensors"] = b""
    with served(files) as root:
        urls = [f"{root}{path}?{QUERY}" for path in files]
        urls[-1] = f"simplecache::{urls[-1]}"
        replay = {
            "scope": ["block.*"],
            "storage_options": {"headers": {"X-Token": f"Bearer {SECRET}"}},
        }
        with pytest.raises(sw.CheckpointError, match="Cannot") as refused:
            sw.replay(f"{urls[0]}x", logdir=logdir, **replay)
        done, again = (
            sw.replay(
                urls,
                logdir=logdir,
                detectors={"near_zero/initial_0.1": sw.detectors.AbruptChange(0.02)},
                **replay,
            )
            for _ in range(2)
        )
    logging.getLogger("sparsitywatch").removeHandler(said)
    assert [record.step for record in done.records if record.valid] == list(steps)
    assert [again.num_snapshots, len(again.records)] == [0, len(done.records)]
    assert done.events
    reasons = [one.reason for one in (*done.failures, *done.left_out)]
    return (
        logdir,
        stream.getvalue(),
        [*reasons, str(refused.value), repr(done), repr(done.failures)],
    )


@pytest.mark.slow
def test_no_secret_of_a_url_is_in_what_a_replay_writes_and_says(
    replayed: tuple[Path, str, list[str]],
) -> None:
    logdir, said, told = replayed
    assert_no_secret_below(logdir)
    assert_clean(said)
    assert_clean("\n".join(told))
    assert "Near-zero weights (|w| ≤ 0.1 × first rms) jumped" in said
    assert any("checkpoint-300" in reason for reason in told)
    info = read_manifest(logdir / "sparsitywatch")
    assert re.fullmatch(
        r"http://127.0.0.1:\d+/run/checkpoint-10/model.safetensors\?\.\.\.", info.replayed_from[0]
    )
    assert info.replayed_from[-1].startswith("simplecache::http://127.0.0.1:")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["summary", "scope", "plot", "report"])
def test_no_escape_and_no_secret_is_printed_of_a_run(
    replayed: tuple[Path, str, list[str]], command: str, tmp_path: Path, capsys
) -> None:
    suffix = {"plot": ".png", "report": ".html"}.get(command)
    output = [] if suffix is None else ["-o", str(tmp_path / f"run{suffix}")]
    assert main([command, str(replayed[0]), *output]) == 0
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    if command == "scope":
        assert "block.0\\x1b]0;owned\\x07\\x1b[2J.weight" in printed.out
        assert "block.1\\u202egnp.weight" in printed.out
    if command == "report":
        page = (tmp_path / "run.html").read_text()
        assert_clean(page + json.dumps(inside_of(page)["page"]))
        assert [script.get("id") for script in parse(page).all("script")] == ["data", None, None]


@pytest.mark.slow
def test_inspect_and_replay_print_no_secret_and_no_escape(tmp_path: Path, capsys) -> None:
    files = {f"/a/checkpoint-{step}/model.safetensors": checkpoint(step) for step in (10, 20)}
    files["/a/checkpoint-30/model.safetensors"] = b""
    with served(files) as root:
        urls = [f"{root}{path}?{QUERY}" for path in files]
        missing = f"{root}/a/checkpoint-40/model.safetensors?{QUERY}"
        assert main(["inspect", urls[0]]) == 0
        assert main(["inspect", urls[0], "--json"]) == 0
        assert main(["inspect", *urls]) == 2
        assert main(["inspect", *urls, "--json"]) == 2
        assert main(["inspect", missing]) == 2
        logdir = ["--logdir", str(tmp_path), "--scope", "block.*"]
        assert main(["replay", *urls, *logdir]) == 2
        assert main(["replay", *urls, *logdir, "--json"]) == 2
        assert main(["replay", f"{root}/nothing/*?{QUERY}", *logdir]) == 2
    printed = capsys.readouterr()
    assert_clean(printed.out + printed.err)
    assert "checkpoint-30/model.safetensors?..." in printed.out + printed.err
    assert "checkpoint-40/model.safetensors?..." in printed.err
    assert_no_secret_below(tmp_path)


class Hostile(nn.Module):
    """Blocks whose names a terminal would obey."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = [f"{i}{name}" for i, name in enumerate((ESCAPE, "\u202egnp", "|`<b>`|\r\nx"))]
        self.block = nn.ModuleDict({name: nn.Linear(8, 8) for name in self.names})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = x + self.block[name](x)
        return x


@pytest.mark.slow
def test_no_secret_and_no_escape_is_in_what_a_live_watch_writes_and_says(
    tmp_path: Path, caplog
) -> None:
    model = Hostile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    calls = iter(range(10**6))

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if next(calls) > 8:
            raise OSError(f"{ESCAPE} cannot reach https://me:{SECRET}@host/x?sig={SECRET}")
        return model(batch).square().mean(dim=1)

    proxy = sw.Proxy([torch.randn(6, 8)], value, name=f"{ESCAPE}loss")
    with sw.watch(
        model, optimizer, proxy=proxy, every=1, logdir=tmp_path, max_overhead=None,
        scope=["block.*weight"], levels=[0.5],
    ) as watcher:  # fmt: skip
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
    records = read_records(tmp_path / "sparsitywatch")
    assert any("cannot reach https://host/x?..." in record.reason for record in records)
    assert watcher.off
    assert "cannot reach https://host/x?..." in caplog.text
    assert_clean(caplog.text + repr(watcher) + watcher.off)
    assert_no_secret_below(tmp_path)


@pytest.mark.slow
def test_a_name_of_whatever_characters_is_one_cell_of_tensorboards_page(
    replayed: tuple[Path, str, list[str]],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own
        from tensorboard.plugin_util import markdown_to_safe_html
    reader = plugin_accumulator(replayed[0] / "sparsitywatch")
    for tag in tags_of(reader, "text"):
        for event in reader.Tensors(tag):
            assert_clean(tensor_util.make_ndarray(event.tensor_proto).item().decode())
    ledger = [
        LedgerEntry(name=name, shape=(8, 8), num_weights=64, in_scope=True, reason="a|<b>_x_ *y*")
        for name in NAMES
    ]
    page = parse(markdown_to_safe_html(scope_table(ledger)))
    rows = [[cell.text().strip() for cell in row.all("td")] for row in page.all("tr")[1:]]
    assert [len(row) for row in rows] == [5] * len(NAMES)
    assert [row[4] for row in rows] == ["a|<b>_x_ *y*"] * len(NAMES)
    assert rows[2][1] == NAMES[2]
    assert rows[0][1] == "block.0\\x1b]0;owned\\x07\\x1b[2J.weight"
    assert not page.all("script")


def test_a_webhook_that_cannot_be_one_is_not_repeated() -> None:
    for url in (f"hooks.slack.com/services/T0/{SECRET}", f"ftp://host/{SECRET}",
                f"https://hooks.slack.com/services/ {SECRET}", [SECRET]):  # fmt: skip
        with pytest.raises(sw.ConfigurationError, match="Expected `url`") as refused:
            sw.actions.Webhook(url)
        assert SECRET not in str(refused.value)
