"""``sparsitywatch run``: a script as Python runs it, and a watch on whatever trains in it.

Nothing that the script may want to set up is imported before it: torch, numpy and their threads.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any

from sparsitywatch.errors import ConfigurationError, expect, expect_whole
from sparsitywatch.redact import logger, redacted, redacted_error


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    words = "run a training script as it is, and watch what it trains"
    parser = commands.add_parser("run", help=words, allow_abbrev=False)
    parser.set_defaults(run=run)
    add = parser.add_argument
    words = "a folder of logs, one a model (default: runs/NAME of the script)"
    add("--logdir", metavar="DIR", type=Path, help=words)
    words = "optimizer steps between snapshots (default: 500)"
    add("--every", metavar="N", type=int, default=500, help=words)
    words = "largest share of the wall time, in (0, 1], or none (default: 0.01)"
    add("--max-overhead", metavar="SHARE", type=_number_or_none, default=0.01, help=words)
    add("command", metavar="SCRIPT", nargs=argparse.PARSER, help="the script, and its arguments")


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


def run(arguments: argparse.Namespace) -> int:
    """Run a script; returns 0 unless it raises."""
    command, share = arguments.command, arguments.max_overhead
    command = command[1:] if command[0] == "--" else command  # as of some versions of argparse
    script = command[0]
    tell = Teller(sys.stderr)  # the one of now: a script may look at what it puts in its place
    try:
        expect_whole("--every", arguments.every, 1)
        expect(share is None or 0.0 < share <= 1.0, "--max-overhead", "in (0, 1], or none", share)
        with io.open_code(script) as file:
            source = file.read()
    except (ConfigurationError, OSError) as error:
        tell(str(error))
        return 2  # as Python, too, does without a file
    tell.setLevel(logging.WARNING)
    logger.addHandler(tell)
    logger.propagate = False
    logdir = (arguments.logdir or Path("runs", Path(script).stem)).absolute()
    found: list[Any] = []

    def attach() -> None:
        try:
            from sparsitywatch.live.unedited import Unedited

            found.append(Unedited(logdir, tell, every=arguments.every, max_overhead=share))
        except Exception as error:  # noqa: BLE001 it is not the script's
            tell(f"nothing is watched: {redacted_error(error)}")

    def end() -> None:
        if not any(one.num_looked_at for one in found):
            words = "no optimizer of torch took a step in this process: nothing was watched"
            tell(f"{words}. Use `sw.watch` where the training is")

    atexit.register(end)  # the last: threads of the script go on after it
    _after_torch(attach)
    _execute(source, command)
    return 0


class Teller(logging.StreamHandler):  # type: ignore[type-arg]
    """Says words, and what the library logs; where that cannot be done, nothing."""

    def __call__(self, words: str) -> None:
        """Say them."""
        self.handle(logging.makeLogRecord({"msg": f"sparsitywatch: {redacted(words)}"}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 as the base has it
        """Nothing: a script may have closed the stream."""


def _after_torch(then: Callable[[], object]) -> None:
    """Call a function as soon as torch has been imported."""

    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(finder)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, finder)  # a script may ask where torch is before it imports it
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                if finder in sys.meta_path:
                    sys.meta_path.remove(finder)
                    then()

            spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec

    finder: Any = SimpleNamespace(find_spec=find_spec)
    if "torch" in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, finder)


def _execute(source: bytes, command: Sequence[str]) -> None:
    """Run a script as ``python SCRIPT ...`` does, in a ``__main__`` of its own."""
    main = ModuleType("__main__")
    names = vars(main)
    file = os.path.join(os.getcwd(), command[0])  # noqa: PTH109, PTH118 with its dots, as Python
    names |= {"__annotations__": {}, "__builtins__": builtins, "__cached__": None, "__file__": file}
    names["__loader__"] = SourceFileLoader("__main__", file)
    sys.modules["__main__"], sys.argv = main, list(command)
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = str(Path(file).resolve().parent)
    try:
        exec(compile(source, file, "exec", dont_inherit=True), names)  # noqa: S102 as was asked
    except BaseException:
        show = sys.excepthook

        def shown(kind: Any, error: BaseException, trace: TracebackType | None) -> None:
            # by name: whoever held the script's globals would keep them until there is no stdout
            while trace is not None and trace.tb_frame.f_code.co_filename != file:
                trace = trace.tb_next
            show(kind, error.with_traceback(trace), trace)

        sys.excepthook = shown  # by which Python shows what a script does not catch
        raise
