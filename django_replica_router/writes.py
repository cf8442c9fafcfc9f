"""Writes: noticed in a scope, located in the WAL at its end, and stored for its user."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections

from django_replica_router import postgres, signals
from django_replica_router.balancers import least_in_flight
from django_replica_router.conf import Config, get_config
from django_replica_router.context import ClusterScope, Scope, WriteMark, current_scope
from django_replica_router.errors import ConfigurationError, StoreError
from django_replica_router.floors import expiry_ms, load_floor, store_key
from django_replica_router.stores import get_store
from django_replica_router.tokens import NOWHERE, Position, Record

logger = logging.getLogger("django_replica_router")


def note_write(using: str | None = None) -> None:
    """Tell that the code has written by a way that Django does not show, such as ``copy()``.

    Call it after the write, or inside the transaction that it belongs to.

    Args:
        using: alias of the database that was written to; the default database when None.

    Raises:
        ConfigurationError: the alias is a replica.
    """
    alias = DEFAULT_DB_ALIAS if using is None else using
    topology = get_config().topology
    if topology.is_replica(alias):
        message = f"{alias!r} is a replica: pass the alias of the primary that was written to."
        raise ConfigurationError(message)
    if alias in topology.clusters:
        mark_written(alias)


def mark_written(primary: str, *, uncertain: bool = False) -> None:
    """Mark the present scope as having written to that primary, on this thread's connection."""
    scope = current_scope()
    if scope is None:
        return
    connection = connections[primary]
    transactions = [connection.connection] if connection.in_atomic_block else []
    scope.cluster(primary).add_write(WriteMark(transactions, uncertain))


def locate(primary: str, mark: WriteMark) -> Position | None:
    """Return a position at or behind the writes, or None where there is no way to be sure."""
    if mark.uncertain or any(getattr(raw, "closed", True) for raw in mark.transactions):
        # Lost before or during COMMIT: the server may commit it yet.
        return None
    connection = connections[primary]
    if connection.in_atomic_block:
        return None  # the scope lies inside a transaction, which ends after it
    try:
        connection.ensure_connection()
        raw = connection.connection
        # The driver's own connection, so that the query is in no log and no assertNumQueries.
        if isinstance(raw, psycopg.Connection):
            return postgres.read_token(raw)
    except Exception as error:  # whatever fails here, the user is pinned instead
        _report_unrecorded(primary, error)
    return None


def _report_unrecorded(primary: str, error: Exception) -> None:
    logger.warning("A write to %r has no token: %s", primary, error)
    signals.write_unrecorded.send_robust(sender=primary, error=error)


def finish_scope(scope: Scope, sent_sessions: tuple[str, ...] = ()) -> None:
    """Store what the scope's user must see from now on. Never raises.

    May be called again: what was stored is not stored twice.

    Args:
        scope: the scope that ends, or whose response is about to leave.
        sent_sessions: keys of the session that the response hands out.
    """
    config = get_config()
    for primary, state in list(scope.clusters.items()):
        try:
            _finish_cluster(primary, scope, state, config, sent_sessions)
        except Exception as error:  # the response is ready, and must leave
            _report_unrecorded(primary, error)


def needs_finish(scope: Scope, sent_sessions: tuple[str, ...] = ()) -> bool:
    """Tell whether ``finish_scope`` has anything to do, without doing any I/O."""
    return any(
        state.pending is not None or _sessions_to_remember(scope, state, sent_sessions)
        for state in scope.clusters.values()
    )


def release_scope(scope: Scope) -> None:
    """Give back what the scope holds."""
    for state in scope.clusters.values():
        while state.entered:
            least_in_flight.leave(state.entered.pop())


def _sessions_to_remember(
    scope: Scope, state: ClusterScope, sent_sessions: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the sessions whose record does not exist yet, or names another user.

    Only sessions that turned out to be real: a made-up cookie leaves nothing in the cache.
    """
    if state.store_failed or (state.floor is None and not sent_sessions):
        return ()
    owner = _owner(scope)
    if not owner and not scope.identity.has_session_data():
        return ()
    known = tuple(
        session
        for session, record in state.sessions.items()
        if record is None or (owner and record.owner != owner)
    )
    return known + tuple(session for session in sent_sessions if session not in state.sessions)


def _owner(scope: Scope) -> str:
    users = scope.identity.users()
    return users[-1] if users else ""


def _finish_cluster(
    primary: str,
    scope: Scope,
    state: ClusterScope,
    config: Config,
    sent_sessions: tuple[str, ...],
) -> None:
    pending, state.pending = state.pending, None
    if pending is None:
        sessions = _sessions_to_remember(scope, state, sent_sessions)
        if sessions:
            # A new cookie for the same reader must bind as much as the one before.
            floor = load_floor(primary, scope, config)
            record = _record(None if floor.pinned else floor.position, config)
            _store(primary, scope, state, config, record, sessions, ())
        return
    position = locate(primary, pending)
    users = _writers(primary, scope, state, config, pending)
    record = _record(position, config)
    sessions = (*scope.identity.sessions(), *sent_sessions)
    _store(primary, scope, state, config, record, sessions, users)


def _record(position: Position | None, config: Config) -> Record:
    """Return the record of a position, or of a write without one: a pin to the primary."""
    until_ms = expiry_ms(config)
    if position is None:
        return Record(pinned_until_ms=until_ms)
    return Record(position, until_ms if position != NOWHERE else 0)


def _writers(
    primary: str, scope: Scope, state: ClusterScope, config: Config, pending: WriteMark
) -> tuple[str, ...]:
    """Return the keys of the users for whom the scope has written."""
    scope.identity.look_again()
    users = set(scope.identity.users())
    if not users and scope.identity.sessions():
        # Nobody has asked who is signed in. The session's record may tell; else its row does.
        try:
            load_floor(primary, scope, config)
        except StoreError:
            state.store_failed = True
        users |= {record.owner for record in state.sessions.values() if record and record.owner}
        if not users and not connections[primary].in_atomic_block:
            scope.identity.load_user()
            users |= set(scope.identity.users())
    return tuple(users)


def _store(
    primary: str,
    scope: Scope,
    state: ClusterScope,
    config: Config,
    record: Record,
    sessions: Iterable[str],
    users: Iterable[str],
) -> None:
    owner = _owner(scope)
    is_real = bool(owner) or scope.identity.has_session_data()
    records: dict[str, Record] = {}
    lives: dict[str, float] = {}
    for session in sessions:
        key = store_key(primary, session)
        records[key] = record._replace(owner=owner)
        lives[key] = max(config.TOKEN_TTL, config.SESSION_TTL if is_real else 0)
        state.sessions[session] = records[key]
    for user in users:
        key = store_key(primary, user)
        records[key] = record
        lives[key] = config.TOKEN_TTL
    if records:
        get_store(config.CACHE).merge(records, lives)
