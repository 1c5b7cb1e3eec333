"""What CONTRIBUTING says of additions is true: right ones are measured, wrong ones refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import sparsitywatch as sw
from sparsitywatch.errors import Seam
from sparsitywatch.pipeline.measure import Examiner
from sparsitywatch.pipeline.pipeline import Reviewer
from sparsitywatch.sinks import MemorySink

#: The seams whose methods are called by name.
SEAMS = (sw.sinks.Sink, sw.detectors.Detector, Reviewer, Examiner, sw.actions.Action)


def watched(**given: Any) -> list[sw.Record]:
    """Two snapshots of a tiny training."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"scope": "matrices", "every": 1, "logdir": None, "max_overhead": None}
    with sw.watch(model, optimizer, strict=True, **options, **given) as watch:
        for _ in range(2):
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
    return watch.records


def slips(name: str) -> list[str]:
    """A letter twice, one left out, two turned, a plural, no underscore, "on" before it."""
    middle = len(name) // 2
    turned = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    made = {name + name[-1], name + "s", turned, name.replace("_", ""), f"on_{name}"}
    made |= {name[:middle] + name[middle + 1 :]} if len(name) > 4 else set()
    return sorted(made - {name})


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: str(seam.__name__))
def test_a_near_miss_of_a_method_is_refused(seam: type) -> None:
    names = [name for name in vars(seam) if not name.startswith("_")]
    for name in names:
        for slip in {*slips(name)} - {*names}:
            with pytest.raises(sw.ConfigurationError, match=f"no '{slip}', which is nearly"):
                type("Slip", (seam,), {slip: lambda self: None})


def test_the_seams_are_those_of_the_package() -> None:
    assert {*SEAMS} == {*Seam.__subclasses__()}


def test_a_sink_is_a_dataclass_and_has_helpers() -> None:
    @dataclasses.dataclass
    class Kept(MemorySink):
        events: list[Any] = dataclasses.field(default_factory=list)
        start: int = 0
        steps: list[int] = dataclasses.field(default_factory=list)

        def __post_init__(self) -> None:
            super().__init__()

        def write(self, record: sw.Record, detail: Any) -> None:
            self.write_row(record.step)

        def write_row(self, step: int) -> None:
            self.steps.append(step)

        def writes(self) -> int:
            return len(self.steps)

        def flush(self) -> None: ...
        def render(self) -> None: ...
        def stage(self) -> None: ...

    sink = Kept(start=1)
    records = watched(sinks=[sink])
    assert sink.steps == [record.step for record in records] != []


@pytest.mark.parametrize(
    ("series", "near"),
    [
        ("motion/dormantt", "motion/dormant"),
        ("near_zero/initial_0.7", "near_zero/initial_0.1"),
        ("essential_sparsity", "essential_sparsity/"),
        ("", "'"),
    ],
)
def test_a_detector_of_a_series_that_is_not_there_is_refused(series: str, near: str) -> None:
    with pytest.raises(sw.ConfigurationError, match=f"`detectors` to be of series .* as '?{near}"):
        watched(detectors={series: sw.detectors.AbruptChange()})


def test_a_detector_of_ones_own_sees_its_series() -> None:
    class Above(sw.detectors.Detector):
        seen: list[float] = []  # noqa: RUF012 of the test

        def update(
            self, step: int, value: float, context: Mapping[str, float] | None = None
        ) -> None:
            self.seen.append(value)

        def state_dict(self) -> dict[str, Any]:
            return {}

    records = watched(detectors={"weights/largest": Above()})
    assert Above.seen == [record.largest for record in records]
