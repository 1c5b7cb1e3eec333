"""A forked program ends as one that Python runs: what it returns, and what it prints."""

from __future__ import annotations

import subprocess
import sys

import pytest
from contracts.forked import Child

ENDS = (
    "print('whole')", "import sys; sys.exit(3)", "raise SystemExit('what was wrong')",
    "import sys; sys.exit(True)", "1 / 0", "raise KeyboardInterrupt",
    "import atexit; atexit.register(print, 'last'); atexit.register(print, 'first'); 1 / 0",
    "import atexit, os; atexit.register(print, 'no'); os._exit(5)",
    "import threading, time; threading.Timer(0.05, print, ['late']).start(); print('early')",
    "import weakref\nclass A: pass\nkept = A(); weakref.finalize(kept, print, 'finalized')",
    "import atexit, sys; atexit.register(lambda: print(sys.last_value)); 1 / 0",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("code", ENDS)
def test_it_ends_as_python_does(code: str) -> None:
    python = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    returned, output, errors = Child(code, imports="torch").communicate()
    assert (returned, output) == (python.returncode, python.stdout)
    assert errors.splitlines()[-1:] == python.stderr.splitlines()[-1:]
