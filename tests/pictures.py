"""Takes the pictures of the README and the documents: `python -m tests.pictures --to docs/pictures`."""

from __future__ import annotations

import io
import re
import sys
from argparse import ArgumentParser
from contextlib import closing
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect

from tests.chromium import VARIABLE, find_chromium, running_chromium
from tests.window import PATIENCE_MS, Window, running_window

COLOURS = 96
"""Flat areas and text need no more, and the file is a third of the size."""

SIZE = {"width": 1280, "height": 900}
BORDER = 24


def main() -> None:
    """Take all pictures."""
    parser = ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="DIRECTORY")
    directory: Path = parser.parse_args().to
    path = find_chromium()
    if path is None:
        sys.exit(f"There is no Chromium. Install it, or set {VARIABLE} to its path.")
    directory.mkdir(parents=True, exist_ok=True)
    with running_window() as url, running_chromium(path) as browser:
        for scheme in ("light", "dark"):
            _take(browser, url, scheme, directory)


def _take(browser: Browser, url: str, scheme: str, directory: Path) -> None:
    """Let Ada and Linus use the sites for a while, and take what they saw; then break both replicas."""
    options = {"viewport": SIZE, "color_scheme": scheme, "device_scale_factor": 1.5}
    with closing(Window(browser, url, **options)) as window:
        window.visit_often()
        window.tell("phone")
        _save(window, "header", ".sites", directory / f"window-{scheme}.png")
        window.move("replica1", "Cut the line", until="cut")
        lag = window.server("replica1").locator(".lag b")
        expect(lag).to_have_text(re.compile(r"^[5-9]"), timeout=PATIENCE_MS)
        window.move("replica2", "Kill", until="down")
        _save(window, ".servers", ".servers", directory / f"servers-{scheme}.png")
        window.reset()


def _save(window: Window, first: str, last: str, file: Path) -> None:
    """Take the page from one element to another, over its whole width."""
    page = window.page
    page.mouse.move(0, 0)
    page.evaluate("window.scrollTo(0, 0)")
    top = page.locator(first).bounding_box()
    bottom = page.locator(last).bounding_box()
    assert top is not None
    assert bottom is not None
    y = max(0.0, top["y"] - BORDER)
    height = bottom["y"] + bottom["height"] + BORDER - y
    clip = {"x": 0, "y": y, "width": SIZE["width"], "height": height}
    shot = page.screenshot(full_page=True, clip=clip, animations="disabled", caret="hide")
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    sys.stdout.write(f"{file}: {file.stat().st_size // 1024} kB\n")


if __name__ == "__main__":
    main()
