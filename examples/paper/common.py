"""What the paper's experiments share: how results are kept, judged, told and drawn.

Everything here is small on purpose. ``texts.py`` has the encoder and the tasks on texts.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import keep
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

import sparsitywatch as sw

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


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, toy: Mapping[str, Any]
) -> argparse.Namespace:
    """The arguments; those of a toy with ``--small``, but for what is given beside it."""
    if parser.parse_args(argv).small:
        parser.set_defaults(**toy)
    return parser.parse_args(argv)


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


# ------------------------------------------------------------------ differences


def points(
    first: ArrayLike, second: ArrayLike, groups: Sequence[Any] | None = None
) -> sw.Difference:
    """How much higher the first is, in points, paired by seed and by example: of [S, N]."""
    return sw.Difference.paired(100 * np.asarray(first), 100 * np.asarray(second), groups)


def by_seed(first: Sequence[float], second: Sequence[float]) -> sw.Difference:
    """How much higher the first is where only a number of each seed is known: of [S]."""
    return sw.Difference.paired(np.reshape(first, (-1, 1)), np.reshape(second, (-1, 1)))


def drop(curve: sw.FinetunedCurve, level: float) -> sw.Difference:
    """From the dense model to a level, in points."""
    return points(curve.values_at(0.0), curve.values_at(level), curve.groups)


def learned(curve: sw.FinetunedCurve, labels: ArrayLike) -> sw.Difference:
    """How much better the dense model is than always giving the largest class, in points."""
    largest = np.asarray(labels) == np.bincount(np.asarray(labels)).argmax()
    return points(curve.values_at(0.0), largest, curve.groups)


def remark(half: sw.FinetunedCurve, whole: sw.FinetunedCurve) -> str:
    """By how much twice the training raises the dense accuracy: no conclusion hangs on it."""
    gain = points(whole.values_at(0.0), half.values_at(0.0), whole.groups)
    return f"twice the training raises the dense accuracy by {gain} points."


def concluded(said: Sequence[tuple[str, sw.Comparison]], **options: Any) -> list[str]:
    """What may be said of all comparisons of a command, each behind what it is about."""
    found = sw.verdicts([comparison for _, comparison in said], **options)
    return [f"{about}: {one}." for (about, _), one in zip(said, found, strict=True)]


def report(
    args: argparse.Namespace,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    said: Sequence[str] = (),
    pairs: Sequence[tuple[str, sw.Comparison]] = (),
    *,
    name: str = "report",
    unit: str = "points",
    **numbers: Any,
) -> None:
    """Print a table and what may be concluded, and keep both, and other numbers, in ``kept/``."""
    print("", table(head, rows), "", *said, *concluded(pairs, unit=unit), "", sep="\n")
    given = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    keep(args.out / "kept" / f"{name}.json.gz", {
        "date": f"{dt.datetime.now(dt.timezone.utc).date()}", "arguments": given,
        "head": list(head), "rows": [[str(cell) for cell in row] for row in rows],
        "said": list(said), "unit": unit,
        "comparisons": [{"about": about, **asdict(one)} for about, one in pairs], **numbers,
    })  # fmt: skip


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
