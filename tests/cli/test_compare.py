"""``sparsitywatch compare`` on runs as the sinks write them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from contracts import fake_run

from sparsitywatch.cli import main

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
    return [line.split() for line in output.splitlines() if line.startswith(f"{name} ")]


def test_the_table(runs: list[str], capsys) -> None:
    assert main(["compare", *runs]) == 0
    output = capsys.readouterr().out
    last = fake_run.look(2000)[0]
    estimate = last.essential_sparsity
    at_the_end, breakthrough, take_off = lines_of(output, "a")
    assert at_the_end[1:] == [
        "11", "2000", f"{last.near_zero['initial_0.1']:.4g}", f"{last.dormant.fraction:.4g}", "6",
        f"{estimate.value:.3f}", f"[{estimate.low:.3f},", f"{estimate.high:.3f}]",
    ]  # fmt: skip
    assert breakthrough[1:] == ["value/reliance", "up", "600", "650", "1.8"]
    assert take_off[1:] == ["near_zero/initial_0.1", "up", "1050", "1125", "3.15"]
    assert lines_of(output, "b")[1][1:] == ["none"]
    assert max(map(len, output.splitlines())) <= 100


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
def test_runs_that_cannot_be_compared_are_refused(runs: list[str], tmp_path: Path, capsys) -> None:
    other = str(write(tmp_path / "two" / "c", proxy_hash="07her", tolerance=0.05))
    for more in ([], ["--json"]):
        assert main(["compare", *runs, other, *more]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert "proxy_hash: 9r0xy in one/a, one/b; 07her in two/c" in told.err
        assert "tolerance: 0.01 in one/a, one/b; 0.05 in two/c" in told.err
        assert "--weights-only" in told.err

    assert main(["compare", *runs, other, "--weights-only"]) == 0
    output = capsys.readouterr().out
    assert "Weights only: what depends on a proxy is left out." in output
    assert "The runs differ in proxy_hash, tolerance." in output
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
