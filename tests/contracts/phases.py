"""Programs that need the same slow import, each in a process of its own that is forked after it."""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from contracts.forked import WITH_TRAINER, Child


class Phase(NamedTuple):
    """A program, where it is run, and on how many ranks (0: without)."""

    code: str
    folder: str
    environment: dict[str, str] = {}  # noqa: RUF012 nobody changes it
    num_ranks: int = 0


def run(imports: Sequence[str], phases: Sequence[Phase], folder: Path, **variables: str) -> None:
    """Run them one after the other, in folders inside ``folder``; one that fails fails the test."""
    request = folder / "phases.json"
    request.write_text(json.dumps([[*imports], phases]))
    code = "import sys\nfrom contracts import phases\nphases.main(sys.argv[1])\n"
    with_variables = "".join(f"os.environ[{n!r}] = {v!r}\n" for n, v in variables.items())
    child = Child("import os\n" + with_variables + code, request, imports=WITH_TRAINER, cwd=folder)
    returned, output, errors = child.communicate(300.0)
    assert returned == 0, output + errors


def main(request: str) -> None:
    """What the process that has the imports does."""
    imports, phases = json.loads(Path(request).read_text())
    for name in imports:
        importlib.import_module(name)
    for phase in map(Phase._make, phases):
        Path(phase.folder).mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [_fork(phase, rank, port) for rank in range(phase.num_ranks or 1)]
        if max([os.waitpid(pid, 0)[1] for pid in pids]):
            sys.exit(f"a program in {phase.folder} has failed")


def _fork(phase: Phase, rank: int, port: int) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.chdir(phase.folder)
        os.environ.update(phase.environment)
        if phase.num_ranks:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": phase.num_ranks}
            own |= {"LOCAL_WORLD_SIZE": phase.num_ranks, "GROUP_RANK": 0, "MASTER_PORT": port}
            own |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
            os.environ.update({name: str(value) for name, value in own.items()})
        this = types.ModuleType("__main__")
        sys.modules["__main__"] = this  # where classes of the program are looked for
        exec(compile(phase.code, "<phase>", "exec"), this.__dict__)
        status = 0
    except BaseException:  # noqa: BLE001 the process ends here, whatever it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
