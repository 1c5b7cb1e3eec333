"""The paper's experiments at toy size: what they print, and the cells of their tables."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import pytest


def said(command: ModuleType, out: Path, *arguments: object) -> str:
    """What a command prints at toy size, but for how busy the machine is."""
    lines: list[str] = []
    given = ["--small", "--threads", 1, "--out", out, *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "builtins.print", lambda *x, sep=" ", **_: lines.append(sep.join(map(str, x)))
        )
        assert command.main([str(x) for x in given]) == 0
    return re.sub(r"load .*", "", "\n".join(lines))


def table(text: str, first: str = "") -> list[list[str]]:
    """Cells of the first table, or of the one with this as the first of its columns."""
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
