"""A real s3 server over HTTP on this machine, which counts what it gives away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec

#: What the server of moto runs, by the name that it finds it under.
_APPLICATION = "DomainDispatcherApplication"


@dataclass
class Server:
    """A running one."""

    # for fsspec
    options: dict[str, Any] = field(default_factory=dict)
    # of its own, since servers of one process share what they hold
    bucket: str = ""
    # of the bodies of all answers to GET so far, and how many were answered
    num_bytes: int = 0
    num_requests: int = 0

    def put(self, path: Path, place: str) -> str:
        """Upload a file or a folder; its URL."""
        fs = fsspec.filesystem("s3", **self.options)
        fs.put(str(path), f"{self.bucket}/{place}", recursive=path.is_dir())
        return f"s3://{self.bucket}/{place}"


@contextmanager
def serving() -> Iterator[Server]:
    """The server of moto, on a port of its own, with an empty bucket."""
    from moto.moto_server import threaded_moto_server as moto

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    found = Server()
    plain = getattr(moto, _APPLICATION)
    with mock.patch.object(moto, _APPLICATION, lambda create: _counting(plain(create), found)):
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    found.options = {
        "key": "testing",
        "secret": "testing",  # the server takes any
        "endpoint_url": f"http://{host}:{port}",
        "client_kwargs": {"region_name": "eu-central-1"},
    }
    found.bucket = f"bench-{port}"
    try:
        fsspec.filesystem("s3", **found.options).mkdir(found.bucket)
        yield found
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def _counting(application: Callable[..., Iterable[bytes]], server: Server) -> Callable[..., Any]:
    lock = threading.Lock()

    def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        with lock:
            server.num_requests += 1
        for part in application(environ, start_response):
            if environ["REQUEST_METHOD"] == "GET":
                with lock:
                    server.num_bytes += len(part)
            yield part

    return counted
