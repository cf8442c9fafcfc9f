"""A real browser, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

VARIABLE = "REPLICA_ROUTER_CHROMIUM"
PATHS = ("/usr/bin/chromium", "/usr/bin/chromium-browser")


def find_chromium() -> str | None:
    """Return the path of Chromium, or None where there is none."""
    named = os.environ.get(VARIABLE)
    candidates = [named] if named else [*PATHS, shutil.which("google-chrome") or ""]
    return next((path for path in candidates if Path(path).is_file()), None)


def require_chromium() -> str:
    """Return the path of Chromium; skip aloud where there is none, and in CI fail."""
    path = find_chromium()
    if path is not None:
        return path
    message = f"there is no Chromium; install it (chromium), or set {VARIABLE} to its path"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def running_chromium(path: str) -> Iterator[Browser]:
    """Run Chromium for the length of the block. Meanwhile this thread may not use Django's ORM."""
    with sync_playwright() as playwright:
        # What it is shown comes from this machine, and root has no sandbox.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()
