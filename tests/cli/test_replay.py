"""``sparsitywatch replay``: what it says, where, and its exit status."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from contracts.families import whole
from contracts.forked import Child
from contracts.live_runs import held_out, save_safetensors, save_torch, train
from contracts.stored_run import NUM, SHRUNK, save_run, weights

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.sinks.jsonl import read_events, read_manifest, read_records

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"))


def broken(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    (folder / "step-50.pt").write_bytes(b"")
    return folder


@pytest.mark.slow
def test_for_people(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(run / "step-*.pt"), "--logdir", str(tmp_path)]) == 0
    output = capsys.readouterr()
    records = read_records(tmp_path / "sparsitywatch")
    (event,) = read_events(tmp_path / "sparsitywatch")
    assert len(records) == NUM
    assert event.onset_step in (10 * SHRUNK, 10 * (SHRUNK + 1))
    first, *lines = output.out.splitlines()
    assert first.startswith(
        event.headline.partition(" to ")[0]
    )  # as it is seen, and then as it has settled
    assert lines == [
        event.describe(),
        "24 checkpoints measured, 1 event.",
        f"  tensorboard --logdir {tmp_path}",
        f"  sparsitywatch summary {tmp_path}",
    ]
    assert output.err == ""  # no bar where nobody looks
    assert main(["replay", str(run / "step-*.pt"), "--logdir", str(tmp_path)]) == 0
    expected = "0 checkpoints measured, 24 in the log already, 1 event.\n"
    assert capsys.readouterr().out.startswith(expected)


def test_a_broken_checkpoint_is_one_line_and_the_exit_status(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken(run, tmp_path / "run")
    assert main(["replay", str(folder), "--logdir", str(tmp_path)]) == 2
    output = capsys.readouterr()
    reason = "expected weights, got an empty file. It may be half-written."
    assert output.err == f"Cannot read {folder}/step-50.pt: {reason}\n"
    assert "24 checkpoints measured, 1 event, 1 could not be read.\n" in output.out
    assert len(read_records(tmp_path / "sparsitywatch")) == NUM


@pytest.mark.slow
def test_for_programs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken(run, tmp_path / "run")
    torch.save(weights(0), folder / "final.pt")
    arguments = ["replay", str(folder), "--logdir", str(tmp_path), "--json"]
    assert main([*arguments, "--near-zero", "abs_0.001"]) == 2
    output = capsys.readouterr()
    assert output.err == ""
    lines = [json.loads(line) for line in output.out.splitlines()]
    by_kind = {kind: [x for x in lines if x["kind"] == kind] for kind in {x["kind"] for x in lines}}
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "record": NUM, "progress": NUM, "failure": 1, "event": 2, "left_out": 1, "end": 1,
    }  # fmt: skip
    records = read_records(tmp_path / "sparsitywatch")
    for line, record in zip(by_kind["record"], records, strict=True):
        assert (line["step"], line["valid"]) == (record.step, record.valid)
        assert line["series"].get("near_zero/abs_0.001") == record.near_zero.get("abs_0.001")
    (failure,) = by_kind["failure"]
    assert (failure["step"], failure["url"]) == (50, f"{folder}/step-50.pt")
    assert by_kind["progress"][-1] == {"kind": "progress", "done": NUM, "total": NUM}
    assert by_kind["end"][0]["num_failures"] == 1
    assert by_kind["event"][0]["series"] == "near_zero/abs_0.001"


@pytest.mark.slow
def test_with_a_model_of_transformers(tmp_path: Path, monkeypatch) -> None:
    live = train(tmp_path / "live", save_safetensors(tmp_path / "run"), proxy=held_out(), steps=3)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    first = tmp_path / "run" / "checkpoint-0"
    by_type = ["bert", "--config", str(first / "config.json")]
    for number, model in enumerate(([str(first)], by_type, ["contracts.live_runs:tiny_bert"])):
        arguments = ["replay", str(tmp_path / "run"), "--logdir", str(tmp_path / str(number))]
        arguments += ["--model", *model, "--proxy", "contracts.live_runs:held_out"]
        assert main(arguments) == 0
        records = read_records(tmp_path / str(number) / "sparsitywatch")
        assert [record.curve for record in records] == [record.curve for record in live]


def test_the_scale_of_a_live_run(tmp_path: Path) -> None:
    train(tmp_path / "live", save_torch(tmp_path / "run"), steps=6)
    (tmp_path / "run" / "ckpt-0.pt").unlink()
    arguments = ["replay", str(tmp_path / "run"), "--logdir", str(tmp_path)]
    assert main([*arguments, "--initial", str(tmp_path / "live")]) == 0
    expected = [r.near_zero for r in read_records(tmp_path / "live" / "sparsitywatch")[1:]]
    assert [r.near_zero for r in read_records(tmp_path / "sparsitywatch")] == expected


@whole
def test_by_several_processes(run: Path, tmp_path: Path) -> None:
    arguments = ["replay", str(run), "--scope", "second.*", "--tolerance", "0.02", "--logdir"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    assert main([*arguments, str(tmp_path / "two"), "--workers", "2"]) == 0
    one, two = (read_records(tmp_path / name / "sparsitywatch") for name in ("one", "two"))
    assert [r.near_zero for r in one] == [r.near_zero for r in two]
    assert {r.scope.num_weights for r in two} == {32 * 64 + 32}
    assert two[0].provenance.tolerance == 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "x"], "Expected `--model` beside `--text`"),
        (["--model", "nowhere"], "Expected a config of transformers at 'nowhere'"),
        (["--model", "bert"], "--model bert --config config.json"),
        (["--model", "no.such:thing"], "Expected `--model` to be module:function"),
        (["--model", "math:pi"], "Expected `--model` to name a function"),
        (["--model", "math:nothing"], "Expected `--model` to be module:function"),
        (["--model", "a:b", "--text", "x", "--proxy", "c:d"], "one of `--proxy` and `--text`"),
        (["--workers", "0"], "Expected `--workers` >= 1"),
        (["--storage-option", "x"], "KEY=VALUE"),
        (["--idle-timeout", "-1"], "idle_timeout_s"),
        (["--scope", "nothing.*"], "matches"),
        (["--tolerance", "-1"], "tolerance"),
        (["--levels", "0.5,1.5"], "1.5"),
        (["--confidence", "2"], "Expected `confidence` to be in (0, 1)"),
        (["--initial", "nowhere"], "found no run in 'nowhere'"),
    ],
)
def test_mistakes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, message
) -> None:
    logdir = tmp_path / "log"
    assert main(["replay", str(run), "--logdir", str(logdir), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not logdir.exists()


def test_every_setting_has_an_option(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    given = []

    def replay(*_: object, settings: sw.Settings, **__: object) -> None:
        given.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsitywatch.offline.replay.replay", replay)
    arguments = ["replay", str(run), "--logdir", str(tmp_path)]
    options = {
        "--scope": "layers", "--levels": "0.5,0.9", "--pattern": "global",
        "--tolerance": "0.02", "--tolerance-mode": "absolute", "--confidence": "0.8",
        "--near-zero": "zero", "--dormant-samples": "all", "--controls": "random",
    }  # fmt: skip
    assert main(arguments) == 130
    assert main([*arguments, *(word for pair in options.items() for word in pair)]) == 130
    assert main([*arguments, "--scope", "a.*", "--scope", "layers"]) == 130
    names = {option.removeprefix("--").replace("-", "_") for option in options}
    # an object, and what is asked of a training alone
    assert names | {"sweep", "threads_draw"} == sw.Settings.names()
    assert given == [
        sw.Settings(),
        sw.Settings(
            scope="layers", levels=[0.5, 0.9], pattern="global", controls=["random"],
            tolerance=0.02,
            tolerance_mode="absolute", confidence=0.8, near_zero=["zero"], dormant_samples=None,
        ),
        sw.Settings(scope=["a.*", "layers"]),
    ]  # fmt: skip


def test_the_defaults_that_the_help_states_are_those_of_the_settings(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    default = sw.Settings()
    for option, value in (
        ("--tolerance EPSILON", default.tolerance),
        ("--confidence P", default.confidence),
        ("--dormant-samples N", default.dormant_samples),
        ("--pattern NAME", "global"),
    ):
        _, _, after = words.rpartition(option)
        assert re.search(r"\(default: (.*?)\)", after)[1] == str(value)
    assert default == sw.Settings(pattern="global")


# tests that run in the background of a shell have inherited that Ctrl-C is ignored
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from sparsitywatch.cli import main; sys.exit(main())"
)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_sidecar_ends_when_told(run: Path, tmp_path: Path, ending: signal.Signals) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "step-10.pt", place)
    options = ["--follow", "--poll", "0.05", "--json"]
    process = Child(COMMAND, "replay", place, "--logdir", tmp_path, *options)
    try:
        kinds = [json.loads(process.stdout.readline())["kind"] for _ in range(2)]
        shutil.copy(run / "step-20.pt", tmp_path / "arriving")
        (tmp_path / "arriving").rename(place / "step-20.pt")
        kinds += [json.loads(process.stdout.readline())["kind"] for _ in range(2)]
        os.kill(process.pid, ending)
        returned, output, errors = process.communicate()
    finally:
        process.kill()
    assert kinds == ["record", "progress"] * 2
    assert returned == 0
    # Python's own words, where the signal came while it was in a destructor
    assert not errors or errors.startswith("Exception ignored in")
    assert json.loads(output.splitlines()[-1])["num_records"] == 2
    assert read_manifest(tmp_path / "sparsitywatch").replayed_from == (str(place),)


class Destructor:
    """Told to end while it is destroyed, where Python drops what is raised."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [10, 30])
def test_a_signal_that_python_drops_is_heeded(
    run: Path, tmp_path: Path, monkeypatch, number: int, step: int
) -> None:
    original = sw.detectors.AbruptChange.update

    def update(self, now, *arguments):
        if now == step:
            Destructor(number)
        return original(self, now, *arguments)

    monkeypatch.setattr(sw.detectors.AbruptChange, "update", update)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        returned = main(["replay", str(run), "--logdir", str(tmp_path), "--follow"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert returned == 0  # as after any Ctrl-C of --follow
    assert read_records(tmp_path / "sparsitywatch")[-1].step == step


def test_what_is_ignored_stays_ignored(run: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        arguments = ["replay", str(run / "step-1?.pt"), "--logdir", str(tmp_path)]
        assert main([*arguments, "--follow", "--poll", "0.01", "--idle-timeout", "0.05"]) == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_sidecar_ends_after_a_while_without_news(run: Path, tmp_path: Path) -> None:
    arguments = ["replay", str(run / "step-1?.pt"), "--logdir", str(tmp_path)]
    assert main([*arguments, "--follow", "--poll", "0.01", "--idle-timeout", "0.05"]) == 0
    assert [record.step for record in read_records(tmp_path / "sparsitywatch")] == [10]


@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on(
    run: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = sw.detectors.AbruptChange.update

    def update(self, step, *arguments):
        if step == 50:
            raise KeyboardInterrupt
        return original(self, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sw.detectors.AbruptChange, "update", update)
        assert main(["replay", str(run), "--logdir", str(tmp_path)]) == 130
    assert "Interrupted; the same command goes on from here." in capsys.readouterr().err
    assert main(["replay", str(run), "--logdir", str(tmp_path)]) == 0
    assert "20 checkpoints measured, 4 in the log already" in capsys.readouterr().out


def die(*_: object) -> None:
    os._exit(3)


@pytest.mark.slow
def test_a_worker_that_dies_is_said_in_words(
    run: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sparsitywatch.offline.driver.measure", die)
        arguments = ["replay", str(run), "--logdir", str(tmp_path), "--workers", "2"]
        assert main(arguments) == 2
    assert "A worker ended before its time" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_progress_and_whole_lines_beside_it(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", screen)
    folder = broken(run, tmp_path / "run")
    torch.save(weights(NUM), folder / "step-1000.pt")
    arguments = ["replay", str(folder), "--logdir", str(tmp_path)]
    assert main(arguments) == 2
    drawn = [piece for line in screen.getvalue().split("\n") for piece in line.split("\r")]
    shown = [piece for piece in drawn if piece.endswith(" to go")]
    assert [int(piece.partition(" of ")[0]) for piece in shown] == list(range(1, NUM + 2))
    assert all(f" of {NUM + 1} checkpoints, 0:" in piece for piece in shown)
    (event,) = read_events(tmp_path / "sparsitywatch")
    for line in (event.describe(), "25 checkpoints measured, 1 event, 1 could not be read."):
        assert f"\r{line}\n" in screen.getvalue() or f"\n{line}\n" in screen.getvalue()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_follow_that_finds_nothing_yet_says_that_it_waits(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["replay", str(tmp_path / "run"), "--logdir", str(tmp_path / "log"), "--follow"]
    assert main([*arguments, "--poll", "0.01", "--idle-timeout", "0.05", *options]) == 2
    printed = capsys.readouterr()
    (told,) = (line for line in (printed.out + printed.err).splitlines() if "aiting" in line)
    assert str(tmp_path / "run") in told


def test_nothing_measured_is_no_success_and_nothing_new_is(tmp_path: Path, capsys) -> None:
    arguments = [str(tmp_path / "run"), "--logdir", str(tmp_path / "log")]
    for name in ("a", "b"):  # no step is known
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save(weights(0), tmp_path / "run" / f"{name}.pt")
    assert main(["replay", *arguments]) == 2
    assert "expected a step" in capsys.readouterr().err
    (tmp_path / "run" / "a.pt").rename(tmp_path / "run" / "step-5.pt")
    assert [main(["replay", *arguments]) for _ in range(2)] == [0, 0]
