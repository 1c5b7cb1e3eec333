"""The page as a whole: it needs nothing else, does nothing, and says something in every case."""

from __future__ import annotations

import math
import re
import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from contracts import fake_run
from contracts.page import Element, drawing_of, number, parse, table_of
from hypothesis import given
from hypothesis import strategies as st
from page.conftest import EVIL, SCRIPT, STRANGE, Make, Page

from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.page import render
from sparsitywatch.page.render import snapshots_taken
from sparsitywatch.page.tables import count, fraction, plain, printable, seconds
from sparsitywatch.plots.heatmap import on_even_steps

KINDS = ["page", "weights_page", "troubled_page"]


@pytest.fixture(params=KINDS)
def any_page(request: pytest.FixtureRequest) -> Page:
    return request.getfixturevalue(request.param)


# ------------------------------------------------------------------ needs nothing, does nothing


def test_nothing_is_fetched(any_page: Page) -> None:
    for element in any_page.root.walk():
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset", "data"):
                assert value.startswith(("#", "data:image/png;base64,")), (element.tag, name)
    style = any_page.root.one("style").text()
    assert "@import" not in style
    assert "url(" not in style
    # addresses are names of XML only
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", any_page.html))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_nothing_runs(any_page: Page) -> None:
    allowed = {
        "", "html", "head", "meta", "title", "style", "body", "header", "p", "b", "h1", "h2", "h3",
        "ul", "li", "span", "small", "data", "nav", "a", "main", "section", "strong", "div",
        "table", "caption", "thead", "tbody", "tr", "th", "td", "br", "wbr", "figure", "figcaption",
        "details", "summary", "code", "dl", "dt", "dd", "footer",
        "svg", "g", "path", "defs", "use", "text", "clippath", "rect", "image", "desc",
    }  # fmt: skip
    for element in any_page.root.walk():
        assert element.tag in allowed
        assert not [name for name in element.attributes if name.startswith("on")]
    policy = any_page.root.one("meta", **{"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_same_log_gives_the_same_page() -> None:
    records = [record for record, _ in fake_run.looks(range(0, 2001, 400))]
    run = Run(records, fake_run.events(), fake_run.run_info())
    assert render(run) == render(run)


def test_it_is_small(page: Page) -> None:
    assert len(page.html.encode()) < 900_000


def test_ids_are_unique_and_links_lead_to_them(any_page: Page) -> None:
    ids = [e["id"] for e in any_page.root.walk() if e.get("id")]
    assert len(ids) == len(set(ids))
    wanted = [
        value.removeprefix("#")
        for e in any_page.root.walk()
        for name, value in e.attributes.items()
        if name in ("href", "xlink:href") and value.startswith("#")
    ]
    wanted += re.findall(r"url\(#([^)]*)\)", any_page.html)
    assert len(wanted) > 50
    assert set(wanted) <= set(ids)


def test_every_drawing_says_what_it_shows(any_page: Page) -> None:
    figures = any_page.root.all("figure")
    assert len(figures) >= 6
    for figure in figures:
        wide, narrow = figure.all("svg")
        for svg in (wide, narrow):
            assert svg["role"] == "img"
            title, description = (
                any_page.root.by_id(id_).text() for id_ in svg["aria-labelledby"].split()
            )
            assert title == figure.one("h3").text()
            assert "The table has" in description
        assert figure.one("p", class_="unit").text().strip()
        names, rows = table_of(figure)
        assert names
        assert rows


def test_drawings_take_the_colours_of_the_page(any_page: Page) -> None:
    variables = set(re.findall(r"--([a-z]+):", any_page.root.one("style").text()))
    for svg in any_page.root.all("svg"):
        for element in svg.walk():
            text = f"{element.get('style') or ''} {element.get('fill') or ''}"
            assert set(re.findall(r"var\(--([a-z]+)\)", text)) <= variables
            # white numbers on their badges, white lines on heatmaps
            assert set(re.findall(r"#[0-9a-f]{6}", text)) <= {"#ffffff"}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_text_and_lines_stand_out_from_the_paper(page: Page) -> None:
    themes = re.findall(r":root \{([^}]*)\}", page.root.one("style").text())
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", theme))
        texts = [
            (name, paper, 4.5) for name in ("ink", "grey", "blue") for paper in ("paper", "card")
        ]
        lines = [(name, "paper", 3.0) for name in ("green", "orange", "purple", "red", "sky")]
        for name, paper, least in [*texts, *lines]:
            low, high = sorted((luminance(colours[name]), luminance(colours[paper])))
            assert (high + 0.05) / (low + 0.05) >= least, (name, paper)


# ------------------------------------------------------------------ text that is not ours


def test_text_stays_text(troubled_page: Page) -> None:
    root = troubled_page.root
    assert not root.all("script")
    assert not root.all("i")
    assert "a <i>run & 'more'" in root.one("head").one("title").text()
    (mostly,) = (td for td in root.all("td") if td.get("data-label") == "mostly in"
                 and "frac" in td.text())  # fmt: skip
    assert EVIL in mostly.text()
    readable = STRANGE.replace("\x00", "\\x00").replace("\ud800", "\\ud800")
    readable = readable.replace("\x1b", "\\x1b")
    names = [EVIL.removesuffix(".weight"), readable.removesuffix(".weight")]
    rows = table_of(root.by_id("near-zero-by-layer"))[1]
    assert [row[0].text() for row in rows[:2]] == names
    labels = drawing_of(root, "near-zero-by-layer").tick_labels("ytick")
    assert labels[:2] == names  # and no formula was made of it
    # on a narrow page a long one lacks its middle
    label = drawing_of(root, "near-zero-by-layer", "narrow").tick_labels("ytick")[0]
    head, tail = label.split("…")
    assert names[0].startswith(head)
    assert names[0].endswith(tail)
    assert len(label) == 26
    reasons = table_of(root.by_id("invalid"))[1]
    assert [number(row[0]) for row in reasons] == [250, 300, 1000]
    assert all(row[1].text() == f"{SCRIPT} the value is NaN" for row in reasons)


@given(st.text())
def test_whatever_is_printable_is_in_xml(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    assert all(c.isprintable() or c.isspace() or unicodedata.category(c) == "Co" for c in shown)
    assert text == shown or not text.isprintable()
    element = ET.Element("x")
    element.text = shown
    again = ET.fromstring(ET.tostring(element, encoding="utf-8"))
    assert (again.text or "") == shown.replace("\r", "\n") or "\r" in shown


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        (1.7e9, 1.7e9 + 30, "taken 2023-11-14 22:13 UTC."),
        (1.7e9, 1.7e9 + 3600, "taken 2023-11-14 22:13 to 23:13 UTC."),
        (1.7e9, 1.7e9 + 86400, "taken 2023-11-14 22:13 to 2023-11-15 22:13 UTC."),
        (math.nan, 1.7e9, "step 0 to step 100."),
        (1.7e9, 1e300, "step 0 to step 100."),
    ],
)
def test_when_the_snapshots_were_taken(first: float, last: float, told: str) -> None:
    look, _ = fake_run.look(0)
    records = [replace(look, wall_time=first), replace(look, step=100, wall_time=last)]
    shown = parse(str(snapshots_taken(Run(records)))).text()
    assert shown.startswith("2 snapshots of 49,152 weights in 12 tensors, from step 0")
    assert shown.endswith(told)


# ------------------------------------------------------------------ runs that lack something


def test_without_a_proxy_nothing_is_said_of_the_model(weights_page: Page) -> None:
    keys = [figure["id"] for figure in weights_page.root.all("figure")]
    assert keys == ["near-zero", "dormant", "mask-overlap", "near-zero-by-layer",
                    "dormant-by-layer", "movement", "learning-rate", "decay-clock"]  # fmt: skip
    told = weights_page.root.by_id("what").text()
    assert "Essential sparsity was not measured: the run had no proxy" in told
    assert weights_page.root.one("h1").text() == "No abrupt change was reported in 41 snapshots"
    assert "None was reported" in weights_page.root.by_id("events").text()
    assert "none: nothing was evaluated" in weights_page.root.by_id("provenance").text()
    figures = weights_page.root.one("ul", class_="figures").all("span", class_="label")
    assert [label.text() for label in figures] == ["near zero", "dormant"]


def test_one_look(make_page: Make) -> None:
    page = make_page(fake_run.looks(range(1)))
    assert "One snapshot of 49,152 weights in 12 tensors, at step 0" in page.root.text()
    assert "was not informative: the model does not rely on these weights yet" in page.root.text()
    assert "-0" not in drawing_of(page.root, "near-zero").tick_labels("xtick")
    assert drawing_of(page.root, "near-zero").tick_labels("xtick") == ["0"]


def test_two_looks_and_a_score_with_an_absolute_tolerance(make_page: Make) -> None:
    looks = []
    for record, detail in fake_run.looks(range(0, 2001, 1000)):
        curve = replace(record.curve, higher_is_better=True,
                        value=[3.0 - v / 2 for v in record.curve.value])  # fmt: skip
        provenance = replace(record.provenance, tolerance_mode="absolute", tolerance=0.02)
        record = replace(record, curve=curve, reliance=curve.reliance, provenance=provenance)
        looks.append((record, detail))
    page = make_page(looks)
    assert "higher is better" in page.root.by_id("value").text()
    assert "0.02 in units of the value" in page.root.by_id("provenance").text()
    allowed = drawing_of(page.root, "reliance").points("allowed")
    np.testing.assert_allclose(allowed[:, 1], 0.02, atol=1e-4)
    curve = page.records[-1]["curve"]
    points = drawing_of(page.root, "curves").points("curve-2000")
    expected = [(curve["value"][0] - value) / 0.02 for value in curve["value"][:4]]
    np.testing.assert_allclose(points[:4, 1], expected, atol=2e-3)


def test_a_run_without_a_look_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="with at least one record, got none"):
        render(Run([]))


def test_looks_that_all_failed(make_page: Make) -> None:
    looks = []
    for record, detail in fake_run.looks(range(0, 201, 100)):
        parts = (
            "curve", "essential_sparsity", "reliance", "dormant", "movement", "masks", "forecast"
        )  # fmt: skip
        record = replace(
            fake_run.without(record, *parts), valid=False, reason="it broke", near_zero={},
            layers=(), lr=math.nan, decay_clock=math.nan, num_nan=-1,
        )  # fmt: skip
        looks.append((record, detail))
    page = make_page(looks)
    assert not page.root.all("figure")
    assert "3 of 3 snapshots failed or contradicted themselves" in page.root.by_id("what").text()


def test_an_interval_that_is_not_known(make_page: Make) -> None:
    looks = []
    for record, detail in fake_run.looks(range(0, 2001, 500)):
        estimate = replace(record.essential_sparsity, low=math.nan, high=math.nan)
        looks.append((replace(record, essential_sparsity=estimate), detail))
    page = make_page(looks)
    (sentence,) = (li.text() for li in page.root.by_id("what").all("li") if "removed" in li.text())
    assert "interval" not in sentence


def test_a_replay_says_so_and_held_up_no_training() -> None:
    records = [
        replace(record, dormant=replace(record.dormant, estimated=True))
        for record, _ in fake_run.looks(range(0, 2001, 1000))
    ]
    info = replace(fake_run.run_info(), replayed_from=("s3://bucket/<b>run</b>", "runs/x"))
    root = parse(render(Run(records, info=info)))
    assert "They are of saved checkpoints, read later." in root.one("header").text()
    provenance = root.by_id("provenance").text()
    assert "Replayed from saved checkpoints: s3://bucket/<b>run</b>, runs/x." in provenance
    assert "Estimated: what weight decay" in root.by_id("dormant").text()
    assert "What the replay cost" in root.by_id("costs").text()
    terms = [term.text() for term in root.by_id("costs").all("dt")]
    assert terms == ["reading weights", "evaluating"]


# ------------------------------------------------------------------ large ones


def test_a_long_run_with_many_tensors(make_page: Make) -> None:
    kinds = [fake_run.look(step, last_step=3000, num_tensors=102) for step in range(0, 3001, 500)]
    looks = [
        (replace(kinds[step // 500][0], step=step), kinds[0][1]) for step in range(0, 3001, 20)
    ]
    page = make_page(looks, fake_run.events(3000))
    _, rows = table_of(page.root.by_id("dormant"))
    steps = [number(row[0]) for row in rows]
    assert 100 <= len(rows) <= 130
    assert steps == sorted(set(steps))
    assert {0, 3000} <= set(steps)
    caption = page.root.by_id("dormant").one("caption").text()
    assert f"{len(rows)} of 151 snapshots" in caption
    # by block, weighed by the tensors' sizes, which are equal here
    chart = page.root.by_id("near-zero-by-layer")
    names, rows = table_of(chart)
    assert [row[0].text() for row in rows] == [f"{i} (mean)" for i in range(17)]
    assert "Of 102 tensors a row shows a block" in chart.text()
    for column, name in enumerate(names[1:], start=1):
        record = next(r for r in page.records if r["step"] == int(name.partition("@")[2]))
        own = [layer["near_zero"]["initial_0.1"] for layer in record["layers"][12:18]]
        assert number(rows[2][column]) == pytest.approx(sum(own) / 6)
    # every look is in the drawing
    assert len(drawing_of(page.root, "dormant").points("series-motion/dormant")) == 151


@given(
    steps=st.lists(st.integers(0, 5000), min_size=1, max_size=30, unique=True).map(sorted),
    rows=st.integers(1, 3),
)
def test_columns_show_the_nearest_look(steps: list[int], rows: int) -> None:
    cells = np.arange(rows * len(steps), dtype=float).reshape(rows, len(steps))
    columns = on_even_steps(np.array(steps), cells)
    middles = np.linspace(steps[0], steps[-1], columns.shape[1])
    for middle, column in zip(middles, columns.T, strict=True):
        (look,) = np.flatnonzero((cells == column[:, None]).all(axis=0))
        nearest = min(abs(step - middle) for step in steps)
        assert abs(steps[look] - middle) <= nearest + 1e-9


# ------------------------------------------------------------------ numbers


@given(st.floats(-1e6, 1e6) | st.just(math.nan))
def test_numbers_are_rounded_never_changed(x: float) -> None:
    for made in (fraction(x), plain(x), seconds(abs(x))):
        root = parse(made.__html__())
        expected = abs(x) if made.text.endswith(("s", "h", "min")) else x
        assert number(root) == pytest.approx(expected, nan_ok=True, abs=0, rel=0)
    if not math.isnan(x):
        assert number(parse(count(round(x)).__html__())) == round(x)


def test_looks_at_uneven_steps(make_page: Make) -> None:
    steps = (0, 1, 2, 4, 8, 16, 32, 64, 100, 300, 350, 1000, 2000)
    page = make_page([fake_run.look(step) for step in steps], fake_run.events())
    pixels = drawing_of(page.root, "near-zero-by-layer").pixels()
    assert pixels.shape[1] == 800
    points = drawing_of(page.root, "near-zero").points("series-near_zero/initial_0.1")
    np.testing.assert_allclose(points[:, 0], steps, atol=0.01)


def test_elements_of_a_broken_page_are_refused() -> None:
    with pytest.raises(AssertionError, match="is not closed"):
        parse("<p>")
    with pytest.raises(AssertionError, match="closes"):
        parse("<p><b>one</p>")
    assert isinstance(parse("<p>x<br>y</p>"), Element)
