"""``sparsitywatch run``: a script as Python runs it, and a watch on whatever trains in it.

Nothing that the script may want to set up is imported before it: torch, numpy and their threads.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
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
    script, share = arguments.command[0], arguments.max_overhead
    try:
        expect_whole("--every", arguments.every, 1)
        expect(share is None or 0.0 < share <= 1.0, "--max-overhead", "in (0, 1], or none", share)
        with io.open_code(script) as file:
            source = file.read()
    except (ConfigurationError, OSError) as error:
        _tell(str(error))
        return 2  # as Python, too, does without a file
    logger.addHandler(logging.lastResort or logging.NullHandler())  # stderr, wherever others go
    logger.propagate = False
    logdir = (arguments.logdir or Path("runs", Path(script).stem)).absolute()
    found: list[Any] = []

    def attach() -> None:
        try:
            from sparsitywatch.live.unedited import Unedited

            found.append(Unedited(logdir, _tell, every=arguments.every, max_overhead=share))
        except Exception as error:  # noqa: BLE001 it is not the script's
            _tell(f"nothing is watched: {redacted_error(error)}")

    _after_torch(attach)
    try:
        _execute(source, arguments.command)
    finally:
        if not any(one.num_looked_at for one in found):
            _tell("no optimizer of torch took a step in this process: nothing was watched")
    return 0


def _tell(words: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the script may have closed it
        print(f"sparsitywatch: {redacted(words)}", file=sys.stderr)


def _after_torch(then: Callable[[], object]) -> None:
    """Call a function as soon as torch has been imported."""

    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(finder)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            # what it returns nobody looks at
            spec.loader.exec_module = lambda module: (execute(module), then())  # type: ignore
        return spec

    finder: Any = SimpleNamespace(find_spec=find_spec)
    if "torch" in sys.modules:
        then()
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
            while trace is not None and trace.tb_frame.f_globals is not names:
                trace = trace.tb_next
            show(kind, error.with_traceback(trace), trace)

        sys.excepthook = shown  # by which Python shows what a script does not catch
        raise
