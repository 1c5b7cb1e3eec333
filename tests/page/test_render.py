"""The page as a file: it needs nothing else, runs nothing but its own, and reads without script."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from contracts import fake_run
from contracts.page import inside_of, parse
from hypothesis import given
from hypothesis import strategies as st
from page.conftest import EVIL, NODE, SCRIPT, WEB, Page, in_node, needs_node

import sparsitywatch as sw
from sparsitywatch.analysis.run import Run
from sparsitywatch.page.data import page_data
from sparsitywatch.page.render import html_text, overview_svg, render, script, tab_module, ticks
from sparsitywatch.records.run import block_of
from sparsitywatch.series import Series, percent, significant


@pytest.fixture(params=["page", "weights_page", "troubled_page"])
def any_page(request) -> Page:
    return request.getfixturevalue(request.param)


# ------------------------------------------------------------------ needs nothing


def test_nothing_is_fetched_and_nothing_else_runs(any_page: Page) -> None:
    for element in any_page.root.walk():
        for name in element.attributes:
            assert not name.startswith("on")
            assert name not in ("src", "href", "action", "srcset", "poster")
    policy = any_page.root.one("meta", **{"http-equiv": "Content-Security-Policy"})["content"]
    data, *scripts = any_page.root.all("script")
    assert data["type"] == "text/plain"
    texts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", any_page.html, re.DOTALL)
    assert len(texts) == len(scripts) == 2
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"
    style = any_page.root.one("style").text()
    assert "@import" not in style
    assert "url(" not in style


def test_text_of_a_run_stays_text(troubled_page: Page) -> None:
    assert len(troubled_page.root.all("script")) == 3  # the data, uPlot, ours
    assert "a <i>run & 'more'" in troubled_page.root.one("head").one("title").text()
    assert EVIL in troubled_page.root.one("div", class_="static").text()
    assert SCRIPT not in troubled_page.html


def test_the_same_log_gives_the_same_page() -> None:
    records = [record for record, _ in fake_run.looks(range(0, 2001, 400))]
    run = Run(records, fake_run.events(), fake_run.run_info())
    assert render(run) == render(run)


def test_it_is_small(page: Page) -> None:
    assert len(page.html.encode()) < 250_000


# ------------------------------------------------------------------ in a notebook


def test_a_loaded_run_is_its_page_in_a_frame(tmp_path: Path) -> None:
    name = 'a "run" & <i>more</i>'
    fake_run.write_run(tmp_path / "run", fake_run.looks(range(0, 101, 50)))
    run = sw.load(tmp_path / "run", name=name)
    frame = parse(run._repr_html_()).one("iframe")
    assert frame["title"] == f"Sparsity of the run {name}"
    assert frame["sandbox"] == "allow-scripts allow-downloads"  # not of the notebook's origin
    assert frame["srcdoc"] == render(run)
    assert inside_of(frame["srcdoc"])["page"]["steps"] == [0, 50, 100]


def test_a_run_without_a_snapshot_is_shown_too(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path / "run", [])
    assert "No snapshot has been taken yet." in sw.load(tmp_path / "run")._repr_html_()


# ------------------------------------------------------------------ without script, on paper


def test_words_and_events_are_there_without_script(page: Page) -> None:
    text = page.root.one("div", class_="static").text()
    for wanted in (
        "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise from 6.3 % to 8.5 % (22 times the",
        "times the noise) between",
        "What to do: Compare the checkpoints around steps 1,050 and 1,125",
        "41 snapshots of 49,152 weights in 12 tensors, from step 0 to step 2,000",
        "Reliance began to rise from 0.09 to 0.41 (about 4.6 ×) after step 600",
        "weight decay explains it",
        "need JavaScript",
    ):
        assert wanted in text
    assert len(page.root.one("div", class_="static").all("svg")) == 3


def test_the_overview_is_drawn_where_the_numbers_are(page: Page) -> None:
    svg = page.root.one("div", class_="static").all("svg")[0]
    places = {float(t.text().replace(",", "")): float(t["x"])
              for t in svg.all("text", class_="middle") if float(t["y"]) > 100}  # fmt: skip
    heights = {float(t.text().split()[0]) / 100: float(t["y"]) - 4
               for t in svg.all("text", class_="end")}  # fmt: skip
    to_step, to_value = (
        np.polyfit(list(axis.values()), list(axis), 1) for axis in (places, heights)
    )
    path = svg.all("path")[0]["d"]
    points = np.array(re.findall(r"[ML]([\d.]+),([\d.]+)", path), dtype=float)
    np.testing.assert_allclose(np.polyval(to_step, points[:, 0]), page.steps, atol=2.0)
    values = page.series("near_zero/initial_0.1")
    np.testing.assert_allclose(np.polyval(to_value, points[:, 1]), values, atol=2e-3)


def test_a_line_ends_where_nothing_was_measured(troubled_page: Page) -> None:
    svg = troubled_page.root.one("div", class_="static").all("svg")[0]
    known = np.isfinite(troubled_page.series("near_zero/initial_0.1"))
    stretches = int(known[0]) + int((~known[:-1] & known[1:]).sum())
    assert svg.all("path")[0]["d"].count("M") == stretches == 3


def test_nothing_to_draw_is_no_drawing() -> None:
    assert overview_svg({**page_data(Run([])), "series": {}}) == ""


def test_one_snapshot_has_a_drawing() -> None:
    records = [fake_run.look(2000)[0]]
    assert parse(render(Run(records))).one("div", class_="static").all("svg")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_round_and_inside(low: float, width: float, most: int) -> None:
    found = ticks(low, low + width, most)
    assert len(found) <= most + 1
    assert found == sorted(found)
    assert all(low - 1e-6 * width <= x <= low + width * (1 + 1e-6) for x in found)


@pytest.mark.slow
@given(st.text())
def test_whatever_is_printable_is_in_xml(text: str) -> None:
    shown = html.unescape(html_text(text))
    assert html_text(shown) == html_text(text)
    assert all(c.isprintable() or c.isspace() or unicodedata.category(c) == "Co" for c in shown)
    assert text == shown or not text.isprintable()
    element = ET.Element("x")
    element.text = shown
    again = ET.fromstring(ET.tostring(element, encoding="utf-8"))
    assert (again.text or "") == shown.replace("\r", "\n") or "\r" in shown


# ------------------------------------------------------------------ the scripts


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize(("text", "exports"), [
    (script("file"), []),
    (tab_module(), ["export async function render() {"]),
])  # fmt: skip
def test_the_modules_become_one_script(text: str, exports: list[str]) -> None:
    assert re.findall(r"^(?:import|export)\b.*", text, re.MULTILINE) == exports
    assert "</script" not in text
    declared = re.findall(
        r"^(?:async )?(?:function|class|const|let) ([A-Za-z_$][\w$]*)", text, re.M
    )
    assert len(declared) > 40
    assert len(declared) == len(set(declared))
    is_javascript(text)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_can_be_told_from_what_is_behind_them() -> None:
    themes = re.findall(r"\{\s*(--paper:[^}]*)\}", (WEB / "page.css").read_text())
    assert len(themes) == 4  # light, dark, dark by the reader's wish, print
    assert themes[1].split() == themes[2].split()
    assert set(themes[3].split()) <= set(themes[0].split())
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", theme))
        texts = [(name, paper, 4.5) for name in ("ink", "grey") for paper in ("paper", "card")]
        badges = [("on-badge", name, 4.5) for name in ("good", "look", "bad")]
        names = ("blue", "green", "orange", "purple", "red", "sky")
        for name, paper, least in [*texts, *badges, *((n, "paper", 3.0) for n in names)]:
            low, high = sorted((luminance(colours[name]), luminance(colours[paper])))
            assert (high + 0.05) / (low + 0.05) >= least, (name, paper)


@pytest.mark.slow
@needs_node
def test_rows_are_sorted_grouped_and_searched() -> None:
    code = """
    import { rowsOf, parted } from "./tensors.js";
    const names = ["m.layer.0.query.weight", "m.layer.0.dense.weight", "m.layer.1.query.weight",
                   "m.layer.1.dense.weight"];
    const blocks = names.map((name) => name.slice(0, 9));
    const cells = [[1, 2], [1, 800], [1, -1], [3, 400]];
    const labels = (choice) => rowsOf(names, blocks, cells, 1, { search: "", ...choice })
      .map((row) => row.label).join("|");
    console.log(labels({ group: "none", sort: "model" }));
    console.log(labels({ group: "none", sort: "largest" }));
    console.log(labels({ group: "none", sort: "rise", search: "DENSE" }));
    console.log(labels({ group: "kind", sort: "largest" }));
    console.log(labels({ group: "block", sort: "model" }));
    console.log(labels({ group: "none", sort: "model", search: "layer 1, ATT" }));
    """
    assert in_node(code).splitlines() == [
        "layer 0, attention query|layer 0, dense|layer 1, attention query|layer 1, dense",
        "layer 0, dense|layer 1, dense|layer 0, attention query|layer 1, attention query",
        "layer 0, dense|layer 1, dense",
        (
            "dense: mean of 2|layer 0, dense|layer 1, dense|attention query: mean of 2"
            "|layer 0, attention query|layer 1, attention query"
        ),
        (
            "layer 0: mean of 2|layer 0, attention query|layer 0, dense"
            "|layer 1: mean of 2|layer 1, attention query|layer 1, dense"
        ),
        "layer 1, attention query",
    ]


@pytest.mark.slow
@needs_node
def test_names_of_layers_mean_something() -> None:
    families = [
        fake_run.names(6),
        ["transformer.h.3.attn.c_attn.weight", "transformer.h.3.attn.c_proj.weight",
         "transformer.h.3.mlp.c_fc.weight", "transformer.h.3.mlp.c_proj.weight"],
        ["model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.gate_proj.weight",
         "model.layers.0.mlp.down_proj.weight"],
        ["0.weight", "2.weight", "5.weight"],
        ["a.experts.0.w.weight", "a.experts.0.w.bias"],
        ["encoder.layers.0.linear1.weight", "decoder.layers.0.linear1.weight"],
    ]  # fmt: skip
    shapes = [["0.weight", "in", "8 × 3 × 3 × 3", 1, ""], ["2.weight", "in", "8 × 9", 1, ""]]
    code = f"""
    import {{ parted }} from "./tensors.js";
    for (const [names, blocks] of {json.dumps([[own, [*map(block_of, own)]] for own in families])})
      console.log(parted(names, blocks, {json.dumps(shapes)}).map((part) => part.label).join("; "));
    """
    found = in_node(code).splitlines()
    assert [line.replace("layer 0, ", "") for line in found[:3:2]] == [
        (
            "attention query; attention key; attention value; attention output; feed-forward in; "
            "feed-forward out"
        ),
        "attention output; feed-forward gate; feed-forward out",
    ]
    assert found[1:2] + found[3:] == [
        (
            "layer 3, attention query/key/value; layer 3, attention output; "
            "layer 3, feed-forward in; layer 3, feed-forward out"
        ),
        "convolution 1; linear 1; linear 2",
        "layer 0, w.weight; layer 0, w.bias",
        "encoder layer 0, feed-forward in; decoder layer 0, feed-forward in",
    ]


@pytest.mark.slow
@needs_node
def test_lines_are_smoothed_over_hours_and_seeds_are_one() -> None:
    steps, hour = [0, 100, 200, 300, 400, 401], 3600.0
    # a night between 200 and 300, a clock set back by an hour before 400, a slow end
    times = [0.0, hour, 2 * hour, 15 * hour, 14 * hour, 16 * hour]
    values = [4.0, None, 2.0, 3.0]
    code = f"""
    import {{ between, bySeed, familyOf, hoursOf, matching, smoothed }} from "./data.js";
    const say = (x) => console.log(JSON.stringify(x));
    say(hoursOf({{ steps: {steps}, times: {json.dumps(times)} }}));
    say(hoursOf({{ steps: [0, 1], times: [null, null] }}));
    say(smoothed({json.dumps(values)}, 0.5));
    say([-1, 0, 1, 5, 7].map((x) => between([0, 2, 6], [10, 20, 60], x)));
    say(["a-seed1-lr3", "run12", "a_2", "lr1e-3", "x0.1", "7b"].map(familyOf));
    say(["BERT-1", "gpt"].map(matching("bert|x", "i")));
    const run = (name, lr, y, steps = [0, 1, 2]) => ({{ name, data: {{
      unit: "step", measured: {{}}, steps, times: steps, gaps: steps.map(String), failed: [2],
      unasked: [], series: {{ "motion/lr": steps.map(() => lr), y }} }} }});
    const seeds = [run("s-seed1", 1, [1, 2, 3]), run("s-seed2", 2, [1, 1, 1]),
      run("s-seed3", 1, [3, 6, null]), run("s-seed4", 1, [8, 1], [0, 2])];
    say(bySeed(seeds).map(({{ name, data }}) =>
      [name, data.steps, data.series.y, data.range?.low.y, data.range?.high.y, data.failed]));
    """
    hours, none, soft, straight, families, kept, runs = map(json.loads, in_node(code).splitlines())
    assert hours == {"hours": pytest.approx([0, 1, 2, 3, 4, 6]), "paused": pytest.approx(12.0)}
    assert none is None
    oracle = (0.25 * 4 + 0.5 * 2) / 0.75, (0.125 * 4 + 0.25 * 2 + 0.5 * 3) / 0.875
    assert soft == [4.0, None, *map(pytest.approx, oracle)]
    assert straight == [5, 10, 15, 50, 70]
    assert families == ["a-seed*-lr3", "run*", "a_*", "lr1e-*", "x0.1", "7b"]
    assert kept == [True, False]
    mean = ["s-seed* (mean of 3)", [0, 2], [4.0, None], [1, None], [8, None], [1]]
    assert runs == [mean, ["s-seed2", [0, 1, 2], [1, 1, 1], None, None, [2]]]


@pytest.mark.slow
@needs_node
def test_why_a_line_has_a_gap() -> None:
    code = """
    import { whyNone } from "./data.js";
    const none = [null, null, null, null, 1];
    const data = { failed: [1], unasked: [2], gaps: ["does not rely", "failed: x", "", "", ""],
      series: { "weights/num_nan": [0, 0, 0, 1200, 0], "essential_sparsity/value": none,
                "near_zero/zero": none, "value/dense": none, "motion/dormant": none } };
    for (const name of ["essential_sparsity/value", "near_zero/zero", "value/dense"])
      console.log([0, 1, 2, 3, 4].map((t) => whyNone(data, name, t)).join("|"));
    console.log(whyNone(data, "motion/dormant", 0));
    """
    asked, given = "were not evaluated here, to save time", "gave no finite number"
    asked, given = f"the held-out examples {asked}", f"the held-out examples {given}"
    assert in_node(code).splitlines() == [
        f"does not rely|failed: x|{asked}|1,200 weights are NaN|",
        "it was not measured|failed: x|it was not measured|1,200 weights are NaN|",
        f"{given}|failed: x|{asked}|{given}|",
        "it needs a snapshot before this one",
    ]


@pytest.mark.slow
@needs_node
def test_the_nearest_step_and_every_number_as_text() -> None:
    code = """
    import { csv, nearest, summed } from "./data.js";
    import { percent, share, shown, whole } from "./format.js";
    console.log([-5, 0, 4, 5, 6, 14, 16, 99].map((x) => nearest([0, 10, 20], x)).join());
    console.log(summed([5, -2, 0, 1]).join());
    console.log([percent(0.0889), percent(1), percent(0.0004), share(818), share(-1),
      shown("value", 2.30258), shown("count", 84934656), shown("fraction", null),
      whole(2000)].join("|"));
    console.log(csv({ unit: "step", steps: [5, 10], series: { a: [1.5, null], b: [2, 3] } }));
    """
    lines = in_node(code).splitlines()
    assert lines[0] == "0,0,0,0,1,1,2,2"
    assert lines[1] == "5,3,3,4"
    assert lines[2] == "8.89 %|100 %|0.04 %|81.8 %|–|2.303|84,934,656|–|2,000"
    assert lines[3:] == ["step,a,b", "5,1.5,2", "10,,3"]


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("name", sorted(path.name for path in WEB.glob("*.js")))
def test_a_module_is_javascript(name: str) -> None:
    text = (WEB / name).read_text()
    assert text.startswith("// @ts-check\n")
    is_javascript(text)


@pytest.mark.slow
@needs_node
def test_a_number_is_written_alike_by_the_page_and_by_python() -> None:
    draw = np.random.default_rng(0)
    numbers = [
        *(draw.normal(size=400) * 10.0 ** draw.integers(-9, 9, 400)).tolist(),
        0.0,
        1.0,
        13.0,
    ]
    assert percent(0.37123) == "37.1 %"
    assert percent(13.0) == "1,300 %"
    assert significant(12345.6) == "12,350"
    code = f"""
    import {{ shown }} from "./format.js";
    for (const x of {json.dumps(numbers)}) for (const unit of ["fraction", "s", "count", "none"])
      console.log(shown(unit, x));
    """
    units = ("fraction", "s", "count", "none")
    expected = [Series("", "", unit, "", "").shown(x) for x in numbers for unit in units]
    # a half of a count is rounded to even in Python alone; there are no halves of counts
    assert in_node(code).replace("-0\n", "0\n").splitlines() == [
        "0" if text == "-0" else text for text in expected
    ]


@pytest.mark.slow
@needs_node
def test_ticks_differ_and_have_room() -> None:
    code = """
    import { tickSpace, tickTexts } from "./format.js";
    const say = (...given) => console.log(tickTexts(...given).join("|"));
    say("steps", [0, 500000, 1000000, 3000000], 500000);
    say("steps", [2250000, 2500000], 250000);
    say("steps", [3000020, 3000040], 20);
    say("fraction", [0, 0.025, 0.05], 0.025);
    say("fraction", [0.30001, 0.30002], 0.00001);
    say("fraction", [12, 13], 1);
    say("", [0, 0.00002, 0.00004], 0.00002);
    say("", [2.5, 2.75, 3], 0.25);
    say("", [0, 20000], 20000);
    const spaces = [tickSpace(0, 3e6, 900), tickSpace(2999000, 3e6, 900), tickSpace(0, 300, 900)];
    console.log(spaces.join());
    """
    *texts, spaces = in_node(code).splitlines()
    assert texts == [
        "0|0.5 M|1.0 M|3.0 M", "2.25 M|2.50 M", "3,000,020|3,000,040", "0 %|2.5 %|5 %",
        "30.001 %|30.002 %", "1,200 %|1,300 %", "0|2e-5|4e-5", "2.5|2.75|3", "0|20,000",
    ]  # fmt: skip
    assert spaces == "60,87,45"


def is_javascript(text: str) -> None:
    checked = ["--check", "--input-type=module"]
    subprocess.run([NODE, *checked], input=text, text=True, check=True, capture_output=True)


TSC = Path(__file__).resolve().parents[2] / ".venv/typescript/package/lib/tsc.js"


@needs_node
@pytest.mark.slow
@pytest.mark.skipif(not TSC.exists(), reason="TypeScript is not in .venv; .ci/run fetches it")
def test_the_types_in_the_comments_hold() -> None:
    config = Path(__file__).with_name("jsconfig.json")
    done = subprocess.run([NODE, TSC, "-p", config], capture_output=True, text=True, check=False)
    assert done.stdout == ""
