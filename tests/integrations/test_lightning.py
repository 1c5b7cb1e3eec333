"""The callback on a real Trainer of Lightning, training a real BERT."""

from __future__ import annotations

import operator
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from contracts.forked import said
from contracts.live_runs import loss_per_sentence, tiny_bert
from contracts.trainers import Sentences
from contracts.watched import SeesStep
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from torch.utils.data import ConcatDataset, DataLoader

import sparsitywatch as sw
from sparsitywatch.integrations import lightning_callbacks
from sparsitywatch.integrations.lightning import SparsityWatch
from sparsitywatch.sinks.jsonl import read_records

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about workers and versions


class Lit(lightning.LightningModule):
    """A BERT that learns by one optimizer, or by one for each half."""

    def __init__(
        self, num_optimizers: int = 1, kind: type = torch.optim.AdamW, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.inner = tiny_bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        self.automatic_optimization = num_optimizers == 1
        self.kind = kind
        self.lr = 1e-3
        self.ends_at: BaseException | None = None

    def configure_optimizers(self) -> Any:
        own = [*self.inner.parameters()]
        if self.automatic_optimization:
            return self.kind(own, lr=self.lr)
        halves = own[: len(own) // 2], own[len(own) // 2 :]
        return [self.kind(half, lr=self.lr) for half in halves]

    def validation_step(self, batch: Any) -> None:
        self.log("seen", loss_per_sentence(self.inner, batch).mean())

    def training_step(self, batch: Any, index: int) -> torch.Tensor | None:
        if self.ends_at is not None and index == 3:
            raise self.ends_at
        loss = loss_per_sentence(self.inner, batch).mean()
        self.log("loss", loss)
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return None


def proxy() -> sw.Proxy:
    """As for a Trainer, of the BERT inside."""
    held_out = DataLoader(Sentences(16, seed=1), 16)
    return sw.Proxy(held_out, lambda lit, batch: loss_per_sentence(lit.inner, batch))


def fit(
    folder: Path, steps: int, *callbacks: Any, module: Lit | None = None, ckpt: Path | None = None,
    **options: Any,
) -> lightning.Trainer:  # fmt: skip
    trainer = lightning.Trainer(**{
        "default_root_dir": folder, "max_steps": steps, "accelerator": "cpu", "devices": 1,
        "callbacks": [*callbacks], "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False,
        "use_distributed_sampler": False, **options,
    })  # fmt: skip
    # in the middle of an epoch Lightning begins with its first batch: all of them are the same
    batches = DataLoader(ConcatDataset([Sentences(8)] * 12), 8)
    trainer.fit(module or Lit(), batches, ckpt_path=ckpt)
    return trainer


def watching(**options: Any) -> SparsityWatch:
    usual = {"max_overhead": None, "every": 2, "strict": True, "levels": [0.5]}
    return SparsityWatch(proxy(), **{**usual, **options})


class SavesAt(lightning.Callback):
    """Saves after so many steps, as Lightning counts them."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


def logged(folder: Path) -> list[sw.Record]:
    return read_records(folder / "sparsitywatch")


def steps(folder: Path) -> list[int]:
    return [record.step for record in logged(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("num_optimizers", [1, 2])
def test_one_line_watches_a_trainer(tmp_path: Path, num_optimizers: int) -> None:
    together = 8 * num_optimizers  # Lightning counts a step of each optimizer
    watched = fit(tmp_path / "on", together, watching(), module=Lit(num_optimizers))
    plain = fit(tmp_path / "off", together, module=Lit(num_optimizers))
    for part in ("lightning_module", "optimizers"):
        on, off = getattr(watched, part), getattr(plain, part)
        states = [
            [one.state_dict() for one in (x if isinstance(x, list) else [x])] for x in (on, off)
        ]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    torch.testing.assert_close(watched.callback_metrics, plain.callback_metrics, rtol=0, atol=0)
    records = logged(tmp_path / "on")
    assert [record.step for record in records] == [2, 4, 6, 8]
    assert all(record.valid and record.curve is not None for record in records)
    assert records[0].scope.num_tensors == 12


# ------------------------------------------------------------------ ways to train


class Small(lightning.LightningModule):
    """Two layers; what is logged of an evaluation is none of the training's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
        )

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        """Of each row; logged, as a step shared by training and validation does."""
        losses = (self.inner(batch) - batch[:, :2]).square().mean(dim=1)
        self.log("seen", losses.mean(), on_step=True, on_epoch=True)
        return losses

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.losses(batch).mean()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.losses(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.inner.parameters(), lr=1e-2)


class Paced(Small):
    """Two optimizers by turns; the smaller one begins late, as that of many a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(layer.parameters()) for layer in (self.inner[2], self.inner[0])]

    def training_step(self, batch: torch.Tensor) -> None:
        late, early = self.optimizers()
        self.manual_backward(super().training_step(batch))
        for optimizer in (early, late) if self.trainer.global_step > 6 else (early,):
            optimizer.step()
            optimizer.zero_grad()


class OwnOptimizer(Small):
    """One that Lightning does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.own = torch.optim.SGD(self.inner.parameters(), lr=1e-2)

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: torch.Tensor) -> None:
        self.own.zero_grad()
        self.manual_backward(super().training_step(batch))
        self.own.step()


class CompiledPart(Small):
    """As people compile the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(self.inner, backend="eager")


class Quiet(Small):
    """Lightning cannot compile what logs."""

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return (self(batch) - batch[:, :2]).square().mean()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.inner(batch)

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        return (self(batch) - batch[:, :2]).square().mean(dim=1)


def compiled() -> Any:
    return torch.compile(Quiet(), backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Small, {}),
        (Small, {"accumulate_grad_batches": 2}),
        (Small, {"gradient_clip_val": 0.1, "precision": "bf16-mixed"}),
        (Small, {"num_sanity_val_steps": 2, "limit_val_batches": 2, "val_check_interval": 3}),
        (Small, {"fast_dev_run": 4}),
        (Paced, {}),
        (OwnOptimizer, {}),
        (CompiledPart, {}),
        (compiled, {}),
    ],
)
def test_every_way_to_train_is_watched_and_stays_as_it_was(
    tmp_path: Path, caplog, make: Any, options: dict[str, Any]
) -> None:
    def train(*callbacks: Any) -> tuple[Any, ...]:
        trainer = lightning.Trainer(**{
            "default_root_dir": tmp_path, "max_epochs": 1, "limit_train_batches": 8,
            "accelerator": "cpu", "devices": 1, "callbacks": [*callbacks], "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False,
            "enable_checkpointing": False, "limit_val_batches": 0, **options,
        })  # fmt: skip
        rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
        batches = DataLoader(rows, 4, shuffle=True)
        trainer.fit(make(), batches, DataLoader(rows, 4))
        states = [one.state_dict() for one in trainer.optimizers]
        told = (dict(trainer.callback_metrics), dict(trainer.logged_metrics))
        return trainer.lightning_module.state_dict(), states, told, torch.get_rng_state()

    held_out = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    proxy = sw.Proxy([held_out], lambda lit, batch: lit.losses(batch))
    callback = SparsityWatch(proxy, every=2, max_overhead=None, strict=True)
    watched, plain = train(callback), train()
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    num_steps = 4 if {"accumulate_grad_batches", "fast_dev_run"} & options.keys() else 8
    assert [record.step for record in callback.watcher.records] == [*range(2, num_steps + 1, 2)]
    assert all(record.valid and record.curve is not None for record in callback.watcher.records)
    assert callback.watcher.records[-1].scope.num_tensors == 1
    # Lightning itself writes nothing then, and no log of a whole training is set aside
    assert (tmp_path / "sparsitywatch").exists() == ("fast_dev_run" not in options)
    assert "no step has been counted" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("num_optimizers", [1, 2])
def test_a_resumed_trainer_goes_on_in_the_same_log(tmp_path: Path, num_optimizers: int) -> None:
    def run(folder: str, last: int, *callbacks: Any, ckpt: Path | None = None) -> None:
        module = Lit(num_optimizers, dropout=0.0)  # Lightning restores no generator
        together = last * num_optimizers
        fit(tmp_path / folder, together, watching(), *callbacks, module=module, ckpt=ckpt)

    at_4 = tmp_path / "at-4.ckpt"
    run("whole", 8)
    run("parts", 6, SavesAt(4 * num_optimizers, at_4))
    run("parts", 8, ckpt=at_4)
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert [record.step for record in parts] == [2, 4, 6, 8]
    known = operator.attrgetter("curve", "near_zero", "dormant", "decay_clock")
    assert [*map(known, parts)] == [*map(known, whole)]


@pytest.mark.slow
def test_a_checkpoint_without_a_watch_is_gone_on_from_with_a_word(tmp_path: Path, caplog) -> None:
    at_4, sgd = tmp_path / "at-4.ckpt", torch.optim.SGD  # which does not count its steps
    fit(tmp_path, 4, SavesAt(4, at_4), module=Lit(kind=sgd))
    fit(tmp_path, 8, watching(strict=False), module=Lit(kind=sgd), ckpt=at_4)
    assert (
        "state of the watch cannot be taken up (FileNotFoundError: it is not there)" in caplog.text
    )
    assert steps(tmp_path) == [6, 8]


@pytest.mark.slow
def test_a_second_fit_goes_on_from_the_first(tmp_path: Path, caplog) -> None:
    trainer = fit(tmp_path, 4, watching())
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(trainer.lightning_module, DataLoader(ConcatDataset([Sentences(8)] * 12), 8))
    assert steps(tmp_path) == [2, 4, 6, 8]
    assert logged(tmp_path)[-1].decay_clock == pytest.approx(8e-5)
    assert "cannot be taken up" not in caplog.text


@pytest.mark.slow
def test_a_checkpoint_from_before_the_first_snapshot_is_gone_on_from(
    tmp_path: Path, caplog
) -> None:
    at_1 = tmp_path / "at-1.ckpt"
    fit(tmp_path, 2, watching(every=4), SavesAt(1, at_1))
    fit(tmp_path, 8, watching(every=4), ckpt=at_1)
    assert steps(tmp_path) == [4, 8]
    assert [r.decay_clock for r in logged(tmp_path)] == pytest.approx([4e-5, 8e-5])
    assert "cannot be taken up" not in caplog.text


@pytest.mark.slow
def test_what_is_validated_is_not_watched_nor_gone_on_from(tmp_path: Path, caplog) -> None:
    """Somebody looks at an earlier checkpoint between two parts of a training."""
    at_2, callback = tmp_path / "at-2.ckpt", watching()
    batches = DataLoader(ConcatDataset([Sentences(8)] * 12), 8)
    trainer = fit(tmp_path, 4, callback, SavesAt(2, at_2))
    other = fit(tmp_path / "other", 0, watching())
    other.validate(Lit(), batches, ckpt_path=at_2)
    assert not (tmp_path / "other" / "sparsitywatch").exists()
    trainer.validate(trainer.lightning_module, batches, ckpt_path=at_2)
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(trainer.lightning_module, batches)
    assert steps(tmp_path) == [2, 4, 6, 8]
    assert callback.watcher.step_count == trainer.global_step == 8
    assert "cannot be taken up" not in caplog.text


@pytest.mark.slow
def test_each_of_two_watches_goes_on_from_its_own_state(tmp_path: Path, caplog) -> None:
    def both() -> list[SparsityWatch]:
        patterns = {"one": "global", "two": "layerwise"}
        return [watching(logdir=str(tmp_path / n), pattern=p) for n, p in patterns.items()]

    at_4 = tmp_path / "at-4.ckpt"
    fit(tmp_path, 4, *both(), SavesAt(4, at_4))
    fit(tmp_path, 8, *both(), ckpt=at_4)
    for folder, pattern in (("one", "global"), ("two", "layerwise")):
        records = logged(tmp_path / folder)
        assert [record.step for record in records] == [2, 4, 6, 8]
        assert {record.provenance.pattern for record in records} == {pattern}
    assert "cannot be taken up" not in caplog.text


@pytest.mark.slow
def test_a_search_for_a_learning_rate_is_not_watched_and_loses_no_state(
    tmp_path: Path, caplog
) -> None:
    """Lightning saves, trains for a while, and loads what it has saved."""
    at_4 = tmp_path / "at-4.ckpt"

    def finder() -> LearningRateFinder:
        return LearningRateFinder(num_training_steps=8, update_attr=False)

    fit(tmp_path, 4, watching(), SavesAt(4, at_4), finder())
    fit(tmp_path, 8, watching(), finder(), ckpt=at_4)
    assert steps(tmp_path) == [2, 4, 6, 8]
    assert "cannot be taken up" not in caplog.text
    clocks = [record.decay_clock for record in logged(tmp_path)]
    assert clocks == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5])


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()])
def test_what_training_ended_by_is_in_the_log_and_it_goes_on_from_there(
    tmp_path: Path, error: BaseException
) -> None:
    module = Lit()
    module.ends_at = error
    callback = watching(every=1)
    saves = ModelCheckpoint(tmp_path, "last", every_n_train_steps=100, save_on_exception=True)
    with pytest.raises((RuntimeError, SystemExit)):
        fit(tmp_path, 8, callback, saves, module=module, enable_checkpointing=True)
    assert callback.watcher.closed
    assert type(error).__name__ in sw.load(tmp_path).verdict.headline
    fit(tmp_path, 5, watching(every=1), ckpt=tmp_path / "last.ckpt")
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    assert logged(tmp_path)[-1].decay_clock == pytest.approx(5e-5)


def reacts(step: int, on_event: list[Any], **options: Any) -> SparsityWatch:
    given = {"every": 1, "background": False, **options}
    return watching(
        detectors={"near_zero/initial_0.1": SeesStep(step)}, on_event=on_event, **given
    )  # fmt: skip


@pytest.mark.slow
def test_an_event_saves_and_stops(tmp_path: Path) -> None:
    trainer = fit(tmp_path, 8, reacts(3, ["save", "stop"]))
    assert trainer.global_step == 3
    saved = tmp_path / "sparsitywatch-saved" / "step=3.ckpt"
    again = fit(tmp_path, 5, reacts(3, ["stop"]), ckpt=saved)
    assert again.global_step == 5  # the event is known
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    replayed = sw.replay({3: str(saved)}, proxy=proxy(), model=Lit(), logdir=None)
    assert replayed.records[0].fingerprint == logged(tmp_path)[2].fingerprint


@pytest.mark.slow
def test_what_the_last_look_sees_is_not_too_late(tmp_path: Path) -> None:
    callback = reacts(12, ["save"], background=True, every=12)
    fit(tmp_path, -1, callback, max_epochs=1)
    saved = tmp_path / "sparsitywatch-saved" / "step=12.ckpt"
    fit(tmp_path, -1, reacts(0, [], every=12), max_epochs=2, ckpt=saved)
    assert steps(tmp_path) == [12, 24]


@pytest.mark.slow
def test_a_disk_that_is_full_does_not_end_the_training(tmp_path: Path, caplog) -> None:
    (tmp_path / "sparsitywatch-saved").write_text("in the way")
    trainer = fit(tmp_path, 4, reacts(3, ["save"], strict=False))
    assert trainer.global_step == 4
    assert "saving failed; training goes on" in caplog.text


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(sw.ConfigurationError, match=r"got \['evry'\]"):
        SparsityWatch(evry=3)
    with pytest.raises(sw.ConfigurationError, match=r"words \['log', 'save', 'stop'\]"):
        SparsityWatch(on_event=["halt"])
    with pytest.raises(sw.ConfigurationError, match=r"`proxy` to be a sw.Proxy\(batches, value\)"):
        SparsityWatch(torch.nn.Linear(2, 2))


@pytest.mark.slow
def test_a_mistake_ends_the_training_only_where_somebody_wrote_it(tmp_path: Path, caplog) -> None:
    class Small(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.weight.sum() * len(batch)

    with pytest.raises(sw.errors.ScopeError, match="selects none of 1 parameters"):
        fit(tmp_path, 2, SparsityWatch(), module=Small())
    assert fit(tmp_path, 2, *asked(), module=Small()).global_step == 2
    assert "attaching failed; training goes on unwatched" in caplog.text


# ------------------------------------------------------------------ the environment asks for it


def asked() -> list[SparsityWatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSITYWATCH_LIGHTNING", "1")
        return lightning_callbacks()


@pytest.mark.parametrize("value", ["", "0"])
def test_nothing_is_added_where_nobody_asks(monkeypatch, value: str) -> None:
    monkeypatch.setenv("SPARSITYWATCH_LIGHTNING", value)
    assert lightning_callbacks() == []


@pytest.mark.parametrize("broken", ["sparsitywatch.integrations.lightning", "sparsitywatch.errors"])
def test_a_package_that_is_broken_breaks_no_trainer(monkeypatch, caplog, broken: str) -> None:
    monkeypatch.delitem(sys.modules, "sparsitywatch.integrations.lightning")
    monkeypatch.setitem(sys.modules, broken, None)
    assert asked() == []
    assert "SPARSITYWATCH_LIGHTNING cannot be followed" in caplog.text


@pytest.mark.slow
def test_who_has_given_one_gets_no_second_and_may_change_it(tmp_path: Path, caplog) -> None:
    """A checkpoint that the one has saved is the other's, too."""
    at_4 = tmp_path / "at-4.ckpt"
    (second,) = asked()
    fit(tmp_path, 4, second, watching(), SavesAt(4, at_4))
    assert second.watcher is None
    assert len(torch.load(at_4, weights_only=True)["sparsitywatch"]) == 1
    (alone,) = asked()
    alone._attached._options["every"] = 2
    fit(tmp_path, 6, alone, ckpt=at_4)
    assert alone.watcher.step_count == 6
    assert alone.watcher.off == ""


def test_it_is_declared_under_both_names() -> None:
    for package in ("lightning.pytorch", "pytorch_lightning"):
        found = [
            e for e in entry_points(group=f"{package}.callbacks_factory") if "sparsity" in e.name
        ]
        assert {one.load() for one in found} == {lightning_callbacks}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "other"),
    [
        ("lightning.pytorch", "os"),
        ("pytorch_lightning", "os"),
        ("pytorch_lightning", "lightning.pytorch"),
    ],
)
def test_a_trainer_finds_it_and_trains_with_it(
    monkeypatch, tmp_path: Path, package: str, other: str
) -> None:
    """Not one line of the script knows of it."""
    monkeypatch.setenv("SPARSITYWATCH_LIGHTNING", "1")
    script = (
        f"import warnings, {other}\n"
        "warnings.simplefilter('ignore')\n"
        f"from {package} import Trainer\n"
        f"from {package}.demos.boring_classes import BoringModel\n"
        "from torch.nn import Linear, Sequential\n"
        "class Model(BoringModel):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = Sequential(Linear(32, 8), Linear(8, 2))\n"
        "trainer = Trainer(accelerator='cpu', default_root_dir='here', max_steps=3, devices=1,\n"
        "                  enable_progress_bar=False, limit_val_batches=0)\n"
        "trainer.fit(Model())\n"
        "(found,) = [one for one in trainer.callbacks if type(one).__name__ == 'AskedFor']\n"
        "print(found.watcher.step_count, found.watcher.closed, found.watcher.off)\n"
    )
    printed, _ = said(script, tmp_path)
    assert printed.splitlines()[-1] == "3 True "
    assert (tmp_path / "here" / "lightning_logs" / "sparsitywatch" / "run.json").exists()
