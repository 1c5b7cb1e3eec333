"""The example from its command line: what it does, writes, says and refuses."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import pretrain_bert
import pytest
import torch
from contracts import event_readers
from contracts.once import once

import sparsitywatch as sw
from sparsitywatch.cli import main


def _records(logdir: Path) -> list[dict]:
    text = (logdir / "sparsitywatch" / "records.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _steps(logdir: Path) -> list[int]:
    return [record["step"] for record in _records(logdir)]


def _run(*arguments: object) -> int:
    return pretrain_bert.main([str(argument) for argument in arguments])


# ------------------------------------------------------------------ the default set-up


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Sixty steps of the demo itself: its logdir, and what it said."""

    def run(folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert _run("--steps", 60, "--every", 10, "--logdir", folder / "demo") == 0
        (folder / "said.txt").write_text(said.getvalue())

    folder = once(tmp_path_factory, "demo", run)
    return folder / "demo", (folder / "said.txt").read_text()


@pytest.mark.slow
def test_the_demo_writes_everything(demo):
    logdir, _ = demo
    assert sorted(p.name for p in logdir.iterdir()) == [
        "checkpoint.pt", "overview.png", "report.html", "sparsitywatch",
    ]  # fmt: skip
    assert (logdir / "overview.png").read_bytes().startswith(b"\x89PNG")
    watched = logdir / "sparsitywatch"
    assert (watched / "events.jsonl").exists()
    assert len(list((watched / "spectra").iterdir())) == 6
    assert _steps(logdir) == [10, 20, 30, 40, 50, 60]
    scalars = event_readers.scalars_of_plugin_accumulator(watched)
    for tag in ("1_near_zero/initial_0.1", "6_value/reliance", "2_motion/dormant", "5_value/dense"):
        assert [step for step, _ in scalars[f"0_sparsity/{tag}"]] == [10, 20, 30, 40, 50, 60]


@pytest.mark.slow
def test_the_demos_own_checkpoint_can_be_inspected_and_replayed(demo, capsys):
    logdir, _ = demo
    assert main(["inspect", str(logdir / "checkpoint.pt")]) == 0
    assert "step 60 (from its contents)" in capsys.readouterr().out
    (record,) = sw.replay(logdir / "checkpoint.pt", logdir=None).records
    assert record.step == 60
    assert record.near_zero["rms_0.1"] == _records(logdir)[-1]["near_zero"]["rms_0.1"]


@pytest.mark.slow
def test_the_demo_is_the_set_up_that_was_measured(demo):
    logdir, _ = demo
    first, last = _records(logdir)[0], _records(logdir)[-1]
    assert first["scope"] == {
        "num_tensors": 12, "num_weights": 98_304, "which": "", "num_untrained": 0,
    }  # fmt: skip
    assert first["curve"]["num_examples"] == 192
    clock = sum(3e-3 * step / 100 * 1.0 for step in range(1, 61))
    assert last["decay_clock"] == pytest.approx(clock)
    assert first["dormant"]["num_sampled"] == 98_304
    assert first["curve"]["value"][0] > last["curve"]["value"][0]


@pytest.mark.slow
def test_the_demo_says_what_was_seen_where_to_look_and_what_it_does_not_show(demo):
    logdir, said = demo
    for words in (
        "1,987," if sys.version_info[:2] == (3, 11) else "tokens to train on",
        "step    60  held-out loss", "reliance", "essential sparsity", "near zero", "dormant",
        "decay clock", "events", "driven\nby weight decay", "--decay 0.01", "zero-shot",
        "no proof of the paper's figure", f"--logdir {logdir}", str(logdir / "overview.png"),
    ):  # fmt: skip
        assert words in said


# ------------------------------------------------------------------ a tiny set-up


@pytest.fixture
def _undrawn(monkeypatch):
    """To draw the picture takes longer than a tiny run; other tests see it drawn."""
    monkeypatch.setattr("sparsitywatch.plots.overview_figure", lambda *_, **__: None)
    monkeypatch.setattr("sparsitywatch.plots.save_figure", lambda _, path: path.touch())


def _weights(logdir: Path) -> dict[str, torch.Tensor]:
    training = torch.load(logdir / "checkpoint.pt")
    moments = {
        f"{index}.{name}": tensor
        for index, entry in training["optimizer"]["state"].items()
        for name, tensor in entry.items()
    }
    return {**training["model"], **moments, **training["rng"]}


@pytest.mark.slow
@pytest.mark.usefixtures("_undrawn")
def test_the_training_is_the_same_without_a_watch(tmp_path, tiny, monkeypatch):
    arguments = [*tiny, "--steps", 30, "--every", 7, "--logdir"]
    assert _run(*arguments, tmp_path / "with") == 0
    assert _steps(tmp_path / "with") == [7, 14, 21, 28, 30]
    monkeypatch.setenv("SPARSITYWATCH_DISABLED", "1")
    assert _run(*arguments, tmp_path / "without") == 0
    assert not (tmp_path / "without" / "sparsitywatch").exists()
    expected, found = _weights(tmp_path / "without"), _weights(tmp_path / "with")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.slow
@pytest.mark.usefixtures("_undrawn")
def test_events_are_said_once(tmp_path, tiny, caplog, capsys):
    assert _run(*tiny, "--steps", 120, "--every", 3, "--logdir", tmp_path) == 0
    events = sw.load(tmp_path).events
    assert any(event.headline.startswith("Near-zero weights") for event in events)
    told = [r.getMessage() for r in caplog.records if ", seen at step" in r.getMessage()]
    said = [message.partition(": ")[2] for message in told]
    # each as it was seen, and as it has settled
    settled = [one for one in said if ", settled at step" in one]
    assert len(set(said)) == len(said) == len(events) + len(settled)
    lasting = [event for event in events if event.course == "settled"]
    for line in (f"{event.severity.capitalize()}: {event.headline}" for event in lasting):
        assert any(one.startswith(line) for one in said), line
    assert capsys.readouterr().out.count("held-out loss") == 40  # a line for each snapshot


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny):
    arguments = [*tiny, "--lr", "1e30", "--warmup", 0, "--steps", 20, "--every", 2]
    with pytest.raises(SystemExit) as stop:
        _run(*arguments, "--logdir", tmp_path)
    assert "The loss is nan at step 2: try a smaller `--lr`" in str(stop.value)


# ------------------------------------------------------------------ going on, or not


def _unfinished(logdir: Path, step: int) -> None:
    """As if the run had been killed after a checkpoint at ``step``; its weights do not matter."""
    state = torch.load(logdir / "checkpoint.pt")
    torch.save({**state, "step": step}, logdir / "checkpoint.pt")


@pytest.mark.slow
def test_a_run_that_is_finished_is_only_reported(tmp_path, tiny, capsys):
    arguments = [*tiny, "--steps", 8, "--every", 2, "--logdir", tmp_path]
    assert _run(*arguments) == 0
    first = capsys.readouterr().out
    (tmp_path / "overview.png").unlink()
    assert _run(*arguments) == 0
    told = capsys.readouterr().out
    assert "Going on from step 8" in told
    assert told.partition("series  ")[2] == first.partition("series  ")[2]  # the same table
    assert (tmp_path / "overview.png").exists()
    assert _steps(tmp_path) == [2, 4, 6, 8]


@pytest.mark.slow
@pytest.mark.usefixtures("_undrawn")
def test_other_arguments_are_refused_by_name_and_fresh_sets_the_run_aside(tmp_path, tiny, capsys):
    logdir = tmp_path / "run"
    arguments = [*tiny, "--every", 2, "--logdir", logdir]
    assert _run(*arguments, "--steps", 8) == 0
    _unfinished(logdir, step=4)
    before = (logdir / "sparsitywatch" / "records.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        _run(*arguments, "--steps", 6, "--decay", "0.01")
    assert stop.value.code == 2
    refusal = capsys.readouterr().err
    assert "an unfinished run with other arguments" in refusal
    assert "--steps 8 then, 6 now" in refusal
    assert "--decay 3.0 then, 0.01 now" in refusal
    assert "--fresh" in refusal
    assert (logdir / "sparsitywatch" / "records.jsonl").read_bytes() == before

    assert _run(*arguments, "--steps", 6, "--decay", "0.01", "--fresh") == 0
    assert _steps(logdir) == [2, 4, 6]
    aside = tmp_path / "run-earlier-1"
    assert (aside / "sparsitywatch" / "records.jsonl").read_bytes() == before
    assert torch.load(aside / "checkpoint.pt")["settings"]["steps"] == 8


@pytest.mark.slow
@pytest.mark.usefixtures("_undrawn")
def test_a_text_that_has_changed_is_refused(tmp_path, tiny, text_file, capsys):
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    arguments = [*tiny, "--text", text, "--steps", 4, "--every", 2, "--logdir", tmp_path / "run"]
    assert _run(*arguments) == 0
    _unfinished(tmp_path / "run", step=2)
    text.write_bytes(text_file.read_bytes()[:-5_000])
    with pytest.raises(SystemExit):
        _run(*arguments)
    assert "--text-hash" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("_undrawn")
def test_a_finished_run_is_set_aside_by_one_with_other_arguments(tmp_path, tiny, capsys):
    logdir = tmp_path / "run"
    arguments = [*tiny, "--every", 2, "--logdir", logdir]
    for number, steps in enumerate((4, 6, 8)):
        assert _run(*arguments, "--steps", steps) == 0
        assert len(_steps(logdir)) == steps // 2
        assert len(list(tmp_path.iterdir())) == number + 1
    assert "set aside, in " in capsys.readouterr().out
    assert _steps(tmp_path / "run-earlier-1") == [2, 4]
    assert _steps(tmp_path / "run-earlier-2") == [2, 4, 6]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "--steps"),
        (["--sequence", "-1"], "--sequence"),
        (["--held-out", "100000"], "fewer sequences: `--held-out`"),
        (["--text", "nowhere.txt"], "Expected `--text`"),
        (["--device", "abacus"], "abacus"),
        (["--hidden", "15"], "hidden size"),
        (["--schedule", "steep"], "--schedule"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, tiny, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        _run(*tiny, "--logdir", tmp_path / "run", *arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_decides_whether_a_run_goes_on(tiny):
    def settings(*more: str) -> dict:
        return pretrain_bert.Pretraining(
            pretrain_bert.parser().parse_args([*tiny, *more])
        ).settings()

    base = settings()
    assert "betas" in base
    for arguments in (["--fresh"], ["--save-every", "9"], ["--logdir", "x"]):
        assert settings(*arguments) == base
    for arguments in (["--seed", "1"], ["--every", "9"], ["--betas", ".9", ".99"]):
        assert settings(*arguments) != base
