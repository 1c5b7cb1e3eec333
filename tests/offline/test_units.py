"""Where checkpoints are numbered by epochs or saves, every surface that a user reads says so."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import safetensors.torch
import torch
from contracts.clean_series import RECIPES, train
from contracts.event_readers import plugin_accumulator, tags_of
from contracts.stored_run import NUM, weights

import sparsitywatch as sw
from sparsitywatch import plots
from sparsitywatch.cli import main
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.page.data import page_data
from sparsitywatch.page.render import render

#: What a step is to a user who numbers by epochs: an argument, or what an optimizer does.
_RIGHTLY = re.compile(r"--steps(?:-per-epoch)?|steps_per_epoch|optimizer steps?|steps so far")


def by_epochs(folder: Path, number: int, tensors: Mapping[str, torch.Tensor]) -> None:
    torch.save({"state_dict": dict(tensors), "epoch": number}, folder / f"checkpoint-{number}.pth")


def by_saves(folder: Path, number: int, tensors: Mapping[str, torch.Tensor]) -> None:
    place = folder / f"checkpoint_{number}"
    place.mkdir(parents=True)
    safetensors.torch.save_file(dict(tensors), place / "model.safetensors")
    (place / "random_states_0.pkl").write_bytes(b"")


Save = Callable[[Path, int, Mapping[str, torch.Tensor]], None]
UNITS = {"epoch": by_epochs, "save": by_saves}


def eventful(number: int) -> dict[str, torch.Tensor]:
    """A run to which everything happens that a replay has a sentence for."""
    found = weights(number)
    if number == NUM:
        found["first.weight"][0, 0] = torch.nan
    if number == NUM + 1:  # all weights are back
        return weights(NUM - 1)
    if number == NUM + 2:  # another run
        return {name: t.roll(1, 0).flip(-1) for name, t in weights(0).items()}
    return found


def save_run(folder: Path, save: Save, numbers=range(1, NUM + 4)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        save(folder, number, eventful(number))
    return folder


def steps_in(text: str) -> list[str]:
    """Where a text says "step" and means the number of a checkpoint."""
    left = _RIGHTLY.sub("", text)
    return [
        left[max(m.start() - 60, 0) : m.end() + 60] for m in re.finditer(r"(?i)\bsteps?\b", left)
    ]


def sentences(node: object) -> list[str]:
    """Every value of plain data that is text."""
    if isinstance(node, Mapping):
        return [text for value in node.values() for text in sentences(value)]
    if isinstance(node, list | tuple):
        return [text for value in node for text in sentences(value)]
    return [node] if isinstance(node, str) else []


def texts_in_tensorboard(directory: Path) -> list[str]:
    reader = plugin_accumulator(directory)
    return [
        word.decode()
        for tag in tags_of(reader, "text")
        for event in reader.Tensors(tag)
        for word in event.tensor_proto.string_val
    ]


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_every_surface_names_the_unit(
    unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sparsitywatch")
    place = save_run(tmp_path / "run", UNITS[unit])
    save_run(tmp_path / "run", lambda folder, n, _: (folder / f"checkpoint-{n}.pt").touch(), [99])
    log = tmp_path / "log"
    replayed = sw.replay(place, logdir=log)
    kinds = {event.kind for event in replayed.events}
    assert {"abrupt", "not_finite", "returned"} <= kinds
    assert kinds & {"another_run", "unlike"}
    assert replayed.failures
    run = sw.load(log)
    record = run.records[-1]
    shown = {
        "events": [e.describe() + e.report() + e.when + e.advice + repr(e) for e in run.events],
        "logged": [one.getMessage() for one in caplog.records],
        "reprs": [repr(x) for x in (replayed, run, run.info, *run.records, *replayed.failures)],
        "html": [x._repr_html_() for x in (replayed, record)],
        "verdict": [run.verdict.describe()],
        "failures": [one.reason for one in replayed.failures],
        "remarks": [text for one in run.records for text in one.remarks()],
        "page": sentences({**page_data(run), "about": {}}),
        "file": re.findall(r'<div class="static".*?</div>', render(run), re.DOTALL),
        "tensorboard": texts_in_tensorboard(log / "sparsitywatch"),
        "figures": [
            text.get_text()
            for axes in plots.overview_figure(run).axes
            for text in axes.findobj(plt.Text)
        ],
    }
    for name, arguments in {
        "summary": ["summary", log],
        "status": ["status", log],
        "replay": ["replay", place, "--logdir", tmp_path / "other"],
        "compare": ["compare", log, tmp_path / "other"],
    }.items():
        main(list(map(str, arguments)))
        shown[name] = list(capsys.readouterr())
    assert [
        (name, found) for name, texts in shown.items() for found in steps_in("\n".join(texts))
    ] == []
    assert all(shown.values())
    for name in ("events", "verdict", "page", "tensorboard", "summary", "replay", "compare"):
        assert re.search(rf"\b{unit}s? \d|last {unit}", "\n".join(shown[name])), name


@pytest.mark.parametrize("unit", UNITS)
def test_lines_of_json_have_the_unit(
    unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = save_run(tmp_path / "run", UNITS[unit], range(10, 20))
    main(["replay", str(place), "--logdir", str(tmp_path / "log"), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [line["unit"] for line in lines if line["kind"] in ("record", "event", "failure")]
    assert set(told) == {unit}
    assert len(told) > 10


def test_a_log_by_epochs_does_not_go_on_by_steps(tmp_path: Path) -> None:
    place = save_run(tmp_path / "run", by_epochs, [1, 2])
    sw.replay(place, logdir=tmp_path / "log")
    before = {path: path.read_bytes() for path in (tmp_path / "log").rglob("*.jsonl")}
    with pytest.raises(ConfigurationError, match=r"steps that count 'epochs', now 'steps'"):
        sw.replay(place, logdir=tmp_path / "log", steps_per_epoch=100)
    assert before == {path: path.read_bytes() for path in (tmp_path / "log").rglob("*.jsonl")}


def test_a_comparison_says_that_units_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = save_run(tmp_path / "run", by_epochs, range(1, 4))
    sw.replay(place, logdir=tmp_path / "epochs")
    sw.replay(place, logdir=tmp_path / "steps", steps_per_epoch=100)
    main(["compare", str(tmp_path / "epochs"), str(tmp_path / "steps")])
    first, *_, header, _, _, _, _ = capsys.readouterr().out.splitlines()
    assert first == "The runs are numbered by different things: epochs by epochs, steps by steps."
    assert "last epoch/step" in header


def test_what_cannot_be_read_is_numbered_as_the_others(tmp_path: Path) -> None:
    place = save_run(tmp_path / "run", by_epochs, range(1, 4))
    (place / "checkpoint-2.pth").write_bytes(b"")
    replayed = sw.replay(place, logdir=None, steps_per_epoch=100)
    assert [one.step for one in replayed.records] == [100, 200, 300]
    assert [(one.step, one.unit) for one in replayed.failures] == [(200, "step")]


def test_zero_is_zero_in_any_unit(tmp_path: Path) -> None:
    place = save_run(tmp_path / "run", by_epochs, [0])
    first = sw.replay(place, logdir=tmp_path / "log")
    save_run(tmp_path / "run", by_epochs, [1, 2])
    again = sw.replay(place, logdir=tmp_path / "log")
    assert [one.step for one in first.records] == [0]
    assert [one.place for one in again.records][1:] == ["epoch 1", "epoch 2"]
    assert sw.load(tmp_path / "log").unit == "epoch"


def test_a_log_without_a_unit_counts_steps(tmp_path: Path) -> None:
    place = save_run(tmp_path / "run", by_epochs, [1, 2])
    sw.replay(place, logdir=tmp_path / "log", steps_per_epoch=10)
    for path in (tmp_path / "log").rglob("*.json*"):
        path.write_text(path.read_text().replace(',"unit":"step"', ""))
    run = sw.load(tmp_path / "log")
    assert run.unit == "step"
    assert [one.place for one in run.records] == ["step 10", "step 20"]
    assert dataclasses.replace(run.records[0]).provenance.unit == "step"


def test_an_audit_of_epochs_speaks_of_epochs(tmp_path: Path, capsys) -> None:
    for number, tensors in train(RECIPES["momentum, cosine"], 200):
        by_epochs(tmp_path, number // 10, tensors)
    copied, gap = tmp_path / "checkpoint-5.pth", tmp_path / "checkpoint-15.pth"
    copy = torch.load(tmp_path / "checkpoint-27.pth", weights_only=True)
    torch.save(copy | {"epoch": 5}, copied)
    gap.unlink()
    found = sw.audit(tmp_path)
    assert found.unit == "epoch"
    assert [(row.step, row.finding) for row in found.findings] == [(5, "copy"), (15, "missing")]
    assert "the weights of epoch 27" in found.findings[0].evidence
    assert found.findings[1].evidence == "epochs come every 1 here, but there is no 15"
    page = tmp_path / "audit.html"
    assert main(["audit", str(tmp_path), "--html", str(page)]) == 1
    told = [capsys.readouterr().out, page.read_text().split("<body", 1)[1]]
    assert not [text for text in told if re.search("step", text, re.IGNORECASE)]
