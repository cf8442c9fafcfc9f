"""What a reader has seen before it was on the primary's disk keeps nobody on the primary for long."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats
from django_replica_router.replicas.history import UNFLUSHED
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.pollers import PrimaryPoller
from django_replica_router.replicas.readings import Sample
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from django_replica_router.sql import opening, wal
from django_replica_router.values.tokens import Position
from testproject.cluster import Cluster
from testproject.cluster.postgres import PostgresServer
from testproject.cluster.processes import send_signal
from testproject.notes.models import Note
from tests.conftest import PATIENT, stand_still, wait_until, wait_until_known
from tests.helpers import Served
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")

FLUSHERS = "('background writer', 'checkpointer', 'walwriter')"

STRICT = {**PATIENT, "MONOTONIC_SHARE": 1}
"""So that a reader who looks again and again is never shown less, as one who looks once or twice is not."""


@contextmanager
def nobody_flushes(primary: PostgresServer) -> Iterator[None]:
    """Have only commits and the package flush the WAL: what else does so is suspended, and at rest."""
    with primary.connect() as connection:
        sql = f"SELECT pid FROM pg_stat_activity WHERE backend_type IN {FLUSHERS}"
        pids = [pid for (pid,) in connection.execute(sql)]
        assert len(pids) == 3
        busy = "SELECT pid FROM pg_stat_activity WHERE pid = %s AND wait_event_type <> 'Activity'"

        def suspend(pid: int) -> bool:
            # One that holds a lock would keep everybody waiting.
            send_signal(pid, signal.SIGSTOP)
            if connection.execute(busy, [pid]).fetchone() is None:
                return True
            send_signal(pid, signal.SIGCONT)
            return False

        try:
            for pid in pids:
                wait_until(lambda pid=pid: suspend(pid), "a background process to be at rest")
            yield
        finally:
            for pid in pids:
                send_signal(pid, signal.SIGCONT)


@contextmanager
def open_transaction(primary: PostgresServer) -> Iterator[int]:
    """Have somebody lock a row, and not commit; yield the position, which is on no disk."""
    with (
        nobody_flushes(primary),
        primary.connect("app") as connection,
        connection.transaction(force_rollback=True),
    ):
        connection.execute("SELECT FROM notes_note FOR UPDATE")
        position = primary.insert_lsn()
        assert primary.flush_lsn() < position
        yield position


@pytest.fixture
def client(ann: User, note: Note, cluster: Cluster, settings: Any) -> Client:
    """A signed-in reader, of whom the replicas have everything."""
    settings.REPLICA_ROUTER = STRICT
    client = sign_in(ann)
    wait_until_known(cluster)
    visit(client, title)
    pop_stats()
    return client


def title(request: HttpRequest) -> str:
    """Return what the reader sees of the one note."""
    assert request.user.is_authenticated
    return Note.objects.get().title


def is_on_a_replica(client: Client, served: Served) -> bool:
    """Have the reader read; tell whether a replica has served."""
    served.clear()
    visit(client, title)
    return served.only_replicas("notes_note")


def wait_for_looks(number: int) -> None:
    """Return when this process has looked at the primary so many times more."""
    monitor = find_monitor("default")
    assert monitor is not None
    for _ in range(number):
        seen = monitor.history.sampled_at
        wait_until(
            lambda seen=seen: monitor.history.sampled_at > seen, "another look at the primary"
        )


def test_who_has_only_looked_is_soon_on_a_replica(
    client: Client, cluster: Cluster, served: Served
) -> None:
    """Somebody else's open transaction keeps no reader on the primary, and costs one record."""
    with open_transaction(cluster.primary) as position:
        visit(client, title, "post")
        wait_until(lambda: is_on_a_replica(client, served), "the reader to be on a replica")
        assert cluster.primary.flush_lsn() >= position
    assert get_stats()["wal_flushes"] == 1


def test_who_has_only_looked_would_be_kept_on_the_primary(
    client: Client,
    cluster: Cluster,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: where the package writes no record, nothing flushes what was seen."""
    with open_transaction(cluster.primary) as position, monkeypatch.context() as patch:
        patch.setattr(wal, "flush", lambda *_: False)
        visit(client, title, "post")
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert not is_on_a_replica(client, served)
        assert cluster.primary.flush_lsn() < position


ROLES = {
    "plain": "",
    "reads only": "SET default_transaction_read_only = on",
    "commits asynchronously": "SET synchronous_commit = off",
    "serializable": "SET default_transaction_isolation = serializable",
}


@pytest.fixture
def plain_role(cluster: Cluster) -> Iterator[str]:
    """A role that has been granted nothing."""
    cluster.primary.execute("CREATE ROLE plain LOGIN")
    yield "plain"
    cluster.primary.execute("DROP ROLE plain")


@pytest.mark.parametrize("setting", ROLES.values(), ids=ROLES)
def test_any_role_may_flush(plain_role: str, note: Note, cluster: Cluster, setting: str) -> None:
    """It takes no grant, no transaction that may write, and no synchronous commit."""
    primary = cluster.primary
    with primary.connect(user=plain_role) as connection:
        if setting:
            connection.execute(setting.encode())
        with open_transaction(primary) as position:
            # Control: a record alone leaves all where it is.
            connection.execute("SELECT pg_logical_emit_message(false, 'test', '')")
            assert primary.flush_lsn() < position
            assert wal.flush(connection, position)
            assert primary.flush_lsn() >= position


def test_nothing_is_written_for_a_position_that_is_flushed_or_unknown(
    note: Note, cluster: Cluster
) -> None:
    """The server itself looks first: many processes may ask, and one record is enough."""
    primary = cluster.primary
    with primary.connect() as connection, open_transaction(primary) as position:
        # A session that reads the catalogue for the first time may tidy up there, and write that down.
        wal.flush(connection, 1)
        before = primary.insert_lsn()
        assert not wal.flush(connection, before + 1)
        assert not wal.flush(connection, primary.flush_lsn())
        assert primary.insert_lsn() == before
        assert wal.flush(connection, position)
        assert not wal.flush(connection, position)


def test_a_flush_waits_for_no_standby(note: Note, cluster: Cluster) -> None:
    """A commit would, where standbys are synchronous and away: forever. Control: it does."""
    primary = cluster.primary
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    commit = "SELECT pg_logical_emit_message(true, 'test', '')"
    with primary.connect() as connection, ThreadPoolExecutor() as pool:
        primary.configure(synchronous_standby_names="nobody")
        try:
            with open_transaction(primary) as position:
                flushed = pool.submit(wal.flush, connection, position)
                wait_until(lambda: flushed.done() or primary.execute(waiting), "the flush to end")
                assert flushed.done()
                assert flushed.result()
            committed = pool.submit(connection.execute, commit)
            wait_until(lambda: committed.done() or primary.execute(waiting), "a commit to wait")
            assert not committed.done()
        finally:
            primary.configure(synchronous_standby_names=None)
        committed.result()


def test_nothing_is_written_where_nobody_waits(client: Client, cluster: Cluster) -> None:
    """What others leave open is no business of the package's as long as nobody has seen it."""
    with open_transaction(cluster.primary) as position:
        wait_for_looks(3)
        assert cluster.primary.flush_lsn() < position
    assert "wal_flushes" not in get_stats()


def test_nothing_is_written_where_replicas_only_lag(
    client: Client, cluster: Cluster, served: Served, lagging: Cluster, settings: Any
) -> None:
    """Who waits for what is on the primary's disk waits for the replica, and no record helps."""
    settings.REPLICA_ROUTER = STRICT
    stand_still(cluster)
    cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
    with nobody_flushes(cluster.primary):
        visit(client, title, "post")
        before = cluster.primary.insert_lsn()
        until = time.monotonic() + 4 * UNFLUSHED
        while time.monotonic() < until:
            assert not is_on_a_replica(client, served)
        wait_for_looks(2)
        assert cluster.primary.insert_lsn() == before
    assert "wal_flushes" not in get_stats()


@pytest.fixture
def refusing(
    plain_role: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[int]]:
    """Have the monitor's role be one that may write no such record; yield the attempts."""
    attempts: list[int] = []
    connect, flush = opening.connect, wal.flush

    def connect_as_plain(alias: str, timeout: float) -> psycopg.Connection[Any]:
        connection = connect(alias, timeout)
        connection.execute(f"SET SESSION AUTHORIZATION {plain_role}".encode())
        return connection

    def note_attempt(connection: psycopg.Connection[Any], lsn: int) -> bool:
        attempts.append(lsn)
        return flush(connection, lsn)

    monkeypatch.setattr(opening, "connect", connect_as_plain)
    monkeypatch.setattr(wal, "flush", note_attempt)
    functions = "SELECT oid::regprocedure FROM pg_proc WHERE proname = 'pg_logical_emit_message'"
    names = ", ".join(name for (name,) in cluster.primary.execute(functions))
    cluster.primary.execute(f"REVOKE EXECUTE ON FUNCTION {names} FROM PUBLIC")
    stop_monitors()
    yield attempts
    stop_monitors()
    cluster.primary.execute(f"GRANT EXECUTE ON FUNCTION {names} TO PUBLIC")


@pytest.mark.not_pooled("the role is set for the session", modes=["transaction"])
def test_a_server_that_refuses_is_left_alone(
    refusing: list[int],
    client: Client,
    cluster: Cluster,
    served: Served,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told of, the primary counts as well as before, and nobody tries again at once."""
    with open_transaction(cluster.primary) as position:
        visit(client, title, "post")
        assert not is_on_a_replica(client, served)
        wait_until(lambda: refusing, "an attempt")
        wait_for_looks(3)
        assert not is_on_a_replica(client, served)
        assert refusing == [position]
    monitor = find_monitor("default")
    assert monitor is not None
    assert not monitor.known.primary_is_down
    [told] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told.startswith("The primary 'default' refuses to flush its WAL: permission denied")


class Watched:
    """A monitor without threads, on a clock that is moved by hand, of a primary at 100 on its disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.error: Exception | None = None
        self.flushed: list[float] = []
        self.connection: Any = connections.create_connection("default")
        self.connection.closed = False
        self.monitor = Monitor("default", ["r1"], 1.0, clock=lambda: self.now)
        self.poller: PrimaryPoller = self.monitor._primary_poller
        self.monitor.answers.publish_sample(Sample(self.now, Position(1, 100)))
        monkeypatch.setattr(wal, "sample_primary", lambda _: Position(1, 100))
        monkeypatch.setattr(wal, "flush", self._flush)

    def _flush(self, connection: Any, lsn: int) -> bool:
        self.flushed.append(self.now)
        if self.error is not None:
            raise self.error
        return True

    def look_until(self, end: float, step: float = 0.125) -> list[float]:
        """Look again and again; return the seconds after which a flush was tried."""
        while self.now < 1000.0 + end:
            self.poller.look(self.connection)
            self.now += step
        return [moment - 1000.0 for moment in self.flushed]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A primary whose flushes are recorded."""
    return Watched(monkeypatch)


def test_a_flush_comes_when_it_is_due_and_once_a_second(watched: Watched) -> None:
    """The WAL writer is given its time; a position that stays unflushed is tried again."""
    watched.monitor.waiting.want(200, 0.0)
    assert watched.look_until(2.5) == [UNFLUSHED, UNFLUSHED + 1, UNFLUSHED + 2]


@pytest.mark.parametrize(("lsn", "age"), [(100, 5.0), (200, 0.0)], ids=["flushed", "young"])
def test_no_flush_is_tried_that_is_not_due(watched: Watched, lsn: int, age: float) -> None:
    """What is on the disk needs none, nor what was written a moment ago."""
    watched.monitor.waiting.want(lsn, age)
    assert watched.look_until(UNFLUSHED) == []


def test_a_refusal_is_respected_for_a_minute(watched: Watched) -> None:
    """Then it is tried again: rights may have been granted meanwhile."""
    watched.error = psycopg.errors.InsufficientPrivilege("no")
    watched.monitor.waiting.want(200, 1.0)
    assert watched.look_until(119) == [0, 60]


def test_a_flush_that_ends_the_connection_is_a_failed_look(watched: Watched) -> None:
    """A disk that hangs must not have each look hang."""
    watched.error = psycopg.OperationalError("gone")
    watched.connection.closed = True
    watched.monitor.waiting.want(200, 1.0)
    with pytest.raises(psycopg.OperationalError):
        watched.look_until(1)
    assert watched.look_until(59) == [0]


def test_the_primary_is_looked_at_as_soon_as_a_flush_is_due(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the watcher: its own interval may be long, or somebody else look in its place."""
    woken: list[float] = []

    def wait(timeout: float) -> bool:
        if watched.poller.looks.wake.is_set():
            woken.append(watched.now - 1000.0)
            watched.poller.looks.wake.clear()
            watched.poller.look(watched.connection)
        watched.now += 0.125
        return watched.now > 1002.5

    monkeypatch.setattr(watched.monitor._watcher._ended, "wait", wait)
    watched.monitor._watcher.run()
    assert woken == []
    watched.now = 1000.0
    watched.monitor.waiting.want(200, 0.0)
    watched.monitor._watcher.run()
    assert woken == [UNFLUSHED, UNFLUSHED + 1, UNFLUSHED + 2]
