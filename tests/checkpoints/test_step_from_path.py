"""What names state: steps in the ways that people write them, ranks, and what is not done yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.checkpoints.step_from_path import is_temporary, part_of, step_of_name

#: As published, or as written by the libraries that save checkpoints.
STEPS = {
    # transformers, Lightning, nanoGPT, Composer, Megatron, DeepSpeed, fairseq, T5X, SB3
    "runs/bert-2/checkpoint-500": 500,
    "epoch=3-step=1200.ckpt": 1200,
    "epoch=3-step=1200-v1.ckpt": 1200,
    "epoch=05-val_loss=0.31.ckpt": None,
    "ckpt_000300.pt": 300,
    "run7/ckpt.pt": None,
    "ep0-ba1000-rank0.pt": 1000,
    "ep2-ba500k-rank0.pt": 500_000,
    "iter_0000500/mp_rank_00/model_optim_rng.pt": 500,
    "runs/global_step12": 12,
    "checkpoint_1_1000.pt": 1000,
    "checkpoint12.pt": 12,
    "model.ckpt-1000": 1000,
    "rl_model_1000_steps": 1000,
    "run/1500/model.safetensors": 1500,
    "step_5/pytorch_model.bin": 5,
    "model-0500.safetensors": 500,
    "step-100/model-00001-of-00002.safetensors": 100,
    "copy-step5.pt": 5,
    "GlobalStep100": 100,
    # published
    "hf://EleutherAI/pythia-1.4b@step143000": 143_000,
    "hf://EleutherAI/pythia-70m@main": None,
    "pythia-1.4b-step1000": 1000,
    "google/multiberts-seed_0-step_20k": 20_000,
    "google/multiberts-seed_4-step_0k": 0,
    "google/multiberts-seed_0-step_2000k": 2_000_000,
    "google/multiberts-seed_0": None,
    "TinyLlama-1.1B-intermediate-step-1431k-3T": 1_431_000,
    "hf://allenai/OLMo-1B@step1000-tokens4B": 1000,
    "hf://allenai/OLMo-2-7B@stage1-step140000-tokens294B": 140_000,
    "step100000-unsharded": 100_000,
    "llama-2-7b-step_20k": 20_000,
    # units and other ways to write a number
    "step_20k": 20_000,
    "1M": 1_000_000,
    "500k": 500_000,
    "checkpoint-1e5": 100_000,
    "step=1_000": 1000,
    "step-1.5M.safetensors": 1_500_000,
    "step=1000.0.ckpt": 1000,
    "step-20240102": 20_240_102,
    # no steps: sizes, days, hashes, settings, shards, fractions
    "model-7b": None,
    "model_1.3B": None,
    "bert-base-110M": None,
    "gpt2-medium-124M/model.pt": None,
    "125m/ckpt.pt": None,
    "checkpoint-125m": None,
    "bert-base-12layers/w.pt": None,
    "ckpt_2024-01-02.pt": None,
    "model_20240102.pt": None,
    "20240102-123456/model.pt": None,
    "checkpoint-1e5f3a2": None,
    "bert-warmup_steps=500": None,
    "max_steps-1000.pt": None,
    "sdxl_lightning_4step_unet": None,
    "model-00001-of-00002.safetensors": None,
    "checkpoint_ema_0.999": None,
    "step_1.2.pt": None,
    "step=-1.pt": None,
    "timestep20": None,
    "seed_0": None,
    "iter-10000000000000000000000000.pt": None,
    # chains and queries
    "zip://step-5.pt::file:///runs/all-9.zip": 5,
    "https://host/step-5.pt?sig=checkpoint-9": 5,
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_in_names(name: str) -> None:
    assert step_of_name(name) == STEPS[name]


def test_a_mix_of_units_is_in_order() -> None:
    names = ["step_20k", "step_500k", "step_1M", "step_1.5M", "step_20000k"]
    assert sorted(names, key=lambda name: step_of_name(name) or 0) == names


def _forms(step: int) -> list[str]:
    forms = [str(step), f"{step:07d}", f"{step:_}", f"{step:,}"]
    forms += [f"{step // 1000}k", f"{step / 1000:.3f}".rstrip("0").rstrip(".") + "k"]
    forms += [f"{step // 1000}e3", f"{step / 1e6:.6f}".rstrip("0").rstrip(".") + "M"]
    return forms


@given(
    st.integers(0, 10**8).map(lambda step: step - step % 1000),
    st.integers(0, 7),
    st.sampled_from(["step", "global_step", "iter", "checkpoint", "ckpt", "Step", "iteration"]),
    st.sampled_from(["", "_", "-", "=", "__", "."]),
    st.sampled_from(["", "llama-7b-", "bert_base_110M-", "epoch=3-", "2024-01-02_", "seed_0-"]),
    st.sampled_from(["", "-tokens4B", "-v1", "_rank0", "-3T", "_final"]),
    st.sampled_from(["", ".pt", ".safetensors", "/", "/pytorch_model.bin", "/mp_rank_00/model.pt"]),
)
def test_what_is_written_as_a_step_is_read_as_it(
    step, form, word, gap, before, after, suffix
) -> None:
    number = _forms(step)[form]
    name = f"runs/x/{before}{word}{gap}{number}{after}{suffix}"
    assert step_of_name(name) == step, name


@given(st.text(max_size=60))
def test_no_name_is_too_odd(name: str) -> None:
    step = step_of_name(name)
    assert step is None or step >= 0
    part_of(name)
    is_temporary(name)


@pytest.mark.parametrize(
    ("name", "others", "is_sure"),
    [
        ("checkpoint-500_rank0.pt", "checkpoint-500_rank1.pt", False),
        ("checkpoint-500_rank1.pt", "checkpoint-500_rank0.pt", True),
        ("iter_0000500/mp_rank_00/model_optim_rng.pt", "mp_rank_01", False),
        ("iter_0000500/mp_rank_00_000/model_optim_rng.pt", "mp_rank_00_001", True),
        ("iter_5/tp_rank_00_pp_rank_000/model.pt", "tp_rank_00_pp_rank_001", False),
        ("rank_0_model.pt", "rank_1_model.pt", False),
        ("__0_0.pt", "__1_0.pt", False),
        ("consolidated.00.pth", "consolidated.01.pth", False),
        ("ep0-ba1000-rank0.pt", "ep0-ba1000-rank7.pt", False),
        ("model_world_size_8_rank_0.pt", "model_world_size_8_rank_7.pt", True),
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", True),
        ("model-00001-of-00001.safetensors", "model-00001-of-00001.safetensors", False),
        ("checkpoint_1_1000-shard0.pt", "checkpoint_1_1000-shard1.pt", False),
        ("pytorch_model_rank0.bin", "pytorch_model_rank1.bin", False),
    ],
)
def test_parts_by_their_names(name: str, others: str, is_sure: bool) -> None:
    part = part_of(f"runs/{name}")
    assert part is not None
    assert part.others.fullmatch(others)
    assert part.is_one_of_several == is_sure


@pytest.mark.parametrize(
    "name",
    ["lora_rank_8/step-5.pt", "lora-rank16.pt", "franklin5.pt", "low_rank_8.pt", "step-5.pt"],
)
def test_names_of_no_part(name: str) -> None:
    assert part_of(name) is None


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("tmp-checkpoint-5", True),
        ("run/step-5.pt.tmp", True),
        ("checkpoint-5.tmp/model.pt", True),
        ("tmp-checkpoint-5/model.pt", True),
        ("tmp_exp/step-5.pt", False),
        ("tmp_exp", False),
        ("exp.tmp/step-5.pt", False),
        ("/tmp/step-5.pt", False),
    ],
)
def test_names_of_what_is_not_done_yet(name: str, is_so: bool) -> None:
    assert is_temporary(name) == is_so
