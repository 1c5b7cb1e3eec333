"""Events posted to a real server on the loopback device; nothing waits for a clock."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch import actions
from sparsitywatch.actions import Webhook, pauses, payload
from sparsitywatch.records import SCHEMA_VERSION, Event

WAIT_S = 60.0  # for what will happen; far more than it takes


def event(step: int = 350, **fields) -> Event:
    given = {"baseline": 0.05, "value": 0.1, "noise": 0.01, "trend": "sparsifying", **fields}
    series, onset = "near_zero/initial_0.1", step - 50
    return Event(series=series, direction="up", onset_step=onset, detected_step=step, **given)


class Server(ThreadingHTTPServer):
    """Answers with the codes it is given, then with 200; or not at all until told to."""

    daemon_threads = True

    def __init__(self, codes: tuple[int, ...] = (), *, hangs: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.codes, self.hangs = list(codes), hangs
        self.posted: list[tuple[int, dict, dict]] = []
        self.arrived = threading.Semaphore(0)
        self.let_go = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T0/secret"

    def wait_for(self, num: int) -> None:
        for _ in range(num):
            assert self.arrived.acquire(timeout=WAIT_S)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is no matter."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = self.server.codes.pop(0) if self.server.codes else 200
        self.server.posted.append((code, json.loads(body), dict(self.headers)))
        self.server.arrived.release()
        if self.server.hangs:
            self.server.let_go.wait(WAIT_S)
        self.send_response(code)
        if code in (301, 302, 307):
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815 the name is the library's

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch) -> None:
    # a proxy of the environment must not be asked for the loopback device
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(*codes: int, hangs: bool = False) -> Server:
        server = Server(codes, hangs=hangs)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.let_go.set()
        server.shutdown()
        server.server_close()


def quick(url: str, **options) -> Webhook:
    return Webhook(url, **{"pause_s": 0.0, "close_s": WAIT_S, **options})


def post(url: str, *events: Event, **options) -> None:
    """Give the events to a webhook, and close it."""
    hook = quick(url, **options)
    for one in events:
        hook(one)
    hook.close()


# ------------------------------------------------------------------ what is posted


def test_an_event_arrives_as_json(serve, caplog) -> None:
    server = serve()
    post(server.url, event(), headers={"Authorization": "Bearer x"})
    ((code, data, headers),) = server.posted
    assert code == 200
    assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer x")
    assert data == payload(event())
    assert data["text"] == event().report()
    for part in ("severity", "headline", "advice"):
        assert data[part] == getattr(event(), part)
    assert (data["id"], data["schema"]) == ("near_zero/initial_0.1@300", SCHEMA_VERSION)
    assert (data["size"], data["size_in_noise"]) == (pytest.approx(0.05), pytest.approx(5.0))
    assert data["trend"] == "sparsifying"
    assert data["decay_clock"] is None
    assert caplog.text == ""


def test_what_is_not_known_is_null_and_json_stays_strict() -> None:
    for noise in (float("nan"), 0.0):
        data = payload(event(noise=noise, decay_clock=float("nan")))
        assert data["size_in_noise"] is None
        json.dumps(data, allow_nan=False)


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("first", [500, 503, 429, 425, 408])
def test_a_server_in_trouble_is_tried_again(serve, first: int, caplog) -> None:
    server = serve(first, first)
    post(server.url, event())
    assert [code for code, _, _ in server.posted] == [first, first, 200]
    assert caplog.text == ""


def test_enough_is_enough_and_the_cause_is_logged_without_the_secret(serve, caplog) -> None:
    server = serve(*[500] * 9)
    post(server.url, event(), event(700), retries=2)
    assert [code for code, _, _ in server.posted] == [500] * 6
    assert "near_zero/initial_0.1@300 was not posted to http://127.0.0.1" in caplog.text
    assert "HTTP 500" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("code", [400, 404, 410, 302, 301, 307])
def test_a_request_that_is_wrong_is_not_repeated(serve, code: int, caplog) -> None:
    server = serve(code)
    post(server.url, event())
    assert [c for c, _, _ in server.posted] == [code]
    assert f"HTTP {code}" in caplog.text


def test_a_server_that_is_gone(serve, caplog) -> None:
    server = serve()
    server.shutdown()
    server.server_close()
    post(server.url, event(), retries=1)
    assert "was not posted to http://127.0.0.1" in caplog.text
    assert "refused" in caplog.text


def test_a_server_that_hangs_runs_into_the_time_out(serve, caplog) -> None:
    server = serve(hangs=True)
    post(server.url, event(), timeout_s=0.05, retries=1)
    assert len(server.posted) == 2
    assert "timed out" in caplog.text


def test_training_goes_on_while_a_server_hangs_and_close_gives_up(serve, caplog) -> None:
    """Events of a real watch; the server answers nothing before the training is over."""
    server = serve(hangs=True)
    hook = quick(server.url, timeout_s=WAIT_S, close_s=0.01)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen: list[Event] = []
    options = {"logdir": None, "every": 1, "max_overhead": None, "strict": True}
    with sw.watch(model, optimizer, on_event=[hook, seen.append], **options) as watcher:
        for step in range(40):
            if step == 20:
                with torch.no_grad():
                    model[0].weight[:20] = 0.0
            optimizer.zero_grad()
            model(torch.ones(1, 20)).square().mean().backward()
            optimizer.step()
            if seen:
                server.wait_for(0 if server.posted else 1)  # it hangs from here on
    assert watcher.step_count == 40
    assert [event.course for event in seen] == ["seen", "settled"]
    assert [code for code, _, _ in server.posted] == [200]
    assert "events that were not posted to" in caplog.text
    assert ": 2 (it does not answer)" in caplog.text


def test_the_queue_is_bounded(serve, caplog) -> None:
    server = serve(hangs=True)
    hook = quick(server.url, max_queue=2)
    hook(event(100))
    server.wait_for(1)  # this one is on its way, two may wait
    for step in (200, 300, 400):
        hook(event(step))
    assert "near_zero/initial_0.1@350 was not posted" in caplog.text
    server.let_go.set()
    hook.close()
    assert [data["detected_step"] for _, data, _ in server.posted] == [100, 200, 300]


@pytest.mark.parametrize("code", [400, 500])
def test_each_cause_is_told_once_and_counted_at_the_end(serve, code: int, caplog) -> None:
    server = serve(*[code] * 6, *[503] * 2)
    post(server.url, *map(event, range(100, 500, 100)), retries=0 if code == 400 else 1)
    told = [record.getMessage() for record in caplog.records]
    assert sum(f"HTTP {code}" in line and "was not posted" in line for line in told) == 1
    last = "4 (HTTP 400 Bad Request)"
    if code == 500:
        last = "3 (HTTP 500 Internal Server Error); 1 (HTTP 503 Service Unavailable)"
    assert told[-1].endswith(f"to http://127.0.0.1:{server.server_port}: {last}")


def test_an_event_that_cannot_be_posted_stops_no_later_one(serve, caplog, monkeypatch) -> None:
    def broken(one: Event) -> dict:
        if one.detected_step == 100:
            raise ZeroDivisionError("token=s3cr3t")
        return {"step": float("nan")} if one.detected_step == 200 else payload(one)

    monkeypatch.setattr(actions, "payload", broken)
    server = serve()
    post(server.url, *map(event, (100, 200, 300)))
    assert [data["detected_step"] for _, data, _ in server.posted] == [300]
    assert "near_zero/initial_0.1@50 was not posted" in caplog.text
    assert "ZeroDivisionError: token=..." in caplog.text
    assert "1 (ZeroDivisionError: token=...); 1 (ValueError: Out of range float" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_a_log_whose_handler_raises_stops_no_later_event(serve, caplog) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log is broken")

    server = serve(400)
    hook, handler = quick(server.url), Raises()
    logging.getLogger("sparsitywatch").addHandler(handler)
    try:
        hook(event(100))
        hook(event(200))
        server.wait_for(2)
    finally:
        logging.getLogger("sparsitywatch").removeHandler(handler)
    hook.close()
    assert [code for code, _, _ in server.posted] == [400, 200]
    assert ": 1 (HTTP 400 Bad Request)" in caplog.text


def test_no_event_is_lost_in_silence_where_other_threads_close_and_call(serve, caplog) -> None:
    server = serve()
    hook = quick(server.url, max_queue=1000)

    def call(first: int) -> None:
        for step in range(first, first + 20):
            hook(event(step))

    def close() -> None:
        for _ in range(20):
            hook.close()

    threads = [threading.Thread(target=call, args=[first]) for first in (100, 200)]
    threads += [threading.Thread(target=close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.close()
    steps = sorted(data["detected_step"] for _, data, _ in server.posted)
    assert steps == [*range(100, 120), *range(200, 220)]
    assert caplog.text == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_fork_posts_by_a_thread_of_its_own_and_only_what_is_its_own(serve) -> None:
    server = serve(hangs=True)
    hook = quick(server.url)
    hook(event(100))
    hook(event(200))
    server.wait_for(1)  # one is on its way, and one waits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        pid = os.fork()
    if not pid:
        with suppress(BaseException):
            hook(event(300))
            hook.close()
            os._exit(0)
        os._exit(1)
    server.wait_for(1)
    server.let_go.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    hook.close()
    assert sorted(data["detected_step"] for _, data, _ in server.posted) == [100, 200, 300]


@pytest.fixture
def answering() -> Iterator[Callable[[Callable[[bytes], bytes]], str]]:
    """Servers that answer with whatever bytes, and hang up."""
    listeners, threads = [], []

    def start(answer: Callable[[bytes], bytes]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.sendall(answer(connection.recv(2**16)))
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(2**16):  # else what was not read ends it by a reset
                            pass

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}/services/T0/s3cr3t"

    yield start
    for listener, thread in zip(listeners, threads, strict=True):
        listener.shutdown(socket.SHUT_RDWR)  # ends the wait for a connection
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: b"", "RemoteDisconnected"),
        (lambda _: b"\x00\x1b[2J garbage", ": BadStatusLine"),
        (lambda asked: asked, ": BadStatusLine"),  # with all secrets in it
        (lambda _: b"HTTP/1.1 " + b"9" * 10**5, "LineTooLong"),
        (lambda _: b"HTTP/1.1 401 no s3cr3t t0ken123 here\r\n\r\n", "HTTP 401 Unauthorized"),
        (lambda _: b"HTTP/1.1 299 ok\r\nContent-Length: 5\r\n\r\n", ""),
    ],
    ids=["nothing", "garbage", "echo", "too long", "reason", "cut"],
)
def test_whatever_a_server_answers_is_told_without_secrets(
    answering, answer: Callable[[bytes], bytes], told: str, caplog
) -> None:
    url = answering(answer)
    options = {"retries": 0, "headers": {"Authorization": "Bearer t0ken123"}}
    post(f"http://{url}", event(), **options)
    assert told in caplog.text
    for secret in ("s3cr3t", "t0ken123"):
        assert secret not in caplog.text
    assert max(map(len, caplog.text.splitlines()), default=0) < 400


def test_tls_that_fails_and_a_host_that_is_not_known(answering, caplog, monkeypatch) -> None:
    post(f"https://{answering(lambda _: b'no tls')}", event(), retries=1)
    assert "SSL" in caplog.text
    caplog.clear()

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    post("http://host.invalid/services/T0/s3cr3t", event(), retries=1)
    assert "Name or service not known" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_pauses_double_up_to_a_minute() -> None:
    assert pauses(1.0, 8) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert pauses(0.0, 2) == [0.0, 0.0]
    assert pauses(90.0, 2000) == [60.0] * 2000


def test_closing_does_not_wait_for_the_pause_before_a_retry(serve) -> None:
    server = serve(500)
    hook = Webhook(server.url, pause_s=10.0 * WAIT_S, close_s=WAIT_S)
    hook(event())
    server.wait_for(1)
    hook.close()
    assert [code for code, _, _ in server.posted] == [500, 200]


def test_after_a_close_it_can_be_used_again_and_closing_twice_is_fine(serve) -> None:
    server = serve()
    hook = quick(server.url)
    hook.close()
    for step in (100, 200):
        hook(event(step))
        hook.close()
        hook.close()
    assert [data["detected_step"] for _, data, _ in server.posted] == [100, 200]


# ------------------------------------------------------------------ mistakes in the call


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://host/x", "host/x", "http://", "", None, 3, b"http://host",
     "http://host:99999/", "http://ho st/", "http://host/\n", "javascript:alert(1)"],
)  # fmt: skip
def test_only_http_addresses(url: object) -> None:
    with pytest.raises(sw.ConfigurationError, match="`url` to be an http or https address"):
        Webhook(url)


@pytest.mark.parametrize(
    "host",
    ["a..b", ".a", "a" * 64, "ho%20st", "ho%0ast", "[::1", "host:0", "host:x", "host:\uff18",
     "h\u2028st", "\ud800", ""],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/s3cr3t", "?s3cr3t"])
def test_a_host_that_no_post_can_reach(host: str, path: str) -> None:
    with pytest.raises(sw.ConfigurationError, match="`url` to be an http or https") as refused:
        Webhook(f"https://{host}{path}")
    assert "s3cr3t" not in str(refused.value)


def test_a_path_that_no_post_can_send_and_what_can_be_sent() -> None:
    with pytest.raises(sw.ConfigurationError, match="percent-encode"):
        Webhook("https://host/s3cr\xe4t")
    for url in ("HTTPS://HOST/x", "http://b\xfccher.example", "http://[::1]:80", "http://a?b#c"):
        Webhook(url)


def test_credentials_belong_into_headers() -> None:
    with pytest.raises(sw.ConfigurationError, match="Authorization header") as caught:
        Webhook("https://me:hidden@host/x")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("timeout_s", 0.0), ("timeout_s", "10"), ("timeout_s", float("inf")), ("retries", -1),
     ("pause_s", -0.1), ("max_queue", 0), ("close_s", float("nan"))],
)  # fmt: skip
def test_numbers_out_of_range(option: str, value: float) -> None:
    with pytest.raises(sw.ConfigurationError, match=f"`{option}` to be a (whole )?number >="):
        Webhook("https://host/x", **{option: value})


@pytest.mark.parametrize("option", ["timeout_s", "pause_s", "close_s", "retries", "max_queue"])
@pytest.mark.parametrize("value", [True, None, "5", 1e300, 2_147_484, float("nan"), 1j, [5]])
def test_numbers_that_a_wait_would_refuse(option: str, value: object) -> None:
    with pytest.raises(sw.ConfigurationError, match=f"`{option}` to be a (whole )?number >="):
        Webhook("https://host/x", **{option: value})


def test_counts_are_whole_and_the_longest_wait_is_one_that_a_socket_takes(serve) -> None:
    for option in ("retries", "max_queue"):
        with pytest.raises(sw.ConfigurationError, match=f"`{option}` to be a whole .*, got 2.5"):
            Webhook("https://host/x", **{option: 2.5})
    server = serve(500)
    longest = {"timeout_s": 2_147_483, "close_s": 2_147_483.0, "max_queue": 2_147_483}
    post(server.url, event(), retries=2.0, **longest)
    assert [code for code, _, _ in server.posted] == [500, 200]


HIDDEN = "t0ken123"
WRONG_HEADERS = {
    "a line end at its end": {"Authorization": f"Bearer {HIDDEN}\n"},
    "a line end of Windows": {"Authorization": f"Bearer {HIDDEN}\r\n"},
    "two headers in one": {"Authorization": f"{HIDDEN}\r\nX-Other: {HIDDEN}"},
    "a folded line": {"Authorization": f"{HIDDEN}\n {HIDDEN}"},
    "a control character": {"Authorization": f"{HIDDEN}\x00"},
    "an escape": {"Authorization": f"\x1b[2J{HIDDEN}"},
    "what latin-1 has not": {"Authorization": f"{HIDDEN}\u20ac"},
    "bytes": {"Authorization": HIDDEN.encode()},
    "a number": {"Authorization": 5},
    "nothing": {"Authorization": None},
    "a list": {"Authorization": [HIDDEN]},
    "a name that is none": {5: HIDDEN},
    "a name of bytes": {b"Authorization": HIDDEN},
    "a name with its colon": {"Authorization:": HIDDEN},
    "a name of two words": {"My Token": HIDDEN},
    "a name with a line end": {"Authorization\n": HIDDEN},
    "no name": {"": HIDDEN},
    "a length": {"content-length": HIDDEN},
    "an encoding": {"Transfer-Encoding": HIDDEN},
    "the same twice": {"Authorization": HIDDEN, "authorization": HIDDEN},
    "pairs": [("Authorization", HIDDEN)],
    "a text": f"Authorization: {HIDDEN}",
    "an empty text": "",
}


@pytest.mark.parametrize("headers", WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_a_header_that_cannot_be_sent_is_refused_at_once_and_not_repeated(headers) -> None:
    with pytest.raises(sw.ConfigurationError, match="`headers") as refused:
        Webhook("https://host/x", headers=headers)
    assert HIDDEN not in str(refused.value)
    if isinstance(headers, dict):
        name, *_ = headers
        assert f"`headers[{name!r}]`" in str(refused.value)


def test_a_line_end_at_the_end_of_a_token_is_named_as_what_it_is() -> None:
    with pytest.raises(sw.ConfigurationError, match="a line end at its end: strip it"):
        Webhook("https://host/x", headers=WRONG_HEADERS["a line end at its end"])


_TEXT = st.text(st.characters(max_codepoint=300), max_size=6)


@given(_TEXT, _TEXT)
@example("Authorization", "caf\xe9\t\xa0")
@example("X-Empty", "")
def test_what_is_taken_is_what_http_sends(name: str, value: str) -> None:
    try:
        Webhook("https://host/x", headers={name: value})
    except sw.ConfigurationError:
        return
    connection = HTTPConnection("host")
    connection.putrequest("POST", "/")
    connection.putheader(name.capitalize().title(), value)


def test_headers_may_change_later_without_a_change_of_what_is_sent(serve) -> None:
    server, headers = serve(), {"content-type": "text/plain", "X-Token": "caf\xe9"}
    hook = quick(server.url, headers=headers)
    headers["X-Token"] = "bad\n"
    hook(event())
    hook.close()
    ((_, _, sent),) = server.posted
    assert (sent["Content-Type"], sent["X-Token"]) == ("text/plain", "caf\xe9")
