"""Run by torchrun: all cases for as many processes as there are, see ``contracts/rank_cases.py``.

``torchrun --standalone --nproc-per-node=2 run_ranks.py <folder> [case ...]``
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contracts.rank_cases import run_all

HERE = Path(__file__).resolve().parent


def main(folder: str, *names: str) -> None:
    warnings.simplefilter("ignore")  # torch's own
    for path in sorted(HERE.glob("test_live_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    run_all(Path(folder), list(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
