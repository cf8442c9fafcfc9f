"""Which server a connection of a request leads to, as it was last seen, and whether it still does."""

from __future__ import annotations

from typing import Any

import psycopg
from django.db import connections
from django.db.utils import OperationalError

from django_replica_router.conf import get_config
from django_replica_router.replicas.attributes import UNKNOWN, Sight
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.sql import answering, standby, states
from django_replica_router.values.servers import Life

led_straight: set[str] = set()
"""Aliases whose last connection led straight to its server. The next one asks nothing by itself: that it
could be opened shows that a server is there, which it does not where a pooler answers."""

able_to_wait: set[str] = set()
"""Aliases whose last connection led to a server that can itself wait for what it replays."""


def note_opened(connection: Any) -> None:
    """Note what a new connection leads to."""
    (able_to_wait.add if can_wait(connection) else able_to_wait.discard)(connection.alias)


def life_behind(connection: Any) -> Life | None:
    """Return which server, and which life of it, Django's connection was last seen to reach."""
    sight = last_sight(connection)
    return None if sight is None else sight.life


def open_life(alias: str) -> Life | None:
    """Return the server that this thread's open connection of an alias leads to, or None."""
    connection: Any = connections[alias]
    raw = connection.connection
    return None if raw is None or raw.closed else life_behind(connection)


def waiting_key(connection: Any, alias: str) -> str:
    """Return the key by which the waiting for the server goes that a connection leads to."""
    monitor = find_monitor(get_config().topology.primary_of.get(alias, alias))
    if monitor is None or alias not in monitor.servers.endpoints:
        return alias
    return monitor.servers.waiting_key(alias, life_behind(connection))


def is_pooled(connection: Any) -> bool:
    """Tell whether a pooler is known to stand between the connection and its server."""
    sight = last_sight(connection)
    return sight is not None and sight.is_pooled


def is_standby(connection: Any) -> bool:
    """Tell whether the connection is known, without any query, to lead to a standby.

    A mirror of a test leads to none, and takes writes itself.
    """
    raw = connection.connection
    if raw is None:
        return False
    return is_pooled(connection) or raw.info.parameter_status("in_hot_standby") == "on"


def can_wait(connection: Any) -> bool:
    """Tell whether the server that an open connection leads to can itself wait for what it replays."""
    raw = connection.connection
    return isinstance(raw, psycopg.Connection) and standby.can_wait(raw)


def last_sight(connection: Any) -> Sight | None:
    """Return which standby the driver's present connection was last seen to lead to, or None."""
    # One that was made before the app was ready, and not opened since, has no such attribute.
    sight: Sight | None = getattr(connection, "sight", None)
    return None if sight is None or sight.raw is not connection.connection else sight


def sight_of(connection: Any, alias: str) -> Sight | None:
    """Return which standby the connection was last seen to lead to, or None where it is none.

    A connection that nobody has seen through is seen through now. Of a promotion libpq knows.
    """
    raw = connection.connection
    sight = last_sight(connection)
    if sight is None:
        return _look_through(connection, alias)
    if sight.is_pooled or raw.pgconn.parameter_status(b"in_hot_standby") == b"on":
        return sight
    return None


def leads_straight_to(connection: Any, life: Life | None) -> bool:
    """Tell whether an open connection was seen to lead to just that server, which is a standby yet.

    libpq knows that of the latter; a pooler may lead it elsewhere.
    """
    raw, sight = connection.connection, getattr(connection, "sight", None)
    return (
        sight is not None
        and sight.raw is raw
        and not sight.is_pooled
        and sight.life == life
        and raw.pgconn.parameter_status(b"in_hot_standby") == b"on"
    )


def _look_through(connection: Any, alias: str) -> Sight | None:
    raw = connection.connection
    with in_flight.waiting(waiting_key(connection, alias), raw):
        sight = see(raw)
    if sight is not None:
        note_sight(connection, sight)
    return sight


def see(raw: psycopg.Connection[Any]) -> Sight | None:
    """Return which standby a driver's connection leads to, or None where that is none; bound its waiting for locks.

    Raises:
        psycopg.Error: the server cannot be asked.
        PositionError: the server answers something else than expected.
    """
    identity = answering.identify(raw, lock_wait_ms())
    return Sight(raw, identity.life, identity.is_pooled) if identity.in_recovery else None


def note_sight(connection: Any, sight: Sight | None) -> None:
    """Note which standby a connection was seen to lead to just now."""
    connection.sight, connection.around = sight, UNKNOWN
    if sight is not None and not sight.is_expected:
        (led_straight.discard if sight.is_pooled else led_straight.add)(connection.alias)


def look_where_expected(connection: Any) -> None:
    """Find out where a new connection leads before something is done there that cannot ask along.

    Raises:
        OperationalError: to another server than was chosen.
    """
    sight = last_sight(connection)
    if sight is None or not sight.is_expected:
        return
    connection.connection.autocommit = True  # no transaction is left open
    if is_elsewhere(connection, sight.life):
        message = f"{connection.alias!r} has led to another server than was chosen."
        raise OperationalError(message)


def lock_wait_ms() -> int:
    """Return the milliseconds that a statement on a replica may wait for a lock; 0 for any time."""
    return round((get_config().LOCK_WAIT or 0) * 1000)


def lift_lock_wait(connection: Any) -> bool:
    """Have a connection wait for locks as long as it takes; tell whether the bound was the package's."""
    raw = connection.connection
    sight = last_sight(connection)
    if sight is None or sight.is_pooled or not lock_wait_ms() or not states.can_be_asked(raw):
        return False
    answering.lift_lock_wait(raw)
    note_sight(connection, None)  # so that whoever is sent here next bounds it anew
    return True


def note_answerer(connection: Any, answerer: answering.Answerer) -> Life | None:
    """Note which server has answered a statement; return the one that had answered before."""
    sight, life = last_sight(connection), answerer.life
    if sight is None or (sight.life == life and not sight.is_expected):
        return life
    is_pooled = answerer.pid != sight.raw.info.backend_pid
    note_sight(connection, Sight(sight.raw, life, is_pooled))
    return None if sight.is_expected else sight.life


def is_elsewhere(connection: Any, life: Life | None) -> bool:
    """Tell whether the last statement may have been answered by another server than was chosen.

    Without a pooler this costs no query: a connection leads to one server in one life or breaks,
    and of a promotion the server tells libpq itself, with its answer. (The parameter
    ``in_hot_standby`` of PostgreSQL 14, "Parameter Status Changes" in libpq's manual.) Through a
    pooler, or where Django has opened another connection since, the server is asked.

    Args:
        connection: Django's connection to a replica, with no transaction open.
        life: which server, in which life, was chosen; None where nobody has chosen.
    """
    if life is None and connection.sight is None:
        return False  # nobody has vouched for it: a mirror in a test, an alias named by the code
    if not isinstance(connection.connection, psycopg.Connection):
        return False
    look = _look_through if is_pooled(connection) else sight_of
    try:
        sight = look(connection, connection.alias)
    except Exception:  # whatever has become of it, the statement can be run elsewhere
        led_straight.discard(connection.alias)  # the next one has to show that it answers
        return True
    return sight is None or life not in (None, sight.life)


def was_elsewhere(connection: Any, cursor: Any, life: Life | None) -> bool:
    """Tell the same of a statement that has asked along who answers it, without another question.

    Args:
        connection: Django's connection to a replica.
        cursor: the driver's cursor; it yields the rows of the statement afterwards.
        life: which server, in which life, was chosen; None where nobody has chosen.
    """
    try:
        answerer = answering.read_answerer(cursor)
    except Exception:  # whoever that was
        return True
    if not answerer.in_recovery or life not in (None, answerer.life):
        if answerer.in_recovery:
            note_answerer(connection, answerer)
        return True
    sight = last_sight(connection)
    if sight is not None and sight.is_expected:
        note_answerer(connection, answerer)
    return False
