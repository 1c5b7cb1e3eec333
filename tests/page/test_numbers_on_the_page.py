"""Every number on the page is the number in the log: read back, and compared with raw JSON."""

from __future__ import annotations

import json
import math
import statistics

import matplotlib as mpl
import numpy as np
import pytest
from contracts import fake_run
from contracts.page import drawing_of, number, shown, table_of

STEP_CHARTS = {
    "near-zero": [f"near_zero/{rule}" for rule in ("initial_0.1", "rms_0.1", "abs_0.001", "zero")],
    "dormant": ["motion/dormant", "motion/dormant_by_chance"],
    "essential-sparsity": [f"essential_sparsity/{part}" for part in ("value", "low", "high")],
    "reliance": ["value/reliance"],
    "value": ["value/dense", "value/all_removed"],
    "movement": ["motion/update_to_weight", "motion/sign_flips"],
    "mask-overlap": ["motion/mask_overlap_0.5", "motion/mask_overlap_0.9"],
    "learning-rate": ["motion/lr"],
    "decay-clock": ["motion/decay_clock"],
}
PAGES = ["page", "troubled_page"]


@pytest.fixture(params=PAGES)
def either(request):
    return request.getfixturevalue(request.param)


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def rounded(cell, exact: float) -> bool:
    """What is shown is the exact number in at least three digits."""
    return math.isnan(exact) or math.isclose(shown(cell.text()), exact, rel_tol=5.01e-3)


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize("chart", STEP_CHARTS)
def test_the_table_of_a_chart_is_the_log(chart: str, either) -> None:
    names, rows = table_of(either.root.by_id(chart))
    assert names == ["step", *STEP_CHARTS[chart]]
    assert [number(row[0]) for row in rows] == either.steps
    for column, name in enumerate(names[1:], start=1):
        for row, expected in zip(rows, either.series(name), strict=True):
            assert same(number(row[column]), expected), (name, row[0].text())
            assert rounded(row[column], expected), row[column].text()


def test_every_shown_number_rounds_its_exact_one(either) -> None:
    cells = either.root.all("data")
    assert len(cells) > 500
    assert all(rounded(cell, float(cell["value"])) for cell in cells)


@pytest.mark.parametrize(
    ("chart", "cell"),
    [
        ("near-zero-by-layer", lambda r, layer: layer["near_zero"].get("initial_0.1")),
        ("dormant-by-layer", lambda r, layer: layer["dormant"]),
        (
            "removed-by-layer",
            lambda r, layer: r["curve"] and layer["removed"][r["curve"]["level"].index(0.5)],
        ),
    ],
)
def test_a_heatmap_is_the_log_to_the_pixel(chart: str, cell, either) -> None:
    tensors = [layer["name"] for layer in either.records[0]["layers"]]
    cells = np.full((len(tensors), len(either.records)), math.nan)
    for t, record in enumerate(either.records):
        for layer in record["layers"]:
            value = cell(record, layer)
            cells[tensors.index(layer["name"]), t] = math.nan if value is None else value
    # the colours, with the scale that is told
    low, high = (number(e) for e in either.root.by_id(chart).one("div", class_="scale").all("span")
                 if e.get("class") != "gradient")  # fmt: skip
    assert (low, high) == (0.0, np.nanmax(cells))
    for paper in ("wide", "narrow"):
        pixels = drawing_of(either.root, chart, paper).pixels()
        colours = mpl.colormaps["viridis"](cells / high)
        known = np.isfinite(cells)
        np.testing.assert_allclose(pixels[known], colours[known], atol=1 / 255)
        assert (pixels[~known][:, 3] == 0).all()  # what was not measured is left blank
    # and the table
    names, rows = table_of(either.root.by_id(chart))
    chosen = [either.steps.index(int(name.removeprefix("step@"))) for name in names[1:]]
    assert {chosen[0], chosen[-1]} == {0, len(either.steps) - 1}
    for i, row in enumerate(rows):
        assert all(
            same(number(entry), cells[i, t]) for entry, t in zip(row[1:], chosen, strict=True)
        )


def test_the_table_of_the_curves_is_the_log(either) -> None:
    names, rows = table_of(either.root.by_id("curves"))
    by_step = {record["step"]: record["curve"] for record in either.records}
    steps = [int(name.partition("@")[2]) for name in names[1:]]
    assert steps[0] == either.steps[0]
    assert steps[-1] == either.steps[-1]
    assert {650} <= set(steps)  # where an event was seen
    for row in rows:
        level = number(row[0])
        for step, entry in zip(steps, row[1:], strict=True):
            value = by_step[step]["value"][by_step[step]["level"].index(level)]
            assert number(entry) == value


# ------------------------------------------------------------------ drawings


@pytest.mark.parametrize("paper", ["wide", "narrow"])
@pytest.mark.parametrize("chart", STEP_CHARTS)
def test_the_lines_of_a_chart_are_the_log(chart: str, paper: str, either) -> None:
    drawing = drawing_of(either.root, chart, paper)
    steps = np.array(either.steps, dtype=float)
    for name in STEP_CHARTS[chart]:
        values = np.array(either.series(name))
        known = np.isfinite(values)
        points = drawing.points(f"series-{name}")
        expected = np.stack([steps[known], values[known]], 1)
        extent = np.array([np.ptp(steps), max(np.ptp(values[known]), 1e-6)])
        assert points.shape == expected.shape
        assert (np.abs(points - expected) < 1e-3 * extent + 1e-9).all(), name


def test_lines_end_where_nothing_was_measured(troubled_page) -> None:
    drawing = drawing_of(troubled_page.root, "near-zero")
    (path,) = (p for p in drawing.group("series-near_zero/initial_0.1").all("path")
               if p.parent.tag != "defs")  # fmt: skip
    known = np.isfinite(troubled_page.series("near_zero/initial_0.1"))
    stretches = int(known[0]) + int((~known[:-1] & known[1:]).sum())
    assert path["d"].count("M") == stretches == 3


def test_grey_where_essential_sparsity_says_nothing(either) -> None:
    drawing = drawing_of(either.root, "essential-sparsity")
    steps = np.array(either.steps, dtype=float)
    missing = np.isnan(either.series("essential_sparsity/value"))
    assert 0 < missing.sum() < len(missing)
    names = [f"gap-{i}" for i in range(1, len(drawing.groups(r"gap-\d+")) + 1)]
    edges = [drawing.points(name)[:, 0] for name in names]
    spans = [(corners.min(), corners.max()) for corners in edges]
    for step, is_missing in zip(steps, missing, strict=True):
        inside = any(low - 1e-3 <= step <= high + 1e-3 for low, high in spans)
        assert inside == is_missing, step


@pytest.mark.parametrize("chart", ["near-zero", "reliance", "decay-clock", "forecast"])
def test_events_stand_where_they_began_and_were_seen(chart: str, either) -> None:
    drawing = drawing_of(either.root, chart)
    assert len(either.events) >= 2
    for i, event in enumerate(either.events, start=1):
        assert drawing.points(f"onset-{i}")[:, 0] == pytest.approx(event["onset_step"], abs=0.01)
        assert drawing.points(f"seen-{i}")[:, 0] == pytest.approx(event["detected_step"], abs=0.01)
        assert drawing.group(f"mark-{i}").text().strip() == str(i)
        ends = drawing.points(f"from-onset-{i}")[:, 0]
        assert ends == pytest.approx([event["onset_step"], event["detected_step"]], abs=0.01)
        if event["onset_low"] < event["onset_high"]:
            band = drawing.points(f"onset-interval-{i}")[:, 0]
            assert band.min() == pytest.approx(event["onset_low"], abs=0.01)
            assert band.max() == pytest.approx(event["onset_high"], abs=0.01)
        link = drawing.group(f"mark-{i}").parent
        assert (link.tag, link["xlink:href"]) == ("a", f"#event-{i}")


def test_curves_in_tolerances(either) -> None:
    drawing = drawing_of(either.root, "curves")
    by_step = {record["step"]: record for record in either.records}
    drawn = [g["id"].rpartition("-")[2] for g in drawing.groups(r"curve-\d+")]
    assert 3 <= len(drawn) <= 6
    for step in map(int, drawn):
        record = by_step[step]
        curve = record["curve"]
        dense = curve["value"][curve["sparsity"].index(0.0)]
        expected = [(s, (v - dense) / (0.01 * dense))
                    for s, v in zip(curve["sparsity"], curve["value"], strict=True)]  # fmt: skip
        points = drawing.points(f"curve-{step}")
        # matplotlib ends a line a little beyond the chart
        inside = [point for point in expected if point[1] <= 5.0]
        np.testing.assert_allclose(points[: len(inside)], inside, atol=2e-3)
        if record["essential_sparsity"]["informative"]:
            ((x, y),) = drawing.markers(f"ring-{step}")
            assert x == pytest.approx(record["essential_sparsity"]["value"], abs=1e-4)
            assert y == pytest.approx(1.0, abs=1e-3)
            label = f"step {step:,}: {100 * x:.3g} %"
        else:
            label = f"step {step:,}: not informative"
        assert label in either.root.by_id("curves").one("ul", class_="legend").text()


def test_tolerated_harm_is_drawn_into_reliance(page) -> None:
    points = drawing_of(page.root, "reliance").points("allowed")
    expected = [0.01 * dense for dense in page.series("value/dense")]
    np.testing.assert_allclose(points[:, 1], expected, atol=1e-3)


def test_what_was_foreseen_and_what_came(page) -> None:
    names, rows = table_of(page.root.by_id("forecast"))
    assert names[0] == "step"
    clock, steps = page.series("motion/decay_clock"), page.steps
    near_zero = page.series("near_zero/initial_0.1")
    by_step = {record["step"]: record for record in page.records}
    assert len(rows) == len(page.records)
    for row in rows:
        told, due, middle, low, high, came = (number(cell) for cell in row)
        forecast = by_step[told]["forecast"]
        at = forecast["advance"].index(1.0)
        assert (middle, low, high) == tuple(forecast[k][at] for k in ("fraction", "low", "high"))
        target = by_step[told]["decay_clock"] + 1.0
        later = [i for i, c in enumerate(clock) if c >= target - 1e-9]
        if later:  # a straight line between the looks around it
            i = later[0]
            part = (target - clock[i - 1]) / (clock[i] - clock[i - 1])
            exact = steps[i - 1] + part * (steps[i] - steps[i - 1])
            assert came == pytest.approx(
                near_zero[i - 1] + part * (near_zero[i] - near_zero[i - 1])
            )
        else:  # the made-up clock advances by 0.003 a step
            exact = steps[-1] + (target - clock[-1]) / 0.003
            assert math.isnan(came)
        assert due == pytest.approx(exact, abs=0.5)
    ahead = drawing_of(page.root, "forecast").points("foreseen")
    assert ahead[-1, 0] == pytest.approx(2000 + 1 / 0.003, rel=1e-4)
    assert ahead[-1, 1] == pytest.approx(by_step[2000]["forecast"]["fraction"][-1], abs=1e-4)


# ------------------------------------------------------------------ words, events, facts


def test_the_large_numbers_are_the_last_ones(page) -> None:
    figures = page.root.one("ul", class_="figures").all("li")
    labels = [figure.one("span", class_="label").text() for figure in figures]
    assert labels == ["near zero", "essential sparsity", "dormant", "value", "reliance"]
    names = ["near_zero/initial_0.1", "essential_sparsity/value", "motion/dormant", "value/dense",
             "value/reliance"]  # fmt: skip
    for figure, name in zip(figures, names, strict=True):
        assert number(figure) == page.series(name)[-1]
        assert figure.text().endswith("at step 2,000")


def test_what_happened_in_words(page) -> None:
    assert page.root.one("h1").text() == "Weights turned sparse abruptly, from about step 1,050 on"
    told = [item.text() for item in page.root.one("ul", class_="sentences").all("li")]
    near_zero, dormant = page.series("near_zero/initial_0.1"), page.series("motion/dormant")
    lowest = min(near_zero)
    last = page.records[-1]
    estimate, forecast = last["essential_sparsity"], last["forecast"]

    def percent(x: float) -> str:
        return f"{100 * x:.3g} %"

    rule = "Near-zero weights, |w| ≤ 0.1 × first rms"
    began = "began at about step 1,050, seen at step 1,125"
    could = f"At step 2,000 the smallest {percent(estimate['value'])} of the in-scope weights could"
    foreseen = (
        f"Forecast at step 2,000: {percent(forecast['fraction'][-1])} of the weights near zero"
    )
    course = f"{percent(near_zero[0])} at step 0, {percent(near_zero[-1])} at step 2,000"
    floor = f"lowest {percent(lowest)} at step {page.steps[near_zero.index(lowest)]:,}"
    interval = f"{percent(estimate['low'])} to {percent(estimate['high'])}"
    band = f"{percent(forecast['low'][-1])} to {percent(forecast['high'][-1])}"
    staying = "with the value staying within 1 % of what it was"
    assert told == [
        "Reliance rose abruptly, from 0.09 to 0.41: began at about step 600, seen at step 650.",
        f"{rule} rose abruptly, from 6.3 % to 8.5 %: {began}.",
        f"{rule}: {course}; {floor}.",
        f"Dormant weights: {percent(dormant[0])} at step 0, {percent(dormant[-1])} at step 2,000.",
        f"{could} have been removed at once (90 % interval: {interval}) {staying}.",
        f"{foreseen} ({band}) when the decay clock will have advanced by one.",
        "Near-zero weights will be twice their floor at about step 2,310.",
    ]


def test_the_table_of_events(either) -> None:
    rows = either.root.one("table", class_="events").one("tbody").all("tr")
    assert len(rows) == len(either.events)
    for i, (row, event) in enumerate(zip(rows, either.events, strict=True), start=1):
        cells = {td["data-label"]: td for td in row.all("td")}
        assert row["id"] == f"event-{i}"
        began = [float(d["value"]) for d in cells["began at step"].all("data")]
        interval = [event["onset_low"], event["onset_high"]]
        assert began == [event["onset_step"], *(interval if interval[0] < interval[1] else [])]
        assert number(cells["seen at step"]) == event["detected_step"]
        size = [float(d["value"]) for d in cells["from → to"].all("data")]
        assert size[:2] == [event["baseline"], event["value"]]
        if event["noise"]:
            assert size[2] == pytest.approx(
                abs(event["value"] - event["baseline"]) / event["noise"]
            )
        else:
            assert len(size) == 2
        assert event["trend"] in cells["what"].text()
        clock = {True: "weight decay alone could have done it", False: "faster than", None: ""}
        assert clock[event["explained_by_decay"]] in cells["cause"].text()
        assert ("could have done it" in cells["cause"].text()) == (
            event["explained_by_decay"] is True
        )
        if event["decay_clock"] is not None:
            assert number(cells["cause"]) == event["decay_clock"]


def test_what_became_of_an_event(troubled_page) -> None:
    _, second, third = troubled_page.root.one("table", class_="events").one("tbody").all("tr")
    assert "half of it gone at step 1,600" in second.text()
    assert "seen in near-zero weights, |w| ≤ 0.1 × present rms too" in second.text()
    assert "announced by event 2" in third.text()


def test_provenance(page, troubled_page) -> None:
    facts = {row.one("dt").text(): row for row in page.root.by_id("provenance").all("div")
             if row.all("dt")}  # fmt: skip
    provenance, scope = page.records[-1]["provenance"], page.records[-1]["scope"]
    weights = [float(d["value"]) for d in facts["scope"].all("data")]
    assert weights == [scope["num_weights"], scope["num_tensors"]]
    assert f"hash {provenance['scope_hash']}" in facts["scope"].text()
    assert f"{provenance['proxy_hash']}, 192 examples" in facts["proxy"].text()
    assert number(facts["tolerance"]) == provenance["tolerance"]
    assert "of the dense value" in facts["tolerance"].text()
    for name in ("sparsitywatch", "torch", "pattern", "evaluation"):
        assert facts[name].one("dd").text().startswith(provenance[name])
    assert "float32" in facts["dtypes"].text()
    assert not page.root.all("p", class_="warning")
    # one that changed in the middle
    section = troubled_page.root.by_id("provenance")
    assert "cannot be compared with each other" in section.one("p", class_="warning").text()
    parts = [h.text() for h in section.all("h3")]
    assert parts == ["steps 0 to 1,750", "steps 1,800 to 2,000"]
    assert "hash 5c0pe" in section.text()
    assert "hash 0ther" in section.text()


def test_the_ledger(page) -> None:
    _, rows = table_of(page.root.by_id("provenance"))
    ledger = fake_run.run_info().ledger
    assert [row[0].text() for row in rows] == [entry.name for entry in ledger]
    for row, entry in zip(rows, ledger, strict=True):
        assert row[1].text() == ("in" if entry.in_scope else "out")
        assert row[2].text() == " × ".join(map(str, entry.shape))
        assert number(row[3]) == entry.num_weights
        assert entry.reason in row[4].text()
        assert all(alias in row[4].text() for alias in entry.aliases)


def test_costs(either) -> None:
    rows = {row.one("dt").text(): row for row in either.root.by_id("costs").all("div")}
    facts = {name: float(row.one("dd").all("data")[0]["value"]) for name, row in rows.items()}
    costs = [record["cost"] for record in either.records]
    assert facts["held up the training"] == pytest.approx(sum(c["stall_s"] for c in costs))
    assert facts["one snapshot"] == statistics.median(c["stall_s"] for c in costs)
    assert facts["reading weights"] == pytest.approx(sum(c["spectrum_s"] for c in costs))
    assert facts["evaluating"] == pytest.approx(sum(c["evaluation_s"] for c in costs))
    assert number(rows["evaluating"].one("small")) == sum(c["num_forwards"] for c in costs)
    assert facts["snapshots left out"] == sum(c["num_left_out"] for c in costs)
    assert facts["share of the wall time"] == costs[-1]["overhead"]


def test_the_pointer_is_told_the_numbers_of_a_snapshot(page) -> None:
    drawing = drawing_of(page.root, "dormant")
    strips = drawing.svg.one("g", class_="strips").all("rect")
    assert len(strips) == len(page.records)
    for strip, record in zip(strips, page.records, strict=True):
        left = np.polyval(drawing.x, float(strip["x"]))
        right = np.polyval(drawing.x, float(strip["x"]) + float(strip["width"]))
        assert left - 0.1 <= record["step"] <= right + 0.1
        told = strip.one("title").text()
        assert told.startswith(f"step {record['step']:,} dormant weights: ")
        assert f"dormant weights: {100 * record['dormant']['fraction']:.3g} %" in told


def test_nothing_in_the_log_was_changed(page) -> None:
    lines = (page.path.parent / "run" / "sparsitywatch" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == page.records
