"""The live watch: attaching, counting steps, looking, resuming, being refused."""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts.watched import Run, child, sees_step_6, steps_of, told
from tensorboard.backend.event_processing import event_accumulator
from torch import nn

import sparsitywatch as sw
from sparsitywatch.live import snapshots
from sparsitywatch.sinks.jsonl import read_events, read_manifest, read_records
from sparsitywatch.sinks.tensorboard import EVENTS, IN_EVERY_RECORD
from sparsitywatch.weights.snapshot import FINGERPRINTED, Sampler


def test_the_three_lines_of_the_readme(tmp_path: Path) -> None:
    run = Run()
    with run.watch(tmp_path) as watcher:
        run.train(10)
    assert steps_of(watcher.records) == [3, 6, 9]
    assert watcher.step_count == 10
    assert told(read_records(tmp_path / "sparsitywatch")) == told(watcher.records)
    assert any((tmp_path / "sparsitywatch").glob("events.out.tfevents.*"))
    record = watcher.records[-1]
    assert record.valid
    assert record.scope.num_weights == 6 * 16
    assert (record.curve.sparsity[0], record.curve.sparsity[-1]) == (0.0, 1.0)
    assert record.dormant.since_step == 6
    assert record.decay_clock == pytest.approx(9 * 0.01 * 0.01)
    assert (record.lr_clock, record.lr) == (pytest.approx(9 * 0.01), 0.01)
    assert record.cost.num_forwards > 10
    assert 0 < record.cost.evaluation_s < record.cost.stall_s


def test_a_curve_is_that_of_the_weights_at_its_step(tmp_path: Path) -> None:
    run = Run()
    with run.watch(None, levels=[0.25, 0.5]) as watcher:
        run.train(3)
        value = ((run.model(run.inputs[:10]) - run.targets[:10]) ** 2).mean().detach()
        assert watcher.records[0].curve.value[0] == pytest.approx(float(value), rel=1e-6)
        assert watcher.records[0].curve.level == (0.0, 0.25, 0.5, 1.0)


@pytest.mark.parametrize("background", [True, False])
def test_a_watch_foresees_near_zero_weights_of_dead_units(background: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    with torch.no_grad():
        model[0].bias[16:] = -50.0  # three quarters of the units never fire
    groups = [
        {"params": [model[0].weight, model[2].weight], "weight_decay": 5.0},
        {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    with sw.watch(
        model, optimizer, logdir=None, every=4, dormant_samples=None, max_overhead=None,
        background=background, strict=True,
    ) as watcher:  # fmt: skip
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(32, 16)).square().mean().backward()
            optimizer.step()
    records = watcher.records
    assert records[-1].dormant.num_sampled == 16 * 64
    assert 0.75 <= records[-1].layers[0].dormant < 0.85  # and some by chance
    assert records[-1].movement.update_to_weight > 0
    found = {round(r.decay_clock, 9): r.near_zero["initial_0.1"] for r in records}
    foretold = next(r for r in records if r.step == 40)
    for advance in (0.2, 0.6, 1.0):
        fraction, low, high = foretold.forecast.at(advance)
        assert low < fraction < high
        came = found[round(foretold.decay_clock + advance, 9)]
        assert fraction == pytest.approx(came, rel=0.1)


@pytest.mark.parametrize("num_samples", [50, 0])
def test_what_is_not_compared_is_not_sampled(
    num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, chosen = [], Sampler.chosen

    def noted(self: Sampler, sizes: tuple[tuple[str, int], ...]) -> object:
        taken.append(self.num_samples)
        return chosen(self, sizes)

    run = Run()
    monkeypatch.setattr(Sampler, "chosen", noted)
    options = {"logdir": None, "dormant_samples": num_samples, "strict": True}
    with sw.watch(run.model, run.optimizer, **options) as watcher:
        watcher.snapshot()
    assert (50 in taken) is (num_samples > 0)
    assert FINGERPRINTED.num_samples in taken


def test_looking_now_gives_the_record_of_this_step_once() -> None:
    run = Run()
    with run.watch(None) as watcher:
        start = watcher.snapshot()
        assert start.step == 0
        run.train(2)
        record = watcher.snapshot()
        assert record.step == 2
        assert watcher.snapshot() is record
        run.train(1)
        assert steps_of(watcher.records) == [0, 2, 3]


def test_explicit_steps_replace_the_hook() -> None:
    run = Run()
    with run.watch(None) as watcher:
        for _ in range(6):
            watcher.step()
            run.train(1)
        assert steps_of(watcher.records) == [3, 6]
        watcher.step(12)
        assert watcher.records[-1].step == 12
        assert watcher.step_count == 12


def test_a_schedule_that_raises_ends_the_watch_once_and_no_step_that_is_said() -> None:
    asked = []

    def every(step: int) -> bool:
        asked.append(step)
        raise RuntimeError("of the user")

    watcher = sw.watch(Run().model, logdir=None, every=every, max_overhead=None)
    for _ in range(3):
        watcher.step()
    assert watcher.off == "RuntimeError: of the user"
    assert (watcher.step_count, asked) == (3, [1])


def test_steps_that_no_hook_sees_are_said() -> None:
    run = Run()
    with sw.watch(run.model, logdir=None, every=2, strict=True, max_overhead=None) as watcher:
        for _ in range(4):
            with torch.no_grad():
                run.model[0].weight.mul_(0.9)
            watcher.step()
    assert steps_of(watcher.records) == [2, 4]
    record = watcher.records[0]
    assert all(math.isnan(x) for x in (record.decay_clock, record.lr_clock, record.lr))
    assert record.dormant is None
    assert math.isnan(record.trained)


def test_steps_that_are_seen_and_said_count_once() -> None:
    run = Run()
    with sw.watch(run.model, logdir=None, every=2, strict=True, max_overhead=None) as watcher:
        for _ in range(5):
            run.train(1)
            watcher.step()
    assert watcher.step_count == 5
    assert steps_of(watcher.records) == [2, 4]
    assert watcher.records[-1].lr_clock == pytest.approx(4 * 0.01)


def test_after_close_nothing_is_seen_and_closing_twice_is_fine(tmp_path: Path) -> None:
    run = Run()
    watcher = run.watch(tmp_path)
    run.train(3)
    watcher.close()
    watcher.close()
    run.train(3)
    assert len(watcher.records) == 1
    late = watcher.snapshot()
    assert not late.valid
    assert "closed" in late.reason


def test_no_step_seen_is_said(caplog) -> None:
    run = Run()
    with run.watch(None):
        other = copy.deepcopy(run.optimizer)  # drops hooks, silently
        other.step()
    assert "no optimizer step was counted" in caplog.text


def test_model_and_optimizer_still_pickle_and_copy() -> None:
    run = Run()
    with run.watch(None):
        run.train(4)
        again = pickle.loads(pickle.dumps((run.model, run.optimizer)))
        copy.deepcopy(run.model)
    assert len(again[1].state) == 4


def test_a_forked_child_does_not_look(tmp_path: Path) -> None:
    run = Run()
    with run.watch(tmp_path) as watcher:
        run.train(3)
        assert len(watcher.records) == 1  # and nothing is on its way
        watcher._pid = os.getpid() + 1  # what a forked child finds
        run.train(3)
        assert len(watcher.records) == 1
        watcher._pid = os.getpid()


def test_switched_off_by_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SPARSITYWATCH_DISABLED", "1")
    run = Run()
    with run.watch(tmp_path / "log") as watcher:
        run.train(4)
        assert watcher.off == "SPARSITYWATCH_DISABLED is set"
        watcher.step()
        assert not watcher.snapshot().valid
    assert watcher.records == []
    assert not (tmp_path / "log").exists()


# ------------------------------------------------------------------ resuming


@functools.cache
def uninterrupted() -> list[tuple]:
    """What is told of 17 steps."""
    whole = Run()
    with whole.watch(None) as watcher:
        whole.train(17)
    return told(watcher.records)


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "lost"),
    [(3, 0), (4, 0), (5, 1), (10, 1), (3, 5), (4, 5), (5, 5), (6, 5), (10, 5)],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop: int, lost: int) -> None:
    first = Run()
    watcher_first = first.watch(tmp_path / "log")
    first.train(stop)
    checkpoint = first.checkpoint(watcher_first)
    first.train(lost)  # steps after the checkpoint, then the process dies: no close
    second = Run.resumed(checkpoint, seed=1)
    with second.watch(tmp_path / "log") as resumed:
        resumed.load_state_dict(checkpoint["watch"])
        second.train(17 - stop)
    assert told(resumed.records) == uninterrupted()
    assert told(read_records(tmp_path / "log" / "sparsitywatch")) == uninterrupted()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [6, 7])
def test_without_saved_state_the_log_and_the_optimizer_know_the_step(tmp_path, stop: int) -> None:
    first = Run()
    watcher = first.watch(tmp_path)
    first.train(stop)
    second = Run.resumed(first.checkpoint(watcher))
    with second.watch(tmp_path) as resumed:
        second.train(3)
    assert steps_of(resumed.records) == [3, 6, 9]
    assert resumed._taker.run.initial_rms == watcher._taker.run.initial_rms
    last = resumed.records[-1]
    # the clocks go on where the log ends; those of step 7 are lost
    passed = 9 * 0.01 if stop == 6 else math.nan
    assert last.decay_clock == pytest.approx(passed * 0.01, nan_ok=True)
    assert last.lr_clock == pytest.approx(passed, nan_ok=True)
    assert last.lr == 0.01


def momentum(parameters, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.part(3)
@pytest.mark.parametrize("is_loaded_late", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, momentum])
@pytest.mark.parametrize(
    ("stop", "lost", "steps"), [(6, 0, [3, 6, 9]), (6, 2, [3, 6, 9]), (3, 4, [3, 6]), (7, 0, [3])]
)
def test_an_optimizer_that_does_not_count_goes_on_where_the_log_has_its_weights(
    tmp_path: Path,
    optimizer: Callable,
    stop: int,
    lost: int,
    steps: list[int],
    is_loaded_late: bool,
) -> None:
    """The log's record of the weights at the attach says the step; without one the log is new."""
    first = Run(optimizer=optimizer)
    with first.watch(tmp_path, proxy=None) as watcher:
        first.train(stop)
        checkpoint = first.checkpoint(watcher)
        first.train(lost)
    second = Run(seed=1, optimizer=optimizer)
    second.inputs, second.targets = checkpoint["data"]

    def load() -> None:
        second.model.load_state_dict(checkpoint["model"])
        second.optimizer.load_state_dict(checkpoint["optimizer"])

    if not is_loaded_late:
        load()
    with second.watch(tmp_path, proxy=None) as resumed:
        if is_loaded_late:
            load()
        second.train(3)
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == steps
    goes_on = stop % 3 == 0
    assert resumed.step_count == (stop + 3 if goes_on else 3)
    assert (tmp_path / "sparsitywatch-earlier-1").exists() is not goes_on
    last = resumed.records[-1]
    assert last.lr_clock == pytest.approx(steps[-1] * 0.01)


@pytest.mark.parametrize("lr", [0.01, 0.0])
@pytest.mark.parametrize("options", [{}, {"initial_step": 0}])
def test_a_new_run_from_the_same_weights_does_not_go_on_in_the_log(
    tmp_path: Path, lr: float, options: dict
) -> None:
    """Also where the log has records of these weights, which a learning rate of 0 has not moved."""
    for _ in range(2):
        run = Run(optimizer=torch.optim.SGD)
        run.optimizer.param_groups[0]["lr"] = lr
        with run.watch(tmp_path, proxy=None, **options) as watcher:
            watcher.snapshot()
            run.train(4)
        assert watcher.step_count == 4
    assert steps_of(read_records(tmp_path / "sparsitywatch-earlier-1")) == [0, 3]
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == [0, 3]


def test_initial_step_0_begins_a_new_log_with_whatever_weights(tmp_path: Path) -> None:
    run = Run(optimizer=torch.optim.SGD)
    with run.watch(tmp_path, proxy=None):
        run.train(3)
    with run.watch(tmp_path, proxy=None, initial_step=0):
        run.train(3)
    assert steps_of(read_records(tmp_path / "sparsitywatch-earlier-1")) == [3]
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == [3]


@pytest.mark.slow
def test_a_new_run_in_a_used_logdir_sets_the_earlier_one_aside(tmp_path: Path, caplog) -> None:
    for _ in range(3):
        run = Run()
        with run.watch(tmp_path):
            run.train(3)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["sparsitywatch", "sparsitywatch-earlier-1", "sparsitywatch-earlier-2"]
    assert all(len(read_records(tmp_path / name)) == 1 for name in names)
    assert "held an earlier run" in caplog.text


def test_state_of_another_watch_is_refused_by_key() -> None:
    run = Run()
    with run.watch(None) as watcher:
        state = watcher.state_dict()
        with pytest.raises(sw.StateError, match=r"keys \['pipeline'\]"):
            watcher.load_state_dict({k: v for k, v in state.items() if k != "pipeline"})
        with pytest.raises(sw.StateError, match=r"proxy_hash .* other held-out batches"):
            watcher.load_state_dict(state | {"proxy_hash": "0"})
        with pytest.raises(sw.StateError, match="scope_hash"):
            watcher.load_state_dict(state | {"scope_hash": "0"})
        run.train(1)
        with pytest.raises(sw.StateError, match="before the first step"):
            watcher.load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [{"step": "x"}, {"initial_rms": 3}, {"optimizer": {}}, {"optimizer": None}, {"schedule": 3}],
)
def test_a_damaged_state_changes_nothing(damage: dict) -> None:
    first = Run()
    with first.watch(None, every=sw.adaptive(3)) as watcher:
        first.train(4)
        state = watcher.state_dict()
    second = Run()
    with second.watch(None, every=sw.adaptive(3)) as watcher:
        before = watcher.state_dict()
        with pytest.raises(sw.StateError, match="Expected"):
            watcher.load_state_dict(state | damage)
        assert repr(watcher.state_dict()) == repr(before)
        watcher.load_state_dict(state)
        assert watcher.step_count == 4


def test_an_empty_state_is_said_and_changes_nothing(tmp_path: Path, caplog) -> None:
    run = Run()
    with run.watch(tmp_path) as watcher:
        watcher.load_state_dict({})
        run.train(3)
    assert steps_of(watcher.records) == [3]
    assert "the saved state is empty; going on from the log alone" in caplog.text


@pytest.mark.parametrize(
    ("options", "damage", "word"),
    [
        ({"tolerance": 0.05}, b"", "numbers cannot be compared.*tolerance 0.01, now 0.05"),
        ({"scope": "matrices"}, b"", "numbers cannot be compared.*scope_hash"),
        ({}, b'{"schema":99}\n', "cannot be gone on from.*99"),
    ],
)
def test_a_log_that_cannot_be_gone_on_from_is_set_aside(
    tmp_path: Path, caplog, options: dict, damage: bytes, word: str
) -> None:
    first = Run()
    with first.watch(tmp_path):
        first.train(6)
    records = tmp_path / "sparsitywatch" / "records.jsonl"
    records.write_bytes(damage + records.read_bytes())
    second = Run()
    with second.watch(tmp_path, initial_step=6, **options) as watcher:
        second.train(3)
    assert watcher.off == ""
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == [9]
    kept = tmp_path / "sparsitywatch-earlier-1" / "records.jsonl"
    assert kept.read_bytes().count(b"\n") == 2 + bool(damage)
    assert re.search(word, caplog.text)


def test_state_saves_as_weights_only(tmp_path: Path) -> None:
    run = Run()
    with run.watch(None) as watcher:
        run.train(4)
        torch.save(watcher.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 4


@pytest.mark.slow
def test_events_survive_a_resume_and_are_not_seen_twice(tmp_path: Path) -> None:
    run, seen = Run(), []

    def watch(run: Run) -> sw.Watcher:
        # of less than a hundred weights a few are near zero by chance
        detectors = {"near_zero/initial_0.1": sw.detectors.AbruptChange(min_effect=0.2)}
        options = {"proxy": None, "detectors": detectors, "on_event": [seen.append]}
        return run.watch(tmp_path, every=1, **options)

    watcher = watch(run)
    for step in range(1, 41):
        run.train(1)
        if step == 20:
            with torch.no_grad():
                run.model[0].weight[:8] = 0.0
    assert [e.direction for e in seen if e.revised_step < 0] == ["up"]
    assert 19 <= seen[0].onset_step <= 22
    assert seen[0].layers == ("0.weight",)
    checkpoint = run.checkpoint(watcher)
    again = Run.resumed(checkpoint)
    with watch(again) as resumed:
        resumed.load_state_dict(checkpoint["watch"])
        again.train(10)
    assert [e.revised_step < 0 for e in seen].count(True) == 1
    # the weights were not held at zero, and what they did since belongs to the same event
    assert [e.id for e in resumed.events] == [seen[0].id]
    assert resumed.events[0].reverted_step > seen[0].detected_step
    assert read_events(tmp_path / "sparsitywatch") == resumed.events


# ------------------------------------------------------------------ mistakes in the call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "nothing"}, "`scope` to be one of"),
        ({"scope": lambda n, p: False}, "`scope` to select at least one weight"),
        ({"every": 0}, "`every` to be a whole number.*got 0"),
        ({"levels": [0.5, 1.0]}, r"`levels\[1\]`.*got 1\.0"),
        ({"levels": []}, "`levels` to be at least one sparsity"),
        ({"levels": 5}, "`levels` to be a list of sparsities.*got 5"),
        ({"tolerance": -0.1}, "`tolerance`.*got -0.1"),
        ({"tolerance": float("nan")}, "`tolerance`.*got nan"),
        ({"tolerance_mode": "percent"}, "mode.*got 'percent'"),
        ({"near_zero": ["small"]}, "`near_zero` to be rules.*got 'small'"),
        ({"near_zero": []}, "`near_zero` with at least one"),
        ({"on_event": print}, "`on_event` to be a sequence"),
        ({"initial_step": -1}, "`initial_step` to be a whole number >= 0, got -1"),
        ({"dormant_samples": -1}, "`dormant_samples` to be a whole number >= 0, got -1"),
    ],
)
def test_mistakes_are_one_clear_error_and_nothing_is_written(options, message, tmp_path) -> None:
    run = Run()
    error = sw.errors.ScopeError if "scope" in options else sw.ConfigurationError
    with pytest.raises(error, match=message):
        run.watch(tmp_path / "log", **options)
    assert not (tmp_path / "log").exists()
    assert run.optimizer._optimizer_step_post_hooks == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logdir": "file"}, "`logdir` to be a directory that can be written"),
        ({"logdir": "s3://b"}, "`logdir` to be a local directory, got 's3://b'"),
        ({"model": "model"}, r"`model` to be a torch.nn.Module, got str"),
        ({"optimizer": object()}, r"`optimizer` to be a torch.optim.Optimizer"),
    ],
)
def test_a_logdir_a_model_or_an_optimizer_that_is_none(
    arguments: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    run = Run()
    given = {"model": run.model, "optimizer": run.optimizer, "logdir": None}
    with pytest.raises(sw.ConfigurationError, match=message):
        sw.watch(**(given | arguments))


def test_attaching_again_to_the_same_logdir_replaces_the_first(tmp_path: Path) -> None:
    run = Run()
    first = run.watch(tmp_path)
    run.train(3)
    assert len(first.records) == 1  # waits for it
    second = run.watch(tmp_path)
    run.train(3)
    second.close()
    assert first.closed
    assert steps_of(first.records) == [3]
    assert steps_of(second.records) == [3, 6]
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == [3, 6]


# ------------------------------------------------------------------ one writer on a log


@pytest.mark.slow
@pytest.mark.parametrize("num_critic", [1, 5])
@pytest.mark.parametrize("is_attached_late", [False, True])
def test_two_models_that_are_trained_by_turns_log_beside_each_other(
    tmp_path: Path, caplog, num_critic: int, is_attached_late: bool
) -> None:
    """As a GAN whose two watches were given one logdir by mistake."""
    critic, generator = Run(), Run(seed=1)
    first = critic.watch(tmp_path, proxy=None)
    if is_attached_late:
        critic.train(num_critic)
    second = generator.watch(tmp_path, proxy=None)
    for _ in range(7):
        critic.train(num_critic)
        generator.train(1)
    for watcher in (first, second):
        watcher.close()
    assert (first.off, second.off) == ("", "")
    steps = list(range(3, (7 + is_attached_late) * num_critic + 1, 3))
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == steps
    assert steps_of(read_records(tmp_path / "sparsitywatch-2")) == [3, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sparsitywatch", "sparsitywatch-2"]
    (warning,) = (r.message for r in caplog.records if r.levelname == "WARNING")
    assert "another watch of this process writes to" in warning
    assert "sparsitywatch-2. Give each run a `logdir` of its own" in warning


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_cell_that_is_run_again_begins_a_new_log_and_closes_the_old_one(
    tmp_path: Path, caplog, is_kept: bool
) -> None:
    """Nobody closed the first watch, whose model and optimizer may be alive still."""
    kept = []
    for _ in range(3):
        run = Run()
        watcher = run.watch(tmp_path, proxy=None)
        run.train(4)
        assert steps_of(watcher.records) == [3]
        kept += [run, watcher] if is_kept else []
        del run
    watcher.close()
    assert not [r.message for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    earlier = ["sparsitywatch-earlier-1", "sparsitywatch-earlier-2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sparsitywatch", *earlier]
    for name in (*earlier, "sparsitywatch"):
        assert steps_of(read_records(tmp_path / name)) == [3]
        if is_kept:
            assert read_manifest(tmp_path / name).state.status == "closed"


@pytest.mark.parametrize("has_new_optimizer", [True, False])
@pytest.mark.parametrize("num_steps", [0, 6])
def test_a_model_that_is_watched_again_goes_on_in_its_log(
    tmp_path: Path, caplog, has_new_optimizer: bool, num_steps: int
) -> None:
    run = Run(optimizer=torch.optim.SGD)
    first = run.watch(tmp_path, proxy=None)
    run.train(num_steps)
    if has_new_optimizer:
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.01)
    with run.watch(tmp_path, proxy=None) as watcher:
        run.train(3)
    assert first.closed
    steps = list(range(3, num_steps + 4, 3))
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == steps
    assert watcher.step_count == num_steps + 3
    assert [p.name for p in tmp_path.iterdir()] == ["sparsitywatch"]
    assert not [r.message for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


def hold_up(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Snapshots wait behind the training: one event says that one does, the other lets it go on."""
    is_on_its_way, go_on = threading.Event(), threading.Event()
    measure = snapshots.measure_snapshot

    def wait(*args, **options):
        is_on_its_way.set()
        assert go_on.wait(60)
        return measure(*args, **options)

    monkeypatch.setattr(snapshots, "measure_snapshot", wait)
    return is_on_its_way, go_on


@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_later_watch_fences_off_a_snapshot_that_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, is_resumed: bool
) -> None:
    """A cell of a notebook that is run again: a new optimizer, and nobody closed the first."""
    first = Run()
    late = first.watch(tmp_path, proxy=None)
    first.train(4)
    assert steps_of(late.records) == [3]
    checkpoint = first.checkpoint(late)
    with monkeypatch.context() as patched:
        is_on_its_way, go_on = hold_up(patched)
        first.train(2)
        assert is_on_its_way.wait(60)
    second = Run.resumed(checkpoint) if is_resumed else Run()
    with second.watch(tmp_path, proxy=None) as later:
        if is_resumed:
            later.load_state_dict(checkpoint["watch"])
        second.train(4)
        go_on.set()
        assert steps_of(late.records) == [3]  # waits for the late one
        assert "another one in this process has taken over" in late.off
        assert "the snapshot at step 6 is dropped: another one in this process" in caplog.text
        first.train(3)
        second.train(3)
        steps = steps_of(later.records)
    first.train(3)  # also when nobody else writes any more
    assert steps == ([3, 6, 9] if is_resumed else [3, 6])
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == steps
    late.close()


@pytest.mark.slow
def test_a_later_watch_waits_for_what_is_being_written(tmp_path: Path) -> None:
    is_in, go_on = threading.Event(), threading.Event()

    class Slow(sw.detectors.AbruptChange):
        def update(self, step, value, context=None):
            if step == 6:
                is_in.set()
                assert go_on.wait(60)
            return super().update(step, value, context)

    first = Run()
    early = first.watch(tmp_path, detectors={"near_zero/initial_0.1": Slow()})
    first.train(4)
    checkpoint = first.checkpoint(early)
    first.train(2)
    assert is_in.wait(60)
    second = Run.resumed(checkpoint)
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    options = {"detectors": {"near_zero/initial_0.1": sw.detectors.AbruptChange()}}
    with second.watch(tmp_path, **options) as later:
        later.load_state_dict(checkpoint["watch"])
        assert go_on.is_set()
        second.train(2)
    timer.join()
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == [3, 6]
    assert steps_of(early.records) == [3, 6]  # it was whole before it was superseded


OTHER_PROCESS = """
run = Run()
watcher = run.watch(Path(sys.argv[1]), proxy=None)
for line in sys.stdin:
    run.train(int(line))
    print(steps_of(watcher.records), watcher.off, flush=True)
"""


class OtherProcess:
    """A watched training in another process, told how many steps to take."""

    def __init__(self, logdir: Path) -> None:
        self.process = child(OTHER_PROCESS, logdir)

    def train(self, steps: int) -> str:
        self.process.stdin.write(f"{steps}\n")
        return self.process.stdout.readline().strip()


@pytest.mark.slow
def test_two_processes_on_one_log(tmp_path: Path, caplog) -> None:
    other = OtherProcess(tmp_path)
    assert other.train(4) == "[3]"
    # another run that was started by mistake: nobody loses anything
    mistake = Run()
    with mistake.watch(tmp_path, proxy=None) as beside:
        mistake.train(3)
        state = beside.state_dict()
    assert f"process {other.process.pid}" in caplog.text
    assert steps_of(read_records(tmp_path / "sparsitywatch-2")) == [3]
    assert other.train(2) == "[3, 6]"
    again = Run()
    with again.watch(tmp_path, proxy=None) as beside:
        beside.load_state_dict(state)  # it knows where its log is
        again.train(3)
    assert steps_of(read_records(tmp_path / "sparsitywatch-2")) == [3, 6]
    # the same run, taken up from its step 4 while the process before is dying
    resumed = Run()
    with resumed.watch(tmp_path, proxy=None, initial_step=4) as watcher:
        resumed.train(1)
        steps, _, why = other.train(3).partition("] ")
        assert (steps, f"process {os.getpid()}" in why) == ("[3, 6", True)
        resumed.train(4)
        assert steps_of(watcher.records) == [3, 6, 9]
    assert other.process.communicate()[0] == 0
    assert steps_of(read_records(tmp_path / "sparsitywatch")) == [3, 6, 9]


KILLED = """
from sparsitywatch.sinks.tensorboard import TensorBoardSink

def die(self, told, *_):
    if told.step == 6 if isinstance(told, sw.Record) else True:
        os.kill(os.getpid(), signal.SIGKILL)

run = Run()
watcher = run.watch(Path(sys.argv[1]), **sees_step_6())
run.train(4)
watcher.records
setattr(TensorBoardSink, sys.argv[2], die)
run.train(5)
watcher.records
"""


def shown(logdir: Path, until: int) -> dict[str, list[int]]:
    """Steps of every scalar, histogram and event text in TensorBoard, up to a step."""
    read = event_accumulator.EventAccumulator(
        str(logdir / "sparsitywatch"), {"scalars": 0, "compressedHistograms": 0, "tensors": 0}
    ).Reload()
    tags = [t for t in read.Tags()["tensors"] if "/log10_magnitude/" in t or t == EVENTS]
    steps = {tag: [e.step for e in read.Tensors(tag)] for tag in tags}
    steps |= {tag: [e.step for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    return {tag: kept for tag, of in steps.items() if (kept := [n for n in of if n <= until])}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["write", "event"])
def test_a_kill_between_the_lines_and_tensorboard_leaves_no_gap(tmp_path: Path, place: str) -> None:
    whole = Run()
    with whole.watch(tmp_path / "whole", **sees_step_6()):
        whole.train(12)
    assert child(KILLED, tmp_path / "log", place).communicate()[0] == -signal.SIGKILL
    assert steps_of(read_records(tmp_path / "log" / "sparsitywatch")) == [3, 6]
    resumed = Run()
    with resumed.watch(tmp_path / "log", initial_step=6, **sees_step_6()):
        resumed.train(6)
    assert shown(tmp_path / "log", 6) == shown(tmp_path / "whole", 6)
    assert shown(tmp_path / "log", 6)[EVENTS] == [6]
    assert shown(tmp_path / "log", 12)[IN_EVERY_RECORD] == [3, 6, 9, 12]


# ------------------------------------------------------------------ a watch that a module keeps


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy.deepcopy": copy.deepcopy,
    "torch.save and load": _saved,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "AveragedModel": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_model_that_keeps_its_watch_can_be_copied_and_the_copy_has_none(how: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    proxy = sw.Proxy([torch.ones(4, 6)], lambda model, x: model(x).square().mean(1))
    arguments = {"scope": "layers", "every": 1, "max_overhead": None}
    model.watch = sw.watch(model, optimizer, proxy=proxy, logdir=None, **arguments)
    copied = COPIES[how](model)
    with copied.watch as stub:
        stub.step()
    assert stub.closed
    assert "copy" in stub.off
    assert (stub.records, stub.state_dict()) == ((), {})
    with pytest.raises(sw.errors.MeasurementError, match="it is a copy"):
        stub.snapshot()
    model(torch.ones(4, 6)).sum().backward()
    optimizer.step()
    assert [record.valid for record in model.watch.records] == [True]
    model.watch.close()
