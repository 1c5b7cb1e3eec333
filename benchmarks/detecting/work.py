"""The work of the benchmark in pieces that run beside each other."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from detecting import jumps, slow
from detecting.cadences import Seen, look
from detecting.calibration import Told, on_controls, on_made_up
from detecting.early import Early, early_signals
from detecting.ours import early, online, ours
from detecting.peers import PEERS, Peer
from detecting.recorded import Verdict, cases, judge, replay
from detecting.scoring import Score, score

__all__ = [
    "DETECTORS", "OURS", "SUITES", "Asked", "Grown", "Job", "Made", "Real", "Results", "Signals",
    "run_all",
]  # fmt: skip

OURS = "ours"
DETECTORS: dict[str, Peer] = {OURS: Peer(online(ours), online=ours), **PEERS}
SUITES = (*jumps.DIFFICULTIES, "slow")


@dataclass(frozen=True)
class Made:
    """A detector on one suite of made-up series, at some seeds."""

    detector: str
    suite: str
    seeds: range

    def do(self) -> tuple[Score, float]:
        """The score, and seconds a snapshot."""
        made = list(
            slow.suite(self.seeds) if self.suite == "slow" else jumps.suite(self.seeds, self.suite)
        )
        detector = DETECTORS[self.detector]
        detector.detect(made[0])  # what is loaded or compiled at first is not counted
        started = time.perf_counter()
        found = score(detector.detect, made, detector.tolerance)
        return found, (time.perf_counter() - started) / sum(len(s.values) for s in made)


@dataclass(frozen=True)
class Real:
    """A detector on the recorded runs, all of them or every second one."""

    detector: str
    thinned: int = 1

    def do(self) -> list[Verdict]:
        """A verdict on each case."""
        make = DETECTORS[self.detector].online
        assert make is not None
        found = list(cases())
        names = list(dict.fromkeys(case.name for case in found))[:: self.thinned]
        return [judge(case, replay(make, case)) for case in found if case.name in names]


@dataclass(frozen=True)
class Signals:
    """The detector on the dormant weights of the recorded runs."""

    def do(self) -> list[Early]:
        """A run at a cadence each."""
        return list(early_signals(early))


@dataclass(frozen=True)
class Asked:
    """The detector asked for a rate of false alarms."""

    rate: float
    seeds: range | None

    def do(self) -> Told:
        """What came, on recorded controls if there are no seeds."""
        return on_controls(self.rate) if self.seeds is None else on_made_up(self.rate, self.seeds)


@dataclass(frozen=True)
class Grown:
    """The detector on growth over half of a run, and on even growth, at any cadence."""

    def do(self) -> list[Seen]:
        """A growth at a cadence each."""
        return list(look())


Job = Made | Real | Signals | Asked | Grown


@dataclass
class Results:
    """What came of all jobs."""

    made: dict[Made, tuple[Score, float]]
    real: dict[str, list[Verdict]]
    early: list[Early]
    told: list[Told]
    grown: list[Seen] = field(default_factory=list)

    def merged(self, detector: str, suite: str) -> Score:
        """One score of all the seeds."""
        found = [s for j, (s, _) in self.made.items() if (j.detector, j.suite) == (detector, suite)]
        return Score(tuple(o for s in found for o in s.outcomes))

    def seconds(self, detector: str) -> float:
        """A snapshot of made-up series, on average over suites."""
        found = [s for job, (_, s) in self.made.items() if job.detector == detector]
        return sum(found) / len(found)


def run_all(jobs: Sequence[Job], processes: int) -> Results:
    """Do all jobs, and tell on standard error how far it is."""
    results = Results({}, {}, [], [])
    started = time.perf_counter()
    for number, (job, found) in enumerate(_done(jobs, processes), 1):
        if isinstance(job, Made):
            results.made[job] = found
        elif isinstance(job, Real):
            results.real[job.detector] = found
        elif isinstance(job, Signals):
            results.early = found
        elif isinstance(job, Grown):
            results.grown = found
        else:
            results.told.append(found)
        spent = time.perf_counter() - started
        print(
            f"{number:3d} of {len(jobs)} after {spent:4.0f} s: {job}", file=sys.stderr, flush=True
        )
    return results


def _done(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    if processes == 1:
        yield from ((job, job.do()) for job in jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_do, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _do(job: Job) -> Any:
    return job.do()
