"""The tasks of the tests' Celery app."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from django.core.cache import cache
from django.db import transaction

from django_replica_router import current_scope
from django_replica_router.scopes.sources import names_of
from testproject.notes.models import Note
from tests.celery_site import app


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Return once the condition holds; fail after a deadline."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def seen() -> list[str]:
    """Return the title that this place shows, and where it was read."""
    note = Note.objects.get()
    return [note.title, str(note._state.db)]


@app.task
def look(*results: Any) -> list[str]:
    """Tell what is seen."""
    return seen()


@app.task(bind=True)
def look_and_count(self: Any) -> list[Any]:
    """Tell what is seen, and how often this was put off."""
    return [*seen(), self.request.retries, self.request.get("replica_router_early", 0)]


@app.task
def meet(name: str, count: int) -> str:
    """Wait until so many are here, each in a process of its own; tell where this one reads."""
    cache.add(name, 0)
    cache.incr(name)
    wait_until(lambda: cache.get(name) >= count, "the others")
    return seen()[1]


@app.task
def add(text: str, *results: Any) -> str:
    """Add to the title."""
    note = Note.objects.select_for_update()
    with transaction.atomic():
        title = note.get().title
        Note.objects.update(title=title + text)
    return text


@app.task
def known_as() -> list[str]:
    """Tell by which names this task is known again."""
    here = current_scope()
    return [] if here is None else list(names_of(here))


@app.task
def add_and_fail(text: str) -> None:
    """Write, and fail all the same."""
    add(text)
    raise ValueError(text)


@app.task
def add_and_publish(text: str) -> str:
    """Write, and have another task look."""
    add(text)
    return str(look.delay().id)


@app.task(bind=True, max_retries=2)
def retry(self: Any) -> list[str]:
    """Look, write, and look again in another run."""
    if self.request.retries == 0:
        add("+retry")
        raise self.retry(countdown=0)
    return seen()


@app.task
def look_after(task_id: str) -> list[str]:
    """Look when another task has its result, and never ask for it as those do who shall see that."""
    wait_until(lambda: app.backend.get(app.backend.get_key_for_task(task_id)), "its result")
    return seen()


@app.task
def add_and_die(text: str) -> None:
    """Write, and be killed before there is a result."""
    add(text)
    os._exit(1)


@app.task(replica_wait=60.0)
def look_patiently() -> list[str]:
    """Wait for a replica."""
    return seen()


@app.task(bind=True, replica_wait=0.0, replica_delay=0.2)
def look_later(self: Any) -> list[Any]:
    """Be put off where no replica is there."""
    return [*seen(), self.request.retries, self.request.get("replica_router_put_off")]
