"""Text for the examples: where it comes from, and how it is split for training.

The default text is on every machine: Python's own documentation topics and the docstrings
of its library, about two million characters. They are read from the library's sources with
``ast``; nothing is imported, so the text depends on nothing but the Python installation.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import numpy.typing as npt

__all__ = ["Corpus", "python_documentation", "split", "text_blocks"]

#: Folders beside the library that are no part of it: installed packages, tests, programs.
_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
)
_TOPICS = "pydoc_data/topics.py"
_BLOCK_CHARACTERS = 1 << 20
#: Tokens per piece when only a fraction of the text is used.
_PIECE = 1024
#: The training text must be this many times the held-out text.
_MIN_TRAIN_RATIO = 4

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Corpus:
    """Token ids, split.

    Args:
        train: one long stream, int32, shape [T].
        held_out: sequences that are not in ``train``, int32, shape [N, L].
    """

    train: Tokens
    held_out: Tokens

    @property
    def digest(self) -> str:
        """Changes when any token of either part changes."""
        sha = hashlib.sha256(str(self.held_out.shape).encode())
        sha.update(self.train.tobytes())
        sha.update(self.held_out.tobytes())
        return sha.hexdigest()[:16]


def text_blocks(source: str | None) -> Iterator[str]:
    """The text of ``source`` in blocks of about a million characters, in a fixed order.

    Args:
        source: a text file, a folder (every file below it, hidden ones left out) or an
            fsspec URL of either, UTF-8, possibly compressed; None for Python's own
            documentation.

    Raises:
        ValueError: nothing is there, or a file is not UTF-8 text.
    """
    if source is None:
        yield from python_documentation()
        return
    filesystem, root = fsspec.core.url_to_fs(source)
    paths = sorted(filesystem.find(root)) if filesystem.isdir(root) else [root]
    visible = [p for p in paths if not _is_hidden(p[len(root) :])]
    if not visible or not filesystem.exists(root):
        raise ValueError(
            f"Expected `--text` to be a text file, a folder of text files or an fsspec URL, "
            f"got {source!r}, where no file is."
        )
    for path in visible:
        with filesystem.open(path, "rt", encoding="utf-8", compression="infer") as file:
            try:
                while lines := file.readlines(_BLOCK_CHARACTERS):
                    yield "".join(lines)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"Expected UTF-8 text under `--text`, got {path!r}, which is not ({error}); "
                    "move it out of the folder or convert it."
                ) from error


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def python_documentation(library: Path | None = None) -> list[str]:
    """Python's documentation topics, then every docstring of its library, each text once.

    Args:
        library: folder of the library's sources; by default this Python's.

    Raises:
        ValueError: the sources are not there, as in some stripped-down installations.
    """
    root = library or Path(sysconfig.get_paths()["stdlib"])
    paths = (p.relative_to(root) for p in root.rglob("*.py"))
    names = sorted(p.as_posix() for p in paths if not _SKIPPED & set(p.parts))
    texts: dict[str, None] = {}  # ordered, each text once
    with _quiet_parsing():
        for name in [_TOPICS, *names]:
            source = root / name
            if not source.is_file():
                raise ValueError(
                    f"Expected Python's library sources, got no {name} in {root}. Pass a text "
                    "of your own with `--text`."
                )
            tree = ast.parse(source.read_bytes())
            texts |= dict.fromkeys(_topics(tree) if name == _TOPICS else [])
            texts |= dict.fromkeys(_docstrings(tree))
    return list(texts)


@contextmanager
def _quiet_parsing() -> Iterator[None]:
    """Without the collector (it walks the growing trees again and again: 8 times slower)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in the library
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if was_enabled:
            gc.enable()


def _topics(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return [topics[key] for key in sorted(topics)]
    return []


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    # definitions are statements: looking into expressions would only cost time
    for name in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, name, None)
        if isinstance(children, list):
            for child in children:
                yield from _docstrings(child)


def split(tokens: Tokens, num_held_out: int, length: int, fraction: float = 1.0) -> Corpus:
    """Set held-out sequences aside, evenly spread over the text, and keep the rest.

    The held-out sequences depend on nothing but the text, so runs with other seeds or
    another ``fraction`` are compared on the same ones.

    Args:
        tokens: token ids of the whole text, shape [T].
        num_held_out: number of held-out sequences, N.
        length: their length in tokens, L.
        fraction: share of the training text to keep, in (0, 1]: pieces of 1,024 tokens,
            drawn at random once and for all; a smaller share is a subset of a larger one.

    Raises:
        ValueError: the text is too short, or ``fraction`` is out of range.

    >>> corpus = split(np.arange(100, dtype=np.int32), num_held_out=2, length=5)
    >>> corpus.held_out[:, 0].tolist(), len(corpus.train)
    ([0, 95], 90)
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"Expected `--fraction` in (0, 1], got {fraction}.")
    chunks = np.linspace(0, len(tokens) // length - 1, num_held_out).astype(np.int64)
    positions = chunks[:, None] * length + np.arange(length)
    rest = np.delete(tokens, positions.ravel()) if len(tokens) > positions.size else tokens[:0]
    kept = rest if fraction == 1.0 else _subset(rest, fraction)
    if len(kept) < _MIN_TRAIN_RATIO * positions.size:
        raise ValueError(
            f"Expected a text of at least {(_MIN_TRAIN_RATIO + 1) * positions.size:,} tokens for "
            f"{num_held_out} held-out sequences of {length}, got {len(tokens):,} of which "
            f"{len(kept):,} are left to train on; use a longer text or fewer held-out sequences."
        )
    return Corpus(train=kept, held_out=tokens[positions])


def _subset(tokens: Tokens, fraction: float) -> Tokens:
    pieces = np.array_split(tokens, max(1, round(len(tokens) / _PIECE)))
    order = np.random.default_rng(0).permutation(len(pieces))
    chosen = np.sort(order[: max(1, round(fraction * len(pieces)))])
    return np.concatenate([pieces[i] for i in chosen])
