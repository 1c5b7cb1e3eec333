"""Each hand-set number of the detectors: its reason, and what comes out when it is another one.

Numbers are those that are written in the constants at the top of the modules of
``sparsitywatch/analysis/detect``. The comment above one says why it is there, and, before a colon,
if it is no choice that events hang on: a *definition*, a *guard* of the arithmetic, a *bound* of
what is remembered or searched, a *grid* that is searched.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from detecting.outcomes import DETECTORS, changed, outcomes
from detecting.series import DESIGN_SEEDS
from sparsitywatch.analysis import detect

__all__ = ["CHOSEN", "Number", "detect_with", "detectors_with", "numbers", "rows_of"]

_FOLDER = Path(str(detect.__file__)).parent
_MODULES = tuple(sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__"))
#: So many numbers in a row are a grid, which is scaled as a whole.
_GRID = 4
#: What a number is that events hang on, and what else one may be.
CHOSEN, _OTHER = "chosen", ("definition", "guard", "bound", "grid")


@dataclass(frozen=True)
class Number:
    """One number as it is written in a module.

    Args:
        module: of ``sparsitywatch.analysis.detect``.
        name: of the constant, its place in a tuple and its field, as in "RISE.min_past".
        value: as it stands; of a grid all of it.
        kind: what it is: chosen, a definition, ...
        why: the comment above it.
        first, last: where it is written, in bytes of the file.
    """

    module: str
    name: str
    value: float | tuple[float, ...]
    kind: str
    why: str
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
    """What a constant is and why, by the lines above it."""
    first = number - 1
    while first and lines[first - 1].startswith(b"#:"):
        first -= 1
    why = " ".join(line.decode()[2:].strip() for line in lines[first : number - 1])
    kind, colon, rest = why.partition(": ")
    if colon and kind.lower() in _OTHER:
        return kind.lower(), rest[:1].upper() + rest[1:]
    return CHOSEN, why


# ------------------------------------------------------------------ with another value


def detect_with(number: Number, value: Any) -> ModuleType:
    """The package of detectors, imported anew, with another value of one number."""
    before = {n: m for n, m in sys.modules.items() if f"{n}.".startswith(f"{detect.__name__}.")}
    parent = sys.modules[detect.__name__.rpartition(".")[0]]
    finder = _Finder(number, value)
    for name in before:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(detect.__name__)
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if f"{n}.".startswith(f"{detect.__name__}.")]:
            del sys.modules[name]
        sys.modules.update(before)
        parent.detect = detect  # type: ignore[attr-defined]


class _Finder:
    """Finds one module as it would be with another number in its source."""

    def __init__(self, number: Number, value: Any) -> None:
        path = _FOLDER / f"{number.module}.py"
        source = path.read_bytes()
        changed_source = source[: number.first] + repr(value).encode() + source[number.last :]
        self._name = f"{detect.__name__}.{number.module}"
        self._loader = _Changed(self._name, str(path), changed_source)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The changed module's spec; None for any other."""
        del path, target
        if name != self._name:
            return None
        return importlib.util.spec_from_loader(name, self._loader)


class _Changed(SourceFileLoader):
    """Loads a module from a source that is in no file."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compiled, nothing kept."""
        del fullname
        return compile(self._source, self.path, "exec")


def detectors_with(module: str) -> set[str]:
    """Those detectors' modules that import a module, or are it: no other can tell a difference."""
    return {name for name in DETECTORS if module in _imported(name)}


def _imported(module: str) -> set[str]:
    """A module, and all those that it imports, of the package."""
    source = (_FOLDER / f"{module}.py").read_text()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    found = {str(node.module).removeprefix(f"{detect.__name__}.") for node in nodes}
    return {module}.union(*(_imported(name) for name in found & set(_MODULES)))


def rows_of(
    seeds: Sequence[int] = DESIGN_SEEDS[:1],
    longest: int = 100,
    tell: Callable[[str], object] = lambda _: None,
    *,
    some: slice = slice(None),
) -> tuple[list[list[str]], int]:
    """A row for each number, and how many series they were tried on.

    Args:
        seeds: of the made-up series.
        longest: series of more snapshots are left out.
        tell: is told each row when it is there.
        some: which of the numbers.
    """
    before, rows = outcomes(seeds, longest), []
    for number in numbers()[some]:
        cells = [number.title, number.shown, number.kind, number.why]
        cells += [_tried(number, factor, seeds, longest, before) for factor in (0.5, 2.0)]
        rows.append(cells)
        tell(" | ".join(cells))
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
