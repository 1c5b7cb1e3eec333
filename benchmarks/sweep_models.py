"""Eight kinds of small trained models, each with what 8,192 held-out examples lose at every 0.01.

For ``sweep.py``: proxies are drawn from these examples, so that the truth is known: it is what all
of them say. Trainings take some seconds each; data are made up from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sparsitywatch.evaluation.masked import MaskedModel
from sparsitywatch.patterns.cuts import Weights
from sparsitywatch.patterns.pattern import GlobalMagnitude
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

Array = NDArray[np.float64]
Data = tuple[torch.Tensor, torch.Tensor]
Value = Callable[[nn.Module, Data], torch.Tensor]

POOL, TRAINED, BATCH, STEPS, SEED = 8192, 16384, 64, 600, 0


@dataclass(frozen=True)
class Pool:
    """What each of the pool's examples is worth at every level."""

    sparsity: Array  # [K]
    dense: Array  # [N]
    lost: Array  # [K, N]
    is_score: bool


class Attention(nn.Module):
    """One block of a causal transformer over 12 tokens of a made-up language of 16."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(16, width), nn.Embedding(12, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.head = nn.Linear(width, 16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next tokens."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embed(tokens) + self.places.weight[:length]
        found: torch.Tensor = self.head(self.block(x, src_mask=mask, is_causal=True))
        return found


class Recurrent(nn.Module):
    """A GRU that reads a series and says its next number."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """The number after the last one."""
        found: torch.Tensor = self.head(self.gru(series)[0][:, -1])
        return found


def _mlp(width: int, outputs: int, kind: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, width), kind(), nn.Linear(width, width), kind(), nn.Linear(width, outputs)
    )


def _plane(num: int, noise: float) -> Data:
    x = torch.randn(num, 8)
    return x, torch.sin(2 * x[:, :1]) * x[:, 1:2] + noise * torch.randn(num, 1)


def _classes(num: int) -> Data:
    x = torch.randn(num, 8)
    teacher = torch.Generator().manual_seed(7)
    hidden = torch.tanh(x @ torch.randn(8, 12, generator=teacher))
    logits = 1.5 * hidden @ torch.randn(12, 5, generator=teacher)
    return x, torch.multinomial(logits.softmax(1), 1)[:, 0]


def _images(num: int) -> Data:
    """Two bars on a grid with noise: along or across, near or far."""
    label = torch.randint(4, (num,))
    x = 0.7 * torch.randn(num, 1, 8, 8)
    at = torch.randint(1, 5, (num,))
    for i in range(num):
        row = x[i, 0] if label[i] < 2 else x[i, 0].T
        row[at[i]] += 1.0
        row[at[i] + 1 + int(label[i]) % 2] += 1.0
    return x, label


def _language(num: int) -> Data:
    """Each token depends on the two before, by a table that is nearly sure."""
    table = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(3)).mul(2).softmax(2)
    tokens = torch.randint(16, (num, 13))
    for t in range(2, 13):
        tokens[:, t] = torch.multinomial(table[tokens[:, t - 2], tokens[:, t - 1]], 1)[:, 0]
    return tokens[:, :-1], tokens[:, 1:]


def _series(num: int) -> Data:
    time = torch.arange(17.0)[None] * (0.3 + torch.rand(num, 1)) + 6.3 * torch.rand(num, 1)
    found = torch.sin(time)[..., None] + 0.2 * torch.randn(num, 17, 1)
    return found[:, :-1], found[:, -1]


def _square(model: nn.Module, batch: Data) -> torch.Tensor:
    found: torch.Tensor = (model(batch[0]) - batch[1]).square().flatten(1).mean(1)
    return found


def _entropy(model: nn.Module, batch: Data) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _of_tokens(model: nn.Module, batch: Data) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]).mT, batch[1], reduction="none").mean(1)


def _right(model: nn.Module, batch: Data) -> torch.Tensor:
    found: torch.Tensor = (model(batch[0]).argmax(1) == batch[1]).float()
    return found


def _autoencoded(num: int) -> Data:
    x = torch.randn(num, 3) @ torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    x = torch.tanh(x) + 0.2 * torch.randn(num, 8)
    return x, x


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


def _half_zero(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter[parameter.abs() < parameter.abs().median()] = 0.0


def _quantised(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            step = parameter.abs().max() / 31
            parameter.copy_((parameter / step).round() * step)


#: Name: model, data, the value that is trained on, and what is done with the weights in the end.
Kind = tuple[
    Callable[[], nn.Module], Callable[[int], Data], Value, Callable[[nn.Module], None] | None
]
KINDS: dict[str, Kind] = {
    "regression": (lambda: _mlp(64, 1), lambda n: _plane(n, 0.5), _square, None),
    "tanh": (lambda: _mlp(48, 1, nn.Tanh), lambda n: _plane(n, 0.2), _square, None),
    "classifier": (lambda: _mlp(64, 5), _classes, _entropy, None),
    "convolution": (_conv, _images, _entropy, None),
    "transformer": (Attention, _language, _of_tokens, None),
    "recurrent": (Recurrent, _series, _square, None),
    "half zero": (lambda: _mlp(64, 5), _classes, _entropy, _half_zero),
    "autoencoder, quantised": (lambda: _mlp(32, 8), _autoencoded, _square, _quantised),
}


def pool(kind: str, seed: int = SEED, levels: int = 100) -> Pool:
    """Train a model, and evaluate what is held out at every level."""
    make, draw, value, after = KINDS[kind]
    torch.manual_seed(seed)
    model, data, held_out = make(), draw(TRAINED), draw(POOL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    for _ in range(STEPS):
        rows = torch.randint(TRAINED, (BATCH,))
        optimizer.zero_grad()
        value(model, (data[0][rows], data[1][rows])).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        if after is not None:
            after(model)
        return _evaluated(model.eval(), held_out, value, levels)


def _evaluated(model: nn.Module, held_out: Data, value: Value, levels: int) -> Pool:
    scope = Scope.of(model, "layers")
    proxy = Proxy([[part[i : i + 1024] for part in held_out] for i in range(0, POOL, 1024)], value)
    spectrum = MagnitudeSpectrum.of(Snapshot.of(model, scope, 0).tensors)
    masked = MaskedModel(model, scope)
    with masked.session(value) as masks:
        dense = proxy.evaluate(*masks.dense())
        cuts = GlobalMagnitude().cuts(
            Weights(spectrum, {name: tuple(dense.shape) for name, dense, _ in masks.weights}),
            [i / levels for i in range(levels + 1)],
        )
        lost = [proxy.evaluate(*masks.masked(cut)) - dense for cut in cuts]
    return Pool(np.array([cut.sparsity for cut in cuts]), dense, np.stack(lost), False)
