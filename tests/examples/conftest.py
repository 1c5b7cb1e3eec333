"""The examples are imported from their folders, and run as scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "paper")]

#: A model and a run so small that a snapshot takes longer than a step.
TINY = [
    "--layers", "1", "--hidden", "16", "--heads", "2", "--ffn", "64", "--sequence", "16",
    "--batch", "8", "--held-out", "16", "--warmup", "10", "--dropout", "0.1", "--lr", "0.01",
    "--decay", "3", "--save-every", "8",
]  # fmt: skip


@pytest.fixture(scope="session")
def script() -> str:
    """Path of the example."""
    return str(EXAMPLES / "pretrain_bert.py")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty thousand characters of English."""
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    text = "\n".join(topics[name] for name in sorted(topics))
    path.write_text(text[:60_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(text_file: Path) -> list[str]:
    """Arguments of a tiny run on that text, without steps and logdir."""
    return [*TINY, "--text", str(text_file)]
