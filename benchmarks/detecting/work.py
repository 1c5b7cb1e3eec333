"""The work of the benchmark in pieces that run beside each other, and what came of them."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """How much is to be done."""

    # in each of two blocks
    seeds: int = 10
    small: bool = False
    # no other detectors
    alone: bool = False


@dataclass(frozen=True)
class Job:
    """A piece of the work, which another process can do: a function of a module, and arguments."""

    measure: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    # it is timed: done last, with nothing beside it
    is_alone: bool = False

    def do(self) -> Any:
        """What comes of it."""
        return self.measure(*self.arguments)


class Results(dict[Job, Any]):
    """What came of each job."""

    def of(self, measure: Callable[..., Any]) -> list[tuple[tuple[Any, ...], Any]]:
        """The arguments of each job of one kind, and what came of it."""
        return [(job.arguments, found) for job, found in self.items() if job.measure is measure]

    def flat(self, measure: Callable[..., Any]) -> list[Any]:
        """What came of all jobs of one kind, each of which found a list."""
        return [one for _, found in self.of(measure) for one in found]


def run_all(jobs: Sequence[Job], processes: int) -> Results:
    """Do all jobs, and tell on standard error how far it is; results are in the jobs' order."""
    found: dict[Job, Any] = {}
    started = time.perf_counter()
    for job, came in _done(jobs, processes):
        found[job] = came
        told = " ".join([job.measure.__name__, *map(str, job.arguments)])
        spent = time.perf_counter() - started
        print(f"{len(found):3d} of {len(jobs)} after {spent:4.0f} s: {told}", file=sys.stderr)
    return Results((job, found[job]) for job in jobs)


def _done(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    beside = [job for job in jobs if not job.is_alone and processes > 1]
    if beside:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(Job.do, job): job for job in beside}
            for future in as_completed(futures):
                yield futures[future], future.result()
    yield from ((job, job.do()) for job in jobs if job not in beside)
