"""The documents name what there is, and nothing else."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import django_replica_router
from django_replica_router.conf import Config
from django_replica_router.policy import Reason

ROOT = Path(__file__).resolve().parent.parent


def headings(document: str) -> list[str]:
    """Return what the third-level headings of a document name."""
    text = (ROOT / "docs" / document).read_text()
    return re.findall(r"^### `(\w+)`$", text, re.MULTILINE)


def test_each_setting_has_its_heading() -> None:
    """In the order of the code, once each."""
    assert headings("settings.md") == [field.name for field in fields(Config)]


def test_each_check_has_its_heading() -> None:
    """Every id that the code can report, once each."""
    code = "".join(
        (ROOT / "django_replica_router" / module).read_text()
        for module in ("checks.py", "conf.py", "packages.py")
    )
    assert headings("checks.md") == sorted(set(re.findall(r'"([EW]\d{3})"', code)))


def test_each_default_is_documented() -> None:
    """The document tells the default that the code has."""
    text = (ROOT / "docs" / "settings.md").read_text()
    config = Config()
    for name in ("MAX_LAG", "WAIT", "CONNECT_TIMEOUT", "TOKEN_TTL", "SESSION_TTL", "INTERVAL"):
        section = text.split(f"### `{name}`")[1].split("###")[0]
        assert f"default `{getattr(config, name)}`" in section


def test_each_public_name_is_in_the_readme() -> None:
    """What a site may import is told where it looks first."""
    readme = (ROOT / "README.md").read_text()
    for name in django_replica_router.__all__:
        assert name in readme


def test_each_reason_is_in_the_readme() -> None:
    """The table of the rule leaves no reason out."""
    readme = (ROOT / "README.md").read_text()
    for reason in Reason:
        assert f"`{reason.name}`" in readme


def test_the_ways_of_a_read_and_a_write_name_what_is_there() -> None:
    """Whoever follows a step finds the function, or the class, in the file that the step names."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    ways = text.split("### The way of a read")[1].split("## What a change needs")[0]
    steps = re.findall(r"`([a-z_/]+\.py)`: `(\w+)`", ways)
    assert len(steps) > len(re.findall(r"^\d+\.", ways, re.MULTILINE)) // 2
    for file, name in steps:
        code = (ROOT / "django_replica_router" / file).read_text()
        assert re.search(rf"^\s*(?:async )?(?:def|class) {name}\b", code, re.MULTILINE), (
            file,
            name,
        )


def test_each_picture_is_there() -> None:
    """What a document shows, in either colour scheme, is a file beside it."""
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text()
        shown = re.findall(r'(?:src|srcset)="([^"]+)"', text) + re.findall(
            r"!\[[^]]*\]\(([^)]+)\)", text
        )
        for picture in shown:
            assert (document.parent / picture).is_file(), (document.name, picture)
