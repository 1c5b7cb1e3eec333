"""Vital signs on the zoo that tests hold them to: faults that are planted, trainings that are well.

Twenty faults on three models with four optimizers (tests/contracts/fault_zoo.py), thirteen ways in
which gradients end, and twelve in which a model is written over: each has to be named within two
snapshots, with tensors that it is about. Of trainings that only look odd (healthy_zoo.py), six of
each, nothing may be said.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from reporting import Goal, shared_with_tests, table

from detecting.work import Job, Plan, Results

TITLE = "Vital signs"
#: No rule was made with it: that was done with 101 to 109 and 201 to 209.
SEED = 8191


@dataclass(frozen=True)
class Tried:
    """One fault, or one oddity, in several trainings."""

    what: str
    # of the event that a fault has to be, or of the fault; "well" if nothing is wrong
    kind: str
    # of trainings
    number: int
    # a line for each that was not named, or of which something was said
    wrong: tuple[str, ...]


def planted(seed: int = SEED, thinned: int = 1) -> list[Tried]:
    """Every fault, or every so many."""
    zoo, found = shared_with_tests("fault_zoo"), []
    with _quietly():
        for what in list(zoo.FAULTS)[::thinned]:
            pairs = zoo.PAIRS[::thinned]
            whys = {pair: zoo.named(what, *pair, seed) for pair in pairs}
            wrong = tuple(f"{', '.join(pair)}: {why}" for pair, why in whys.items() if why)
            found.append(Tried(what, zoo.FAULTS[what].kind, len(pairs), wrong))
        others = {"gradients end": (zoo.CUTS | zoo.ZEROS, zoo.ended)}
        others["written over"] = zoo.OVERWRITES, zoo.written_over
        for kind, (ways, told) in others.items():
            for what in list(ways)[::thinned]:
                whys = {pair: told(what, *pair, seed) for pair in zoo.PAIRS[::thinned]}
                wrong = tuple(f"{', '.join(pair)}: {why}" for pair, why in whys.items() if why)
                found.append(Tried(what, kind, len(whys), wrong))
    return found


def well(seed: int = SEED, thinned: int = 1) -> list[Tried]:
    """Every oddity, or every so many."""
    zoo, found = shared_with_tests("healthy_zoo"), []
    with _quietly():
        for what in list(zoo.ODDITIES)[::thinned]:
            said = zoo.said_of(what, seed)
            wrong = tuple(f"{', '.join(pair)}: {events}" for pair, events in said.items())
            found.append(Tried(what, "well", len(zoo.pairs_of(seed)), wrong))
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """With one thread, and without what the faults log."""
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        torch.set_num_threads(threads)


def jobs(plan: Plan) -> list[Job]:
    """Both zoos."""
    thinned = 6 if plan.small else 1
    return [Job(well, (SEED, 2 * thinned if plan.small else 1)), Job(planted, (SEED, thinned))]


def lines(results: Results) -> list[str]:
    """A row for each kind: trainings, those that came out as they should, and the others."""
    found = [*results.flat(planted), *results.flat(well)]
    rows = []
    for kind in dict.fromkeys(tried.kind for tried in found):
        of = [tried for tried in found if tried.kind == kind]
        number = sum(t.number for t in of)
        wrong = [f"{t.what}, {w}" for t in of for w in t.wrong]
        named = "well, and odd" if kind == "well" else f"`{kind}`, {len(of)} faults"
        rows.append([named, str(number), str(number - len(wrong)), "; ".join(wrong)])
    return table(["what", "trainings", "as they should", "others"], rows)


def goals(results: Results) -> list[Goal]:
    """All of them."""
    found = []
    parts = ((planted, "faults of the zoo named"), (well, "trainings that are well quiet"))
    for part, what in parts:
        of = results.flat(part)
        number = sum(t.number for t in of)
        right = number - sum(len(t.wrong) for t in of)
        found.append(Goal(what, number, right, False, f" of {number}"))
    return found
