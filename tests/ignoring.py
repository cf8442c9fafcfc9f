"""What tests of ignored writes have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import F, Func
from django.http import HttpRequest
from django.test import Client

from django_replica_router import note_write
from django_replica_router.conf import Config
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import DJANGO, OWN, engine, execute
from tests.conftest import PATIENT, stand_still
from tests.site import sign_in, visit

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True, params=[DJANGO, OWN], ids=["django", "own"])
def backend(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """Django's own backend, and the package's."""
    with engine(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _router(settings: Any, backend: str) -> None:
    """Sessions on the primary only, and tags that nobody must see at once."""
    settings.REPLICA_ROUTER = {
        **PATIENT,
        "PRIMARY_ONLY": ["sessions"],
        "IGNORED_WRITES": ["notes.Tag"],
    }


@pytest.fixture
def browser(ann: User, note: Note, cluster: Cluster) -> Client:
    """Ann's browser, signed in; the replicas have all of that, and nothing newer from now on."""
    Tag.objects.create(name="red")
    client = sign_in(ann)
    stand_still(cluster)
    visit(client, where)
    return client


def where(request: HttpRequest | None = None) -> str:
    """Return the alias that serves an ordinary read, for whom the session names."""
    assert request is None or request.user.is_authenticated
    return str(Note.objects.get()._state.db)


def is_bound(client: Client) -> bool:
    """Tell whether the reader is on the primary because of what was written."""
    return visit(client, where) == "default"


def forget_the_rule(patch: Patch) -> None:
    """Have no model's writes ignored."""
    patch.setattr(Config, "ignores_writes", lambda self, model: False)


def by_raw_sql() -> None:
    execute("UPDATE notes_tag SET name = 'blue'")


def by_common_table_expression() -> None:
    execute("WITH gone AS (DELETE FROM notes_tag RETURNING id) SELECT * FROM gone")


def by_several_statements() -> None:
    execute("UPDATE notes_tag SET name = 'blue'; UPDATE notes_note SET version = 2")


def by_unknown_function() -> None:
    Tag.objects.update(name=Func(F("name"), function="quote_ident"))


def by_another_model() -> None:
    Note.objects.update(version=7)


def by_mixed_transaction() -> None:
    with transaction.atomic():
        Tag.objects.create(name="blue")
        Note.objects.update(version=7)
        Tag.objects.create(name="green")


def by_telling() -> None:
    """Of a write that is not noticed."""
    connection.connection.execute("UPDATE notes_tag SET name = 'blue'")
    note_write()
