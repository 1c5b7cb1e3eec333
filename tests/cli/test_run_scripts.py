"""Small scripts of all kinds, unedited: the same weights as without, a verdict that names what is.

They run in this process, as ``runpy`` runs them; test_run.py has the command itself.
"""

from __future__ import annotations

import runpy
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sparsitywatch as sw
from sparsitywatch.errors import ProxyError
from sparsitywatch.integrations.evaluations import Found
from sparsitywatch.live.unedited import Unedited

HEAD = """
import threading, torch
from torch import nn
torch.manual_seed(0)
class Experts(nn.Module):
    def __init__(self, num_used=4):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.num_used = num_used
    def forward(self, x):
        h = self.up(x).relu()
        chosen = torch.arange(len(x)) % self.num_used
        parts = [self.experts[i](h[chosen == i]) for i in range(self.num_used)]
        return self.down(torch.cat(parts).relu())
class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.experts = nn.Parameter(torch.randn(4, 16, 16) / 4)
    def forward(self, x):
        h = self.up(x).relu().reshape(4, -1, 16)
        return self.down(torch.einsum("ebi,eio->ebo", h, self.experts).relu().reshape(-1, 16))
class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)
        nn.init.zeros_(self.lora_B.weight)
    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))
class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.side, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
    def forward(self, x):
        return self.down((self.up(x) + self.side(x).detach()).relu())
def train(model, optimizer=None, steps=48):
    optimizer = optimizer or torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, 8)
        (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
"""
TRAINER = """
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=16, max_position_embeddings=16)
model = BertForSequenceClassification(config)
rows = [{"input_ids": torch.randint(0, 20, (8,)), "labels": i % 2} for i in range(64)]
args = TrainingArguments("out", max_steps=12, report_to=[], save_strategy="no", use_cpu=True,
                         disable_tqdm=True)
Trainer(model, args, train_dataset=rows[:32], eval_dataset=rows[32:]).train()
"""
LIGHTNING = """
import lightning.pytorch as pl
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                 nn.Linear(16, 8))
    def training_step(self, batch, _):
        return (self.net(batch) - batch).square().mean()
    def validation_step(self, batch, _):
        self.log("val_loss", (self.net(batch) - batch).square().mean())
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)
model = Module()
loaders = [torch.utils.data.DataLoader(torch.randn(96, 8), 8) for _ in range(2)]
pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
           enable_model_summary=False, accelerator="cpu").fit(model, *loaders)
"""
PEFT = """
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=16)
model = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules=["q_proj", "v_proj"]))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
for _ in range(10):
    optimizer.zero_grad()
    ids = torch.randint(0, 20, (2, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
"""


class Case(NamedTuple):
    """A script that leaves ``model``, the folder of its log, and what its verdict has to say."""

    body: str
    log: str
    says: str = ""  # of what does not train
    is_evaluated: bool = False
    needs: str = "torch"


CASES = {
    "dense": Case("model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))\n"
                  "train(model)", "Sequential"),
    "experts": Case("model = Experts()\ntrain(model)", "Experts"),
    "an idle expert": Case("model = Experts(3)\ntrain(model)", "Experts", "experts.3"),
    "packed experts": Case("model = Packed()\ntrain(model)", "Packed"),
    "an adapter": Case("model = Adapted()\ntrain(model)", "Adapted"),
    "a stuck adapter": Case(
        "model = Adapted()\nnn.init.zeros_(model.lora_A.weight)\ntrain(model)",
        "Adapted", "lora_"),
    "a detached branch": Case("model = Branched()\ntrain(model)", "Branched", "side"),
    "left out": Case("model = Experts()\n"
                     "some = [*model.up.parameters(), *model.experts.parameters()]\n"
                     "train(model, torch.optim.AdamW(some, 0.01))", "Experts", "down"),
    "a thread": Case("model = Experts()\n"
                     "one = threading.Thread(target=train, args=(model,))\n"
                     "one.start(); one.join()", "Experts"),
    "a function": Case("def main():\n    model = Packed()\n    train(model)\n    return model\n"
                       "model = main()", "Packed"),
    "300 fast steps": Case("model = Packed()\ntrain(model, steps=300)", "Packed"),
    "peft": Case(PEFT, "LlamaForCausalLM", needs="peft"),
    "a Trainer": Case(TRAINER, "BertForSequenceClassification", is_evaluated=True,
                      needs="transformers"),
    "Lightning": Case(LIGHTNING, "Module", is_evaluated=True, needs="lightning"),
}  # fmt: skip


def ran(script: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What it leaves: the model's weights, and the next random numbers."""
    model: Any = runpy.run_path(str(script), run_name="__main__")["model"]
    return {name: p.detach().clone() for name, p in model.state_dict().items()}, torch.rand(3)


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_script_ends_with_the_same_bits_and_a_verdict_that_names_what_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    pytest.importorskip(case.needs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    script = tmp_path / "train.py"
    script.write_text(HEAD + case.body)
    expected, drawn = ran(script)
    said: list[str] = []
    of_trainer = Found(None, ("train", "__main__"))
    is_short = name == "300 fast steps"
    one = Unedited(
        tmp_path / "log", said.append, of_trainer,
        every=1000 if is_short else 4, max_overhead=0.01 if is_short else None,
    )  # fmt: skip
    try:
        weights, numbers = ran(script)
    finally:
        one._hook.remove()
        for watcher in [*sw.Watcher._all]:
            watcher.close()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert torch.equal(numbers, drawn)
    assert [path.name for path in (tmp_path / "log").iterdir()] == [case.log], said
    run = sw.load(tmp_path / "log" / case.log)
    told = run.verdict.describe()
    steps = [record.step for record in run.records]
    assert steps[:3] == ([0, 8, 32] if is_short else [0, 4, 8])
    assert all(record.valid for record in run.records), told
    assert any(record.curve is not None for record in run.records) == case.is_evaluated, said
    assert "update to weight" in told or name == "a stuck adapter"  # all of it is zero
    training = " ".join(run.verdict.training)
    if case.says:
        assert case.says in training, told
    else:
        assert "tensor" not in training, told
        assert run.verdict.state in ("healthy", "too early to tell"), told


def test_no_proxy_is_made_beside_a_thread_that_may_draw() -> None:
    begun, done = threading.Event(), threading.Event()

    def draw() -> None:  # as a thread that prefetches does
        begun.set()
        done.wait()

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    thread = threading.Thread(target=draw, name="prefetching")
    thread.start()
    try:
        begun.wait()
        with pytest.raises(ProxyError, match=r"other thread that may draw .*, got prefetching"):
            Found("math:pi", ()).proxy(optimizer)
        assert Found(None, ()).proxy(optimizer) is None  # of no trainer, nothing is made
    finally:
        done.set()
        thread.join()
