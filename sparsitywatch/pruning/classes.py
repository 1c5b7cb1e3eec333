"""Labelled examples: what a proxy of a classifier is made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sparsitywatch.errors import ProxyError
from sparsitywatch.pruning.batches import Batch
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
    bad = labels[(labels != IGNORED) & ((labels < 0) | (labels >= logits.shape[1]))]
    if len(bad):  # an accelerator would end the process
        raise ProxyError(
            f"Expected labels of {logits.shape[1]} classes, in [0, {logits.shape[1]}), or -100 "
            f"where there is none, got {int(bad[0])}."
        )
    if is_causal:
        logits, labels = logits[:, :, :-1], labels[:, 1:]
    if metric == "loss":
        each = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    else:
        each = (logits.argmax(1) == labels).float()  # no class is -100
    return mean_by_example(each, labels)


def labelled_only(batch: Batch, *, is_causal: bool = False) -> Batch:
    """A batch without the examples that have no label."""
    labels = _labels_of(batch.on(torch.device("cpu")))[1]
    if labels is None or batch.sizes() != (len(labels),):
        return batch
    has = (labels[:, 1:] if is_causal else labels).reshape(len(labels), -1) != IGNORED
    return batch.some(has.any(1).numpy())


def _labels_of(batch: Any) -> tuple[str, torch.Tensor | None]:
    """The name of the labels of a batch, if it is a mapping, and the labels, if it has any."""
    name, labels = "", None
    if isinstance(batch, Mapping):
        name = next((name for name in _LABELS if name in batch), "")
        labels = batch.get(name)
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        labels = batch[-1]
    return name, labels if isinstance(labels, torch.Tensor) and labels.ndim else None


def _labelled(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a batch, [N, classes, ...], and labels, [N, ...], -100 where there is none."""
    (name, labels), came = _labels_of(batch), f"no tensor of labels in a {type(batch).__name__}"
    is_mapping, mask = isinstance(batch, Mapping), None
    if is_mapping:
        decodes = "decoder_input_ids" in inspect.signature(model.forward).parameters
        mask = None if decodes else batch.get("attention_mask")
        came += f" of {sorted(batch)}"
    if labels is not None:
        if mask is not None and mask.shape == labels.shape:
            labels = labels.masked_fill(mask == 0, IGNORED)
        if is_mapping:
            output = model(**{key: x for key, x in batch.items() if key != name or decodes})
        else:
            output = model(*batch[:-1])
        is_last, output = isinstance(output, Mapping), logits_in(output)
        both = (output, output.movedim(-1, 1))  # classes are second, in transformers last
        for logits in both[::-1] if is_last else both:
            is_one_each = logits.shape[:1] + logits.shape[2:] == labels.shape
            if is_one_each and not labels.is_floating_point():
                return logits, labels.long()
        came = f"labels {labels.dtype} {tuple(labels.shape)} for logits {tuple(output.shape)}"
    raise ProxyError(
        "Expected batches (inputs, labels), or mappings with `labels`: whole numbers [N] for "
        f"logits [N, classes], or both with more dimensions. Got {came}. Give "
        "`sw.Proxy(batches, value)` a function of your own."
    )
