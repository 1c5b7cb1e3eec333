"""What a snapshot costs with each sweep, and how far its estimate is from that of a full grid.

python benchmarks/sweep.py [--small] [--save]

Replays curves snapshot by snapshot: six recorded trainings (record_curves.py; held-out examples of
text and images) and synthetic ones, made up for what the recordings do not show. Settings were
chosen on the first three; the other three are marked as new. Each sweep sees its own points of the
snapshot before, as in a watch, and, where it asks for them, the examples of a part in their order.
The reference is the estimate from every 0.01 on all examples. A pass is an evaluation of all
examples, so a level that saw a part counts as that share. Dense, level 0 and level 1 count; the
first snapshot, for which there is no curve before, has a column of its own. The interval is said to
hold the reference if it does to 0.01. Nothing is timed, so no machine is named.

How often the 90 % interval holds the true crossing is counted on trainings whose truth is known:
examples drawn from a distribution with a harm by formula, heavy-tailed and alike from level to
level as recorded ones are; and recorded snapshots whose examples are drawn anew, with replacement,
where the truth is the crossing of the recorded ones. Beside it, on the same draws, bisection of
all examples. A row is off by 3 % by chance.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reporting import commit

import sparsitywatch
from sparsitywatch.analysis.estimate import essential_sparsity
from sparsitywatch.pruning.partial import Losses, Point, shares_of
from sparsitywatch.pruning.sweep import Bisection, Grid, Racing, Sweep, points_of
from sparsitywatch.pruning.tracking import Tracking
from sparsitywatch.records import EssentialSparsity, SparsityCurve
from sparsitywatch.settings import DEFAULT_LEVELS

Array = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
TOLERANCE = 0.01
LEVELS = np.arange(101) / 100
SWEEPS: dict[str, Sweep] = {
    "Grid(0.05 to 0.95)": Grid(tuple(round(i / 20, 2) for i in range(1, 20))),
    "Bisection": Bisection(DEFAULT_LEVELS),
    "Tracking()": Tracking(),
    "Tracking(checks_below=False)": Tracking(checks_below=False),
    "Racing()": Racing(),
}
COLUMNS = (
    "curves",
    "sweep",
    "passes, first snapshot",
    "then, mean",
    "max",
    "error, mean",
    "max",
    "within 0.01",
    "of low, mean",
    "of high, mean",
    "of the last crossing, mean",
    "of the knee, mean",
    "interval holds it",
)
#: Of the order of the examples.
ORDER_SEED = 0
#: Times that examples are drawn, for how often the interval holds the truth.
DRAWS = 100
#: Correlation of what an example loses at levels 0.01 apart, as recorded.
ALIKE = 0.987
#: Recorded trainings, by whether settings were chosen on them.
CHOSEN_ON, NEW = ("relu", "gelu", "relu-linear"), ("decayed", "causal", "vision")


@dataclass(frozen=True)
class Series:
    """Snapshots one after the other, all at ``LEVELS``.

    Args:
        sparsity: as counted, [T, 101].
        dense: the value of each example, [T, N].
        lost: what each example loses at each level, [101, N], by snapshot.
    """

    sparsity: Array
    dense: Array
    lost: Callable[[int], Array]

    def __len__(self) -> int:
        return len(self.dense)

    @functools.cached_property
    def full(self) -> list[SparsityCurve]:
        """The curve of every snapshot from every level, on all examples."""
        return [Look(self, look).curve(LEVELS.tolist()) for look in range(len(self))]


class Look:
    """What a sweep calls at one snapshot.

    Args:
        series: where the snapshot belongs.
        look: its number, of the snapshot.
        examples: of the smallest part; None for a sweep that wants all of them at every level.
    """

    def __init__(self, series: Series, look: int, examples: int | None = None) -> None:
        self.dense, self._sparsity = series.dense[look], series.sparsity[look]
        num = len(self.dense)
        parts = () if examples is None else shares_of(num, examples)
        self.shares = (*parts, 1.0)
        # as Proxy.parts draws them
        self._order = np.random.Generator(np.random.PCG64([ORDER_SEED, 0])).random(num).argsort()
        self._lost: Array = series.lost(look)
        self._losses = Losses(num, self._order)
        self._allowed = TOLERANCE * float(self.dense.mean())
        self._seen: dict[float, float] = {}
        self.passes = 1.0 + (parts[0] if parts else 0.0)

    def __call__(self, level: float, share: float = 1.0) -> Point:
        """What a level costs, evaluated on a share of the examples."""
        return next(point for point in self.after([(level, share)]) if point.level == level)

    def after(self, steps: Sequence[tuple[float, float]]) -> list[Point]:
        """What every level costs after some more were evaluated."""
        for level, least in steps:
            share = next(s for s in self.shares if s >= least - 1e-9)
            if share > (seen := self._seen.get(level, 0.0)):
                column = self._column(level)
                number = math.ceil(share * len(column) - 1e-9)
                drawn = self._order[self._losses.num_seen(level) : number]
                self._losses.add(level, column[drawn] if share < 1.0 or seen else column)
                self.passes += share - seen
                self._seen[level] = share
        return self._losses.points(self._allowed)

    def _column(self, level: float) -> Array:
        """What each example lost at a level; between recorded ones straight."""
        left = min(int(level * 100 + 1e-9), 99)
        share = level * 100 - left
        below: Array = self._lost[left]
        column: Array = below + share * (self._lost[left + 1] - below)
        return column

    def curve(self, levels: list[float] | None = None) -> SparsityCurve:
        """The curve of what was measured, or of these levels on all examples."""
        self.after([(level, 1.0) for level in levels or ()])
        found = self._losses.means()
        measured = sorted(found)
        means = [found[level] for level in measured]
        return SparsityCurve(
            np.interp(measured, LEVELS, self._sparsity).tolist(),
            [float(self.dense.mean()) + mean.value for mean in means],
            [mean.stderr for mean in means],
            higher_is_better=False,
            level=measured,
            num_examples=len(self.dense),
            num_seen=[mean.num_seen for mean in means],
        )


def recorded(name: str) -> Series:
    """The snapshots of a recorded training."""
    with np.load(HERE / "recorded" / f"{name}.npz") as arrays:
        level = np.concatenate([[0.0], arrays["level"]])
        sparsity = np.stack([np.interp(LEVELS, level, [0.0, *s]) for s in arrays["sparsity"]])
        dense, found = arrays["dense"].astype(float), arrays["difference"]
    none = np.zeros((1, dense.shape[1]))
    weights = np.stack([np.interp(LEVELS, level, unit) for unit in np.eye(len(level))], axis=1)
    return Series(sparsity, dense, lambda look: weights @ np.concatenate([none, found[look]]))


def synthetic(
    harm: Callable[[int, Array], Array], error: float = 0.0, looks: int = 60, num: int = 512
) -> Series:
    """Curves from a formula: ``harm(look, levels)`` in units of what is allowed.

    Examples differ so that the standard error of the mean is ``error`` times the root of the harm,
    and are alike from level to level, as recorded ones are. Their mean is the formula's.
    """

    def lost(look: int) -> Array:
        wanted = harm(look, LEVELS)
        noise = np.random.default_rng(look).standard_normal((len(LEVELS), num))
        for before, after in itertools.pairwise(noise):
            after *= math.sqrt(1.0 - ALIKE**2)
            after += ALIKE * before
        noise -= noise.mean(axis=1, keepdims=True)
        noise /= noise.std(axis=1, ddof=1, keepdims=True)
        spread = error * np.sqrt(np.abs(wanted) * num)
        found: Array = TOLERANCE * (wanted[:, None] + spread[:, None] * noise)
        return found

    return Series(np.tile(LEVELS, (looks, 1)), np.ones((looks, num)), lost)


def rising(crossing: float, levels: Array) -> Array:
    """Harm that passes 1 at ``crossing``."""
    return (levels / crossing) ** 8


def bump(levels: Array, middle: float, height: float) -> Array:
    """Harm that comes and goes again around ``middle``."""
    return height * np.exp(-(((levels - middle) / 0.05) ** 2))


def drifting(look: int, levels: Array) -> Array:
    """The crossing wanders by up to 0.01 a snapshot."""
    return rising(0.6 + 0.1 * np.sin(look / 10), levels)


def jumping(look: int, levels: Array) -> Array:
    """Every twenty snapshots the crossing jumps by 0.3."""
    return rising(0.75 if look // 20 % 2 == 0 else 0.45, levels)


def twice(look: int, levels: Array) -> Array:
    """Three crossings at every snapshot: up and down again, then for good."""
    return rising(0.8, levels) + bump(levels, 0.4 + 0.05 * np.sin(look / 10), 2.0)


def opening(look: int, levels: Array) -> Array:
    """From snapshot 20 on the tolerance is crossed far below, over 0.06, where it never was."""
    return drifting(look, levels) + bump(levels, 0.25, 1.5 if look >= 20 else 0.0)


def all_series() -> dict[str, Series]:
    """Every series by name."""
    found = {f"recorded: {name}": recorded(name) for name in CHOSEN_ON}
    found |= {f"recorded, new: {name}": recorded(name) for name in NEW}
    return found | {
        "synthetic: drifts": synthetic(drifting),
        "synthetic: drifts, with errors": synthetic(drifting, error=0.2),
        "synthetic: jumps by 0.3": synthetic(jumping),
        "synthetic: three crossings": synthetic(twice, error=0.1),
        "synthetic: an early crossing opens": synthetic(opening, error=0.1),
    }


#: True harm in units of what is allowed, for the coverage, and how much examples differ.
SHAPES: dict[str, tuple[Callable[[Array], Array], float]] = {
    "8th power": (lambda s: (s / 0.75) ** 8, 3.0),
    "logistic": (lambda s: 33.0 / (1.0 + np.exp((0.75 - s) / 0.07)) - 0.0007, 4.0),
    "gains at first": (lambda s: (s / 0.65) ** 6 - 0.6 * np.sin(np.pi * (s / 0.5).clip(0, 1)), 8.0),
    "crosses twice": (lambda s: (s / 0.8) ** 12 + 1.3 * np.exp(-(((s - 0.4) / 0.1) ** 2)), 4.0),
    "nearly crosses": (lambda s: (s / 0.8) ** 12 + 0.8 * np.exp(-(((s - 0.4) / 0.1) ** 2)), 4.0),
}


def drawn(shape: str, num: int) -> tuple[Series, Array]:
    """Examples drawn from a distribution, anew at each snapshot, and where its harm crosses.

    An example loses a lognormal multiple of the harm, and an error by Student's t with four degrees
    of freedom that grows with sparsity.
    """
    harm, noise = SHAPES[shape]
    fine = np.linspace(0.0, 1.0, 100_001)
    truth = float(fine[np.argmax(harm(fine) > 1.0)])

    def lost(look: int) -> Array:
        rng = np.random.default_rng([look, num])
        errors = rng.standard_normal((len(LEVELS), num))
        for before, after in itertools.pairwise(errors):
            after *= math.sqrt(1.0 - ALIKE**2)
            after += ALIKE * before
        errors /= np.sqrt(rng.chisquare(4, num) / 4)
        factor = rng.lognormal(-0.32, 0.8, num)  # 1 on average
        spread = noise * (LEVELS / 0.3).clip(0, 1) * (0.3 + LEVELS)
        found: Array = TOLERANCE * (harm(LEVELS)[:, None] * factor + spread[:, None] * errors)
        return found

    dense = np.random.default_rng(num).gamma(9, 1 / 9, (DRAWS, num))
    return Series(np.tile(LEVELS, (DRAWS, 1)), dense, lost), np.full(DRAWS, truth)


def resampled(series: Series) -> tuple[Series, Array]:
    """Snapshots of a recorded training with examples drawn from its own, and the true crossing.

    Those that have no estimate are left out.
    """
    found = [essential_sparsity(curve, TOLERANCE) for curve in series.full]
    looks = [look for look, estimate in enumerate(found) if estimate.informative]
    chosen = [looks[draw % len(looks)] for draw in range(DRAWS)]
    num = series.dense.shape[1]
    rows = np.random.default_rng(0).integers(num, size=(DRAWS, num))
    dense = np.stack([series.dense[look][row] for look, row in zip(chosen, rows, strict=True)])
    again = Series(
        series.sparsity[chosen], dense, lambda draw: series.lost(chosen[draw])[:, rows[draw]]
    )
    return again, np.array([found[look].value for look in chosen])


def coverage(series: Series, truth: Array, sweep: Sweep) -> tuple[float, float]:
    """How often the interval holds the truth, and its median width."""
    held, widths = [], []
    for number, crossing in enumerate(truth):
        look = Look(series, number, getattr(sweep, "examples", None))
        look.after([(0.0, look.shares[0]), (1.0, look.shares[0])])
        sweep.choose(look, ())
        estimate = essential_sparsity(look.curve(), TOLERANCE)
        if estimate.informative:
            held.append(estimate.low - 1e-9 <= crossing <= estimate.high + 1e-9)
            widths.append(estimate.high - estimate.low)
    return float(np.mean(held)), float(np.median(widths))


def coverage_rows(*, small: bool) -> list[str]:
    """How often the 90 % interval of ``Racing()`` holds the truth, and that of ``Bisection``."""
    sources = {
        f"drawn: {shape}, {num} examples": functools.partial(drawn, shape, num)
        for shape in SHAPES
        for num in (192, 512)
    }
    for words, names in (("recorded", CHOSEN_ON), ("recorded, new", NEW)):
        for name in names:
            sources[f"{words}: {name}"] = functools.partial(_of_recorded, name)
    if small:
        sources = dict([*sources.items()][:1])
    lines = ["| examples drawn anew | Racing(): held | width | Bisection: held | width |"]
    lines.append(f"|---|{'---:|' * 4}")
    held: dict[str, list[tuple[float, float]]] = {}
    for name, source in sources.items():
        series, truth = source()
        both = (SWEEPS["Racing()"], SWEEPS["Bisection"])
        (race, width), (full, full_width) = (coverage(series, truth, sweep) for sweep in both)
        lines.append(f"| {name} | {race:.0%} | {width:.3f} | {full:.0%} | {full_width:.3f} |")
        held.setdefault(name.partition(":")[0], []).append((race, full))
    lines += ["", "| goal, the interval holds the truth | reach | Racing() | Bisection | |"]
    lines.append(f"|---|{'---:|' * 3}---|")
    for kind, found in held.items():
        race, full = np.mean(found, axis=0)
        word = "reached" if 0.875 <= race <= 0.935 else "not reached"
        lines.append(f"| {kind} | 88 to 93 % | {race:.1%} | {full:.1%} | {word} |")
    return lines


def _of_recorded(name: str) -> tuple[Series, Array]:
    return resampled(recorded(name))


def replay(series: Series, sweep: Sweep) -> Iterator[tuple[float, EssentialSparsity]]:
    """Passes and estimate of each snapshot."""
    previous: SparsityCurve | None = None
    for number in range(len(series)):
        look = Look(series, number, getattr(sweep, "examples", None))
        look.after([(0.0, look.shares[0]), (1.0, look.shares[0])])
        sweep.choose(look, () if previous is None else points_of(previous, allowed))
        previous = look.curve()
        yield look.passes, essential_sparsity(previous, TOLERANCE)


def allowed(dense: float) -> float:
    """The harm that is accepted."""
    return TOLERANCE * dense


@dataclass(frozen=True)
class Result:
    """One sweep on one series, by snapshot: arrays [T]."""

    passes: Array
    error: Array
    low_error: Array
    high_error: Array
    last_error: Array
    knee_error: Array
    holds: Array

    @classmethod
    def of(cls, series: Series, sweep: Sweep) -> Result:
        """Replay, and compare with the full grid."""
        full = [essential_sparsity(curve, TOLERANCE) for curve in series.full]
        passes, found = zip(*replay(series, sweep), strict=True)
        pairs = list(zip(found, full, strict=True))

        def apart(name: str) -> Array:
            return np.array([abs(getattr(a, name) - getattr(b, name)) for a, b in pairs])

        return cls(
            np.array(passes),
            apart("value"),
            apart("low"),
            apart("high"),
            apart("last_crossing"),
            apart("knee"),
            # without errors the interval is a point, so both are read to 0.01
            np.array([a.low - TOLERANCE <= b.value <= a.high + TOLERANCE for a, b in pairs]),
        )

    def row(self) -> str:
        """Cells of the table."""
        later = self.passes[1:]
        return (
            f"{self.passes[0]:.1f} | {later.mean():.1f} | {later.max():.1f} | "
            f"{self.error.mean():.4f} | {self.error.max():.3f} | "
            f"{np.mean(self.error <= TOLERANCE + 1e-9):.0%} | {self.low_error.mean():.3f} | "
            f"{self.high_error.mean():.3f} | {np.nanmean(self.last_error):.3f} | "
            f"{np.nanmean(self.knee_error):.3f} | {self.holds.mean():.0%}"
        )


def report(small: bool) -> str:
    """The whole table, in Markdown."""
    found = all_series()
    if small:
        found = {name: found[name] for name in ("recorded: relu", "synthetic: drifts")}
    lines = [
        "# Passes a snapshot, and the estimate against that of every 0.01 on all examples",
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
    lines += ["", "| goal, Racing() | reach | measured | |", "|---|---:|---:|---|"]
    lines += goals({name: r for (name, label), r in results.items() if label == "Racing()"})
    return "\n".join([*lines, "", *coverage_rows(small=small)]) + "\n"


def goals(results: dict[str, Result]) -> list[str]:
    """Rows of goal, reach, measured, reached or not."""
    found: list[tuple[str, str, str, bool]] = []

    def add(goal: str, reach: float, measured: float, form: str, *, at_most: bool = True) -> None:
        is_reached = measured <= reach if at_most else measured >= reach
        sign = "<=" if at_most else ">="
        found.append((goal, f"{sign} {reach:{form}}", f"{measured:{form}}", is_reached))

    for words, start in (("", "recorded: "), (", new ones", "recorded, new: ")):
        those = [result for name, result in results.items() if name.startswith(start)]
        if not those:
            continue
        error = np.concatenate([r.error for r in those])
        first = float(np.mean([r.passes[0] for r in those]))
        later = float(np.concatenate([r.passes[1:] for r in those]).mean())
        within = float(np.mean(error <= TOLERANCE + 1e-9))
        add(f"recorded{words}: passes, first snapshot", 5.0, first, ".1f")
        add(f"recorded{words}: passes, then", 4.0, later, ".1f")
        add(f"recorded{words}: error of the estimate, mean", 0.002, float(error.mean()), ".4f")
        add(f"recorded{words}: snapshots within 0.01", 0.98, within, ".1%", at_most=False)
    for name in ("three crossings", "an early crossing opens"):
        if (result := results.get(f"synthetic: {name}")) is not None:
            within = float(np.mean(result.error <= TOLERANCE + 1e-9))
            add(f"{name}: snapshots within 0.01", 0.95, within, ".1%", at_most=False)
    return [
        f"| {goal} | {reach} | {measured} | {'reached' if is_reached else 'not reached'} |"
        for goal, reach, measured, is_reached in found
    ]


def main() -> None:
    """Replay, print, and keep the table if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="two series instead of eleven")
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
