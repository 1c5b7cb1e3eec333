"""The pages of a real TensorBoard in a real browser: what a person sees is there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import chromium
from contracts import event_readers, fake_run

from sparsitywatch.sinks.tensorboard import TensorBoardSink, charts

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PATH is None, reason="Chromium is not installed"),
]

EVENTS = {event.detected_step // 100 * 100: event for event in fake_run.events()}


def write_run(directory: Path) -> None:
    sink = TensorBoardSink(directory)
    sink.open(fake_run.run_info())
    for record, detail in fake_run.looks(range(0, 2001, 100)):
        if record.step == 1500:  # an estimate whose interval is not known
            estimate = replace(record.essential_sparsity, low=math.nan, high=math.nan)
            record = replace(record, essential_sparsity=estimate)
        sink.write(record, detail)
        if record.step in EVENTS:
            sink.event(replace(EVENTS[record.step], detected_step=record.step))
    sink.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logdir = tmp_path_factory.mktemp("logdir")
    write_run(logdir / "demo" / "sparsitywatch")
    with event_readers.server(logdir) as url:
        yield url


@pytest.fixture
def page() -> Iterator[chromium.Page]:
    with chromium.browser() as page:
        yield page


def test_scalars(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#scalars")
    text = page.wait_for(
        "demo/sparsitywatch", "essential_sparsity/value", "forecast/near_zero_in_1"
    )
    for group in ("near_zero", "value", "watch", "weights"):
        assert group in text.splitlines()


def test_custom_scalars(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#custom_scalars")
    layout = charts(fake_run.provenance())
    titles = [title for category in layout.values() for title in category]
    # one line with a band; a rule and the forecast, without its band; four rules
    text = page.wait_for(
        *layout, *titles, "Matches (1)", "Matches (2)", "Matches (3)", "Matches (4)"
    )
    for complaint in ("Missing Tags", "lacks data", "do not match", "Matches (0)"):
        assert complaint not in text


def test_images(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#images")
    page.wait_for("pictures/sparsity_value_curve", "pictures/removed_per_layer", "2,000")
    event_readers.wait_until(
        lambda: sorted(width for width in page.image_widths() if width) == [800, 800]
    )


def test_histograms(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#histograms")
    page.wait_for(*(f"log10_magnitude/{name}" for name in fake_run.names(12)[:4]))


def test_text(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#text")
    sentences = [replace(e, detected_step=step).describe() for step, e in EVENTS.items()]
    text = page.wait_for("How much of this model could be thrown away right now?", *sentences)
    assert "scope" in text.splitlines()  # folded until it is clicked
