"""What runs around every statement on a connection of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.conf import get_config
from django_replica_router.connecting import (
    Life,
    is_elsewhere,
    is_pooled,
    is_standby,
    was_elsewhere,
)
from django_replica_router.context import current_frame, current_scope
from django_replica_router.cursors import watch_cursors
from django_replica_router.inflight import in_flight
from django_replica_router.policy import ReplicaState
from django_replica_router.postgres import ask_along, can_ask_along, has_failed, is_unanswered
from django_replica_router.registry import find_monitor
from django_replica_router.rerouting import (
    bind_transaction,
    is_bound,
    is_recovery_conflict,
    is_refused_write,
    is_replica_fault,
    is_server_side,
    is_unsupported,
    open_on_primary,
    run_on_primary,
    watch_fetches,
)
from django_replica_router.statements import (
    is_query,
    is_write_command,
    might_commit,
    might_commit_part,
    might_write,
)
from django_replica_router.stats import count
from django_replica_router.transactions import watch_transactions
from django_replica_router.writes import mark_written

Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]

_BRIEF = 0.05
"""Seconds within which a statement has only just begun. One that takes longer, and is in the way of
what is replayed, would be in the way of more the next time."""


_MET_ANOTHER = "Promoted, started anew, or another server."

_NONE_CHOSEN: Mapping[str, Life | None] = {}


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
            return _on_primary(primary, execute, sql, params, many, context)
        return _on_replica(primary, self.alias, execute, sql, params, many, context)


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
        mark_written(primary)
    if not connection.autocommit and might_commit(sql):
        state.was_committed_by_hand(connection.connection)
    return result


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
        return _show_primary(primary, cursor, sql, params, many)
    if is_write_command(sql) and is_standby(connection) and _can_leave(connection, primary):
        return _show_primary(primary, cursor, sql, params, many)
    is_free = not connection.in_atomic_block
    asks_along = is_free and not many and _can_ask_along(connection, cursor, sql)
    sent = ask_along(sql) if asks_along else sql
    number = in_flight.enter(alias, connection.connection)
    try:
        try:
            result = execute(sent, params, many, context)
        except Exception as error:
            if not _was_cancelled_at_once(error, connection, in_flight.began(number)):
                raise
            count("repeated_after_conflict")
            result = execute(sent, params, many, context)
    except Exception as error:
        if connection.in_atomic_block or not _is_mendable(primary, alias, connection, error):
            raise
        raw = connection.connection
        if raw is not None and has_failed(raw):
            connection.rollback()  # autocommit is off: else nothing would run there any more
        result = _show_primary(primary, cursor, sql, params, many)
        count(_retry_of(error))
        if is_refused_write(error):
            # A standby knows better than any reading of the text.
            mark_written(primary)
        return result
    finally:
        in_flight.leave(number)
    if is_free:
        life = _chosen_lives(primary).get(alias)
        if was_elsewhere(cursor.cursor, life) if asks_along else is_elsewhere(connection, life):
            _leave(alias, primary, connection, ReplicaState.UNKNOWN, _MET_ANOTHER)
            count("retried_elsewhere")
            return _show_primary(primary, cursor, sql, params, many)
    if is_server_side(cursor):

        def is_mendable(error: Exception) -> bool:
            return _is_mendable(primary, alias, connection, error)

        def run_elsewhere() -> None:
            count("retried_first_fetch")
            _show_primary(primary, cursor, sql, params, many)

        watch_fetches(cursor, alias, is_mendable if is_free else None, run_elsewhere)
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


def _retry_of(error: Exception) -> str:
    if is_refused_write(error):
        return "retried_refused_write"
    return "retried_unsupported" if is_unsupported(error) else "retried_replica_fault"


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


def _show_primary(primary: str, cursor: Any, sql: Any, params: Any, many: bool) -> Any:
    """Run on the primary what a replica was to answer, and remember that its reader has seen it."""
    result = run_on_primary(primary, cursor, sql, params, many)
    _note_shown(primary)
    return result


def _note_shown(primary: str) -> None:
    """Remember that the reader sees on the primary what must not be missing the next time."""
    scope = current_scope()
    if scope is not None and get_config().MONOTONIC_READS:
        scope.cluster(primary).seen_on = primary


def _is_mendable(
    primary: str, alias: str, connection: BaseDatabaseWrapper, error: Exception
) -> bool:
    """Tell whether the statement may be run again elsewhere; leave a replica that is to blame.

    Not where the code itself has named the replica: what it asks there, a report that takes an hour
    perhaps, is no work for the primary.
    """
    if is_refused_write(error):
        return True
    if not _was_sent(primary, alias):
        return False
    if is_replica_fault(error, connection.connection):
        _leave(alias, primary, connection, ReplicaState.UNREACHABLE, str(error))
        return True
    raw = connection.connection
    can_be_asked = raw is None or not has_failed(raw)
    if can_be_asked and is_elsewhere(connection, _chosen_lives(primary).get(alias)):
        # What is wrong with a statement is for the right server to say: there the table may exist.
        _leave(alias, primary, connection, ReplicaState.UNKNOWN, _MET_ANOTHER)
        return True
    return is_unsupported(error)


def _chosen_lives(primary: str) -> Mapping[str, Life | None]:
    """Return, for each replica that the package has chosen in this scope, which server in which life."""
    scope = current_frame.get().scope  # current_scope(), without a call for every statement
    state = None if scope is None else scope.clusters.get(primary)
    return _NONE_CHOSEN if state is None else state.lives


def _was_sent(primary: str, alias: str) -> bool:
    """Tell whether it is the package that has sent the reader to that replica."""
    return alias in _chosen_lives(primary)


def _can_leave(connection: BaseDatabaseWrapper, primary: str) -> bool:
    """Tell whether a write may be run on the primary in place of this connection.

    Not in a transaction that has already read here: the caller wants both at one place. A
    transaction in which nothing has run yet moves as a whole.
    """
    if not connection.in_atomic_block:
        return True
    if connection.connection.info.transaction_status.name != "IDLE":
        return False
    bind_transaction(connection, primary)
    return True


def _leave(
    alias: str, primary: str, connection: BaseDatabaseWrapper, state: ReplicaState, detail: str
) -> None:
    """Have this scope, and while it is ill this process, do without the replica."""
    is_conflict = state is ReplicaState.UNREACHABLE and not getattr(
        connection.connection, "closed", True
    )
    monitor = find_monitor(primary)
    if not is_conflict:  # a recovery conflict ends one statement, and says nothing of the next
        connection.close()
        if monitor is not None:
            monitor.report(alias, detail, state)
    scope = current_scope()
    if scope is not None:
        scope.cluster(primary).leave_replica()


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
            _leave(connection.alias, primary, connection, ReplicaState.UNREACHABLE, str(error))
        count("retried_replica_fault")
        _note_shown(primary)
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
    return primary if topology.is_replica(alias) and _was_sent(primary, alias) else None


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
        _guard_opening(connection)
        _watch_health_check(connection)


def observe_open_connections() -> None:
    """Put observers around the connections that were opened before the app was ready."""
    for connection in connections.all(initialized_only=True):
        observe(connection)
