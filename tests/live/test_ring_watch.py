"""The ring inside a watch: a planted spike is told with where it began, whatever ends the run."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.analysis.spikes import Moves
from sparsitywatch.live import ring as ring_module
from sparsitywatch.sinks.jsonl import read_moves

#: When the first two blocks begin to move twice as far, and when the loss does.
_BEGINS, _SPIKES = 330, 345


class Training:
    """Steps of random gradients whose size and loss are planted."""

    def __init__(self, num_optimizers: int = 1, momentum: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        halves = [self.model.layers[:2].parameters(), self.model.layers[2:].parameters()]
        groups = [{"params": [*half], "lr": 1e-3} for half in halves]
        parts = [groups] if num_optimizers == 1 else [[group] for group in groups]
        self.optimizers = [torch.optim.SGD(part, momentum=momentum) for part in parts]
        self.random = torch.Generator().manual_seed(1)
        self.step = 0

    def watch(self, logdir: Path | None, **options) -> sw.Watcher:
        options = {"every": 400, "max_overhead": None, "ring": True, "strict": True} | options
        return sw.watch(self.model, self.optimizers, logdir=logdir, **options)

    def train(self, until: int, watcher: sw.Watcher | None = None) -> None:
        while self.step < until:
            self.step += 1
            for index, layer in enumerate(self.model.layers):
                faster = 2.0 if index < 2 and self.step >= _BEGINS else 1.0
                for p in layer.parameters():
                    p.grad = faster * torch.randn(p.shape, generator=self.random)
            noise = 0.03 * torch.randn((), generator=self.random)
            if watcher is not None:
                watcher.log_loss(2.0 + noise + 1.5 * (self.step >= _SPIKES))
            for optimizer in self.optimizers:
                optimizer.step()


def moves_of(logdir: Path) -> Moves:
    moves = read_moves(logdir / "sparsitywatch")
    assert moves is not None
    return moves


def spikes(events: list[sw.Event]) -> list[tuple]:
    found = [event for event in events if event.kind == "spike"]
    return [(e.onset_low, e.onset_high, e.layers) for e in found]


PLANTED = [(_BEGINS, _SPIKES, ("layers.0", "layers.1"))]


@pytest.mark.parametrize("num_optimizers", [1, 2])
def test_a_spike_is_told_at_the_next_snapshot(tmp_path, num_optimizers):
    training = Training(num_optimizers)
    told = []
    with training.watch(tmp_path, on_event=[told.append]) as watcher:
        training.train(400, watcher)
        assert spikes(watcher.events) == PLANTED
        training.train(420, watcher)
    [event] = told
    assert event.describe() == (
        "Spike of the loss at step 345: from 1.99 to 3.48; it began in layers.0, layers.1 at step "
        "330, where updates rose 2.0-fold"
    )
    assert event.detected_step == 400
    assert spikes(sw.load(tmp_path).events) == PLANTED
    moves = moves_of(tmp_path)
    assert moves.steps.tolist() == [*range(1, 421)]
    np.testing.assert_allclose(moves.update[50:320], 1e-3, rtol=0.1)
    np.testing.assert_allclose(moves.gradient[350:, :2], 2.0, rtol=0.1)


def test_a_training_that_ends_by_an_exception_leaves_its_ring(tmp_path, caplog):
    training = Training()

    def train() -> None:
        with training.watch(tmp_path) as watcher:
            training.train(360, watcher)
            raise KeyError

    with pytest.raises(KeyError):
        train()
    assert moves_of(tmp_path).steps.tolist() == [*range(1, 361)]
    [warning] = [r.getMessage() for r in caplog.records if "Spike of the loss" in r.getMessage()]
    assert "began in layers.0, layers.1 at step 330" in warning


def test_a_resumed_run_tells_nothing_twice_and_begins_a_new_ring(tmp_path):
    first = Training()
    with first.watch(tmp_path) as watcher:
        first.train(400, watcher)
        state = watcher.state_dict()
        first.train(450, watcher)  # of a future that is lost
    later = Training()
    later.step = 400
    told = []
    with later.watch(tmp_path, on_event=[told.append]) as watcher:
        watcher.load_state_dict(state)
        later.train(800, watcher)
        assert spikes(watcher.events) == PLANTED
    assert not told
    assert moves_of(tmp_path).steps.tolist() == [*range(401, 801)]


def bits_after(watched: Path | None, ring: bool | None) -> list[bytes]:
    """Weights, momenta and the states of all generators after 60 steps."""
    training = Training(momentum=0.9)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 what users seed
    if watched is None:
        training.train(60)
    else:
        with training.watch(watched, ring=ring) as watcher:
            training.train(60, watcher)
    [optimizer] = training.optimizers
    held = [*training.model.parameters()]
    held += [optimizer.state[p]["momentum_buffer"] for p in training.model.parameters()]
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())  # noqa: NPY002
    return [one.detach().numpy().tobytes() for one in held] + [repr(states).encode()]


@pytest.mark.parametrize("ring", [True, None, False])
def test_the_bits_of_the_training_are_the_same(tmp_path, ring):
    assert bits_after(tmp_path, ring) == bits_after(None, ring)


@pytest.mark.parametrize(("most", "is_kept"), [(1e9, True), (0.0, False)])
def test_unasked_it_is_kept_where_it_costs_next_to_nothing(
    tmp_path, monkeypatch, caplog, most, is_kept
):
    monkeypatch.setattr(ring_module, "_MOST_SHARE", most)
    caplog.set_level(logging.DEBUG, "sparsitywatch")
    training = Training()
    with training.watch(tmp_path, ring=None) as watcher:
        training.train(40, watcher)
        assert (bool(watcher._ring._tensors)) == is_kept
    words = "are kept at every step (`ring`): " if is_kept else "which `ring=True` would keep for "
    [told] = [r.getMessage() for r in caplog.records if words in r.getMessage()]
    assert told.endswith("% of a step")


def test_without_it_nothing_is_kept(tmp_path):
    training = Training()
    with training.watch(tmp_path, ring=False) as watcher:
        training.train(40, watcher)
        watcher.snapshot()
        assert not len(watcher._ring.moves.steps)


def test_a_fault_in_it_ends_the_ring_alone(tmp_path, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no room on the device")

    training = Training()
    with training.watch(tmp_path, strict=False, every=30) as watcher:
        training.train(20, watcher)
        monkeypatch.setattr(ring_module.Ring, "_record", broken)
        training.train(60, watcher)
        assert not watcher.off
        assert [record.step for record in watcher.records] == [30, 60]
    assert sum("are kept no more" in r.getMessage() for r in caplog.records) == 1


def test_steps_that_a_gradient_scaler_skips_are_no_spikes(tmp_path):
    training, scaler = Training(), torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs = torch.randn(16, 32, generator=training.random)
    with training.watch(tmp_path, every=200) as watcher:
        for step in range(1, 301):
            outputs = [layer(inputs).square().mean() for layer in training.model.layers]
            loss = sum(outputs) * (math.inf if step % 40 == 0 else 1.0)
            training.optimizers[0].zero_grad()
            scaler.scale(loss).backward()
            watcher.log_loss(loss)
            scaler.step(training.optimizers[0])
            scaler.update()
        watcher._ring.look()
        moves = watcher._ring.moves
    assert moves.steps.tolist() == [*range(1, 294)]  # 7 were skipped
    assert np.isfinite(moves.loss).all()
    assert (moves.update[1:] > 0.0).all()
    assert np.isfinite(moves.gradient).all()
    assert spikes(watcher.events) == []


def test_where_no_weights_can_be_read_that_is_said(caplog):
    training = Training()
    training.model.requires_grad_(False)
    with training.watch(None):
        pass
    assert any(
        "all weights are frozen, quantised, or of FSDP1" in r.getMessage() for r in caplog.records
    )


def test_what_is_neither_yes_nor_no_is_refused():
    with pytest.raises(sw.errors.ConfigurationError, match="Expected `ring`"):
        Training().watch(None, ring="yes")
