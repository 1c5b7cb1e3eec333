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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import PHONE, WIDE, Open, faults, needs_axe, picture
from contracts.families import some_of

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.browser]

ROOT = Path(__file__).resolve().parents[2]
#: The pages whose first screen is drawn.
LOOKED_AT = ("", "start", "tutorial", "api", "tags", "reports/paper")
#: One of each kind: with a picture, code, tabs, tables that scroll, formulas.
OF_EACH_KIND = ("", "start", "tutorial", "tags", "errors", "reports/forecast")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def serving(folder: Path) -> tuple[http.server.ThreadingHTTPServer, str]:
    """A server of a folder's files, and its address."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


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
    server, address = serving(folder)
    yield address, pages
    server.shutdown()
    server.server_close()


def goto(page: Any, address: str) -> None:
    page.goto(address, wait_until="domcontentloaded", timeout=120_000)


BROKEN = "[...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"


@needs_axe
@pytest.mark.parametrize("look", some_of(["light", "dark", "phone"], 2))
def test_pages_fit_and_axe_finds_nothing(
    open_page: Open, site: tuple[str, list[str]], look: str
) -> None:
    address, pages = site
    assert len(pages) > 25
    assert {name or "." for name in {*OF_EACH_KIND, *LOOKED_AT}} <= {*pages}
    page = open_page(address, **{"viewport": PHONE} if look == "phone" else {"color_scheme": look})
    found = {}
    for name in pages if "SPARSITYWATCH_EVERY_PAGE" in os.environ else OF_EACH_KIND:
        goto(page, f"{address}{name}/")
        assert page.evaluate(BROKEN) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if look == "phone":
            continue
        expected = "slate" if look == "dark" else "default"
        assert page.locator("body").get_attribute("data-md-color-scheme") == expected
        found |= {name: told} if (told := faults(page, look)) else {}
    assert found == {}


@pytest.mark.skipif(
    "SPARSITYWATCH_PICTURES" not in os.environ, reason="SPARSITYWATCH_PICTURES is not set"
)
@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_the_pictures_of_the_manual(
    open_page: Open, site: tuple[str, list[str]], look: str
) -> None:
    page = open_page(site[0], **{"viewport": PHONE} if look == "phone" else {"color_scheme": look})
    for name in LOOKED_AT:
        goto(page, f"{site[0]}{name}/")
        picture(page, f"manual-{name.replace('/', '-') or 'home'}-{look}")


#: About as the pages where code is hosted set a README.
STYLE = """body { max-width: 52rem; margin: 1rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif }
img { max-width: 100% } code { font-size: 85% }
pre { overflow: auto; padding: 1rem; background: #f6f8fa }
td, th { border: 1px solid #d0d7de; padding: .3rem .8rem } table { border-collapse: collapse }"""


@pytest.mark.parametrize("look", ["wide", "phone"])
def test_the_readme_is_two_screens_as_it_is_rendered(open_page: Open, look: str) -> None:
    markdown = pytest.importorskip("markdown")
    body = markdown.markdown((ROOT / "README.md").read_text(), extensions=["extra"])
    server, address = serving(ROOT)
    page = open_page(address, viewport=PHONE if look == "phone" else WIDE)
    page.set_content(f"<style>{STYLE}</style>{body}", wait_until="load")
    widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) >= 1
    assert min(widths) > 600
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    links = page.evaluate("[...document.links].map((link) => link.href)")
    ours = [link.removeprefix(address) for link in links if link.startswith(address)]
    assert len(ours) > 5
    assert [link for link in ours if not (ROOT / link.partition("#")[0]).exists()] == []
    picture(page, f"readme-{look}", full_page=True)
    server.shutdown()
    server.server_close()
