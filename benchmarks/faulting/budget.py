"""A watch that sees too little of a training: too dear, left behind, off, blind, gone."""

from __future__ import annotations

import copy
import io
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import sparsitywatch as sw
from faulting.case import Case
from sparsitywatch.cli import main
from sparsitywatch.sinks.jsonl import read_manifest

__all__ = ["CASES", "Training"]

Optimizer = torch.optim.Optimizer


class Training:
    """A small regression, on a clock of its own where costs matter.

    Args:
        evaluation_s: what an evaluation takes on that clock; None for no proxy.
    """

    def __init__(self, evaluation_s: float | None = None) -> None:
        torch.manual_seed(0)
        self.now_s = 0.0
        self.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        self.optimizer: Optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.inputs, self.targets = torch.randn(20, 6), torch.randn(20, 2)
        self._evaluation_s = evaluation_s

    def watch(self, logdir: Path | None, **options: Any) -> sw.Watcher:
        """A watch of it, with no limit to its cost unless one is given."""
        proxy = None
        if self._evaluation_s is not None:
            proxy = sw.Proxy([[self.inputs, self.targets]], self._value)
        options = {"every": 10, "max_overhead": None, "proxy": proxy, **options}
        return sw.watch(self.model, self.optimizer, logdir=logdir, **options)

    def steps(self, number: int, step_s: float = 0.0) -> None:
        """So many optimizer steps, each of so long on the training's clock."""
        for _ in range(number):
            self.now_s += step_s
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(self.inputs), self.targets)
            torch.autograd.backward(loss)
            self.optimizer.step()

    def _value(self, model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        self.now_s += (self._evaluation_s or 0.0) / 16  # about so many forward passes
        losses: torch.Tensor = (model(batch[0]) - batch[1]).square().mean(dim=1)
        return losses


def _dear(training: Training, *, steps: int, **options: Any) -> sw.Watcher:
    """Steps of 0.45 s under the default budget or another, by the training's clock."""
    options = {"max_overhead": 0.01, **options}
    watcher = training.watch(None, background=False, **options)
    watcher._budget.now = lambda: training.now_s
    training.steps(steps, 0.45)
    watcher.close()
    return watcher


def _full_snapshot_of_ten_steps(_: Path) -> str:
    watcher = _dear(Training(evaluation_s=4.5), steps=500, every=50)
    num_evaluated = sum(record.curve is not None for record in watcher.records)
    num_invalid = sum(not record.valid for record in watcher.records)
    return f"{len(watcher.records)} of 10, {num_evaluated} evaluated, {num_invalid} invalid"


def _long_run(_: Path) -> str:
    watcher = _dear(Training(evaluation_s=4.5), steps=600, every=10, max_overhead=0.1)
    evaluated = [record for record in watcher.records if record.curve is not None]
    share = watcher.records[-1].cost.overhead
    return (
        f"{len(watcher.records)} of 60, evaluated more than once: {len(evaluated) > 1}, share "
        f"within the limit: {share <= 0.1}"
    )


def _share_of_a_record(_: Path) -> str:
    watcher = _dear(Training(evaluation_s=4.5), steps=50, every=50)
    (record,) = watcher.records
    spent_s = record.cost.num_forwards * 4.5 / 16
    return f"as spent: {abs(record.cost.overhead - spent_s / (49 * 0.45 + spent_s)) < 1e-6}"


def _share_at_the_end(folder: Path) -> str:
    training = Training()
    with training.watch(folder):
        training.steps(25)
    state = _state(folder)
    return f"written at step {state.step}: {0.0 < state.overhead < 1.0}"


# ------------------------------------------------------------------ another optimizer


def _replaced(replace: Callable[[Training], Optimizer]) -> Callable[[Path], str]:
    def run(_: Path) -> str:
        training = Training()
        with _Messages() as said, training.watch(None) as watcher:
            training.steps(25)
            training.optimizer = replace(training)
            training.steps(75)
        is_said = any("it was replaced" in message for message in said)
        return f"{len(watcher.records)} of 10, step {watcher.step_count}, said: {is_said}"

    return run


def _new(training: Training) -> Optimizer:
    return torch.optim.SGD(training.model.parameters(), lr=0.01)


def _deep_copy(training: Training) -> Optimizer:
    return copy.deepcopy(training.optimizer, {id(p): p for p in training.model.parameters()})


def _unpickled(training: Training) -> Optimizer:
    file = io.BytesIO()
    torch.save(training.optimizer, file)
    file.seek(0)
    optimizer: Optimizer = torch.load(file, weights_only=False)
    state = optimizer.state_dict()
    optimizer.param_groups[0]["params"] = list(training.model.parameters())
    optimizer.state.clear()
    optimizer.load_state_dict(state)
    return optimizer


def _copied_with_its_model(_: Path) -> str:
    training = Training()
    with _Messages() as said, training.watch(None) as watcher:
        training.steps(25)
        training.model, training.optimizer = copy.deepcopy((training.model, training.optimizer))
        training.steps(75)
    is_said = any("a copied or unpickled model" in message for message in said)
    return f"step {watcher.step_count}, said: {is_said}"


def _beside(make: Callable[[Training], Optimizer]) -> Callable[[Path], str]:
    """Another optimizer takes a step before each of the watched one."""

    def run(_: Path) -> str:
        training = Training()
        other = make(training)
        with _Messages() as said, training.watch(None) as watcher:
            for _turn in range(50):
                own, training.optimizer = training.optimizer, other
                training.steps(1)
                training.optimizer = own
                training.steps(1)
        return f"{len(watcher.records)} of 5, step {watcher.step_count}, {len(said)} warnings"

    return run


def _other_half(training: Training) -> Optimizer:
    training.optimizer = torch.optim.AdamW(training.model[0].parameters(), lr=0.01)
    return torch.optim.AdamW(training.model[2].parameters(), lr=0.01)


def _opponent(_: Training) -> Optimizer:
    opponent = nn.Linear(2, 1)
    opponent(torch.randn(4, 2)).sum().backward()
    return torch.optim.AdamW(opponent.parameters())


def _same_weights(training: Training) -> Optimizer:
    return torch.optim.SGD(training.model.parameters(), lr=1e-3)


# ------------------------------------------------------------------ off, blind, gone


def _switched_off(folder: Path) -> str:
    training = Training(evaluation_s=0.0)
    with training.watch(folder, background=False):
        training.steps(10)
        with _failing("sparsitywatch.pipeline.measure.MagnitudeSpectrum.of"):
            training.steps(50)
    return f"{_state(folder).status}; {_told(folder)}"


def _evaluations_fail(folder: Path) -> str:
    training = Training(evaluation_s=0.0)
    with (
        _failing("sparsitywatch.pipeline.measure.run_sweep"),
        training.watch(folder, background=False),
    ):
        training.steps(20)
    return f"{_state(folder).status}; {_told(folder)}"


def _killed(folder: Path) -> str:
    program = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[1])]!r}\n"
        "import os; from pathlib import Path; from faulting.budget import Training\n"
        "training = Training()\n"
        f"watcher = training.watch(Path({str(folder)!r}))\n"
        "training.steps(25); watcher.records; os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)  # noqa: S603
    return f"{_state(folder).status}; {_told(folder)}"


def _left_behind(folder: Path) -> str:
    """It lives, and no step comes any more; seen an hour later."""
    training = Training()
    watcher = training.watch(folder)
    training.steps(25)
    _ = watcher.records
    with mock.patch("time.time", return_value=_state(folder).wall_time + 3600.0):
        told = _told(folder)
    watcher.close()
    return told


def _state(folder: Path) -> Any:
    info = read_manifest(folder / "sparsitywatch")
    return None if info is None else info.state


def _told(folder: Path) -> str:
    """The first words of a summary, and whether the report's headline has no good news alone."""
    output = io.StringIO()
    with mock.patch("sys.stdout", output):
        main(["summary", str(folder)])
        main(["report", str(folder), "-o", str(folder / "page.html")])
    first = output.getvalue().splitlines()[0]
    headline = (folder / "page.html").read_text().split("<h1>")[1].split("</h1>")[0]
    return f"{' '.join(first.split()[:4])} ..., headline: {headline.partition('; ')[2]}"


class _Messages(logging.Handler):
    """What the watch warns of, as long as this is open."""

    def __enter__(self) -> list[str]:
        self._said: list[str] = []
        logging.getLogger("sparsitywatch").addHandler(self)
        return self._said

    def __exit__(self, *_: object) -> None:
        logging.getLogger("sparsitywatch").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, unless it is of an event in the weights."""
        if record.levelno >= logging.WARNING and "abruptly" not in record.getMessage():
            self._said.append(record.getMessage())


def _failing(name: str) -> Any:
    return mock.patch(name, side_effect=RuntimeError("on purpose"))


_FOLLOWED = "9 of 10, step 100, said: True"
CASES = (
    Case(
        point="budget",
        what="a full snapshot of ten steps, every=50, 500 steps",
        expected="10 of 10, 1 evaluated, 0 invalid",
        run=_full_snapshot_of_ten_steps,
    ),
    Case(
        point="budget",
        what="600 steps, every=10, at a tenth of the time",
        expected="60 of 60, evaluated more than once: True, share within the limit: True",
        run=_long_run,
    ),
    Case(
        point="budget",
        what="watch/overhead of the first record",
        expected="as spent: True",
        run=_share_of_a_record,
    ),
    Case(
        point="budget",
        what="watch/overhead of the whole run",
        expected="written at step 25: True",
        run=_share_at_the_end,
    ),
    Case(point="optimizer", what="a new one", expected=_FOLLOWED, run=_replaced(_new)),
    Case(
        point="optimizer",
        what="a shallow copy",
        expected=_FOLLOWED,
        run=_replaced(lambda training: copy.copy(training.optimizer)),
    ),
    Case(point="optimizer", what="a deep copy", expected=_FOLLOWED, run=_replaced(_deep_copy)),
    Case(point="optimizer", what="unpickled", expected=_FOLLOWED, run=_replaced(_unpickled)),
    Case(
        point="optimizer",
        what="copied with its model",
        expected="step 25, said: True",
        run=_copied_with_its_model,
    ),
    Case(
        point="optimizer",
        what="one for each half of a model",
        expected="5 of 5, step 50, 0 warnings",
        run=_beside(_other_half),
    ),
    Case(
        point="optimizer",
        what="the opponent's in a GAN",
        expected="5 of 5, step 50, 0 warnings",
        run=_beside(_opponent),
    ),
    Case(
        point="optimizer",
        what="two for the same weights by turns",
        expected="5 of 5, step 50, 0 warnings",
        run=_beside(_same_weights),
    ),
    Case(
        point="state",
        what="three snapshots failed",
        expected="off; The watch switched itself ..., headline: the watch has been off since "
        "step 40",
        run=_switched_off,
    ),
    Case(
        point="state",
        what="no evaluation succeeds",
        expected="closed; Blind: all snapshots failed, ..., headline: all snapshots failed",
        run=_evaluations_fail,
    ),
    Case(
        point="state",
        what="killed",
        expected="on; The watch was never ..., headline: the watch was last heard of at step 20",
        run=_killed,
    ),
    Case(
        point="state",
        what="no step for an hour",
        expected="No step was seen ..., headline: the watch was last heard of at step 20",
        run=_left_behind,
    ),
)
