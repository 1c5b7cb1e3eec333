"""The command line on a run as the sinks write it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from contracts import fake_run

import sparsitywatch as sw
from sparsitywatch.cli import main

STEPS = range(0, 2001, 200)


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return fake_run.write_run(tmp_path / "run", fake_run.looks(STEPS), fake_run.events())


@pytest.mark.parametrize("command", ["summary", "plot", "compare"])
def test_a_run_that_has_begun_and_was_not_looked_at_yet_says_so(
    command: str, logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    model = torch.nn.Linear(4, 4)
    with sw.watch(model, None, logdir=begun, every=500, scope="layers") as watcher:
        watcher.step()
        more = [str(logdir)] if command == "compare" else []
        assert main([command, str(begun), *more]) == 2
    told = capsys.readouterr().err
    now = datetime.now(timezone.utc)
    assert re.search(
        rf"the run began at {now:%Y-%m-%d} \d\d:\d\d:\d\d UTC and has taken no snapshot", told
    )
    assert "found none yet" in told
    assert "Is it the run's `logdir`?" not in told
    assert main(["scope", str(begun)]) == 0


def row(output: str, name: str) -> list[str]:
    """The cells of the line of the table that begins with ``name``."""
    (line,) = (line for line in output.splitlines() if line.startswith(f"{name} "))
    return line.split()[1:]


def test_summary_table(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(logdir)]) == 0
    output = capsys.readouterr().out
    records = [record for record, _ in fake_run.looks(STEPS)]
    near_zero = [record.near_zero["initial_0.1"] for record in records]
    lowest, highest = min(near_zero), max(near_zero)
    assert row(output, "near_zero/initial_0.1") == [
        f"{near_zero[0]:.4g}",
        f"{near_zero[-1]:.4g}",
        f"{lowest:.4g}",
        str(STEPS[near_zero.index(lowest)]),
        f"{highest:.4g}",
        str(STEPS[near_zero.index(highest)]),
    ]
    assert row(output, "value/reliance")[1] == f"{records[-1].reliance:.4g}"
    assert "11 snapshots at steps 0 to 2000, 0 invalid; stall 3.4 s" in output
    assert "49,152 weights in 12 tensors; pattern global, zero-shot" in output
    estimate = records[-1].essential_sparsity
    interval = f"{estimate.value:.3f}, [{estimate.low:.3f}, {estimate.high:.3f}] at 90%"
    assert f"essential sparsity at step 2000: {interval}, tolerance 0.01 relative" in output
    num_informative = sum(record.essential_sparsity.informative for record in records)
    assert 0 < num_informative < len(records)
    assert f"informative at {num_informative} of 11 snapshots" in output
    assert output.count("rose abruptly") == len(fake_run.events())
    assert "weights/num_nan" not in output  # nothing broken, no line
    table, _, _ = output.partition("2 events")
    assert max(map(len, table.splitlines())) <= 100


def test_summary_as_json(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(logdir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = fake_run.look(2000)[0]
    assert (found["num_records"], found["first_step"], found["last_step"]) == (11, 0, 2000)
    assert found["series"]["motion/dormant"]["last"] == last.dormant.fraction
    assert found["essential_sparsity"]["value"] == last.essential_sparsity.value
    assert [event["onset_step"] for event in found["events"]] == [600, 1050]
    assert not any(name.startswith("watch/") for name in found["series"])
    records = [record for record, _ in fake_run.looks(STEPS)]
    for field in ("stall_s", "spectrum_s", "evaluation_s"):
        total = sum(getattr(record.cost, field) for record in records)
        assert found["cost"][field] == pytest.approx(total)
    assert found["cost"]["num_forwards"] == sum(r.cost.num_forwards for r in records)


def test_a_run_without_proxy_and_with_broken_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, detail = fake_run.look(100)
    record = fake_run.without(record, "curve", "essential_sparsity", "reliance", "dormant")
    provenance = dataclasses.replace(record.provenance, proxy_hash="")
    record = dataclasses.replace(record, num_nan=7, provenance=provenance)
    assert main(["summary", str(fake_run.write_run(tmp_path, [(record, detail)]))]) == 0
    output = capsys.readouterr().out
    assert "essential sparsity: not measured, there was no proxy" in output
    assert "1 snapshot at steps 100 to 100" in output
    assert "0 events" in output
    assert row(output, "weights/num_nan")[0] == "7"
    assert "value/reliance" not in output


def test_not_informative_is_said_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["summary", str(fake_run.write_run(tmp_path, fake_run.looks(range(0, 1, 1))))]) == 0
    output = capsys.readouterr().out
    assert "not informative; the model does not rely on these weights yet" in output
    assert "informative at 0 of 1 snapshot" in output


def test_summary_while_the_run_is_writing(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = logdir / "sparsitywatch" / "records.jsonl"
    with records.open("a") as file:
        file.write('{"step":2200,"wall_ti')  # a line on its way to the disk
    before = records.read_bytes()
    assert main(["summary", str(logdir)]) == 0
    assert "11 snapshots at steps 0 to 2000" in capsys.readouterr().out
    assert records.read_bytes() == before


def test_the_inner_directory_is_taken_too(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["summary", str(logdir)])
    outer = capsys.readouterr().out
    assert main(["summary", str(logdir / "sparsitywatch")]) == 0
    assert capsys.readouterr().out == outer


def test_scope(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scope", str(logdir)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("12 of 13 parameters in scope, 49,152 of 54,272 weights (90.6%)\n")
    for entry in fake_run.run_info().ledger:
        (line,) = (line for line in output.splitlines() if f" {entry.name} " in line)
        assert line.split()[0] == ("in" if entry.in_scope else "out")
        assert f"{entry.num_weights:,}" in line
        assert entry.reason in line
    assert "an embedding; the same as cls.predictions.decoder.weight" in output
    assert "80 x 64" in output


def test_plot(logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "overview.png"
    assert main(["plot", str(logdir), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(picture)


def test_plot_cannot_write(
    logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "overview.nonsense", tmp_path / "file" / "overview.png"):
        assert main(["plot", str(logdir), "-o", str(output)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("sparsitywatch: Expected `--output` to be a picture")
        assert str(output) in message


@pytest.mark.parametrize("command", ["summary", "plot", "scope"])
@pytest.mark.parametrize("state", ["missing", "empty", "empty inside", "a file"])
def test_nothing_to_read(
    command: str, state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logdir = tmp_path / "nothing"
    if state == "a file":
        logdir.touch()
    elif state != "missing":
        (logdir / "sparsitywatch" if state == "empty inside" else logdir).mkdir(parents=True)
    assert main([command, str(logdir)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sparsitywatch: Expected ")
    assert str(logdir) in captured.err
    assert captured.err.count("\n") == 1


def test_one_directory_too_high_names_the_runs(
    logdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["summary", str(logdir.parent)]) == 2
    assert f"Watched runs in there: {logdir}\n" in capsys.readouterr().err


def test_a_damaged_log_is_an_error_in_one_line(
    logdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = logdir / "sparsitywatch" / "records.jsonl"
    records.write_text("nonsense\n" + records.read_text())
    assert main(["summary", str(logdir)]) == 2
    error = capsys.readouterr().err
    assert "records.jsonl" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["summary"], ["summary", "-x"]])
def test_mistakes_in_the_call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: sparsitywatch" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error(logdir: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = "import sys; from sparsitywatch.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "scope", str(logdir)],
        check=False,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def imports_torch(code: str) -> bool:
    code += "\nimport sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.splitlines()[-1] == "True"


def test_the_probe_sees_torch() -> None:
    assert imports_torch("import sparsitywatch.weights.scope, torch")


@pytest.mark.parametrize("command", ["summary", "plot", "scope", "compare"])
def test_no_command_imports_torch(command: str, logdir: Path, tmp_path: Path) -> None:
    arguments = [command, str(logdir)]
    if command == "compare":
        arguments.append(str(fake_run.write_run(tmp_path / "b", fake_run.looks(STEPS, seed=1))))
    if command in ("plot", "compare"):
        arguments += ["-o", str(tmp_path / "picture.png")]
    assert not imports_torch(f"from sparsitywatch.cli import main\nassert main({arguments}) == 0")
