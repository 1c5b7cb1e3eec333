"""Live and replay give the same record for the same weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts import event_readers
from contracts.live_runs import (
    held_out,
    save_safetensors,
    save_torch,
    tiny_bert,
    told_by_weights,
    train,
)
from contracts.page import inside_of
from contracts.stored_run import EVERY, NUM, Given, detectors, weights
from torch import nn

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Record, to_json
from sparsitywatch.sinks.jsonl import read_manifest, read_records
from sparsitywatch.sinks.tensorboard import LAST


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], Path]:
    """Records of a live watch with a proxy, and the folder with its log and its checkpoints."""
    folder = tmp_path_factory.mktemp("live")
    savers = [save_torch(folder / "torch"), save_safetensors(folder / "safetensors")]
    records = train(
        folder / "log", lambda model, step: [save(model, step) for save in savers], proxy=held_out()
    )
    return records, folder


@pytest.mark.part(3)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
@pytest.mark.parametrize("how", ["module", "function"])
def test_same_record_with_a_model(live, tmp_path: Path, kind: str, how: str) -> None:
    records, folder = live
    model = tiny_bert() if how == "module" else tiny_bert
    replayed = sw.replay(folder / kind, logdir=tmp_path, model=model, proxy=held_out())
    assert not replayed.failures
    assert len(records) == 5
    expected = [told_by_weights(record) for record in records]
    assert [told_by_weights(record) for record in replayed.records] == expected
    logged = read_records(tmp_path / "sparsitywatch")
    assert [told_by_weights(record) for record in logged] == expected
    assert all(record.curve.value[0] > 0.0 for record in replayed.records)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_same_record_without_a_model(live, tmp_path: Path, kind: str) -> None:
    folder = live[1]
    records = train(None, lambda *_: None)
    replayed = sw.replay(folder / kind, logdir=tmp_path)
    expected = [told_by_weights(record) for record in records]
    assert [told_by_weights(record) for record in replayed.records] == expected


def test_what_only_an_optimizer_knows_is_said_to_be_unknown(live, tmp_path: Path) -> None:
    records, folder = live
    replayed = sw.replay(folder / "torch", logdir=None)
    assert replayed.directory is None
    for record in replayed.records:
        assert math.isnan(record.decay_clock)
        assert math.isnan(record.lr)
        assert record.forecast is None
    last, last_live = replayed.records[-1], records[-1]
    assert last.masks == last_live.masks  # needs no optimizer
    assert (last.masks.since_step, last.masks.num_sampled) == (9, 4096)
    assert last.masks.level == (0.5, 0.7, 0.9)
    assert all(0.8 < x < 1.0 for x in last.masks.overlap)
    assert last.dormant.estimated
    assert not last_live.dormant.estimated
    # known for every optimizer; decay, which is no part of the live one, is tiny here
    assert last.movement.sign_flips == last_live.movement.sign_flips
    assert last.movement.since_step == last_live.movement.since_step == last.step - 3
    assert last.movement.update_to_weight == pytest.approx(
        last_live.movement.update_to_weight, rel=0.01
    )


def test_the_scale_of_another_run_can_be_asked_for(live, tmp_path: Path) -> None:
    records, folder = live
    later = [str(folder / "torch" / f"ckpt-{step}.pt") for step in (12, 6, 9)]
    own = sw.replay(later, logdir=None)
    assert [record.step for record in own.records] == [6, 9, 12]
    as_live = sw.replay(later, logdir=tmp_path, initial_rms=folder / "log")
    for replayed, record in zip(as_live.records, records[2:], strict=True):
        assert replayed.near_zero == record.near_zero
    assert own.records[0].near_zero["initial_0.1"] == own.records[0].near_zero["rms_0.1"]
    assert own.records[1].near_zero != as_live.records[1].near_zero
    manifest = read_manifest(tmp_path / "sparsitywatch")
    assert manifest.initial_rms == read_manifest(folder / "log" / "sparsitywatch").initial_rms
    assert manifest.replayed_from == tuple(later)
    with pytest.raises(ConfigurationError, match="another initial_rms"):
        sw.replay(later, logdir=tmp_path, initial_rms=dict.fromkeys(manifest.initial_rms, 1.0))
    with pytest.raises(ConfigurationError, match="`initial_rms` to be numbers by name or the log"):
        sw.replay(later, logdir=None, initial_rms=tmp_path / "nothing")


@pytest.mark.slow
def test_bfloat16_in_a_model_of_its_own_dtype_and_of_a_wider_one(tmp_path: Path) -> None:
    model = tiny_bert().bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.save(model.state_dict(), tmp_path / "step-1.pt")
    standing = torch.optim.SGD(model.parameters(), lr=0.0)
    with sw.watch(model, standing, logdir=None, proxy=held_out(), strict=True) as watcher:
        watcher.step(1)
        live = watcher.snapshot()
    narrow = sw.replay(
        tmp_path / "*.pt", logdir=None, model=lambda: tiny_bert().bfloat16(), proxy=held_out()
    )
    assert told_by_weights(narrow.records[0]) == told_by_weights(live)
    wide = sw.replay(tmp_path / "*.pt", logdir=None, model=tiny_bert, proxy=held_out()).records[0]
    assert wide.provenance.dtypes == ("bfloat16",)
    assert (wide.near_zero, wide.curve.level) == (live.near_zero, live.curve.level)
    assert wide.curve.value == pytest.approx(live.curve.value, rel=0.05)


@pytest.mark.slow
def test_the_callers_model_only_changes_its_weights(live) -> None:
    model = tiny_bert().train()
    generator = torch.get_rng_state()
    sw.replay(live[1] / "torch", logdir=None, model=model, proxy=held_out())
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)
    expected = torch.load(live[1] / "torch" / "ckpt-12.pt", weights_only=True)["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[f"_orig_mod.{name}"]), name


@pytest.mark.slow
def test_same_events(run: Path, tmp_path: Path) -> None:
    """A live watch on a model that is given the weights of each checkpoint in turn."""
    model = nn.ModuleDict(
        {"first": nn.Linear(16, 64, bias=False), "second": nn.Linear(64, 32),
         "head": nn.Linear(32, 3, bias=False)}
    )  # fmt: skip
    model.load_state_dict(weights(0))
    optimizer = Given(model)
    with sw.watch(
        model, optimizer, logdir=tmp_path / "live", every=EVERY, detectors=detectors(),
        max_overhead=None, background=False, strict=True,
    ) as watcher:  # fmt: skip
        for _ in range(NUM * EVERY):
            optimizer.step()
        live, records = list(watcher.events), list(watcher.records)
    replayed = sw.replay(run, logdir=tmp_path, detectors=detectors())
    assert list(map(told_by_weights, replayed.records)) == list(map(told_by_weights, records))
    (event,) = live
    # the clock stood still; in a replay it is not known
    assert event.decay_clock == 0.0
    unknown = replace(event, explained_by_decay=None, decay_clock=math.nan)
    assert list(map(to_json, replayed.events)) == [to_json(unknown)]
    assert main(["compare", str(tmp_path / "live"), str(tmp_path)]) == 0


# ------------------------------------------------------------------ the same weights again


def rolled_back(folder: Path, step: int) -> nn.Module:
    """A model that stands still until step 2, and is back where it was at step 4."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    generator = torch.Generator().manual_seed({1: 0, 2: 0, 4: 0}.get(step, step))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    torch.save(model.state_dict(), folder / f"step-{step}.pt")
    return model


@pytest.mark.slow
def test_weights_that_come_again_are_said_live_and_replayed_and_after_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, live, replayed = (tmp_path / name for name in ("stored", "live", "replayed"))
    stored.mkdir()
    model = rolled_back(stored, 1)
    for steps in ((1, 2, 3), (4, 5)):  # a process each
        watcher = sw.watch(model, None, logdir=live, initial_step=steps[0] - 1, every=10**6)
        for step in steps:
            model.load_state_dict(rolled_back(stored, step).state_dict())
            watcher.step()
            watcher.snapshot()
        watcher.close()
    records = read_records(live / "sparsitywatch")
    assert [record.same_weights_as for record in records] == [None, 1, None, 1, None]
    assert len({record.fingerprint for record in records}) == 3
    assert all(record.valid for record in records)
    assert "step 2: the in-scope weights are the same as at step 1" in caplog.text

    (stored / "step-5.pt").rename(tmp_path / "later.pt")
    sw.replay(stored, logdir=replayed)
    (tmp_path / "later.pt").rename(stored / "step-5.pt")
    again = sw.replay(stored, logdir=replayed).records
    for name in ("fingerprint", "same_weights_as"):
        assert [getattr(r, name) for r in again] == [getattr(r, name) for r in records]

    assert main(["summary", str(replayed)]) == 0
    assert "  step 4: the in-scope weights are the same as at step 1" in capsys.readouterr().out
    assert main(["report", str(live), "-o", str(tmp_path / "page.html")]) == 0
    assert inside_of((tmp_path / "page.html").read_text())["page"]["facts"]["notes"] == [
        [step, "the in-scope weights are the same as at step 1"] for step in (2, 4)
    ]
    texts = event_readers.accumulator(live / "sparsitywatch").Tensors(f"{LAST}/notes")
    assert [text.step for text in texts] == [2, 4]
