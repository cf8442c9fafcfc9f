"""Connections of requests to replicas: opened within a bound, and to the server that is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from django.db import connections
from django.db.utils import OperationalError

from django_replica_router import postgres
from django_replica_router.monitor import Monitor

_STANDBY = "_replica_router_standby"


def connect_to_replica(alias: str, monitor: Monitor, timeout: float) -> bool:
    """Tell whether a connection to the replica stands, opening it where there is none yet.

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
        return False
    raw = connection.connection
    if raw is not None and not raw.closed and _is_watched(connection, alias, monitor):
        return True
    try:
        if raw is not None:
            # It broke where nobody looked: Django would find out when it asks for a cursor. Or it
            # reaches a server that the alias does not mean any more.
            connection.close()
        _bound_connecting(connection, timeout)
        connection.ensure_connection()
        return _is_known_server(connection, alias, monitor)
    except Exception as error:  # refused, timed out, misconfigured: never the visitor's concern
        monitor.report(alias, error)
        return False


def _is_watched(connection: Any, alias: str, monitor: Monitor) -> bool:
    """Tell whether an open connection reaches the server that is known.

    The code may have opened it past this module, as by ``using()``.
    """
    raw = connection.connection
    if connection.__dict__.get(_STANDBY) is raw:
        return True
    if not isinstance(raw, psycopg.Connection) or not monitor.looks_itself:
        return True
    try:
        is_known = monitor.knows_server(alias, postgres.identify(raw).life)
    except Exception:  # says nothing of the server: the connection may be an old one
        return False
    if is_known:
        setattr(connection, _STANDBY, raw)
    return is_known


def _is_known_server(connection: Any, alias: str, monitor: Monitor) -> bool:
    raw = connection.connection
    if not isinstance(raw, psycopg.Connection) or not monitor.looks_itself:
        return True
    if monitor.is_same_server(alias, postgres.identify(raw).life):
        setattr(connection, _STANDBY, raw)
        return True
    connection.close()
    return False


def has_been_promoted(connection: Any) -> bool:
    """Tell whether the server of a connection was a standby and is none any more.

    The server tells libpq of itself, with the answer to the statement before: no query. (The
    parameter ``in_hot_standby`` of PostgreSQL 14, "Parameter Status Changes" in libpq's manual.)
    """
    raw = connection.connection
    return (
        raw is not None
        and connection.__dict__.get(_STANDBY) is raw
        and raw.pgconn.parameter_status(b"in_hot_standby") != b"on"
    )


def _bound_connecting(connection: Any, timeout: float) -> None:
    """Let every attempt of the connection to reach its server end within the time-out.

    The driver's own time-out is 2 seconds at least, and knows nothing of a pool or of DNS. The
    attempt is made in a thread, which is left behind when the time is over.
    """
    if "get_new_connection" in connection.__dict__:
        return
    connect: Callable[[Any], Any] = connection.get_new_connection

    def connect_within_bound(params: Any) -> Any:
        return _Attempt(connect, params).result(timeout)

    connection.get_new_connection = connect_within_bound


def _give_back(raw: Any) -> None:
    pool = getattr(raw, "_pool", None)
    if pool is None:
        raw.close()
    else:
        pool.putconn(raw)


class _Attempt:
    """One attempt to connect, in a thread of its own."""

    def __init__(self, connect: Callable[[Any], Any], params: Any) -> None:
        self._connect = connect
        self._params = params
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._is_given_up = False
        self._raw: Any = None
        self._error: Exception | None = None
        # A daemon: a thread that waits for a dead host keeps no process alive.
        threading.Thread(target=self._run, name="replica-router-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            raw = self._connect(self._params)
        except Exception as error:  # handed to the thread that waits for it
            self._error = error
        else:
            with self._lock:
                if self._is_given_up:
                    _give_back(raw)
                else:
                    self._raw = raw
        self._done.set()

    def result(self, timeout: float) -> Any:
        self._done.wait(timeout)
        with self._lock:
            if self._raw is not None:
                return self._raw
            self._is_given_up = True
        if self._error is not None:
            raise self._error
        message = f"The server did not accept a connection within {timeout:g} s."
        raise OperationalError(message)
