"""Figures 1 and 7: where in the encoder the weights below one global threshold are.

    python examples/paper/layers.py

counts, for MiniLM (six blocks, 36 matrices, 10.6 M weights in scope), the share of each matrix
below the global threshold of a sparsity: on raw magnitudes (OMP, figure 1: 21.5 %), and on
magnitudes over the root mean square of their matrix (figure 7 normalises, too). It takes seconds
and sees no data.

Normalising takes the scale of a matrix away and leaves the shape of its distribution: where
the shares then are even, the raw ones tell of scales alone. It cannot show what figure 7 of the
paper compares, supervised and self-supervised weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, arguments, begin, load, report
from fetch import MATERIAL
from matplotlib.figure import Figure
from texts import Classifier, classifiers

import sparsitywatch as sw
from sparsitywatch.patterns.cuts import Weights

#: Kinds of matrices by how their names end, in the order of a block.
KINDS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention out": "attention.output.dense",
    "feed-forward in": "intermediate.dense",
    "feed-forward out": "output.dense",
}
PATTERNS: dict[str, sw.patterns.Pattern] = {
    "raw": sw.patterns.GlobalMagnitude(),
    "normalised by rms": sw.patterns.GlobalNormalised(),
}


def block_and_kind(name: str) -> tuple[int, str]:
    """Which block a matrix is of, and which of its six it is.

    >>> block_and_kind("encoder.encoder.layer.3.output.dense.weight")
    (3, 'feed-forward out')
    """
    number, _, rest = name.partition(".layer.")[2].partition(".")
    (kind,) = (kind for kind, end in KINDS.items() if rest == f"{end}.weight")
    return int(number), kind


def is_pruned(name: str, parameter: torch.Tensor) -> bool:
    """Whether it is one of the matrices that the paper prunes."""
    return ".layer." in name and parameter.ndim == 2


def shares(model: Classifier, level: float, pattern: sw.patterns.Pattern) -> dict[str, Any]:
    """The share of each matrix below the threshold, by name; and how long that took."""
    started = time.perf_counter()
    tensors = {n: p.detach() for n, p in model.named_parameters() if is_pruned(n, p)}
    (cut,) = pattern.cuts(Weights.of(tensors), [level])
    return {"shares": dict(cut.shares), "seconds": time.perf_counter() - started}


def grid(of_matrix: Mapping[str, float]) -> np.ndarray:
    """Shares by block and kind, float [blocks, 6]."""
    cells = {block_and_kind(name): share for name, share in of_matrix.items()}
    blocks = sorted({block for block, _ in cells})
    return np.array([[cells[block, kind] for kind in KINDS] for block in blocks])


def feed_forward_and_attention(cells: np.ndarray) -> sw.Comparison:
    """The shares of the two in points, paired by block."""
    gap = 100 * (cells[:, 4:].mean(1) - cells[:, :4].mean(1))
    stderr = float(gap.std(ddof=1)) / len(gap) ** 0.5
    more = sw.Difference.of(gap.mean(), stderr, len(gap), unit="block")
    return sw.Comparison("feed-forward", "attention", more)


def draw(path: Path, found: Mapping[str, np.ndarray], level: float) -> None:
    """A heatmap for each way of counting, on one scale of colours."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    high = max(100 * float(cells.max()) for cells in found.values())
    axes_of = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (title, cells) in zip(axes_of, found.items(), strict=True):
        image = axes.imshow(100 * cells.T, vmin=0.0, vmax=high, cmap="viridis", aspect="auto")
        axes.set_yticks(range(len(KINDS)), list(KINDS))
        axes.set_xticks(range(len(cells)))
        axes.set_xlabel("block")
        axes.set_title(f"{title}: {level:.1%} of all weights")
        for (block, kind), share in np.ndenumerate(cells):
            colour = "black" if 100 * share > 0.6 * high else "white"
            axes.text(block, kind, f"{100 * share:.0f}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=list(axes_of), label="share of the matrix below the threshold (%)")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = arguments("layers", __doc__ or "")
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--level", type=float, default=0.215, help="sparsity of the threshold")
    args = parser.parse_args(argv)
    begin(args)
    model = classifiers(args.material, small=args.small)()
    results = Results(args.out / "results.jsonl", {"level": args.level, "small": args.small})
    sizes = grid({n: p.numel() for n, p in model.named_parameters() if is_pruned(n, p)})
    found, rows, said, pairs = {}, [], [], []
    for name, pattern in PATTERNS.items():
        result = results.once(name, partial(shares, model, args.level, pattern))
        cells = found[name] = grid(result["shares"])
        blocks = {f"block {i}": row for i, row in enumerate(cells)} | {"mean": cells.mean(0)}
        for block, row in blocks.items():
            rows.append([name, block, *(f"{100 * x:.1f}" for x in row)])
        print(f"{name}: {result['seconds']:.2f} s")
        pairs.append((name, feed_forward_and_attention(cells)))
        of_all = sizes[:, 4:].sum() / sizes.sum()
        of_small = (cells * sizes)[:, 4:].sum() / (cells * sizes).sum()
        said.append(
            f"{name}: {of_small:.1%} of the weights below the threshold are feed-forward ones, "
            f"which are {of_all:.1%} of all."
        )
        spread = f"{100 * cells.min():.1f} to {100 * cells.max():.1f} %"
        said.append(f"{name}: the shares of the matrices go from {spread}.")
    raw, even = (100 * float(cells.std()) for cells in found.values())
    said.append(
        f"Normalising leaves {even:.1f} of {raw:.1f} points of standard deviation between the "
        f"matrices: {max(0.0, 1 - (even / raw) ** 2):.0%} of the variance is one of scales."
    )
    picture = args.out / "layers.png"
    draw(picture, found, args.level)
    print(f"\nShare below the threshold in %, at {args.level:.1%} of all weights")
    report(args, ["magnitudes", "", *KINDS], rows, said, pairs)
    print(f"Look at {picture}. {load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
