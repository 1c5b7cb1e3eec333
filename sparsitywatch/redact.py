"""How a URL, a name and a text of others are printed: without secrets, and never obeyed.

What is printed, logged or written goes through one of these functions; what is ordinary comes out
as it is. Logins and the values of queries are secrets (a SAS token, an X-Amz-Signature). Two URLs
are the same if they are, never if they are printed the same.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from html import escape

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
#: Between the links of a chain such as zip://a.pt::https://host/b.zip; not in http://[::1].
_LINK = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::))")
#: Storages that name a container or a revision where others have a user.
_NO_USER = ("abfs", "abfss", "adl", "hf", "wasb", "wasbs")
#: Addresses whose path is the secret, as Slack's.
_HOOK = re.compile(r"(?:^|\.)hooks?\.|webhook", re.IGNORECASE)

#: A login, or what looks like a host and its port, and is a password with a slash in it.
_LOGIN = re.compile(r"(?s)^(/*)(?:(?:[^/?#]*@|[^/?#@:\[]*:(?!\d*(?:[/?#]|$)).*@)/*)+")
#: The same with a colon, as after the slashes of a path that some storages take for a host.
_PAIR = re.compile(r"^(/*)(?:[^/?#@:]*:[^/?#@]*(?:@[^/?#@]*)*@/*)+")
_QUERY = re.compile("([?#])")
#: In a text, behind its scheme; what may be a secret has one of these marks.
_URL = re.compile(r"://[^\s'\"]+")
_MAY_BE_SECRET = re.compile("[@?#]|hook", re.IGNORECASE)
_OF_SCHEMES = f"{string.ascii_letters}{string.digits}+-."
_ODD = re.compile(r"[^\n\t -~]+")


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
    return without_secrets(_URL.sub(_redacted_address, _printable_lines(text)))


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


def _printable_lines(text: str) -> str:
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    if not text.isascii():
        return _ODD.sub(lambda odd: printable(odd[0]), text)
    text = text.encode("unicode_escape").decode().replace("\\\\", "\0")
    return text.replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\")


def _redacted_address(found: re.Match[str]) -> str:
    """What follows a scheme in a text; marks at its end belong to the sentence."""
    address = found[0].rstrip(".,:;)]}>`")
    if not _MAY_BE_SECRET.search(address):
        return found[0]
    before = found.string[max(0, found.start() - 20) : found.start()]  # no scheme is longer
    scheme = before[len(before.rstrip(_OF_SCHEMES)) :].lstrip("+-.0123456789").lower()
    first, *others = _LINK.split(address)
    first = f"://{_redacted_rest(scheme, first[3:])}"
    return "::".join([first, *map(_redacted_link, others)]) + found[0][len(address) :]


def _redacted_link(link: str) -> str:
    scheme, found, rest = link.partition("://")
    if found and _SCHEME.fullmatch(scheme):
        link = scheme + found + _redacted_rest(scheme.lower(), rest)
    return printable(link)


def _redacted_rest(scheme: str, rest: str) -> str:
    # some storages take all of it for a path, and may have a login behind its slashes
    if not (rest.startswith("/") and scheme in ("file", "local")):
        rest = (_PAIR if rest.startswith("/") or scheme in _NO_USER else _LOGIN).sub(r"\1", rest, 1)
    is_web = scheme in ("http", "https")
    place, mark, query = _QUERY.split(rest, 1) if _QUERY.search(rest) else (rest, "", "")
    if query and (is_web or "=" in query):  # elsewhere a question mark may belong to a pattern
        rest = f"{place}{mark}..."
    host, _, path = rest.partition("/")
    if path and is_web and _HOOK.search(place):
        rest = f"{host}/..."
    return rest


# ------------------------------------------------------------------ secrets in a text
#
# Known by the name before them, or by their form.
# ``token=x`` and ``"token": "x"`` are what programs write: there all but constants and paths are
# secrets. ``token: x`` and ``--token x`` may be words of a sentence ("Expected token: int"): there
# what looks like a secret is one. Each pattern begins with letters, which are looked for fast.

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
_LONGEST_WORD = 64  # characters of what may be a word
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
            part = _VALUE.match(text, at, at + _LONGEST_WORD)
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


# ------------------------------------------------------------------ what is logged


class Causes:
    """What a watch has warned of: each cause once, numbers aside; ``tell`` says how often again."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, str, Iterator[int]]] = {}
        self._pid = os.getpid()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Around what may warn again and again in this thread."""
        before = of_watch.set(self)
        try:
            yield
        finally:
            of_watch.reset(before)

    def is_new(self, record: logging.LogRecord) -> bool:
        """Whether a message is to be logged; it is counted."""
        # what a fork for an evaluation says is logged by the process that waits for it
        if record.levelno < logging.WARNING or hasattr(record, *NEWS) or os.getpid() != self._pid:
            return True
        error = record.exc_info[1] if record.exc_info else None
        cause = f"{record.msg} {'' if error is None else redacted_error(error)}"
        told = (record.levelno, record.msg, itertools.count())
        *_, times = self._told.setdefault(_NUMBERS.sub("#", cause), told)
        return next(times) == 0

    def tell(self) -> None:
        """Log how often each cause came again, and forget them."""
        told, self._told = self._told, {}
        for level, message, times in told.values():
            if num := next(times) - 1:
                words = " ".join(message.removeprefix(f"{_NAME}: ").split())
                logger.log(level, "%d more times: %.*s", num, _LONGEST, words, extra=NEWS)


class _Redacted(logging.Filter):
    """Lets every message of this library through, redacted, its name in front."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 logging itself says what is wrong with it
            return True
        record.msg, record.args = f"{_NAME}: {redacted(message.removeprefix(f'{_NAME}: '))}", ()
        causes = of_watch.get()
        if causes is not None and not causes.is_new(record):
            return False
        if record.exc_info and not record.exc_text:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
        return True


#: Of what is running in this thread; None: each message is logged.
of_watch: ContextVar[Causes | None] = ContextVar("of_watch", default=None)
#: ``extra`` of a message that is logged each time, such as an event.
NEWS = {"is_news": True}
_NUMBER = r"[-+]?(?:0x[0-9a-fA-F]+|\d+(?:[.,]\d+)*\.?(?:e[-+]?\d+)?|\b(?:nan|inf)\b)"
_NUMBERS = re.compile(f"{_NUMBER}(?: {_NUMBER})*")
_LONGEST = 200  # characters of a message that is told again
_NAME = "sparsitywatch"
#: Of the whole library. What it is given is redacted here and nowhere else: what is logged, and by
#: whom, is not known in advance.
logger = logging.getLogger(_NAME)
logger.addFilter(_Redacted(_NAME))
