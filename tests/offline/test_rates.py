"""A replay that knows the schedule of its run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from contracts.live_runs import save_safetensors, train
from hypothesis import given
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.offline.rates import Rates

#: What ``train`` trains with.
LR, DECAY = 1e-3, 0.1


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("live")
    return train(folder / "log", save_safetensors(folder / "saved")), folder / "saved"


def csv_of(folder: Path, value: float) -> Path:
    path = folder / "rates.csv"
    path.write_text(f"step,value\n1,{value}\n10,{value}\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("form", ["number", "function", "file"])
def test_the_clocks_and_what_moved_are_those_of_a_live_watch(
    live, tmp_path: Path, form: str
) -> None:
    records, saved = live
    lr = {"number": LR, "function": lambda step: LR, "file": csv_of(tmp_path, LR)}[form]
    replayed = sw.replay(saved, logdir=None, lr=lr, weight_decay=DECAY)
    assert len(replayed.records) == len(records) > 2
    for told, known in zip(replayed.records, records, strict=True):
        assert told.decay_clock == pytest.approx(known.decay_clock, rel=1e-12)
        assert told.lr_clock == pytest.approx(known.lr_clock, rel=1e-12)
        assert told.lr == pytest.approx(known.lr, rel=1e-12)
        if known.step:
            assert not told.dormant.estimated
        assert told.dormant.fraction == pytest.approx(known.dormant.fraction, nan_ok=True)
        moved, was = told.movement, known.movement
        assert moved.update_to_weight == pytest.approx(was.update_to_weight, nan_ok=True)
        assert moved.sign_flips == pytest.approx(was.sign_flips, nan_ok=True)


def test_a_learning_rate_alone_leaves_the_decay_clock_unknown(live) -> None:
    replayed = sw.replay(live[1], logdir=None, lr=LR)
    last = replayed.records[-1]
    assert last.lr_clock == pytest.approx(LR * last.step)
    assert math.isnan(last.decay_clock)


def test_a_log_goes_on_with_the_same_schedule_only(live, tmp_path: Path) -> None:
    saved = live[1]
    first = sw.replay(saved, logdir=tmp_path, lr=LR, weight_decay=DECAY)
    again = sw.replay(saved, logdir=tmp_path, lr=LR, weight_decay=DECAY)
    assert again.num_snapshots == 0
    assert len(again.records) == len(first.records)
    for other in ({"lr": 2 * LR, "weight_decay": DECAY}, {"lr": LR}, {}):
        with pytest.raises(ConfigurationError, match="same `lr` and `weight_decay`"):
            sw.replay(saved, logdir=tmp_path, **other)


def test_sums_are_those_of_a_loop() -> None:
    rates = Rates(lambda step: 1.0 / step, lambda step: 0.01 * step)
    for step in (3, 10, 7):  # back and forth
        reading = rates.reading(step, ["w"])
        assert reading.lr_clock == pytest.approx(sum(1.0 / s for s in range(1, step + 1)))
        assert reading.decay_clock == pytest.approx(0.01 * step)
        assert (reading.lr, list(reading.clocks)) == (1.0 / step, ["w"])


def test_a_mark_of_the_byte_order_is_no_name_of_a_column(tmp_path: Path) -> None:
    """A spreadsheet writes one; the first row was passed over for it."""
    path = tmp_path / "lr.csv"
    path.write_text("0,1.0\n10,0.0\n", encoding="utf-8-sig")
    assert Rates(path, None).reading(5, ()).lr == pytest.approx(0.5)


def test_a_file_that_is_no_csv_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lr.csv"
    path.write_text("0," + "1" * 200_000)
    with pytest.raises(sw.errors.ConfigurationError, match=r"Expected `lr` to be a CSV file, but"):
        Rates(path, None)


def test_rows_of_a_file_are_joined_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "lr.csv"
    path.write_text("0,0.0\n10,1.0\n20,0.5\n")
    rates = Rates(path, None)
    assert [rates.reading(step, ()).lr for step in (5, 10, 14, 30)] == [0.5, 1.0, 0.8, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,0.1\nx,y\n", "line 2"),
        ("2,0.1\n1,0.1\n", "rising steps"),
        ("step,lr\n", "steps and numbers"),
        ("1\n2\n", "line 2"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "lr.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        Rates(path, None)
    with pytest.raises(ConfigurationError, match="`lr` to be a CSV file"):
        Rates(tmp_path / "missing.csv", None)


@pytest.mark.parametrize("value", [-1.0, math.nan, True, [1.0]])
def test_bad_rates_are_named(value: object) -> None:
    with pytest.raises(ConfigurationError, match="Expected `lr`"):
        Rates(value, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="`weight_decay` to be finite"):
        Rates(0.1, lambda step: -1.0).reading(2, ())


def trainer_folders(saved: Path, folder: Path, rates: dict[int, float]) -> Path:
    """The same checkpoints as a Trainer lays them down, each with what was logged until then."""
    for one in sorted(saved.iterdir()):
        own, step = folder / one.name, int(one.name.rpartition("-")[2])
        shutil.copytree(one, own)
        rows: list[object] = [
            {"step": s, "learning_rate": rate, "loss": 1.0}
            for s, rate in rates.items()
            if s <= step
        ]
        rows += [{"step": step, "eval_loss": 2.0}]
        (own / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "log_history": rows})
        )
    return folder


def test_the_learning_rate_of_a_trainer_is_that_which_it_logged(live, tmp_path: Path) -> None:
    records, saved = live
    places = trainer_folders(saved, tmp_path, {1: LR, 5: LR})
    alone = sw.replay(places, logdir=None)
    assert [r.lr_clock for r in alone.records] == pytest.approx([r.lr_clock for r in records])
    assert all(math.isnan(r.decay_clock) and r.lr == LR for r in alone.records)
    replayed = sw.replay(places, logdir=None, weight_decay=DECAY)
    given = sw.replay(saved, logdir=None, lr=LR, weight_decay=DECAY)
    for told, known in zip(replayed.records, given.records, strict=True):
        assert told.decay_clock == pytest.approx(known.decay_clock, nan_ok=True)
        assert told.dormant.fraction == pytest.approx(known.dormant.fraction, nan_ok=True)
    # what is given goes before what was logged
    (last,) = sw.replay(places, logdir=None, lr=3 * LR).records[-1:]
    assert last.lr_clock == pytest.approx(3 * LR * last.step)


def test_between_logged_rates_is_a_straight_line_and_later_ones_change_nothing() -> None:
    rates = Rates(None, 0.1)
    assert not rates.is_known
    rates.learn({4: 0.5, 8: 0.25}, "here")
    before = rates.reading(10, ()).lr_clock
    # steps 1 to 4 as the first, 5 to 7 between both, 8 to 10 as the last
    assert before == pytest.approx(4 * 0.5 + (0.4375 + 0.375 + 0.3125) + 3 * 0.25)
    rates.learn({8: 0.25, 12: 0.125}, "here")
    assert rates.reading(10, ()).lr_clock == before
    later = Rates(None, 0.1)
    later.learn({4: 0.5, 8: 0.25, 12: 0.125}, "here")
    assert later.reading(10, ()).lr_clock == before
    # 11 on the line from 8 to 12, then as the last
    for known in (rates, later):
        assert known.reading(13, ()).lr_clock == pytest.approx(before + 0.15625 + 2 * 0.125)


@given(
    every=st.integers(1, 20), warm_up=st.integers(1, 4),
    checkpoints=st.lists(st.integers(1, 20), min_size=1, max_size=5),
)  # fmt: skip
def test_a_schedule_of_straight_lines_is_summed_as_a_live_watch_does(
    every: int, warm_up: int, checkpoints: list[int]
) -> None:
    def lr(step: int) -> float:
        top = every * warm_up
        return step / top if step <= top else 1.0 - (step - top) / 3000

    steps = every * np.cumsum(checkpoints)  # a Trainer logs where it saves
    rates = Rates(None, 0.01)
    for step in steps:
        rates.learn({s: lr(s) for s in range(every, step + 1, every)}, "here")
        first = sum(lr(every) - lr(s) for s in range(1, every))  # not known
        known = rates.reading(int(step), ())
        assert known.lr_clock == pytest.approx(sum(map(lr, range(1, step + 1))) + first)
        assert known.decay_clock == pytest.approx(0.01 * known.lr_clock)


def test_a_log_of_before_the_rate_was_logged_goes_on(live, tmp_path: Path) -> None:
    places = trainer_folders(live[1], tmp_path / "run", {})
    first = sw.replay(places, logdir=tmp_path / "log")
    assert all(math.isnan(r.lr_clock) for r in first.records)
    last = max(places.iterdir(), key=lambda folder: int(folder.name.rpartition("-")[2]))
    state = {
        "global_step": first.records[-1].step,
        "log_history": [{"step": 2, "learning_rate": LR}],
    }
    (last / "trainer_state.json").write_text(json.dumps(state))
    assert sw.replay(places, logdir=tmp_path / "log").num_snapshots == 0


@pytest.mark.parametrize("history", [{"step": 1}, [1, 2], "rates"])
def test_a_history_that_is_none_is_named(live, tmp_path: Path, history: object) -> None:
    places = trainer_folders(live[1], tmp_path, {})
    for state in places.glob("*/trainer_state.json"):
        known = json.loads(state.read_text())
        state.write_text(json.dumps({**known, "log_history": history}))
    with pytest.raises(CheckpointError, match=r"trainer_state\.json: expected a log_history"):
        sw.replay(places, logdir=None)


def test_decay_without_a_learning_rate_is_refused(live, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`lr` beside `weight_decay`"):
        sw.replay(live[1], logdir=tmp_path / "log", weight_decay=0.1)
    assert not (tmp_path / "log").exists()


def test_a_function_that_takes_no_step_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"`lr\(1\)` raised TypeError"):
        Rates(lambda: 0.1, None)  # type: ignore[arg-type, misc]
