"""Masked language modelling: which tokens are hidden, and what the model loses by it.

Shapes: N sequences of L tokens, M masked positions in all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812
from vocabulary import MASK, SPECIAL_TOKENS

__all__ = ["IGNORED", "TextSampler", "held_out_value", "mask_tokens", "masked_losses"]

#: Label of a position that is not to be predicted, as everywhere in PyTorch.
IGNORED = -100

Batch = dict[str, torch.Tensor]


def mask_tokens(
    tokens: torch.Tensor,
    vocabulary_size: int,
    generator: torch.Generator,
    probability: float = 0.15,
) -> Batch:
    """Hide 15 % of the ordinary tokens: 80 % as [MASK], 10 % as another token, 10 % not at all.

    Every sequence gets at least one masked token (drawn again until it has), as in BERT's own
    data; special tokens are never masked and never stand in for others.

    Args:
        tokens: int64, shape [N, L].
        vocabulary_size: number of token ids, the special ones included.
        generator: the only source of randomness.
        probability: share of ordinary tokens to predict.

    Returns:
        ``input_ids`` and ``labels``, both int64 [N, L]; labels are -100 where nothing is to
        be predicted.

    Raises:
        ValueError: a sequence holds special tokens only.

    Reference: Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.1.
    """
    num_special = len(SPECIAL_TOKENS)
    ordinary = tokens >= num_special
    if not bool(ordinary.any(dim=1).all()):
        raise ValueError(
            "Expected a token other than [UNK] in each sequence; use a text that the vocabulary "
            "covers, or longer sequences."
        )
    chosen = torch.zeros_like(ordinary)
    missing = torch.ones(len(tokens), dtype=torch.bool)
    while bool(missing.any()):
        drawn = torch.rand(tokens.shape, generator=generator) < probability
        chosen = torch.where(missing[:, None], drawn & ordinary, chosen)
        missing = ~chosen.any(dim=1)
    fate = torch.rand(tokens.shape, generator=generator)
    others = torch.randint(num_special, vocabulary_size, tokens.shape, generator=generator)
    hidden = torch.where(chosen & (fate < 0.8), MASK, tokens)
    hidden = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), others, hidden)
    return {"input_ids": hidden, "labels": torch.where(chosen, tokens, IGNORED)}


class TextSampler:
    """Batches of random windows of a token stream, masked anew each time.

    Args:
        stream: token ids, shape [T].
        batch_size, length: N and L, ``length`` with prefix and suffix.
        prefix, suffix: special tokens around each window.
        vocabulary_size: as in ``mask_tokens``.
        generator: the only source of randomness; its state is the sampler's whole state.
    """

    def __init__(
        self,
        stream: npt.NDArray[np.int32],
        batch_size: int,
        length: int,
        vocabulary_size: int,
        generator: torch.Generator,
        *,
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
    ) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._window = np.arange(length - len(prefix) - len(suffix))
        self._vocabulary_size = vocabulary_size
        self._ends = (prefix, suffix)
        self.generator = generator

    def batch(self) -> Batch:
        """The next batch, as from ``mask_tokens``."""
        num_starts = len(self._stream) - len(self._window) + 1
        starts = torch.randint(0, num_starts, (self._batch_size,), generator=self.generator)
        windows = self._stream[starts.numpy()[:, None] + self._window]
        tokens = surrounded(windows, *self._ends)
        return mask_tokens(tokens, self._vocabulary_size, self.generator)


def surrounded(
    windows: npt.NDArray[np.int32], prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> torch.Tensor:
    """``windows`` [N, W] as int64 [N, L], with the special tokens around each."""
    ends = [np.tile(np.array(end, dtype=np.int64), (len(windows), 1)) for end in (prefix, suffix)]
    return torch.from_numpy(np.concatenate([ends[0], windows, ends[1]], axis=1, dtype=np.int64))


def masked_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats at each masked position, shape [M].

    Only masked positions go through the head: with 15 % of them, a head over a large
    vocabulary costs a seventh.
    """
    device = next(model.parameters()).device
    labels = batch["labels"].to(device)
    masked = labels != IGNORED
    hidden = model.bert(batch["input_ids"].to(device)).last_hidden_state[masked]
    return F.cross_entropy(model.cls(hidden), labels[masked], reduction="none")


def held_out_value(model: Any, batch: Batch) -> torch.Tensor:
    """Masked-LM loss of each sequence, the mean over its masked positions, shape [N].

    A sequence without one has no loss, and is none of the N.
    """
    losses = masked_losses(model, batch)
    masked = (batch["labels"] != IGNORED).to(losses.device)
    # scattered to their places and summed by row: bit for bit the same each time, also on a GPU
    per_position = losses.new_zeros(masked.shape).masked_scatter(masked, losses)
    num_masked = masked.sum(dim=1)
    has_loss = num_masked > 0  # of nothing there is no mean
    return per_position.sum(dim=1)[has_loss] / num_masked[has_loss]
