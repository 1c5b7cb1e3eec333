"""What a snapshot costs on many devices: a model from what is measured and what is public.

Every number that goes in stands here once, with its source; docs/reports/scaling.md shows what
comes out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from reporting import table

from sparsitywatch.weights.snapshot import FINGERPRINTED
from sparsitywatch.weights.spectrum.histogram import STORAGES

# ------------------------------------------------------------------ public, of an H100 SXM

#: Bytes a second from its memory, and operations a second in dense bfloat16: NVIDIA's data sheet,
#: which doubles the latter for sparse matrices.
MEMORY, FLOPS = 3.35e12, 989e12
#: Bytes a second into one device from the others: half of NVLink's 900 GB/s, which are both ways;
#: 400 Gb/s InfiniBand, one adapter a device, as in a DGX H100.
NVLINK, INFINIBAND = 450e9, 50e9
#: Share of FLOPS that large trainings reach: 38 to 43 % (The Llama 3 Herd of Models, table 4).
UTILISATION = 0.4

# ------------------------------------------------------------------ measured here

#: Seconds of one core: adding up, for each tensor; comparing the sample (docs/reports/costs.md);
#: the digest of a tensor's counts, for the replicas.
SUM_S, COMPARE_S, DIGEST_S = 0.27e-3, 0.07, 0.015e-3
#: Passes over all examples a snapshot, by sweep.
EVALUATIONS = {"`Bisection`": 16, "`Racing`, the default": 7}

# ------------------------------------------------------------------ assumed, to be checked

#: Weights a second that a device counts, and bytes of its memory that masking a weight moves.
COUNTED, MASK_BYTES = 10e9, 20
#: Bytes a second of gloo over TCP, into one rank, and seconds of one message.
GLOO, MESSAGE_S = 1e9, 50e-6
#: Sequences of the proxy, tokens of each, and sequences of a batch at most.
SEQUENCES, LENGTH, BATCH = 128, 2048, 4
#: Tokens of a training step, and steps from one snapshot to the next.
STEP_TOKENS, EVERY = 4e6, 500


@dataclass(frozen=True)
class Cluster:
    """A decoder under FSDP2: float32 weights in shards, bfloat16 in a forward."""

    # of the column
    name: str
    # devices; eight are a node
    num_ranks: int
    num_layers: int
    hidden: int
    inner: int
    # width of keys and values
    key_value: int
    # its embedding and its head are out of scope
    vocabulary: int

    @property
    def sizes(self) -> list[int]:
        """Weights of each in-scope matrix of a layer."""
        widths = (self.hidden, self.key_value, self.inner)
        wide, narrow, mlp = (width * self.hidden for width in widths)
        return [wide, wide, narrow, narrow, mlp, mlp, mlp]

    @property
    def num_tensors(self) -> int:
        """In-scope matrices."""
        return self.num_layers * len(self.sizes)

    @property
    def in_scope(self) -> int:
        """In-scope weights."""
        return self.num_layers * sum(self.sizes)

    @property
    def num_weights(self) -> int:
        """All weights, norms aside."""
        return self.in_scope + 2 * self.vocabulary * self.hidden

    @property
    def link(self) -> float:
        """Bytes a second that a forward gathers weights at."""
        return NVLINK if self.num_ranks <= 8 else INFINIBAND


#: The shapes of Llama 2 7B and Llama 3 70B.
CLUSTERS = (
    Cluster("7 B on 8", 8, 32, 4096, 11008, 4096, 32_000),
    Cluster("70 B on 64", 64, 80, 8192, 28672, 1024, 128_256),
)


def expected_bins(num_weights: int, dtype: torch.dtype = torch.float32) -> float:
    """Occupied bins of so many weights, drawn from a normal distribution of deviation 0.02."""
    edges = STORAGES[dtype].bins.edges / (0.02 * math.sqrt(2.0))
    below = np.array([math.erf(edge) for edge in edges[edges < 7.0].tolist()])
    return float(-np.expm1(-num_weights * np.diff(below)).sum())


def spectrum_bytes(sizes: Mapping[int, int], dtype: torch.dtype = torch.float32) -> float:
    """Bytes that a rank gives for the spectrum of so many tensors of each number of weights.

    A bit for each bin that there is, and eight bytes for each that is occupied somewhere.
    """
    bits = STORAGES[dtype].bins.inf_key / 8
    return sum(num * (bits + 8 * (expected_bins(size, dtype) + 2)) for size, num in sizes.items())


# ------------------------------------------------------------------ the parts of a snapshot


def sum_s(c: Cluster) -> float:
    """The union of the occupied bins, and the sum of their counts."""
    return SUM_S * c.num_tensors + _ring_s(c, given_bytes(c)) + _ring_s(c, 0)


def given_bytes(c: Cluster) -> float:
    """What a rank gives to both."""
    return c.num_layers * spectrum_bytes(Counter(c.sizes))


def sample_s(c: Cluster) -> float:
    """A million weights for the motion and those of the fingerprint, to every rank; comparing."""
    assert FINGERPRINTED.num_samples is not None
    num_bytes = 4 * (1_000_000 + FINGERPRINTED.num_samples)
    return _ring_s(c, num_bytes) + 3 * _ring_s(c, 0) + COMPARE_S  # two sums, each agreed upon


def marks_s(c: Cluster) -> float:
    """Replicas compared, where there are some: a read of the weights, and a small all-reduce."""
    read = 4 * c.in_scope / c.num_ranks / MEMORY
    return read + DIGEST_S * c.num_tensors + _ring_s(c, 16 * c.num_tensors)


def forward_s(c: Cluster) -> tuple[float, float]:
    """One batch: seconds to compute, seconds to gather the weights; FSDP does both at once."""
    tokens = LENGTH * min(BATCH, math.ceil(SEQUENCES / c.num_ranks))
    gathered = 2 * c.num_weights * (c.num_ranks - 1) / c.num_ranks
    return 2 * c.num_weights * tokens / (UTILISATION * FLOPS), gathered / c.link


def evaluation_s(c: Cluster) -> float:
    """All batches once, by all devices, and what they agree on meanwhile."""
    num_batches = math.ceil(SEQUENCES / c.num_ranks / BATCH)
    return num_batches * max(forward_s(c)) + agreements_s(c)


def agreements_s(c: Cluster) -> float:
    """The next level, its masks, each batch, and the two sums that spread the values."""
    return (4 + math.ceil(SEQUENCES / c.num_ranks / BATCH)) * _ring_s(c, 0)


def masks_s(c: Cluster) -> float:
    """Masking what a device holds at one level."""
    return MASK_BYTES * c.in_scope / c.num_ranks / MEMORY


def step_s(c: Cluster) -> float:
    """A training step."""
    return 6 * c.num_weights * STEP_TOKENS / (c.num_ranks * UTILISATION * FLOPS)


def _ring_s(c: Cluster, num_bytes: float) -> float:
    """An all-reduce by gloo's ring."""
    turns = 2 * (c.num_ranks - 1)
    return turns / c.num_ranks * num_bytes / GLOO + turns * MESSAGE_S


#: What comes out of each part, but for whole evaluations.
ROWS: dict[str, Callable[[Cluster], str]] = {
    "in-scope weights, matrices": lambda c: f"{c.in_scope / 1e9:.1f} B, {c.num_tensors}",
    "given for the spectrum, MB": lambda c: f"{given_bytes(c) / 1e6:.1f}",
    "of the weights' bytes": lambda c: f"{100 * given_bytes(c) / (4 * c.in_scope):.3f} %",
    "histogram": lambda c: _seconds(c.in_scope / c.num_ranks / COUNTED),
    "union and all-reduce": lambda c: _seconds(sum_s(c)),
    "sample, gathered and compared": lambda c: _seconds(sample_s(c)),
    "replicas compared, in HSDP": lambda c: _seconds(marks_s(c)),
    "one forward: computing": lambda c: _seconds(forward_s(c)[0]),
    "one forward: gathering weights": lambda c: _seconds(forward_s(c)[1]),
    "agreements of an evaluation": lambda c: _seconds(agreements_s(c)),
    "one evaluation of the proxy, with these": lambda c: _seconds(evaluation_s(c)),
    "masking one level": lambda c: _seconds(masks_s(c)),
}


def model_table() -> list[str]:
    """What comes out, in Markdown."""
    rows = [[name, *map(cell, CLUSTERS)] for name, cell in ROWS.items()]
    for name, number in EVALUATIONS.items():
        looks_s = [number * (evaluation_s(c) + masks_s(c)) for c in CLUSTERS]
        shares = [s / (EVERY * step_s(c)) for s, c in zip(looks_s, CLUSTERS, strict=True)]
        rows.append([f"{number} evaluations, {name}", *map(_seconds, looks_s)])
        rows.append([f"of {EVERY} training steps", *(f"{100 * x:.3f} %" for x in shares)])
    return table(["", *(c.name for c in CLUSTERS)], rows)


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
