"""Labelled examples: what a proxy of a classifier is made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sparsitywatch.errors import ProxyError
from sparsitywatch.pruning.language import IGNORED, logits_in, mean_by_example

#: What a batch that is a mapping calls its labels.
_LABELS = ("labels", "label", "targets", "target")


def labelled_value(
    model: nn.Module, batch: Any, *, metric: str = "loss", is_causal: bool = False
) -> torch.Tensor:
    """Cross-entropy, or accuracy, of each example that has a label, float [N]; of several the mean.

    In a causal model a label is what the position before it predicts.
    """
    logits, labels = _labelled(model, batch)
    if is_causal:
        logits, labels = logits[:, :, :-1], labels[:, 1:]
    if metric == "loss":
        each = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    else:
        each = (logits.argmax(1) == labels).float()  # no class is -100
    return mean_by_example(each, labels)


def _labelled(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a batch, [N, classes, ...], and labels, [N, ...], -100 where there is none."""
    if isinstance(batch, Mapping):
        name = next((name for name in _LABELS if name in batch), "")
        decodes = "decoder_input_ids" in inspect.signature(model.forward).parameters
        named = {key: x for key, x in batch.items() if key != name or decodes}
        output, labels, mask = model(**named), batch.get(name), batch.get("attention_mask")
    else:
        *given, labels = batch
        output, mask = model(*given), None
    is_tensor, output = isinstance(output, torch.Tensor), logits_in(output)
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        if mask is not None and mask.shape == labels.shape:
            labels = labels.masked_fill(mask == 0, IGNORED)
        both = (output, output.movedim(-1, 1))  # classes are second, in transformers last
        for logits in both if is_tensor else both[::-1]:
            if logits.shape[:1] + logits.shape[2:] == labels.shape:
                return logits, labels.long()
    came = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else labels
    raise ProxyError(
        "Expected batches (inputs, labels), or mappings with `labels`: whole numbers [N] for "
        f"logits [N, classes], or both with more dimensions. Got labels {came} for logits "
        f"{tuple(output.shape)}. Give `sw.Proxy(batches, value)` a function of your own."
    )
