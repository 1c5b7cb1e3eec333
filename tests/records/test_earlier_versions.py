"""Logs and states that earlier schema versions left behind, as the code of now reads them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsitywatch.analysis.detect import AbruptChange, DormantRise
from sparsitywatch.pipeline.pipeline import History
from sparsitywatch.records import SCHEMA_VERSION, Detail, Event, from_json, to_json
from sparsitywatch.sinks.jsonl import (
    JsonlSink,
    read_events,
    read_manifest,
    read_records,
    read_spectrum,
)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: A log of version 1, each tenth record of it, and the state that its pipeline saved.
OLD = Path(__file__).with_name("version_1")
#: A log of version 2: layers in the lines, a spectrum of step 1000 as plain arrays.
SECOND = Path(__file__).with_name("version_2")


def test_its_records_say_what_they_said() -> None:
    first, dying, fewer, last = read_records(OLD)
    assert [r.step for r in (first, dying, fewer, last)] == [0, 50, 80, 150]
    written = [json.loads(line) for line in (OLD / "records.jsonl").read_text().splitlines()]
    for record, line in zip((first, dying, fewer, last), written, strict=True):
        assert record.schema == SCHEMA_VERSION
        now = json.loads(to_json(record))
        assert line.pop("schema") == 1
        if line["dormant"]["outlook"] is not None:
            assert now["dormant"]["projection"] == line["dormant"]["outlook"]
        assert now["dormant"].pop("projection") == line["dormant"].pop("outlook")
        assert now["dormant"].pop("estimated_advance") is None  # added since
        # fields may have been added since
        now["curve"] = {name: now["curve"][name] for name in line["curve"]}
        assert {name: now[name] for name in line} == line
    assert last.dormant.projection.dormant[-1] == pytest.approx(0.7, abs=0.01)


def test_its_events_say_what_they_said() -> None:
    dormant, near_zero = read_events(OLD)
    assert [e.trend for e in (dormant, near_zero)] == ["sparsifying"] * 2
    assert [e.explained_by_decay for e in (dormant, near_zero)] == [None, True]
    assert near_zero.preceded_by == dormant.id
    assert "no faster than weight decay alone could" in near_zero.describe()


def test_a_revised_event_of_it_is_read() -> None:
    line = (OLD / "events.jsonl").read_text().splitlines()[1]
    old = line.replace('"fell_back_step":-1', '"fell_back_step":140')
    old = old.replace('"amended_step":-1', '"amended_step":145')
    event = from_json(Event, old)
    assert (event.reverted_step, event.revised_step, event.reported_step) == (140, 145, 145)
    assert event == replace(from_json(Event, line), reverted_step=140, revised_step=145)


def test_a_log_of_it_is_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shutil.copytree(OLD, log)
    records, events, info = read_records(log), read_events(log), read_manifest(log)
    sink = JsonlSink(log)
    sink.open(replace(info, initial_step=100))
    sink.event(replace(events[1], revised_step=101))
    sink.close()
    assert [r.step for r in read_records(log)] == [r.step for r in records if r.step <= 100]
    assert read_events(log) == [events[0], replace(events[1], revised_step=101)]
    assert read_manifest(log).initial_rms == info.initial_rms


def test_a_state_of_it_is_gone_on_with() -> None:
    old = json.loads((OLD / "state.json").read_text())
    history = History({"motion/dormant": DormantRise(), "near_zero/initial_0.1": AbruptChange()})
    history.load_state_dict(old)
    new = history.state_dict()
    assert "chronicle" not in new
    for name, detector in old["detectors"].items():
        kept = new["detectors"][name]["history"]
        assert {key: kept[key] for key in detector["looks"]} == detector["looks"]
    followed = zip(new["tracker"]["followed"], old["chronicle"]["followed"], strict=True)
    for now, before in followed:
        assert now["num_snapshots"] == before["looks"]
        assert from_json(Event, now["event"]).trend == json.loads(before["event"])["meaning"]


def test_records_of_version_2_say_what_they_said() -> None:
    records = read_records(SECOND)
    written = [json.loads(line) for line in (SECOND / "records.jsonl").read_text().splitlines()]
    assert [record.step for record in records] == [0, 1000, 2000]
    for record, line in zip(records, written, strict=True):
        now = json.loads(to_json(record))
        assert (line.pop("schema"), record.schema) == (2, SCHEMA_VERSION)
        assert len(line["layers"]) == 2
        assert now["curve"].pop("num_seen") is None  # added since
        assert now["dormant"].pop("estimated_advance") is None
        assert {name: now[name] for name in line} == line
    assert [event.detected_step for event in read_events(SECOND)] == [650, 1125]


def test_a_spectrum_of_version_2_is_read() -> None:
    weights = torch.arange(1, 65) / 64
    expected = {"a": weights, "b": -weights.bfloat16(), "none": torch.zeros(3)}
    stored = MagnitudeSpectrum.from_arrays(read_spectrum(SECOND, 1000))
    assert stored == MagnitudeSpectrum.of(expected)


def test_a_log_of_version_2_is_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shutil.copytree(SECOND, log)
    old = read_records(log)
    sink = JsonlSink(log)
    sink.open(replace(read_manifest(log), initial_step=1000))
    sink.write(replace(old[2], step=2001), Detail())
    sink.close()
    now = read_records(log)
    assert [record.step for record in now] == [0, 1000, 2001]
    assert [list(r.layers) for r in now] == [list(r.layers) for r in old]
    lost = (log / "superseded.jsonl").read_text().splitlines()
    assert lost[0] == (SECOND / "records.jsonl").read_text().splitlines()[2]
