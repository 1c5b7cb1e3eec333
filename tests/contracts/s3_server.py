"""A real server of s3 over HTTP, on this machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, Any]]:
    """Storage options of a running server with a new bucket.

    Servers of one process share what they hold: each needs a bucket of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # boto's own
        import s3fs
        from moto.server import ThreadedMotoServer
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "key": "testing",
            "secret": "testing",  # the server takes any
            "endpoint_url": f"http://{host}:{port}",
            "client_kwargs": {"region_name": "eu-central-1"},
        }
        s3fs.S3FileSystem(**options).mkdir(bucket)
        yield options
    finally:
        server.stop()
