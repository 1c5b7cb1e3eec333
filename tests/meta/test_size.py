"""Functions stay small enough to be read at once, and a file is one idea, not two."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("sparsitywatch/**/*.py"), *ROOT.glob("integrations/**/*.py")])
MAX_FILE_LINES = 700  # usually 150 to 600: a file holds one idea whole
MAX_FUNCTION_LINES = 60


def long_functions(source: str) -> Iterator[str]:
    """Names of the functions with too long a body; signature and docstring do not count."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and node.end_lineno - body[0].lineno + 1 > MAX_FUNCTION_LINES:
                yield node.name


def test_a_long_function_is_found() -> None:
    body = "    x = 1\n" * (MAX_FUNCTION_LINES + 1)
    assert list(long_functions(f"def long():\n{body}")) == ["long"]
    docstring = '    """' + "\n" * 100 + '    """\n'
    assert list(long_functions(f"def short():\n{docstring}    return 1\n")) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert list(long_functions(source)) == []
