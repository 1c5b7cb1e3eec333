from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import vocabulary
from hypothesis import given
from hypothesis import strategies as st
from vocabulary import SPECIAL_TOKENS, CharacterVocabulary, SubwordVocabulary


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=4))
def test_characters_against_a_dictionary_and_a_loop(blocks):
    text = "".join(" ".join(block.lower().split()) + " " for block in blocks)
    ids = {character: 5 + i for i, character in enumerate(sorted(set(text)))}
    vocabulary_ = CharacterVocabulary(blocks)
    assert vocabulary_.size == 5 + len(ids)
    assert vocabulary_.encode(blocks).tolist() == [ids[character] for character in text]
    assert vocabulary_.to_text() == "".join(ids)


def test_characters_that_are_rarer_than_one_in_a_hundred_thousand_are_unknown():
    blocks = ["ab" * 199_998 + "éé" + "ü"]  # 2 and 1 of 400,000: below 4
    out = CharacterVocabulary([*blocks, "e" * 5])
    assert out.to_text() == "abe"
    assert Counter(out.encode(blocks).tolist())[1] == 3 + 1  # the space at the end is rare too


def test_characters_need_no_special_tokens_around_them():
    assert CharacterVocabulary(["a"]).prefix == CharacterVocabulary(["a"]).suffix == ()


@pytest.fixture(scope="module")
def text(text_file) -> str:
    return text_file.read_text(encoding="utf-8")


def test_subwords_are_berts(text):
    out = SubwordVocabulary([text], 500)
    assert out.size == 500
    tokenizer = json.loads(out.to_text())
    ids = tokenizer["model"]["vocab"]
    assert tuple(sorted(ids, key=ids.get)[:5]) == SPECIAL_TOKENS
    assert tokenizer["model"]["type"] == "WordPiece"
    assert (out.prefix, out.suffix) == ((ids["[CLS]"],), (ids["[SEP]"],))
    tokens = {i: token for token, i in ids.items()}
    encoded = [tokens[i] for i in out.encode(["The Statements\n\nTHE statements"]).tolist()]
    words = " ".join(encoded).replace(" ##", "").split()
    assert words == ["the", "statements", "the", "statements"]
    assert len(encoded) > 4  # in pieces


def test_longer_words_are_tokens_of_their_own_in_a_larger_vocabulary(text):
    small, large = (SubwordVocabulary([text], size) for size in (300, 2_000))
    assert len(large.encode([text])) < 0.7 * len(small.encode([text]))
    assert (large.encode([text]) >= 5).all()


@pytest.mark.slow
def test_subwords_are_the_same_in_every_process(text_file, text):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(vocabulary.__file__).parent)!r})\n"
        "from vocabulary import SubwordVocabulary\n"
        f"print(SubwordVocabulary([open({str(text_file)!r}, encoding='utf-8').read()], 2000)"
        ".to_text())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    here = SubwordVocabulary([text], 2_000).to_text()
    assert json.loads(there.stdout) == json.loads(here)


def test_too_few_subwords_for_the_characters_are_refused(text):
    with pytest.raises(ValueError, match=r"Expected `--vocab` of at least \d+ .*got 20"):
        SubwordVocabulary([text], 20)
