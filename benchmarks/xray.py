"""What looking into the layers adds to an evaluation.

python benchmarks/xray.py [--small] [--save] [--repeats N] [--threads N]

An evaluation, at the default sweep of ``sw.watch``, looks at the layers on its dense pass. Compared
is the processor time of whole evaluations that look and that do not, in turns: medians of the
ratios of neighbours, and of their two halves, at least ``--repeats`` of them and for half a minute.
Unlike wall time it hardly depends on what else runs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from overhead import batch_of, bert, loss_per_example
from reporting import Goal, Part, run, table
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import sparsitywatch as sw
from sparsitywatch.evaluation.masked import MaskedModel, run_sweep
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

VOCABULARY = 2000
#: Sequences of 128 tokens in two batches, and images of 32 by 32 in as many.
EXAMPLES = 32
#: A model is evaluated in turns for so long at least: short evaluations differ by more, one by one.
AT_LEAST_S = 30.0


def gpt2(num_layers: int, hidden: int) -> Any:
    """A decoder with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=hidden,
        n_layer=num_layers,
        n_head=hidden // 64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def convolutions(width: int) -> nn.Module:
    """Eight convolutions and a linear layer."""
    torch.manual_seed(0)
    sizes = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        stride = 2 if i in (2, 4, 6) else 1
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def loss_of_images(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each image, float [N]."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def prepared(model: nn.Module, proxy: sw.Proxy) -> Callable[[bool], object]:
    """An evaluation of a model, as a snapshot runs it; given whether it looks."""
    scope, settings = Scope.of(model), sw.Settings()
    spectrum = MagnitudeSpectrum.of(dict(Snapshot.of(model, scope, 0).tensors))
    return partial(_evaluate, MaskedModel(model, scope), proxy, spectrum, settings)


def _evaluate(
    model: MaskedModel,
    proxy: sw.Proxy,
    spectrum: MagnitudeSpectrum,
    settings: sw.Settings,
    looks: bool,
) -> object:
    return run_sweep(
        model, proxy, spectrum, pattern=settings.pattern, sweep=settings.effective_sweep,
        allowed=lambda dense: 0.01 * abs(dense), looks=looks,
    )  # fmt: skip


def cases(small: bool) -> dict[str, Callable[[bool], object]]:
    """The models by what is said of them."""
    halves = [batch_of(EXAMPLES // 2, 128, VOCABULARY) for _ in range(2)]
    tokens = sw.Proxy(halves, loss_per_example)
    images = sw.Proxy(
        [(torch.randn(EXAMPLES, 3, 32, 32), torch.arange(EXAMPLES) % 10) for _ in range(2)],
        loss_of_images,
    )
    found = {
        "BERT, 4 layers of 256": prepared(bert(4, 256, VOCABULARY), tokens),
        "eight convolutions of 32 to 256 channels": prepared(convolutions(32), images),
    }
    if not small:
        found["BERT, 4 layers of 512"] = prepared(bert(4, 512, VOCABULARY), tokens)
        found["BERT, 2 layers of 768"] = prepared(bert(2, 768, VOCABULARY), tokens)
        found["GPT-2, 6 layers of 384"] = prepared(gpt2(6, 384), tokens)
    return found


def cpu_s(act: Callable[[], object]) -> float:
    """Seconds of processor time."""
    started = time.process_time()
    act()
    return time.process_time() - started


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """The table of all models."""
    repeats = min(arguments.repeats, 3 if arguments.small else arguments.repeats)
    at_least_s = 0.0 if arguments.small else AT_LEAST_S
    rows, worst = [], 0.0
    for name, evaluate in cases(arguments.small).items():
        evaluate(True)
        pairs: list[list[float]] = []
        began = time.monotonic()
        while len(pairs) < repeats or time.monotonic() - began < at_least_s:
            pairs.append([cpu_s(partial(evaluate, looks)) for looks in (False, True)])
        without, looking = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        worst = max(worst, ratio)
        rows.append([name, f"{without:.2f}", f"{looking:.2f}", f"{ratio:.3f}"])
    head = ["evaluation of", "without, s", "looking at layers, s", "ratio"]
    goal = Goal("an evaluation that looks at its layers, the worst", 1.05, worst)
    return "X-rays of layers", [(table(head, rows), [goal])]


if __name__ == "__main__":
    run("xray", __doc__, measure)
