"""Vital signs on ranks: what one process finds they find, and nothing where nothing is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts.families import whole
from contracts.logged import assert_same
from contracts.rank_cases import Came, case
from contracts.sharded import EVERY, Training, adamw, local_of

from sparsitywatch.records import to_json
from sparsitywatch.weights.layout import clean_name

pytestmark = pytest.mark.slow

Told = dict[str, Any]
#: Onset of what begins in the middle of a run, and its end, in steps.
ONSET, END = 5 * EVERY, 8 * EVERY


class Run(Training):
    """A training in which something may go wrong."""

    def named(self, part: str) -> dict[str, Any]:
        """The parameters with this in their names, as they are trained."""
        named = self.model.named_parameters()
        return {name: p for name, p in named if part in clean_name(name)}

    def make_optimizer(self, without: str = "nothing", **given: Any) -> None:
        left_out = self.named(without)
        params = [p for name, p in self.named("").items() if name not in left_out]
        self.optimizer = adamw(params, **given)

    def before_step(self, act: Callable[[int], object]) -> None:
        steps = itertools.count(1)
        self.optimizer.register_step_pre_hook(lambda *_: act(next(steps)))

    def after_step(self, act: Callable[[int], object]) -> None:
        """Before the watch looks."""
        steps = itertools.count(1)
        self.optimizer.register_step_post_hook(lambda *_: act(next(steps)))


def warming_up(run: Run) -> None:
    """A learning rate of 0 up to the second snapshot, and gradients of next to nothing."""

    def rate(step: int) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = 1e-3 * max(step - 4, 0)
        for parameter in run.named("layers.1").values():
            if parameter.grad is not None:
                parameter.grad.mul_(1e-3)

    run.before_step(rate)


def left_out(run: Run) -> None:
    """A layer was forgotten where the optimizer was made."""
    run.make_optimizer(without="layers.1")


def lost(run: Run) -> None:
    """A learning rate so small that float32 does not hold the updates."""
    run.make_optimizer(lr=3e-10)


def worn_down(run: Run) -> None:
    """A tensor is frozen by gradients of zero, and decay shrinks it."""

    def zero(_: int) -> None:
        for parameter in run.named("layers.0.up.weight").values():
            if parameter.grad is not None:
                parameter.grad.zero_()

    run.make_optimizer(weight_decay=0.5)
    run.before_step(zero)


def broken(run: Run) -> None:
    """A weight out of scope becomes infinite, on the rank that holds it."""

    def spoil(step: int) -> None:
        own = local_of(run.named("layers.1.up.bias").popitem()[1]).reshape(-1)
        if step == END and len(own):
            own[0] = torch.inf

    run.after_step(spoil)


def rolled_back(run: Run) -> None:
    """The weights of an earlier snapshot are back."""
    kept: dict[str, torch.Tensor] = {}

    def restore(step: int) -> None:
        for name, parameter in run.named("").items():
            if step == ONSET - EVERY:
                kept[name] = local_of(parameter).clone()
            elif step == ONSET + EVERY:
                local_of(parameter).copy_(kept[name])

    run.after_step(restore)


def blown_up(run: Run) -> None:
    """One matrix gets a learning rate a thousand times too large."""
    one = "layers.0.down.weight"
    run.make_optimizer(without=one)
    run.optimizer.add_param_group({"params": [*run.named(one).values()], "lr": 0.01})

    def rate(step: int) -> None:
        if step > ONSET:
            run.optimizer.param_groups[-1]["lr"] = 10.0

    run.before_step(rate)


#: What is planted, and what has to be said of it: kind, parts of the names, onset, alarm.
FAULTS: dict[str, tuple[Callable[[Run], None], tuple[str, str, int, int] | None]] = {
    "warming up": (warming_up, None),
    "left out": (left_out, ("untrained", "layers.1.", 0, EVERY)),
    "lost": (lost, ("rounding", "", 0, EVERY)),
    "worn down": (worn_down, ("no_gradient", "layers.0.up.weight", 0, 3 * EVERY)),
    "broken": (broken, ("not_finite", "layers.1.up.bias", END - EVERY, END)),
    "rolled back": (rolled_back, ("returned", "", ONSET, ONSET + EVERY)),
    "blown up": (blown_up, ("blew_up", "layers.0.down.weight", ONSET, ONSET + EVERY)),
}
#: How a training is spread, over how many ranks, and what is planted there.
WAYS: dict[str, tuple[int, tuple[str, ...]]] = {
    "fsdp": (2, (*FAULTS,)),
    "ddp": (2, ("warming up", "rolled back")),
    "fsdp1": (2, ("warming up", "worn down")),
    "tp": (2, ("left out",)),
    "hsdp": (4, ("left out",)),
    "tp_fsdp": (4, ("warming up", "left out")),
}
PAIRS = [(fault, way) for way, (_, planted) in WAYS.items() for fault in planted]


def rows_of(way: str) -> int:
    """Of a layer; a multiple of the ranks that split it."""
    return 12 if "tp" in way else 13


def watched(way: str, fault: str, num_rows: int) -> Told:
    """What the vital signs of a run say, until two snapshots after their alarm, and its events."""
    run = Run(way, num_rows)
    plant, told = FAULTS[fault]
    plant(run)
    with run.watch(proxy=None, detectors={}) as watcher:
        run.train(until=min(END, (2 * EVERY if told is None else told[3]) + 2 * EVERY))
        vital = [record.vital for record in watcher.records]
        return {
            "off": watcher.off,
            "reasons": {one.reason for one in vital},
            "vital": [to_json(one) for one in vital],
            "events": [to_json(event) for event in watcher.events],
            "told": [(e.kind, e.layers, e.onset_low, e.detected_step) for e in watcher.events],
        }


def _register(fault: str, way: str, num_ranks: int, rows: int) -> None:
    case(num_ranks, name=f"{fault}, {way}, {rows}")(lambda _: watched(way, fault, rows))


for _fault, _way in PAIRS:
    _register(_fault, _way, WAYS[_way][0], rows_of(_way))
for _fault, _rows in dict.fromkeys((fault, rows_of(way)) for fault, way in PAIRS):
    _register(_fault, "one", 0, _rows)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_planted_is_told_of_one_process(fault: str, came: Came) -> None:
    (told,) = came(f"{fault}, one, 13")
    expected = FAULTS[fault][1]
    if expected is None:
        assert told["told"] == []
        return
    (event,) = told["told"]
    kind, part, onset, alarm = expected
    assert (event[0], *event[2:]) == (kind, onset, alarm)
    assert event[1]
    assert all(part in name for name in event[1])


@pytest.mark.parametrize(
    ("fault", "way"),
    [pytest.param(*pair, marks=whole if WAYS[pair[1]][0] == 4 else ()) for pair in PAIRS],
)
def test_ranks_find_what_one_process_finds(fault: str, way: str, came: Came) -> None:
    rows = rows_of(way)
    (one,) = came(f"{fault}, one, {rows}")
    found = came(f"{fault}, {way}, {rows}")
    for told in found:
        assert told["off"] == ""
        assert told["reasons"] == {""}
        assert told["told"] == one["told"]
        assert told["vital"] == found[0]["vital"]
        if "tp" not in way:  # there a training rounds otherwise
            # of flat parameters fewer steps of decay may be counted between the first snapshots
            flat = {"update_to_weight": 1e-2} if way == "fsdp1" else {}
            assert_same(told["vital"], one["vital"], **flat)
            assert told["events"] == one["events"]
