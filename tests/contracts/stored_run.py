"""A directory of checkpoints in which something happens, and what a replay leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from contracts import logged
from contracts.event_readers import scalars_of_plugin_accumulator
from torch import nn

import sparsitywatch as sw
from sparsitywatch.sinks.jsonl import read_records, read_spectrum

COSTS = ("watch/spectrum_s", "watch/publish_s", "watch/evaluation_s")
NUM, EVERY, SHRUNK = 24, 10, 16


def detectors() -> dict[str, sw.detectors.AbruptChange]:
    return {
        "near_zero/initial_0.1": sw.detectors.AbruptChange(0.05),
        "near_zero/rms_0.1": sw.detectors.AbruptChange(0.05),
    }


def weights(look: int) -> dict[str, torch.Tensor]:
    """Two layers; from look 16 on half of the first one is as good as gone."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(*shape, generator=generator) for shape in ((64, 16), (32, 64)))
    noise = torch.Generator().manual_seed(100 + look)
    first = first + 0.01 * torch.randn(first.shape, generator=noise)
    if look >= SHRUNK:
        first[:32] *= 1e-4
    return {"first.weight": first, "second.weight": second, "second.bias": torch.zeros(32),
            "head.weight": torch.ones(3, 32)}  # fmt: skip


class Given(torch.optim.SGD):
    """Each of its steps leads to the weights of the stored run: nothing else writes to them."""

    __module__, __qualname__ = "torch.optim.sgd", "SGD"  # whose decay is known

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.model, self.num_steps = model, 0

    def step(self, closure: None = None) -> None:
        super().step(closure)
        self.model.load_state_dict(weights(self.num_steps // EVERY))
        self.num_steps += 1


def save_run(folder: Path) -> Path:
    """Checkpoints of all looks, the first one of step 10."""
    for look in range(NUM):
        torch.save(weights(look), folder / f"step-{EVERY * (look + 1)}.pt")
    return folder


def on_disk(logdir: Path) -> dict[str, Any]:
    """Everything that a replay has left, but for times, costs and where the checkpoints lie."""
    directory = logdir / "sparsitywatch"
    records = logged.records(directory)
    for record in records:
        del record["wall_time"], record["cost"], record["source"]["address"]
    spectra = {}
    for record in read_records(directory):
        if record.num_nan >= 0:
            arrays = read_spectrum(directory, record.step)
            spectra[record.step] = {name: array.tolist() for name, array in arrays.items()}
    run_info = json.loads((directory / "run.json").read_text())
    del run_info["initial_step"]
    return {
        "records": records,
        "events": (directory / "events.jsonl").read_text().splitlines(),
        "spectra": spectra,
        "run": run_info,
        "scalars": {
            tag: points
            for tag, points in scalars_of_plugin_accumulator(directory).items()
            if tag not in COSTS
        },
        "names": sorted(
            path.name
            for path in directory.rglob("[!.]*")
            if "tfevents" not in path.name and path.suffix != ".torn"
        ),
    }
