"""The example from its command line: what it does, writes, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import checkpoint
import fsspec
import pretrain_bert
import pytest
import torch
from arguments import identity, parser
from contracts import event_readers

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
def demo(tmp_path_factory, script):
    """Sixty steps of the demo itself: its logdir, and what it said."""
    logdir = tmp_path_factory.mktemp("runs") / "demo"
    command = [sys.executable, script, *["--steps", "60", "--every", "10", "--logdir"], str(logdir)]
    return logdir, subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_the_demo_writes_everything(demo):
    logdir, _ = demo
    assert sorted(p.name for p in logdir.iterdir()) == [
        "checkpoint.pt", "overview.png", "sparsitywatch",
    ]  # fmt: skip
    assert (logdir / "overview.png").read_bytes().startswith(b"\x89PNG")
    watched = logdir / "sparsitywatch"
    assert (watched / "events.jsonl").exists()
    assert len(list((watched / "spectra").iterdir())) == 6
    assert _steps(logdir) == [10, 20, 30, 40, 50, 60]
    scalars = event_readers.scalars_of_plugin_accumulator(watched)
    for tag in ("near_zero/initial_0.1", "value/reliance", "motion/dormant", "value/dense"):
        assert [step for step, _ in scalars[tag]] == [10, 20, 30, 40, 50, 60]


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
    assert first["scope"] == {"num_tensors": 12, "num_weights": 98_304}
    assert first["curve"]["num_examples"] == 192
    clock = sum(3e-3 * step / 100 * 1.0 for step in range(1, 61))
    assert last["decay_clock"] == pytest.approx(clock)
    assert first["dormant"]["num_sampled"] == 98_304
    assert first["curve"]["value"][0] > last["curve"]["value"][0]


@pytest.mark.slow
def test_the_demo_says_what_was_seen_where_to_look_and_what_it_does_not_show(demo):
    logdir, done = demo
    for words in (
        "held-out loss", "essential sparsity", "dormant", "decay clock",
        "Breakthrough: none seen", "of which the watch took",
        "driven by weight decay", "--decay 0.01", "zero-shot", "not proof of the paper's figure",
        f"--logdir {logdir}", str(logdir / "overview.png"), "records.jsonl",
    ):  # fmt: skip
        assert words in done.stdout
    assert "60/60" in done.stderr  # the bar
    for words in ("loss ", "essential sparsity", "near-zero", "dormant", "reliance"):
        assert words in done.stderr


# ------------------------------------------------------------------ a tiny set-up


def _weights(logdir: Path) -> dict[str, torch.Tensor]:
    training = checkpoint.load(logdir / "checkpoint.pt")["training"]
    moments = {
        f"{index}.{name}": tensor
        for index, entry in training["optimizer"]["state"].items()
        for name, tensor in entry.items()
    }
    return {**training["model"], **moments, **training["rng"]}


def test_the_training_is_the_same_without_a_watch(tmp_path, tiny):
    for name, extra in (("with", []), ("without", ["--no-watch"])):
        assert _run(*tiny, "--steps", 30, "--every", 7, "--logdir", tmp_path / name, *extra) == 0
    assert _steps(tmp_path / "with") == [7, 14, 21, 28, 30]
    assert not (tmp_path / "without" / "sparsitywatch").exists()
    expected, found = _weights(tmp_path / "without"), _weights(tmp_path / "with")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    losses = [
        checkpoint.load(tmp_path / n / "checkpoint.pt")["losses"] for n in ("with", "without")
    ]
    assert losses[0] == losses[1]


def test_events_are_announced_once_with_what_they_mean(tmp_path, tiny, capsys):
    assert _run(*tiny, "--steps", 120, "--every", 3, "--logdir", tmp_path) == 0
    events = (tmp_path / "sparsitywatch" / "events.jsonl").read_text().splitlines()
    told = capsys.readouterr()
    assert events
    assert told.out.count(">> near_zero/initial_0.1 rose abruptly") == len(events)
    assert "Take-off of near-zero weights. It runs on the decay clock" in told.out
    assert told.err == ""  # quiet: no bar


def test_subwords_on_text_from_an_url(tmp_path, tiny, text_file, capsys):
    with fsspec.open("memory://pretrain-bert/topics.txt", "w", encoding="utf-8") as file:
        file.write(text_file.read_text(encoding="utf-8"))
    arguments = [*tiny, "--text", "memory://pretrain-bert", "--vocab", 400]
    assert _run(*arguments, "--steps", 4, "--every", 2, "--logdir", tmp_path) == 0
    assert "400 tokens in its vocabulary" in capsys.readouterr().out
    saved = json.loads(checkpoint.load(tmp_path / "checkpoint.pt")["vocabulary"])
    assert len(saved["model"]["vocab"]) == 400


def test_the_fraction_of_the_text_changes_the_training_and_not_the_held_out_text(tmp_path, tiny):
    for fraction in (1.0, 0.6):
        arguments = [*tiny, "--steps", 4, "--every", 2, "--fraction", fraction]
        assert _run(*arguments, "--logdir", tmp_path / str(fraction)) == 0
    whole, part = (_records(tmp_path / name)[-1] for name in ("1.0", "0.6"))
    assert whole["provenance"] == part["provenance"]  # the hash of the held-out batches
    assert whole["curve"]["value"] != part["curve"]["value"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny, capsys):
    arguments = [*tiny, "--lr", "1e30", "--warmup", 0, "--steps", 20, "--every", 2]
    assert _run(*arguments, "--no-watch", "--logdir", tmp_path) == 1
    assert "Stopped: the loss is nan at step 2" in capsys.readouterr().out


# ------------------------------------------------------------------ going on, or not


def _unfinished(logdir: Path) -> None:
    """As if the run had been killed after its last checkpoint."""
    state = checkpoint.load(logdir / "checkpoint.pt")
    checkpoint.save(logdir / "checkpoint.pt", {**state, "finished": False})


def test_a_run_killed_after_its_last_step_is_only_reported(tmp_path, tiny, capsys):
    arguments = [*tiny, "--steps", 8, "--every", 2, "--logdir", tmp_path]
    assert _run(*arguments) == 0
    first = capsys.readouterr().out.split("\n\n")[1:]
    _unfinished(tmp_path)
    (tmp_path / "overview.png").unlink()
    assert _run(*arguments, "--resume") == 0
    told = capsys.readouterr().out
    assert "Going on from step 8" in told
    assert told.split("\n\n")[1:] == first  # the same table
    assert (tmp_path / "overview.png").exists()
    assert _steps(tmp_path) == [2, 4, 6, 8]


def test_other_arguments_are_refused_by_name_and_fresh_moves_the_run_aside(tmp_path, tiny, capsys):
    arguments = [*tiny, "--every", 2, "--logdir", tmp_path]
    assert _run(*arguments, "--steps", 8) == 0
    _unfinished(tmp_path)
    before = (tmp_path / "sparsitywatch" / "records.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        _run(*arguments, "--steps", 6, "--decay", "0.01")
    assert stop.value.code == 2
    refusal = capsys.readouterr().err
    assert "an unfinished run with other arguments" in refusal
    assert "--decay 3.0 then, 0.01 now; --steps 8 then, 6 now" in refusal
    assert "--fresh" in refusal
    assert (tmp_path / "sparsitywatch" / "records.jsonl").read_bytes() == before

    assert _run(*arguments, "--steps", 6, "--decay", "0.01", "--fresh") == 0
    assert _steps(tmp_path) == [2, 4, 6]
    aside = tmp_path / "sparsitywatch-earlier-1" / "records.jsonl"
    assert aside.read_bytes() == before
    assert checkpoint.load(tmp_path / "checkpoint-earlier-1.pt")["training"]["steps_done"] == 8


def test_a_text_that_has_changed_is_refused(tmp_path, tiny, text_file, capsys):
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    arguments = [*tiny, "--text", text, "--steps", 4, "--every", 2, "--logdir", tmp_path / "run"]
    assert _run(*arguments) == 0
    _unfinished(tmp_path / "run")
    text.write_bytes(text_file.read_bytes()[:-5_000])
    with pytest.raises(SystemExit):
        _run(*arguments)
    assert "--text-digest" in capsys.readouterr().err


def test_a_finished_run_is_moved_aside_and_a_new_one_starts(tmp_path, tiny, capsys):
    arguments = [*tiny, "--steps", 4, "--every", 2, "--logdir", tmp_path]
    assert _run(*arguments) == 0
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    records = (tmp_path / "sparsitywatch" / "records.jsonl").read_bytes()
    assert _run(*arguments) == 0
    assert "The earlier run is moved aside" in capsys.readouterr().out
    assert _steps(tmp_path) == [2, 4]
    assert (tmp_path / "sparsitywatch-earlier-1" / "records.jsonl").read_bytes() == records
    assert (tmp_path / "checkpoint-earlier-1.pt").read_bytes() == kept["checkpoint.pt"]
    assert (tmp_path / "overview-earlier-1.png").read_bytes() == kept["overview.png"]


def test_resume_wants_something_to_go_on_from(tmp_path, tiny, capsys):
    arguments = [*tiny, "--steps", 4, "--every", 2, "--no-watch", "--logdir", tmp_path]
    with pytest.raises(SystemExit):
        _run(*arguments, "--resume")
    assert "got no checkpoint" in capsys.readouterr().err
    assert _run(*arguments) == 0
    with pytest.raises(SystemExit):
        _run(*arguments, "--resume")
    assert "got a run that is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "--steps"),
        (["--vocab", "-1"], "--vocab"),
        (["--vocab", "30"], "Expected `--vocab` of at least"),
        (["--fraction", "0"], "Expected `--fraction`"),
        (["--held-out", "100000"], "fewer held-out sequences"),
        (["--vocab", "500", "--sequence", "2"], "Expected `--sequence` longer than its 2 special"),
        (["--text", "nowhere.txt"], "Expected `--text`"),
        (["--device", "abacus"], "--device"),
        (["--logdir", "s3://bucket/run"], "expected a local folder"),
        (["--hidden", "15"], "hidden size"),
        (["--fresh", "--resume"], "not allowed with"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, tiny, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        _run(*tiny, "--logdir", tmp_path, *arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_decides_whether_a_run_goes_on():
    base = parser().parse_args([])
    assert "betas" in identity(base)
    for arguments in (["--quiet"], ["--fresh"], ["--checkpoint-every", "9"], ["--logdir", "x"]):
        assert identity(parser().parse_args(arguments)) == identity(base)
    for arguments in (["--seed", "1"], ["--every", "9"], ["--no-watch"], ["--betas", ".9", ".99"]):
        assert identity(parser().parse_args(arguments)) != identity(base)
