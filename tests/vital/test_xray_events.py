"""What an x-ray shows becomes an event, once, with the layer and the step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts import fake_run
from contracts.feed_forward import Blocks, batches, value

import sparsitywatch as sw
from sparsitywatch.records import Event, Record, XRay, XRayLayers
from sparsitywatch.records.event import XRAY_KINDS
from sparsitywatch.vital import XRayReviewer

NAMES = ("layers.0.down.weight", "layers.1.down.weight")


def record(step: int, dead: float = 0.0, signs: float = 0.9, **fields: object) -> Record:
    layers = XRayLayers(
        names=NAMES, num_units=(8, 8), dead=(0.0, dead), sign_diversity=(signs, signs)
    )
    xray = XRay(dead_units=dead, sign_diversity=signs, layers=layers, **fields)
    return replace(fake_run.look(step)[0], xray=xray)


def told(records: list[Record | None], kept: int = 100) -> list[Event]:
    """What is told of them, by rising step; layers are let go after so many records."""
    events: list[Event] = []
    known = [one for one in records if one is not None]
    reviewer = XRayReviewer()
    for place, one in enumerate(known):
        events += reviewer.events(one, known[:place], events)
        if place >= kept:
            old = known[place - kept]
            xray = old.xray and replace(old.xray, layers=XRayLayers())
            known[place - kept] = replace(old, xray=xray)
    return events


def test_what_a_layer_was_at_best_is_in_the_state() -> None:
    first, second = XRayReviewer(), XRayReviewer()
    first.events(record(10, 0.1), [], [])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    let_go = replace(record(10), xray=replace(record(10).xray, layers=XRayLayers()))
    (event,) = second.events(record(20, 0.95), [let_go], [])
    assert event.layers == NAMES[1:]
    assert XRayReviewer().events(record(20, 0.95), [let_go], []) == []


@pytest.mark.parametrize("num", [20, 300])
def test_a_layer_that_dies_slowly_is_told(num: int) -> None:
    """Also where those records that saw it live have let go of their layers."""
    found = told([record(10 * i, i / num) for i in range(num + 1)], kept=max(num // 4, 5))
    (event,) = [one for one in found if one.kind == "dead_units"]
    assert (event.layers, event.detected_step) == (NAMES[1:], 9 * num)


def test_a_dead_layer_is_told_once_with_its_steps() -> None:
    (event,) = told([record(10, 0.5), record(20, 0.95), record(30, 1.0)])
    assert (event.kind, event.layers) == ("dead_units", NAMES[1:])
    assert (event.onset_low, event.detected_step) == (10, 20)
    assert event.headline == "1 tensor with dead inputs"


def test_what_reads_sparse_data_from_the_start_is_well() -> None:
    assert told([record(10, 0.95), record(20, 0.97), record(30, 0.9)]) == []


def test_a_layer_that_is_dead_from_the_start_is_told_at_the_second_time() -> None:
    assert told([record(10, 1.0)]) == []
    (event,) = told([record(10, 1.0), record(20, 1.0), record(30, 1.0)])
    assert (event.kind, event.layers, event.detected_step) == ("dead_units", NAMES[1:], 20)


def test_an_expert_that_is_not_reached_is_told_at_the_second_time() -> None:
    expert = "layers.0.experts.3.weight"
    once = record(10), record(20, unreached=(expert,)), record(30)
    assert told([*once]) == []
    (event,) = told([*once[:2], record(30, unreached=(expert,))])
    assert (event.kind, event.layers, event.detected_step) == ("unreached", (expert,), 30)
    assert event.severity == "note"


def test_a_head_that_these_inputs_do_not_use_is_well() -> None:
    assert told([record(step, unreached=("heads.3.weight",)) for step in (10, 20, 30)]) == []


def test_it_is_told_again_of_twice_as_many() -> None:
    weights = [f"layers.{i}.down.weight[0, 0]" for i in range(4)]
    found = told([record(10 * i, super_weights=tuple(weights[:i])) for i in range(1, 5)])
    assert [len(event.layers) for event in found] == [1, 2, 4]


def test_a_super_weight_is_named_and_is_a_note() -> None:
    weight = f"{NAMES[1]}[5, 17]"
    later = record(20, super_weights=(weight,), massive=2300.0)
    (event,) = told([record(10), later, replace(later, step=30)])
    assert (event.layers, event.severity, event.onset_low) == (NAMES[1:], "note", 10)
    assert event.reason == f"{weight} made more than half of an output 2,300 times the median"


def test_signs_that_collapse_are_told_with_the_layers() -> None:
    assert told([record(10), record(20, signs=0.5)]) == []
    (event,) = told([record(10), record(20, signs=0.4), record(30, signs=0.3)])
    assert (event.kind, event.layers, event.detected_step) == ("sign_diversity", NAMES, 20)
    assert "0.9 to 0.4 bits" in event.reason


def test_snapshots_without_an_evaluation_say_nothing() -> None:
    without = replace(record(20), xray=None)
    assert told([without]) == []
    (event,) = told([record(10), without, record(30, 1.0)])
    assert event.onset_low == 10


@pytest.mark.parametrize("kind", XRAY_KINDS)
def test_each_kind_says_what_to_do(kind: str) -> None:
    event = Event(
        series="xray/dead", direction="", onset_step=5, detected_step=5, baseline=0.0, value=2.0,
        kind=kind, layers=NAMES, reason="why", before_step=3,
    )  # fmt: skip
    assert event.severity in ("note", "look")
    assert "compare" not in event.advice
    assert NAMES[0] in event.describe()
    page = Path(__file__).parents[2] / "docs" / "alarms.md"
    assert f"| `{kind}` |" in page.read_text()


def run(rate: float) -> sw.Watcher:
    model, generator = Blocks(depth=4), torch.Generator().manual_seed(5)
    proxy = sw.Proxy(batches((16, 16)), value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = sw.watch(
        model, optimizer, proxy=proxy, every=20, logdir=None, max_overhead=None, levels=[0.5]
    )
    with watch as watcher:
        for step in range(80):
            if step == 40:
                optimizer.param_groups[0]["lr"] = rate
            ids = torch.randint(0, 50, (16, 40), generator=generator).clamp(max=30)
            optimizer.zero_grad()
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            value(model, batch).mean().backward()
            optimizer.step()
    return watcher


@pytest.mark.slow
def test_a_rate_that_is_too_large_is_told_with_its_layers_and_a_good_one_is_not() -> None:
    assert not [event for event in run(2e-3).events if event.kind in XRAY_KINDS]
    (event,) = [event for event in run(0.1).events if event.kind == "sign_diversity"]
    assert event.detected_step in (60, 80)
    assert all(name.startswith(("layers.", "head")) for name in event.layers)
