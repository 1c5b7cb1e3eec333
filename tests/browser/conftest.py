"""One headless browser for all tests here, and windows in it that hold the console to silence.

With SPARSITYWATCH_PICTURES=FOLDER what was looked at is kept there as pictures.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: The shell first: to each window the others draw a frame that nobody sees, for a second.
CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, CHROMIUMS)), None)
#: .ci/run puts it there.
AXE = next(Path(__file__).resolve().parents[2].glob(".venv/axe-core/**/axe.min.js"), None)
WIDE = {"width": 1400, "height": 900}
NARROW = {"width": 1000, "height": 900}
PHONE = {"width": 390, "height": 844}
Open = Callable[..., Any]
needs_axe = pytest.mark.skipif(
    AXE is None, reason="axe-core is not in .venv/axe-core; .ci/run fetches it"
)
#: What axe looks for: all but the colours is the same in the dark.
RULES = {"light": {}, "dark": {"runOnly": ["color-contrast", "link-in-text-block"]}}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens an address in a window of its own, and holds the console to silence."""
    contexts, errors = [], []

    def opened(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type in ("error", "warning") and (
            "sparsity" in str(message.location) or url.startswith("file:")
        ) and errors.append(message.text))  # fmt: skip
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def picture(page: Any, name: str, **options: Any) -> None:
    if folder := os.environ.get("SPARSITYWATCH_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", **options)


def expect_text(frame: Any, selector: str, text: str | re.Pattern[str]) -> None:
    """Wait until an element has a text."""
    from playwright import sync_api

    sync_api.expect(frame.locator(selector).first).to_contain_text(text, timeout=30_000)


def close(*pages: Any) -> None:
    """Before their server ends, which they would complain of."""
    for page in pages:
        page.context.close()


def faults(page: Any, scheme: str) -> list[tuple[str, list[str]]]:
    """What axe finds, with the first places."""
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("(rules) => axe.run(rules).then((r) => r.violations)", RULES[scheme])
    return [(one["id"], [node["html"][:150] for node in one["nodes"][:3]]) for one in found]
