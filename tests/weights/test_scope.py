"""Which weights count, on the real architectures people train."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.weights.scope import PRESETS, Scope

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
}


def excluded(scope: Scope) -> dict[str, str]:
    return {e.name: e.reason for e in scope.ledger if not e.in_scope}


def test_bert_base_is_the_papers_72_matrices() -> None:
    with torch.device("meta"):
        names = [
            n for n, _ in transformers.BertForMaskedLM(transformers.BertConfig()).named_parameters()
        ]
    in_blocks = [
        n for n in names if ".layer." in n and n.endswith("weight") and "LayerNorm" not in n
    ]
    model = transformers.BertForMaskedLM(transformers.BertConfig())
    for preset in ("blocks", "paper"):
        scope = Scope.of(model, preset)
        assert scope.names == tuple(in_blocks)
        assert scope.summary.num_tensors == 72
        assert scope.summary.num_weights == 84_934_656


def test_the_ledger_names_every_parameter_once_with_a_reason() -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    scope = Scope.of(model)
    listed = [name for e in scope.ledger for name in (e.name, *e.aliases)]
    assert sorted(listed) == sorted(n for n, _ in model.named_parameters(remove_duplicate=False))
    assert all(e.reason for e in scope.ledger)
    assert sum(e.num_weights for e in scope.ledger) == sum(p.numel() for p in model.parameters())


def test_tied_weights_count_once_and_both_names_are_told() -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    (tied,) = [e for e in Scope.of(model, "layers").ledger if e.aliases and len(e.shape) == 2]
    assert tied.name == "bert.embeddings.word_embeddings.weight"
    assert tied.aliases == ("cls.predictions.decoder.weight",)
    assert not tied.in_scope
    assert tied.reason == "embedding"


def test_a_tied_pair_inside_the_blocks_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    scope = Scope.of(model)
    assert scope.names == ("0.weight",)
    assert scope.summary.num_weights == 16


@pytest.mark.parametrize(
    ("config", "model", "weights_per_block", "num_blocks"),
    [
        (
            transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=8),
            transformers.GPT2LMHeadModel,
            {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
            2,
        ),
        (
            transformers.ViTConfig(**{k: v for k, v in SMALL.items() if k != "vocab_size"}),
            transformers.ViTForImageClassification,
            None,
            2,
        ),
        (
            transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
            transformers.LlamaForCausalLM,
            {
                "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
            },
            2,
        ),
    ],
    ids=["gpt2-conv1d", "vit", "llama"],
)  # fmt: skip
def test_other_transformers(config, model, weights_per_block, num_blocks) -> None:
    scope = Scope.of(model(config))
    per_block = len(scope.names) / num_blocks
    assert per_block == (6 if weights_per_block is None else len(weights_per_block))
    if weights_per_block:
        inside = {".".join(n.split(".")[3:-1]) for n in scope.names}
        assert inside == weights_per_block
    assert not any(
        "embed" in name or "head" in name or "classifier" in name for name in scope.names
    )


def test_packed_attention_and_packed_experts_are_in() -> None:
    torch_encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    assert "layers.0.self_attn.in_proj_weight" in Scope.of(torch_encoder).names
    config = transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2)
    mixtral = Scope.of(transformers.MixtralForCausalLM(config))
    assert any(len(e.shape) == 3 and e.in_scope for e in mixtral.ledger)


def test_without_blocks_all_but_the_output_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 8),
        nn.Linear(8, 2),
    )
    scope = Scope.of(model)
    assert scope.names == ("0.weight", "4.weight")
    assert excluded(scope)["5.weight"] == "output layer"
    assert Scope.of(model, "layers").names == ("0.weight", "4.weight", "5.weight")


def test_filters_and_patterns() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert Scope.of(model, lambda name, p: name.startswith("1") and p.ndim == 2).names == (
        "1.weight",
    )
    assert Scope.of(model, ["*.weight"]).names == ("0.weight", "1.weight")
    with pytest.raises(ScopeError, match=r"'2\.\*' matches none"):
        Scope.of(model, ["0.*", "2.*"])


def test_a_scope_that_matches_nothing_is_an_error_that_says_what_there_was() -> None:
    with pytest.raises(
        ScopeError, match=r"selects none of 2 parameters \(bias: bias; weight: output"
    ):
        Scope.of(nn.Linear(3, 2))
    with pytest.raises(ScopeError, match="the predicate selects none"):
        Scope.of(nn.Linear(3, 2), lambda name, p: False)
    with pytest.raises(ScopeError, match="one of \\['blocks', 'layers', 'matrices', 'paper'\\]"):
        Scope.of(nn.Linear(3, 2), "block")
    assert set(PRESETS) == {"blocks", "layers", "matrices", "paper"}


def test_parameters_that_cannot_be_read_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    with pytest.raises(ScopeError, match=r"'0\.weight', got a meta tensor"):
        Scope.of(model)


def test_wrappers_do_not_change_the_scope() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    plain = Scope.of(model)
    compiled = torch.compile(model, backend="eager")
    assert Scope.of(compiled).hash == plain.hash
    assert Scope.of(compiled).names == plain.names


def test_the_hash_is_the_identity_of_the_set() -> None:
    one = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    other = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))
    assert Scope.of(one).hash == Scope.of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))).hash
    assert Scope.of(one).hash != Scope.of(other).hash
    assert Scope.of(one).hash != Scope.of(one, "layers").hash


def test_parameters_are_looked_up_anew() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    scope = Scope.of(model)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(fresh, assign=True)
    assert scope.parameters(model)["0.weight"] is model[0].weight
    model[0] = nn.Linear(4, 9)
    with pytest.raises(ScopeError, match=r"'0\.weight' of shape \(8, 4\).*got shape \(9, 4\)"):
        scope.parameters(model)
