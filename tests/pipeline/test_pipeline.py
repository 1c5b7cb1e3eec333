"""Records in, events out, everything to the sinks, and faults go no further."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import pytest
from contracts.made_records import PROVENANCE, Above, made_record

from sparsitywatch.actions import log_event
from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.records import Detail, Dormant, Event, LayerShare, Record, RunInfo
from sparsitywatch.sinks.base import MemorySink


def record(step: int, near_zero: float) -> Record:
    """A record of two layers of 100 weights, the second of which holds all near-zero ones."""
    layers = tuple(
        LayerShare(name=name, num_weights=100, rms=1.0, near_zero={"initial_0.1": fraction})
        for name, fraction in (("quiet", 0.0), ("sparse", 2 * near_zero))
    )
    return made_record(step, near_zero, clock=step / 100, layers=layers, num_weights=200)


class Broken(MemorySink):
    """A sink whose disk is full."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def write(self, record, detail):
        self.calls += 1
        raise OSError("no space left")


def watched(*sinks: MemorySink, **options) -> Pipeline:
    """A pipeline that is open."""
    found = Pipeline(detectors={"near_zero/initial_0.1": Above()}, sinks=sinks, **options)
    found.open(RunInfo(initial_step=0, provenance=PROVENANCE))
    return found


def publish(pipeline: Pipeline, record: Record) -> list[Event]:
    """What is seen in a record that is taken and acted on."""
    record, events = pipeline.take(record, Detail())
    pipeline.act(record, events)
    return events


def test_an_event_carries_its_series_its_layers_and_the_clock() -> None:
    sink, told = MemorySink(), []
    actions = {"on_event": [told.append], "on_record": [lambda r: told.append(r.step)]}
    pipeline = watched(sink, **actions)
    for step, value in enumerate([0.1, 0.1, 0.45], start=1):
        publish(pipeline, record(step, value))
    (event,) = sink.events
    assert event.series == "near_zero/initial_0.1"
    assert event.layers == ("sparse",)
    assert event.decay_clock == pytest.approx(0.03)
    assert told == [1, 2, event, 3]
    assert [r.step for r in sink.records] == [1, 2, 3]
    assert pipeline.events == [event]


def test_a_detector_is_told_what_is_known_of_the_optimizer() -> None:
    contexts = []

    class Noting(Above):
        def update(self, step, value, context=None):
            contexts.append(context)

    pipeline = Pipeline(detectors={"near_zero/initial_0.1": Noting()})
    publish(pipeline, dataclasses.replace(record(1, 0.1), lr=0.5, lr_clock=2.0))
    unknown = dataclasses.replace(record(2, 0.1), decay_clock=float("nan"))
    dormant = Dormant(fraction=0.1, num_sampled=9, since_step=2, estimated_advance=0.02)
    publish(pipeline, unknown)
    publish(pipeline, dataclasses.replace(unknown, step=3, dormant=dormant))
    known = {"decay_clock": 0.01, "lr": 0.5, "lr_clock": 2.0}
    assert contexts == [known, {}, {"estimated_advance": 0.02}]


class Clock:
    """Stands still but where a test lets it go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("sparsitywatch.pipeline.outlets.time.monotonic", lambda: self.now)


def test_a_broken_sink_harms_nobody_and_is_tried_after_pauses_that_grow(caplog, monkeypatch):
    clock, broken, good = Clock(monkeypatch), Broken(), MemorySink()
    pipeline = watched(broken, good)
    tried = []
    for step in range(1, 2001):
        calls = broken.calls
        publish(pipeline, record(step, 0.1))
        if broken.calls > calls:
            tried.append((round(clock.now - 1000.0, 3), broken.calls - calls))
        clock.now += 0.1
    times = [when for when, _ in tried]
    assert tried[0] == (0.0, 2)  # again at once
    assert {num for _, num in tried[1:]} == {1}
    pauses = [round(later - before, 3) for before, later in itertools.pairwise(times)]
    grow = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0]
    assert pauses == pytest.approx(grow, abs=0.101)  # with the next record after each
    assert len(good.records) == 2000
    assert caplog.text.count("OSError: no space left") == 1  # and is told once
    assert "Broken failed and is tried again" in caplog.text
    calls = broken.calls
    pipeline.close()
    assert broken.calls == calls + 1  # whatever the pause


@pytest.mark.parametrize(("took_s", "is_tried"), [(0.5, False), (0.01, True)])
def test_trying_takes_a_hundredth_of_the_time_where_it_is_slow(took_s, is_tried, monkeypatch):
    clock = Clock(monkeypatch)

    class Slow(Broken):
        def open(self, run):
            super().open(run)
            clock.now += took_s

    slow = Slow()
    pipeline = watched(slow)
    publish(pipeline, record(1, 0.1))
    clock.now += 1.0
    publish(pipeline, record(2, 0.1))
    calls = slow.calls
    clock.now += 20.0
    publish(pipeline, record(3, 0.1))
    assert (slow.calls > calls) == is_tried


def test_a_sink_that_recovers_is_kept() -> None:
    class Flaky(Broken):
        def write(self, record, detail):
            self.calls += 1
            if self.calls % 2:
                raise OSError("busy")
            MemorySink.write(self, record, detail)

    flaky = Flaky()
    pipeline = watched(flaky)
    for step in range(1, 9):
        publish(pipeline, record(step, 0.5))
    assert flaky.calls == 16
    assert [r.step for r in flaky.records] == list(range(1, 9))
    assert [e.detected_step for e in flaky.events] == [e.detected_step for e in pipeline.events]


def test_a_sink_that_is_closed_in_the_middle_of_a_write_stays_closed() -> None:
    """As a signal's handler may do."""

    class Interrupted(MemorySink):
        def write(self, record, detail):
            pipeline.close()
            super().write(record, detail)

    sink = Interrupted()
    pipeline = watched(sink)
    publish(pipeline, record(1, 0.1))
    publish(pipeline, record(2, 0.1))
    assert (len(sink.runs), sink.records) == (1, [])


def test_a_sink_that_cannot_be_opened_at_first_is_given_all_later(monkeypatch) -> None:
    class Late(MemorySink):
        def open(self, run):
            if clock.now < 1100.0:
                raise OSError("not yet")
            super().open(run)

    clock, late = Clock(monkeypatch), Late()
    pipeline = watched(late)
    for step in range(1, 5):
        publish(pipeline, record(step, 0.5))
    assert late.records == []
    clock.now += 100.0
    publish(pipeline, record(5, 0.5))
    assert [r.step for r in late.records] == [1, 2, 3, 4, 5]
    assert late.records == pipeline.records
    assert late.events == pipeline.events != []


@pytest.mark.parametrize("fails_at", [(0, "write"), (0, "event"), (3, "write"), (3, "event")])
def test_what_fails_once_is_told_once(fails_at) -> None:
    """Also at step 0, and where a record was taken and its event was not."""

    failed = []
    sink = MemorySink()
    write, event = sink.write, sink.event

    def once(name, step, act, *given):
        if (step, name) == fails_at and not failed:
            failed.append(step)
            raise OSError("once")
        act(*given)

    sink.write = lambda record, detail: once("write", record.step, write, record, detail)
    sink.event = lambda one: once("event", one.reported_step, event, one)
    pipeline = watched(sink)
    for step in range(6):
        publish(pipeline, record(step, 0.5 if step >= fails_at[0] else 0.1))
    pipeline.close()
    assert failed == [fails_at[0]]
    assert [r.step for r in sink.records] == list(range(6))
    assert sink.events == pipeline.events
    assert len(sink._reported) == len({(e.id, e.reported_step) for e in sink._reported}) > 0


def test_an_action_that_fails_is_logged_and_the_next_one_runs(caplog) -> None:
    told = []

    def fails(_):
        raise RuntimeError("webhook down")

    pipeline = watched(on_event=[fails, told.append])
    publish(pipeline, record(1, 0.5))
    assert len(told) == 1
    assert "webhook down" in caplog.text


def test_strict_lets_faults_out() -> None:
    pipeline = watched(Broken(), strict=True)
    with pytest.raises(OSError, match="no space left"):
        publish(pipeline, record(1, 0.1))


def test_an_earlier_process_is_recalled_without_telling_anyone_again() -> None:
    sink = MemorySink()
    pipeline = Pipeline(detectors={"near_zero/initial_0.1": Above()}, sinks=[sink])
    earlier = [record(1, 0.1), record(2, 0.5)]
    event = Event(
        series="near_zero/initial_0.1", direction="up", onset_step=1, detected_step=2,
        baseline=0.1, value=0.5,
    )  # fmt: skip
    pipeline.history.restore(earlier, [event], {})
    assert pipeline.records == earlier
    assert pipeline.events == [event]
    assert not hasattr(sink, "run") or not sink.records
    assert publish(pipeline, record(3, 0.6)) == []  # the detector has seen it already


def test_detector_state_goes_round_and_a_missing_one_is_named() -> None:
    pipeline = watched()
    publish(pipeline, record(1, 0.5))
    other = watched()
    other.history.load_state_dict(pipeline.history.state_dict())
    assert publish(other, record(2, 0.6)) == []
    with pytest.raises(StateError, match=r"detectors \['near_zero/initial_0.1'\]"):
        other.history.load_state_dict({**pipeline.history.state_dict(), "detectors": {}})
    keys = r"keys \['detectors', 'gaps', 'fingerprints', 'began', 'tracker', 'reviewers'\]"
    with pytest.raises(StateError, match=keys):
        other.history.load_state_dict({})


def test_old_records_give_up_their_layers() -> None:
    pipeline = watched()
    for step in range(1, 131):
        publish(pipeline, record(step, 0.1))
    assert [bool(r.layers) for r in pipeline.records] == [False] * 30 + [True] * 100
    assert dataclasses.replace(record(1, 0.1), layers=()) == pipeline.records[0]


@pytest.mark.parametrize("bad", [print, [1], "log"])
def test_actions_must_be_functions(bad) -> None:
    with pytest.raises(ConfigurationError, match="`on_event` to be a sequence of functions"):
        watched(on_event=bad)


def test_the_default_action_warns(caplog) -> None:
    event = Event(
        series="s", direction="down", onset_step=3, detected_step=5, baseline=1.0, value=0.5
    )
    with caplog.at_level(logging.WARNING, logger="sparsitywatch"):
        log_event(event)
    assert "s began to fall from 1 to 0.5 (about 0.5 ×) after step 3, seen at step 5" in caplog.text
