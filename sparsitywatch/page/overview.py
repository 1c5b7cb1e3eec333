"""The overview as a drawing in SVG: for paper, and for browsers that run no script."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from sparsitywatch.page.data import column
from sparsitywatch.series import describe

_WIDTH, _HEIGHT = 900, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 876, 30, 148
#: More points than this are finer than print.
_MAX_POINTS = 300
#: Title, whether it begins at zero, and its lines: series, name and colour of the page.
_PANELS = (
    ("Turning sparse? Share of the in-scope weights", True, (
        ("near_zero/{rule}", "near zero", "red"),
        ("motion/dormant", "dormant", "blue"),
        ("forecast/near_zero_in_1", "forecast of near zero", "orange"),
    )),
    ("Essential sparsity, with its interval", True, (
        ("essential_sparsity/value", "essential sparsity", "green"),
        ("essential_sparsity/low", "", "light"),
        ("essential_sparsity/high", "", "light"),
    )),
    ("Held-out {kind}", False, (
        ("value/dense", "as it is", "blue"),
        ("value/all_removed", "without the in-scope weights", "grey"),
    )),
)  # fmt: skip


def overview_svg(data: dict[str, Any]) -> str:
    """The panels that a run has numbers for, of ``page_data``; empty if there is none."""
    names = {"rule": data["rule"], "kind": "score" if data["better"] == "higher" else "loss"}
    drawn = []
    for title, from_zero, lines in _PANELS:
        known = [
            (column(data, series.format(**names)), label, colour)
            for series, label, colour in lines
            if series.format(**names) in data["series"]
        ]
        unit = describe(lines[0][0].format(**names))
        if any(np.isfinite(values).any() for values, *_ in known):
            drawn.append(_panel(title.format(**names), known, unit, data, from_zero=from_zero))
    return "\n".join(f"<figure>{svg}</figure>" for svg in drawn)


def _panel(
    title: str, lines: list[Any], unit: Any, data: dict[str, Any], *, from_zero: bool
) -> str:
    steps = np.array(data["steps"], dtype=float)
    values = np.concatenate([line[np.isfinite(line)] for line, *_ in lines])
    low = min(0.0, values.min()) if from_zero else values.min()
    high = values.max() if values.max() > low else low + 1.0
    first, last = steps[0], max(steps[-1], steps[0] + 1.0)

    def x(step: Any) -> Any:
        return _LEFT + (_RIGHT - _LEFT) * (step - first) / (last - first)

    def y(value: Any) -> Any:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    legend = "; ".join(f"{colour}: {label}" for _, label, colour in lines if label)
    pieces = [f'<text x="0" y="14">{escape(title)}{f" ({legend})" if ";" in legend else ""}</text>']
    for tick in ticks(low, high, 4):
        pieces.append(_line("rule", _LEFT, _RIGHT, y(tick), y(tick)))
        pieces.append(_text("end", _LEFT - 6, y(tick) + 4, unit.shown(tick)))
    pieces += [_text("middle", x(t), _HEIGHT - 6, f"{t:,.0f}") for t in ticks(first, last, 8)]
    for event in data["events"]:  # a band where it began, a line where it was seen, its number
        begun, seen = x(event["low"]), x(event["seen"])
        pieces.append(
            f'<rect class="span" x="{begun:.1f}" y="{_TOP}" height="{_BOTTOM - _TOP}" '
            f'width="{max(x(event["high"]) - begun, 1.0):.1f}"/>'
        )
        pieces.append(_line("event", seen, seen, _TOP, _BOTTOM))
        pieces.append(_text("middle", seen, _TOP - 3, event["number"]))
    for line, _, colour in lines:
        path = _path(x(steps), y(line))
        pieces.append(f'<path class="line" style="stroke:var(--{colour})" d="{path}"/>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(pieces)}</svg>"
    )


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(anchor: str, x: float, y: float, text: object) -> str:
    return f'<text class="{anchor}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through the points; it ends where a value is missing."""
    pieces, mark = [], "M"
    for i in np.linspace(0, len(x) - 1, min(len(x), _MAX_POINTS)).round().astype(int):
        if np.isfinite(y[i]):
            pieces.append(f"{mark}{x[i]:.1f},{y[i]:.1f}")
        mark = "L" if np.isfinite(y[i]) else "M"
    return "".join(pieces)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, at most so many and one."""
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    spacing = next(s * size for s in (1.0, 2.0, 5.0, 10.0) if (high - low) / (s * size) <= most)
    first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
    return [round(i * spacing, 12) for i in range(first, last + 1)]
