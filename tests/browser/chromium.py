"""Just enough of the DevTools protocol to look at a page, over a pipe: nothing to install."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]

#: All text on the page, also inside web components.
_TEXT = """
(() => {
  const pieces = [];
  const visit = (node) => {
    if (node.nodeType === Node.TEXT_NODE) pieces.push(node.textContent);
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return;
    if (node.shadowRoot) visit(node.shadowRoot);
    for (const child of node.childNodes) visit(child);
  };
  if (document.body) visit(document.body);
  return pieces.map((p) => p.trim()).filter(Boolean).join('\\n');
})()
"""

#: Widths in pixels of all images that have been loaded, also inside web components.
_IMAGES = """
(() => {
  const widths = [];
  const visit = (node) => {
    if (node.nodeName === 'IMG') widths.push(node.naturalWidth);
    if (node.shadowRoot) visit(node.shadowRoot);
    for (const child of node.childNodes) visit(child);
  };
  if (document.body) visit(document.body);
  return widths;
})()
"""


class Page:
    """One tab of a headless browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._unread = b""
        self._last_id = 0
        self._session: dict[str, str] = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        self.resize(1400, 1000)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height}
        self._call("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **size)

    def emulate(self, scheme: str = "light", media: str = "") -> None:
        """Prefer "light" or "dark"; be a screen, or "print"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> object:
        reply = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def text(self) -> str:
        return str(self.evaluate(_TEXT))

    def image_widths(self) -> list[int]:
        return self.evaluate(_IMAGES)

    def wait_for(self, *wanted: str, timeout_s: float = 60.0) -> str:
        """The text of the page once everything wanted is in it."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.text()
            missing = [piece for piece in wanted if piece not in text]
            if not missing:
                return text
            assert time.monotonic() < deadline, f"never saw {missing} in: {text}"
            time.sleep(0.3)

    def screenshot(self, path: Path) -> None:
        reply = self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(reply["data"]))

    def _call(self, method: str, **params: object) -> dict:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == self._last_id:
                assert "error" not in reply, (method, reply)
                return reply["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], 60.0)
            assert ready, "the browser does not answer"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has gone"
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Page]:
    """A headless browser with one empty tab and a profile of its own."""
    assert PATH is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        its_in, our_out = os.pipe()
        our_in, its_out = os.pipe()
        # above 3 and 4, which is where the browser looks for its ends
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (its_in, its_out)]
        process = subprocess.Popen(
            [PATH, *_FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
            pass_fds=(3, 4),
        )
        for fd in (its_in, its_out, *ends):
            os.close(fd)
        try:
            yield Page(our_out, our_in)
        finally:
            for fd in (our_out, our_in):
                os.close(fd)
            process.kill()
            process.wait()
