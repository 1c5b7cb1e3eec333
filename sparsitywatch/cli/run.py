"""``sparsitywatch run``: a script as Python runs it, and a watch on whatever trains in it.

Nothing that the script may want to set up is imported before it: torch, numpy and their threads.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import contextlib
import importlib.util
import io
import logging
import os
import runpy
import sys
import textwrap
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
    words = "a folder of logs, one a model (default: runs/NAME of the script or the module)"
    add("--logdir", metavar="DIR", type=Path, help=words)
    words = "optimizer steps between snapshots (default: 500)"
    add("--every", metavar="N", type=int, default=500, help=words)
    words = "largest share of the wall time, in (0, 1], or none (default: 0.01)"
    add("--max-overhead", metavar="SHARE", type=_number_or_none, default=0.01, help=words)
    words = "which weights count: blocks (the default), paper, layers, matrices, or a pattern of "
    words += "names such as '*.query.weight'; patterns may be repeated"
    add("--scope", metavar="PRESET|PATTERN", action="append", help=words)
    words = "a sparsitywatch.Proxy, or what returns one; the script's own are __main__:FUNCTION"
    add("--proxy", metavar="MODULE:FUNCTION", help=words)
    words = "SCRIPT is a module or a package, as of python -m"
    add("-m", dest="is_module", action="store_true", help=words)
    add("command", metavar="SCRIPT", nargs=argparse.PARSER, help="the script, and its arguments")


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


def run(arguments: argparse.Namespace) -> int:
    """Run a script or a module; returns 0 unless it raises."""
    command, is_module = arguments.command, arguments.is_module
    command = command[1:] if command[0] == "--" else command  # as of some versions of argparse
    tell = Teller(sys.stderr)  # the one of now: a script may look at what it puts in its place
    try:
        watching = _options(arguments, command[0])
        source = b"" if is_module else _read(command[0])
    except (ConfigurationError, OSError) as error:
        tell(str(error))
        return 2  # as Python, too, does without a file
    end = begin(tell, watching)
    atexit.register(end)  # the last: threads of the script go on after it
    if is_module:
        _execute_module(command)
    else:
        _execute(source, command)
    return 0


def _options(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """What ``begin`` needs, as plain data; a ConfigurationError if an option means nothing."""
    share, proxy = arguments.max_overhead, arguments.proxy
    expect_whole("--every", arguments.every, 1)
    expect(share is None or 0.0 < share <= 1.0, "--max-overhead", "in (0, 1], or none", share)
    parts = () if proxy is None else proxy.split(":")
    expect(proxy is None or (len(parts) == 2 and all(parts)), "--proxy", "module:function", proxy)
    name = command if arguments.is_module else Path(command).stem
    scope = {} if arguments.scope is None else {"scope": arguments.scope}
    if len(arguments.scope or ()) == 1 and "*" not in arguments.scope[0]:  # a preset, by its name
        scope["scope"] = arguments.scope[0]
    return {
        "logdir": str((arguments.logdir or Path("runs", name)).absolute()),
        "main": name,
        "proxy": proxy,
        "options": {"every": arguments.every, "max_overhead": share, **scope},
    }


def _read(script: str) -> bytes:
    with io.open_code(script) as file:
        return file.read()


def begin(tell: Teller, given: dict[str, Any], *, is_worker: bool = False) -> Callable[[], None]:
    """Watch what trains in this process once it has imported torch; returns what ends that."""
    tell.setLevel(logging.WARNING)
    logger.addHandler(tell)
    logger.propagate = False
    found: list[Any] = []
    workers = _Workers(given)

    def attach() -> None:
        try:
            from sparsitywatch.integrations.evaluations import Found
            from sparsitywatch.live.unedited import Unedited

            of_trainer = Found(given["proxy"], (given["main"], "__main__"))
            found.append(Unedited(Path(given["logdir"]), tell, of_trainer, **given["options"]))
            workers.follow()
        except Exception as error:  # noqa: BLE001 it is not the script's
            tell(f"nothing is watched: {redacted_error(error)}")

    def end() -> None:
        if not is_worker and not any(one.num_looked_at for one in found):
            words = "no optimizer of torch took a step in this process: nothing was watched"
            tell(f"{words}. {workers.advice}")
        try:
            for words in _verdicts({k: v for one in found for k, v in one.claims.items()}):
                tell(words)
        except Exception as error:  # noqa: BLE001 it is not the script's
            tell(f"no verdict: {redacted_error(error)}")
        if getattr(sys, "last_type", None) is KeyboardInterrupt:
            # that this has ended the process Python forgets with any text that is run since
            with contextlib.suppress(KeyboardInterrupt):
                exec("raise KeyboardInterrupt")  # noqa: S102

    _after_torch(attach)
    return end


def _verdicts(claims: dict[str, Any]) -> list[str]:
    """How each model stands at the end, the worst last: where a terminal's reader looks."""
    places = {name: claim.directory for name, claim in claims.items()}
    if not places:
        return []
    from sparsitywatch.page.render import load

    found = [(name, load(place).verdict) for name, place in places.items() if place.is_dir()]
    found.sort(key=lambda one: one[1].exit_code)
    told = []
    for name, verdict in found:
        lines = f"{name}: {verdict.describe()}".splitlines()
        own = [textwrap.fill(line, 65, subsequent_indent="  ") for line in lines]
        told.append("\n".join([*own, f"More: sparsitywatch show {places[name].parent}"]))
    return told


class _Workers:
    """Processes that the script starts anew, as ``mp.spawn`` does: they watch what they train."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given, self._any = given, False

    @property
    def advice(self) -> str:
        """What to do where this process trains nothing."""
        if self._any:
            return "The processes that it started say what they watch"
        return "Use `sw.watch` where the training is"

    def follow(self) -> None:
        """From now on tell each how to watch, with what Python tells it to prepare with."""
        from multiprocessing import spawn

        prepared = spawn.get_preparation_data

        def told(name: str) -> dict[str, Any]:
            process = sys._getframe(1).f_locals.get("process_obj")
            target = getattr(getattr(process, "_target", None), "__module__", "") or ""
            if target.startswith("torch.utils.data."):  # it loads batches
                return prepared(name)
            self._any = True
            return prepared(name) | {"sparsitywatch": _InWorker(self._given)}

        spawn.get_preparation_data = told


class _InWorker:
    """What a process unpickles before it prepares, and watches by; one that cannot goes on."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given

    def __reduce__(self) -> tuple[Any, ...]:
        # by the words alone: where the library is not found, nothing may fail
        where = str(Path(__file__).parents[2])
        return exec, (_IN_WORKER, {"where": where, "given": self._given})


_IN_WORKER = """
import sys
sys.path.append(where)  # until it is given the path of its parent
try:
    from sparsitywatch.cli.run import in_worker
except Exception as error:
    print("sparsitywatch: a worker is not watched:", error, file=sys.stderr)
else:
    in_worker(given)
"""


def in_worker(given: dict[str, Any]) -> None:
    """Watch what trains in a process that one under watch has started."""
    from multiprocessing.util import Finalize

    # after its watches have been closed, and before it is gone; one that trains nothing says so
    Finalize(None, begin(Teller(sys.stderr), given, is_worker=True), exitpriority=-100)


class Teller(logging.StreamHandler):  # type: ignore[type-arg]
    """Says words, and what the library logs; where that cannot be done, nothing."""

    def __call__(self, words: str) -> None:
        """Say them, each line as ours."""
        for line in words.splitlines():
            self.handle(logging.makeLogRecord({"msg": f"sparsitywatch: {redacted(line)}"}))

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
    file = os.path.join(os.getcwd(), command[0])  # noqa: PTH109, PTH118 with its dots, as Python
    names = {"__cached__": None, "__file__": file, "__loader__": SourceFileLoader("__main__", file)}
    _begin_main(names, command, str(Path(file).resolve().parent))
    names = vars(sys.modules["__main__"])
    try:
        exec(compile(source, file, "exec", dont_inherit=True), names)  # noqa: S102 as was asked
    except BaseException:
        _show_below(_execute)
        raise


def _execute_module(command: Sequence[str]) -> None:
    """Run a module or a package as ``python -m NAME ...`` does, whose own words say what fails."""
    _begin_main({}, ["-m", *command[1:]], os.getcwd())  # noqa: PTH109
    try:
        runpy._run_module_as_main(command[0])  # type: ignore[attr-defined] # which Python calls
    except BaseException:
        _show_below(_execute_module)
        raise


def _begin_main(names: dict[str, Any], argv: Sequence[str], folder: str) -> None:
    """Put a ``__main__`` of the script's own, its arguments, and where it looks for modules."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main).update({"__annotations__": {}, "__builtins__": builtins, **names})
    sys.argv = list(argv)
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = folder


def _show_below(ours: Callable[..., None]) -> None:
    """Show what the script does not catch as Python does: without the frames up to our own."""
    show = sys.excepthook  # by which Python shows it

    def shown(kind: Any, error: BaseException, trace: TracebackType | None) -> None:
        # by name: whoever held the script's globals would keep them until there is no stdout
        while trace is not None and trace.tb_frame.f_code is not ours.__code__:
            trace = trace.tb_next
        trace = trace and trace.tb_next
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = shown
