"""The work of the benchmark in pieces that run beside each other."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from detecting import jumps, slow, zoo
from detecting.breakthroughs import Left, breakthroughs
from detecting.cadences import Seen, look
from detecting.calibration import Told, on_controls, on_kind, on_made_up
from detecting.cost import Cost, cost
from detecting.early import Early, early_signals
from detecting.ours import early, online, ours
from detecting.peers import PEERS, Peer
from detecting.recorded import Case, Verdict, cases, judge, replay
from detecting.scoring import Score, score

__all__ = [
    "DETECTORS", "OURS", "SUITES", "Asked", "Bare", "Costs", "Grown", "Job", "Made", "Proxied",
    "Real", "Results", "Signals", "Zoo", "run_all",
]  # fmt: skip

OURS = "ours"
DETECTORS: dict[str, Peer] = {OURS: Peer(online(ours), online=ours), **PEERS}
SUITES = (*jumps.DIFFICULTIES, "slow")


class Job(Protocol):
    """A piece of the work, which another process can do."""

    def do(self) -> Any:
        """What comes of it."""

    def keep(self, found: Any, results: Results) -> None:
        """Put what came of it where it belongs."""


@dataclass(frozen=True)
class Made:
    """A detector on one suite of made-up series, at some seeds.

    With the rate told, only on those series of a suite of quick rises that follow a learning rate.
    """

    detector: str
    suite: str
    seeds: range
    rate_is_told: bool = False

    def do(self) -> tuple[Score, float]:
        """The score, and seconds a snapshot."""
        if self.suite == "slow":
            made = list(slow.suite(self.seeds))
        elif self.rate_is_told:
            made = [
                jumps.make(family, seed, self.suite, rate_is_told=True)
                for seed in self.seeds
                for family in jumps.ANSWERING
            ]
        else:
            made = list(jumps.suite(self.seeds, self.suite))
        detector = DETECTORS[self.detector]
        detector.detect(made[0])  # what is loaded or compiled at first is not counted
        started = time.perf_counter()
        found = score(detector.detect, made, detector.tolerance)
        return found, (time.perf_counter() - started) / sum(len(s.values) for s in made)

    def keep(self, found: tuple[Score, float], results: Results) -> None:
        """By job."""
        results.made[self] = found


@dataclass(frozen=True)
class Real:
    """A detector on the recorded runs, all of them or every second one."""

    detector: str
    thinned: int = 1

    def do(self) -> list[Verdict]:
        """A verdict on each case."""
        make = DETECTORS[self.detector].online
        assert make is not None
        return [judge(case, replay(make, case)) for case in _cases(self.thinned)]

    def keep(self, found: list[Verdict], results: Results) -> None:
        """By detector."""
        results.real[self.detector] = found


def _cases(thinned: int) -> list[Case]:
    found = list(cases())
    names = list(dict.fromkeys(case.name for case in found))[::thinned]
    return [case for case in found if case.name in names]


@dataclass(frozen=True)
class Bare:
    """Our detector on the recorded runs from their first snapshot on, told only some things."""

    told: tuple[str, ...] = ()
    thinned: int = 1

    def do(self) -> list[Verdict]:
        """A verdict on each case."""
        first = [case for case in _cases(self.thinned) if not case.phase]
        seen = [replace(c, context={key: c.context[key] for key in self.told}) for c in first]
        return [judge(case, replay(ours, case)) for case in seen]

    def keep(self, found: list[Verdict], results: Results) -> None:
        """By what is told."""
        results.bare[self.told] = found


@dataclass(frozen=True)
class Signals:
    """The detector on the dormant weights of the recorded runs."""

    def do(self) -> list[Early]:
        """A run at a cadence each."""
        return list(early_signals(early))

    def keep(self, found: list[Early], results: Results) -> None:
        """All of them."""
        results.early = found


@dataclass(frozen=True)
class Asked:
    """The detector asked for a rate of false alarms."""

    rate: float
    seeds: range | None
    kind: str = ""

    def do(self) -> Told:
        """What came: on recorded controls if there are no seeds, or on one kind of series."""
        if self.seeds is None:
            return on_controls(self.rate)
        if self.kind:
            return on_kind(self.rate, self.kind, self.seeds)
        return on_made_up(self.rate, self.seeds)

    def keep(self, found: Told, results: Results) -> None:
        """With the others."""
        results.told.append(found)


@dataclass(frozen=True)
class Grown:
    """The detector on growth over half of a run, and on even growth, at any cadence."""

    def do(self) -> list[Seen]:
        """A growth at a cadence each."""
        return list(look())

    def keep(self, found: list[Seen], results: Results) -> None:
        """All of them."""
        results.grown = found


@dataclass(frozen=True)
class Proxied:
    """The detectors of measured numbers on the runs with a proxy."""

    def do(self) -> list[Left]:
        """A run at a cadence each."""
        return list(breakthroughs())

    def keep(self, found: list[Left], results: Results) -> None:
        """All of them."""
        results.left = found


@dataclass(frozen=True)
class Zoo:
    """Vital signs on faults that are planted, or on trainings that are well."""

    part: str
    thinned: int = 1

    def do(self) -> list[zoo.Tried]:
        """What came of each."""
        return {"planted": zoo.planted, "well": zoo.well}[self.part](thinned=self.thinned)

    def keep(self, found: list[zoo.Tried], results: Results) -> None:
        """With the other part."""
        results.tried += found


@dataclass(frozen=True)
class Costs:
    """What vital signs and detection add to a snapshot; done last, with nothing beside it."""

    num_layers: int

    def do(self) -> Cost:
        """Measure it."""
        return cost(self.num_layers)

    def keep(self, found: Cost, results: Results) -> None:
        """The only one."""
        results.cost = found


@dataclass
class Results:
    """What came of all jobs."""

    made: dict[Made, tuple[Score, float]]
    real: dict[str, list[Verdict]]
    early: list[Early]
    told: list[Told]
    grown: list[Seen] = field(default_factory=list)
    bare: dict[tuple[str, ...], list[Verdict]] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    tried: list[zoo.Tried] = field(default_factory=list)
    cost: Cost | None = None

    def merged(self, detector: str, suite: str, *, rate_is_told: bool = False) -> Score:
        """One score of all the seeds.

        Args:
            detector: its name.
            suite: one of ``SUITES``.
            rate_is_told: whether series that follow a learning rate are those with the rate told.
        """
        outcomes = [
            outcome
            for job, (found, _) in self.made.items()
            if (job.detector, job.suite) == (detector, suite)
            for outcome in found.outcomes
            if job.rate_is_told == (rate_is_told and outcome.family in jumps.ANSWERING)
        ]
        return Score(tuple(outcomes))

    def seconds(self, detector: str) -> float:
        """A snapshot of made-up series, on average over suites."""
        found = [
            seconds
            for job, (_, seconds) in self.made.items()
            if job.detector == detector and not job.rate_is_told
        ]
        return sum(found) / len(found)


def run_all(jobs: Sequence[Job], processes: int) -> Results:
    """Do all jobs, and tell on standard error how far it is."""
    results = Results({}, {}, [], [])
    started = time.perf_counter()
    for number, (job, found) in enumerate(_done(jobs, processes), 1):
        job.keep(found, results)
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
        futures = {pool.submit(_do, job): job for job in jobs if not isinstance(job, Costs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    yield from ((job, job.do()) for job in jobs if isinstance(job, Costs))


def _do(job: Job) -> Any:
    return job.do()
