"""The pages of a real TensorBoard in a real browser: what a person sees is there."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import chromium
from contracts import event_readers, fake_run

from sparsitywatch.sinks.tensorboard import TensorBoardSink
from sparsitywatch.sinks.tensorboard_pages import charts

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PATH is None, reason="Chromium is not installed"),
]

EVENTS = {event.detected_step // 100 * 100: event for event in fake_run.events()}


#: Groups and tags that are seen, inside web components too, in their order: [[text, top], ...]
_PLACES = """
((wanted) => {
  const found = [];
  const visit = (node) => {
    if (node.nodeType === Node.TEXT_NODE && wanted.test(node.textContent.trim())) {
      const box = node.parentElement.getBoundingClientRect();
      if (box.height) found.push([node.textContent.trim(), box.top]);
    }
    if (node.shadowRoot) visit(node.shadowRoot);
    for (const child of node.childNodes) visit(child);
  };
  visit(document.body);
  return found;
})(/^(0_sparsity|z_sparsity|loss)(\\/.*)?$/)
"""


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
    """A run of the user's own, with a loss, and the watch's beside it."""
    from torch.utils.tensorboard import SummaryWriter

    logdir = tmp_path_factory.mktemp("logdir")
    write_run(logdir / "demo" / "sparsitywatch")
    with SummaryWriter(str(logdir / "demo")) as own:
        for step in range(0, 2001, 100):
            own.add_scalar("loss", 1.0 / (1 + step), step)
    with event_readers.server(logdir) as url:
        yield url


@pytest.fixture(scope="module")
def page() -> Iterator[chromium.Page]:
    with chromium.browser() as page:
        page.resize(1400, 900)
        yield page


def test_what_matters_most_is_on_the_first_screen_of_scalars(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#scalars")
    page.wait_for("demo/sparsitywatch", "0_sparsity/1_near_zero/initial_0.1", "z_sparsity")
    places = page.evaluate(_PLACES)
    groups = dict.fromkeys(text for text, _ in places if "/" not in text)
    assert list(groups) == ["0_sparsity", "loss", "z_sparsity"]
    seen = dict.fromkeys(text for text, top in places if "/" in text and top < 900)
    assert list(seen)[:4] == [
        "0_sparsity/1_near_zero/initial_0.1", "0_sparsity/2_motion/dormant",
        "0_sparsity/3_forecast/near_zero_in_1", "0_sparsity/4_essential_sparsity/value",
    ]  # fmt: skip
    if folder := os.environ.get("SPARSITYWATCH_PICTURES"):
        page.screenshot(Path(folder) / "tensorboard-scalars.png")


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


def test_images_begin_with_the_overview(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#images")
    text = page.wait_for("0_sparsity/overview", "z_sparsity/removed_per_layer", "2,000")
    assert text.index("0_sparsity/overview") < text.index("z_sparsity/removed_per_layer")
    event_readers.wait_until(
        lambda: sorted(width for width in page.image_widths() if width) == [800, 800, 950]
    )
    assert sorted(width for width in page.image_widths() if width) == [800, 800, 950]


def test_histograms_are_of_each_kind(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#histograms")
    wanted = [f"z_sparsity/log10_magnitude/{role}" for role in fake_run.ROLES]
    text = page.wait_for(*wanted)
    assert all(name in text for name in wanted)


def test_text_begins_with_the_events_and_what_to_do(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#text")
    events = [replace(e, detected_step=step) for step, e in EVENTS.items()]
    about = "How much of this model could be thrown away right now?"
    text = page.wait_for(about, *(event.describe() for event in events))
    for event in events:
        assert event.advice in text
        assert text.index(event.advice) < text.index(about)
    assert "z_sparsity/scope" in text.splitlines()  # folded until it is clicked


def test_the_table_of_runs(page: chromium.Page, url: str) -> None:
    page.open(f"{url}/#hparams")
    text = page.wait_for("demo ", "pattern", "global", "0_sparsity/1_near_zero/initial_0.1")
    assert "Trial ID" in text.splitlines()
    assert "12 of 13 parameters in scope" in text
