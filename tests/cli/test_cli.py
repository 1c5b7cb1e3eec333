"""The command line on a run as the sinks write it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from contracts import fake_run
from contracts.page import inside_of, parse
from transformers import BertConfig, BertForMaskedLM

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.series import LEADING, percent
from sparsitywatch.sinks.jsonl import JsonlSink
from sparsitywatch.weights.scope import Scope

STEPS = range(0, 2001, 200)


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return fake_run.write_run(tmp_path / "run", fake_run.looks(STEPS), fake_run.events())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["summary", "plot", "compare"])
def test_a_run_that_has_begun_and_was_not_looked_at_yet_says_so(
    command: str, logdir: Path, tmp_path: Path, capsys
) -> None:
    begun = tmp_path / "begun"
    model = torch.nn.Linear(4, 4)
    with sw.watch(
        model, None, logdir=begun, every=500, scope="layers", max_overhead=None
    ) as watcher:
        watcher.step()
        more = [logdir] if command == "compare" else []
        error = told(capsys, command, begun, *more, status=2)
        assert told(capsys, "scope", begun)
        told(capsys, "report", begun, "-o", tmp_path / "page.html")
    now = datetime.now(timezone.utc)
    assert re.search(
        rf"the run began at {now:%Y-%m-%d} \d\d:\d\d:\d\d UTC and has taken no snapshot", error
    )
    assert "found none yet" in error
    assert "Is it the run's `logdir`?" not in error
    assert "no snapshot yet" in (tmp_path / "page.html").read_text()


def told(capsys, *arguments: object, status: int = 0) -> str:
    """What a command prints: its output, or where it fails its one line of complaint."""
    assert main([str(argument) for argument in arguments]) == status
    printed = capsys.readouterr()
    assert (printed.out if status else printed.err) == ""
    assert not status or printed.err.count("\n") == 1
    return printed.err if status else printed.out


def row(output: str, name: str) -> list[str]:
    """The cells of the line of the table that begins with ``name``."""
    (line,) = (line for line in output.splitlines() if line.startswith(f"{name} "))
    return re.split(r" (?!%) *", line)[1:]


def test_summary_table(logdir: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "9999")
    output = told(capsys, "summary", logdir)
    records = [record for record, _ in fake_run.looks(STEPS)]
    near_zero = [record.near_zero["initial_0.1"] for record in records]
    lowest, highest = min(near_zero), max(near_zero)
    assert row(output, "near_zero/initial_0.1") == [
        percent(near_zero[0]), percent(near_zero[-1]),
        percent(lowest), f"{STEPS[near_zero.index(lowest)]:,}",
        percent(highest), f"{STEPS[near_zero.index(highest)]:,}",
    ]  # fmt: skip
    assert row(output, "value/reliance")[1] == f"{records[-1].reliance:.4g}"
    assert "11 snapshots at steps 0 to 2,000, 0 invalid; stall 3.4 s" in output
    assert "49,152 weights in 12 tensors; pattern global, zero-shot" in output
    estimate = records[-1].essential_sparsity
    low, high = percent(estimate.low), percent(estimate.high)
    assert f"; essential sparsity {percent(estimate.value)} [{low}, {high}]; 2 events" in output
    assert "tolerance 1 % of the dense value" in " ".join(output.split())
    num_informative = sum(record.essential_sparsity.informative for record in records)
    assert 0 < num_informative < len(records)
    assert f"informative at {num_informative} of 11 snapshots" in output
    assert output.count("began to rise") == 1 + len(fake_run.events())  # with the verdict
    assert "weights/num_nan" not in output  # nothing broken, no line
    table = output[output.index("series ") : output.index("\n2 events\n")]
    assert max(map(len, table.splitlines())) <= 80  # columns of a terminal
    leading = [line.split()[0] for line in table.splitlines()[1:10]]
    assert leading == [name.format(rule="initial_0.1") for name in LEADING]
    monkeypatch.setenv("COLUMNS", "120")
    every = told(capsys, "summary", logdir, "--all")
    assert row(every, "essential_sparsity/knee")
    rows = every[every.index("series ") : every.index("\n2 events\n")].splitlines()[1:]
    assert len(set(rows)) == len(rows) > 40
    assert table.splitlines()[10:] == [f"and {len(rows) - 9} more: --all"]


def test_summary_as_json(logdir: Path, capsys) -> None:
    found = json.loads(told(capsys, "summary", logdir, "--json"))
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


def test_a_run_without_proxy_and_with_broken_weights(tmp_path: Path, capsys) -> None:
    record, detail = fake_run.look(100)
    record = fake_run.without(
        record,
        "curve",
        "essential_sparsity",
        "reliance",
        "reliance_low",
        "reliance_high",
        "dormant",
    )
    provenance = dataclasses.replace(record.provenance, proxy_hash="")
    record = dataclasses.replace(record, num_nan=7, provenance=provenance)
    output = told(capsys, "summary", fake_run.write_run(tmp_path, [(record, detail)]))
    assert "Not watched: essential sparsity and reliance: no proxy was given" in output
    assert "; essential sparsity" not in output
    assert "1 snapshot at steps 100 to 100" in output
    assert "0 events" in output
    assert row(output, "weights/num_nan")[0] == "7"
    assert "value/reliance" not in output


def test_not_informative_is_said_with_its_reason(tmp_path: Path, capsys) -> None:
    output = told(capsys, "summary", fake_run.write_run(tmp_path, [fake_run.look(0)]))
    said = "not informative: the model does not rely on these weights yet"
    assert said in " ".join(output.split())
    assert "informative at 0 of 1 snapshot" in output


def test_what_too_few_examples_cannot_say_and_what_an_interval_counts_is_said(
    tmp_path: Path, capsys
) -> None:
    record, detail = fake_run.look(2000)
    estimate = dataclasses.replace(
        record.essential_sparsity, informative=False, value=math.nan, examples_needed=1200,
        reason="cannot say: the tolerance is below the noise; it would take about 1,200 examples",
    )  # fmt: skip
    few = dataclasses.replace(record, essential_sparsity=estimate)
    output = told(capsys, "summary", fake_run.write_run(tmp_path / "few", [(few, detail)]))
    said = "cannot say below about 1,200 examples: the tolerance is below the noise; it"
    assert said in " ".join(output.split())
    by = dataclasses.replace(record.essential_sparsity, unit="token")
    tokens = dataclasses.replace(record, essential_sparsity=by)
    output = told(capsys, "summary", fake_run.write_run(tmp_path / "tokens", [(tokens, detail)]))
    assert "] by batches" in output


def test_while_the_run_is_writing(logdir: Path, tmp_path: Path, capsys) -> None:
    records = logdir / "sparsitywatch" / "records.jsonl"
    with records.open("a") as file:
        file.write('{"step":2200,"wall_ti')  # a line on its way to the disk
    before = records.read_bytes()
    assert "11 snapshots at steps 0 to 2,000" in told(capsys, "summary", logdir)
    told(capsys, "report", logdir, "-o", tmp_path / "r.html")
    assert "11 snapshots of 49,152 weights" in parse((tmp_path / "r.html").read_text()).text()
    assert records.read_bytes() == before


def test_the_inner_directory_is_taken_too(logdir: Path, tmp_path: Path, capsys) -> None:
    inner = logdir / "sparsitywatch"
    assert told(capsys, "summary", inner) == told(capsys, "summary", logdir)
    for place, name in ((logdir, "one"), (inner, "other")):
        told(capsys, "report", place, "-o", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_scope(logdir: Path, capsys) -> None:
    output = told(capsys, "scope", logdir)
    first, *groups = output.strip().split("\n\n")
    assert first == "12 of 13 parameters in scope, 49,152 of 54,272 weights (90.6 %)"
    found = [(group.splitlines()[0], line) for group in groups for line in group.splitlines()[1:]]
    assert len(found) == 13
    for entry in fake_run.run_info().ledger:
        ((reason, line),) = (one for one in found if one[1].startswith(f"{entry.name} "))
        assert reason == f"{'in' if entry.in_scope else 'out'}: {entry.why}"
        assert line.split()[-1] == f"{entry.num_weights:,}"
    assert "out: an embedding; the same as cls.predictions.decoder.weight" in groups[1]
    assert "80 × 64" in output


def test_the_scope_of_bert_base_fits_in_eighty_columns(tmp_path: Path, capsys) -> None:
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig())
    model.to_empty(device="cpu").tie_weights()  # nobody reads its memory
    sink = JsonlSink(tmp_path / "sparsitywatch")
    sink.open(dataclasses.replace(fake_run.run_info(), ledger=Scope.of(model, "blocks").ledger))
    sink.close()
    output = told(capsys, "scope", tmp_path)
    assert output.count("\nbert.encoder.layer.") == 192
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.slow
def test_plot(logdir: Path, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "new" / "overview.png"
    assert told(capsys, "plot", logdir, "-o", picture).strip() == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_report(logdir: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "new" / "page.html"
    assert told(capsys, "report", logdir, "-o", path).strip() == str(path)
    title = parse(path.read_text(encoding="utf-8")).one("head").one("title")
    assert title.text() == "run: sparsity report"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    # by default it is written here; a run without a manifest has no ledger
    (logdir / "sparsitywatch" / "run.json").unlink()
    monkeypatch.chdir(tmp_path)
    told(capsys, "report", "run")
    page = inside_of((tmp_path / "report.html").read_text(encoding="utf-8"))["page"]
    assert (page["facts"]["ledger"], page["facts"]["scope"]) == ([], "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "output", "what"),
    [
        ("plot", "overview.nonsense", "a picture"),
        ("plot", "file/overview.png", "a picture"),
        ("report", "file/r.html", "a file that can be written"),
        ("report", "folder", "a file that can be written"),
    ],
)
def test_what_cannot_be_written_is_said(
    command: str, output: str, what: str, logdir: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    message = told(capsys, command, logdir, "-o", tmp_path / output, status=2)
    assert message.startswith(f"sparsitywatch: Expected `--output` to be {what}")
    assert str(tmp_path / output) in message
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("command", ["summary", "plot", "scope", "report"])
@pytest.mark.parametrize("state", ["missing", "empty", "empty inside", "a file"])
def test_nothing_to_read(command: str, state: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    logdir = tmp_path / "nothing"
    if state == "a file":
        logdir.touch()
    elif state != "missing":
        (logdir / "sparsitywatch" if state == "empty inside" else logdir).mkdir(parents=True)
    message = told(capsys, command, logdir, status=2)
    assert message.startswith("sparsitywatch: Expected ")
    assert str(logdir) in message
    assert not [path for path in tmp_path.iterdir() if path != logdir]


def test_a_folder_of_one_run_is_that_run_and_of_several_all_the_worst_first(
    logdir: Path, capsys
) -> None:
    assert f"Watched runs in there: {logdir}\n" in told(capsys, "scope", logdir.parent, status=2)
    whole = told(capsys, "summary", logdir)
    assert told(capsys, "summary", logdir.parent) == whole
    others = {"a": (7, 0.0), "z": (0, 0.0), "b": (7, 60.0)}  # weights that are NaN, seconds later
    for name, (num_nan, later_s) in others.items():
        record, detail = fake_run.look(100)
        record = dataclasses.replace(
            record, num_nan=num_nan, wall_time=record.wall_time + later_s, trained=1.0
        )
        fake_run.write_run(logdir.parent / name, [(record, detail)])
    (logdir.parent / "broken").mkdir()
    (logdir.parent / "broken" / "records.jsonl").write_text("nonsense\n{}\n")
    order = ["b", "a", "broken", "run", "z"]
    output = told(capsys, "summary", logdir.parent)
    assert whole in output
    assert [line for line in output.splitlines() if line in order] == order
    found = json.loads(told(capsys, "summary", logdir.parent, "--json"))["runs"]
    assert [run["name"] for run in found] == order
    assert "records.jsonl" in found[2]["error"]
    assert main(["status", str(logdir.parent)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == order
    told(capsys, "report", logdir.parent, "-o", logdir / "all.html")
    page = (logdir / "all.html").read_text()
    assert parse(page).one("head").one("title").text() == "5 runs: sparsity report"
    assert inside_of(page)["name"] == "b"


@pytest.mark.part(2)
@pytest.mark.parametrize("columns", [80, 60, 120])
@pytest.mark.parametrize("command", ["summary", "status", "compare", "emergence", "scope"])
def test_what_is_told_of_logs_fits_in_a_terminal_and_loses_no_word(
    command: str, columns: int, logdir: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    long = tmp_path / "a-run-with-a-rather-long-name-and-seed-1"
    fake_run.write_run(long, fake_run.looks(STEPS, seed=1), fake_run.events())
    where = logdir if command in ("emergence", "scope") else tmp_path
    outputs = []
    for width in (1000, columns):
        monkeypatch.setenv("COLUMNS", str(width))
        main([command, str(where)])
        outputs.append(capsys.readouterr().out)
    assert max(map(len, outputs[1].splitlines())) <= columns
    letters = [Counter(re.sub(r"\s", "", output)) for output in outputs]
    assert letters[0] == letters[1]


@pytest.mark.parametrize("command", ["summary", "report"])
def test_a_damaged_log_is_an_error_in_one_line(
    command: str, logdir: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(logdir)
    records = logdir / "sparsitywatch" / "records.jsonl"
    records.write_text("nonsense\n" + records.read_text())
    assert "records.jsonl" in told(capsys, command, logdir, status=2)
    assert not (logdir / "report.html").exists()


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["summary"], ["summary", "-x"]])
def test_mistakes_in_the_call(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: sparsitywatch" in capsys.readouterr().err


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_probe_sees_torch() -> None:
    assert imports_torch("import sparsitywatch.weights.scope, torch")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["summary", "plot", "scope", "compare"])
def test_no_command_imports_torch(command: str, logdir: Path, tmp_path: Path) -> None:
    arguments = [command, str(logdir)]
    if command == "compare":
        arguments.append(str(fake_run.write_run(tmp_path / "b", fake_run.looks(STEPS, seed=1))))
    if command == "plot":
        arguments += ["-o", str(tmp_path / "picture.png")]
    assert not imports_torch(f"from sparsitywatch.cli import main\nassert main({arguments}) == 0")
