"""What each hand-set number of the detector decides: halved and doubled, what comes out otherwise.

Numbers are the constants at the top of the modules of ``sparsitywatch/analysis/detect`` and the
fields of its kinds of growth. Series are made-up ones of design seeds and recorded design runs.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from detecting import jumps, slow
from detecting.ours import online, ours
from detecting.recorded import cases, replay
from detecting.scoring import judge
from detecting.series import DESIGN_SEEDS, Series
from sparsitywatch.analysis import detect

__all__ = ["Number", "changed", "numbers", "rows_of", "with_value"]

MODULES = ("change", "growth", "jumps", "detector", "history")
#: No choices: facts of the normal distribution, of storage and of arithmetic.
_FACTS = {
    "MAD_TO_SD", "_MEDIAN", "_QUANTILE", "_LEVEL", "_LOST", "_NUM_PLAIN", "_MAX_DEGREE", "_HELD",
    "_TINY", "_ROOT", "_DIGITS", "_TENTHS", "_RATE_DIGITS", "_MEAN_DIGITS",
    "SPLITS", "MODELS", "WINDOW", "MIN_SNAPSHOTS",
}  # fmt: skip
#: So many numbers in a row are a grid, which is scaled as a whole.
_GRID = 4
#: Recorded runs are looked at so often, by one rule.
_EVERY, _RULE = 100, "initial_0.1"


@dataclass(frozen=True)
class Number:
    """One number of a module.

    Args:
        module: of ``sparsitywatch.analysis.detect``.
        name: of the constant, or "RISE.min_past".
        place: in a tuple of several; -1 if it is one number or a grid.
        value: as it stands.
        why: the comment above it.
    """

    module: str
    name: str
    place: int
    value: float | tuple[float, ...]
    why: str

    @property
    def title(self) -> str:
        """As the table has it."""
        place = "" if self.place < 0 else f"[{self.place}]"
        return f"`{self.module}.{self.name}{place}`"

    @property
    def shown(self) -> str:
        """Its value, of a grid both ends."""
        value = self.value
        return f"{value:.4g}" if not isinstance(value, tuple) else f"{value[0]:g}…{value[-1]:g}"

    def times(self, factor: float) -> Any:
        """So many times its value; a whole number stays one, and 1 at least."""
        if isinstance(self.value, tuple):
            return tuple(factor * x for x in self.value)
        if isinstance(self.value, int):
            return max(round(factor * self.value), 1)
        return factor * self.value


def numbers() -> list[Number]:
    """All of them, in the order of the files."""
    return list(itertools.chain.from_iterable(map(_numbers_of, MODULES)))


def _numbers_of(name: str) -> Iterator[Number]:
    module = importlib.import_module(f"{detect.__name__}.{name}")
    lines = Path(str(module.__file__)).read_text().splitlines()
    for node in ast.parse("\n".join(lines)).body:
        if not isinstance(node, ast.Assign):
            continue
        targets = node.targets[0]
        of = targets.elts if isinstance(targets, ast.Tuple) else [targets]
        for target in (x.id for x in of if isinstance(x, ast.Name)):
            if target in _FACTS:
                continue
            for part, place, value in _values(getattr(module, target)):
                yield Number(name, target + part, place, value, _comment(lines, node.lineno))


def _values(found: object) -> Iterator[tuple[str, int, Any]]:
    """The numbers in a constant: its part, the place in a tuple, and the value."""
    if isinstance(found, int | float) and not isinstance(found, bool):
        yield "", -1, found
    elif isinstance(found, tuple) and all(isinstance(x, int | float) for x in found):
        if len(found) >= _GRID:
            yield "", -1, found
            return
        yield from (("", place, x) for place, x in enumerate(found))
    elif dataclasses.is_dataclass(found):
        for key, value in vars(found).items():
            if isinstance(value, int | float):
                yield f".{key}", -1, value


def _comment(lines: Sequence[str], number: int) -> str:
    """The lines above that explain a constant, as one."""
    first = number - 1
    while first and lines[first - 1].startswith("#:"):
        first -= 1
    return " ".join(line.removeprefix("#:").strip() for line in lines[first : number - 1])


@contextmanager
def with_value(number: Number, value: Any) -> Iterator[None]:
    """The detector with another value of one number, wherever it is imported."""
    name, _, part = number.name.partition(".")
    modules = [importlib.import_module(f"{detect.__name__}.{m}") for m in (*MODULES, "measured")]
    own = modules[MODULES.index(number.module)]
    # another module may have a private number of the same name
    holders = [own] if name.startswith("_") else [m for m in modules if name in vars(m)]
    before = getattr(own, name)
    if part:
        now: Any = dataclasses.replace(before, **{part: value})
    elif number.place >= 0:
        now = (*before[: number.place], value, *before[number.place + 1 :])
    else:
        now = value
    _set(holders, name, now)
    try:
        yield
    finally:
        _set(holders, name, before)


def _set(modules: Sequence[ModuleType], name: str, value: object) -> None:
    for module in modules:
        setattr(module, name, value)
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


#: By series: alarms, whether its change was missed, and false ones.
Outcomes = dict[str, tuple[object, int, int]]


def outcomes(seeds: Sequence[int], longest: int) -> Outcomes:
    """What the detector does on each series: its alarms, what it missed, what was false."""
    found: Outcomes = {}
    made: list[Series] = [*jumps.suite(seeds), *slow.suite(seeds)]
    detector = online(ours)
    for series in (s for s in made if len(s.values) <= longest):
        alarms = detector(series)
        judged = judge(series, alarms)
        missed = int(judged.changes and judged.delay is None)
        found[f"{series.family} {series.seed}"] = (tuple(alarms), missed, judged.num_false)
    for case in cases():
        if (case.split, case.every, case.phase, case.rule) == ("design", _EVERY, 0, _RULE):
            found[case.name] = (repr(replay(ours, case)), 0, 0)
    return found


def changed(before: Outcomes, now: Outcomes) -> str:
    """In how many series something is otherwise, and by how much more is missed and false."""
    differ = sum(before[name] != now[name] for name in before)
    if not differ:
        return "nothing"
    missed = sum(now[name][1] - before[name][1] for name in before)
    false = sum(now[name][2] - before[name][2] for name in before)
    return f"{differ} series, missed {missed:+d}, false {false:+d}"


def rows_of(
    seeds: Sequence[int] = DESIGN_SEEDS[:1],
    longest: int = 100,
    tell: Callable[[str], object] = lambda _: None,
    *,
    some: slice = slice(None),
) -> tuple[list[list[str]], int]:
    """A row for each number, and how many series they were tried on.

    Args:
        seeds: of the made-up series, of standard difficulty and slow ones.
        longest: series of more snapshots are left out.
        tell: is told each row when it is there.
        some: which of the numbers.
    """
    before, rows = outcomes(seeds, longest), []
    for number in numbers()[some]:
        cells = [number.title, number.shown, number.why]
        for factor in (0.5, 2.0):
            with with_value(number, number.times(factor)):
                try:
                    cells.append(changed(before, outcomes(seeds, longest)))
                except (ArithmeticError, ValueError, IndexError, np.linalg.LinAlgError) as error:
                    cells.append(f"cannot be: {type(error).__name__}")
        rows.append(cells)
        tell(" | ".join(cells))
    return rows, len(before)
