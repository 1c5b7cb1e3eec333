"""What the paper's experiments share: how results are kept, judged, told and drawn.

Everything here is small on purpose. ``texts.py`` has the encoder and the tasks on texts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

#: A paired standard error above this, in points of accuracy, says nothing.
LIMIT = 0.6
#: Points of accuracy that count as none: of a drop, and of what twice the training gives.
TOLERANCE = 1.0
CONFIDENCE = 0.9

# ------------------------------------------------------------------ arguments


def arguments(name: str, doc: str) -> argparse.ArgumentParser:
    """A parser with what every command takes: ``--out``, ``--small``, ``--threads``."""
    parser = argparse.ArgumentParser(
        description=doc.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/paper") / name, help="results")
    parser.add_argument("--small", action="store_true", help="made-up data, for tests")
    parser.add_argument("--threads", type=int, default=None, help="of torch; by default all cores")
    return parser


def begin(args: argparse.Namespace) -> None:
    """Make the folder and set the threads; says how busy the machine is."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{torch.get_num_threads()} threads of torch; {load()}")


def load() -> str:
    """How busy the machine is: what seconds are worth."""
    if not hasattr(os, "getloadavg"):
        return "load unknown"
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


# ------------------------------------------------------------------ results


class Results:
    """Results as lines of JSON, each under a key; whoever starts again goes on from them.

    Args:
        file: where they are kept.
        settings: what they depend on; those of other settings are refused.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.found: dict[str, Any] = {}
        said = json.loads(json.dumps(dict(settings)))
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._write({"settings": said})
            return
        lines = whole_lines(file)
        for line in map(json.loads, lines):
            if line.get("settings", said) != said:
                raise SystemExit(
                    f"Expected results of {said} in {file}, got those of {line['settings']}. "
                    "Give another --out, or remove the file."
                )
            if "key" in line:
                self.found[line["key"]] = line["value"]
        if not lines:
            self._write({"settings": said})

    def __getitem__(self, key: str) -> Any:
        return self.found[key]

    def __contains__(self, key: str) -> bool:
        return key in self.found

    def add(self, key: str, value: Any) -> None:
        """Keep a result: numbers, texts, and lists and dicts of them."""
        self._write({"key": key, "value": value})
        self.found[key] = value

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of that key, made if there is none."""
        if key not in self.found:
            self.add(key, make())
        return self.found[key]

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def whole_lines(file: Path) -> list[str]:
    """The lines of a file; one that a kill has cut short is removed from it."""
    text = file.read_text()
    *lines, rest = text.split("\n")
    if rest:
        file.write_text(text[: len(text) - len(rest)])
    return lines


def packed(right: ArrayLike) -> str:
    """Yes or no for each example as a text, for ``Results``.

    >>> packed([True, False, False, True])
    '4:90'
    """
    flags = np.asarray(right, dtype=bool)
    return f"{len(flags)}:{np.packbits(flags).tobytes().hex()}"


def unpacked(text: str) -> np.ndarray:
    """What was packed, bool [N].

    >>> unpacked("4:90").tolist()
    [True, False, False, True]
    """
    num, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[: int(num)].astype(bool)


# ------------------------------------------------------------------ the verdict


@dataclass(frozen=True)
class Difference:
    """How much lower one accuracy is than another, in points, on the same seeds and examples.

    Args:
        mean: points; above 0 where the second is worse.
        stderr: from the seeds and from the examples together.
        low, high: the interval.
    """

    mean: float
    stderr: float
    low: float
    high: float

    @property
    def is_precise(self) -> bool:
        """Whether it is known well enough to conclude anything."""
        return self.stderr <= LIMIT

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def difference(
    first: ArrayLike,
    second: ArrayLike,
    sources: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Difference:
    """The drop from the first to the second, paired by seed and by example.

    The variance is that of the means of the seeds, plus that of the means of the examples, of which
    those of one source count together. The first has a share of the second already, so the interval
    errs to the wide side. Its degrees of freedom are Satterthwaite's. With one seed it is of the
    examples alone.

    Args:
        first, second: what each example gave with each seed, [S, N], 0 to 1.
        sources: which file or mail each example is from, [N]; by default each is its own.
        confidence: of the interval.
    """
    drops = 100.0 * (np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    num_seeds, num = drops.shape
    numbers = np.arange(num) if sources is None else np.unique(sources, return_inverse=True)[1]
    sums = np.bincount(numbers, drops.mean(0) - drops.mean())
    free = len(sums) - 1
    variances = [(float(np.square(sums).sum()) * len(sums) / free / num**2, free)]
    if num_seeds > 1:
        variances.append((float(drops.mean(1).var(ddof=1)) / num_seeds, num_seeds - 1))
    return _interval(float(drops.mean()), variances, confidence)


def difference_of_seeds(
    first: ArrayLike, second: ArrayLike, confidence: float = CONFIDENCE
) -> Difference:
    """The drop from the first to the second, paired by seed; what the examples did is not known.

    Args:
        first, second: the value of each seed, [S], S of at least 2, in points.
        confidence: of the interval.
    """
    drops = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    variance = float(drops.var(ddof=1)) / len(drops)
    return _interval(float(drops.mean()), [(variance, len(drops) - 1)], confidence)


def _interval(mean: float, variances: Sequence[tuple[float, int]], confidence: float) -> Difference:
    total = sum(variance for variance, _ in variances)
    if total == 0.0:
        return Difference(mean, 0.0, mean, mean)
    freedom = total**2 / sum(variance**2 / free for variance, free in variances)
    width = t_quantile(0.5 + confidence / 2, freedom) * math.sqrt(total)
    return Difference(mean, math.sqrt(total), mean - width, mean + width)


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t, by its density over the angle whose tangent is t / sqrt(freedom).

    >>> round(t_quantile(0.95, 2), 2), round(t_quantile(0.95, 1000), 2)
    (2.92, 1.65)
    """
    if freedom > 1e4:
        return NormalDist().inv_cdf(probability)
    angles = np.linspace(-np.pi / 2, np.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    reached = np.cumsum((density[1:] + density[:-1]) / 2)
    angle = float(np.interp(probability * reached[-1], reached, angles[1:]))
    return math.sqrt(freedom) * math.tan(angle)


def verdict(first: str, second: str, drop: Difference, *, levelled: bool = True) -> str:
    """Which of two does better, in words, or that nobody can tell.

    Args:
        first, second: what they are called.
        drop: from the first to the second.
        levelled: whether the dense model has levelled off.
    """
    about = f"{first} − {second}: {drop} points"
    if not levelled:
        return f"{about}: cannot tell, the dense model has not levelled off"
    if not drop.is_precise:
        return f"{about}: cannot tell, the standard error is {drop.stderr:.1f}, above {LIMIT}"
    if drop.low > 0.0:
        return f"{about}: {first} does better"
    if drop.high < 0.0:
        return f"{about}: {second} does better"
    return f"{about}: no difference is seen"


def has_levelled_off(gain: Difference) -> tuple[bool, str]:
    """Whether twice the training still raises the dense accuracy; and the same in words.

    Args:
        gain: from half of the training to all of it, in points.
    """
    is_level = gain.high <= TOLERANCE
    return is_level, (
        f"twice the training raises the dense accuracy by {gain} points: it has "
        f"{'' if is_level else 'not been shown to have '}levelled off (limit: {TOLERANCE:g})"
    )


def judged(gain: Difference, better: str, worse: str) -> str:
    """What a difference says, in words.

    Args:
        gain: in points.
        better, worse: what is said where all of the interval is above zero, or below.
    """
    if not gain.is_precise:
        return f"cannot tell (standard error above {LIMIT:g} points)"
    if gain.low > 0.0:
        return better
    return worse if gain.high < 0.0 else "no difference is seen"


# ------------------------------------------------------------------ table and picture


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a table of Markdown that can be read as it stands; the first column to the left."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


@dataclass(frozen=True)
class Line:
    """A line of a picture: values [K] over abscissae [K], and how far the bars reach [K]."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    style: str = "o-"


def draw(
    path: Path, panels: Mapping[str, Sequence[Line]], x_label: str, y_label: str, note: str = ""
) -> None:
    """Lines side by side, a panel for each title, into a PNG."""
    figure = Figure(figsize=(1.0 + 5.0 * len(panels), 4.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for line in lines:
            axes.errorbar(
                line.x, line.y, yerr=line.error, fmt=line.style, label=line.name,
                capsize=2, markersize=4, linewidth=1.3, elinewidth=1.0,
            )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    grid[0].set_ylabel(y_label)
    if note:
        figure.supxlabel(note, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
