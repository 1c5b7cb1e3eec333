"""Where checkpoints may lie: behind links, in chains of storages, on servers that fail at times."""

from __future__ import annotations

import errno
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import fsspec
import pytest
import safetensors.torch
import torch
from contracts.reader_contract import same_bits
from fsspec.implementations.memory import MemoryFileSystem

import sparsitywatch as sw
from sparsitywatch.checkpoints import storage
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.storage import cause_of, url_at
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

WEIGHTS = {f"layers.{i}.weight": torch.randn(8, 8, generator=torch.Generator().manual_seed(i))
           for i in range(3)}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints in folders and one in a file."""
    for step in (5, 20):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        safetensors.torch.save_file(WEIGHTS, str(folder / "model.safetensors"))
    torch.save(WEIGHTS, tmp_path / "run" / "step-30.pt")
    return tmp_path / "run"


# ------------------------------------------------------------------ chains


@pytest.fixture
def archive(run: Path) -> Path:
    path = run.parent / "run.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(run.rglob("*.*")):
            archive.write(file, file.relative_to(run.parent))
    return path


@pytest.mark.parametrize(
    "form",
    [
        "zip://::file://{0}",
        "zip://run::file://{0}",
        "zip://run/*::file://{0}",
        "simplecache::file://{1}",
        "simplecache::memory://chained/run",
        "zip://run::simplecache::file://{0}",
        "filecache::memory://chained/run",
    ],
)
def test_a_chain_stays_a_chain(form: str, archive: Path, run: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(run), "/chained/run", recursive=True)
    try:
        url = form.format(archive, run)
        options = {"simplecache": {"cache_storage": str(tmp_path / "cache")},
                   "filecache": {"cache_storage": str(tmp_path / "files")}}  # fmt: skip
        options = {name: given for name, given in options.items() if name in url}
        found = discover(url, options)
        assert [(f.step, f.state) for f in found] == [
            (5, "complete"), (20, "complete"), (30, "complete"),
        ]  # fmt: skip
        assert all(f.url.count("::") == url.count("::") for f in found)
        for one in found:
            with open_checkpoint(one.url, options) as checkpoint:
                assert all(same_bits(t, WEIGHTS[n]) for n, t in checkpoint.tensors())
        series = [one.url for one in found if "checkpoint-" in one.url]
        replayed = sw.replay(series, logdir=None, storage_options=options)
        assert [(r.step, r.valid) for r in replayed.records] == [(5, True), (20, True)]
    finally:
        memory.rm("/chained", recursive=True)


@pytest.mark.parametrize(
    ("url", "path", "place", "expected"),
    [
        ("ftp://me@host/run", "/run", "/run/step-5.pt", "ftp://me@host/run/step-5.pt"),
        ("github://org:repo@sha/run", "run", "run/a.pt", "github://org:repo@sha/run/a.pt"),
        ("github://org:repo@sha/", "", "a.pt", "github://org:repo@sha/a.pt"),
        ("hf://org/model@step*", "org/model@step*", "org/model@step5", "hf://org/model@step5"),
        ("zip://*.pt::s3://b/x.zip", "*.pt", "a.pt", "zip://a.pt::s3://b/x.zip"),
        ("simplecache::s3://b/run", "b/run", "b/run/a.pt", "simplecache::s3://b/run/a.pt"),
    ],
)
def test_the_url_of_another_place(url: str, path: str, place: str, expected: str) -> None:
    assert url_at(url, fsspec.filesystem("memory"), path, place) == expected


# ------------------------------------------------------------------ links and names


def test_a_linked_checkpoint_is_found(run: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "checkpoint-5").symlink_to(run / "checkpoint-5")
    (links / "all").symlink_to(run)
    found = discover(links)
    assert [(Path(f.url).relative_to(links).as_posix(), f.state) for f in found] == [
        ("all/checkpoint-5", "complete"),
        ("checkpoint-5", "duplicate"),
        ("all/checkpoint-20", "complete"),
        ("all/step-30.pt", "complete"),
    ]


def test_loops_of_links_end(run: Path) -> None:
    (run / "again").symlink_to(run)
    (run / "checkpoint-5" / "up").symlink_to(run)
    other = run.parent / "other"
    other.mkdir()
    (other / "back").symlink_to(run)
    (run / "there").symlink_to(other)
    (run / "gone").symlink_to(run / "nothing")
    assert [(f.step, f.state) for f in discover(run)] == [
        (5, "complete"), (20, "complete"), (30, "complete"),
    ]  # fmt: skip


def test_a_run_may_be_called_tmp(run: Path) -> None:
    moved = run.rename(run.parent / "tmp_exp")
    for place in (moved, moved.parent):
        assert {f.state for f in discover(place)} == {"complete"}


# ------------------------------------------------------------------ storages that fail at times


class FlakyFileSystem(MemoryFileSystem):
    """A storage that fails so many times before it answers."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012 as its base class has it
    pseudo_dirs = [""]  # noqa: RUF012
    failures: list[BaseException] = []  # noqa: RUF012
    names = ("cat_file", "info", "ls", "isdir", "exists")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))


def _failing(name: str):
    def ask(self, *args, **options):
        if type(self).failures:
            raise type(self).failures.pop()
        return getattr(MemoryFileSystem, name)(self, *args, **options)

    return ask


@pytest.fixture
def flaky(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Pauses that were made; the run lies at flaky://run."""
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    fs = fsspec.filesystem("flaky")
    fs.put(str(run), "/run", recursive=True)
    for name in FlakyFileSystem.names:
        monkeypatch.setattr(FlakyFileSystem, name, _failing(name), raising=False)
    yield pauses
    FlakyFileSystem.failures.clear()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def answer(status: int) -> Exception:
    request = SimpleNamespace(real_url="http://host/a.pt")
    return aiohttp.ClientResponseError(request, (), status=status)  # type: ignore[arg-type]


PASSING = [
    TimeoutError("slow"), ConnectionResetError("reset"),
    *map(answer, (408, 425, 429, 500, 502, 503, 504)),
    aiohttp.ServerDisconnectedError(), OSError(errno.EBUSY, "slow down"),
]  # fmt: skip
STAYING = [
    answer(404),
    answer(403),
    PermissionError("no"),
    FileNotFoundError("no"),
    ValueError("x"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_asked_again(error: Exception, flaky: list[float]) -> None:
    FlakyFileSystem.failures[:] = [error] * 3
    found = discover("flaky://run")
    assert [f.state for f in found] == ["complete"] * 3
    assert flaky == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("error", STAYING, ids=repr)
def test_what_stays_is_not_asked_again(error: Exception, flaky: list[float]) -> None:
    with open_checkpoint("flaky://run/step-30.pt") as checkpoint:
        FlakyFileSystem.failures[:] = [error]
        with pytest.raises(CheckpointError):
            checkpoint.read("layers.0.weight")
    assert flaky == []


def test_what_never_passes_is_told_and_may_be_tried_later(flaky: list[float]) -> None:
    with open_checkpoint("flaky://run/step-30.pt") as checkpoint:
        FlakyFileSystem.failures[:] = [answer(503)] * 50
        with pytest.raises(IncompleteCheckpointError, match="also when asked 4 more times"):
            checkpoint.read("layers.0.weight")
    assert flaky == [0.5, 1.0, 2.0, 4.0]


def test_a_cause_behind_a_missing_file_is_seen() -> None:
    missing = FileNotFoundError("http://host/a.pt")
    missing.__cause__ = answer(503)  # as fsspec tells every failure of a server
    assert cause_of(missing)[1]
    missing.__cause__ = answer(404)
    assert not cause_of(missing)[1]


# ------------------------------------------------------------------ http


class _Handler(BaseHTTPRequestHandler):
    """Serves one file, with ranges or without."""

    protocol_version = "HTTP/1.1"
    data = b""
    has_ranges = True
    kind = ""
    num_sent = 0

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._send(200, b"", str(len(self.data)))

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.has_ranges:
            type(self).num_sent += len(self.data)
            self._send(200, self.data, str(len(self.data)))
        else:
            part = self.data[int(asked[1]) : int(asked[2]) + 1]
            type(self).num_sent += len(part)
            self._send(206, part, str(len(part)))

    def _send(self, status: int, body: bytes, length: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", length)
        if self.kind:
            self.send_header("Content-Type", self.kind)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, type[_Handler]]]:
    """A URL of a checkpoint on a server."""

    class Handler(_Handler):
        data = safetensors.torch.save({**WEIGHTS, "embed_tokens.weight": torch.zeros(500, 8)})
        has_ranges = request.param

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/step-5.safetensors", Handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("kind", ["", "application/octet-stream"])
def test_what_is_no_page_is_never_fetched_to_see_whether_it_is(served, kind: str) -> None:
    url, handler = served
    handler.kind = kind
    assert (storage.Location.of(url).kind(), handler.num_sent) == ("file", 0)


def test_a_page_of_links_is_a_folder(served) -> None:
    url, handler = served
    handler.data, handler.kind = b'<a href="step-5.safetensors">step-5</a>', "text/html"
    folder = storage.Location.of(url.rpartition("/")[0])
    assert (folder.kind(), folder.names()) == ("directory", ["step-5.safetensors"])


def test_a_server_without_ranges_is_named(served, tmp_path: Path) -> None:
    url, handler = served
    replayed = sw.replay(url, logdir=None)
    if handler.has_ranges:
        assert [(r.step, r.valid) for r in replayed.records] == [(5, True)]
        assert handler.num_sent < len(handler.data) / 2
        return
    assert replayed.records == []
    (failure,) = replayed.failures
    assert "the server sends files as a whole and does not know ranges" in failure.reason
    options = {"simplecache": {"cache_storage": str(tmp_path)}}
    (record,) = sw.replay(f"simplecache::{url}", logdir=None, storage_options=options).records
    assert (record.step, record.valid) == (5, True)
