"""The page over HTTP: what the tab of TensorBoard and ``sparsitywatch show`` both answer with.

::

    runs        name and version of each run; what has a new version is asked for again
    page        what ``page_data`` says of one run
    details     its maps and magnitudes, which are larger
    *.js, *.css the page itself

Logs are read where they lie, never written to, and once: of a file that has grown, what is new.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import standing
from sparsitywatch.errors import SparsityWatchError
from sparsitywatch.page.data import details_of, page_data
from sparsitywatch.page.render import as_json, asset, tab_module
from sparsitywatch.pipeline.rundir import load
from sparsitywatch.shown import shown_name, shown_text

__all__ = ["PageServer", "Runs"]

_FILES = ("records.jsonl", "events.jsonl", "run.json")
#: A walk over a large directory is not repeated sooner than this.
_WALK_S = 2.0
#: Runs whose answers are kept, and those that the page shows at first.
_MAX_KEPT, _FEW = 8, 4
_ASSETS: dict[str, tuple[str, Callable[[], str]]] = {
    "index.html": ("text/html", lambda: asset("index.html")),
    "page.css": ("text/css", lambda: asset("vendor/uPlot.min.css") + asset("page.css")),
    "show.js": ("text/javascript", lambda: asset("show.js")),
    "index.js": ("text/javascript", tab_module),
}

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


@dataclass(frozen=True)
class _Kept:
    """What was read of a run, and the answers made of it, compressed."""

    stamp: str
    run: Run
    trouble: str
    answers: dict[str, bytes] = field(default_factory=dict)


class _Log:
    """The log of one run, read by one thread at a time, and the answers that were made of it.

    Args:
        name: of the run.
        place: its directory.
    """

    def __init__(self, name: str, place: Path) -> None:
        self._name, self._place = name, place
        self._kept: _Kept | None = None
        self._lock = threading.Lock()

    def answer(self, kind: str) -> bytes:
        """JSON, compressed.

        Raises:
            SparsityWatchError: the log cannot be read.
        """
        with self._lock:
            kept = self._read()
            if kind not in kept.answers:
                value = _MAKE[kind](kept.run)
                kept.answers[kind] = gzip.compress(as_json(value), 5, mtime=0)
            return kept.answers[kind]

    def version(self) -> str:
        """Of the files; and of a watch that has fallen silent since they were read.

        It does not wait for an answer that is being made.
        """
        stamp, kept = _stamp(self._place), self._kept
        silent = _trouble(kept.run) if kept is not None and kept.stamp == stamp else ""
        return hashlib.sha256(f"{stamp} {silent}".encode()).hexdigest()[:16]

    def _read(self) -> _Kept:
        stamp, kept = _stamp(self._place), self._kept
        if kept is None:
            run = load(self._place, name=shown_name(self._name))
        elif kept.stamp != stamp or kept.trouble != _trouble(kept.run):
            run = kept.run.again(now=time.time())
        else:
            return kept
        self._kept = _Kept(stamp, run, run.standing.trouble)
        return self._kept


class Runs:
    """The watched runs below some directories, read when they are asked for.

    Args:
        roots: directories, by what the names of the runs in them begin with.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._roots = dict(roots)
        self._places: dict[str, Path] = {}
        self._walked = -_WALK_S
        self._logs: dict[tuple[str, Path], _Log] = {}
        self._lock = threading.Lock()

    def places(self) -> dict[str, Path]:
        """Directory of each log, by the name of its run."""
        with self._lock:
            if time.monotonic() - self._walked >= _WALK_S:
                found = [
                    pair for prefix, root in self._roots.items() for pair in _logs(prefix, root)
                ]
                self._places, self._walked = dict(sorted(found)), time.monotonic()
            return self._places

    def versions(self) -> list[dict[str, str]]:
        """Name and version of each run."""
        known = self._logs
        return [{"name": name, "version": (known.get((name, place)) or _Log(name, place)).version()}
                for name, place in self.places().items()]  # fmt: skip

    def answer(self, kind: str, name: str) -> bytes:
        """The JSON of one run, compressed.

        Raises:
            KeyError: there is no such run.
            SparsityWatchError: its log cannot be read.
        """
        key = name, self.places()[name]
        with self._lock:
            log = self._logs.pop(key, None) or _Log(*key)
            self._logs[key] = log  # the latest is the last
            for old in list(self._logs)[:-_MAX_KEPT]:
                del self._logs[old]
        return log.answer(kind)

    def warm(self) -> None:
        """Begin to read the runs that are shown at first, in a thread, before anybody asks."""
        threading.Thread(target=self._warm, daemon=True).start()

    def _warm(self) -> None:
        for kind in _MAKE:
            for name in list(self.places())[:_FEW]:
                with contextlib.suppress(KeyError, SparsityWatchError, OSError):
                    self.answer(kind, name)  # what fails is told to whoever asks


_MAKE: dict[str, Callable[[Run], dict[str, Any]]] = {
    "page": page_data,
    "details": lambda run: details_of(run, for_file=False),
}


def _trouble(run: Run) -> str:
    return standing(run.records, run.info, now=time.time()).trouble


def _logs(prefix: str, root: Path) -> Iterable[tuple[str, Path]]:
    """Each log below a directory; the folders that a log itself has are left out."""
    for folder, folders, files in os.walk(root):
        place = Path(folder)
        if "run.json" in files or "records.jsonl" in files:
            folders.clear()
            own = place.parent if place.name == "sparsitywatch" else place
            parts = [prefix, *(own.relative_to(root).parts if own.is_relative_to(root) else ())]
            yield "/".join(filter(None, parts)) or own.absolute().name, place
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]


def _stamp(place: Path) -> str:
    """Sizes and times of the files that are appended to, or written anew."""
    return ", ".join(_stamp_of(place / name) for name in _FILES)


def _stamp_of(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # not there yet
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"


class PageServer:
    """WSGI applications by route; the routes may stand below any path.

    Args:
        runs: what is served.
        remark: why there may be none; empty if that needs no reason.
    """

    def __init__(self, runs: Runs, remark: str = "") -> None:
        self._runs, self._remark = runs, remark

    def apps(self) -> dict[str, App]:
        """Each application by its route, such as "/runs"."""
        found: dict[str, App] = {
            f"/{name}": _asset_app(kind, make) for name, (kind, make) in _ASSETS.items()
        }
        return {**found, "/runs": self._versions, "/page": self._of("page"),
                "/details": self._of("details")}  # fmt: skip

    def _versions(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        if self._remark:
            return _respond(environ, start, "409 Conflict", "text/plain", self._remark.encode())
        body = as_json(self._runs.versions())
        return _respond(environ, start, "200 OK", "application/json", body)

    def _of(self, kind: str) -> App:
        def app(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
            name = parse_qs(environ.get("QUERY_STRING", "")).get("run", [""])[0]
            try:
                packed = self._runs.answer(kind, name)
            except KeyError:
                text = f"there is no run {shown_name(name)!r}"
                return _respond(environ, start, "404 Not Found", "text/plain", text.encode())
            except (SparsityWatchError, OSError) as error:
                text = shown_text(str(error))
                return _respond(environ, start, "409 Conflict", "text/plain", text.encode())
            return _respond(environ, start, "200 OK", "application/json", packed, packed=True)

        return app


def _asset_app(kind: str, make: Callable[[], str]) -> App:
    packed = functools.cache(lambda: gzip.compress(make().encode(), 9, mtime=0))

    def app(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        return _respond(environ, start, "200 OK", kind, packed(), packed=True)

    return app


def _respond(
    environ: dict[str, Any],
    start: StartResponse,
    status: str,
    kind: str,
    body: bytes,
    *,
    packed: bool = False,
) -> Iterable[bytes]:
    headers = [
        ("Content-Type", f"{kind}; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    if packed and "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        headers.append(("Content-Encoding", "gzip"))
    elif packed:
        body = gzip.decompress(body)
    start(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]
