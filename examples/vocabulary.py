"""From text to token ids: characters by default, or BERT's own subwords.

Both vocabularies lower-case the text and treat any whitespace as one space, as
``bert-base-uncased`` does, and both begin with BERT's five special tokens.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import BertWordPieceTokenizer

__all__ = ["SPECIAL_TOKENS", "CharacterVocabulary", "SubwordVocabulary", "Vocabulary"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNK, CLS, SEP, MASK = (SPECIAL_TOKENS.index(name) for name in SPECIAL_TOKENS[1:])
#: A character that makes up less of the text than this becomes [UNK].
_RAREST = 1e-5

Tokens = npt.NDArray[np.int32]


class Vocabulary(Protocol):
    """Ids 0 to 4 are the special tokens; ordinary tokens are the ids from 5 up.

    ``size`` counts all of them. A training sequence is ``prefix``, tokens, ``suffix``.
    """

    size: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def encode(self, blocks: Iterable[str]) -> Tokens:
        """Token ids of the text, one stream without special tokens but [UNK]."""

    def to_text(self) -> str:
        """What is needed to use a trained model again."""


class CharacterVocabulary:
    """One token per character; characters that are rarer than 1 in 100,000 are [UNK].

    >>> vocabulary = CharacterVocabulary(["To be  or not"])
    >>> vocabulary.encode(["Bee?"]).tolist()  # b, e, e, unknown, space
    [6, 7, 7, 1, 5]
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def __init__(self, blocks: Iterable[str]) -> None:
        counts = Counter[str]()
        for block in blocks:
            counts.update(_normalized(block))
        rarest = _RAREST * counts.total()
        self.characters = "".join(sorted(c for c, count in counts.items() if count >= rarest))
        self.size = len(SPECIAL_TOKENS) + len(self.characters)

    def encode(self, blocks: Iterable[str]) -> Tokens:
        """See ``Vocabulary``; blocks are joined by a space."""
        known = np.array([ord(c) for c in self.characters], dtype=np.uint32)
        encoded = [np.empty(0, dtype=np.int32)]
        for block in blocks:
            text = _normalized(block)
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            index = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            ids = np.where(known[index] == codes, index + len(SPECIAL_TOKENS), UNK)
            encoded.append(ids.astype(np.int32))
        return np.concatenate(encoded)

    def to_text(self) -> str:
        """The characters, in the order of their ids."""
        return self.characters


class SubwordVocabulary:
    """A WordPiece vocabulary of ``size`` tokens, trained on the text, the same every time.

    Sequences get [CLS] and [SEP]. ``blocks`` are read twice.
    """

    prefix: tuple[int, ...] = (CLS,)
    suffix: tuple[int, ...] = (SEP,)

    def __init__(self, blocks: Iterable[str], size: int) -> None:
        blocks = list(blocks)
        trainer: Any = BertWordPieceTokenizer(lowercase=True)
        characters = Counter[str]()
        for block in blocks:
            characters.update(trainer.normalize(block))
        # Among equally frequent pairs the trainer takes the one of lowest ids, and gives ids to
        # "##c" in the order of a randomly seeded hash map: give them in an order of our own.
        first = [*SPECIAL_TOKENS, *(f"##{c}" for c in sorted(characters) if _is_inside_words(c))]
        trainer.train_from_iterator(
            blocks,
            vocab_size=size,
            special_tokens=first,
            limit_alphabet=len(characters),
            show_progress=False,
        )
        vocabulary = trainer.get_vocab()
        self.size = len(vocabulary)
        if self.size > size:
            raise ValueError(
                f"Expected `--vocab` of at least {self.size} (characters need tokens of their "
                f"own), got {size}; ask for more, or 0 for a vocabulary of characters."
            )
        # built anew, so that only BERT's five special tokens are special in it
        self._tokenizer: Any = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)

    def encode(self, blocks: Iterable[str]) -> Tokens:
        """See ``Vocabulary``."""
        encoded = [np.empty(0, dtype=np.int32)]
        for block in blocks:
            lines = [line for line in block.splitlines() if line.strip()]
            batch = self._tokenizer.encode_batch(lines, add_special_tokens=False)
            encoded.extend(np.array(line.ids, dtype=np.int32) for line in batch)
        return np.concatenate(encoded)

    def to_text(self) -> str:
        """The tokenizer as JSON, for ``tokenizers.Tokenizer.from_str``."""
        return str(self._tokenizer.to_str())


def _is_inside_words(character: str) -> bool:
    """Whether BERT lets a word go on with it: punctuation and spaces are never inside."""
    category = unicodedata.category(character)[0]
    return character not in string.punctuation and category not in "PZC"


def _normalized(block: str) -> str:
    return " ".join(block.lower().split()) + " "
