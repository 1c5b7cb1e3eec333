"""Labelled examples: what a proxy of a classifier is made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sparsitywatch.errors import ProxyError

#: Label of what is not to be predicted, as everywhere in PyTorch.
IGNORED = -100
#: What a batch that is a mapping calls its labels.
_LABELS = ("labels", "label", "targets", "target")


def labelled_value(
    model: nn.Module, batch: Any, *, metric: str = "loss", is_causal: bool = False
) -> torch.Tensor:
    """Cross-entropy or accuracy of each example with a label, float [N]; of several the mean."""
    logits, labels = _labelled(model, batch)
    bad = labels[(labels != IGNORED) & ((labels < 0) | (labels >= logits.shape[1]))]
    if len(bad):  # an accelerator would end the process
        raise ProxyError(
            f"Expected labels in [0, {logits.shape[1]}), or -100 for none, got {int(bad[0])}."
        )
    if is_causal:  # a label is what the position before it predicts
        logits, labels = logits[:, :, :-1], labels[:, 1:]
    if metric == "loss":
        each = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    else:
        each = (logits.argmax(1) == labels).float()  # no class is -100
    num = (labels != IGNORED).reshape(len(labels), -1).sum(1)
    return each.reshape(len(labels), -1).sum(1)[num > 0] / num[num > 0]


def _labelled(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a batch, [N, classes, ...], and labels, [N, ...], -100 where there is none."""
    name, labels, is_named = "", None, isinstance(batch, Mapping)
    if is_named:
        name = next((name for name in _LABELS if name in batch), "")
        labels = batch.get(name)
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        labels = batch[-1]
    if not isinstance(labels, torch.Tensor):
        raise _refused(f"no tensor of labels in a {_kind_of(batch)}")
    if is_named:
        decodes = "decoder_input_ids" in inspect.signature(model.forward).parameters
        output = model(**{key: x for key, x in batch.items() if key != name or decodes})
        mask = None if decodes else batch.get("attention_mask")
        if mask is not None and mask.shape == labels.shape:
            labels = labels.masked_fill(mask == 0, IGNORED)
    else:
        output = model(*batch[:-1])
    found = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("prediction_logits"))
    if not isinstance(found, torch.Tensor):
        raise _refused(f"no logits in a {_kind_of(output)}")
    both = (found, found.movedim(-1, 1))  # classes are second, in transformers last
    is_last = isinstance(output, Mapping) or (is_named and "input_ids" in batch)
    for logits in both[::-1] if is_last else both:
        is_one_each = logits.shape[:1] + logits.shape[2:] == labels.shape
        if is_one_each and not labels.is_floating_point():
            return logits, labels.long()
    raise _refused(f"labels {labels.dtype} {(*labels.shape,)} for logits {(*found.shape,)}")


def _kind_of(thing: Any) -> str:
    return type(thing).__name__ + (f" of {sorted(thing)}" if isinstance(thing, Mapping) else "")


def _refused(came: str) -> ProxyError:
    return ProxyError(
        "Expected batches (inputs, labels), or mappings with `labels`: whole numbers [N] for "
        f"logits [N, classes], or both with more dimensions. Got {came}. Give "
        "`sw.Proxy(batches, value)` a function of your own."
    )
