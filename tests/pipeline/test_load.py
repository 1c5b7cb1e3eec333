"""A run read in Python, from a log as the sinks write it."""

from __future__ import annotations

import doctest
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from contracts import fake_run

import sparsitywatch as sw
from sparsitywatch.analysis.run import Run
from sparsitywatch.page.render import render
from sparsitywatch.records import Record, WatchState
from sparsitywatch.series import LEADING
from sparsitywatch.sinks.jsonl import JsonlSink

ROOT = Path(__file__).resolve().parents[2]
STEPS = range(0, 2001, 200)
RULE = "near_zero/initial_0.1"


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    looks = fake_run.looks(STEPS)
    return fake_run.write_run(tmp_path / "runs" / "bert", looks, fake_run.events())


def lines(logdir: Path, name: str) -> list[dict]:
    """The raw lines: the independent reading of the log."""
    text = (logdir / "sparsitywatch" / name).read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_examples_of_the_manual(logdir: Path, monkeypatch) -> None:
    monkeypatch.chdir(logdir.parents[1])
    failed, tried = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert (failed, tried > 8) == (0, True)


def test_everything_that_was_logged(logdir: Path) -> None:
    run = sw.load(logdir)
    raw = lines(logdir, "records.jsonl")
    assert [record.step for record in run.records] == [line["step"] for line in raw]
    assert [event.id for event in run.events] == [e["id"] for e in lines(logdir, "events.jsonl")]
    assert [entry.name for entry in run.info.ledger] == [
        entry["name"] for entry in lines(logdir, "run.json")[0]["ledger"]
    ]
    steps, values = run.series(RULE)
    assert steps.dtype.kind == "i"
    assert steps.tolist() == [line["step"] for line in raw]
    assert values.tolist() == [line["near_zero"]["initial_0.1"] for line in raw]
    assert (run.name, run.directory) == ("bert", logdir / "sparsitywatch")
    assert "bert" in repr(run)
    assert "Reliance began to rise" in run._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["runs/bert", "runs/bert/sparsitywatch", "runs/bert/", "."])
def test_the_folder_around_it_and_the_folder_itself(place: str, logdir: Path, monkeypatch) -> None:
    monkeypatch.chdir(logdir if place == "." else logdir.parents[1])
    run = sw.load(place)
    assert (run.name, len(run.records)) == ("bert", len(STEPS))
    assert sw.load(place, name="mine").name == "mine"


def write_on(logdir: Path, initial_step: int, step: int) -> None:
    """The run is taken up at one step, and watched at another."""
    sink = JsonlSink(logdir / "sparsitywatch")
    sink.open(fake_run.run_info(initial_step))
    sink.write(*fake_run.look(step))
    sink.close()


def test_the_run_as_it_is_by_now(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sw.load(logdir)
    values = first.column(RULE)
    write_on(logdir, 2000, 2200)
    measured = []
    series = Record.series
    monkeypatch.setattr(Record, "series", lambda self: measured.append(self.step) or series(self))
    later = first.again()
    column = later.column(RULE)
    assert measured == [2200]
    assert later.again().column(RULE).tolist() == column.tolist()
    assert measured == [2200]
    assert column.tolist() == [line["near_zero"]["initial_0.1"]
                               for line in lines(logdir, "records.jsonl")]  # fmt: skip
    assert len(column) == len(STEPS) + 1
    assert first.column(RULE).tolist() == values.tolist()
    assert len(first.records) == len(STEPS)
    write_on(logdir, 600, 800)  # a future was lost
    resumed = later.again()
    assert resumed.steps.tolist() == [0, 200, 400, 600, 800]
    assert resumed.column(RULE).tolist() == sw.load(logdir).column(RULE).tolist()
    assert type(resumed) is type(first)


def test_it_is_read_when_it_is_asked_for_and_kept(logdir: Path) -> None:
    run = sw.load(logdir)
    records = logdir / "sparsitywatch" / "records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(b"damaged\n" + whole)
    assert len(run.info.ledger) == 13  # without the records
    with pytest.raises(sw.StateError, match=r"records.jsonl, line 1"):
        run.records  # noqa: B018
    records.write_bytes(whole)
    assert len(run.records) == len(STEPS)
    records.unlink()
    assert len(run.records) == len(STEPS)
    assert len(run.series(RULE)[0]) == len(STEPS)


def test_while_it_is_being_written(logdir: Path) -> None:
    records = logdir / "sparsitywatch" / "records.jsonl"
    half = records.read_text().splitlines()[-1][:100]
    with records.open("a") as file:
        file.write(half)
    assert len(sw.load(logdir).records) == len(STEPS)


def test_a_run_that_has_begun_has_a_manifest_and_no_series_yet(tmp_path: Path) -> None:
    run = sw.load(fake_run.write_run(tmp_path, []))
    assert (list(run.records), list(run.events), run.names) == ([], [], ())
    assert len(run.info.ledger) == 13
    steps, values = run.series(RULE)
    assert (len(steps), len(values), len(run.frame())) == (0, 0, 0)


def test_a_log_without_a_manifest(logdir: Path) -> None:
    (logdir / "sparsitywatch" / "run.json").unlink()
    run = sw.load(logdir)
    assert (run.info, run.replayed_from, run.verdict.watch) == (None, (), ())
    assert len(run.records) == len(STEPS)


def test_what_was_not_evaluated_is_no_gap_and_what_failed_is_one() -> None:
    records = [record for record, _ in fake_run.looks(STEPS)]
    empty = ("curve", "essential_sparsity", "reliance")
    records[3] = replace(fake_run.without(records[3], *empty), not_evaluated="only every second")
    records[5] = fake_run.without(records[5], *empty)
    run = Run(records)
    steps, values = run.series("value/dense")
    assert steps.tolist() == [step for step in STEPS if step != STEPS[3]]
    assert np.isnan(values).tolist() == [step == STEPS[5] for step in steps]
    frame = run.frame()
    assert np.isnan(frame["value/dense"]).to_numpy().nonzero()[0].tolist() == [3, 5]
    assert len(run.series(RULE)[0]) == len(STEPS)


def test_the_frame_has_every_series(logdir: Path) -> None:
    run = sw.load(logdir)
    frame = run.frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.tolist() == list(STEPS)
    assert set(frame) == set().union(*(record.series() for record in run.records))
    assert list(frame)[:9] == [name.format(rule="initial_0.1") for name in LEADING]
    for name in frame:
        expected = [record.series().get(name, np.nan) for record in run.records]
        np.testing.assert_array_equal(frame[name], expected)


def test_a_run_writes_its_page_and_draws_itself(logdir: Path, tmp_path: Path) -> None:
    run = sw.load(logdir)
    page = run.report(tmp_path / "new" / "run.html")
    assert page.read_text() == render(run)
    figure = run.plot()
    assert figure.get_suptitle().startswith("Sparsity during training")
    run.plot().savefig(tmp_path / "run.png")
    assert sw.Run(run.records).plot().axes


def test_without_pandas_the_error_names_the_extra(logdir: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sw.errors.MissingExtraError, match=r"'sparsitywatch\[pandas\]'"):
        sw.load(logdir).frame()


def test_no_such_series_names_those_of_the_run(logdir: Path) -> None:
    with pytest.raises(
        sw.ConfigurationError, match=r"got 'near_zeros/zero'.*near_zero/initial_0.1"
    ):
        sw.load(logdir).series("near_zeros/zero")


def test_how_the_watch_stands(tmp_path: Path) -> None:
    logdir = fake_run.write_run(tmp_path, fake_run.looks(STEPS))
    path = logdir / "sparsitywatch" / "run.json"
    (manifest,) = lines(logdir, "run.json")
    state = WatchState(status="off", reason="OSError: no", step=2300, wall_time=0.0)
    path.write_text(json.dumps(manifest | {"state": vars(state) | {"overhead": None, "step_s": 1}}))
    assert sw.load(logdir).verdict.trouble == "the watch has been off since step 2,300"


@pytest.mark.parametrize("state", ["missing", "empty", "empty inside", "a file"])
def test_where_there_is_no_run_it_says_what_to_look_at(state: str, tmp_path: Path) -> None:
    place = tmp_path / "nothing"
    if state == "a file":
        place.touch()
    elif state != "missing":
        (place / "sparsitywatch" if state == "empty inside" else place).mkdir(parents=True)
    with pytest.raises(sw.ConfigurationError, match="Expected `logdir` to hold the log") as caught:
        sw.load(place)
    assert str(place) in str(caught.value)
    assert "Is it the run's `logdir`?" in str(caught.value)


def test_one_folder_too_high_names_the_runs(logdir: Path) -> None:
    with pytest.raises(sw.ConfigurationError, match="Watched runs in there: ") as caught:
        sw.load(logdir.parent)
    assert str(logdir) in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 3, "s3://bucket/run"])
def test_what_is_no_local_folder(wrong: object) -> None:
    with pytest.raises(sw.ConfigurationError, match="`logdir`"):
        sw.load(wrong)
