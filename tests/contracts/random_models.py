"""Models made at random, and the scopes that a replay of their checkpoints takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils import parametrizations

from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import ScopeError
from sparsitywatch.weights.scope import Scope

#: Names that layers have in the wild, heads' names among them, which say nothing of the place.
NAMES = (
    "linear", "fc", "output", "decoder", "classifier", "head", "proj", "encoder", "hidden", "first",
    "last", "out", "embed", "emb", "norm", "ln_1", "conv1", "layer1", "layer2", "gate", "module",
    "attn", "mlp", "0", "7", "10", "weight_net", "experts", "shared", "query",
)  # fmt: skip


# ------------------------------------------------------------------ generated models


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)


class _Block(nn.Module):
    def __init__(self, width: int, attention: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.add_module(attention, _Attention(width))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)


class _Packed(nn.Module):
    """Weights that no layer holds: a table, a stack of experts, and a buffer like one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, width))
        self.stack = nn.ParameterList([nn.Parameter(torch.randn(2, 3, width)) for _ in range(2)])
        self.register_buffer("weight", torch.randn(4, width))


def chain_of_layers(draw: random.Random) -> tuple[nn.Module, str]:
    """A model without blocks, its layers named at random, and the path of its last layer."""
    num = draw.randint(2, 4)
    names = draw.sample([name for name in NAMES if name.isidentifier()], num)
    widths = [draw.choice((4, 6, 8)), *draw.sample((5, 7, 9, 11, 13), num)]
    model = nn.Module()
    for name, inputs, outputs in zip(names, widths, widths[1:], strict=False):
        model.add_module(name, nn.Linear(inputs, outputs))
    return model, names[-1]


def tree_of_modules(draw: random.Random, depth: int = 3) -> nn.Module:
    """Modules of all kinds, nested and named at random, some of their weights tied."""
    model = nn.Module()
    for name in draw.sample(NAMES, draw.randint(1, 4)):
        model.add_module(name, _part(draw, depth))
    model.add_module(draw.choice(("z", "head", "linear")), nn.Linear(8, draw.choice((3, 8))))
    matrices = [
        module
        for module in model.modules()
        if type(module) in (nn.Linear, nn.Embedding) and module.weight.shape == (8, 8)
    ]
    if len(matrices) > 1 and draw.random() < 0.5:
        first, second = draw.sample(matrices, 2)
        second.weight = first.weight
    return model


def _part(draw: random.Random, depth: int) -> nn.Module:
    makers: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(8, 8, bias=draw.random() < 0.5),
        lambda: nn.Conv2d(8, 8, 3, groups=draw.choice((1, 8))),
        lambda: nn.ConvTranspose1d(8, 6, 3),
        lambda: nn.Embedding(8, 8),
        lambda: nn.LayerNorm(draw.choice(((8,), (2, 8)))),
        lambda: nn.BatchNorm1d(8),
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.Bilinear(2, 3, 4),
        lambda: nn.GRU(8, 8),
        lambda: _Packed(8),
        lambda: _weight_norm(nn.Linear(8, 8)),
        lambda: nn.ModuleList([_Block(8, draw.choice(("attn", "sa"))) for _ in range(2)]),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
    ]
    if depth > 1:
        makers += [lambda: tree_of_modules(draw, depth - 1)] * 4
    return draw.choice(makers)()


def _weight_norm(layer: nn.Module) -> nn.Module:
    normed: nn.Module = parametrizations.weight_norm(layer)
    return normed


def stored_scopes(
    model: nn.Module, folder: Path, preset: str = "blocks"
) -> dict[str, Scope | None]:
    """What a replay of each format takes for the scope; None where it selects nothing."""
    # in another order than the model's, as some formats have it
    torch.save(model.state_dict(), folder / "saved.pt")
    save_model(model, str(folder / "saved.safetensors"))
    found: dict[str, Scope | None] = {}
    for name in ("saved.pt", "saved.safetensors"):
        with open_checkpoint(str(folder / name)) as checkpoint:
            try:
                found[name] = Scope.of_entries(checkpoint.entries(), preset)
            except ScopeError:
                found[name] = None
    return found
