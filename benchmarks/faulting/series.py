"""Series of checkpoints: parts of a model, steps in names, links, chains, storages that fail."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fsspec
import safetensors.torch
import torch

import sparsitywatch as sw
from faulting.case import Case
from sparsitywatch.checkpoints import discovery, storage
from sparsitywatch.checkpoints.discovery import ListedCheckpoint, discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.step_from_path import step_of_name

__all__ = ["CASES"]

#: Where the server that answers as the Hub lies; its client needs a process of its own.
_TESTS = Path(__file__).parents[2] / "tests"


def _weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {f"layers.{i}.weight": torch.randn(8, 8) for i in range(2)}


def _save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(_weights(seed), str(path))
    else:
        torch.save({"model": _weights(seed)}, path)
    return path


def _replayed(place: str | Path, **options: str) -> str:
    """Steps of valid records, and how many checkpoints were refused or left."""
    result = sw.replay(place, logdir=None, **options)  # type: ignore[arg-type]
    valid = [record.step for record in result.records if record.valid]
    return f"valid {valid}, failed {len(result.failures)}"


def _told(found: list[ListedCheckpoint]) -> str:
    return ", ".join(f"{one.step} {one.state}" for one in found)


# ------------------------------------------------------------------ parts of a model

_LAYOUTS = {
    "Megatron's ranks": "iter_0000500/mp_rank_{:02}/model_optim_rng.pt",
    "Megatron's pipeline": "iter_0000500/mp_rank_00_{:03}/model_optim_rng.pt",
    "ranks in names": "checkpoint-500_rank{}.pt",
    "ranks in front of names": "step-500/rank_{}_model.pt",
    "processes of FSDP": "checkpoint-500/__{}_0.pt",
    "Llama's consolidated files": "step-500/consolidated.{:02}.pth",
    "Composer's ranks": "ep0-ba500-rank{}.pt",
    "files that say nothing": "step-500-gpu{}.pt",
}


def _two_ranks(layout: str, folder: Path) -> str:
    for rank in (0, 1):
        _save(folder / "run" / layout.format(rank), seed=rank)
    first = _replayed(folder / "run", duplicates="first")
    return f"{_replayed(folder / 'run')}; told: {first}"


def _copies(folder: Path) -> str:
    for rank in (0, 1):
        _save(folder / f"checkpoint-500_rank{rank}.pt")
    return _told(discover(folder))


def _named_rank(folder: Path) -> str:
    for rank in (0, 1):
        _save(folder / _LAYOUTS["Megatron's ranks"].format(rank), seed=rank)
    return _told(discover(folder / "iter_*/mp_rank_00/*.pt"))


def _one_shard(folder: Path) -> str:
    path = _save(folder / "step-5" / "model-00001-of-00002.safetensors")
    return f"{_told(discover(path))}; its folder: {_told(discover(folder))}"


def _alone(name: str, folder: Path) -> str:
    _save(folder / name)
    return _told(discover(folder))


def _best_model(folder: Path) -> str:
    """The best model in a Trainer's folder, under the last step."""
    for seed, place in enumerate((folder, folder / "checkpoint-500")):
        _save(place / "model.safetensors", seed)
        (place / "trainer_state.json").write_text('{"global_step": 500}')
    return _told(discover(folder))


# ------------------------------------------------------------------ steps in names

_STEPS = {
    "step_20k": 20_000, "1M": 1_000_000, "checkpoint-1e5": 100_000, "step=1_000": 1000,
    "ep0-ba1000-rank0.pt": 1000, "model-7b": None, "pythia-1.4b-step1000": 1000,
    "bert-base-110M": None, "TinyLlama-1.1B-intermediate-step-1431k-3T": 1_431_000,
    "multiberts-seed_0-step_20k": 20_000, "OLMo-1B@step1000-tokens4B": 1000,
    "checkpoint_1_1000.pt": 1000, "ckpt_2024-01-02.pt": None, "bert-warmup_steps=500": None,
}  # fmt: skip


def _step(name: str, _: Path) -> str:
    return str(step_of_name(name))


def _mixed(folder: Path) -> str:
    for seed, name in enumerate(("step_500k.pt", "step_1M.pt", "step_20k.pt")):
        _save(folder / name, seed)
    return _replayed(folder)


# ------------------------------------------------------------------ places


def _archive(folder: Path) -> str:
    with zipfile.ZipFile(folder / "run.zip", "w") as archive:
        archive.write(_save(folder / "step-5.pt"), "run/step-5.pt")
    return _replayed(f"zip://run::file://{folder}/run.zip")


def _cached(folder: Path) -> str:
    _save(folder / "run" / "step-5.pt")
    return _replayed(f"simplecache::file://{folder}/run")


def _linked(folder: Path) -> str:
    _save(folder / "elsewhere" / "checkpoint-5" / "model.safetensors")
    run = folder / "run"
    run.mkdir()
    (run / "checkpoint-5").symlink_to(folder / "elsewhere" / "checkpoint-5")
    (run / "again").symlink_to(run)
    return _replayed(run)


def _called_tmp(folder: Path) -> str:
    _save(folder / "tmp_exp" / "step-5.pt")
    return _replayed(folder / "tmp_exp")


def _busy(failures: int, folder: Path) -> str:
    """A storage that is busy for a while."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/run/step-5.pt", _save(folder / "step-5.pt").read_bytes())
    plain, left = type(fs).cat_file, [OSError(16, "busy")] * failures
    pauses: list[float] = []

    def cat_file(self: object, *given: object, **options: object) -> bytes:
        if left:
            raise left.pop()
        return plain(self, *given, **options)  # type: ignore[no-any-return]

    type(fs).cat_file = cat_file
    storage.time.sleep = pauses.append  # type: ignore[attr-defined]
    (found,) = discover("memory://run")
    return f"{found.state} after {len(pauses)} pauses"


def _out_of_memory(folder: Path) -> str:
    """One file raises what no reader of it expects."""
    for step in (1, 2, 3):
        _save(folder / f"step-{step}.pt", step)
    plain = open_checkpoint

    def opening(url: str, options: object = None) -> object:
        if url.endswith("step-2.pt"):
            raise MemoryError
        return plain(url, options)  # type: ignore[arg-type]

    vars(discovery)["open_checkpoint"] = opening
    return _told(discover(folder))


def _many(folder: Path) -> str:
    """A second look at 2,000 known checkpoints."""
    for step in range(2000):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "config.json").touch()
        (folder / f"checkpoint-{step}" / "model.safetensors").write_bytes(_BYTES)
    started = time.process_time()
    found = discover(folder)
    first_s, started = time.process_time() - started, time.process_time()
    again = discover(folder, known={one.url: one for one in found})
    share = "at less" if time.process_time() - started < first_s / 3 else "not at less"
    return f"{len(again)} found, {share} than a third of the time"


_BYTES = safetensors.torch.save(_weights(0))


def _on_the_hub(code: str, no_ranges: tuple[str, ...], folder: Path) -> str:
    """What code prints where the real client asks a server on this machine."""
    sys.path.insert(0, str(_TESTS))
    hub_server = importlib.import_module("contracts.hub_server").hub_server
    files = {"main": {"model.safetensors": _BYTES}}
    branches = {f"step{step}": {"model.safetensors": _BYTES} for step in range(154)}
    repositories = {"org/model": branches, "org/m-step_1k": files, "org/m-step_2k": files}
    with hub_server(repositories) as hub:
        hub.no_ranges = no_ranges
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", f"{_DISCOVER}\n{code}"], capture_output=True, text=True,
            timeout=100, check=False, env=hub.environment(folder),
        )  # fmt: skip
    return done.stdout.strip() or done.stderr.strip()[-200:]


_DISCOVER = "from sparsitywatch.checkpoints.discovery import discover as d"
_COUNTED = """
for place in ("org/model@step*", "org/model@step7", "org/m-step_*"):
    print(sum(f.state == "complete" for f in d("hf://" + place)), end=" ")
"""
_REASON = """
print("named" if "does not know ranges" in d("hf://org/model@step7")[0].reason else "not named")
"""


def _case(point: str, what: str, expected: str, run: Callable[[Path], str]) -> Case:
    return Case(point=f"series: {point}", what=what, expected=expected, run=run)


_PARTS = "valid [], failed 1; told: valid [500], failed 0"
CASES = (
    *(
        _case("parts", f"two different {what}", _PARTS, partial(_two_ranks, layout))
        for what, layout in _LAYOUTS.items()
    ),
    _case("parts", "ranks with the same weights", "500 complete, 500 duplicate", _copies),
    _case("parts", "a pattern that names rank 0 only", "500 refused", _named_rank),
    _case("parts", "one shard of two", "5 refused; its folder: 5 incomplete", _one_shard),
    _case("parts", "rank 0 alone", "500 complete", partial(_alone, "ep0-ba500-rank0.pt")),
    _case("parts", "rank 1 alone", "500 refused", partial(_alone, "ep0-ba500-rank1.pt")),
    _case("parts", "other weights under one step", "500 refused, 500 duplicate", _best_model),
    *(
        _case("steps", name, str(step), partial(_step, name)) for name, step in _STEPS.items()
    ),
    _case("steps", "500k, 1M and 20k", "valid [20000, 500000, 1000000], failed 0", _mixed),
    _case("places", "a folder in an archive", "valid [5], failed 0", _archive),
    _case("places", "simplecache::", "valid [5], failed 0", _cached),
    _case("places", "a link to a checkpoint, and a loop", "valid [5], failed 0", _linked),
    _case("places", "a run called tmp_exp", "valid [5], failed 0", _called_tmp),
    _case("places", "busy three times", "complete after 3 pauses", partial(_busy, 3)),
    _case("places", "busy for ever", "incomplete after 4 pauses", partial(_busy, 99)),
    _case("places", "a file that exhausts memory", "1 complete, 2 refused, 3 complete",
          _out_of_memory),
    _case("places", "branches and repositories of the Hub", "154 1 2",
          partial(_on_the_hub, _COUNTED, ())),
    _case("places", "a server that knows no ranges", "named",
          partial(_on_the_hub, _REASON, ("org/model",))),
    _case("places", "2,000 checkpoints, a second time",
          "2000 found, at less than a third of the time", _many),
)  # fmt: skip
