"""Processes that are forked from one that has imported torch, which is most of what a start takes.

That one is started when it is first needed, and ends with the last process of tests. What a
program needs is imported there, once; the program begins from nothing, in a process of its own.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

TESTS = Path(__file__).resolve().parents[1]
#: What a watch loads when it is first used, for ``imports``.
WATCH = (
    "torch._dynamo,torch.distributed.checkpoint,torch.distributed.fsdp,"
    "torch.distributed.tensor.parallel,sparsitywatch.live.watch,sparsitywatch.sinks.tensorboard"
)
#: The same, and what a small BERT does.
WATCHED_BERT = f"{WATCH},transformers.models.bert.modeling_bert"
#: The same with a Trainer.
WITH_TRAINER = f"{WATCHED_BERT},transformers.trainer,sparsitywatch.integrations.huggingface"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Child:
    """A program in a process of its own, or on several ranks, as ``torchrun`` starts it.

    Args:
        program: a script, or code as for ``python -c``.
        imports: modules, with commas, that are imported before it is forked.
        num_ranks: 0: without ranks. One that fails ends the others.
        path: where modules are also looked for.
        cwd: where it is run; else here.
        output: a file to which all that is printed is added; else it is read from ``stdout``, and
            from ``errors``.
    """

    def __init__(
        self, program: Path | str, *arguments: object, imports: str = WATCH, num_ranks: int = 0,
        path: str = "", cwd: Path | None = None, output: Path | None = None,
    ) -> None:  # fmt: skip
        is_code = isinstance(program, str)
        request = {
            "code": program if is_code else "", "imports": imports.split(","), "ranks": num_ranks,
            "argv": ["-c" if is_code else str(program), *map(str, arguments)],
            "path": path.split(os.pathsep) if path else [], "cwd": str(cwd or Path.cwd()),
            "environment": os.environ | dict.fromkeys(THREADS, "1"),
        }  # fmt: skip
        (stdin, own_in), (own_out, stdout), (own_report, report) = (os.pipe() for _ in range(3))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as this
        given = [stdin, stdout, self._errors.fileno(), report]
        if output is not None:
            given[1] = given[2] = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _ask(request, given)
        for fd in {stdin, stdout, report, given[1]}:
            os.close(fd)
        self.stdin, self.stdout = os.fdopen(own_in, "w", 1), os.fdopen(own_out)
        self._report, self._ended = os.fdopen(own_report, buffering=1), ""
        if output is not None:
            self.stdout.close()
            self._errors.close()
        answer = self._report.readline()
        if not answer:
            raise RuntimeError("the process that forks others has ended; its stderr says why")
        #: Process ids of all that belongs to it, and of the program; of ranks that of the last.
        self.group, self.pid = map(int, answer.split())

    def wait(self, limit_s: float = 90.0) -> int:
        """Wait for what it returns: negative for a signal, of ranks 0 or 1.

        Raises:
            TimeoutError: it still runs.
        """
        if not self._ended:
            if not select.select([self._report], [], [], limit_s)[0]:
                raise TimeoutError(f"process {self.pid} still runs after {limit_s:g} s")
            self._ended = self._report.readline() or str(-signal.SIGKILL)
            self._report.close()
            self.stdin.close()
        return int(self._ended)

    def is_on(self) -> bool:
        """Whether it still runs."""
        return not self._ended and not select.select([self._report], [], [], 0.0)[0]

    def kill(self) -> None:
        """End it with all that belongs to it, and wait for that."""
        if self.is_on():
            os.killpg(self.group, signal.SIGKILL)
        self.wait()

    def communicate(self, limit_s: float = 90.0) -> tuple[int, str, str]:
        """Wait for its end: what it returned, the rest of what it printed, and of its errors.

        It is killed after ``limit_s``.
        """
        timer = threading.Timer(limit_s, self.kill)
        timer.start()
        self.stdin.close()
        with self.stdout:
            output = self.stdout.read()
        timer.cancel()
        timer.join()
        returned = self.wait()
        with self._errors:
            self._errors.seek(0)
            return returned, output, self._errors.read().decode(errors="replace")


def forked(
    script: Path,
    *arguments: str,
    num_ranks: int = 2,
    imports: str = "torch",
    path: str = "",
    limit_s: float = 120,
) -> tuple[int, str]:
    """Run a script on ranks: 0, or 1 if one of them failed, and what all of them printed.

    A rank that fails ends the others, and so does the limit, with what was printed until then.
    Modules are also looked for in ``path``.
    """
    with tempfile.NamedTemporaryFile() as file:
        output = Path(file.name)
        child = Child(
            script, *arguments, imports=imports, num_ranks=num_ranks, path=path, output=output
        )
        try:
            returned, said = child.wait(limit_s), ""
        except TimeoutError:
            returned, said = 1, f"\nended after {limit_s:g} s"
        finally:
            child.kill()
        return returned, output.read_text(errors="replace") + said


def said(code: str, folder: Path, *arguments: object) -> tuple[str, str]:
    """What a block of the documents prints when it is run in a folder, and of its errors.

    A fault fails the test.
    """
    returned, output, errors = Child(
        code, *arguments, imports=WITH_TRAINER, cwd=folder
    ).communicate(300.0)
    assert returned == 0, errors
    return output, errors


# ------------------------------------------------------------------ the one that is asked


@functools.cache
def _server() -> socket.socket:
    """A channel to it. All processes of tests of a run share one; who comes first starts it."""
    own, its = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    try:
        its.bind(_address())
    except OSError:  # somebody has started it, and is about to listen
        its.close()
        while own.connect_ex(_address()):
            time.sleep(0.01)
        return own
    its.listen()
    own.connect(its.getsockname())
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()],
        env=os.environ | dict.fromkeys(THREADS, "1")
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
        | {"PYTHONHASHSEED": "1"},
    )  # fmt: skip
    its.close()

    def end() -> None:
        own.close()
        process.wait()

    atexit.register(end)
    return own


@functools.cache
def _address() -> str:
    """Where Linux has names for sockets that are no files the run's own, else this process's."""
    if sys.platform == "linux":
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        return f"\0sparsitywatch-tests-{run}"
    return str(Path(tempfile.mkdtemp()) / "forks")


def _ask(request: dict[str, Any], fds: list[int]) -> None:
    message = json.dumps(request).encode()
    socket.send_fds(_server(), [len(message).to_bytes(4, "big")], fds)
    _server().sendall(message)


def _serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Returns in a process that a request is for: the request, and its files."""
    running: dict[int, socket.socket] = {}  # process groups, by who has asked for them
    channels = [listener, listener.accept()[0]]
    while True:
        channel = select.select(channels, [], [])[0][0]
        while running and (ended := os.waitpid(-1, os.WNOHANG)[0]):
            del running[ended]
        if channel is listener:
            channels.append(listener.accept()[0])
            continue
        size, fds, *_ = socket.recv_fds(channel, 4, 4)
        if not size:  # the one that asks has ended
            channels.remove(channel)
            _end([group for group, asked in running.items() if asked is channel], running)
            if channels == [listener]:
                os._exit(0)
            continue
        request = json.loads(channel.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        _import(request)
        if not (group := os.fork()):
            for one in channels:
                one.close()
            return request, fds
        running[group] = channel
        for fd in fds:
            os.close(fd)


def _end(groups: list[int], running: dict[int, socket.socket]) -> None:
    for group in groups:
        os.killpg(group, signal.SIGKILL)
        os.waitpid(group, 0)
        del running[group]


def _import(request: dict[str, Any]) -> None:
    """What a program needs; a failure goes into its request."""
    before = list(sys.path)
    sys.path[1:1] = request["path"]
    try:
        for name in request["imports"]:
            importlib.import_module(name)
    except Exception:  # noqa: BLE001 it is told to who asks
        request["failure"] = traceback.format_exc()
    sys.path[:] = before
    for one in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        one.atexit = False  # torch's libraries of operators: a tenth of a second at each end
    gc.freeze()


def _start(request: dict[str, Any], report: int) -> None:
    """Fork the program, or its ranks; returns in these."""
    os.setsid()
    num_ranks, environment = request["ranks"], request["environment"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        together = {
            "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": listener.getsockname()[1],
            "TORCHELASTIC_RUN_ID": "none",
        }  # fmt: skip
    pids = set()
    for rank in range(num_ranks or 1):
        if not (pid := os.fork()):
            own = {"RANK": rank, "LOCAL_RANK": rank, **together} if num_ranks else {}
            environment.update({name: str(value) for name, value in own.items()})
            return
        pids.add(pid)
    os.write(report, f"{os.getpid()} {max(pids)}\n".encode())
    returned = 0
    while pids:
        pid, status = os.wait()
        pids.discard(pid)
        if status and not returned:
            returned = 1 if num_ranks else os.waitstatus_to_exitcode(status)
            for other in pids:
                os.kill(other, signal.SIGKILL)
    os.write(report, f"{returned}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Be the program that is about to run."""
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    if "failure" in request:
        sys.exit(request["failure"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    sys.path[1:1] = request["path"]
    sys.path[0] = "" if request["code"] else str(Path(sys.argv[0]).parent)


def _run(code: str) -> None:
    if not code:
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)


def _end_as_python_does(run: Callable[[], None]) -> NoReturn:
    """Run a program and end, without taking apart all that was imported: a third of a second."""
    returned = 0
    try:
        run()
    except SystemExit as ended:
        is_told = ended.code is None or isinstance(ended.code, int)
        returned = int(ended.code or 0) if is_told else 1
        if not is_told:
            print(ended.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 it is what Python prints
        told = type(error), error, error.__traceback__
        sys.last_type, sys.last_value, sys.last_traceback = told
        sys.excepthook(*told)
        returned = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for other threads
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    if returned < 0:
        signal.signal(-returned, signal.SIG_DFL)
        os.kill(os.getpid(), -returned)
    os._exit(returned)


if __name__ == "__main__":
    this = sys.modules["__main__"]  # whose functions live on where a program takes its place
    sys.path[0] = ""
    asked, files = _serve(socket.socket(fileno=int(sys.argv[1])))
    _start(asked, files[3])
    _become(asked, files)
    _end_as_python_does(functools.partial(_run, asked["code"]))
