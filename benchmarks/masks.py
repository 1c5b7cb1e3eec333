"""What the masks of patterns cost.

python benchmarks/masks.py [--small] [--save] [--repeats N] [--threads N]

N:M and per-row masks are those of BERT-base's in-scope weights (72 matrices, 84.9 M), timed against
one plain copy of the weights into warm buffers. Wanda and SparseGPT are timed on a BERT of MiniLM's
size (six blocks, 10.6 M weights in scope) with a proxy of 8 sequences of 128 tokens and a
vocabulary so small that the head costs next to nothing, with everything that one mask needs: the
inputs of the layers, the cut, and the pruned weights of all tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from overhead import batch_of, bert, loss_per_example
from reporting import Goal, Part, medians_s, run, table
from spectrum import make_weights, prepare_copy

import sparsitywatch as sw
from sparsitywatch.patterns.criteria import input_axes, inputs_of
from sparsitywatch.patterns.cuts import Weights
from sparsitywatch.patterns.pattern import Pattern, as_pattern
from sparsitywatch.weights.scope import Scope

#: Of the proxy of Wanda and SparseGPT.
BATCH, LENGTH = 8, 128
VOCABULARY = 256
ROWS = ("keep_1_of_2", "keep_2_of_4", "keep_1_of_4", "keep_4_of_8", "per_row")


def prepare_masks(pattern: str, weights: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Prune all weights into warm buffers, at a half or where the pattern is."""
    known = Weights.of(weights)
    (cut,) = as_pattern(pattern).cuts(known, [0.5])
    buffers = {name: tensor.clone() for name, tensor in weights.items()}

    def prune() -> None:
        for name, tensor in weights.items():
            cut.prune(name, tensor, out=buffers[name])

    return prune


def of_weights(num_layers: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians in seconds by dtype: a copy, and each pattern."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = make_weights(num_layers, dtype)
        cases = {"copy": prepare_copy(weights)}
        cases |= {pattern: prepare_masks(pattern, weights) for pattern in ROWS}
        name = str(dtype).removeprefix("torch.")
        found[name] = medians_s(cases, repeats)
    return found


def of_encoder(num_layers: int, repeats: int) -> dict[str, float]:
    """Medians in seconds: the proxy's forward passes, a mask by Wanda, one by SparseGPT."""
    model = bert(num_layers, 384, VOCABULARY).eval()
    proxy = sw.Proxy([batch_of(BATCH, LENGTH, VOCABULARY)], loss_per_example)
    weights = {name: p.detach() for name, p in Scope.of(model, "blocks").parameters(model).items()}
    buffers = {name: tensor.clone() for name, tensor in weights.items()}

    def forward() -> object:
        with torch.no_grad():
            return proxy.evaluate(model)

    def mask(pattern: Pattern) -> None:
        products = pattern.needs_inputs == "products"
        inputs = inputs_of(model, list(weights), forward, products=products)
        axes = input_axes(model, list(weights))
        (cut,) = pattern.cuts(Weights.of(weights, input_axes=axes, inputs=inputs), [0.5])
        for name, tensor in weights.items():
            cut.prune(name, tensor, out=buffers[name])

    cases: dict[str, Callable[[], object]] = {
        "forward": forward,
        "wanda": lambda: mask(sw.patterns.Wanda()),
    }
    slow: dict[str, Callable[[], object]] = {"sparsegpt": lambda: mask(sw.patterns.SparseGPT())}
    return medians_s(cases, repeats) | medians_s(slow, min(repeats, 2))


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """Both tables."""
    small = arguments.small
    repeats = min(arguments.repeats, 3) if small else arguments.repeats
    num_layers = 1 if small else 12
    times = of_weights(num_layers, repeats)
    rows = []
    for case in ("copy", *ROWS):
        both = [(found[case], found[case] / found["copy"]) for found in times.values()]
        rows.append([case, *(x for s, c in both for x in (f"{1e3 * s:,.1f}", f"{c:,.1f}"))])
    float32 = times["float32"]
    worst = max(float32[case] for case in ROWS if case.startswith("keep"))
    what = "N:M masks, the slowest, against a copy of the weights"
    goals = [Goal(what, 5, worst / float32["copy"])]
    head = ["all weights pruned", "float32, ms", "copies", "bfloat16, ms", "copies"]
    of_model = of_encoder(1 if small else 6, repeats)
    forward_s = of_model["forward"]
    shown = [[case, f"{1e3 * s:,.1f}", f"{s / forward_s:,.1f}"] for case, s in of_model.items()]
    name = f"MiniLM's size, {BATCH} sequences of {LENGTH} tokens"
    of_inputs = [
        Goal("a Wanda mask against forward passes", 2, of_model["wanda"] / forward_s),
        Goal("a SparseGPT mask", 60, of_model["sparsegpt"], unit=" s"),
    ]
    return f"Masks of patterns, a BERT of {num_layers} layers", [
        (table(head, rows), goals),
        (table([name, "ms", "forward passes"], shown), of_inputs),
    ]


if __name__ == "__main__":
    run("masks", __doc__, measure)
