"""A browser that is missing: a reason to skip here, and to fail where it is required."""

import pytest

from tests.support import browser


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_browser_is_named_and_fails_where_it_is_required(monkeypatch, required, outcome):
    monkeypatch.setenv(browser.REQUIRED, required)
    monkeypatch.setattr(browser, "missing", lambda: "there is no browser: install Debian's chromium")
    with pytest.raises(outcome, match="Debian's chromium"), browser.launched():
        pass


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    browser.missing.cache_clear()
    assert "chromium" in browser.missing()
    browser.missing.cache_clear()


def test_the_checks_of_a_change_install_and_require_a_browser():
    script = browser.CHECKS.read_text("utf-8")
    assert f"export {browser.REQUIRED}=1" in script
    assert "apt-get install -y -qq chromium" in script
