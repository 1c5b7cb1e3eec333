"""Many cases in one start of several processes: each rank runs them all, one after another.

A test file has cases and, below them, what their results have to be. This file, run by torchrun,
runs the cases of all files; a case that fails, also on one rank only, fails alone.

``torchrun --standalone --nproc-per-node=2 contracts/rank_cases.py <folder> [case ...]``
"""

from __future__ import annotations

import datetime as dt
import importlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for torchrun

import torch
from torch import distributed

from sparsitywatch.ranks import group

#: Who is waited for so long in vain fails its case, and a case that takes as long has waited.
PATIENCE_S = 60.0
FILES = sorted(Path(__file__).resolve().parents[1].glob("distributed/test_live_*.py"))

Act = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """What each of some ranks does.

    Args:
        act: is given a folder that the ranks share, and returns what the test is to see.
        num_ranks: of those that are there, the first ones; 0: one, without a process group.
        among: how many processes there are.
    """

    act: Act
    num_ranks: int
    among: int


CASES: dict[str, Case] = {}


def case(num_ranks: int, *, among: int = 0, name: str = "") -> Callable[[Act], Act]:
    """Register a case under its name; cases run in the order in which they are registered."""

    def register(act: Act) -> Act:
        CASES[name or act.__name__] = Case(act, num_ranks, among or max(num_ranks, 2))
        return act

    return register


def run_all(folder: Path, names: list[str]) -> None:
    """Run the cases of as many processes as there are, on one of them."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group._LONG_PATIENCE_S = PATIENCE_S
    store, _, _ = next(distributed.rendezvous("env://", rank, size))
    for name, one in CASES.items():
        if one.among == size and (not names or name in names):
            if rank < max(one.num_ranks, 1):
                started = time.perf_counter()
                result = _result(one, distributed.PrefixStore(name, store), rank, folder / name)
                torch.save(result, folder / name / f"rank-{rank}.pt")
                if rank == 0:
                    print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
            _wait_for_all(store, name, size)
    sys.stdout.flush()
    # torch 2.13 at times hangs when it lets go of a DistributedDataParallel
    os._exit(0)


def _result(one: Case, store: Any, rank: int, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    if one.num_ranks:
        wait = dt.timedelta(seconds=PATIENCE_S)
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=one.num_ranks, timeout=wait
        )
    started = time.perf_counter()
    try:
        value = one.act(folder)
        if time.perf_counter() - started > PATIENCE_S:
            return {"error": "it has waited for another rank in vain"}
        return {"value": value, "num_ranks": max(one.num_ranks, 1)}
    except Exception:  # noqa: BLE001 it is told to the test
        return {"error": traceback.format_exc()}
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _wait_for_all(store: Any, name: str, size: int) -> None:
    """The next case begins when all have ended this one."""
    if store.add(f"{name}/ended", 1) == size:
        store.set(f"{name}/all", "ended")
    store.wait([f"{name}/all"], dt.timedelta(minutes=5))


def main(folder: str, *names: str) -> None:
    warnings.simplefilter("ignore")  # torch's own
    sys.path.insert(0, str(FILES[0].parent))
    for path in FILES:
        importlib.import_module(path.stem)
    run_all(Path(folder), list(names))


class Came:
    """What came of the cases; ``start`` gives the folder and the output of so many processes."""

    def __init__(self, start: Callable[[int], tuple[Path, str]]) -> None:
        self._start = start

    def folder(self, name: str) -> Path:
        """That the ranks of a case share."""
        return self._of(name)[0] / name

    def __call__(self, name: str) -> list[Any]:
        """What each rank returned."""
        (folder, output), found, num_ranks = self._of(name), [], 1
        while len(found) < num_ranks:
            rank, file = len(found), folder / name / f"rank-{len(found)}.pt"
            assert file.exists(), f"rank {rank} has not ended {name}:\n{output[-6000:]}"
            result = torch.load(file, weights_only=False)
            assert "error" not in result, f"rank {rank} of {name}: {result['error']}"
            found.append(result["value"])
            num_ranks = result["num_ranks"]
        return found

    def _of(self, name: str) -> tuple[Path, str]:
        return self._start(CASES[name].among if name in CASES else 2)  # those of other files: two


if __name__ == "__main__":
    from contracts import rank_cases  # where the test files register their cases

    rank_cases.main(*sys.argv[1:])
