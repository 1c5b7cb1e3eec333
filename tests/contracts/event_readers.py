"""What the readers of event files say a run holds: the classes that scripts use, and servers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.util import tensor_util

#: scalars by tag: (step, value)
Scalars = dict[str, list[tuple[int, float]]]
EVERYTHING = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}


def plugin_accumulator(directory: Path) -> PluginEventAccumulator:
    """What the server's Python loader has read."""
    guidance = dict.fromkeys(("scalars", "histograms", "images", "text"), 0)
    return PluginEventAccumulator(
        str(directory), size_guidance={"tensors": 0}, tensor_size_guidance=guidance
    ).Reload()


def accumulator(directory: Path) -> EventAccumulator:
    """What the class that scripts use has read."""
    return EventAccumulator(str(directory), size_guidance=EVERYTHING).Reload()


def tags_of(reader: PluginEventAccumulator, plugin: str) -> list[str]:
    if plugin not in reader.ActivePlugins():
        return []
    return sorted(reader.PluginTagToContent(plugin))


def scalars_of_plugin_accumulator(directory: Path) -> Scalars:
    reader = plugin_accumulator(directory)
    return {
        tag: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
            for event in reader.Tensors(tag)
        ]
        for tag in tags_of(reader, "scalars")
    }


def scalars_of_accumulator(directory: Path) -> Scalars:
    reader = accumulator(directory)
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in sorted(reader.Tags()["scalars"])
    }


@contextmanager
def server(logdir: Path, *flags: str, prefix: str = "") -> Iterator[str]:
    """A real TensorBoard on a free port of the loopback device; its address.

    ``prefix``: of all its paths, such as "/tensorboard".
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)),
            *("--host", "127.0.0.1", "--port", str(port), "--reload_interval", "1", *flags),
            *(("--path_prefix", prefix) if prefix else ()),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}{prefix}"
    try:
        wait_until(lambda: fetch(f"{url}/data/environment") is not None)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def tab_server(logdir: Path) -> Iterator[str]:
    """The address of the tab in a TensorBoard of its own."""
    with server(logdir) as url:
        yield f"{url}/#sparsity"


@contextmanager
def page_server(logdir: Path) -> Iterator[str]:
    """The address at which `sparsitywatch show` serves a log, read anew."""
    from sparsitywatch.cli.logs import server_of

    with server_of(logdir, 0) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()


def wait_until(condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "TensorBoard does not answer"
        time.sleep(0.2)


def fetch(url: str, **query: str) -> object | None:
    """The JSON that an address answers; None while it does not."""
    # a proxy of the environment must not be asked for the loopback device
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError):
        return None


def tags_of_server(url: str, plugin: str, run: str) -> dict[str, dict[str, str]]:
    """Once it has the run."""
    tags = f"{url}/data/plugin/{plugin}/tags"
    wait_until(lambda: (fetch(tags) or {}).get(run))
    return fetch(tags)[run]


def scalars_of_server(url: str, run: str) -> Scalars:
    return {
        tag: [
            (step, float(value))
            for _, step, value in fetch(f"{url}/data/plugin/scalars/scalars", tag=tag, run=run)
        ]
        for tag in sorted(tags_of_server(url, "scalars", run))
    }
