"""Published trainings: streamed from a hub of the test's own, in the layout of their repositories.

Three seeds of a tiny BERT at the 29 steps of MultiBERTs, of which 40 % of the weights fall to a
fiftieth at a step that is planted. The process is killed twice.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kept
import published
import pytest
import torch
from contracts.families import some_of, whole
from contracts.hub_server import Hub, hub_server
from transformers import BertConfig, BertForPreTraining

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "paper" / "published.py"
STEPS = published.SERIES["multiberts"].steps
#: By seed: the checkpoint before the planted turn.
TURNS = {"0": 500_000, "1": 900_000, "2": 1_300_000}
#: Matrices in scope: of two layers four of 16 x 16 and two of 16 x 64.
NUM_WEIGHTS = 2 * (4 * 16 * 16 + 2 * 16 * 64)
CONFIG = BertConfig(
    vocab_size=3000, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=32,
)  # fmt: skip


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def states(seed: str) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """The weights at each step: they move a little, and some fall at once."""
    chance = torch.Generator().manual_seed(int(seed))
    state = BertForPreTraining(CONFIG).state_dict()
    first = {name: torch.randn(w.shape, generator=chance) for name, w in state.items()
             if w.is_floating_point()}  # fmt: skip
    falls = {name: torch.rand(w.shape, generator=chance) < 0.4 for name, w in first.items()}
    for step in STEPS:
        moved = {
            name: w * (1 + 0.02 * torch.randn(w.shape, generator=chance))
            * torch.where(falls[name] & (step > TURNS[seed]), 0.02, 1.0)
            for name, w in first.items()
        }  # fmt: skip
        yield step, {name: moved.get(name, w) for name, w in state.items()}


def files(seed: str, state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """A repository of MultiBERTs: seed 0 in today's format, 1 in that before 1.6, 2 in shards."""
    beside = {
        ".gitattributes": b"*.bin filter=lfs", "README.md": b"# MultiBERTs", "vocab.txt": b"[PAD]",
        "config.json": json.dumps(CONFIG.to_dict()).encode(), "tf_model.h5": b"\x89HDF" * 500,
        "tokenizer_config.json": b"{}",
    }  # fmt: skip
    if seed == "2":
        names = [*state]
        parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in (0, 1)}
        index = {"metadata": {}, "weight_map": {n: f for f, own in parts.items() for n in own}}
        beside["pytorch_model.bin.index.json"] = json.dumps(index).encode()
        return beside | {f: saved({n: state[n] for n in own}) for f, own in parts.items()}
    is_new = seed == "0"
    return beside | {"pytorch_model.bin": saved(state, _use_new_zipfile_serialization=is_new)}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repositories: dict[str, dict[str, dict[str, bytes]]] = {}
    for seed in TURNS:
        for step, state in states(seed):
            name = f"google/multiberts-seed_{seed}-step_{step // 1000}k"
            if (seed, step) == ("1", STEPS[-1]):  # the last one under the name of the run alone
                name = "google/multiberts-seed_1"
            repositories[name] = {"main": files(seed, state)}
    for step in (0, 20):  # TensorFlow alone
        repositories[f"google/multiberts-seed_3-step_{step}k"] = {
            "main": {"config.json": b"{}", "tf_model.h5": b"\x89HDF" * 500}
        }
    with hub_server(repositories) as running:
        yield running


def command(hub: Hub, folder: Path, *words: str) -> subprocess.Popen[str]:
    given = [sys.executable, str(SCRIPT), *words, "--out", str(folder / "out"),
             "--kept", str(folder / "kept")]  # fmt: skip
    environment = {**hub.environment(folder / "home"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        given, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def weights_sent(hub: Hub) -> int:
    return sum(size for _, file, size in hub.sent if file.endswith(".bin"))


def kill_at(process: subprocess.Popen[str], hub: Hub, log: Path, num: int) -> None:
    """Kill it as soon as so many checkpoints of a run are in its log."""
    records = log / "sparsitywatch" / "records.jsonl"
    until = time.monotonic() + 240
    while not records.exists() or records.read_bytes().count(b"\n") < num:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", some_of([[*TURNS][:1], [*TURNS]], 2), ids=len)
def test_seeds_are_streamed_through_a_kill_each(hub: Hub, tmp_path: Path, seeds: list[str]) -> None:
    words = ("multiberts", "--runs", *seeds, "--page", str(tmp_path / "page.md"))
    out = tmp_path / "out"
    for seed in seeds[:2]:
        kill_at(command(hub, tmp_path, *words), hub, out / f"multiberts-seed_{seed}", 12)
    process = command(hub, tmp_path, *words)
    said, wrong = process.communicate(timeout=400)
    assert process.returncode == 0, wrong
    # what is said: float32 of what is in scope, and what the killed ones have left of it
    num_bytes = 29 * 4 * NUM_WEIGHTS
    assert said.count(f"29 checkpoints, {NUM_WEIGHTS:,} weights in scope (float32)") == len(seeds)
    done, left = re.findall(r"(\d+) are done, ([\d,]+) bytes are left", said)[len(seeds[1:2])]
    assert int(left.replace(",", "")) == num_bytes - int(done) * 4 * NUM_WEIGHTS
    assert 9 <= int(done) < 29
    runs = kept.kept(tmp_path / "kept")
    assert [*runs] == [f"multiberts-seed_{seed}" for seed in seeds]
    for seed, run in zip(seeds, runs.values(), strict=True):
        assert run["steps"] == [*STEPS]
        assert run["num_bytes"] == num_bytes
        assert (tmp_path / "kept" / f"multiberts-seed_{seed}.json.gz").stat().st_size < 30_000
        found = published.turns(run, "up")
        assert len(found) > 5
        after = STEPS[STEPS.index(TURNS[seed]) + 1]
        assert all(TURNS[seed] <= turn["onset_high"] and turn["onset_low"] <= after
                   for turn in found)  # fmt: skip
    for state_seed, (step, state) in zip("0" * 29, states("0"), strict=True):
        run = runs[f"multiberts-seed_{state_seed}"]
        own = [w for n, w in state.items() if "encoder.layer" in n and w.ndim == 2]
        below = sum(int((w.abs() < 0.1 * w.square().mean().sqrt()).sum()) for w in own)
        row = run["thresholds"].index("rms_0.1")
        counted = sum(run["count_changes"][row][: STEPS.index(step) + 1])
        assert abs(counted - below) <= 3  # the threshold is taken to the end of a bin
    page = (tmp_path / "page.md").read_text()
    assert f"**{len(seeds)} of {len(seeds)} runs turn abruptly to sparse**" in page
    assert page.count("It waits for its checkpoints") == 2


@whole  # an example starts its process once
@pytest.mark.slow
def test_bytes_and_time_come_first_and_formats_are_refused_by_name(
    hub: Hub, tmp_path: Path
) -> None:
    before = len(hub.sent)
    process = command(hub, tmp_path, "multiberts", "--runs", "0", "3", "--dry-run", "--mbit", "1")
    said, wrong = process.communicate(timeout=200)
    assert process.returncode == 2
    assert f"{29 * 4 * NUM_WEIGHTS:,} bytes; 6 seconds at 1 Mbit/s" in said
    assert "multiberts-seed_3: Cannot list" in wrong
    assert "TensorFlow" in wrong
    sent = sum(size for *_, size in hub.sent[before:])
    assert sent < 29 * 4 * NUM_WEIGHTS  # descriptions


def test_the_page_is_what_is_kept() -> None:
    page = ROOT / "docs" / "reports" / "published.md"
    assert page.read_text("utf-8") == published.page(kept.kept(kept.FOLDER / "published"))


@pytest.mark.parametrize(("num", "most", "expected"), [
    (5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]), (101, 2, [0, 100]),
])  # fmt: skip
def test_checkpoints_are_chosen_evenly(num: int, most: int | None, expected: list[int]) -> None:
    assert published.evenly(range(num), most) == expected


@pytest.mark.parametrize(("series", "name"), [
    ("multiberts", "multiberts-seed_0"), ("pythia", "pythia-160m"), ("olmo", "OLMo-2-0425-1B"),
])  # fmt: skip
def test_a_run_has_the_name_of_its_model(series: str, name: str) -> None:
    chosen = published.SERIES[series]
    assert chosen.name(chosen.runs[0]) == name
