"""The sentence encoder, and tasks on texts: genres, spam, and whether a sum in words is even."""

from __future__ import annotations

import copy
import email
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch import MATERIAL
from torch import nn
from torch.nn import functional as F  # noqa: N812

FICTION = {"fiction", "mystery", "science_fiction", "adventure", "romance"}
OTHERS = {"news", "editorial", "hobbies", "lore", "belles_lettres", "government", "learned"}
#: The split and the order of the examples are the same whenever and wherever they are made.
SPLIT_SEED = 13
#: So many mails of a class, and pieces of a mail, at most: none is told by a few long ones.
MAILS, PIECES = 1200, 4


@dataclass(frozen=True)
class Examples:
    """Texts as tokens, with their labels.

    Args:
        ids: tokens, int64 [N, L].
        mask: which of them are there, bool [N, L].
        labels: int64 [N].
        sources: which file or mail each is from, int64 [N].
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    sources: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Examples:
        parts = self.ids, self.mask, self.labels, self.sources
        return Examples(*(part[index] for part in parts))

    def batches(self, size: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """In order, for ``sw.Proxy``."""
        parts = zip(
            self.ids.split(size), self.mask.split(size), self.labels.split(size), strict=True
        )
        return list(parts)


@dataclass(frozen=True)
class Task:
    """A task: two classes, half of the examples of each; no file or mail is in two parts.

    Args:
        name: what it is called.
        train: to learn from.
        validation: to choose settings by.
        held_out: what is reported; nothing was chosen by it.
    """

    name: str
    train: Examples
    validation: Examples
    held_out: Examples


# ------------------------------------------------------------------ the encoder


class Classifier(nn.Module):
    """transformers' BertModel, the mean over its tokens, and a new linear head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean of the last layer over the tokens that are there, [N, width]."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        there = mask.unsqueeze(2).to(hidden.dtype)
        return torch.as_tensor((hidden * there).sum(1) / there.sum(1))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits, [N, 2]."""
        return torch.as_tensor(self.head(self.features(ids, mask)))


def classifiers(material: Path = MATERIAL, *, small: bool = False) -> Callable[[], Classifier]:
    """A function that makes the pretrained encoder with a new head, drawn as torch draws.

    Args:
        material: where ``fetch.py`` put things.
        small: a tiny encoder of random weights instead.
    """
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the pooler is left out is meant
    logging.disable_progress_bar()
    if small:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=32, max_position_embeddings=32,
            )  # fmt: skip
            encoder = BertModel(config, add_pooling_layer=False)
    else:
        folder = _there(material / "minilm" / "model.safetensors").parent
        encoder = BertModel.from_pretrained(
            folder, add_pooling_layer=False, local_files_only=True, use_safetensors=True
        )
    width = int(encoder.config.hidden_size)
    return lambda: Classifier(copy.deepcopy(encoder), width)


def probe(model: Classifier, examples: Examples, ridge: float = 0.1) -> dict[str, torch.Tensor]:
    """A head fitted to the features of the encoder as it is: logistic regression with a ridge.

    With it training begins where a new head would be after many steps (arXiv:2202.10054). Features
    are scaled together: some hardly vary, and a weight that makes up for that would blow up as
    soon as the encoder moves.

    Returns:
        The state of the head.
    """
    model.eval()
    with torch.no_grad(), fast():
        found = [model.features(ids, mask) for ids, mask, _ in examples.batches(64)]
    features = torch.cat(found).float()
    mean = features.mean(0)
    scale = (features - mean).square().mean().sqrt()
    features = (features - mean) / scale
    weight = torch.zeros(2, features.shape[1], requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, examples.labels)
        loss = loss + ridge * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scaled = (weight / scale).detach()
    return {"weight": scaled, "bias": bias.detach() - scaled @ mean}


def fast() -> torch.autocast:
    """Products in bfloat16, twice as fast on cores that have it; weights stay float32."""
    return torch.autocast("cpu", torch.bfloat16)


def finetune(model: Classifier, examples: Examples, *, steps: int, batch: int, lr: float) -> None:
    """AdamW with a short warm-up and linear decay; order and dropout from the global generator.

    The embeddings stay as they are: a few steps would touch few of their rows.
    """
    model.encoder.get_submodule("embeddings").requires_grad_(False)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, max(0.0, (steps - t) / (steps - warmup + 1)))
    )
    order = _endless(len(examples), batch)
    for _ in range(steps):
        part = examples[next(order)]
        with fast():
            loss = F.cross_entropy(model(part.ids, part.mask), part.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _endless(num: int, batch: int) -> Iterator[torch.Tensor]:
    while True:
        order = torch.randperm(num)
        yield from (order[i : i + batch] for i in range(0, num - batch + 1, batch))


@torch.no_grad()
def right(model: Classifier, examples: Examples, batch: int = 100) -> np.ndarray:
    """Whether each example is given its label, bool [N]."""
    model.eval()
    with torch.inference_mode(), fast():
        found = [model(ids, mask).argmax(1) == y for ids, mask, y in examples.batches(batch)]
    return np.asarray(torch.cat(found).numpy())


# ------------------------------------------------------------------ the tasks


def genres(
    material: Path = MATERIAL, *, length: int = 16, train: int = 2000, held_out: int = 3000
) -> Task:
    """Fiction or not, by two sentences of the Brown corpus, a third of the files in each part.

    Args:
        material: where ``fetch.py`` put things.
        length: tokens of a passage at most.
        train, held_out: examples of these parts; validation has as many as ``held_out``.
    """
    folder = _there(material / "brown" / "cats.txt").parent
    lines = (folder / "cats.txt").read_text().split("\n")
    labelled = [(name, genre) for name, genre in (line.split() for line in lines if line.strip())]
    random = np.random.default_rng(SPLIT_SEED)
    parts = _Parts()
    for label, chosen in enumerate([OTHERS, FICTION]):
        files = sorted(name for name, genre in labelled if genre in chosen)
        for number, name in enumerate(random.permutation(files)):
            text = (folder / str(name)).read_text(encoding="latin-1")
            parts.add(("validation", "held_out", "train")[number % 3], label, passages(text))
    return parts.task("genres", material, length, random, (train, held_out, held_out))


def passages(text: str) -> list[str]:
    """Pairs of sentences of a file of words and tags, one sentence a line."""
    sentences = []
    for line in text.splitlines():
        words = [word.rpartition("/")[0] for word in line.split()]
        if words:
            sentences.append(" ".join(words).replace("``", '"').replace("''", '"'))
    return [" ".join(sentences[i : i + 2]) for i in range(0, len(sentences) - 1, 2)]


def spam(
    material: Path = MATERIAL, *, length: int = 16, train: int = 2000, held_out: int = 3000
) -> Task:
    """Spam or not, by a few words that the sender wrote himself, a third of the mails in each part.

    Headers, markup, addresses, quoted lines and what mailing lists add are taken away: they would
    give it away. Mails that begin alike are taken once; of a long one the first passages.

    Args:
        material: where ``fetch.py`` put things.
        length: tokens of a passage at most; it has nearly so many words.
        train, held_out: examples of these parts; validation has as many as ``held_out``.
    """
    folder = material / "spam"
    _there(folder / "spam-1")
    random = np.random.default_rng(SPLIT_SEED)
    parts = _Parts()
    for label, groups in enumerate(
        [("easy-ham-1", "easy-ham-2", "hard-ham-1"), ("spam-1", "spam-2")]
    ):
        files = sorted(file for group in groups for file in (folder / group).glob("*.json"))
        bodies: dict[str, str] = {}
        for index in random.permutation(len(files)):
            words = body(json.loads(files[index].read_text(encoding="utf-8"))["text"])
            bodies.setdefault(words[:40].lower(), words)
            if len(bodies) > MAILS:
                break
        for number, words in enumerate(bodies.values()):
            pieces = pieces_of(words, max(4, 7 * length // 8))[:PIECES]
            parts.add(("validation", "held_out", "train")[number % 3], label, pieces)
    return parts.task("spam", material, length, random, (train, held_out, held_out))


def pieces_of(text: str, size: int) -> list[str]:
    """A text in pieces of so many words; what is left over goes."""
    words = text.split()
    whole = range(0, len(words) - size + 1, size)
    return [" ".join(words[i : i + size]) for i in whole]


_MARKUP = re.compile(
    r"<(style|script|title)\b.*?</\1>|<!--.*?-->|<[^>]*>|&\w+;|&#\d+;", re.S | re.I
)
_ADDRESS = re.compile(r"\S*(?:@|://|www\.)\S*")
_LEAVE_OUT = re.compile(
    r"\s*[>|:#]|\s*(?:URL|Date|From|To|Subject|Sent|Cc|Hash|Content-\S+)\s*:|.*\bwr(?:ote|ites)\b.*:"
    r"|-----|\S+ said:|\s*quoting ",
    re.I,
)


def body(mail: str) -> str:
    """The words of a mail, without what gives away where it came from."""
    message = email.message_from_string(mail)
    texts = []
    for part in message.walk():
        if part.get_content_type() in ("text/plain", "text/html"):
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                texts.append(payload.decode("latin-1"))
    text = _MARKUP.sub(" ", max(texts, key=len, default=""))
    lines = [line for line in text.splitlines() if not _LEAVE_OUT.match(line)]
    words = _ADDRESS.sub(" ", " ".join(lines))
    return " ".join(re.sub(r"[^\x20-\x7e]|[-=_*~#]{2,}", " ", words).split())


_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """A number from 0 to 99.

    >>> in_words(7), in_words(12), in_words(40), in_words(93)
    ('seven', 'twelve', 'forty', 'ninety three')
    """
    if number < len(_SMALL):
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_SMALL[ones]}" if ones else "")


def parity(
    material: Path = MATERIAL, *, length: int = 16, train: int = 2000, held_out: int = 3000
) -> Task:
    """Whether the sum of two numbers below 100 in words is odd: neither of them alone tells.

    Args:
        material: where ``fetch.py`` put things.
        length: tokens of a passage at most; a sum has up to eight with those at its ends.
        train, held_out: examples of these parts; no pair of numbers is in two of them.
    """
    random = np.random.default_rng(SPLIT_SEED)
    parts = _Parts()
    for number, pair in enumerate(random.permutation(100 * 100)):
        first, second = divmod(int(pair), 100)
        text = f"{in_words(first)} plus {in_words(second)}"
        parts.add(("validation", "held_out", "train")[number % 3], (first + second) % 2, [text])
    return parts.task("parity", material, length, random, (train, held_out, held_out))


def made_up(name: str, *, length: int = 8, train: int = 64, held_out: int = 32) -> Task:
    """Random tokens, some of which tell the class; for tests."""
    random = torch.Generator().manual_seed(sum(map(ord, name)))
    num = train + 2 * held_out
    labels = torch.arange(num) % 2
    ids = torch.randint(5, 100, (num, length), generator=random)
    ids[:, 1:4] = 100 + 40 * labels[:, None] + torch.randint(0, 4, (num, 3), generator=random)
    mask = torch.ones_like(ids, dtype=torch.bool)
    examples = Examples(ids, mask, labels, torch.arange(num) // 4)
    ends = train, train + held_out
    return Task(name, examples[: ends[0]], examples[ends[0] : ends[1]], examples[ends[1] :])


def tasks(
    names: Sequence[str], material: Path = MATERIAL, *, small: bool = False, **sizes: int
) -> list[Task]:
    """Tasks by name: "genres", "spam", "parity"."""
    made = {"genres": genres, "spam": spam, "parity": parity}
    return [made_up(name, **sizes) if small else made[name](material, **sizes) for name in names]


class _Parts:
    """Texts by part and class, each with the number of its file or mail."""

    def __init__(self) -> None:
        self._num_sources = 0
        self._texts: dict[tuple[str, int], list[tuple[str, int, int]]] = {}

    def add(self, part: str, label: int, texts: Sequence[str]) -> None:
        """The texts of one file or mail."""
        found = self._texts.setdefault((part, label), [])
        found.extend((text, label, self._num_sources) for text in texts)
        self._num_sources += 1

    def task(
        self,
        name: str,
        material: Path,
        length: int,
        random: np.random.Generator,
        sizes: tuple[int, int, int],
    ) -> Task:
        """As many of each class, drawn once and in an order that is drawn once."""
        encoded = []
        for part, size in zip(("train", "validation", "held_out"), sizes, strict=True):
            both = [self._texts[part, label] for label in (0, 1)]
            half = min(size // 2, *map(len, both))
            texts = [some[i] for some in both for i in random.permutation(len(some))[:half]]
            chosen = [texts[i] for i in random.permutation(len(texts))]
            encoded.append(_encoded(chosen, material, length))
        return Task(name, *encoded)


def _encoded(texts: Sequence[tuple[str, int, int]], material: Path, length: int) -> Examples:
    from transformers import PreTrainedTokenizerFast

    file = _there(material / "minilm" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="[PAD]")  # noqa: S106
    found = tokenizer(
        [text for text, _, _ in texts], truncation=True, max_length=length, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    return Examples(
        found["input_ids"],
        found["attention_mask"].bool(),
        torch.tensor([label for _, label, _ in texts]),
        torch.tensor([source for _, _, source in texts]),
    )


def _there(path: Path) -> Path:
    if not path.exists():
        raise SystemExit(
            f"Expected {path}, found none. Get it: python examples/paper/fetch.py "
            "--material FOLDER, where FOLDER is that of --material, if you give one."
        )
    return path
