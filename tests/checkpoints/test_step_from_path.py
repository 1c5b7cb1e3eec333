"""What names state: steps in the ways that people write them, ranks, and what is not done yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.checkpoints.addresses import (
    is_temporary,
    part_of,
    path_parts,
    place_of_step,
    step_of_name,
)

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

#: Branches and repositories of series that were published, and what libraries and recipes write.
PUBLISHED = {
    "hf://EleutherAI/pythia-70m@step1": 1,
    "hf://EleutherAI/pythia-6.9b-deduped@step143000": 143_000,
    "hf://EleutherAI/pythia-410m-seed3@step512": 512,
    "hf://EleutherAI/pythia-160m-weight-seed2@step1000": 1_000,
    "hf://allenai/OLMo-1B-hf@step52000-tokens218B": 52_000,
    "hf://allenai/OLMo-7B@step0-tokens0B": 0,
    "hf://allenai/OLMo-2-1124-7B@stage2-ingredient3-step11931-tokens50B": 11_931,
    "hf://allenai/OLMo-2-0425-1B-early-training@stage1-step37000-tokens78B": 37_000,
    "hf://allenai/Olmo-3-1025-7B@stage1-step1413814": 1_413_814,
    "hf://allenai/OLMoE-1B-7B-0924@step1223842-tokens5133B": 1_223_842,
    "hf://allenai/DataDecide-dolma1_7-1B@step69369-seed-default": 69_369,
    "olmo/step1000-unsharded/model.pt": 1_000,
    "olmo/step1000/model/rank0.pt": 1_000,
    "olmo-core/step1000/model_and_optim": 1_000,
    "hf://google/multiberts-seed_0-step_20k": 20_000,
    "hf://google/multiberts-seed_4-step_2000k": 2_000_000,
    "hf://LLM360/Amber@ckpt_358": 358,
    "hf://LLM360/Amber@ckpt_000": 0,
    "hf://LLM360/CrystalCoder@CrystalCoder_phase1_checkpoint_027728": 27_728,
    "hf://LLM360/CrystalCoder@CrystalCoder_phase2_checkpoint_214387": 214_387,
    "hf://bigscience/bloom-560m-intermediate@global_step1000": 1_000,
    "hf://bigscience/bloom-7b1-intermediate@global_step300000": 300_000,
    "hf://bigscience/tr3e-1B3-c4-checkpoints@global_step19500": 19_500,
    "hf://HuggingFaceTB/SmolLM2-1.7B-intermediate-checkpoints@step-125000": 125_000,
    "hf://HuggingFaceTB/SmolLM3-3B-checkpoints@stage1-step-40000": 40_000,
    "hf://HuggingFaceTB/SmolLM3-3B-checkpoints@lc-4k-to-32k-step-20000": 20_000,
    "hf://HuggingFaceFW/ablation-model-fineweb-v1@step-001000-2BT": 1_000,
    "hf://TinyLlama/TinyLlama-1.1B-step-50K-105b": 50_000,
    "hf://TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 1_431_000,
    "hf://TinyLlama/TinyLlama-1.1B-intermediate-step-715k-1.5T": 715_000,
    "out/tinyllama_1b/iter-1430000-ckpt.pth": 1_430_000,
    "hf://stanford-crfm/alias-gpt2-small-x21@checkpoint-400000": 400_000,
    "hf://stanford-crfm/battlestar-gpt2-small-x49@checkpoint-50": 50,
    "hf://swiss-ai/Apertus-8B-2509@step50000-tokens210B": 50_000,
    "hf://tomg-group-umd/huginn-0125@step-00010752-recurrence_full_512_0": 10_752,
    "hf://open-sci/open-sci-ref-v0.01-1.7b-nemotron-hq-1T-4096@iter_0011921": 11_921,
    "hf://bigcode/starcoder-megatron@iter_0250000": 250_000,
    "hf://jhu-clsp/ettin-checkpoints@step599525": 599_525,
    "hf://PrimeIntellect/INTELLECT-1@step_10000": 10_000,
    "gpt-j/step_383500": 383_500,
    "nanogpt/out/ckpt_2000.pt": 2_000,
    "nanogpt/out/ckpt.pt": None,
    "nanochat/base_checkpoints/d20/model_021400.pt": 21_400,
    "modded/logs/abc/state_step003125.pt": 3_125,
    "llm.c/log124M/model_00019560.bin": 19_560,
    "litgpt/out/step-00001000/lit_model.pth": 1_000,
    "lit-llama/iter-000255-ckpt.pth": 255,
    "composer/ep0-ba1000-rank0.pt": 1_000,
    "composer/ep1-ba4000/": 4_000,
    "llm-foundry/huggingface/ba4000": 4_000,
    "composer/latest-rank0.pt": None,
    "lightning/epoch=3-step=1200.ckpt": 1_200,
    "lightning/epoch=0-step=10000-val_loss=2.35.ckpt": 10_000,
    "lightning/last.ckpt": None,
    "lightning/epoch=05-val_loss=0.31.ckpt": None,
    "ldm/trainstep_checkpoints/epoch=000003-step=000010000.ckpt": 10_000,
    "fairseq/checkpoint_3_15000.pt": 15_000,
    "fairseq/checkpoint_best.pt": None,
    "metaseq/checkpoint_1_120000-model_part-0-shard0.pt": 120_000,
    "fairseq2/step_5000/model/pp_00/tp_00/sdp_00.pt": 5_000,
    "megatron/iter_0001000/mp_rank_00/model_optim_rng.pt": 1_000,
    "megatron/iter_0001000": 1_000,
    "torchtitan/outputs/checkpoint/step-1000": 1_000,
    "nemo/megatron_gpt--val_loss=2.50-step=1000-consumed_samples=256000.0.ckpt": 1_000,
    "nemo/megatron_gpt--val_loss=2.50-step=1000-consumed_samples=256000.0-last.ckpt": 1_000,
    "nemo/model_name=0--val_loss=1.99-step=9-consumed_samples=20.0/weights": 9,
    "nemo/Conformer--val_wer=0.1234-epoch=10.ckpt": None,
    "neox/global_step143000/mp_rank_00_model_states.pt": 143_000,
    "t5x/checkpoint_1000000": 1_000_000,
    "bert/model.ckpt-1000000": 1_000_000,
    "levanter/run/step-5000": 5_000,
    "easylm/streaming_train_state_80000": 80_000,
    "maxtext/checkpoints/1000": 1_000,
    "lingua/checkpoints/0000001000": 1_000,
    "lingua/checkpoints/0000001000/consolidated/consolidated.pth": 1_000,
    "cerebras/checkpoint_100000.mdl": 100_000,
    "deeplearningexamples/ckpt_7038.pt": 7_038,
    "verl/exp/global_step_100/actor/model_world_size_8_rank_0.pt": 100,
    "verl/exp/global_step_100/actor/huggingface": 100,
    "openrlhf/global_step100_hf": 100,
    "colossal/epoch0-global_step1000/model": 1_000,
    "swift/v0-20240101-120000/checkpoint-100-merged": 100,
    "parler/checkpoint-1000-epoch-0": 1_000,
    "sb3/rl_model_1000_steps.zip": 1_000,
    "sb3/PPO_CartPole_10000_steps.zip": 10_000,
    "detectron2/model_0004999.pth": 4_999,
    "dinov2/model_0001249.rank_0.pth": 1_249,
    "dinov2/eval/training_12499/teacher_checkpoint.pth": 12_499,
    "mmdet/iter_4000.pth": 4_000,
    "mmdet/epoch_12.pth": None,
    "guided-diffusion/model010000.pt": 10_000,
    "dit/checkpoints/0400000.pt": 400_000,
    "kohya/name-step00000500.safetensors": 500,
    "ai-toolkit/my_lora_000001000.safetensors": 1_000,
    "basicsr/net_g_400000.pth": 400_000,
    "munit/gen_00010000.pt": 10_000,
    "hifigan/g_02500000": 2_500_000,
    "vits/G_10000.pth": 10_000,
    "opennmt/demo_step_5000.pt": 5_000,
    "joeynmt/1000.ckpt": 1_000,
    "coqui/checkpoint_10000.pth": 10_000,
    "coqui/best_model_12345.pth": 12_345,
    "marian/model.iter10000.npz": 10_000,
    "espnet/10epoch.pth": None,
    "open_clip/epoch_32.pt": None,
    "diffusers/checkpoint-500/unet": 500,
    "sbert/1000": 1_000,
    "snapshot/snapshot_iter_10000": 10_000,
    "chainer/snapshot_10000.pt": 10_000,
    "hf://BabyLM-community/babylm-baseline-10m@chck_1M": None,
    "hf://baichuan-inc/Baichuan2-7B-Intermediate-Checkpoints@train_00220B": None,
    "hf://openlm-research/open_llama_7b_400bt_preview": None,
    "hf://microsoft/Phi-3-mini-128k-instruct": None,
    "hf://nyu-mll/roberta-base-10M-2": None,
    "hf://yanaiela/roberta-base-epoch_50": None,
    "hf://KBLab/megatron-bert-base-swedish-cased-600k": None,
    "hf://01-ai/Yi-6B-200k": None,
    "fairseq/checkpoint_last.pt": None,
    "model_10000iter.pth": 10_000,
    "ckpt-1000steps.pt": 1_000,
    "10k-steps": 10_000,
    "100000_iters.pt": 100_000,
    "llama-500ksteps": 500_000,
    "itr_500.pkl": 500,
    "torchtitan-ft/step-1000/.metadata": 1_000,
    "accelerate/step_500/pytorch_model/mp_rank_00_model_states.pt": 500,
    "whisper/checkpoint-1000/pytorch_model.bin": 1_000,
    "sdxl_lightning_4step": None,
    "hyper-sd-8steps-lora": None,
    "net_512.pt": None,
    "seed_1234.pt": None,
}


@pytest.mark.parametrize(("name", "step"), [*STEPS.items(), *PUBLISHED.items()])
def test_steps_in_names(name: str, step: int | None) -> None:
    assert step_of_name(name) == step


@given(
    st.integers(1000, 10**7),
    st.sampled_from(
        ["{}steps", "{}_steps", "x-{}-iters", "{}iter", "net_g_{}", "G_{}", "x_{:09d}"]
    ),
    st.sampled_from(
        ["", "/model/rank0.pt", "/actor/huggingface", "/consolidated/consolidated.pth"]
    ),
)
def test_a_number_may_come_first_or_at_the_end_and_lie_above(step, form, inside) -> None:
    assert step_of_name(f"runs/x/{form.format(step)}{inside}") == step


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


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("runs/bert//step-5.pt", ["runs", "bert", "step-5.pt"]),
        ("zip://run/step-5.pt::s3://bucket/all.zip", ["run", "step-5.pt"]),
        ("simplecache::s3://bucket/step-5.pt", ["bucket", "step-5.pt"]),
        ("https://host/run/step-5.pt?sig=a/b", ["host", "run", "step-5.pt"]),
    ],
)
def test_the_path_in_a_url(url: str, parts: list[str]) -> None:
    assert path_parts(url) == parts


@pytest.mark.parametrize(
    ("name", "is_sure"),
    [("run/step-5", True), ("checkpoint-5", False), ("ep0-ba5.pt", True), ("5", False)],
)
def test_whether_a_number_can_be_anything_else_than_a_step(name: str, is_sure: bool) -> None:
    place = place_of_step(name)
    assert place is not None
    assert (place.step, place.is_sure) == (5, is_sure)
