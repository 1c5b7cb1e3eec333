"""A sharded run says what the run of one process says, and the training never knows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.logged import assert_same
from contracts.rank_cases import Came, case
from contracts.sharded import (
    Net,
    Training,
    batch,
    differences,
    lines,
    log_of,
    loss,
    options,
    unlike,
    unwatched,
    whole,
)

import sparsitywatch as sw
from sparsitywatch.records import to_json

pytestmark = pytest.mark.slow

Told = dict[str, Any]

#: By how much of its size a number may differ where a layer is split over ranks: sums of float32
#: are then added up in another order, in the forward and in the training.
BOUND = 1e-5


def watched_and_not(folder: Path, way: str, num_rows: int = 13) -> Told:
    """What a watched run says, and where it ends otherwise than the same run without a watch."""
    alone = unwatched(way, num_rows=num_rows)
    training = Training(way, num_rows)
    with training.watch(folder / "log", ring=True) as watcher:
        training.train()
        watcher._ring.look()
        moves = watcher._ring.moves
        return {
            "ring": [moves.blocks.tolist(), moves.steps.tolist(), moves.update[1:].tolist()],
            "unlike": unlike(alone, training.state()),
            "compared": [*training.state()],
            "records": lines(watcher.records),
            "xrays": [to_json(record.xray) for record in watcher.records],
            "replicas": [record.replicas and record.replicas.ranks for record in watcher.records],
            "events": [event.id for event in watcher.events],
            "off": watcher.off,
            "of the whole": lines([of_the_whole(training, num_rows)]),
        }


def of_the_whole(training: Training, num_rows: int) -> sw.Record:
    """What is measured of a model of one process that has the same weights."""
    model = Net(num_rows)
    model.load_state_dict(whole(training.model))
    told = options()
    return sw.measure(model, told["proxy"], scope=told["scope"], sweep=told["sweep"])


WAYS = [("ddp", 2), ("fsdp", 2), ("bf16", 2), ("tp", 2), ("hsdp", 4), ("tp_fsdp", 4)]


def marked(ways: list[tuple[str, int]]) -> list[Any]:
    """Those of four processes wait for ``--whole``."""
    return [pytest.param(*way, marks=pytest.mark.whole if way[1] == 4 else ()) for way in ways]


for _way, _num in WAYS:
    case(_num, name=f"{_way}_{_num}")(
        lambda folder, way=_way: watched_and_not(folder, way, 12 if "tp" in way else 13)
    )
case(1, name="bf16_1")(lambda folder: watched_and_not(folder, "bf16"))
for _rows in (12, 13):
    case(0, name=f"one_{_rows}")(lambda folder, rows=_rows: watched_and_not(folder, "one", rows))


@case(4)
def uneven(_: Path) -> Told:
    """Rows that neither two nor four ranks share evenly: the weights only, nothing runs."""
    training = Training("tp_fsdp", 13)
    with training.watch(proxy=None) as watcher:
        found = watcher.snapshot()
    torch.manual_seed(0)
    measured = sw.measure(Net(13), scope="matrices")  # the same, before it was spread
    return {"found": lines([found]), "measured": lines([measured])}


def between(_: Path) -> Told:
    """A snapshot between a forward and its backward."""
    alone = unwatched("fsdp", until=3)
    training = Training("fsdp")
    with training.watch(every=100) as watcher:
        training.train(until=2)
        training.step = 3
        training.optimizer.zero_grad()
        values = loss(training.run, batch(103)).mean()
        record = watcher.snapshot()
        values.backward()
        training.average_what_is_whole()
        training.optimizer.step()
        return {"unlike": unlike(alone, training.state()), "valid": record.valid}


case(2)(between)


def test_the_run_of_one_process_has_all_that_is_compared(came: Came) -> None:
    (told,) = came("one_13")
    assert told["events"] == ["near_zero/initial_0.1@6"]
    records = sw.load(came.folder("one_13") / "log").records
    assert [record.step for record in records] == [3, 6, 9]
    for record in records:
        assert record.valid
        assert record.curve is not None
        assert len(record.curve.level) > 4  # some of which the bisection has chosen
        assert record.dormant is not None
        assert record.masks is not None
    log = log_of(came.folder("one_13") / "log")
    assert len(log["events"]) == 1
    assert set(log["spectra"]) == {3, 6, 9}


@pytest.mark.parametrize(("way", "num"), marked(WAYS))
def test_the_training_is_bit_for_bit_the_unwatched_one(way: str, num: int, came: Came) -> None:
    for told in came(f"{way}_{num}"):
        assert told["unlike"] == []
        kinds = {name.split()[0] for name in told["compared"]}
        assert {"parameter", "gradient", "exp_avg", "buffer", "torch's", "numpy's"} <= kinds


@pytest.mark.parametrize(("way", "num"), marked(WAYS))
def test_rank_0_keeps_the_updates_of_what_it_holds(way: str, num: int, came: Came) -> None:
    (whole,) = came("one_13")
    first, *others = [told["ring"] for told in came(f"{way}_{num}")]
    assert first[:2] == whole["ring"][:2]
    assert first[1] == [*range(1, 10)]
    # of a shard with few weights; where all are held it is the same
    bound = 1e-6 if way == "ddp" else 0.5
    np.testing.assert_allclose(first[2], whole["ring"][2], rtol=bound)
    assert all(ring[1] == [] for ring in others)


@pytest.mark.parametrize(("way", "num"), marked([way for way in WAYS if "tp" not in way[0]]))
def test_every_rank_says_what_one_process_says(way: str, num: int, came: Came) -> None:
    one = "bf16_1" if way == "bf16" else "one_13"  # of the same precision
    (expected,), found = came(one), came(f"{way}_{num}")
    for told in found:
        assert told["off"] == ""
        assert_same(told["records"], expected["records"])
        assert told["events"] == expected["events"]
        if way == "ddp":  # what all ranks have counted
            assert told["xrays"] == expected["xrays"]
    assert_same(log_of(came.folder(f"{way}_{num}") / "log"), log_of(came.folder(one) / "log"))


@pytest.mark.parametrize(("way", "num"), marked([way for way in WAYS if way[0] != "ddp"]))
def test_shards_are_not_looked_at_and_it_is_said(way: str, num: int, came: Came) -> None:
    for told in came(f"{way}_{num}"):
        for xray in map(json.loads, told["xrays"]):
            assert "in training" in xray["reason"]
            assert xray["dead"] is None
            assert "layers.0.up.weight" in xray["unseen"]


@pytest.mark.parametrize(("way", "num"), marked([way for way in WAYS if "tp" in way[0]]))
def test_a_rank_of_a_split_layer_says_within_a_bound_what_one_process_says(
    way: str, num: int, came: Came
) -> None:
    (expected,), found = came("one_12"), came(f"{way}_{num}")
    rounded = {f"{index}.fingerprint" for index in range(3)}  # of the last bits, too
    for told in found:
        parsed = [[*map(json.loads, records["records"])] for records in (expected, told)]
        assert set(differences(*parsed, BOUND)) <= rounded
        assert told["events"] == expected["events"]
        assert told["records"] == found[0]["records"]
    log = came.folder(f"{way}_{num}") / "log"
    assert log_of(log)["files"] == log_of(came.folder("one_12") / "log")["files"]


@pytest.mark.parametrize(("way", "num"), marked([way for way in WAYS if way[0] != "bf16"]))
def test_the_last_record_is_what_one_process_measures_of_the_same_weights(
    way: str, num: int, came: Came
) -> None:
    """Counts to the last integer, also where the training has rounded otherwise."""
    for told in came(f"{way}_{num}"):
        measured, last = json.loads(told["of the whole"][0]), json.loads(told["records"][-1])
        for name in ("scope", "num_nan", "num_inf", "num_zero", "largest", "fingerprint"):
            assert last[name] == measured[name]
        for rule in ("rms_0.1", "abs_0.001", "zero"):
            assert last["near_zero"][rule] == measured["near_zero"][rule]
        names = ("name", "num_weights", "rms", "removed")
        of_layers = [[[x[n] for n in names] for x in r["layers"]] for r in (last, measured)]
        assert of_layers[0] == of_layers[1]
        for name in ("curve", "reliance", "essential_sparsity"):
            bound = BOUND if "tp" in way else 0.0
            assert differences(last[name], measured[name], bound) == []


@pytest.mark.parametrize(("way", "num"), marked(WAYS))
def test_replicas_are_compared_where_there_are_any(way: str, num: int, came: Came) -> None:
    """Of FSDP2 that is `mix` alone, which is not sharded."""
    assert [told["replicas"] for told in came(f"{way}_{num}")] == [[()] * 3] * num


def test_a_model_that_is_sharded_over_one_rank_is_watched(came: Came) -> None:
    (told,) = came("bf16_1")
    assert told["off"] == ""
    assert [json.loads(line)["valid"] for line in told["records"]] == [True] * 3
    assert told["unlike"] == []


@pytest.mark.whole
def test_uneven_parts_of_parts_add_up_to_the_whole(came: Came) -> None:
    for told in came("uneven"):
        found, measured = json.loads(told["found"][0]), json.loads(told["measured"][0])
        names = ("fingerprint", "scope", "num_zero", "largest", "near_zero")
        assert [found[name] for name in names] == [measured[name] for name in names]
        assert [x["rms"] for x in found["layers"]] == [x["rms"] for x in measured["layers"]]


def test_a_snapshot_between_a_forward_and_its_backward_leaves_no_trace(came: Came) -> None:
    assert came("between") == [{"unlike": [], "valid": True}] * 2
