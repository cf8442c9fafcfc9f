"""The end of a scope: what was written and seen in it is stored for its reader."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.db import connections

from django_replica_router.conf import Config, get_config
from django_replica_router.errors import StoreError
from django_replica_router.logs import fields, logger
from django_replica_router.policy import is_of_share
from django_replica_router.recording.floors import known_owners, load_floor, pin, record_at
from django_replica_router.recording.writes import (
    known_position,
    locate,
    locate_seen,
    report_unrecorded,
)
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.keys import store_key
from django_replica_router.scopes.scope import OUTSIDE, Scope, current_frame, current_scope
from django_replica_router.scopes.written import WriteMark
from django_replica_router.sql.states import has_begun
from django_replica_router.stats import count
from django_replica_router.stores.store import get_store
from django_replica_router.transactions.blocks import keeps_reads
from django_replica_router.values.tokens import Position, Record

# How many seconds a response waits for all replicas where its token cannot be stored.
_HOLD = 2.0


class _Ending(NamedTuple):
    """What ends: what a scope knows of one cluster.

    Args:
        primary: alias of the primary.
        scope: the scope.
        state: what it knows of that cluster.
        config: the settings.
        sent_session: key of a new session cookie that the response hands out.
    """

    primary: str
    scope: Scope
    state: ClusterScope
    config: Config
    sent_session: str | None


def finish_scope(scope: Scope, sent_session: str | None = None) -> bool:
    """Store what the scope's reader must see from now on. Never raises.

    May be called again: what was stored is not stored twice.

    Args:
        scope: the scope that ends, or whose response is about to leave.
        sent_session: key of a new session cookie that the response hands out.

    Returns:
        whether there was anything to store, or has been before.
    """
    scope.has_ended = True  # first: whoever writes after what is stored now stores it
    # What is read from now on counts anew: it has been seen after what is stored now.
    scope.shortcuts.clear()
    if sent_session is None and all(map(_is_unchanged, list(scope.clusters.values()))):
        return False
    # Outside of it: what a cache in the database writes for this is nobody's write.
    token = current_frame.set(OUTSIDE)
    try:
        _finish_clusters(scope, get_config(), sent_session)
    finally:
        current_frame.reset(token)
    return True


def _finish_clusters(scope: Scope, config: Config, sent_session: str | None) -> None:
    _look(scope)
    for primary in _untouched(scope, sent_session):
        try:
            _hand_on(primary, scope, config, sent_session)
        except Exception as error:  # as below
            report_unrecorded(primary, error)
    for primary, state in list(scope.clusters.items()):
        try:
            _finish_cluster(_Ending(primary, scope, state, config, sent_session))
        except Exception as error:  # the response is ready, and must leave
            report_unrecorded(primary, error)


async def afinish_scope(scope: Scope, sent_session: str | None = None) -> None:
    """Do the same in async code, without blocking the event loop."""
    scope.has_ended = True
    if needs_finish(scope, sent_session):
        await sync_to_async(finish_scope)(scope, sent_session)


def finish_late(connection: Any) -> None:
    """Store what a thread or task has written in a scope that has ended: nobody else does so.

    Call it after what may have written, and after a transaction.

    Args:
        connection: on which that was.
    """
    scope = current_scope()
    if scope is None or not scope.has_ended or connection.in_atomic_block:
        return
    state = scope.clusters.get(connection.alias)
    if state is not None and state.has_pending:
        finish_scope(scope)


def _is_unchanged(state: ClusterScope) -> bool:
    """Tell whether somebody who is nobody in particular has only read, where such readers do."""
    reader = state.reader
    return (
        reader.floor is not None
        and not reader.name
        and state.seen_elsewhere_on is None
        and state.recorded is None
        and state.pending is None
        and not state.carried
        and reader.primary_when_met is None
        and (reader.shadow is None or not reader.shadow.is_of_stranger)
    )


def needs_finish(scope: Scope, sent_session: str | None = None) -> bool:
    """Tell whether ``finish_scope`` has anything to do, without doing any I/O."""
    if not scope.clusters and sent_session is None:
        return False
    _look(scope)
    return bool(_untouched(scope, sent_session)) or any(
        state.has_pending
        or state.seen_elsewhere_on is not None
        or state.reader.primary_when_met is not None
        or state.reader.is_shadowed_as_stranger
        or _links(scope, state, sent_session)
        for state in list(scope.clusters.values())
    )


def unsent_records(scope: Scope) -> dict[str, Record]:
    """Return what the response's cookie should carry, by primary."""
    return {
        primary: state.recorded
        for primary, state in list(scope.clusters.items())
        if state.recorded is not None and (state.is_unstored or get_config().COOKIE)
    }


def _look(scope: Scope) -> None:
    """Find out whom the scope works for. What the callable of ``IDENTITY`` raises costs no token."""
    try:
        scope.identity.users()
    except Exception as error:  # it is not asked again
        logger.warning(
            "IDENTITY does not tell whom a request is for: %s",
            error,
            extra=fields("identity_failed", error),
        )


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
        old = state.reader.records.get(scope.identity.session() or "")
        if sent_session is not None and (old is not None or scope.identity.owner()):
            end = _Ending(primary, scope, state, config, sent_session)
            _store(end, old or Record(), [sent_session], ())
    except StoreError:
        # What the old one stood for is not known: the browser may carry that.
        state.reader.store_failed = True
        state.recorded, state.is_unstored = pin(config), True
        raise


def _links(scope: Scope, state: ClusterScope, sent_session: str | None) -> tuple[str, ...]:
    """Return the keys whose record must be written because it does not name the right user.

    Of the session only where it turned out to be real: a made-up cookie leaves nothing in the
    store. A credential is noted also where it stands for no user, as that of a whole test site.
    """
    session, credential = scope.identity.session(), scope.identity.credential()
    if state.reader.store_failed or (
        session is None and credential is None and sent_session is None
    ):
        return ()
    owner = scope.identity.owner()
    is_real = bool(owner) or scope.identity.has_session_data()
    return tuple(
        key
        for key in ((session, sent_session, credential) if is_real else (credential,))
        if key
        and (key in state.reader.records or key == sent_session)
        and _is_unlinked(state, key, owner)
    )


def _is_unlinked(state: ClusterScope, key: str, owner: str) -> bool:
    record = state.reader.records.get(key)
    return record is None or (owner != "" and record.owner != owner)


def _finish_cluster(end: _Ending) -> None:
    primary, scope, state, config, sent_session = end
    mine = connections[primary].connection
    pending = state.take_pending(lambda raw: raw is not mine and has_begun(raw))
    seen_elsewhere_on, state.seen_elsewhere_on = state.seen_elsewhere_on, None
    primary_when_met, state.reader.primary_when_met = state.reader.primary_when_met, None
    if state.reader.is_shadowed_as_stranger and _is_routed_from_now_on(end):
        seen_elsewhere_on = primary
    if pending is not None:
        _record_write(end, pending, seen_elsewhere_on)
        return
    links = _links(scope, state, sent_session)
    if seen_elsewhere_on is None and primary_when_met is None and not links:
        return
    if keeps_reads(connections[primary]):
        return  # the scope lies inside a transaction: what was seen may yet be undone
    users = {*scope.identity.users(), *known_owners(state)}
    if seen_elsewhere_on is not None and not users:
        users = _ask_for_owners(end)
    if not users and not scope.identity.has_session_data():
        seen_elsewhere_on = None  # there is nobody to remember it for
    if seen_elsewhere_on is not None or sent_session in links:
        # A new session stands for what was written under the one before as well, and who is not known
        # may have written.
        is_only_seen = primary_when_met is None and sent_session not in links
        is_news = (
            seen_elsewhere_on in {None, primary} or primary_when_met is not None or bool(links)
        )
        position = known_position(primary, state, WriteMark(), seen_elsewhere_on, config)
        position = position or locate_seen(primary, seen_elsewhere_on or primary, state)
        if is_news or not _is_recorded(end, position, users):
            record = _record(position, config, is_seen=config.yields and is_only_seen)
            _store_seen(end, record, users)
    elif primary_when_met is not None or get_store(config.CACHE).may_forget():
        # It may take the place of one that was dropped, and must not say less.
        record = _record(primary_when_met or locate(primary, WriteMark()), config)
        if links or users:
            _store(end, record, links, users)
    else:
        _store(end, Record(), links, ())


def _is_routed_from_now_on(end: _Ending) -> bool:
    """Tell whether it turned out that the reader is a user whose next request may be sent to a replica."""
    config, users = end.config, end.scope.identity.users()
    return config.MONOTONIC_READS and any(is_of_share(user, config.ROLLOUT) for user in users)


def _record_write(end: _Ending, pending: WriteMark, seen_elsewhere_on: str | None) -> None:
    primary, scope, state, config, sent_session = end
    # Before the package itself reads who it is that has written.
    position = known_position(primary, state, pending, seen_elsewhere_on, config)
    users = _writers(end) | set(scope.tracked)
    keys = _carried(scope, sent_session)
    if users or keys or config.COOKIE or config.HEADER or scope.gives_token:
        state.recorded = _record(position or locate(primary, pending), config)
        _store_write(end, state.recorded, keys, users)


def _store_write(end: _Ending, record: Record, keys: tuple[str, ...], users: set[str]) -> None:
    """Store the token of a write. Where the store refuses it, see to it that nobody needs it."""
    try:
        _store(end, record, keys, users)
        count("tokens_stored")
    except StoreError as error:
        end.state.is_unstored = True
        hold_for_unstored(end.primary, end.config, record, error)


def hold_for_unstored(primary: str, config: Config, record: Record, error: StoreError) -> None:
    """Keep the caller back until no replica lacks a write whose record the store has refused."""
    count("tokens_unstored")
    report_unrecorded(primary, error)
    _hold(primary, config, record, math.inf)


def _is_recorded(end: _Ending, position: Position | None, users: set[str]) -> bool:
    """Tell whether the records of the reader hold a position, or a later one, already."""
    keys = (*users, *_carried(end.scope, end.sent_session))
    records = [end.state.reader.records.get(key) for key in keys]
    return position is not None and all(
        record is not None and record.token >= position for record in records
    )


def _store_seen(end: _Ending, record: Record, users: set[str]) -> None:
    """Store what was seen. Where the store refuses it, the browser may carry it."""
    try:
        _store(end, record, _carried(end.scope, end.sent_session), users)
        count("tokens_stored")
    except StoreError as error:
        end.state.recorded, end.state.is_unstored = record, True
        report_unrecorded(end.primary, error)
        if users:
            _hold(end.primary, end.config, record, end.config.MAX_LAG)


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
    monitor = get_monitor(primary)
    monitor.waiting.wait_for_all(record.token.lsn, _HOLD, max_lag)


def _carried(scope: Scope, sent_session: str | None) -> tuple[str, ...]:
    """Return the keys of what the reader carries, and of what the response hands out."""
    keys = {scope.identity.session(), scope.identity.credential(), sent_session}
    return tuple(key for key in keys if key)


def _record(position: Position | None, config: Config, *, is_seen: bool = False) -> Record:
    """Return the record of a position, or of a write without one: a pin to the primary.

    Args:
        position: the position.
        config: the settings.
        is_seen: up to there the reader has seen something, and written nothing.
    """
    if position is None:
        count("writes_unlocated")
    return record_at(position, config, is_seen=is_seen)


def _writers(end: _Ending) -> set[str]:
    """Return the keys of the users for whom the scope has written."""
    primary, scope = end.primary, end.scope
    scope.identity.look_again()
    users = set(scope.identity.users())
    if users or not _carried(scope, None):
        return users
    # Nobody has asked who is signed in. The session's record may tell; else its row does.
    users = _ask_for_owners(end)
    if not users and not keeps_reads(connections[primary]):
        try:
            scope.identity.load_user()
        except Exception as error:  # what the request carries must be remembered all the same
            logger.warning(
                "Nobody tells who has written to %r: %s",
                primary,
                error,
                extra=fields("writer_unknown", error, primary=primary),
            )
        users = set(scope.identity.users())
    return users


def _ask_for_owners(end: _Ending) -> set[str]:
    """Return whom the store knows to own what the reader carries, and ask it where nobody has so far."""
    if not _carried(end.scope, None):
        return set()
    try:
        load_floor(end.primary, end.scope, end.config)
    except StoreError:
        end.state.reader.store_failed = True
    return set(known_owners(end.state))


def _store(end: _Ending, record: Record, sessions: Iterable[str], users: Iterable[str]) -> None:
    primary, scope, state, config, _ = end
    store = get_store(config.CACHE)
    owner = scope.identity.owner()
    is_real = bool(owner) or scope.identity.has_session_data()
    long_life = max(config.TOKEN_TTL, config.SESSION_TTL if is_real else 0)
    records: dict[str, Record] = {}
    lives: dict[str, float] = {}
    for session in sessions:
        key = store_key(primary, session)
        records[key] = state.reader.records[session] = record._replace(owner=owner)
        lives[key] = long_life
    # Kept on where that one is missing must show that it was dropped: see ``may_be_forgotten``.
    user_life = long_life if store.may_forget() else config.TOKEN_TTL
    for user in users:
        key = store_key(primary, user)
        records[key] = record
        lives[key] = user_life
    store.merge(records, lives)
