"""What a query may not do: whatever would write in it is refused, by its text or by the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from django.db import DataError, connection, connections, transaction
from psycopg import sql

from django_replica_router import (
    command,
    get_stats,
    ignore_writes,
    query,
    scope,
    use_primary,
)
from django_replica_router.errors import WriteInQuery
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import OWN, engine, wire
from tests.conftest import wait_until_known
from tests.cqrs import by_text, change
from tests.helpers import Served

pytestmark = pytest.mark.usefixtures("note")

UNKNOWN = "SELECT txid_snapshot_xmax(txid_current_snapshot())"
"""It writes nothing, and its text does not tell that."""


WAYS: dict[str, Callable[[Note], Any]] = {
    "save": lambda note: note.save(),
    "create": lambda note: Note.objects.create(owner_id=note.owner_id),
    "bulk_create": lambda note: Note.objects.bulk_create([Note(owner_id=note.owner_id)]),
    "bulk_update": lambda note: Note.objects.bulk_update([note], ["title"]),
    "update": lambda note: Note.objects.update(title="second"),
    "delete": lambda note: note.delete(),
    "delete of a queryset": lambda note: Note.objects.all().delete(),
    "many to many": lambda note: note.tags.add(4711),
    "get_or_create": lambda note: Tag.objects.get_or_create(name="new"),
    "update_or_create": lambda note: Note.objects.update_or_create(pk=note.pk),
    "in a transaction": transaction.atomic(lambda note: note.save()),
    "command": lambda note: command(change)(),
    "atomic command": lambda note: command(atomic=True)(change)(),
    "in use_primary": use_primary(lambda note: note.save()),
    "in ignore_writes": ignore_writes(lambda note: note.save()),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("around", [nullcontext, scope, transaction.atomic, use_primary])
def test_a_write_in_a_query_reaches_no_server(
    cluster: Cluster, note: Note, served: Served, way: Callable[[Note], Any], around: Any
) -> None:
    """By the ORM: it is named, with its model, and counted."""
    before = get_stats().get("writes_in_queries", 0)

    @query
    def work() -> None:
        way(note)

    with around(), pytest.raises(WriteInQuery) as caught:
        work()
    assert caught.value.table.startswith("notes_")
    assert f"{caught.value.table} (notes." in str(caught.value)
    assert "test_a_write_in_a_query_reaches_no_server.<locals>.work' may not" in str(caught.value)
    words = {text.split()[0] for _, text in served.statements}
    assert words <= {"SELECT", "SAVEPOINT", "ROLLBACK", "RELEASE"}
    assert get_stats()["writes_in_queries"] == before + 1
    assert Note.objects.get().title == "first"


def test_a_scope_in_a_query_is_no_way_out(note: Note) -> None:
    """Nor is one that is opened in a coroutine."""

    @query
    def work() -> None:
        with scope():
            note.save()

    with pytest.raises(WriteInQuery):
        work()


STATEMENTS = {
    "UPDATE notes_note SET title = 'second'": "notes_note",
    "/* a */ (WITH gone AS (DELETE FROM notes_note RETURNING id) SELECT * FROM gone)": "notes_note",
    "WITH one AS (SELECT 1) UPDATE notes_note SET title = 'second'": "notes_note",
    "MERGE INTO notes_note USING notes_tag ON false WHEN MATCHED THEN DELETE": "notes_note",
    "SELECT * INTO notes_copy FROM notes_note": "notes_copy",
    'TRUNCATE TABLE ONLY "notes_note"': "notes_note",
    "CREATE TEMP TABLE mine (id int)": "mine",
    "DROP TABLE IF EXISTS notes_note": "notes_note",
    "LOCK TABLE notes_note": "notes_note",
    "SELECT id FROM notes_note FOR UPDATE": "notes_note",
    "SELECT id FROM notes_note FOR KEY SHARE": "notes_note",
    "COPY notes_note FROM PROGRAM 'x'": "notes_note",
    "EXPLAIN ANALYZE DELETE FROM notes_note": "notes_note",
    "NOTIFY someone": "someone",
    "SELECT pg_notify('someone', 'now')": "",
    "DO $$BEGIN DELETE FROM notes_note; END$$": "notes_note",
    "CALL anything()": "",
    "SELECT 1; DELETE FROM notes_note": "notes_note",
    "SELECT 1; COMMIT; DELETE FROM notes_note": "notes_note",
    "SELECT $$1$$; COMMIT; DELETE FROM notes_note": "notes_note",
    "DECLARE c CURSOR WITH HOLD FOR SELECT notes_touch(1)": "",
    "PREPARE TRANSACTION 'one'": "",
}


@pytest.mark.parametrize("alias", ["default", "replica1"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_that_says_that_it_writes_reaches_no_server(
    cluster: Cluster, served: Served, statement: str, alias: str
) -> None:
    """As a text, in bytes, or composed by the driver."""
    for given in (statement, statement.encode(), sql.SQL(statement)):
        with pytest.raises(WriteInQuery) as caught, connections[alias].cursor() as cursor:
            query(cursor.execute)(given)
        assert caught.value.table == STATEMENTS[statement]
    assert not served.statements


HARMLESS = [
    "SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT title AS update FROM notes_note WHERE title <> 'DELETE FROM notes_note'",
    "WITH one AS (SELECT 1) SELECT * FROM one -- FOR UPDATE",
    "EXPLAIN DELETE FROM notes_note",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT $$one$$",
    "VALUES (1)",
    "TABLE notes_note",
    "SET statement_timeout = 0",
    "SHOW search_path",
    UNKNOWN,
]


@pytest.mark.parametrize("around", [nullcontext, transaction.atomic])
@pytest.mark.parametrize("alias", ["default", "replica1"])
@pytest.mark.parametrize("statement", HARMLESS)
def test_a_statement_that_reads_is_run(
    cluster: Cluster, statement: str, alias: str, around: Any
) -> None:
    """And shows what it shows otherwise, once."""

    def rows() -> Any:
        with around(), connections[alias].cursor() as cursor:
            cursor.execute(statement)
            found = cursor.fetchall() if cursor.description else None
            return found, cursor.rowcount, cursor.description and len(cursor.description)

    found = query(rows)()
    is_plan = statement.startswith("EXPLAIN") or statement is UNKNOWN
    assert is_plan or found == rows()
    assert found[0] or not found[2]


@contextmanager
def writing_view() -> Iterator[None]:
    """Have a view that writes, when it is read, on every server."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE VIEW notes_touching AS SELECT notes_touch(id) FROM notes_note")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP VIEW notes_touching")


def by_parameter(cursor: Any, pk: int) -> Any:
    """Call it with a parameter."""
    cursor.execute("SELECT notes_touch(%s)", [pk])


def by_view(cursor: Any, pk: int) -> Any:
    """Read a view that calls it: no text tells."""
    cursor.execute("SELECT * FROM notes_touching")


def by_many(cursor: Any, pk: int) -> Any:
    """Call it for each of many."""
    cursor.executemany("SELECT notes_touch(%s)", [[pk], [pk]])


def by_procedure(cursor: Any, pk: int) -> Any:
    """Call it past the statements."""
    cursor.callproc("notes_touch", [pk])


def by_stream(cursor: Any, pk: int) -> Any:
    """Stream its rows."""
    return list(cursor.stream("SELECT notes_touch(%s)", [pk]))


def by_copy(cursor: Any, pk: int) -> Any:
    """Copy its rows."""
    with cursor.copy(f"COPY (SELECT notes_touch({pk})) TO STDOUT") as copy:
        return list(copy)


def by_explaining(cursor: Any, pk: int) -> Any:
    """Have it explained, and run."""
    cursor.execute(f"EXPLAIN ANALYZE SELECT notes_touch({pk})")


def by_sequence(cursor: Any, pk: int) -> Any:
    """Take a number."""
    cursor.execute("SELECT nextval('notes_note_id_seq')")


HIDDEN = [
    by_text,
    by_parameter,
    by_view,
    by_many,
    by_procedure,
    by_stream,
    by_copy,
    by_explaining,
    by_sequence,
]
PLACES = {
    "primary": ("default", nullcontext),
    "primary in a transaction": ("default", transaction.atomic),
    "replica": ("replica1", nullcontext),
    "replica in a transaction": ("replica1", lambda: transaction.atomic(using="replica1")),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", HIDDEN)
def test_what_the_text_does_not_tell_is_refused_by_the_server(
    cluster: Cluster, note: Note, way: Any, place: str
) -> None:
    """On the primary as on a replica; and nothing is run anywhere else instead."""
    alias, around = PLACES[place]
    with writing_view():
        wait_until_known(cluster)
        with (
            scope(),
            around(),
            pytest.raises(WriteInQuery, match="its server refused"),
            connections[alias].cursor() as cursor,
        ):
            query(way)(cursor, note.pk)
        connections[alias].close()
    assert Note.objects.get().version == 1


def refuse(way: Any, note: Note) -> None:
    """See the server refuse that."""
    refused = pytest.raises(WriteInQuery, match="its server refused")
    with refused, connection.cursor() as cursor:
        query(way)(cursor, note.pk)


@pytest.mark.parametrize("options", [{"server_side_binding": True}, {"prepare_threshold": 0}])
@pytest.mark.parametrize("around", [nullcontext, transaction.atomic])
@pytest.mark.parametrize("way", HIDDEN)
def test_however_the_driver_speaks_to_the_server(
    cluster: Cluster, note: Note, way: Any, around: Any, options: dict[str, Any]
) -> None:
    """Where the values travel apart from the text, one message cannot hold several statements."""
    connections["default"].close()
    with (
        pytest.MonkeyPatch.context() as patch,
        writing_view(),
    ):
        settings = connections["default"].settings_dict
        patch.setitem(settings, "OPTIONS", {**settings["OPTIONS"], **options})
        connections["default"].close()
        with around():
            refuse(way, note)
        assert query(lambda: Note.objects.using("default").get().version)() == 1
    connections["default"].close()  # what the view has opened it for as well


@pytest.mark.parametrize("around", [nullcontext, transaction.atomic])
@pytest.mark.parametrize("way", HIDDEN)
def test_with_the_packages_own_backend(cluster: Cluster, note: Note, way: Any, around: Any) -> None:
    """The same; and what a command has written is in its token."""
    with engine(OWN), writing_view():
        with scope() as opened, around():
            refuse(way, note)
            change()
        assert opened.token
        assert query(lambda: Note.objects.using("default").get().version)() == 1


@pytest.mark.parametrize("way", [by_text, by_parameter, by_view, by_many, by_procedure])
def test_where_the_package_has_chosen_the_replica_the_primary_is_not_asked(
    cluster: Cluster, note: Note, served: Served, way: Any
) -> None:
    """Outside of a query a replica's refusal leads there."""
    with writing_view():
        wait_until_known(cluster)
        with scope():
            alias = Note.objects.all().db
            assert Note.objects.get() == note
            served.clear()
            with pytest.raises(WriteInQuery), connections[alias].cursor() as cursor:
                query(way)(cursor, note.pk)
            assert "default" not in served.aliases()
    assert Note.objects.get().version == 1


@pytest.mark.parametrize("around", [nullcontext, transaction.atomic])
def test_rows_that_are_fetched_later_are_read_only(
    cluster: Cluster, note: Note, around: Any
) -> None:
    """A cursor of the server's runs its query when it is fetched from."""

    @query
    def work() -> list[Any]:
        return list(
            Note.objects.using("default").extra(select={"now": "notes_touch(id)"}).iterator()
        )

    with around():
        with pytest.raises(WriteInQuery):
            work()
        assert [found.title for found in query(Note.objects.using("default").iterator)()] == [
            "first"
        ]
    assert Note.objects.get().version == 1


@pytest.mark.parametrize("way", [by_text, by_view, by_many, by_stream])
def test_a_refusal_leaves_the_transaction_of_a_command_as_it_was(
    cluster: Cluster, note: Note, way: Any
) -> None:
    """Who expects it may go on, and write."""

    @command(atomic=True)
    def work() -> int:
        Note.objects.update(title="second")
        with pytest.raises(WriteInQuery), connection.cursor() as cursor:
            query(way)(cursor, note.pk)
        assert query(lambda: Note.objects.get().title)() == "second"
        with connection.cursor() as cursor:
            cursor.execute("SHOW transaction_read_only")
            assert cursor.fetchone() == ("off",)
        return Note.objects.update(body="changed")

    with writing_view():
        assert work() == 1
    note = Note.objects.get()
    assert (note.title, note.body) == ("second", "changed")


@pytest.mark.parametrize("around", [nullcontext, transaction.atomic])
def test_another_error_is_the_codes_own(cluster: Cluster, around: Any) -> None:
    """It is raised as it would be outside of a query, and leaves the connection at rest."""

    for way in (
        lambda cursor: cursor.execute("SELECT 1/(SELECT 0)"),
        lambda cursor: cursor.executemany("SELECT 1/%s::int", [[0]]),
        lambda cursor: list(cursor.stream("SELECT 1/(SELECT 0)")),
    ):
        with pytest.raises(DataError), around(), connection.cursor() as cursor:
            query(way)(cursor)
        assert Note.objects.get().title == "first"


@pytest.mark.parametrize("around", [nullcontext, transaction.atomic])
def test_on_the_primary_a_query_takes_no_round_trip_more(
    cluster: Cluster, served: Served, around: Any
) -> None:
    """What makes it read-only is in the same message; and the site's own wrappers are not shown that."""
    read = query(lambda: Note.objects.using("default").get().title)
    with around():
        connection.cursor().execute("SELECT 1")  # so that a transaction has begun
        with wire() as sent:
            assert read() == "first"
    assert len(sent.sent) == 1, sent.sent
    message = sent.sent[0]
    assert "transaction_read_only" in message
    assert served.statements[-1][1].startswith("SELECT")


def test_autocommit_may_be_off(cluster: Cluster, note: Note) -> None:
    """Then there is a transaction, also where none has begun."""
    transaction.set_autocommit(False)
    try:
        with pytest.raises(WriteInQuery), connection.cursor() as cursor:
            query(by_text)(cursor, note.pk)
        assert query(lambda: Note.objects.get().title)() == "first"
        assert change() == "second"
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert Note.objects.get().title == "second"


def test_a_transaction_that_the_code_has_begun_itself_is_kept(cluster: Cluster, note: Note) -> None:
    """It is neither ended nor taken for one of the query's own."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE notes_note SET title = 'second'")
        with pytest.raises(WriteInQuery):
            query(by_text)(cursor, note.pk)
        cursor.execute("COMMIT")
    assert Note.objects.get().title == "second"


def test_a_row_that_is_there_is_not_created(cluster: Cluster, note: Note) -> None:
    """So `get_or_create` is a read: it is refused where it has to write."""
    work = query(lambda title: Note.objects.get_or_create(title=title, owner_id=note.owner_id))
    assert work("first") == (note, False)
    with pytest.raises(WriteInQuery, match=r"INSERT notes_note \(notes.Note\)"):
        work("second")


def test_a_lock_is_told_what_to_do(cluster: Cluster) -> None:
    """A query decides nothing: there is nothing to lock for."""
    work = query(transaction.atomic(lambda: Note.objects.select_for_update().get()))
    with pytest.raises(WriteInQuery, match=r"lock notes_note .* Read without select_for_update"):
        work()


def test_a_query_leaves_its_scope_free_to_read_from_replicas(
    cluster: Cluster, served: Served
) -> None:
    """What ran read-only has written nothing, whatever it calls; outside of a query it might have."""

    def read() -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute(UNKNOWN)

    for mark, is_free in ((query, True), (lambda work: work, False)):
        with scope():
            mark(read)()
            with pytest.raises(WriteInQuery):
                query(change)()
            served.clear()
            assert Note.objects.get().title == "first"
            assert served.only_replicas("notes_note") is is_free


def test_without_the_package_switched_on_a_query_is_read_only(
    cluster: Cluster, note: Note, settings: Any
) -> None:
    """As in a site's own tests, and where a database has no replica."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "ENABLED": False}
    with pytest.raises(WriteInQuery):
        query(change)()
    with pytest.raises(WriteInQuery), connection.cursor() as cursor:
        query(by_text)(cursor, note.pk)
    assert query(lambda: Note.objects.get().title)() == "first"
