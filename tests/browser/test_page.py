"""The page in a real browser: as a file, in a real TensorBoard, and as `show` serves it.

With SPARSITYWATCH_PICTURES=docs the screenshots of the docs are made anew; docs/report.md says how.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
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
from contracts import event_readers, fake_run
from contracts.event_readers import page_server
from contracts.families import some_of
from contracts.once import once
from contracts.page import inside_of
from matplotlib import colormaps

from sparsitywatch.analysis.run import Run
from sparsitywatch.cli import main
from sparsitywatch.page.render import render
from sparsitywatch.records import WatchState
from sparsitywatch.sinks.jsonl import JsonlSink

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.browser]

EVIL = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>.weight"
)
#: TensorBoard's colours of runs, in the order in which it counts them.
COLOURS = ("#425066", "#12b5cb", "#e52592", "#f9ab00")


def hexadecimal(rgb: str) -> str:
    return "#" + "".join(f"{int(x):02x}" for x in re.findall(r"\d+", rgb))


def over(frame, chart: str, part: float) -> tuple[float, float]:
    """A place over a chart, at a part of its width."""
    place = frame.locator(f"[data-chart={chart}] .u-over")
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    return box["x"] + part * box["width"], box["y"] + box["height"] / 2


# ------------------------------------------------------------------ the file


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a tensor whose name would like to be a script, and a snapshot that failed."""
    looks = []
    for record, detail in fake_run.looks(range(0, 2001, 25)):
        layers = (replace(record.layers[0], name=EVIL), *record.layers[1:])
        record = replace(record, layers=layers)
        if record.step == 300:
            record = replace(record, valid=False, reason=EVIL)
        looks.append((record, detail))
    first, second = fake_run.events()
    events = [first, replace(second, layers=(EVIL, *second.layers))]
    return fake_run.write_run(tmp_path_factory.mktemp("report") / "run", looks, events)


@pytest.fixture(scope="module")
def report(log: Path) -> Path:
    assert main(["report", str(log), "-o", str(log.parent / "report.html")]) == 0
    return log.parent / "report.html"


@pytest.fixture(scope="module")
def data(report: Path) -> dict:
    return inside_of(report.read_text("utf-8"))["page"]


def test_the_first_screen_answers(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri())
    expect_text(page, "#app h1", "between steps 1,000 and 1,100")
    expect_text(page, ".action", "Compare the checkpoints around steps 1,050 and 1,125")
    assert page.locator(".tiles li").count() == 6
    assert page.locator(".events li").count() == 2
    for selector in ("h1", ".action", ".tiles", ".events li", "[data-chart=sparse]"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] + box["height"] <= WIDE["height"], selector
    assert page.locator(".chart canvas").count() == 4
    assert page.title() == "run: sparsity report"
    assert page.locator("img").count() == 0
    fetched = page.evaluate("performance.getEntriesByType('resource').map((r) => r.name)")
    assert fetched == []


def test_one_cursor_for_everything(open_page: Open, report: Path, data: dict) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".heat", "query")
    page.mouse.move(*over(page, "value", 0.5))
    expect_text(page, ".removal", "Step 1,000:")
    t = data["steps"].index(1000)
    shown = 100 * data["series"]["near_zero/initial_0.1"][t]
    expect_text(page, "[data-chart=sparse] .legend", f"{shown:.3g}")
    expect_text(page, "[data-chart=value] .legend", f"{data['series']['value/dense'][t]:.4g}")
    assert page.locator(".heat .cursor").evaluate("e => e.style.left") == "50%"
    places = page.locator(".u-cursor-x").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().left - e.parentElement"
        ".getBoundingClientRect().left).map((x, i) => x)"
    )
    widths = page.locator(".u-over").evaluate_all("all => all.map((e) => e.clientWidth)")
    assert all(abs(x / w - 0.5) < 0.01 for x, w in zip(places, widths, strict=True))
    page.mouse.move(10, 10)
    expect_text(page, ".removal", "Step 2,000:")
    page.mouse.click(*over(page, "sparse", 0.25))
    page.mouse.move(10, 10)
    expect_text(page, ".removal", "Step 500:")
    assert page.url.endswith("#step=500")


def test_a_part_is_shown_alone_and_the_whole_again(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".heat", "query")
    page.mouse.move(*over(page, "sparse", 0.25))
    page.mouse.down()
    page.mouse.move(*over(page, "sparse", 0.4), steps=3)
    page.mouse.move(*over(page, "sparse", 0.5), steps=3)
    page.mouse.up()
    for chart in ("sparse", "clock"):
        page.mouse.move(*over(page, chart, 0.02))
        expect_text(page, ".removal", "Step 500:")
        page.mouse.move(*over(page, chart, 0.98))
        expect_text(page, ".removal", "Step 1,000:")
    page.mouse.dblclick(*over(page, "value", 0.5))
    page.mouse.move(*over(page, "sparse", 0.02))
    expect_text(page, ".removal", "Step 50:")
    assert page.locator(".removal").inner_text().count("Step 50:") == 1


def test_keys_and_links_lead_to_a_step(open_page: Open, report: Path) -> None:
    page = open_page(f"{report.as_uri()}#step=925")
    expect_text(page, ".removal", "Step 925:")
    for key, step in (
        ("ArrowRight", 950), ("ArrowLeft", 925), ("Home", 0), ("e", 650), ("e", 1125),
        ("End", 2000),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect_text(page, ".removal", f"Step {step:,}:")
        assert page.url.endswith(f"#step={step}")
    page.locator("#event-2 button").click()
    expect_text(page, ".removal", "Step 1,125:")
    # a zoom leaves the cursor at its step
    where = "e => new DOMMatrix(getComputedStyle(e).transform).e / e.parentElement.clientWidth"
    page.keyboard.press("+")
    sync_api.expect(page.locator(".heat .cursor")).to_have_attribute("style", "left: 50%;")
    assert page.locator(".u-cursor-x").first.evaluate(where) == pytest.approx(0.5, abs=0.01)


def test_a_link_holds_zoom_threshold_and_search(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".heat", "query")
    page.keyboard.press("Home")
    page.keyboard.press("+")
    page.locator("#tau").select_option("near_zero/abs_0.001")
    page.locator("#tensors input").fill("layer 1, att")
    names = page.locator(".heat .names li").all_inner_texts()
    assert "zoom=0-500" in page.url
    again = open_page(page.url)
    expect_text(again, ".heat", "query")
    assert again.locator(".heat .names li").all_inner_texts() == names
    assert len(names) == 4
    expect_text(again, "[data-chart=sparse] .legend", "near zero (|w| ≤ 0.001)")
    again.mouse.move(*over(again, "value", 0.98))
    expect_text(again, ".removal", re.compile(r"Step (475|500):"))
    again.keyboard.press("0")
    sync_api.expect(again).not_to_have_url(re.compile("zoom="))


def test_every_tensor_and_the_size_of_its_weights(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".heat", "query")
    assert page.locator(".heat .names li").count() == 12
    page.locator("#tensors input").fill("output.dense")
    assert page.locator(".heat .names li").count() == 4
    page.locator("#tensors input").fill("")
    page.locator("#tensors select").nth(1).select_option("block")
    assert page.locator(".heat .names li.group").count() >= 2
    page.locator("#tensors select").nth(0).select_option("removed")
    expect_text(page, "#tensors", "12 of 12 tensors")
    page.locator(".heat .names button").nth(3).click()
    expect_text(page, ".histogram-of", "How large its weights are")
    assert "tensor=" in page.url
    page.get_by_role("button", name="close").click()
    assert page.locator(".histogram-of canvas").count() == 0


def test_another_threshold_is_counted_from_the_spectra(
    open_page: Open, report: Path, log: Path
) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".heat", "query")
    assert page.locator("#tau option").count() == 5  # the rules, and a size of one's own
    page.locator("#tau").select_option("abs")
    ends = inside_of(report.read_text("utf-8"))["details"]["magnitudes"]["ends"]
    near = float(page.locator("#tau-is").inner_text().split()[-1])
    assert abs(math.log10(near) - ends[int(page.locator("#tau-at").input_value())]) < 0.01
    page.locator("#tau-at").fill(str(ends.index(-2)))
    sync_api.expect(page.locator("#tau-is")).to_have_text("|w| ≤ 0.01")
    assert "tau=abs%3A-2" in page.url
    _, detail = fake_run.look(2000)
    ends = (detail.spectrum["keys"].astype("u4") << 15).view("f4")
    share = detail.spectrum["counts"][ends <= 0.01].sum() / detail.spectrum["counts"].sum()
    expect_text(page, "[data-chart=sparse] .legend", "|w| ≤ 0.01")
    expect_text(page, "[data-chart=sparse] .legend", f"{100 * share:.3g}")
    expect_text(page, "#tensors", "|w| ≤ 0.01")


def test_one_more_chart_has_ten_choices_in_groups(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".heat", "query")
    assert page.locator("#other option").count() <= 11  # with none
    groups = page.locator("#other optgroup").evaluate_all("all => all.map((e) => e.label)")
    assert groups == ["with an event", "the weights", "removing weights", "the watch"]
    first = page.locator("#other optgroup").first.locator("option").all_inner_texts()
    assert first == ["Reliance"]
    page.locator("#other").select_option("motion/sign_flips")
    expect_text(page, "[data-chart=other] h2", "Weights that changed sign")


@pytest.mark.parametrize("viewport", [WIDE, PHONE])
def test_the_load_of_experts_at_the_cursor(
    open_page: Open, report: Path, viewport: dict[str, int]
) -> None:
    page = open_page(report.as_uri(), viewport=viewport)
    expect_text(page, "#experts", "bert.experts: 50 % to expert 0")  # 30 of 60
    cells = page.locator("#experts .cells canvas")
    box = cells.bounding_box()
    cells.hover(position={"x": 0.6 * box["width"], "y": 5})
    expect_text(page, "#experts .legend", "of expert 2")
    row = cells.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, 1).data]")
    places = [4 * int(x * len(row) / 4) for x in (0.1, 0.4, 0.6, 0.9)]
    seen = [n for at in places for n in row[at : at + 4]]
    wanted = [n for x in (1, 0, 1 / 3, 2 / 3) for n in (*pale_to_dark(math.sqrt(x)), 255)]
    assert seen == pytest.approx(wanted, abs=3)


def test_every_threshold_and_a_click_on_one(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".surface", "|w| ≤ 0.01")
    magnitudes = inside_of(report.read_text("utf-8"))["details"]["magnitudes"]
    names = page.locator(".surface .names button").all_inner_texts()
    assert len(names) == len(magnitudes["ends"])
    assert names.index("|w| ≤ 0.1") < names.index("|w| ≤ 0.01")  # the smallest at the bottom
    _, detail = fake_run.look(2000)
    ends = (detail.spectrum["keys"].astype("u4") << 15).view("f4")
    share = detail.spectrum["counts"][ends <= 0.01].sum() / detail.spectrum["counts"].sum()
    seen = page.locator(".surface .cells canvas").evaluate(
        "(c, y) => [...c.getContext('2d').getImageData(c.width - 1, y, 1, 1).data]",
        names.index("|w| ≤ 0.01"),
    )
    assert seen == pytest.approx([*pale_to_dark(math.sqrt(share)), 255], abs=3)
    page.get_by_role("button", name="|w| ≤ 0.01", exact=True).click()
    expect_text(page, "[data-chart=sparse] .legend", f"{100 * share:.3g}")
    pressed = page.locator(".surface button[aria-pressed=true]")
    sync_api.expect(pressed).to_have_text("|w| ≤ 0.01")
    page.mouse.move(*over(page, "value", 0.5))
    sync_api.expect(page.locator(".surface .cursor")).to_have_attribute("style", "left: 50%;")


def pale_to_dark(x: float) -> list[float]:
    """By matplotlib, whose nine colours the page has."""
    anchors = colormaps["YlGnBu"](np.linspace(0, 1, 9))[:, :3] * 255
    return [float(np.interp(x, np.linspace(0, 1, 9), column)) for column in anchors.T]


def test_a_gap_says_why_at_the_cursor(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri())
    expect_text(page, ".heat", "query")
    why = page.locator("[data-chart=essential] .why")
    sync_api.expect(why).to_be_hidden()
    page.mouse.move(*over(page, "sparse", 0.1))
    expect_text(page, "[data-chart=essential] .why", "No number at step 200: the model does not")
    page.mouse.move(*over(page, "sparse", 0.15))
    expect_text(page, "[data-chart=essential] .why", "at step 300: the snapshot failed: <img")
    page.mouse.move(*over(page, "sparse", 0.5))
    sync_api.expect(why).to_be_hidden()


def test_the_scale_of_the_tensors_is_the_same_in_each_run(open_page: Open, report: Path) -> None:
    for scheme, nothing in (("light", "rgb(255, 255, 217)"), ("dark", "rgb(8, 29, 88)")):
        page = open_page(report.as_uri(), color_scheme=scheme)
        expect_text(page, "#tensors .scale", "0 %1 %5 %25 %50 %100 %".replace(" ", "\xa0"))
        swatch = page.locator("#tensors .scale i").first
        sync_api.expect(swatch).to_have_css("background-color", nothing)
    expect_text(page, ".heat .names", "layer 1, feed-forward out bert.encoder.layer.1")


def test_a_log_without_spectra_says_so(open_page: Open, tmp_path: Path) -> None:
    records = [record for record, _ in fake_run.looks(range(0, 501, 25))]
    page = open_page(saved(tmp_path, Run(records)))
    expect_text(page, "#thresholds", "This log has no spectra")
    assert page.locator(".surface").count() == 0


def test_numbers_as_a_file_and_as_a_table(open_page: Open, report: Path, data: dict) -> None:
    page = open_page(report.as_uri(), accept_downloads=True)
    expect_text(page, ".heat", "query")
    with page.expect_download() as download:
        page.get_by_role("button", name="numbers (CSV)").click()
    head, *rows = Path(download.value.path()).read_text().splitlines()
    assert head.split(",") == ["step", *data["series"]]
    assert [int(row.split(",")[0]) for row in rows] == data["steps"]
    column = head.split(",").index("near_zero/initial_0.1")
    values = [float(row.split(",")[column]) for row in rows]
    assert values == data["series"]["near_zero/initial_0.1"]
    page.locator("#numbers summary").click()
    sync_api.expect(page.locator("#numbers tbody tr")).to_have_count(len(rows))


def test_dark_and_phone(open_page: Open, report: Path) -> None:
    page = open_page(report.as_uri(), color_scheme="dark", viewport=PHONE)
    expect_text(page, ".heat", "query")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 26)"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    order = ("h1", "[data-chart=sparse] h2", ".events h2", ".removal h2", ".tiles", "#tensors h2")
    places = [page.locator(f"#app {place}").bounding_box()["y"] for place in order]
    assert places == sorted(places)


def test_on_paper_and_without_script_there_are_words_and_an_overview(
    open_page: Open, report: Path
) -> None:
    printed = open_page(report.as_uri(), color_scheme="dark")
    expect_text(printed, ".heat", "query")
    assert not printed.locator(".static").is_visible()
    printed.emulate_media(media="print")
    silent = open_page(report.as_uri(), java_script_enabled=False)
    for page in (printed, silent):
        assert page.locator(".static svg").count() == 3
        assert page.locator(".static svg").first.is_visible()
        expect_text(
            page,
            ".static",
            "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise from 6.3 % to 8.5 %",
        )
    assert not printed.locator("#app").is_visible()
    assert printed.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )


#: How full each page is where the words are set in columns of the size of a page.
FILLED = """([width, height]) => {
  const box = document.querySelector(".static");
  box.style.cssText = `width: ${width}px; max-width: none; height: ${height}px; margin: 0;
    column-width: ${width}px; column-gap: 0; column-fill: auto`;
  const start = box.getBoundingClientRect();
  const filled = [];
  for (const element of box.querySelectorAll("p, li, h1, svg")) {
    for (const { left, bottom } of element.getClientRects()) {
      const page = Math.floor((left - start.left + 1) / width);
      filled[page] = Math.max(filled[page] ?? 0, (bottom - start.top) / height);
    }
  }
  return filled;
}"""
#: Of a sheet of A4 with margins of a centimetre, in pixels.
SHEET = {"width": 718, "height": 1047}


@pytest.mark.part(4)
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 8, 20])
def test_every_printed_page_is_well_filled(open_page: Open, tmp_path: Path, number: int) -> None:
    records = [record for record, _ in fake_run.looks(range(0, 2001, 50))]
    told = fake_run.events()
    many = [replace(told[i % 2], id=f"{i}", detected_step=25 * i + 1000) for i in range(18)]
    run = Run(records, [*told, *many][:number], fake_run.run_info())
    page = open_page(saved(tmp_path, run), viewport=SHEET, bypass_csp=True)
    expect_text(page, ".heat", "query")
    page.emulate_media(media="print")
    centimetre = dict.fromkeys(("top", "right", "bottom", "left"), "10mm")
    page.wait_for_function("document.querySelector('.overview').style.minHeight")
    pages = page.pdf(format="A4", margin=centimetre).count(b"/Type /Page\n")
    filled = page.evaluate(FILLED, [SHEET["width"], SHEET["height"]])
    assert pages <= len(filled) <= pages + 1  # they part where it just fits
    assert min(filled) >= 0.6, filled


@pytest.mark.skipif(
    "SPARSITYWATCH_PICTURES" not in os.environ, reason="SPARSITYWATCH_PICTURES is not set"
)
def test_the_pictures_of_the_docs(open_page: Open, tmp_path: Path, log: Path) -> None:
    """Of SPARSITYWATCH_RUN, such as runs/demo, or of a made-up run."""
    file = tmp_path / "report.html"
    run = os.environ.get("SPARSITYWATCH_RUN", str(log))
    assert main(["report", run, "-o", str(file)]) == 0
    looks = {
        "report": {}, "report-dark": {"color_scheme": "dark"}, "report-phone": {"viewport": PHONE}
    }  # fmt: skip
    for name, options in looks.items():
        page = open_page(file.as_uri(), **options)
        sync_api.expect(page.locator(".heat .names li").first).to_be_attached(timeout=30_000)
        picture(page, name)
        assert (Path(os.environ["SPARSITYWATCH_PICTURES"]) / f"{name}.png").stat().st_size > 20_000
    words = Path(os.environ["SPARSITYWATCH_PICTURES"]) / "report.txt"
    words.write_text(page.locator("#app h1").inner_text().replace("\xa0", " ") + "\n")


@needs_axe
@pytest.mark.parametrize("scheme", some_of(["light", "dark"], 2))
def test_axe_finds_nothing(open_page: Open, report: Path, scheme: str) -> None:
    page = open_page(report.as_uri(), color_scheme=scheme, bypass_csp=True)
    expect_text(page, ".heat", "query")
    page.locator(".heat .names button").nth(3).click()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert faults(page, scheme) == []


# ------------------------------------------------------------------ unusual runs, large ones


@pytest.mark.parametrize(("viewport", "highest"), [(WIDE, 470), (NARROW, 650), (PHONE, 800)])
def test_sixty_events_leave_the_chart_where_it_was(
    open_page: Open, tmp_path: Path, viewport: dict[str, int], highest: int
) -> None:
    records = [record for record, _ in fake_run.looks(range(0, 2001, 25))]
    first, second = fake_run.events()
    many = [replace(first, id=f"{i}", onset_step=i, detected_step=25 * i) for i in range(1, 59)]
    page = open_page(saved(tmp_path, Run(records, [first, second, *many])), viewport=viewport)
    expect_text(page, ".heat", "query")
    assert page.locator(".chart canvas").first.bounding_box()["y"] < highest
    assert page.locator("#app .events li").count() == 60
    shown = page.locator("#app .events li:visible")
    heights = [one.bounding_box()["height"] for one in shown.all()]
    assert len(heights) == 8
    assert max(heights[1:]) < 40 < heights[0]  # the headline's is open, the others are a line each
    main = page.locator(".answers .number").inner_text()
    assert shown.first.locator(".number").inner_text() == main
    shown.nth(3).locator("summary").click()
    assert shown.nth(3).bounding_box()["height"] > 60
    page.locator("#more-events > summary").click()
    assert shown.count() == 60


def saved(folder: Path, run: Run) -> str:
    path = folder / "page.html"
    path.write_text(render(run), "utf-8")
    return path.as_uri()


def test_first_rms_is_no_choice_where_there_was_no_first(open_page: Open, tmp_path: Path) -> None:
    alone = fake_run.look(2000)[0]
    alone = replace(alone, near_zero={**alone.near_zero, "initial_0.1": alone.near_zero["rms_0.1"]})
    page = open_page(saved(tmp_path, Run([alone])))
    expect_text(page, "[data-chart=sparse] .legend", "near zero (|w| ≤ 0.1 × present rms)")
    assert "first rms" not in page.locator("#tau").inner_text()


def test_a_watch_that_is_off_is_the_headline(open_page: Open, tmp_path: Path) -> None:
    off = WatchState(status="off", reason="the disk is full", step=900, wall_time=1.7e9)
    info = replace(fake_run.run_info(), state=off)
    records = [record for record, _ in fake_run.looks(range(0, 901, 100))]
    page = open_page(saved(tmp_path, Run(records, [], info)))
    expect_text(page, "#app h1", "The watch has been off since step 900")
    expect_text(page, ".badge.broken", "not watching")
    expect_text(page, ".answers", "the disk is full")
    assert page.locator("#app h1").count() == 1


def test_an_empty_log_and_a_single_snapshot(open_page: Open, tmp_path: Path) -> None:
    page = open_page(saved(tmp_path, Run([], [], fake_run.run_info())))
    expect_text(page, "#app h1", "Nothing has been measured so far")
    page = open_page(saved(tmp_path, Run([fake_run.look(2000)[0]])))
    expect_text(page, "#app h1", "1 of about 9 snapshots so far")
    expect_text(page, ".heat", "query")


def test_two_hundred_tensors_over_two_thousand_snapshots(open_page: Open, tmp_path: Path) -> None:
    kinds = [fake_run.look(step, num_tensors=200)[0] for step in range(0, 2001, 200)]
    records = [replace(kinds[i // 200], step=10 * i) for i in range(2001)]
    page = open_page(saved(tmp_path, Run(records, fake_run.events(20_000))))
    expect_text(page, ".heat", "query")
    assert page.locator(".heat .names li").count() == 200
    assert page.locator("#tensors select").nth(2).input_value() == "largest"
    assert "dense" in page.locator(".heat .names li").first.inner_text()
    page.mouse.move(*over(page, "sparse", 0.5))
    expect_text(page, ".removal", re.compile(r"Step (9,9|10,0)\d\d:"))


#: Texts that are drawn into canvases from now on: canvas, left, right, baseline.
WRITTEN = """() => {
  globalThis.written = [];
  const { fillText } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    const { a, e, f } = this.getTransform();
    const width = a * this.measureText(text).width;
    const left = a * x + e - { left: 0, center: 0.5, right: 1 }[this.textAlign] * width;
    if (text) written.push({ text, canvas: [...document.querySelectorAll("canvas")]
      .indexOf(this.canvas), left, right: left + width, y: a * y + f });
    return fillText.apply(this, [text, x, y]);
  };
}"""


@pytest.mark.parametrize("viewport", [WIDE, PHONE])
def test_three_million_steps_have_ticks_beside_each_other(
    open_page: Open, tmp_path: Path, viewport: dict[str, int]
) -> None:
    looks = fake_run.looks(range(0, 3_000_001, 100_000))
    run = Run([record for record, _ in looks], fake_run.events(3_000_000))
    page = open_page(saved(tmp_path, run), viewport=viewport)
    expect_text(page, ".heat", "query")
    page.evaluate(WRITTEN)
    page.locator(".plots").focus()
    for keys, seen in (("+0", "3.0 M"), ("Home" + "+" * 7, "20,000")):
        page.evaluate("written.length = 0")
        for key in re.findall("Home|.", keys):
            page.keyboard.press(key)
            page.wait_for_timeout(50)
        written = page.evaluate("written.filter((one) => !/%|e-/.test(one.text))")
        assert seen in {one["text"] for one in written}
        last = {}
        for one in written:  # in the order in which an axis writes them
            before = last.get((one["canvas"], one["y"]))
            if before and one["left"] > before["left"]:
                assert one["left"] - before["right"] >= 6, (before, one)
            last[one["canvas"], one["y"]] = one


# ------------------------------------------------------------------ TensorBoard, and `show`


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs as a watch writes them; TensorBoard's own dashboards need one point a curve."""
    from sparsitywatch.sinks.tensorboard import TensorBoardSink

    folder = tmp_path_factory.mktemp("logs")
    for name, events in (("demo", fake_run.events()), ("other", [])):
        directory = folder / name / "sparsitywatch"
        looks = [*fake_run.looks(range(0, 2001, 50), seed=len(name))]
        for sink, some in ((JsonlSink(directory), looks), (TensorBoardSink(directory), looks[:1])):
            sink.open(fake_run.run_info())
            for look in some:
                sink.write(*look)
            for event in events:
                if isinstance(sink, JsonlSink):
                    sink.event(event)
            sink.close()
    return folder


def tab_of(page):
    return page.frame_locator("iframe")


@pytest.fixture(scope="module")
def board(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard with its own loader of data."""
    with event_readers.server(logs) as url:
        yield url


@pytest.fixture(scope="module")
def other_board(logs: Path) -> Iterator[str]:
    """Of one with the loader in Python, behind a prefix."""
    with event_readers.server(logs, "--load_fast", "false", prefix="/some/where") as url:
        yield url


def test_the_tab(open_page: Open, other_board: str) -> None:
    url = other_board
    page = open_page(f"{url}/#sparsity", viewport={"width": 1500, "height": 1000})
    tab = tab_of(page)
    expect_text(tab, "h1", "between steps 1,000 and 1,100")
    expect_text(tab, "[data-chart=sparse] .legend", "demo: near zero")
    expect_text(tab, "[data-chart=sparse] .legend", "other: near zero")
    expect_text(tab, ".heat", "query")
    picture(page, "tab")
    order = event_readers.fetch(f"{url}/data/runs")
    swatches = tab.locator(".runs label i").evaluate_all(
        "all => all.map((e) => getComputedStyle(e).backgroundColor)"
    )
    assert list(map(hexadecimal, swatches)) == [
        COLOURS[order.index(f"{name}/sparsitywatch")] for name in ("demo", "other")
    ]
    # the run selector
    tab.locator(".runs input").nth(1).uncheck()
    expect_runs(tab, "demo")
    tab.get_by_role("button", name="Show other below").click()
    expect_text(tab, "h1", "No alarm in 41 snapshots")
    # TensorBoard's dark mode, and a link
    page.evaluate("document.body.classList.add('dark-mode')")
    sync_api.expect(tab.locator(":root")).to_have_attribute("data-theme", "dark")
    frame = page.frames[-1]
    frame.locator("body").press("Home")
    expect_text(tab, ".removal", "Step 0:")
    assert "p.sparsity.step=0" in page.url
    assert "p.sparsity.run=other" in page.url
    again = open_page(page.url)
    expect_text(tab_of(again), ".removal", "Step 0:")
    expect_text(tab_of(again), "h1", "No alarm in 41 snapshots")
    close(page, again)


def expect_runs(tab, *names: str) -> None:
    """The runs whose lines are in the charts, and whose boxes are checked."""
    chart = tab.locator("[data-chart=sparse] .legend")
    for name in ("demo", "other"):
        expected = sync_api.expect(chart)
        if name in names and len(names) > 1:
            expected.to_contain_text(f"{name}: near zero")
        else:
            expected.not_to_contain_text(f"{name}: near zero")
        box = tab.locator(".run", has_text=name).locator("input")
        sync_api.expect(box).to_be_checked(checked=name in names)


#: Of a dashboard of TensorBoard: the box of a run in it.
BOXES = {
    "scalars": "tf-scalar-dashboard paper-checkbox[id='checkbox-{}/sparsitywatch']",
    "timeseries": "runs-data-table [data-id$='/{}/sparsitywatch'] input",
}


#: The filter of its runs.
FILTERS = {
    "scalars": "tf-scalar-dashboard #names-regex input",
    "timeseries": "runs-data-table .run-filter input",
}


@pytest.mark.parametrize("elsewhere", some_of(BOXES, 2))
def test_what_is_hidden_or_filtered_elsewhere_is_not_here(
    open_page: Open, board: str, elsewhere: str
) -> None:
    page = open_page(f"{board}/#{elsewhere}")

    def go_to(dashboard: str) -> None:
        page.locator(f".plugin-name[data-plugin-id={dashboard}]").click()

    def turn(name: str) -> None:
        go_to(elsewhere)
        page.locator(BOXES[elsewhere].format(name)).click()
        go_to("sparsity")

    turn("other")
    expect_runs(tab_of(page), "demo")
    turn("other")
    expect_runs(tab_of(page), "demo", "other")
    turn("demo")
    expect_runs(tab_of(page), "other")
    expect_text(tab_of(page), "h1", "No alarm in 41 snapshots")
    # the tab's own choice holds until the next one elsewhere
    tab_of(page).locator(".runs input").first.check()
    expect_runs(tab_of(page), "demo", "other")
    turn("demo")  # shown there again
    for text, names in (
        ("^o", ["other"]), ("DEMO|x$", ["demo"] if elsewhere == "timeseries" else ["other"]),
        ("e", ["demo", "other"]), ("^dem.*h$", ["demo"]), ("", ["demo", "other"]),
    ):  # fmt: skip
        go_to(elsewhere)
        page.locator(FILTERS[elsewhere]).fill(text)
        page.locator(FILTERS[elsewhere]).press("Enter")  # Time Series hears keys alone
        go_to("sparsity")
        expect_runs(tab_of(page), *names)
    close(page)


def test_a_colour_that_was_chosen_by_hand_is_that_of_the_run(open_page: Open, board: str) -> None:
    page = open_page(f"{board}/#timeseries")
    swatch = page.locator("runs-data-table [data-id$='/other/sparsitywatch'] .run-color-swatch")
    swatch.click()
    page.locator("color-picker .hex-text input").fill("#00c853")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("color-picker .color-picker")).to_be_hidden()
    sync_api.expect(swatch).to_have_css("background-color", "rgb(0, 200, 83)")
    page.locator(".plugin-name[data-plugin-id=sparsity]").click()
    tab = tab_of(page)
    line = tab.locator("[data-chart=sparse] .key", has_text="other: near zero").locator("i")
    for place, style in ((tab.locator(".run", has_text="other").locator("label i"),
                          "background-color"), (line, "border-top-color")):  # fmt: skip
        sync_api.expect(place).to_have_css(style, "rgb(0, 200, 83)")
    # the curve itself: pixels of that colour, which antialiasing leaves in the midst of a line
    drawn = tab.locator("[data-chart=sparse] canvas").evaluate(
        """(canvas) => {
          const { width, height } = canvas;
          const bytes = canvas.getContext("2d").getImageData(0, 0, width, height).data;
          return new Uint32Array(bytes.buffer).filter((x) => x === 0xff53c800).length;
        }"""
    )
    assert drawn > 100
    close(page)


def test_new_snapshots_appear(open_page: Open, logs: Path, board: str) -> None:
    page = open_page(f"{board}/#sparsity")
    tab = tab_of(page)
    expect_text(tab, ".taken", "41 snapshots")
    sink = JsonlSink(logs / "demo" / "sparsitywatch")
    sink.open(fake_run.run_info(initial_step=2000))
    sink.write(*fake_run.look(2050))
    sink.close()
    expect_text(tab, ".taken", "42 snapshots")
    close(page)


def test_show(open_page: Open, logs: Path, tmp_path: Path) -> None:
    with page_server(logs) as url:
        page = open_page(url)
        expect_text(page, "#app h1", "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise")
        expect_text(page, ".heat", "query")
        assert page.locator(".runs input").count() == 2
        close(page)
    with page_server(tmp_path) as url:
        page = open_page(url)
        expect_text(page, "#app", "No watched run in this log directory yet")
        close(page)


#: Bytes that were sent for a page: with their headers, as they went over the wire.
SENT = """() => ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind))
  .reduce((sum, entry) => sum + entry.transferSize, 0)"""


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(  # the first screen has no spectra
        tmp_path_factory, "long", lambda at: fake_run.write_long_run(at, 2000, 200, num_spectra=2)
    )


@pytest.mark.parametrize("serve", some_of([event_readers.server, page_server], 2))
def test_a_long_log_opens_with_two_megabytes(open_page: Open, long_log: Path, serve: Any) -> None:
    with serve(long_log) as url:
        page = open_page(url if serve is page_server else f"{url}/#sparsity")
        shown = page if serve is page_server else tab_of(page)
        expect_text(shown, "#app h1", "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise")
        expect_text(shown, ".taken", "2,000 snapshots")
        sync_api.expect(shown.locator(".heat .names li")).to_have_count(200, timeout=30_000)
        assert 100_000 < page.frames[-1].evaluate(SENT) <= 2_000_000
        close(page)
