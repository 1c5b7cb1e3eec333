"""An audit as a page: every step a box, every finding a row, and nothing of it obeyed."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts.page import parse
from page.conftest import SCRIPT

from sparsitywatch.cli import main
from sparsitywatch.lab.audit import FINDINGS, Audit, AuditFinding
from sparsitywatch.page.audit import render_audit


def audit_of(*findings: AuditFinding, steps: tuple[int, ...] = tuple(range(0, 700, 10))) -> Audit:
    return Audit(
        findings=findings,
        steps=steps,
        unit="step",
        num_checkpoints=len(steps) + 1,
        num_audited=len(steps),
        num_without_step=1,
        num_weight_bytes=43_000_000_000,
        num_bytes_read=16_000_000,
        is_full=False,
    )


def test_each_step_has_a_box_and_each_finding_a_row() -> None:
    page = render_audit(
        audit_of(
            AuditFinding.of(None, "unreadable", "no step"),
            AuditFinding.of(50, "copy", "of step 90"),
            AuditFinding.of(50, "step", "its name says step 51"),
            AuditFinding.of(700, "missing", "a gap"),
        ),
        "hf://org/model@*",
    )
    root = parse(page)
    boxes = root.all("rect")
    assert len(boxes) == 71  # 70, and the one that is missing
    kinds = [box.attributes["class"] for box in boxes]
    assert {kind: kinds.count(kind) for kind in kinds} == {"fine": 69, "act": 1, "missing": 1}
    assert kinds[5] == "act"
    links = [link.attributes["href"] for link in root.all("a")]
    assert links == ["#finding-2", "#finding-4"]
    rows = [row for row in root.all("tr") if "id" in row.attributes]
    assert [row.attributes["id"] for row in rows] == [f"finding-{i}" for i in (1, 2, 3, 4)]
    assert "4 findings in 70 checkpoints" in page
    assert "1 left out, as nothing says its step; 16 MB read of 43 GB" in page
    for kind in ("unreadable", "copy", "step", "missing"):
        assert FINDINGS[kind] in page


def test_no_finding_is_no_table() -> None:
    page = render_audit(audit_of(), "runs/a")
    assert "as named" in page
    assert "<table>" not in page
    assert not parse(page).all("a")


def test_text_of_others_is_text() -> None:
    evil = AuditFinding.of(10, "unreadable", f"Cannot read {SCRIPT}?sig=secret https://u:p@host/a")
    page = render_audit(audit_of(evil), f"hf://{SCRIPT}")
    assert not parse(page).all("script")
    assert "&lt;script&gt;" in page
    assert "u:p@" not in page


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "step_5.safetensors").write_bytes(b"\0" * 100)
    page = tmp_path / "new" / "audit.html"
    assert main(["audit", str(tmp_path), "--json", "--html", str(page)]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1  # no more than the finding
    assert err.splitlines()[-1] == str(page)
    assert str(tmp_path) in page.read_text()
    assert main(["audit", str(tmp_path), "--html", str(tmp_path)]) == 2
    assert "`--html`" in capsys.readouterr().err
