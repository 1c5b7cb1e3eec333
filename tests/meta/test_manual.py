"""The manual: every page is in its menu, every public name in its reference."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import sparsitywatch as sw

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
#: Beside reports, and what comes from docstrings and tables of the package.
MANUAL = {page for page in PAGES - {"api.md", "tags.md"} if not page.startswith("reports/")}
MENU = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text().partition("nav:")[2], re.M)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("griffe")  # of the group docs
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hooks", module)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_menu_once() -> None:
    assert sorted(MENU) == sorted(PAGES)


def test_the_manual_is_short() -> None:
    assert sum(len((DOCS / page).read_text().split()) for page in MANUAL) <= 18_000


def test_readme_says_what_its_picture_says() -> None:
    """``make pictures`` writes both anew from the page of the demo's run."""
    told = (DOCS / "report.txt").read_text().strip()
    (alt,) = re.findall(r"!\[(.*)\]\(docs/report\.png\)", (ROOT / "README.md").read_text())
    assert alt in told
    assert alt.startswith("Near-zero weights")


def test_every_page_of_the_manual_has_an_example() -> None:
    for page in MANUAL - {"index.md"}:
        assert re.search(r"^(```|    \S)", (DOCS / page).read_text(), re.M), page


def test_every_public_name_is_in_the_reference() -> None:
    told = set(re.findall(r"^::: sparsitywatch\.([\w.]+)", (DOCS / "api.md").read_text(), re.M))
    modules = {name for name in sw.__all__ if isinstance(getattr(sw, name), ModuleType)}
    errors = {name for name in sw.__all__ if name.endswith("Error")}  # a page of their own
    assert set(sw.__all__) - modules - errors - {"__version__"} <= told
    rooms = {name.partition(".")[0] for name in told}
    assert modules - {"errors"} <= rooms


def test_every_error_is_on_its_page_with_its_bases() -> None:
    told = {}
    for line in (DOCS / "errors.md").read_text().splitlines():
        if found := re.match(r"\| `(?:errors\.)?(\w+Error)` \| (?:`(\w+)`)? ?\|", line):
            told[found[1]] = found[2]
    own = {
        name: kind for name, kind in vars(sw.errors).items()
        if isinstance(kind, type) and issubclass(kind, sw.errors.SparsityWatchError)
    }  # fmt: skip
    assert told.keys() == own.keys()
    for name, kind in own.items():
        bases = {base.__name__ for base in kind.__bases__} - {"SparsityWatchError", "Exception"}
        assert {told[name]} - {None} == bases, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("link", "status"), [("other.md#place", 0), ("nowhere.md", 1), ("other.md#nowhere", 1)]
)
def test_make_docs_ends_at_a_link_to_nowhere(tmp_path: Path, link: str, status: int) -> None:
    """With the options of Makefile and what mkdocs.yml says of links, on two pages."""
    pytest.importorskip("mkdocs")  # of the group docs
    command = re.search(r"-m (mkdocs build .*) \$\(ARGS\)", (ROOT / "Makefile").read_text())[1]
    rules = re.search(r"^validation:\n(?: .*\n)+", (ROOT / "mkdocs.yml").read_text(), re.M)[0]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\ntheme: mkdocs\n{rules}")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n[there]({link})\n")
    (tmp_path / "docs" / "other.md").write_text("# B\n\n## Place\n")
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr


def test_links_into_the_repository_are_words_and_broken_ones_stay(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="costs.md"))
    text = (
        "[figures](../benchmarks/README.md#x), [gone](../gone.md), [costs](costs.md), "
        "[a](../docs/costs.md)"
    )
    assert hooks.on_page_markdown(text, page=page) == (
        "`benchmarks/README.md`, [gone](../gone.md), [costs](costs.md), [a](../docs/costs.md)"
    )


def test_the_search_has_a_name_and_an_empty_corner_is_no_heading(hooks: ModuleType) -> None:
    page = '<div role="dialog"><th></th><th style="text-align: right;"></th><th>a</th></div>'
    assert hooks.on_post_page(page, page=None, config=None) == (
        '<div role="dialog" aria-label="Search"><td></td><td style="text-align: right;"></td>'
        "<th>a</th></div>"
    )


def test_docstrings_become_markdown(hooks: ModuleType) -> None:
    docstring = "Of shape [S][K]::\n\n    code\n\n::\n\n    >>> 1 + 1\n    2\n\nThe end: no code."
    assert hooks.as_markdown(docstring) == (
        "Of shape [S]\\[K]:\n\n    code\n\n\n    ```pycon\n    >>> 1 + 1\n    2\n    ```\n\n"
        "The end: no code."
    )
