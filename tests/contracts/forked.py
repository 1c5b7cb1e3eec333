"""A script on several ranks, as ``torchrun`` starts it, but forked from one process.

``python forked.py <number of ranks> <modules, with commas> <script> [argument ...]``

What all ranks need, torch before all, is imported once, which is most of what a start takes.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
#: What a watch loads when it is first used, for ``imports``.
WATCH = (
    "torch._dynamo,torch.distributed.checkpoint,torch.distributed.fsdp,"
    "torch.distributed.tensor.parallel,sparsitywatch.live.watch,sparsitywatch.sinks.tensorboard"
)
#: The same, and what a small BERT does.
WATCHED_BERT = f"{WATCH},transformers.models.bert.modeling_bert"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
    command = [sys.executable, __file__, str(num_ranks), imports, str(script), *arguments]
    environment = os.environ | dict.fromkeys(THREADS, "1")
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, env=environment,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return 1, f"{output}\nended after {limit_s:g} s"
    return process.returncode, output


def _main(num_ranks: int, imports: str, script: str, *arguments: str) -> int:
    sys.path.insert(1, str(TESTS))
    for name in imports.split(","):
        importlib.import_module(name)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    together = {
        "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    ranks = set()
    for rank in range(num_ranks):
        child = os.fork()
        if not child:
            own = {"RANK": rank, "LOCAL_RANK": rank, **together}
            os.environ.update({name: str(value) for name, value in own.items()})
            sys.argv = [script, *arguments]
            sys.path[0] = str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
            return 0
        ranks.add(child)
    failed = False
    while ranks:
        child, status = os.wait()
        ranks.discard(child)
        if status and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return int(failed)


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), *sys.argv[2:]))
