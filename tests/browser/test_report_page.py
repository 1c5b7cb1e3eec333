"""The report in a real browser: what a person sees, wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import chromium
from contracts import fake_run

from sparsitywatch.cli import main

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.PATH is None, reason="Chromium is not installed"),
]

EVIL = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>.weight"
)
WIDE, NARROW = (1280, 900), (390, 844)

#: Texts of drawings that can be seen: their height in pixels, and how far beyond the page they go.
_TEXTS = """
[...document.querySelectorAll('svg text')].map((t) => t.getBoundingClientRect())
  .filter((box) => box.width > 0)
  .map((box) => [box.height, Math.max(-box.left, box.right - innerWidth)])
"""
#: Pairs of step labels in one drawing that overlap.
_OVERLAPS = """
[...document.querySelectorAll('svg')].flatMap((svg) => {
  const labels = [...svg.querySelectorAll('g[id*="xtick_"] text')]
    .map((t) => t.getBoundingClientRect()).filter((box) => box.width > 0);
  return labels.slice(1).map((box, i) => labels[i].right - box.left).filter((x) => x > 0);
})
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with a tensor whose name would like to be a script."""
    folder = tmp_path_factory.mktemp("report")
    looks = []
    for record, detail in fake_run.looks(range(0, 2001, 50)):
        layers = (replace(record.layers[0], name=EVIL), *record.layers[1:])
        looks.append((replace(record, layers=layers), detail))
    first, second = fake_run.events()
    events = [first, replace(second, layers=(EVIL,))]
    logdir = fake_run.write_run(folder / "run", looks, events)
    assert main(["report", str(logdir), "-o", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture
def page(report: Path) -> Iterator[chromium.Page]:
    with chromium.browser() as page:
        page.open(report.as_uri())
        page.wait_for("What the words mean", "Made by sparsitywatch")
        yield page


def test_no_script_ran_and_nothing_was_fetched(page: chromium.Page) -> None:
    assert page.evaluate("document.title") == "run: sparsity report"
    assert page.evaluate("document.scripts.length") == 0
    fetched = page.evaluate("performance.getEntriesByType('resource').map((r) => r.name)")
    assert [url for url in fetched if not url.startswith("data:")] == []
    assert EVIL.removesuffix(".weight") in page.text()


@pytest.mark.parametrize(("size", "shown", "hidden"), [(WIDE, "wide", "narrow"),
                                                       (NARROW, "narrow", "wide")])  # fmt: skip
def test_it_fits_the_screen(
    page: chromium.Page, size: tuple[int, int], shown: str, hidden: str
) -> None:
    page.resize(*size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    visible = "[...document.querySelectorAll('.{}')].filter((e) => e.offsetHeight > 0).length"
    assert page.evaluate(visible.format(shown)) == len(
        page.evaluate("[...document.querySelectorAll('figure')].map((f) => f.id)")
    )
    assert page.evaluate(visible.format(hidden)) == 0
    texts = page.evaluate(_TEXTS)
    assert len(texts) > 100
    assert min(height for height, _ in texts) >= 8  # pixels: the names of tensors
    assert max(beyond for _, beyond in texts) <= 0
    assert page.evaluate(_OVERLAPS) == []


def test_dark_is_dark_and_print_is_light(page: chromium.Page) -> None:
    def look(**media: object) -> tuple[int, int]:
        """Brightness of the paper, and of a tick label."""
        page.emulate(**media)
        return tuple(
            sum(map(int, str(page.evaluate(script)).removeprefix("rgb(").rstrip(")").split(",")))
            for script in (
                "getComputedStyle(document.body).backgroundColor",
                "getComputedStyle(document.querySelector('svg text')).fill",
            )
        )

    light = look(scheme="light")
    dark = look(scheme="dark")
    assert light[0] > 600 > 200 > light[1]
    assert dark[1] > 600 > 200 > dark[0]
    assert look(scheme="dark", media="print") == light


def test_the_numbers_unfold_and_a_mark_leads_to_its_event(page: chromium.Page) -> None:
    is_seen = "document.querySelector('#dormant table').checkVisibility()"
    assert page.evaluate(is_seen) is False
    page.evaluate("document.querySelector('#dormant summary').click()")
    assert page.evaluate(is_seen) is True
    page.evaluate(
        "document.querySelector('#dormant .wide a')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))"
    )
    assert page.evaluate("location.hash") == "#event-1"
    assert "reliance rose" in page.evaluate("document.querySelector(':target').textContent")


def test_every_colour_of_a_drawing_is_known_to_the_page(page: chromium.Page) -> None:
    # what has an unknown variable is drawn black, or not at all
    black = page.evaluate(
        """[...document.querySelectorAll('figure .wide svg path')]
          .filter((p) => p.closest('defs') === null)
          .map((p) => getComputedStyle(p))
          .filter((s) => s.stroke === 'none' && s.fill === 'rgb(0, 0, 0)').length"""
    )
    assert black == 0
