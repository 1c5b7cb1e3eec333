"""What reads the prose of README and the manual: what a sentence is, which are passive."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

PAGE = """\
# A heading is none

The first one ends here. `x = 1`
runs, as [Jaiswal et al. 2023](https://a.b/c_d) say:

    no = sentence.

```python
none = "It is said here."
```

- **Bold.** An item has one, too.
- a label

| a cell | what it says |
|---|---|
| `x` | It is short. The next is *not*. |
| y | is no sentence |
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    pytest.importorskip("proselint")  # of the group dev
    spec = importlib.util.spec_from_file_location("prose_tool", ROOT / "docs" / "prose.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_sentences_are_found_with_their_lines(tool: ModuleType) -> None:
    assert [(one.line, one.text, one.num_words) for one in tool.sentences(tool.prose(PAGE))] == [
        (3, "The first one ends here.", 5),
        (3, "Code runs, as Jaiswal et al. 2023 say:", 8),
        (12, "An item has one, too.", 5),
        (17, "It is short.", 3),
        (17, "The next is not.", 4),
    ]


@pytest.mark.parametrize(
    ("text", "is_passive"),
    [
        ("Nothing in them is executed.", True),
        ("What that leaves out is still counted.", True),
        ("Weights that aren't\nlisted may be\nfreely chosen.", True),
        ("It gets lost, as it has been said.", True),
        ("The loss is no longer shown to you.", True),
        ("A watch counts what it has skipped.", False),
        ("They need it, and it is indeed red.", False),
        ("The seed is a hundred.", False),
        ("It is what you used before.", False),
        ("The model in training is unchanged; see below.", True),
    ],
)
def test_passive_ones_are_told(tool: ModuleType, text: str, is_passive: bool) -> None:
    (one,) = tool.sentences(tool.prose(text))
    assert one.is_passive is is_passive


def test_long_and_passive_prose_and_bad_words_are_faults(tool: ModuleType) -> None:
    good = tool.prose("A watch counts them. It tells you what it left out.\n" * 9)
    assert tool.wrong({"a.md": good}) == []
    long = tool.prose(" ".join(["word"] * 19) + ".")
    assert tool.wrong({"a.md": long}) == ["Expected sentences of at most 18 words, got 19.0."]
    passive = tool.prose("It is said so. It says so. It says more. It says it. It says no. " * 2)
    assert tool.wrong({"a.md": passive}) == ["Expected at most 12% passive sentences, got 20.0%."]
    assert tool.wrong({"a.md": good + "\n" + tool.prose("\nIt stays so for ever.")}) == [
        "a.md:11: 'for ever' is archaic."
    ]


def test_readme_and_the_manual_are_read(tool: ModuleType) -> None:
    pages = {page.name for page in tool.manual()}
    written = {page.name for page in (ROOT / "docs").glob("*.md")} - {"api.md", "tags.md"}
    assert pages == {"README.md", *written}
