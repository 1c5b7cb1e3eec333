"""Vital signs on the zoo that tests hold them to: faults that are planted, trainings that are well.

Twenty faults on three models with four optimizers (tests/contracts/fault_zoo.py): a fault has to be
named within two snapshots, with tensors that it is about. 35 trainings that only look odd
(healthy_zoo.py), six of each: nothing may be said of them.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["SEED", "Tried", "planted", "tried_rows", "well"]

_TESTS = Path(__file__).parents[2] / "tests"
#: No rule was made with it: that was done with 101 to 109 and 201 to 209.
SEED = 8191


@dataclass(frozen=True)
class Tried:
    """One fault, or one oddity, in several trainings.

    Args:
        what: its name.
        kind: of the event that a fault has to be; "well" if nothing is wrong.
        number: of trainings.
        wrong: a line for each that was not named, or of which something was said.
    """

    what: str
    kind: str
    number: int
    wrong: tuple[str, ...]


def planted(seed: int = SEED, thinned: int = 1) -> list[Tried]:
    """Every fault, or every so many."""
    with _zoo("fault_zoo") as zoo:
        found = []
        for what in list(zoo.FAULTS)[::thinned]:
            pairs = zoo.PAIRS[::thinned]
            whys = {pair: zoo.named(what, *pair, seed) for pair in pairs}
            wrong = tuple(f"{', '.join(pair)}: {why}" for pair, why in whys.items() if why)
            found.append(Tried(what, zoo.FAULTS[what].kind, len(pairs), wrong))
        return found


def well(seed: int = SEED, thinned: int = 1) -> list[Tried]:
    """Every oddity, or every so many."""
    with _zoo("healthy_zoo") as zoo:
        found = []
        for what in list(zoo.ODDITIES)[::thinned]:
            said = zoo.said_of(what, seed)
            wrong = tuple(f"{', '.join(pair)}: {events}" for pair, events in said.items())
            found.append(Tried(what, "well", len(zoo.pairs_of(seed)), wrong))
        return found


@contextmanager
def _zoo(name: str) -> Iterator[Any]:
    """A module of the tests, with one thread and without what the faults log."""
    sys.path.insert(0, str(_TESTS))
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        yield importlib.import_module(f"contracts.{name}")
    finally:
        logging.disable(disabled)
        torch.set_num_threads(threads)
        sys.path.remove(str(_TESTS))


def tried_rows(found: Sequence[Tried]) -> list[list[str]]:
    """A row for each kind: trainings, those that came out as they should, and the others."""
    rows = []
    for kind in dict.fromkeys(tried.kind for tried in found):
        of = [tried for tried in found if tried.kind == kind]
        number, wrong = sum(t.number for t in of), [f"{t.what}, {w}" for t in of for w in t.wrong]
        named = "well, and odd" if kind == "well" else f"`{kind}`, {len(of)} faults"
        rows.append([named, str(number), str(number - len(wrong)), "; ".join(wrong)])
    return rows
