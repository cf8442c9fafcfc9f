"""Connections of requests to replicas: opened within a bound, and to the server that is known."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import psycopg
from django.db import connections

from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.sights import (
    leads_straight_to,
    led_straight,
    life_behind,
    note_opened,
    sight_of,
    waiting_key,
)
from django_replica_router.replicas.wrappers import connection_of
from django_replica_router.values.servers import Life


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
    return connection if leads_straight_to(connection, life) else None


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
    pause = monitor.breaker.begin(alias, timeout)
    if pause is None:
        return None
    began = time.monotonic()
    try:
        if _is_opened(connection, alias, monitor, timeout, has_to_answer=pause > 0):
            return connection
        connection.close()
    except Exception as error:  # refused, timed out, misconfigured: never the visitor's concern
        connection.close()
        is_no_proof = is_tried_again and not pause and time.monotonic() - began <= timeout / 2
        if is_no_proof or monitor.breaker.fail(alias, pause, error):
            monitor.report(alias, error)
    return None


def refused_replicas(monitor: Monitor) -> set[str]:
    """Return the replicas to which this thread has no connection, and may open none now."""
    refused = [alias for alias in monitor.breaker.open_aliases() if alias in monitor.known.readings]
    return {alias for alias in refused if connections[alias].connection is None}


def _is_opened(
    connection: Any, alias: str, monitor: Monitor, timeout: float, *, has_to_answer: bool
) -> bool:
    """Open a new connection; tell whether it leads to the server that is known.

    Raises:
        Exception: none could be opened.
    """
    connection.connect_timeout = timeout
    # Whoever has Django keep a log of queries is shown the site's own.
    can_wait = (
        not has_to_answer  # as one that was refused before
        and monitor.looks_itself
        and alias in led_straight
        # Any of several is to be judged before it is asked.
        and alias not in monitor.servers.endpoints
        and not connection.queries_logged
    )
    connection.expected_life = monitor.servers.life(alias) if can_wait else None
    _ensure_connection(connection, alias)
    is_known = _is_known_server(connection, alias, monitor)
    if is_known:
        monitor.breaker.close(alias)
        note_opened(connection)
    return is_known


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
    if leads_straight_to(connection, monitor.servers.life(alias)):
        return True  # as a rule: then nothing else need be asked
    if not isinstance(connection.connection, psycopg.Connection) or not monitor.looks_itself:
        return True
    try:
        sight = sight_of(connection, alias)
    except Exception:  # says nothing of the server: the connection may be an old one
        return False
    servers = monitor.servers
    return sight is not None and (servers.knows(alias, sight.life) or alias in servers.led)


def _is_known_server(connection: Any, alias: str, monitor: Monitor) -> bool:
    if not isinstance(connection.connection, psycopg.Connection) or not monitor.looks_itself:
        return True
    sight = sight_of(connection, alias)
    if sight is None:
        if alias not in monitor.servers.endpoints:  # else it may be one of several
            monitor.report(alias, "A request has met it.", ReplicaState.PROMOTED)
        return False
    return monitor.is_same_server(alias, sight.life)
