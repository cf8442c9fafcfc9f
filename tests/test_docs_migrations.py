"""The guides for whoever comes from another router: their changes apply, and both sides run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import DOCS, ROOT, blocks

GUIDES = {
    "from-multidb-router": "multidb",
    "from-replicated": "django_replicated",
    "from-random-router": "",
}
BASE = """
from testproject.settings import *

ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = None
MIDDLEWARE = MIDDLEWARE[1:]
INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "django_replica_router"]
"""
URLS = """
from testproject.urls import *
"""


def both_sides(guide: str) -> list[dict[str, str]]:
    """Return the files of a site before the changes of a guide, and after them."""
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for block in blocks(DOCS / f"{guide}.md"):
        assert block.language == "diff", block.name
        lines = [line or " " for line in block.text.splitlines()]
        name = lines[0].removeprefix(" # ")
        assert all(line[:1] in {" ", "-", "+"} for line in lines), block.name
        before[name] = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
        after[name] = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
    return [before, after]


def check(files: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Make a site of these files, and have Django check it and import all of it."""
    (folder / "shop").mkdir(parents=True)
    site = {"shop/__init__.py": "", "shop/urls.py": URLS, **files}
    site["shop/settings.py"] = BASE + files["shop/settings.py"]
    if "shop/views.py" in files:
        site["shop/urls.py"] += "from shop import views\n"
    for name, text in site.items():
        (folder / name).write_text(text)
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", "check", "--fail-level", "WARNING"],
        cwd=folder,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("guide", GUIDES)
def test_the_site_runs_before_and_after_the_changes(guide: str, tmp_path: Path) -> None:
    """With no finding of any check, and every module imported."""
    for side, files in zip(("before", "after"), both_sides(guide), strict=True):
        done = check(files, tmp_path / side)
        assert done.returncode == 0, (side, done.stderr)


@pytest.mark.parametrize("guide", GUIDES)
def test_nothing_of_the_other_router_is_left(guide: str) -> None:
    """Whoever applies all changes can take the other package out."""
    _, after = both_sides(guide)
    other = GUIDES[guide] or "PrimaryReplicaRouter"
    assert other not in "".join(after.values())


@pytest.mark.parametrize("guide", [guide for guide, package in GUIDES.items() if package])
def test_each_old_name_exists_in_the_other_package(guide: str) -> None:
    """The left column of the table names what the installed release has, and all of its settings."""
    spec = importlib.util.find_spec(GUIDES[guide])
    assert spec is not None
    assert spec.origin is not None
    source = "".join(file.read_text() for file in Path(spec.origin).parent.glob("*.py"))
    table = re.findall(r"^\| (`.*?`) \| .* \|$", (DOCS / f"{guide}.md").read_text(), re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"`([\w.]+)`", cell)}
    assert named
    for name in named:
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", source), name
    settings = set(re.findall(r"\b(?:MULTIDB|REPLICATED|REPLICA|SLAVE)_[A-Z_]+\b", source))
    assert settings <= named, settings - named


def test_a_change_that_is_left_out_is_found(tmp_path: Path) -> None:
    """A site that names the router, and not the app, does not pass the check."""
    _, after = both_sides("from-multidb-router")
    text = after["shop/settings.py"]
    left_out = re.sub(r"^MIDDLEWARE.*\n", "", text, flags=re.MULTILINE)
    assert left_out != text
    done = check({**after, "shop/settings.py": left_out}, tmp_path)
    assert done.returncode
    assert "W006" in done.stderr
