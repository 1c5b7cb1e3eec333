"""What is done when an event is seen: functions of the event, for ``on_event``.

::

    sw.watch(..., on_event=[
        sw.actions.log_event,                          # the default
        sw.actions.Webhook("https://example.com/hook"),
        sw.actions.SaveCheckpoint(lambda event: save(model, f"at-{event.detected_step}.pt")),
    ])

Any function of the event will do. Actions run in the training's thread, one after the other; a
webhook posts behind it. One that raises is logged and the training goes on. Each event calls them
twice, with one ``id``: where it is seen, and where it has settled (``event.course``). What a
resumed run knows from its log calls none again.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, responses
from typing import Any

from sparsitywatch.errors import ConfigurationError, Seam, expect, expect_whole, is_number
from sparsitywatch.records import SCHEMA_VERSION, Event, to_json
from sparsitywatch.redact import NEWS, logger, redacted_error

__all__ = [
    "Action", "SaveCheckpoint", "SaveNow", "StopTraining", "Webhook", "log_event", "pauses",
    "payload",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


#: Answers of a server that may differ next time: time-out, too early, too many requests.
_WORTH_A_RETRY = (408, 425, 429)
#: Longest pause between two tries, in seconds.
_MAX_PAUSE_S = 60.0

_MOST = 2_147_483  # seconds, the longest that a socket waits; nothing else needs more of anything
#: The headers that http.client sends, but for control characters.
_NAME, _VALUE = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII), re.compile(r"[\t -~\xa0-\xff]*")

_Queue = queue.SimpleQueue[Event | None]  # None ends it


class Action(Seam):
    """What holds something open while it watches events; a plain function needs no base class."""

    def __call__(self, event: Event, /) -> object:
        """Do what is to be done about the event."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is held; called when the watch is closed."""


def log_event(event: Event) -> None:
    """The default action: a warning through the logger "sparsitywatch"."""
    logger.warning("%s", event.report(), extra=NEWS)


def payload(event: Event) -> dict[str, Any]:
    """The JSON object that is posted: the event's fields, what follows from them, and "text".

    Numbers that are not known are null. "text" is what chat services show.
    """
    numbers = {"size": event.size, "size_in_noise": event.size_in_noise}
    return {
        "text": event.report(),
        "severity": event.severity,
        "course": event.course,
        "headline": event.headline,
        "advice": event.advice,
        "schema": SCHEMA_VERSION,
        **json.loads(to_json(event)),
        **{name: x if math.isfinite(x) else None for name, x in numbers.items()},
    }


def pauses(first_s: float, num: int) -> list[float]:
    """Seconds before each of ``num`` retries: doubled each time, up to a minute."""
    # the exponent is bounded, as a float is
    return [min(first_s * 2.0 ** min(i, 60), _MAX_PAUSE_S) for i in range(num)]


class Webhook(Action):
    """Posts each event as a JSON object, from a thread of its own.

    The training waits for nothing: an event goes into a queue, and is left out, with a
    message, when that is full. A post that fails is tried again after pauses that double,
    unless the server says that the request itself is wrong (4xx other than 408, 425 and
    429) or redirects, which would drop the data. What fails for good is logged once for each
    cause; ``close`` says how many events that were. Messages show the host only: the rest of
    such a URL is often a secret, and so are the headers.

    Args:
        url: http or https, without user name and password: they belong into ``headers``.
        timeout_s: for connecting and for each wait for an answer, in seconds.
        retries: tries after the first one.
        pause_s: before the first retry, in seconds; doubled each time, to a minute.
        headers: sent along, such as {"Authorization": "Bearer ..."}.
        max_queue: events that may wait.
        close_s: how long ``close`` waits for what is in the queue, in seconds.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        retries: int = 5,
        pause_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
        max_queue: int = 100,
        close_s: float = 10.0,
    ) -> None:
        self._host = _host(url)
        bounds = {
            "timeout_s": (timeout_s, 1e-3), "retries": (retries, 0), "pause_s": (pause_s, 0),
            "max_queue": (max_queue, 1), "close_s": (close_s, 0),
        }  # fmt: skip
        for name, (number, least) in bounds.items():
            is_good = is_number(number) and least <= number <= _MOST
            kind = "number" if name.endswith("_s") else "whole number"
            is_good = is_good and (kind == "number" or number % 1 == 0)
            expect(is_good, name, f"a {kind} >= {least:g} and <= {_MOST:,}", number)
        _check_headers(headers)
        self._url = url
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._timeout_s, self._close_s = float(timeout_s), float(close_s)
        self._pauses_s = (0.0, *pauses(float(pause_s), int(retries)))
        self._max_queue = max_queue
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lost = Counter[str]()  # events, by why they were not posted
        self._lock = threading.RLock()
        self._waiting: _Queue
        self._closing: threading.Event
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Put the event into the queue."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # as in a forked child
                self._waiting = queue.SimpleQueue()
                self._closing = threading.Event()
                self._thread = threading.Thread(
                    target=self._work,
                    args=[self._waiting, self._closing],
                    name="sparsitywatch-webhook",
                    daemon=True,  # a server that hangs must not keep the process from ending
                )
                self._thread.start()
            if self._waiting.qsize() < self._max_queue:
                self._waiting.put(event)
            else:
                self._lose(event, f"{self._max_queue} events wait already")

    def close(self) -> None:
        """Post what is left, without pauses, for ``close_s`` at most; say what was not posted."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None or not thread.is_alive():
                return
            waiting = self._waiting
            self._closing.set()
            waiting.put(None)
        thread.join(self._close_s)
        if thread.is_alive():  # the mark of the end counts for the one that is on its way
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
                    self._lost["it does not answer"] += 1
            waiting.put(None)
        lost, self._lost = self._lost, Counter()
        if causes := "; ".join(f"{num} ({cause})" for cause, num in lost.items()):
            logger.warning("events that were not posted to %s: %s", self._host, causes)

    def _lose(self, event: Event, cause: str) -> None:
        self._lost[cause] += 1
        if self._lost[cause] == 1:
            logger.error("%s was not posted to %s: %s", event.id, self._host, cause)

    def _work(self, waiting: _Queue, closing: threading.Event) -> None:
        for event in iter(waiting.get, None):
            with contextlib.suppress(Exception):  # of a log's handler; what was lost is counted
                if cause := self._deliver(event, closing):
                    self._lose(event, cause)

    def _deliver(self, event: Event, closing: threading.Event) -> str:
        """Why an event could not be posted, empty if it was."""
        try:
            body = json.dumps(payload(event), allow_nan=False).encode()
            for pause_s in self._pauses_s:
                closing.wait(pause_s)
                cause, is_final = self._post(body)
                if is_final:
                    break
        except Exception as error:  # noqa: BLE001 the next event may be posted
            cause = redacted_error(error)
        return cause

    def _post(self, body: bytes) -> tuple[str, bool]:
        """Try once; why it failed, empty if it did not, and whether another try is of no use."""
        request = urllib.request.Request(  # noqa: S310 the scheme was checked
            self._url, data=body, headers=self._headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            is_final = error.code < 500 and error.code not in _WORTH_A_RETRY
            return f"HTTP {error.code} {responses.get(error.code, '')}".rstrip(), is_final
        except HTTPException as error:  # its text is the server's, which may repeat a secret
            return type(error).__name__, False
        except OSError as error:
            return redacted_error(error), False
        return "", True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for a failure: followed, a POST would become a GET without data."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _refused(name: str, what: str, came: str) -> ConfigurationError:
    return ConfigurationError(
        f"Expected {name} to be {what}, got {came}. It is not repeated here, as it may be a secret."
    )


def _host(url: str) -> str:
    """The host of a URL that can be posted to; a ConfigurationError if it cannot."""
    what, has_login = "an http or https address", False
    try:
        parts = urllib.parse.urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_good = is_good and parts.port != 0 and url.isprintable() and " " not in url
        has_login = is_good and "@" in parts.netloc
        if is_good and not has_login:  # what each post does
            request = urllib.request.Request(url)  # noqa: S310 the scheme was checked
            connection = HTTPConnection(request.host)
            connection.putrequest("POST", request.selector)
            connection.host.encode("idna")
    except (ValueError, AttributeError, TypeError, HTTPException):
        is_good = False
    if has_login:
        came = "one with them. Give an Authorization header in `headers`"
        raise _refused("`url`", f"{what} without a user name and a password", came)
    if not is_good:
        hint = " (percent-encode what is not ASCII)" * (not str(url).isascii())
        raise _refused("`url`", what, f"a {type(url).__name__} that is none{hint}")
    return f"{parts.scheme}://{parts.netloc}"


def _check_headers(headers: object) -> None:
    """A ConfigurationError, without any value, if http.client would not send such headers."""
    what = "a text of one line in latin-1, with an HTTP name that is there once"
    if not isinstance(headers, Mapping | None):
        raise _refused("`headers`", "a mapping", f"a {type(headers).__name__}")
    # a post sets two by itself
    names = ["content-length", "transfer-encoding", *(str(name).lower() for name in headers or ())]
    for name, value in (headers or {}).items():
        is_name = isinstance(name, str) and _NAME.fullmatch(name) and names.count(name.lower()) == 1
        if not is_name or not isinstance(value, str) or not _VALUE.fullmatch(value):
            hint = " with a line end at its end: strip it" * str(value).endswith(("\n", "\r"))
            raise _refused(f"`headers[{name!r:.80}]`", what, f"a {type(value).__name__}{hint}")


class SaveCheckpoint(Action):
    """Calls a function that saves what the user wants saved, a limited number of times.

    Args:
        save: called with the event, in the training's thread, at most once for each. It
            may raise: the failure is logged, and does not count.
        max_saves: how often at most, in this process; disks are finite.
        trend: only for events of this trend, "sparsifying" or "densifying"; by default for
            all.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    def __init__(
        self, save: Callable[[Event], object], *, max_saves: int = 3, trend: str = ""
    ) -> None:
        expect(callable(save), "save", "a function that takes the event", save)
        expect_whole("max_saves", max_saves, 1)
        is_known = trend in ("", "sparsifying", "densifying")
        expect(is_known, "trend", "'sparsifying', 'densifying' or ''", trend)
        self._save = save
        self._max_saves = max_saves
        self._trend = trend
        self._seen: set[str] = set()
        self._num_saves = 0

    def __call__(self, event: Event) -> None:
        """Save for this event, unless that was done or enough was saved."""
        if event.id in self._seen or (self._trend and event.trend != self._trend):
            return
        self._seen.add(event.id)
        if self._num_saves >= self._max_saves:
            logger.warning("nothing saved at %s: max_saves=%d were", event.id, self._max_saves)
            return
        self._save(event)
        self._num_saves += 1


class _Request(Action):
    """An action that only remembers that something is wanted, for the loop to do."""

    def __init__(self) -> None:
        self._event: Event | None = None

    def __call__(self, event: Event) -> None:
        """Remember the event; the first one that nobody has answered counts."""
        if event.revised_step < 0:  # that it has settled asks for nothing
            self._event = self._event or event

    @property
    def is_requested(self) -> bool:
        """Whether an event was seen since the last ``take``."""
        return self._event is not None

    def take(self) -> Event | None:
        """The event that asks, once; None if there is none."""
        event, self._event = self._event, None
        return event


class SaveNow(_Request):
    """Asks for a checkpoint at the end of the step.

    In ``SparsityWatchCallback(on_event=["save"])`` the Trainer saves, with its optimizer
    and the state of the watch. In a loop of one's own::

        save = sw.actions.SaveNow()      # on_event=[save]
        if save.take(): torch.save(...)
    """


class StopTraining(_Request):
    """Asks for the end of the training after this step.

    In ``SparsityWatchCallback(on_event=["stop"])`` the Trainer ends. In a loop of one's
    own, ``if stop.is_requested: break``.
    """
