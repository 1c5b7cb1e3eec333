"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_watch.ipynb"


@pytest.mark.slow
def test_every_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in code:
        exec(compile(cell, NOTEBOOK.name, "exec"), names)
    assert "near zero" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 10_000
    last = ast.parse(code[-1]).body[-1].value  # what a notebook shows below the cell
    assert "<iframe" in eval(ast.unparse(last), names)._repr_html_()
    assert len(names["run"].records) == 10
