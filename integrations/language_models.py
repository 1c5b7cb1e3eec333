"""Language models of transformers from their config, and a proxy for one from a held-out text.

What ``sparsitywatch replay --model ... --text ...`` evaluates. Nothing is fetched from anywhere,
and no code that comes with a model is run. A Trainer's own held-out rows give a proxy, too.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsitywatch.errors import ConfigurationError, MissingExtraError, expect, expect_whole
from sparsitywatch.proxy.batches import Batch, drawn
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.proxy.ready_made import IGNORED, items_of, labelled_value

try:
    import transformers
    from transformers.models.auto import modeling_auto
except ImportError as error:
    raise MissingExtraError("transformers", "huggingface", "models from a config") from error

__all__ = ["make_model", "text_proxy"]

#: Characters that are read for each token that is needed; languages and vocabularies differ.
_CHARACTERS_PER_TOKEN = 16


def make_model(name: str, config: str | os.PathLike[str] | None = None) -> nn.Module:
    """A model with random weights: of a folder with a config.json, or of a type and a config."""
    read = _read_config(name, config)
    for architecture in getattr(read, "architectures", None) or _architectures(read.model_type):
        made = getattr(transformers, architecture, None)
        if made is not None:
            model: nn.Module = made(read)
            return model
    raise ConfigurationError(
        f"Expected a config with `architectures` that transformers {transformers.__version__} "
        f"knows, or of a language model, got {getattr(read, 'architectures', None)!r} of type "
        f"{read.model_type!r}. Give a function that makes the model: --model module:function."
    )


def _read_config(name: str, config: str | os.PathLike[str] | None) -> Any:
    path = Path(name) if config is None else Path(config)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(
            f"Expected a config of transformers at {str(path)!r}, found none. Give a folder that "
            "has a config.json, or a type and its config: --model bert --config config.json."
        )
    try:
        content, _ = transformers.PretrainedConfig.get_config_dict(str(file))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Expected a config in JSON in {str(file)!r}: {error}") from error
    kind = content.get("model_type") if config is None else name
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ConfigurationError(
            f"Expected a type of model that transformers {transformers.__version__} knows, got "
            f"{kind!r}. Give a function that makes the model: --model module:function."
        )
    return transformers.CONFIG_MAPPING[kind].from_dict(content)


def _architectures(kind: str) -> list[str]:
    mappings: tuple[Mapping[str, str], ...] = (
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    return [names[kind] for names in mappings if kind in names]


def text_proxy(
    text: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    model: nn.Module,
    *,
    num_examples: int = 128,
    length: int = 128,
) -> Proxy:
    """The loss of a model, masked or causal by its class, on windows of the beginning of a text."""
    kind = type(model).__name__
    is_masked = "MaskedLM" in kind or kind.endswith("ForPreTraining")
    if not is_masked and "CausalLM" not in kind and "LMHead" not in kind:
        raise ConfigurationError(
            f"Expected a masked or causal language model for `--text`, got {kind}. Give a function "
            "that makes the proxy: --proxy module:function."
        )
    words = _load_tokenizer(tokenizer)
    prefix, suffix = ([words.cls_token_id], [words.sep_token_id]) if is_masked else ([], [])
    prefix, suffix = ([token for token in ids if token is not None] for ids in (prefix, suffix))
    inside = length - len(prefix) - len(suffix)
    tokens = _first_tokens(Path(text), words, num_examples, inside)
    rows = [[*prefix, *row, *suffix] for row in tokens.tolist()]
    make = Proxy.masked_lm if is_masked else Proxy.causal_lm
    return make(rows, words, examples=num_examples, length=length)


def eval_proxy(trainer: transformers.Trainer, examples: int) -> Proxy:
    """The loss on some of a Trainer's held-out rows, as its collator puts them together."""
    expect_whole("examples", examples, 2)
    is_one = isinstance(trainer, transformers.Trainer) and trainer.eval_dataset is not None
    expect(is_one, "trainer", "a Trainer with an `eval_dataset`", trainer)
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    size = trainer.args.eval_batch_size

    def collated() -> list[Any]:  # the data set draws, and the collator, such as masks
        some = itertools.islice(items_of(trainer.eval_dataset, examples), examples)
        rows = [row for _, row in some]
        return [collate(rows[i : i + size]) for i in range(0, len(rows), size)]

    batches = drawn(collated, seed=0)
    # only where labels are the tokens themselves each is what the one before it predicts
    is_causal = all(map(_has_own_labels, batches))
    value = functools.partial(labelled_value, is_causal=is_causal)
    labelled = filter(None, [_with_labels(batch, int(is_causal)) for batch in batches])
    name = f"held-out loss of {type(trainer.model).__name__}"
    return Proxy([*labelled] or batches, value, name=name)


def _with_labels(batch: Any, first: int) -> Any:
    """A batch without rows that have no label, such as short ones where no token is hidden."""
    labels, frozen = batch.get("labels"), Batch(batch)
    if labels is None or labels.ndim < 2 or frozen.sizes() != (len(labels),):
        return batch
    has = (labels[:, first:] != IGNORED).any(1).numpy()
    return frozen.some(has).on(labels.device) if has.any() else None


def _has_own_labels(batch: Mapping[str, Any]) -> bool:
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if ids is None or labels is None or ids.shape != labels.shape:
        return False
    return bool(((labels == ids) | (labels == IGNORED)).all())


def _load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"Expected a tokenizer of transformers in {os.fspath(folder)!r}: {first_line} Name its "
            "folder: --tokenizer FOLDER."
        ) from error


def _first_tokens(text: Path, words: Any, num_examples: int, inside: int) -> torch.Tensor:
    """Ids of the first tokens of a text, int64 [num_examples, inside]."""
    expect_whole("examples", num_examples, 2)
    expect_whole("length without special tokens", inside, 2)
    needed = num_examples * inside
    with text.open(encoding="utf-8") as file:
        start = file.read(needed * _CHARACTERS_PER_TOKEN)
    ids = words(start, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < needed:
        raise ConfigurationError(
            f"Expected a text of at least {needed:,} tokens ({num_examples} examples of {inside}), "
            f"got {len(ids):,} in {str(text)!r}. Ask for fewer or shorter examples."
        )
    return torch.tensor(ids[:needed]).reshape(num_examples, inside)
