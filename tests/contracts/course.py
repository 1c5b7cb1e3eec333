"""Trainings that go on for long, and a judge of what a watch tells of them, by raw weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from contracts.fault_zoo import EVERY, Linear, Model, Norm, Training, matrices
from torch import nn
from torch.nn import functional

import sparsitywatch as sw
from sparsitywatch.analysis.verdict import main_event, verdict

LAST = 160  # step
WIDTH, INNER, INPUTS, CLASSES = 16, 64, 12, 5


# ------------------------------------------------------------------ a training


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = Norm(WIDTH), Linear(WIDTH, INNER), Linear(INNER, WIDTH)
        self.dropped = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.up(self.norm(x)))
        return x + self.down(functional.dropout(inner, self.dropped, self.training))


class Classifier(Model):
    """Learns the classes that a random network gives to random inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Linear(INPUTS, WIDTH)
        self.layers = nn.ModuleList(Residual() for _ in range(3))
        self.norm, self.head = Norm(WIDTH), Linear(WIDTH, CLASSES)
        self.teacher = [torch.randn(INPUTS, 16), torch.randn(16, CLASSES)]
        self.batch_size = 32
        self.changed: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.stem(inputs.to(self.head.weight.dtype))
        return self.head(self.norm(self.body(x))).float()

    def examples(self, num: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randn(num, INPUTS, generator=generator)
        first, last = self.teacher
        return inputs, ((inputs @ first).relu() @ last).argmax(1)

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        inputs, labels = self.examples(self.batch_size, generator)
        if self.changed is not None:
            inputs, labels = self.changed(inputs, labels, generator)
        return functional.cross_entropy(self(inputs), labels)


@dataclass
class Course(Training):
    """A training of the zoo's kind that goes on for long, and keeps what each forward has used."""

    used: list[dict[str, np.ndarray]] = field(default_factory=list)  # by step
    values: list[float] = field(default_factory=list)  # held out, by step
    last: int = LAST
    with_value: bool = True

    def __post_init__(self) -> None:
        if self.model_name != "classifier":
            super().__post_init__()
            self.with_value = False
            return
        torch.manual_seed(self.seed)
        self.model = Classifier()
        self.held_out = self.model.examples(128, torch.Generator().manual_seed(self.seed + 2))
        self.make_optimizer()

    def keep(self) -> None:
        """What the next forward uses."""
        self.used.append({n: p.detach().float().numpy().copy() for n, p in self.named.items()})
        if not self.with_value or (len(self.used) - 1) % EVERY:
            self.values.append(math.nan)
        else:
            was = self.model.training
            self.model.eval()
            with torch.no_grad():
                self.values.append(float(_each(self.model, self.held_out).mean()))
            self.model.train(was)

    def before_each(self, do: Callable[[int], object], *, after: int = 0) -> None:
        """Do something before each step from one on, when the gradients are there."""
        self.before_step.append(lambda step: do(step) if step > after else None)

    def after_each(self, do: Callable[[int], object], *, after: int = 0) -> None:
        """Do something after each step from one on, outside of the optimizer."""
        self.after_step.append(lambda step: do(step) if step > after else None)

    def watch(self) -> sw.Watcher:
        proxy = sw.Proxy([list(self.held_out)], _each) if self.with_value else None
        options = {"every": EVERY, "logdir": None, "strict": True, "max_overhead": None,
                   "background": False, "on_event": (), "proxy": proxy,
                   "levels": [0.5, 0.9]}  # fmt: skip
        return sw.watch(self.model, self.optimizer, **options | self.watching)

    def run(self, end: int = 0) -> sw.Watcher:
        step = self.stepper()
        with self.watch() as watcher:
            for _ in range(end or self.last):
                self.keep()
                step()
            self.keep()
        return watcher

    # -------------------------------------------------------------- the truth, by numpy

    def share(self, rule: str, step: int, names: Iterable[str] = ()) -> float:
        """Of weights that are near zero by a rule when a step is done."""
        kind, _, factor = rule.partition("_")
        low, total = 0, 0
        for name in names or matrices(self):
            weight = self.used[step][name].astype(np.float64)
            of = self.used[0][name].astype(np.float64) if kind == "initial" else weight
            unit = 1.0 if kind in ("abs", "zero") else math.sqrt(np.square(of).mean())
            low += int((np.abs(weight) <= float(factor or 0.0) * unit).sum())
            total += weight.size
        return low / total

    def unmoved(self, since: int, until: int = -1) -> set[str]:
        """Tensors that have the same bits at two steps."""
        first, last = self.used[since], self.used[until]
        return {n for n in first if np.array_equal(first[n], last[n], equal_nan=True)}


def _each(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


# ------------------------------------------------------------------ rows


@dataclass(frozen=True)
class Row:
    """What is done, and what is true of it."""

    do: Callable[[Course], Iterable[str] | sw.Watcher | None]  # gives the tensors, if some
    state: str = "look"  # "healthy": notes at most; "note": this one, and no alarm
    kinds: tuple[str, ...] = ()  # the event that leads is of one of them
    onset: int = 0  # the last step before it
    came_back: bool = False
    model: str = "classifier"
    optimizer: str = "adamw"
    with_value: bool = False  # whether it is evaluated
    by_decay: bool = False  # whether weight decay may be what explains it
    unmoved: bool = False  # whether its tensors never move from then on


def lead_of(watcher: sw.Watcher) -> tuple[str, sw.Event | None]:
    """The state of a run, and the event that its verdict is about."""
    events = list(watcher.events)
    found = verdict(watcher.records, events)
    state = {"broken": "act"}.get(found.state, found.state)
    if found.event:
        return state, events[found.event - 1]
    return state, main_event(events) if events else None


def told(events: Iterable[sw.Event]) -> str:
    return "; ".join(f"{e.kind} ({e.severity}): {e.describe()}" for e in events) or "nothing"


def hold(row: Row, seed: int) -> str:
    """Train a row, and hold what is told against what is true; gives the lead in words."""
    course = Course(row.model, row.optimizer, seed)
    course.with_value &= row.with_value
    done = row.do(course)
    watcher, names = (done, set()) if isinstance(done, sw.Watcher) else (None, set(done or ()))
    watcher = watcher or course.run()
    state, lead = lead_of(watcher)
    said = told(watcher.events)
    if row.state in ("healthy", "note"):
        assert state == "healthy", said
        assert {event.severity for event in watcher.events} <= {"note"}, said
    else:
        assert state in row.state.split("|"), f"{state}: {said}"
    if row.state == "healthy":
        return said
    if row.state == "note":
        lead = next((event for event in watcher.events if event.kind in row.kinds), None)
    assert lead is not None, said
    assert lead.kind in row.kinds, said
    early = [e for e in watcher.events if e.detected_step <= row.onset and e.severity != "note"]
    assert not early, told(early)
    assert lead.detected_step > row.onset or lead.kind == "began_sparse"
    assert (lead.reverted_step >= 0) == row.came_back, said
    if lead.is_of_series:
        _hold_series(lead, course, row)
    else:
        _hold_tensors(lead, course, row, names, watcher)
    return said


def _hold_series(event: sw.Event, course: Course, row: Row) -> None:
    """Its numbers are those of the raw weights, and no less than what is known by the end."""
    room, _, rule = event.series.partition("/")
    if event.series == "value/dense":
        raw, tolerance = course.values.__getitem__, 0.2  # a mean of several may be told
    else:
        assert room == "near_zero", event.describe()
        assert event.direction == "up", event.describe()
        raw, tolerance = (lambda step: course.share(rule, step)), 2e-3
        before = raw(max(row.onset - 1, 0))  # what is done after a step is in its weights
        room_left = max(0.02, 0.1 * event.size)  # of what began slowly
        assert abs(event.baseline - before) <= room_left, (before, event.describe())
    now = raw(event.reported_step)
    assert abs(event.value - now) <= tolerance * max(now, 1.0), (now, event.describe())
    assert event.onset_high >= row.onset - EVERY, event.describe()
    assert row.by_decay or not event.explained_by_decay, event.describe()
    at_end, top = raw(len(course.used) - 1), max(event.value, np.nan_to_num(event.peak))
    if row.came_back:
        assert abs(raw(event.reverted_step) - event.baseline) <= 0.6 * abs(top - event.baseline)
    elif room == "near_zero":
        assert event.value - event.baseline >= 0.75 * (at_end - event.baseline), (
            at_end, event.describe(),
        )  # fmt: skip


def _hold_tensors(
    event: sw.Event, course: Course, row: Row, names: set[str], watcher: sw.Watcher
) -> None:
    """It names tensors that are right, and most of them, with the events of its kind."""
    same = {n for e in watcher.events if e.kind == event.kind for n in e.layers}
    assert not names or set(event.layers) <= names, (sorted(names), event.describe())
    assert 2 * len(same & names) >= min(len(names), 6), (sorted(names), event.describe())
    if row.unmoved:
        assert set(event.layers) <= course.unmoved(row.onset), event.describe()
    if event.kind in ("sparse", "sparser"):
        rule = event.series.partition("/")[2] or "initial_0.1"
        for name in event.layers:
            share = course.share("initial_0.1", event.reported_step, [name])
            least = 0.49 if event.kind == "sparse" else 1.9 * course.share(rule, 0, [name])
            assert share >= least, (name, share, event.describe())
    if event.kind == "not_finite":
        gone = {n for n, w in course.used[-1].items() if not np.isfinite(w).all()}
        assert set(event.layers) <= gone, event.describe()
