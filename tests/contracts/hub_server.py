"""A small server that answers as the Hugging Face Hub does, on this machine."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class MadeFile:
    """A file of git-lfs whose bytes are made when they are asked for: it may be of any size.

    Args:
        size: number of bytes.
        parts: bytes by their place; all others are zero.
        sha256: what the hub says of it.
    """

    def __init__(self, size: int, parts: Mapping[int, bytes], sha256: str) -> None:
        self.size, self.parts, self.sha256 = size, parts, sha256

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, asked: slice) -> bytes:
        start, stop, _ = asked.indices(self.size)
        found = bytearray(stop - start)
        for at, data in self.parts.items():
            begin, end = max(at, start), min(at + len(data), stop)
            if begin < end:
                found[begin - start : end - start] = data[begin - at : end - at]
        return bytes(found)


#: Repository, branch, name of a file: its bytes.
Repositories = Mapping[str, Mapping[str, Mapping[str, bytes | MadeFile]]]


@dataclass
class Hub:
    """A running server.

    Args:
        url: of it.
        sent: repository, name of a file, and number of its bytes that were sent, in order.
        refused: how requests about a repository are answered: status, and code of the error.
        num_busy: how many requests are still answered with 429.
    """

    url: str = ""
    sent: list[tuple[str, str, int]] = field(default_factory=list)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    num_busy: int = 0

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that shall know no other hub, and no token."""
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "TRANSFORMERS_"))}
        return {**clean, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}  # fmt: skip


@contextmanager
def hub_server(repositories: Repositories) -> Iterator[Hub]:
    """A running server with these repositories."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub, Handler.repositories = hub, repositories
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub
    repositories: Repositories

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        split = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if self.hub.num_busy > 0:
            self.hub.num_busy -= 1
            self._send(429, b"{}")
        elif name in self.hub.refused:
            self._missing(self.hub.refused[name][1], self.hub.refused[name][0])
        elif parts == ["api", "models"]:
            self._json([{"id": name} for name in self.repositories if _is_asked_for(name, query)])
        elif parts[:2] == ["api", "models"]:
            self._about("/".join(parts[2:4]), parts[4:], query)
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._missing("EntryNotFound")

    def _about(self, name: str, rest: list[str], query: dict[str, str]) -> None:
        branches = self.repositories.get(name)
        if branches is None:
            self._missing("RepoNotFound")
            return
        kind, revision = (rest or ["revision"])[0], rest[1] if len(rest) > 1 else "main"
        if kind == "refs":
            refs = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": _oid(b)} for b in branches
            ]
            self._json({"branches": refs, "converts": [], "tags": []})
        elif revision not in branches:
            self._missing("RevisionNotFound")
        elif kind == "tree":
            self._json(_tree(branches[revision], "/".join(rest[2:]), "recursive" in query))
        else:
            self._json({"id": name, "sha": _oid(revision), "siblings": [], "private": False})

    def _file(self, name: str, revision: str, file: str) -> None:
        data = self.repositories.get(name, {}).get(revision, {}).get(file)
        if data is None:
            self._missing("EntryNotFound")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers = {"ETag": f'"{_oid(revision + file)}"', "Accept-Ranges": "bytes",
                   "X-Repo-Commit": _oid(revision)}  # fmt: skip
        if asked is None:
            self._send(200, data[:], headers, (name, file))
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._send(206, data[start:end], headers, (name, file))

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, status: int = 404) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        file: tuple[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            if file is not None:
                self.hub.sent.append((*file, len(body)))


def _is_asked_for(name: str, query: Mapping[str, str]) -> bool:
    author = query.get("author")
    return (author is None or name.startswith(f"{author}/")) and query.get("search", "") in name


def _oid(text: str) -> str:
    return sha1(text.encode()).hexdigest()


def _tree(
    files: Mapping[str, bytes | MadeFile], folder: str, recursive: bool
) -> list[dict[str, object]]:
    inside = f"{folder}/" if folder else ""
    found: dict[str, dict[str, object]] = {}
    for file, data in files.items():
        if not file.startswith(inside):
            continue
        first, *deeper = file.removeprefix(inside).split("/")
        if deeper:
            path = inside + first
            found[path] = {"type": "directory", "path": path, "size": 0, "oid": _oid(path)}
        if not deeper or recursive:
            found[file] = {"type": "file", "path": file, "size": len(data), "oid": _oid(file)}
            if isinstance(data, MadeFile):
                found[file]["lfs"] = {"oid": data.sha256, "size": len(data), "pointerSize": 134}
    return list(found.values())
