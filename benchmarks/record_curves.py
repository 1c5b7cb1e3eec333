"""Record what every example loses at every 0.01, for ``sweep.py`` to replay.

python benchmarks/record_curves.py [--small] [--runs NAME ...]

Six small trainings, evaluated every 50 or 100 steps once the model uses its weights. Three are the
demo's BERT (examples/pretrain_bert.py, real text: Python's documentation), on which the settings of
a sweep are chosen. Three are others, on which it is judged: the demo with another seed and decay, a
causal model on the same text, and a vision transformer that classifies digits.

What is kept in ``recorded/<name>.npz``: ``step`` [T]; ``level`` [K]; ``sparsity`` [T, K];
``dense`` [T, N], float32, the value of each example; ``difference`` [T, K, N], float16, what it is
more when pruned. A difference has six significant bits, which moves no mean by a hundredth of its
error. The files are committed, so nobody has to wait for them: four minutes of one core each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

import recording  # noqa: F401  # isort: skip  examples/ can be imported from here on
from pretrain_bert import Pretraining
from pretrain_bert import parser as example_parser
from recording.catalog import RunSpec
from recording.tasks import build, drawn_digits
from reporting import HERE

from sparsitywatch.evaluation.masked import MaskedModel
from sparsitywatch.patterns.cuts import Weights
from sparsitywatch.patterns.pattern import GlobalMagnitude
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: Every 0.01 where a crossing can be, every 0.05 elsewhere.
LEVELS = tuple(sorted({i / 100 for i in (*range(0, 101, 5), *range(18, 86))} - {0.0}))
_SIGNIFICANT = np.uint16(0xFFE0)  # of a float16: sign, exponent, five bits behind the leading one


@dataclass(frozen=True)
class Training:
    """A model, what is held out of its training, a step of it, and when it is evaluated."""

    model: torch.nn.Module
    proxy: Proxy
    step: Callable[[], object]
    at: range


def _bert(*arguments: str, every: int = 50) -> Training:
    run = Pretraining(example_parser().parse_args([*arguments, "--steps", "2000"]))
    return Training(run.model, run.proxy(), run.step, range(1100, 2001, every))


def _trained(
    spec: RunSpec, model: torch.nn.Module, proxy: Proxy, loss: Callable[[], torch.Tensor]
) -> Training:
    """With AdamW at a constant rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=spec.decay)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Training(model, proxy, step, range(300, 1201, 100))


def _causal() -> Training:
    """The next character of the demo's held-out sequences."""
    demo = Pretraining(example_parser().parse_args([]))
    held_out = torch.from_numpy(demo.held_out.astype(np.int64))

    def value(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens[:, :-1]).logits
        return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").mean(dim=1)

    spec = RunSpec(name="", model="gpt", seed=11, steps=1200, decay=0.1, activation="gelu")
    task = build(spec)
    batches = [held_out[first : first + 64] for first in range(0, len(held_out), 64)]
    return _trained(spec, task.model, Proxy(batches, value), task.loss)


def _vision() -> Training:
    """Which digit it is, for those that are not trained on."""
    images, digits = drawn_digits()
    num_trained = len(digits) - 192
    starts = range(num_trained, len(digits), 48)
    batches = [(images[first : first + 48], digits[first : first + 48]) for first in starts]

    def value(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(pixel_values=batch[0]).logits, batch[1], reduction="none")

    spec = RunSpec(name="", model="vit", seed=12, steps=1200, decay=0.01, lr=5e-4)
    model = build(spec).model
    generator = torch.Generator().manual_seed(spec.seed)

    def loss() -> torch.Tensor:
        chosen = torch.randint(num_trained, (64,), generator=generator)
        return value(model, (images[chosen], digits[chosen])).mean()

    return _trained(spec, model, Proxy(batches, value), loss)


#: By name. Settings of a sweep are chosen on the first three, and judged on the others.
RUNS: dict[str, Callable[[], Training]] = {
    "relu": lambda: _bert("--seed", "0"),
    "gelu": lambda: _bert("--seed", "1", "--activation", "gelu", "--decay", "0.01"),
    "relu-linear": lambda: _bert("--seed", "2", "--decay", "0.1", "--schedule", "linear"),
    "decayed": lambda: _bert("--seed", "10", "--decay", "0.3", every=100),
    "causal": _causal,
    "vision": _vision,
}


def record(training: Training, at: range) -> dict[str, Any]:
    """Train up to the last of some steps, and the arrays of the looks at them."""
    scope = Scope.of(training.model)
    looks = []
    for step in range(1, at[-1] + 1):
        training.step()
        if step in at:
            looks.append((step, *_look(training, scope)))
            dense, difference = looks[-1][2:]
            everything = difference[-1].astype(float).mean()
            print(f"step {step}: dense {dense.mean():.4f}, reliance {everything:.4f}", flush=True)
    names = ("step", "sparsity", "dense", "difference")
    columns = map(np.array, zip(*looks, strict=True))
    return {"level": np.array(LEVELS), **dict(zip(names, columns, strict=True))}


def _look(
    training: Training, scope: Scope
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float16]]:
    """Counted sparsities [K], dense values [N] and differences [K, N]."""
    model = training.model
    spectrum = MagnitudeSpectrum.of(Snapshot.of(model, scope, 0).tensors)
    with torch.no_grad(), MaskedModel(model, scope).session(training.proxy.value) as masks:
        dense = training.proxy.evaluate(*masks.dense())
        cuts = GlobalMagnitude().cuts(
            Weights(spectrum, {name: tuple(dense.shape) for name, dense, _ in masks.weights}),
            LEVELS,
        )
        difference = [training.proxy.evaluate(*masks.masked(cut)) - dense for cut in cuts]
    sparsity = np.array([cut.sparsity for cut in cuts], np.float32)
    return sparsity, dense.astype(np.float32), rounded(np.array(difference))


def rounded(difference: NDArray[np.float64]) -> NDArray[np.float16]:
    """To six significant bits, to the nearest: they take half of the space."""
    bits: NDArray[np.uint16] = difference.astype(np.float16).view(np.uint16)
    nearest: NDArray[np.uint16] = (bits + np.uint16(0x10)) & _SIGNIFICANT
    return nearest.view(np.float16)


def main() -> None:
    """Record anew every run that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few steps, nothing is written")
    parser.add_argument("--runs", nargs="+", choices=sorted(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.runs:
        print(name)
        training = RUNS[name]()
        arrays = record(training, range(2, 5, 2) if arguments.small else training.at)
        if not arguments.small:
            np.savez_compressed(HERE / "recorded" / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
