"""Which weights count, on the architectures people train: live, and told from names and shapes."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
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


def of(architecture: str, config: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, architecture)(getattr(transformers, config)(**options))


VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
SMALL = {**VISION, "vocab_size": 50}
KEYS = {**SMALL, "num_key_value_heads": 2}
MODELS = {
    "bert": of("BertForMaskedLM", "BertConfig", **SMALL),
    "bert-classifier": of("BertForSequenceClassification", "BertConfig", **SMALL),
    "albert": of("AlbertForMaskedLM", "AlbertConfig", **SMALL, embedding_size=8),
    "distilbert": of(
        "DistilBertForMaskedLM", "DistilBertConfig",
        dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=50,
    ),
    "electra": of("ElectraForMaskedLM", "ElectraConfig", **SMALL, embedding_size=8),
    "gpt2": of(
        "GPT2LMHeadModel", "GPT2Config",
        n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=8,
    ),
    "gpt-neox": of("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL),
    "opt": of(
        "OPTForCausalLM", "OPTConfig", hidden_size=16, ffn_dim=32, num_hidden_layers=2,
        num_attention_heads=2, vocab_size=50, word_embed_proj_dim=16,
    ),
    "llama": of("LlamaForCausalLM", "LlamaConfig", **KEYS),
    "llama-tied": of("LlamaForCausalLM", "LlamaConfig", **KEYS, tie_word_embeddings=True),
    "mixtral": of("MixtralForCausalLM", "MixtralConfig", **KEYS, num_local_experts=2),
    "qwen2-moe": of(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", **KEYS, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=8, shared_expert_intermediate_size=8,
    ),
    "t5": of(
        "T5ForConditionalGeneration", "T5Config",
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50,
    ),
    "vit": of("ViTForImageClassification", "ViTConfig", **VISION, image_size=8, patch_size=4),
    "clip": of(
        "CLIPModel", "CLIPConfig",
        text_config=SMALL, vision_config={**VISION, "image_size": 8, "patch_size": 4},
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


def reasons(scope: Scope, *, in_scope: bool = False) -> dict[str, str]:
    return {e.name: e.reason for e in scope.ledger if e.in_scope == in_scope}


# ------------------------------------------------------------------ what is in


@pytest.mark.slow
def test_bert_base_is_the_papers_72_matrices_live_and_from_names_in_any_order() -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig())
    tied = "cls.predictions.decoder.weight"  # safetensors keep one of the two names
    entries = sorted((e for e in entries_of(model) if e.name != tied), key=lambda e: e.name)
    in_blocks = [
        name for name, _ in model.named_parameters()
        if ".layer." in name and name.endswith("weight") and "LayerNorm" not in name
    ]  # fmt: skip
    for preset in ("blocks", "paper"):
        live, stored = Scope.of(model, preset), Scope.of_entries(entries, preset)
        assert live.names == tuple(in_blocks)
        assert set(stored.names) == set(in_blocks)
        for scope in (live, stored):
            assert (scope.summary.num_tensors, scope.summary.num_weights) == (72, 84_934_656)


@pytest.mark.slow
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
    assert (stored.hash, stored.summary) == (live.hash, live.summary)
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for scope, names in ((stored, list(model.state_dict())), (live, named)):
        listed = [name for e in scope.ledger for name in (e.name, *e.aliases)]
        assert sorted(listed) == sorted(names)
        assert all(e.reason for e in scope.ledger)
    assert sum(e.num_weights for e in live.ledger) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "mixtral", "vit", "resnet"])
def test_the_order_of_the_file_does_not_matter(architecture: str) -> None:
    entries = entries_of(MODELS[architecture]())
    one, other = Scope.of_entries(entries), Scope.of_entries(entries[::-1])
    assert set(one.names) == set(other.names)
    assert one.hash == other.hash


LLAMA = {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("vit", 6),
        ("llama", LLAMA),
    ],
)
def test_the_weights_of_each_block(architecture: str, expected) -> None:
    names = Scope.of(MODELS[architecture]()).names
    if isinstance(expected, set):
        assert {".".join(name.split(".")[3:-1]) for name in names} == expected
        expected = len(expected)
    assert len(names) == 2 * expected
    assert not any("embed" in n or "head" in n or "classifier" in n for n in names)


def test_packed_attention_and_packed_experts_are_in() -> None:
    assert "layers.0.self_attn.in_proj_weight" in Scope.of(torch_encoder()).names
    mixtral = Scope.of(MODELS["mixtral"]())
    assert any(len(e.shape) == 3 and e.in_scope for e in mixtral.ledger)


def test_without_blocks_all_but_the_output_layer() -> None:
    scope = Scope.of(conv_net())
    assert scope.names == ("0.weight", "4.weight")
    assert reasons(scope)["5.weight"] == "output layer"
    assert Scope.of(conv_net(), "layers").names == ("0.weight", "4.weight", "5.weight")


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


def test_tied_weights_count_once_and_both_names_are_told() -> None:
    scope = Scope.of(MODELS["bert"](), "layers")
    (tied,) = [e for e in scope.ledger if e.aliases and len(e.shape) == 2]
    assert tied.name == "bert.embeddings.word_embeddings.weight"
    assert tied.aliases == ("cls.predictions.decoder.weight",)
    assert (tied.in_scope, tied.reason) == (False, "embedding")
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    assert Scope.of(model).sizes == (("0.weight", 16),)


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


# ------------------------------------------------------------------ patterns and filters


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


def test_filters_and_patterns() -> None:
    model = MODELS["bert"]()

    def chooses(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and "query" in name

    for scope in (chooses, ["*.query.weight", "*.key.weight"]):
        live = Scope.of(model, scope)
        assert len(live.names) == (2 if callable(scope) else 4)
        assert all("query" in name or "key" in name for name in live.names)
        assert Scope.of_entries(entries_of(model), scope).names == live.names
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    for scope in (["*"], lambda name, p: p.requires_grad and p.is_floating_point()):
        stored = Scope.of_entries(entries_of(model), scope)  # buffers are no weights
        assert stored.hash == Scope.of(model, scope).hash


def test_a_scope_that_matches_nothing_is_an_error_that_says_what_there_was() -> None:
    layer, entries = nn.Linear(3, 2), entries_of(MODELS["bert"]())
    for scoped, message in (
        (lambda: Scope.of(layer), r"selects none of 2 parameters \(bias: bias; weight: output"),
        (lambda: Scope.of(layer, lambda name, p: False), "the predicate selects none"),
        (lambda: Scope.of(layer, "block"), r"one of \['blocks', 'layers', 'matrices', 'paper'\]"),
        (lambda: Scope.of(small(), ["0.*", "2.*"]), r"'2\.\*' matches none of 4"),
        (lambda: Scope.of_entries(entries, ["x*"]), r"'x\*' matches none of 44"),
        (lambda: Scope.of_entries(entries, "block"), "one of"),
        (lambda: Scope.of_entries([]), "selects none of 0 parameters"),
    ):
        with pytest.raises(ScopeError, match=message):
            scoped()


# ------------------------------------------------------------------ a live model


def test_parameters_that_cannot_be_read_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = small()
    with pytest.raises(ScopeError, match=r"'0\.weight', got a meta tensor"):
        Scope.of(model)


def test_the_hash_is_the_identity_of_the_set() -> None:
    one = Scope.of(small())
    assert one.hash == Scope.of(small()).hash
    assert one.hash != Scope.of(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))).hash
    assert one.hash != Scope.of(small(), "layers").hash
    compiled = Scope.of(torch.compile(small(), backend="eager"))
    assert (compiled.hash, compiled.names) == (one.hash, one.names)


def test_parameters_are_looked_up_anew() -> None:
    model = small()
    scope = Scope.of(model)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(fresh, assign=True)
    assert scope.parameters(model)["0.weight"] is model[0].weight
    model[0] = nn.Linear(4, 9)
    with pytest.raises(ScopeError, match=r"'0\.weight' of shape \(8, 4\).*got shape \(9, 4\)"):
        scope.parameters(model)


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


@pytest.mark.slow
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


def test_what_only_a_class_can_tell_is_said_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"a": nn.Embedding(9, 8), "b": nn.Linear(8, 7), "c": nn.Linear(7, 5)})
    live = Scope.of(model)
    assert live.names == ("b.weight",)
    assert reasons(Scope.of_entries(entries_of(model)), in_scope=True) == {
        "a.weight": "weight of a layer, by its name",
        "b.weight": "weight of a layer",
    }
    assert live.unlike_stored == ("a.weight",)
    with caplog.at_level(logging.WARNING), sw.watch(model, None, logdir=None):
        pass
    assert "may decide otherwise about a.weight. Give it the model" in caplog.text


# ------------------------------------------------------------------ reparametrized layers


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(layer)


REPARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": old_weight_norm,
    "old spectral_norm": old_spectral_norm,
    "prune": masked,
}


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
    note = "256 weights in 1 layers are left out, such as those of h.1.mlp.c_fc"
    for scope in (live, stored):
        (out, *_) = {n for n, why in reasons(scope).items() if why.startswith("reparametrized")}
        assert out.startswith("h.1.mlp.c_fc.")
        assert note in scope.note_on_reparametrized
    with caplog.at_level(logging.WARNING), sw.watch(model, None, logdir=None):
        pass
    assert "256 weights in 1 layers are left out" in caplog.text


def test_a_model_of_reparametrized_layers_only_is_refused_with_that_reason() -> None:
    model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(3)))
    for scoped in (lambda: Scope.of(model), lambda: Scope.of_entries(entries_of(model))):
        with pytest.raises(ScopeError, match="reparametrized: the layer's weight is computed"):
            scoped()
