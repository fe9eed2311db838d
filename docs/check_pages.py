"""Open the built site in headless Chromium, at the width of a phone and of a desk: what would readers trip over?

Nothing wider than the window, no broken or illegibly small picture, no script error, nothing requested from another
host, and a search that finds. Needs Debian's chromium and its chromium-driver; speaks the WebDriver protocol to it.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}
SEARCHES = {"dead latents": "troubleshooting", "PackedCodes": "PackedCodes", "asymmetric": "search_modes"}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
# A site without an icon, and the theme's note that a new profile has chosen no colours yet
HARMLESS = ("favicon", "Got invalid theme mode")
# Smallest width of a picture, in pixels, at which its letters can still be read
MIN_PICTURE_WIDTH = 260

INSPECT = """
const found = [];
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > width + 1) {
  const wide = [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > width + 1);
  const names = wide.slice(0, 3).map(e => e.tagName + '.' + e.className).join(', ');
  found.push(`is ${document.documentElement.scrollWidth} pixels wide in a window of ${width}: ${names}`);
}
// What scrolls by itself may be wider than the window; words and links that stick out are cut off by the theme.
const scrolls = 'pre, table, figure, div.math, .pst-scrollable-table-container';
const cut = [...document.querySelectorAll('main :is(p, li, h1, h2, h3, h4, code, a, dt, dt > span, img)')].filter(
  e => !e.closest(scrolls) && e.getBoundingClientRect().right > width + 1 && e.getClientRects().length
    && !e.matches('.headerlink, .visually-hidden') && getComputedStyle(e).visibility !== 'hidden');
if (cut.length) found.push(`cuts off ${cut[0].tagName} ${cut[0].textContent.slice(0, 60)}`);
for (const image of document.querySelectorAll('main img')) {
  if (image.loading === 'lazy') image.loading = 'eager';
  if (image.complete && image.naturalWidth === 0) found.push('broken picture ' + image.getAttribute('src'));
  const box = image.getBoundingClientRect();
  const isThumbnail = image.closest('.sphx-glr-thumbcontainer');
  if (!isThumbnail && box.width > 0 && box.width < Math.min(MIN_WIDTH, image.naturalWidth))
    found.push(`picture ${image.getAttribute('src')} is ${Math.round(box.width)} pixels wide`);
}
const host = window.location.host;
for (const entry of performance.getEntriesByType('resource'))
  if (new URL(entry.name).host !== host && entry.name.startsWith('http')) found.push('requested ' + entry.name);
if (document.querySelectorAll('main h1').length !== 1)
  found.push(document.querySelectorAll('main h1').length + ' headings of the first level');
return found;
"""


class Driver:
    """The little of WebDriver that is needed here."""

    def __init__(self, port: int, profile: str, binary: str) -> None:
        self._address = f"http://127.0.0.1:{port}/session"
        options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        body = {"capabilities": {"alwaysMatch": capabilities}}
        self._address += "/" + self._call("POST", "", body)["sessionId"]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)["value"]

    def resize(self, width: int, height: int) -> None:
        """Give the window a size; headless Chromium has no smallest one when the device is emulated."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        body = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._call("POST", "/goog/cdp/execute", body)

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run a script in the page and return what it returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def screenshot(self, path: Path) -> None:
        """Save the whole page, down to 6,000 pixels."""
        size = self.run("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 6000), "scale": 1}
        params = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        shot = self._call("POST", "/goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": params})
        path.write_bytes(base64.b64decode(shot["data"]))

    def errors(self) -> list[str]:
        """Return what scripts reported since the last call."""
        log = self._call("POST", "/se/log", {"type": "browser"})
        errors = [entry["message"] for entry in log if entry["level"] == "SEVERE"]
        return [error for error in errors if not any(harmless in error for harmless in HARMLESS)]

    def close(self) -> None:
        """End the session."""
        self._call("DELETE", "")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine and yield its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def browser() -> Iterator[Driver]:
    """Start Chromium with an empty profile and yield a driver of it."""
    binary, program = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or program is None:
        raise FileNotFoundError("chromium and chromedriver must be installed: apt-get install chromium chromium-driver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([program, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        try:
            for _ in range(100):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5):
                        break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            driver = Driver(port, profile, binary)
            try:
                yield driver
            finally:
                driver.close()
        finally:
            process.terminate()
            process.wait()


def check_page(driver: Driver, url: str) -> list[str]:
    """Return what is wrong with one page at the present width."""
    driver.open(url)
    found: list[str] = driver.run(INSPECT.replace("MIN_WIDTH", str(MIN_PICTURE_WIDTH)))
    return found + driver.errors()


def check_search(driver: Driver, address: str, words: str, expected: str) -> list[str]:
    """Return a complaint if the search does not find a page."""
    driver.open(f"{address}search.html?q={urllib.request.quote(words)}")
    links: list[str] = []
    for _ in range(100):
        links = driver.run("return [...document.querySelectorAll('#search-results li a')].map(a => a.href)")
        if any(expected in link for link in links):
            return driver.errors()
        time.sleep(0.1)
    return [f"the search for {words!r} does not find {expected}, but {links[:5]}"]


def check_site(folder: Path, screenshots: Path | None) -> list[str]:
    """Return one line for each thing that is wrong."""
    pages = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.html"))]
    pages = [page for page in pages if not page.startswith(("_modules/", "_static/")) and page != "search.html"]
    if "index.html" not in pages:
        raise FileNotFoundError(f"{folder} holds no built site: run make docs first")
    wrong = []
    with served(folder) as address, browser() as driver:
        for device, (width, height) in WIDTHS.items():
            driver.resize(width, height)
            for page in pages:
                wrong += [f"{page} ({device}): {line}" for line in check_page(driver, address + page)]
                if screenshots is not None:
                    driver.screenshot(screenshots / f"{page.removesuffix('.html').replace('/', '-')}-{device}.png")
            for words, expected in SEARCHES.items():
                wrong += [f"search ({device}): {line}" for line in check_search(driver, address, words, expected)]
            if screenshots is not None:
                driver.screenshot(screenshots / f"search-{device}.png")
    print(f"{len(pages)} pages at {len(WIDTHS)} widths, {len(SEARCHES)} searches")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the built site")
    parser.add_argument("--screenshots", type=Path, help="folder to keep a picture of every page in")
    options = parser.parse_args(arguments)
    if options.screenshots is not None:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    wrong = check_site(options.folder.resolve(), options.screenshots)
    print("\n".join(wrong) if wrong else "all pages are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
