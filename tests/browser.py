"""A real Chromium without a window: what opens the web pages that asteps writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

__all__ = ["MISSING", "Visit", "started_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "there is no Chromium here"


def find() -> str | None:
    """Where Chromium is: what ASTEPS_CHROMIUM says, or the first that is in the path."""
    named = os.environ.get("ASTEPS_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def started_browser() -> Iterator[Browser]:
    """A browser; without one the test is skipped, or fails where ASTEPS_BROWSER is ``required``."""
    path = find()
    if path is None:
        if os.environ.get("ASTEPS_BROWSER") == "required":
            pytest.fail(f"{MISSING}, and ASTEPS_BROWSER=required")
        pytest.skip(f"{MISSING}: install it, or name it in ASTEPS_CHROMIUM")
    # Its sandbox needs rights that a container often has not; the pages are our own.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """What a page did while it was open.

    Attributes:
        page: The page.
        said: Messages on its console: errors, broken policies.
        asked: Addresses that it asked for, but the page's own.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.on("request", lambda request: self.asked.append(request.url))
