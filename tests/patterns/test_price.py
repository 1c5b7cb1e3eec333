"""What an evaluation is expected to take, from its ends alone, against what it takes."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.live.schedule import Due

#: Seconds of a fake clock that a batch, an example in it, and a mask take.
BATCH_S, EXAMPLE_S, MASK_S = 0.2, 0.01, 0.05


class Priced:
    """A small classifier in training, on a clock that only forwards and masks move."""

    def __init__(self, monkeypatch, *, num: int, size: int, score: bool, **options) -> None:
        self.now = 0.0
        torch.manual_seed(0)
        self.inputs = torch.randn(2000, 16)
        self.targets = (self.inputs @ torch.randn(16, 5)).argmax(1)
        self.model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, fused=True)
        clock = SimpleNamespace(perf_counter=lambda: self.now, thread_time=time.thread_time)
        for module in ("evaluation.masked", "live.trace", "live.snapshots"):
            monkeypatch.setattr(f"sparsitywatch.{module}.time", clock)
        self._slow_masks(monkeypatch)

        def value(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
            self.now += BATCH_S + EXAMPLE_S * len(batch[0])
            logits = model(batch[0])
            if score:
                return (logits.argmax(1) == batch[1]).float()
            return nn.functional.cross_entropy(logits, batch[1], reduction="none")

        batches = [
            [self.inputs[i * size : (i + 1) * size], self.targets[i * size : (i + 1) * size]]
            for i in range(num)
        ]
        proxy = sw.Proxy(batches, value, higher_is_better=score)
        self.watcher = sw.watch(
            self.model, self.optimizer, proxy=proxy, logdir=None, scope="layers",
            **{"every": 10**6, "strict": True, **options},
        )  # fmt: skip

    def _slow_masks(self, monkeypatch) -> None:
        from sparsitywatch.evaluation.masked import Masks

        masked = Masks.masked

        def slow(masks, cut):
            self.now += MASK_S
            return masked(masks, cut)

        monkeypatch.setattr(Masks, "masked", slow)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            chosen = torch.randint(2000, (32,))
            self.optimizer.zero_grad()
            logits = self.model(self.inputs[chosen])
            nn.functional.cross_entropy(logits, self.targets[chosen]).backward()
            self.optimizer.step()

    def evaluation_s(self) -> float:
        """What one takes now, on that clock."""
        before = self.now
        record = self.watcher.snapshot()
        assert record.valid
        return self.now - before


CASES = {
    "grid": {"num": 2, "size": 16, "score": False, "sweep": sw.sweeps.Grid([0.2, 0.5, 0.8])},
    "bisection": {"num": 2, "size": 16, "score": False,
                  "sweep": sw.sweeps.Bisection([0.2, 0.5, 0.8], 0.05)},
    "few examples": {"num": 1, "size": 16, "score": False},
    "few examples in more batches": {"num": 4, "size": 8, "score": False},
    "an accuracy": {"num": 4, "size": 64, "score": True},
    "many examples": {"num": 4, "size": 64, "score": False},
    "many small batches": {"num": 32, "size": 8, "score": False},
    "very many": {"num": 8, "size": 128, "score": False},
    "a control": {"num": 2, "size": 16, "score": False, "controls": ["random"]},
}  # fmt: skip


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_price_at_the_attach_is_near_what_evaluations_take(case: str, monkeypatch) -> None:
    priced = Priced(monkeypatch, **CASES[case])
    expected = priced.watcher._budget.evaluations.price_s
    ratios = []
    for _ in range(3):
        priced.train(150)
        ratios.append(priced.evaluation_s() / expected)
    priced.watcher.close()
    # where the tolerance is below the noise nobody looks for the ends of an interval
    assert all(0.4 <= ratio <= 1.5 for ratio in ratios)


@pytest.mark.part(5)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "length_s", "step_s"),
    [
        ("few examples", 300.0, 0.05),
        ("few examples", 30.0, 0.5),
        ("many examples", 30.0, 0.05),
        ("many examples", 300.0, 0.5),
        ("very many", 30.0, 0.05),
        ("very many", 300.0, 0.5),
    ],
)
def test_a_whole_run_stays_near_one_percent_of_a_clock_outside(
    case: str, length_s: float, step_s: float, monkeypatch
) -> None:
    """From the first look to the end of ``close``: what passes beyond the steps is the watch's."""
    priced = Priced(monkeypatch, **CASES[case], every=20, background=False)
    watcher = priced.watcher
    watcher._budget.now = lambda: priced.now
    read = watcher._taker._read

    def reading(step: int) -> object:
        priced.now += 0.02
        return read(step)

    watcher._taker._read = reading
    priced.train(2)
    assert watcher.records[-1].curve is not None
    began, steps = priced.now, 0
    while priced.now - began < length_s:
        priced.now += step_s
        if steps % 10:
            priced.optimizer.step()  # once more by the same gradient: the clock is what counts
        else:
            priced.train(1)
        steps += 1
    watcher.close()
    share = 1.0 - steps * step_s / (priced.now - began)
    assert share <= 0.012
    told = watcher._schedule.state(watcher.records, steps)
    assert told.num_taken >= min(told.num_due, int(0.002 * length_s / 0.03))
    affordable = 0.008 * length_s / watcher._budget.evaluations.price_s
    assert told.num_evaluated >= int(affordable / 1.5)


def test_without_a_limit_nothing_is_tried_at_the_attach(monkeypatch) -> None:
    arguments = {"num": 2, "size": 16, "score": False}
    free = Priced(monkeypatch, **arguments, max_overhead=None)
    spent = free.now
    free.watcher.close()
    assert Priced(monkeypatch, **arguments).now > spent + 3 * BATCH_S


def test_an_evaluation_that_cannot_be_tried_is_said_and_dear(monkeypatch, caplog) -> None:
    model, other = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)) for _ in range(2))
    proxy = sw.Proxy([torch.ones(4, 4)], lambda m, x: other(x).square().mean(1))
    with sw.watch(model, None, proxy=proxy, logdir=None, scope="layers") as watcher:
        assert watcher._budget.evaluations.price_s > 0.0
        assert watcher._budget.wait_s(Due.EVERYTHING) > 0.0
    assert "an evaluation could not be tried at the attach" in caplog.text
