"""Exports that transformers loads and evaluates; experts that its mixtures keep as a stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sparsitywatch as sw
from sparsitywatch.cli import main

transformers = pytest.importorskip("transformers")
WORDS = 48


def made(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    small = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64,
             "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
    if kind == "gpt2":  # its head is tied
        config = transformers.GPT2Config(
            vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=16
        )
        return transformers.GPT2LMHeadModel(config).eval()
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**small)).eval()
    config = transformers.MixtralConfig(
        **small, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1
    )
    return transformers.MixtralForCausalLM(config).eval()


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(WORDS, (4, 12), generator=torch.Generator().manual_seed(seed))


def saved(kind: str, folder: Path, **options: object) -> torch.nn.Module:
    model = made(kind).to(options.pop("dtype", torch.float32))
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "optimizer.pt").write_bytes(b"not handed over")
    return model


def export(source: Path, output: str, *options: str) -> None:
    assert main(["export", str(source), "--at", "0.6", "-o", output, *options]) == 0


@pytest.mark.parametrize(("kind", "dtype"), [
    ("gpt2", torch.float32), ("bert", torch.bfloat16), ("mixtral", torch.float32),
])  # fmt: skip
def test_a_folder_is_loaded_and_evaluated(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source, output = tmp_path / "checkpoint-500", tmp_path / "out"
    model = saved(kind, source, dtype=dtype)
    export(source, f"{output}/", "--what", "pruned")
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "optimizer.pt" not in names
    assert ("generation_config.json" in names) == (source / "generation_config.json").exists()
    loaded = type(model).from_pretrained(output).eval()
    assert loaded.dtype is dtype
    stored = load_file(source / "model.safetensors")
    cut = 0
    for name, pruned in load_file(output / "model.safetensors").items():
        is_zero = pruned == 0
        assert torch.equal(pruned, torch.where(is_zero, 0.0, stored[name]).to(pruned.dtype))
        cut += int((is_zero & (stored[name] != 0)).sum())
    assert cut > 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(loaded.get_parameter(name))
        expected = model(input_ids=tokens()).logits
        assert torch.equal(loaded(input_ids=tokens()).logits, expected)


@pytest.mark.parametrize("options", [
    {"max_shard_size": "20kB"}, {"safe_serialization": True},
])  # fmt: skip
def test_sharded_and_tied_sources_give_the_same_masks(options: dict, tmp_path: Path) -> None:
    found = []
    for name, how in (("step-1", {}), ("step-2", options)):
        saved("gpt2", tmp_path / name, **how)
        output = tmp_path / f"{name}.masks.safetensors"
        export(tmp_path / name, str(output), "--what", "masks", "--scope", "matrices")
        found.append(load_file(output))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_card_without_a_model_says_that_nothing_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("gpt2", tmp_path / "step-1")
    export(tmp_path / "step-1", str(tmp_path / "out.safetensors"), "--what", "pruned")
    assert "- what it costs: not measured" in capsys.readouterr().out


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "step-1")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    argv = ["export", str(tmp_path / "step-1"), "--at", "0.6", "--what", "pruned", "-o"]
    assert main([*argv, f"{tmp_path}/out/"]) != 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def _value(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch).logits.transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, batch, reduction="none").mean(1)


def test_packed_experts_are_seen_by_the_x_ray() -> None:
    model = made("mixtral")
    stacks = [n for n, p in model.named_parameters() if p.ndim == 3 and "experts" in n]
    reached = np.zeros((2, 4), bool)
    hooks = []
    for at, layer in enumerate(model.model.layers):

        def saw(module, inputs, at=at) -> None:
            reached[at, inputs[1].unique().numpy()] = True

        hooks.append(layer.mlp.experts.register_forward_pre_hook(saw))
    with torch.no_grad():
        for seed in range(2):
            model(input_ids=tokens(seed))
    for hook in hooks:
        hook.remove()
    proxy = sw.Proxy([tokens(0), tokens(1)], _value)
    found = sw.measure(model, proxy, levels=[0.5], scope=stacks).xray
    assert found is not None
    assert set(found.layers.names) & set(stacks)
    unreached = {(int(name.split(".")[2]), int(name.rpartition("[")[2][:-1]))
                 for name in found.unreached}  # fmt: skip
    assert unreached == {(int(a), int(b)) for a, b in np.argwhere(~reached)}
