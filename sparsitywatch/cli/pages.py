"""``sparsitywatch plot``, ``report``, ``show``, ``status``: a run as a picture, a page, a word."""

from __future__ import annotations

import argparse
import json
import socketserver
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sparsitywatch.cli.options import add_command, add_json, add_logdir, write_page
from sparsitywatch.cli.summary import read
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pipeline.rundir import load
from sparsitywatch.redact import redacted

_LOOPBACK = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of the command line."""
    parser = add_command(commands, "plot", _plot, "draw what happened so far")
    _add_output(parser, "the picture to write; its ending says the format", "overview.png")
    parser = add_command(commands, "report", _report, "one page of HTML with everything in it")
    _add_output(parser, "the page to write", "report.html")
    parser = add_command(commands, "show", _show, "the same page of all runs, live, in a browser")
    parser.add_argument(
        "logdir", metavar="LOGDIR", type=Path, help="a run's log, or a folder of them"
    )
    parser.add_argument(
        "--port", type=int, default=6020, help="of this machine alone (default: 6020; 0: any)"
    )
    words = "healthy or too early, look, broken: exit status 0, 1, 2 for schedulers"
    parser = add_command(commands, "status", _status, words)
    add_logdir(parser)
    add_json(parser)


def _add_output(parser: Any, words: str, output: str) -> None:
    """A log directory, and where to write: ``words`` say what, ``output`` where by default."""
    add_logdir(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path(output),
        help=f"{words} (default: {output})",
    )  # fmt: skip


# ------------------------------------------------------------------ plot


def _plot(arguments: argparse.Namespace) -> None:
    # drawing takes a second to import; the other commands should not wait for it
    from sparsitywatch.plots import overview_figure, save_figure

    run = read(arguments.logdir)
    trouble = run.verdict.trouble
    title = "Sparsity during training" + (f"; {redacted(trouble)}" if trouble else "")
    figure, path = overview_figure(run, title=title), arguments.output
    try:
        save_figure(figure, path)
    except (OSError, ValueError) as error:  # it cannot be, there or in this format
        raise ConfigurationError(
            f"Expected `--output` to be a picture that can be written, got {str(path)!r}: {error}."
        ) from error
    print(path)


# ------------------------------------------------------------------ report


def _report(arguments: argparse.Namespace) -> None:
    from sparsitywatch.page.render import render

    write_page(arguments.output, render(load(arguments.logdir)), "--output")
    print(arguments.output)


# ------------------------------------------------------------------ show


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Answers several requests at once, and does not wait for them at its end."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 as the base has it
        """Nothing: a page that asks every few seconds would fill the terminal."""


def _show(arguments: argparse.Namespace) -> None:
    if not arguments.logdir.is_dir():
        raise ConfigurationError(
            f"Expected LOGDIR to be a directory with logs, got {str(arguments.logdir)!r}."
        )
    with server_of(arguments.logdir, arguments.port) as server:
        print(f"http://{_LOOPBACK}:{server.server_port}/  (Ctrl+C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def server_of(logdir: Path, port: int) -> WSGIServer:
    """A server of the page for this machine alone, which begins to read the logs."""
    from sparsitywatch.page.server import App, Runs, apps_of

    runs = Runs({"": logdir})
    runs.warm()
    apps = apps_of(runs)

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        # a page of another site must not read logs through a name that leads here
        host = environ.get("HTTP_HOST", "").rpartition(":")[0] or environ.get("HTTP_HOST", "")
        path = environ.get("PATH_INFO", "/")
        found: App | None = apps.get("/index.html" if path == "/" else path)
        if host not in _NAMES or found is None:
            start("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
            return [b""]
        return found(environ, start)

    try:
        return make_server(_LOOPBACK, port, app, _Server, _Quiet)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"Expected `--port` to be a free port, got {port}: {error}. 0 takes any."
        ) from error


# ------------------------------------------------------------------ status


def _status(arguments: argparse.Namespace) -> int:
    from sparsitywatch.page.data import watch_line

    run = load(arguments.logdir)
    verdict, watch = run.verdict, watch_line(run)
    if arguments.json:
        told = {
            **asdict(verdict),
            "last_step": run.records[-1].step if run.records else None,
            "events": [
                {"id": e.id, "severity": e.severity, "headline": e.headline, "advice": e.advice}
                for e in run.events
            ],
        }
        print(json.dumps(told))
    else:
        lines = [*verdict.describe().splitlines(), "; ".join(watch)]
        print("\n".join(redacted(line) for line in lines if line))
    return verdict.exit_code
