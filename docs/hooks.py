"""What MkDocs is told beside mkdocs.yml: links out of docs/, docstrings, names for readers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

DOCS = Path(__file__).parent
#: A link or picture that leads out of docs/: into the repository, which the site does not hold.
OUTSIDE = re.compile(r"!?\[(?P<text>[^\]]*)\]\((?P<target>(?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")
#: A session of Python, up to the next empty line.
SESSION = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*| *\n(?P=indent)>>> .*)*", re.M)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn a link into the repository into words; a file that is not there stays, as a fault."""
    folder = (DOCS / page.file.src_uri).parent

    def words(link: re.Match[str]) -> str:
        target = (folder / link["target"]).resolve()
        is_there = target.exists() and DOCS not in (target, *target.parents)
        return f"`{target.relative_to(DOCS.parent)}`" if is_there else link[0]

    return OUTSIDE.sub(words, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Name the theme's search for those who hear it; the empty corner of a table is no heading."""
    output = output.replace('role="dialog"', 'role="dialog" aria-label="Search"')
    return re.sub(r"<th( [^>]*)?></th>", r"<td\1></td>", output)


def as_markdown(docstring: str) -> str:
    """Sessions of Python fenced, no ``::`` before code, and shapes [S][K] are no links."""
    text = re.sub(r"^ *::\n|(?<=[^\s:]):(?=:\n)", "", docstring, flags=re.M).replace("][", r"]\[")

    def fenced(session: re.Match[str]) -> str:
        indent = session["indent"]
        return f"{indent}```pycon\n{session[0]}\n{indent}```"

    return SESSION.sub(fenced, text)


class Docstrings(griffe.Extension):
    """Makes Markdown of docstrings before they are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one function, class or module."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
