"""What a standby has replayed, what state its replay is in, and how to have it wait."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from django_replica_router.errors import PositionError
from django_replica_router.sql.rows import (
    LIFE_KINDS,
    LIFE_SQL,
    MAYBE_COUNT,
    MAYBE_TEXT,
    ask,
    check,
    read_lsn,
)
from django_replica_router.sql.states import can_be_asked
from django_replica_router.values.lsn import format_lsn

_REPLICA_SQL = f"SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, {LIFE_SQL}"

# Of PostgreSQL 19. It takes no parameters, and no snapshot, so that it stands in front. That a server is
# no standby, or does not get there, is no error then: what it has replayed is asked for in any case, in
# the same message, and tells it better.
_WAITING_VERSION = 190000
_WAIT_SQL = "WAIT FOR LSN '{lsn}' WITH (TIMEOUT '{milliseconds}ms', NO_THROW);" + _REPLICA_SQL

# Of pg_stat_wal_receiver a role without pg_read_all_stats sees that there is one, and nothing more.
# The control file tells the timeline to everybody, but lags behind it by up to a checkpoint.
_EXAMINE_SQL = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,
       extract(epoch FROM current_setting('recovery_min_apply_delay')::interval)::float8,
       EXISTS (SELECT FROM pg_stat_wal_receiver),
       (SELECT received_tli FROM pg_stat_wal_receiver),
       (SELECT timeline_id FROM pg_control_checkpoint())
"""

# In recovery nobody but replay can hold this lock ("Administrator's Overview" of hot standby).
_LOCK_SQL = (
    "SELECT pg_is_in_recovery() AND EXISTS (SELECT FROM pg_locks "
    "WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted)"
)


class ReplicaAnswer(NamedTuple):
    """What a replica says of itself.

    Args:
        in_recovery: it is a standby.
        replayed: the LSN up to which it has replayed, or None.
        life: which server, and which life of it, has answered.
    """

    in_recovery: bool
    replayed: int | None
    life: tuple[Any, ...]


class Examination(NamedTuple):
    """What a closer look at a replica tells.

    Args:
        is_paused: its replay is paused.
        delay: seconds by which it delays replay on purpose.
        has_receiver: it is connected to where its WAL comes from.
        timeline: the timeline that it follows, as far as it tells.
    """

    is_paused: bool
    delay: float
    has_receiver: bool
    timeline: int


def ask_replica(connection: psycopg.Connection[Any]) -> ReplicaAnswer:
    """Return what the replica has replayed.

    Both columns are needed: after a promotion ``pg_last_wal_replay_lsn`` stays as it was, and is
    not NULL.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    return _replica_answer(connection.execute(_REPLICA_SQL, prepare=False).fetchone())


def _replica_answer(row: object) -> ReplicaAnswer:
    kinds = ((bool,), MAYBE_TEXT, *LIFE_KINDS)
    in_recovery, replayed, *life = check(row, "its replay position", kinds)
    return ReplicaAnswer(in_recovery, None if replayed is None else read_lsn(replayed), tuple(life))


def can_wait(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the server itself can be had to wait for what it replays: one of PostgreSQL 19 or newer.

    Of a connection at rest. It takes a message of two statements, which is one of the simple protocol, and
    which only outside a transaction is led to one server as a whole.
    """
    return (
        connection.info.server_version >= _WAITING_VERSION
        and can_be_asked(connection)
        and connection.autocommit
        and connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
    )


def wait_for_replay(connection: psycopg.Connection[Any], lsn: int, seconds: float) -> ReplicaAnswer:
    """Have the replica wait until it has replayed a position; return what it has replayed then.

    It comes back at once where the server is no standby, and says so. The position must be one where a
    record ends, as those of tokens are: one just behind the header of a page may never be reached.

    Args:
        connection: one that ``can_wait``.
        lsn: the position.
        seconds: after which it is to give up. It knows whole milliseconds, and of none it makes a wait
            without end: the least is one.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked, or a time limit of the session is shorter.
    """
    milliseconds = max(1, int(seconds * 1000))
    sql = _WAIT_SQL.format(lsn=format_lsn(lsn), milliseconds=milliseconds)
    cursor = connection.execute(sql, prepare=False)
    cursor.nextset()
    return _replica_answer(cursor.fetchone())


def examine_replica(connection: psycopg.Connection[Any]) -> Examination:
    """Return what a closer look at a replica tells.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    kinds = (MAYBE_TEXT, (float,), (bool,), MAYBE_COUNT, MAYBE_COUNT)
    row = ask(connection, _EXAMINE_SQL, "the state of its replay", kinds)
    pause_state, delay, has_receiver, received, checkpointed = row
    return Examination(pause_state == "paused", delay, has_receiver, received or checkpointed or 0)


def replays_lock(connection: Any) -> bool:
    """Tell whether a standby holds a lock on a relation that it has replayed; False where nobody knows."""
    if not isinstance(connection, psycopg.Connection) or not can_be_asked(connection):
        return False
    try:
        (found,) = ask(connection, _LOCK_SQL, "its locks", ((bool,),))
    except (psycopg.Error, PositionError):
        return False
    return bool(found)
