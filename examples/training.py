"""The training itself: model, optimizer, learning-rate schedule, one step, and its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from masking import TextSampler, masked_losses
from transformers import BertConfig, BertForMaskedLM

__all__ = ["Training", "bert", "learning_rate_factor"]

#: Share of a warmup-stable-decay schedule that decays.
_WSD_DECAY_FRAC = 0.2


def bert(
    *,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
    activation: str,
    dropout: float,
    vocabulary_size: int,
    length: int,
) -> Any:
    """A ``BertForMaskedLM`` with random weights from the global generator."""
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        hidden_act=activation,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=length,
        type_vocab_size=1,  # there are no sentence pairs
    )
    return BertForMaskedLM(config)


def learning_rate_factor(step: int, *, schedule: str, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at a step: pure, so there is no state to save.

    Args:
        step: the optimizer step about to be taken, from 1 to ``steps``.
        schedule: "constant", "linear" or "cosine" to zero, or "wsd" (stable, then linear to
            zero over the last fifth), all after a linear warm-up.
        warmup: steps of warm-up.
        steps: steps in all.

    >>> [learning_rate_factor(s, schedule="linear", warmup=2, steps=4) for s in (1, 2, 3, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return step / warmup
    progress = max(0, step - 1 - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "wsd":
        return min(1.0, (1.0 - progress) / _WSD_DECAY_FRAC)
    return 1.0


class Training:
    """A model in training: ``step()`` does one step, the state goes into a checkpoint.

    Args:
        model: from ``bert``, on its device.
        sampler: where batches come from.
        lr, betas, decay: of AdamW; weight decay applies to matrices only.
        clip: largest norm of the gradient.
        schedule, warmup, steps: see ``learning_rate_factor``.
    """

    def __init__(
        self,
        model: Any,
        sampler: TextSampler,
        *,
        lr: float,
        betas: tuple[float, float],
        decay: float,
        clip: float,
        schedule: str,
        warmup: int,
        steps: int,
    ) -> None:
        self.model, self.sampler = model, sampler
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=lr,
            betas=betas,
        )
        self.steps_done = 0
        self._lr, self._clip, self._steps = lr, clip, steps
        self._schedule, self._warmup = schedule, warmup

    def step(self) -> torch.Tensor:
        """One batch, one optimizer step.

        Returns:
            The mean loss over the batch's masked positions, a detached scalar.
        """
        factor = learning_rate_factor(
            self.steps_done + 1, schedule=self._schedule, warmup=self._warmup, steps=self._steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * factor
        loss = masked_losses(self.model, self.sampler.batch()).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        # counted first: the watch looks from inside optimizer.step()
        self.steps_done += 1
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer, steps done and every generator that training draws from."""
        device = next(self.model.parameters()).device
        rng = {"torch": torch.get_rng_state(), "batches": self.sampler.generator.get_state()}
        if device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps_done": self.steps_done,
            "rng": rng,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = int(state["steps_done"])
        torch.set_rng_state(state["rng"]["torch"])
        self.sampler.generator.set_state(state["rng"]["batches"])
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"], device)
