"""What the README and the first page of the docs show to begin with runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from contracts.forked import said

from sparsitywatch import cli
from sparsitywatch.sinks.jsonl import read_records

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
#: Of ours, which a reader of the README has to learn: ten at most.
TERMS = {"essential sparsity", "near zero", "proxy", "snapshot", "event", "reliance", "dormant",
         "scope", "tolerance", "replay"}  # fmt: skip


def blocks(markdown: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)


def test_the_readme_is_two_screens_with_the_page_before_any_code() -> None:
    assert len(README.split()) <= 700
    picture, code = (README.index(x) for x in ("](docs/report.png)", "```"))
    assert picture < code
    assert "sw." not in README[:code]
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    ours = re.findall(r"^\*\*([^*]+)\.\*\* Our word", glossary, re.MULTILINE)
    said = README.lower().replace("-", " ")
    assert len(ours) > 5
    assert {t.lower() for t in ours if re.search(rf"\b{re.escape(t.lower())}\b", said)} <= TERMS


@pytest.mark.slow
def test_the_trainer_s_example_runs_as_it_is_pasted(tmp_path: Path) -> None:
    """The tokenizer and the config are those of a folder of that name; and 20 steps are enough."""
    import tokenizers
    from transformers import BertConfig, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = {word: i for i, word in enumerate([*special, *letters])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    names = ("pad", "unk", "cls", "sep", "mask")
    PreTrainedTokenizerFast(
        tokenizer_object=model,
        **{f"{name}_token": mark for name, mark in zip(names, special, strict=True)},
    ).save_pretrained(tmp_path / "bert-base-uncased")
    BertConfig(
        vocab_size=len(known), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    ).save_pretrained(tmp_path / "bert-base-uncased")  # fmt: skip
    lines = [letters[i % 26 :] + letters * 4 for i in range(600)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    (language, block), *_ = blocks(README)
    assert language == "python"
    assert len([line for line in block.splitlines() if line and "import" not in line]) <= 12
    block = block.replace("max_steps=100_000, per_device_train_batch_size=32", "max_steps=20")
    assert "max_steps=20)" in block
    said(block.replace("every=500", "every=5, max_overhead=None"), tmp_path)
    after = README.partition("```python")[2].partition("## Install")[0]
    commands = re.findall(r"^    sparsitywatch (.*?)(?:  +#.*)?$", after, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["show", "status"]
    assert cli.main(["status", str(tmp_path / commands[1].removeprefix("status "))]) in (0, 1)
    records = read_records(tmp_path / "runs" / "bert" / "runs" / "sparsitywatch")
    assert [record.step for record in records] == [5, 10, 15, 20]
    assert all(record.valid and record.curve is not None for record in records)


#: What the shorter blocks of the README take for granted.
GIVEN = """
import torch
from torch import nn

import sparsitywatch as sw

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
held_out_batches = [torch.randn(64, 8)]


def loss_of_each_example(model, batch):
    return (model(batch) - batch[:, :1]).square().squeeze(1)


def train(model, optimizer):
    for _ in range(3):
        loss_of_each_example(model, torch.randn(64, 8)).mean().backward()
        optimizer.step()
"""


@pytest.mark.slow
def test_the_other_blocks_run(tmp_path: Path) -> None:
    _, *others = blocks(README)
    assert [language for language, _ in others] == ["python", "python"]
    code = ["import warnings", 'warnings.simplefilter("error")', GIVEN, *(b for _, b in others)]
    printed, _ = said("\n".join(code), tmp_path)
    assert printed.startswith("<Record of step 0: ")
    assert (tmp_path / "runs" / "mine" / "sparsitywatch" / "records.jsonl").is_file()


@pytest.mark.slow
def test_the_first_block_runs_as_it_is_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((language, block),) = blocks(START)
    assert language == "python"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=block, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<Record of step 600: near zero (initial_0.1) ")
    assert "sparsitywatch: Look: Dormant weights" in done.stderr

    # and so do the commands below it
    after = START.partition(block)[2].partition("##")[0]
    commands = re.findall(r"^    sparsitywatch (.*?)(?:  +#.*)?$", after, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["summary", "report", "show", "status"]
    monkeypatch.chdir(tmp_path)
    found = {c.split()[0]: cli.main(c.split()) for c in commands if c != "show runs"}  # it serves
    assert found == {"summary": 0, "report": 0, "status": 1}  # 1: dormant weights, have a look
    assert "30 " in capsys.readouterr().out  # snapshots, in the summary
    assert (tmp_path / "report.html").stat().st_size > 10_000
