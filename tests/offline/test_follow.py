"""Following a run that goes on: what is unfinished is waited for, and nobody waits for ever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts.stored_run import detectors, on_disk, weights

import sparsitywatch as sw
from sparsitywatch.checkpoints import discovery
from sparsitywatch.offline import replay as call
from sparsitywatch.offline.driver import Patience, Replayed


class Clock:
    """A time that passes when somebody sleeps; at each sleep the next thing happens."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self.now, self.happenings = 0.0, list(happenings)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.happenings:
            self.happenings.pop(0)()


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Follows ``tmp_path / "run"`` while things happen, ten seconds apart."""

    def follow(*happenings: Callable[[], object], **options) -> Replayed:
        clock = follow.clock = Clock(*happenings)

        def patience(**given) -> Patience:
            return Patience(**given, clock=clock, sleep=clock.sleep)

        monkeypatch.setattr(call, "Patience", patience)
        options = {"idle_timeout_s": 100.0, "poll_s": 10.0, **options}
        return sw.replay(
            tmp_path / "run", logdir=tmp_path, detectors=detectors(), follow=True, **options
        )

    return follow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def save(run: Path, tmp_path: Path) -> Callable[..., None]:
    """Makes a checkpoint of the run arrive, whole or as other bytes."""

    def save(step: int, name: str = "", data: bytes | None = None) -> None:
        target = tmp_path / "run" / (name or f"step-{step}.pt")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((run / f"step-{step}.pt").read_bytes() if data is None else data)

    return save


def steps_of(replayed: Replayed) -> list[int]:
    return [record.step for record in replayed.records]


def failed(replayed: Replayed) -> list[int | None]:
    return [failure.step for failure in replayed.failures]


@pytest.mark.slow
def test_each_is_looked_at_when_it_is_there(run, tmp_path: Path, follow, save) -> None:
    told = []

    def add(step: int) -> Callable[[], None]:
        return lambda: (save(step), told.append(f"saved {step}"))

    replayed = follow(
        lambda: told.append("nothing there"),
        *(add(step) for step in range(10, 250, 10)),
        on_record=[lambda record: told.append(f"seen {record.step}")],
    )
    assert told == ["nothing there"] + [
        text for step in range(10, 250, 10) for text in (f"saved {step}", f"seen {step}")
    ]
    assert follow.clock.now == 10 + 24 * 10 + 100
    assert (replayed.num_snapshots, replayed.failures) == (24, [])
    sw.replay(run, logdir=tmp_path / "whole", detectors=detectors())
    ours, theirs = on_disk(tmp_path), on_disk(tmp_path / "whole")
    del ours["run"]["replayed_from"], theirs["run"]["replayed_from"]
    assert ours == theirs


def test_a_half_written_one_is_waited_for(run, place: Path, follow, save) -> None:
    told, whole = [], (run / "step-20.pt").read_bytes()
    save(10)
    save(20, data=b"")
    replayed = follow(
        lambda: save(20, data=whole[: len(whole) // 2]),
        lambda: told.append("half"),
        lambda: save(20, data=whole[:-5]),
        lambda: told.append("nearly"),
        lambda: save(20),
        on_record=[lambda record: told.append(record.step)],
    )
    assert told == [10, "half", "nearly", 20]
    assert replayed.failures == []
    assert all(record.valid for record in replayed.records)


def test_one_that_is_never_finished_is_overtaken(place: Path, follow, save) -> None:
    seen, ticks = {}, []

    def tick() -> None:
        ticks.append(0)

    def note(record: sw.Record) -> None:
        seen[record.step] = len(ticks)

    save(20, data=b"")
    arrive = lambda: (tick(), save(30))  # noqa: E731
    replayed = follow(tick, arrive, *[tick] * 20, on_record=[note], idle_timeout_s=300.0)
    # there after 20 s, noticed then; 60 s later, at the ninth look, the unfinished one is left
    assert seen == {20: 8, 30: 8}
    assert [record.valid for record in replayed.records] == [False, True]
    assert failed(replayed) == [20]


def test_what_looks_damaged_is_believed_when_it_stays_so(place: Path, follow, save) -> None:
    save(10)
    save(20, data=b"neither a zip nor anything else")
    replayed = follow(lambda: save(20))
    assert (replayed.num_snapshots, replayed.failures) == (2, [])
    save(30, data=b"neither a zip nor anything else")
    save(40)
    replayed = follow()
    assert failed(replayed) == [30]
    assert steps_of(replayed) == [10, 20, 30, 40]
    assert follow.clock.now < 150


def test_late_ones_are_told_and_left(place: Path, follow, save) -> None:
    save(20)
    replayed = follow(lambda: save(10))
    assert failed(replayed) == [10]
    assert "came after later ones had been measured" in replayed.failures[0].reason
    assert steps_of(replayed) == [20]
    assert steps_of(follow()) == [10, 20]  # once more takes it in


def test_it_ends_when_told_with_a_last_look(place: Path, follow, save) -> None:
    asked = []

    def is_over() -> bool:
        asked.append(0)
        if len(asked) == 3:
            save(10)
            save(20, data=b"")
        return len(asked) == 3

    replayed = follow(until=is_over, idle_timeout_s=None)
    assert len(asked) == 3
    assert steps_of(replayed) == [10, 20]
    assert failed(replayed) == [20]  # nothing will finish it now


def test_an_interruption_ends_it_in_order(place: Path, follow, save) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    save(10)
    assert steps_of(follow(lambda: None, interrupt, idle_timeout_s=None)) == [10]
    assert follow().num_snapshots == 0


def test_a_restarted_sidecar_goes_on(place: Path, follow, save) -> None:
    save(10)
    save(20)
    follow()
    (place / "step-10.pt").unlink()  # the run keeps the last two
    save(30)
    replayed = follow()
    assert (replayed.num_snapshots, len(replayed.records)) == (1, 3)
    assert replayed.records[-1].movement.since_step == 20
    # nothing new at first, and the last one is gone when it comes: its weights have been read again
    replayed = follow(lambda: ((place / "step-30.pt").unlink(), save(40)))
    assert steps_of(replayed) == [10, 20, 30, 40]
    assert replayed.records[-1].movement.since_step == 30
    assert not (place.parent / "sparsitywatch" / "superseded.jsonl").exists()


def test_a_place_that_never_comes(tmp_path: Path, follow) -> None:
    replayed = follow()
    assert (replayed.records, replayed.failures) == ([], [])
    assert not os.path.lexists(tmp_path / "sparsitywatch")


def test_what_is_done_is_not_opened_again(place: Path, follow, save, monkeypatch) -> None:
    opened, original = [], discovery.open_checkpoint

    def counting(url, *options):
        opened.append(Path(url).name)
        return original(url, *options)

    monkeypatch.setattr(discovery, "open_checkpoint", counting)
    torch.save({"model": weights(0), "iter_num": 1}, place / "ckpt.pt")  # rewritten in place
    save(10)
    replayed = follow(
        lambda: save(20),
        lambda: torch.save({"model": weights(1), "iter_num": 30}, place / "ckpt.pt"),
        idle_timeout_s=50.0,
    )
    assert steps_of(replayed) == [1, 10, 20, 30]
    assert opened.count("ckpt.pt") >= 8
    assert opened.count("step-10.pt") == opened.count("step-20.pt") == 1


def test_one_that_is_removed_before_its_turn_is_told(place: Path, follow, save) -> None:
    save(10, data=b"")  # holds up what comes after it
    save(20)
    save(30)
    replayed = follow((place / "step-20.pt").unlink, lambda: save(10))
    assert steps_of(replayed) == [10, 30]
    (failure,) = replayed.failures
    expected = f"Cannot read {place}/step-20.pt: it was removed before it could be read."
    assert (failure.step, failure.reason) == (20, expected)


def test_a_place_that_is_out_of_reach_for_a_while(place: Path, follow, save) -> None:
    away = place.with_name("away")
    save(10, data=b"")
    save(20)
    replayed = follow(lambda: place.rename(away), lambda: away.rename(place), lambda: save(10))
    assert steps_of(replayed) == [10, 20]
    assert replayed.failures == []


def test_a_file_of_one_rank_waits_for_the_others(place: Path, follow, save) -> None:
    told = []
    save(10, "step-10_rank0.pt")
    replayed = follow(
        lambda: told.append("alone"),
        lambda: save(20, "step-10_rank1.pt"),
        lambda: save(30, "step-30_rank0.pt"),
        on_record=[lambda record: told.append((record.step, record.valid))],
    )
    # the second rank has other weights: none of the two is the model
    assert told == ["alone", (10, False), (30, True)]
    assert ["they do not hold the same weights" in f.reason for f in replayed.failures] == [True]
