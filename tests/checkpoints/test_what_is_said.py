"""Why something cannot be read is said as what it is, with what to do about it."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from contracts.hub_server import hub_server
from contracts.reader_contract import same_bits
from contracts.stored_run import detectors
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import sparsitywatch as sw
from sparsitywatch.checkpoints import storage
from sparsitywatch.checkpoints.discovery import describe, discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.storage import NoAccessError
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

WEIGHTS = {f"layers.{i}.{part}.weight": torch.full((8, 8), i + 1.0)
           for i in range(2) for part in ("attention", "mlp")}  # fmt: skip

# ------------------------------------------------------------------ storages that refuse


@pytest.fixture
def server() -> Iterator[tuple[str, Callable[[int], None]]]:
    """A file over HTTP, and what lets its server answer with a status."""
    data = safetensors.torch.save(WEIGHTS)
    answers = {"status": 200}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            body = data if answers["status"] == 200 else b""
            self.send_response(answers["status"])
            if answers["status"] == 200 and "no_length" in answers:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            self.close_connection = "no_length" in answers

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}/step-5.safetensors", answers
    running.shutdown()
    running.server_close()
    thread.join()
    HTTPFileSystem.clear_instance_cache()  # with its connections
    gc.collect()


@pytest.mark.part(3)
@pytest.mark.parametrize("ask", [open_checkpoint, discover], ids=["open", "discover"])
@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, NoAccessError, r"the server asks who you are \(401\)"),
        (403, NoAccessError, r"permission denied \(403\)"),
        (404, IncompleteCheckpointError, "found none"),
        (429, IncompleteCheckpointError, r"limits how often it is asked \(429\)"),
        (503, IncompleteCheckpointError, "out of order, or out of reach"),
    ],
)
def test_what_a_server_refuses_is_said(status, error, words, ask, server, monkeypatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    url, answers = server
    answers["status"] = status
    with pytest.raises(error, match=words) as caught:
        ask(url)
    assert type(caught.value) is error
    assert ("found none" in str(caught.value)) == (status == 404)


def test_a_sidecar_does_not_wait_for_what_is_refused(server) -> None:
    url, answers = server
    answers["status"] = 403
    asked = iter([False])
    with pytest.raises(CheckpointError, match="permission denied"):
        sw.replay(url, logdir=None, follow=True, poll_s=0.01, until=lambda: next(asked))


def test_a_cache_in_front_helps_where_it_is_advised(server, tmp_path: Path) -> None:
    url, answers = server
    answers["no_length"] = True
    with pytest.raises(CheckpointError, match="put simplecache:: in front"):
        open_checkpoint(url)
    options = {"simplecache": {"cache_storage": str(tmp_path)}}
    with open_checkpoint(f"simplecache::{url}", options) as checkpoint:
        assert all(same_bits(t, WEIGHTS[n]) for n, t in checkpoint.tensors())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", ["closed", "closed/*.pt", "closed/step-1.pt"])
def test_a_folder_that_is_closed_is_not_empty(place: str, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    torch.save(WEIGHTS, tmp_path / "closed" / "step-1.pt")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(NoAccessError, match="permission denied"):
            discover(tmp_path / place)
    finally:
        (tmp_path / "closed").chmod(0o700)


REFUSED = {
    "org/gated": (403, "GatedRepo"),
    "org/private": (401, "RepoNotFound"),
    "org/gone": (404, "RepoNotFound"),
    "org/forbidden": (403, "Forbidden"),
}
CLIENT = """
import json, sys
from sparsitywatch.checkpoints import discovery, storage
storage._PAUSES_S = (0.0,) * 4
said = {}
for place in sys.argv[1:]:
    try:
        said[place] = [type(e).__name__ for e in discovery.discover(place)]
    except Exception as error:
        said[place] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


@pytest.mark.slow
def test_what_a_hub_refuses_is_said(tmp_path: Path) -> None:
    places = [f"hf://{name}{rest}" for name in (*REFUSED, "org/never")
              for rest in ("", "@step5", "@step*", "/*.safetensors")]  # fmt: skip
    with hub_server({"org/open": {"main": {"model.safetensors": b""}}}) as hub:
        hub.refused.update(REFUSED)
        hub.num_busy = 2  # asked again
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, *places],
            capture_output=True, text=True, timeout=300, env=hub.environment(tmp_path), check=False,
        )  # fmt: skip
    assert (done.returncode, hub.num_busy) == (0, 0), done.stderr
    words = {"org/gated": "the repository is gated", "org/forbidden": "permission denied (403)"}
    for place, (kind, reason) in json.loads(done.stdout).items():
        name = place.removeprefix("hf://").split("@")[0].removesuffix("/*.safetensors")
        expected = words.get(name, "there is no repository of this name, or it is private")
        assert kind == "NoAccessError", (place, reason)
        assert expected in reason, place


# ------------------------------------------------------------------ what is no file of weights


@pytest.mark.parametrize("name", ["step-1.safetensors", "step-1.pt", "f/model.safetensors",
                                  "f/model.safetensors.index.json", "f/.metadata"])  # fmt: skip
@pytest.mark.parametrize(
    ("start", "how"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
     (b"/annex/objects/SHA256E-s9--00.pt\n", "git annex get")],
)  # fmt: skip
def test_a_pointer_is_no_weights(name: str, start: bytes, how: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(start)
    (found,) = discover(tmp_path)
    assert found.state == "refused"
    assert f"Run `{how}` there" in found.reason


@pytest.mark.parametrize("name", ["step-1.pt", "f/model.safetensors", "f/trainer_state.json"])
def test_a_pipe_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if "trainer" in name:
        safetensors.torch.save_file(WEIGHTS, tmp_path / "f" / "model.safetensors")
    os.mkfifo(tmp_path / name)
    (found,) = discover(tmp_path)
    assert found.state == "refused"
    assert "expected a file, got a pipe" in found.reason


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_is_written_instead_of_an_archive_works(packing: int, tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "step-7.pt")
    with zipfile.ZipFile(tmp_path / "run.zip", "w", packing) as archive:
        archive.write(tmp_path / "step-7.pt", "run/step-7.pt")
    with tarfile.open(tmp_path / "run.tar", "w") as tar:
        tar.add(tmp_path / "step-7.pt", "run/step-7.pt")
    for kind in ("zip", "tar"):
        with pytest.raises(CheckpointError, match="Name what is inside of it") as caught:
            open_checkpoint(tmp_path / f"run.{kind}")
        place = f"{kind}://::{tmp_path}/run.{kind}"
        assert place.partition("::")[0] + "::" in str(caught.value)
        (found,) = discover(place)
        assert (found.step, found.state) == (7, "complete")


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.ckpt-1000.index", "tf.train.load_checkpoint"),
     ("variables.data-00000-of-00001", "tf.train.load_checkpoint"),
     ("run.zip", "zip://::run.zip"), ("run.tar", "tar://::run.tar"), ("run.tar.gz", "Unpack it")],
)  # fmt: skip
def test_a_folder_of_something_else_says_what_to_write(name, words, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(2000))
    with pytest.raises(CheckpointError, match="found none") as caught:
        discover(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("end", ["safetensors", "bin"])
@pytest.mark.parametrize("stem", ["model", "pytorch_model", "model.fp16", "weights"])
def test_one_shard_of_one_is_the_model(stem: str, end: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    file = folder / f"{stem}-00001-of-00001.{end}"
    safetensors.torch.save_file(WEIGHTS, file) if end != "bin" else torch.save(WEIGHTS, file)
    (found,) = discover(tmp_path)
    assert (found.step, found.state) == (5, "complete")
    with open_checkpoint(found.url) as checkpoint:
        assert all(same_bits(t, WEIGHTS[n]) for n, t in checkpoint.tensors())
    file.rename(folder / f"{stem}-00001-of-00002.{end}")
    (found,) = discover(tmp_path)
    assert found.state == "incomplete"


# ------------------------------------------------------------------ classes of tensors


class Codes(torch.Tensor):
    """As torchao's: a tensor without bytes of its own, that computes its numbers from others."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, codes: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return args[0] if "detach" in str(func) else NotImplemented


class OwnTensor:
    """As those of fp8 that have a method to be read with."""

    def __reduce__(self):
        return OwnTensor.made, (torch.ones(8, 8), torch.Size([8, 8]))

    @classmethod
    def made(cls, *_: object) -> OwnTensor:
        return cls()


KINDS = {
    "class": lambda: Codes(torch.ones(8, 8, dtype=torch.int8)),
    "parameter": lambda: torch.nn.Parameter(Codes(torch.ones(8, 8)), requires_grad=False),
    "method": OwnTensor,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_tensors_is_refused_only_in_scope(kind: str, tmp_path: Path) -> None:
    name = "OwnTensor" if kind == "method" else "Codes"
    torch.save({**WEIGHTS, "embed_tokens.weight": KINDS[kind]()}, tmp_path / "step-1.pt")
    (record,) = sw.replay(tmp_path / "step-1.pt", logdir=None).records
    assert (record.valid, sum(layer.num_weights for layer in record.layers)) == (True, 256)
    (found,) = discover(tmp_path / "step-1.pt")
    (told,) = [t for t in describe(found)["tensors"] if t["name"] == "embed_tokens.weight"]
    assert (told["dtype"], tuple(told["shape"])) == (name, (8, 8))
    torch.save({**WEIGHTS, "layers.0.mlp.weight": KINDS[kind]()}, tmp_path / "step-1.pt")
    (failure,) = sw.replay(tmp_path / "step-1.pt", logdir=None).failures
    assert "tensor 'layers.0.mlp.weight'" in failure.reason
    assert name in failure.reason
    assert "save what its dequantize() gives" in failure.reason


def test_a_class_that_only_has_a_name_is_read(tmp_path: Path) -> None:
    class Named(torch.Tensor):
        pass

    globals()["Named"], Named.__qualname__ = Named, "Named"
    saved = {n: t.as_subclass(Named) for n, t in WEIGHTS.items()}
    torch.save(saved, tmp_path / "step-1.pt")
    with open_checkpoint(tmp_path / "step-1.pt") as checkpoint:
        assert all(same_bits(t, WEIGHTS[n]) for n, t in checkpoint.tensors())


# ------------------------------------------------------------------ whether it is written


def test_a_file_without_checksums_has_to_stay_the_same(tmp_path: Path) -> None:
    from sparsitywatch.offline.driver import Patience

    data = safetensors.torch.save(WEIGHTS)
    length = 8 + int.from_bytes(data[:8], "little")
    file = tmp_path / "step-1.safetensors"
    now = [0.0]
    patience = Patience(clock=lambda: now[0])

    def states() -> str:
        now[0] += 5.0
        (found,) = discover(tmp_path)
        return patience.settled({1: found})[1].state

    file.write_bytes(data[:length] + bytes(len(data) - length))  # as long as it will be
    assert states() == "incomplete"
    for at in range(length, len(data), 200):
        file.write_bytes(data[:at] + bytes(len(data) - at))
        os.utime(file, ns=(at, at))
        assert states() == "incomplete"
    file.write_bytes(data)
    assert [states(), states(), states()] == ["incomplete", "complete", "complete"]


def test_a_file_with_checksums_is_taken_at_once(tmp_path: Path) -> None:
    from sparsitywatch.offline.driver import Patience

    torch.save(WEIGHTS, tmp_path / "step-1.pt")
    (found,) = discover(tmp_path)
    assert Patience().settled({1: found})[1].state == "complete"


# ------------------------------------------------------------------ requests


class Requests(MemoryFileSystem):
    """A storage that keeps count of its requests."""

    protocol = "requests"
    store: dict = {}  # noqa: RUF012 as its base class has it
    pseudo_dirs = [""]  # noqa: RUF012
    fetched: list[tuple[int, int]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("requests://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options) -> bytes:
        self.fetched.append((start, end))
        return super().cat_file(path, start=start, end=end, **options)


@pytest.fixture
def requests() -> Iterator[Requests]:
    fsspec.register_implementation("requests", Requests, clobber=True)
    fs = fsspec.filesystem("requests", skip_instance_cache=True)
    Requests.fetched.clear()
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def blocks(num: int, width: int, bias: int) -> dict[str, torch.Tensor]:
    """Layers of two matrices, with something between them that does not count."""
    torch.manual_seed(num)
    found = {"embed_tokens.weight": torch.randn(100, width)}
    for i in range(num):
        for part in ("attention", "mlp"):
            found[f"layers.{i}.{part}.weight"] = torch.randn(width, width)
            found[f"layers.{i}.{part}.bias"] = torch.randn(bias)
    return found


@pytest.mark.part(5)
@pytest.mark.parametrize("bias", [4, 256, 100_000], ids=["close", "near", "apart"])
@pytest.mark.parametrize(("num", "width"), [(12, 16), (12, 256), (40, 64), (20, 300)])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_tensor_costs_one_request_at_most(kind, num, width, bias, requests) -> None:
    weights = blocks(num, width, bias)
    data = safetensors.torch.save(weights)
    if kind == "pt":
        buffer = io.BytesIO()
        torch.save({"model": weights, "optimizer": {"m": weights["embed_tokens.weight"]}}, buffer)
        data = buffer.getvalue()
    requests.pipe_file(f"requests://run/step-1.{kind}", data)
    with open_checkpoint(f"requests://run/step-1.{kind}") as checkpoint:
        names = [n for n in weights if n.startswith("layers.") and n.endswith("weight")]
        got = {name: tensor.clone() for name, tensor in checkpoint.tensors(names)}
    assert all(same_bits(got[name], weights[name]) for name in names)
    num_requests = len(Requests.fetched)
    num_bytes = sum(end - start for start, end in Requests.fetched)
    wanted = sum(weights[name].nbytes for name in names)
    assert num_requests <= (len(names) + 4 if bias > 4096 // 4 else 1.1 * len(names))
    descriptions = 600 * len(weights)
    assert num_bytes <= 1.1 * wanted + 4096 * len(names) + descriptions


def test_what_is_read_ahead_is_not_kept(requests) -> None:
    weights = blocks(30, 128, 4)
    requests.pipe_file("requests://a.safetensors", safetensors.torch.save(weights))
    with open_checkpoint("requests://a.safetensors") as checkpoint:
        names = checkpoint.in_byte_order(weights)
        (source,) = checkpoint._place.opened.values()
        for name in names:
            checkpoint.read(name)
        assert sum(len(batch.data) for batch in source._expected) == 0
        before = len(Requests.fetched)
        assert same_bits(checkpoint.read(names[0]), weights[names[0]])  # once more
        assert len(Requests.fetched) == before + 1


@pytest.mark.parametrize("num_threads", [1, 4])
def test_threads_share_what_is_read_ahead(num_threads: int, requests) -> None:
    weights = {n: t for n, t in blocks(30, 128, 4).items() if t.dim() == 2}
    requests.pipe_file("requests://run/step-1.safetensors", safetensors.torch.save(weights))
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        (record,) = sw.replay("requests://run", logdir=None, detectors=detectors()).records
    finally:
        torch.set_num_threads(torch_threads)
    assert sum(layer.num_weights for layer in record.layers) == 30 * 2 * 128 * 128
