"""Each hand-set number of the detectors: its reason, and what comes out when it is another one.

Numbers are those that are written in the constants at the top of the modules of
``sparsitywatch/analysis/detect``. The comment above one, or above the constants that it stands
among, says why it is there, and, before a colon, if it is no choice that events hang on: a
*definition*, a *guard* of the arithmetic, a *bound* of what is remembered or searched, a *grid*
that is searched. Other values are tried on series of all kinds: made-up ones of design seeds, also
upside down, growth at several cadences, and recorded design runs.
"""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from recording.catalog import load

from detecting import jumps, quiet, slow
from detecting.cadences import SHAPES, growth
from detecting.detectors import MIN_EFFECT
from detecting.quiet import losses
from detecting.recorded import cases
from detecting.scoring import judge
from detecting.series import DESIGN_SEEDS, Series
from sparsitywatch.analysis import detect

_FOLDER = Path(str(detect.__file__)).parent
_MODULES = tuple(sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__"))
#: So many numbers in a row are a grid, which is scaled as a whole.
_GRID = 4
#: What a number is that events hang on, and what else one may be.
CHOSEN = "chosen"
_OTHER = ("definition", "guard", "bound", "grid")


@dataclass(frozen=True)
class Number:
    """One number as it is written in a module of ``sparsitywatch.analysis.detect``."""

    module: str
    # of the constant, its place in a tuple and its field, as in "RISE.min_past"
    name: str
    # as it stands; of a grid all of it
    value: float | tuple[float, ...]
    kind: str
    why: str
    # where it is written, in bytes of the file
    first: int
    last: int

    @property
    def title(self) -> str:
        """As the table has it."""
        return f"`{self.module}.{self.name}`"

    @property
    def shown(self) -> str:
        """Its value, of a grid both ends."""
        value = self.value
        return f"{value:.4g}" if not isinstance(value, tuple) else f"{value[0]:g}…{value[-1]:g}"

    def times(self, factor: float) -> Any:
        """So many times its value; a whole number stays one, and 1 at least."""
        if isinstance(self.value, tuple):
            if all(isinstance(x, int) for x in self.value):
                return tuple(sorted({max(round(factor * x), 1) for x in self.value}))
            return tuple(factor * x for x in self.value)
        if isinstance(self.value, int):
            return max(round(factor * self.value), 1)
        return factor * self.value


def numbers() -> list[Number]:
    """All of them, in the order of the files."""
    return list(itertools.chain.from_iterable(map(_numbers_of, _MODULES)))


def _numbers_of(name: str) -> Iterator[Number]:
    known = vars(importlib.import_module(f"{detect.__name__}.{name}"))
    source = (_FOLDER / f"{name}.py").read_bytes()
    lines = source.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        kind, why = _comment(lines, node.lineno)
        for part, written, value in _assigned(target, node.value, known):
            first = starts[written.lineno - 1] + written.col_offset
            last = starts[(written.end_lineno or 0) - 1] + (written.end_col_offset or 0)
            yield Number(name, part, value, kind, why, first, last)


#: A number may be written with these: it follows from no other one.
_FUNCTIONS = {"math", "np", "range", "tuple"}
#: The name of a number, where it is written, and its value.
_Written = tuple[str, ast.expr, Any]


def _assigned(target: ast.expr, node: ast.expr, known: dict[str, Any]) -> Iterator[_Written]:
    if isinstance(target, ast.Tuple) and isinstance(node, ast.Tuple):
        for one, its in zip(target.elts, node.elts, strict=True):
            yield from _assigned(one, its, known)
    elif isinstance(target, ast.Name):
        yield from _written(target.id, node, known[target.id])


def _written(name: str, node: ast.expr, value: object) -> Iterator[_Written]:
    """The numbers in an expression that are written there, none that follows from others."""
    names = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
    has_number = any(isinstance(x, ast.Constant) for x in ast.walk(node))
    is_whole = isinstance(value, tuple) and len(value) >= _GRID and all(map(_is_number, value))
    if _is_number(value) or is_whole:
        if has_number and names <= _FUNCTIONS:
            yield name, node, value
    elif isinstance(node, ast.Tuple) and isinstance(value, tuple):
        for place, one in enumerate(node.elts):
            yield from _written(f"{name}[{place}]", one, value[place])
    elif isinstance(node, ast.Call) and is_dataclass(value):
        given = dict(zip((field.name for field in fields(value)), node.args, strict=False))
        given |= {word.arg: word.value for word in node.keywords if word.arg}
        for field, one in given.items():
            yield from _written(f"{name}.{field}", one, getattr(value, field))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _comment(lines: Sequence[bytes], number: int) -> tuple[str, str]:
    """What a constant is and why, by the nearest comment above it with no empty line between."""
    above = list(itertools.takewhile(bytes.strip, reversed(lines[: number - 1])))
    since = itertools.dropwhile(lambda line: not line.startswith(b"#:"), above)
    found = list(itertools.takewhile(lambda line: line.startswith(b"#:"), since))
    why = " ".join(line.decode()[2:].strip() for line in reversed(found))
    kind, colon, rest = why.partition(": ")
    if colon and kind.lower() in _OTHER:
        return kind.lower(), rest[:1].upper() + rest[1:]
    return CHOSEN, why


# ------------------------------------------------------------------ with another value

#: What the detectors with another number are imported as.
_CHANGED = "changed_detect"


def detect_with(number: Number, value: Any) -> ModuleType:
    """The package of detectors, imported once more, with another value of one number."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / _CHANGED
        place.mkdir()
        for path in _FOLDER.glob("*.py"):
            source = path.read_bytes()
            if path.stem == number.module:
                source = source[: number.first] + repr(value).encode() + source[number.last :]
            renamed = source.replace(detect.__name__.encode(), _CHANGED.encode())
            (place / path.name).write_bytes(renamed)
        importlib.invalidate_caches()
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(_CHANGED)
        finally:
            sys.path.remove(folder)
            for name in [n for n in sys.modules if f"{n}.".startswith(f"{_CHANGED}.")]:
                del sys.modules[name]


def detectors_with(module: str) -> set[str]:
    """Those detectors' modules that import a module, or are it: no other can tell a difference."""
    return {name for name in DETECTORS if module in _imported(name)}


def _imported(module: str) -> set[str]:
    """A module, and all those that it imports, of the package."""
    source = (_FOLDER / f"{module}.py").read_text()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    found = {str(node.module).removeprefix(f"{detect.__name__}.") for node in nodes}
    return {module}.union(*(_imported(name) for name in found & set(_MODULES)))


# ------------------------------------------------------------------ what the detectors say

#: Growth is looked at that is no line: with so many snapshots it is most of the time that it takes.
_SHAPES = SHAPES[::2]
#: Recorded runs are looked at so often, by one rule.
_EVERY = 200
_RULE = "initial_0.1"
#: Numbers are compared to so many digits: rounding is no other outcome.
_DIGITS = 4
#: The truth is known of these.
_JUDGED = ("standard", "hard", "slow", "quiet")


@dataclass(frozen=True)
class Outcome:
    """What is said of one series."""

    # step, direction and kind of each event
    alarms: tuple[Any, ...]
    # all else that is said: onset, interval, baseline, noise, what is suspicious
    told: tuple[Any, ...]
    num_missed: int = 0
    num_false: int = 0


#: A name, what makes the detector, and the series that it watches.
_Watched = Iterator[tuple[str, Callable[[], Any], Series]]


def _of_any(seeds: Sequence[int], longest: int, package: ModuleType) -> _Watched:
    made: list[tuple[str, Series]] = []
    for difficulty in ("standard", "hard"):
        for series in jumps.suite(seeds, difficulty):
            made += [(difficulty, series), (f"{difficulty} upside down", _upside_down(series))]
    made += [("slow", series) for series in slow.suite(seeds)]
    made += [("quiet", quiet.quiet(kind, seed)) for kind in quiet.KINDS for seed in seeds]
    made = [(name, series) for name, series in made if len(series.values) <= longest]
    made += [("growth", growth(shape, 4 * longest, seeds[0])) for shape in _SHAPES]
    for case in cases():
        if (case.split, case.every, case.phase, case.rule) == ("design", _EVERY, 0, _RULE):
            series = Series(case.name, 0, case.steps, case.values, context=case.context)
            made.append(("recorded", series))
    for name, series in made:
        yield name, partial(package.AbruptChange, MIN_EFFECT * series.unit), series


def _of_measured(seeds: Sequence[int], _: int, package: ModuleType) -> _Watched:
    for series in quiet.measured(seeds):
        yield "essential sparsity", package.MeasuredChange, series
        yield "reliance", partial(package.MeasuredChange, ratio=2.5), series
    for series in (*quiet.dormant(seeds), *_recorded_dormant()):
        yield "dormant", package.DormantRise, series


def _of_value(seeds: Sequence[int], _: int, package: ModuleType) -> _Watched:
    for seed in seeds:
        for family, values in losses(seed).items():
            series = Series(family, seed, 100 * np.arange(1, len(values) + 1), values)
            yield "value", package.ValueChange, series


#: By their module, what detectors are looked at on.
DETECTORS = {"abrupt": _of_any, "measured": _of_measured, "value": _of_value}


def _recorded_dormant() -> Iterator[Series]:
    for name, run in load().items():
        if run["split"] == "design":
            apart = slice(None, None, _EVERY // run["every"])
            steps = np.array(run["steps"])[apart]
            values, clock = (
                np.array(run["series"][key], np.float64)[apart]
                for key in ("motion/dormant", "motion/decay_clock")
            )
            yield Series(name, 0, steps, values, context={"decay_clock": clock})


def _upside_down(series: Series) -> Series:
    """The same with falls for rises."""
    top = float(np.nanmax(series.values) + np.nanmin(series.values))
    return replace(series, values=top - series.values)


def outcomes(
    seeds: Sequence[int],
    longest: int,
    package: ModuleType = detect,
    modules: Container[str] = DETECTORS,
) -> dict[str, Outcome]:
    """The outcome of each series of ``longest`` snapshots or less; growth has four times as many.

    Args:
        seeds: of the made-up ones.
        longest: those of more snapshots are left out.
        package: the detectors.
        modules: of the detectors that are looked at.
    """
    return {
        name: _outcome(make(), series, is_judged=name.startswith(_JUDGED))
        for name, make, series in _watched(seeds, longest, package, modules)
    }


def _watched(
    seeds: Sequence[int], longest: int, package: ModuleType, modules: Container[str]
) -> _Watched:
    for module, of in DETECTORS.items():
        if module in modules:
            for name, make, series in of(seeds, longest, package):
                yield f"{name} {series.family} {series.seed}", make, series


#: What numbers are pinned on: these seeds, and series of so many snapshots at most.
PIN_SEEDS, PIN_LONGEST = DESIGN_SEEDS[:4], 120


@functools.cache
def pool(package: ModuleType = detect) -> dict[str, tuple[Callable[[], Any], Series]]:
    """What numbers are pinned on, by name: what makes a detector, and the series it watches."""
    every = _watched(PIN_SEEDS, PIN_LONGEST, package, DETECTORS)
    return {name: (make, series) for name, make, series in every}


def is_seen(number: Number, factor: float, name: str, *, told: bool = True) -> bool:
    """Whether a series of the pool shows that a number is so many times what it is.

    By its alarms; also by what else is ``told``.
    """
    package = detect_with(number, number.times(factor))
    make, series = pool()[name]
    before = _usual(name)
    detector = getattr(package, (make.func if isinstance(make, partial) else make).__name__)
    given = make.keywords if isinstance(make, partial) else {}
    arguments = make.args if isinstance(make, partial) else ()
    now = _outcome(detector(*arguments, **given), series, is_judged=False)
    return now.alarms != before.alarms or (told and now.told != before.told)


@functools.cache
def _usual(name: str) -> Outcome:
    make, series = pool()[name]
    return _outcome(make(), series, is_judged=False)


def _outcome(detector: Any, series: Series, *, is_judged: bool) -> Outcome:
    alarms, told, rises = [], [], []
    for i, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
        context = {k: x for k, x in (series.context_at(i) or {}).items() if math.isfinite(x)}
        event = detector.update(int(step), float(value), context)
        told.append(detector.is_suspicious)
        if event is not None:
            alarms.append((event.detected_step, event.direction, event.kind))
            told += [_rounded(x) for x in asdict(event).values()]
            rises += [i] if event.direction == "up" else []
    if not is_judged:
        return Outcome(tuple(alarms), tuple(told))
    judged = judge(series, rises)
    missed = int(judged.changes and judged.delay is None)
    return Outcome(tuple(alarms), tuple(told), missed, judged.num_false)


def _rounded(value: Any) -> Any:
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else value


def changed(before: dict[str, Outcome], now: dict[str, Outcome]) -> str:
    """In how many series alarms are others, or what is told; how many more are missed and false.

    Of the series that were looked at now.
    """
    alarms = sum(before[name].alarms != now[name].alarms for name in now)
    differ = sum(before[name] != now[name] for name in now)
    if not differ:
        return "nothing"
    parts = [f"{alarms} alarms"] if alarms else []
    parts += [f"{differ - alarms} told"] if differ > alarms else []
    for what in ("missed", "false"):
        more = sum(getattr(now[n], f"num_{what}") - getattr(before[n], f"num_{what}") for n in now)
        parts += [f"{what} {more:+d}"] if more else []
    return ", ".join(parts)


def rows_of(
    seeds: Sequence[int] = DESIGN_SEEDS[:1], longest: int = 100, *, some: slice = slice(None)
) -> tuple[list[list[str]], int]:
    """A row for each number, or for some, and on how many series they were tried."""
    before, rows = outcomes(seeds, longest), []
    for number in numbers()[some]:
        cells = [number.title, number.shown, number.kind, number.why]
        cells += [_tried(number, factor, seeds, longest, before) for factor in (0.5, 2.0)]
        rows.append(cells)
        print(" | ".join(cells), file=sys.stderr, flush=True)
    return rows, len(before)


def _tried(
    number: Number, factor: float, seeds: Sequence[int], longest: int, before: dict[str, Any]
) -> str:
    """What is otherwise with so many times a number."""
    value = number.times(factor)
    if number.kind == "definition" or value == number.value:
        return "–"
    try:
        package, modules = detect_with(number, value), detectors_with(number.module)
        return changed(before, outcomes(seeds, longest, package, modules))
    except (ArithmeticError, ValueError, IndexError, np.linalg.LinAlgError) as error:
        return f"cannot be: {type(error).__name__}"
