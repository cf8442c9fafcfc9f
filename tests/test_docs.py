"""The documents name what there is, and nothing else."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest
from django.core.management import get_commands

import django_replica_router
from django_replica_router import observing
from django_replica_router.conf import Config
from django_replica_router.connections.mending import REFUSED_WRITE, REPLICA_FAULT
from django_replica_router.observations import EVENTS, Query
from django_replica_router.policy import Reason
from django_replica_router.reviewing import ADVICE
from tests.documents import PAGES

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


def test_each_event_and_warning_is_told_of_where_observing_is() -> None:
    """With what the code itself says of it, and each field of a statement."""
    text = (ROOT / "docs" / "observing.md").read_text()
    assert all(f"`{name}" in text or f"{name}()" in text for name in observing.__all__)
    events = text.split("### Events")[1].split("##")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", events, re.MULTILINE)) == EVENTS
    warnings = text.split("| warning |")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", warnings, re.MULTILINE) == list(ADVICE)
    statement = text.split("`Query`:")[1].split("###")[0]
    assert set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", statement, re.MULTILINE)))
    ) == set(Query._fields)


def test_each_event_that_is_counted_may_be_told() -> None:
    """What the code counts is explained to whoever observes it, but for what is no news of a request."""
    package = ROOT / "django_replica_router"
    code = "".join(file.read_text() for file in package.rglob("*.py"))
    counted = set(re.findall(r'\bcount\("(\w+)"', code)) | {REFUSED_WRITE, REPLICA_FAULT}
    assert counted - set(EVENTS) == {
        "waits_ended",  # by a thread that serves no request
        "wal_flushes",  # so are these
        "tokens_stored",  # at the end of each request that has written
    }


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


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_each_name_in_a_page_exists(page: Path) -> None:
    """Dotted paths can be imported, checks and settings have their heading, and commands are there."""
    text = page.read_text()
    checks = set(re.findall(r"`(?:django_replica_router\.)?([EW]\d{3})`", text))
    assert checks <= {*headings("checks.md"), "E001", "W001"}
    for path in set(re.findall(r"\bdjango_replica_router(?:\.[a-zA-Z]\w*)+", text)):
        assert path.endswith((".py", ".md")) or _exists(path), path
    for target in set(re.findall(r"settings\.md#(\w+)", text)):
        assert target.upper() in headings("settings.md"), target
    for command in set(re.findall(r"manage\.py ([a-z_]+)", text)):
        assert command in get_commands(), command


def _exists(path: str) -> bool:
    """Tell whether a dotted path leads to something: a module, or what stands in one."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def test_a_name_that_does_not_exist_is_found() -> None:
    """Each of the ways to name something is really looked up."""
    assert _exists("django_replica_router.middleware.ReplicaRouterMiddleware")
    assert not _exists("django_replica_router.middleware.Other")
    assert not _exists("django_replica_router.nowhere")
