"""Events posted to a real server on the loopback device; nothing waits for a clock."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

import sparsitywatch as sw
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
            optimizer.step()
            if seen:
                server.wait_for(0 if server.posted else 1)  # it hangs from here on
    assert watcher.step_count == 40
    assert len(seen) == 1
    assert [code for code, _, _ in server.posted] == [200]
    assert "does not answer; events that were not posted: 1" in caplog.text


def test_the_queue_is_bounded(serve, caplog) -> None:
    server = serve(hangs=True)
    hook = quick(server.url, max_queue=2)
    hook(event(100))
    server.wait_for(1)  # this one is on its way, two may wait
    for step in (200, 300, 400):
        hook(event(step))
    assert "near_zero/initial_0.1@350 is not posted" in caplog.text
    server.let_go.set()
    hook.close()
    assert [data["detected_step"] for _, data, _ in server.posted] == [100, 200, 300]


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
    with pytest.raises(sw.ConfigurationError, match=f"`{option}` to be a number >="):
        Webhook("https://host/x", **{option: value})
