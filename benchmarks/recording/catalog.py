"""What a recorded run is: how it is trained, which series are kept, and its file, which has all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recording.labels import label_of


@dataclass(frozen=True, kw_only=True)
class Interference:
    """What somebody does to a training in the middle of it."""

    # "decay": weight decay becomes ``amount``; "l1": the loss has ``amount`` times the sum of
    # magnitudes more; "prune": this share of the in-scope weights, the smallest ones, is zeroed
    # once; "prune-hold": and kept there; "lr": the learning rate is ``amount`` times as high for
    # ``duration`` steps
    what: str
    # optimizer steps done when it happens
    step: int
    amount: float
    duration: int = 0

    @property
    def kind(self) -> str:
        """The label of such a run."""
        return {"decay": "switched", "l1": "switched", "lr": "spike"}.get(self.what, "planted")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training; weights and batches follow from the seed, an odd one is for the report."""

    # of its file
    name: str
    # "bert", "gpt", "vit" or "modular"
    model: str
    seed: int
    steps: int
    # of the optimizer: "adamw", or "sgd" with momentum 0.9; decay on matrices only
    decay: float
    lr: float = 3e-3
    schedule: str = "constant"
    warmup: int = 100
    clip: float = 1.0
    optimizer: str = "adamw"
    # of the feed-forward layers
    activation: str = "relu"
    # share of the text
    fraction: float = 1.0
    # modular addition without anything to understand
    random_labels: bool = False
    interference: Interference | None = None


# ------------------------------------------------------------------ what is recorded

#: Steps between two looks, and between those of the watches that see dormant weights from
#: further apart: the one series that cannot be thinned out afterwards.
EVERY = 25
COARSER = (50, 100, 200)
#: In looks, every distance that a series is seen at: how far the decay clock advanced, as a replay
#: estimates it, depends on it, too.
APART = (1, *(every // EVERY for every in COARSER))
RULES = ("initial_0.1", "rms_0.1", "abs_0.001")
#: What is dormant, and how much of it by chance; both depend on the look before.
DORMANT = ("motion/dormant", "motion/dormant_by_chance")
SERIES = (*(f"near_zero/{rule}" for rule in RULES), *DORMANT, "motion/decay_clock")

Series = dict[str, list[float | None]]
#: What is measured, each with both ends of the 90 percent interval that a detector is told.
MEASURED = ("essential_sparsity/value", "value/reliance")


def label(spec: RunSpec, steps: list[int], series: Series) -> dict[str, Any]:
    """What the rules say about a run's series."""
    event = spec.interference
    return label_of(
        steps,
        series,
        interference=event.kind if event else "",
        known_step=event.step if event else None,
    )


# ------------------------------------------------------------------ files

_RECORDED = Path(__file__).parents[1] / "recorded"
FOLDER = _RECORDED / "runs"
PROXY_FOLDER = _RECORDED / "proxy"


def load(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The recorded runs by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def spec_of(run: Mapping[str, Any]) -> RunSpec:
    """How a recorded run was trained."""
    spec = RunSpec(**run["run"])
    given = run["run"]["interference"]
    return spec if given is None else replace(spec, interference=Interference(**given))


def write(run: dict[str, Any], path: Path) -> None:
    """One line a series; whole or not at all."""
    flat = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
    nested = [key for key in ("series", "estimated_advance", "dormant_further_apart") if key in run]
    head = {k: v for k, v in run.items() if k not in ("steps", *nested)}
    lines = [f"{json.dumps(k)}: {flat.encode(v)}" for k, v in head.items()]
    lines.append(f'"steps": {flat.encode(run["steps"])}')
    for key in nested:
        inner = (f"{json.dumps(k)}: {flat.encode(v)}" for k, v in run[key].items())
        lines.append(f'"{key}": {{\n  ' + ",\n  ".join(inner) + "\n }")
    part = path.with_suffix(".part")
    part.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
    part.replace(path)
