"""No visitor sees the fault of a replica, and no replica that lies is believed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from typing import Any

import psycopg
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

from django_replica_router import connecting, get_stats, pop_stats, scope
from django_replica_router.policy import ReplicaState
from django_replica_router.registry import find_monitor, stop_monitors
from testproject.cluster import Cluster, ReplicaServer
from testproject.notes.models import Note, Tag
from tests.conftest import (
    PATIENT,
    TIMEOUT,
    impatient,
    wait_until,
    wait_until_known,
    wait_until_reachable,
    wait_until_routed,
)
from tests.helpers import Served
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture
def note(ann: User, cluster: Cluster) -> Note:
    """A note of Ann's, on every server."""
    note = Note.objects.create(owner=ann, title="first")
    Tag.objects.bulk_create(Tag(name=f"tag {n:03}") for n in range(200))
    wait_until_known(cluster)
    return note


@pytest.fixture(autouse=True)
def no_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a statement that a replica cancels for a long one, however soon that happens here."""
    monkeypatch.setattr("django_replica_router.observers._BRIEF", -1.0)


def state_of(replica: ReplicaServer) -> ReplicaState:
    """Return what this process knows of a replica."""
    monitor = find_monitor("default")
    assert monitor is not None
    return next(known.state for known in monitor.replicas() if known.alias == replica.name)


def wait_for_state(replica: ReplicaServer, state: ReplicaState) -> None:
    """Return once this process knows that the replica is in that state."""
    wait_until(lambda: state_of(replica) is state, f"{replica.name} to be {state.name}")


def backend(alias: str) -> int:
    """Return the process id of the server's backend for this thread's connection."""
    raw: psycopg.Connection[Any] = connections[alias].connection
    row = raw.execute("SELECT pg_backend_pid()").fetchone()  # a pooler tells libpq another one
    assert row is not None
    return int(row[0])


def wait_until_counted(event: str) -> None:
    """Return once an event is counted: by the thread that watches, while this one goes on."""
    wait_until(lambda: get_stats().get(event, 0) >= 1, f"{event} to be counted")


@contextmanager
def rescue(replica: ReplicaServer) -> Iterator[None]:
    """Let a server that hangs go on after a while: a test that waits for it then fails, and ends."""
    timer = threading.Timer(TIMEOUT, replica.resume_process)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


ENDS_AT_REST = pytest.mark.not_pooled(
    "it notices that a connection at rest has ended, and gives another one of the same server",
    modes=["transaction"],
)
NO_CURSORS = pytest.mark.not_pooled(
    "there are no cursors of the server: Django has all rows before the first is used",
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
        alias = Note.objects.get()._state.db
        assert str(alias).startswith("replica")
        replica = next(r for r in cluster.replicas if r.name == alias)
        replica.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(str(alias))])
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
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        replica = next(r for r in cluster.replicas if r.name == alias)

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


def answer_though_it_hangs(
    cluster: Cluster, prepare: Callable[[Any], object] = lambda connection: None
) -> None:
    """See a request answered in time whose replica hangs in the midst of it.

    Args:
        cluster: the servers.
        prepare: is given Django's connection to the replica before that.
    """

    def action(request: HttpRequest) -> list[Any]:
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        prepare(connections[alias])
        replica = next(r for r in cluster.replicas if r.name == alias)
        replica.suspend()
        with rescue(replica):
            began = time.monotonic()
            title = Note.objects.get().title
            return [title, time.monotonic() - began]

    pop_stats()
    title, seconds = visit(Client(), action)
    assert title == "first"
    wait_until_counted("waits_ended")
    # The bound of the package, plus a busy machine; TCP alone would take minutes.
    assert seconds < 10


def test_a_replica_that_hangs_delays_nobody_for_long(note: Note, healed: Cluster) -> None:
    """Stopped in the middle of a session: what runs there is ended and run on the primary."""
    answer_though_it_hangs(healed)


def test_a_replica_that_hangs_when_django_asks_for_its_health_delays_nobody_for_long(
    note: Note, healed: Cluster
) -> None:
    """With ``CONN_HEALTH_CHECKS`` the first thing that waits for it is no statement of the site's."""

    def have_its_health_asked_for(asked: Any) -> None:
        asked.health_check_enabled, asked.health_check_done = True, False
        # A pooler has who connects wait for seconds for a server that hangs.
        setattr(asked, connecting._TIMEOUT, 0.5)

    answer_though_it_hangs(healed, have_its_health_asked_for)


@NO_CURSORS
@pytest.mark.parametrize("where", ["free", "in a transaction"])
def test_a_replica_that_hangs_between_two_fetches_is_not_waited_for(
    note: Note, healed: Cluster, where: str, settings: Any
) -> None:
    """Rows that the caller has seen cannot be taken back: the error is raised, and soon."""
    pop_stats()
    with scope():
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        replica = next(r for r in healed.replicas if r.name == alias)
        block = nullcontext() if where == "free" else transaction.atomic(using=alias)
        # Django connects anew at the end of the block.
        setattr(connections[alias], connecting._TIMEOUT, 0.5)
        with pytest.raises(Exception, match="connection"), rescue(replica), block:  # noqa: PT012
            rows = Tag.objects.iterator(chunk_size=10)
            assert next(rows)._state.db == alias
            replica.suspend()
            settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "CONNECT_TIMEOUT": 0.5}
            list(rows)
        assert Note.objects.get().title == "first"
    wait_until_counted("waits_ended")


@NO_CURSORS
def test_a_replica_that_hangs_before_the_first_fetch_delays_nobody_for_long(
    note: Note, healed: Cluster
) -> None:
    """The caller has seen no row yet: he gets all of them, from the primary."""
    pop_stats()
    with scope():
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        replica = next(r for r in healed.replicas if r.name == alias)
        with connections[alias].chunked_cursor() as cursor, rescue(replica):
            cursor.execute("SELECT name, pg_is_in_recovery() FROM notes_tag")
            replica.suspend()
            assert cursor.fetchmany(10)[9] == ("tag 009", False)
    wait_until_counted("waits_ended")


@NO_CURSORS
def test_a_replica_that_hangs_when_a_cursor_is_closed_is_not_seen(
    note: Note, healed: Cluster
) -> None:
    """Whoever has all the rows that he wanted is not told that there was nothing left to close."""
    pop_stats()
    with scope():
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        replica = next(r for r in healed.replicas if r.name == alias)
        rows = Tag.objects.iterator(chunk_size=10)
        assert next(rows).name == "tag 000"
        replica.suspend()
        with rescue(replica):
            began = time.monotonic()
            rows.close()  # type: ignore[attr-defined]
            assert time.monotonic() - began < 10
        assert Note.objects.get().title == "first"
    wait_until_counted("waits_ended")


def test_a_replica_that_hangs_is_left_out(note: Note, healed: Cluster, served: Served) -> None:
    """New requests do not even try it; when it answers again, it serves again."""
    replica = healed.replicas[0]
    replica.suspend()
    wait_for_state(replica, ReplicaState.SILENT)
    connections.close_all()
    for _ in range(10):
        assert visit(Client(), lambda request: Note.objects.get().title) == "first"
    assert replica.name not in served.aliases()
    replica.resume_process()
    wait_for_state(replica, ReplicaState.STREAMING)
    wait_until_routed()


def test_a_connection_that_is_not_accepted_is_given_up_in_time(
    note: Note, healed: Cluster, served: Served, settings: Any
) -> None:
    """A request does not wait for a host that does not answer as long as TCP would.

    Nor as long as the setting said when it connected before.
    """
    assert visit(Client(), lambda request: Note.objects.get().title) == "first"
    settings.REPLICA_ROUTER = {**PATIENT, "CONNECT_TIMEOUT": 0.2}
    connections.close_all()
    for replica in healed.replicas:
        replica.suspend()
    served.clear()
    began = time.monotonic()
    # Before the monitor knows.
    assert visit(Client(), lambda request: Note.objects.get().title) == "first"
    assert served.only_primary("notes_note")
    assert time.monotonic() - began < PATIENT["CONNECT_TIMEOUT"]


def test_a_promoted_replica_is_left_with_its_next_answer(note: Note, healed: Cluster) -> None:
    """Its rows are not used, though the monitor has not looked yet."""

    def action(request: HttpRequest) -> list[str]:
        alias = str(Note.objects.get()._state.db)
        replica = next(r for r in healed.replicas if r.name == alias)
        replica.promote()
        replica.execute("UPDATE notes_note SET title = 'of another history'", dbname="app")
        after = Note.objects.get()
        return [alias, after.title]

    before, title = visit(Client(), action)
    assert before.startswith("replica")
    assert title == "first"


def test_a_connection_that_the_code_has_opened_is_watched_as_well(
    note: Note, healed: Cluster
) -> None:
    """One that was there before the package chose the replica tells of a promotion, too."""
    for replica in healed.replicas:
        connections[replica.name].close()
        assert Note.objects.using(replica.name).get().title == "first"

    def action(request: HttpRequest) -> list[str]:
        alias = str(Note.objects.get()._state.db)
        replica = next(r for r in healed.replicas if r.name == alias)
        replica.promote()
        replica.execute("UPDATE notes_note SET title = 'of another history'", dbname="app")
        return [alias, Note.objects.get().title]

    before, title = visit(Client(), action)
    assert before.startswith("replica")
    assert title == "first"


def test_a_promoted_replica_is_known_as_such(note: Note, healed: Cluster) -> None:
    """Its position stands still and is not NULL: only recovery tells."""
    healed.replicas[0].promote()
    wait_for_state(healed.replicas[0], ReplicaState.PROMOTED)


def test_a_replica_of_another_cluster_serves_nobody(
    note: Note, cluster: Cluster, served: Served
) -> None:
    """Its positions mean nothing here."""
    with Cluster(replicas=1, cache=False, databases=("app",)) as other:
        original = dict(connections["replica1"].settings_dict)
        connections["replica1"].close()
        connections["replica1"].settings_dict["PORT"] = other.replicas[0].port
        stop_monitors()
        try:
            with scope():
                Note.objects.get()
            wait_for_state(cluster.replicas[0], ReplicaState.FOREIGN)
            served.clear()
            for _ in range(10):
                visit(Client(), lambda request: Note.objects.get().title)
            assert "replica1" not in served.aliases()
        finally:
            connections["replica1"].settings_dict.update(original)
            connections["replica1"].close()
            stop_monitors()


def test_the_primary_configured_as_a_replica_serves_nobody_as_such(
    note: Note, cluster: Cluster
) -> None:
    """It would serve, but the mistake would never be noticed."""
    original = dict(connections["replica1"].settings_dict)
    connections["replica1"].close()
    connections["replica1"].settings_dict["PORT"] = cluster.entrance(cluster.primary)
    stop_monitors()
    try:
        with scope():
            Note.objects.get()
        wait_for_state(cluster.replicas[0], ReplicaState.PRIMARY)
    finally:
        connections["replica1"].settings_dict.update(original)
        connections["replica1"].close()
        stop_monitors()


def test_what_is_unusual_about_a_replica_is_logged(
    note: Note, healed: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Paused, without a receiver, delayed: each has its line."""
    one, two = healed.replicas
    one.pause()
    two.set_delay(0.05)
    wait_until(lambda: "'replica1': its replay is paused" in caplog.text, "the line of a pause")
    wait_until(lambda: "it delays replay by 0.05 s" in caplog.text, "the line of a delay")
    one.resume()
    one.cut()
    wait_until(lambda: "'replica1': it receives no WAL" in caplog.text, "the line of a receiver")


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
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        replica = next(r for r in healed.replicas if r.name == alias)
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
        setattr(connections[alias], connecting._TIMEOUT, 0.5)
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
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        replica = next(r for r in healed.replicas if r.name == alias)
        if fault == "closed":
            connections[alias].close()
            # A pooler has who connects wait for seconds for a server that is gone.
            setattr(connections[alias], connecting._TIMEOUT, 0.5)
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
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        next(r for r in healed.replicas if r.name == alias).kill()
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
    monkeypatch.setattr(monitor, "life", lambda alias: (alias, next(changing)))
    monkeypatch.setattr(monitor, "is_same_server", lambda alias, life: True)
    with scope():
        assert Note.objects.get()._state.db == "default"
    monkeypatch.undo()
    with scope():
        assert str(Note.objects.get()._state.db).startswith("replica")


def test_failover_keeps_what_survived_and_strands_nobody(
    ann: User, note: Note, healed: Cluster, served: Served
) -> None:
    """The primary dies, a replica is promoted, the alias now means that one."""
    client = sign_in(ann)
    visit(client, lambda request: Note.objects.filter(pk=note.pk).update(title="second"), "post")
    wait_until_known(healed)
    first, second = healed.replicas
    original = dict(connections["default"].settings_dict)
    healed.primary.kill()
    first.promote()
    second.follow(first)
    connections["default"].close()
    connections["default"].settings_dict["PORT"] = healed.entrance(first)

    def title(request: HttpRequest) -> str:
        return Note.objects.get().title

    try:
        assert visit(client, title) == "second"
        visit(client, lambda request: Note.objects.filter(pk=note.pk).update(title="third"), "post")
        for _ in range(5):
            assert visit(client, title) == "third"
        wait_for_state(second, ReplicaState.STREAMING)

        def served_by_follower() -> bool:
            served.clear()
            assert visit(client, title) == "third"
            return served.only_replicas("notes_note")

        wait_until(served_by_follower, "the follower to serve")
        assert state_of(first) is not ReplicaState.STREAMING
    finally:
        connections["default"].settings_dict.update(original)
        connections["default"].close()


def test_a_replica_left_on_the_old_timeline_serves_nobody(
    ann: User, note: Note, healed: Cluster, served: Served
) -> None:
    """Its position is higher than that of new tokens, and their rows are not there."""
    client = sign_in(ann)
    wait_until_known(healed)
    first, second = healed.replicas
    first.cut()
    # Only the second gets this, which is lost with the primary.
    healed.primary.execute("CREATE TABLE lost AS SELECT generate_series(1, 10000)", dbname="app")
    second.wait_replayed(healed.primary.flush())
    original = dict(connections["default"].settings_dict)
    healed.primary.kill()
    first.promote()
    connections["default"].close()
    connections["default"].settings_dict["PORT"] = healed.entrance(first)
    try:
        visit(client, lambda request: Note.objects.filter(pk=note.pk).update(title="new"), "post")
        assert second.replay_lsn() > first.insert_lsn()
        for _ in range(10):
            assert visit(client, lambda request: Note.objects.get().title) == "new"
        wait_until(
            lambda: state_of(second) in {ReplicaState.TIMELINE, ReplicaState.AHEAD},
            "the old timeline to be noticed",
        )
        served.clear()
        for _ in range(10):
            assert visit(client, lambda request: Note.objects.get().title) == "new"
            assert visit(Client(), lambda request: Note.objects.get().title) == "new"
        assert served.only_primary("notes_note")
    finally:
        connections["default"].settings_dict.update(original)
        connections["default"].close()
        connection.close()
