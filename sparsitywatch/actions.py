"""What is done when an event is seen: functions of the event, for ``on_event``.

::

    sw.watch(..., on_event=[
        sw.actions.log_event,                          # the default
        sw.actions.Webhook("https://example.com/hook"),
        sw.actions.SaveCheckpoint(lambda event: save(model, f"at-{event.detected_step}.pt")),
    ])

Any function of the event will do. Actions run in the training's thread, one after the other; a
webhook posts behind it. One that raises is logged and the training goes on. An event that a resumed
run knows from its log, or that is only revised, calls no action again.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

from sparsitywatch.errors import ConfigurationError, expect, expect_whole, is_number
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

_Queue = queue.SimpleQueue[dict[str, Any] | None]  # None ends it


class Action:
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
    warning, when that is full. A post that fails is tried again after pauses that double,
    unless the server says that the request itself is wrong (4xx other than 408, 425 and
    429) or redirects, which would drop the data. What fails for good is logged with its
    cause. Messages show the host only: the rest of such a URL is often a secret.

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
            is_good = is_number(number) and least <= number < math.inf
            expect(is_good, name, f"a number >= {least:g}", number)
        self._url = url
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._timeout_s = timeout_s
        self._pauses_s = (0.0, *pauses(pause_s, retries))
        self._max_queue = max_queue
        self._close_s = close_s
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._waiting: _Queue
        self._closing: threading.Event
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Put the event into the queue."""
        if self._thread is None:
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
            self._waiting.put(payload(event))
        else:
            words = "%s is not posted to %s: %d events wait already"
            logger.warning(words, event.id, self._host, self._max_queue)

    def close(self) -> None:
        """Post what is left, without pauses, for ``close_s`` at most; then give up."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing.set()
        self._waiting.put(None)
        thread.join(self._close_s)
        if not thread.is_alive():
            return
        num_left = 0  # the mark of the end counts for the one that is on its way
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
                num_left += 1
        self._waiting.put(None)
        logger.warning("%s does not answer; events that were not posted: %d", self._host, num_left)

    def _work(self, waiting: _Queue, closing: threading.Event) -> None:
        for item in iter(waiting.get, None):
            body = json.dumps(item, allow_nan=False).encode()
            for pause_s in self._pauses_s:
                closing.wait(pause_s)
                cause, is_final = self._post(body)
                if is_final:
                    break
            if cause:
                logger.error("%s was not posted to %s: %s", item["id"], self._host, cause)

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
            return f"HTTP {error.code} {error.reason}", is_final
        except (OSError, HTTPException) as error:
            return redacted_error(error), False
        return "", True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for a failure: followed, a POST would become a GET without data."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _host(url: str) -> str:
    """The host of a URL that can be posted to; a ConfigurationError if it cannot."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_good = is_good and parts.port != 0 and url.isprintable() and " " not in url
    except (ValueError, AttributeError, TypeError):
        is_good = False
    if not is_good:
        raise ConfigurationError(
            f"Expected `url` to be an http or https address, got a {type(url).__name__} that is "
            "none. It is not repeated here, as it may be a secret."
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "Expected `url` without a user name and a password, got one with them. Give an "
            "Authorization header in `headers`."
        )
    return f"{parts.scheme}://{parts.netloc}"


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
