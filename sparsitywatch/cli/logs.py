"""What is read from logs: a run in words, as a table, a picture and a page; runs side by side."""

from __future__ import annotations

import argparse
import json
import math
import os
import socketserver
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sparsitywatch.analysis.digest import Digest, alike, differences, digest
from sparsitywatch.analysis.emergence import Emergence
from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import Verdict, duration, has_died, moment, verdict
from sparsitywatch.cli.options import Command, add_command, add_json, align, fold, write_page
from sparsitywatch.errors import ConfigurationError, SparsityWatchError
from sparsitywatch.lab.audit import AuditFinding
from sparsitywatch.page.render import load, render
from sparsitywatch.pipeline.rundir import log_of, logs_below
from sparsitywatch.records import Event, Record, RunInfo, ledger_in_short, to_json
from sparsitywatch.records.schema import json_schema
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import LEADING, count, describe, numbered, percent, with_beside

_Stands = tuple[str, Verdict, Sequence[Event], Run]
#: Of a run that has begun, in the order in which their times say when.
_FILES = ("records.jsonl", "run.json")
#: What a schema is of: ``run.json``, a line of the others, one of ``audit --json``.
_LOGGED = {"audit": AuditFinding, "event": Event, "record": Record, "run": RunInfo}
_LOOPBACK = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")
#: Seconds between two looks of `status --watch`.
_POLL_S = 2.0


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of the command line."""

    def add(
        name: str, run: Command, words: str, logdir: str = "where the run logs to"
    ) -> argparse.ArgumentParser:
        parser = add_command(commands, name, run, words)
        parser.add_argument("logdir", metavar="LOGDIR", type=Path, help=logdir)
        return parser

    several = "a run's log, or a folder of them"
    parser = add("summary", _summary, "what happened so far", several)
    parser.add_argument("--all", action="store_true", help="every series, not the leading ones")
    add_json(parser)
    add("scope", _scope, "which parameters are watched")
    words = "which threshold of near zero makes an abrupt turn, if any"
    add_json(add("emergence", _emergence, words))
    parser = add("plot", _plot, "draw what happened so far")
    _add_output(parser, "the picture to write; its ending says the format", "overview.png")
    parser = add("report", _report, "one page of HTML with everything in it", several)
    _add_output(parser, "the page to write", "report.html")
    words = "the same page of all runs, live, in a browser"
    parser = add("show", _show, words, several)
    parser.add_argument(
        "--port", type=int, default=6020, help="of this machine alone (default: 6020; 0: any)"
    )
    words = "healthy or too early, look, broken: exit status 0, 1, 2, of several runs the worst"
    parser = add("status", _status, words, several)
    add_json(parser)
    words = "a line of JSON for each change of state or events, until all runs have ended"
    parser.add_argument("--watch", action="store_true", help=words)
    words = "leave out events that were reported up to this step"
    parser.add_argument("--since", metavar="STEP", type=int, help=words)
    words = "the JSON Schema of a line of the log, or of an audit's findings"
    parser = add_command(commands, "schema", _schema, words)
    parser.add_argument("kind", nargs="?", choices=sorted(_LOGGED), help="of one file alone")
    words = "runs side by side, as far as they can be compared"
    parser = add_command(commands, "compare", _compare, words)
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="where a run logs to, or a folder of runs"
    )
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
    return _begun(load(logdir, name=name), logdir)


def _begun(run: Run, logdir: Path) -> Run:
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


def _schema(arguments: argparse.Namespace) -> None:
    classes = _LOGGED.values() if arguments.kind is None else [_LOGGED[arguments.kind]]
    print(json.dumps(json_schema(*classes), indent=2))


def _summary(arguments: argparse.Namespace) -> None:
    runs = _runs_at(arguments.logdir)
    if len(runs) == 1:
        found = digest(_begun(runs[0], arguments.logdir))
        print(to_json(found) if arguments.json else fold(_in_lines(found, is_all=arguments.all)))
        return
    told = [(run.name, _digest_or_why(run)) for *_, run in _worst_first(runs)]
    if arguments.json:
        every = [{"name": n, "error": x} if isinstance(x, str) else x for n, x in told]
        print(to_json({"runs": every}))
        return
    for number, (name, one) in enumerate(told):
        text = one if isinstance(one, str) else _in_lines(one, is_all=arguments.all)
        print("\n\n" * (number > 0) + fold(f"{printable(name)}\n\n{text}"))


def _digest_or_why(run: Run) -> Digest | str:
    """A run in short, or why it cannot be read: one hides no other."""
    try:
        return digest(_begun(run, run.directory or Path()))
    except (SparsityWatchError, OSError) as error:
        return redacted(str(error))


def _in_lines(summary: Digest, *, is_all: bool) -> str:
    unit, provenance = summary.provenance.unit, summary.provenance
    snapshots = count(summary.num_records, "snapshot")
    steps = f"{unit}s {summary.first_step:,} to {summary.last_step:,}"
    invalid = f"{summary.num_invalid} invalid; stall {summary.cost.stall_s:.1f} s"
    lines = [
        redacted(summary.verdict.describe()),
        "",
        f"{snapshots} at {steps}, {invalid}",
        f"{summary.scope.describe()}; pattern {provenance.pattern}, {provenance.evaluation}",
    ]
    if provenance.proxy_hash:
        informative = f"informative at {summary.num_informative} of {snapshots}"
        lines.append(
            f"evaluated at {summary.num_evaluated}, {informative}; tolerance {provenance.tolerated}"
        )
    lines += ["", *_series(summary, is_all=is_all), "", count(len(summary.events), "event")]
    for event in summary.events:
        lines += [f"  {event.describe()}", f"    {event.advice}"]
    each = ((step, text) for step, texts in summary.notes.items() for text in texts)
    notes = [f"  {numbered(unit, step)}: {text}" for step, text in each]
    return "\n".join(lines + (["", count(len(notes), "note"), *notes] if notes else []))


def _series(summary: Digest, *, is_all: bool) -> list[str]:
    """The table of the series that matter most, and of counts of weights that are broken."""
    every, at = summary.series, f"at {summary.provenance.unit}"
    rule = next((name.partition("/")[2] for name in every if name.startswith("near_zero/")), "")
    shown = {*with_beside((name.format(rule=rule) for name in LEADING), every, rule)}
    shown |= {name for name in ("weights/num_nan", "weights/num_inf") if summary.last(name) > 0}
    rows = [("series", "first", "last", "lowest", at, "highest", at)]
    for name, one in every.items():
        if is_all or name in shown:
            ends = map(describe(name).shown, (one.first, one.last, one.lowest, one.highest))
            first, last, lowest, highest = ends
            steps = f"{one.lowest_step:,}", f"{one.highest_step:,}"
            rows.append((name, first, last, lowest, steps[0], highest, steps[1]))
    left = len(every) + 1 - len(rows)
    return align(rows, right=set(range(1, 7))) + ([f"and {left} more: --all"] if left else [])


def _scope(arguments: argparse.Namespace) -> None:
    info = load(arguments.logdir).info
    if info is None:
        raise ConfigurationError(
            f"Expected run.json, which has the scope ledger, found none in "
            f"{str(arguments.logdir)!r}."
        )
    print(fold(ledger_in_short(info.ledger)))
    rows = [(one.name, one.dimensions, f"{one.num_weights:,}") for one in info.ledger]
    found: dict[str, list[str]] = {}  # the reason once, so that BERT-base fits in 80 columns
    for one, line in zip(info.ledger, align(rows, right={2}), strict=True):
        found.setdefault(f"{'in' if one.in_scope else 'out'}: {one.why}", []).append(line)
    for reason, lines in sorted(found.items()):
        print(fold("\n".join(["", reason, *lines])))


def _plot(arguments: argparse.Namespace) -> None:
    # drawing takes a second to import; the other commands should not wait for it
    from sparsitywatch.plots import overview_figure, save_figure

    figure, path = overview_figure(_read(arguments.logdir)), arguments.output
    try:
        save_figure(figure, path)
    except (OSError, ValueError) as error:  # it cannot be, there or in this format
        raise ConfigurationError(
            f"Expected `--output` to be a picture that can be written, got {str(path)!r}: {error}."
        ) from error
    print(path)


def _report(arguments: argparse.Namespace) -> None:
    runs = _runs_at(arguments.logdir)
    read = [run for *_, run in _worst_first(runs)] if len(runs) > 1 else runs
    write_page(arguments.output, render(*read), "--output")
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
    runs = _runs_at(arguments.logdir)
    if arguments.watch:
        return _follow(arguments.logdir, runs, arguments.since)
    if len(runs) > 1:
        return _status_of_several(_worst_first(runs, arguments.since), as_json=arguments.json)
    found, events = _standing(runs[0], arguments.since)
    if arguments.json:
        print(json.dumps(_as_told(runs[0].name, found, events)))
    else:
        print(fold(redacted(found.describe())))
    return found.exit_code


def _runs_at(logdir: Path) -> list[Run]:
    """The run that logs there, or those that log below."""
    below = [] if log_of(logdir) else list(logs_below(logdir))
    if len(below) > 1:
        return [load(place, name=name) for name, place in below]
    return [load(below[0][1] if below else logdir)]


def _standing(run: Run, since: int | None) -> tuple[Verdict, Sequence[Event]]:
    """How a run stands by the events that were reported after a step."""
    if since is None:
        return run.verdict, run.events
    events = [event for event in run.events if event.reported_step > since]
    return verdict(run.records, events, run.info, now=time.time()), events


def _read_status(run: Run, since: int | None) -> tuple[str, Verdict, Sequence[Event], bool]:
    """How a run stands, and whether nothing more comes; one that cannot be read is broken."""
    try:
        state = None if run.info is None else run.info.state
        has_ended = state is None or state.status != "on" or has_died(state)
        return run.name, *_standing(run, since), has_ended
    except (SparsityWatchError, OSError) as error:
        return run.name, Verdict(
            state="broken", badge="cannot be read", trouble="the log cannot be read",
            headline=f"The log cannot be read: {redacted(str(error))}",
            advice="Mend the file that is named, or take the folder away.",
        ), (), True  # fmt: skip


def _worst_first(runs: list[Run], since: int | None = None) -> list[_Stands]:
    """How runs stand: the gravest first, of equals the one that was heard of last."""
    read = [(*_read_status(run, since)[:3], run) for run in runs]
    return sorted(read, key=lambda one: one[1].urgency, reverse=True)


def _follow(logdir: Path, runs: list[Run], since: int | None) -> int:
    """A line of JSON at first and for each change, until every run has ended."""
    told: dict[str, Any] = {}
    while True:
        read = [_read_status(run, since) for run in runs]
        for name, found, events, _ in read:
            now = {"state": found.state, "events": [event.id for event in events]}
            if told.get(name) != now:
                told[name] = now
                line = _as_told(name, found, events)
                kept = ("name", "state", "last_step", "headline", "advice")
                print(json.dumps({key: line[key] for key in kept} | now), flush=True)
        if all(has_ended for *_, has_ended in read):
            return max(found.exit_code for _, found, *_ in read)
        time.sleep(_POLL_S)
        old = {run.directory: run for run in runs}
        runs = [old.get(run.directory, run).again(now=time.time()) for run in _runs_at(logdir)]


def _as_told(name: str, verdict: Verdict, events: Sequence[Event]) -> dict[str, Any]:
    """How a run stands, for programs."""
    told = [
        {"id": e.id, "severity": e.severity, "headline": e.headline, "advice": e.advice}
        for e in events
    ]
    last = verdict.last_step if verdict.last_step >= 0 else None
    return {"name": name, **asdict(verdict), "last_step": last, "events": told}


def _status_of_several(runs: list[_Stands], *, as_json: bool) -> int:
    """Each run with its headline, the worst first; returns the exit status of the worst."""
    if as_json:
        print(json.dumps({"runs": [_as_told(*one[:3]) for one in runs]}))
    else:
        rows, headlines = [("run", "state", "last", "age", "events")], [""]
        for name, verdict, *_ in runs:
            last = f"{verdict.last_step:,}" if verdict.last_step >= 0 else "none"
            age = duration(time.time() - verdict.heard) if verdict.heard >= 0.0 else "unknown"
            rows.append((name, verdict.state, last, age, f"{verdict.num_events:,}"))
            headlines.append(f"  {redacted(verdict.headline)}")
        pairs = zip(align(rows, right={2, 3, 4}), headlines, strict=True)
        print(fold("\n".join(line for pair in pairs for line in pair if line)))
    return max(verdict.exit_code for _, verdict, *_ in runs)


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
    print(fold("\n".join((*found.conclusions, asked))))
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
    runs, notes = _read_all(arguments.runs)
    groups = [group for group in alike(runs, weights_only=True) if len(group) > 1]
    if not groups:
        raise ConfigurationError(
            "Expected runs that watch the same weights, got runs that differ in\n"
            + "\n".join(differences(runs, weights_only=True))
        )
    if apart := differences(runs, weights_only=True):
        notes += ["Runs of different weights are not compared:", *map(redacted, apart)]
    digests = []
    for group in groups:
        whole = [] if arguments.weights_only else alike(group)[0]
        whole = whole if len(whole) > 1 else []
        digests.append([digest(run, weights_only=run not in whole) for run in group])
        notes += _notes(digests[-1]) + _left_out(group, whole, asked=arguments.weights_only)
    if arguments.json:
        every = [one for group in digests for one in group]
        told = {"weights_only": arguments.weights_only, "notes": notes, "runs": every}
        print(to_json({**told, "groups": [[one.name for one in group] for group in digests]}))
        return
    lines = notes + [line for group in digests for line in ["", *_table(group)]]
    print(fold("\n".join(lines).lstrip()))


def _read_all(logdirs: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Every run by a short name of its own, a folder being its runs; and which are not read."""
    given = [Path(os.path.normpath(logdir.absolute())) for logdir in logdirs]
    logs = [[place] if log_of(place) else [log for _, log in logs_below(place)] for place in given]
    found = [log for place, below in zip(given, logs, strict=True) for log in below or [place]]
    places = dict.fromkeys(log.parent if log.name == "sparsitywatch" else log for log in found)
    if len(places) < 2:
        raise ConfigurationError(
            "Expected RUN to be two or more different runs, got "
            f"{', '.join(str(logdir) for logdir in logdirs)}."
        )
    common = Path(os.path.commonpath(places))
    runs, errors = [], {}
    for place in places:
        name = str(place.relative_to(common) if place != common else place)
        try:
            run = _read(place, name)
            run.verdict  # noqa: B018 of which all is read
            runs.append(run)
        except SparsityWatchError as error:
            errors[name] = error
    if len(runs) < 2:
        raise next(iter(errors.values()))
    return runs, [redacted(f"{name} is not compared: {error}") for name, error in errors.items()]


def _notes(runs: Sequence[Digest]) -> list[str]:
    """What to know of the numbers of runs that are compared."""
    # that a run is quiet says nothing where its watch did not see to the end
    notes = [redacted(f"{run.name}: {run.verdict.trouble}.") for run in runs if run.verdict.trouble]
    if len({run.provenance.unit for run in runs}) > 1:
        words = ", ".join(f"{printable(run.name)} by {run.provenance.unit}s" for run in runs)
        notes.append(f"The runs are numbered by different things: {words}.")
    return notes


def _left_out(group: Sequence[Run], whole: Sequence[Run], *, asked: bool) -> list[str]:
    """What is not compared of runs that watch the same weights, and why."""
    notes, lines = [], [redacted(line) for line in differences(group)]
    if asked:
        notes.append("Weights only: what depends on a proxy is left out.")
    elif lines:
        names = ", ".join(printable(run.name) for run in whole)
        shown = f"It is shown of {names}" if whole else "It is left out"
        notes.append(f"What depends on a proxy cannot be compared between all runs. {shown}.")
    if lines:
        notes += ["The runs differ in", *lines]
    if any(line.startswith("  dtypes:") for line in lines):
        notes.append("Rounding to another dtype changes which weights pass as dormant.")
    return notes


def _table(runs: Sequence[Digest]) -> list[str]:
    units = "/".join(sorted({run.provenance.unit for run in runs}))
    header = ("run", "snapshots", f"last {units}", "near zero", "dormant", "decay clock")
    estimates = ("essential sparsity",) if any(one.is_whole for one in runs) else ()
    rules = (name for name in runs[0].series if name.startswith("near_zero/"))
    rule = next((name for name in rules if all(name in run.series for run in runs)), "")
    rows = [_row(run, rule)[: len(header) + len(estimates)] for run in runs]
    lines = ["At the end", *align([(*header, *estimates), *rows], right=set(range(1, 6))), ""]
    events = [
        (run.name, event.series, event.direction, event.onset, f"{event.detected_step:,}",
         _number(run.onset_clock[event.id]))
        for run in runs for event in run.events
    ]  # fmt: skip
    if not events:
        return [*lines, "Events: none"]
    header = ("run", "series", "", "began", "seen", "decay clock when it began")
    quiet = [(run.name, "none", "", "", "", "") for run in runs if not run.events]
    return [*lines, "Events", *align([header, *events, *quiet], right={3, 4, 5})]


def _row(run: Digest, rule: str) -> tuple[str, ...]:
    snapshots = f"{run.num_records}" + (f" ({run.num_invalid} invalid)" if run.num_invalid else "")
    shown = [describe(name).shown(run.last(name)) for name in (rule, "motion/dormant")]
    estimate = run.essential_sparsity
    essential = "not measured" if estimate is None else estimate.describe(percent)
    essential = essential if run.is_whole else "not compared"
    clock = _number(run.last("motion/decay_clock"))
    return (run.name, snapshots, f"{run.last_step:,}", *shown, clock, essential)


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.4g}"
