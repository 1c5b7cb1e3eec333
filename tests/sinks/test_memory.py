"""The sink that is also the fake in tests, and what every sink derives from."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts import fake_run
from contracts.sink_contract import KeepingSinkContract

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pipeline.pipeline import as_sinks
from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState
from sparsitywatch.sinks import MemorySink, Sink


class TestMemorySink(KeepingSinkContract):
    def make(self, directory: Path) -> MemorySink:
        return MemorySink()

    def steps(self, sink: MemorySink, directory: Path) -> list[int]:
        return [record.step for record in sink.records]

    def events(self, sink: MemorySink, directory: Path) -> list[tuple[str, int]]:
        return [(event.series, event.detected_step) for event in sink.events]

    def fallen_events(self, sink: MemorySink, directory: Path) -> list[str]:
        return [event.series for event in sink.events if event.reverted_step >= 0]


def test_details_stay_with_their_records() -> None:
    sink = MemorySink()
    looks = fake_run.looks(range(0, 101, 25))
    fake_run.write_to(sink, looks)
    records, details = sink.records, sink.details
    sink.open(fake_run.run_info(50))
    assert (records, details) == ([r for r, _ in looks[:3]], [d for _, d in looks[:3]])
    assert [run.initial_step for run in sink.runs] == [0, 50]


def test_a_sink_that_lacks_a_method_cannot_be_made() -> None:
    class Half(Sink):
        def open(self, run: RunInfo) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_what_is_optional_does_nothing_by_default() -> None:
    """But for ``abandon``, which closes."""
    closed = []

    class Plain(Sink):
        def open(self, run: RunInfo) -> None: ...
        def write(self, record: Record, detail: Detail) -> None: ...
        def event(self, event: Event) -> None: ...
        def close(self) -> None:
            closed.append(True)

    sink = Plain()
    sink.state(WatchState(status="on", step=1, wall_time=0.0))
    sink.catch_up([fake_run.look(0)[0]], [], lambda record: Detail())
    sink.deliver()
    sink.abandon()
    assert closed == [True]
    with pytest.raises(ConfigurationError, match=r"`sinks\[1\]` to be a sink, derived from"):
        as_sinks([sink, print])
