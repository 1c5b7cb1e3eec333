"""Figure 8 (ii, iii): models that saw more or less text, pruned and trained on.

    python examples/paper/data_finetuned.py

takes the nine models of ``data_volume.py``, pretrained on 100, 60 and 20 % of the text over three
seeds (it trains those that are missing), prunes each once and trains it with the mask held fixed on
one task: of which kind the next character is, from sixteen before it. The paper reports that more
data makes models that bear pruning better (on MNLI), and dense ones that do better (on QNLI, QQP,
RTE), with one run a share. Here shares are compared by pairs of seeds and of held-out examples;
those of one sequence count together. It cannot show more than these models: a thousandth of
BERT-base, of single characters, with strong weight decay.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

import data_volume
import numpy as np
import torch
from common import begin, learned, load, points, report
from lottery_ticket import KINDS
from pretrain_bert import Pretraining, Vocabulary
from torch import nn
from torch.nn import functional as F  # noqa: N812

import sparsitywatch as sw

LEVELS = (0.3, 0.5, 0.7)
BEFORE = 16  # characters; so many examples are in a held-out sequence of 32
NUM_TRAINED_ON, BATCH, RATE = 4000, 32, 1e-3
Curves = dict[float, list[sw.FinetunedCurve]]  # by share of the text, one a seed


class NextKind(nn.Module):
    """The pretrained encoder with a new head on its last state."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, len(KINDS) + 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [N, L], to logits, float [N, kinds]."""
        states = self.encoder(input_ids=tokens).last_hidden_state
        return torch.as_tensor(self.head(states[:, -1]))


def kinds_of(tokens: np.ndarray, vocabulary: Vocabulary) -> torch.Tensor:
    """The kind of each character: a vowel, a consonant, a space, a digit, or another, int64."""
    others = len(KINDS)
    of = [others] * 5 + [
        next((i for i, kind in enumerate(KINDS) if character in kind), others)
        for character in vocabulary.name
    ]
    return torch.tensor(of)[torch.from_numpy(tokens.astype(np.int64))]


def examples_of(sequences: np.ndarray, vocabulary: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """Every window of some sequences [S, W], int64 [N, L], and the kind of what follows, [N]."""
    length = min(BEFORE, sequences.shape[1] - 1)
    windows = np.lib.stride_tricks.sliding_window_view(sequences, length + 1, axis=1)
    windows = windows.reshape(-1, length + 1)
    tokens = torch.from_numpy(windows[:, :-1].astype(np.int64))
    return tokens, kinds_of(windows[:, -1], vocabulary)


class Finetuning:
    """The task, the same for every model."""

    def __init__(self, run: Pretraining, args: argparse.Namespace) -> None:
        self.args, length = args, min(BEFORE, run.window - 1) + 1
        starts = np.random.default_rng(0).integers(len(run.text) - length + 1, size=NUM_TRAINED_ON)
        sequences = run.text[starts[:, None] + np.arange(length)]
        self.train_on = examples_of(sequences, run.vocabulary)
        self.held_out = examples_of(run.held_out, run.vocabulary)
        num = len(self.held_out[1]) // len(run.held_out)
        self.groups = np.repeat(np.arange(len(run.held_out)), num).tolist()

    def train(self, model: NextKind) -> None:
        """Train it on; the order is from the global generator."""
        tokens, kinds = self.train_on
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        steps = self.args.finetune_steps
        for step in range(steps):
            part = torch.randint(len(kinds), (BATCH,))
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
            loss = F.cross_entropy(model(tokens[part]), kinds[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def evaluate(self, model: NextKind) -> np.ndarray:
        """Whether each held-out example gets its kind."""
        model.eval()
        parts = zip(*(part.split(512) for part in self.held_out), strict=True)
        return np.asarray(torch.cat([model(x).argmax(1) == y for x, y in parts]).numpy())

    def curve(self, run: Pretraining, fraction: float, seed: int) -> sw.FinetunedCurve:
        """Of one model."""

        def make_model() -> NextKind:
            encoder = data_volume.pretrained(self.args, fraction, seed)[0].model.bert
            return NextKind(encoder.train(), run.model.config.hidden_size)

        return sw.finetuned_curve(
            make_model, self.train, self.evaluate, LEVELS, "global", [seed], groups=self.groups,
            log=data_volume.folder(self.args, fraction, seed) / "finetuned.jsonl",
            settings={"steps": self.args.finetune_steps},
        )  # fmt: skip


def over_seeds(curves: Sequence[sw.FinetunedCurve], level: float) -> np.ndarray:
    """What each seed gave for each example, [S, N]."""
    return np.concatenate([curve.values_at(level) for curve in curves])


def rows(curves: Curves) -> list[list[str]]:
    """A line for each share: the dense accuracy, and the drop at each level."""
    found = []
    for fraction, of_share in curves.items():
        values = 100 * np.array([curve.value[0] for curve in of_share])
        dense = over_seeds(of_share, 0.0)
        spread = values.std(ddof=1) if len(values) > 1 else float("nan")
        found.append([
            f"{fraction:.0%}", f"{values.mean():.1f} ± {spread:.1f}",
            *(str(points(dense, over_seeds(of_share, x), of_share[0].groups)) for x in LEVELS),
        ])  # fmt: skip
    return found


def compared(curves: Curves, labels: torch.Tensor) -> list[tuple[str, sw.Comparison]]:
    """The whole text against each smaller share: the dense accuracy, and the drop at each level."""
    (most, whole), *others = curves.items()
    groups, found = whole[0].groups, []
    known = learned(whole[0], labels)
    for fraction, of_share in others:
        names = f"{most:.0%}", f"{fraction:.0%}"
        dense, other = over_seeds(whole, 0.0), over_seeds(of_share, 0.0)
        found.append(("dense", sw.Comparison(*names, points(dense, other, groups), known)))
        for level in LEVELS:
            lost = dense - over_seeds(whole, level), other - over_seeds(of_share, level)
            found.append((
                f"drop at {level:.2f}", sw.Comparison(*names, points(lost[0], lost[1], groups)),
            ))  # fmt: skip
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    args = data_volume.arguments_of(argv, __doc__ or "")
    begin(args)
    shares = sorted(args.fractions, reverse=True)
    for seed, fraction in itertools.product(args.seeds, shares):
        print(f"{fraction:.0%}, seed {seed}: {data_volume.finish(args, fraction, seed)}")
    run, _ = data_volume.pretrained(args, 1.0, args.seeds[0])
    task = Finetuning(run, args)
    curves = {f: [task.curve(run, f, seed) for seed in args.seeds] for f in shares}
    print(f"{args.finetune_steps} steps; {len(task.groups)} held-out examples of "
          f"{len(set(task.groups))} sequences; {len(args.seeds)} seeds\n")  # fmt: skip
    head = ["text", "accuracy ± sd", *(f"drop at {level:.2f}" for level in LEVELS)]
    pairs = compared(curves, task.held_out[1]) if len(shares) > 1 else []
    report(args, head, rows(curves), (), pairs, name="finetuned")
    print(load())
    return 0


if __name__ == "__main__":
    sys.exit(main())
