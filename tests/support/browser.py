"""A headless Chromium with the network off, and what a page did in it."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

CHECKS = Path(__file__).parents[2] / ".ci" / "run"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REQUIRED = "LOGITSTORE_BROWSER"  # set to 1 where a missing browser is a failure, as in .ci/run


@cache
def missing():
    """Return what is missing for a browser; an empty string for nothing."""
    if not any(map(shutil.which, NAMES)):
        return f"there is no browser: install Debian's chromium (looked for {', '.join(NAMES)})"
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "there is no playwright: pip install 'logitstore[test]'"
    return ""


@contextmanager
def launched():
    """Start the browser; skip where it is missing, unless ``LOGITSTORE_BROWSER=1`` requires it."""
    if why := missing():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(why)
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, NAMES)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One page that is open, and everything that it did."""

    page: object
    console: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    dialogs: list = field(default_factory=list)

    @property
    def quiet(self):
        """True if nothing was printed or asked, and no host was asked for anything."""
        return not (self.console or self.requests or self.dialogs)


@contextmanager
def opened(browser, path, width=1200, height=900, *, scripts=True, dark=False):
    """Open a file of this machine in a context of its own, offline."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        java_script_enabled=scripts,
        color_scheme="dark" if dark else "light",
        offline=True,
    )
    visit = Visit(context.new_page())
    visit.page.on("console", lambda message: visit.console.append(message.text))
    visit.page.on("pageerror", lambda error: visit.console.append(str(error)))
    visit.page.on("dialog", lambda dialog: (visit.dialogs.append(dialog.message), dialog.dismiss()))
    visit.page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("data:", path.as_uri())) else visit.requests.append(request.url)
        ),
    )
    try:
        visit.page.goto(path.as_uri())
        yield visit
    finally:
        context.close()
