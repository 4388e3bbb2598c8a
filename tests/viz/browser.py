"""Pages of widgets in a browser: what they show, ask for and complain of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser import HAVE_BROWSER, WHY_NOT, start_chromium


@dataclass
class Browser:
    """A browser that opens pages from a folder.

    Attributes:
        driver: Selenium's.
        folder: Where pages are written.
    """

    driver: Any
    folder: Path

    def open(self, page: str) -> None:
        """Open a page of this HTML, whole or a body."""
        path = self.folder / "page.html"
        if "<html" not in page:
            page = f'<!doctype html><meta charset="utf-8"><body>{page}</body>'
        path.write_text(page, encoding="utf-8")
        self.driver.get_log("browser")  # what earlier pages said
        self.driver.get(path.as_uri())

    def run(self, script: str) -> Any:
        """Run JavaScript and return what it returns."""
        return self.driver.execute_script(script)

    def wait(self, condition: str, *, seconds: float = 15.0) -> None:
        """Wait until a JavaScript expression is true; until then it may fail."""
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.driver, seconds, poll_frequency=0.1)
        tried = f"try {{ return Boolean({condition}) }} catch {{ return false }}"
        wait.until(lambda driver: driver.execute_script(tried))

    @property
    def errors(self) -> list[str]:
        """What the page's console said that was an error."""
        log = self.driver.get_log("browser")
        return [line["message"] for line in log if line["level"] == "SEVERE"]

    @property
    def requests(self) -> list[str]:
        """What the page asked the network for."""
        names = "performance.getEntriesByType('resource').map(e => e.name)"
        asked = self.run(f"return {names}")
        return [name for name in asked if not name.startswith("data:")]

    @property
    def text(self) -> str:
        """What the page shows, hard spaces as spaces."""
        shown: str = self.run("return document.body.innerText")
        return shown.replace("\N{NO-BREAK SPACE}", " ")


def start(folder: Path) -> Browser:
    """Start Chromium, or skip the test that asks for it."""
    if not HAVE_BROWSER:
        pytest.skip(WHY_NOT)
    return Browser(start_chromium(folder / "profile"), folder)
