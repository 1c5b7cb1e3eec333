"""The map of the turn: tiny runs, its clock by hand, and its page from what was kept."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import kept
import numpy as np
import pytest
import torch
import turn_map

PAGE = Path(__file__).parents[2] / "docs" / "reports" / "turn_map.md"
KEPT = kept.kept(kept.FOLDER / "turn_map")
RUNS = {key: run for file in KEPT.values() for key, run in file["runs"].items()}


@pytest.mark.slow
def test_two_tiny_runs_are_kept_and_told_and_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [("adam", "gelu", 0.01, 1e-3), ("lamb", "relu", 1.0, 3e-3)]
    monkeypatch.setattr(turn_map, "SETTINGS", settings)
    command = ["--small", "--seeds", "1", "--out", str(tmp_path)]
    assert turn_map.main(command) == 0
    told = (tmp_path / "turn_map.md").read_text()
    assert "2 runs of 2 settings" in told
    assert (tmp_path / "turn_map.png").stat().st_size > 10_000
    monkeypatch.setattr(turn_map, "trained", lambda *_: pytest.fail("trained again"))
    assert turn_map.main(command) == 0
    assert (tmp_path / "turn_map.md").read_text() == told


def moved(name: str, decay: float, steps: int) -> tuple[np.ndarray, turn_map.Alone]:
    """Weights before, and the copy without gradient after so many steps of rate 1e-3."""
    weight = torch.nn.Parameter(torch.linspace(0.5, 1.0, 9).reshape(3, 3))
    setting = (name, "gelu", decay, 1e-3)
    alone = turn_map.Alone(setting, {"0.up.weight": weight})
    optimizer = turn_map.optimizer_of(setting, [weight])
    for step in range(steps):
        weight.grad = torch.full_like(weight, (-1.0) ** step)
        optimizer.step()
        alone.step(optimizer)
    return np.linspace(0.5, 1.0, 9), alone


@pytest.mark.parametrize("decay", [0.01, 1.0])
def test_the_clock_of_each_optimizer_is_its_shrinking_counted_by_hand(decay: float) -> None:
    before, adam = moved("adam", decay, 50)
    # decay / sqrt(decay²): a rate a step, whatever the decay is
    by_hand = -np.log(np.sort((before - 50 * 1e-3) / before))
    assert by_hand.min() <= adam.shrunk() <= by_hand.max()
    assert adam.shrunk() == pytest.approx(by_hand[len(by_hand) // 2], rel=0.05)
    _, adamw = moved("adamw", decay, 50)
    assert adamw.shrunk() == pytest.approx(-50 * math.log1p(-1e-3 * decay), rel=1e-3, abs=1e-6)
    _, sgd = moved("sgd", decay, 50)
    weight, buffer = 1.0, 0.0
    for _ in range(50):
        buffer = 0.9 * buffer + decay * weight
        weight -= 1e-3 * buffer
    assert sgd.shrunk() == pytest.approx(-math.log(weight), rel=1e-3, abs=1e-6)


def test_lamb_is_its_paper() -> None:
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    weight = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))
    optimizer = turn_map.optimizer_of(("lamb", "gelu", 0.1, 0.01), [weight])
    m, v, left = np.zeros_like(x), np.zeros_like(x), 1.0
    for step in range(1, 4):
        gradient = np.array([[0.3, -0.1], [0.2, 0.0]]) * step
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        ratio = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.98**step)) + 1e-6)
        update = ratio + 0.1 * x
        trust = np.linalg.norm(x) / np.linalg.norm(update)
        left *= 1 - 0.01 * trust * 0.1
        x = x - 0.01 * trust * update
    assert weight.detach().numpy() == pytest.approx(x, rel=1e-5)
    assert optimizer.state[weight]["shrunk"] == pytest.approx(math.log(left), rel=1e-5)


# ------------------------------------------------------------------ the page


def test_the_page_is_what_was_kept() -> None:
    assert PAGE.read_text("utf-8") == turn_map.page(KEPT)


def own(optimizer: str, activation: str, decay: float, rate: float) -> list[dict[str, Any]]:
    start = f"{optimizer}-{activation}-{decay}-{rate}-s"
    return [run for key, run in RUNS.items() if key.startswith(start)]


@pytest.mark.parametrize("optimizer", turn_map.RATES)
def test_every_word_of_a_setting_is_counted_anew(optimizer: str) -> None:
    text = PAGE.read_text("utf-8")
    for _, activation, decay, rate in (s for s in turn_map.SETTINGS if s[0] == optimizer):
        runs = own(optimizer, activation, decay, rate)
        titles = turn_map.TITLES
        start = rf"\| {titles[optimizer]}, {titles[activation]}: {decay:g}, {rate:g} +\|(.*)\|"
        found = re.findall(start, text)
        assert len(found) == bool(runs)
        if not runs:
            continue
        said, thresholds, _, near, _, kind, cause, *_ = (x.strip() for x in found[0].split("|"))
        turns = [sum(run["num_turns"].values()) for run in runs]
        assert said.startswith(f"{sum(n > 0 for n in turns)} of {len(runs)}")
        if any(turns):
            assert {int(n) for n in thresholds.split(" to ")} <= set(turns) - {0}
        else:
            most = float(said.partition("< ")[2].rstrip("%)")) / 100
            assert (1.0 - most) ** len(runs) == pytest.approx(0.05, abs=0.05)
        last = np.median([run["end"] for run in runs])
        assert near == f"{100 * last:.0f}"
        assert (kind == "no rise") == (last < 0.1 / math.sqrt(3.0) * 1.25)
        if cause == "decay":
            assert all(run["is_within"] for run in runs)
            control = own(optimizer, activation, 0.0, rate)
            assert np.median([run["end"] for run in control]) < 0.0722


def test_what_the_watch_said_is_counted_anew() -> None:
    said = [word for run in RUNS.values() for word in run["explained"]]
    assert f"of {len(said)} rises: decay explains {said.count(True)}" in PAGE.read_text("utf-8")
    no_clock = [run for key, run in RUNS.items() if key.startswith(("adam-", "lamb-"))]
    assert not any(word is not None for run in no_clock for word in run["explained"])
