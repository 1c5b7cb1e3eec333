"""The sink that is also the fake in tests: lists, and nothing that outlives them."""

from __future__ import annotations

from pathlib import Path

from contracts import fake_run
from contracts.sink_contract import SinkContract

from sparsitywatch.sinks.base import MemorySink


class TestMemorySink(SinkContract):
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
    sink.open(fake_run.run_info())
    for record, detail in looks:
        sink.write(record, detail)
    sink.close()
    records, details = sink.records, sink.details
    sink.open(fake_run.run_info(50))
    assert (records, details) == ([r for r, _ in looks[:3]], [d for _, d in looks[:3]])
    assert [run.initial_step for run in sink.runs] == [0, 50]
