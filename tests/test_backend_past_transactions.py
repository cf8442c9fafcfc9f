"""The package's database backend and what the transaction's own log does not show."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from django.db import connection, transaction
from django.test import Client

from django_replica_router import note_write
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.written import WriteMark
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.backend import _own_engine, execute, only_writes  # noqa: F401 - fixtures
from tests.conftest import stand_still
from tests.site import visit
from tests.written import note, signed_in  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# What the transaction's own log does not show ------------------------------------------------------


def write_elsewhere(note: Note) -> None:
    """Write by a connection of the driver's own."""
    params = {**connection.get_connection_params(), "autocommit": True}
    for name in ("cursor_factory", "context", "prepare_threshold"):
        params.pop(name, None)
    with psycopg.connect(**params) as raw:
        raw.execute("UPDATE notes_note SET title = 'NEW' WHERE id = %s", [note.pk])


def noted(note: Note) -> None:
    with transaction.atomic():
        assert Note.objects.count() == 1
        write_elsewhere(note)
        note_write()


def noted_and_rolled_back(note: Note) -> None:
    with transaction.atomic():
        write_elsewhere(note)
        note_write()
        transaction.set_rollback(True)


def by_dblink(note: Note) -> None:
    with transaction.atomic():
        execute("SELECT dblink_exec(%s, 'UPDATE notes_note SET title = ''NEW''')", [own_dsn()])


def by_held_cursor(note: Note) -> None:
    with transaction.atomic():
        execute(
            "DECLARE held CURSOR WITH HOLD FOR "
            f"SELECT dblink_exec('{own_dsn()}', 'UPDATE notes_note SET title = ''NEW''')"
        )
    connection.connection.execute("CLOSE held")


def by_foreign_table(note: Note) -> None:
    with transaction.atomic():
        execute("UPDATE far.notes_note SET title = 'NEW'")


def own_dsn() -> str:
    """Return what another server would reach this primary by."""
    params = connection.get_connection_params()
    return " ".join(f"{key}={params[key]}" for key in ("host", "port", "dbname", "user"))


PAST = {
    way.__name__: way
    for way in (noted, noted_and_rolled_back, by_dblink, by_held_cursor, by_foreign_table)
}


@pytest.fixture
def far(cluster: Cluster) -> Iterator[None]:
    """The primary's own tables as foreign ones, and ``dblink``."""
    params = connection.get_connection_params()
    cluster.primary.execute("CREATE EXTENSION dblink", dbname="app")
    cluster.primary.execute("CREATE EXTENSION postgres_fdw", dbname="app")
    for statement in (
        "CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw OPTIONS "
        # Not through a pooler: it sets the search path, for whoever is given that session next.
        f"(host '{params['host']}', port '{cluster.primary.port}', dbname '{params['dbname']}')",
        f"CREATE USER MAPPING FOR public SERVER itself OPTIONS (user '{params['user']}')",
        "CREATE SCHEMA far",
        "IMPORT FOREIGN SCHEMA public LIMIT TO (notes_note) FROM SERVER itself INTO far",
        # Its function does not find its tables by the search path of such a session.
        "ALTER TABLE notes_note DISABLE TRIGGER USER",
    ):
        cluster.primary.execute(statement, dbname="app")
    try:
        yield
    finally:
        connection.close()
        for statement in (
            "ALTER TABLE notes_note ENABLE TRIGGER USER",
            "DROP SCHEMA far CASCADE",
            "DROP SERVER itself CASCADE",
            "DROP EXTENSION postgres_fdw",
            "DROP EXTENSION dblink",
        ):
            cluster.primary.execute(statement, dbname="app")


@pytest.mark.parametrize("way", PAST.values(), ids=PAST)
def test_what_was_written_past_a_transaction_is_seen(
    signed_in: Client,
    note: Note,
    far: None,
    cluster: Cluster,
    only_writes: None,
    way: Callable[[Note], None],
) -> None:
    """A transaction without a number of its own may have written all the same, and been told so."""
    stand_still(cluster)
    visit(signed_in, lambda request: way(note), "post")
    assert visit(signed_in, lambda request: Note.objects.get().title) == "NEW"


@pytest.mark.parametrize("way", PAST.values(), ids=PAST)
def test_without_the_rule_a_write_past_a_transaction_is_missed(
    signed_in: Client,
    note: Note,
    far: None,
    cluster: Cluster,
    only_writes: None,
    way: Callable[[Note], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: where the number alone tells, the test above fails."""
    add = ClusterScope.add_write

    def forget(state: ClusterScope, mark: WriteMark) -> None:
        mark.noted, mark.changed = [], []
        add(state, mark)

    monkeypatch.setattr(ClusterScope, "add_write", forget)
    with pytest.raises(AssertionError, match="first"):
        test_what_was_written_past_a_transaction_is_seen(
            signed_in, note, far, cluster, only_writes, way
        )
