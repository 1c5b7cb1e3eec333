"""The pages of a real TensorBoard in a real browser: what a person sees is there."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import WIDE
from contracts import event_readers, fake_run

from sparsitywatch.series import PANELS
from sparsitywatch.sinks.tensorboard import TensorBoardSink

pytestmark = [pytest.mark.slow, pytest.mark.browser]

EVENTS = {event.detected_step // 100 * 100: event for event in fake_run.events()}

#: Visits every node that may be seen, also inside web components.
_WALK = """
  const walk = (visit, node = document.body) => {
    if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return;
    visit(node);
    if (node.shadowRoot) walk(visit, node.shadowRoot);
    for (const child of node.childNodes) walk(visit, child);
  };
"""
#: All text on the page.
_TEXT = f"""() => {{ {_WALK}
  const pieces = [];
  walk((node) => {{
    if (node.nodeType === Node.TEXT_NODE) pieces.push(node.textContent.trim());
  }});
  return pieces.filter(Boolean).join("\\n");
}}"""
#: Groups and tags that are seen, in their order: [[text, top], ...]
_PLACES = f"""() => {{ {_WALK}
  const found = [];
  walk((node) => {{
    const text = node.nodeType === Node.TEXT_NODE ? node.textContent.trim() : "";
    if (!/^(0_sparsity|z_sparsity|loss)(\\/.*)?$/.test(text)) return;
    const box = node.parentElement.getBoundingClientRect();
    if (box.height) found.push([text, box.top]);
  }});
  return found;
}}"""


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
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport=WIDE)
    yield context.new_page()
    context.close()


def wait_for(page: Any, *wanted: str, timeout_s: float = 60.0) -> str:
    """The text of the page once everything wanted is in it."""
    deadline = time.monotonic() + timeout_s
    while missing := [piece for piece in wanted if piece not in (text := page.evaluate(_TEXT))]:
        assert time.monotonic() < deadline, f"never saw {missing} in: {text}"
        page.wait_for_timeout(100)
    return text


def test_what_matters_most_is_on_the_first_screen_of_scalars(page: Any, url: str) -> None:
    page.goto(f"{url}/#scalars")
    wait_for(page, "demo/sparsitywatch", "0_sparsity/1_near_zero/initial_0.1", "z_sparsity")
    places = page.evaluate(_PLACES)
    groups = dict.fromkeys(text for text, _ in places if "/" not in text)
    assert list(groups) == ["0_sparsity", "loss", "z_sparsity"]
    seen = dict.fromkeys(text for text, top in places if "/" in text and top < 900)
    assert list(seen)[:4] == [
        "0_sparsity/1_near_zero/initial_0.1", "0_sparsity/2_motion/dormant",
        "0_sparsity/3_forecast/near_zero_in_1", "0_sparsity/4_essential_sparsity/value",
    ]  # fmt: skip
    if folder := os.environ.get("SPARSITYWATCH_PICTURES"):
        page.screenshot(path=Path(folder) / "tensorboard-scalars.png")


def test_custom_scalars(page: Any, url: str) -> None:
    page.goto(f"{url}/#custom_scalars")
    titles = [title for panel in PANELS if panel.group for title in (panel.group, panel.title)]
    # a value; dormant weights and chance; a rule, dormant weights and the forecast; four rules
    text = wait_for(page, *titles, "Matches (1)", "Matches (2)", "Matches (3)", "Matches (4)")
    for complaint in ("Missing Tags", "lacks data", "do not match", "Matches (0)"):
        assert complaint not in text


def test_histograms_are_of_each_kind(page: Any, url: str) -> None:
    page.goto(f"{url}/#histograms")
    wanted = [f"z_sparsity/log10_magnitude/{role}" for role in fake_run.ROLES]
    text = wait_for(page, *wanted)
    assert all(name in text for name in wanted)


def test_text_begins_with_the_events_and_what_to_do(page: Any, url: str) -> None:
    page.goto(f"{url}/#text")
    events = [replace(e, detected_step=step) for step, e in EVENTS.items()]
    about = "How much of this model could be thrown away right now?"
    text = wait_for(page, about, *(event.describe() for event in events))
    for event in events:
        assert event.advice in text
        assert text.index(event.advice) < text.index(about)
    assert "z_sparsity/scope" in text.splitlines()  # folded until it is clicked
