"""Checkpoints that cannot be read: one line each, and the others go on."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts.live_runs import held_out, save_torch, tiny_bert, train
from contracts.stored_run import detectors, on_disk, weights
from safetensors.torch import save_file

import sparsitywatch as sw
from sparsitywatch.errors import CheckpointError, ConfigurationError, ProxyError, ScopeError
from sparsitywatch.offline import jobs as looking
from sparsitywatch.offline.driver import Replayed
from sparsitywatch.sinks.jsonl import read_records


def flip(path: Path) -> None:
    """One bit in the middle of the weights."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def with_second(tensor: torch.Tensor | None) -> Callable[[Path], None]:
    """Another tensor, or none, in the place of one that the other checkpoints have."""
    changed = {**weights(0), "second.weight": tensor}
    return lambda path: torch.save({n: t for n, t in changed.items() if t is not None}, path)


lacking = with_second(None)
FAULTS = {
    "flip": (flip, "data of tensor|checksum|CRC"),
    "truncate": (truncate, "cut off|truncated|table of contents|half-written"),
    "wrong shape": (
        with_second(torch.ones(32, 65)),
        r"tensor 'second\.weight': expected shape \(32, 64\), got \(32, 65\)",
    ),
    "wrong dtype": (
        with_second(torch.ones(32, 64, dtype=torch.int32)),
        r"tensor 'second\.weight': expected a floating-point dtype, got torch\.int32",
    ),
    "lacking": (lacking, r"tensor 'second\.weight': it is not there"),
}


@pytest.fixture
def place(run: Path, tmp_path: Path) -> Path:
    """Six of the checkpoints, to be damaged."""
    for step in range(10, 70, 10):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(run / f"step-{step}.pt", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_one_line_and_the_others_go_on(place: Path, tmp_path: Path, fault: str) -> None:
    bad, told = place / "step-30.pt", []
    break_it, message = FAULTS[fault]
    break_it(bad)
    replayed = sw.replay(place, logdir=tmp_path, on_failure=[told.append])
    (failure,) = replayed.failures
    assert told == [failure]
    assert (failure.url, failure.step) == (str(bad), 30)
    assert str(bad) in failure.reason
    assert "\n" not in failure.reason
    assert re.search(message, failure.reason)
    # the log says so, and what comes after it is looked at
    records = read_records(tmp_path / "sparsitywatch")
    assert [(r.step, r.valid) for r in records] == [(s, s != 30) for s in range(10, 70, 10)]
    assert records[2].reason == failure.reason
    assert (records[2].num_nan, records[3].movement.since_step) == (-1, 20)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [flip, truncate, lacking])
def test_a_repaired_one_is_taken_in(run, place: Path, tmp_path: Path, fault) -> None:
    def replay(name: str) -> Replayed:
        return sw.replay(place, logdir=tmp_path / name, detectors=detectors())

    fault(place / "step-30.pt")
    replay("log")
    before = on_disk(tmp_path / "log")
    again = replay("log")
    assert (again.num_snapshots, len(again.failures)) == (0, 1)  # tried again, and still broken
    assert on_disk(tmp_path / "log") == before
    shutil.copy(run / "step-30.pt", place)
    repaired = replay("log")
    assert (repaired.num_snapshots, repaired.failures) == (4, [])
    replay("whole")
    names = {"names": []}
    assert on_disk(tmp_path / "log") | names == on_disk(tmp_path / "whole") | names


def test_the_first_ones_are_broken(place: Path, tmp_path: Path) -> None:
    flip(place / "step-10.pt")
    empty(place / "step-20.pt")
    replayed = sw.replay(place, logdir=tmp_path)
    assert [failure.step for failure in replayed.failures] == [10, 20]
    records = read_records(tmp_path / "sparsitywatch")
    assert [record.valid for record in records] == [False, False, True, True, True, True]
    first = records[2]
    assert first.near_zero["initial_0.1"] == first.near_zero["rms_0.1"]


@pytest.mark.slow
def test_the_first_one_is_of_something_else(place: Path, tmp_path: Path) -> None:
    torch.save({"other.bias": torch.ones(3)}, place / "step-5.pt")
    replayed = sw.replay(place, logdir=tmp_path)
    (failure,) = replayed.failures
    assert (failure.step, "it is not there" in failure.reason) == (5, True)
    assert [record.step for record in replayed.records if record.valid] == [*range(10, 70, 10)]


def test_all_are_broken(place: Path, tmp_path: Path) -> None:
    for path in place.iterdir():
        truncate(path)
    replayed = sw.replay(place, logdir=tmp_path)
    assert len(replayed.failures) == 6
    assert replayed.records == []
    assert not (tmp_path / "sparsitywatch").exists()


@pytest.mark.slow
def test_permission_denied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operating system would say; root, too, is told so here."""

    class Denied(io.FileIO):
        def __init__(self, path: str, mode: str = "r") -> None:
            if str(path).endswith("step-30.pt"):
                raise PermissionError(13, "Permission denied", str(path))
            super().__init__(path, mode)

    monkeypatch.setattr("sparsitywatch.checkpoints.storage.io.FileIO", Denied)
    (failure,) = sw.replay(place, logdir=None).failures
    assert (failure.step, "permission denied" in failure.reason) == (30, True)


@pytest.mark.slow
def test_what_nobody_foresaw_is_a_failure_too(place: Path, monkeypatch) -> None:
    original = looking.stored_snapshot

    def failing(checkpoint, scope, step):
        if step == 30:
            raise ZeroDivisionError("of a kind\nthat no one knows")
        return original(checkpoint, scope, step)

    monkeypatch.setattr(looking, "stored_snapshot", failing)
    (failure,) = sw.replay(place, logdir=None).failures
    expected = f"Cannot replay {place}/step-30.pt: ZeroDivisionError: of a kind that no one knows."
    assert failure.reason == expected


def test_a_disk_that_takes_nothing_ends_it(place: Path, tmp_path: Path, monkeypatch) -> None:
    def full(self, record, detail) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sparsitywatch.sinks.jsonl.JsonlSink.write", full)
        with pytest.raises(OSError, match="No space left"):
            sw.replay(place, logdir=tmp_path)
    assert len(sw.replay(place, logdir=tmp_path).records) == 6


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    train(None, save_torch(tmp_path / "run"), steps=3)
    for model, message in (
        (tiny_bert().bfloat16(), r"expected dtype torch\.bfloat16 as in the model or a narrower"),
        (torch.nn.ModuleDict({"bert": tiny_bert()}), "the model has it, the checkpoint does not"),
    ):
        proxy = held_out() if not isinstance(model, torch.nn.ModuleDict) else named_proxy()
        failures = sw.replay(tmp_path / "run", logdir=None, model=model, proxy=proxy).failures
        assert [failure.step for failure in failures] == [0, 3]
        assert message.replace("\\", "") in failures[0].reason


def named_proxy() -> sw.Proxy:
    inner = held_out()
    return sw.Proxy([{"x": torch.ones(2)}], lambda model, _: inner.value(model["bert"], BATCH))


BATCH = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.ones(2, 4).long()}


def test_an_evaluation_that_fails_leaves_the_weights_told(tmp_path: Path) -> None:
    train(None, save_torch(tmp_path / "run"), steps=3)
    calls = []

    def value(model, batch):
        calls.append(0)
        if len(calls) > 3:  # the first three are the check
            raise RuntimeError("no more")
        return torch.ones(4)

    replayed = sw.replay(
        tmp_path / "run", logdir=None, model=tiny_bert, proxy=sw.Proxy([{}], value)
    )
    assert [failure.step for failure in replayed.failures] == [0, 3]
    assert "no more" in replayed.failures[0].reason
    assert [record.valid for record in replayed.records] == [False, False]
    assert replayed.records[1].near_zero["rms_0.1"] > 0.0


def test_mistakes_in_the_call_are_errors_before_anything_is_written(
    place: Path, tmp_path: Path
) -> None:
    logdir = tmp_path / "log"
    for options, error, message in (
        ({"proxy": held_out()}, ConfigurationError, "`model` beside `proxy`"),
        ({"model": 3}, ConfigurationError, "`model` to be a torch.nn.Module or a function"),
        ({"model": lambda: 3}, ConfigurationError, "torch.nn.Module or a function"),
        ({"scope": ["nothing.*"]}, ScopeError, "matches none"),
        ({"tolerance": -1}, ConfigurationError, "tolerance"),
        ({"near_zero": ["x"]}, ConfigurationError, "near_zero"),
        ({"levels": 3}, ConfigurationError, "levels"),
        ({"dormant_samples": -1}, ConfigurationError, "dormant_samples"),
        ({"max_in_flight": 0}, ConfigurationError, "max_in_flight"),
        ({"poll_s": 0.0}, ConfigurationError, "poll_s"),
        ({"idle_timeout_s": -1.0}, ConfigurationError, "idle_timeout_s"),
        ({"on_event": print}, ConfigurationError, "on_event"),
        (
            {"model": tiny_bert, "proxy": sw.Proxy([{}], lambda *_: torch.ones(()))},
            ProxyError,
            "one number per example",
        ),
    ):
        with pytest.raises(error, match=message):
            sw.replay(place, logdir=logdir, **options)
    for url, message in ((tmp_path / "none-*", "found none"), ("no://x", "fsspec can open")):
        with pytest.raises(CheckpointError, match=message):
            sw.replay(url, logdir=logdir)
    assert not logdir.exists()


def test_steps_that_nobody_tells(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "weights.safetensors")
    alone = sw.replay(tmp_path, logdir=None)
    assert [record.step for record in alone.records] == [0]
    save_file(weights(1), tmp_path / "step-5.safetensors")
    both = sw.replay(tmp_path, logdir=None)
    assert [record.step for record in both.records] == [5]
    (left_out,) = both.left_out
    assert "expected a step in its contents or its name" in left_out.reason
    assert both.failures == []


def test_checkpoints_of_another_dtype_than_the_one_before(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "step-1.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights(1).items()}
    save_file(halves, tmp_path / "step-2.safetensors")
    replayed = sw.replay(tmp_path, logdir=None)
    assert replayed.failures == []
    assert [r.provenance.dtypes for r in replayed.records] == [("float32",), ("bfloat16",)]
    assert replayed.records[1].movement.since_step == 1
