"""A page of HTML as tests see it: its elements, and the numbers that its scripts draw."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np

VOID = frozenset(("br", "img", "link", "meta", "wbr", "hr", "input"))


class Element:
    def __init__(self, tag: str, attributes: dict[str, str | None], parent: Element | None):
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Element | str] = []

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    def get(self, name: str) -> str | None:
        return self.attributes.get(name)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, tag: str, **wanted: str) -> list[Element]:
        """Elements of a tag whose attributes are so; a trailing underscore is cut."""
        return [
            e
            for e in self.walk()
            if e.tag == tag
            and all((e.get(k.rstrip("_")) or "").split() == v.split() for k, v in wanted.items())
        ]

    def one(self, tag: str, **wanted: str) -> Element:
        (found,) = self.all(tag, **wanted)
        return found

    def by_id(self, id_: str) -> Element:
        (found,) = (e for e in self.walk() if e.get("id") == id_)
        return found

    def text(self) -> str:
        """What is read, white space folded; no-break spaces as plain ones."""
        text = "".join(c if isinstance(c, str) else c.text() for c in self.children)
        return re.sub(r"\s+", " ", text.replace("\xa0", " "))


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {}, None)
        self.open = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        element = Element(tag, dict(attrs), self.open)
        self.open.children.append(element)
        if tag not in VOID:
            self.open = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.tag == tag, f"</{tag}> closes <{self.open.tag}>"
        self.open = self.open.parent

    def handle_data(self, data: str) -> None:
        self.open.children.append(data)


def parse(page: str) -> Element:
    """The elements of a page, which must be closed as they were opened."""
    builder = _Builder()
    builder.feed(page)
    builder.close()
    assert builder.open is builder.root, f"<{builder.open.tag}> is not closed"
    return builder.root


def inside_of(page: str) -> dict:
    """What the scripts of a page draw of its first run, with sums for differences."""
    packed = parse(page).by_id("data").text()
    inside = json.loads(zlib.decompress(base64.b64decode(packed)))[0]
    maps, magnitudes = inside["details"]["maps"], inside["details"]["magnitudes"]
    for kind, rows in maps["rows"].items():
        maps["rows"][kind] = np.cumsum(rows, axis=-1)
    if magnitudes is not None:
        magnitudes["below"] = np.cumsum(magnitudes["below"], axis=-1)
        magnitudes["all"] = np.cumsum(magnitudes["all"], axis=-1)
    return inside
