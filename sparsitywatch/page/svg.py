"""A figure as SVG inside the page: its colours, its font, what it says to who cannot see it."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from sparsitywatch.page.data import printable
from sparsitywatch.plots.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    styled,
)

__all__ = ["COLOURS", "Strip", "inline_svg"]

#: Colours of the drawings, and the variables of the page that they become.
COLOURS = {
    colour.lower(): name
    for colour, name in (
        (BLACK, "ink"), (PAPER, "paper"), (BLUE, "blue"), (GREEN, "green"), (ORANGE, "orange"),
        (PURPLE, "purple"), (RED, "red"), (SKY, "sky"), (GREY, "grey"), (LIGHT, "light"),
    )
}  # fmt: skip
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOUR = re.compile("|".join(COLOURS))  # matplotlib writes colours in lower case
_FONT = re.compile(r"(font: [^;'\"]*?\d+(?:\.\d+)?px)[^;]*")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


@dataclass(frozen=True)
class Strip:
    """What is shown while the pointer is over a part of a chart.

    Args:
        left, right: in units of the horizontal axis.
        text: what is told.
    """

    left: float
    right: float
    text: str


@styled
def inline_svg(
    figure: Figure,
    key: str,
    title: str,
    description: str,
    strips: Sequence[Strip] = (),
    marks: Sequence[str] = (),
) -> Markup:
    """A figure as an SVG element of a page.

    Args:
        figure: drawn in the style of the page, with one set of axes.
        key: starts every id in it; no other drawing of the page may have it.
        title, description: what a screen reader says.
        strips: what is told while the pointer is over a part of the axes.
        marks: what is told of each event that is marked, in their order.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 our own drawing
    _drop(root)
    for element in root.iter():
        _adapt(element, key)
    _name(root, key, title, description)
    _add_strips(root, figure, strips)
    _link_marks(root, key, marks)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 serialised, so escaped


def _drop(root: ET.Element) -> None:
    """Take out what belongs to a file, and a style sheet that would rule the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)


def _adapt(element: ET.Element, key: str) -> None:
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set(name, f"{key}-{value}")
        elif name == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.set(name, f"#{key}-{value[1:]}")
        elif name in ("style", "clip-path", "fill", "stroke"):
            value = _REFERENCE.sub(rf"url(#{key}-\1)", value)
            value = _COLOUR.sub(lambda match: f"var(--{COLOURS[match[0]]})", value)
            element.set(name, _FONT.sub(r"\1 var(--font)", value))


def _name(root: ET.Element, key: str, title: str, description: str) -> None:
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)  # the page says how wide
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{key}-{tag}"})
        element.text = printable(text)
        root.insert(position, element)


def _add_strips(root: ET.Element, figure: Figure, strips: Sequence[Strip]) -> None:
    if not strips:
        return
    axes: Any = figure.axes[0]
    box = axes.get_window_extent()
    height = figure.get_figheight() * 72.0
    to_points = 72.0 / figure.dpi
    group = ET.Element(f"{{{_SVG}}}g", {"class": "strips"})
    for strip in strips:
        ends = axes.transData.transform([(strip.left, 0.0), (strip.right, 0.0)])[:, 0] * to_points
        place = {
            "x": ends[0],
            "y": height - box.y1 * to_points,
            "width": ends[1] - ends[0],
            "height": box.height * to_points,
        }
        attributes = {name: f"{x:.2f}" for name, x in place.items()}
        rect = ET.SubElement(group, f"{{{_SVG}}}rect", attributes)
        ET.SubElement(rect, f"{{{_SVG}}}title").text = printable(strip.text)
    root.append(group)


def _link_marks(root: ET.Element, key: str, marks: Sequence[str]) -> None:
    """Each mark of an event becomes a link to it, above the strips."""
    parents = {child: parent for parent in root.iter() for child in parent}
    found = {
        element.get("id", ""): element
        for element in root.iter(f"{{{_SVG}}}g")
        if element.get("id", "").startswith(f"{key}-mark-")
    }
    for number, text in enumerate(marks, start=1):
        mark = found.get(f"{key}-mark-{number}")
        if mark is None:
            continue
        parents[mark].remove(mark)
        # for the pointer: a picture has nothing inside for who goes from link to link
        target = {f"{{{_XLINK}}}href": f"#event-{number}", "tabindex": "-1"}
        link = ET.SubElement(root, f"{{{_SVG}}}a", target)
        ET.SubElement(link, f"{{{_SVG}}}title").text = printable(text)
        link.append(mark)
