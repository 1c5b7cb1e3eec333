"""``sparsitywatch replay``: saved checkpoints measured as a live watch would have."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import signal
import sys
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sparsitywatch.cli.options import (
    add_command,
    add_measuring_options,
    model_and_proxy,
    places_of,
    reading_options,
    settings_of,
)
from sparsitywatch.errors import ConfigurationError, MeasurementError
from sparsitywatch.progress import Progress
from sparsitywatch.records import Event, Record, to_json
from sparsitywatch.redact import printable, redacted_url
from sparsitywatch.series import count

if TYPE_CHECKING:  # torch takes a second to import
    from sparsitywatch.offline.driver import Failure, Replayed

#: Exit status when some checkpoints could not be measured, or none is; the others are in the log.
_NOT_ALL_MEASURED = 2
_INTERRUPTED = 130
#: Options that are arguments of ``replay`` of the same name.
_AS_GIVEN = ("logdir", "initial_rms", "lr", "weight_decay", "steps_per_epoch", "follow", "poll_s",
             "idle_timeout_s", "keep_spectra", "each")  # fmt: skip


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    words = "measure saved checkpoints as a live watch would have"
    description = "Measure saved checkpoints, by step. Started again, it does what is missing."
    parser = add_command(commands, "replay", _run, words, description)
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


def _run(arguments: argparse.Namespace) -> int:
    options = reading_options(arguments)
    if arguments.workers < 1:
        raise ConfigurationError(f"Expected `--workers` >= 1, got {arguments.workers}.")
    from sparsitywatch.offline.jobs import processes
    from sparsitywatch.offline.replay import replay

    settings = settings_of(arguments)
    model, proxy = model_and_proxy(arguments)
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
                places_of(arguments),
                model=model,
                proxy=proxy,
                executor=executor,
                settings=settings,
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
    return 0 if is_any and not replayed.failures else _NOT_ALL_MEASURED


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
        series = record.series()
        self._say("record", step=record.step, unit=unit, valid=valid, series=series)

    def event(self, event: Event) -> None:
        fields = json.loads(to_json(event))
        self._say("event", self._before + event.describe(), event_kind=fields.pop("kind"), **fields)

    def failure(self, failure: Failure) -> None:
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
            print(text, file=stream, flush=True)


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


def _fields(failure: Failure) -> dict[str, Any]:
    return {**asdict(failure), "url": redacted_url(failure.url)}
