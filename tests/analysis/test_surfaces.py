"""What every surface says of a run: each fact once, in the same words and numbers everywhere.

Page, tab, report, notebook, ``status``, ``status --json``, ``summary`` and TensorBoard's texts. The
words stand here as a person reads them, for runs that stand in different ways.
"""

from __future__ import annotations

import gzip
import html
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts import event_readers, fake_run
from contracts.page import inside_of, parse
from tensorboard.util import tensor_util

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.page.server import Runs
from sparsitywatch.processes import this_process
from sparsitywatch.records import Event, Record, RunInfo, WatchState
from sparsitywatch.sinks import JsonlSink, TensorBoardSink

RELIANCE, TAKE_OFF = fake_run.events()
LOOKS = fake_run.looks(range(0, 2001, 200))
LAST = {"num_due": 11, "num_taken": 11, "num_evaluated": 11, "last_evaluated_step": 2000}
OVER = "above `max_overhead` (1 %): 2.9 s of 12 s, most for evaluations"
#: No process has it: the largest that Linux gives is 4,194,304.
GONE = 2**22 + 5

#: On which surfaces each fact stands; TensorBoard's texts do not know how it all stands.
SAYING = ("page", "tab", "report", "notebook", "status", "status --json", "summary")
WITH_TENSORBOARD = (*SAYING, "tensorboard")
FACTS = {
    "state": (*SAYING, "repr"),
    "headline": (*WITH_TENSORBOARD, "repr"),
    "onset": WITH_TENSORBOARD,
    "advice": WITH_TENSORBOARD,
    "last snapshot": WITH_TENSORBOARD,
    "next one": WITH_TENSORBOARD,
    "is it on": WITH_TENSORBOARD,
    "events": SAYING,
    "near zero": SAYING,
    "essential sparsity": SAYING,
    "share of time": WITH_TENSORBOARD,
    "not watched": SAYING,
}
#: What says a fact wherever it is said, so that no surface says another beside the right one.
PATTERNS = {
    "onset": r"(?:between|after) (?:step|epoch)s? [\d,]+(?: and [\d,]+)?(?=, seen)",
    "last snapshot": r"[Ll](ast snapshot at (?:step|epoch) [\d,]+)",
    "next one": r"[Nn](ext snapshot about step [\d,]+)",
    "events": r"\b\d+ events?\b",
    "near zero": r"(?<!of )near zero ([\d.]+ %)",
    "essential sparsity": r"essential sparsity ([\d.]+ %(?: \[[^\]]+\])?|(?:not|cannot) \w+)",
    "share of time": r"took ([\d.]+ % of the wall time(?:, above [^:]+: [\w ,.]+\w)?)",
}


def cut(number: int, **fields: Any) -> list[tuple[Record, Any]]:
    """The first snapshots, the last of which is changed."""
    looks = LOOKS[:number]
    return [*looks[:-1], (replace(looks[-1][0], **fields), looks[-1][1])]


def without_proxy(record: Record, epoch: int) -> Record:
    bare = fake_run.without(record, "curve", "essential_sparsity")
    provenance = replace(record.provenance, proxy_hash="", unit="epoch")
    return replace(bare, step=epoch, provenance=provenance, trained=math.nan)


def healthy() -> tuple[list, list[Event], WatchState, RunInfo]:
    """It has come to its end, and nothing happened."""
    state = WatchState(status="closed", step=2100, wall_time=1.7e9 + 2100, last_step=2000,
                       overhead=0.008, **LAST)  # fmt: skip
    return LOOKS, [], state, fake_run.run_info()


def look() -> tuple[list, list[Event], WatchState, RunInfo]:
    """It goes on, something happened, and the watch costs more than it may."""
    state = WatchState(status="on", step=2150, wall_time=time.time(), last_step=2000,
                       next_due_step=2200, next_evaluation_step=2200, overhead=0.243,
                       why_overhead=OVER, **LAST)  # fmt: skip
    return LOOKS, [RELIANCE, TAKE_OFF], state, fake_run.run_info()


def killed() -> tuple[list, list[Event], WatchState, RunInfo]:
    """It says that it is on, and its process is gone; the log knows two snapshots more."""
    state = WatchState(status="on", step=1650, wall_time=1.7e9 + 1650, last_step=1600,
                       next_due_step=1800, num_due=9, num_taken=9, num_evaluated=9,
                       last_evaluated_step=1600, overhead=0.004,
                       **this_process()._replace(pid=GONE)._asdict())  # fmt: skip
    return LOOKS, [], state, fake_run.run_info()


def early() -> tuple[list, list[Event], WatchState, RunInfo]:
    """It has just begun, and the model does not rely on its weights."""
    state = WatchState(status="on", step=230, wall_time=time.time(), last_step=200, num_due=2,
                       num_taken=2, num_evaluated=2, last_evaluated_step=200, next_due_step=400,
                       next_evaluation_step=400, overhead=0.0061)  # fmt: skip
    return LOOKS[:2], [], state, fake_run.run_info()


def broken() -> tuple[list, list[Event], WatchState, RunInfo]:
    """Weights are NaN, and an error ended the training."""
    state = WatchState(status="ended", reason="FloatingPointError", step=2003,
                       wall_time=1.7e9 + 2003, last_step=2000, overhead=0.008,
                       **LAST)  # fmt: skip
    sign = Event(series="vital/not_finite", kind="not_finite", direction="up", onset_step=2000,
                 onset_low=1800, detected_step=2000, before_step=1800, baseline=0.0, value=2.0,
                 reason="weights are NaN or infinite", layers=TAKE_OFF.layers)  # fmt: skip
    return cut(11, num_nan=12), [sign], state, fake_run.run_info()


def replayed() -> tuple[list, list[Event], None, RunInfo]:
    """Of saved checkpoints by epochs, without a proxy; nobody watched."""
    looks = [(without_proxy(record, i), detail) for i, (record, detail) in enumerate(LOOKS)]
    info = replace(fake_run.run_info(), provenance=looks[0][0].provenance,
                   replayed_from=("runs/checkpoints",))  # fmt: skip
    return looks, [], None, info


NO_ALARM = {"headline": "No alarm in 11 snapshots", "advice": "No action needed.",
            "events": "0 events"}  # fmt: skip
AT_THE_END = {"last snapshot": "ast snapshot at step 2,000", "near zero": "31.9 %",
              "essential sparsity": "45.2 % [41.2 %, 48.2 %]",
              "not watched": "87.4 % of the weights in scope: no step reaches them"}  # fmt: skip
#: What is true of each run, in words; a fact that does not apply to a run is left out.
RUNS: dict[str, tuple[Any, dict[str, str]]] = {
    "healthy": (healthy, {
        **NO_ALARM, **AT_THE_END, "state": "healthy",
        "is it on": "he watch was closed at step 2,100", "share of time": "0.8 % of the wall time",
    }),
    "look": (look, {
        **AT_THE_END, "state": "look", "events": "2 events",
        "headline": "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise from 6.3 % to 8.5 % "
        "(22 times the noise)",
        "onset": "between steps 1,000 and 1,100", "another onset": "after step 600",
        "advice": "Compare the checkpoints around steps 1,050 and 1,125.",
        "next one": "ext snapshot about step 2,200", "is it on": "he watch is on, at step 2,150",
        "share of time": f"24.3 % of the wall time, {OVER}",
    }),
    "killed": (killed, {
        **AT_THE_END, "state": "broken", "events": "0 events",
        "headline": "The training ended without closing its watch, after step 2,000; before that: ",
        "advice": "look for who or what ended it (memory, a time limit, os._exit), and go",
        "is it on": "he training ended without closing its watch, after step 2,000",
        "share of time": "0.9 % of the wall time",
    }),
    "early": (early, {
        "state": "too early to tell", "headline": "2 of about 9 snapshots so far",
        "advice": "No action needed: a change can be told from more snapshots.",
        "events": "0 events", "is it on": "he watch is on, at step 230",
        "last snapshot": "ast snapshot at step 200", "next one": "ext snapshot about step 400",
        "near zero": "6.28 %", "essential sparsity": "not informative",
        "share of time": "0.61 % of the wall time",
    }),
    "broken": (broken, {
        **AT_THE_END, "state": "broken", "events": "1 event",
        "headline": "The training was ended by FloatingPointError at step 2,003; before that: 12 w",
        "onset": "between steps 1,800 and 2,000",
        "advice": "Stop the run and go on from a checkpoint of step 1,800 or before.",
        "is it on": "he training was ended by FloatingPointError at step 2,003",
        "near zero": "29.6 %", "share of time": "0.8 % of the wall time",
    }),
    "replayed": (replayed, {
        **NO_ALARM, "state": "healthy", "is it on": "replayed from saved checkpoints",
        "last snapshot": "ast snapshot at epoch 10", "near zero": "31.9 %",
        "not watched": "essential sparsity and reliance: no proxy was given",
    }),
}  # fmt: skip
#: What TensorBoard's texts cannot know, or have no place for.
NOT_IN_TENSORBOARD = {
    "healthy": {"headline", "advice"},
    "look": set(),
    "killed": set(FACTS),
    "early": {"headline", "advice"},
    "broken": {"headline"},  # it has the event's
    "replayed": set(FACTS),
}


def words_of(data: Any) -> Iterator[str]:
    """Every text of a JSON; a tile is its label and its value."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        if "was" in data:
            yield f"{data['label']} {data['value']}"
        for key, value in data.items():
            if key not in ("about", "words"):  # what things are called
                yield from words_of(value)
    elif isinstance(data, list):
        for value in data:
            yield from words_of(value)


def texts(directory: Path) -> str:
    reader = event_readers.plugin_accumulator(directory)
    last = [
        tensor_util.make_ndarray(reader.Tensors(tag)[-1].tensor_proto).item().decode()
        for tag in event_readers.tags_of(reader, "text")
        if not tag.endswith(("about", "notes", "scope"))
    ]
    return html.unescape("\n".join(last))


def surfaces(logdir: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each surface says of a run, as one text."""
    run = sw.load(logdir)
    page = run.report(logdir / "page.html").read_text(encoding="utf-8")
    frame = parse(run._repr_html_()).one("iframe")["srcdoc"]
    answer = gzip.decompress(Runs({"": logdir}).answer("/page", logdir.name))
    found = {
        "page": "\n".join(words_of(inside_of(page)["page"])),
        "tab": "\n".join(words_of(json.loads(answer))),
        "report": read(page),
        "notebook": read(frame),
        "repr": repr(run),
        "tensorboard": texts(logdir / "sparsitywatch"),
    }
    for command in ("status", "status --json", "summary"):
        main([*command.split(), str(logdir)])
        told = capsys.readouterr().out
        found[command] = "\n".join(words_of(json.loads(told))) if "json" in command else told
    return found


def read(page: str) -> str:
    """What is read where no script runs, line by line; the state is the colour of the badge."""
    static = parse(page).one("div", class_="static")
    (kind,) = re.findall(r'class="badge (\w+)"', page)
    lines = [one.text() for one in static.walk() if one.tag in ("h1", "p", "li")]
    return "\n".join([{"too": "too early to tell"}.get(kind, kind), *lines])


def write(logdir: Path, name: str) -> None:
    looks, events, state, info = RUNS[name][0]()
    directory = logdir / "sparsitywatch"
    for sink in (JsonlSink(directory), TensorBoardSink(directory)):
        sink.open(info)
        for record, detail in looks:
            sink.write(record, detail)
        for event in events:
            sink.event(event)
        if state is not None:
            sink.state(state)
        sink.close()


@pytest.mark.parametrize("name", RUNS)
def test_every_surface_says_each_fact_in_the_same_words(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / name, name)
    monkeypatch.setenv("COLUMNS", "1000")
    shown = surfaces(tmp_path / name, capsys)
    expected = RUNS[name][1]
    other: dict[str, list[str]] = {}
    for fact, places in FACTS.items():
        for place in places:
            if place == "tensorboard" and fact in NOT_IN_TENSORBOARD[name]:
                continue
            text = shown[place]
            if expected.get(fact, "") not in text:
                other.setdefault(fact, []).append(f"{place} lacks {expected[fact]!r}")
            said = {match[match.lastindex or 0] for match in re.finditer(
                PATTERNS.get(fact, r"(?!)"), text)}  # fmt: skip
            if said - {expected.get(fact), expected.get(f"another {fact}")}:
                other.setdefault(fact, []).append(f"{place} says {said}")
    assert other == {}


def test_the_facts_are_the_twelve() -> None:
    assert len(FACTS) == 12
    for _, expected in RUNS.values():
        assert set(expected) - {"another onset"} <= set(FACTS)
    for fact in FACTS:
        assert any(fact in expected for _, expected in RUNS.values()), fact
