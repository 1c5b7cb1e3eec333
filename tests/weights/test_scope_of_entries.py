"""Scopes told from names and shapes alone are those of the live models."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch
import transformers
from contracts.random_models import chain_of_layers, stored_scopes, tree_of_modules
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm

import sparsitywatch as sw
from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import ScopeError
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.scope import PRESETS, Scope

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
}
VISION = {k: v for k, v in SMALL.items() if k != "vocab_size"}


def entries_of(model: nn.Module) -> list[Entry]:
    """What a torch checkpoint of ``model`` holds: buffers too, ties by their storage."""
    return [
        Entry(
            name=name,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            storage=(tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else None,
        )
        for name, tensor in model.state_dict().items()
    ]


class Block(nn.Module):
    """As nanoGPT has it, without transformers' names around it."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(8)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(8, 24), "c_proj": nn.Linear(8, 8)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(8, 32), "c_proj": nn.Linear(32, 8)})


def nano_gpt() -> nn.Module:
    blocks = nn.ModuleList([Block(), Block()])
    model = nn.ModuleDict({"wte": nn.Embedding(50, 8), "wpe": nn.Embedding(9, 8), "h": blocks})
    whole = nn.ModuleDict({"transformer": model, "lm_head": nn.Linear(8, 50, bias=False)})
    model["wte"].weight = whole["lm_head"].weight
    return whole


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 8),
        nn.Linear(8, 2),
    )  # fmt: skip


def torch_encoder() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )


def of(architecture: str, config: str, **options: object):
    return lambda: getattr(transformers, architecture)(getattr(transformers, config)(**options))


T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
GPT = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "n_positions": 8}
MODELS = {
    "bert": of("BertForMaskedLM", "BertConfig", **SMALL),
    "bert-classifier": of("BertForSequenceClassification", "BertConfig", **SMALL),
    "albert": of("AlbertForMaskedLM", "AlbertConfig", **SMALL, embedding_size=8),
    "distilbert": of(
        "DistilBertForMaskedLM", "DistilBertConfig",
        dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=50,
    ),
    "electra": of("ElectraForMaskedLM", "ElectraConfig", **SMALL, embedding_size=8),
    "gpt2": of("GPT2LMHeadModel", "GPT2Config", **GPT),
    "gpt-neox": of("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL),
    "opt": of(
        "OPTForCausalLM", "OPTConfig", hidden_size=16, ffn_dim=32, num_hidden_layers=2,
        num_attention_heads=2, vocab_size=50, word_embed_proj_dim=16,
    ),
    "llama": of("LlamaForCausalLM", "LlamaConfig", **SMALL, num_key_value_heads=2),
    "llama-tied": of(
        "LlamaForCausalLM", "LlamaConfig", **SMALL, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "mixtral": of(
        "MixtralForCausalLM", "MixtralConfig", **SMALL, num_key_value_heads=2, num_local_experts=2
    ),
    "qwen2-moe": of(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", **SMALL, num_key_value_heads=2, num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    ),
    "t5": of("T5ForConditionalGeneration", "T5Config", **T5),
    "vit": of("ViTForImageClassification", "ViTConfig", **VISION, image_size=8, patch_size=4),
    "clip": of(
        "CLIPModel", "CLIPConfig", text_config=SMALL, vision_config={
            **VISION, "image_size": 8, "patch_size": 4},
    ),
    "swin": of(
        "SwinForImageClassification", "SwinConfig", image_size=16, patch_size=2, embed_dim=8,
        depths=[1, 1], num_heads=[1, 2], window_size=4,
    ),
    "mamba": of(
        "MambaForCausalLM", "MambaConfig", hidden_size=16, state_size=4, num_hidden_layers=2,
        vocab_size=50, time_step_rank=4,
    ),
    "resnet": of(
        "ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 8],
        depths=[1, 1],
    ),
    "convnext": of(
        "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 8], depths=[1, 1],
        num_stages=2,
    ),
    "nano-gpt": nano_gpt,
    "conv-net": conv_net,
    "torch-encoder": torch_encoder,
}  # fmt: skip


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("architecture", MODELS)
def test_the_scope_without_a_model_is_the_live_one(architecture: str, preset: str) -> None:
    model = MODELS[architecture]()
    try:
        live = Scope.of(model, preset)
    except ScopeError:
        with pytest.raises(ScopeError, match="selects none"):
            Scope.of_entries(entries_of(model), preset)
        return
    stored = Scope.of_entries(entries_of(model), preset)
    in_live = {(e.name, e.shape, e.aliases) for e in live.ledger if e.in_scope}
    assert {(e.name, e.shape, e.aliases) for e in stored.ledger if e.in_scope} == in_live
    assert stored.hash == live.hash
    assert stored.summary == live.summary
    listed = [name for e in stored.ledger for name in (e.name, *e.aliases)]
    assert sorted(listed) == sorted(model.state_dict())
    assert all(e.reason for e in stored.ledger)


def test_bert_base_is_the_papers_72_matrices_from_its_names_in_any_order() -> None:
    with torch.device("meta"):
        model = transformers.BertForMaskedLM(transformers.BertConfig())
    tied = "cls.predictions.decoder.weight"  # safetensors keep one of the two names
    entries = [
        Entry(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype)
        for name, tensor in sorted(model.state_dict().items())
        if name != tied
    ]
    expected = {
        entry.name
        for entry in entries
        if ".layer." in entry.name and entry.name.endswith("weight") and "Norm" not in entry.name
    }
    for preset in ("blocks", "paper"):
        scope = Scope.of_entries(entries, preset)
        assert set(scope.names) == expected
        assert (scope.summary.num_tensors, scope.summary.num_weights) == (72, 84_934_656)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "mixtral", "vit", "resnet"])
def test_the_order_of_the_file_does_not_matter(architecture: str) -> None:
    entries = entries_of(MODELS[architecture]())
    one, other = Scope.of_entries(entries), Scope.of_entries(entries[::-1])
    assert set(one.names) == set(other.names)
    assert one.hash == other.hash


def test_filters_and_patterns_without_a_model() -> None:
    model = MODELS["bert"]()
    entries = entries_of(model)

    def chooses(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and "query" in name

    for scope in (chooses, ["*.query.weight", "*.key.weight"]):
        assert Scope.of_entries(entries, scope).names == Scope.of(model, scope).names
    with pytest.raises(ScopeError, match=r"'x\*' matches none of 44"):
        Scope.of_entries(entries, ["x*"])
    with pytest.raises(ScopeError, match="one of"):
        Scope.of_entries(entries, "block")
    with pytest.raises(ScopeError, match="selects none of 0 parameters"):
        Scope.of_entries([])


# ------------------------------------------------------------------ generated models

draws = st.randoms(use_true_random=False)
#: A folder of its own for each example is not needed: the files are written anew.
on_disk = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@on_disk
@given(draw=draws)
def test_a_layer_called_linear_is_not_the_output_layer_for_its_name(
    tmp_path: Path, draw: random.Random
) -> None:
    model, last = chain_of_layers(draw)
    live = Scope.of(model)
    assert {e.name for e in live.ledger if e.reason == "output layer"} == {f"{last}.weight"}
    for stored in stored_scopes(model, tmp_path).values():
        assert stored is not None
        assert (stored.hash, live.unlike_stored) == (live.hash, ())


@on_disk
@given(draw=draws, preset=st.sampled_from(sorted(PRESETS)))
def test_live_and_stored_scopes_do_not_differ_in_silence(
    tmp_path: Path, draw: random.Random, preset: str
) -> None:
    model = tree_of_modules(draw)
    try:
        live = Scope.of(model, preset)
    except ScopeError:
        return
    for stored in stored_scopes(model, tmp_path, preset).values():
        found = set() if stored is None else set(stored.names)
        assert found ^ set(live.names) <= set(live.unlike_stored)


@given(draw=draws)
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_tensors_decides_nothing(draw: random.Random) -> None:
    entries = entries_of(tree_of_modules(draw))
    shuffled = draw.sample(entries, len(entries))
    for preset in PRESETS:
        try:
            expected = Scope.of_entries(entries, preset)
        except ScopeError:
            continue
        found = Scope.of_entries(shuffled, preset)
        assert sorted(found.ledger, key=lambda e: e.name) == sorted(
            expected.ledger, key=lambda e: e.name
        )


def test_what_only_a_class_can_tell_is_said_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.ModuleDict({"a": nn.Embedding(9, 8), "b": nn.Linear(8, 7), "c": nn.Linear(7, 5)})
    live = Scope.of(model)
    assert live.names == ("b.weight",)
    stored = Scope.of_entries(entries_of(model))
    assert {e.name: e.reason for e in stored.ledger if e.in_scope} == {
        "a.weight": "weight of a layer, by its name",
        "b.weight": "weight of a layer",
    }
    assert live.unlike_stored == ("a.weight",)
    with caplog.at_level(logging.WARNING), sw.watch(model, None, logdir=None):
        pass
    assert "may decide otherwise about a.weight. Give it the model" in caplog.text


def test_blocks_are_told_alike_where_torchvision_numbers_them_in_their_names() -> None:
    layers = {f"encoder_layer_{i}": nn.TransformerEncoderLayer(8, 2, 16) for i in range(2)}
    model = nn.Sequential()
    model.add_module("conv_proj", nn.Conv2d(3, 8, 4))
    model.add_module("layers", nn.ModuleDict(layers))
    model.add_module("heads", nn.Linear(8, 3))
    live = Scope.of(model)
    assert all(name.startswith("layers.encoder_layer_") for name in live.names)
    assert len(live.names) == 8
    assert Scope.of_entries(entries_of(model)).hash == live.hash


def test_buffers_are_no_weights_for_patterns_and_filters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    for scope in (["*"], lambda name, p: p.requires_grad and p.is_floating_point()):
        assert Scope.of_entries(entries_of(model), scope).hash == Scope.of(model, scope).hash


def test_a_tie_is_found_under_the_name_that_the_file_kept(tmp_path: Path) -> None:
    model = nn.ModuleDict({f"layer{i}": nn.Linear(4, 4) for i in (10, 2)} | {"z": nn.Linear(4, 3)})
    model["layer2"].weight = model["layer10"].weight
    save_model(model, str(tmp_path / "kept.safetensors"))
    live = Scope.of(model)
    with open_checkpoint(str(tmp_path / "kept.safetensors")) as checkpoint:
        assert Scope.of_entries(checkpoint.entries()).hash == live.hash
    torch.save({"layer2.weight": torch.ones(4, 4)}, tmp_path / "other.pt")
    with open_checkpoint(str(tmp_path / "other.pt")) as checkpoint:
        (read,) = stored_snapshot(checkpoint, live, 1).tensors.values()
    assert torch.equal(read, torch.ones(4, 4))


# ------------------------------------------------------------------ reparametrized layers


def masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


REPARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": lambda layer: old_weight_norm(layer),
    "old spectral_norm": old_spectral_norm,
    "prune": masked,
}


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(layer)


@pytest.mark.parametrize("how", REPARAMETRIZED)
def test_reparametrized_layers_are_out_with_that_reason_live_and_stored(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    block = Block()
    block.mlp["c_fc"] = REPARAMETRIZED[how](block.mlp["c_fc"])
    model = nn.ModuleDict({"h": nn.ModuleList([Block(), block]), "head": nn.Linear(8, 3)})
    live, stored = Scope.of(model), Scope.of_entries(entries_of(model))
    assert len(live.names) == 7
    assert (stored.hash, live.unlike_stored) == (live.hash, ())
    for scope in (live, stored):
        (out, *_) = {e.name for e in scope.ledger if e.reason.startswith("reparametrized")}
        assert out.startswith("h.1.mlp.c_fc.")
        assert "256 weights in 1 layers are left out, such as those of h.1.mlp.c_fc" in (
            scope.note_on_reparametrized
        )
    with caplog.at_level(logging.WARNING), sw.watch(model, None, logdir=None):
        pass
    assert "256 weights in 1 layers are left out" in caplog.text


def test_a_model_of_reparametrized_layers_only_is_refused_with_that_reason() -> None:
    model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(3)))
    for scoped in (lambda: Scope.of(model), lambda: Scope.of_entries(entries_of(model))):
        with pytest.raises(ScopeError, match="reparametrized: the layer's weight is computed"):
            scoped()
