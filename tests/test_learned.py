"""The command that lists what was learned of views, and has it forgotten once they are mended."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats
from django_replica_router.recording import learning
from testproject.notes.models import Note
from tests.conftest import learn_nothing
from tests.site import visit

pytestmark = pytest.mark.usefixtures("test_site")

NAME = "tests.site.run"
"""The view whose code each test gives."""


@pytest.fixture(autouse=True)
def _learned_anew() -> Iterator[None]:
    """Nothing counted or learned by another test."""
    pop_stats()
    learn_nothing()
    yield
    learn_nothing()


def run(*arguments: str) -> str:
    """Return what the command prints."""
    out = io.StringIO()
    call_command("replica_learned", *arguments, stdout=out, no_color=True)
    return out.getvalue()


def save_what_was_read(request: HttpRequest) -> None:
    """Count a visit as many views do."""
    Note.objects.get().save()


def read(request: HttpRequest) -> str:
    """Return which server has shown the note."""
    return str(Note.objects.get()._state.db)


def in_another_process(*arguments: str) -> str:
    """Run the command where nothing is known but what the cache tells."""
    mine, learning._known = learning._known, learning._Known()
    try:
        return run(*arguments)
    finally:
        learning._known = mine
        mine.looked_at.clear()  # LOOK_SECONDS later


def test_a_view_that_was_mended_reads_from_replicas_again(note: Note) -> None:
    """In a process that had learned it as well, which does not bring it back."""
    visit(Client(), save_what_was_read)
    assert visit(Client(), read) == "default"
    assert in_another_process().startswith(f"{NAME}  reads from the primary until 20")
    assert in_another_process("--forget", NAME) == (
        f"Forgotten, by all processes within 5 s: {NAME}.\n"
    )
    assert visit(Client(), read).startswith("replica")
    assert in_another_process() == (
        "Nothing was learned: no view or task has saved what it had read from a replica.\n"
    )


def test_a_view_that_saves_again_is_learned_again(
    note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes later counts."""
    visit(Client(), save_what_was_read)
    in_another_process("--forget-all")
    clock = learning.wall_clock_ms
    monkeypatch.setattr(learning, "wall_clock_ms", lambda: clock() + 1)
    visit(Client(), save_what_was_read)
    assert get_stats()["saved_from_replica"] == 2
    assert visit(Client(), read) == "default"
    assert NAME in in_another_process()


def test_what_was_not_learned_is_no_name_to_forget(note: Note) -> None:
    """It may be misspelt."""
    with pytest.raises(CommandError, match=r"--forget: shop\.views\.nothing was not learned"):
        run("--forget", "shop.views.nothing")


def test_a_cache_that_is_away_is_told(note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said to be forgotten."""

    def fail(*args: Any) -> None:
        raise OSError("away")

    visit(Client(), save_what_was_read)
    monkeypatch.setattr(type(learning.get_store("default")), "_save_text", fail)
    with pytest.raises(CommandError, match="The cache that knows what was learned: "):
        run("--forget", NAME)
