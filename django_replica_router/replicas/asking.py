"""What a thread asks of a server over the connection that it has, in place of a poller that would be too late."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from django.db import connections

from django_replica_router.errors import PositionError
from django_replica_router.replicas.connecting import connect_to_replica
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.sights import able_to_wait, can_wait, is_pooled, life_behind
from django_replica_router.sql import standby, states
from django_replica_router.stats import count

_occupied: set[str] = set()
"""Aliases of poolers one of whose servers waits for somebody of this process."""


def ask_over_connection(alias: str, monitor: Monitor) -> None:
    """Let the monitor know where a replica stands now, where this thread is connected to it.

    One round trip on a connection at rest, and no thread to be woken: what has arrived since the
    last look is known at once.

    Args:
        alias: alias of the replica.
        monitor: is told the answer, if it comes from the server that it knows.
    """
    connection: Any = connections[alias]
    raw = connection.connection
    if not monitor.looks_itself or not isinstance(raw, psycopg.Connection):
        return
    if not states.can_be_asked(raw):
        return
    try:
        with in_flight.waiting(monitor.servers.waiting_key(alias, life_behind(connection)), raw):
            answer = standby.ask_replica(raw)
    except Exception:  # says nothing of the server: the connection may be an old one
        connection.close()
        return
    if answer.in_recovery and answer.replayed is not None:
        monitor.answers.note_replayed(alias, answer.life, answer.replayed)


def waits_itself(alias: str, monitor: Monitor) -> bool:
    """Tell whether the server of a replica can wait for a position itself, as far as is known.

    Where this thread is connected to it the connection tells, and else the last one did.
    """
    if not monitor.looks_itself:
        return False
    connection: Any = connections[alias]
    if connection.connection is None:
        return alias in able_to_wait
    # Each who waits keeps one of a pooler's servers from all others: one of them finds out for all.
    return can_wait(connection) and not (is_pooled(connection) and alias in _occupied)


def wait_over_connection(
    alias: str, monitor: Monitor, lsn: int, seconds: float, connect_timeout: float
) -> None:
    """Have the server of a replica wait for a position, and let the monitor know where it stands then.

    Use it where ``waits_itself`` says so. The reader learns of it by the answer, with no look in between
    that comes too late, and no thread to be woken.

    Args:
        alias: alias of the replica.
        monitor: is told the answer, if it comes from a server that it knows.
        lsn: the position.
        seconds: that may be waited, opening a connection included where there is none.
        connect_timeout: seconds within which it must accept that.
    """
    began = time.monotonic()
    connection = connect_to_replica(alias, monitor, connect_timeout)
    if connection is None or not can_wait(connection):
        return
    left = seconds - (time.monotonic() - began)
    _occupied.add(alias)
    try:
        answer = _wait_over(connection, alias, monitor, lsn, left)
    finally:
        _occupied.discard(alias)
    is_there = False
    if answer is not None and answer.in_recovery and answer.replayed is not None:
        monitor.answers.note_replayed(alias, answer.life, answer.replayed)
        is_there = answer.replayed >= lsn
    count("waits_by_server" if is_there else "waits_by_server_in_vain")


def _wait_over(
    connection: Any, alias: str, monitor: Monitor, lsn: int, seconds: float
) -> standby.ReplicaAnswer | None:
    raw = connection.connection
    try:
        with in_flight.waiting(monitor.servers.waiting_key(alias, life_behind(connection)), raw):
            return standby.wait_for_replay(raw, lsn, seconds)
    except (psycopg.Error, PositionError):
        # A time limit of the session, as a rule; a connection that has ended says nothing of the server.
        if not states.can_be_asked(raw):
            connection.close()
        return None
    except BaseException:  # a time limit of the code's own, by a signal
        connection.close()
        raise
