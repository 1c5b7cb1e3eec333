"""The manual as it is built, in a real browser, in its light and its dark theme.

With SPARSITYWATCH_PICTURES=FOLDER its pictures are kept there, with SPARSITYWATCH_EVERY_PAGE=1 axe
looks at every page, which takes four minutes, and else at one of each kind.
"""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.browser]

Open = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
#: .ci/run puts it there.
AXE = next(ROOT.glob(".venv/axe-core/**/axe.min.js"), None)
#: The pages whose first screen is drawn.
LOOKED_AT = ("", "start", "tutorial", "api", "tags", "reports/paper")
#: One of each kind: with a picture, code, tabs, tables that scroll, formulas.
OF_EACH_KIND = ("", "start", "tutorial", "tags", "errors", "reports/forecast")
PHONE = {"width": 390, "height": 844}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The address of the built manual, and its pages."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("manual") / "site"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    pages = sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob("index.html"))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", pages
    server.shutdown()
    server.server_close()


def goto(page: Any, address: str) -> None:
    page.goto(address, wait_until="domcontentloaded", timeout=120_000)


@pytest.mark.skipif(AXE is None, reason="axe-core is not in .venv/axe-core; .ci/run fetches it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Open, site: tuple[str, list[str]], scheme: str) -> None:
    address, pages = site
    assert len(pages) > 25
    assert {name or "." for name in OF_EACH_KIND} <= {*pages}
    page = open_page(address, color_scheme=scheme)
    # all but the colours is the same in both
    rules = {"runOnly": ["color-contrast", "link-in-text-block"]} if scheme == "dark" else {}
    found = {}
    for name in pages if "SPARSITYWATCH_EVERY_PAGE" in os.environ else OF_EACH_KIND:
        goto(page, f"{address}{name}/")
        expected = "slate" if scheme == "dark" else "default"
        assert page.locator("body").get_attribute("data-md-color-scheme") == expected
        page.add_script_tag(path=str(AXE))
        for fault in page.evaluate("(rules) => axe.run(rules).then((r) => r.violations)", rules):
            found[name, fault["id"]] = [node["html"][:150] for node in fault["nodes"][:3]]
    assert found == {}


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_pages_fit_and_their_pictures_load(
    open_page: Open, site: tuple[str, list[str]], look: str
) -> None:
    address, _ = site
    options = {"viewport": PHONE} if look == "phone" else {"color_scheme": look}
    page = open_page(address, **options)
    for name in LOOKED_AT:
        goto(page, f"{address}{name}/")
        broken = (
            "[...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
        )
        assert page.evaluate(broken) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if folder := os.environ.get("SPARSITYWATCH_PICTURES"):
            file = f"manual-{name.replace('/', '-') or 'home'}-{look}.png"
            page.screenshot(path=Path(folder) / file)
