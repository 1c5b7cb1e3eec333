"""The page over HTTP: what is answered, when it is read again, and to whom."""

from __future__ import annotations

import gzip
import io
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from wsgiref.validate import validator

import pytest
from contracts import fake_run

import sparsitywatch as sw
from sparsitywatch.analysis.run import Run
from sparsitywatch.cli import main
from sparsitywatch.cli.logs import server_of
from sparsitywatch.page import server as server_module
from sparsitywatch.page.server import App, Runs, apps_of
from sparsitywatch.page.tab import roots_of
from sparsitywatch.records import WatchState, to_json
from sparsitywatch.sinks import jsonl


@pytest.fixture
def logs(tmp_path: Path, monkeypatch) -> Path:
    """Two runs, one of them deeper, and a folder without any."""
    monkeypatch.setattr(server_module, "_WALK_S", -1.0)  # look again at once
    looks = fake_run.looks(range(0, 2001, 500))
    fake_run.write_run(tmp_path / "a", looks, fake_run.events())
    fake_run.write_run(tmp_path / "deep" / "b", looks[:2])
    (tmp_path / "other" / "x").mkdir(parents=True)
    return tmp_path


def ask(server: dict[str, App], route: str, query: str = "", *, packed: bool = True):
    """Status, headers and body as the applications give them; WSGI is kept to."""
    found = {}

    def start(status, headers, exc_info=None):
        found.update(status=status, headers=dict(headers))
        return lambda text: None

    environ = {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": route, "QUERY_STRING": query,
        "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr, "wsgi.multithread": True,
        "wsgi.multiprocess": False, "wsgi.run_once": False,
        **({"HTTP_ACCEPT_ENCODING": "gzip, br"} if packed else {}),
    }  # fmt: skip
    answer = validator(server[route])(environ, start)
    body = b"".join(answer)
    answer.close()
    assert int(found["headers"]["Content-Length"]) == len(body)
    if found["headers"].get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return found["status"], found["headers"], body


def names(server: dict[str, App]) -> dict[str, str]:
    return {run["name"]: run["version"] for run in json.loads(ask(server, "/runs")[2])}


def test_runs_are_found_by_the_names_that_tensorboard_has(logs: Path) -> None:
    assert list(names(apps_of(Runs({"": logs})))) == ["a", "deep/b"]
    assert list(names(apps_of(Runs({"": logs / "a"})))) == ["a"]
    assert list(names(apps_of(Runs({"": logs / "a" / "sparsitywatch"})))) == ["a"]
    prefixed = apps_of(Runs({"x": logs / "a", "y": logs / "deep"}))
    assert list(names(prefixed)) == ["x", "y/b"]
    assert names(apps_of(Runs({"": logs / "other"}))) == {}
    assert names(apps_of(Runs({"": logs / "nowhere"}))) == {}


def test_links_are_followed_and_a_file_of_others_hides_no_run(
    logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fake_run.write_run(elsewhere / "c", fake_run.looks(range(0, 1001, 500)))
    (logs / "linked").symlink_to(elsewhere)
    (logs / "deep" / "round").symlink_to(logs)  # each folder is entered once
    for folder in (logs, logs / "deep", logs / "other"):
        (folder / "run.json").write_text('{"name": "of another tool"}')
    (logs / "other" / "run.json").write_text("no JSON")
    assert list(names(apps_of(Runs({"": logs})))) == ["a", "deep/b", "linked/c"]
    with pytest.raises(sw.ConfigurationError, match=r"in there: .*/a, .*b, .*linked/c"):
        sw.load(logs)
    assert sw.load(logs / "linked" / "c").name == "c"


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_asked_is_sent(logs: Path, packed: bool) -> None:
    server = apps_of(Runs({"": logs}))
    status, headers, body = ask(server, "/page", "run=deep%2Fb", packed=packed)
    assert status == "200 OK"
    assert ("Content-Encoding" in headers) == packed
    data = json.loads(body)
    assert data["name"] == "deep/b"
    assert data["steps"] == [0, 500]
    details = json.loads(ask(server, "/details", "run=a")[2])
    assert len(details["maps"]["rows"]["near_zero"]) == 12


@pytest.mark.slow
@pytest.mark.parametrize("query", ["run=none", "", "run=..%2Fa", "run=%00"])
def test_what_is_no_run_is_not_there(logs: Path, query: str) -> None:
    status, headers, body = ask(apps_of(Runs({"": logs})), "/page", query)
    assert status == "404 Not Found"
    assert headers["Content-Type"].startswith("text/plain")
    assert b"there is no run" in body


def test_a_damaged_log_is_an_answer_that_says_so(logs: Path) -> None:
    records = logs / "a" / "sparsitywatch" / "records.jsonl"
    records.write_bytes(b"{}\n" + records.read_bytes())
    status, _, body = ask(apps_of(Runs({"": logs})), "/page", "run=a")
    assert status == "409 Conflict"
    assert b"records.jsonl, line 1" in body


def test_a_damaged_log_hides_no_other_run(logs: Path) -> None:
    records = logs / "a" / "sparsitywatch" / "records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(b"{}\n" + whole)
    server = apps_of(Runs({"": logs}))
    for route in ("/summary", "/page"):
        assert ask(server, route, "run=a")[0] == "409 Conflict"
        assert list(names(server)) == ["a", "deep/b"]
    before = names(server)
    assert names(server) == before
    records.write_bytes(whole)  # mended
    assert names(server)["a"] != before["a"]
    assert ask(server, "/page", "run=a")[0] == "200 OK"


def test_a_log_is_read_again_only_when_it_has_grown(logs: Path, monkeypatch) -> None:
    server = apps_of(Runs({"": logs}))
    reads = count_lines(monkeypatch)
    before = names(server)
    for _ in range(3):
        ask(server, "/page", "run=a")
        ask(server, "/details", "run=a")
    assert len(reads) == 5
    assert names(server) == before
    fake_run.write_run(logs / "a", [fake_run.look(2500)], first=2000)  # reads the lines, too
    reads.clear()
    after = names(server)
    assert {name for name in after if after[name] != before[name]} == {"a"}
    assert json.loads(ask(server, "/page", "run=a")[2])["steps"][-1] == 2500
    assert len(reads) == 1
    whole = ask(apps_of(Runs({"": logs})), "/page", "run=a")
    assert ask(server, "/page", "run=a") == whole


def count_lines(monkeypatch) -> list[int]:
    """One for each line that becomes a record from now on."""
    found: list[int] = []
    read = jsonl._read_record
    monkeypatch.setattr(jsonl, "_read_record", lambda *given: found.append(1) or read(*given))
    return found


def test_what_is_shown_at_first_is_read_before_anybody_asks(logs: Path, monkeypatch) -> None:
    damaged = logs / "a" / "sparsitywatch" / "records.jsonl"
    damaged.write_bytes(b"{}\n" + damaged.read_bytes())
    runs = Runs({"": logs})
    runs._warm()
    reads = count_lines(monkeypatch)
    server = apps_of(runs)
    for route in ("/page", "/details"):
        assert ask(server, route, "run=deep%2Fb")[0] == "200 OK"
    assert reads == []
    assert ask(server, "/page", "run=a")[0] == "409 Conflict"  # told to whoever asks


def test_versions_are_told_while_an_answer_is_being_made(logs: Path, monkeypatch) -> None:
    runs, inside, go_on = Runs({"": logs}), threading.Event(), threading.Event()

    def slow(run: Run) -> dict:
        inside.set()
        assert go_on.wait(30.0)
        return {}

    monkeypatch.setitem(server_module._DATA, "/details", slow)
    thread = threading.Thread(target=runs.answer, args=("/details", "a"))
    thread.start()
    assert inside.wait(30.0)
    assert [run["name"] for run in runs.versions()] == ["a", "deep/b"]
    assert runs.answer("/page", "deep/b")  # nor does another run wait
    go_on.set()
    thread.join()


def test_a_watch_that_falls_silent_is_news_though_no_file_changed(
    tmp_path: Path, monkeypatch
) -> None:
    state = WatchState(status="on", step=2000, wall_time=time.time(), last_step=2000)
    fake_run.write_run(tmp_path / "run", fake_run.looks([1500, 2000]), state=state)
    server = apps_of(Runs({"": tmp_path}))
    first = json.loads(ask(server, "/page", "run=run")[2])
    before = names(server)
    now = time.time() + 4000.0
    monkeypatch.setattr(server_module.time, "time", lambda: now)
    assert names(server) != before
    later = json.loads(ask(server, "/page", "run=run")[2])
    assert [page["verdict"]["state"] for page in (first, later)] == ["too early to tell", "broken"]
    assert "No step was seen for 67 minutes" in later["verdict"]["cause"]


def test_a_place_that_is_elsewhere_is_told() -> None:
    roots, remark = roots_of("s3://bucket/runs", "")
    status, _, body = ask(apps_of(Runs(roots), remark), "/runs")
    assert (roots, status) == ({}, "409 Conflict")
    assert b"s3://bucket/runs is elsewhere" in body


def test_names_of_a_logdir_spec() -> None:
    roots, remark = roots_of("", "a:/x/y,/z,b:s3://c")
    assert roots == {"a": Path("/x/y"), "/z": Path("/z")}
    assert "s3://c" in remark


def test_few_runs_are_kept(logs: Path, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "_MAX_KEPT", 1)
    state = WatchState(status="on", step=2000, wall_time=1.7e9, last_step=2000)
    fake_run.write_run(logs / "killed", fake_run.looks([1500, 2000]), state=state)
    server = apps_of(Runs({"": logs}))
    for name in ("a", "deep/b", "a"):
        assert json.loads(ask(server, "/page", f"run={name}")[2])["name"] == name
    ask(server, "/page", "run=killed")
    before = names(server)
    ask(server, "/page", "run=a")  # the other one is let go of, and is not asked for again
    assert names(server) == before


def test_how_each_run_stands(logs: Path) -> None:
    state = WatchState(status="off", reason="the disk is full", step=500, wall_time=1.7e9)
    fake_run.write_run(logs / "off", fake_run.looks([0, 500]), state=state)
    server = apps_of(Runs({"": logs}))
    stands = {name: json.loads(ask(server, "/summary", f"run={name}")[2]) for name in names(server)}
    assert stands["a"] | {"headline": ""} == {
        "state": "look", "badge": "2 events", "headline": "", "last": "step 2,000",
        "time": 1_700_002_000, "heard": 1_700_002_000, "events": 2,
    }  # fmt: skip
    assert stands["a"]["headline"].startswith(
        "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise"
    )
    assert [stands[name]["state"] for name in ("deep/b", "off")] == ["too early to tell", "broken"]
    assert stands["off"]["headline"].startswith("The watch has been off since step 500")


# ------------------------------------------------------------------ show


@contextmanager
def shown(logdir: Path) -> Iterator[str]:
    with server_of(logdir, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetched(url: str, **headers: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
def test_show_serves_the_page_on_this_machine_alone(logs: Path) -> None:
    with shown(logs) as url:
        assert fetched(f"{url}/")[1].startswith("<!DOCTYPE html>")
        for name in ("index.js", "show.js", "page.css"):
            assert fetched(f"{url}/{name}")[0] == 200
        assert json.loads(fetched(f"{url}/runs")[1])[0]["name"] == "a"
        assert fetched(f"{url}/secret")[0] == 404
        # a name of another site that was made to lead here
        assert fetched(f"{url}/runs", Host="evil.example")[0] == 404
        port = url.rpartition(":")[2]
        assert fetched(f"{url}/runs", Host=f"localhost:{port}")[0] == 200


@pytest.mark.slow
def test_show_needs_a_directory_and_a_free_port(logs: Path, capsys) -> None:
    assert main(["show", str(logs / "nowhere")]) == 2
    assert "Expected LOGDIR to be a directory with logs" in capsys.readouterr().err
    with shown(logs) as url:
        assert main(["show", str(logs), "--port", url.rpartition(":")[2]]) == 2
    assert "Expected `--port` to be a free port" in capsys.readouterr().err
    assert main(["show", str(logs), "--port", "70000"]) == 2


def test_a_run_of_an_earlier_watch_has_a_name_of_its_own(logs: Path) -> None:
    (logs / "a" / "sparsitywatch").rename(logs / "a" / "sparsitywatch-earlier-1")
    fake_run.write_run(logs / "a", [fake_run.look(0)])
    assert list(names(apps_of(Runs({"": logs})))) == ["a", "a/sparsitywatch-earlier-1", "deep/b"]


def test_what_has_ended_a_training_is_told_by_the_page(logs: Path) -> None:
    info = replace(fake_run.run_info(), state=WatchState(
        status="ended", reason="KeyboardInterrupt", step=900, wall_time=0.0))  # fmt: skip
    (logs / "deep" / "b" / "sparsitywatch" / "run.json").write_text(to_json(info))
    data = json.loads(ask(apps_of(Runs({"": logs})), "/page", "run=deep%2Fb")[2])
    words = "The training was ended by KeyboardInterrupt at step 900; before that: 2 of about"
    assert data["verdict"]["headline"].startswith(words)
    assert data["verdict"]["state"] == "look"
