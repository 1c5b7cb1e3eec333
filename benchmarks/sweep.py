"""What a look costs with each sweep, and how far its estimate is from that of a full grid.

python benchmarks/sweep.py [--small] [--save]

Replays curves look by look: three recorded trainings (record_curves.py; real text, 192
held-out examples) and synthetic ones, made up for what the recordings do not show. Each
sweep sees its own points of the look before, as in a watch. The reference is the estimate
from every 0.01. Evaluations count dense, level 0 and level 1; the first look, for which
there is no curve before, counts in the errors but not in the evaluations, where it has a
column of its own. The interval is said to hold the reference if it does to 0.01. Nothing is
timed, so no machine is named.
"""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reporting import commit

import sparsitywatch
from sparsitywatch.analysis.estimate import essential_sparsity
from sparsitywatch.pruning.sweep import Bisection, Grid, Point, Sweep, points_of
from sparsitywatch.pruning.tracking import Tracking
from sparsitywatch.records import EssentialSparsity, SparsityCurve
from sparsitywatch.settings import DEFAULT_LEVELS

Array = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
TOLERANCE = 0.01
LEVELS = np.arange(101) / 100
SWEEPS: dict[str, Sweep] = {
    "Grid(0.05 to 0.95)": Grid(tuple(round(i / 20, 2) for i in range(1, 20))),
    "Bisection, the default": Bisection(DEFAULT_LEVELS),
    "Tracking()": Tracking(),
    "Tracking(checks_below=False)": Tracking(checks_below=False),
}
COLUMNS = (
    "curves",
    "sweep",
    "evaluations, first look",
    "then, mean",
    "max",
    "error, mean",
    "max",
    "within 0.01",
    "of low, mean",
    "of high, mean",
    "interval holds it",
)
#: Before this step the recorded models do not use their encoder yet, or are about to.
SETTLED = 1100


@dataclass(frozen=True)
class Series:
    """Curves of consecutive looks, all at ``LEVELS``: arrays [T, 101]."""

    sparsity: Array
    value: Array
    stderr: Array
    num_examples: int

    def __len__(self) -> int:
        return len(self.value)

    def curve(self, look: int, levels: list[float]) -> SparsityCurve:
        """The curve of a look at some levels; between recorded ones straight."""
        columns = (self.sparsity, self.value, self.stderr)
        sparsity, value, stderr = (np.interp(levels, LEVELS, c[look]).tolist() for c in columns)
        return SparsityCurve(
            sparsity, value, stderr, higher_is_better=False, level=levels,
            num_examples=self.num_examples,
        )  # fmt: skip


def recorded(name: str) -> Series:
    """The settled looks of a recorded training."""
    with np.load(HERE / "recorded" / f"{name}.npz") as arrays:
        is_settled = arrays["step"] >= SETTLED
        sparsity, value, stderr = (
            arrays[key][is_settled].astype(float) for key in ("sparsity", "value", "stderr")
        )
        return Series(sparsity, value, stderr, int(arrays["num_examples"]))


def synthetic(harm: Callable[[int, Array], Array], error: float = 0.0, looks: int = 60) -> Series:
    """Curves from a formula: ``harm(look, levels)`` in units of what is allowed."""
    harms = np.stack([harm(look, LEVELS) for look in range(looks)])
    stderr = TOLERANCE * error * np.sqrt(np.abs(harms))
    sparsity = np.tile(LEVELS, (looks, 1))
    return Series(sparsity, 1.0 + TOLERANCE * harms, stderr, num_examples=512)


def rising(crossing: float, levels: Array) -> Array:
    """Harm that passes 1 at ``crossing``."""
    return (levels / crossing) ** 8


def bump(levels: Array, middle: float, height: float) -> Array:
    """Harm that comes and goes again around ``middle``."""
    return height * np.exp(-(((levels - middle) / 0.05) ** 2))


def drifting(look: int, levels: Array) -> Array:
    """The crossing wanders by up to 0.01 a look."""
    return rising(0.6 + 0.1 * np.sin(look / 10), levels)


def jumping(look: int, levels: Array) -> Array:
    """Every twenty looks the crossing jumps by 0.3."""
    return rising(0.75 if look // 20 % 2 == 0 else 0.45, levels)


def twice(look: int, levels: Array) -> Array:
    """Three crossings at every look: up and down again, then for good."""
    return rising(0.8, levels) + bump(levels, 0.4 + 0.05 * np.sin(look / 10), 2.0)


def opening(look: int, levels: Array) -> Array:
    """From look 20 on the tolerance is crossed far below, over 0.06, where it never was."""
    return drifting(look, levels) + bump(levels, 0.25, 1.5 if look >= 20 else 0.0)


def all_series() -> dict[str, Series]:
    """Every series by name."""
    found = {f"recorded: {name}": recorded(name) for name in ("relu", "gelu", "relu-linear")}
    return found | {
        "synthetic: drifts": synthetic(drifting),
        "synthetic: drifts, with errors": synthetic(drifting, error=0.2),
        "synthetic: jumps by 0.3": synthetic(jumping),
        "synthetic: three crossings": synthetic(twice, error=0.1),
        "synthetic: an early crossing opens": synthetic(opening),
    }


def replay(series: Series, sweep: Sweep) -> Iterator[tuple[int, EssentialSparsity]]:
    """Evaluations and estimate of each look."""
    previous: SparsityCurve | None = None
    for look in range(len(series)):
        measured = {0.0, 1.0}
        measure = measurer(series, look, measured)
        sweep.choose(measure, () if previous is None else points_of(previous, allowed))
        previous = series.curve(look, sorted(measured))
        yield 1 + len(measured), essential_sparsity(previous, TOLERANCE)


def measurer(series: Series, look: int, measured: set[float]) -> Callable[[float], Point]:
    """What a sweep calls; the levels it asks for are added to ``measured``."""

    def measure(level: float) -> Point:
        measured.add(float(level))
        point = points_of(series.curve(look, [0.0, float(level)]), allowed)[-1]
        return point._replace(level=float(level))

    return measure


def allowed(dense: float) -> float:
    """The harm that is accepted."""
    return TOLERANCE * dense


@dataclass(frozen=True)
class Result:
    """One sweep on one series, by look: arrays [T]."""

    evaluations: Array
    error: Array
    low_error: Array
    high_error: Array
    holds: Array

    @classmethod
    def of(cls, series: Series, sweep: Sweep) -> Result:
        """Replay, and compare with the full grid."""
        full = [
            essential_sparsity(series.curve(look, LEVELS.tolist()), TOLERANCE)
            for look in range(len(series))
        ]
        evaluations, found = zip(*replay(series, sweep), strict=True)
        pairs = list(zip(found, full, strict=True))
        return cls(
            np.array(evaluations, dtype=float),
            np.array([abs(a.value - b.value) for a, b in pairs]),
            np.array([abs(a.low - b.low) for a, b in pairs]),
            np.array([abs(a.high - b.high) for a, b in pairs]),
            # without errors the interval is a point, so both are read to 0.01
            np.array([a.low - TOLERANCE <= b.value <= a.high + TOLERANCE for a, b in pairs]),
        )

    def row(self) -> str:
        """Cells of the table."""
        later = self.evaluations[1:]
        return (
            f"{self.evaluations[0]:.0f} | {later.mean():.1f} | {later.max():.0f} | "
            f"{self.error.mean():.4f} | {self.error.max():.3f} | "
            f"{np.mean(self.error <= TOLERANCE + 1e-9):.0%} | {self.low_error.mean():.3f} | "
            f"{self.high_error.mean():.3f} | {self.holds.mean():.0%}"
        )


def report(small: bool) -> str:
    """The whole table, in Markdown."""
    found = all_series()
    if small:
        found = {name: found[name] for name in ("recorded: relu", "synthetic: drifts")}
    lines = [
        "# Evaluations a look, and the estimate against that of every 0.01",
        "",
        f"sparsitywatch {sparsitywatch.__version__}; {dt.date.today()}, commit {commit()}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * (len(COLUMNS) - 2)}",
    ]
    results = {}
    for name, series in found.items():
        for label, sweep in SWEEPS.items():
            results[name, label] = result = Result.of(series, sweep)
            lines.append(f"| {name} | {label} | {result.row()} |")
    lines += ["", "| goal, Tracking() on the recorded curves | reach | measured | |"]
    lines += ["|---|---:|---:|---|", *goals([r for (name, label), r in results.items()
              if name.startswith("recorded") and label == "Tracking()"])]  # fmt: skip
    return "\n".join(lines) + "\n"


def goals(results: list[Result]) -> list[str]:
    """Rows of goal, reach, measured, reached or not."""
    mean = float(np.concatenate([r.evaluations[1:] for r in results]).mean())
    error = np.concatenate([r.error for r in results])
    share = float(np.mean(error <= TOLERANCE + 1e-9))
    found = [
        ("evaluations a look, mean", "<= 6", f"{mean:.1f}", mean <= 6),
        ("error of the estimate, mean", "<= 0.01", f"{error.mean():.4f}", error.mean() <= 0.01),
        ("looks within 0.01", "100 %", f"{share:.0%}", share == 1.0),
    ]
    return [
        f"| {goal} | {reach} | {measured} | {'reached' if is_reached else 'not reached'} |"
        for goal, reach, measured, is_reached in found
    ]


def main() -> None:
    """Replay, print, and keep the table if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="two series instead of eight")
    parser.add_argument("--save", action="store_true", help="keep the table in results/")
    arguments = parser.parse_args()
    text = report(arguments.small)
    print(text)
    if arguments.save:
        path = HERE / "results" / f"sweep-{dt.date.today()}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
