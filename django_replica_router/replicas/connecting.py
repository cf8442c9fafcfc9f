"""Connections of requests to replicas: opened within a bound, and to the server that is known."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
from django.db import connections
from django.db.utils import OperationalError

from django_replica_router.conf import get_config
from django_replica_router.errors import PositionError
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.attributes import UNKNOWN, Sight
from django_replica_router.replicas.inflight import in_flight, shut_down
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.replicas.wrappers import connection_of
from django_replica_router.sql import answering, standby, states
from django_replica_router.stats import count
from django_replica_router.values.servers import Life

_straight: set[str] = set()
"""Aliases whose last connection led straight to its server. The next one asks nothing by itself: that it
could be opened shows that a server is there, which it does not where a pooler answers."""

_waiting: set[str] = set()
"""Aliases whose last connection led to a server that can itself wait for what it replays."""

_occupied: set[str] = set()
"""Aliases of poolers one of whose servers waits for somebody of this process."""


def find_connection(alias: str) -> Any:
    """Return this thread's connection of an alias, without making one where there is none."""
    return getattr(connections._connections, alias, None)  # type: ignore[attr-defined]


def find_open(alias: str, life: Life | None) -> Any | None:
    """Return this thread's connection to a replica where it is open, and leads straight to just that server.

    None also where a test forbids its use, and where the server has been promoted meanwhile.

    Args:
        alias: alias of the replica.
        life: which server, and which life of it.
    """
    connection = connection_of(alias)
    raw = connection.connection
    if raw is None or raw.closed or "cursor" in connection.__dict__:  # see ``connect_to_replica``
        return None
    return connection if _leads_straight_to(connection, life) else None


def connect_to_replica(
    alias: str, monitor: Monitor, timeout: float, *, is_tried_again: bool = False
) -> Any | None:
    """Return Django's connection to the replica, opened where it is not yet; None where it cannot be.

    Django would open it a moment later for the query, where a failure cannot be mended any more.

    Args:
        alias: alias of the replica.
        monitor: knows which server it should be.
        timeout: seconds after which to give up.
        is_tried_again: one that fails soon proves nothing of the alias: the next attempt, which is made
            then, may reach another server.
    """
    connection = connection_of(alias)
    # In a test whose class does not list the alias in ``databases``, Django's test case puts an
    # object of this class in the place of the method, and any use of it fails the test.
    if type(connection.__dict__.get("cursor")).__name__ == "_DatabaseFailure":
        return None
    raw = connection.connection
    if raw is not None and not raw.closed and _is_watched(connection, alias, monitor):
        return connection
    if raw is not None:
        # It broke where nobody looked: Django would find out when it asks for a cursor. Or it
        # reaches a server that the alias does not mean any more.
        connection.close()
    began = time.monotonic()
    try:
        return connection if _is_opened(connection, alias, monitor, timeout) else None
    except _FailedError as failed:
        is_soon = time.monotonic() - began <= timeout / 2
        if (is_tried_again and is_soon and not failed.pause) or monitor.breaker.fail(
            alias, failed.pause, failed.error
        ):
            monitor.report(alias, failed.error)
    return None


class _FailedError(Exception):
    """A connection could not be opened.

    Args:
        pause: what the breaker has asked for before.
        error: why it could not.
    """

    def __init__(self, pause: float, error: Exception) -> None:
        super().__init__(str(error))
        self.pause = pause
        self.error = error


def refused_replicas(monitor: Monitor) -> set[str]:
    """Return the replicas to which this thread has no connection, and may open none now."""
    refused = [alias for alias in monitor.breaker.open_aliases() if alias in monitor.known.readings]
    return {alias for alias in refused if connections[alias].connection is None}


def _is_opened(connection: Any, alias: str, monitor: Monitor, timeout: float) -> bool:
    """Open a new connection to the server that is known; tell whether that was done.

    Raises:
        _FailedError: no connection could be opened.
    """
    pause = monitor.breaker.begin(alias, timeout)
    if pause is None:
        return False
    try:
        connection.connect_timeout = timeout
        # Whoever has Django keep a log of queries is shown the site's own.
        can_wait = (
            not pause  # one that was refused before has to show that it answers
            and monitor.looks_itself
            and alias in _straight
            # Any of several is to be judged before it is asked.
            and alias not in monitor.servers.endpoints
            and not connection.queries_logged
        )
        connection.expected_life = monitor.servers.life(alias) if can_wait else None
        _ensure_connection(connection, alias)
        if _is_known_server(connection, alias, monitor):
            monitor.breaker.close(alias)
            (_waiting.add if _can_wait(connection) else _waiting.discard)(alias)
            return True
        connection.close()
    except Exception as error:  # refused, timed out, misconfigured: never the visitor's concern
        connection.close()
        raise _FailedError(pause, error) from error
    return False


def reach(
    alias: str, monitor: Monitor, timeout: float, suits: Callable[[Replica], bool]
) -> Replica | None:
    """Return what is known of the server behind an endpoint that this thread is connected to.

    Where that one does not suit and another one does, a new connection is opened once: it may lead to
    the other. None where no connection can be had.

    Args:
        alias: the endpoint.
        monitor: knows its servers.
        timeout: seconds after which to give up connecting.
        suits: tells whether a server does.
    """
    began = time.monotonic()
    for is_last in (False, True):
        connection = connect_to_replica(alias, monitor, timeout, is_tried_again=not is_last)
        replica = connection and monitor.health.replica(alias, life_behind(connection))
        if replica is not None and suits(replica):
            break
        is_late = time.monotonic() - began > timeout / 2
        if is_last or is_late or not suits(monitor.health.replica(alias)):
            break
        if connection is not None:
            connection.close()
    return replica


def open_life(alias: str) -> Life | None:
    """Return the server that this thread's open connection of an alias leads to, or None."""
    connection: Any = connections[alias]
    raw = connection.connection
    return None if raw is None or raw.closed else life_behind(connection)


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
    if not states.can_be_asked(raw):
        return
    try:
        with in_flight.waiting(monitor.servers.waiting_key(alias, life_behind(connection)), raw):
            answer = standby.ask_replica(raw)
    except Exception:  # says nothing of the server: the connection may be an old one
        connection.close()
        return
    if answer.in_recovery and answer.replayed is not None:
        monitor.answers.note_replayed(alias, answer.life, answer.replayed)


def waits_itself(alias: str, monitor: Monitor) -> bool:
    """Tell whether the server of a replica can wait for a position itself, as far as is known.

    Where this thread is connected to it the connection tells, and else the last one did.
    """
    if not monitor.looks_itself:
        return False
    connection: Any = connections[alias]
    if connection.connection is None:
        return alias in _waiting
    # Each who waits keeps one of a pooler's servers from all others: one of them finds out for all.
    return _can_wait(connection) and not (is_pooled(connection) and alias in _occupied)


def _can_wait(connection: Any) -> bool:
    raw = connection.connection
    return isinstance(raw, psycopg.Connection) and standby.can_wait(raw)


def wait_over_connection(
    alias: str, monitor: Monitor, lsn: int, seconds: float, connect_timeout: float
) -> None:
    """Have the server of a replica wait for a position, and let the monitor know where it stands then.

    Use it where ``waits_itself`` says so. The reader learns of it by the answer, with no look in between
    that comes too late, and no thread to be woken.

    Args:
        alias: alias of the replica.
        monitor: is told the answer, if it comes from a server that it knows.
        lsn: the position.
        seconds: that may be waited, opening a connection included where there is none.
        connect_timeout: seconds within which it must accept that.
    """
    began = time.monotonic()
    connection = connect_to_replica(alias, monitor, connect_timeout)
    if connection is None or not _can_wait(connection):
        return
    left = seconds - (time.monotonic() - began)
    _occupied.add(alias)
    try:
        answer = _wait_over(connection, alias, monitor, lsn, left)
    finally:
        _occupied.discard(alias)
    is_there = False
    if answer is not None and answer.in_recovery and answer.replayed is not None:
        monitor.answers.note_replayed(alias, answer.life, answer.replayed)
        is_there = answer.replayed >= lsn
    count("waits_by_server" if is_there else "waits_by_server_in_vain")


def _wait_over(
    connection: Any, alias: str, monitor: Monitor, lsn: int, seconds: float
) -> standby.ReplicaAnswer | None:
    raw = connection.connection
    try:
        with in_flight.waiting(monitor.servers.waiting_key(alias, life_behind(connection)), raw):
            return standby.wait_for_replay(raw, lsn, seconds)
    except (psycopg.Error, PositionError):
        # A time limit of the session, as a rule; a connection that has ended says nothing of the server.
        if not states.can_be_asked(raw):
            connection.close()
        return None
    except BaseException:  # a time limit of the code's own, by a signal
        connection.close()
        raise


def _ensure_connection(connection: Any, alias: str) -> None:
    """Open the connection; where the statements hang that Django prepares it by, they are ended."""
    with contextlib.ExitStack() as waiting:
        connection.on_opened = lambda raw: waiting.enter_context(
            in_flight.waiting(waiting_key(connection, alias), raw)
        )
        waiting.callback(setattr, connection, "on_opened", None)
        connection.ensure_connection()


def _is_watched(connection: Any, alias: str, monitor: Monitor) -> bool:
    """Tell whether an open connection reaches the server that is known.

    The code may have opened it past this module, as by ``using()``. Whether a pooler has led it
    elsewhere meanwhile shows with the statement.
    """
    if _leads_straight_to(connection, monitor.servers.life(alias)):
        return True  # as a rule: then nothing else need be asked
    if not isinstance(connection.connection, psycopg.Connection) or not monitor.looks_itself:
        return True
    try:
        sight = _sight_of(connection, alias)
    except Exception:  # says nothing of the server: the connection may be an old one
        return False
    servers = monitor.servers
    return sight is not None and (servers.knows(alias, sight.life) or alias in servers.led)


def _leads_straight_to(connection: Any, life: Life | None) -> bool:
    """Tell whether an open connection was seen to lead to just that server, which is a standby yet.

    libpq knows that of the latter; a pooler may lead it elsewhere.
    """
    raw, sight = connection.connection, getattr(connection, "sight", None)
    return (
        sight is not None
        and sight.raw is raw
        and not sight.is_pooled
        and sight.life == life
        and raw.pgconn.parameter_status(b"in_hot_standby") == b"on"
    )


def _is_known_server(connection: Any, alias: str, monitor: Monitor) -> bool:
    if not isinstance(connection.connection, psycopg.Connection) or not monitor.looks_itself:
        return True
    sight = _sight_of(connection, alias)
    if sight is None:
        if alias not in monitor.servers.endpoints:  # else it may be one of several
            monitor.report(alias, "A request has met it.", ReplicaState.PROMOTED)
        return False
    return monitor.is_same_server(alias, sight.life)


def _sight_of(connection: Any, alias: str) -> Sight | None:
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


def _last_sight(connection: Any) -> Sight | None:
    # One that was made before the app was ready, and not opened since, has no such attribute.
    sight: Sight | None = getattr(connection, "sight", None)
    return None if sight is None or sight.raw is not connection.connection else sight


def _look_through(connection: Any, alias: str) -> Sight | None:
    raw = connection.connection
    with in_flight.waiting(waiting_key(connection, alias), raw):
        sight = _see(raw)
    if sight is not None:
        _note_sight(connection, sight)
    return sight


def _note_sight(connection: Any, sight: Sight | None) -> None:
    connection.sight, connection.around = sight, UNKNOWN
    if sight is not None and not sight.is_expected:
        (_straight.discard if sight.is_pooled else _straight.add)(connection.alias)


def look_where_expected(connection: Any) -> None:
    """Find out where a new connection leads before something is done there that cannot ask along.

    Raises:
        OperationalError: to another server than was chosen.
    """
    sight = _last_sight(connection)
    if sight is None or not sight.is_expected:
        return
    connection.connection.autocommit = True  # no transaction is left open
    if is_elsewhere(connection, sight.life):
        message = f"{connection.alias!r} has led to another server than was chosen."
        raise OperationalError(message)


def lock_wait_ms() -> int:
    """Return the milliseconds that a statement on a replica may wait for a lock; 0 for any time."""
    return round((get_config().LOCK_WAIT or 0) * 1000)


def lift_lock_wait(connection: Any) -> bool:
    """Have a connection wait for locks as long as it takes; tell whether the bound was the package's."""
    raw = connection.connection
    sight = _last_sight(connection)
    if sight is None or sight.is_pooled or not lock_wait_ms() or not states.can_be_asked(raw):
        return False
    answering.lift_lock_wait(raw)
    _note_sight(connection, None)  # so that whoever is sent here next bounds it anew
    return True


def _see(raw: psycopg.Connection[Any]) -> Sight | None:
    identity = answering.identify(raw, lock_wait_ms())
    return Sight(raw, identity.life, identity.is_pooled) if identity.in_recovery else None


def life_behind(connection: Any) -> Life | None:
    """Return which server, and which life of it, Django's connection was last seen to reach."""
    sight = _last_sight(connection)
    return None if sight is None else sight.life


def waiting_key(connection: Any, alias: str) -> str:
    """Return the key by which the waiting for the server goes that a connection leads to."""
    monitor = find_monitor(get_config().topology.primary_of.get(alias, alias))
    if monitor is None or alias not in monitor.servers.endpoints:
        return alias
    return monitor.servers.waiting_key(alias, life_behind(connection))


def note_answerer(connection: Any, answerer: answering.Answerer) -> Life | None:
    """Note which server has answered a statement; return the one that had answered before."""
    sight, life = _last_sight(connection), answerer.life
    if sight is None or (sight.life == life and not sight.is_expected):
        return life
    is_pooled = answerer.pid != sight.raw.info.backend_pid
    _note_sight(connection, Sight(sight.raw, life, is_pooled))
    return None if sight.is_expected else sight.life


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
    if life is None and connection.sight is None:
        return False  # nobody has vouched for it: a mirror in a test, an alias named by the code
    if not isinstance(connection.connection, psycopg.Connection):
        return False
    look = _look_through if is_pooled(connection) else _sight_of
    try:
        sight = look(connection, connection.alias)
    except Exception:  # whatever has become of it, the statement can be run elsewhere
        _straight.discard(connection.alias)  # the next one has to show that it answers
        return True
    return sight is None or life not in (None, sight.life)


def was_elsewhere(connection: Any, cursor: Any, life: Life | None) -> bool:
    """Tell the same of a statement that has asked along who answers it, without another question.

    Args:
        connection: Django's connection to a replica.
        cursor: the driver's cursor; it yields the rows of the statement afterwards.
        life: which server, in which life, was chosen; None where nobody has chosen.
    """
    try:
        answerer = answering.read_answerer(cursor)
    except Exception:  # whoever that was
        return True
    if not answerer.in_recovery or life not in (None, answerer.life):
        if answerer.in_recovery:
            note_answerer(connection, answerer)
        return True
    sight = _last_sight(connection)
    if sight is not None and sight.is_expected:
        note_answerer(connection, answerer)
    return False


def is_standby(connection: Any) -> bool:
    """Tell whether the connection is known, without any query, to lead to a standby.

    A mirror of a test leads to none, and takes writes itself.
    """
    raw = connection.connection
    if raw is None:
        return False
    return is_pooled(connection) or raw.info.parameter_status("in_hot_standby") == "on"


def open_within_bound(connection: Any, connect: Callable[[Any], Any], params: Any) -> Any:
    """Open the driver's connection, and let the attempt to reach its server end within the time-out.

    The driver's own time-out is 2 seconds at least, and knows nothing of a pool or of DNS. The
    attempt is made in a thread, which is left behind when the time is over.

    Args:
        connection: Django's connection.
        connect: opens the driver's, with no more bound than the driver knows.
        params: for that.
    """
    connection.around = UNKNOWN
    if connection.connect_timeout is None:  # the package has not opened it, and knows no bound
        return connect(params)
    expected, connection.expected_life = connection.expected_life, None
    raw, sight = _Attempt(connect, params, expected).result(connection.connect_timeout)
    _note_sight(connection, sight)
    if connection.on_opened is not None:
        connection.on_opened(raw)
    return raw


def _first_sight(raw: Any, expected: Life | None) -> Sight | None:
    """Return which standby a new connection leads to, or None where it is none, or unknown.

    Where a server is expected, and there is one in recovery, its first statement is to tell.

    A pooler takes a connection also where no server can be reached: only an answer shows that one
    is there.
    """
    if not isinstance(raw, psycopg.Connection):
        return None
    if expected is not None and raw.info.parameter_status("in_hot_standby") == "on":
        return Sight(raw, expected, is_pooled=True, is_expected=True)
    raw.autocommit = True  # no transaction is left open; Django sets what it wants afterwards
    return _see(raw)


def _give_back(raw: Any) -> None:
    pool = getattr(raw, "_pool", None)
    if pool is None:
        raw.close()
    else:
        pool.putconn(raw)


class _Attempt:
    """One attempt to connect and, where that says nothing, to have an answer, in a thread of its own."""

    def __init__(self, connect: Callable[[Any], Any], params: Any, expected: Life | None) -> None:
        self._connect = connect
        self._params = params
        self._expected = expected
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._is_given_up = False
        self._raw: Any = None
        self._sight: Sight | None = None
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
                self._sight = _first_sight(raw, self._expected)
        except Exception as error:  # handed to the thread that waits for it
            self._error = error
        with self._lock:
            self._has_answered = self._error is None
            if self._raw is not None and (self._is_given_up or self._error is not None):
                _give_back(self._raw)
        self._done.set()

    def result(self, timeout: float) -> tuple[Any, Sight | None]:
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
