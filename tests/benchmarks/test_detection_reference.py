"""Every event of the recorded runs and of made-up series, as it was decided that it should be.

A refactoring changes none of them. Who changes the detector on purpose records them anew,

    .venv/bin/python tests/benchmarks/test_detection_reference.py "why they change"

and reviews the difference of ``detection_reference.json``, where each change keeps its reason.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":  # tests get it from conftest.py
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import numpy as np
import pytest
from contracts.families import some_of
from detecting import jumps, slow
from detecting.recorded import cases
from detecting.series import DESIGN_SEEDS
from recording.catalog import load

from sparsitywatch.analysis.detect import AbruptChange, DormantRise

REFERENCE = Path(__file__).with_name("detection_reference.json")
#: Cadences that every run is looked at, from its first look.
EVERY = (50, 200)
CONTEXT = ("lr", "lr_clock", "decay_clock")
SEED = DESIGN_SEEDS[0]
#: Told to this precision: processors round differently.
DIGITS = 6


def told(detector, steps, values, contexts) -> list[list[object]]:
    """Direction, onset with its interval, step, baseline and noise of each event."""
    found = []
    for step, value, context in zip(steps, values, contexts, strict=True):
        event = detector.update(int(step), float(value), context)
        if event is not None:
            numbers = [float(f"{x:.{DIGITS}g}") for x in (event.baseline, event.noise)]
            onset = [event.onset_step, event.onset_low, event.onset_high]
            direction = event.direction + " steadily" * (event.kind == "steady")
            found.append([direction, *onset, event.detected_step, *numbers])
    return found


def recorded_runs() -> dict[str, list[list[object]]]:
    """Events of near-zero and of dormant weights, by run, series and cadence."""
    found = {}
    for case in cases():
        if case.every not in EVERY or case.phase or case.rule != "initial_0.1":
            continue
        contexts = [{k: float(case.context[k][i]) for k in CONTEXT} for i in range(len(case.steps))]
        found[f"{case.name} near-zero every {case.every}"] = told(
            AbruptChange(0.01), case.steps, case.values, contexts
        )
    for name, run in load().items():
        series = {key: np.array(values, float) for key, values in run["series"].items()}
        clocks = [{"decay_clock": float(x)} for x in series["motion/decay_clock"]]
        found[f"{name} dormant every {run['every']}"] = told(
            DormantRise(), run["steps"], series["motion/dormant"], clocks
        )
    return found


def made_up_series() -> dict[str, list[list[object]]]:
    """Events of one series of each family."""
    suites = {"standard": jumps.suite([SEED]), "slow": slow.suite([SEED])}
    found = {}
    for name, suite in suites.items():
        for series in suite:
            contexts = [series.context_at(i) for i in range(len(series.steps))]
            found[f"{name} {series.family}"] = told(
                AbruptChange(0.01 * series.unit), series.steps, series.values, contexts
            )
    return found


PARTS = {"recorded runs": recorded_runs, "made-up series": made_up_series}


@pytest.mark.slow
@pytest.mark.parametrize("part", some_of(PARTS, 2))
def test_every_event_is_the_one_decided_on(part: str) -> None:
    expected = json.loads(REFERENCE.read_text())[part]
    came = PARTS[part]()
    assert list(came) == list(expected)
    assert sum(map(len, expected.values())) > 30  # a reference of nothing would hold nothing
    for name, events in expected.items():
        assert len(came[name]) == len(events), name
        for one, other in zip(came[name], events, strict=True):
            assert one[:5] == other[:5], name
            assert one[5:] == pytest.approx(other[5:], rel=1e-4, nan_ok=True), name


def test_every_record_of_the_reference_has_its_reason() -> None:
    reasons = json.loads(REFERENCE.read_text())["reasons"]
    assert reasons
    assert all(len(reason) > 20 for reason in reasons)


def record(reason: str) -> None:
    """Write what comes now, with why it differs from what was there."""
    before = json.loads(REFERENCE.read_text())["reasons"] if REFERENCE.exists() else []
    rows = ["{", f' "reasons": {json.dumps([*before, reason])}']
    for part, make in PARTS.items():
        rows[-1] += ","
        lines = (f"  {json.dumps(name)}: {json.dumps(events)}" for name, events in make().items())
        rows += [f" {json.dumps(part)}: {{", ",\n".join(lines), " }"]
    REFERENCE.write_text("\n".join([*rows, "}", ""]))


if __name__ == "__main__":
    record(sys.argv[1])
