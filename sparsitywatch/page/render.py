"""From a run to its page as one file: no network, no server, and something to read without script.

::

    page_data ─┬─► compressed, for the scripts that draw the page
               └─► words and an SVG, for paper and for browsers without script

The same log gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import unicodedata
import zlib
from html import escape
from importlib import resources
from typing import Any

from sparsitywatch.analysis.run import Run
from sparsitywatch.page.data import details_of, page_data
from sparsitywatch.page.overview import overview_svg
from sparsitywatch.pipeline import rundir
from sparsitywatch.redact import printable

#: The modules of the page in an order in which each comes after those that it imports.
_MODULES = ("format", "data", "charts", "tensors", "view", "main")
#: Level of zlib; the largest saves a hundredth more, and takes three times as long.
_PACKING = 7
_FRAME_HEIGHT = 900
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_NOT_ALLOWED = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")


def render(run: Run) -> str:
    """The page of a run, also of one without a snapshot: one HTML document, to write in UTF-8."""
    data = page_data(run)
    packed = zlib.compress(
        as_json({"page": data, "details": details_of(run, for_file=True)}), _PACKING
    )
    scripts = asset("vendor/uPlot.iife.min.js"), script("file")
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in scripts)
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src {hashes}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="sparsitywatch {escape(data["version"])}">
<title>{_text(data["name"])}: sparsity report</title>
<style>
{asset("vendor/uPlot.min.css")}
{asset("page.css")}</style>
</head>
<body>
<div id="app"></div>
<div class="static">
{_static(data)}
</div>
<script type="text/plain" id="data">{base64.b64encode(packed).decode()}</script>
<script>{scripts[0]}</script>
<script type="module">{scripts[1]}</script>
</body>
</html>
"""


class _PageRun(Run):
    """A run that a notebook shows as its page, in a frame of its own."""

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
    return rundir.load(logdir, name=name, kind=_PageRun)


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


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _static(data: dict[str, Any]) -> str:
    """What is printed, and what is seen where no script runs: words, events, an overview."""
    verdict = data["verdict"]
    known = {
        "Why": verdict["cause"],
        "How sure": verdict["confidence"],
        "What to do": verdict["advice"],
        "Not watched": "; ".join(verdict["not_watched"]),
    }
    answers = "".join(
        f"<p><b>{name}:</b> {_text(text)}</p>" for name, text in known.items() if text
    )
    watch = "".join(f"<p>{_text(text)}</p>" for text in verdict["watch"])
    tiles = "; ".join(
        f"{tile['label']} {tile['value']}"
        + (f" ({tile['why']})" if tile["why"] else f" (was {tile['was']})" if tile["was"] else "")
        for tile in data["tiles"]
    )
    events = "".join(f"<li>{_event(event)}</li>" for event in data["events"])
    return f"""\
<p class="eyebrow">Sparsity of the run <b>{_text(data["name"])}</b></p>
<h1><span class="badge {verdict["state"].split()[0]}">{_text(verdict["badge"])}</span>
{_text(verdict["headline"])}</h1>
{answers}{watch}<p>{_text(data["taken"])}</p>
<p>{_text(tiles)}</p>
<ol>{events}</ol>
{overview_svg(data)}
<noscript><p>Charts with a cursor, every tensor and all the rest need JavaScript.</p></noscript>"""


def _event(event: dict[str, Any]) -> str:
    where = f" Where: {', '.join(event['where'][:6])}." if event["where"] else ""
    known = [*event["why"], *event["also"]]
    why = f" Why: {'; '.join(known)}." if known else ""
    return f"<b>{_text(event['title'])}</b>: {_text(event['when'] + '.' + where + why)} " + _text(
        event["do"]
    )


def _text(text: str) -> str:
    return escape(xml_text(text))


def xml_text(text: str) -> str:
    """Text that XML takes, no browser warns of and that moves no other; the rest is escaped."""
    is_odd = {c: c not in "\t\n\r" and unicodedata.category(c) in _NOT_ALLOWED for c in text}
    return "".join(printable(c) if is_odd[c] else c for c in text)
