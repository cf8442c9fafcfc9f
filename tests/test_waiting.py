"""Waiting for a replica by ``WAIT FOR LSN`` of PostgreSQL 19: the server itself tells when it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connections

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.errors import PositionError
from django_replica_router.replicas import asking
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.routing import waiting as waits
from django_replica_router.sql import standby
from django_replica_router.values.lsn import WAL_PAGE_SIZE, normalise_insert_lsn
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import PATIENT, POOLER, unwatched, wait_until
from tests.helpers import Served

WAITING_VERSION = 190000
NOWHERE_NEAR = 1 << 60
"""A position that no server reaches."""

LONG = 30.0


def has_wait(cluster: Cluster) -> bool:
    """Tell whether the servers of this run know ``WAIT FOR LSN``."""
    return cluster.primary.version >= WAITING_VERSION


@pytest.fixture
def waiting(cluster: Cluster) -> Cluster:
    """The cluster, where its servers can wait themselves."""
    if not has_wait(cluster):
        version = cluster.primary.version // 10000
        pytest.skip(
            f"PostgreSQL {version} has no WAIT FOR LSN: REPLICA_ROUTER_POSTGRES_BIN may name 19 or newer"
        )
    return cluster


@pytest.fixture
def events() -> None:
    """Have events counted from here on."""
    pop_stats()


def counted() -> tuple[int, int]:
    """Return how many waits by a server were not in vain, and how many were."""
    stats = get_stats()
    return stats.get("waits_by_server", 0), stats.get("waits_by_server_in_vain", 0)


def read(ann: User, note: Note) -> tuple[str, str]:
    """Return where Ann's note was read, and its title."""
    with scope(user=ann):
        found = Note.objects.get(pk=note.pk)
    return str(found._state.db)[:7], found.title


def write(ann: User, note: Note, title: str) -> None:
    """Have Ann change her note."""
    with scope(user=ann):
        Note.objects.filter(pk=note.pk).update(title=title)


def somebody_waits(cluster: Cluster) -> bool:
    """Tell whether a replica waits for a position for somebody."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'WAIT FOR%' AND state = 'active'"
    )
    return any(replica.execute(query)[0][0] for replica in cluster.replicas)


@contextmanager
def resumed_when_waited_for(cluster: Cluster) -> Iterator[None]:
    """Have replay go on as soon as somebody waits for it."""

    def resume() -> None:
        wait_until(lambda: somebody_waits(cluster), "somebody to wait")
        for replica in cluster.replicas:
            replica.resume()

    thread = threading.Thread(target=resume)
    thread.start()
    yield
    thread.join()


def be_patient(settings: Any, wait: float) -> None:
    """Let reads wait so long."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": wait, "MAX_LAG": 100.0, "TOKEN_TTL": 300.0}


def pause(cluster: Cluster) -> None:
    """Have the replicas show nothing new."""
    for replica in cluster.replicas:
        replica.pause()


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_reader_is_served_by_a_replica_that_has_waited_itself(
    ann: User,
    note: Note,
    waiting: Cluster,
    events: None,
    settings: Any,
    is_connected: bool,
) -> None:
    """With nobody else looking at it, over an open connection and over a new one."""
    be_patient(settings, LONG)
    assert read(ann, note)[0] == "replica"  # so that it is known what its server can
    pause(waiting)
    write(ann, note, "second")
    if not is_connected:
        for alias in ("replica1", "replica2"):
            connections[alias].close()
    with unwatched(), resumed_when_waited_for(waiting):
        assert read(ann, note) == ("replica", "second"), get_stats()
    assert counted() == (1, 0)


def test_the_primary_serves_where_nobody_waits_or_looks(
    ann: User, note: Note, waiting: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the one before: it is the server's own word that lets a replica serve."""
    be_patient(settings, 0.2)
    assert read(ann, note)[0] == "replica"
    monkeypatch.setattr(waits, "waits_itself", lambda alias, monitor: False)
    monkeypatch.setattr(waits, "ask_over_connection", lambda alias, monitor: None)
    pause(waiting)
    write(ann, note, "second")
    with unwatched():
        for replica in waiting.replicas:
            replica.resume()
        waiting.wait_caught_up()
        assert read(ann, note) == ("default", "second")


def test_a_replica_that_does_not_get_there_leaves_the_reader_to_the_primary(
    ann: User, note: Note, waiting: Cluster, events: None, settings: Any
) -> None:
    """Its old row is shown to nobody, the time-out is no error, and the connection goes on."""
    be_patient(settings, 0.1)
    assert read(ann, note)[0] == "replica"
    raws = {alias: connections[alias].connection for alias in ("replica1", "replica2")}
    pause(waiting)
    write(ann, note, "second")
    assert read(ann, note) == ("default", "second")
    assert counted() == (0, 1)
    assert {alias: connections[alias].connection for alias in raws} == raws


def test_a_replica_is_not_believed_because_its_wait_is_over(
    ann: User,
    note: Note,
    waiting: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the one before: who takes the end of the wait for success is shown the old row."""
    be_patient(settings, 0.1)
    assert read(ann, note)[0] == "replica"
    pause(waiting)
    write(ann, note, "second")
    wait = standby.wait_for_replay

    def believe(connection: Any, lsn: int, seconds: float) -> Any:
        return wait(connection, lsn, seconds)._replace(replayed=lsn)

    monkeypatch.setattr(standby, "wait_for_replay", believe)
    assert read(ann, note) == ("replica", "first")


@pytest.mark.not_pooled(
    "a session is shared with others, and so is its limit", modes=("transaction",)
)
def test_a_time_limit_of_the_session_leaves_the_reader_to_the_primary(
    ann: User, note: Note, waiting: Cluster, events: None, settings: Any
) -> None:
    """As ``statement_timeout`` of the role: it is no error of the reader's statement, nor of the connection."""
    be_patient(settings, 0.5)
    assert read(ann, note)[0] == "replica"
    raws = [connections[alias].connection for alias in ("replica1", "replica2")]
    for raw in raws:
        if raw is not None:
            raw.execute("SET statement_timeout = 20")
    pause(waiting)
    write(ann, note, "second")
    assert read(ann, note) == ("default", "second")
    assert counted() == (0, 1)
    assert [connections[alias].connection for alias in ("replica1", "replica2")] == raws
    connections.close_all()


def test_nobody_is_shown_the_question(
    ann: User, note: Note, waiting: Cluster, served: Served, settings: Any
) -> None:
    """Neither the log of queries nor a wrapper of statements has more than the site's own."""
    be_patient(settings, LONG)
    assert read(ann, note)[0] == "replica"
    pause(waiting)
    write(ann, note, "second")
    served.clear()
    for alias in ("replica1", "replica2"):
        connections[alias].force_debug_cursor = True
        connections[alias].queries_log.clear()
    try:
        with resumed_when_waited_for(waiting):
            assert read(ann, note) == ("replica", "second")
        logged = [q["sql"] for a in ("replica1", "replica2") for q in connections[a].queries_log]
    finally:
        for alias in ("replica1", "replica2"):
            connections[alias].force_debug_cursor = False
    assert len(served.statements) == len(logged) == 1
    assert not [sql for _, sql in served.statements if "WAIT FOR" in sql]
    assert not [sql for sql in logged if "WAIT FOR" in sql]


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_a_session_of_any_isolation_level_can_wait(waiting: Cluster, level: str) -> None:
    """The wait is the first of its message, so that there is no snapshot yet."""
    lsn = waiting.primary.flush()
    with waiting.replicas[0].connect(autocommit=True) as raw:
        raw.execute(f"SET default_transaction_isolation = '{level}'")
        answer = standby.wait_for_replay(raw, lsn, LONG)
        assert answer.in_recovery
        assert answer.replayed is not None
        assert answer.replayed >= lsn


def test_a_wait_of_less_than_a_millisecond_ends(waiting: Cluster) -> None:
    """Of 0.4 ms the server would make none, and of none a wait without end."""
    with waiting.replicas[0].connect(autocommit=True) as raw:
        for seconds in (0.0004, 0.0, -1.0):
            answer = standby.wait_for_replay(raw, NOWHERE_NEAR, seconds)
            assert answer.replayed is not None
            assert answer.replayed < NOWHERE_NEAR


def test_a_server_that_is_no_standby_says_so_at_once(waiting: Cluster) -> None:
    """It is never taken for one that is there, as after a promotion."""
    with waiting.primary.connect(autocommit=True) as raw:
        answer = standby.wait_for_replay(raw, 1, 1000.0)
    assert not answer.in_recovery


def page_end(cluster: Cluster) -> int:
    """Write until a record ends where a page does; return the server's insert position, behind its header."""
    with cluster.primary.connect(autocommit=True) as raw:
        for _ in range(20_000):
            raw.execute(
                "SELECT pg_logical_emit_message(false, 'fill', repeat('x', (random() * 64)::int), true)"
            )
            (lsn,) = raw.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone() or (0,)
            if int(lsn) % WAL_PAGE_SIZE == 24:
                return int(lsn)
    pytest.fail("no record has ended where a page does")


def test_a_position_that_is_not_normalised_is_waited_for_in_vain(waiting: Cluster) -> None:
    """The row is long there: why tokens are normalised. The normalised one is there at once."""
    lsn = page_end(waiting)
    normalised = normalise_insert_lsn(lsn, 16 * 1024 * 1024)
    with waiting.replicas[0].connect(autocommit=True) as raw:
        there = standby.wait_for_replay(raw, normalised, LONG).replayed
        assert there is not None
        assert there >= normalised
        behind = standby.wait_for_replay(raw, lsn, 0.2).replayed
    assert behind is not None
    assert behind < lsn


def test_older_servers_are_told_to_wait_for_nothing(
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is sent that they do not know. Negative control: a newer one is told."""
    told: list[int] = []
    wait = standby.wait_for_replay

    def note_wait(connection: Any, lsn: int, seconds: float) -> Any:
        told.append(lsn)
        return wait(connection, lsn, seconds)

    monkeypatch.setattr(standby, "wait_for_replay", note_wait)
    be_patient(settings, 0.1)
    assert read(ann, note)[0] == "replica"
    pause(cluster)
    write(ann, note, "second")
    assert read(ann, note) == ("default", "second")
    assert bool(told) == has_wait(cluster)


def test_a_server_that_does_not_know_the_question_harms_nobody(
    ann: User,
    note: Note,
    cluster: Cluster,
    events: None,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of another make, whose version says that it should: the reader waits as everywhere else."""
    monkeypatch.setattr(standby, "_WAITING_VERSION", 0)
    monkeypatch.setattr(standby, "_WAIT_SQL", "WAIT FOR NOTHING;SELECT 1")
    be_patient(settings, LONG)
    assert read(ann, note)[0] == "replica"
    raws = [connections[alias].connection for alias in ("replica1", "replica2")]
    pause(cluster)
    write(ann, note, "second")

    def resume() -> None:
        wait_until(lambda: counted() == (0, 1), "the server to refuse")
        for replica in cluster.replicas:
            replica.resume()

    thread = threading.Thread(target=resume)
    thread.start()
    assert read(ann, note) == ("replica", "second")
    thread.join()
    assert counted() == (0, 1)
    assert [connections[alias].connection for alias in ("replica1", "replica2")] == raws


@pytest.fixture
def write_unseen(
    ann: User, note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., Any]], None]:
    """Return what has the reader write what no replica shows, and servers wait in a way of the test's."""

    def write_with(wait: Callable[..., Any]) -> None:
        monkeypatch.setattr(standby, "_WAITING_VERSION", 0)
        monkeypatch.setattr(standby, "wait_for_replay", wait)
        be_patient(settings, 0.1)
        assert read(ann, note)[0] == "replica"
        pause(cluster)
        write(ann, note, "second")

    return write_with


def test_a_time_limit_of_the_code_is_not_swallowed(
    ann: User, note: Note, write_unseen: Callable[[Callable[..., Any]], None]
) -> None:
    """One that a signal raises while the server waits: the connection, which has no answer yet, is closed."""

    def interrupt(connection: Any, lsn: int, seconds: float) -> Any:
        raise TimeoutError

    write_unseen(interrupt)
    with pytest.raises(TimeoutError):
        read(ann, note)
    assert None in [connections[alias].connection for alias in ("replica1", "replica2")]


@pytest.mark.parametrize("error", [psycopg.OperationalError("lost"), PositionError("none")])
def test_a_connection_that_is_lost_while_the_server_waits_is_closed(
    ann: User,
    note: Note,
    write_unseen: Callable[[Callable[..., Any]], None],
    error: Exception,
) -> None:
    """And the primary serves."""

    def lose(connection: Any, lsn: int, seconds: float) -> Any:
        connection.close()
        raise error

    write_unseen(lose)
    assert read(ann, note) == ("default", "second")


def test_one_of_a_process_occupies_a_server_of_a_pooler(
    ann: User, note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler has few servers: while one waits for somebody, others of the process are told by him."""
    monkeypatch.setattr(standby, "_WAITING_VERSION", 0)
    assert read(ann, note)[0] == "replica"
    alias = next(a for a in ("replica1", "replica2") if connections[a].connection is not None)
    monitor = find_monitor("default")
    assert monitor is not None
    monkeypatch.setattr(asking, "is_pooled", lambda connection: True)
    assert asking.waits_itself(alias, monitor)
    monkeypatch.setattr(asking, "_occupied", {alias})
    assert not asking.waits_itself(alias, monitor)
    monkeypatch.setattr(asking, "is_pooled", lambda connection: False)
    assert asking.waits_itself(alias, monitor) or POOLER


def test_a_connection_in_a_transaction_is_not_told_to_wait(cluster: Cluster) -> None:
    """There the wait would hold what the transaction holds, or come too late."""
    with cluster.replicas[0].connect(autocommit=True) as raw:
        is_new = raw.info.server_version >= WAITING_VERSION
        assert standby.can_wait(raw) == is_new
        with raw.transaction():
            assert not standby.can_wait(raw)
        with raw.pipeline():
            assert not standby.can_wait(raw)
        raw.autocommit = False
        assert not standby.can_wait(raw)
