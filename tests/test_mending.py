"""What a replica cannot do is done on the primary, and what the code has asked of a replica is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, router, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.connections import mending
from django_replica_router.values.statements import Kind
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import POOLER, stand_still, wait_until, wait_until_known
from tests.helpers import Served
from tests.site import visit

pytestmark = pytest.mark.usefixtures("test_site")


def on_a_replica(statement: str, params: Any = None) -> list[Any]:
    """Run a statement past the ORM, where the router sends reads."""
    alias = router.db_for_read(Note)
    assert alias.startswith("replica")
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else []


def as_visitor(statement: str) -> Any:
    """Run it in a request; return the rows."""
    return visit(Client(), lambda request: [[str(v) for v in r] for r in on_a_replica(statement)])


# A statement that the code itself has sent to a replica ------------------------------------------


def is_at_rest(alias: str) -> bool:
    """Tell whether no transaction is open on this thread's connection, also none that Django knows not of."""
    raw = connections[alias].connection
    return raw is None or raw.info.transaction_status.name == "IDLE"


def end_whatever_is_open() -> None:
    for alias in connections:
        if connections[alias].connection is not None and not is_at_rest(alias):
            connections[alias].connection.rollback()


@pytest.mark.parametrize(
    "statement",
    ["begin isolation level serializable", "BEGIN READ WRITE", "START TRANSACTION READ WRITE"],
)
def test_a_refused_begin_is_not_run_on_the_primary(
    note: Note, cluster: Cluster, statement: str
) -> None:
    """It would stay open there, unknown to Django, and later rows would be gone with it."""

    def action(request: HttpRequest) -> None:
        with pytest.raises(DatabaseError):
            on_a_replica(statement)
        Tag.objects.create(name="kept")

    try:
        visit(Client(), action)
        assert is_at_rest("default")
        rows = cluster.primary.execute("SELECT name FROM notes_tag", dbname="app")
        assert rows == [("kept",)]
    finally:
        end_whatever_is_open()


def test_control_of_the_refused_begin(
    note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: where the statement counts as any other, it stays open on the primary."""
    monkeypatch.setattr(mending, "kind_of", lambda sql: Kind.OTHER)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_a_refused_begin_is_not_run_on_the_primary(note, cluster, "BEGIN READ WRITE")


def test_a_listener_is_told_that_a_replica_cannot(note: Note) -> None:
    """``LISTEN`` on another connection than the code holds would hear nothing, silently."""

    def action(request: HttpRequest) -> None:
        with pytest.raises(DatabaseError, match="LISTEN"):
            on_a_replica("LISTEN news")

    visit(Client(), action)
    assert not connection.connection.execute("SELECT pg_listening_channels()").fetchall()


WRITES: dict[str, Callable[[str], Any]] = {
    "create": lambda alias: Tag.objects.using(alias).create(name="new"),
    "save": lambda alias: Tag(name="new").save(using=alias),
    "update": lambda alias: Note.objects.using(alias).update(title="new"),
    "delete": lambda alias: Note.objects.using(alias).delete(),
    "raw": lambda alias: list(
        Tag.objects.using(alias).raw("SELECT nextval('notes_tag_id_seq') id")
    ),
}


@pytest.mark.not_pooled("a pooler's standby is told from a primary by asking it")
@pytest.mark.parametrize("in_scope", [False, True], ids=["command", "scope"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_names_a_replica_is_refused_by_it(
    note: Note, write: Callable[[str], Any], in_scope: bool, served: Served
) -> None:
    """As by Django without the package: what a command is told to do there is not for the primary."""
    block: AbstractContextManager[Any] = scope() if in_scope else nullcontext()
    with block, pytest.raises(DatabaseError, match="read-only transaction"):
        write("replica1")
    assert not served.aliases("new")
    assert "default" not in served.aliases("notes_")


def test_control_of_the_named_replica(
    note: Note, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: where every replica counts as chosen by the package, the primary is written to."""
    monkeypatch.setattr(mending, "was_sent", lambda primary, alias: True)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_a_write_that_names_a_replica_is_refused_by_it(note, WRITES["create"], False, served)


# What only a replica raises -----------------------------------------------------------------------

ONLY_THERE = {
    "55000": "SELECT pg_current_wal_lsn() IS NOT NULL",
    "XX000": "SELECT pg_logical_emit_message(true, 'a', 'b') IS NOT NULL",
    "25006": "SELECT nextval('notes_tag_id_seq') > 0",
}


@pytest.mark.parametrize("statement", ONLY_THERE.values(), ids=ONLY_THERE)
def test_what_only_a_standby_refuses_is_run_on_the_primary(note: Note, statement: str) -> None:
    """The visitor sees the primary's answer."""
    assert as_visitor(statement) == [["True"]]


def test_control_of_what_only_a_standby_refuses(
    note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without the rule the visitor meets the error."""
    monkeypatch.setattr(mending, "is_of_this_server", lambda error: False)

    def action(request: HttpRequest) -> None:
        with pytest.raises(DatabaseError, match="recovery is in progress"):
            on_a_replica(ONLY_THERE["55000"])

    visit(Client(), action)


def test_a_limit_of_the_replica_alone_is_not_seen(note: Note, cluster: Cluster) -> None:
    """A replica with less room for temporary files leaves a large sort to the primary."""
    big = "SELECT count(*) FROM (SELECT g FROM generate_series(1, 400000) g ORDER BY g DESC OFFSET 0) s"

    def action(request: HttpRequest) -> Any:
        alias = router.db_for_read(Note)
        replica = next(r for r in cluster.replicas if r.name == alias)
        replica.configure(temp_file_limit="64kB", work_mem="64kB")
        try:
            return on_a_replica(big)[0][0]
        finally:
            replica.configure(temp_file_limit=None, work_mem=None)

    pop_stats()
    assert visit(Client(), action) == 400_000
    assert get_stats()["retried_unsupported"] == 1


def test_a_table_that_is_not_replayed_yet_is_read_on_the_primary(
    note: Note, cluster: Cluster
) -> None:
    """A migration whose floor nobody could store is still seen by nobody."""
    stand_still(cluster)
    cluster.primary.execute("CREATE TABLE later AS SELECT 1 AS one", dbname="app")
    try:
        assert as_visitor("SELECT one FROM later") == [["1"]]
        assert as_visitor("SELECT later.one FROM later") == [["1"]]
    finally:
        cluster.primary.execute("DROP TABLE later", dbname="app")


def test_an_error_of_the_query_itself_is_raised(note: Note) -> None:
    """What both servers refuse reaches the code, with the primary's word."""

    def action(request: HttpRequest) -> None:
        with pytest.raises(DatabaseError, match="nowhere"):
            on_a_replica("SELECT * FROM nowhere")
        with pytest.raises(DatabaseError, match="division by zero"):
            on_a_replica("SELECT 1 / 0")

    visit(Client(), action)


def test_the_other_methods_of_a_cursor_are_mended(note: Note, cluster: Cluster) -> None:
    """``callproc``, ``copy`` and ``stream`` on a routed alias are done on the primary."""

    def cursor() -> Any:
        alias = router.db_for_read(Note)
        return connections[alias].cursor()

    def call(request: HttpRequest) -> int:
        with cursor() as opened:
            opened.callproc("nextval", ["notes_tag_id_seq"])
            return int(opened.fetchone()[0])

    def copy(request: HttpRequest) -> None:
        with cursor() as opened, opened.copy("COPY notes_tag (name) FROM STDIN") as lines:
            lines.write_row(["copied"])

    def stream(request: HttpRequest) -> list[Any]:
        with cursor() as opened:
            return list(opened.stream("SELECT nextval('notes_tag_id_seq') > 0"))

    assert visit(Client(), call) > 0
    visit(Client(), copy)
    assert Tag.objects.get().name == "copied"
    assert visit(Client(), stream) == [[True]]


# Advisory locks, and the last value of a sequence -------------------------------------------------


@pytest.mark.not_pooled("a session's lock goes with the server's connection", modes=["transaction"])
def test_an_advisory_lock_is_one_for_all_servers(
    note: Note, cluster: Cluster, served: Served
) -> None:
    """It is taken on the primary, where everybody else would ask for it."""
    assert as_visitor("SELECT pg_try_advisory_lock(99)") == [["True"]]
    try:
        assert served.aliases("advisory") >= {"default"}
        with cluster.primary.connect("app") as raw:
            assert raw.execute("SELECT pg_try_advisory_lock(99)").fetchone() == (False,)
    finally:
        connection.connection.execute("SELECT pg_advisory_unlock_all()")


def test_the_last_value_of_a_sequence_is_that_of_the_primarys_session(note: Note) -> None:
    """``currval`` after an INSERT is asked where the INSERT ran."""

    def action(request: HttpRequest) -> int:
        alias = router.db_for_read(Note)
        tag = Tag.objects.create(name="new")
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT currval('notes_tag_id_seq')")
            return int(cursor.fetchone()[0]) - tag.pk

    assert visit(Client(), action) == 0


# Locks that are replayed before what frees them ---------------------------------------------------


@contextmanager
def locked_on_replicas(cluster: Cluster) -> Iterator[None]:
    """Have the replicas hold a lock on the notes that no replayed commit has freed."""
    with cluster.primary.connect("app", autocommit=True) as raw:
        raw.execute("BEGIN")
        raw.execute("LOCK TABLE notes_note IN ACCESS EXCLUSIVE MODE")
        position = cluster.primary.flush()
        for replica in cluster.replicas:
            replica.wait_replayed(position)
            replica.pause()
        raw.execute("COMMIT")
    try:
        yield
    finally:
        for replica in cluster.replicas:
            replica.resume()


def test_a_read_does_not_wait_for_a_lock_that_is_being_replayed(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """The primary has freed it long ago, and takes the read."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "LOCK_WAIT": 0.05}
    pop_stats()
    close_replicas()
    with locked_on_replicas(cluster):
        assert visit(Client(), lambda request: Note.objects.get().title) == "first"
    assert get_stats()["retried_replayed_lock"] == 1
    close_replicas()


def close_replicas() -> None:
    """Have connections to replicas opened anew, under present settings."""
    for alias in connections:
        if alias != "default":
            connections[alias].close()


@pytest.mark.not_pooled("a pooler's other clients keep their own bound")
def test_what_the_code_asks_of_a_replica_waits_for_the_lock(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """A report that names the replica is not ended by a bound of the package's."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "LOCK_WAIT": 0.05}
    close_replicas()
    replica = cluster.replicas[0]
    with scope():  # which opens the connection, and bounds it
        chosen = str(Note.objects.get()._state.db)
    replica = next(r for r in cluster.replicas if r.name == chosen)
    with locked_on_replicas(cluster):

        def is_waiting() -> bool:
            rows = replica.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return bool(rows[0][0])

        def free() -> None:
            wait_until(is_waiting, "the report to wait")
            with replica.connect() as raw:
                before = raw.execute("SELECT clock_timestamp()").fetchone()
                wait_until(lambda: _has_passed(raw, before), "more than the bound")
            replica.resume()

        thread = threading.Thread(target=free)
        thread.start()
        assert Note.objects.using(chosen).get().title == "first"
        thread.join()
    close_replicas()


def _has_passed(raw: psycopg.Connection[Any], before: Any) -> bool:
    row = raw.execute("SELECT clock_timestamp() - %s > '200 ms'::interval", before).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_bound_of_the_role_is_left_alone(note: Note, cluster: Cluster) -> None:
    """Where the site has set ``lock_timeout`` itself, that one holds."""
    if POOLER:
        pytest.skip("a pooler's connections are of before")
    cluster.primary.execute("ALTER DATABASE app SET lock_timeout = '7s'")
    try:
        wait_until_known(cluster)
        close_replicas()
        assert as_visitor("SHOW lock_timeout") == [["7s"]]
    finally:
        cluster.primary.execute("ALTER DATABASE app RESET lock_timeout")
        wait_until_known(cluster)
        close_replicas()
        connection.close()
    assert as_visitor("SHOW lock_timeout") == [["1s"]]


def test_a_time_limit_of_the_site_that_meets_such_a_lock_is_mended(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """``statement_timeout`` ends the statement first: the visitor is served by the primary all the same."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "LOCK_WAIT": None}
    close_replicas()

    def action(request: HttpRequest) -> str:
        alias = router.db_for_read(Note)
        connections[alias].connection.execute("SET statement_timeout = '50ms'")
        return Note.objects.get().title

    with locked_on_replicas(cluster):
        assert visit(Client(), action) == "first"
    close_replicas()


def test_a_slow_query_that_meets_no_lock_is_ended(note: Note) -> None:
    """Control: a time limit alone moves no slow query to the primary."""

    def action(request: HttpRequest) -> None:
        alias = router.db_for_read(Note)
        connections[alias].connection.execute("SET statement_timeout = '50ms'")
        with pytest.raises(DatabaseError, match="statement timeout"):
            on_a_replica("SELECT pg_sleep(60)")

    visit(Client(), action)
    close_replicas()


# Settings of a session ----------------------------------------------------------------------------

SETTINGS = {
    "search_path": ("SET search_path = other, public", "RESET search_path"),
    "set_config": ("SELECT set_config('app.tenant', '7', false)", "RESET ALL"),
}


@pytest.mark.not_pooled(
    "a session's settings do not outlive a statement there", modes=["transaction"]
)
@pytest.mark.parametrize(("statement", "end"), SETTINGS.values(), ids=SETTINGS)
def test_reads_stay_where_the_session_is_set(
    note: Note, served: Served, statement: str, end: str
) -> None:
    """What the code has set on the primary's connection holds for its reads, until it is taken back."""

    def action(request: HttpRequest) -> None:
        assert Note.objects.get()._state.db.startswith("replica")
        with connection.cursor() as cursor:
            cursor.execute(statement)
        assert Note.objects.get()._state.db == "default"

    try:
        visit(Client(), action)
        assert visit(Client(), lambda request: Note.objects.get()._state.db) == "default"
    finally:
        with connection.cursor() as cursor:
            cursor.execute(end)
    assert visit(Client(), lambda request: Note.objects.get()._state.db).startswith("replica")


@pytest.mark.parametrize(
    "statement", ["SET LOCAL search_path = other", "SET statement_timeout = '60s'", "SAVEPOINT a"]
)
def test_what_shows_no_other_rows_keeps_no_read(note: Note, statement: str) -> None:
    """Time limits, and what ends with its transaction, leave reads to the replicas."""

    def action(request: HttpRequest) -> str:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
        return str(Note.objects.get()._state.db)

    assert visit(Client(), action).startswith("replica")
    connection.close()


def test_what_every_connection_is_set_to_keeps_no_read(note: Note) -> None:
    """As by a receiver of ``connection_created``: both sessions are alike, and show the same."""

    def set_up(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET search_path = public, other")

    for alias in connections:
        connections[alias].close()
    connection_created.connect(set_up)
    try:
        assert visit(Client(), lambda request: Note.objects.get()._state.db).startswith("replica")
    finally:
        connection_created.disconnect(set_up)
        for alias in connections:
            connections[alias].close()
