"""Attempts to connect: each ends within the time-out, whatever it waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from django.db.utils import OperationalError

from django_replica_router.replicas.attributes import UNKNOWN, Sight
from django_replica_router.replicas.inflight import shut_down
from django_replica_router.replicas.sights import note_sight, see
from django_replica_router.values.servers import Life


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
    note_sight(connection, sight)
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
    return see(raw)


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
