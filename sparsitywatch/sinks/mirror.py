"""A mirror of the log, in the logger that the training has already."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sparsitywatch.errors import expect
from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState
from sparsitywatch.series import LEADING
from sparsitywatch.sinks.base import GuardedSink

#: The names of a mirror begin with this; so W&B and others show them as one section.
PREFIX = "sparsity"
_STEP, _NUM_EVENTS, _IS_ON = (f"{PREFIX}/{name}" for name in ("step", "num_events", "is_on"))
#: W&B refuses titles from this length on.
_LONGEST_TITLE = 64


class Mirror(GuardedSink):
    """Shows the leading series in the logger that the training has already.

    It calls ``log(numbers, step)`` for each snapshot, in the training's thread, where MLflow has
    its run. The names begin with "sparsity/". Beside the series there are ``sparsity/step``, for
    charts with an axis of their own, ``sparsity/num_events``, and ``sparsity/is_on``, 0 if the
    watch has switched itself off. A snapshot may arrive some steps late. The log has all numbers;
    a logger takes none back, so steps that a resumed run repeats are there twice.

    W&B drops what comes late, and a call can push out a row of the loop. So ``run.log`` gets no
    step: a snapshot joins a row of the loop, one a row, and what still waits at the end gets rows
    then. Its charts use ``sparsity/step``. ``trackio.log`` gets no step either.

    Args:
        log: such as ``run.log`` of W&B, ``mlflow.log_metrics``, ``trackio.log``, or a function.
        alert: called with a title and a sentence for each event, and if the watch switches itself
            off. By default the alert of W&B or Trackio, else nothing.

    Raises:
        ConfigurationError: ``log`` or ``alert`` is no function, or W&B has no run yet.
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
        else:
            run = None
        self._log, self._run = log, run
        self._alert = alert or (run.alert if run is not None else None)
        self._rows: list[dict[str, float]] = []  # that wait for the training's thread
        self._told: list[tuple[str, str]] = []  # alerts that do
        self._num_events = 0
        self._taken = -1  # the row of W&B that has one of ours

    def open(self, run: RunInfo) -> None:  # noqa: ARG002
        with self._opening():
            self._num_events = 0
            if self._package == "wandb":
                self._run.define_metric(_STEP)
                self._run.define_metric(f"{PREFIX}/*", step_metric=_STEP)

    def catch_up(self, _: object, events: Sequence[Event], __: object) -> None:
        """Count the events that a resumed run knows; what the logger has is not known."""
        self._num_events = len(events)

    def write(self, record: Record, detail: Detail) -> None:  # noqa: ARG002
        self._require()
        rule, series = next(iter(record.near_zero), ""), record.series()
        names = [name.format(rule=rule) for name in LEADING]
        numbers = {f"{PREFIX}/{name}": series.get(name, math.nan) for name in names}
        self._add(record.step, {name: x for name, x in numbers.items() if math.isfinite(x)})

    def _add(self, step: int, numbers: dict[str, float], *, is_on: bool = True) -> None:
        own = {_STEP: step, _NUM_EVENTS: self._num_events, _IS_ON: float(is_on)}
        self._rows.append({**numbers, **own})

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

    def _pass_on(self, *, at_end: bool) -> None:
        """Log what waits; what fails is tried again the next time."""
        while self._rows and self._put(self._rows[0], at_end=at_end):
            del self._rows[0]
        while self._told:
            title, sentence = self._told[0]
            if self._alert is not None:
                self._alert(title[: _LONGEST_TITLE - 1], sentence)
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

    def close(self) -> None:
        if self._end():
            self._pass_on(at_end=True)

    def abandon(self) -> None:
        self._end()
        self._rows.clear()
        self._told.clear()
