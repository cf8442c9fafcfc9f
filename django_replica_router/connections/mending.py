"""Statements that a replica cannot serve: which may be run on the primary, and doing so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.connections.rerouting import (
    has_waited_for_replay,
    is_of_this_server,
    is_refused_write,
    is_replica_fault,
    run_on_primary,
)
from django_replica_router.policy import ReplicaState
from django_replica_router.recording.writes import mark_written, note_shown
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.replicas.sights import is_elsewhere, life_behind
from django_replica_router.scopes.scope import current_scope, get_frame
from django_replica_router.sql import states
from django_replica_router.stats import count
from django_replica_router.values.servers import Life
from django_replica_router.values.statements import OF_SESSION, kind_of

REFUSED_WRITE = "retried_refused_write"
REPLICA_FAULT = "retried_replica_fault"

MET_ANOTHER = "Promoted, started anew, or another server."

_NONE_CHOSEN: Mapping[str, Life | None] = {}


def chosen_lives(primary: str) -> Mapping[str, Life | None]:
    """Return, for each replica that the package has chosen in this scope, which server in which life."""
    scope = get_frame().scope  # current_scope(), without a call for every statement
    state = None if scope is None else scope.clusters.get(primary)
    return _NONE_CHOSEN if state is None else state.route.lives


def was_sent(primary: str, alias: str) -> bool:
    """Tell whether it is the package that has sent the reader to that replica."""
    return alias in chosen_lives(primary)


def show_primary(primary: str, cursor: Any, sql: Any, params: Any, many: bool) -> Any:
    """Run on the primary what a replica was to answer, and remember that its reader has seen it."""
    result = run_on_primary(primary, cursor, sql, params, many)
    note_shown(primary)
    return result


def find_remedy(
    primary: str, alias: str, connection: BaseDatabaseWrapper, error: Exception, sql: Any = ""
) -> str | None:
    """Return the event to count where the statement may be run on the primary, or None.

    A replica that is to blame is left. Nothing is run again where the code itself has named the replica:
    what it asks there, a report that takes an hour perhaps, is no work for the primary, and what it
    writes there was not meant for it. Nor where the statement means something in its own session only:
    a ``BEGIN`` that is run on the primary stays open there, and nobody knows of it.
    """
    if not was_sent(primary, alias):
        return None
    if get_frame().query and is_refused_write(error):
        return None  # it has no business on the primary either
    remedy = _find_remedy(primary, alias, connection, error)
    return None if kind_of(sql) in OF_SESSION else remedy


def _find_remedy(
    primary: str, alias: str, connection: BaseDatabaseWrapper, error: Exception
) -> str | None:
    raw = connection.connection
    if is_refused_write(error):
        return REFUSED_WRITE
    if is_replica_fault(error, raw):
        leave(alias, primary, connection, ReplicaState.UNREACHABLE, str(error))
        return REPLICA_FAULT
    can_be_asked = raw is None or not states.has_failed(raw)
    if can_be_asked and is_elsewhere(connection, chosen_lives(primary).get(alias)):
        # What is wrong with a statement is for the right server to say: there the table may exist.
        leave(alias, primary, connection, ReplicaState.UNKNOWN, MET_ANOTHER)
        return REPLICA_FAULT
    if has_waited_for_replay(error, raw):
        leave_for_now(primary)
        return "retried_replayed_lock"
    return "retried_unsupported" if is_of_this_server(error) else None


def note_mended(primary: str, remedy: str) -> None:
    """Count what was run on the primary, and remember a write."""
    count(remedy)
    if remedy == REFUSED_WRITE:
        # A standby knows better than any reading of the text.
        mark_written(primary)


def leave(
    alias: str, primary: str, connection: BaseDatabaseWrapper, state: ReplicaState, detail: str
) -> None:
    """Have this scope, and while it is ill this process, do without the replica."""
    is_conflict = state is ReplicaState.UNREACHABLE and not getattr(
        connection.connection, "closed", True
    )
    monitor = find_monitor(primary)
    if not is_conflict:  # a recovery conflict ends one statement, and says nothing of the next
        life = life_behind(connection)
        connection.close()
        is_another = state is ReplicaState.UNKNOWN
        if monitor is not None and is_another and life is not None:
            monitor.is_same_server(alias, life)  # which looks for it where it is not
        if monitor is not None and not (is_another and alias in monitor.servers.endpoints):
            monitor.report(alias, detail, state, life)
    leave_for_now(primary)


def leave_for_now(primary: str) -> None:
    """Have what is left of this scope read from the primary."""
    scope = current_scope()
    if scope is not None:
        scope.cluster(primary).leave_replica()
