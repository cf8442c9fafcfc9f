"""Writes: noticed in a scope, located in the WAL at its end, and stored for its user."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections

from django_replica_router import postgres, signals
from django_replica_router.balancers import least_in_flight
from django_replica_router.conf import Config, get_config
from django_replica_router.context import Checkpoint, ClusterScope, Scope, WriteMark, current_scope
from django_replica_router.errors import ConfigurationError, PositionError, StoreError
from django_replica_router.floors import expiry_ms, forget_everybody, known_owners, load_floor
from django_replica_router.inflight import in_flight
from django_replica_router.keys import EVERYBODY, store_key
from django_replica_router.registry import find_monitor, get_monitor
from django_replica_router.stats import count
from django_replica_router.stores import get_store
from django_replica_router.tokens import Position, Record

logger = logging.getLogger("django_replica_router")

# The record for everybody binds as long as it is there. It may vanish: it is made anew then.
_EVERYBODY_LIFE = 30 * 24 * 60 * 60.0
_FOR_EVER_MS = (1 << 48) - 1

# How many seconds a response waits for all replicas where its token cannot be stored.
_HOLD = 2.0


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

    Args:
        primary: alias of the primary.
        uncertain: it is not known whether the write was, or will be, committed.
        past: it may have been made past the transaction that is open on the connection.
        changed: it has changed rows.
    """
    scope = current_scope()
    if scope is None:
        return
    connection = connections[primary]
    raw = connection.connection
    is_later = connection.in_atomic_block or (raw is not None and not connection.autocommit)
    scope.cluster(primary).add_write(
        WriteMark(
            transactions=[raw] if is_later else [],
            uncertain=uncertain,
            noted=[raw] if is_later and past else [],
            changed=[raw] if is_later and changed else [],
        )
    )


def note_shown(primary: str) -> None:
    """Remember that the reader sees on the primary what must not be missing the next time."""
    scope = current_scope()
    if scope is not None and get_config().MONOTONIC_READS:
        scope.cluster(primary).seen_on = primary


def find_state(alias: str) -> ClusterScope | None:
    """Return what the present scope knows of that primary; None outside, or for a replica."""
    scope = current_scope()
    if scope is None:
        return None
    config = get_config()
    if not config.ENABLED or config.topology.primary_of.get(alias) != alias:
        return None
    return scope.cluster(alias)


def note_end(
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
    if state.settle(raw, checkpoint, wrote=wrote) and get_config().MONOTONIC_READS:
        # That an update has matched nothing tells what the rows are like by now.
        state.seen_on = alias


def locate_written(
    primary: str, state: ClusterScope, pending: WriteMark, seen_on: str | None, config: Config
) -> Position | None:
    """Return a position at or behind the writes and what was seen, with no query where one is known.

    Args:
        primary: alias of the primary.
        state: what the scope knows of it.
        pending: the writes.
        seen_on: the server on which the scope has seen something that must not be missing later.
        config: the settings.
    """
    return _known(primary, state, pending, seen_on, config) or locate(primary, pending)


def _known(
    primary: str, state: ClusterScope, pending: WriteMark, seen_on: str | None, config: Config
) -> Position | None:
    """Return the position that came with the last COMMIT, where nothing lies behind it."""
    checkpoint = state.checkpoint
    if checkpoint is None or pending.transactions or pending.uncertain:
        return None
    if connections[primary].in_atomic_block or checkpoint.moment.write is not state.last_write:
        return None
    if config.MONOTONIC_READS and (
        # A later statement may have shown what somebody else has committed since.
        checkpoint.moment.statement is not state.last_statement or seen_on not in {None, primary}
    ):
        return None
    return checkpoint.position


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


def finish_scope(scope: Scope, sent_session: str | None = None) -> None:
    """Store what the scope's reader must see from now on. Never raises.

    May be called again: what was stored is not stored twice.

    Args:
        scope: the scope that ends, or whose response is about to leave.
        sent_session: key of a new session cookie that the response hands out.
    """
    config = get_config()
    # What is read from now on counts anew: it has been seen after what is stored now.
    scope.shortcuts.clear()
    _look(scope, sent_session)
    for primary in _untouched(scope, sent_session):
        try:
            _hand_on(primary, scope, config, sent_session)
        except Exception as error:  # as below
            _report_unrecorded(primary, error)
    for primary, state in list(scope.clusters.items()):
        try:
            _finish_cluster(primary, scope, state, config, sent_session)
        except Exception as error:  # the response is ready, and must leave
            _report_unrecorded(primary, error)


def needs_finish(scope: Scope, sent_session: str | None = None) -> bool:
    """Tell whether ``finish_scope`` has anything to do, without doing any I/O."""
    _look(scope, sent_session)
    return bool(_untouched(scope, sent_session)) or any(
        state.has_pending
        or state.seen_on is not None
        or state.met_at is not None
        or _links(scope, state, sent_session)
        for state in list(scope.clusters.values())
    )


def unsent_records(scope: Scope, config: Config) -> dict[str, Record]:
    """Return what the response's cookie should carry, by primary."""
    return {
        primary: state.recorded
        for primary, state in list(scope.clusters.items())
        if state.recorded is not None and (config.COOKIE or state.is_unstored)
    }


def release_scope(scope: Scope) -> None:
    """Give back what the scope holds."""
    for state in list(scope.clusters.values()):
        while state.entered:
            least_in_flight.leave(state.entered.pop())


def _look(scope: Scope, sent_session: str | None) -> None:
    """Find out whom the scope works for. What the callable of ``IDENTITY`` raises costs no token."""
    if not scope.clusters and sent_session is None:
        return
    try:
        scope.identity.users()
    except Exception as error:  # it is not asked again
        logger.warning("IDENTITY does not tell whom a request is for: %s", error)


def _untouched(scope: Scope, sent_session: str | None) -> tuple[str, ...]:
    """Return the primaries of which nothing was asked in a scope that hands out a new session."""
    if sent_session is None or not (scope.identity.owner() or scope.identity.has_session_data()):
        return ()
    config = get_config()
    if not config.ENABLED:
        return ()
    return tuple(primary for primary in config.topology.clusters if primary not in scope.clusters)


def _hand_on(primary: str, scope: Scope, config: Config, sent_session: str | None) -> None:
    """Let a new session stand for what the old one did. The primary need not be asked for that.

    A session that is no row in the database, as one in a signed cookie or in a cache, changes its
    key where nothing is read or written.
    """
    state = scope.cluster(primary)
    try:
        load_floor(primary, scope, config)
        old = state.records.get(scope.identity.session() or "")
        if sent_session is not None and (old is not None or scope.identity.owner()):
            _store(primary, scope, state, config, old or Record(), [sent_session], ())
    except StoreError:
        # What the old one stood for is not known: the browser may carry that.
        state.store_failed = True
        state.recorded, state.is_unstored = Record(pinned_until_ms=expiry_ms(config)), True
        raise


def _links(scope: Scope, state: ClusterScope, sent_session: str | None) -> tuple[str, ...]:
    """Return the keys whose record must be written because it does not name the right user.

    Of the session only where it turned out to be real: a made-up cookie leaves nothing in the
    store. A credential is noted also where it stands for no user, as that of a whole test site.
    """
    if state.store_failed:
        return ()
    owner = scope.identity.owner()
    keys = []
    if owner or scope.identity.has_session_data():
        keys = [scope.identity.session(), sent_session]
    keys.append(scope.identity.credential())
    return tuple(
        key
        for key in keys
        if key and (key in state.records or key == sent_session) and _is_unlinked(state, key, owner)
    )


def _is_unlinked(state: ClusterScope, key: str, owner: str) -> bool:
    record = state.records.get(key)
    return record is None or (owner != "" and record.owner != owner)


def _finish_cluster(
    primary: str, scope: Scope, state: ClusterScope, config: Config, sent_session: str | None
) -> None:
    pending = state.take_pending()
    seen_on, state.seen_on = state.seen_on, None
    met_at, state.met_at = state.met_at, None
    if pending is not None:
        # Before the package itself reads who it is that has written.
        position = _known(primary, state, pending, seen_on, config)
        users = _writers(primary, scope, state, config)
        keys = _carried(scope, sent_session)
        if users or keys or config.COOKIE:
            state.recorded = _record(position or locate(primary, pending), config)
            _store_write(primary, scope, state, config, keys, users)
        return
    links = _links(scope, state, sent_session)
    if seen_on is None and met_at is None and not links:
        return
    if connections[primary].in_atomic_block:
        return  # the scope lies inside a transaction: what was seen may yet be undone
    users = {*scope.identity.users(), *known_owners(state)}
    if not users and not scope.identity.has_session_data():
        seen_on = None  # there is nobody to remember it for
    if seen_on is not None or sent_session in links:
        position = _known(primary, state, WriteMark(), seen_on, config)
        record = _record(position or locate_seen(primary, seen_on or primary), config)
        try:
            _store(primary, scope, state, config, record, _carried(scope, sent_session), users)
        except StoreError as error:
            # The browser may carry it.
            state.recorded, state.is_unstored = record, True
            _report_unrecorded(primary, error)
            if users:
                _hold(primary, config, record, config.MAX_LAG)
    elif met_at is not None or get_store(config.CACHE).may_forget():
        # It may take the place of one that was dropped, and must not say less.
        record = _record(met_at or locate(primary, WriteMark()), config)
        if links or users:
            _store(primary, scope, state, config, record, links, users)
    else:
        _store(primary, scope, state, config, Record(), links, ())


def _store_write(
    primary: str,
    scope: Scope,
    state: ClusterScope,
    config: Config,
    keys: tuple[str, ...],
    users: set[str],
) -> None:
    """Store the token of a write. Where the store refuses it, see to it that nobody needs it."""
    record = state.recorded
    if record is None:
        return
    try:
        _store(primary, scope, state, config, record, keys, users)
    except StoreError as error:
        state.is_unstored = True
        count("tokens_unstored")
        _report_unrecorded(primary, error)
        _hold(primary, config, record, math.inf)


def _hold(primary: str, config: Config, record: Record, max_lag: float) -> None:
    """Keep the response back until no replica in service lacks what the store has not learnt of.

    It may still answer those who read on another device, or answer them again before this process
    has found that out: once all replicas have that position, an old answer does no harm.

    Args:
        primary: alias of the primary.
        config: the settings.
        record: of the position.
        max_lag: seconds; a replica whose data is older is not waited for.
    """
    # A process that has only written so far has no monitor yet.
    monitor = get_monitor(primary, config.topology.replicas[primary], config.interval)
    monitor.wait_for_all(record.position.lsn, _HOLD, max_lag)


def _carried(scope: Scope, sent_session: str | None) -> tuple[str, ...]:
    """Return the keys of what the reader carries, and of what the response hands out."""
    keys = {scope.identity.session(), scope.identity.credential(), sent_session}
    return tuple(key for key in keys if key)


def _record(position: Position | None, config: Config) -> Record:
    """Return the record of a position, or of a write without one: a pin to the primary."""
    if position is None:
        count("writes_unlocated")
        return Record(pinned_until_ms=expiry_ms(config))
    return Record(position, expiry_ms(config))


def locate_seen(primary: str, alias: str) -> Position | None:
    """Return a position at or behind everything that can have been seen on a server by now."""
    if alias == primary:
        return locate(primary, WriteMark())
    monitor = find_monitor(primary)
    timeline = None if monitor is None else monitor.timeline
    try:
        raw = connections[alias].connection
        if timeline is not None and isinstance(raw, psycopg.Connection):
            with in_flight.waiting(alias, raw):
                answer = postgres.ask_replica(raw)
            if answer.in_recovery and answer.replayed is not None:
                return Position(timeline, answer.replayed)
    except Exception as error:  # whatever has become of the replica, the primary knows an answer
        logger.info("Replica %r does not tell what was seen on it: %s", alias, error)
        connections[alias].close()
    return locate(primary, WriteMark())


def _writers(primary: str, scope: Scope, state: ClusterScope, config: Config) -> set[str]:
    """Return the keys of the users for whom the scope has written."""
    scope.identity.look_again()
    users = set(scope.identity.users())
    if users or not (scope.identity.session() or scope.identity.credential()):
        return users
    # Nobody has asked who is signed in. The session's record may tell; else its row does.
    try:
        load_floor(primary, scope, config)
    except StoreError:
        state.store_failed = True
    users = set(known_owners(state))
    if not users and not connections[primary].in_atomic_block:
        try:
            scope.identity.load_user()
        except Exception as error:  # what the request carries must be remembered all the same
            logger.warning("Nobody tells who has written to %r: %s", primary, error)
        users = set(scope.identity.users())
    return users


def _store(
    primary: str,
    scope: Scope,
    state: ClusterScope,
    config: Config,
    record: Record,
    sessions: Iterable[str],
    users: Iterable[str],
) -> None:
    store = get_store(config.CACHE)
    owner = scope.identity.owner()
    is_real = bool(owner) or scope.identity.has_session_data()
    long_life = max(config.TOKEN_TTL, config.SESSION_TTL if is_real else 0)
    records: dict[str, Record] = {}
    lives: dict[str, float] = {}
    for session in sessions:
        key = store_key(primary, session)
        records[key] = state.records[session] = record._replace(owner=owner)
        lives[key] = long_life
    # Kept on where that one is missing must show that it was dropped: see ``may_be_forgotten``.
    user_life = long_life if store.may_forget() else config.TOKEN_TTL
    for user in users:
        key = store_key(primary, user)
        records[key] = record
        lives[key] = user_life
    store.merge(records, lives)


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
