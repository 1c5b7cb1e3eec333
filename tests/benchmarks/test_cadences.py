"""Growth at any cadence: what counts as right, and how far alarms are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detecting import cadences
from detecting.cadences import NUMBERS, SHAPES, Seen, spread_of
from detecting.work import Job, Results
from PIL import Image

from sparsitywatch.records import Event


def event(step: int, low: int, high: int, kind: str = "abrupt") -> Event:
    return Event(
        series="", kind=kind, direction="up", onset_step=low, onset_low=low, onset_high=high,
        detected_step=step, baseline=0.05, value=0.1,
    )  # fmt: skip


def seen(shape: str, number: int, *events: Event) -> Seen:
    return Seen(shape, number, np.linspace(0.05, 0.1, number), events)


def test_one_event_whose_interval_holds_the_onset_to_a_snapshot_is_right() -> None:
    # the onset is at 138,000, a snapshot 3,000 steps
    assert seen("doubling", 100, event(200_000, 141_000, 150_000)).is_right
    assert not seen("doubling", 100, event(200_000, 141_001, 150_000)).is_right
    assert not seen("doubling", 100, event(200_000, 100_000, 134_999)).is_right
    assert not seen("doubling", 100).is_right
    assert not seen("doubling", 100, *[event(200_000, 120_000, 150_000)] * 2).is_right
    assert not seen("doubling", 100, event(200_000, 120_000, 150_000, "steady")).is_right
    assert seen("steady", 100, event(200_000, 0, 1, "steady")).is_right
    assert not seen("steady", 100, event(200_000, 0, 1)).is_right


def test_alarms_apart_are_told_in_the_table() -> None:
    steps = (200_000, 210_000, 220_000, 205_000, 201_000)
    of = [
        seen(
            shape,
            number,
            event(step, 120_000, 150_000, "steady" if shape == "steady" else "abrupt"),
        )
        for shape in SHAPES
        for number, step in zip(NUMBERS, steps, strict=True)
    ]
    assert spread_of(of[:5]) == pytest.approx(0.1)
    results = Results({Job(cadences.seen): of})
    assert cadences.lines(results)[2] == "| doubling | 200k | 210k | 220k | 205k | 201k | 10% |"
    assert [goal.measured for goal in cadences.goals(results)] == [0, pytest.approx(10.0)]
    of[1] = seen("doubling", 200)
    assert "| missed (not as it should be) |" in cadences.lines(results)[2]
    assert cadences.goals(results)[0].measured == 1
    assert np.isnan(spread_of(of[:5]))


@pytest.mark.slow
def test_what_is_seen_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cadences, "NUMBERS", (60, 120))
    found = cadences.seen()
    assert [(one.shape, one.number) for one in found[:2]] == [("doubling", 60), ("doubling", 120)]
    assert all(len(one.values) == one.number for one in found)
    assert sum(one.is_right for one in found) >= 8  # of ten
    cadences.draw(Results({Job(cadences.seen): found}), tmp_path)
    with Image.open(tmp_path / "detection-cadences.png") as image:
        assert image.width > 800
