"""What is read from checkpoints: what they hold, what they are, and what a watch says of them."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import shlex
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sparsitywatch.cli.options import (
    add_checkpoint_options,
    add_command,
    add_json,
    add_measuring_options,
    add_places,
    align,
    fold,
    measuring_options,
    reading_options,
    settings_of,
    write_page,
)
from sparsitywatch.errors import CheckpointError, ConfigurationError, MeasurementError, ScopeError
from sparsitywatch.progress import Progress
from sparsitywatch.records import Event, Record, to_json
from sparsitywatch.redact import printable, redacted, redacted_url
from sparsitywatch.series import count, describe, percent, size

if TYPE_CHECKING:  # torch takes a second to import
    from sparsitywatch.checkpoints.series import ListedCheckpoint
    from sparsitywatch.lab.audit import Audit
    from sparsitywatch.offline.driver import Replayed
    from sparsitywatch.records import SparsityCurve

#: Exit status when something in the list cannot be read, or not yet; when some checkpoints could
#: not be measured, or none is: the others are in the log.
_NOT_ALL = 2
_INTERRUPTED = 130
#: For other programs a line, which may have an address, stays whole.
_fold = functools.partial(fold, piped=10**9)
_align = functools.partial(align, piped=10**9)
#: Options that are arguments of ``replay`` of the same name.
_AS_GIVEN = ("logdir", "initial_rms", "lr", "weight_decay", "steps_per_epoch", "follow", "poll_s",
             "idle_timeout_s", "keep_spectra", "each")  # fmt: skip


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of the command line."""
    words = "what checkpoints hold, and which of it would count"
    parser = add_command(commands, "inspect", _inspect, words)
    add_checkpoint_options(parser)
    add_json(parser, "one JSON object a checkpoint")
    words = "are these checkpoints what their names say? exit status 0, 1, 2"
    parser = add_command(
        commands, "audit", _audit, words,
        "Look for copies, files of another run or step, swapped, cast and damaged ones "
        "in a series. Exit status 0: none; 1: there are findings; 2: nothing could be audited.",
    )  # fmt: skip
    add_places(parser)
    parser.add_argument("--full", action="store_true", help="read every weight, not a sample")
    add_json(parser, "one JSON object a finding")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write it as a page, too")
    words = "measure one checkpoint, by any pattern"
    parser = add_command(
        commands, "measure", _measure, words,
        "Measure one checkpoint: near-zero weights, and with a model and examples what "
        "removing weights costs. Nothing is written.",
    )  # fmt: skip
    add_measuring_options(parser, "the whole record as a line of JSON")
    _add_replay(commands)
    _add_export(commands)


# ------------------------------------------------------------------ inspect


def _inspect(arguments: argparse.Namespace) -> int:
    from sparsitywatch.checkpoints.discovery import describe, discover

    options = reading_options(arguments)
    listed = discover(options.pop("urls"), **options)
    if len(listed) > 1:
        return _list(listed, as_json=arguments.json)
    description = describe(listed[0], settings_of(arguments).scope, **options)
    print(to_json(description) if arguments.json else _fold("\n".join(_described(description))))
    if description["scope_problem"]:
        raise ScopeError(description["scope_problem"])
    return 0


def _list(listed: Sequence[ListedCheckpoint], *, as_json: bool) -> int:
    from sparsitywatch.checkpoints.series import by_series, in_lines

    if as_json:
        for one in listed:
            said = asdict(replace(one, entries=()))
            del said["version"], said["checkpoint"]
            for address in ("url", "series"):
                said[address] = redacted_url(said[address])
            print(to_json(said))
    else:
        states = [one.state for one in listed]
        kinds = ", ".join(f"{states.count(state):,} {state}" for state in sorted(set(states)))
        rows = [("step", "from", "format", "state", "checkpoint")]
        for one in listed:
            step = "-" if one.step is None else str(one.step)
            step += "" if one.unit == "step" else f" ({one.unit})"
            rows.append((step, one.step_from or "-", one.format or "-", one.state, one.shown))
        print(f"{count(len(listed), 'checkpoint')}: {kinds}\n")
        print(_fold("\n".join(_align(rows, right={0}))))
        if len(series := by_series(listed)) > 1 or any(series):
            is_one = len(series) == 1
            how = "one run" if is_one else "a run each: name one of them, or give `--each`"
            print(f"\n{len(series):,} series, in a replay {how}")
            print(_fold("\n".join(map(printable, in_lines(series)))))
            if keys := sorted({repr(one.key) for one in listed if one.key}):
                print(_fold(printable(f"the model is what lies under {', '.join(keys)}")))
        for reason in (one.reason or one.note for one in listed if one.reason or one.note):
            print(f"\n{_fold(printable(reason))}")
    is_readable = all(one.state in ("complete", "duplicate", "foreign") for one in listed)
    return 0 if is_readable else _NOT_ALL


def _described(description: dict[str, Any]) -> list[str]:
    step = "no step is stated"
    if description["step"] is not None:
        where = description["step_from"]
        step = f"{description['unit']} {description['step']} "
        step += "(as given)" if where == "given" else f"(from its {where})"
    whole, chosen = description["total"], description["in_scope"]
    num_tensors = count(whole["num_tensors"], "tensor")
    if chosen is None:
        counted = f"{num_tensors}, {whole['num_weights']:,} weights, {size(whole['num_bytes'])}"
    else:
        share = percent(chosen["num_weights"] / whole["num_weights"])
        counted = (
            f"{chosen['num_tensors']:,} of {num_tensors} in scope, {chosen['num_weights']:,} of "
            f"{whole['num_weights']:,} weights ({share}), {size(chosen['num_bytes'])} of "
            f"{size(whole['num_bytes'])}; scope {description['scope_hash']}"
        )
    rows = [("scope", "tensor", "shape", "dtype", "bytes", "why")]
    for tensor in description["tensors"]:
        tied = f"the same as {', '.join(tensor['aliases'])}" if tensor["aliases"] else ""
        verdict = {True: "in", False: "out", None: "?"}[tensor["in_scope"]]
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        why = "; ".join(filter(None, (tensor["reason"], tied)))
        num_bytes = f"{tensor['num_bytes']:,}"
        rows.append((verdict, tensor["name"], shape, tensor["dtype"], num_bytes, why))
    return [
        description["url"],
        f"{description['format']}, {step}",
        counted,
        *_candidates(description),
        f"read to learn this: {size(description['num_bytes_read'])}, no weights",
        "",
        *_align(rows, right={4}),
    ]


def _candidates(description: dict[str, Any]) -> list[str]:
    """Which dictionary of tensors was read, and which others might have been."""
    key, among = description["key"], description["candidates"]
    if not key and len(among) < 2:
        return []
    others = [f"{name!r} ({count(num, 'tensor')})" for name, num in among.items() if name != key]
    beside = f"; beside it {', '.join(others)}" if others else ""
    return [printable(f"the model is what lies under {key!r}{beside}")]


# ------------------------------------------------------------------ audit


def _audit(arguments: argparse.Namespace) -> int:
    from sparsitywatch.offline.audit import audit

    progress = Progress("checkpoints")

    def begin(num_checkpoints: int, header_bytes: int, weight_bytes: int) -> None:
        read = "" if arguments.full else ", of which it reads samples"
        words = f"headers {size(header_bytes)}, weights {size(weight_bytes)}{read}"
        print(f"{count(num_checkpoints, 'checkpoint')}, {words}", file=sys.stderr)

    try:
        found = audit(
            full=arguments.full,
            on_begin=[begin],
            on_progress=[progress.show],
            **reading_options(arguments),
        )
    finally:
        progress.clear()
    for line in map(to_json, found.findings) if arguments.json else map(_fold, _found(found)):
        print(line)
    if arguments.html is not None:
        from sparsitywatch.page.audit import render_audit

        names = [arguments.steps] if arguments.steps else [*map(redacted_url, arguments.places)]
        more = f" and {len(names) - 1:,} more" * (len(names) > 1)
        write_page(arguments.html, render_audit(found, f"{names[0]}{more}"), "--html")
        print(arguments.html, file=sys.stderr)
    return found.status


def _found(found: Audit) -> list[str]:
    """The findings as a table, what to do about each kind, and what they rest on."""
    lines = []
    if found.findings:
        rows = [(found.unit, "finding", "evidence")]
        for one in found.findings:
            step = "-" if one.step is None else f"{one.step:,}"
            rows.append((step, one.finding, redacted(one.evidence)))
        lines += [*_align(rows, right={0}), ""]
        actions = {one.finding: one.action for one in found.findings}
        lines += [*(printable(f"{kind}: {action}") for kind, action in actions.items()), ""]
    return [*lines, f"{found.headline}; {found.basis}"]


# ------------------------------------------------------------------ measure


def _measure(arguments: argparse.Namespace) -> int:
    from sparsitywatch.offline.replay import replay

    replayed = replay(logdir=None, on_event=(), **measuring_options(arguments))
    if replayed.failures:
        raise CheckpointError(replayed.failures[0].reason)
    if len(replayed.records) != 1:
        raise ConfigurationError(
            f"Expected one checkpoint to measure, got {len(replayed.records)}. Name one of them, "
            "or use `sparsitywatch replay` for all."
        )
    (record,) = replayed.records
    print(to_json(record) if arguments.json else _fold("\n".join(_measured(record))))
    return 0 if record.valid else 1


def _measured(record: Record) -> list[str]:
    """The record in words and a table or two."""
    estimate = record.essential_sparsity
    lines = [f"{record.place}: {record.scope.describe()}"]
    # of one checkpoint the present size is the first
    near_zero = {rule.replace("initial_", "rms_"): x for rule, x in record.near_zero.items()}
    for rule, part in near_zero.items():
        lines.append(f"{describe(f'near_zero/{rule}').label}: {percent(part)}")
    lines += [f"note: {remark}" for remark in record.remarks()]
    if record.reason:
        lines.append(f"invalid: {printable(record.reason)}")
    if estimate is not None:
        drop = f"; {estimate.describe_drop(percent)}" if estimate.informative else ""
        why = f" ({printable(estimate.reason)})" if estimate.reason else ""
        lines.append(
            f"essential sparsity by {printable(record.provenance.pattern)}, zero-shot: "
            f"{estimate.describe(percent)}, tolerance {record.provenance.tolerated}{drop}{why}"
        )
    if record.curve is not None:
        lines += ["", *_points(record, record.curve)]
    return lines


def _points(record: Record, curve: SparsityCurve) -> list[str]:
    """Each point of the curve, and of the controls at the same level."""
    sign = -1.0 if curve.higher_is_better else 1.0
    controls = [
        dict(zip(control.level or (), control.value, strict=True))
        for control in record.controls.values()
    ]
    names = [f"harm by {printable(name)}" for name in record.controls]
    rows = [("removed", "value", "harm", "+-", *names)]
    errors = curve.stderr or [math.nan] * len(curve.value)
    points = zip(curve.level or curve.sparsity, curve.sparsity, curve.value, errors, strict=True)
    for level, sparsity, value, error in points:
        values = [value, *(control.get(level, math.nan) for control in controls)]
        harm, *others = [f"{sign * (other - curve.dense):.3g}" for other in values]
        rows.append((f"{sparsity:.1%}", f"{value:.5g}", harm, f"{error:.2g}", *others))
    return _align(rows, right=set(range(len(rows[0]))))


# ------------------------------------------------------------------ replay


def _add_replay(commands: Any) -> None:
    words = "measure saved checkpoints as a live watch would have"
    description = "Measure saved checkpoints, by step. Started again, it does what is missing."
    parser = add_command(commands, "replay", _replay, words, description)
    add_measuring_options(parser, "lines of JSON, not a progress bar")
    add = parser.add_argument
    add("--logdir", metavar="DIR", type=Path, required=True, help="where everything goes")
    add("--initial", metavar="RUN", type=Path, dest="initial_rms",
        help="the log directory of a run whose initial weights near-zero rules refer to; by "
        "default the first checkpoint")  # fmt: skip
    for name, what, default in (
        ("lr", "learning rate", "what trainer_state.json has logged"),
        ("weight-decay", "decoupled weight decay", "not known"),
    ):
        add(f"--{name}", metavar="NUMBER|CSV", type=_rate,
            help=f"{what} of the weights: a number, or a CSV file of steps and values; by default "
            f"{default}")  # fmt: skip
    add("--steps-per-epoch", metavar="N", type=int,
        help="optimizer steps in an epoch, where checkpoints are numbered by epochs")  # fmt: skip
    add("--workers", metavar="N", type=int, default=1, help="processes that measure (default: 1)")
    add("--follow", action="store_true", help="wait for the checkpoints of a run that goes on")
    add("--poll", metavar="S", type=float, default=5.0, dest="poll_s",
        help="seconds between two listings of the folder (default: 5)")  # fmt: skip
    add("--idle-timeout", metavar="S", type=float, dest="idle_timeout_s",
        help="end after so many seconds without news")  # fmt: skip
    add("--keep-spectra", metavar="N", type=int, default=1,
        help="keep the magnitude spectrum of every N-th checkpoint (default: 1)")  # fmt: skip
    add("--each", action="store_true",
        help="measure each series that is there, such as the runs of a sweep, into its own log "
        "below --logdir")  # fmt: skip


def _rate(text: str) -> float | str:
    """A number, or the path of a file."""
    try:
        return float(text)
    except ValueError:
        return text


def _replay(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1:
        raise ConfigurationError(f"Expected `--workers` >= 1, got {arguments.workers}.")
    from sparsitywatch.offline.jobs import processes
    from sparsitywatch.offline.replay import replay

    options = measuring_options(arguments)
    # everything that is logged is printed below
    logging.getLogger("sparsitywatch").addHandler(logging.NullHandler())
    output = _Reporter(as_json=arguments.json)
    with ExitStack() as stack:
        interruption = _Interruption(stack)
        stack.callback(output.close)
        num = arguments.workers
        executor = None if num == 1 else stack.enter_context(processes(num))
        try:
            replayed = replay(
                executor=executor,
                on_event=[output.event],
                on_record=[output.record],
                on_failure=[output.failure],
                on_progress=[output.progress, interruption.heed],
                on_waiting=[output.waiting],
                on_series=[output.series],
                until=interruption.heed if arguments.follow else None,
                **{name: vars(arguments)[name] for name in _AS_GIVEN},
                **options,
            )
        except KeyboardInterrupt:
            output.interrupted()
            return _INTERRUPTED
        except BrokenExecutor as error:
            raise MeasurementError(
                "A worker ended before its time, perhaps killed for its memory. The same command "
                "goes on from here; give fewer `--workers`."
            ) from error
    output.end(replayed)
    runs = replayed.each.values() or [replayed]
    is_any = all(any(record.was_read for record in one.records) for one in runs)
    return 0 if is_any and not replayed.failures else _NOT_ALL


class _Interruption:
    """What ends a service ends a sidecar as Ctrl-C does, and the log is finished."""

    def __init__(self, until: ExitStack) -> None:
        self._is_told = False
        for number in (signal.SIGINT, signal.SIGTERM):
            # nohup and the background of a shell ask that one is ignored
            if signal.getsignal(number) != signal.SIG_IGN:
                until.callback(signal.signal, number, signal.signal(number, self._tell))

    def heed(self, *_: object) -> bool:
        """Interrupt if it was told to and nobody heard: Python drops what a destructor raises."""
        if self._is_told:
            raise KeyboardInterrupt
        return False

    def _tell(self, *_: object) -> None:
        self._is_told = True
        raise KeyboardInterrupt


class _Reporter:
    """Says what happens: to people in lines, beside progress, to programs in objects of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.series("")

    def series(self, name: str) -> None:
        """What comes is of this series of several."""
        self._run = {"run": name} if name else {}
        self._before = f"{printable(name)}: " if name else ""
        self._progress = Progress(f"checkpoints{f' of {printable(name)}' if name else ''}")

    def progress(self, done: int, total: int) -> None:
        if self._as_json:
            self._say("progress", done=done, total=total)
        else:
            self._progress.show(done, total)

    def close(self) -> None:
        self._progress.clear()

    def record(self, record: Record) -> None:
        """One more; people see it by the progress."""
        unit, valid = record.provenance.unit, record.valid
        self._say("record", step=record.step, unit=unit, valid=valid, series=record.series())

    def event(self, event: Event) -> None:
        fields = json.loads(to_json(event))
        self._say("event", self._before + event.describe(), event_kind=fields.pop("kind"), **fields)

    def failure(self, failure: ListedCheckpoint) -> None:
        text = self._before + printable(failure.reason)
        self._say("failure", text, sys.stderr, **_fields(failure))

    def waiting(self, reason: str) -> None:
        text = printable(f"Waiting, as nothing is there yet: {reason}")
        self._say("waiting", text, sys.stderr, reason=reason)

    def interrupted(self) -> None:
        self._say("interrupted", "Interrupted; the same command goes on from here.", sys.stderr)

    def end(self, replayed: Replayed) -> None:
        self._run = {}
        for note in replayed.notes:
            self._say("note", printable(note), sys.stderr, reason=note)
        for one in replayed.left_out:
            self._say("left_out", printable(one.reason), sys.stderr, **_fields(one))
        for name, found in (replayed.each or {"": replayed}).items():
            if found.set_aside and not self._as_json:
                print(printable(found.set_aside), file=sys.stderr)
            self._say(
                "end",
                _summary(found, name),
                series=name,
                num_snapshots=found.num_snapshots,
                num_records=len(found.records),
                num_events=len(found.events),
                num_failures=len(found.failures),
                directory=str(found.directory),
                set_aside=found.set_aside,
            )
        if replayed.each and replayed.directory is not None and not self._as_json:
            logdirs = [str(replayed.directory / name) for name in replayed.each]
            print(f"All {len(logdirs):,} runs:" if len(logdirs) > 1 else "This run:")
            print(f"  tensorboard --logdir {shlex.quote(str(replayed.directory))}")
            if len(logdirs) > 1:
                print(f"  sparsitywatch compare {shlex.join(logdirs)}")

    def _say(self, kind: str, text: str = "", stream: TextIO | None = None, **fields: Any) -> None:
        """A line of its own, in the place of that of progress; for people only if it has a text."""
        if self._as_json:
            print(json.dumps({"kind": kind, **self._run, **fields}, allow_nan=False), flush=True)
        elif text:
            self._progress.clear()
            print(_fold(text), file=stream, flush=True)


def _summary(replayed: Replayed, name: str) -> str:
    """What came of one series, and what to look at it with; ``name`` is empty for the only one."""
    words = f"{printable(name)}: " if name else ""
    words += f"{count(replayed.num_snapshots, 'checkpoint')} measured"
    earlier = len(replayed.records) - replayed.num_snapshots
    if earlier > 0:
        words += f", {earlier:,} in the log already"
    words += f", {count(len(replayed.events), 'event')}"
    if replayed.failures:
        words += f", {len(replayed.failures):,} could not be read"
    words += "."
    if replayed.records and replayed.directory is not None:
        logdir = shlex.quote(str(replayed.directory.parent))
        if not name:  # several are shown side by side
            words += f"\n  tensorboard --logdir {logdir}"
        words += f"\n  sparsitywatch summary {logdir}"
    return words


def _fields(failure: ListedCheckpoint) -> dict[str, Any]:
    said = {name: vars(failure)[name] for name in ("url", "step", "reason", "unit")}
    return {**said, "url": failure.shown}


# ------------------------------------------------------------------ export

#: What can be exported, and the file by default.
_ARTEFACTS = {"masks": "masks.safetensors", "pruned": "pruned.safetensors", "budget": "budget.json"}


def _add_export(commands: Any) -> None:
    words = "write masks, a pruned checkpoint, or a sparsity for each tensor"
    parser = add_command(commands, "export", _export, words)
    add_measuring_options(parser, "the card as a line of JSON")
    add = parser.add_argument
    add("--at", metavar="SPARSITY|essential", required=True, type=_rate,
        help="how much goes: a fraction, or what is essential: of a run what it measured, of a "
        "checkpoint what is measured now")  # fmt: skip
    add("--what", choices=tuple(_ARTEFACTS), required=True,
        help="masks: bool, with the names of torch.nn.utils.prune; pruned: all tensors; budget: "
        "JSON for sw.patterns.from_budget, also of a run")  # fmt: skip
    add("--each", action="store_true",
        help="prune each tensor by what is essential of it alone; with a fraction, all by as much "
        "more or less as that takes")  # fmt: skip
    files = ", ".join(_ARTEFACTS.values())
    add("-o", "--output", metavar="FILE|FOLDER/",
        help="the new file, or with a slash at its end a folder, which gets config and tokenizer, "
        f"too (default: {files})")  # fmt: skip


def _export(arguments: argparse.Namespace) -> None:
    from sparsitywatch.offline.export import export

    options, output = measuring_options(arguments), arguments.output
    output = output or _ARTEFACTS[arguments.what]
    options |= {name: vars(arguments)[name] for name in ("what", "at", "each")}
    card = export(options.pop("urls"), output, **options)
    print(to_json(card) if arguments.json else _fold("\n".join([*card.lines(), str(output)])))
