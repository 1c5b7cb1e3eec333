"""What a framework knows of the loss reaches the watch, with its step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import sparsitywatch as sw


class Said:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[tuple] = []

    def log_loss(self, value: object, step: int | None) -> None:
        self.losses.append((value, step))


def test_the_trainer_reports_what_it_logs():
    pytest.importorskip("transformers")
    from sparsitywatch.integrations.huggingface import SparsityWatchCallback

    callback, said = SparsityWatchCallback(), Said()
    callback._attached.watcher = said
    state = SimpleNamespace(global_step=10)
    callback.on_log(None, state, None, logs={"loss": 2.5, "epoch": 0.1})
    callback.on_log(None, state, None, logs={"eval_loss": 2.4})
    callback.on_log(None, state, None)
    assert said.losses == [(2.5, 10)]


def test_lightning_reports_what_a_training_step_gave():
    pytest.importorskip("lightning")
    from sparsitywatch.integrations.lightning import SparsityWatch

    callback, said = SparsityWatch(), Said()
    callback._attached.watcher = said
    trainer = SimpleNamespace(global_step=7)
    loss = torch.tensor(1.5)
    callback.on_train_batch_end(trainer, None, {"loss": loss}, None, 6)
    callback.on_train_batch_end(trainer, None, None, None, 7)
    assert said.losses == [(loss, 7)]


def test_a_loss_after_its_step_belongs_to_that_step(tmp_path):
    model = torch.nn.Linear(32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sw.watch(
        model, optimizer, logdir=tmp_path, ring=True, every=100, scope="layers", strict=True
    ) as watcher:
        for number in range(1, 4):
            model(torch.randn(4, 32)).square().mean().backward()
            optimizer.step()
            watcher.log_loss(float(number), step=number)
        watcher._ring.look()
        assert watcher._ring.moves.loss.tolist() == [1.0, 2.0, 3.0]
