"""What tests of writes have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection
from django.http import HttpRequest
from django.test import Client

from django_replica_router.scopes.identity import user_key
from django_replica_router.scopes.keys import digest
from django_replica_router.stores.store import get_store
from django_replica_router.values.tokens import NOWHERE, Record
from testproject.notes.models import Note, Tag
from tests.site import sign_in


def record_of(user: User) -> Record | None:
    """Return what the token store knows of the user."""
    return get_store("default").load([f"rr:default:{user_key(user)}"])[0]


def wrote(user: User) -> Record:
    """Return what is stored of the user's write, whose position is known."""
    record = record_of(user)
    assert record is not None
    assert record.position != NOWHERE
    assert not record.pinned_until_ms
    return record


def session_record_of(client: Client) -> Record | None:
    """Return what the token store knows of the client's session."""
    cookie = client.cookies["sessionid"].value
    return get_store("default").load([f"rr:default:{digest('session', cookie)}"])[0]


@pytest.fixture
def signed_in(ann: User, forget_tokens: Callable[[], None]) -> Client:
    """Ann's browser, signed in, with nothing in the token store."""
    client = sign_in(ann)
    forget_tokens()
    return client


@pytest.fixture
def note(ann: User) -> Note:
    """A note of Ann's, with a tag and a comment."""
    note = Note.objects.create(owner=ann, title="first")
    note.tags.add(Tag.objects.create(name="red"))
    note.comments.create(author=ann, text="well said")
    return note


def procedure(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.callproc("notes_touch", [note.pk])


def fail(note: Note) -> None:
    with pytest.raises(Exception, match="duplicate"):
        Tag.objects.create(name="red")


FAILURES: dict[str, Callable[[Any], Any]] = {
    "procedure": lambda cursor: cursor.execute(
        "DO $$ BEGIN INSERT INTO notes_tag (name) VALUES ('blue'); COMMIT; "
        "RAISE EXCEPTION 'too late'; END $$"
    ),
    "several statements": lambda cursor: cursor.execute(
        "BEGIN; INSERT INTO notes_tag (name) VALUES ('blue'); COMMIT; SELECT 1 / 0"
    ),
    "one by one": lambda cursor: cursor.executemany(
        "INSERT INTO notes_tag (name) VALUES (%s)", [("blue",), ("blue",)]
    ),
}


def add_tag_or_find_it(request: HttpRequest) -> str:
    """Do as one does who expects that another may be first."""
    try:
        return Tag.objects.get(name="blue").name
    except Tag.DoesNotExist:
        with contextlib.suppress(IntegrityError):
            Tag.objects.create(name="blue")
    return Tag.objects.get(name="blue").name


def get_or_create_by_the_alias(request: HttpRequest) -> str:
    """Look on the replica that an object is from, since nothing else is asked for."""
    note = Note.objects.get()
    return Tag.objects.using(note._state.db).get_or_create(name="blue")[0].name
