"""``sparsitywatch compare`` on runs as the sinks write them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from contracts import fake_run

from sparsitywatch.cli import main
from sparsitywatch.series import percent

STEPS = range(0, 2001, 200)


def write(logdir: Path, seed: int = 0, *, events: bool = True, **provenance: object) -> Path:
    looks = [
        (replace(record, provenance=replace(record.provenance, **provenance)), detail)
        for record, detail in fake_run.looks(STEPS, seed=seed)
    ]
    return fake_run.write_run(logdir, looks, fake_run.events() if events else [])


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    write(tmp_path / "one" / "a")
    write(tmp_path / "one" / "b", seed=1, events=False)
    return [str(tmp_path / "one" / name) for name in "ab"]


def lines_of(output: str, name: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith(f"{name} ")]
    return [re.split(r" {2,}", line) for line in lines]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which nothing is folded."""
    monkeypatch.setenv("COLUMNS", "200")


def test_the_table(runs: list[str], capsys) -> None:
    assert main(["compare", *runs]) == 0
    output = capsys.readouterr().out
    last = fake_run.look(2000)[0]
    estimate = last.essential_sparsity
    at_the_end, breakthrough, take_off = lines_of(output, "a")
    assert at_the_end[1:] == [
        "11", "2,000", percent(last.near_zero["initial_0.1"]), percent(last.dormant.fraction), "6",
        f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]",
    ]  # fmt: skip
    assert breakthrough[1:] == ["value/reliance", "up", "600", "650", "1.8"]
    assert take_off[1:] == ["near_zero/initial_0.1", "up", "1,000 to 1,100", "1,125", "3.15"]
    assert lines_of(output, "b")[1][1:] == ["none"]


def test_as_json(runs: list[str], capsys) -> None:
    assert main(["compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert (found["weights_only"], found["notes"]) == (False, [])
    last = fake_run.look(2000)[0]
    assert found["runs"][0]["essential_sparsity"]["low"] == last.essential_sparsity.low
    ends = {name: series["last"] for name, series in found["runs"][0]["series"].items()}
    assert {name: ends[f"near_zero/{name}"] for name in last.near_zero} == last.near_zero
    assert [event["onset_step"] for event in found["runs"][0]["events"]] == [600, 1050]
    event = found["runs"][0]["events"][1]["id"]
    assert found["runs"][0]["onset_clock"][event] == pytest.approx(3.15)
    assert found["runs"][1]["num_records"] == 11


@pytest.mark.slow
def test_what_can_be_compared_is_and_the_rest_is_said(
    runs: list[str], tmp_path: Path, capsys
) -> None:
    other = str(write(tmp_path / "two" / "c", proxy_hash="07her", tolerance=0.05))
    assert main(["compare", *runs, other]) == 0
    output = capsys.readouterr().out
    assert "between all runs. It is shown of one/a, one/b." in output
    assert "proxy_hash: 9r0xy in one/a, one/b; 07her in two/c" in output
    assert "tolerance: 0.01 in one/a, one/b; 0.05 in two/c" in output
    whole, part = lines_of(output, "one/a")[0], lines_of(output, "two/c")[0]
    assert "[" in whole[-1]
    assert part[-1] == "not compared"
    assert part[3].endswith(" %")  # near zero
    assert [line[1] for line in lines_of(output, "two/c")[1:]] == ["near_zero/initial_0.1"]
    assert main(["compare", *runs, other, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["is_whole"] for run in told["runs"]] == [True, True, False]
    assert told["groups"] == [["one/a", "one/b", "two/c"]]
    # of two alone nothing of a proxy is comparable
    assert main(["compare", runs[0], other]) == 0
    output = capsys.readouterr().out
    assert "between all runs. It is left out." in output
    assert "essential sparsity" not in output

    assert main(["compare", *runs, other, "--weights-only"]) == 0
    output = capsys.readouterr().out
    assert "Weights only: what depends on a proxy is left out." in output
    assert "The runs differ in\n  proxy_hash: 9r0xy in one/a, one/b; 07her in two/c\n" in output
    assert "essential sparsity" not in output
    assert "value/reliance" not in output
    assert "near_zero/initial_0.1" in output


@pytest.mark.slow
def test_another_dtype_is_told_to_change_what_passes_as_dormant(
    runs: list[str], tmp_path: Path, capsys
) -> None:
    other = str(write(tmp_path / "c", dtypes=("bfloat16",)))
    assert main(["compare", *runs, other, "--weights-only", "--json"]) == 0
    assert "another dtype" in " ".join(json.loads(capsys.readouterr().out)["notes"])


@pytest.mark.slow
def test_another_scope_is_never_compared(runs: list[str], tmp_path: Path, capsys) -> None:
    other = str(write(tmp_path / "c", scope_hash="07her"))
    for more in ([], ["--weights-only"]):
        assert main(["compare", runs[0], other, *more]) == 2
        assert "scope_hash: 5c0pe in one/a; 07her in c" in capsys.readouterr().err
    # what can be is, in a table of its own
    more = str(write(tmp_path / "d", scope_hash="07her"))
    lone = str(write(tmp_path / "e", scope_hash="l0ne"))
    assert main(["compare", *runs, other, more, lone]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Runs of different weights are not compared:\n  scope_hash: ")
    assert output.count("At the end\n") == 2
    assert lines_of(output, "e") == []


def test_a_run_without_a_snapshot_hides_no_other(runs: list[str], tmp_path: Path, capsys) -> None:
    fake_run.write_run(tmp_path / "one" / "begun", [])
    assert main(["compare", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("begun is not compared: Expected records of a watched run")
    assert [lines_of(output, name)[0][1] for name in "ab"] == ["11", "11"]
    assert main(["compare", runs[0], str(tmp_path / "one" / "begun")]) == 2


def test_a_folder_of_runs_is_its_runs(runs: list[str], tmp_path: Path, capsys) -> None:
    assert main(["compare", str(tmp_path), "--json"]) == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("again", [[], ["same"]])
def test_one_run_is_not_enough(runs: list[str], again: list[str], capsys) -> None:
    arguments = [runs[0], *(f"{runs[0]}/../a" for _ in again)]
    assert main(["compare", *arguments]) == 2
    assert "Expected RUN to be two or more different runs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_inside_another_keeps_a_name(runs: list[str], capsys) -> None:
    inner = write(Path(runs[0]) / "inner", seed=3, events=False)
    assert main(["compare", runs[0], str(inner), "--json"]) == 0
    names = [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert names == [runs[0], "inner"]


@pytest.mark.slow
def test_nothing_to_read_names_the_folder(runs: list[str], tmp_path: Path, capsys) -> None:
    assert main(["compare", runs[0], str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
