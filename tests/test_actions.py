"""What is done about an event: in the training's thread, and never its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

import sparsitywatch as sw
from sparsitywatch.actions import Action, SaveCheckpoint, SaveNow, StopTraining
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.records import Event

EVENT = Event(
    series="s", direction="up", onset_step=3, detected_step=5, baseline=0.0, value=1.0,
    trend="sparsifying",
)  # fmt: skip


def at(step: int) -> Event:
    return replace(EVENT, detected_step=step, id=f"s@{step}")


def test_a_checkpoint_is_saved_once_for_each_event_and_so_often_at_most(caplog) -> None:
    saved = []
    action = SaveCheckpoint(lambda e: saved.append(e.detected_step), max_saves=2)
    for step in (5, 5, 7, 9, 5):
        action(at(step))
    assert saved == [5, 7]
    assert "nothing saved at s@9: max_saves=2" in caplog.text


def test_a_save_that_failed_does_not_count(caplog) -> None:
    saved = []

    def save(event: Event) -> None:
        if event.detected_step == 5:
            raise OSError("disk full")
        saved.append(event.detected_step)

    action = SaveCheckpoint(save, max_saves=1)
    pipeline = Pipeline(on_event=[action])
    for step in (5, 5, 7):
        pipeline._call(action, at(step))
    assert saved == [7]
    assert "disk full" in caplog.text


def test_only_events_that_are_meant() -> None:
    saved = []
    action = SaveCheckpoint(saved.append, trend="densifying")
    action(EVENT)
    action(replace(at(7), trend="densifying"))
    assert [e.detected_step for e in saved] == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save": None}, "`save` to be a function"),
        ({"save": print, "max_saves": 0}, "`max_saves` to be a whole number >= 1"),
        ({"save": print, "max_saves": True}, "`max_saves` to be a whole number >= 1"),
        ({"save": print, "trend": "up"}, "`trend` to be"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(sw.ConfigurationError, match=message):
        SaveCheckpoint(**arguments)


@pytest.mark.parametrize("kind", [SaveNow, StopTraining])
def test_a_request_waits_for_its_answer(kind: type) -> None:
    request = kind()
    assert (request.is_requested, request.take()) == (False, None)
    request(at(5))
    request(at(7))
    assert request.is_requested
    assert request.take() == at(5)
    assert (request.is_requested, request.take()) == (False, None)


def test_actions_that_can_be_closed_are(caplog) -> None:
    class Closes(Action):
        closed = 0

        def __call__(self, event: object) -> None:
            pass

        def close(self) -> None:
            self.closed += 1

    class Fails(Closes):
        def close(self) -> None:
            raise RuntimeError("it is stuck")

    first, fails, last = Closes(), Fails(), Closes()
    Pipeline(on_event=[first, fails, print], on_record=[last]).close()
    assert (first.closed, last.closed) == (1, 1)
    assert "it is stuck" in caplog.text
