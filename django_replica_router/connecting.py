"""Connections of requests to replicas: opened within a bound, and to the server that is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from django.db import connections
from django.db.utils import OperationalError

from django_replica_router import postgres
from django_replica_router.conf import get_config
from django_replica_router.inflight import in_flight, shut_down
from django_replica_router.monitor import Monitor
from django_replica_router.policy import ReplicaState

_SIGHT = "_replica_router_sight"
_OPENED = "_replica_router_opened"
_TIMEOUT = "_replica_router_timeout"

Life = tuple[Any, ...]


class _Sight(NamedTuple):
    """Which standby a connection was seen to lead to.

    Args:
        raw: the driver's connection. Django may have opened another one since.
        life: which server, and which life of it.
        is_pooled: a pooler may lead it elsewhere without its breaking.
    """

    raw: Any
    life: Life
    is_pooled: bool


def connect_to_replica(alias: str, monitor: Monitor, timeout: float) -> Any | None:
    """Return Django's connection to the replica, opened where it is not yet; None where it cannot be.

    Django would open it a moment later for the query, where a failure cannot be mended any more.

    Args:
        alias: alias of the replica.
        monitor: knows which server it should be.
        timeout: seconds after which to give up.
    """
    connection: Any = connections[alias]
    # In a test whose class does not list the alias in ``databases``, Django's test case puts an
    # object of this class in the place of the method, and any use of it fails the test.
    if type(connection.__dict__.get("cursor")).__name__ == "_DatabaseFailure":
        return None
    raw = connection.connection
    try:
        if raw is not None and not raw.closed and _is_watched(connection, alias, monitor):
            return connection
        if raw is not None:
            # It broke where nobody looked: Django would find out when it asks for a cursor. Or it
            # reaches a server that the alias does not mean any more.
            connection.close()
        _bound_connecting(connection, timeout)
        _ensure_connection(connection, alias)
        if _is_known_server(connection, alias, monitor):
            return connection
        connection.close()
    except Exception as error:  # refused, timed out, misconfigured: never the visitor's concern
        connection.close()
        monitor.report(alias, error)
    return None


def ask_over_connection(alias: str, monitor: Monitor) -> None:
    """Let the monitor know where a replica stands now, where this thread is connected to it.

    One round trip on a connection at rest, and no thread to be woken: what has arrived since the
    last look is known at once.

    Args:
        alias: alias of the replica.
        monitor: is told the answer, if it comes from the server that it knows.
    """
    connection: Any = connections[alias]
    raw = connection.connection
    if not monitor.looks_itself or not isinstance(raw, psycopg.Connection):
        return
    if not postgres.can_be_asked(raw):
        return
    try:
        with in_flight.waiting(alias, raw):
            answer = postgres.ask_replica(raw)
    except Exception:  # says nothing of the server: the connection may be an old one
        connection.close()
        return
    if answer.in_recovery and answer.replayed is not None:
        monitor.note_replayed(alias, answer.life, answer.replayed)


def _ensure_connection(connection: Any, alias: str) -> None:
    """Open the connection; where the statements hang that Django prepares it by, they are ended."""
    waiting: list[int] = []
    connection.__dict__[_OPENED] = lambda raw: waiting.append(in_flight.enter(alias, raw))
    try:
        connection.ensure_connection()
    finally:
        del connection.__dict__[_OPENED]
        for number in waiting:
            in_flight.leave(number)


def _is_watched(connection: Any, alias: str, monitor: Monitor) -> bool:
    """Tell whether an open connection reaches the server that is known.

    The code may have opened it past this module, as by ``using()``. Whether a pooler has led it
    elsewhere meanwhile shows with the statement.
    """
    if not isinstance(connection.connection, psycopg.Connection) or not monitor.looks_itself:
        return True
    try:
        sight = _sight_of(connection, alias)
    except Exception:  # says nothing of the server: the connection may be an old one
        return False
    return sight is not None and monitor.life(alias) == sight.life


def _is_known_server(connection: Any, alias: str, monitor: Monitor) -> bool:
    if not isinstance(connection.connection, psycopg.Connection) or not monitor.looks_itself:
        return True
    sight = _sight_of(connection, alias)
    if sight is None:
        monitor.report(alias, "A request has met it.", ReplicaState.PROMOTED)
        return False
    return monitor.is_same_server(alias, sight.life)


def _sight_of(connection: Any, alias: str) -> _Sight | None:
    """Return which standby the connection was last seen to lead to, or None where it is none.

    A connection that nobody has seen through is seen through now. Of a promotion libpq knows.
    """
    raw = connection.connection
    sight = _last_sight(connection)
    if sight is None:
        return _look_through(connection, alias)
    if sight.is_pooled or raw.pgconn.parameter_status(b"in_hot_standby") == b"on":
        return sight
    return None


def _last_sight(connection: Any) -> _Sight | None:
    sight: _Sight | None = connection.__dict__.get(_SIGHT)
    return None if sight is None or sight.raw is not connection.connection else sight


def _look_through(connection: Any, alias: str) -> _Sight | None:
    raw = connection.connection
    with in_flight.waiting(alias, raw):
        sight = _see(raw)
    if sight is not None:
        setattr(connection, _SIGHT, sight)
    return sight


def lock_wait_ms() -> int:
    """Return the milliseconds that a statement on a replica may wait for a lock; 0 for any time."""
    return round((get_config().LOCK_WAIT or 0) * 1000)


def lift_lock_wait(connection: Any) -> bool:
    """Have a connection wait for locks as long as it takes; tell whether the bound was the package's."""
    raw = connection.connection
    sight = _last_sight(connection)
    if sight is None or sight.is_pooled or not lock_wait_ms() or not postgres.can_be_asked(raw):
        return False
    postgres.lift_lock_wait(raw)
    del connection.__dict__[_SIGHT]  # so that whoever is sent here next bounds it anew
    return True


def _see(raw: psycopg.Connection[Any]) -> _Sight | None:
    identity = postgres.identify(raw, lock_wait_ms())
    return _Sight(raw, identity.life, identity.is_pooled) if identity.in_recovery else None


def life_behind(connection: Any) -> Life | None:
    """Return which server, and which life of it, Django's connection was last seen to reach."""
    sight = _last_sight(connection)
    return None if sight is None else sight.life


def is_pooled(connection: Any) -> bool:
    """Tell whether a pooler is known to stand between the connection and its server."""
    sight = _last_sight(connection)
    return sight is not None and sight.is_pooled


def is_elsewhere(connection: Any, life: Life | None) -> bool:
    """Tell whether the last statement may have been answered by another server than was chosen.

    Without a pooler this costs no query: a connection leads to one server in one life or breaks,
    and of a promotion the server tells libpq itself, with its answer. (The parameter
    ``in_hot_standby`` of PostgreSQL 14, "Parameter Status Changes" in libpq's manual.) Through a
    pooler, or where Django has opened another connection since, the server is asked.

    Args:
        connection: Django's connection to a replica, with no transaction open.
        life: which server, in which life, was chosen; None where nobody has chosen.
    """
    if life is None and connection.__dict__.get(_SIGHT) is None:
        return False  # nobody has vouched for it: a mirror in a test, an alias named by the code
    if not isinstance(connection.connection, psycopg.Connection):
        return False
    look = _look_through if is_pooled(connection) else _sight_of
    try:
        sight = look(connection, connection.alias)
    except Exception:  # whatever has become of it, the statement can be run elsewhere
        return True
    return sight is None or life not in (None, sight.life)


def was_elsewhere(cursor: Any, life: Life | None) -> bool:
    """Tell the same of a statement that has asked along who answers it, without another question.

    Args:
        cursor: the driver's cursor; it yields the rows of the statement afterwards.
        life: which server, in which life, was chosen; None where nobody has chosen.
    """
    try:
        answerer = postgres.read_answerer(cursor)
    except Exception:  # whoever that was
        return True
    return not answerer.in_recovery or life not in (None, answerer.life)


def is_standby(connection: Any) -> bool:
    """Tell whether the connection is known, without any query, to lead to a standby.

    A mirror of a test leads to none, and takes writes itself.
    """
    raw = connection.connection
    if raw is None:
        return False
    return is_pooled(connection) or raw.info.parameter_status("in_hot_standby") == "on"


def _bound_connecting(connection: Any, timeout: float) -> None:
    """Let every attempt of the connection to reach its server end within the time-out.

    The driver's own time-out is 2 seconds at least, and knows nothing of a pool or of DNS. The
    attempt is made in a thread, which is left behind when the time is over.
    """
    connection.__dict__[_TIMEOUT] = timeout  # which may be another one than the last time
    if "get_new_connection" in connection.__dict__:
        return
    connect: Callable[[Any], Any] = connection.get_new_connection

    def connect_within_bound(params: Any) -> Any:
        raw, sight = _Attempt(connect, params).result(connection.__dict__[_TIMEOUT])
        setattr(connection, _SIGHT, sight)
        connection.__dict__.get(_OPENED, _ignore)(raw)
        return raw

    connection.get_new_connection = connect_within_bound


def _ignore(raw: Any) -> None:
    pass


def _first_sight(raw: Any) -> _Sight | None:
    """Return which standby a new connection leads to, or None where it is none, or unknown.

    A pooler takes a connection also where no server can be reached: only an answer shows that one
    is there.
    """
    if not isinstance(raw, psycopg.Connection):
        return None
    raw.autocommit = True  # no transaction is left open; Django sets what it wants afterwards
    return _see(raw)


def _give_back(raw: Any) -> None:
    pool = getattr(raw, "_pool", None)
    if pool is None:
        raw.close()
    else:
        pool.putconn(raw)


class _Attempt:
    """One attempt to connect and to have an answer, in a thread of its own."""

    def __init__(self, connect: Callable[[Any], Any], params: Any) -> None:
        self._connect = connect
        self._params = params
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._is_given_up = False
        self._raw: Any = None
        self._sight: _Sight | None = None
        self._has_answered = False
        self._error: Exception | None = None
        # A daemon: a thread that waits for a dead host keeps no process alive.
        threading.Thread(target=self._run, name="replica-router-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            raw = self._connect(self._params)
            with self._lock:
                self._raw = raw
                is_wanted = not self._is_given_up
            if is_wanted:
                self._sight = _first_sight(raw)
        except Exception as error:  # handed to the thread that waits for it
            self._error = error
        with self._lock:
            self._has_answered = self._error is None
            if self._raw is not None and (self._is_given_up or self._error is not None):
                _give_back(self._raw)
        self._done.set()

    def result(self, timeout: float) -> tuple[Any, _Sight | None]:
        self._done.wait(timeout)
        with self._lock:
            if self._has_answered:
                return self._raw, self._sight
            self._is_given_up = True
            if self._raw is not None and self._error is None:
                shut_down(self._raw)  # so that its thread ends, too
        if self._error is not None:
            raise self._error
        message = f"The server did not accept a connection within {timeout:g} s."
        raise OperationalError(message)
