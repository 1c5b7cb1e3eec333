"""What one MagnitudeSpectrum costs, beside what one would use instead.

python benchmarks/spectrum.py [--small] [--save] [--repeats N] [--threads N]

The weights are the 72 in-scope matrices of BERT-base, float32 N(0, 0.02). "spectrum" is one
pass with everything read off it: 19 thresholds, near-zero fractions by four rules, the share
of each matrix at each threshold, a histogram of log10|w| per matrix. It stands beside one
``torch.nn.utils.prune.global_unstructured`` call (times 19: it does one level a call), a
plain read of the weights and a plain copy; with the compiled counter, where numba is
installed, and without. A second table goes from a million bfloat16 weights to a billion.
Times are medians of interleaved repeats; peak memory is resident memory above the weights,
each case in a process of its own, which has loaded numba before.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import torch
from reporting import Goal, Part, forget_peak, medians_s, peak_bytes, run, table, timed
from torch import nn
from torch.nn.utils import prune

from sparsitywatch.weights.spectrum import MagnitudeSpectrum, kernel

#: The ways to count on this machine.
WAYS = ("plain", "compiled") if importlib.util.find_spec("numba") else ("plain",)
#: (Matrices, their side): from a million weights to a billion.
SIZES = [(4, 512), (10, 1024), (24, 2048), (60, 4096)]
LEVELS = [i / 20 for i in range(1, 20)]
#: Shapes of the in-scope matrices of one BERT-base layer.
LAYER_SHAPES = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]

Weights = dict[str, torch.Tensor]


def make_weights(num_layers: int, dtype: torch.dtype = torch.float32) -> Weights:
    """The in-scope matrices of a BERT of this many layers."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"layer.{layer}.{i}.weight": torch.empty(shape)
        .normal_(0, 0.02, generator=generator)
        .to(dtype)
        for layer in range(num_layers)
        for i, shape in enumerate(LAYER_SHAPES)
    }


def prepare_spectrum(weights: Weights) -> Callable[[], object]:
    """One pass, and everything that is read off it."""
    reference = dict.fromkeys(weights, 0.02)

    def run() -> None:
        spectrum = MagnitudeSpectrum.of(weights)
        spectrum.near_zero(initial=0.1, reference=reference)
        spectrum.near_zero(rms=0.1)
        spectrum.near_zero(abs=1e-3)
        spectrum.near_zero(abs=0.0)
        spectrum.thresholds(LEVELS)
        spectrum.log10_histograms()

    return run


def prepare_copy(weights: Weights) -> Callable[[], object]:
    """One plain copy."""
    buffers = [w.clone() for w in weights.values()]  # warm: touched before the clock starts
    sources = list(weights.values())
    return lambda: torch._foreach_copy_(buffers, sources)


def prepare_global_unstructured(weights: Weights) -> Callable[[], object]:
    """What there is in torch: one level a call."""
    modules = []
    for weight in weights.values():
        module = nn.Module()
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        modules.append((module, "weight"))
    return lambda: prune.global_unstructured(modules, prune.L1Unstructured, amount=0.5)


PREPARE: dict[str, Callable[[Weights], Callable[[], object]]] = {
    "read": lambda weights: lambda: [w.sum() for w in weights.values()],
    "copy": prepare_copy,
    "counting": lambda weights: lambda: MagnitudeSpectrum.of(weights),
    "spectrum": prepare_spectrum,
    "global_unstructured": prepare_global_unstructured,
}


def in_way(way: str, run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with or without the compiled counter."""
    if way == "compiled":
        return run

    def plainly() -> object:
        with mock.patch.object(kernel, "load", return_value=None):
            return run()

    return plainly


def median_times_s(weights: Weights, repeats: int) -> dict[str, float]:
    """Medians of everything that is quick."""
    half = {name: w.bfloat16() for name, w in weights.items()}
    cases = {name: PREPARE[name](weights) for name in ("read", "copy")}
    for way in WAYS:
        cases[f"counting, {way}"] = in_way(way, PREPARE["counting"](weights))
        cases[f"spectrum, {way}"] = in_way(way, prepare_spectrum(weights))
        cases[f"bfloat16, {way}"] = in_way(way, prepare_spectrum(half))
    return medians_s(cases, repeats)


def make_square(num_matrices: int, side: int) -> Weights:
    """bfloat16 matrices; the same random ones again and again, which is quicker."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(side, side).normal_(0, 0.02, generator=generator).bfloat16()
    return {f"{i}.weight": drawn.roll(i) for i in range(num_matrices)}


def sizes_part(sizes: list[tuple[int, int]], repeats: int) -> Part:
    """Cost per weight from a million weights on, all sizes interleaved."""
    cases: dict[tuple[int, str, str], Callable[[], object]] = {}
    names = {}
    for num_matrices, side in sizes:
        weights = make_square(num_matrices, side)
        num = num_matrices * side**2
        names[num] = f"{num:,} ({num_matrices} x {side}^2)"
        for way in WAYS:
            cases[num, way, "counting"] = in_way(way, PREPARE["counting"](weights))
            cases[num, way, "spectrum"] = in_way(way, prepare_spectrum(weights))
    times = medians_s(cases, repeats)
    each_ns = {key: 1e9 * seconds / key[0] for key, seconds in times.items()}
    goals = []
    for way in WAYS:
        all_ns = [each_ns[num, way, "spectrum"] for num in names]
        what = f"cost per weight, most against least, {way}"
        goals.append(Goal(what, 1.5, max(all_ns) / min(all_ns)))
    head = [f"{what}, {way}" for way in WAYS for what in ("counting", "and all read off")]
    rows = [
        [name, *(f"{ns:.3f}" for (of, *_), ns in each_ns.items() if of == num)]
        for num, name in names.items()
    ]
    return table(["bfloat16 weights, ns per weight", *head], rows), goals


def measure_alone(case: str, num_layers: int, num_threads: int) -> tuple[float, int]:
    """In a child: (seconds, peak bytes above the weights) of one first run."""
    torch.set_num_threads(num_threads)
    weights = make_weights(num_layers)
    name, _, way = case.partition(", ")
    run = in_way(way, PREPARE[name](weights))
    if way == "compiled":
        kernel.load(4)  # numba itself is no part of what a snapshot costs
    before = forget_peak()
    seconds = timed(run)
    return seconds, peak_bytes() - before


def alone(case: str, num_layers: int, num_threads: int) -> tuple[float, int]:
    """(Seconds, peak bytes above the weights) of a case in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure_alone, case, num_layers, num_threads).result()


def bert_part(num_layers: int, repeats: int, num_threads: int) -> Part:
    """The weights of a BERT: times against a read, and peak memory."""
    weights = make_weights(num_layers)
    num_bytes = 4 * sum(w.numel() for w in weights.values())
    times = median_times_s(weights, repeats)
    del weights
    peaks = {}
    for case in ("read", *(f"spectrum, {way}" for way in WAYS), "global_unstructured"):
        seconds, peaks[case] = alone(case, num_layers, num_threads)
        times.setdefault(case, seconds)
    slow = times[f"global_unstructured, times {len(LEVELS)}"] = (
        len(LEVELS) * times["global_unstructured"]
    )
    rows, goals = [], []
    for case, seconds in times.items():
        peak = peaks.get(case)
        memory = "" if peak is None else f"{peak / 2**20:,.1f} MiB, {100 * peak / num_bytes:.1f} %"
        rows.append([case, f"{1e3 * seconds:,.1f}", f"{seconds / times['read']:,.1f}", memory])
    for way in WAYS:
        own = times[f"spectrum, {way}"]
        peak_percent = 100 * peaks[f"spectrum, {way}"] / num_bytes
        reads = 2.5 if way == "compiled" else 6.0
        goals += [
            Goal(f"faster than 19 x global_unstructured, {way}", 2500, slow / own, False),
            Goal(f"time against a read, {way}", reads, own / times["read"]),
            Goal(f"peak memory against the weights, {way}", 5.0, peak_percent, unit=" %"),
            Goal(f"bfloat16 against float32, {way}", 0.8, times[f"bfloat16, {way}"] / own),
        ]
    head = ["case", "time, ms", "against a read", "peak memory above the weights"]
    return table(head, rows), goals


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """Both tables."""
    num_layers, sizes = (2, SIZES[:2]) if arguments.small else (12, SIZES)
    parts = [
        bert_part(num_layers, arguments.repeats, arguments.threads),
        sizes_part(sizes, arguments.repeats),
    ]
    return f"MagnitudeSpectrum, a BERT of {num_layers} layers", parts


if __name__ == "__main__":
    run("spectrum", __doc__, measure)
