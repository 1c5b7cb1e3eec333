"""What real libraries save replays to what a live watch wrote in the same run."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from contracts.forked import WATCHED_BERT, Child, forked
from contracts.live_runs import (
    held_out,
    loss_per_sentence,
    save_safetensors,
    sentences,
    tiny_bert,
    told_by_weights,
    train,
)
from contracts.s3_server import s3_server

import sparsitywatch as sw
from sparsitywatch.records import Record, Replicas
from sparsitywatch.sinks.jsonl import read_records

HERE = Path(__file__).parent


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(replayed: list[Record], live: list[Record]) -> None:
    """The records of the steps that both have, at least two."""
    theirs = {record.step: told_by_weights(record) for record in live}
    ours = {record.step: told_by_weights(record) for record in replayed}
    assert len(ours) >= 2
    assert ours == {step: theirs[step] for step in ours}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    module_of("trainer_run").train(folder)
    return folder


@pytest.mark.slow
def test_the_trainer_of_transformers(trained: Path, tmp_path: Path) -> None:
    live = read_records(trained / "runs" / "sparsitywatch")
    replayed = sw.replay(
        trained, logdir=tmp_path, model=tiny_bert, proxy=held_out(), initial_rms=trained / "runs"
    )
    assert not replayed.failures
    assert [record.step for record in replayed.records] == [2, 4, 6, 8]
    assert_same(replayed.records, live)
    assert all(record.essential_sparsity is not None for record in replayed.records)


@pytest.mark.slow
def test_the_sidecar_of_a_trainer_in_another_process(tmp_path: Path) -> None:
    run, records = tmp_path / "run", tmp_path / "sparsitywatch" / "records.jsonl"
    imports = f"{WATCHED_BERT},transformers.trainer"
    process = Child(HERE / "trainer_run.py", run, records, imports=imports)
    seen_while_it_ran = []

    def told(record: Record) -> None:
        if process.is_on():
            seen_while_it_ran.append(record.step)

    try:
        replayed = sw.replay(
            run,
            logdir=tmp_path,
            model=tiny_bert,
            proxy=held_out(),
            on_record=[told],
            follow=True,
            poll_s=0.02,
            until=lambda: not process.is_on(),
        )
    finally:
        process.kill()
    returned, _, errors = process.communicate()
    assert returned == 0, errors
    assert [record.step for record in replayed.records] == [2, 4, 6, 8], (errors, replayed.failures)
    assert replayed.failures == []
    assert seen_while_it_ran
    # near zero refers to the first checkpoint here; in the run itself to the very beginning
    live = read_records(run / "runs" / "sparsitywatch")
    for ours, theirs in zip(replayed.records, live, strict=True):
        assert ours.curve == theirs.curve
        assert ours.near_zero["rms_0.1"] == theirs.near_zero["rms_0.1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports
        lightning = pytest.importorskip("lightning")

    def value(module, batch) -> torch.Tensor:
        return loss_per_sentence(module.model, batch)

    proxy = sw.Proxy([sentences(1)], value)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_bert()

        def training_step(self, batch, _: int) -> torch.Tensor:
            return loss_per_sentence(self.model, batch).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

        def on_train_start(self) -> None:
            self.watcher = sw.watch(
                self,
                self.optimizers().optimizer,
                logdir=tmp_path / "live",
                proxy=proxy,
                every=2,
                max_overhead=None,
            )

        def on_train_end(self) -> None:
            self.watcher.close()

    data = sentences(3, 24)
    rows = [{name: tensor[i] for name, tensor in data.items()} for i in range(24)]
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "run", every_n_train_steps=2, save_top_k=-1
    )
    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", logger=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[saving],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(rows, batch_size=4))
    replayed = sw.replay(
        tmp_path / "run", logdir=None, model=Module, proxy=proxy, initial_rms=tmp_path / "live"
    )
    assert [record.step for record in replayed.records] == [2, 4, 6]
    assert_same(replayed.records, read_records(tmp_path / "live" / "sparsitywatch"))


@pytest.mark.slow
def test_distributed_checkpoints_of_two_processes(tmp_path: Path) -> None:
    script = HERE / "distributed_training.py"
    status, output = forked(script, str(tmp_path), imports=WATCHED_BERT)
    assert status == 0, output
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in those processes
    try:
        replayed = sw.replay(
            tmp_path / "run",
            logdir=None,
            model=tiny_bert,
            proxy=held_out(),
            initial_rms=tmp_path / "live",
        )
    finally:
        torch.set_num_threads(before)
    assert [record.step for record in replayed.records] == [2, 4]
    live = read_records(tmp_path / "live" / "sparsitywatch")
    assert [record.replicas for record in live] == [Replicas(num_ranks=2)] * 2
    # of a file there are no replicas
    assert_same(replayed.records, [replace(record, replicas=None) for record in live])


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, object]]:
    pytest.importorskip("s3fs")
    with s3_server("replayed") as options:
        yield options


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_s3(options, tmp_path: Path) -> None:
    import s3fs

    live = train(None, save_safetensors(tmp_path / "run"))
    s3fs.S3FileSystem(**options).put(str(tmp_path / "run"), "replayed/bert", recursive=True)
    replayed = sw.replay("s3://replayed/bert/", logdir=tmp_path, storage_options=options)
    assert_same(replayed.records, live)
    again = sw.replay("s3://replayed/bert/", logdir=tmp_path, storage_options=options)
    assert (again.num_snapshots, len(again.records)) == (0, 5)
    # what it is told of the storage stays here
    assert all(
        b"testing" not in p.read_bytes() for p in (tmp_path / "sparsitywatch").glob("*.json*")
    )
