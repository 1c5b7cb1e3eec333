"""Every run that is recorded, the most informative ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

__all__ = ["RUNS", "WITH_PROXY", "Interference", "RunSpec"]


@dataclass(frozen=True, kw_only=True)
class Interference:
    """What somebody does to a training in the middle of it.

    Args:
        what: "decay": weight decay becomes ``amount``; "l1": ``amount`` times the sum of
            magnitudes is added to the loss; "prune": this share of the in-scope weights, the
            smallest ones, is set to zero once; "prune-hold": and kept there; "lr": the
            learning rate is ``amount`` times as high for ``duration`` steps.
        step: optimizer steps done when it happens.
        amount: see ``what``.
        duration: in steps, of "lr".
    """

    what: str
    step: int
    amount: float
    duration: int = 0

    @property
    def kind(self) -> str:
        """The label of such a run."""
        return {"decay": "switched", "l1": "switched", "lr": "spike"}.get(self.what, "planted")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training.

    Args:
        name: of its file.
        model: "bert", "gpt", "vit" or "modular".
        seed: of the weights and the batches; an odd one is for the report.
        steps: optimizer steps.
        decay, lr, schedule, warmup, clip: of the optimizer; decay on matrices only.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        activation: of the feed-forward layers.
        fraction: share of the text.
        random_labels: modular addition without anything to understand.
        interference: what happens in the middle.
    """

    name: str
    model: str
    seed: int
    steps: int
    decay: float
    lr: float = 3e-3
    schedule: str = "constant"
    warmup: int = 100
    clip: float = 1.0
    optimizer: str = "adamw"
    activation: str = "relu"
    fraction: float = 1.0
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
        name=name,
        model="modular",
        seed=0,
        steps=steps,
        decay=decay,
        lr=1e-2,
        warmup=0,
        clip=0.0,
        random_labels=random_labels,
    )


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
