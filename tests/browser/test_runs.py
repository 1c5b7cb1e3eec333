"""Several runs on one page, as ``show`` serves them; what the first screen answers of one."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser.conftest import (
    NARROW,
    PHONE,
    WIDE,
    Open,
    close,
    expect_text,
    faults,
    needs_axe,
    picture,
)
from contracts import fake_run
from contracts.event_readers import page_server
from contracts.once import once

import sparsitywatch as sw
from sparsitywatch.records import Detail, Record, WatchState

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.browser]

#: Of a run of its length, and of its snapshots.
LAST, EVERY = 3_000_000, 100_000
HOUR_S = 3600.0
Edit = Callable[[Record], Record]


def snapshots(
    seed: int, last: int, age_s: float, edit: Edit = lambda record: record
) -> list[tuple[Record, Detail]]:
    """Of a training that made twenty steps a second until some time ago."""
    found, now = [], time.time()
    for step in range(0, last + 1, EVERY):
        record, detail = fake_run.look(step, last_step=LAST, seed=seed)
        lr = 1e-4 * min(1.0, step / 3e5) * (1.0 - 0.9 * step / LAST)
        times = {"wall_time": now - age_s - (last - step) / 20.0, "lr": lr}
        clocks = {"decay_clock": 2e-6 * step, "lr_clock": 2e-6 * step}
        found.append((edit(replace(record, **times, **clocks)), detail))
    return found


def state(step: int, age_s: float, status: str = "closed", reason: str = "") -> WatchState:
    number = step // EVERY + 1
    due = step + EVERY if status == "on" else -1
    return WatchState(
        status=status, reason=reason, step=step, wall_time=time.time() - age_s, last_step=step,
        last_evaluated_step=step, num_due=number, num_taken=number, num_evaluated=number,
        overhead=0.009, step_s=0.05, next_due_step=due, next_evaluation_step=due,
    )  # fmt: skip


def other(**differs: Any) -> Edit:
    """It is measured otherwise."""
    return lambda record: replace(record, provenance=replace(record.provenance, **differs))


def diverged(record: Record) -> Record:
    if record.step < 2_200_000:
        return record
    return replace(record, num_nan=12_288, near_zero=dict.fromkeys(record.near_zero, math.nan))


def write_fourteen(folder: Path) -> None:
    """As a group has them after a while: five broken, three that cannot be compared with others."""
    events = fake_run.events(LAST)
    broken = {
        "lr1e-3-diverged": (2_500_000, 9 * HOUR_S, "on", "", diverged),
        "seed2": (1_900_000, 50 * HOUR_S, "off", "the disk is full: no space left on device"),
        "seed3": (2_700_000, 7 * HOUR_S, "on"),
        "debug-crashed": (300_000, 80 * HOUR_S, "on"),
        "debug-truncated": (400_000, 90 * HOUR_S, "on"),
    }
    ended = ("lr1e-4", "lr3e-4", "wd0", "wd0.1", "seed1")
    edits = {"other-data": other(proxy_hash="0ther"), "tolerance-5": other(tolerance=0.05),
             "wide": other(scope_hash="wide")}  # fmt: skip
    others = dict.fromkeys(ended, (LAST, 90.0, "closed", ""))
    others |= {name: (LAST, 90.0, "closed", "", edit) for name, edit in edits.items()}
    others["lr6e-4"] = (2_300_000, 20.0, "on")
    for seed, (name, (last, age_s, *more)) in enumerate((broken | others).items()):
        edit = more[2:]
        told = events if name in ("lr1e-4", "wd0.1") else events[:1] if seed % 4 == 2 else []
        told = [event for event in told if event.detected_step <= last]
        fake_run.write_run(
            folder / f"bert-base-{name}", snapshots(seed, last, age_s, *edit), told,
            state=state(last, age_s, *more[:2]),
        )  # fmt: skip
    records = folder / "bert-base-debug-truncated" / "sparsitywatch" / "records.jsonl"
    records.write_bytes(b"{}\n" + records.read_bytes())


@pytest.fixture(scope="module")
def fourteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "fourteen", write_fourteen)


#: At which height the first chart is, at most.
LOOKS = [(WIDE, "light", 720), (NARROW, "dark", 870), (PHONE, "light", 600)]
if "SPARSITYWATCH_PICTURES" in os.environ:
    LOOKS += [(WIDE, "dark", 720), (NARROW, "light", 870), (PHONE, "dark", 600)]


@needs_axe
@pytest.mark.parametrize(("viewport", "scheme", "highest"), LOOKS)
def test_the_worst_run_is_on_top_and_shown_and_stays(
    open_page: Open, fourteen: Path, viewport: dict[str, int], scheme: str, highest: int
) -> None:
    with page_server(fourteen) as url:
        page = open_page(url, viewport=viewport, color_scheme=scheme)
        expect_text(page, ".runs h2", re.compile(r"14 runs 5 broken, \d look, \d healthy"))
        expect_text(page, ".heat", "query")
        rows = page.locator(".run")
        # the gravest, of equals the one that was heard of last; what cannot be read is never
        names = ["seed3", "lr1e-3-diverged", "seed2", "debug-crashed", "debug-truncated"]
        on_top = [text.split()[0] for text in rows.all_inner_texts()[:5]]
        assert on_top == [f"bert-base-{name}" for name in names]
        ticked = [box.locator("xpath=..").inner_text().strip() for box in
                  page.locator(".runs input:checked").all()]  # fmt: skip
        assert ticked == on_top[:4]
        expect_text(page, ".eyebrow", on_top[0])
        if viewport != PHONE:
            name, table = (page.locator(f".runs {s}").first.bounding_box()["width"]
                           for s in ("th[scope=row]", "table"))  # fmt: skip
            assert name <= 0.25 * table
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.locator(".runs").bounding_box()["height"] <= 196
        assert page.locator(".chart canvas").first.bounding_box()["y"] < highest
        name = f"runs-{viewport['width']}-{scheme}"
        picture(page, name)
        picture(page, f"{name}-whole", full_page=True)
        assert faults(page, scheme) == []
        rows.nth(2).get_by_role("button", name="Show bert-base-seed2 below").click()
        expect_text(page, ".eyebrow", "bert-base-seed2")
        expect_text(page, "#app h1", "The watch has been off since step 1,900,000")
        expect_text(page, ".run.first", "shown below")
        close(page)


#: What a stranger asks of a run, and where the answer stands.
QUESTIONS = {
    "what": ("#app h1", "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise"),
    "when": ("#app h1", "between steps 1,000 and 1,100"),
    "where": (".answers", "Where: "),
    "why": (".answers", "Why: "),
    "act": (".action", "What to do: "),
    "trust": (".answers", "How sure: "),
    "still on": (".eyebrow", "last sign of life"),
}


@pytest.mark.parametrize("viewport", [WIDE, NARROW, PHONE])
def test_a_stranger_s_seven_questions_are_answered_on_the_first_screen(
    open_page: Open, tmp_path: Path, viewport: dict[str, int]
) -> None:
    on = WatchState(
        status="on", step=2000, wall_time=time.time(), last_step=2000, last_evaluated_step=2000,
        num_due=21, num_taken=21, num_evaluated=21, overhead=0.009, step_s=0.5,
        next_due_step=2100, next_evaluation_step=2100,
    )  # fmt: skip
    looks = fake_run.looks(range(0, 2001, 100))
    fake_run.write_run(tmp_path / "run", looks, fake_run.events(), state=on)
    with page_server(tmp_path) as url:
        page = open_page(url, viewport=viewport)
        for question, (selector, answer) in QUESTIONS.items():
            expect_text(page, selector, answer)
            box = page.locator(selector).bounding_box()
            assert box["y"] + box["height"] <= viewport["height"], question
        # the chart with its tensors under the same steps, and the cost curve beside that before
        chart = page.locator("[data-chart=sparse] canvas").first.bounding_box()
        assert chart["y"] < 600
        assert chart["y"] + chart["height"] <= viewport["height"]
        expect_text(page, ".story", "Before it: Reliance began to rise")
        assert page.locator(".cost .then").get_attribute("points")
        picture(page, f"first-screen-{viewport['width']}")
        close(page)


def test_what_cannot_be_compared_is_left_out_by_name(open_page: Open, tmp_path: Path) -> None:
    made = {"a": {}, "b": {"proxy_hash": "other", "tolerance": 0.05}, "c": {"scope_hash": "other"}}
    for name, differs in made.items():
        looks = [
            (replace(record, provenance=replace(record.provenance, **differs)), detail)
            for record, detail in fake_run.looks(range(0, 2001, 200))
        ]
        fake_run.write_run(tmp_path / name, looks)
    fake_run.write_run(tmp_path / "d", fake_run.looks(range(0, 2001, 200)))
    damaged = fake_run.write_run(tmp_path / "0-damaged", fake_run.looks(range(0, 401, 200)))
    records = damaged / "sparsitywatch" / "records.jsonl"
    records.write_bytes(b"{}\n" + records.read_bytes())
    weights, examples = "c (other in-scope weights)", "b (other held-out examples and tolerance)"
    with page_server(tmp_path) as url:
        page = open_page(url)
        expect_text(page, ".heat", "query")
        page.get_by_label("d", exact=True).check()
        expect_text(page, "[data-chart=sparse] .legend", "d: near zero")
        for chart, apart, lines in (
            ("sparse", weights, ["a", "b", "d"]), ("clock", None, ["a", "b", "c", "d"]),
            ("essential", f"{examples}; {weights}", ["a", "d"]),
            ("value", f"{examples}; {weights}", ["a", "d"]),
        ):  # fmt: skip
            place = f"[data-chart={chart}]"
            drawn = page.locator(f"{place} .key").all_inner_texts()
            assert sorted({text[0] for text in drawn}) == lines
            assert page.locator(f"{place} .apart").count() == (apart is not None)
            if apart:
                told = f"Left out, as they cannot be compared with a: {apart}."
                sync_api.expect(page.locator(f"{place} .apart")).to_have_text(told)
        # a log that cannot be read is in the table, and hides nothing
        expect_text(page, ".run:first-child", "Its log cannot be read")
        assert page.locator(".run:first-child button").count() == 0
        assert page.locator(".runs input:checked").count() == 4
        # a threshold is counted of each run
        page.locator("#tau").select_option("abs")
        counted = re.compile(r"a: near zero \(\|w\| ≤ .*d: near zero")
        expect_text(page, "[data-chart=sparse] .legend", counted)
        close(page)


def test_a_link_brings_back_the_zoom_and_the_runs(open_page: Open, tmp_path: Path) -> None:
    for seed, name in enumerate("abcdef"):
        last = 2000 if name != "a" else 400  # the zoom is beyond the end of the first
        fake_run.write_run(tmp_path / name, fake_run.looks(range(0, last + 1, 100), seed=seed))
    with page_server(tmp_path) as url:
        page = open_page(url)
        expect_text(page, ".heat", "query")
        expect_text(page, ".eyebrow", "run a ")  # the shown one, before anything is chosen
        expect_text(page, "[data-chart=sparse] .legend", "d: near zero")
        over = page.locator("[data-chart=sparse] .u-over")
        over.hover(trial=True)  # once it stays where it is
        box = over.bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 40)
        page.mouse.down()
        # what comes to be drawn meanwhile waits until the pointer is let go
        with page.expect_response(lambda response: "run=f" in response.url):
            page.get_by_label("f", exact=True).evaluate("box => box.click()")
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 40, steps=4)
        page.mouse.up()
        expect_text(page, "[data-chart=sparse] .legend", "f: near zero")
        zoomed = re.compile(r"zoom=1000-1[56]\d\d")

        page.wait_for_url(zoomed)
        ticked = [box.get_attribute("id") for box in page.locator(".runs input:checked").all()]
        again = open_page(page.url)
        expect_text(again, ".heat", "query")
        expect_text(again, ".eyebrow", "a")
        assert zoomed.search(again.url)
        assert ticked == [
            box.get_attribute("id") for box in again.locator(".runs input:checked").all()
        ]
        close(page, again)


def test_a_link_brings_back_how_the_lines_are_drawn(open_page: Open, tmp_path: Path) -> None:
    for seed in range(5):
        looks = fake_run.looks(range(0, 2001, 100), seed=seed)
        fake_run.write_run(tmp_path / f"bert-seed{seed}", looks, fake_run.events())
    fake_run.write_run(tmp_path / "gpt", fake_run.looks(range(0, 2001, 100), seed=9))
    with page_server(tmp_path) as url:
        page = open_page(url)
        expect_text(page, ".heat", "query")
        page.locator("#filter").press_sequentially("seed[0-2]")
        sync_api.expect(page.locator(".run")).to_have_count(3)
        page.get_by_label("over").select_option("hours")
        page.get_by_label("smoothing").press("ArrowRight")
        for seed in range(3):
            page.get_by_label(f"bert-seed{seed}", exact=True).check()
        page.get_by_label("seeds as one line").check()
        again = open_page(page.url)
        for either in (page, again):
            expect_text(either, ".heat", "query")
            legend = "[data-chart=sparse] .legend"
            expect_text(either, legend, "bert-seed* (mean of 3): near zero")
            expect_text(
                either, "[data-chart=sparse] h2", "over hours of training; lines are smoothed"
            )
            assert either.locator("#filter").input_value() == "seed[0-2]"
            assert either.locator("#smooth").input_value() == "0.05"
            sync_api.expect(either.locator(".run")).to_have_count(3)
        for kind, begin in (
            ("PNG", b"\x89PNG"),
            ("CSV", b'hours,"bert-seed* (mean of 3): near zero'),
        ):
            button = again.get_by_role(
                "button", name=f"Download the chart “Turning sparse?” as {kind}"
            )
            with again.expect_download() as saved:
                button.press("Enter")
            assert saved.value.suggested_filename.endswith(f"-sparse.{kind.lower()}")
            content = Path(saved.value.path()).read_bytes()
            assert content.startswith(begin)
        head, *lines = content.decode().splitlines()
        assert head.endswith(
            ', low","bert-seed* (mean of 3): forecast of near zero, one clock unit ahead, high"'
        )
        assert len(lines) == 21
        # the numbers are those of the logs, not smoothed: mean, then lowest and highest
        of = [
            sw.load(tmp_path / f"bert-seed{seed}").series("near_zero/initial_0.1")[1]
            for seed in range(3)
        ]
        row = [float(x or "nan") for x in lines[-1].split(",")]
        place = [
            name.strip('"').endswith("near zero (|w| ≤ 0.1 × first rms)")
            for name in head.split(',"')
        ]
        assert row[place.index(True)] == pytest.approx(np.mean(of, axis=0)[-1], rel=1e-6)
        close(page, again)
