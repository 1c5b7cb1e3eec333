"""A mirror of the log, in the logger that the training has already."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sparsitywatch.errors import expect
from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState
from sparsitywatch.series import LEADING, with_beside
from sparsitywatch.sinks.base import GuardedSink

_STEP, _NUM_EVENTS = "sparsity/step", "sparsity/num_events"


class Mirror(GuardedSink):
    """Shows the leading series in the logger that the training has already.

    It calls ``log(numbers, step)`` for each snapshot, in the training's thread, perhaps some steps
    late. Names begin with "sparsity/": the series, ``sparsity/step`` as an axis for charts, the
    number of events, and ``sparsity/is_on``, 0 if the watch has switched itself off. A logger takes
    nothing back: steps that a resumed run repeats are there twice.

    W&B drops late steps, and any call may push out a row of the loop. So ``run.log`` is called
    without a step: each row of the loop takes one snapshot along, and what still waits at the end
    gets rows then. ``trackio.log`` is called without a step, too.

    Args:
        log: ``run.log`` of W&B, ``mlflow.log_metrics``, ``trackio.log``, or any function.
        alert: called with a title and a sentence for each event, and if the watch switches itself
            off. By default the alert of W&B or Trackio, else nothing.

    Raises:
        ConfigurationError: one of them is no function, or W&B has no run yet.
    """

    def __init__(
        self, log: Callable[..., object], *, alert: Callable[[str, str], object] | None = None
    ) -> None:
        expect(callable(log), "log", "a function of numbers, a dict, and a step", log)
        expect(alert is None or callable(alert), "alert", "a function of two texts", alert)
        run: Any = log.__self__ if inspect.ismethod(log) else None
        self._package = str((run or log).__module__).partition(".")[0]
        if self._package == "wandb":
            expect(run is not None, "log", "that of a run: call wandb.init() first", log)
        elif self._package == "trackio":
            run = run or sys.modules["trackio"]
        self._log, self._run = log, run
        has_alerts = self._package in ("trackio", "wandb")
        self._alert = run.alert if alert is None and has_alerts else alert
        self._rows: list[dict[str, float]] = []  # that wait for the training's thread
        self._told: list[tuple[str, str]] = []  # alerts that do
        self._num_events = 0
        self._taken = -1  # the row of W&B that has one of ours

    def open(self, run: RunInfo) -> None:  # noqa: ARG002
        with self._opening():
            self._num_events = 0
            if self._package == "wandb":
                self._run.define_metric(_STEP)
                self._run.define_metric("sparsity/*", step_metric=_STEP)

    def catch_up(self, _: object, events: Sequence[Event], __: object) -> None:
        """Count the events that a resumed run knows; what the logger has is not known."""
        self._num_events = len(events)

    def write(self, record: Record, detail: Detail) -> None:  # noqa: ARG002
        self._require()
        series, rule = record.series(), next(iter(record.near_zero), "")
        names = with_beside((name.format(rule=rule) for name in LEADING), series, rule)
        self._add(record.step, {name: series.get(name, math.nan) for name in names})

    def _add(self, step: int, found: dict[str, float], *, is_on: bool = True) -> None:
        found |= {"step": step, "num_events": self._num_events, "is_on": float(is_on)}
        self._rows.append({f"sparsity/{name}": x for name, x in found.items() if math.isfinite(x)})

    def event(self, event: Event) -> None:
        self._require()
        if event.revised_step < 0:
            self._num_events += 1
            self._told.append((event.headline, event.report()))
            for row in self._rows[-1:]:  # of the record that it was seen in
                row[_NUM_EVENTS] = self._num_events

    def state(self, state: WatchState) -> None:
        self._require()
        if state.status == "off":
            self._add(state.step, {}, is_on=False)
            self._told.append(("sparsitywatch is off", state.describe()))

    def deliver(self) -> None:
        self._require()
        self._pass_on(at_end=False)

    def close(self) -> None:
        if self._end():
            self._pass_on(at_end=True)

    def abandon(self) -> None:
        self._end()
        self._rows, self._told = [], []

    def _pass_on(self, *, at_end: bool) -> None:
        """Log what waits; what fails is tried again the next time."""
        while self._rows and self._put(self._rows[0], at_end=at_end):
            del self._rows[0]
        while self._told:
            title, sentence = self._told[0]
            if self._alert is not None:
                self._alert(title[:63], sentence)  # W&B refuses longer titles
            del self._told[0]

    def _put(self, row: dict[str, float], *, at_end: bool) -> bool:
        """Log a row, if there is a place for it; whether there was."""
        if self._package == "wandb":
            if (place := self._run.step) == self._taken:
                if not at_end:
                    return False
                self._log({}, commit=True)
                place += 1
            # with what the loop has logged at this step, or logs next: it says when that is over
            self._log(row, commit=False)
            self._taken = place
        elif self._package == "trackio":
            self._log(row)
        else:
            self._log(row, int(row[_STEP]))
        return True
