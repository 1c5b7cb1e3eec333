r"""How a URL, a name and a text of others are printed: without secrets, and never obeyed.

What is printed, logged or written goes through one of these functions; what is ordinary comes out
as it is:

- ``redacted_url``: logins and the values of queries are secrets (a SAS token, an X-Amz-Signature);
- ``printable``: a tensor's or a file's name may hold what a terminal would obey;
- ``redacted``: an error's text may hold both; ``redacted_error`` is its kind and its text.

Two URLs are the same if they are, never if they are printed the same.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from html import escape

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
#: Between the links of a chain such as zip://a.pt::https://host/b.zip; not in http://[::1].
_LINK = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::))")
#: Storages that name a container or a revision where others have a user.
_NO_USER = ("abfs", "abfss", "adl", "hf", "wasb", "wasbs")
#: Addresses whose path is the secret, as Slack's.
_HOOK = re.compile(r"(?:^|\.)hooks?\.|webhook", re.IGNORECASE)

#: In a text; marks at its end belong to the sentence.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]*[^\s'\"<>`.,:;)\]}]")
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


def printable(name: str) -> str:
    """A name that a terminal shows and never obeys: control characters are escaped."""
    # so are those that turn the direction of writing, or end a line
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def redacted_url(url: str | os.PathLike[str]) -> str:
    """A URL, or a chain of them, without what may be a secret; a path stays as it is."""
    return "::".join(map(_redacted_link, _LINK.split(os.fspath(url))))


def redacted(text: str) -> str:
    """A text of many words, such as another library's error; ends of lines stay."""
    text = re.sub(r"[^\n\t]+", lambda line: printable(line[0]), text)
    text = _URL.sub(lambda url: redacted_url(url[0]), text)
    for secret in _SECRETS:
        text = secret.sub(r"\g<kept>...", text)
    return text


def redacted_error(error: BaseException) -> str:
    """The kind of an error and what it says, in one line."""
    words = " ".join(redacted(str(error)).split())
    return ": ".join(filter(None, (type(error).__name__, words)))


def html_table(rows: Iterable[Sequence[object]], caption: str) -> str:
    """Rows of cells as a small table for a notebook: escaped, and complete in itself."""
    cells = [[f"<td>{_cell(cell)}</td>" for cell in row] for row in rows]
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f"<table><caption>{_cell(caption)}</caption>{body}</table>"


def _cell(cell: object) -> str:
    return escape(redacted(str(cell)))


def _redacted_link(link: str) -> str:
    scheme, found, rest = link.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        return printable(link)
    rest = _without_login(scheme.lower(), rest)
    is_web = scheme.lower() in ("http", "https")
    place, mark, query = [*re.split("([?#])", rest, maxsplit=1), "", ""][:3]
    if query and (is_web or "=" in query):  # elsewhere a question mark may belong to a pattern
        rest = f"{place}{mark}..."
    if is_web and _HOOK.search(place) and "/" in rest:
        rest = f"{rest.partition('/')[0]}/..."
    return printable(f"{scheme}://{rest}")


def _without_login(scheme: str, rest: str) -> str:
    path = rest.lstrip("/")
    if path != rest:  # some storages take all of it for a path
        has_login = scheme not in ("file", "local") and re.match("[^/?#@]*:[^/?#@]*@", path)
        return rest[: -len(path)] + _without_login(scheme, path) if has_login else rest
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    behind = rest[len(host) :]
    login, _, bare_host = host.rpartition("@")
    if login and not (scheme in _NO_USER and ":" not in login):
        return _without_login(scheme, bare_host + behind)
    port = host.rpartition(":")[2] if ":" in host else ""
    # what looks like a port and is none is a password with a slash in it
    if port and not port.isdigit() and "@" in behind:
        return _without_login(scheme, rest.rpartition("@")[2])
    return rest


class _Redacted(logging.Filter):
    """Lets every message of this library through, redacted, its name in front."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 logging itself says what is wrong with it
            return True
        record.msg, record.args = f"{_NAME}: {redacted(message.removeprefix(f'{_NAME}: '))}", ()
        if record.exc_info and not record.exc_text:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
        return True


_NAME = "sparsitywatch"
#: Of the whole library. What it is given is redacted here and nowhere else: what is logged, and by
#: whom, is not known in advance.
logger = logging.getLogger(_NAME)
logger.addFilter(_Redacted(_NAME))
