"""A run that is killed at any look and taken up again has the events of one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.sinks.jsonl import read_events

NUM_LOOKS, EVERY = 40, 5
DYING, REVIVED = 14, 36
DORMANT = "motion/dormant"
SERIES = (DORMANT, "near_zero/initial_0.1", "near_zero/rms_0.1")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    # powers of two: sums of lr times decay are exact, in whatever pieces they are added
    return torch.optim.AdamW(model.parameters(), lr=2**-7, weight_decay=4.0)


def train() -> list[dict[str, torch.Tensor]]:
    """Weights at each look of a real training.

    Half of the hidden units die at one look: they get no gradient, are dormant at once, and
    decay until they are near zero. Later they are revived, so that this falls back.
    """
    model = make_model()
    optimizer = make_optimizer(model)
    inputs = torch.randn(64, 16)
    targets = torch.randn(64, 4)
    first = model[0].weight.detach().clone()
    looks = []
    for look in range(NUM_LOOKS):
        with torch.no_grad():
            if look == REVIVED:
                model[0].weight[:32] = first[:32]
        for _ in range(EVERY):
            if DYING <= look < REVIVED:
                model[0].bias.data[:32] = -100.0
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        looks.append({k: v.clone() for k, v in model.state_dict().items()})
    return looks


class Replay:
    """A watch on the weights of a training that was done before."""

    def __init__(self, looks: list, logdir: Path, start: int, **options) -> None:
        self.looks, self.told = looks, []
        self.model = make_model()
        if start:
            self.model.load_state_dict(looks[start - 1])
        self.optimizer = make_optimizer(self.model)
        self.optimizer.register_step_post_hook(self._stepped)
        detectors = {name: sw.detectors.AbruptChange(0.3) for name in SERIES}
        detectors[DORMANT] = sw.detectors.DormantRise(0.01)
        self.watcher = sw.watch(
            self.model, self.optimizer, logdir=logdir, every=EVERY, max_overhead=None,
            background=False, strict=True, detectors=detectors, on_event=[self.told.append],
            **options,
        )  # fmt: skip

    def _stepped(self, *_: object) -> None:
        """What the watch sees: the weights have come of gradients."""
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)

    def go_on(self, start: int, stop: int = NUM_LOOKS) -> Iterator[int]:
        for look in range(start, stop):
            for number in range(EVERY):
                if number == EVERY - 1:
                    self.model.load_state_dict(self.looks[look])
                self.optimizer.zero_grad()
                self.optimizer.step()  # without gradients: it counts, and changes nothing
            yield look + 1


class Whole(NamedTuple):
    looks: list[dict[str, torch.Tensor]]
    folder: Path
    states: list[dict]
    told: list[sw.Event]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run that nobody kills; its log and its state as they were after each look."""
    folder = tmp_path_factory.mktemp("whole")
    replay = Replay(train(), folder / "log", 0)
    states = [replay.watcher.state_dict()]
    for look in replay.go_on(0):
        states.append(replay.watcher.state_dict())
        # resuming reads no spectra
        ignore = shutil.ignore_patterns("*.npz")
        shutil.copytree(folder / "log", folder / str(look), ignore=ignore)
    replay.watcher.close()
    return Whole(replay.looks, folder, states, replay.told)


def lines(logdir: Path) -> list[str]:
    return (logdir / "sparsitywatch" / "events.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_the_run_has_what_is_to_survive(whole: Whole) -> None:
    events = read_events(whole.folder / "log" / "sparsitywatch")
    near_zero = events[0]  # which the dormant ones are told with
    assert EVERY * DYING < near_zero.detected_step < EVERY * REVIVED
    assert near_zero.series.startswith("near_zero/")
    assert len(near_zero.related) > 1
    assert DORMANT in near_zero.related
    assert near_zero.peak > 5.0 * near_zero.baseline
    assert near_zero.explained_by_decay is True
    assert near_zero.layers == ("0.weight",)
    assert near_zero.change in ("shape", "both")  # what lives is rescaled by so strong a decay
    assert near_zero.reverted_step == EVERY * (REVIVED + 1)
    assert len(lines(whole.folder / "log")) > len(events) + 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["state", "log"])
def test_killed_at_any_look(
    whole: Whole, tmp_path: Path, way: str, request: pytest.FixtureRequest
) -> None:
    """With ``--whole`` at every look in one of the two ways, else at each third of these.

    Of those before anything happens at every fourth. ``lost``: looks after the checkpoint that the
    log holds and the resumed run does not; at each
    second look of a way there are some.
    """
    every = 2 if request.config.getoption("whole") else 6
    for look in range(1 + (way == "log"), NUM_LOOKS, every):
        if look < DYING - 2 and look // 2 % 4:
            continue
        lost = 4 if look > 4 and look // 2 % 2 else 0
        logdir, start = tmp_path / str(look), look - lost
        shutil.copytree(whole.folder / str(look), logdir)
        if way == "state":
            replay = Replay(whole.looks, logdir, start)
            replay.watcher.load_state_dict(whole.states[start])
        else:
            replay = Replay(whole.looks, logdir, start, initial_step=EVERY * start)
        assert list(replay.go_on(start))[-1] == NUM_LOOKS
        assert lines(logdir) == lines(whole.folder / "log"), look
        expected = [e for e in whole.told if e.reported_step > EVERY * start]
        assert repr(replay.told) == repr(expected), look
        replay.watcher.close()
        shutil.rmtree(logdir)
