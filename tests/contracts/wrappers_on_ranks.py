"""What wrappers do on the ranks of torchrun, case by case; also imported, for one process.

Every rank gets the same batches. A mean over two ranks is then bit for bit what one process has,
and so are the weights and the records.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from contracts.live_runs import loss_per_sentence, tiny_bert
from contracts.trainers import Sentences, proxy, train
from contracts.watched import SeesStep
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader

import sparsitywatch as sw
from sparsitywatch.integrations import huggingface
from sparsitywatch.integrations.huggingface import SparsityWatchCallback
from sparsitywatch.integrations.lightning import SparsityWatch

STEPS, BEFORE = 4, 2  # of a run, and of its first part
OPTIONS = {"max_overhead": None, "every": 1, "strict": True}
#: torch 2.13 at times hangs when it lets go of a DistributedDataParallel.
ALIVE: list[torch.nn.Module] = []
FSDP2 = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}}


class SameOnEveryRank(transformers.Trainer):
    """Each rank trains on all of the batches."""

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, 8)


def model() -> torch.nn.Module:
    """A BERT without dropout, which each rank would draw, and without ties.

    Accelerate would put the two owners of its last bias into two groups, which FSDP2 refuses.
    """
    torch.manual_seed(0)
    made = tiny_bert(
        tie_word_embeddings=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    del made.cls.predictions.bias  # the decoder has one
    return made


def trained(folder: Path, steps: int, resume: bool | str = False, **options: Any) -> dict:
    """A Trainer up to ``steps`` on the same batches everywhere, with a log and checkpoints."""
    callback = SparsityWatchCallback(proxy(4), logdir=str(folder / "log"), **OPTIONS)
    trainer = train(
        folder / "run", steps, callback, resume, kind=SameOnEveryRank, model=model(),
        report_to=[], max_grad_norm=0.0, save_steps=BEFORE,
        average_tokens_across_devices=False,  # this loss knows nothing of tokens
        **options,
    )  # fmt: skip
    return said(trainer.model_wrapped, callback.watcher)


def resumed(folder: Path, **options: Any) -> dict:
    """The second part of ``trained``; rank 1 does not see the disk of rank 0."""
    name = huggingface._STATE_FILE
    if dist.get_rank() == 1:
        huggingface._STATE_FILE = "none of that name"
    try:
        return trained(folder, STEPS, resume=True, **options)
    finally:
        huggingface._STATE_FILE = name


def stopped(folder: Path) -> dict:
    """A Trainer that saves and stops on an event; each rank trains on batches of its own."""
    seen: list[int] = []
    callback = SparsityWatchCallback(
        proxy(4), logdir=str(folder / "log"), detectors={"near_zero/initial_0.1": SeesStep(3)},
        on_event=["save", "stop", lambda event: seen.append(event.detected_step)],
        **OPTIONS, background=False,
    )  # fmt: skip
    trainer = train(
        folder / "run", 6, callback, report_to=[], save_strategy="no",
        per_device_train_batch_size=4,
    )  # fmt: skip
    ALIVE.append(trainer.model_wrapped)
    return {"step": trainer.state.global_step, "seen": seen}


def sharded() -> dict[str, Any]:
    """What an Accelerator needs for FSDP2."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],
        state_dict_type="SHARDED_STATE_DICT",
    )
    return {"fsdp_plugin": plugin}


def accelerated(folder: Path, first: int, last: int, **options: Any) -> dict:
    """A plain loop through an Accelerator, whose optimizer is wrapped, between two steps."""
    accelerator = Accelerator(**options or {"cpu": True})
    watched = model()
    optimizer = torch.optim.AdamW(watched.parameters(), lr=1e-3)
    watched, optimizer = accelerator.prepare(watched, optimizer)
    with sw.watch(watched, optimizer, proxy=proxy(4), logdir=folder / "log", **OPTIONS) as watcher:
        accelerator.register_for_checkpointing(watcher)
        if first:
            accelerator.load_state(str(folder / "saved"))
        for batch in [*DataLoader(Sentences(8 * STEPS), 8)][first:last]:
            optimizer.zero_grad()
            accelerator.backward(loss_per_sentence(watched, batch).mean())
            optimizer.step()
        accelerator.save_state(str(folder / "saved"))
    return said(watched, watcher)


#: How Lightning trains on two ranks.
LIGHTNING = {"ddp": DDPStrategy, "fsdp": lambda: ModelParallelStrategy(2, 1)}


class Lit(lightning.LightningModule):
    """The same loop as Lightning wants it; an epoch has as many steps as the first part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def configure_model(self) -> None:
        """Shard it, where the strategy does; called again where it is done."""
        is_sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        if is_sharded and not isinstance(self.inner, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for part in (*self.inner.bert.encoder.layer, self.inner):
                fully_shard(part, mesh=mesh)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the parameters as they are by now."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        """A batch that is the same on every rank."""
        return loss_per_sentence(self.inner, batch).mean()


class Noting(lightning.Callback):
    """Keeps what is trained alive, and says what it was."""

    wrapped: torch.nn.Module

    def on_train_start(self, trainer: lightning.Trainer, module: Lit) -> None:
        """Note it before it is let go."""
        wrapped = trainer.strategy.model
        self.wrapped = module.inner if wrapped is module else wrapped
        ALIVE.append(wrapped)


def lit(folder: Path, steps: int, ckpt: str | None = None, **options: Any) -> dict:
    """A Trainer of Lightning up to ``steps``, with a log and checkpoints."""
    watch = SparsityWatch(proxy_of_lit(), logdir=str(folder / "log"), **OPTIONS)
    noting = Noting()
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=BEFORE, save_top_k=-1)
    fit(steps, [noting, watch, saving], ckpt and str(folder / ckpt), **options)
    return said(noting.wrapped, watch.watcher)


def lit_stopped(folder: Path) -> dict:
    """A Trainer of Lightning that saves and stops on an event."""
    seen: list[int] = []
    watch = SparsityWatch(
        proxy_of_lit(), logdir=str(folder), detectors={"near_zero/initial_0.1": SeesStep(3)},
        on_event=["save", "stop", lambda event: seen.append(event.detected_step)],
        **OPTIONS, background=False,
    )  # fmt: skip
    trainer = fit(
        6, [Noting(), watch], strategy=DDPStrategy(), devices=2, enable_checkpointing=False
    )
    return {"step": trainer.global_step, "seen": seen}


def proxy_of_lit() -> sw.Proxy:
    """The same batches as of a Trainer."""
    held_out = DataLoader(Sentences(16, seed=1), 4)
    return sw.Proxy(held_out, lambda lit, batch: loss_per_sentence(lit.inner, batch))


def fit(steps: int, callbacks: list, ckpt: str | None = None, **options: Any) -> lightning.Trainer:
    """Train a ``Lit``; on one device unless ``options`` say more."""
    trainer = lightning.Trainer(**{
        "accelerator": "cpu", "devices": 1, "max_steps": steps, "callbacks": callbacks,
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "use_distributed_sampler": False, **options,
    })  # fmt: skip
    trainer.fit(Lit(), DataLoader(Sentences(8 * BEFORE), 8), ckpt_path=ckpt)
    return trainer


def said(wrapped: torch.nn.Module, watcher: sw.Watcher) -> dict:
    """What the watch of this rank knows."""
    ALIVE.append(wrapped)
    return {
        "wrapper": type(wrapped).__name__,
        "off": watcher.off,
        "fingerprints": [record.fingerprint for record in watcher.records],
        "replicas": [r.replicas is not None and r.replicas.num_ranks for r in watcher.records],
    }


def as_if_on_gpus() -> None:
    """Let Accelerate think so, from now on: it ignores an FSDP plugin on CPUs."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def main(folder: Path) -> None:
    """All cases; what this rank saw, and which states it saved, goes to ``rank-<r>.json``."""
    warnings.simplefilter("ignore")  # torch's own
    save, saved = huggingface.save_whole, []
    huggingface.save_whole = lambda state, file: (saved.append(str(file)), save(state, file))
    dist.init_process_group("gloo")
    cases = {
        "ddp": lambda to: trained(to, BEFORE),
        "ddp-resumed": lambda to: resumed(to.with_name("ddp")),
        "events": stopped,
        "accelerate": lambda to: accelerated(to, 0, BEFORE),
        "accelerate-resumed": lambda to: accelerated(to.with_name("accelerate"), BEFORE, STEPS),
        **{
            f"lightning-{name}{part}": lambda to, steps=steps, strategy=strategy, ckpt=ckpt: lit(
                to.with_name(to.name.removesuffix("-resumed")),
                steps,
                ckpt,
                strategy=strategy(),
                devices=2,
            )
            for name, strategy in LIGHTNING.items()
            for part, steps, ckpt in (
                ("", BEFORE, None),
                ("-resumed", STEPS, f"step={BEFORE}.ckpt"),
            )
        },
        "lightning-events": lit_stopped,
        "fsdp": lambda to: trained(to, BEFORE, **FSDP2),
        "fsdp-resumed": lambda to: resumed(to.with_name("fsdp"), **FSDP2),
        "accelerate-fsdp": lambda to: accelerated(to, 0, BEFORE, **sharded()),
        "accelerate-fsdp-resumed": lambda to: accelerated(
            to.with_name("accelerate-fsdp"), BEFORE, STEPS, **sharded()
        ),
    }
    found: dict[str, Any] = {"saved": saved}
    for name, case in cases.items():
        if name == "fsdp":
            as_if_on_gpus()
        AcceleratorState._reset_state(reset_partial_state=True)
        found[name] = case(folder / name)
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # with all that is alive


if __name__ == "__main__":
    main(Path(sys.argv[1]))
