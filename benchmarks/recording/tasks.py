"""The models that are trained, each with what it learns.

Shapes: N examples, L tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from data_volume import share_of
from PIL import Image, ImageDraw, ImageFont
from pretrain_bert import Pretraining, masked_losses, parser
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from recording.catalog import RunSpec
from sparsitywatch.proxy.proxy import Proxy

_LAYERS = 2
_HIDDEN = 64
_HEADS = 4
_FFN = 256
_LENGTH = 32
_BATCH = 64
_MODULUS = 53
_WIDTH = 256
_IMAGE = 8
_PATCH = 2
_DRAWN = 4000


@dataclass(frozen=True)
class Task:
    """What is trained, with random weights."""

    model: nn.Module
    # the mean loss of the next batch
    loss: Callable[[], torch.Tensor]
    # on examples that are not trained on; None if nobody asks
    accuracy: Callable[[], float] | None = None
    # makes what a watch evaluates; None if there is nothing
    proxy: Callable[[], Proxy] | None = None


def build(spec: RunSpec) -> Task:
    """The task of a run, seeded."""
    torch.manual_seed(spec.seed)
    return {"bert": _bert, "gpt": _gpt, "vit": _vit, "modular": _modular}[spec.model](spec)


def _pretraining(spec: RunSpec) -> Pretraining:
    """The demo, on a share of its text."""
    words = ["--seed", str(spec.seed), "--activation", spec.activation]
    run = Pretraining(parser().parse_args(words))
    run.text = share_of(run.text, spec.fraction)
    return run


def _bert(spec: RunSpec) -> Task:
    """The demo's masked language model."""
    run = _pretraining(spec)
    return Task(run.model, lambda: masked_losses(run.model, run.batch()).mean(), proxy=run.proxy)


@functools.cache
def _text(fraction: float) -> tuple[np.ndarray, int]:
    """Python's documentation in characters, and how many different ones there are."""
    run = Pretraining(parser().parse_args([]))
    return share_of(run.text, fraction), run.vocabulary.size


def _gpt(spec: RunSpec) -> Task:
    """A causal language model of the same size on the same text."""
    text, vocabulary_size = _text(spec.fraction)
    torch.manual_seed(spec.seed)  # reading the text made a model, too
    config = GPT2Config(
        vocab_size=vocabulary_size, n_positions=_LENGTH, n_embd=_HIDDEN, n_layer=_LAYERS,
        n_head=_HEADS, n_inner=_FFN, activation_function=spec.activation, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(spec.seed)
    window = np.arange(_LENGTH + 1)

    def loss() -> torch.Tensor:
        last = len(text) - _LENGTH
        starts = torch.randint(0, last, (_BATCH,), generator=generator).numpy()
        tokens = torch.from_numpy(text[starts[:, None] + window].astype(np.int64))
        logits = model(input_ids=tokens[:, :-1]).logits
        return F.cross_entropy(logits.mT, tokens[:, 1:])

    return Task(model, loss)


@functools.cache
def drawn_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits 0 to 9 in the fonts of matplotlib, moved and turned, with noise; the same each time.

    Returns:
        Images, float [N, 1, 8, 8] in [0, 1] before the noise, and digits, int64 [N].
    """
    rng = np.random.default_rng(0)
    fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
    paths = [p for p in sorted(fonts.glob("DejaVu*.ttf")) if "Display" not in p.name]  # no digits
    faces = [ImageFont.truetype(str(path), 34) for path in paths]
    digits = rng.integers(0, 10, _DRAWN)
    images = np.empty((_DRAWN, 1, _IMAGE, _IMAGE), dtype=np.float32)
    for image, digit in zip(images, digits, strict=True):
        canvas = Image.new("L", (32, 32))
        place = tuple(rng.uniform(14, 18, 2))
        face = faces[rng.integers(len(faces))]
        ImageDraw.Draw(canvas).text(place, str(digit), fill=255, font=face, anchor="mm")
        turned = canvas.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
        image[0] = np.asarray(turned.resize((_IMAGE, _IMAGE), Image.Resampling.BOX)) / 255.0
    images += rng.normal(0.0, 0.1, images.shape).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(digits)


def _vit(spec: RunSpec) -> Task:
    """A vision transformer on digits of 8 by 8 points."""
    images, digits = drawn_digits()
    config: Any = ViTConfig(
        hidden_size=_HIDDEN, num_hidden_layers=_LAYERS, num_attention_heads=_HEADS,
        intermediate_size=_FFN, hidden_act=spec.activation, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, image_size=_IMAGE, patch_size=_PATCH, num_channels=1,
    )  # fmt: skip
    config.num_labels = 10
    model: Any = ViTForImageClassification(config)
    generator = torch.Generator().manual_seed(spec.seed)

    def loss() -> torch.Tensor:
        chosen = torch.randint(0, len(digits), (_BATCH,), generator=generator)
        return F.cross_entropy(model(pixel_values=images[chosen]).logits, digits[chosen])

    return Task(model, loss)


class _Adder(nn.Module):
    """Two numbers as learned vectors, side by side into a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_MODULUS, _WIDTH // 2)
        self.hidden = nn.Linear(_WIDTH, _WIDTH)
        self.output = nn.Linear(_WIDTH, _MODULUS)

    def forward(self, pairs: torch.Tensor) -> Any:
        """Logits, float [N, modulus], of the sums of ``pairs``, int64 [N, 2]."""
        return self.output(F.relu(self.hidden(self.embedding(pairs).flatten(1))))


def _modular(spec: RunSpec) -> Task:
    """Modular addition by a two-layer perceptron, half of the pairs to learn from.

    On one-hot inputs, without the embedding, it is understood as well, but near-zero weights
    never take off.
    """
    a, b = torch.meshgrid(torch.arange(_MODULUS), torch.arange(_MODULUS), indexing="ij")
    pairs, sums = torch.stack([a.flatten(), b.flatten()], 1), (a + b).flatten() % _MODULUS
    generator = torch.Generator().manual_seed(spec.seed)
    if spec.random_labels:
        sums = torch.randint(0, _MODULUS, sums.shape, generator=generator)
    order = torch.randperm(len(sums), generator=generator)
    seen, unseen = order[: len(order) // 2], order[len(order) // 2 :]
    model = _Adder()

    @torch.no_grad()
    def accuracy() -> float:
        return float((model(pairs[unseen]).argmax(1) == sums[unseen]).float().mean())

    return Task(model, lambda: F.cross_entropy(model(pairs[seen]), sums[seen]), accuracy)
