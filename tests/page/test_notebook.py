"""A loaded run in a notebook."""

from __future__ import annotations

from pathlib import Path

from contracts import fake_run
from contracts.page import inside_of, parse

import sparsitywatch as sw
from sparsitywatch.page.render import render


def test_a_loaded_run_is_its_page_in_a_frame(tmp_path: Path) -> None:
    name = 'a "run" & <i>more</i>'
    fake_run.write_run(tmp_path / "run", fake_run.looks(range(0, 101, 50)))
    run = sw.load(tmp_path / "run", name=name)
    frame = parse(run._repr_html_()).one("iframe")
    assert frame["title"] == f"Sparsity of the run {name}"
    assert frame["sandbox"] == "allow-scripts allow-downloads"  # not of the notebook's origin
    assert frame["srcdoc"] == render(run)
    assert inside_of(frame["srcdoc"])["page"]["steps"] == [0, 50, 100]


def test_a_run_without_a_snapshot_is_shown_too(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path / "run", [])
    assert "No snapshot has been taken yet." in sw.load(tmp_path / "run")._repr_html_()
