"""The overview as a drawing in SVG: for paper, and for browsers that run no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from sparsitywatch.page.data import column
from sparsitywatch.series import describe

__all__ = ["overview_svg", "ticks"]

_WIDTH, _HEIGHT = 900, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 30, 22
#: More points than this are finer than print.
_MAX_POINTS = 300


@dataclass(frozen=True)
class _Panel:
    """What is drawn over the steps: series with a name and a colour of the page."""

    title: str
    lines: Sequence[tuple[str, str, str]]
    from_zero: bool = True


def overview_svg(data: dict[str, Any]) -> str:
    """The panels that a run has numbers for, below each other; empty if there is nothing to draw.

    Args:
        data: what ``page_data`` gave.
    """
    panels = (
        _Panel(
            "Turning sparse? Share of the in-scope weights",
            (
                (f"near_zero/{data['rule']}", "near zero", "red"),
                ("motion/dormant", "dormant", "blue"),
                ("forecast/near_zero_in_1", "forecast of near zero", "orange"),
            ),
        ),
        _Panel(
            "Essential sparsity, with its interval",
            (
                ("essential_sparsity/value", "essential sparsity", "green"),
                ("essential_sparsity/low", "", "light"),
                ("essential_sparsity/high", "", "light"),
            ),
        ),
        _Panel(
            f"Held-out {'score' if data['better'] == 'higher' else 'loss'}",
            (
                ("value/dense", "as it is", "blue"),
                ("value/all_removed", "without the in-scope weights", "grey"),
            ),
            from_zero=False,
        ),
    )
    drawn = [svg for panel in panels if (svg := _panel_svg(panel, data))]
    return "\n".join(f"<figure>{svg}</figure>" for svg in drawn)


def _panel_svg(panel: _Panel, data: dict[str, Any]) -> str:
    steps = np.array(data["steps"], dtype=float)
    lines = [(name, label, paint, column(data, name)) for name, label, paint in panel.lines
             if name in data["series"]]  # fmt: skip
    values = np.concatenate([y[np.isfinite(y)] for *_, y in lines]) if lines else np.empty(0)
    if not values.size:
        return ""
    low = min(0.0, float(values.min())) if panel.from_zero else float(values.min())
    high = float(values.max()) if values.max() > low else low + 1.0
    first, last = steps[0], steps[-1] if steps[-1] > steps[0] else steps[0] + 1.0

    def x(step: float | np.ndarray) -> Any:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)

    def y(value: float | np.ndarray) -> Any:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    unit = describe(lines[0][0])
    pieces = [f'<text x="0" y="14">{escape(_legend(panel.title, lines))}</text>']
    for tick in ticks(low, high, 4):
        pieces += [
            (
                f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
                f'y2="{y(tick):.1f}"/>'
            ),
            f'<text class="end" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}">{unit.shown(tick)}</text>',
        ]
    pieces += [
        f'<text class="middle" x="{x(tick):.1f}" y="{_HEIGHT - 6}">{tick:,.0f}</text>'
        for tick in ticks(first, last, 8)
    ]
    pieces += [_event_svg(event, x) for event in data["events"]]
    for _, _, paint, column_ in lines:
        path = _path(x(steps), y(column_))
        pieces.append(f'<path class="line" style="stroke:var(--{paint})" d="{path}"/>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title)}">'
        f"{''.join(pieces)}</svg>"
    )


def _legend(title: str, lines: Sequence[tuple[str, str, str, np.ndarray]]) -> str:
    """The title and what each line is, by its colour in words."""
    named = [f"{paint}: {label}" for _, label, paint, _ in lines if label]
    return f"{title} ({'; '.join(named)})" if len(named) > 1 else title


def _event_svg(event: dict[str, Any], x: Any) -> str:
    """A band where an event began, a line where it was seen, and its number."""
    top, bottom, seen = _TOP, _HEIGHT - _BOTTOM, x(event["seen"])
    width = max(x(event["high"]) - x(event["low"]), 1.0)
    return (
        f'<rect class="span" x="{x(event["low"]):.1f}" y="{top}" width="{width:.1f}" '
        f'height="{bottom - top}"/>'
        f'<line class="event" x1="{seen:.1f}" x2="{seen:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text class="middle" x="{seen:.1f}" y="{top - 3}">{event["number"]}</text>'
    )


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through the points; it ends where a value is missing."""
    known = np.isfinite(y)
    chosen = np.arange(len(x))
    if len(x) > _MAX_POINTS:
        chosen = np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int)
    pieces, is_open = [], False
    for i in chosen.tolist():
        if known[i]:
            pieces.append(f"{'L' if is_open else 'M'}{x[i]:.1f},{y[i]:.1f}")
        is_open = bool(known[i])
    return "".join(pieces)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, at most so many and one.

    >>> ticks(0.0, 0.41, 4), ticks(25.0, 2000.0, 8)[:2]
    ([0.0, 0.2, 0.4], [500.0, 1000.0])
    """
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    spacing = next(s * size for s in (1.0, 2.0, 5.0, 10.0) if (high - low) / (s * size) <= most)
    first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
    return [round(i * spacing, 12) for i in range(first, last + 1)]
