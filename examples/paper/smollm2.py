r"""Pruning a real pretrained language model without training it again (the paper's figure 11).

    python examples/paper/fetch.py smollm2
    python examples/paper/smollm2.py

loads SmolLM2-135M from 4 bits a weight and prunes it with ``sw.measure``, zero-shot, at rising
sparsity: by magnitude over all weights (the paper's OMP), by Wanda, by SparseGPT, and at random as
a control. It shows the loss on the docstrings of Python's own library at each level, and up to
which sparsity it rises by less than one percent. ``decoder.py`` does so with models trained here.

It cannot show what Vicuna-7B does on MMLU: this model is fifty times smaller, is judged by its
loss, and may have seen these texts. Its weights were rounded to 4 bits before: 32 in a row have
sixteen values at most. What is near zero there is the rounding's doing, and no evidence of
sparsity. Wanda and SparseGPT look at the inputs of the layers on the very batches that the loss is
measured on.

A run that was killed goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    CONFIDENCE,
    Line,
    Results,
    arguments,
    begin,
    draw,
    load,
    parsed,
    report,
)
from decoder import PATTERNS, TOLERANCE
from fetch import MATERIAL
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm
from trained_here import documentation

import sparsitywatch as sw
from sparsitywatch.weights.scope import Scope

LEVELS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
TOY = {"levels": [0.2, 0.5], "examples": 16, "length": 12}
NEAR_ZERO = "rms_0.1"


def losses(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of the next token, the mean of each window [N] of tokens [N, L]."""
    logits = model(tokens[:, :-1], use_cache=False).logits
    following = tokens[:, 1:]
    # flat, since a softmax over 49,152 tokens is four times as fast where these are neighbours
    found = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
    return found.view(following.shape).mean(1)


def stored(material: Path) -> tuple[nn.Module, Callable[[str], list[int]]]:
    """The model in float32, and what makes tokens of a text.

    Raises:
        SystemExit: the file or the package ``gguf`` is missing.
    """
    files = sorted((material / "smollm2").glob("*.gguf"))
    if not files:
        raise SystemExit(
            f"Expected a file *.gguf in {material / 'smollm2'}, found none. Get it by: "
            "python examples/paper/fetch.py smollm2"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": files[0].name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(files[0].parent, **where)
    except ImportError as error:
        raise SystemExit(f"{error}\nInstall it: pip install --group paper") from None
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        files[0].parent, dtype=torch.float32, **where
    )
    return model.eval(), lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def made_up() -> tuple[nn.Module, Callable[[str], list[int]]]:
    """A model of the same kind with random weights, of bytes; for tests."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    return model.eval(), lambda text: list(text.encode())


class Experiment:
    """The model, its proxy, and what is measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model, encode = made_up() if args.small else stored(args.material)
        found = documentation(("asyncio",) if args.small else ())
        texts = sorted({text for texts in found.values() for text in texts})
        random.Random(0).shuffle(texts)  # noqa: S311 nothing secret
        # twice what is needed at four characters a token, so that windows lie apart
        joined = "\n".join(texts)[: 8 * args.examples * (args.length + 1)]
        tokens = torch.tensor(encode(joined))
        starts = torch.linspace(0, len(tokens) - args.length - 1, args.examples).long()
        windows = tokens[starts[:, None] + torch.arange(args.length + 1)]
        self.proxy = sw.Proxy(torch.split(windows, 8), losses, name="loss on docstrings")

    def measure(self, pattern: str) -> dict[str, Any]:
        """Prune and evaluate at all levels."""
        record = sw.measure(
            self.model,
            self.proxy,
            pattern=pattern,
            levels=self.args.levels,
            tolerance=TOLERANCE / 100,
        )
        curve, estimate = record.curve, record.essential_sparsity
        assert curve is not None  # noqa: S101 there was a proxy
        assert curve.stderr is not None  # noqa: S101 of every example
        assert estimate is not None  # noqa: S101
        return {
            "levels": list(curve.level or ()),
            "sparsity": list(curve.sparsity),
            "loss": list(curve.value),
            "stderr": list(curve.stderr),
            "essential": estimate.describe(),
            "near_zero": record.near_zero[NEAR_ZERO],
        }

    def losses_at(self, pattern: str, level: float) -> list[float]:
        """The loss of each window at a level."""
        curve = sw.finetuned_curve(
            lambda: copy.deepcopy(self.model), lambda _model: None, self.proxy.evaluate, [level],
            pattern, proxy=self.proxy, higher_is_better=False,
        )  # fmt: skip
        found: list[float] = curve.values_at(level)[0].tolist()
        return found


class Outcome:
    """Every pattern."""

    def __init__(self, experiment: Experiment, results: Results) -> None:
        self.levels = [0.0, *experiment.args.levels, 1.0]
        self.num = experiment.args.examples
        self.at = min(experiment.args.levels, key=lambda level: abs(level - 0.5))
        self.found = {
            pattern: results.once(pattern, partial(experiment.measure, pattern))
            for pattern in tqdm(PATTERNS, unit="pattern", disable=None)
        }
        self.at_each = {
            pattern: np.array(
                results.once(
                    f"{pattern} at {self.at}", partial(experiment.losses_at, pattern, self.at)
                )
            )
            for pattern in PATTERNS
        }

    def rise(self, pattern: str, level: float) -> tuple[float, float]:
        """How far the loss is above dense, and half of the interval, in percent of dense."""
        found = self.found[pattern]
        at, dense = found["levels"].index(level), found["loss"][found["levels"].index(0.0)]
        stderr = 100 * found["stderr"][at] / dense
        rise = sw.Difference.of(100 * (found["loss"][at] - dense) / dense, stderr, self.num)
        return rise.mean, rise.interval(CONFIDENCE)[1] - rise.mean

    def rows(self) -> list[list[str]]:
        """Of the table, one a level."""
        rows = []
        for level in self.levels:
            rows.append([f"{level:.2f}"])
            for pattern, found in self.found.items():
                rise, width = self.rise(pattern, level)
                loss = f"{found['loss'][found['levels'].index(level)]:.3f}"
                rows[-1].append(f"{loss} {rise:+.1f} ± {width:.1f}" if level else loss)
        return rows

    def estimates(self) -> list[str]:
        """Essential sparsity, and what says nothing of it, in words."""
        said = [f"Essential sparsity by {PATTERNS[p]}: {f['essential']}." for p, f in
                self.found.items()]  # fmt: skip
        near = self.found["global"]["near_zero"]
        said.append(
            f"{near:.1%} of the weights are within a tenth of their matrix's root mean square: no "
            "evidence of sparsity, for they were rounded to 4 bits."
        )
        return said

    def compared(self) -> list[tuple[str, sw.Comparison]]:
        """Magnitude and each other pattern, paired by window, in percent of the dense loss."""
        dense = self.found["global"]["loss"][0]
        plain = 100 * self.at_each["global"] / dense
        return [
            (
                f"loss at {self.at:.2f}",
                sw.Comparison(
                    PATTERNS["global"],
                    name,
                    sw.Difference.paired(plain, 100 * self.at_each[pattern] / dense),
                ),
            )
            for pattern, name in PATTERNS.items()
            if pattern != "global"
        ]

    def lines(self, patterns: Sequence[str]) -> list[Line]:
        """The rise of each pattern over the counted sparsity, but for everything removed."""
        lines = []
        for pattern in patterns:
            found = self.found[pattern]
            rises = [self.rise(pattern, level) for level in found["levels"][:-1]]
            lines.append(Line(
                PATTERNS[pattern], found["sparsity"][:-1], [rise for rise, _ in rises],
                [width for _, width in rises],
            ))  # fmt: skip
        return lines


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = arguments("smollm2", __doc__ or "")
    add = parser.add_argument
    add("--material", type=Path, default=MATERIAL, help="where fetch.py put the model")
    add("--levels", type=float, nargs="+", default=LEVELS)
    add("--examples", type=int, default=16, help="windows of the text")
    add("--length", type=int, default=128, help="tokens of a window")
    return parsed(parser, argv, TOY)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    args = arguments_of(argv)
    begin(args)
    settings = {name: vars(args)[name] for name in ("examples", "length", "levels", "small")}
    results = Results(args.out / "results.jsonl", settings)
    experiment = Experiment(args)
    outcome = Outcome(experiment, results)
    num = sum(size for _, size in Scope.of(experiment.model).sizes)
    print(f"{num:,} weights in scope, {args.examples} windows of {args.length} tokens; {load()}")
    print(f"loss, and its rise above dense in percent with {CONFIDENCE:.0%} intervals\n")
    head = ("sparsity", *PATTERNS.values())
    unit = "% of the dense loss"
    report(args, head, outcome.rows(), outcome.estimates(), outcome.compared(), unit=unit, size=num)
    path = args.out / "smollm2.png"
    note = f"zero-shot, {args.examples} windows; bars: {CONFIDENCE:.0%} of the paired difference"
    chosen = [pattern for pattern in PATTERNS if pattern != "random"]
    panels = {
        "chosen weights": outcome.lines(chosen),
        "and random ones": outcome.lines([*PATTERNS]),
    }
    draw(path, panels, "sparsity", "rise of the loss (%)", note)
    print(f"\nLook at {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
