from __future__ import annotations

import checkpoint
import numpy as np
import pytest
import torch
from masking import TextSampler
from training import Training, bert, learning_rate_factor
from transformers import get_scheduler

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.98), "decay": 0.5, "clip": 1.0, "steps": 20}
STREAM = np.random.default_rng(0).integers(5, 40, 1_000).astype(np.int32)


def _training(schedule: str = "constant", warmup: int = 4, dropout: float = 0.2) -> Training:
    torch.manual_seed(0)
    model = bert(
        layers=1, hidden=8, heads=2, ffn=16, activation="relu", dropout=dropout,
        vocabulary_size=40, length=8,
    )  # fmt: skip
    sampler = TextSampler(STREAM, 4, 8, 40, torch.Generator().manual_seed(0))
    return Training(model.train(), sampler, schedule=schedule, warmup=warmup, **SETTINGS)


def test_the_loss_falls_and_is_about_ln_of_the_vocabulary_at_first():
    training = _training()
    losses = [float(training.step()) for _ in range(20)]
    assert losses[0] == pytest.approx(np.log(40), abs=0.2)
    assert np.mean(losses[-5:]) < losses[0] - 0.05
    assert training.steps_done == 20


def test_decay_is_on_matrices_only():
    training = _training()
    decay = {
        id(p): group["weight_decay"] for group in training.optimizer.param_groups
        for p in group["params"]
    }  # fmt: skip
    for name, parameter in training.model.named_parameters():
        is_vector = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if is_vector else 0.5), name


# ------------------------------------------------------------------ schedules


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_warm_up_schedules_are_those_of_transformers(schedule):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=5, num_training_steps=30)
    for step in range(1, 31):
        mine = learning_rate_factor(step, schedule=schedule, warmup=5, steps=30)
        if step > 5:
            assert mine == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_every_schedule_warms_up_linearly(schedule):
    factors = [
        learning_rate_factor(s, schedule=schedule, warmup=4, steps=100) for s in (1, 2, 3, 4)
    ]
    assert factors == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_factor(1, schedule=schedule, warmup=0, steps=1) == 1.0


def test_wsd_is_stable_and_then_decays_over_the_last_fifth():
    factors = [learning_rate_factor(s, schedule="wsd", warmup=0, steps=10) for s in range(1, 11)]
    assert factors == pytest.approx([1.0] * 9 + [0.5])
    assert learning_rate_factor(500, schedule="constant", warmup=10, steps=500) == 1.0


def test_the_optimizer_steps_with_the_factor_of_the_step():
    training = _training("linear", warmup=2)
    seen = []
    training.optimizer.register_step_post_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    for _ in range(20):
        training.step()
    expected = [
        0.01 * learning_rate_factor(s, schedule="linear", warmup=2, steps=20) for s in range(1, 21)
    ]
    assert seen == [[lr, lr] for lr in expected]


# ------------------------------------------------------------------ state


def _bits(training: Training) -> dict[str, torch.Tensor]:
    state = training.state_dict()
    moments = {
        f"{i}.{name}": tensor
        for i, entry in state["optimizer"]["state"].items()
        for name, tensor in entry.items()
    }
    return {**state["model"], **moments, **state["rng"]}


def test_a_training_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    whole = _training()
    losses = [float(whole.step()) for _ in range(12)]

    first = _training()
    for _ in range(5):
        first.step()
    checkpoint.save(tmp_path / "c.pt", first.state_dict())
    second = _training()
    second.step()  # whatever happened before is forgotten
    torch.manual_seed(77)
    second.load_state_dict(checkpoint.load(tmp_path / "c.pt"))

    assert [float(second.step()) for _ in range(7)] == losses[5:]
    assert second.steps_done == 12
    expected, found = _bits(whole), _bits(second)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
