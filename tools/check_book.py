"""Opens every page of the built book in headless Chromium, with every outside name blocked.

    python -m tools.check_book [--screenshots DIR]

What only a browser can tell: scripts that fail, mathematics that is not typeset, pages that scroll
sideways on a phone, text one cannot read in the dark theme, a search that finds nothing.
Exit code 1: a page has a problem. 2: there is no browser, or no book.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
WIDE, PHONE = (1400, 1000), (390, 844)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALL = """\
No Chromium was found, so nobody has looked at the pages. Install it
    Debian, Ubuntu:  apt install chromium chromium-driver
    others:          Chrome or Chromium, with the chromedriver of the same version in PATH
or say where it is: FEDPROX_CHROME=/path/to/chrome make check-book"""
# The theme complains about an empty stored choice on a reader's first visit. Harmless.
HARMLESS = ("invalid theme mode",)

CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")
THEME = "document.documentElement.dataset.theme = document.documentElement.dataset.mode = '{}'"


class NoBrowser(Exception):
    """There is no Chromium that starts. The message says what to install."""


def find_browser() -> str:
    named = os.environ.get("FEDPROX_CHROME")
    if named:
        if not shutil.which(named):
            raise NoBrowser(f"FEDPROX_CHROME={named} is not a program.\n{INSTALL}")
        return named
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise NoBrowser(INSTALL)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = find_browser()
    for argument in (
        "--headless=new",
        "--no-sandbox",  # containers run as root, where Chromium refuses its sandbox
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With no driver in PATH selenium looks for one itself, which may need a network.
    driver_path = shutil.which("chromedriver")
    try:
        driver = webdriver.Chrome(options, Service(driver_path) if driver_path else Service())
    except WebDriverException as error:
        raise NoBrowser(f"Chromium did not start: {error.msg}\n{INSTALL}") from error
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def ask(driver: webdriver.Chrome, question: str) -> Any:
    """Run a function of page_checks.js in the open page."""
    return driver.execute_script(f"{CHECKS}\nreturn {question}();")


def open_page(driver: webdriver.Chrome, address: str) -> list[str]:
    """Open a page, wait until its mathematics is set, and return what its console says."""
    driver.get_log("browser")  # forget the page before
    driver.get(address)
    complaints = []
    try:
        WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda d: ask(d, "settled"))
    except TimeoutException:
        complaints.append("not ready after 20 s")
    for entry in driver.get_log("browser"):
        harmless = any(text in entry["message"] for text in HARMLESS)
        if entry["level"] in {"SEVERE", "WARNING"} and not harmless:
            complaints.append(f"console: {entry['message']}"[:300])
    return complaints


def set_size(driver: webdriver.Chrome, size: tuple[int, int]) -> None:
    """The size of the page itself: a headless window cannot be narrower than 500 pixels."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def check_page(driver: webdriver.Chrome, page: Path, picture: Path | None) -> list[str]:
    """Look at one page wide, on a phone and in the dark; `picture` is how its pictures begin."""

    def screenshot(name: str) -> None:
        if picture:
            height = driver.execute_script("return document.documentElement.scrollHeight")
            width = driver.execute_script("return document.documentElement.clientWidth")
            set_size(driver, (width, min(height, 12000)))
            driver.save_screenshot(f"{picture}_{name}.png")

    set_size(driver, WIDE)
    complaints = open_page(driver, page.as_uri())
    complaints += ask(driver, "mathematics") + ask(driver, "pictures")
    complaints += check_contrast(driver, "light")
    screenshot("wide")
    set_size(driver, PHONE)
    time.sleep(0.4)  # the sidebar slides away
    complaints += [f"scrolls sideways: {text}" for text in ask(driver, "sideways")]
    screenshot("phone")
    set_size(driver, WIDE)
    complaints += check_contrast(driver, "dark")
    screenshot("dark")
    return complaints


def check_contrast(driver: webdriver.Chrome, theme: str) -> list[str]:
    driver.execute_script(THEME.format(theme))
    time.sleep(0.3)  # colours change in a transition
    return [f"{theme} theme: {text}" for text in ask(driver, "contrast")]


def check_search(driver: webdriver.Chrome, base: str, word: str) -> list[str]:
    """Search for a word, and expect a page of the chapters among the hits."""
    complaints = open_page(driver, f"{base}/search.html?q={word}")
    try:
        WebDriverWait(driver, 20).until(lambda d: any("/notebooks/" in hit for hit in ask(d, "hits")))
    except TimeoutException:
        complaints.append(f"no chapter found for {word!r}")
    return complaints


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's address on a local web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description="Open the built book in a browser.")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="save pictures here")
    parser.add_argument("--html", type=Path, default=HTML, help="the built book")
    options = parser.parse_args()
    html = options.html.resolve()
    if not (html / "index.html").exists():
        print(f"There is no book in {html}. Say `make book` first.", file=sys.stderr)
        return 2
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    pages = sorted(page for page in html.rglob("*.html") if "_static" not in page.parts)
    start = time.perf_counter()
    found: list[str] = []
    try:
        with browser() as driver:
            for page in pages:
                name = page.relative_to(html).as_posix()
                picture = None
                if options.screenshots:
                    picture = options.screenshots / name.removesuffix(".html").replace("/", "_")
                found += [f"{name}: {text}" for text in check_page(driver, page, picture)]
            set_size(driver, WIDE)
            with served(html) as address:
                for base in (address, html.as_uri()):
                    texts = check_search(driver, base, "proximal")
                    found += [f"search ({base[:4]}): {text}" for text in texts]
    except NoBrowser as error:
        print(error, file=sys.stderr)
        return 2
    for text in found:
        print(text)
    print(f"{len(pages)} pages, {len(found)} problems, {time.perf_counter() - start:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
