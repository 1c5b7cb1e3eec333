"""Held-out sequences of a language model, and their losses: what a proxy of one is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from sparsitywatch.errors import ProxyError, expect, expect_whole

#: Label of a position that is not to be predicted, as everywhere in PyTorch.
IGNORED = -100
_MASKED_SHARE = 0.15
_SEED = 0
_EXAMPLES_PER_BATCH = 16

Row = tuple[list[int], list[int]]  # ids of a sequence, and its labels


def masked_loss(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the masked tokens of each sequence, float [N].

    A sequence without a masked token has no loss, and is none of the N.
    """
    return _mean_loss(_logits(model, batch), batch["labels"])


def causal_loss(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of each next token of each sequence, float [N].

    Where the batch has ``labels``, those of -100 do not count.
    """
    labels = batch.get("labels", batch["input_ids"])
    return _mean_loss(_logits(model, batch)[:, :-1], labels[:, 1:])


def _logits(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    names = ("input_ids", "attention_mask")
    return logits_in(model(**{name: batch[name] for name in names if name in batch})).float()


def logits_in(output: Any) -> torch.Tensor:
    """The logits that a model puts out, by themselves or beside other things."""
    if not isinstance(output, torch.Tensor):
        output = output["logits" if "logits" in output else "prediction_logits"]
    logits: torch.Tensor = output
    return logits


def _mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return mean_by_example(losses, labels)


def mean_by_example(numbers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean of the numbers of each example that have a label; one without any is left out."""
    num = (labels != IGNORED).reshape(len(labels), -1).sum(1)
    return numbers.reshape(len(labels), -1).sum(1)[num > 0] / num[num > 0]


# ------------------------------------------------------------------ batches


def masked_batches(
    rows: Sequence[Row], tokenizer: Any, *, has_padding: bool = True
) -> list[dict[str, torch.Tensor]]:
    """Sequences with 15 % of their tokens hidden, the same ones every time; labels are of these."""
    # Devlin et al. 2019, arXiv:1810.04805, appendix A.1
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise ProxyError(
            f"Expected a tokenizer with a mask token, got {type(tokenizer).__name__} without one. "
            "A model that predicts each next token has causal_lm."
        )
    batch = _padded(rows, tokenizer)
    tokens, there = batch["input_ids"], batch["attention_mask"] == 1
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    generator = torch.Generator().manual_seed(_SEED)
    is_ordinary = ~torch.isin(tokens, special) & there
    order = torch.rand(tokens.shape, generator=generator).masked_fill(~is_ordinary, 2.0)
    # a fixed share of each window, and at least one: a mean over none would be no number
    num_hidden = (_MASKED_SHARE * is_ordinary.sum(1)).round().clamp_min(1).long()
    is_hidden = (order.argsort(1).argsort(1) < num_hidden[:, None]) & is_ordinary
    fate = torch.rand(tokens.shape, generator=generator)
    others = torch.randint(len(tokenizer), tokens.shape, generator=generator)
    shown = torch.where(is_hidden & (fate < 0.8), tokenizer.mask_token_id, tokens)
    shown = torch.where(is_hidden & (fate >= 0.9), others, shown)
    labels = tokens.masked_fill(~is_hidden, IGNORED)
    return _split({**batch, "input_ids": shown, "labels": labels}, has_padding=has_padding)


def causal_batches(
    rows: Sequence[Row], tokenizer: Any = None, *, has_padding: bool = True
) -> list[dict[str, torch.Tensor]]:
    """Sequences as they are; padding, and what has no label, is not to be predicted."""
    batch = _padded(rows, tokenizer)
    if not has_padding:
        del batch["labels"]
    return _split(batch, has_padding=has_padding)


def _padded(rows: Sequence[Row], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Ids, labels and attention mask, int64 [N, L], of sequences of different lengths."""
    pad = getattr(tokenizer, "pad_token_id", None) or 0

    def filled(parts: Iterable[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([*map(torch.tensor, parts)], batch_first=True, padding_value=value)

    return {
        "input_ids": filled((ids for ids, _ in rows), pad),
        "labels": filled((labels for _, labels in rows), IGNORED),
        "attention_mask": filled(([1] * len(ids) for ids, _ in rows), 0),
    }


def _split(batch: dict[str, torch.Tensor], *, has_padding: bool) -> list[dict[str, torch.Tensor]]:
    if not has_padding:
        del batch["attention_mask"]
    parts = [torch.split(tensor, _EXAMPLES_PER_BATCH) for tensor in batch.values()]
    return [dict(zip(batch, some, strict=True)) for some in zip(*parts, strict=True)]


# ------------------------------------------------------------------ rows of a dataset


def rows_of(dataset: Any, tokenizer: Any, examples: int, length: int) -> list[Row]:
    """Some sequences of a dataset, spread evenly over one that can be indexed."""
    # a ProxyError if nothing in it is a sequence of tokens or a text
    expect_whole("examples", examples, 2)
    expect_whole("length", length, 2)
    expect(callable(tokenizer), "tokenizer", "a tokenizer of transformers", tokenizer)
    found: list[Row] = []
    for number, item in enumerate(items_of(dataset, examples)):
        for ids, labels in _sequences(item, f"dataset[{number}]", tokenizer, length):
            if len(ids) >= 2:  # one token has no next one, and none beside it
                found.append((ids[:length], labels[:length]))
        if len(found) >= examples:
            break
    if len(found) < 2:
        raise ProxyError(
            f"Expected at least 2 sequences of 2 tokens or more in `dataset`, got {len(found)}."
        )
    return found[:examples]


def items_of(dataset: Any, num: int) -> Iterator[Any]:
    """Items spread evenly over a dataset that can be indexed, at most ``num``; else all."""
    if isinstance(dataset, Mapping):
        raise ProxyError(
            f"Expected `dataset` to be rows or batches, got a mapping of {sorted(dataset)[:5]}. "
            "Give one split of it, such as dataset['validation']."
        )
    is_indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    is_some = (is_indexed or isinstance(dataset, Iterable)) and not isinstance(dataset, str)
    expect(is_some, "dataset", "rows or batches with `input_ids`, or texts", dataset)
    if not is_indexed:
        yield from dataset
        return
    if len(dataset) == 0:
        return
    for index in np.unique(np.linspace(0, len(dataset) - 1, num).round().astype(int)).tolist():
        yield dataset[index]


def _sequences(item: Any, where: str, tokenizer: Any, length: int) -> Iterator[Row]:
    """The sequences of one item: a text, a row with ids or a text, or a batch of ids."""
    if isinstance(item, Mapping) and "input_ids" not in item:
        texts = {name: value for name, value in item.items() if isinstance(value, str)}
        name = "text" if "text" in texts else next(iter(texts), None)
        if name is None or (len(texts) > 1 and name != "text"):
            raise ProxyError(
                f"Expected `input_ids` or one text in {where}, got {sorted(item)}. Tokenize the "
                "dataset, or give a list of texts."
            )
        item = texts[name]
    if isinstance(item, str):
        ids = tokenizer(item, truncation=True, max_length=length)["input_ids"]
        yield list(ids), list(ids)
        return
    row = item if isinstance(item, Mapping) else {"input_ids": item}
    ids = np.asarray(row["input_ids"])
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise ProxyError(
            f"Expected whole numbers [L] or [N, L] as `input_ids` of {where}, got {ids.dtype} of "
            f"shape {ids.shape}."
        )
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad in (None, getattr(tokenizer, "eos_token_id", None)):  # it may stand for an end
        pad = -1
    mask, labels = np.asarray(row.get("attention_mask", ids != pad)), np.asarray(row.get("labels"))
    labels = labels if labels.shape == ids.shape else ids  # none, or those of a classification
    for one, of_one, there in zip(*map(np.atleast_2d, (ids, labels, mask == 1)), strict=True):
        yield one[there].tolist(), of_one[there].tolist()
