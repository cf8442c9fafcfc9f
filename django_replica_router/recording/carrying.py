"""Tokens that leave the process, and come back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from django.db import connections

from django_replica_router.conf import Config, get_config
from django_replica_router.errors import PositionError, StoreError
from django_replica_router.logs import fields, logger
from django_replica_router.recording.floors import (
    clamped,
    expiry_ms,
    load_floor,
    pin,
    record_at,
    wall_clock_ms,
)
from django_replica_router.recording.writes import known_position, locate, locate_seen
from django_replica_router.replicas.systems import system_of
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.identity import NamedIdentity
from django_replica_router.scopes.keys import EVERYBODY
from django_replica_router.scopes.scope import Scope
from django_replica_router.scopes.signing import Token
from django_replica_router.scopes.written import WriteMark
from django_replica_router.sql import transacting, wal
from django_replica_router.stats import count
from django_replica_router.transactions.blocks import keeps_reads
from django_replica_router.values.carried import MOST_OPEN, Carried, Entry
from django_replica_router.values.tokens import NO_FLOOR, Floor, Position, Record

_OPEN_PAUSE = 0.01
"""Seconds between two questions whether a transaction has ended."""

OPEN_WAIT = 5.0
"""Seconds that a reader waits for a transaction that was open when their token was made."""


# What leaves.


def token_of(scope: Scope) -> Token:
    """Return what whoever goes on from here must see: what came with a token, what the scope's user has
    written and seen, and what was written in the scope itself. Asks the store and the primary where it must.

    Of a transaction that is open it names the number: who reads by the token waits for its end.
    """
    config = get_config()
    token = Token() if scope.carried is None else Token(scope.carried.entries)
    if not config.ENABLED:
        return token
    for primary in config.topology.clusters:
        entry = _entry_of(primary, scope, config)
        if entry is not None:
            try:
                token |= Token({system_of(primary): entry})
            except Exception as error:  # the reader goes on; whoever is next is sent to the primary
                logger.warning(
                    "No token can be made for %r: %s",
                    primary,
                    error,
                    extra=fields("token_unmade", error, primary=primary),
                )
                token |= Token({0: Entry(pin(config))})
    return token


def _entry_of(primary: str, scope: Scope, config: Config) -> Entry | None:
    state = scope.cluster(primary)
    record = _loaded(primary, scope, config)
    if not state.wrote and state.seen_elsewhere_on is None and state.recorded is None:
        return None if record is None else Entry(record)
    if keeps_reads(connections[primary]):
        own = _inside_transaction(primary, state, config)
    else:
        own = Entry(_own_record(primary, state, config))
    return own if record is None else own.merge(Entry(record))


def _loaded(primary: str, scope: Scope, config: Config) -> Record | None:
    """Return what the records of the reader bind to, or None where there is nothing."""
    try:
        load_floor(primary, scope, config)
    except StoreError as error:
        logger.warning("%s", error, extra=fields("store_failed", error, primary=primary))
        return pin(config)
    records = scope.cluster(primary).reader.records
    now_ms, merged = wall_clock_ms(), Record()
    for key, record in list(records.items()):
        if (
            key != EVERYBODY
            and record is not None
            and max(record.expires_ms, record.pinned_until_ms) > now_ms
        ):
            merged = merged.merge(record)
    carried = scope.identity.carried(primary)
    if carried is not None:
        merged = merged.merge(carried)
    return None if merged == Record() else merged._replace(owner="")


def _own_record(primary: str, state: ClusterScope, config: Config) -> Record:
    """Return the record of what the scope itself has written and seen on the primary."""
    record = state.recorded or Record()
    pending = state.pending
    if state.wrote and (pending is not None or state.recorded is None):
        mark = pending or WriteMark()
        seen_on = state.seen_elsewhere_on
        position = known_position(primary, state, mark, seen_on, config) or locate(primary, mark)
        record = record.merge(record_at(position, config))
    elif state.seen_elsewhere_on is not None:
        seen = locate_seen(primary, state.seen_elsewhere_on, state)
        record = record.merge(record_at(seen, config, is_seen=True))
    return record


def _inside_transaction(primary: str, state: ClusterScope, config: Config) -> Entry:
    """Return what a transaction that is open binds to: what was written before it, and its number."""
    raw: Any = connections[primary].connection
    others = [] if state.pending is None else state.pending.transactions
    try:
        if any(other is not raw for other in others) or (state.pending and state.pending.uncertain):
            return Entry(pin(config))
        position = wal.read_token(raw, in_transaction=True)
        number = transacting.open_transaction(raw)
    except Exception as error:  # one that has failed answers nothing
        logger.warning(
            "No position can be told from within a transaction: %s",
            error,
            extra=fields("position_untold", error, primary=primary),
        )
        return Entry(pin(config))
    numbers = frozenset(() if number is None else (number,))
    return Entry(Record(position, expiry_ms(config)), numbers)


# What comes back.


def raised_by_carried(
    primary: str, scope: Scope, floor: Floor, config: Config, *, outlives: bool = False
) -> Floor:
    """Return the floor of a reader after taking into account what came with a token.

    Args:
        primary: alias of the primary.
        scope: has the token.
        floor: of the reader.
        config: the settings.
        outlives: a replica may serve that lags by more than tokens live: one that has expired binds as well.
    """
    carried = scope.carried
    if not carried:
        return floor
    now_ms, latest_ms = 0 if outlives else wall_clock_ms(), expiry_ms(config)
    for entry in _entries_here(primary, scope, carried, config):
        floor = floor.raised_by(clamped(entry.record, latest_ms), now_ms)
    return floor


def _entries_here(primary: str, scope: Scope, carried: Carried, config: Config) -> Iterable[Entry]:
    """Return what a token says of the cluster of a primary, once its transactions have ended."""
    anywhere = carried.entries.get(0)
    if anywhere is not None:
        yield anywhere
    system, entry = own_entry(primary, carried, config)
    if entry is not None and entry.open:
        entry = _settled(primary, entry, config)
        scope.carried = carried.replace(system, entry)
    if entry is not None:
        yield entry


def own_entry(primary: str, carried: Carried, config: Config) -> tuple[int, Entry | None]:
    """Return the system identifier of the cluster of a primary, and what a token says of that: or nothing.

    Where it is not known which cluster that is: 0, and a pin.
    """
    try:
        system = system_of(primary)
    except Exception as error:  # which entry is of this cluster is not known
        logger.warning(
            "It is not known which cluster %r is: %s",
            primary,
            error,
            extra=fields("cluster_unknown", error, primary=primary),
        )
        return 0, Entry(pin(config))
    return system, carried.entries.get(system)


def _settled(primary: str, entry: Entry, config: Config) -> Entry:
    """Return the entry with the end of its transactions waited for: with their position, or a pin."""
    if len(entry.open) > MOST_OPEN or not _wait_for_end(primary, entry.open):
        count("transactions_outwaited")
        return Entry(entry.record.merge(pin(config)))
    position = locate(primary, WriteMark())
    return Entry(entry.record.merge(record_at(position, config)))


def _wait_for_end(primary: str, numbers: frozenset[int]) -> bool:
    """Wait until transactions have ended; tell whether they have."""
    connection = connections[primary]
    deadline = time.monotonic() + OPEN_WAIT
    try:
        connection.ensure_connection()
        for number in numbers:
            while transacting.is_in_progress(connection.connection, number):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_OPEN_PAUSE)
    except Exception as error:  # it may be one of a history that was lost
        logger.warning(
            "It is not known whether a transaction has ended: %s",
            error,
            extra=fields("transaction_unknown", error, primary=primary),
        )
        return False
    return True


def wait_for_transactions(scope: Scope) -> bool:
    """Wait until the transactions have ended that were open when the scope's token was made; tell whether they have."""
    if not scope.carried or not any(entry.open for entry in scope.carried.entries.values()):
        return True
    config = get_config()
    for primary in config.topology.clusters:
        for _ in _entries_here(primary, scope, scope.carried, config):
            pass
    return not any(entry.record.pinned_until_ms for entry in scope.carried.entries.values())


def position_in(carried: Carried, primary: str) -> Position:
    """Return what a token binds to in the cluster of a primary: ``NOWHERE`` where it says nothing of it.

    Raises:
        PositionError: it is not known which cluster that is, or a write of the token has no position.
    """
    scope = Scope(NamedIdentity())
    scope.see(carried)
    floor = raised_by_carried(primary, scope, NO_FLOOR, get_config())
    if floor.pinned:
        message = f"The token names a write to {primary!r} whose position is not known."
        raise PositionError(message)
    return floor.position
