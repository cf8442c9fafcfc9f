"""Run again on the primary what a replica could not do, without the caller noticing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.utils import CursorWrapper

from django_replica_router.replicas.inflight import in_flight
from django_replica_router.sql.standby import replays_lock
from django_replica_router.sql.states import READ_ONLY_SQL_TRANSACTION

_RECOVERY_CONFLICT = "40001"
_LOCK_NOT_AVAILABLE = "55P03"
_QUERY_CANCELED = "57014"

# Recovery in progress, or an unlogged table, whose rows are in no WAL: no standby can. A relation, a
# column or a function that is not there: the migration may not be replayed yet.
_OF_THIS_SERVER = frozenset(["0A000", "55000", "42P01", "42703", "42883", "42704", "3F000"])
# Insufficient resources; system error, as a library that is not installed; internal error, as a damaged page.
_OF_THIS_MACHINE = ("53", "58", "XX")

# Recovery conflict; and a server that shuts down, was shut down, or is starting: the statement
# has had no effect, and the reader is free to ask another server.
_SERVER_GONE = frozenset([_RECOVERY_CONFLICT, "40P01", "57P01", "57P02", "57P03", "57P04"])

# Connection exceptions: also what PgBouncer answers where it has no server to give ("query_wait_timeout",
# "server login has been failing"), or has lost it.
_CONNECTION_EXCEPTION = "08"


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a driver's error that Django has wrapped."""
    for candidate in (error, error.__cause__):
        state = getattr(candidate, "sqlstate", None)
        if isinstance(state, str):
            return state
    return None


def is_refused_write(error: BaseException) -> bool:
    """Tell whether a standby has refused a statement because it writes."""
    return sqlstate(error) == READ_ONLY_SQL_TRANSACTION


def is_recovery_conflict(error: BaseException, raw: Any) -> bool:
    """Tell whether a standby has ended the statement, and not the connection, to go on replaying.

    Args:
        error: what the statement has raised.
        raw: the driver's connection, to a standby.
    """
    return sqlstate(error) == _RECOVERY_CONFLICT and not getattr(raw, "closed", True)


def is_of_this_server(error: BaseException) -> bool:
    """Tell whether a server cannot do what the statement asks, and another one perhaps can.

    The message would tell it from what no server can do, but is in the server's own language; the
    primary then answers the same.
    """
    state = sqlstate(error) or ""
    return state in _OF_THIS_SERVER or state.startswith(_OF_THIS_MACHINE)


def has_waited_for_replay(error: BaseException, raw: Any) -> bool:
    """Tell whether a time limit has ended a statement that a standby's replay was in the way of.

    A standby replays an ``ACCESS EXCLUSIVE`` lock before the commit that ends it, and nobody else can
    hold one there.

    Args:
        error: what the statement has raised.
        raw: the driver's connection, to a standby.
    """
    # A query on a standby waits for no other lock.
    return is_of_lock(error) or (sqlstate(error) == _QUERY_CANCELED and replays_lock(raw))


def is_of_lock(error: BaseException) -> bool:
    """Tell whether ``lock_timeout`` has ended a statement."""
    return sqlstate(error) == _LOCK_NOT_AVAILABLE


def is_replica_fault(error: BaseException, raw: Any) -> bool:
    """Tell whether the replica, and not the statement, is to blame.

    Args:
        error: what the statement has raised.
        raw: the driver's connection.
    """
    state = sqlstate(error) or ""
    return (
        state in _SERVER_GONE
        or state.startswith(_CONNECTION_EXCEPTION)
        or bool(getattr(raw, "closed", False))
    )


def run_on_primary(primary: str, cursor: CursorWrapper, sql: Any, params: Any, many: bool) -> Any:
    """Run the statement on the primary and let the cursor yield its rows.

    Args:
        primary: alias of the primary.
        cursor: the caller's cursor, made for a replica. What it fetches afterwards comes from
            the primary.
        sql: the statement.
        params: its parameters, or a list of them.
        many: the parameters are a list.
    """
    other = open_on_primary(primary, server_side=is_server_side(cursor))
    try:
        result = other.executemany(sql, params) if many else other.execute(sql, params)
    except BaseException:
        other.close()
        raise
    old, cursor.cursor = cursor.cursor, other.cursor
    _close_quietly(old)
    return result


def open_on_primary(primary: str, *, server_side: bool) -> CursorWrapper:
    """Return a new cursor of the primary, in place of one of a replica.

    Args:
        primary: alias of the primary.
        server_side: the replica's fetches its rows piece by piece. Whether the primary's may, which a
            pooler in front of it alone does not allow, is that alias's own setting.
    """
    connection = connections[primary]
    if server_side and not connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
        cursor: CursorWrapper = connection.chunked_cursor()
        return cursor
    return connection.cursor()


def is_server_side(cursor: CursorWrapper) -> bool:
    """Tell whether the cursor fetches its rows from the server piece by piece."""
    return getattr(cursor.cursor, "name", None) is not None


class _WatchedCursor:
    """A driver's server-side cursor of a replica, whose first fetch another server may answer.

    Its ``execute`` only declares it: what is wrong with the server shows with a fetch, or when it is
    closed. Of those no wrapper of statements knows; where the server hangs, their waiting is ended as
    that of a statement is.
    """

    def __init__(
        self,
        cursor: CursorWrapper,
        alias: str,
        is_mendable: Callable[[Exception], bool] | None,
        run_elsewhere: Callable[[], Any],
    ) -> None:
        self._cursor = cursor
        # It may be executed anew.
        self._inner = getattr(cursor.cursor, "_inner", cursor.cursor)
        self._alias = alias
        self._is_mendable = is_mendable
        self._run_elsewhere = run_elsewhere

    def _ask(self, method: str, *args: Any) -> Any:
        with in_flight.waiting(self._alias, self._inner.connection):
            return getattr(self._inner, method)(*args)

    def _fetch(self, method: str, *args: Any) -> Any:
        # Once the caller has seen rows, no others can take their place.
        is_mendable, self._is_mendable = self._is_mendable, None
        try:
            return self._ask(method, *args)
        except Exception as error:
            if is_mendable is None or not is_mendable(error):
                raise
            self._run_elsewhere()
            return getattr(self._cursor.cursor, method)(*args)

    def fetchone(self) -> Any:
        return self._fetch("fetchone")

    def fetchmany(self, *args: Any) -> Any:
        return self._fetch("fetchmany", *args)

    def fetchall(self) -> Any:
        return self._fetch("fetchall")

    def __iter__(self) -> Any:
        return iter(self._fetch("fetchall"))

    def close(self) -> None:
        try:
            self._ask("close")
        except Exception:
            if not self._inner.connection.closed:
                raise
            # With the connection went what was to be closed; the driver has to be told.
            self._inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def watch_fetches(
    cursor: CursorWrapper,
    alias: str,
    is_mendable: Callable[[Exception], bool] | None,
    run_elsewhere: Callable[[], Any],
) -> None:
    """Have the waiting for a server-side cursor ended, and its first fetch mended, as statements are.

    Args:
        cursor: the caller's cursor, on which a statement was just executed.
        alias: alias of the replica.
        is_mendable: tells whether the error is one that another server would not raise. None where
            nothing may be run elsewhere.
        run_elsewhere: runs the statement elsewhere, and makes the cursor yield its rows.
    """
    cursor.cursor = _WatchedCursor(cursor, alias, is_mendable, run_elsewhere)


def _close_quietly(cursor: Any) -> None:
    # The server that it belonged to may be gone: then there is nothing to close.
    with contextlib.suppress(Exception):
        cursor.close()
