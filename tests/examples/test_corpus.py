from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import corpus
import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def _library(root: Path) -> Path:
    files = {
        "pydoc_data/topics.py": 'topics = {"b": "Topic b", "a": "Topic a"}\n',
        "zoo.py": '"""Zoo."""\nraise RuntimeError("imported")\n',
        "alpha.py": (
            "import nowhere\n"
            "class A:\n"
            '    """Class A."""\n'
            "    if nowhere:\n"
            "        def f(self):\n"
            '            """Method f."""\n'
            "            def g():\n"
            '                """Inner g, `\\d`."""\n'
            "    else:\n"
            "        async def f(self):\n"
            '            """Method f."""\n'
        ),
        "test/test_alpha.py": '"""A test."""\n',
        "pkg/tests/test_it.py": '"""A test."""\n',
        "site-packages/other.py": '"""Another package."""\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_topics_then_docstrings_once_each_in_a_fixed_order_without_importing(tmp_path):
    assert corpus.python_documentation(_library(tmp_path)) == [
        "Topic a", "Topic b", "Class A.", "Method f.", "Inner g, `\\d`.", "Zoo.",
    ]  # fmt: skip


def test_a_library_without_sources_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"no pydoc_data/topics\.py .*--text"):
        corpus.python_documentation(tmp_path)


@pytest.mark.slow
def test_the_default_text_is_the_same_in_every_process_and_imports_nothing():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(corpus.__file__).parent)!r})\n"
        "import corpus, hashlib\n"
        "before = set(sys.modules)\n"
        "text = chr(0).join(corpus.text_blocks(None))\n"
        "print(len(text), hashlib.sha256(text.encode()).hexdigest())\n"
        "print([m for m in set(sys.modules) - before if not m.startswith('_sysconfigdata')])"
    )
    answers = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        answers.add(done.stdout)
    (answer,) = answers
    first, imported = answer.splitlines()
    assert 1_000_000 < int(first.split()[0]) < 5_000_000
    assert imported == "[]"


# ------------------------------------------------------------------ other sources


def _text(source: str) -> str:
    return "".join(corpus.text_blocks(source))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("three\n")
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / ".hidden").write_bytes(b"\xff")
    return tmp_path


def test_a_file_a_folder_and_their_urls(folder):
    assert _text(str(folder / "b.txt")) == "two\n"
    assert _text((folder / "b.txt").as_uri()) == "two\n"
    assert _text(str(folder)) == "one\ntwo\nthree\n"
    assert _text(folder.as_uri()) == "one\ntwo\nthree\n"


def test_an_fsspec_url_of_something_that_is_no_disk():
    with fsspec.open("memory://corpus-test/x.txt", "w", encoding="utf-8") as file:
        file.write("from memory")
    assert _text("memory://corpus-test/x.txt") == "from memory"
    assert _text("memory://corpus-test") == "from memory"


def test_a_long_file_comes_in_blocks_of_whole_lines(tmp_path):
    line = "x" * 99 + "\n"
    (tmp_path / "long.txt").write_text(line * 25_000)
    blocks = list(corpus.text_blocks(str(tmp_path / "long.txt")))
    assert len(blocks) == 3
    assert all(block.endswith("\n") for block in blocks)
    assert "".join(blocks) == line * 25_000


@pytest.mark.parametrize("name", ["", "nowhere.txt", "empty"])
def test_nothing_there_is_refused_by_name(tmp_path, name):
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / (name or "empty"))
    with pytest.raises(ValueError, match=r"Expected `--text` to be .*where no file is"):
        list(corpus.text_blocks(source))


def test_what_is_no_utf8_is_refused_by_name(tmp_path):
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"Expected UTF-8 .*picture\.txt"):
        list(corpus.text_blocks(str(tmp_path)))


# ------------------------------------------------------------------ splitting


@given(
    num_tokens=st.integers(200, 3_000),
    num_held_out=st.integers(1, 8),
    length=st.integers(2, 5),
    fraction=st.sampled_from([1.0, 0.6]),
)
def test_held_out_and_training_text_are_disjoint(num_tokens, num_held_out, length, fraction):
    tokens = np.arange(num_tokens, dtype=np.int32)
    out = corpus.split(tokens, num_held_out, length, fraction)
    assert out.held_out.shape == (num_held_out, length)
    assert (np.diff(out.held_out, axis=1) == 1).all()  # runs of the text
    held_out, train = set(out.held_out.ravel().tolist()), set(out.train.tolist())
    assert len(held_out) == num_held_out * length
    assert not held_out & train
    assert (np.diff(out.train) > 0).all()  # the order of the text
    if fraction == 1.0:
        assert held_out | train == set(range(num_tokens))


def test_fractions_are_nested_have_their_size_and_keep_the_held_out_text():
    tokens = np.arange(1_000_000, dtype=np.int32)
    whole = corpus.split(tokens, 10, 32)
    larger = set(whole.train.tolist())
    for fraction in (0.9, 0.8, 0.7, 0.6):
        part = corpus.split(tokens, 10, 32, fraction)
        kept = set(part.train.tolist())
        assert kept < larger
        assert len(kept) == pytest.approx(fraction * len(whole.train), rel=0.01)
        assert (part.held_out == whole.held_out).all()
        assert part.digest != whole.digest
        larger = kept


def test_the_digest_is_of_every_token():
    tokens = np.arange(500, dtype=np.int32)
    digests = {corpus.split(tokens, 2, 5).digest, corpus.split(tokens, 5, 2).digest}
    for position in (0, 250, 499):  # held out, training, held out
        changed = tokens.copy()
        changed[position] = 7_000
        digests.add(corpus.split(changed, 2, 5).digest)
    assert len(digests) == 5
    assert corpus.split(tokens, 2, 5).digest in digests


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"Expected `--fraction` in \(0, 1\]"):
        corpus.split(np.arange(500, dtype=np.int32), 2, 5, fraction)


@pytest.mark.parametrize("num_tokens", [0, 9, 49])
def test_a_text_that_is_too_short_is_refused_with_the_length_needed(num_tokens):
    with pytest.raises(ValueError, match=f"at least 50 tokens .* got {num_tokens}"):
        corpus.split(np.arange(num_tokens, dtype=np.int32), 2, 5)
    assert len(corpus.split(np.arange(50, dtype=np.int32), 2, 5).train) == 40
