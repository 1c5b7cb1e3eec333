"""What an export costs, and what it is worth: budgets beside uniform ones and OWL.

python benchmarks/export.py [--small] [--save] [--repeats N] [--threads N] [--trainings N]

Files: a checkpoint of BERT-base (float32, N(0, 0.02), in the page cache) is pruned by magnitude to
0.5; beside it one copy of the file. Measuring: ``sw.measure`` of a trained BERT, with ``each`` and
without. Budgets: BERTs of two blocks of width 48 learn to predict masked tokens of sequences whose
second half repeats the first, 400 steps each. Their budgets are by what is essential of each tensor
alone (tolerance 5 %, 128 examples). What pruning costs is measured on 256 other examples. The value
that an export foretells is compared with that on 128 others.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from replaying.checkpoints import write_bert
from reporting import Goal, Part, medians_s, run, table
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import BertConfig, BertForMaskedLM

import sparsitywatch as sw
from sparsitywatch.offline.export import Card, export

VOCABULARY, LENGTH, STEPS, TOLERANCE = 40, 16, 400, 0.05
LEVELS = (0.3, 0.5, 0.7)
#: Seeds of trainings, which nothing was chosen on.
FIRST_SEED = 100
PATTERNS = {"global": "global", "uniform": "layerwise", "OWL": "magnitude:layer:owl"}
Batch = dict[str, torch.Tensor]


def bert() -> nn.Module:
    """Two blocks of width 48, without dropout."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model: nn.Module = BertForMaskedLM(config)
    return model


def sentences(seed: int, num: int) -> Batch:
    """A chain in which three tokens may follow each, twice over; a fifth of it is masked."""
    rule = np.random.default_rng(7)
    follows = np.array([rule.choice(np.arange(4, VOCABULARY), 3, False) for _ in range(VOCABULARY)])
    draw = np.random.default_rng(seed)
    tokens = np.empty((num, LENGTH), int)
    tokens[:, 0] = draw.integers(4, VOCABULARY, num)
    half = LENGTH // 2
    for place in range(1, half):
        tokens[:, place] = follows[tokens[:, place - 1], draw.integers(0, 3, num)]
    tokens[:, half:] = tokens[:, :half]
    masked = draw.random((num, LENGTH)) < 0.2
    masked[np.arange(num), draw.integers(0, LENGTH, num)] = True
    inputs, labels = np.where(masked, 3, tokens), np.where(masked, tokens, -100)
    return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross entropy of the masked tokens of each sentence."""
    logits, labels = model(input_ids=batch["input_ids"]).logits, batch["labels"]
    found = F.cross_entropy(logits.mT, labels, reduction="none", ignore_index=-100)
    return found.sum(1) / (labels != -100).sum(1)


def held_out(seed: int, num: int) -> sw.Proxy:
    """Examples that no training sees."""
    return sw.Proxy([sentences(10**9 + 100 * seed + i, 64) for i in range(num // 64)], loss)


def trained(seed: int) -> nn.Module:
    """A BERT after ``STEPS`` steps."""
    torch.manual_seed(seed)
    model = bert().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / STEPS)
        optimizer.zero_grad()
        loss(model, sentences(10_000 * seed + step, 32)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def files_part(folder: Path, num_layers: int, repeats: int) -> Part:
    """Each kind of export against a copy of the file."""
    path, output = folder / "bert-1.safetensors", folder / "made"
    written = write_bert(path, num_layers)

    def made(what: str) -> None:
        output.unlink(missing_ok=True)
        export(path, output, what=what, at=0.5)

    cases: dict[str, Callable[[], object]] = {"copy": lambda: shutil.copyfile(path, output)}
    cases |= {what: partial(made, what) for what in ("budget", "masks", "pruned")}
    times = medians_s(cases, repeats)
    rows = [[case, f"{1e3 * s:,.0f}", f"{s / times['copy']:,.1f}"] for case, s in times.items()]
    what = f"{written.num_weights / 1e6:,.1f} M weights, {num_layers} layers"
    goal = Goal("a pruned checkpoint against a copy", 10, times["pruned"] / times["copy"])
    return table([what, "ms", "copies"], rows), [goal]


def measuring_part(model: nn.Module, repeats: int) -> Part:
    """Each tensor alone against the whole model."""
    proxy = held_out(0, 128)
    measure = partial(sw.measure, model, proxy, tolerance=TOLERANCE)
    num = len(measure().layers)
    times = medians_s({each: partial(measure, each=each) for each in (False, True)}, repeats)
    more = (times[True] - times[False]) / times[False]
    rows = [
        ["the whole", f"{times[False]:.2f}", "1.0"],
        [f"and each of {num} tensors alone", f"{times[True]:.2f}", f"{1 + more:.1f}"],
        ["each tensor", f"{(times[True] - times[False]) / num:.2f}", f"{more / num:.2f}"],
    ]
    goal = Goal("a tensor alone against the whole", 1, more / num)
    return table(["measured", "s", "against the whole"], rows), [goal]


def judged(seed: int, folder: Path) -> tuple[np.ndarray, list[bool]]:
    """Harm of each pattern at each level, [levels, patterns]; which foretold intervals held."""
    model, other = trained(seed), held_out(2 * seed + 1, 256)
    torch.save(model.state_dict(), folder / f"step-{seed}.pt")
    settings, proxy = sw.Settings(tolerance=TOLERANCE), held_out(2 * seed, 128)
    known: Any = {"model": bert, "proxy": proxy, "settings": settings}

    def exported(name: str, **asked: Any) -> tuple[Path, Card]:
        output = folder / f"{seed}-{name}"
        return output, export(folder / f"step-{seed}.pt", output, **asked, **known)

    budget, _ = exported("budget", what="budget", at=0.5, each=True)
    own = sw.patterns.from_budget(budget)
    patterns: list[str | sw.patterns.Pattern] = [*PATTERNS.values(), own]
    harm = []
    for pattern in patterns:
        curve = sw.measure(model, other, pattern=pattern, levels=LEVELS).curve
        assert curve is not None
        harm.append([value - curve.dense for value in curve.value[1:-1]])
    held = []
    for name, at in (("essential", "essential"), ("half", 0.5)):
        output, card = exported(name, what="pruned", at=at)
        pruned = bert().eval()
        pruned.load_state_dict(load_file(output))
        with torch.no_grad():
            value = float(held_out(10**4 + seed, 128).evaluate(pruned).mean())
        assert card.foretold is not None
        held.append(card.foretold.low <= value <= card.foretold.high)
    return np.array(harm).T, held


def budgets_part(folder: Path, num: int) -> Part:
    """Budgets of each tensor alone beside others of the same sparsity; and what is foretold."""
    found = [judged(FIRST_SEED + i, folder) for i in range(num)]
    harm = np.stack([one for one, _ in found])  # [trainings, levels, patterns]
    rows = []
    for level, own in zip(LEVELS, harm.transpose(1, 2, 0), strict=True):
        means = [f"{one.mean():.3f}" for one in own]
        better = [f"{int((own[3] < one).sum())} of {num}" for one in own[:3]]
        rows.append([f"{level:g}", *means, *better])
    names = [*PATTERNS, "each alone"]
    head = ["sparsity", *(f"harm, {n}" for n in names), *(f"better than {n}" for n in PATTERNS)]
    shares = np.mean([held for _, held in found], axis=0)
    whats = ("at what is essential", "at 0.5")
    goals = [
        Goal(f"foretold intervals that hold, of {num}, {what}", 0.9, share, False, "")
        for what, share in zip(whats, shares, strict=True)
    ]
    return table(head, rows), goals


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """All tables."""
    small = arguments.small
    repeats = min(arguments.repeats, 3 if small else 7)
    with tempfile.TemporaryDirectory() as place:
        parts = [
            files_part(Path(place), 1 if small else 12, repeats),
            measuring_part(trained(FIRST_SEED), min(repeats, 5)),
            budgets_part(Path(place), 1 if small else arguments.trainings),
        ]
    return "Export", parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many BERTs are trained."""
    parser.add_argument("--trainings", type=int, default=4, help="BERTs to judge budgets on")


if __name__ == "__main__":
    run("export", __doc__, measure, add_arguments)
