"""Connections that are gone, statements that a replica cancels: no visitor sees either."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Any, cast

import pytest
from django.contrib.auth.models import User
from django.db import (
    InterfaceError,
    NotSupportedError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.replicas.registry import find_monitor
from testproject.cluster import Cluster, ReplicaServer
from testproject.notes.models import Note, Tag
from tests.conftest import impatient, wait_until, wait_until_known, wait_until_reachable
from tests.faulty import NO_CURSORS, backend, find_serving, no_repetition, note  # noqa: F401 - fixtures
from tests.helpers import Served
from tests.site import sign_in, visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


ENDS_AT_REST = pytest.mark.not_pooled(
    "it notices that a connection at rest has ended, and gives another one of the same server",
    modes=["transaction"],
)
READS: dict[str, Callable[[], Any]] = {
    "get": lambda: Note.objects.get().title,
    "values": lambda: Note.objects.values_list("title", flat=True)[0],
    "aggregate": lambda: Tag.objects.count(),
    "exists": lambda: Note.objects.exists(),
    "iterator": lambda: sum(1 for _ in Tag.objects.iterator(chunk_size=10)),
    "raw": lambda: [n.title for n in Note.objects.raw("SELECT * FROM notes_note")],
    "prefetch": lambda: [list(n.tags.all()) for n in Note.objects.prefetch_related("tags")],
}


@ENDS_AT_REST
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_connection_that_is_gone_is_never_seen(
    note: Note, cluster: Cluster, served: Served, read: Callable[[], Any]
) -> None:
    """The server ended the session: the caller sees rows, from the primary."""
    expected = read()

    def action(request: HttpRequest) -> Any:
        alias, replica = find_serving(cluster)
        replica.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(alias)])
        served.clear()
        return repr(read())

    pop_stats()
    assert visit(Client(), action) == repr(expected)
    assert "default" in served.aliases()
    assert get_stats()["retried_replica_fault"] == 1


@pytest.fixture
def strict(healed: Cluster) -> Iterator[Cluster]:
    """The cluster with replicas that cancel at once whatever is in the way of their replay."""
    for replica in healed.replicas:
        replica.configure(max_standby_streaming_delay="0")
    yield healed
    for replica in healed.replicas:
        replica.configure(max_standby_streaming_delay=None)


def test_a_recovery_conflict_is_never_seen(note: Note, strict: Cluster) -> None:
    """A read that a replica cancels to go on replaying is run again on the primary."""

    def is_read(replica: ReplicaServer) -> bool:
        return replica.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')"
        ) == [(True,)]

    def conflict() -> None:
        wait_until(lambda: any(map(is_read, strict.replicas)), "a read in the way of the lock")
        strict.primary.execute("ALTER TABLE notes_tag ADD COLUMN conflict integer", dbname="app")
        strict.primary.execute("ALTER TABLE notes_tag DROP COLUMN conflict", dbname="app")

    def action(request: HttpRequest) -> int:
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        # On a replica it takes as long as the lock takes to arrive there.
        with connections[alias].cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM notes_tag, "
                "pg_sleep(CASE WHEN pg_is_in_recovery() THEN 30 ELSE 0 END)"
            )
            (count,) = cursor.fetchone()
        return int(count)

    thread = threading.Thread(target=conflict)
    thread.start()
    try:
        pop_stats()
        assert visit(Client(), action) == 200
        assert get_stats().get("retried_replica_fault") == 1
    finally:
        thread.join()


@pytest.fixture
def unlogged(note: Note, cluster: Cluster) -> Iterator[None]:
    """The tags, in a table that a site has made unlogged, as one of sessions: no standby has it."""
    cluster.primary.execute("ALTER TABLE notes_note_tags SET UNLOGGED", dbname="app")
    cluster.primary.execute("ALTER TABLE notes_tag SET UNLOGGED", dbname="app")
    wait_until_known(cluster)
    yield
    cluster.primary.execute("ALTER TABLE notes_tag SET LOGGED", dbname="app")
    cluster.primary.execute("ALTER TABLE notes_note_tags SET LOGGED", dbname="app")


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("read", ["aggregate", "iterator", "prefetch"])
def test_what_no_standby_can_read_is_read_from_the_primary(
    note: Note, served: Served, read: str
) -> None:
    """The replica is not to blame, and serves what it has."""

    def action(request: HttpRequest) -> Any:
        result = READS[read]()
        served.clear()
        assert Note.objects.exists()
        assert served.only_replicas("notes_note")
        return repr(result)

    pop_stats()
    assert visit(Client(), action) == repr(READS[read]())
    assert get_stats()["retried_unsupported"] == 1


@pytest.mark.usefixtures("unlogged")
def test_what_no_server_can_do_is_told() -> None:
    """The error is the primary's own; and that of a replica where the code itself has named it."""
    with scope(), pytest.raises(NotSupportedError, match="not implemented"):
        list(Note.objects.raw("SELECT * FROM other.public.notes_note"))
    with scope(), pytest.raises(NotSupportedError, match="unlogged"):
        Tag.objects.using("replica1").count()


def test_inside_a_transaction_on_a_replica_the_error_is_raised(
    note: Note, cluster: Cluster
) -> None:
    """What was read before came from another snapshot: the caller must begin anew."""
    with scope():
        alias, replica = find_serving(cluster)

        @transaction.atomic(using=alias)
        def read_twice() -> None:
            Note.objects.using(alias).get()
            replica.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(alias)])
            Note.objects.using(alias).get()

        with pytest.raises(Exception, match="terminating connection"):
            read_twice()


@NO_CURSORS
def test_after_the_first_row_the_error_is_raised(note: Note, cluster: Cluster) -> None:
    """Rows that the caller has seen cannot be taken back."""
    with scope():
        rows = Tag.objects.iterator(chunk_size=10)
        alias = str(next(rows)._state.db)
        assert alias.startswith("replica")
        replica = next(r for r in cluster.replicas if r.name == alias)
        assert replica.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(alias)]) == [
            (True,)
        ]
        # PgBouncer adds an error of its own to the server's.
        with pytest.raises(Exception, match=r"terminating connection|received 2 results"):
            list(rows)
        # Whoever has an answer to that goes on: as where it could not be opened anew.
        with Served() as served:
            assert Note.objects.get().title == "first"
        assert served.only_primary("notes_note")


def test_a_replica_started_anew_must_first_have_what_was_shown_before(
    ann: User, note: Note, healed: Cluster, served: Served
) -> None:
    """After a crash a standby may show less than it did: it serves once it is past that."""
    client = sign_in(ann)
    wait_until_known(healed)

    def title(request: HttpRequest) -> str:
        return Note.objects.get().title

    visit(client, title)
    (usual,) = served.aliases("notes_note") - {"default"}
    replica = next(r for r in healed.replicas if r.name == usual)
    healed.primary.execute("UPDATE notes_note SET title = 'second'", dbname="app")
    wait_until_known(healed)
    assert visit(client, title) == "second"
    replica.cut()
    replica.kill()
    replica.start()
    for _ in range(5):
        assert visit(client, title) == "second"


def test_a_connection_that_was_opened_anew_is_seen_through(
    ann: User, note: Note, healed: Cluster
) -> None:
    """A request goes on where it was sent to, though another one has closed the connection.

    Tasks of one event loop share it. The server that is reached then is another life of the one
    that was chosen, which may show less.
    """

    def action(request: HttpRequest) -> str:
        alias, replica = find_serving(healed)
        connections[alias].close()
        replica.restart()
        wait_until_reachable(alias)
        Note.objects.get()
        return alias

    pop_stats()
    assert visit(Client(), action).startswith("replica")
    assert get_stats()["retried_elsewhere"] == 1


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_connection_that_cannot_be_opened_anew_is_never_seen(
    note: Note, healed: Cluster, read: Callable[[], Any]
) -> None:
    """Whoever closes connections in the middle of a request is answered by the primary."""

    def action(request: HttpRequest) -> Any:
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        connections[alias].close()
        # A pooler has who connects wait for seconds for a server that is gone.
        cast(Any, connections[alias]).connect_timeout = 0.5
        next(r for r in healed.replicas if r.name == alias).kill()
        return repr([read(), Note.objects.get().title])

    pop_stats()
    assert visit(Client(), action) == repr([read(), "first"])
    assert get_stats()["retried_replica_fault"] == 1


@pytest.mark.not_pooled("it allows the primary no cursors of the server", modes=["transaction"])
@pytest.mark.parametrize("fault", ["closed", "broken"])
def test_the_primary_serves_with_the_cursors_that_it_may_have(
    note: Note, healed: Cluster, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler in front of the primary alone forbids cursors of the server there, and only there."""
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    create_cursor = connection.create_cursor

    def create_allowed(name: str | None = None) -> Any:
        assert name is None, "the primary may have no cursors of the server"
        return create_cursor()

    monkeypatch.setattr(connection, "create_cursor", create_allowed)
    with scope():
        alias, replica = find_serving(healed)
        if fault == "closed":
            connections[alias].close()
            # A pooler has who connects wait for seconds for a server that is gone.
            cast(Any, connections[alias]).connect_timeout = 0.5
            replica.kill()
        else:
            replica.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(alias)])
        assert sum(1 for _ in Tag.objects.iterator(chunk_size=10)) == 200


def test_a_connection_that_another_thread_cannot_open_is_never_seen(
    note: Note, healed: Cluster, settings: Any
) -> None:
    """A thread that joins the request later has no connection yet to the replica it is on."""

    def in_thread() -> list[str]:
        try:
            return [str((found := Note.objects.get())._state.db), found.title]
        finally:
            connections.close_all()

    def action(request: HttpRequest) -> list[str]:
        _, replica = find_serving(healed)
        replica.kill()
        # A pooler has who connects wait for seconds for a server that is gone.
        settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "CONNECT_TIMEOUT": 0.5}
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(copy_context().run, in_thread).result()

    assert visit(Client(), action) == ["default", "first"]


def test_code_that_names_a_replica_is_told_that_it_is_down(note: Note, healed: Cluster) -> None:
    """Only what was sent there by the package is answered elsewhere."""
    replica = healed.replicas[0]
    replica.kill()
    connections[replica.name].close()
    with impatient(healed, replica.name), scope(), pytest.raises(OperationalError):
        Note.objects.using(replica.name).get()


@ENDS_AT_REST
@pytest.mark.parametrize("where", [scope, nullcontext], ids=["in a scope", "outside"])
def test_code_that_names_a_replica_is_told_that_its_connection_broke(
    note: Note, cluster: Cluster, where: Callable[[], AbstractContextManager[Any]]
) -> None:
    """What it asks there, a report of an hour perhaps, is no work for the primary."""
    replica = cluster.replicas[0]
    with where():
        notes = Note.objects.using(replica.name)
        assert notes.get().title == "first"
        replica.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(replica.name)])
        with pytest.raises((OperationalError, InterfaceError)):
            notes.get()


def test_a_replica_that_is_started_anew_while_it_is_chosen_serves_nobody(
    note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What made it eligible was of the life before, and the monitor has just met the next one."""
    monitor = find_monitor("default")
    assert monitor is not None
    changing = iter(range(100))
    monkeypatch.setattr(monitor.servers, "life", lambda alias: (alias, next(changing)))
    monkeypatch.setattr(monitor, "is_same_server", lambda alias, life: True)
    with scope():
        assert Note.objects.get()._state.db == "default"
    monkeypatch.undo()
    with scope():
        assert str(Note.objects.get()._state.db).startswith("replica")
