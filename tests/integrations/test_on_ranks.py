"""Trainers, Accelerate, Lightning in two real processes: the log of one process, written once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.forked import WATCHED_BERT, forked
from contracts.logged import assert_same
from contracts.logged import records as all_records
from contracts.once import once
from contracts.trainers import checkpoints
from contracts.wrappers_on_ranks import BEFORE, STEPS, accelerated, lit, trained

TESTS = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of torch and Accelerate
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all cases on two ranks, one after the other: one start of torch."""

    def start(folder: Path) -> None:
        script = TESTS / "contracts" / "wrappers_on_ranks.py"
        imports = f"contracts.wrappers_on_ranks,{WATCHED_BERT}"
        status, output = forked(script, str(folder), imports=imports, limit_s=300)
        assert status == 0, output

    return once(tmp_path_factory, "wrappers-on-ranks", start)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in those processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings in this process."""

    def train(folder: Path) -> None:
        trained(folder / "trainer", STEPS)
        accelerated(folder / "accelerate", 0, STEPS)
        lit(folder / "lightning", STEPS)

    return once(tmp_path_factory, "wrappers-alone", train)


def said(folder: Path, case: str) -> list[dict[str, Any]]:
    """By each rank."""
    return [json.loads((folder / f"rank-{rank}.json").read_text())[case] for rank in (0, 1)]


def logged(folder: Path) -> list[dict[str, Any]]:
    """Records as they lie in the log, without what a clock or several ranks alone tell."""
    records = all_records(folder / "log" / "sparsitywatch")
    for record in records:
        del record["cost"], record["wall_time"]
        record.pop("replicas", None)
        record.pop("xray", None)  # of shards there is none, and it says so
    return records


@pytest.mark.parametrize(
    ("case", "wrapper", "reference"),
    [
        ("ddp", "DistributedDataParallel", "trainer"),
        ("fsdp", "FSDPBertForMaskedLM", "trainer"),
        ("accelerate", "DistributedDataParallel", "accelerate"),
        ("accelerate-fsdp", "FSDPBertForMaskedLM", "accelerate"),
        ("lightning-ddp", "DistributedDataParallel", "lightning"),
        ("lightning-fsdp", "FSDPBertForMaskedLM", "lightning"),
    ],
)
def test_two_ranks_log_what_one_process_does(
    case: str, wrapper: str, reference: str, ranks: Path, alone: Path
) -> None:
    """All have been interrupted, and taken up from their checkpoint, half way."""
    found, expected = logged(ranks / case), logged(alone / reference)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert_same(found, expected)
    first, second = said(ranks, case)
    assert first == second  # also the one that writes nothing has every record
    assert (first["wrapper"], first["off"]) == (wrapper, "")
    assert first["fingerprints"] == [r["fingerprint"] for r in expected][: len(first["replicas"])]
    assert first["replicas"] == [2 if "fsdp" not in case else False] * len(first["replicas"])


@pytest.mark.parametrize("case", ["ddp", "fsdp"])
def test_the_first_rank_keeps_the_state_with_each_checkpoint(case: str, ranks: Path) -> None:
    assert checkpoints(ranks / case / "run") == [f"checkpoint-{BEFORE}", f"checkpoint-{STEPS}"]
    for step in (BEFORE, STEPS):
        files = list((ranks / case / "run" / f"checkpoint-{step}").glob("sparsitywatch*"))
        assert [file.name for file in files] == ["sparsitywatch.pt"]
        assert torch.load(files[0])["step"] == step
        assert [str(files[0]) in saved for saved in said(ranks, "saved")] == [True, False]
    before, after = said(ranks, case)[0], said(ranks, f"{case}-resumed")[0]
    assert len(before["fingerprints"]) == BEFORE
    assert after["fingerprints"][:BEFORE] == before["fingerprints"]


@pytest.mark.parametrize("case", ["lightning-ddp", "lightning-fsdp"])
def test_lightning_s_checkpoint_has_the_state_once(case: str, ranks: Path) -> None:
    for step in (BEFORE, STEPS):
        saved = ranks / case / f"step={step}.ckpt"
        file = saved / "meta.pt" if saved.is_dir() else saved
        assert [state["step"] for state in torch.load(file)["sparsitywatch"]] == [step]
    before, after = said(ranks, case)[0], said(ranks, f"{case}-resumed")[0]
    assert len(before["fingerprints"]) == BEFORE
    assert after["fingerprints"][:BEFORE] == before["fingerprints"]


def test_an_event_under_lightning_saves_and_stops_both_ranks(ranks: Path) -> None:
    assert said(ranks, "lightning-events") == [{"step": 3, "seen": [3, 3]}, {"step": 3, "seen": []}]
    (saved,) = (ranks / "lightning-events" / "sparsitywatch-saved").iterdir()
    assert torch.load(saved)["sparsitywatch"][0]["step"] == 3


def test_an_event_on_two_ranks_saves_and_stops_both(ranks: Path) -> None:
    assert said(ranks, "events") == [{"step": 3, "seen": [3, 3]}, {"step": 3, "seen": []}]
    assert checkpoints(ranks / "events" / "run") == ["checkpoint-3"]
    assert torch.load(ranks / "events" / "run" / "checkpoint-3" / "sparsitywatch.pt")["step"] == 3


def test_one_process_goes_on_from_the_checkpoint_of_two(
    ranks: Path, alone: Path, tmp_path: Path
) -> None:
    half = f"checkpoint-{BEFORE}"
    shutil.copytree(ranks / "ddp" / "run" / half, tmp_path / "run" / half)
    shutil.copytree(ranks / "ddp" / "log", tmp_path / "log")
    # the log of two ranks is beyond it
    trained(tmp_path, STEPS, resume=str(tmp_path / "run" / half))
    assert logged(tmp_path) == logged(alone / "trainer")


def test_lightning_alone_goes_on_from_the_checkpoint_of_two_ranks(
    ranks: Path, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(ranks / "lightning-ddp" / "log", tmp_path / "log")
    lit(tmp_path, STEPS, str(ranks / "lightning-ddp" / f"step={BEFORE}.ckpt"))
    assert logged(tmp_path) == logged(alone / "lightning")
