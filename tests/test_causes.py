"""Each cause is warned of once, numbers aside, and counted at the end of its watch."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch.actions import log_event
from sparsitywatch.records import Event, Record
from sparsitywatch.redact import Causes, logger


def watched(steps: int, **options: object) -> None:
    """Train so many steps, each with a snapshot, below a watch that is closed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"logdir": None, "every": 1, "max_overhead": None, "on_event": [], **options}
    with sw.watch(model, optimizer, **given):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()


def test_a_cause_with_a_number_that_changes_is_one_warning_and_a_count(caplog) -> None:
    def act(record: Record) -> None:
        logger.warning("step %d: %.3e of %s weights", record.step, record.step / 7, "1,000")

    watched(30, on_record=[act])
    assert caplog.messages == [
        "sparsitywatch: step 1: 1.429e-01 of 1,000 weights",
        "sparsitywatch: 29 more times: step 1: 1.429e-01 of 1,000 weights",
    ]


@pytest.mark.parametrize("times", [1, 2])
def test_a_cause_that_came_once_is_not_told_again(times: int, caplog) -> None:
    causes = Causes()
    with causes.counted():
        for i in range(times):
            logger.warning("at %d", i)
    causes.tell()
    causes.tell()
    told = ["sparsitywatch: at 0", "sparsitywatch: 1 more times: at 0"]
    assert caplog.messages == told[:times]
    with causes.counted():  # told and forgotten
        logger.warning("at 5")
    assert caplog.messages[-1] == "sparsitywatch: at 5"


def test_other_words_other_watches_and_no_watch_are_other_causes(caplog) -> None:
    one, other = Causes(), Causes()
    for causes in (one, other):
        with causes.counted():
            for name in ("a.weight", "b.weight", "a.weight"):
                logger.warning("tensor %s: %d", name, 5)
    for _ in range(2):
        logger.warning("tensor a.weight: 5")
    assert len(caplog.messages) == 6
    with one.counted():
        with other.counted():
            logger.warning("tensor a.weight: 7")
        logger.warning("tensor c.weight: 7")
    assert len(caplog.messages) == 7


def test_what_is_no_warning_and_what_is_news_are_said_each_time(caplog) -> None:
    event = Event(
        series="near_zero/initial_0.1", direction="up", onset_step=300, detected_step=350,
        baseline=0.05, value=0.1, noise=0.01, trend="sparsifying",
    )  # fmt: skip
    causes = Causes()
    with causes.counted(), caplog.at_level(logging.INFO, "sparsitywatch"):
        for _ in range(3):
            log_event(event)
            logger.info("at %d", 5)
    causes.tell()
    assert len(caplog.messages) == 6


def test_errors_of_one_kind_and_text_are_one_cause_and_others_are_not(caplog) -> None:
    causes = Causes()
    with causes.counted():
        for text in ("no room: 5", "no room: 6", "no file"):
            logger.error("failed", exc_info=OSError(text))
    causes.tell()
    assert caplog.messages == [f"sparsitywatch: {x}failed" for x in ("", "", "1 more times: ")]


def test_threads_of_one_watch_count_together(caplog) -> None:
    causes = Causes()

    def warn() -> None:
        with causes.counted():
            for i in range(200):
                logger.warning("at %d", i)

    threads = [threading.Thread(target=warn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes.tell()
    assert len(caplog.messages) == 2
    assert "sparsitywatch: 799 more times: at" in caplog.messages[1]


def test_what_a_fork_says_is_not_counted_twice(caplog, monkeypatch) -> None:
    causes = Causes()
    with causes.counted():
        logger.warning("at 1")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        logger.warning("at 2")
    assert len(caplog.messages) == 2


def test_the_count_at_the_end_is_short_and_tells_no_secret(caplog) -> None:
    causes = Causes()
    with causes.counted():
        for i in range(3):
            logger.warning("password: hunter2%d %s", i, "x " * 1000)
    causes.tell()
    assert "hunter2" not in caplog.text
    assert len(caplog.messages[-1]) < 300


@given(st.lists(st.floats() | st.integers(), min_size=2, max_size=2))
def test_numbers_of_whatever_form_are_set_aside(numbers: list[float]) -> None:
    causes, seen = Causes(), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger.addHandler(handler)
    with causes.counted():
        for number in numbers:
            logger.warning("the loss is %s, %s", number, [number] * 2)
    logger.removeHandler(handler)
    assert len(seen) == 1


def test_an_action_that_fails_each_time_is_told_once(tmp_path: Path, caplog) -> None:
    def fails(record: Record) -> None:
        raise RuntimeError(f"step {record.step}: no room")

    watched(20, on_record=[fails], logdir=tmp_path)
    told = [line for line in caplog.messages if "training goes on" in line]
    assert len(told) == 2, told
    assert told[1].startswith("sparsitywatch: 19 more times: ")
