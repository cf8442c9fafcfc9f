"""Writes and what was seen: noticed in a scope, and located in the WAL."""

from __future__ import annotations

import math
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections

from django_replica_router import signals
from django_replica_router.conf import Config, get_config
from django_replica_router.errors import ConfigurationError, PositionError
from django_replica_router.logs import fields, logger
from django_replica_router.recording.floors import forget_everybody
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.replicas.sights import waiting_key
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.keys import EVERYBODY, store_key
from django_replica_router.scopes.scope import current_scope, get_frame
from django_replica_router.scopes.written import Checkpoint, WriteMark
from django_replica_router.sql import standby, wal
from django_replica_router.stores.store import get_store
from django_replica_router.transactions.blocks import end_idling, keeps_reads
from django_replica_router.values.statements import reads_rows
from django_replica_router.values.tokens import Position, Record

# The record for everybody binds as long as it is there. It may vanish: it is made anew then.
_EVERYBODY_LIFE = 30 * 24 * 60 * 60.0
_FOR_EVER_MS = (1 << 48) - 1


def note_write(using: str | None = None) -> None:
    """Tell that the code has written by a way that is not noticed, such as the driver's own connection.

    Call it after the write, or inside the transaction that it belongs to.

    Args:
        using: alias of the database that was written to; the default database when None.

    Raises:
        ConfigurationError: the alias is a replica.
    """
    alias = DEFAULT_DB_ALIAS if using is None else using
    config = get_config()
    topology = config.topology
    if topology.is_replica(alias):
        message = f"{alias!r} is a replica: pass the alias of the primary that was written to."
        raise ConfigurationError(message)
    if config.ENABLED and alias in topology.clusters:
        mark_written(alias, past=True)


def mark_written(
    primary: str, *, uncertain: bool = False, past: bool = False, changed: bool = False
) -> None:
    """Mark the present scope as having written to that primary, on this thread's connection.

    Not in a block ``ignore_writes``.

    Args:
        primary: alias of the primary.
        uncertain: it is not known whether the write was, or will be, committed.
        past: it may have been made past the transaction that is open on the connection.
        changed: it has changed rows.
    """
    frame = get_frame()
    connection = connections[primary]
    if frame.ignores:
        note_ignored(connection)
        return
    end_idling(connection)
    if frame.scope is None:
        return
    raw = connection.connection
    is_later = _is_in_transaction(connection)
    frame.scope.cluster(primary).add_write(
        WriteMark(
            transactions=[raw] if is_later else [],
            uncertain=uncertain,
            noted=[raw] if is_later and past else [],
            changed=[raw] if is_later and changed else [],
        )
    )


def _is_in_transaction(connection: Any) -> bool:
    # In a block that has needed no connection yet, there is none.
    return connection.connection is not None and (
        connection.in_atomic_block or not connection.autocommit
    )


def note_ignored(connection: Any) -> None:
    """Remember for the end of a transaction that its number may come from writes that bind nobody."""
    if _is_in_transaction(connection):
        connection.ignored_on = connection.connection


def note_shown(primary: str) -> None:
    """Remember that the reader sees on the primary what must not be missing the next time."""
    scope = current_scope()
    if scope is not None and get_config().MONOTONIC_READS:
        scope.cluster(primary).seen_elsewhere_on = primary


def leave_unseen(connection: Any, model: Any) -> None:
    """Have the next statement of a primary's connection not remembered, where it is of that model's table."""
    connection.unseen_table = getattr(getattr(model, "_meta", None), "db_table", None)


def note_read(primary: str, state: ClusterScope, connection: Any, sql: Any) -> None:
    """Remember what a statement has shown that nobody has asked the router for.

    A cursor of the primary's connection, ``using("default")``, or the alias of an object that was read there.
    What the router has sent there is remembered already, or is not to be.
    """
    table, connection.unseen_table = connection.unseen_table, None
    if state.seen_elsewhere_on == primary or not reads_rows(sql) or (table and table in str(sql)):
        return
    config = get_config()
    if config.MONOTONIC_READS and not (config.SHADOW or state.reader.is_shadowed):
        state.seen_elsewhere_on = primary


def find_state(alias: str) -> ClusterScope | None:
    """Return what the present scope knows of that primary; None outside, or for a replica."""
    scope = current_scope()
    if scope is None:
        return None
    config = get_config()
    if not config.ENABLED or config.topology.primary_of.get(alias, "") != alias:
        return None
    return scope.cluster(alias)


def note_transaction_end(
    alias: str,
    state: ClusterScope,
    raw: Any,
    checkpoint: Checkpoint | None = None,
    *,
    wrote: bool | None,
) -> None:
    """Take into account how a transaction on a primary has ended.

    Args:
        alias: alias of the primary.
        state: what the scope knows of it.
        raw: the driver's connection.
        checkpoint: the position that came with the answer.
        wrote: whether something was written and committed, or None where that is not known.
    """
    if state.end_transaction(raw, checkpoint, wrote=wrote) and get_config().MONOTONIC_READS:
        # That an update has matched nothing tells what the rows are like by now.
        state.seen_elsewhere_on = alias


def note_change(alias: str, state: ClusterScope, checkpoint: Checkpoint, *, wrote: bool) -> None:
    """Take into account a change outside a transaction that has come with its position.

    Args:
        alias: alias of the primary.
        state: what the scope knows of it.
        checkpoint: of the position.
        wrote: whether it has written something.
    """
    state.note_change(checkpoint, wrote=wrote)
    if not wrote and get_config().MONOTONIC_READS:
        state.seen_elsewhere_on = alias  # as above


def known_position(
    primary: str,
    state: ClusterScope,
    pending: WriteMark,
    seen_elsewhere_on: str | None,
    config: Config,
) -> Position | None:
    """Return the position that came with the last commit, where nothing lies behind it.

    Else ``locate`` finds one by a query.

    Args:
        primary: alias of the primary.
        state: what the scope knows of it.
        pending: the writes.
        seen_elsewhere_on: the server on which the scope has seen something that must not be missing later.
        config: the settings.
    """
    checkpoint = state.checkpoint
    if checkpoint is None or pending.transactions or pending.uncertain:
        return None
    if keeps_reads(connections[primary]) or checkpoint.moment.write is not state.last_write:
        return None
    if config.MONOTONIC_READS and (
        # A later statement may have shown what somebody else has committed since.
        checkpoint.moment.statement is not state.last_statement
        or seen_elsewhere_on not in {None, primary}
    ):
        return None
    return checkpoint.position


def locate(primary: str, mark: WriteMark) -> Position | None:
    """Return a position at or behind the writes, or None where there is no way to be sure."""
    if mark.uncertain or any(getattr(raw, "closed", True) for raw in mark.transactions):
        # Lost before or during COMMIT: the server may commit it yet.
        return None
    connection = connections[primary]
    if keeps_reads(connection):
        return None  # the scope lies inside a transaction, which ends after it
    try:
        _replace_lost(primary, connection)
        connection.ensure_connection()
        raw = connection.connection
        # The driver's own connection, so that the query is in no log and no assertNumQueries.
        if isinstance(raw, psycopg.Connection):
            return wal.read_token(raw, in_transaction=connection.in_atomic_block)
    except Exception as error:  # whatever fails here, the user is pinned instead
        report_unrecorded(primary, error)
    return None


def _replace_lost(primary: str, connection: Any) -> None:
    """Have a connection that was lost replaced now, and not by Django when the request is over.

    Whatever was acknowledged or shown over it, and has survived, lies before what the next one tells.
    Not where the primary is known to be down: it would be waited for.
    """
    monitor = find_monitor(primary)
    is_lost = getattr(connection.connection, "closed", False) and not connection.in_atomic_block
    if is_lost and (monitor is None or not monitor.known.primary_is_down):
        connection.close()


def report_unrecorded(primary: str, error: Exception) -> None:
    logger.warning(
        "A write to %r has no token: %s",
        primary,
        error,
        extra=fields("write_unrecorded", error, primary=primary),
    )
    signals.write_unrecorded.send_robust(sender=primary, error=error)


def locate_seen(primary: str, alias: str, state: ClusterScope | None = None) -> Position | None:
    """Return a position at or behind everything that can have been seen on a server by now.

    Args:
        primary: alias of the primary.
        alias: of the server.
        state: what the scope knows of the cluster, which tells the server of several.
    """
    if alias == primary:
        return locate(primary, WriteMark())
    monitor = find_monitor(primary)
    timeline = None if monitor is None else monitor.history.timeline
    life, shown = None, -1.0
    if state is not None:
        life, shown = state.route.lives.get(alias), max(state.route.shown.values(), default=-1.0)
    if timeline is not None and 0 <= shown < math.inf:
        return Position(timeline, int(shown))
    try:
        raw = connections[alias].connection
        if timeline is not None and isinstance(raw, psycopg.Connection):
            with in_flight.waiting(waiting_key(connections[alias], alias), raw):
                answer = standby.ask_replica(raw)
            is_same = life in (None, answer.life) and shown < 0
            if is_same and answer.in_recovery and answer.replayed is not None:
                return Position(timeline, answer.replayed)
    except Exception as error:  # whatever has become of the replica, the primary knows an answer
        logger.info(
            "Replica %r does not tell what was seen on it: %s",
            alias,
            error,
            extra=fields("seen_untold", error, alias=alias),
        )
        connections[alias].close()
    return locate(primary, WriteMark())


def store_for_everybody(primary: str, config: Config, position: Position | None) -> None:
    """Make a position of the primary a floor for every reader.

    Args:
        primary: alias of the primary.
        config: the settings.
        position: the position, or None for the present one.

    Raises:
        StoreError: the store cannot be written.
        PositionError: the primary does not tell its position.
    """
    if position is None:
        position = locate(primary, WriteMark())
    if position is None:
        message = f"{primary!r} does not tell its position in the WAL."
        raise PositionError(message)
    store = get_store(config.CACHE)
    key = store_key(primary, EVERYBODY, store.life())
    store.merge({key: Record(position, _FOR_EVER_MS)}, {key: _EVERYBODY_LIFE})
    forget_everybody()
