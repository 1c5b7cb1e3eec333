"""Every run that is recorded, the most informative ones first, and its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


_ON = Interference(what="decay", step=600, amount=1.0)
_L1 = Interference(what="l1", step=800, amount=3e-4)
_PRUNE_HOLD = Interference(what="prune-hold", step=800, amount=0.3)
_PRUNE = Interference(what="prune", step=800, amount=0.3)
_JUMP = Interference(what="lr", step=800, amount=30.0, duration=5)


def _seeds(spec: RunSpec, *seeds: int) -> Iterator[RunSpec]:
    for seed in seeds:
        yield replace(spec, name=f"{spec.name}-s{seed}", seed=seed)


def _text(name: str, decay: float, steps: int = 2000, **more: object) -> RunSpec:
    spec = RunSpec(name=name, model=name.split("-")[0], seed=0, steps=steps, decay=decay)
    return replace(spec, **more)  # type: ignore[arg-type]


def _modular(name: str, decay: float, steps: int, *, random_labels: bool = False) -> RunSpec:
    return RunSpec(
        name=name, model="modular", seed=0, steps=steps, decay=decay, lr=1e-2, warmup=0, clip=0.0,
        random_labels=random_labels,
    )  # fmt: skip


def _catalog() -> Iterator[RunSpec]:
    on = _text("bert-relu-wd1", 1.0)
    gentle = _text("bert-relu-wd0.01", 0.01)
    smooth = replace(gentle, name="bert-gelu-wd0.01", activation="gelu", steps=1200)
    yield from _seeds(on, 0, 1)
    yield from _seeds(gentle, 0, 1)
    yield from _seeds(_modular("modular-wd1", 1.0, 4000), 0, 1)
    yield from _seeds(_text("bert-gelu-wd1", 1.0, 1600, activation="gelu"), 0, 1)
    yield from _seeds(replace(smooth, name="bert-prune-hold", interference=_PRUNE_HOLD), 0, 1)
    yield from _seeds(replace(gentle, name="bert-spike-relu", steps=1400, interference=_JUMP), 0, 1)
    yield from _seeds(_text("gpt-relu-wd1", 1.0, 1600), 0, 1)
    yield from _seeds(replace(smooth, name="bert-l1", interference=_L1), 0, 1)
    yield from _seeds(replace(gentle, name="bert-switch-wd", steps=1900, interference=_ON), 0, 1)
    yield from _seeds(_text("vit-relu-wd1", 1.0, 1600), 0, 1)
    yield from _seeds(_text("bert-wsd-wd1", 1.0, 1600, schedule="wsd"), 0, 1)
    yield from _seeds(_text("bert-linear-wd1", 1.0, 2600, schedule="linear"), 0, 1)
    yield from _seeds(_modular("modular-wd0", 0.0, 2400), 0, 1)
    yield from _seeds(_modular("modular-random-wd1", 1.0, 2400, random_labels=True), 0, 1)
    yield from _seeds(_text("vit-gelu-wd1", 1.0, 1400, activation="gelu"), 0, 1)
    yield from _seeds(_text("bert-cosine-wd1", 1.0, 2600, schedule="cosine"), 0, 1)
    yield from _seeds(_text("bert-relu-wd0.5", 0.5, 2500), 0, 1)
    yield from _seeds(_text("gpt-relu-wd0.01", 0.01, 1200), 0, 1)
    yield from _seeds(replace(smooth, name="bert-spike-gelu", interference=_JUMP), 0, 1)
    yield from _seeds(replace(smooth, name="bert-prune", interference=_PRUNE), 0, 1)
    yield from _seeds(_modular("modular-wd1", 1.0, 4000), 2, 3)
    yield from _seeds(_text("bert-sgd-wd1e-4", 1e-4, 1600, lr=0.1, optimizer="sgd"), 0, 1)
    yield from _seeds(_text("bert-text20-wd1", 1.0, 1600, fraction=0.2), 0, 1)
    yield from _seeds(_text("bert-gelu-wd0.5", 0.5, activation="gelu"), 0, 1)
    yield from _seeds(smooth, 0, 1)
    yield from _seeds(_text("bert-text60-wd1", 1.0, 1600, fraction=0.6), 0, 1)
    yield from _seeds(on, 2, 3)
    yield from _seeds(_text("gpt-gelu-wd1", 1.0, 1400, activation="gelu"), 0, 1)


RUNS = tuple(_catalog())

#: Recorded again with a proxy: masked language models that leave their plateau, each another
#: training until then, and two that never do.
WITH_PROXY = tuple(
    next(spec for spec in RUNS if spec.name == name)
    for name in (
        "bert-gelu-wd0.01-s0", "bert-gelu-wd0.01-s1", "bert-relu-wd0.01-s1", "bert-relu-wd1-s0",
        "bert-sgd-wd1e-4-s0", "bert-sgd-wd1e-4-s1", "bert-gelu-wd1-s0", "bert-relu-wd1-s3",
        "bert-relu-wd0.01-s0", "bert-relu-wd1-s1", "bert-gelu-wd1-s1", "bert-relu-wd1-s2",
        "bert-text20-wd1-s1", "bert-text20-wd1-s0", "bert-relu-wd0.5-s1",
    )
)  # fmt: skip

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
