r"""How a URL, a name and a text of others are printed: without secrets, and never obeyed.

What is printed, logged or written goes through one of these functions; what is ordinary comes out
as it is:

- ``shown_url``: logins and the values of queries are secrets (a SAS token, an X-Amz-Signature);
- ``shown_name``: a tensor's or a file's name may hold what a terminal would obey;
- ``shown_text``: an error's text may hold both; ``shown_error`` is its kind and its text.

Two URLs are the same if they are, never if they are printed the same.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table", "shown_error", "shown_name", "shown_text", "shown_url"]

_LEFT_OUT = "..."

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
#: Between the links of a chain such as zip://a.pt::https://host/b.zip; not in http://[::1].
_LINK = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::))")
#: Storages that name a container or a revision where others have a user.
_NO_USER = ("abfs", "abfss", "adl", "hf", "wasb", "wasbs")
#: Addresses whose path is the secret, as Slack's.
_HOOK = re.compile(r"(?:^|\.)hooks?\.|webhook", re.IGNORECASE)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]+")
_END_OF_SENTENCE = ".,:;)]}"
_KEYS = (
    r"X-Amz-[\w-]+|X-Goog-[\w-]+|sig|signature|(?:access_|auth_|hf_|id_|refresh_|sas_|session_)?"
    r"token|(?:client_)?secret|(?:aws_)?secret_access_key|password|passwd|api_?key|"
    r"(?:access|account|shared)_?key|SharedAccessSignature|AWSAccessKeyId"
)
#: Secrets by what stands before them, and those that can be known by their form.
_SECRETS = (
    re.compile(rf"\b(?P<kept>(?:{_KEYS})=)[^\s&'\",;)]+", re.IGNORECASE),
    re.compile(rf"(?P<kept>['\"](?:{_KEYS})['\"]: ['\"])[^'\"]+", re.IGNORECASE),
    re.compile(r"\b(?P<kept>Bearer |Basic )[\w.~+/=-]{8,}", re.IGNORECASE),
    re.compile(r"\b(?P<kept>hf_|gh[opsu]_|xox[abprs]-|AKIA|ASIA)[A-Za-z0-9-]{12,}"),
)


def shown_name(name: str) -> str:
    r"""A name that a terminal shows and never obeys: control characters are escaped.

    So are those that turn the direction of writing, or end a line.

    >>> print(shown_name("a\x1b[2J\n"), shown_name("layer.0.Gewicht_ß"))
    a\x1b[2J\n layer.0.Gewicht_ß
    """
    return name if name.isprintable() else "".join(map(_shown_character, name))


def shown_url(url: str | os.PathLike[str]) -> str:
    """A URL, or a chain of them, without what may be a secret; a path stays as it is.

    >>> print(shown_url("simplecache::https://me:secret@host/run/a.pt?sv=1&sig=secret"))
    simplecache::https://host/run/a.pt?...
    >>> print(shown_url("hf://org/model@step1000"), shown_url("/data/step=5?/a.pt"))
    hf://org/model@step1000 /data/step=5?/a.pt
    """
    return "::".join(_shown_link(link) for link in _LINK.split(os.fspath(url)))


def shown_text(text: str) -> str:
    r"""A text of many words, such as another library's error: URLs and names in it are shown.

    Ends of lines stay.

    >>> print(shown_text("403 for https://me:secret@host/a?sig=secret: \x1b[31mno"))
    403 for https://host/a?...: \x1b[31mno
    """
    if not text.isprintable():
        text = "".join(c if c in "\n\t" else _shown_character(c) for c in text)
    text = _URL.sub(_shown_in_text, text)
    for secret in _SECRETS:
        text = secret.sub(rf"\g<kept>{_LEFT_OUT}", text)
    return text


def shown_error(error: BaseException) -> str:
    """The kind of an error and what it says, in one line.

    >>> print(shown_error(OSError("no route to ftp://me:secret@host")), shown_error(KeyError()))
    OSError: no route to ftp://host KeyError
    """
    kind, words = type(error).__name__, " ".join(shown_text(str(error)).split())
    return f"{kind}: {words}" if words else kind


def html_table(rows: Iterable[Sequence[object]], caption: str) -> str:
    """Rows of cells as a small table for a notebook: escaped, and complete in itself.

    >>> print(html_table([("step", 5), ("name", "<b>")], "a record"))
    <table><caption>a record</caption><tr><td>step</td><td>5</td></tr>\
<tr><td>name</td><td>&lt;b&gt;</td></tr></table>
    """
    lines = ("".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{_cell(caption)}</caption>{body}</table>"


def _cell(cell: object) -> str:
    return escape(shown_text(str(cell)))


def _shown_character(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def _shown_in_text(match: re.Match[str]) -> str:
    url = match[0].rstrip(_END_OF_SENTENCE)
    return shown_url(url) + match[0][len(url) :]


def _shown_link(link: str) -> str:
    scheme, found, rest = link.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        return shown_name(link)
    rest = _without_login(scheme.lower(), rest)
    is_web = scheme.lower() in ("http", "https")
    place, mark, query = _parted(rest)
    if query and (is_web or "=" in query):  # elsewhere a question mark may belong to a pattern
        rest = f"{place}{mark}{_LEFT_OUT}"
    if is_web and _HOOK.search(place) and "/" in rest:
        rest = f"{rest.partition('/')[0]}/{_LEFT_OUT}"
    return shown_name(f"{scheme}://{rest}")


def _parted(rest: str) -> tuple[str, str, str]:
    """What stands before a query or a fragment, its mark, and what stands behind."""
    found = re.search("[?#]", rest)
    return (
        (rest, "", "") if found is None else (rest[: found.start()], found[0], rest[found.end() :])
    )


def _without_login(scheme: str, rest: str) -> str:
    if rest.startswith("/"):  # some storages take all of it for a path
        path = rest.lstrip("/")
        has_login = re.match("[^/?#@]*:[^/?#@]*@", path) and scheme not in ("file", "local")
        return rest[: len(rest) - len(path)] + _without_login(scheme, path) if has_login else rest
    found = re.search("[/?#]", rest)
    host = rest if found is None else rest[: found.start()]
    login, _, bare_host = host.rpartition("@")
    if login and not (scheme in _NO_USER and ":" not in login):
        return _without_login(scheme, bare_host + rest[len(host) :])
    port = host.rpartition(":")[2] if ":" in host else ""
    # what looks like a port and is none is a password with a slash in it
    if port and not port.isdigit() and "@" in rest[len(host) :]:
        return _without_login(scheme, rest.rpartition("@")[2])
    return rest


class _Shown(logging.Filter):
    """Lets every message of this library through as a text that is shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 logging itself says what is wrong with it
            return True
        record.msg, record.args = shown_text(message), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = shown_text(logging.Formatter().formatException(record.exc_info))
        return True


# here and nowhere else: what is logged, and by whom, is not known in advance
logging.getLogger("sparsitywatch").addFilter(_Shown("sparsitywatch"))
