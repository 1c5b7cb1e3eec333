"""Which weights count, on the architectures people train: live, and told from names and shapes."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from contracts.architectures import ARCHITECTURES, GraphAttention, GraphConv, WordModel
from contracts.families import some_of
from contracts.random_models import chain_of_layers, stored_scopes, tree_of_modules
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.utils._pytree import tree_map_only
from typing_extensions import Self

import sparsitywatch as sw
from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import ScopeError
from sparsitywatch.evaluation.checks import seen_scope
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


MODELS = {
    **{name: one.make for name, one in ARCHITECTURES.items()},
    "nano-gpt": nano_gpt,
    "conv-net": conv_net,
    "torch-encoder": torch_encoder,
}


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


def scope_of(architecture: str, model: nn.Module) -> Scope:
    """As a watch decides it at its attach, with a proxy where there is something to evaluate."""
    one, guessed = ARCHITECTURES[architecture], Scope.of(model)
    if one.batch is None:
        return guessed
    return seen_scope(guessed, "blocks", model, sw.Proxy([one.batch()], one.value))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("architecture", some_of(ARCHITECTURES, 3))
def test_what_is_out_as_output_is_what_a_hand_says(architecture: str) -> None:
    one, model = ARCHITECTURES[architecture], MODELS[architecture]()
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    named = dict(model.named_parameters(remove_duplicate=False))
    scope = scope_of(architecture, model)
    assert set(one.outputs) <= named.keys() - set(scope.names)
    out = {name: why for name, why in reasons(scope).items() if why.startswith("output layer")}
    if one.batch is not None:  # there are no blocks: all but the output is in
        matrices = {n for n, p in named.items() if p.ndim > 1 and id(p) not in embeddings}
        assert set(scope.names) == matrices - set(one.outputs)
        assert out == dict.fromkeys(one.outputs, "output layer, seen in a forward")
    stored = Scope.of_entries(entries_of(model))
    assert one.stored == "differs" or stored.hash == scope.hash
    assert set(stored.names) ^ set(scope.names) <= set(scope.unlike_stored)


def test_names_and_shapes_do_for_most_architectures() -> None:
    assert sum(one.stored == "agrees" for one in ARCHITECTURES.values()) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("architecture", some_of(MODELS, 3))
def test_the_scope_without_a_model_is_the_live_one_or_it_is_said(architecture: str) -> None:
    model = MODELS[architecture]()
    entries = entries_of(model)
    is_told = architecture not in ARCHITECTURES or ARCHITECTURES[architecture].stored == "agrees"
    for preset in PRESETS:
        try:
            live = Scope.of(model, preset)
        except ScopeError:
            if is_told:
                with pytest.raises(ScopeError, match="selects none"):
                    Scope.of_entries(entries, preset)
            continue
        stored = Scope.of_entries(entries, preset)
        live_set = {(e.name, e.shape, e.aliases) for e in live.ledger if e.in_scope}
        stored_set = {(e.name, e.shape, e.aliases) for e in stored.ledger if e.in_scope}
        assert {name for name, *_ in live_set ^ stored_set} <= set(live.unlike_stored)
        if is_told:
            assert stored_set == live_set
            assert (stored.hash, stored.summary) == (live.hash, live.summary)
        named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        for scope, names in ((stored, list(model.state_dict())), (live, named)):
            listed = [name for e in scope.ledger for name in (e.name, *e.aliases)]
            assert sorted(listed) == sorted(names)
            assert all(e.reason for e in scope.ledger)
        num = sum(p.numel() for p in model.parameters())
        assert sum(e.num_weights for e in live.ledger) == num


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
    assert reasons(scope)["5.weight"] == "output layer, by widths, names and order"
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


# ------------------------------------------------------------------ recurrent layers

RECURRENT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "LSTM": (lambda: nn.LSTM(5, 6, 2, bidirectional=True), 8),
    "LSTM with projections": (lambda: nn.LSTM(5, 6, proj_size=3), 3),
    "GRU": (lambda: nn.GRU(5, 6, 2), 4),
    "RNN": (lambda: nn.RNN(5, 6), 2),
    "LSTMCell": (lambda: nn.LSTMCell(5, 6), 2),
    "GRUCell": (lambda: nn.GRUCell(5, 6), 2),
    "RNNCell": (lambda: nn.RNNCell(5, 6), 2),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_matrices_of_recurrent_layers_count_live_and_stored(kind: str) -> None:
    make, num = RECURRENT[kind]
    model = nn.ModuleDict({"rnn": make(), "head": nn.Linear(6, 3)})
    expected = {name for name, p in model.named_parameters() if p.ndim == 2 and "rnn" in name}
    assert len(expected) == num
    for scope in ("blocks", ["rnn.weight_*"]):
        live = Scope.of(model, scope)
        assert set(live.names) == expected
        assert (Scope.of_entries(entries_of(model), scope).hash, live.unlike_stored) == (
            live.hash,
            (),
        )
    assert set(Scope.of(model, "layers").names) == {*expected, "head.weight"}
    alone = make()  # what it puts out goes into it again: it is never the output layer
    assert len(Scope.of(alone).names) == num
    assert Scope.of_entries(entries_of(alone)).hash == Scope.of(alone).hash


@pytest.mark.parametrize("how", ["weight_norm", "old weight_norm"])
def test_a_reparametrized_recurrent_weight_is_out(how: str) -> None:
    norm = nn.utils.weight_norm if how.startswith("old") else parametrizations.weight_norm
    with warnings.catch_warnings(action="ignore"):
        rnn = norm(nn.LSTM(5, 6), "weight_hh_l0")
    model = nn.ModuleDict({"rnn": rnn, "head": nn.Linear(6, 3)})
    live = Scope.of(model)
    assert live.names == ("rnn.weight_ih_l0",)
    assert "144 weights in 1 layers" in live.note_on_reparametrized
    assert Scope.of_entries(entries_of(model)).hash == live.hash


# ------------------------------------------------------------------ quantised weights


AT_ONCE = {"max_overhead": None, "background": False}


class Codes(torch.Tensor):
    """Weights as whole numbers and a scale, as torchao's subclasses keep them."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def dequantize(self) -> torch.Tensor:
        return self.codes.to(self.scale.dtype) * self.scale

    def __repr__(self) -> str:
        return f"Codes({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].codes, args[0].scale)
        plain = tree_map_only(Codes, lambda one: Codes.dequantize(one), (args, kwargs or {}))
        if func in (
            torch.ops.aten.t.default,
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
        ):
            return func(*plain[0], **plain[1])
        raise NotImplementedError(f"{func} of Codes")


class Sealed(Codes):
    """The same, but its values cannot be had."""

    def dequantize(self) -> torch.Tensor:
        raise NotImplementedError("Sealed")


class Packed(Codes):
    """Two codes a byte, as bitsandbytes keeps four bits: not of the shape of the weight."""

    def dequantize(self) -> torch.Tensor:
        return torch.zeros(4, 4)


def chain(weight: torch.Tensor | None = None) -> nn.Module:
    """Three layers, the first and the second with 64 weights; the second is what is given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    if weight is not None:
        model[1].weight = nn.Parameter(weight, requires_grad=False)
    return model


def codes_of(kind: type[Codes] = Codes, seed: int = 0) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (8, 8), generator=generator, dtype=torch.int8)
    return kind(codes, torch.full((8, 1), 0.01))


def torch_codes() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # such dtypes are on their way out
        return torch.quantize_per_tensor(codes_of().dequantize(), 0.01, 0, torch.qint8)


def probe() -> sw.Proxy:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.rand(8, 8, generator=generator), torch.arange(8) % 2) for _ in range(4)]
    return sw.Proxy(
        batches, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
    )


@pytest.mark.parametrize("make", [codes_of, torch_codes])
def test_quantised_weights_are_counted_as_their_values(make: Callable[[], torch.Tensor]) -> None:
    found = sw.measure(chain(make()), near_zero=["abs_0.5", "rms_0.1", "zero"])
    plain = sw.measure(chain(make().dequantize()), near_zero=["abs_0.5", "rms_0.1", "zero"])
    assert found.scope == plain.scope
    assert (found.near_zero, found.num_zero) == (plain.near_zero, plain.num_zero)


def test_quantised_weights_are_pruned_as_their_values() -> None:
    levels = [0.3, 0.6, 0.9]
    found = sw.measure(chain(codes_of()), probe(), levels=levels)
    plain = sw.measure(chain(codes_of().dequantize()), probe(), levels=levels)
    assert found.curve == plain.curve
    assert found.valid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_watch_of_quantised_weights_goes_on_with_them(dtype: torch.dtype) -> None:
    codes = codes_of()
    model = chain(Codes(codes.codes, codes.scale.to(dtype)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with sw.watch(model, optimizer, logdir=None, every=1, strict=True, **AT_ONCE) as watcher:
        for _ in range(3):
            optimizer.step()
    assert [record.scope.num_weights for record in watcher.records] == [128] * 3


def test_two_subclasses_of_one_shape_are_not_tied() -> None:
    model = chain(codes_of())
    model[0].weight = nn.Parameter(codes_of(seed=1), requires_grad=False)
    assert Scope.of(model).sizes == (("0.weight", 64), ("1.weight", 64))


UNREADABLE = {
    "Sealed": lambda: codes_of(Sealed),
    "Packed": lambda: codes_of(Packed),
    "Parameter of torch.int8": lambda: torch.zeros(8, 8, dtype=torch.int8),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_weights_that_do_not_dequantise_are_refused_by_name_and_class(what: str) -> None:
    model = chain(UNREADABLE[what]())
    for preset in PRESETS:
        with pytest.raises(ScopeError, match=rf"'1\.weight', got \S+\b{what}.*in `scope`"):
            Scope.of(model, preset)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with sw.watch(
        model, optimizer, logdir=None, every=1, strict=True, scope=["0.weight"], **AT_ONCE
    ) as watcher:
        optimizer.step()
    assert watcher.records[-1].scope.num_weights == 64
    why = reasons(Scope.of(model, ["0.weight"]))["1.weight"]
    assert ("cannot be read" in why) == (what in ("Sealed", "Packed"))


def test_layers_whose_weights_are_no_parameters_are_refused_by_name() -> None:
    with warnings.catch_warnings(action="ignore"):
        model = torch.ao.quantization.quantize_dynamic(chain())
    model[0] = nn.Linear(8, 8)
    with pytest.raises(ScopeError, match=r"'1' is a torch\.ao\.nn\.\S+Linear, which packs"):
        Scope.of(model)
    assert Scope.of(model, ["0.weight"]).names == ("0.weight",)


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
        (
            lambda: Scope.of(layer, "block"),
            r"one of \['all', 'blocks', 'layers', 'matrices', 'paper'\]",
        ),
        (lambda: Scope.of(small(), ["0.*", "2.*"]), r"'2\.\*' matches none of 4"),
        (lambda: Scope.of_entries(entries, ["x*"]), r"'x\*' matches none of 44"),
        (lambda: Scope.of_entries(entries, "block"), "one of"),
        (lambda: Scope.of_entries([]), "selects none of 0 parameters"),
        (lambda: Scope.of(nn.ReLU()), "model with parameters, .* Build it first"),
        (lambda: Scope.of(nn.ReLU(), ["*kernel"]), "model with parameters, .* Build it first"),
    ):
        with pytest.raises(ScopeError, match=message):
            scoped()


WITHOUT_A_SCOPE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "regression": (lambda: nn.Linear(4, 1), "layers"),
    "gcn": (lambda: nn.Sequential(GraphConv(9, 4), GraphConv(4, 2)), "matrices"),
    "gat": (lambda: nn.Sequential(GraphAttention(9, 4, 2), GraphAttention(8, 2, 1)), "matrices"),
    "bag of words": (lambda: nn.Sequential(nn.EmbeddingBag(30, 4), nn.Linear(4, 2)), "matrices"),
    "a layer and norms": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), "layers"),
    "norms": (lambda: nn.Sequential(nn.LayerNorm(4), nn.BatchNorm2d(4)), ""),
}


@pytest.mark.parametrize("what", WITHOUT_A_SCOPE)
def test_the_preset_that_an_error_suggests_selects_most(what: str) -> None:
    make, best = WITHOUT_A_SCOPE[what]
    model = make()
    selected = dict.fromkeys(PRESETS, 0)
    for preset in PRESETS:
        with contextlib.suppress(ScopeError):
            selected[preset] = Scope.of(model, preset).summary.num_weights
    num = sum(p.numel() for p in model.parameters())
    suggestion = "No preset selects any of them: give name patterns or a predicate."
    if best:
        assert selected[best] == max(selected.values()) > 0
        share = round(100 * selected[best] / num)
        suggestion = (
            f"Choose scope='{best}', which selects {selected[best]} of {num} weights ({share}%)"
        )
    for scope in ("blocks", lambda name, p: False):
        with pytest.raises(ScopeError, match=re.escape(suggestion)):
            Scope.of(model, scope)


def test_the_layers_of_keras_are_suggested_by_the_name_of_their_weights() -> None:
    names = {"dense/kernel": (3, 4), "dense/bias": (4,), "embedding/embeddings": (9, 4)}
    model = nn.Module()
    model._torch_params = nn.ParameterDict({name: torch.ones(s) for name, s in names.items()})
    advice = re.escape('Choose scope=["*kernel"], which selects 12 of 52 weights, as Keras')
    with pytest.raises(ScopeError, match=advice):
        Scope.of(model)
    assert Scope.of(model, ["*kernel"]).names == ("_torch_params.dense/kernel",)


def test_a_language_model_with_an_lstm_needs_no_suggestion() -> None:
    """word_language_model: its error once suggested a scope that selected the decoder alone."""
    for kind in ("LSTM", "GRU", "RNN"):
        names = Scope.of(WordModel(kind)).names
        assert names == tuple(f"rnn.weight_{x}_l{i}" for i in range(2) for x in ("ih", "hh"))
    with pytest.raises(ScopeError, match=r"'paper' selects none.*Choose scope='matrices'"):
        Scope.of(WordModel("LSTM"), "paper")


# ------------------------------------------------------------------ a live model


def test_parameters_that_cannot_be_read_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = small()
    with pytest.raises(ScopeError, match=r"'0\.weight', got a meta tensor"):
        Scope.of(model)


@pytest.mark.slow
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


@pytest.mark.slow
@on_disk
@given(draw=draws)
def test_a_layer_called_linear_is_not_the_output_layer_for_its_name(
    tmp_path: Path, draw: random.Random
) -> None:
    model, last = chain_of_layers(draw)
    live = Scope.of(model)
    out = {e.name for e in live.ledger if e.reason.startswith("output layer")}
    assert out == {f"{last}.weight"}
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


@pytest.mark.slow
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
