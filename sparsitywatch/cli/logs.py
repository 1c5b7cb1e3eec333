"""What is read from logs: a run in words, as a table, a picture and a page; runs side by side."""

from __future__ import annotations

import argparse
import json
import math
import os
import socketserver
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sparsitywatch.analysis.digest import Digest, digest, mismatches, require_comparable
from sparsitywatch.analysis.emergence import Emergence
from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import moment
from sparsitywatch.cli.options import add_command, add_json, align, write_page
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.page.render import load
from sparsitywatch.records import ledger_in_short, to_json
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import count

#: Of a run that has begun, in the order in which their times say when.
_FILES = ("records.jsonl", "run.json")
_LOOPBACK = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of the command line."""

    def add(
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        words: str,
        logdir: str = "where the run logs to",
    ) -> argparse.ArgumentParser:
        parser = add_command(commands, name, run, words)
        parser.add_argument("logdir", metavar="LOGDIR", type=Path, help=logdir)
        return parser

    add_json(add("summary", _summary, "what happened so far"))
    add("scope", _scope, "which parameters are watched")
    words = "which threshold of near zero makes an abrupt turn, if any"
    add_json(add("emergence", _emergence, words))
    parser = add("plot", _plot, "draw what happened so far")
    _add_output(parser, "the picture to write; its ending says the format", "overview.png")
    parser = add("report", _report, "one page of HTML with everything in it")
    _add_output(parser, "the page to write", "report.html")
    words = "the same page of all runs, live, in a browser"
    parser = add("show", _show, words, "a run's log, or a folder of them")
    parser.add_argument(
        "--port", type=int, default=6020, help="of this machine alone (default: 6020; 0: any)"
    )
    words = "healthy or too early, look, broken: exit status 0, 1, 2 for schedulers"
    add_json(add("status", _status, words))
    words = "runs side by side, if they can be compared"
    parser = add_command(commands, "compare", _compare, words)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="where a run logs to")
    parser.add_argument(
        "--weights-only", action="store_true",
        help="compare only what the weights tell by themselves, whatever the proxies were",
    )  # fmt: skip
    add_json(parser)


def _add_output(parser: Any, words: str, output: str) -> None:
    """Where to write: ``words`` say what, ``output`` where by default."""
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path(output),
        help=f"{words} (default: {output})",
    )  # fmt: skip


def _read(logdir: Path, name: str | None = None) -> Run:
    """A run with at least one record; a ConfigurationError says that there is none yet."""
    run = load(logdir, name=name)
    if run.records:
        return run
    # a manifest is written anew while it is waited for the first record
    files = [path for file in _FILES if (path := (run.directory or logdir) / file).exists()]
    begun = moment(files[0].stat().st_mtime)
    raise ConfigurationError(
        f"Expected records of a watched run at LOGDIR, found none yet in {str(logdir)!r}: the run "
        f"began at {begun} and has taken no snapshot so far. The first one comes when `every` says "
        "so; `sparsitywatch scope` shows what is watched."
    )


# ------------------------------------------------------------------ summary, scope


def _summary(arguments: argparse.Namespace) -> None:
    summary = digest(_read(arguments.logdir))
    print(to_json(summary) if arguments.json else "\n".join(_in_lines(summary)))


def _in_lines(summary: Digest) -> list[str]:
    snapshots = count(summary.num_records, "snapshot")
    unit = summary.provenance.unit
    steps = f"{unit}s {summary.first_step} to {summary.last_step}"
    stall = f"stall {summary.cost.stall_s:.1f} s"
    pattern, evaluation = summary.provenance.pattern, summary.provenance.evaluation
    lines = [
        *map(redacted, summary.verdict.describe().splitlines()),
        *map(redacted, summary.verdict.watch),
        "",
        f"{snapshots} at {steps}, {summary.num_invalid} invalid; {stall}",
        f"{summary.scope.describe()}; pattern {pattern}, {evaluation}",
        "",
    ]
    header = ("series", "first", "last", "lowest", f"at {unit}", "highest", f"at {unit}")
    rows = []
    for name, one in sorted(summary.series.items()):
        # counts of broken weights are worth a line only where there are any
        if not name.startswith("weights/") or one.highest > 0:
            ends = f"{one.first:.4g}", f"{one.last:.4g}"
            lowest = f"{one.lowest:.4g}", str(one.lowest_step)
            highest = f"{one.highest:.4g}", str(one.highest_step)
            rows.append((name, *ends, *lowest, *highest))
    lines += [*align([header, *rows], right=set(range(1, 7))), ""]
    lines += [*_estimate_lines(summary), "", f"{count(len(summary.events), 'event')}"]
    for event in summary.events:
        lines += [f"  {event.describe()}", f"    {event.advice}"]
    notes = [f"  {unit} {step}: {text}" for step, texts in summary.notes.items() for text in texts]
    return lines + (["", count(len(notes), "note"), *notes] if notes else [])


def _estimate_lines(summary: Digest) -> list[str]:
    estimate = summary.essential_sparsity
    if estimate is None and summary.provenance.proxy_hash:
        return ["essential sparsity: not known, no evaluation has succeeded"]
    if estimate is None:
        return ["essential sparsity: not measured, there was no proxy"]
    here = f"essential sparsity at {summary.provenance.unit} {summary.estimated_step}:"
    seen = (
        f"evaluated at {summary.num_evaluated}, informative at {summary.num_informative} of "
        f"{count(summary.num_records, 'snapshot')}"
    )
    if not estimate.informative:
        told = "" if estimate.reason.startswith("cannot say") else "not informative; "
        return [f"{here} {told}{estimate.reason}", seen]
    interval = f"at {estimate.confidence:.0%}"
    if math.isnan(estimate.low):
        interval = "without an interval"
    tolerance = f"tolerance {estimate.tolerance:g} {estimate.mode}"
    return [f"{here} {estimate.describe()} {interval}, {tolerance}", seen]


def _scope(arguments: argparse.Namespace) -> None:
    info = load(arguments.logdir).info
    if info is None:
        raise ConfigurationError(
            f"Expected run.json, which has the scope ledger, found none in "
            f"{str(arguments.logdir)!r}."
        )
    print(f"{ledger_in_short(info.ledger)}\n")
    header = ("scope", "parameter", "shape", "weights", "why")
    rows = [
        ("in" if one.in_scope else "out", one.name, one.dimensions, f"{one.num_weights:,}", one.why)
        for one in info.ledger
    ]
    print("\n".join(align([header, *rows], right={3})))


def _plot(arguments: argparse.Namespace) -> None:
    # drawing takes a second to import; the other commands should not wait for it
    from sparsitywatch.plots import overview_figure, save_figure

    run = _read(arguments.logdir)
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


def _report(arguments: argparse.Namespace) -> None:
    from sparsitywatch.page.render import render

    write_page(arguments.output, render(load(arguments.logdir)), "--output")
    print(arguments.output)


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


# ------------------------------------------------------------------ every threshold


def _emergence(arguments: argparse.Namespace) -> None:
    run = _read(arguments.logdir)
    found = run.emergence()
    if arguments.json:
        print(to_json({"run": run.name, "conclusions": found.conclusions, **vars(found)}))
        return
    of_all = f"{len(found.steps):,} of {count(len(run.records), 'snapshot')}"
    asked = (
        f"{count(len(found.thresholds), 'threshold')} were asked at {of_all}, {found.unit}s "
        f"{found.steps[0]:,} to {found.steps[-1]:,}. The {found.tested.sum()} shares that move by "
        "a point or more are tested as one family."
    )
    print("\n".join(textwrap.fill(text, 80) for text in (*found.conclusions, asked)))
    header = ("|w| at most", "first %", "lowest %", f"at {found.unit}", "last %", "turns")
    rows = [row for k in found.tested.nonzero()[0].tolist() for row in _threshold_rows(found, k)]
    print("\n" + "\n".join(align([header, *rows], right={1, 2, 3, 4})))


def _threshold_rows(found: Emergence, k: int) -> list[tuple[str, ...]]:
    """One threshold, a line for each of its turns."""
    name, shares = found.thresholds[k], found.shares[k]
    lowest = int(shares.argmin())
    first, least, last = (f"{100.0 * shares[t]:.2f}" for t in (0, lowest, -1))
    turns = [
        f"{turn.direction if turn.kind == 'abrupt' else turn.kind} "
        f"{turn.onset_low:,} to {turn.onset_high:,}"
        for turn in found.turns
        if turn.series == f"near_zero/{name}"
    ]
    row = (name, first, least, f"{found.steps[lowest]:,}", last, *(turns[:1] or [""]))
    return [row, *(("", "", "", "", "", turn) for turn in turns[1:])]


# ------------------------------------------------------------------ compare


def _compare(arguments: argparse.Namespace) -> None:
    runs = _read_all(arguments.runs)
    weights_only: bool = arguments.weights_only
    require_comparable(runs, weights_only=weights_only)
    digests = [digest(run, weights_only=weights_only) for run in runs]
    notes = _notes(digests, mismatches(runs) if weights_only else None)
    if arguments.json:
        print(to_json({"weights_only": weights_only, "notes": notes, "runs": digests}))
        return
    lines = [*notes, *([""] if notes else []), *_table(digests, weights_only=weights_only)]
    print("\n".join(lines))


def _read_all(logdirs: Sequence[Path]) -> list[Run]:
    """Every run by a short name of its own, in the order of the call."""
    places = [Path(os.path.normpath(logdir.absolute())) for logdir in logdirs]
    if len(places) < 2 or len(set(places)) < len(places):
        raise ConfigurationError(
            "Expected RUN to be two or more different runs, got "
            f"{', '.join(str(logdir) for logdir in logdirs)}."
        )
    common = Path(os.path.commonpath(places))
    return [
        _read(logdir, str(place.relative_to(common) if place != common else place))
        for place, logdir in zip(places, logdirs, strict=True)
    ]


def _notes(runs: Sequence[Digest], ignored: Collection[str] | None) -> list[str]:
    """What to know of the numbers; ``ignored`` are differences where only weights are compared."""
    # that a run is quiet says nothing where its watch did not see to the end
    notes = [redacted(f"{run.name}: {run.verdict.trouble}.") for run in runs if run.verdict.trouble]
    if len({run.provenance.unit for run in runs}) > 1:
        words = ", ".join(f"{printable(run.name)} by {run.provenance.unit}s" for run in runs)
        notes.append(f"The runs are numbered by different things: {words}.")
    if ignored is not None:
        notes.append("Weights only: what depends on a proxy is left out.")
    if ignored:
        notes.append(f"The runs differ in {', '.join(ignored)}.")
    if ignored and "dtypes" in ignored:
        notes.append("Rounding to another dtype changes which weights pass as dormant.")
    return notes


def _table(runs: Sequence[Digest], *, weights_only: bool) -> list[str]:
    units = "/".join(sorted({run.provenance.unit for run in runs}))
    header = ("run", "snapshots", f"last {units}", "near zero", "dormant", "decay clock")
    estimates = () if weights_only else ("essential sparsity",)
    rows = [_row(run, weights_only=weights_only) for run in runs]
    lines = ["At the end", *align([(*header, *estimates), *rows], right=set(range(1, 6))), ""]
    events = [
        (run.name, event.series, event.direction, str(event.onset_step), str(event.detected_step),
         _number(run.onset_clock[event.id]))
        for run in runs for event in run.events
    ]  # fmt: skip
    if not events:
        return [*lines, "Events: none"]
    header = ("run", "series", "", "began", "seen", "decay clock when it began")
    quiet = [(run.name, "none", "", "", "", "") for run in runs if not run.events]
    return [*lines, "Events", *align([header, *events, *quiet], right={3, 4, 5})]


def _row(run: Digest, *, weights_only: bool) -> tuple[str, ...]:
    snapshots = f"{run.num_records}" + (f" ({run.num_invalid} invalid)" if run.num_invalid else "")
    watched = ("near_zero/initial_0.1", "motion/dormant", "motion/decay_clock")
    cells = (run.name, snapshots, str(run.last_step), *(_number(run.last(s)) for s in watched))
    estimate = run.essential_sparsity
    essential = "not measured" if estimate is None else estimate.describe()
    return cells if weights_only else (*cells, essential)


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.4g}"
