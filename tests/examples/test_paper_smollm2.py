"""The paper's experiment on a stored language model: at toy size, and from a file like its own."""

from __future__ import annotations

import numpy as np
import pytest
import smollm2
import torch
from common import concluded
from contracts.paper import said
from torch import nn
from torch.nn.utils import prune


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a toy run."""
    out = tmp_path_factory.mktemp("smollm2")
    assert smollm2.main(["--small", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_its_losses_are_those_of_torch_s_own_pruning(ran):
    experiment = smollm2.Experiment(smollm2.arguments_of(["--small", "--out", str(ran)]))
    outcome = smollm2.Outcome(experiment, smollm2.Results(ran / "results.jsonl", SETTINGS))
    model = experiment.model
    pruned = [
        (module, "weight")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers" in name
    ]
    dense = experiment.proxy.evaluate(model)
    total = sum(module.weight.numel() for module, _ in pruned)
    amount = round(total * outcome.found["global"]["sparsity"][2])  # that of 0.5, as counted
    assert amount == pytest.approx(total / 2, abs=20)
    prune.global_unstructured(pruned, prune.L1Unstructured, amount=amount)
    with torch.no_grad():
        rises = experiment.proxy.evaluate(model) - dense
    rise, width = outcome.rise("global", 0.5)
    assert rise == pytest.approx(100 * float(rises.mean() / dense.mean()), rel=1e-3, abs=1e-6)
    error = float(rises.std(ddof=1)) / len(rises) ** 0.5  # 1.753 is Student's t of 15 degrees, 90 %
    assert width == pytest.approx(100 * 1.753 * error / float(dense.mean()), rel=1e-3)


SETTINGS = {"examples": 16, "length": 12, "levels": [0.2, 0.5], "small": True}


@pytest.mark.slow
def test_started_again_it_measures_nothing_and_says_the_same(ran, monkeypatch):
    text = said(smollm2, ran)
    monkeypatch.setattr(smollm2.sw, "measure", None)  # calling it would fail
    assert said(smollm2, ran) == text
    assert "no evidence of sparsity" in text
    assert (ran / "smollm2.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_compared_is_paired_by_window():
    outcome = object.__new__(smollm2.Outcome)
    outcome.at = 0.5
    random = np.random.default_rng(0)
    windows = random.normal(4.0, 1.0, 16)
    outcome.found = {"global": {"loss": [4.0]}}
    outcome.at_each = {
        "global": windows,
        "wanda": windows - 0.5 + 0.1 * random.normal(size=16),
        "sparsegpt": windows + 0.2 * (-1.0) ** np.arange(16),
        "random": windows + 4.0,
    }
    told = dict(zip(("wanda", "sparsegpt", "random"),
                    concluded(outcome.compared()), strict=True))  # fmt: skip
    assert told["wanda"].startswith("loss at 0.50: magnitude − Wanda: +1")
    assert told["wanda"].endswith("they differ, magnitude is higher.")
    assert "cannot tell, it would take about" in told["sparsegpt"]
    assert "windows" not in told["random"]


def test_without_the_file_it_says_how_to_get_it(tmp_path):
    with pytest.raises(SystemExit, match=r"Expected a file \*.gguf in .*fetch.py smollm2"):
        smollm2.main(["--material", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_a_stored_model_is_read_from_four_bits(tmp_path):
    """One like SmolLM2's, written here: its weights come back as 4 bits leave them."""
    gguf = pytest.importorskip("gguf", reason="the extra 'paper' has it")
    folder = tmp_path / "smollm2"
    folder.mkdir()
    stored = write_tiny(gguf, folder / "tiny.Q4_1.gguf")
    model, encode = smollm2.stored(tmp_path)
    found = model.model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(found.detach(), torch.tensor(stored))
    assert len(np.unique(stored.reshape(-1, 32)[0])) <= 16
    assert not model.training
    tokens = torch.tensor([encode("ab")])
    assert tokens.tolist() == [[97 - 33, 98 - 33]]
    assert smollm2.losses(model, tokens).shape == (1,)


def write_tiny(gguf, file):
    """A Llama of one block, with a token for each byte; returns what its last matrix holds."""
    rng, width, inner = np.random.default_rng(0), 32, 64
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(257)
    add_tokens(writer)
    half = width // 2
    shapes = {
        "token_embd": (257, width),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (half, width),
        "blk.0.attn_v": (half, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width),
        "blk.0.ffn_down": (width, inner),
    }
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        packed = gguf.quants.quantize(rng.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(packed, kind)


def add_tokens(writer):
    """The tokens of GPT-2's alphabet of bytes: "!" first."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    tokens = [*map(chr, shown), *(chr(256 + k) for k in range(len(hidden)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, "zz"])
    writer.add_token_types([1] * 257)
    writer.add_token_merges(["z z"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
