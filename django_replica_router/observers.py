"""What runs around every statement on a connection of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.conf import get_config
from django_replica_router.connecting import (
    is_elsewhere,
    is_pooled,
    is_standby,
    lift_lock_wait,
    lock_wait_ms,
    was_elsewhere,
)
from django_replica_router.context import current_scope
from django_replica_router.cursors import watch_cursors
from django_replica_router.inflight import in_flight
from django_replica_router.leading import lead_queries
from django_replica_router.mending import (
    MET_ANOTHER,
    OF_SESSION,
    chosen_lives,
    find_remedy,
    leave,
    note_mended,
    show_primary,
    was_sent,
)
from django_replica_router.policy import ReplicaState
from django_replica_router.postgres import ask_along, can_ask_along, has_failed, is_unanswered
from django_replica_router.rerouting import (
    bind_transaction,
    is_bound,
    is_of_lock,
    is_recovery_conflict,
    is_server_side,
    open_on_primary,
    watch_fetches,
)
from django_replica_router.session_settings import note_setting
from django_replica_router.statements import (
    Kind,
    is_plain_change,
    is_query,
    kind_of,
    might_commit,
    might_commit_part,
    might_write,
)
from django_replica_router.stats import count
from django_replica_router.transactions import watch_transactions
from django_replica_router.writes import mark_written, note_shown

Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]

_BRIEF = 0.05
"""Seconds within which a statement has only just begun. One that takes longer, and is in the way of
what is replayed, would be in the way of more the next time."""


_OF_PRIMARY = frozenset([Kind.WRITE, Kind.PRIMARY])


class StatementObserver:
    """Notices writes on a primary, and mends what cannot be done on a replica.

    Args:
        alias: the connection's alias. Whether it is a primary's or a replica's is looked up each
            time, so that settings may change under a test.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def __call__(
        self, execute: Execute, sql: Any, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        config = get_config()
        primary = config.topology.primary_of.get(self.alias)
        if primary is None or not config.ENABLED:
            return execute(sql, params, many, context)
        if primary == self.alias:
            result = _on_primary(primary, execute, sql, params, many, context)
        else:
            result = _on_replica(primary, self.alias, execute, sql, params, many, context)
        kind = kind_of(sql)
        if kind is not Kind.OTHER and kind in OF_SESSION:
            _note_setting(primary, kind, sql, params, context["connection"])
        return result


def _note_setting(primary: str, kind: Kind, sql: Any, params: Any, connection: Any) -> None:
    """Remember what was set for a session: the replicas' have to be set alike to serve its reader."""
    scope = current_scope()
    if note_setting(connection, kind, sql, params) and scope is not None:
        scope.cluster(primary).decide_anew()


def _on_primary(
    primary: str, execute: Execute, sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    scope = current_scope()
    if scope is None:
        return execute(sql, params, many, context)
    connection = context["connection"]
    state = scope.cluster(primary)
    try:
        result = execute(sql, params, many, context)
    except BaseException as error:
        if connection.autocommit and might_write(sql):
            _note_failed(primary, connection.connection, sql, many, error)
        raise
    finally:
        # Also where it failed: an error tells something of the rows, too.
        state.note_statement()
    if might_write(sql):
        _mark_written(primary, sql, context["cursor"])
    if not connection.autocommit and might_commit(sql):
        state.was_committed_by_hand(connection.connection)
    return result


def _mark_written(primary: str, sql: Any, cursor: Any) -> None:
    """Mark a write, and what the number of its transaction does not tell of it.

    PostgreSQL gives a transaction its number with the first row of its own that it changes. ``dblink``, a
    foreign table and a cursor ``WITH HOLD``, which is run at the COMMIT, change rows without.
    """
    is_plain = is_plain_change(sql)
    mark_written(primary, past=not is_plain, changed=is_plain and bool(cursor.rowcount))


def _note_failed(primary: str, raw: Any, sql: Any, many: bool, error: BaseException) -> None:
    """Note what a statement outside a transaction may have written although it failed.

    Nothing, as a rule.
    """
    # 1. Its answer was lost on the way, or something has kept the code from waiting for it, as a
    #    time limit by a signal does.
    if is_unanswered(raw) or not isinstance(error, Exception):
        mark_written(primary, uncertain=True)
    # 2. It has committed before it failed. Of many, each by itself, where libpq knows no pipeline.
    elif many or might_commit_part(sql):
        mark_written(primary)


def _on_replica(
    primary: str,
    alias: str,
    execute: Execute,
    sql: Any,
    params: Any,
    many: bool,
    context: dict[str, Any],
) -> Any:
    connection, cursor = context["connection"], context["cursor"]
    if many:
        params = list(params)  # which can be gone through once more, as a generator cannot
    if is_bound(connection):
        return show_primary(primary, cursor, sql, params, many)
    if kind_of(sql) in _OF_PRIMARY and _can_move(connection, primary):
        return show_primary(primary, cursor, sql, params, many)
    is_free = not connection.in_atomic_block
    asks_along = is_free and not many and _can_ask_along(connection, cursor, sql)
    sent = ask_along(sql, lock_wait_ms()) if asks_along else sql
    number = in_flight.enter(alias, connection.connection)
    try:
        try:
            result = execute(sent, params, many, context)
        except Exception as error:
            if not _may_be_repeated_here(primary, error, connection, in_flight.began(number)):
                raise
            result = execute(sent, params, many, context)
    except Exception as error:
        remedy = None
        if not connection.in_atomic_block:
            remedy = find_remedy(primary, alias, connection, error, sql)
        if remedy is None:
            raise
        raw = connection.connection
        if raw is not None and has_failed(raw):
            connection.rollback()  # autocommit is off: else nothing would run there any more
        result = show_primary(primary, cursor, sql, params, many)
        note_mended(primary, remedy)
        return result
    finally:
        in_flight.leave(number)
    if is_free:
        life = chosen_lives(primary).get(alias)
        if was_elsewhere(cursor.cursor, life) if asks_along else is_elsewhere(connection, life):
            leave(alias, primary, connection, ReplicaState.UNKNOWN, MET_ANOTHER)
            count("retried_elsewhere")
            return show_primary(primary, cursor, sql, params, many)
    if is_server_side(cursor):

        def may_fetch_elsewhere(error: Exception) -> bool:
            return find_remedy(primary, alias, connection, error) is not None

        def run_elsewhere() -> None:
            count("retried_first_fetch")
            show_primary(primary, cursor, sql, params, many)

        watch_fetches(cursor, alias, may_fetch_elsewhere if is_free else None, run_elsewhere)
    return result


def _can_ask_along(connection: BaseDatabaseWrapper, cursor: Any, sql: Any) -> bool:
    """Tell whether the statement should, and can, ask in one message who answers it.

    Any other is followed by that question.
    """
    return (
        is_pooled(connection)
        and is_query(sql)
        and can_ask_along(connection.connection, cursor.cursor)
    )


def _may_be_repeated_here(
    primary: str, error: Exception, connection: BaseDatabaseWrapper, began: float
) -> bool:
    """Tell whether a statement is to be sent to the same replica once more, and prepare that."""
    if _was_cancelled_at_once(error, connection, began):
        count("repeated_after_conflict")
        return True
    if was_sent(primary, connection.alias) or connection.in_atomic_block:
        return False
    # The bound is the package's own: what the code itself asks of a replica may wait for long.
    return is_of_lock(error) and lift_lock_wait(connection)


def _was_cancelled_at_once(error: Exception, connection: BaseDatabaseWrapper, began: float) -> bool:
    """Tell whether a recovery conflict has ended a statement that had only just begun.

    The connection stands, so the same server answers the next time, which has replayed no less than
    when it was chosen: the reader need not see on the primary what no replica has. (A pooler may
    lead it elsewhere; that is found out after every statement.)

    Args:
        error: what the statement has raised.
        connection: Django's connection to the replica.
        began: moment before the statement was sent.
    """
    if connection.in_atomic_block or not connection.autocommit:
        return False
    if not is_recovery_conflict(error, connection.connection):
        return False
    return time.monotonic() - began <= _BRIEF


def _can_move(connection: BaseDatabaseWrapper, primary: str) -> bool:
    """Tell whether what only the primary can do may be run there in place of this connection.

    Not where the code itself has named the replica, nor in a transaction that has already read here: the
    caller wants both at one place. A transaction in which nothing has run yet moves as a whole.
    """
    if not was_sent(primary, connection.alias) or not is_standby(connection):
        return False
    if not connection.in_atomic_block:
        return True
    if connection.connection.info.transaction_status.name != "IDLE":
        return False
    bind_transaction(connection, primary)
    return True


def _guard_opening(connection: BaseDatabaseWrapper) -> None:
    """Have the primary serve where a connection was closed and cannot be opened anew.

    Django opens it for the cursor, before any wrapper of the statement runs.
    """
    open_cursor = connection._cursor  # type: ignore[attr-defined]

    def open_cursor_somewhere(name: str | None = None) -> Any:
        try:
            return open_cursor(name)
        except Exception as error:
            primary = _primary_behind(connection)
            if primary is None:
                raise
            leave(connection.alias, primary, connection, ReplicaState.UNREACHABLE, str(error))
        count("retried_replica_fault")
        note_shown(primary)
        return open_on_primary(primary, server_side=name is not None)

    connection._cursor = open_cursor_somewhere  # type: ignore[attr-defined]


def _watch_health_check(connection: BaseDatabaseWrapper) -> None:
    """Have the waiting ended where a replica hangs when Django asks whether it still answers.

    That is a statement past all wrappers, at the first use of a connection in a request, or at its
    end (``CONN_HEALTH_CHECKS``, and wherever an error has occurred).
    """
    ask = connection.is_usable

    def is_usable() -> bool:
        if not get_config().topology.is_replica(connection.alias):
            return ask()
        with in_flight.waiting(connection.alias, connection.connection):
            return ask()

    connection.is_usable = is_usable  # type: ignore[method-assign]


def _primary_behind(connection: BaseDatabaseWrapper) -> str | None:
    """Return the primary that may serve where a connection to a replica cannot be opened.

    Or has broken where Django has not noticed, as between two rows that it fetched. None where it
    stands, and where it is not the package that has sent the reader there.
    """
    alias, topology = connection.alias, get_config().topology
    primary = topology.primary_of.get(alias)
    stands = not getattr(connection.connection, "closed", True)
    if primary is None or stands or connection.in_atomic_block:
        return None
    return primary if topology.is_replica(alias) and was_sent(primary, alias) else None


def observe(connection: BaseDatabaseWrapper) -> None:
    """Put an observer around the statements of a connection, once.

    At the front of the list: ``connection.execute_wrapper()`` takes the last one off when its
    block ends, and must find its own there. The front is also the outside, so that what another
    wrapper raises is seen.
    """
    if connection.vendor != "postgresql":
        return
    if not any(isinstance(wrapper, StatementObserver) for wrapper in connection.execute_wrappers):
        connection.execute_wrappers.insert(0, StatementObserver(connection.alias))
        watch_transactions(connection)
        watch_cursors(connection)
        lead_queries(connection)
        _guard_opening(connection)
        _watch_health_check(connection)


def observe_open_connections() -> None:
    """Put observers around the connections that were made before the app was ready."""
    for connection in connections.all(initialized_only=True):
        observe(connection)


def observe_new_connections() -> None:
    """Put an observer around each connection as Django makes it, and prepares a query, or opens it."""
    create = connections.create_connection

    def create_observed(alias: str) -> Any:
        connection = create(str(alias))  # a routed alias would stay in ``connection.alias``
        observe(connection)
        return connection

    connections.create_connection = create_observed  # type: ignore[method-assign]
