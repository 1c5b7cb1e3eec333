"""What the ready-made proxies are made of: labelled examples, held-out sequences, their losses."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from sparsitywatch.errors import ProxyError, expect, expect_whole
from sparsitywatch.proxy.batches import drawn

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


# ------------------------------------------------------------------ sequences

_MASKED_SHARE = 0.15
_SEED = 0
_EXAMPLES_PER_BATCH = 16

Row = tuple[list[int], list[int]]  # ids of a sequence, and its labels


def masked_batches(rows: Sequence[Row], tokenizer: Any) -> list[dict[str, torch.Tensor]]:
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
    return _split({**batch, "input_ids": shown, "labels": labels})


def causal_batches(rows: Sequence[Row], tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """Sequences as they are; padding, and what has no label, is not to be predicted."""
    return _split(_padded(rows, tokenizer))


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


def _split(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    parts = [torch.split(tensor, _EXAMPLES_PER_BATCH) for tensor in batch.values()]
    return [dict(zip(batch, some, strict=True)) for some in zip(*parts, strict=True)]


# ------------------------------------------------------------------ rows of a dataset


def rows_of(dataset: Any, tokenizer: Any, examples: int, length: int) -> list[Row]:
    """Some sequences of a dataset, spread evenly over one that can be indexed."""
    # a ProxyError if nothing in it is a sequence of tokens or a text
    expect_whole("examples", examples, 2)
    expect_whole("length", length, 2)
    # a DataLoader draws even where it does not shuffle
    found = drawn(lambda: _first_rows(dataset, tokenizer, examples, length), _SEED)
    if len(found) < 2:
        raise ProxyError(
            f"Expected at least 2 sequences of 2 tokens or more in `dataset`, got {len(found)}. "
            "Labels of -100 do not count."
        )
    return found[:examples]


def _first_rows(dataset: Any, tokenizer: Any, examples: int, length: int) -> list[Row]:
    special = set(getattr(tokenizer, "all_special_ids", ()))
    found: list[Row] = []
    for place, item in items_of(dataset, examples):
        for ids, labels in _sequences(item, f"dataset[{place}]", tokenizer, length):
            ids, labels = ids[:length], labels[:length]
            # one token has no next one, and none beside it; an empty text has ends alone
            if {*labels[1:]} - {IGNORED} and not special.issuperset(ids):
                found.append((ids, labels))
        if len(found) >= examples:
            break
    return found


def items_of(dataset: Any, num: int) -> Iterator[tuple[int, Any]]:
    """Places and items; of a dataset that can be indexed ``num``, spread evenly, then more."""
    if isinstance(dataset, Mapping) and "input_ids" in dataset:
        dataset = [dataset]
    if isinstance(dataset, Mapping):
        raise ProxyError(
            f"Expected `dataset` to be rows or batches, got a mapping of {sorted(dataset)[:5]}. "
            "Give one split of it, such as dataset['validation']."
        )
    is_indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    is_some = (is_indexed or isinstance(dataset, Iterable)) and not isinstance(dataset, str)
    expect(is_some, "dataset", "rows or batches with `input_ids`, or texts", dataset)
    if not is_indexed:
        yield from enumerate(dataset)
        return
    seen: set[int] = set()
    for finer in (1, 2, 4, 8) if len(dataset) else ():
        for place in np.linspace(0, len(dataset) - 1, finer * num).round().astype(int).tolist():
            if place not in seen:
                seen.add(place)
                yield place, dataset[place]


def _sequences(item: Any, where: str, tokenizer: Any, length: int) -> Iterator[Row]:
    """The sequences of one item: a text, a row with ids or a text, or a batch of ids."""
    if isinstance(item, Mapping) and "input_ids" not in item:
        named = {name: texts for name, value in item.items() if (texts := _texts(value))}
        if len(named) != 1 and "text" not in named:
            raise ProxyError(
                f"Expected `input_ids` or one text in {where}, got {sorted(item)}. Tokenize the "
                "dataset, or give a list of texts."
            )
        (item,) = [named["text"]] if "text" in named else named.values()
    if texts := _texts(item):
        expect(callable(tokenizer), "tokenizer", "one of transformers, for texts", tokenizer)
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
            yield list(ids), list(ids)
        return
    row = item if isinstance(item, Mapping) else {"input_ids": item}
    every = _arrays(row["input_ids"])
    is_pair = isinstance(row["input_ids"], tuple) and len(every) > 1
    for ids in every:
        if is_pair or (ids.size and (ids.dtype.kind not in "iu" or ids.ndim != 1)):
            came = f"a tuple of {len(every)}" if is_pair else f"{ids.dtype} of shape {ids.shape}"
            raise ProxyError(
                f"Expected whole numbers [L] or [N, L] as `input_ids` of {where}, got {came}. Of "
                "(inputs, targets) give the inputs alone."
            )
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad in (None, getattr(tokenizer, "eos_token_id", None)):  # it may stand for an end
        pad = -1
    masks = _arrays(row["attention_mask"]) if "attention_mask" in row else [i != pad for i in every]
    labels = _arrays(row.get("labels"))
    if [one.shape for one in labels] != [ids.shape for ids in every]:
        labels = every  # none, or those of a classification
    for ids, of_one, mask in zip(every, labels, masks, strict=True):
        yield ids[mask == 1].tolist(), of_one[mask == 1].tolist()


def _texts(given: Any) -> Sequence[str]:
    """What is given, if it is a text or a batch of texts."""
    some = [given] if isinstance(given, str) else given
    is_text = isinstance(some, list | tuple) and all(isinstance(one, str) for one in some)
    return some if is_text else []


def _arrays(given: Any) -> list[np.ndarray]:
    """The numbers of each sequence, of one or of several, which may differ in length."""
    is_several = isinstance(given, list | tuple)
    parts = [
        one.cpu().numpy() if isinstance(one, torch.Tensor) else np.asarray(one)
        for one in (given if is_several else [given])
    ]
    if is_several and all(part.ndim == 0 for part in parts):
        return [np.array(parts)]
    return [*np.atleast_2d(parts[0])] if len(parts) == 1 else parts
