"""The blocks of the page on frameworks, each with the real library, with a watch and without."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from contracts.forked import WATCH, forked, said

from sparsitywatch.sinks.jsonl import read_records

DOCS = Path(__file__).parents[2] / "docs"
#: How a library is imported, where its name is another; those of the group dev are there.
LIBRARIES = {
    "Lightning": "lightning", "Accelerate": "accelerate", "Ignite": "ignite", "fastai": "fastai",
    "Keras on torch": "keras",
}  # fmt: skip
BEFORE = """
import random
import warnings

import numpy

warnings.simplefilter("ignore")  # of these libraries
random.seed(0)
numpy.random.seed(0)
"""
AFTER = """
import hashlib
bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print("weights", hashlib.sha256(bits).hexdigest())
"""
RESUMES = {"Accelerate": "# accelerator.load_state", "Ignite": "# Checkpoint.load_objects"}


def blocks(page: str) -> dict[str, str]:
    """The first block under each heading, by that."""
    _, *parts = re.split(r"^#+ (.+)$", (DOCS / page).read_text(), flags=re.M)
    fenced = [re.search(r"^```python\n(.*?)^```", part, re.M | re.S) for part in parts[1::2]]
    return {name: block[1] for name, block in zip(parts[::2], fenced, strict=True) if block}


BLOCKS = blocks("frameworks.md")
GIVEN = blocks("recipes.md")["Recipes"] + BLOCKS.pop("Frameworks")


def needed(name: str) -> str:
    """The block of a framework that is installed; to import it here would take seconds."""
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed: it is of the group frameworks")
    return BLOCKS[name]


def weights_after(code: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    output, _ = said("\n".join([BEFORE, GIVEN, code, AFTER]), folder)
    return re.findall(r"^weights (.*)", output, re.M)[0]


def steps(folder: Path) -> list[int]:
    (log,) = (folder / "runs").glob("*/sparsitywatch")
    records = read_records(log)
    assert all(record.valid and record.curve is not None for record in records)
    return [record.step for record in records]


def test_every_block_is_of_a_library_that_is_known() -> None:
    assert BLOCKS.keys() == LIBRARIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_watch_changes_no_bit_of_a_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = needed(name)
    watched = weights_after(block, tmp_path / "on")
    assert steps(tmp_path / "on") == [10, 20, 30]
    monkeypatch.setenv("SPARSITYWATCH_DISABLED", "1")
    assert weights_after(block, tmp_path / "off") == watched
    assert not [*(tmp_path / "off").rglob("records.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMES)
def test_a_training_goes_on_without_a_gap(name: str, tmp_path: Path) -> None:
    block = needed(name)
    weights_after(block, tmp_path)
    assert RESUMES[name] in block
    resumed = weights_after(block.replace(RESUMES[name], RESUMES[name][2:]), tmp_path)
    assert steps(tmp_path) == [10, 20, 30, 40, 50, 60]
    assert [r.decay_clock for r in read_records(next(tmp_path.glob("runs/*/sparsitywatch")))] == (
        pytest.approx([1e-4 * step for step in range(10, 70, 10)])
    )
    sixty = "train(60)\n"
    assert weights_after(sixty, tmp_path / "whole") == resumed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FSDP2", "DDP"])
def test_ranks_watch_together(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = blocks("distributed.md")["What to call where"]
    if kind == "DDP":
        ddp = "model = nn.parallel.DistributedDataParallel(model)"
        assert f"fully_shard(model)  # or {ddp}" in block
        block = block.replace("fully_shard(model)", ddp)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    end = "\ndist.destroy_process_group()\n"
    script.write_text(BEFORE + GIVEN + block + end)
    status, output = forked(script, imports=WATCH)
    assert status == 0, output
    assert steps(tmp_path) == [10, 20, 30]
