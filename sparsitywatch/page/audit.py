"""From an audit to its page: a strip of all checkpoints, and a table of the findings."""

from __future__ import annotations

from collections import Counter

from sparsitywatch.lab.audit import FINDINGS, Audit, AuditFinding
from sparsitywatch.page.render import asset, document, html_text
from sparsitywatch.redact import redacted
from sparsitywatch.series import count, numbered

#: Findings that make a checkpoint useless; what others mean has to be asked.
_USELESS = ("unreadable", "not finite", "tensors", "shape", "copy", "shard", "layer",
            "odd one out", "not of this run")  # fmt: skip
_BADGES = {0: ("healthy", "as named"), 1: ("look", "look"), 2: ("broken", "not audited")}
#: Boxes in a row of the strip, their size, and where the first one begins; in pixels.
_IN_ROW, _WIDTH, _HEIGHT, _LEFT = 30, 27, 26, 84
_LEGEND = (
    "Each box is a checkpoint, in the order of their {0}s; a row begins with the {0} beside it."
)


def render_audit(audit: Audit, place: str) -> str:
    """The page of an audit, to write in UTF-8; ``place`` is what to call the series."""
    kind, badge = _BADGES[audit.status]
    rows = "".join(_row(number, one) for number, one in enumerate(audit.findings, start=1))
    body = f"""\
<div class="static">
<p class="eyebrow">Are these checkpoints what their names say? <b>{_text(place)}</b></p>
<h1><span class="badge {kind}">{badge}</span> {audit.headline}</h1>
<p>{audit.basis}</p>
<figure><div class="scroll">{_strip(audit)}</div>
<figcaption>{_LEGEND.format(audit.unit)}{_COLOURS * bool(rows)}</figcaption></figure>
{_what_to_do(Counter(one.finding for one in audit.findings))}
{f"<table>{_HEAD.format(audit.unit)}<tbody>{rows}</tbody></table>" * bool(rows)}
<p class="made">{_RESTS_ON[audit.is_full]}</p>
</div>
"""
    return document(f"{place}: audit of checkpoints", asset("page.css"), body)


_COLOURS = (
    " A number is that of its row in the table. Red: do not use it. Orange: look before you use it."
    " Grey: no finding. Dashed: no checkpoint."
)
_HEAD = "<thead><tr><th></th><th>{}</th><th>finding</th><th>evidence</th></tr></thead>"
_RESTS_ON = {
    True: "Every byte of the weights was read.",
    False: "This audit read headers, the hashes that the storage has, and a sample that is spread "
    "over the weights. It does not see what differs elsewhere: --full reads every weight.",
}


def _text(text: str) -> str:
    return html_text(redacted(text))


def _class(kind: str) -> str:
    return "missing" if kind == "missing" else "act" if kind in _USELESS else "ask"


def _row(number: int, one: AuditFinding) -> str:
    step = "" if one.step is None else f"{one.step:,}"
    return (
        f'<tr id="finding-{number}"><td class="end">{number}</td><td class="end">{step}</td>'
        f'<td class="kind"><i class="{_class(one.finding)}"></i>{one.finding}</td>'
        f"<td>{_text(one.evidence)}</td></tr>"
    )


def _what_to_do(kinds: Counter[str]) -> str:
    lines = [
        f'<li><i class="{_class(kind)}"></i><b>{kind}</b> ({count(num, "finding")}): '
        f"{FINDINGS[kind]}</li>"
        for kind, num in kinds.items()
    ]
    return f'<ul class="kinds">{"".join(lines)}</ul>' * bool(lines)


def _strip(audit: Audit) -> str:
    """A box for each step, with the first of its findings; steps that are missing have one, too."""
    found: dict[int, tuple[int, str]] = {}
    for number, one in enumerate(audit.findings, start=1):
        if one.step is not None:
            found.setdefault(one.step, (number, one.finding))
    steps = sorted({*audit.steps, *found})
    pieces = []
    for at, step in enumerate(steps):
        pieces.append(_box(at, numbered(audit.unit, step), *found.get(step, (0, ""))))
        if at % _IN_ROW == 0:
            y = at // _IN_ROW * _HEIGHT + 16
            pieces.append(f'<text class="end" x="{_LEFT - 8}" y="{y}">{step:,}</text>')
    height = -(-len(steps) // _IN_ROW) * _HEIGHT
    return (
        f'<svg class="strip" viewBox="0 0 {_LEFT + _IN_ROW * _WIDTH} {height}" role="img" '
        f'aria-label="{count(len(steps), audit.unit)}, {len(found):,} with a finding">'
        f"{''.join(pieces)}</svg>"
    )


def _box(at: int, place: str, number: int, kind: str) -> str:
    row, column = divmod(at, _IN_ROW)
    x, y = _LEFT + column * _WIDTH, row * _HEIGHT
    look = _class(kind) if kind else "fine"
    box = (
        f'<rect class="{look}" x="{x + 1}" y="{y + 1}" width="{_WIDTH - 2}" height="{_HEIGHT - 2}" '
        f'rx="3"><title>{place}: {kind or "no finding"}</title></rect>'
    )
    if not number:
        return box
    label = f'<text class="number {look}" x="{x + _WIDTH / 2}" y="{y + 17}">{number}</text>'
    return f'<a href="#finding-{number}">{box}{label}</a>'
