"""Django's tasks for the tests, as a site writes them: none but the last knows of the package."""

from __future__ import annotations

from django.db import transaction

from django_replica_router import current_scope
from django_replica_router.scopes.sources import names_of
from testproject.notes.models import Note

try:
    from django.tasks import task
except ImportError:
    from django_tasks import task


@task
def look() -> list[str]:
    """Tell what is seen, and where it was read."""
    note = Note.objects.get()
    return [note.title, str(note._state.db)]


@task
def add(text: str) -> None:
    """Add to the title."""
    with transaction.atomic():
        title = Note.objects.select_for_update().get().title
        Note.objects.update(title=title + text)


@task
def add_and_fail(text: str) -> None:
    """Write, and fail all the same."""
    add.call(text)
    raise ValueError(text)


@task
def known_as() -> list[str]:
    """Tell by which names this task is known again."""
    here = current_scope()
    return [] if here is None else list(names_of(here))
