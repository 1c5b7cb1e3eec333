"""The recorded runs are whole, and their labels are what the rules make of the series."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_runs import label_rows
from recording.catalog import (
    APART,
    DORMANT,
    EVERY,
    FOLDER,
    SERIES,
    Interference,
    RunSpec,
    label,
    load,
    spec_of,
    write,
)  # fmt: skip
from recording.labels import FACTORS, KINDS, crossing, running_floor, split_of

RECORDED = load()
SPECS = {name: spec_of(run) for name, run in RECORDED.items()}
MAX_BYTES = 30_000

each_run = pytest.mark.parametrize("run", RECORDED.values(), ids=RECORDED)


def test_a_run_has_the_name_of_its_file_and_what_nobody_interferes_with_is_no_two_runs() -> None:
    assert [spec.name for spec in SPECS.values()] == list(RECORDED)
    trained = [dataclasses.replace(spec, name="") for spec in SPECS.values()]
    assert len(set(trained)) == len(trained)


def test_there_is_something_to_design_on_and_something_to_report_on() -> None:
    for kind in ("take-off", "control", "planted", "switched", "spike"):
        splits = {run["split"] for run in RECORDED.values() if run["label"]["kind"] == kind}
        assert splits == {"design", "report"}, kind


@each_run
def test_looks_are_regular_and_every_series_has_a_value_or_none_at_each(run: Any) -> None:
    steps = run["steps"]
    assert steps == list(range(EVERY, run["run"]["steps"] + 1, EVERY))
    assert {*SERIES, "lr", "lr_sum", "loss"} <= run["series"].keys()
    for values in run["series"].values():
        assert len(values) == len(steps)
    for every, seen in run["dormant_further_apart"].items():
        assert seen["steps"] == steps[int(every) // EVERY - 1 :: int(every) // EVERY]
        assert all(len(seen[name]) == len(seen["steps"]) for name in DORMANT)
    assert list(run["estimated_advance"]) == [str(EVERY * apart) for apart in APART]
    for values in run["estimated_advance"].values():
        assert len(values) == len(steps)


@each_run
def test_the_file_is_small_and_says_how_it_came_about(run: Any) -> None:
    assert (FOLDER / f"{run['name']}.json").stat().st_size < MAX_BYTES
    assert run["run"] == dataclasses.asdict(SPECS[run["name"]])
    assert run["split"] == ("report" if run["run"]["seed"] % 2 else "design")


@each_run
def test_the_label_recomputes_from_the_series(run: Any) -> None:
    again = label(SPECS[run["name"]], run["steps"], run["series"])
    assert json.loads(json.dumps(again)) == run["label"]
    assert run["label"]["kind"] in KINDS


@each_run
def test_a_crossing_is_where_a_plain_loop_finds_it(run: Any) -> None:
    """The oracle: medians and minimum by hand, look by look."""
    for name, values in run["series"].items():
        if not name.startswith("near_zero/"):
            continue
        told = run["label"]["near_zero"][name.removeprefix("near_zero/")]["steps"]
        for factor in FACTORS:
            found, floor = None, math.inf
            for i in range(4, len(values) - 1):
                floor = min(floor, sorted(values[i - 4 : i + 1])[2])
                if min(values[i], values[i + 1]) >= factor * floor:
                    found = run["steps"][i]
                    break
            assert told[f"{factor:.1f}"] == found


@each_run
def test_the_decay_clock_is_the_sum_of_lr_times_decay(run: Any) -> None:
    """With momentum what decay adds to the buffer goes on: ten times as much in the end, at 0.9."""
    from pretrain_bert import lr_factor  # here: it imports a model of transformers

    spec = SPECS[run["name"]]
    if spec.interference is not None:
        return
    step = np.arange(1, spec.steps + 1)
    factors = [
        lr_factor(int(s), schedule=spec.schedule, warmup=spec.warmup, steps=spec.steps)
        for s in step
    ]
    gathered = (1.0 - 0.9**step) / 0.1 if spec.optimizer == "sgd" else 1.0
    expected = np.cumsum(spec.lr * spec.decay * np.array(factors) * gathered)
    clock = np.array(run["series"]["motion/decay_clock"])
    np.testing.assert_allclose(clock, expected[EVERY - 1 :: EVERY], rtol=1e-4, atol=1e-9)


#: A spike of the rate, or what is planted, passes for decay here and there.
LEFT_ALONE = {n: r for n, r in RECORDED.items() if r["run"]["interference"] is None}


@pytest.mark.parametrize("run", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_a_clock_that_is_estimated_is_near_the_true_one(run: Any) -> None:
    """It is not told everywhere; where it is, it is that of the optimizer."""
    clock = [0.0, *run["series"]["motion/decay_clock"]]
    for apart in APART:
        advances = run["estimated_advance"][str(EVERY * apart)]
        assert advances[:apart] == [None] * apart
        for i, advance in enumerate(advances):
            if advance is not None:
                true = clock[i + 1] - clock[i + 1 - apart]
                assert advance == pytest.approx(true, rel=0.02, abs=1e-5), (apart, i)


def test_the_clock_is_estimated_in_most_runs_that_units_die_in() -> None:
    told = {name for name, r in LEFT_ALONE.items() if any(r["estimated_advance"][str(EVERY)])}
    assert {name for name in LEFT_ALONE if name.startswith("bert-relu")} <= told


def test_the_table_has_a_row_for_each_run() -> None:
    head, _, *rows, _ = label_rows()
    assert len(rows) == len(RECORDED)
    row = "| bert-l1-s0 | design | switched | 800 | 0.0393 | 825 | 825 | 825 | 23.1 | "
    assert row in "".join(rows)
    assert {row.count("|") for row in rows} == {head.count("|")}


def test_one_low_look_is_no_floor_and_one_high_look_no_crossing() -> None:
    values = np.array([4.0, 4.0, 4.0, 4.0, 4.0, 1.0, 4.0, 9.0, 4.0, 8.0, 8.0])
    assert running_floor(values)[-1] == 4.0
    assert crossing(values, 2.0) == 9
    assert crossing(values[:-1], 2.0) is None
    assert crossing(values, 2.0, least=8.5) is None


def test_splits_go_by_the_parity_of_the_seed() -> None:
    assert [split_of(seed) for seed in range(4)] == ["design", "report"] * 2


TINY = RunSpec(
    name="tiny", model="modular", seed=1, steps=200, decay=1.0, lr=1e-2, warmup=0, clip=0.0
)


@functools.cache
def recorded(event: Interference | None = None) -> dict:
    """A tiny run on few pairs, with which somebody interferes or nobody."""
    from recording import tasks  # here: it imports models of transformers
    from recording.recorder import record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_MODULUS", 31)
        return record(dataclasses.replace(TINY, interference=event))


@pytest.mark.slow
def test_a_recording_is_the_same_each_time_and_survives_its_file(tmp_path: Path) -> None:
    run = recorded()
    assert run["series"] == recorded.__wrapped__()["series"]
    write(run, tmp_path / "tiny.json")
    assert load(tmp_path)["tiny"] == json.loads(json.dumps(run))
    assert run["steps"] == [25, 50, 75, 100, 125, 150, 175, 200]


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "amount", "kind"),
    [
        ("decay", 5.0, "switched"),
        ("l1", 1e-3, "switched"),
        ("prune", 0.3, "planted"),
        ("prune-hold", 0.3, "planted"),
        ("lr", 30.0, "spike"),
    ],
)
def test_nothing_differs_before_the_interference_and_much_after(
    what: str, amount: float, kind: str
) -> None:
    plain = recorded()
    changed = recorded(Interference(what=what, step=125, amount=amount, duration=5))
    assert (changed["label"]["kind"], changed["label"]["known_step"]) == (kind, 125)
    for name in ("near_zero/abs_0.001", "loss"):
        assert plain["series"][name][:4] == changed["series"][name][:4]
    assert plain["series"]["loss"][5:] != changed["series"]["loss"][5:]
    if kind == "planted":  # it is seen at its own step
        values = changed["series"]["near_zero/abs_0.001"]
        near_zero = dict(zip(changed["steps"], values, strict=True))
        assert near_zero[100] < 0.05
        assert near_zero[125] >= 0.3
        assert (near_zero[200] >= 0.3) == (what == "prune-hold")
