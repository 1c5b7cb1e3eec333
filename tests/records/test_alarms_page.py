"""docs/alarms.md says of each change what its event says, in the same words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest

from sparsitywatch.records import LEVEL_KINDS, SERIES_KINDS, VITAL_KINDS, Event
from sparsitywatch.records.event import _ADVICE, XRAY_KINDS

PAGE = Path(__file__).parents[2] / "docs" / "alarms.md"
COMPARE = "Compare the checkpoints around steps 900 and 1,025"
HEAD = "| what is told | what it means | what people do |"


def event(
    series: str,
    direction: str,
    sizes: tuple[float, float],
    *,
    kind: str = "abrupt",
    explained: bool | None = None,
) -> Event:
    return Event(
        series=series, direction=direction, onset_step=925, before_step=900, detected_step=1025,
        baseline=sizes[0], value=sizes[1], kind=kind, explained_by_decay=explained,
    )  # fmt: skip


#: One event for each row of the table, in its order.
NEAR_ZERO, ESSENTIAL = "near_zero/initial_0.1", "essential_sparsity/value"
EVENTS = (
    event(NEAR_ZERO, "up", (0.089, 0.111), explained=True),
    event(NEAR_ZERO, "up", (0.089, 0.111), explained=False),
    event(NEAR_ZERO, "up", (0.089, 0.111)),
    event(NEAR_ZERO, "up", (0.05, 0.092), kind="steady"),
    event(NEAR_ZERO, "down", (0.111, 0.089)),
    event("motion/dormant", "up", (0.01, 0.05)),
    event("motion/dormant", "down", (0.05, 0.01)),
    event("value/reliance", "up", (0.1, 0.4)),
    event("value/reliance", "down", (0.4, 0.1)),
    event(ESSENTIAL, "down", (0.6, 0.5)),
    event(ESSENTIAL, "up", (0.5, 0.6)),
    event("value/dense", "up", (2.0, 2.6)),
    event("value/dense", "up", (0.15, 2.3), kind="lost"),
    event("value/dense", "up", (0.5, 1.1), kind="worse"),
    event("value/dense", "up", (2.3, 2.3), kind="unlearned"),
    event("value/dense", "", (0.15, 0.15), kind="standstill"),
)


def rows() -> list[list[str]]:
    """The cells of the table of changes."""
    table = PAGE.read_text().split(HEAD)[1].split("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def as_written(text: str) -> str:
    return text.replace(COMPARE, "Compare checkpoints").replace("|", "&#124;")


def test_there_is_a_row_for_every_advice() -> None:
    assert len(rows()) == len(EVENTS)
    keys = {f"{e.series} {e.direction}" for e in EVENTS}
    keys |= {f"{e.series.partition('/')[0]} {e.direction}" for e in EVENTS}
    keys |= {f"{e.series.partition('/')[0]} {e.direction} {e.kind}" for e in EVENTS}
    keys |= {e.kind for e in EVENTS}
    assert set(_ADVICE) <= keys | {
        "replicas", "spike", *VITAL_KINDS, *XRAY_KINDS, *SERIES_KINDS, *LEVEL_KINDS
    }  # fmt: skip


def test_the_page_says_what_is_done_about_a_spike() -> None:
    told = event("spike/loss", "up", (2.0, 3.5), kind="spike")
    assert f" | {told.advice} |" in PAGE.read_text().split("| `spike` |")[1].splitlines()[0]


@pytest.mark.parametrize("kind", LEVEL_KINDS)
def test_the_page_says_what_is_done_about_tensors(kind: str) -> None:
    told = event("tensors/initial_0.1", "", (0.0, 2.0), kind=kind)
    row = PAGE.read_text().split(f"| `{kind}` |")[1].splitlines()[0]
    assert row.endswith(f" | {told.advice} |")
    assert told.severity == ("look" if kind == "sparse" else "note")


@pytest.mark.parametrize("kind", SERIES_KINDS)
def test_the_page_says_what_is_done_about_a_series(kind: str) -> None:
    told = event("motion/sign_flips", "up", (0.002, 0.49), kind=kind)
    assert f"| `{kind}` | {told.headline}: " in PAGE.read_text()
    assert f" | {told.advice} |" in PAGE.read_text()


@pytest.mark.parametrize(("row", "told"), list(zip(rows(), EVENTS, strict=False)))
def test_the_page_says_what_the_event_says(row: list[str], told: Event) -> None:
    """``python tests/records/test_alarms_page.py`` writes what people do anew."""
    what, _, do = row
    words, *causes = what.split(", ") if "began at" not in what else [what]
    assert told.headline.replace(" (|w| ≤ 0.1 × first rms)", "").lower().startswith(words)
    assert [c for c in told.causes if "decay" in c] == causes
    assert do == as_written(told.advice)


#: Of kinds that have no row of their own: changes of a series, in the words of the page.
CHANGES = {
    ("near_zero/initial_0.1", "down"): "falls of near-zero weights",
    ("motion/dormant", "down"): "of dormant weights",
    (ESSENTIAL, "down"): "and of essential sparsity",
    ("value/reliance", "up"): "rises of reliance",
}
KINDS = ("lost", "worse", "unlearned", "standstill", "replicas", "spike",
         *VITAL_KINDS, *XRAY_KINDS, *SERIES_KINDS)  # fmt: skip


@pytest.mark.parametrize("trend", ["", "better", "worse", "still"])
def test_the_page_says_how_much_each_event_matters(trend: str) -> None:
    """Every kind, and every change of a series, with every trend of the value."""
    page = PAGE.read_text()
    written = {s: page.split(f"| *{s}* | ")[1].split(" |\n")[0] for s in ("act", "look", "note")}
    assert written["look"].startswith("all others")
    for kind in KINDS:
        told = replace(event("value/dense", "up", (0.5, 1.1), kind=kind), value_trend=trend)
        said = [s for s in ("act", "note") if f"`{kind}`" in written[s]] or ["look"]
        assert said == [told.severity], kind
    for series in ("near_zero/initial_0.1", "motion/dormant", "value/reliance", ESSENTIAL,
                   "value/dense"):  # fmt: skip
        for direction in ("up", "down"):
            told = replace(event(series, direction, (0.5, 1.1)), value_trend=trend)
            is_note = (series, direction) in CHANGES
            assert not is_note or CHANGES[series, direction] in written["note"]
            # what removal costs is no good news while the model itself gets worse
            is_note &= trend != "worse" or series.startswith(("near_zero", "motion"))
            assert told.severity == ("note" if is_note else "look"), (series, direction)


@pytest.mark.parametrize("factor", [0.01, 0.1, 0.5])
def test_a_rise_that_is_over_matters_from_where_gaussian_weights_are(factor: float) -> None:
    assert "over, below what Gaussian weights have" in PAGE.read_text()
    dense = 2.0 * NormalDist().cdf(factor) - 1.0
    for share, is_low in ((0.99 * dense, True), (1.01 * dense, False)):
        for rule, is_known in (("initial", True), ("rms", True), ("abs", False)):
            rise = event(f"near_zero/{rule}_{factor}", "up", (0.5 * dense, share))
            assert rise.severity == "look"
            rise = replace(rise, reverted_step=1100)
            is_note = is_low and is_known
            assert rise.severity == ("note" if is_note else "look")
            # where it is back, its height is the peak
            back = replace(rise, value=0.6 * dense, peak=share)
            assert back.severity == rise.severity


if __name__ == "__main__":
    before, after = PAGE.read_text().split(HEAD)
    _, _, rest = after.partition("\n\n")
    lines = [f"| {what} | {means} | {as_written(told.advice)} |"
             for (what, means, _), told in zip(rows(), EVENTS, strict=True)]  # fmt: skip
    PAGE.write_text("\n".join([f"{before}{HEAD}", "|---|---|---|", *lines, "", rest]))
