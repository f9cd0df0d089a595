"""A headless Chromium for tests of the page. Tests that need one skip, with the reason, where there is none."""

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def executable():
    """The browser's path, from BAREQA_CHROMIUM or among the usual names; None without one."""
    return os.environ.get("BAREQA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser():
    """A Playwright Browser."""
    from playwright.sync_api import sync_playwright

    path = executable()
    if path is None:
        pytest.skip(f"browser tier: needs one of {', '.join(NAMES)} (apt-get install chromium)")
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, nor in most containers; the pages are our own
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield opened
        finally:
            opened.close()
