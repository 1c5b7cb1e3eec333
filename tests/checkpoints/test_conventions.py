"""What real libraries write: step, unit and key of each are right, or asked for."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import sparsitywatch as sw
from sparsitywatch import plots
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.series import select
from sparsitywatch.cli import main
from sparsitywatch.page.data import page_data

# ------------------------------------------------------------------ what is in the files


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width, bias=False)


class Net(nn.Module):
    """Two matrices and a norm; every seed has its own."""

    def __init__(self, seed: int = 0, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers:
                layer.fc.weight.copy_(torch.randn(width, width, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer.fc(x)
        return self.norm(x)


def sd(seed: int = 0, before: str = "", width: int = 4) -> dict[str, torch.Tensor]:
    return {before + name: tensor for name, tensor in Net(seed, width).state_dict().items()}


def adam() -> dict[str, Any]:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def sgd() -> dict[str, Any]:
    return torch.optim.SGD(Net().parameters(), momentum=0.9).state_dict()


def schedule() -> dict[str, Any]:
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    return torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict()


ARGS = argparse.Namespace(lr=0.1, epochs=300, steps=100_000, iterations=90_000)


@dataclass
class Sharded:
    """A folder of torch.distributed.checkpoint."""

    state: dict[str, Any]


@dataclass
class Safe:
    """A file of safetensors, with the words in its header."""

    tensors: Mapping[str, torch.Tensor]
    words: dict[str, str] | None = None


def write(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Sharded):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is one process
                dcp.save(content.state, checkpoint_id=str(path), no_dist=True)
        elif isinstance(content, Safe):
            safetensors.torch.save_file(dict(content.tensors), path, metadata=content.words)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            torch.save(content, path)


# ------------------------------------------------------------------ what is expected


@dataclass
class Read:
    """What is measured: the numbers, what they count, and what leads to the weights."""

    numbers: list[int]
    key: str = ""
    unit: str = "step"
    key_given: str | None = None


@dataclass
class Asked:
    """Nothing is measured; the words say what is missing."""

    words: str
    given: str | None = None  # a key that answers it


def lightning(step: int, **more: Any) -> dict[str, Any]:
    return {
        "epoch": 0, "global_step": step, "pytorch-lightning_version": "2.6.0",
        "state_dict": sd(1, "model."), "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [adam()], "lr_schedulers": [schedule()], **more,
    }  # fmt: skip


def timm(epoch: int, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch, "arch": "vit_tiny", "state_dict": sd(epoch), "optimizer": adam(),
        "version": 2, "args": ARGS, "amp_scaler": {"scale": 1.0}, "metric": 70.1, **more,
    }  # fmt: skip


def torchvision(epoch: int, **more: Any) -> dict[str, Any]:
    return {
        "model": sd(epoch), "optimizer": sgd(), "lr_scheduler": schedule(), "epoch": epoch,
        "args": ARGS, **more,
    }  # fmt: skip


def fairseq(epoch: int, updates: int, **extra: Any) -> dict[str, Any]:
    return {
        "args": None, "cfg": {"optimization": {"max_update": 100_000}}, "model": sd(updates),
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "CrossEntropy", "optimizer_name": "Adam", "num_updates": updates}
        ],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"version": 2, "epoch": epoch, "iterations_in_epoch": 7}, **extra
        },
        "last_optimizer_state": adam(),
    }  # fmt: skip


def composer(batch: int) -> dict[str, Any]:
    stamp = {"epoch": 0, "batch": batch, "sample": 64 * batch}
    return {
        "state": {
            "model": sd(batch), "optimizers": {"AdamW": {"state": {"w": {"exp_avg": sd(9)}}}},
            "timestamp": {"Timestamp": stamp}, "rank_zero_seed": 1,
        },
        "rng": [{"python": 1}],
    }  # fmt: skip


def trainer(step: int, **more: Any) -> dict[str, Any]:
    before = f"checkpoint-{step}"
    return {
        f"{before}/model.safetensors": Safe(sd(step), {"format": "pt"}),
        f"{before}/trainer_state.json": {"global_step": step, "epoch": 1.0, "log_history": []},
        f"{before}/training_args.bin": b"never read",
        f"{before}/optimizer.pt": adam(),
        f"{before}/scheduler.pt": schedule(),
        f"{before}/rng_state.pth": {"cpu": torch.ByteTensor(16)},
        **more,
    }


def accelerate(number: int) -> dict[str, Any]:
    before = f"checkpoints/checkpoint_{number}"
    return {
        f"{before}/model.safetensors": Safe(sd(number), {"format": "pt"}),
        f"{before}/optimizer.bin": adam(),
        f"{before}/scheduler.bin": schedule(),
        f"{before}/random_states_0.pkl": b"never read",
    }


def tagged(step: int) -> dict[str, Any]:
    return {
        "latest": f"global_step{step}",
        f"global_step{step}/mp_rank_00_model_states.pt": {
            "module": sd(1), "buffer_names": [], "optimizer": None, "param_shapes": None,
            "lr_scheduler": None, "global_steps": step, "global_samples": 64 * step,
            "dp_world_size": 1, "mp_world_size": 1, "ds_config": {"train_batch_size": 64},
        },
        f"global_step{step}/zero_pp_rank_0_mp_rank_00_optim_states.pt": b"never read",
    }  # fmt: skip


CONVENTIONS: dict[str, tuple[dict[str, Any], Read | Asked]] = {
    # ---- transformers and its kin
    "transformers": (trainer(500) | trainer(1000), Read([500, 1000])),
    "transformers, .bin": (
        {
            "checkpoint-20/pytorch_model.bin": sd(1),
            "checkpoint-20/trainer_state.json": {"global_step": 20},
        },
        Read([20]),
    ),
    "transformers, folder renamed": (
        {"best/model.safetensors": Safe(sd(1)), "best/trainer_state.json": {"global_step": 70}},
        Read([70]),
    ),
    "transformers, FSDP": (
        {
            "checkpoint-20/pytorch_model_fsdp_0": Sharded({"model": sd(1)}),
            "checkpoint-20/optimizer_0": Sharded({"optimizer": {"state": sd(2)}}),
            "checkpoint-20/trainer_state.json": {"global_step": 20},
        },
        Read([20], "model"),
    ),
    "a branch of pythia": ({"step1000/pytorch_model.bin": sd(1)}, Read([1000])),
    "PEFT": (
        {
            "checkpoint-20/adapter_model.safetensors": Safe(sd(1)),
            "checkpoint-20/trainer_state.json": {"global_step": 20},
        },
        Asked("adapter of PEFT"),
    ),
    "accelerate": (accelerate(0) | accelerate(1) | accelerate(2), Read([0, 1, 2], unit="save")),
    "accelerate, named by steps": (
        {
            "step_300/model.safetensors": Safe(sd(1)),
            "step_300/random_states_0.pkl": b"never read",
        },
        Read([300]),
    ),
    "diffusers": (
        {
            "checkpoint-500/unet/diffusion_pytorch_model.safetensors": Safe(sd(1)),
            "checkpoint-500/unet/config.json": {},
            "checkpoint-500/unet_ema/diffusion_pytorch_model.safetensors": Safe(sd(2)),
            "checkpoint-500/unet_ema/config.json": {},
            "checkpoint-500/random_states_0.pkl": b"never read",
        },
        Read([500]),
    ),
    "kohya": ({"last.safetensors": Safe(sd(1), {"ss_steps": "1200", "ss_epoch": "3"})},
              Read([1200])),
    # ---- Lightning
    "Lightning": ({"epoch=0-step=100.ckpt": lightning(100)}, Read([100], "state_dict")),
    "Lightning, last": ({"last.ckpt": lightning(60)}, Read([60], "state_dict")),
    "Lightning, EMAWeightAveraging": (
        {"epoch=0-step=100.ckpt": lightning(
            100, current_model_state=sd(2, "model."), averaging_state={"n_averaged": torch.ones(1)}
        )},
        Asked("'current_model_state' (4 tensors)", "current_model_state"),
    ),
    "Lightning, an average in a callback": (
        {"last.ckpt": lightning(60, callbacks={"EMA": {"ema_weights": sd(2, "model.")}})},
        Asked("'callbacks.EMA.ema_weights' (4 tensors)", "state_dict"),
    ),
    "Lightning, student and teacher": (
        {"last.ckpt": lightning(60, state_dict=sd(1, "student.") | sd(2, "teacher."))},
        Asked("'state_dict.teacher' (4 tensors)", "state_dict.student"),
    ),
    "Lightning, generator and discriminator": (
        {"last.ckpt": lightning(60, state_dict=sd(1, "generator.") | sd(2, "discriminator."))},
        Read([60], "state_dict"),
    ),
    "Lightning, sharded": (
        {"epoch=0-step=40": Sharded({"state_dict": sd(1), "optimizer_0": {"state": sd(2)}})},
        Read([40], "state_dict"),
    ),
    "latent diffusion": (
        {"epoch=000003.ckpt": lightning(4000, state_dict=sd(1, "model.diffusion_model.") | {
            "model_ema." + name.replace(".", ""): t for name, t in sd(2).items()
        } | sd(3, "first_stage_model.", 6))},
        Asked("'state_dict.model_ema' (4 tensors)", "state_dict.model"),
    ),
    # ---- language models
    "nanoGPT": (
        {"ckpt.pt": {"model": sd(1), "optimizer": adam(), "model_args": {"n_layer": 2},
                     "iter_num": 250, "best_val_loss": torch.tensor(3.1), "config": {}}},
        Read([250], "model"),
    ),
    "nanoGPT, compiled": (
        {"ckpt.pt": {"model": sd(1, "_orig_mod."), "optimizer": adam(), "iter_num": 250}},
        Read([250], "model"),
    ),
    "litgpt": (
        {"step-00001000/lit_model.pth": {"model": sd(1), "optimizer": adam(), "hparams": {},
                                         "iter_num": 4000, "step_count": 1000}},
        Read([1000], "model"),
    ),
    "Megatron": (
        {"iter_0000500/mp_rank_00/model_optim_rng.pt": {
            "args": ARGS, "checkpoint_version": 3.0, "iteration": 500, "model": sd(1),
            "optimizer": {"optimizer": adam(), "fp32_from_fp16_params": [[torch.ones(4, 4)]]},
            "opt_param_scheduler": {"num_steps": 64_000}, "rng_state": [{"cuda": torch.ones(2)}]}},
        Read([500], "model"),
    ),
    "Megatron, dictionaries in dictionaries": (
        {"iter_0000500/mp_rank_00/model_optim_rng.pt": {
            "iteration": 500,
            "model": {"language_model": {"embedding": {"weight": torch.ones(9, 4)},
                                         "encoder": sd(1)}}}},
        Asked("'model.language_model.encoder' (4 tensors)", "model"),
    ),
    "DeepSpeed": (tagged(10), Read([10], "module")),
    "Composer": ({"ep0-ba1000-rank0.pt": composer(1000)}, Read([1000], "state.model")),
    "Composer, last": ({"latest-rank0.pt": composer(1200)}, Read([1200], "state.model")),
    "Composer, sharded": (
        {"ep0-ba100": Sharded({"state": {"model": sd(1), "optimizers": {"a": sd(2)}}})},
        Read([100], "state.model"),
    ),
    "torchtitan": (
        {"step-500": Sharded({**sd(1), "optimizer": {"state.w.exp_avg": torch.ones(4, 4)},
                              "train_state": {"step": torch.tensor(500, dtype=torch.int32)}})},
        Read([500]),
    ),
    "torchtitan, folder renamed": (
        {"best": Sharded({**sd(1), "train_state": {"step": torch.tensor(500)}})}, Read([500]),
    ),
    "a plain DCP loop": (
        {"run": Sharded({"model": sd(1), "optim": {"m": sd(2)}, "step": 80})}, Read([80], "model"),
    ),
    "DCP, model and average": (
        {"step-8": Sharded({"model": sd(1), "ema": sd(2)})},
        Asked("'ema' (4 tensors)", "model"),
    ),
    "OLMo": (
        {"step1000-unsharded/model.pt": sd(1), "step1000-unsharded/optim.pt": adam(),
         "step1000-unsharded/train.pt": {"epoch": 0, "global_step": 1000}},
        Read([1000]),
    ),
    "fairseq": (
        {"checkpoint_3_5000.pt": fairseq(3, 5000), "checkpoint_last.pt": fairseq(3, 5500)},
        Read([5000, 5500], "model"),
    ),
    "fairseq, by epochs": (
        {"checkpoint3.pt": fairseq(4, 5000), "checkpoint4.pt": fairseq(5, 6000)},
        Read([5000, 6000], "model"),
    ),
    "fairseq, with an average": (
        {"checkpoint_3_5000.pt": fairseq(3, 5000, ema=sd(9))},
        Asked("'extra_state.ema' (4 tensors)", "model"),
    ),
    "XLM": (
        {"checkpoint.pth": {"epoch": 2, "n_total_iter": 700, "model": sd(1),
                            "model_optimizer": adam(), "params": {"n_layers": 2}}},
        Read([700], "model"),
    ),
    "Llama as published": ({"step-90/consolidated.00.pth": sd(1)}, Read([90])),
    # ---- vision, by epochs
    "timm": (
        {"checkpoint-3.pth.tar": timm(3), "checkpoint-4.pth.tar": timm(4),
         "model_best.pth.tar": timm(3), "last.pth.tar": timm(4)},
        Read([3, 4], "state_dict", "epoch"),
    ),
    "timm, with an average": (
        {"checkpoint-3.pth.tar": timm(3, state_dict_ema=sd(9))},
        Asked("'state_dict_ema' (4 tensors)", "state_dict"),
    ),
    "torchvision": (
        {"model_0.pth": torchvision(0), "model_1.pth": torchvision(1),
         "model_2.pth": torchvision(2), "checkpoint.pth": torchvision(2)},
        Read([0, 1, 2], "model", "epoch"),
    ),
    "torchvision, with an average": (
        {"model_3.pth": torchvision(3, model_ema=sd(9, "module."))},
        Asked("'model_ema' (4 tensors)", "model"),
    ),
    "MAE": (
        {"checkpoint-20.pth": torchvision(20, scaler={}), "checkpoint-40.pth": torchvision(40)},
        Read([20, 40], "model", "epoch"),
    ),
    "DeiT": ({"checkpoint.pth": torchvision(7)}, Read([7], "model", "epoch")),
    "MoCo": (
        {f"checkpoint_{epoch - 1:04}.pth.tar": {
            "epoch": epoch, "arch": "resnet50", "optimizer": sgd(),
            "state_dict": sd(epoch, "module.base_encoder.")} for epoch in (9, 10)},
        Read([8, 9], "state_dict", "epoch"),
    ),
    "the example of ImageNet": (
        {"checkpoint.pth.tar": {"epoch": 5, "arch": "resnet18", "state_dict": sd(1, "module."),
                                "best_acc1": torch.tensor(70.0), "optimizer": sgd(),
                                "scheduler": schedule()}},
        Read([5], "state_dict", "epoch"),
    ),
    "the tutorial of torch": (
        {"checkpoint_12.pt": {"epoch": 12, "model_state_dict": sd(1),
                              "optimizer_state_dict": adam(), "loss": torch.tensor(0.4)}},
        Read([12], "model_state_dict", "epoch"),
    ),
    "open_clip": (
        {f"epoch_{n}.pt": {"epoch": n, "name": "x", "state_dict": sd(n), "optimizer": adam()}
         for n in (1, 2)},
        Read([1, 2], "state_dict", "epoch"),
    ),
    "DINO": (
        {"checkpoint0020.pth": {"student": sd(1), "teacher": sd(2), "optimizer": adam(),
                                "epoch": 21, "args": ARGS,
                                "dino_loss": {"center": torch.zeros(1, 8)}}},
        Asked("'teacher' (4 tensors)", "student"),
    ),
    "DINOv2, the teacher": ({"eval/training_12499/teacher_checkpoint.pth": {"teacher": sd(1)}},
                            Read([12_499], "teacher")),
    "DINOv2": (
        {"model_0012499.rank_0.pth": {"model": sd(1), "optimizer": adam(), "iteration": 12499}},
        Read([12499], "model"),
    ),
    "I-JEPA": (
        {"jepa-ep100.pth.tar": {"encoder": sd(1), "predictor": sd(2), "target_encoder": sd(3),
                                "opt": adam(), "scaler": {}, "epoch": 100, "loss": 0.1}},
        Asked("'target_encoder' (4 tensors)", "encoder"),
    ),
    "detectron2": (
        {"model_0004999.pth": {"model": sd(1), "optimizer": sgd(), "scheduler": schedule(),
                               "iteration": 4999}},
        Read([4999], "model"),
    ),
    "mmcv": (
        {"epoch_12.pth": {"meta": {"epoch": 12, "iter": 1200, "mmcv_version": "1"},
                          "state_dict": sd(1), "optimizer": sgd()}},
        Read([1200], "state_dict"),
    ),
    "mmengine": (
        {"iter_1000.pth": {"meta": {"epoch": 0, "iter": 1000}, "state_dict": sd(1),
                           "message_hub": {"log_scalars": {}}, "optimizer": sgd(),
                           "param_schedulers": [schedule()]}},
        Read([1000], "state_dict"),
    ),
    "mmengine, EMAHook": (
        {"iter_1000.pth": {"meta": {"iter": 1000}, "state_dict": sd(1),
                           "ema_state_dict": sd(2, "module.")}},
        Asked("'ema_state_dict' (4 tensors)", "ema_state_dict"),
    ),
    "YOLOv5": ({"best.pt": {"epoch": 3, "model": nn.Linear(2, 2), "ema": nn.Linear(2, 2)}},
               Asked("'ema' (2 tensors)", "model")),
    # ---- generative models
    "k-diffusion": (
        {"model_00001000.pth": {"config": {}, "model": sd(1), "model_ema": sd(2), "opt": adam(),
                                "sched": schedule(), "gns_stats": {}, "ema_stats": {},
                                "epoch": 3, "step": 1000}},
        Asked("'model_ema' (4 tensors)", "model"),
    ),
    "guided-diffusion": (
        {"model010000.pt": sd(1), "ema_0.9999_010000.pt": sd(2), "opt010000.pt": adam()},
        Read([10000]),
    ),
    "StyleGAN2": (
        {"010000.pt": {"g": sd(1), "d": sd(2), "g_ema": sd(3), "g_optim": adam(),
                       "d_optim": adam(), "args": ARGS, "ada_aug_p": 0.1}},
        Asked("'g_ema' (4 tensors)", "g"),
    ),
    "ema-pytorch": (
        {"model-10.pt": {"step": 10_000, "model": sd(1), "opt": adam(), "scaler": None,
                         "ema": {"initted": torch.tensor(True), "step": torch.tensor(10_000)}
                         | sd(1, "online_model.") | sd(2, "ema_model.")}},
        Asked("'ema.ema_model' (4 tensors)", "model"),
    ),
    "torch-ema": (
        {"step-500.pt": {"model": sd(1), "ema": {"decay": 0.99, "num_updates": 500,
                                                 "shadow_params": [torch.ones(4, 4)]}}},
        Read([500], "model"),
    ),
    "BasicSR": ({"net_g_5000.pth": {"params": sd(1), "params_ema": sd(2)}},
                Asked("'params_ema' (4 tensors)", "params")),
    "tacotron2": (
        {"checkpoint_1000.pt": {"iteration": 1000, "state_dict": sd(1), "optimizer": adam(),
                                "learning_rate": 0.001}},
        Read([1000], "state_dict"),
    ),
    "Coqui": (
        {"checkpoint_10000.pth": {"config": {}, "model": sd(1), "optimizer": adam(),
                                  "step": 10_000, "epoch": 5, "model_loss": 0.3}},
        Read([10_000], "model"),
    ),
    # ---- others
    "ignite": (
        {"checkpoint_100.pt": {"model": sd(1), "optimizer": adam(),
                               "trainer": {"epoch_length": 10, "max_epochs": 50,
                                           "iteration": 100}}},
        Read([100], "model"),
    ),
    "ignite, the model alone": ({"model_100.pt": sd(1)}, Read([100])),
    "fastai": ({"stage-1.pth": {"model": sd(1), "opt": adam()}}, Read([0], "model")),
    "Whisper": ({"base.pt": {"dims": {"n_mels": 80}, "model_state_dict": sd(1)}},
                Read([0], "model_state_dict")),
    "an average of torch": (
        {"step-40.pt": torch.optim.swa_utils.AveragedModel(Net(1)).state_dict()}, Read([40]),
    ),
    "numbers of numpy": (
        {"a.pt": {"params": sd(1), "step": np.int64(70)},
         "b.pt": {"params": sd(2), "step": np.array(90, dtype=np.int32)},
         "c.pt": {"params": sd(3), "step": np.float64(95.0)}},
        Read([70, 90, 95], "params"),
    ),
    "a number as a tensor": (
        {"a.pt": {"network": sd(1), "step": torch.tensor(80)},
         "b.pt": {"network": sd(2), "global_step": torch.tensor([81.0])}},
        Read([80, 81], "network"),
    ),
    "a number in its trainer": (
        {"a.pt": {"weights": sd(1), "trainer": {"step": 33}}}, Read([33], "weights"),
    ),
    "a number in its meta": (
        {"a.pt": {"weights": sd(1), "meta": {"global_step": 34}}}, Read([34], "weights"),
    ),
    "settings are no steps": (
        {"a.pt": {"model": sd(1), "config": {"steps": 9, "iterations": 9}, "args": {"step": 9}},
         "step-5.pt": {"model": sd(1)}},
        Read([5], "model"),
    ),
    "safetensors with words": ({"final.safetensors": Safe(sd(1), {"step": "300"})}, Read([300])),
    "safetensors with an optimizer": (
        {"step-6.safetensors": Safe(sd(1, "model.") | sd(2, "optimizer.exp_avg."))},
        Read([6], "model"),
    ),
    "safetensors with an average": (
        {"step-6.safetensors": Safe(sd(1, "model.") | sd(2, "ema."))},
        Asked("'ema' (4 tensors)", "model"),
    ),
    "what lies beside": (
        {"step_5.pt": sd(1), "rng_5.pt": {"cpu": torch.ones(9)}, "step_5_ema.pt": sd(2),
         "norm_step_5.pt": {"norm.weight": torch.ones(4)}},
        Read([5]),
    ),
}  # fmt: skip


def test_there_are_enough() -> None:
    assert len(CONVENTIONS) >= 60


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention(name: str, tmp_path: Path) -> None:
    files, expected = CONVENTIONS[name]
    write(tmp_path, files)
    listed = discover(tmp_path)
    pending, others = select(listed)
    readable = {step: one for step, one in pending.items() if one.error is None}
    if isinstance(expected, Asked):
        assert not readable
        reasons = [one.reason for one in (*pending.values(), *others)]
        assert any(expected.words in reason for reason in reasons), reasons
        if expected.given is not None:
            given, _ = select(discover(tmp_path, key=expected.given))
            assert given
            assert all(one.error is None for one in given.values())
        return
    assert list(readable) == expected.numbers, listed
    assert {one.unit for one in readable.values()} == {expected.unit}
    for one in readable.values():
        with open_checkpoint(one.url) as checkpoint:
            assert checkpoint.key == expected.key
            names = {entry.name for entry in checkpoint.entries()}
        assert any(n.endswith("layers.1.fc.weight") for n in names)
        assert not any("exp_avg" in n for n in names)
    # nothing vanishes in silence: what is not read is in the list, with its reason
    assert all(one.reason for one in listed if one.state != "complete")


# ------------------------------------------------------------------ epochs are no steps


def test_rates_are_refused_by_epochs_unless_their_steps_are_known(tmp_path: Path) -> None:
    write(tmp_path, {f"checkpoint-{epoch}.pth.tar": timm(epoch) for epoch in (1, 2, 3)})
    log = tmp_path / "log"
    for rates in ({"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.1}):
        with pytest.raises(sw.errors.ConfigurationError, match=r"count epochs.*steps_per_epoch"):
            sw.replay(tmp_path, logdir=log, **rates)
        assert not log.exists()
    by_epochs = sw.replay(tmp_path, logdir=log)
    assert [record.step for record in by_epochs.records] == [1, 2, 3]
    run = sw.load(log)
    assert run.unit == run.frame().index.name == "epoch"
    assert "from epoch 1 to epoch 3" in page_data(run)["taken"]
    assert "epoch" in {axes.get_xlabel() for axes in plots.overview_figure(run).axes}
    by_steps = sw.replay(
        tmp_path, logdir=tmp_path / "steps", lr=0.1, weight_decay=0.5, steps_per_epoch=20
    )
    assert [record.step for record in by_steps.records] == [20, 40, 60]
    assert by_steps.records[-1].decay_clock == pytest.approx(60 * 0.1 * 0.5)
    assert sw.load(tmp_path / "steps").info.unit == "step"


def test_rates_are_refused_by_saves(tmp_path: Path) -> None:
    write(tmp_path, accelerate(0) | accelerate(1))
    for more in ({}, {"steps_per_epoch": 5}):
        with pytest.raises(sw.errors.ConfigurationError, match=r"count saves\. Give each its step"):
            sw.replay(tmp_path, logdir=None, lr=0.1, **more)


def test_a_number_that_is_no_epoch_counts_steps(tmp_path: Path) -> None:
    write(tmp_path, {f"checkpoint-{n}.pt": {"model": sd(n), "epoch": e}
                     for n, e in ((0, 0), (500, 1), (1000, 2))})  # fmt: skip
    assert [(f.step, f.unit) for f in discover(tmp_path)] == [
        (0, "step"), (500, "step"), (1000, "step"),
    ]  # fmt: skip


def test_an_epoch_has_no_place_beside_steps(tmp_path: Path) -> None:
    write(tmp_path, {"step-500.pt": sd(1), "checkpoint-3.pt": {"model": sd(2), "epoch": 3}})
    replayed = sw.replay(tmp_path, logdir=None)
    assert [record.step for record in replayed.records] == [500]
    (left,) = replayed.left_out
    assert "it is of epoch 3" in left.reason


def test_a_sure_name_and_other_contents_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"step-500.pt": {"model": sd(1), "global_step": 400},
                     "step-600.pt": {"model": sd(2), "global_step": 600}})  # fmt: skip
    sw.replay(tmp_path, logdir=None)
    said = [r.getMessage() for r in caplog.records if "as its contents say" in r.getMessage()]
    assert len(said) == 1
    assert "taken for step 400, as its contents say; its name says step 500" in said[0]
    for more in ([], ["--json"]):
        assert main(["replay", str(tmp_path), "--logdir", str(tmp_path / "log"), *more]) == 0
        shown = capsys.readouterr()
        assert "its name says step 500" in (shown.out if more else shown.err)
