"""Record sparsity-loss curves of a training at every 0.01, for ``sweep.py`` to replay.

python benchmarks/record_curves.py [--record [--small]]

Trains the demo's small BERT (examples/pretrain_bert.py, real text: Python's documentation)
three times and evaluates its held-out loss at 101 sparsities every 25 steps, from a little
before the encoder is used until the end. What is kept in ``recorded/<name>.npz`` are means
and paired standard errors: ``step`` [T], ``level`` [K], ``sparsity``, ``value``, ``stderr``
[T, K], ``num_examples``. It takes some fifteen minutes on one core; the recorded files are
committed, so nobody has to, and without ``--record`` it only says what they hold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))

from pretrain_bert import Pretraining  # noqa: E402
from pretrain_bert import parser as example_parser  # noqa: E402

from sparsitywatch.pruning.masked import MaskedModel  # noqa: E402
from sparsitywatch.pruning.patterns import GlobalMagnitude  # noqa: E402
from sparsitywatch.pruning.sweep import Grid, run_sweep  # noqa: E402
from sparsitywatch.weights.scope import Scope  # noqa: E402
from sparsitywatch.weights.snapshot import Snapshot  # noqa: E402
from sparsitywatch.weights.spectrum import MagnitudeSpectrum  # noqa: E402

LEVELS = tuple(round(i / 100, 2) for i in range(1, 100))
#: By name: arguments of the example.
RUNS = {
    "relu": ["--seed", "0"],
    "gelu": ["--seed", "1", "--activation", "gelu", "--decay", "0.01"],
    "relu-linear": ["--seed", "2", "--decay", "0.1", "--schedule", "linear"],
}


def record(arguments: list[str], steps: int, first: int, every: int) -> dict[str, Any]:
    """Train for some steps, and the arrays of every look from the first one on."""
    args = example_parser().parse_args([*arguments, "--steps", str(steps)])
    run = Pretraining(args)
    model, proxy = run.model, run.proxy()
    scope = Scope.of(model)
    found = []
    for step in range(1, steps + 1):
        run.step()
        if step % every or step < first:
            continue
        spectrum = MagnitudeSpectrum.of(Snapshot.of(model, scope, step).tensors)
        with torch.no_grad():
            curve = run_sweep(
                MaskedModel(model, scope),
                proxy,
                spectrum,
                pattern=GlobalMagnitude(),
                sweep=Grid(LEVELS),
                allowed=abs,
            ).curve
        found.append((step, curve))
        print(f"step {step}: dense {curve.value[0]:.4f}, reliance {curve.reliance:.4f}", flush=True)
    curves = [curve for _, curve in found]
    return {
        "step": np.array([step for step, _ in found]),
        "level": np.array(curves[0].level),
        "sparsity": np.array([curve.sparsity for curve in curves]).astype(np.float32),
        "value": np.array([curve.value for curve in curves]).astype(np.float32),
        "stderr": np.array([curve.stderr for curve in curves]).astype(np.float32),
        "num_examples": np.array(curves[0].num_examples),
    }


def describe() -> str:
    """What is recorded, as a table in Markdown."""
    lines = ["| recorded | looks | at steps | dense loss | reliance |", "|---|---:|---:|---:|---:|"]
    for path in sorted((HERE / "recorded").glob("*.npz")):
        with np.load(path) as arrays:
            step, value = arrays["step"], arrays["value"]
            dense, reliance = (
                f"{x[0]:.2f} to {x[-1]:.2f}" for x in (value[:, 0], value[:, -1] - value[:, 0])
            )
        lines.append(
            f"| {path.stem} | {len(step)} | {step[0]} to {step[-1]} | {dense} | {reliance} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Say what is recorded, or record anew every run that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="train, and replace what is recorded")
    parser.add_argument("--small", action="store_true", help="a few steps, nothing is written")
    parser.add_argument("--save", action="store_true", help="without effect, for `make bench`")
    parser.add_argument("--runs", nargs="+", choices=sorted(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    if not arguments.record:
        print(describe())
        return
    torch.set_num_threads(1)
    for name in arguments.runs:
        print(name)
        steps, first, every = (4, 2, 2) if arguments.small else (2000, 800, 25)
        arrays = record(RUNS[name], steps, first, every)
        if not arguments.small:
            (HERE / "recorded").mkdir(exist_ok=True)
            np.savez_compressed(HERE / "recorded" / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
