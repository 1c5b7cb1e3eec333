"""The page over HTTP: what the tab of TensorBoard and ``sparsitywatch show`` both answer with.

Logs are read where they lie, never written to, and once: of a file that has grown, what is new.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from sparsitywatch.analysis.verdict import verdict
from sparsitywatch.errors import ConfigurationError, SparsityWatchError
from sparsitywatch.page.data import details_of, page_data, summary_of
from sparsitywatch.page.render import Run, as_json, asset, load, tab_module
from sparsitywatch.pipeline.rundir import logs_below
from sparsitywatch.redact import printable, redacted

_FILES = ("records.jsonl", "events.jsonl", "run.json")
#: A walk over a large directory is not repeated sooner than this.
_WALK_S = 2.0
#: Runs whose answers are kept, and those that the page shows at first.
_MAX_KEPT, _FEW = 16, 4
_ASSETS: dict[str, tuple[str, Callable[[], str]]] = {
    "/index.html": ("text/html", lambda: asset("index.html")),
    "/page.css": ("text/css", lambda: asset("vendor/uPlot.min.css") + asset("page.css")),
    "/show.js": ("text/javascript", lambda: asset("show.js")),
    "/index.js": ("text/javascript", tab_module),
}
_DATA: dict[str, Callable[[Run], dict[str, Any]]] = {
    "/page": page_data,
    "/summary": summary_of,
    "/details": lambda run: details_of(run, for_file=False),
}

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Log:
    """The log of one run, read by one thread at a time, and the answers that were made of it."""

    def __init__(self, name: str, place: Path) -> None:
        self._name = name
        self._place = place
        self._read: tuple[str, Run] | None = None  # what was read, and the stamp of its files then
        self._answers: dict[str, bytes] = {}
        self._silent = "", ""  # stamp, and what was wrong with the watch then
        self._lock = threading.Lock()

    def answer(self, route: str) -> bytes:
        """Compressed JSON; a SparsityWatchError if the log cannot be read."""
        with self._lock:
            run = self._current()
            if route not in self._answers:
                self._answers[route] = _packed(as_json(_DATA[route](run)))
            return self._answers[route]

    def version(self) -> str:
        """Of the files, and of a watch fallen silent since; it waits for no answer."""
        stamp, read = _stamp(self._place), self._read
        if read is not None and read[0] == stamp:
            with contextlib.suppress(SparsityWatchError, OSError):  # told to whoever asks for it
                self._silent = stamp, _trouble(read[1])
        silent = self._silent[1] if self._silent[0] == stamp else ""
        return hashlib.sha256(f"{stamp} {silent}".encode()).hexdigest()[:16]

    def forget(self) -> None:
        """Let go of what was read, unless it is in use; the version stays what it was."""
        if self._lock.acquire(blocking=False):
            self._read, self._answers = None, {}
            self._lock.release()

    def _current(self) -> Run:
        stamp = _stamp(self._place)
        if self._read is None:
            run = load(self._place, name=printable(self._name))
        else:
            before, run = self._read
            if before == stamp and run.verdict.trouble == _trouble(run):
                return run
            run = run.again(now=time.time())
        self._read = stamp, run
        self._answers = {}
        return run


class Runs:
    """The watched runs below some directories, by what their names begin with; read on demand."""

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
                roots = self._roots.items()
                found = (pair for prefix, root in roots for pair in logs_below(root, prefix))
                self._places = dict(sorted(found))
                self._walked = time.monotonic()
            return self._places

    def versions(self) -> list[dict[str, str]]:
        """Name and version of each run; what has a new version is asked for again."""
        pairs = self.places().items()
        logs = ((pair[0], self._logs.get(pair) or _Log(*pair)) for pair in pairs)
        return [{"name": name, "version": log.version()} for name, log in logs]

    def answer(self, route: str, name: str) -> bytes:
        """The compressed JSON of one run; a KeyError if there is no such run."""
        key = name, self.places()[name]
        with self._lock:
            log = self._logs.pop(key, None) or _Log(*key)
            self._logs[key] = log  # the latest is the last
            for old in list(self._logs.values())[:-_MAX_KEPT]:
                old.forget()
        return log.answer(route)

    def warm(self) -> None:
        """Begin to read the runs that are shown at first, in a thread, before anybody asks."""
        threading.Thread(target=self._warm, daemon=True).start()

    def _warm(self) -> None:
        for name in list(self.places())[:_MAX_KEPT]:
            for route in _DATA if len(self.places()) <= _FEW else ("/summary",):
                with contextlib.suppress(KeyError, SparsityWatchError, OSError):
                    self.answer(route, name)  # what fails is told to whoever asks


def _trouble(run: Run) -> str:
    return verdict(run.records, run.events, run.info, now=time.time()).trouble


def _stamp(place: Path) -> str:
    """Sizes and times of the files that are appended to, or written anew."""
    found = []
    for name in _FILES:
        with contextlib.suppress(OSError):  # not there yet
            status = (place / name).stat()
            found.append(f"{name} {status.st_size} {status.st_mtime_ns}")
    return ", ".join(found)


def apps_of(runs: Runs, remark: str = "") -> dict[str, App]:
    """WSGI applications by route, such as "/runs"; ``remark`` says why there may be no runs."""

    def versions(_: str) -> bytes:
        if remark:
            raise ConfigurationError(remark)
        return _packed(as_json(runs.versions()))

    json = "application/json"
    assets = {route: _app(kind, _asset(make)) for route, (kind, make) in _ASSETS.items()}
    data = {route: _app(json, functools.partial(runs.answer, route)) for route in _DATA}
    return {**assets, **data, "/runs": _app(json, versions)}


def _asset(make: Callable[[], str]) -> Callable[[str], bytes]:
    packed = functools.cache(lambda: _packed(make().encode(), 9))
    return lambda _: packed()


def _packed(body: bytes, level: int = 5) -> bytes:
    return gzip.compress(body, level, mtime=0)


def _app(kind: str, answer: Callable[[str], bytes]) -> App:
    """Answers with what ``answer`` says, compressed, of the run that is asked for."""

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        name = parse_qs(environ.get("QUERY_STRING", "")).get("run", [""])[0]
        try:
            body, status, content = answer(name), "200 OK", kind
        except KeyError:
            text = f"there is no run {printable(name)!r}"
            body, status, content = _packed(text.encode()), "404 Not Found", "text/plain"
        except (SparsityWatchError, OSError) as error:
            text = redacted(str(error))
            body, status, content = _packed(text.encode()), "409 Conflict", "text/plain"
        headers = [
            ("Content-Type", f"{content}; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            headers.append(("Content-Encoding", "gzip"))
        else:
            body = gzip.decompress(body)
        start(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return app
