"""What the runs of the data-volume experiment showed: a table, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from milestones import NEAR_ZERO, find_takeoff
from spread import chance_of_gap, gap, mean_and_spread

from sparsitywatch.analysis.comparison import decay_clock_at, digest
from sparsitywatch.records import EssentialSparsity, Event, Record
from sparsitywatch.sinks.jsonl import read_events, read_records

__all__ = ["VolumeRun", "conclusion", "read_run", "table"]

_WATCHED = f"near_zero/{NEAR_ZERO}"
#: All measures together take a difference for real that is chance this often.
_FALSE_ALARMS = 0.05


@dataclass(frozen=True, kw_only=True)
class VolumeRun:
    """One run of the experiment.

    Args:
        fraction, seed: its share of the text, and its seed.
        near_zero: fraction of near-zero weights at the end.
        essential_sparsity: at the end.
        doubled: step at which near-zero weights are first twice their floor; NaN if never.
        doubled_clock: the decay clock there.
        began: onset of the first event of rising near-zero weights; NaN without any.
        began_clock: the decay clock there.
        records, events: the whole of it.
    """

    fraction: float
    seed: int
    near_zero: float
    essential_sparsity: EssentialSparsity | None
    doubled: float
    doubled_clock: float
    began: float
    began_clock: float
    records: Sequence[Record]
    events: Sequence[Event]

    @property
    def name(self) -> str:
        """For the legend."""
        return f"{self.group}, seed {self.seed}"

    @property
    def group(self) -> str:
        """The runs that only a seed tells apart."""
        return f"{self.fraction:.0%}"

    @property
    def essential(self) -> float:
        """Essential sparsity; NaN if it is not informative."""
        estimate = self.essential_sparsity
        return estimate.value if estimate is not None and estimate.informative else math.nan


Measure = Callable[[VolumeRun], float]
#: What is compared: name, value, decimals.
_MEASURES: tuple[tuple[str, Measure, int], ...] = (
    ("near zero at the end", lambda run: run.near_zero, 3),
    ("near zero doubled at step", lambda run: run.doubled, 0),
    ("event began at step", lambda run: run.began, 0),
    ("essential sparsity at the end", lambda run: run.essential, 3),
)


def read_run(logdir: Path, fraction: float, seed: int) -> VolumeRun:
    """A run from its log."""
    directory = logdir / "sparsitywatch"
    records, events = list(read_records(directory)), list(read_events(directory))
    told = digest(str(logdir), records, events)
    takeoff = find_takeoff(records)
    rise = next((event for event in events if _is_rise(event)), None)
    doubled = takeoff is not None and takeoff.doubling_step is not None
    return VolumeRun(
        fraction=fraction,
        seed=seed,
        near_zero=told.near_zero[NEAR_ZERO],
        essential_sparsity=told.essential_sparsity,
        doubled=float(takeoff.doubling_step or 0) if takeoff and doubled else math.nan,
        doubled_clock=float(takeoff.decay_clock or 0) if takeoff and doubled else math.nan,
        began=float(rise.onset_step) if rise else math.nan,
        began_clock=decay_clock_at(records, rise.onset_step) if rise else math.nan,
        records=records,
        events=events,
    )


def _is_rise(event: Event) -> bool:
    """Whether near-zero weights rose in it, seen first by their series or by another one."""
    if event.series == _WATCHED:
        return event.direction == "up"
    return _WATCHED in event.related and event.trend == "sparsifying"


def table(runs: Sequence[VolumeRun]) -> str:
    """One line a run, then mean and standard deviation for each share of the text (Markdown)."""
    head = (
        "text", "seed", "near zero at the end", "doubled at step (decay clock)",
        "event began at step (decay clock)", "essential sparsity at the end",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [head, ("---", *["---:"] * (len(head) - 1))]
    rows += [_row(run) for run in runs]
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        cells = [
            _mean_cell([value(run) for run in members], digits) for _, value, digits in _MEASURES
        ]
        rows.append((f"**{group}**", "mean ± sd", *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(run: VolumeRun) -> tuple[str, ...]:
    estimate = run.essential_sparsity
    told = "not informative"
    if estimate is not None and estimate.informative:
        told = f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
    steps = ((run.doubled, run.doubled_clock), (run.began, run.began_clock))
    cells = ["never" if math.isnan(step) else f"{step:.0f} ({clock:.2f})" for step, clock in steps]
    return run.group, str(run.seed), f"{run.near_zero:.3f}", *cells, told


def _mean_cell(values: Sequence[float], digits: int) -> str:
    known = [x for x in values if math.isfinite(x)]
    if not known:
        return "-"
    mean, spread = mean_and_spread(known)
    some = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return f"{mean:.{digits}f} ± {spread:.{digits}f}{some}"


def conclusion(runs: Sequence[VolumeRun]) -> str:
    """What can be said from these runs, and what cannot; computed, not judged by eye."""
    groups = list(dict.fromkeys(run.group for run in runs))
    sizes = {group: sum(run.group == group for run in runs) for group in groups}
    if len(groups) < 2 or min(sizes.values()) < 2:
        return "Nothing follows: it takes two shares of the text and two seeds or more of each."
    lines, real = [], []
    for name, value, digits in _MEASURES:
        values = {g: [value(run) for run in runs if run.group == g] for g in groups}
        if not all(math.isfinite(x) for group in values.values() for x in group):
            lines.append(f"- {name}: some runs have none, so it is not compared.")
            continue
        chance = chance_of_gap(values)
        spread = math.sqrt(sum(mean_and_spread(x)[1] ** 2 for x in values.values()) / len(values))
        lines.append(
            f"- {name}: the means of the shares lie up to {gap(values):.{digits}f} apart; seeds "
            f"spread by {spread:.{digits}f} (sd). Runs dealt to the shares at random lie as far "
            f"apart in {chance:.1%} of all deals."
        )
        if chance <= _FALSE_ALARMS / len(_MEASURES):
            real.append(name)
    return "\n".join([*lines, "", _verdict(runs, real)])


def _verdict(runs: Sequence[VolumeRun], real: Sequence[str]) -> str:
    most, least = (pick(run.fraction for run in runs) for pick in (max, min))
    means = {
        share: mean_and_spread([run.near_zero for run in runs if run.fraction == share])[0]
        for share in (most, least)
    }
    limit = f"(limit: {_FALSE_ALARMS / len(_MEASURES):.2%} for each of {len(_MEASURES)} measures)"
    if not real:
        told = f"The differences between the shares are within the spread of the seeds {limit}."
    else:
        told = f"The shares differ by more than the seeds do in: {', '.join(real)} {limit}."
    is_sparser = means[most] > means[least]
    if "near zero at the end" in real:
        more = "more" if is_sparser else "fewer"
        told += f" With {most:.0%} of the text {more} weights end near zero than with {least:.0%}."
    seen = is_sparser and "near zero at the end" in real
    return told + f' "More data, sparser" is {"" if seen else "not "}seen here.'
