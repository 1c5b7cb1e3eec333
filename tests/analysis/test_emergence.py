"""Near zero by every threshold: shares against weights counted one by one, turns against plans."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from contracts import fake_run, stored_run
from torch import nn

import sparsitywatch as sw
from sparsitywatch.analysis.emergence import (
    Emergence,
    bin_ends,
    to_bin_end,
    turns_of,
)
from sparsitywatch.analysis.run import Run
from sparsitywatch.cli import main
from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import LayerShare

# ------------------------------------------------------------------ the surface


def made(weights: dict[int, dict[str, np.ndarray]], dtype: torch.dtype) -> Run:
    """A run of given weights by step and name, in memory."""
    first, _ = fake_run.look(0)
    records, spectra = [], {}
    for step, own in weights.items():
        tensors = {name: torch.tensor(values).to(dtype) for name, values in own.items()}
        spectra[step] = sw.MagnitudeSpectrum.of(tensors).to_arrays()
        layers = tuple(
            LayerShare(name=name, num_weights=values.size, rms=rms(tensors[name]), near_zero={})
            for name, values in own.items()
        )
        records.append(replace(first, step=step, layers=layers))
    initial = {layer.name: layer.rms for layer in records[0].layers}
    info = replace(fake_run.run_info(), initial_rms=initial)
    return Run(records, (), info, spectra.__getitem__)


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


def of(name: str, first: float, now: float) -> float:
    """A threshold by its name, for a tensor of these root mean squares."""
    kind, _, factor = name.partition("_")
    return float(factor) * {"abs": 1.0, "initial": first, "rms": now}[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_shares_are_the_weights_counted_one_by_one(dtype: torch.dtype) -> None:
    draw = np.random.default_rng(7)
    sizes = {"a": 0.02, "b": 0.3}
    weights = {
        step: {name: scale * draw.normal(size=(60, 50)) / step for name, scale in sizes.items()}
        for step in (1, 2, 3)
    }
    run = made(weights, dtype)
    found = run.emergence()
    assert found.steps.tolist() == [1, 2, 3]
    assert found.shares.shape == (len(found.thresholds), 3)
    kept = {
        step: {n: torch.tensor(x).to(dtype).double().abs().numpy() for n, x in own.items()}
        for step, own in weights.items()
    }
    first = {name: math.sqrt(np.square(kept[1][name]).mean()) for name in sizes}
    for t, step in enumerate(kept):
        for k, name in enumerate(found.thresholds):
            low = high = 0
            for tensor, values in kept[step].items():
                limit = of(name, first[tensor], math.sqrt(np.square(values).mean()))
                low += int((values <= limit * (1 - 1 / 512)).sum())
                high += int((values <= limit * (1 + 1 / 512)).sum())
            assert low <= round(6000 * found.shares[k, t]) <= high, (name, step)
    assert not found.tested[found.thresholds.index("rms_1")]  # only the scale moves
    assert found.tested[found.thresholds.index("initial_1")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_lies_in_no_bin(dtype: torch.dtype) -> None:
    draw = np.random.default_rng(3)
    values = torch.tensor(np.exp(draw.normal(size=100_000) * 3)).to(dtype)
    stored = sw.MagnitudeSpectrum.of({"w": values}).to_arrays()
    ends = bin_ends(stored)
    for x in np.exp(draw.normal(size=200)):
        limit = float(to_bin_end(np.array([x]))[0])
        assert abs(limit / x - 1) <= 1 / 512
        counted = int(stored["counts"][ends <= limit].sum())
        assert counted == int((values.double() <= limit).sum())


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One run, watched live and replayed from its checkpoints; half a layer goes at step 160."""
    folder = tmp_path_factory.mktemp("emergence")
    model = nn.Sequential()
    for name, given, made_of in (("first", 16, 64), ("second", 64, 32), ("head", 32, 3)):
        model.add_module(name, nn.Linear(given, made_of, bias=name == "second"))
    model.load_state_dict(stored_run.weights(0))
    optimizer = stored_run.Given(model)
    with sw.watch(model, optimizer, logdir=folder / "live", every=10, max_overhead=None):
        for _ in range(10 * stored_run.NUM):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    (folder / "saved").mkdir()
    sw.replay(stored_run.save_run(folder / "saved"), logdir=folder / "replayed")
    return folder / "live", folder / "replayed"


def test_replay_and_live_have_the_same_surface(logs: tuple[Path, Path]) -> None:
    live, replayed = (sw.load(log).emergence() for log in logs)
    assert live.thresholds == replayed.thresholds
    assert live.steps.tolist() == replayed.steps.tolist() == list(range(10, 241, 10))
    np.testing.assert_array_equal(live.shares, replayed.shares)


def test_a_planted_turn_is_told_with_its_place(logs: tuple[Path, Path]) -> None:
    found = sw.load(logs[1]).emergence()
    at = found.thresholds.index("initial_0.1")
    (turn,) = (turn for turn in found.turns if turn.series == "near_zero/initial_0.1")
    assert turn.direction == "up"
    assert turn.onset_low <= 160 <= turn.onset_high + 10
    sizes = {name: values.numel() for name, values in stored_run.weights(0).items()}
    gone = sizes["first.weight"] / 2 / (sizes["first.weight"] + sizes["second.weight"])
    assert found.shares[at, -1] - found.shares[at, 0] == pytest.approx(gone, abs=0.03)
    assert "make an abrupt turn to sparse" in found.conclusions[0]
    assert found.conclusions[1].startswith("No threshold makes an abrupt turn to dense") or (
        "to dense" in found.conclusions[1]
    )


def test_the_rule_of_the_run_has_nearly_its_own_share(logs: tuple[Path, Path]) -> None:
    run = sw.load(logs[0])
    found = run.emergence()
    for rule in ("initial_0.1", "rms_0.1", "abs_0.001"):
        _, values = run.series(f"near_zero/{rule}")
        np.testing.assert_allclose(found.shares[found.thresholds.index(rule)], values, atol=0.002)


# ------------------------------------------------------------------ the command


def test_the_command_says_the_conclusion_first_in_80_columns(
    logs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["emergence", str(logs[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = sw.load(logs[0]).emergence()
    assert found.conclusions[0].startswith(lines[0])
    assert max(map(len, lines)) <= 80
    (row,) = (line.split() for line in lines if line.startswith("initial_0.1 "))
    own = 100 * found.shares[found.thresholds.index("initial_0.1")]
    assert row[1:5] == [
        f"{own[0]:.2f}", f"{own.min():.2f}", str(found.steps[own.argmin()]), f"{own[-1]:.2f}",
    ]  # fmt: skip
    assert row[5] == "up"
    assert "24 of 24 snapshots" in " ".join(lines)


def test_the_command_as_json(logs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emergence", str(logs[0]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = sw.load(logs[0]).emergence()
    assert told["run"] == "live"
    assert told["thresholds"] == list(found.thresholds)
    assert told["steps"] == found.steps.tolist()
    assert told["shares"] == found.shares.tolist()
    assert told["conclusions"] == found.conclusions
    assert [turn["series"] for turn in told["turns"]] == [turn.series for turn in found.turns]


def test_what_a_log_lacks_is_said(logs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    fake_run.write_run(tmp_path / "run", fake_run.looks(range(0, 100, 10)), [])
    for file in (tmp_path / "run" / "sparsitywatch" / "spectra").iterdir():
        file.unlink()
    assert main(["emergence", str(tmp_path / "run")]) == 2
    assert "Expected spectra in the log of run 'run'" in capsys.readouterr().err
    live = sw.load(logs[0])
    with pytest.raises(StateError, match=r"first root mean square of each tensor in run\.json"):
        Run(live.records, (), None, live.spectrum).emergence()
    with pytest.raises(StateError, match="a log with spectra"):
        Run(live.records).spectrum(10)
    with pytest.raises(ConfigurationError, match="at least one record"):
        Run([]).emergence()


def test_spectra_of_some_snapshots_are_enough(tmp_path: Path, capsys) -> None:
    fake_run.write_run(tmp_path / "run", fake_run.looks(range(0, 200, 10)), [])
    for step in range(0, 200, 10):
        if step % 40:
            (tmp_path / "run/sparsitywatch/spectra" / f"step-{step:08d}.npz").unlink()
    assert sw.load(tmp_path / "run").emergence().steps.tolist() == [0, 40, 80, 120, 160]
    assert main(["emergence", str(tmp_path / "run")]) == 0
    assert "at 5 of 20 snapshots" in capsys.readouterr().out.replace("\n", " ")


# ------------------------------------------------------------------ many thresholds


@pytest.mark.parametrize(("number", "words"), [(1, "1 snapshot"), (8, "8 snapshots")])
def test_few_snapshots_are_not_said_to_have_no_turn(number: int, words: str) -> None:
    found = Emergence(
        unit="step", steps=np.arange(number), thresholds=("abs_1",), shares=np.zeros((1, number)),
        turns=(),
    )  # fmt: skip
    assert found.conclusions == [f"{words} cannot show a turn: it takes about 9."]


def test_correlated_thresholds_are_nearly_as_many_chances() -> None:
    """Why the family is of all that are tested: scores with the correlation that runs show."""
    draw = np.random.default_rng(11)
    rho, score, number, times = 0.77, 4.0, 44, 200_000
    scores = draw.normal(size=times)
    highest = scores.copy()
    for _ in range(number - 1):
        scores = rho * scores + math.sqrt(1 - rho**2) * draw.normal(size=times)
        np.maximum(highest, scores, out=highest)
    seen = (highest > score).mean() / (1 - NormalDist().cdf(score))
    assert 0.6 * number < seen < 1.1 * number


def planted(seed: int, *, abrupt: bool, thresholds: int = 12) -> np.ndarray:
    """Shares [K, T] of made-up weights that drift smoothly; or of which a sixth goes at once."""
    draw = np.random.default_rng([seed, abrupt])
    number, times = 4000, 70
    time = np.linspace(0.0, 1.0, times)
    logs = np.log(np.abs(draw.normal(size=number)) + 1e-12)
    bend = draw.uniform(-0.8, 0.8) * time + draw.uniform(-0.4, 0.4) * time**2
    wander = np.cumsum(draw.normal(size=(times, number)) * 0.05, axis=0)
    sizes = logs + bend[:, None] + wander + 0.002 * draw.normal(size=(times, 1))
    if abrupt:
        onset = int(draw.integers(30, 55))
        fall = 0.8 * np.maximum(np.arange(times) - onset, 0)
        sizes[:, : number // 6] -= fall[:, None]
    limits = np.log(10.0) * np.linspace(-2.0, 0.3, thresholds)
    return (sizes[..., None] <= limits).mean(axis=1).T


def turning(seeds: range, *, abrupt: bool) -> int:
    """Surfaces with an abrupt turn to sparse at any threshold."""
    found = 0
    for seed in seeds:
        shares = planted(seed, abrupt=abrupt)
        steps = np.arange(shares.shape[1])
        seen = turns_of(steps, shares, [{}] * len(steps))
        turns = [turn for own in seen for turn in own]
        found += any(turn.direction == "up" and turn.kind == "abrupt" for turn in turns)
    return found


@pytest.mark.slow
def test_smooth_surfaces_turn_nowhere_and_abrupt_ones_do() -> None:
    seeds = range(9000, 9004)  # none was looked at while the rule was made
    assert turning(seeds, abrupt=False) == 0
    assert turning(seeds, abrupt=True) >= 3


def test_what_has_no_date_or_is_of_one_threshold_is_gradual() -> None:
    steps = np.arange(60)
    noise = np.random.default_rng(1).normal(size=(4, 60)) * 1e-3
    jump = 0.1 + 0.1 * (steps >= 40)
    flat = np.full(60, 0.3)
    kinds = {}
    for name, shares in {"two": [jump, jump, flat, flat], "one": [jump, flat, flat, jump]}.items():
        seen = turns_of(steps, np.array(shares) + noise, [{}] * 60)
        kinds[name] = [event.kind for own in seen for event in own]
    assert kinds == {"two": ["abrupt", "abrupt"], "one": ["gradual", "gradual"]}
