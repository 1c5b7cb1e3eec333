"""What a replay adds to an interpreter that has loaded torch and nothing else of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

__all__ = ["growth_bytes"]

_CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from peak import forget_peak, peak_bytes
torch.set_num_threads(int(sys.argv[3]))
before = forget_peak()
from unittest import mock
from replaying.series import replayed
from sparsitywatch.weights.spectrum import kernel
if sys.argv[4] == "plain":
    with mock.patch.object(kernel, "load", return_value=None):
        replayed(sys.argv[2])
else:
    replayed(sys.argv[2])
print(peak_bytes() - before)
"""


def growth_bytes(path: Path, num_threads: int, way: str) -> int:
    """Peak resident memory of a replay of one checkpoint, above that of ``import torch``.

    The library's own modules count, and so does numba where the way is "compiled".
    """
    folder = Path(__file__).parents[1]
    arguments = [str(folder), str(path), str(num_threads), way]
    roots = [str(folder.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", _CODE, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))},
    )
    return int(json.loads(done.stdout))
