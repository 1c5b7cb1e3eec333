"""A page of HTML as tests see it: elements, tables, and drawings read back into numbers."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
from PIL import Image

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


def number(cell: Element) -> float:
    """The exact number in a cell: NaN if it says that nothing was measured."""
    found = cell.all("data")
    if not found:
        assert cell.one("span", class_="none").text() == "–"
        return float("nan")
    (data,) = found
    return float(data["value"])


def shown(text: str) -> float:
    """What a shown number says, in the unit of the record: 36.3 % is 0.363."""
    text = text.replace(",", "").strip()
    factor = {"%": 0.01, "s": 1.0, "min": 60.0, "h": 3600.0}
    match = re.fullmatch(r"(-?[\d.]+(?:e[+-]\d+)?)(?: (%|s|min|h))?", text)
    assert match, text
    return float(match[1]) * factor.get(match[2], 1.0)


def table_of(element: Element) -> tuple[list[str], list[list[Element]]]:
    """Names of the columns as the records call them, and the cells of each row."""
    (table,) = element.all("table")
    names = [th["data-name"] for th in table.one("thead").all("th")]
    rows = []
    for row in table.one("tbody").all("tr"):
        cells = [c for c in row.children if isinstance(c, Element)]
        assert len(cells) == len(names)
        rows.append(cells)
    return names, rows


# ------------------------------------------------------------------ drawings


class Drawing:
    """An SVG whose coordinates are read off its own tick labels, as a person would."""

    def __init__(self, svg: Element, key: str) -> None:
        self.svg, self.key = svg, key
        self.x = self._axis("xtick", 0)
        self.y = self._axis("ytick", 1)

    def group(self, name: str) -> Element:
        return self.svg.by_id(f"{self.key}-{name}")

    def groups(self, start: str) -> list[Element]:
        return [
            e
            for e in self.svg.all("g")
            if re.fullmatch(rf"{re.escape(self.key)}-{start}", e.get("id") or "")
        ]

    def points(self, name: str) -> np.ndarray:
        """Corners of the lines in a group, in units of the axes: float [points, 2]."""
        found = [
            self._points_of(path["d"])
            for path in self.group(name).all("path")
            if path.parent.tag != "defs"
        ]
        return self._scaled(np.concatenate(found))

    def markers(self, name: str) -> np.ndarray:
        """Where the markers of a group stand: float [markers, 2]."""
        uses = self.group(name).all("use")
        return self._scaled(np.array([(float(u["x"]), float(u["y"])) for u in uses]))

    def _scaled(self, points: np.ndarray) -> np.ndarray:
        return np.stack([np.polyval(self.x, points[:, 0]), np.polyval(self.y, points[:, 1])], 1)

    @staticmethod
    def _points_of(path: str) -> np.ndarray:
        numbers = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)
        return np.array([(float(x), float(y)) for x, y in numbers])

    def _axis(self, name: str, index: int) -> np.ndarray:
        """A straight line through the ticks, from points of the drawing to units of the axis."""
        places, values = [], []
        for tick in self.groups(rf"{name}_\d+"):
            text = tick.all("text")[-1].text().strip()
            use = [u for u in tick.all("use") if "x" in u.attributes]
            if not re.fullmatch(r"[−-]?[\d.,]+(e-?\d+)?( %)?", text) or not use:
                return np.array([1.0, 0.0])  # names of tensors
            places.append(float(use[0]["xy"[index]]))
            values.append(shown(text.replace("−", "-")))
        if len(places) < 2:
            return np.array([1.0, 0.0])
        line = np.polyfit(places, values, 1)
        spread = max(values) - min(values)
        assert np.allclose(np.polyval(line, places), values, atol=2e-3 * spread)
        return line

    def tick_labels(self, name: str) -> list[str]:
        return [t.all("text")[-1].text().strip() for t in self.groups(rf"{name}_\d+")]

    def pixels(self) -> np.ndarray:
        """Colours of the embedded picture, in [0, 1]: float [rows, columns, 4]."""
        (image,) = self.svg.all("image")
        kind, _, data = image["xlink:href"].partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
        return np.asarray(picture) / 255.0


def drawing_of(page: Element, chart: str, paper: str = "wide") -> Drawing:
    return Drawing(page.by_id(chart).one("div", class_=paper).one("svg"), f"{chart}-{paper}")
