"""Commands write on the primary; queries read from replicas, see what they must, and cannot write."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import DataError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import Context
from django.template.engine import Engine
from django.template.response import SimpleTemplateResponse
from django.test import Client
from django.views import View
from psycopg import sql

from django_replica_router import (
    command,
    current_scope,
    current_token,
    get_stats,
    ignore_writes,
    query,
    scope,
    see,
    track,
    use_primary,
)
from django_replica_router.errors import ConfigurationError, TooStale, WriteInQuery
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import OWN, engine, wire
from tests.conftest import wait_until_known
from tests.helpers import Served
from tests.site import sign_in, visit
from tests.test_carrying import title

pytestmark = pytest.mark.usefixtures("note")

Do = Callable[[], Any]

UNKNOWN = "SELECT txid_snapshot_xmax(txid_current_snapshot())"
"""It writes nothing, and its text does not tell that."""


def change(text: str = "second") -> Any:
    """Give the note another title, and return the one that is read then."""
    Note.objects.update(title=text)
    return Note.objects.get().title


# 1. What may be decorated -----------------------------------------------------------------------


def as_function(mark: Any, do: Do) -> Any:
    """Do it in a function."""
    return mark(do)()


def as_coroutine(mark: Any, do: Do) -> Any:
    """Do it in a coroutine function."""

    @mark
    async def work() -> Any:
        return await sync_to_async(do)()

    return async_to_sync(work)()


def as_generator(mark: Any, do: Do) -> Any:
    """Do it in a step of a generator."""

    @mark
    def work() -> Iterator[Any]:
        yield do()

    return next(work())


def as_async_generator(mark: Any, do: Do) -> Any:
    """Do it in a step of an asynchronous generator."""

    @mark
    async def work() -> Any:
        yield await sync_to_async(do)()

    async def first() -> Any:
        return await anext(work())

    return async_to_sync(first)()


def as_method(mark: Any, do: Do) -> Any:
    """Do it in a method."""

    class Handler:
        @mark
        def work(self) -> Any:
            return do()

    return Handler().work()


def as_static_method(mark: Any, do: Do) -> Any:
    """Do it in a static method, decorated from outside."""

    class Handler:
        @mark
        @staticmethod
        def work() -> Any:
            return do()

    return Handler.work()


def as_class_method(mark: Any, do: Do) -> Any:
    """Do it in a class method, decorated from inside."""

    class Handler:
        @classmethod
        @mark
        def work(cls) -> Any:
            return do()

    return Handler().work()


def as_handler(mark: Any, do: Do) -> Any:
    """Do it in a class of handlers."""

    @mark
    class Handler:
        def handle(self) -> Any:
            return do()

    return Handler().handle()


def as_callable_class(mark: Any, do: Do) -> Any:
    """Do it in a class whose objects are called."""

    @mark
    class Handler:
        def __call__(self) -> Any:
            return do()

    return Handler()()


def as_async_handler(mark: Any, do: Do) -> Any:
    """Do it in a class of asynchronous handlers."""

    @mark
    class Handler:
        async def handle(self) -> Any:
            return await sync_to_async(do)()

    return async_to_sync(Handler().handle)()


def as_view(mark: Any, do: Do) -> Any:
    """Do it in a class-based view."""

    @mark
    class Page(View):
        def get(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse(str(do()))

    request = HttpRequest()
    request.method = "GET"
    return Page.as_view()(request).content.decode()


def as_partial(mark: Any, do: Do) -> Any:
    """Do it in whatever else can be called."""
    return mark(functools.partial(do))()


SHAPES = [
    as_function,
    as_coroutine,
    as_generator,
    as_async_generator,
    as_method,
    as_static_method,
    as_class_method,
    as_handler,
    as_callable_class,
    as_async_handler,
    as_view,
    as_partial,
]
shapes = pytest.mark.parametrize("shape", SHAPES)


@shapes
def test_a_command_writes_and_reads_on_the_primary(lagging: Cluster, shape: Any) -> None:
    """Whatever it is, and also where the replicas are asked for around it."""
    with scope():
        assert Note.objects.get().title == "first"
        assert shape(command, change) == "second"
    assert shape(command, lambda: Note.objects.get().title) == "second"
    assert title() == "first"


@shapes
def test_a_query_reads_from_a_replica_and_writes_nothing(
    lagging: Cluster, served: Served, shape: Any
) -> None:
    """Whatever it is; its user's writes are what `use_replica` shows."""
    assert shape(query, lambda: Note.objects.get().title) == "first"
    assert served.only_replicas("notes_note")
    served.clear()
    with pytest.raises(WriteInQuery, match=r"notes_note \(notes.Note\)"):
        shape(query, change)
    assert not served.aliases()
    assert change("third") == "third"


@shapes
def test_both_take_their_arguments_in_parentheses(cluster: Cluster, shape: Any) -> None:
    """And do the same."""
    assert shape(command(), change) == "second"
    wait_until_known(cluster)
    assert shape(query(max_lag=60.0), lambda: Note.objects.get().title) == "second"
    with pytest.raises(WriteInQuery):
        shape(query(max_lag=60.0), change)


@pytest.mark.parametrize("mark", [command, command(atomic=True), query, query(max_lag=1.0)])
def test_a_class_without_a_handler_is_refused(mark: Any) -> None:
    """Its methods may be decorated one by one."""

    class Nothing:
        def work(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"dispatch\(\) or handle\(\) or __call__\(\)"):
        mark(Nothing)
    with pytest.raises(ConfigurationError, match="expected a function"):
        mark(2.0)


def test_a_decorated_function_is_still_itself() -> None:
    """Name, signature and docstring stay."""

    def work(first: int, *, second: int = 2) -> int:
        """Work."""
        return first + second

    for mark in (command, command(atomic=True), query):
        assert mark(work)(1) == 3
        assert inspect.signature(mark(work)) == inspect.signature(work)
        assert mark(work).__doc__ == "Work."


# 2. Commands --------------------------------------------------------------------------------------


def test_a_command_in_a_scope_leaves_it_a_token(lagging: Cluster) -> None:
    """Who has it sees the write; who has not is shown what was before."""
    with scope() as opened:
        command(change)()
        token = str(opened.token)
        assert current_token() >= opened.token
    assert title() == "first"
    assert title(token=token) == "second"


@pytest.mark.parametrize("shape", [as_function, as_coroutine, as_handler])
def test_a_command_outside_of_a_scope_has_one_of_its_own(lagging: Cluster, shape: Any) -> None:
    """Its token can be had inside, and what is tracked is known when it has ended."""
    tokens = []

    def work() -> None:
        track("order:1")
        change()
        tokens.append(str(current_token()))

    shape(command, work)
    assert current_scope() is None
    assert title(token=tokens[0]) == "second"
    with scope():
        assert Note.objects.get().title == "first"
        see(key="order:1")
        assert Note.objects.get().title == "second"


@pytest.mark.parametrize("shape", [as_function, as_method, as_handler, as_view])
def test_an_atomic_command_is_one_transaction(cluster: Cluster, shape: Any) -> None:
    """What it has written before it raises is taken back."""

    def fail() -> None:
        assert connection.in_atomic_block
        change()
        message = "no"
        raise LookupError(message)

    with pytest.raises(LookupError):
        shape(command(atomic=True), fail)
    assert Note.objects.get().title == "first"
    with pytest.raises(LookupError):
        shape(command(atomic=True, using="default"), fail)
    with pytest.raises((LookupError, AssertionError)):
        shape(command, fail)
    assert not connection.in_atomic_block


@pytest.mark.parametrize(
    "shape", [as_coroutine, as_generator, as_async_generator, as_async_handler]
)
def test_what_is_awaited_is_not_atomic(cluster: Cluster, shape: Any) -> None:
    """Django's transactions would hold for other tasks of the thread as well: it is refused where it is written."""
    with pytest.raises(ConfigurationError, match="cannot be atomic: Django's transactions hold"):
        shape(command(atomic=True), change)


def test_what_returns_an_awaitable_is_not_atomic(cluster: Cluster) -> None:
    """As the dispatch() of a view with asynchronous handlers: it would run after its transaction."""

    async def work() -> None: ...

    with pytest.raises(ConfigurationError, match="awaited later, when its transaction is over"):
        command(atomic=True)(lambda: work())()


def test_a_transaction_is_one_on_a_primary(cluster: Cluster) -> None:
    """A replica is refused, and nothing is run there."""
    with pytest.raises(ConfigurationError, match="'replica1' is a replica: pass the alias"):
        command(atomic=True, using="replica1")(change)()


# 3. Queries: what they see ------------------------------------------------------------------------


def test_a_query_sees_what_its_user_has_written(lagging: Cluster, ann: User) -> None:
    """In an earlier scope, and in this one; what others have written may be missing."""
    read = query(lambda: Note.objects.get().title)
    with scope(user=ann):
        assert read() == "first"
        command(change)()
        assert read() == "second"
    with scope(user=ann):
        assert read() == "second"
    with scope():
        assert read() == "first"


@pytest.mark.parametrize("atomic", [True, False])
def test_a_query_in_a_command_reads_where_that_does(
    lagging: Cluster, served: Served, atomic: bool
) -> None:
    """Inside its transaction too: what it decides by is what there is now. It may write on afterwards."""
    read = query(lambda: Note.objects.get().title)

    @command(atomic=atomic)
    def work() -> tuple[str, str, str]:
        before = read()
        Note.objects.update(title="second")
        after = read()
        with pytest.raises(WriteInQuery), transaction.atomic():
            query(change)()
        if not atomic:
            Note.objects.update(title="third")
        return before, after, read()

    assert work() == ("first", "second", "second" if atomic else "third")
    assert served.only_primary("notes_note")


def test_a_query_in_use_primary_reads_there(lagging: Cluster) -> None:
    """The caller has asked for what there is now."""
    change()
    with use_primary():
        assert query(lambda: Note.objects.get().title)() == "second"
    with scope():
        assert query(lambda: Note.objects.get().title)() == "first"


def test_a_query_may_rather_fail_than_ask_the_primary(lagging: Cluster) -> None:
    """As `use_replica` does; and an argument that is none is refused where it is written."""
    with scope():
        change()
        with pytest.raises(TooStale):
            query(on_stale="raise")(lambda: Note.objects.get())()
    with pytest.raises(ConfigurationError, match="max_lag should be a number of seconds"):
        query(max_lag=-1.0)


def test_a_query_that_posts_reads_from_a_replica(
    lagging: Cluster, test_site: None, ann: User, served: Served
) -> None:
    """A request that may write reads from the primary: not where its view says that it does not."""
    client = sign_in(ann)

    def work(request: HttpRequest) -> str:
        request.user.get_username()
        served.clear()
        return Note.objects.get().title

    assert visit(client, query(work), "post") == "first"
    assert served.only_replicas("notes_note") is False  # she has just signed in
    for replica in lagging.replicas:
        replica.resume()
    wait_until_known(lagging)
    assert visit(client, query(work), "post") == "first"
    assert served.only_replicas("notes_note")


# 4. Queries: what they may not do -----------------------------------------------------------------

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


def by_text(cursor: Any, pk: int) -> Any:
    """Call the function in a statement."""
    cursor.execute(f"SELECT notes_touch({pk})")
    return cursor.fetchall()


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


# 5. Views -----------------------------------------------------------------------------------------


def test_what_a_view_leaves_to_be_rendered_is_the_querys_as_well(
    cluster: Cluster, test_site: None
) -> None:
    """A template, and a stream."""

    class Writer:
        def __str__(self) -> str:
            return str(change())

    def rendered(request: HttpRequest) -> SimpleTemplateResponse:
        template = Engine().from_string("{{ writer }}")
        response = SimpleTemplateResponse("")
        response.resolve_template = lambda name: _Wrapped(template)
        response.context_data = {"writer": Writer()}
        return response

    def streamed(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(str(change()) for _ in range(1))

    for view in (rendered, streamed):
        with pytest.raises(WriteInQuery):
            list(visit(Client(), query(view)))
    assert Note.objects.get().title == "first"


class _Wrapped:
    def __init__(self, template: Any) -> None:
        self._template = template

    def render(self, context: Any, request: Any) -> str:

        return str(self._template.render(Context(context)))


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_the_session_of_a_request_is_none_of_the_querys(
    lagging: Cluster, test_site: None, ann: User, settings: Any, atomic_requests: bool
) -> None:
    """Django ends it where a password was changed elsewhere; and whoever it is of sees what was saved."""
    client = sign_in(ann)
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = atomic_requests
    try:

        def save(request: HttpRequest) -> None:
            request.session["value"] = "new"
            request.session.save()
            assert Note.objects.get().title == "first"

        assert visit(client, query(save)).status_code == 200
        assert visit(client, lambda request: request.session["value"]) == "new"
        assert visit(client, query(lambda request: request.session.flush())).status_code == 200
        assert visit(client, lambda request: request.user.is_anonymous)
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False


def test_a_view_under_atomic_requests(
    cluster: Cluster, test_site: None, served: Served, note: Note
) -> None:
    """A query reads from a replica, and is refused its write; a command writes in the request's transaction."""
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        assert visit(Client(), query(lambda request: Note.objects.get().title)) == "first"
        assert served.only_replicas("notes_note")
        with pytest.raises(WriteInQuery):
            visit(Client(), query(lambda request: change()))
        with pytest.raises(WriteInQuery):
            visit(Client(), use_primary(lambda request: _touch_in_query(note)))
        assert visit(Client(), command(lambda request: change())) == "second"
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False
    assert Note.objects.get().version == 1


def _touch_in_query(note: Note) -> None:
    with connection.cursor() as cursor:
        query(by_text)(cursor, note.pk)
