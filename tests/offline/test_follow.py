"""Following a run that goes on: what is unfinished is waited for, and nobody waits for ever."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts.stored_run import detectors, on_disk, weights

import sparsitywatch as sw
from sparsitywatch.checkpoints import discovery
from sparsitywatch.offline import replay as call
from sparsitywatch.offline.driver import Replayed
from sparsitywatch.offline.selection import Patience


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
        clock = Clock(*happenings)

        def patience(**given) -> Patience:
            return Patience(**given, clock=clock, sleep=clock.sleep)

        monkeypatch.setattr(call, "Patience", patience)
        options = {"idle_timeout_s": 100.0, "poll_s": 10.0, **options}
        replayed = sw.replay(
            tmp_path / "run", logdir=tmp_path, detectors=detectors(), follow=True, **options
        )
        follow.clock = clock
        return replayed

    return follow


@pytest.fixture
def steps() -> list[int]:
    return []


def test_each_is_looked_at_when_it_is_there(run, tmp_path: Path, follow, steps) -> None:
    place = tmp_path / "run"

    def add(step: int) -> Callable[[], object]:
        def happen() -> None:
            place.mkdir(exist_ok=True)
            shutil.copy(run / f"step-{step}.pt", place)
            steps.append(f"saved {step}")

        return happen

    replayed = follow(
        lambda: steps.append("nothing there"),
        *(add(step) for step in range(10, 250, 10)),
        on_record=[lambda record: steps.append(f"seen {record.step}")],
    )
    assert steps == ["nothing there"] + [
        text for step in range(10, 250, 10) for text in (f"saved {step}", f"seen {step}")
    ]
    assert follow.clock.now == 10 + 24 * 10 + 100
    assert (replayed.num_snapshots, replayed.failures) == (24, [])
    sw.replay(run, logdir=tmp_path / "whole", detectors=detectors())
    ours, theirs = on_disk(tmp_path), on_disk(tmp_path / "whole")
    for found in (ours, theirs):
        del found["run"]["replayed_from"]
    assert ours == theirs


def test_a_half_written_one_is_waited_for(run, tmp_path: Path, follow, steps) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "step-10.pt", place)
    whole = (run / "step-20.pt").read_bytes()
    (place / "step-20.pt").write_bytes(b"")
    replayed = follow(
        lambda: (place / "step-20.pt").write_bytes(whole[: len(whole) // 2]),
        lambda: steps.append("half"),
        lambda: (place / "step-20.pt").write_bytes(whole[:-5]),
        lambda: steps.append("nearly"),
        lambda: (place / "step-20.pt").write_bytes(whole),
        on_record=[lambda record: steps.append(record.step)],
    )
    assert steps == [10, "half", "nearly", 20]
    assert replayed.failures == []
    assert all(record.valid for record in replayed.records)


def test_one_that_is_never_finished_is_overtaken(run, tmp_path: Path, follow) -> None:
    place, seen = tmp_path / "run", {}
    place.mkdir()
    (place / "step-20.pt").write_bytes(b"")
    clock = []

    def note(record: sw.Record) -> None:
        seen[record.step] = len(clock)

    def tick() -> None:
        clock.append(0)

    def arrive() -> None:
        clock.append(0)
        shutil.copy(run / "step-30.pt", place)

    replayed = follow(tick, arrive, *[tick] * 20, on_record=[note], idle_timeout_s=300.0)
    # there after 20 s, noticed then; 60 s later, at the ninth look, the unfinished one is left
    assert seen == {20: 8, 30: 8}
    assert [record.valid for record in replayed.records] == [False, True]
    assert [failure.step for failure in replayed.failures] == [20]


def test_what_looks_damaged_is_believed_when_it_stays_so(run, tmp_path, follow, steps) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "step-10.pt", place)
    (place / "step-20.pt").write_bytes(b"neither a zip nor anything else")
    replayed = follow(lambda: shutil.copy(run / "step-20.pt", place))
    assert (replayed.num_snapshots, replayed.failures) == (2, [])
    (place / "step-30.pt").write_bytes(b"neither a zip nor anything else")
    shutil.copy(run / "step-40.pt", place)
    replayed = follow()
    assert [failure.step for failure in replayed.failures] == [30]
    assert [record.step for record in replayed.records] == [10, 20, 30, 40]
    assert follow.clock.now < 150


def test_late_ones_are_told_and_left(run, tmp_path: Path, follow) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "step-20.pt", place)
    replayed = follow(lambda: shutil.copy(run / "step-10.pt", place))
    (failure,) = replayed.failures
    assert failure.step == 10
    assert "came after later ones had been measured" in failure.reason
    assert [record.step for record in replayed.records] == [20]
    # once more takes it in
    assert [record.step for record in follow().records] == [10, 20]


def test_it_ends_when_told_with_a_last_look(run, tmp_path: Path, follow) -> None:
    place, asked = tmp_path / "run", []
    place.mkdir()

    def is_over() -> bool:
        asked.append(0)
        if len(asked) == 3:
            shutil.copy(run / "step-10.pt", place)
            (place / "step-20.pt").write_bytes(b"")
        return len(asked) == 3

    replayed = follow(until=is_over, idle_timeout_s=None)
    assert len(asked) == 3
    assert [record.step for record in replayed.records] == [10, 20]
    # nothing will finish it now
    assert [failure.step for failure in replayed.failures] == [20]


def test_an_interruption_ends_it_in_order(run, tmp_path: Path, follow) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "step-10.pt", place)

    def interrupt() -> None:
        raise KeyboardInterrupt

    replayed = follow(lambda: None, interrupt, idle_timeout_s=None)
    assert [record.step for record in replayed.records] == [10]
    assert follow().num_snapshots == 0


def test_a_restarted_sidecar_goes_on(run, tmp_path: Path, follow) -> None:
    place = tmp_path / "run"
    place.mkdir()
    for step in (10, 20):
        shutil.copy(run / f"step-{step}.pt", place)
    follow()
    (place / "step-10.pt").unlink()  # the run keeps the last two
    shutil.copy(run / "step-30.pt", place)
    replayed = follow()
    assert (replayed.num_snapshots, len(replayed.records)) == (1, 3)
    assert replayed.records[-1].movement.since_step == 20


def test_a_restarted_sidecar_that_finds_nothing_new_at_first_goes_on(
    run, tmp_path: Path, follow
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    for step in (10, 20):
        shutil.copy(run / f"step-{step}.pt", place)
    follow()

    def arrive() -> None:
        (place / "step-20.pt").unlink()  # its weights have been read again by now
        shutil.copy(run / "step-30.pt", place)

    replayed = follow(arrive)
    assert [record.step for record in replayed.records] == [10, 20, 30]
    assert replayed.records[-1].movement.since_step == 20
    assert not (tmp_path / "sparsitywatch" / "superseded.jsonl").exists()


def test_a_place_that_never_comes(tmp_path: Path, follow) -> None:
    replayed = follow()
    assert (replayed.records, replayed.failures) == ([], [])
    assert not os.path.lexists(tmp_path / "sparsitywatch")


def test_what_is_done_is_not_opened_again(run, tmp_path: Path, follow, monkeypatch) -> None:
    place, opened = tmp_path / "run", []
    place.mkdir()
    original = discovery.open_checkpoint

    def counting(url, options):
        opened.append(Path(url).name)
        return original(url, options)

    monkeypatch.setattr(discovery, "open_checkpoint", counting)
    torch.save({"model": weights(0), "iter_num": 1}, place / "ckpt.pt")  # rewritten in place
    shutil.copy(run / "step-10.pt", place)
    replayed = follow(
        lambda: shutil.copy(run / "step-20.pt", place),
        lambda: torch.save({"model": weights(1), "iter_num": 30}, place / "ckpt.pt"),
        idle_timeout_s=50.0,
    )
    assert [record.step for record in replayed.records] == [1, 10, 20, 30]
    looks = opened.count("ckpt.pt")
    assert looks >= 8
    assert opened.count("step-10.pt") == opened.count("step-20.pt") == 1


def test_one_that_is_removed_before_its_turn_is_told(run, tmp_path: Path, follow) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "step-10.pt").write_bytes(b"")  # holds up what comes after it
    shutil.copy(run / "step-20.pt", place)
    shutil.copy(run / "step-30.pt", place)
    replayed = follow(
        lambda: (place / "step-20.pt").unlink(),
        lambda: shutil.copy(run / "step-10.pt", place),
    )
    assert [record.step for record in replayed.records] == [10, 30]
    (failure,) = replayed.failures
    expected = f"Cannot read {place}/step-20.pt: it was removed before it could be read."
    assert (failure.step, failure.reason) == (20, expected)


def test_a_place_that_is_out_of_reach_for_a_while(run, tmp_path: Path, follow) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "step-10.pt").write_bytes(b"")
    shutil.copy(run / "step-20.pt", place)
    replayed = follow(
        lambda: place.rename(tmp_path / "away"),
        lambda: (tmp_path / "away").rename(place),
        lambda: shutil.copy(run / "step-10.pt", place),
    )
    assert [record.step for record in replayed.records] == [10, 20]
    assert replayed.failures == []


def test_a_file_of_one_rank_waits_for_the_others(run, tmp_path: Path, follow, steps) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "step-10.pt", place / "step-10_rank0.pt")
    replayed = follow(
        lambda: steps.append("alone"),
        lambda: shutil.copy(run / "step-20.pt", place / "step-10_rank1.pt"),
        lambda: shutil.copy(run / "step-30.pt", place / "step-30_rank0.pt"),
        on_record=[lambda record: steps.append((record.step, record.valid))],
    )
    # the second rank has other weights: none of the two is the model
    assert steps == ["alone", (10, False), (30, True)]
    assert ["they do not hold the same weights" in f.reason for f in replayed.failures] == [True]
