"""From a run to its page as one file: no network, no server, and something to read without script.

The same log gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import time
import unicodedata
import zlib
from functools import partial
from html import escape
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsitywatch.analysis.run import Run as _Run
from sparsitywatch.errors import ConfigurationError, SparsityWatchError
from sparsitywatch.page.data import column, details_of, page_data, summary_of
from sparsitywatch.pipeline.rundir import log_of, logs_below, place
from sparsitywatch.records.run import __version__
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import Series, describe
from sparsitywatch.sinks.jsonl import JsonlReader, read_manifest, read_spectrum, replace_file

if TYPE_CHECKING:  # of an extra
    from matplotlib.figure import Figure

#: The modules of the page in an order in which each comes after those that it imports.
_MODULES = ("format", "data", "tensors", "charts", "view", "main")
#: Level of zlib; the largest saves a hundredth more, and takes three times as long.
_PACKING = 7
_FRAME_HEIGHT = 900
#: Who gives a folder that is no run is told of so many in it, of so many folders.
_FEW_RUNS, _MOST_FOLDERS = 8, 1000
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_NOT_ALLOWED = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")


def render(*runs: _Run) -> str:
    """The page of runs, also of one without a snapshot: one HTML document, to write in UTF-8."""
    found = [_inside(run, is_alone=len(runs) == 1) for run in runs]
    packed = zlib.compress(as_json(found), _PACKING)
    static = "".join(_static(*pair) for pair in zip(runs, found, strict=True))
    title = found[0]["name"] if len(runs) == 1 else f"{len(runs)} runs"
    scripts = asset("vendor/uPlot.iife.min.js"), script("file")
    digests = (hashlib.sha256(text.encode()).digest() for text in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
    body = f"""\
<div id="app"></div>
<div class="static">
{static}
<noscript><p>Charts with a cursor, every tensor and all the rest need JavaScript.</p></noscript>
</div>
<script type="text/plain" id="data">{base64.b64encode(packed).decode()}</script>
<script>{scripts[0]}</script>
<script type="module">{scripts[1]}</script>
"""
    style = f"{asset('vendor/uPlot.min.css')}\n{asset('page.css')}"
    return document(f"{title}: sparsity report", style, body, scripts=hashes)


def _inside(run: _Run, *, is_alone: bool) -> dict[str, Any]:
    """What a file holds of a run; of one of several that cannot be read, why."""
    try:
        page, details = page_data(run), details_of(run, for_file=True)
        return {"name": page["name"], "page": page, "details": details, "summary": summary_of(run)}
    except (SparsityWatchError, OSError) as error:
        if is_alone:
            raise
        return {"name": printable(run.name), "error": redacted(str(error))}


def document(title: str, style: str, body: str, *, scripts: str = "'none'") -> str:
    """A page that loads nothing; ``scripts`` are the hashes of those that may run."""
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src {scripts}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="sparsitywatch {escape(__version__)}">
<title>{html_text(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}</body>
</html>
"""


class Run(_Run):
    """A run: what was measured, what was detected, what was said once, and how its watch stands.

    Nothing is read before it is asked for, and what was read is kept: ask ``again`` for news.

    Args:
        records: in the order of the steps, or a function that reads them.
        events: each once, in the order in which they were seen, or a function that reads them.
        info: the run's manifest (run.json), None if there is none, or a function that reads it.
        spectrum: reads the arrays of the spectrum of a step, a StateError where there are none.
        name: what the run is called.
        directory: where its log lies; None if it has none.
        now: seconds since the epoch, to see whether a watch that says that it is on still is; None
            to take its word.
    """

    def report(self, path: str | os.PathLike[str] = "report.html") -> Path:
        """Write the page of the run as one file, and return where it is.

        Raises:
            OSError: it cannot be written.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, render(self).encode())  # a browser never sees half of it
        return target

    def plot(self) -> Figure:
        """Draw the run over its steps: a figure of matplotlib, with its events in words.

        Raises:
            ConfigurationError: there is no snapshot yet.
            MissingExtraError: matplotlib is not installed.
        """
        from sparsitywatch.plots import overview_figure  # it takes a second to import

        return overview_figure(self)

    def _repr_html_(self) -> str:
        # a frame without the notebook's origin: the page cannot touch the notebook, nor it the page
        return (
            f'<iframe title="{escape(f"Sparsity of the run {self.name}")}" width="100%" '
            f'height="{_FRAME_HEIGHT}" style="border:0" sandbox="allow-scripts allow-downloads" '
            f'srcdoc="{escape(render(self))}"></iframe>'
        )


def load(logdir: str | os.PathLike[str], *, name: str | None = None) -> Run:
    """A run from its log, also while it is still being written.

    Args:
        logdir: where the run logs to, such as "runs/bert", or the folder in it that has the log,
            such as "runs/bert/sparsitywatch".
        name: what to call the run; by default as its folder.

    Returns:
        Its records, its events, its manifest, and how its watch stands; each is read when it is
        first asked for. A line that is only half written by then is left out. A notebook shows it
        as its page.

    Raises:
        ConfigurationError: there is no run; runs that are near are named.
    """
    given = place(logdir).parent
    directory = log_of(given)
    if directory is None:
        below = (log for _, log in islice(logs_below(given, most=_MOST_FOLDERS), _FEW_RUNS))
        near = [str(log.parent if log.name == "sparsitywatch" else log) for log in below]
        hint = f"Watched runs in there: {', '.join(near)}" if near else "Is it the run's `logdir`?"
        found = "neither records.jsonl nor run.json" if given.is_dir() else "no directory"
        raise ConfigurationError(
            f"Expected `logdir` to hold the log of a watched run, found {found} in "
            f"{str(logdir)!r}. {hint}"
        )
    own = directory.absolute()
    own = own.parent if own.name == "sparsitywatch" else own
    reader = JsonlReader(directory)
    return Run(
        reader.records,
        reader.events,
        partial(read_manifest, directory),
        partial(read_spectrum, directory),
        name=(own.name or str(logdir)) if name is None else name,
        directory=directory,
        now=time.time(),
    )


def as_json(value: Any) -> bytes:
    """Strict JSON, as short as it can be."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def asset(name: str) -> str:
    """A file of the page: a script, a style sheet."""
    return (resources.files("sparsitywatch.page") / "web" / name).read_text("utf-8")


def script(*ends: str) -> str:
    """All modules as one, then those of ``ends``: no imports, and no exports but the last one's."""
    *modules, last = (_IMPORT.sub("", asset(f"{name}.js")) for name in (*_MODULES, *ends))
    return re.sub(r"^export ", "", "".join(modules), flags=re.MULTILINE) + last


def tab_module() -> str:
    """What TensorBoard imports: one module, since each that asks for another costs a round trip."""
    library = asset("vendor/uPlot.iife.min.js")  # in a function: the charts call it so, too
    return f"globalThis.uPlot = (() => {{\n{library}\nreturn uPlot;\n}})();\n" + script(
        "elsewhere", "index"
    )


def html_text(text: str) -> str:
    """Text of others inside a page: XML takes it, no browser warns of it, and it moves no other."""
    is_odd = {c: c not in "\t\n\r" and unicodedata.category(c) in _NOT_ALLOWED for c in text}
    return escape("".join(printable(c) if is_odd[c] else c for c in text))


# ------------------------------------------------------------------ without script, on paper


def _static(run: _Run, found: dict[str, Any]) -> str:
    """What is printed, and what is seen where no script runs: words, events, an overview."""
    if "error" in found:
        words = f"{found['name']}: the log cannot be read: {found['error']}"
        return f'<p class="warning">{html_text(words)}</p>'
    verdict, data = run.verdict, found["page"]
    told = [*verdict.describe().splitlines()[1:], *verdict.watch, data["taken"]]
    told.append("; ".join(map(_tile, data["tiles"])))
    events = "".join(f"<li>{html_text(event.report())}</li>" for event in run.events)
    return f"""\
<section class="paper">
<p class="eyebrow">Sparsity of the run <b>{html_text(data["name"])}</b></p>
<h1><span class="badge {verdict.state.split()[0]}">{html_text(verdict.badge)}</span>
{html_text(verdict.headline)}</h1>
{"".join(f"<p>{html_text(line)}</p>" for line in told)}
<ol>{events}</ol>
{overview_svg(data)}
</section>"""


def _tile(tile: dict[str, Any]) -> str:
    more = tile["why"] or (tile["was"] and f"was {tile['was']}")
    return f"{tile['label']} {tile['value']}{f' ({more})' if more else ''}"


#: All drawings together are half a page or more; the fewer there are, the higher each is.
_WIDTH, _HEIGHT = 900, 640
_LEFT, _RIGHT, _TOP, _UNDER = 64, 876, 30, 22
#: More points than this are finer than print.
_MAX_POINTS = 300


def overview_svg(data: dict[str, Any]) -> str:
    """The panels that a run has numbers for, of ``page_data``; empty if there is none."""
    drawn = []
    for panel in data["panels"]:
        lines = panel["lines"]
        if any("scale" in line for line in lines):  # there is one axis
            continue
        # the interval is thin, and has no place in the legend
        parts = [(line["series"], _short(line["label"]), line["colour"]) for line in lines]
        parts += [(end, "", "light") for end in panel["band"]]
        known = [(column(data, series), label, colour)
                 for series, label, colour in parts if series in data["series"]]  # fmt: skip
        title = f"{panel['title']} – {_short(panel['note'])}"
        if any(np.isfinite(values).any() for values, *_ in known):
            drawn.append((title, known, describe(lines[0]["series"]), panel["from_zero"]))
    height = _HEIGHT // max(len(drawn), 1)
    figures = [f"<figure>{_panel(*panel, data, height)}</figure>" for panel in drawn]
    return "\n".join(['<div class="overview">', *figures, "</div>"]) if figures else ""


def _short(text: str) -> str:
    """The beginning of it, as the page has it of several runs."""
    return re.split(r"[:;(,]", text)[0].strip()


def _panel(
    title: str, lines: list[Any], row: Series, from_zero: bool, data: dict[str, Any], height: int
) -> str:
    steps = np.array(data["steps"], dtype=float)
    values = np.concatenate([line[np.isfinite(line)] for line, *_ in lines])
    low = min(0.0, values.min()) if from_zero else values.min()
    high = values.max() if values.max() > low else low + 1.0
    first, last, bottom = steps[0], max(steps[-1], steps[0] + 1.0), height - _UNDER

    def x(step: Any) -> Any:
        return _LEFT + (_RIGHT - _LEFT) * (step - first) / (last - first)

    def y(value: Any) -> Any:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    legend = "; ".join(f"{colour}: {label}" for _, label, colour in lines if label)
    pieces = [f'<text x="0" y="14">{escape(title)}{f" ({legend})" if ";" in legend else ""}</text>']
    for tick in ticks(low, high, 4):
        pieces.append(_line("rule", _LEFT, _RIGHT, y(tick), y(tick)))
        pieces.append(_label("end", _LEFT - 6, y(tick) + 4, row.shown(tick)))
    pieces += [_label("middle", x(t), height - 6, _at(t, last)) for t in ticks(first, last, 8)]
    for event in data["events"]:  # a band where it began, a line where it was seen, its number
        begun, seen = x(event["low"]), x(event["seen"])
        pieces.append(
            f'<rect class="span" x="{begun:.1f}" y="{_TOP}" height="{bottom - _TOP}" '
            f'width="{max(x(event["high"]) - begun, 1.0):.1f}"/>'
        )
        pieces.append(_line("event", seen, seen, _TOP, bottom))
        pieces.append(_label("middle", seen, _TOP - 3, event["number"]))
    for line, _, colour in lines:
        path = _path(x(steps), y(line))
        pieces.append(f'<path class="line" style="stroke:var(--{colour})" d="{path}"/>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(pieces)}</svg>"
    )


def _at(step: float, last: float) -> str:
    return f"{step / 1e6:.6g} M" if step and last >= 1e6 else f"{step:,.0f}"


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _label(anchor: str, x: float, y: float, text: object) -> str:
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
