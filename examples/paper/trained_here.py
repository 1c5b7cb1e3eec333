"""What the experiments share that train their own models: a small transformer, text, settings."""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import torch
from common import drop
from matplotlib.axes import Axes
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other examples
from pretrain_bert import docstrings

import sparsitywatch as sw

#: What stands between the two layers of a feed-forward.
Activation = Callable[[torch.Tensor], torch.Tensor]

# ---------------- A small transformer


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm."""

    def __init__(
        self, width: int, heads: int, *, causal: bool, activation: Activation = F.gelu
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.activation = heads, causal, activation
        self.before_attention, self.before_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, L, width] to hidden states."""
        normed = self.before_attention(x)
        query, key, value = (
            layer(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        hidden: torch.Tensor = x + self.down(self.activation(self.up(self.before_ffn(x))))
        return hidden


class Transformer(nn.Module):
    """Blocks and a last LayerNorm; six matrices a block are what is pruned.

    Args:
        width: of the hidden states.
        depth: how many blocks.
        heads: of attention.
        options: of each ``Block``.
    """

    def __init__(self, width: int, depth: int, heads: int = 4, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, L, width] to hidden states."""
        for block in self.blocks:
            x = block(x)
        hidden: torch.Tensor = self.norm(x)
        return hidden


class TextModel(nn.Module):
    """Characters into a transformer, and a head on top.

    Args:
        num_tokens: different characters.
        length: of a window.
        width, depth, causal: as of ``Transformer``.
        activation: as of ``Block``.
    """

    def __init__(
        self, num_tokens: int, length: int, width: int, depth: int, *, causal: bool = False,
        activation: Activation = F.gelu,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.trunk = Transformer(width, depth, causal=causal, activation=activation)
        self.head = nn.Linear(width, num_tokens)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [N, L], to hidden states, float [N, L, width]."""
        states: torch.Tensor = self.trunk(self.embedding(tokens) + self.positions)
        return states

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [N, L], to logits, float [N, L, tokens]."""
        logits: torch.Tensor = self.head(self.hidden(tokens))
        return logits


def fit(
    model: nn.Module,
    loss: Callable[[], torch.Tensor],
    *,
    steps: int,
    lr: float,
    decay: float = 0.01,
    title: str = "",
) -> None:
    """AdamW with a tenth of warm-up and linear decay to zero; matrices decay.

    Args:
        loss: of the next batch, drawn from the global generator.
        title: of the progress bar; without one there is none.
    """
    model.train()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    warmup = max(1, steps // 10)
    for step in tqdm(range(steps), title, disable=None if title else True, leave=False):
        share = min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


# ---------------- Text that every Python has


def documentation(only: Sequence[str] = ()) -> dict[str, list[str]]:
    """The docstrings of Python's own library, by module or package, each text once.

    They are read from the sources. Nothing is imported.

    Args:
        only: names of modules and packages; all of them if there are none.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
    found: dict[str, dict[str, None]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library
        for path in _sources(library, only):
            parts = path.relative_to(library).with_suffix("").parts
            if left_out & set(parts):
                continue
            texts = found.setdefault(parts[0], {})
            for text in docstrings(ast.parse(path.read_bytes())):
                texts[" ".join(text.lower().split())] = None
    return {name: list(texts) for name, texts in found.items()}


def _sources(library: Path, only: Sequence[str]) -> Iterator[Path]:
    if not only:
        yield from sorted(library.rglob("*.py"))
    for name in only:
        yield from sorted((library / name).rglob("*.py")) or [library / f"{name}.py"]


class Characters:
    """Characters as tokens; 0 is unknown, 1 the mask.

    Args:
        text: whose characters are known, apart from those rarer than 1 in 10,000.
    """

    def __init__(self, text: str) -> None:
        known = sorted(c for c in set(text) if text.count(c) >= 1e-4 * len(text))
        self.ids = {character: index for index, character in enumerate(known, start=2)}
        self.characters = "\0\0" + "".join(known)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> torch.Tensor:
        """Tokens, int64 [characters]."""
        return torch.tensor([self.ids.get(character, 0) for character in text])


def windows(tokens: torch.Tensor, num: int, length: int) -> torch.Tensor:
    """Random windows of a text, int64 [num, length], drawn from the global generator."""
    starts = torch.randint(len(tokens) - length + 1, (num,))
    return tokens[starts[:, None] + torch.arange(length)]


# ---------------- Results


def pretrained(file: Path, make: Callable[[], Any], train: Callable[[Any], object]) -> Any:
    """The weights of a model: trained now, or read from the file of an earlier call.

    Args:
        file: where they are kept.
        make: makes the model.
        train: trains it, in place.
    """
    if not file.exists():
        model = make()
        train(model)
        save(file, model.state_dict())
    return torch.load(file, weights_only=True)


def save(file: Path, weights: Any) -> None:
    """Weights in a file that is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(weights, part)
    part.replace(file)


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, toy: Mapping[str, Any]
) -> argparse.Namespace:
    """The arguments; with ``--small`` those of a toy. Intervals over seeds need two."""
    parser.set_defaults(threads=1)  # more of them wait for each other at each small step
    args = common.parsed(parser, argv, toy)
    if args.seeds < 2:
        parser.error("Expected two `--seeds` at least.")
    return args


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What results depend on: every argument but where they go, which of them, by what."""
    left_out = ("out", "tasks", "threads")
    return {name: x for name, x in sorted(vars(args).items()) if name not in left_out}


def draw_curve(axes: Axes, curve: sw.FinetunedCurve, name: str) -> None:
    """The accuracy against dense over the sparsity, with its intervals."""
    found = [drop(curve, level) for level in curve.level or ()]
    means = [-one.mean for one in found]
    bars = [one.interval()[1] - one.mean for one in found]
    bars[0] = 0.0  # the dense model itself
    axes.errorbar(curve.sparsity, means, bars, label=name, capsize=3)
