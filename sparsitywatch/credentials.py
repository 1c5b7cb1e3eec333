r"""Secrets in a text of others: known by the name before them, or by their form.

``token=x`` and ``"token": "x"`` are what programs write: there all but constants and paths are
secrets. ``token: x`` and ``--token x`` may be words of a sentence ("Expected token: int"): there
what looks like a secret is one. Each pattern begins with letters, which are looked for fast.
"""

from __future__ import annotations

import re

_QUOTE = r"(?:\\?['\"]|%2[27])"  # of JSON in JSON and in URLs, too
_OPEN = rf"[ \t]*(?:[bru]?{_QUOTE})?(?!(?:[bru]?{_QUOTE})?[.]{{3}})"
_APART = r"[ \t]+(?![ \t.]|[^\s\d!$%^&*~@#'\"]{0,9}(?:\s|$))"  # from what is no short word
_GIVES = rf"({_QUOTE}?[ \t]*(?:=>|:=|[=>:](?!=)|%3[ad]|(?<=['\"]),){_OPEN}|{_APART})"
_VALUE = re.compile(
    r"""(?<=\\["'])[^"'\\\n]+|(?<=")(?!")[^"\\\n]*(?:\\.[^"\\\n]*)*|"""
    r"""(?<=')(?!')[^'\\\n]*(?:\\.[^'\\\n]*)*|(?:[^\s&'",;()<>%\]}\\]|%(?!2[26]))*[^\s&'",;()<>%\]}\\.:]"""
)
_WORD = r"(?!(?:[A-Z][a-z]){3})(?:[A-Z]*[a-z]*(?:[A-Z][a-z]+)*\d{0,4}|\d{1,15}[A-Za-z]{0,3})"
_WORD += r"(?![A-Za-z0-9])"
_NOTHING = re.compile("(?!)")
_ANY = re.compile(r"(?!(?:none|null|true|false|\d{1,5})$|[.~]{0,2}/[a-z.]+/)", re.IGNORECASE)
_LIKE_PASSWORD = re.compile(
    r"(?!(?:sha|md|utf|base|ascii|u?int|b?float|complex)-?\d|[\d.]{0,5}[-.]?[a-z]{0,15}$)"
    r"(?!\d+\.[\d.]*[a-z]*$|\w+=\d+$|[.~]*/)(?=.{6})"
    r"(?:(?=.*\d)(?=.*[a-z])|\d{6,}$|[a-z]{24}|.*[!$%^&*~@#])",
    re.IGNORECASE,
)
_LIKE_TOKEN = re.compile(
    rf"(?![.~]{{0,2}}/)(?:(?:.*[^A-Za-z0-9])?(?!{_WORD})[A-Za-z0-9]{{8}}|[\w+/]{{6,}}=|.*\w{{24}})"
)
_KEYS = "api|app|access|account|auth|client|encryption|license|openai|private|secret|service"
_KEYS += "|shared|signing|ssh|storage|subscription"
#: Each name, with what stands before it where nothing but a secret has it.
_NAMES = {
    "token": r"(?<![\w-])|(?<!\S)--|(?:access|api|auth|hf|sas|security|session)[-_ ]?",
    "key": rf"(?:{_KEYS})[-_ ]?",
    **dict.fromkeys(("passphrase", "password", "passwd", "pwd", "secret"), ""),
    **dict.fromkeys(("auth", "authorization", "credential", "sig", "signature"), "(?!)"),
    **dict.fromkeys(("basic", "bearer"), "(?!)"),
}
_BY_NAME = [
    (name, re.compile(name + _GIVES), re.compile(f"(?:{before})$"))
    for name, before in _NAMES.items()
]
_LINES = [
    re.compile(rf"{name}{_QUOTE}?[ \t]*[:=,]{_OPEN}(?={what})([^\n]+)")
    for name, what in (
        ("authorization", r"(?:basic|bearer|digest|token|aws4\S{1,30})[ ]+[^ .]"),
        ("cookies?", r"[\w-]{1,64}=(?![.]{3})|{"),
    )
]  # fmt: skip
_OPTION = re.compile(r"(?<!\S)--[\w-]*$|['\"]--[\w-]*$")
_LONGEST = 64  # characters of what may be a word
#: How secrets begin: letters that are looked for, and what follows them.
_FORMS = """AIza AKIA ASIA SG|[.] dapi dckr_|pat_ do|[opr]_v1_ eyJ gh|[oprsu]_ github_|pat_ gl|pat-
    gl|(?:agent|cbt|dt|ffct|ft|imt|oas|ptt|rt|soat)- gsk_ hf_ hv|[bs][.] lin_|api_ npm_ nvapi- pplx-
    pypi- r8_ rk_|(?:live|test)_ shp|(?:at|ca|pa|ss)_ sk- sk_|(?:live|test)_ whsec_ xapp- xox|[a-z]-
    ya29|[.]"""
_ENDS = r"(?=[\w-]{0,40}\d|[A-Za-z0-9]{20})[\w-]{12,}(?:\.[\w-]+)*"
_PEM = re.compile(
    r"(-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY-----)"
    r"(?=[\w+/=\s\\:,-]{0,150}?[\w+/=]{16})[^-]*(?:-(?!----)[^-]*)*"
)
_BY_FORM = [
    (r"\1...", _PEM),
    *(
        (f"{begin}...", re.compile(rf"{begin}(?<![\w-]{begin}){more}{_ENDS}"))
        for begin, _, more in (form.partition("|") for form in _FORMS.split())
    ),
]


def without_secrets(text: str) -> str:
    """A text with three dots in the place of each secret."""
    low = text.encode("ascii", "replace").decode().lower()  # of the same length
    spans = [found.span(1) for line in _LINES for found in line.finditer(low)]
    for name, gives, before in _BY_NAME:
        at = 0
        while found := gives.search(low, at):
            at = found.end()
            part = _VALUE.match(text, at, at + _LONGEST)
            if part and _looks(name, before, found).match(part[0]):
                at = (_VALUE.match(text, at) or part).end()
                spans.append((part.start(), at))
    kept, done = [], 0
    for start, end in sorted(spans):
        if start >= done:
            kept.append(text[done:start])
        done = max(done, end)
    text = "...".join([*kept, text[done:]])
    for dots, form in _BY_FORM:
        text = form.sub(dots, text)
    return text


def _looks(name: str, before: re.Pattern[str], found: re.Match[str]) -> re.Pattern[str]:
    """What a value behind a name has to look like to be a secret."""
    low, start, gives = found.string, found.start(), found[1]
    is_sure = before.search(low, max(0, start - 20), start)
    if is_sure and "," not in gives and (gives[0] in "\\'\"%" or "=" in gives or "%3d" in gives):
        return _ANY
    is_password = is_sure and name != "token"
    if gives.isspace() and not (is_password or name in ("basic", "bearer")):
        is_option = _OPTION.search(low, max(0, start - 20), start)
        return _LIKE_TOKEN if is_option else _NOTHING
    return _LIKE_PASSWORD if is_password else _LIKE_TOKEN
