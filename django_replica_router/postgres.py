"""All SQL about WAL and replication. The only module that knows it."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import sys
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple

import psycopg
from django.db import connections
from psycopg import pq
from psycopg.rows import tuple_row

from django_replica_router.errors import PositionError
from django_replica_router.lsn import WAL_PAGE_SIZE, normalise_insert_lsn, parse_lsn
from django_replica_router.tokens import Position

READ_ONLY_SQL_TRANSACTION = "25006"
"""SQLSTATE of a write on a standby (PostgreSQL documentation, appendix A)."""

# What every role may call, with no grant: see "System Administration Functions" of PostgreSQL's
# documentation. The CASE keeps the functions that fail in recovery from being called there.
_POSITION_SQL = """
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
       pg_size_bytes(current_setting('wal_segment_size'))
"""

# In this order: only inside the transaction is its number known, and only behind its COMMIT a
# position that covers it. The position has a transaction of its own, with a savepoint: where an
# error comes back, the savepoint tells on which side of the COMMIT. One message holds all of it
# only in the simple protocol, so without parameters.
_COMMITTED = "django_replica_router_committed"
_COMMIT_SQL = f"""
SELECT pg_current_xact_id_if_assigned() IS NOT NULL;
COMMIT;
BEGIN ISOLATION LEVEL READ COMMITTED;
SAVEPOINT {_COMMITTED};
SELECT pg_current_wal_insert_lsn()::text,
       pg_walfile_name(pg_current_wal_insert_lsn()),
       pg_size_bytes(current_setting('wal_segment_size'));
COMMIT
"""
_POSITION_IN_COMMIT = 4

_PRIMARY_SQL = """
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END
"""

# As a number: a time as text depends on the session's TimeZone, and Django sets one.
_LIFE = (
    "extract(epoch FROM pg_postmaster_start_time())::text, "
    "inet_server_addr()::text, inet_server_port()"
)

_REPLICA_SQL = f"SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, {_LIFE}"
_ANSWERER_SQL = f"SELECT pg_is_in_recovery(), {_LIFE}"

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

_IDENTITY_SQL = (
    f"SELECT system_identifier::text, pg_is_in_recovery(), pg_backend_pid(), {_LIFE} "  # noqa: S608
    "FROM pg_control_system()"
)

logger = logging.getLogger("django_replica_router")

_WAL_FILE = re.compile(r"([0-9A-F]{8})[0-9A-F]{16}", re.ASCII)


_MAYBE_TEXT = (str, NoneType)
_MAYBE_COUNT = (int, NoneType)
# Start time, address, port; the last two are NULL where the connection is no TCP one.
_LIFE_KINDS = ((str,), _MAYBE_TEXT, _MAYBE_COUNT)
_POSITION_KINDS = (_MAYBE_TEXT, _MAYBE_TEXT, (int,))


class CommitAnswer(NamedTuple):
    """What the server says of a transaction that it has committed.

    Args:
        wrote: something was written in it, or None where that is not known.
        position: a position at or behind its commit, or None where the server told none.
    """

    wrote: bool | None
    position: Position | None


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


class Answerer(NamedTuple):
    """Who has answered a statement.

    Args:
        life: start time and address of the server.
        in_recovery: it is a standby.
    """

    life: tuple[Any, ...]
    in_recovery: bool


class ServerIdentity(NamedTuple):
    """What tells one server, and one life of it, from another.

    Args:
        system: the cluster's system identifier; a primary and its standbys share it.
        life: start time and address; changes with a restart, a rebuild, another server.
        in_recovery: it is a standby.
        is_pooled: a pooler stands in between, which may lead the next statement elsewhere.
    """

    system: str
    life: tuple[Any, ...]
    in_recovery: bool = False
    is_pooled: bool = False


def _timeline(wal_file: object) -> int:
    match = _WAL_FILE.fullmatch(wal_file) if isinstance(wal_file, str) else None
    timeline = 0 if match is None else int(match[1], 16)
    if not timeline:
        message = f"Cannot read a timeline from {wal_file!r}: expected the name of a WAL file."
        raise PositionError(message)
    return timeline


def _position(lsn: object) -> int:
    if not isinstance(lsn, str):
        message = "The server told no WAL position. Is it a standby, or not PostgreSQL?"
        raise PositionError(message)
    try:
        return parse_lsn(lsn)
    except ValueError as error:
        raise PositionError(str(error)) from None


def _ask(
    connection: psycopg.Connection[Any], sql: str, what: str, kinds: Sequence[tuple[type, ...]]
) -> tuple[Any, ...]:
    """Return the row that the server answers, with a value of one of the kinds in each column."""
    # Never prepared: behind a pooler, the next statement may meet a server that was told nothing.
    return _checked(connection.execute(sql, prepare=False).fetchone(), what, kinds)


def _checked(row: object, what: str, kinds: Sequence[tuple[type, ...]]) -> tuple[Any, ...]:
    if row is None:
        message = f"The server answered no row to the question for {what}."
        raise PositionError(message)
    if not isinstance(row, tuple) or len(row) != len(kinds) or not all(map(_is_of, row, kinds)):
        message = f"The server answered {row!r:.200} to the question for {what}. Is it PostgreSQL?"
        raise PositionError(message)
    return row


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        return False  # neither sizes nor timelines, ports or delays are
    return type(value) in kinds


def read_token(connection: psycopg.Connection[Any]) -> Position:
    """Return a position at or behind every commit that this server has acknowledged so far.

    It is the *insert* position: right after an asynchronous commit the write position
    (``pg_current_wal_lsn``) still stands before the commit record. The timeline is taken from the
    name of the WAL file, since ``pg_control_checkpoint`` still tells the old one after a
    promotion.

    Call it after the outermost COMMIT, on a connection with no transaction open.

    Raises:
        PositionError: the server is a standby, or answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    if connection.info.transaction_status != pq.TransactionStatus.IDLE:
        message = "A transaction is open: its commit has no WAL position yet."
        raise PositionError(message)
    return _token(connection.execute(_POSITION_SQL).fetchone())


def _token(row: object) -> Position:
    lsn, wal_file, segment_size = _checked(row, "its WAL position", _POSITION_KINDS)
    if segment_size < WAL_PAGE_SIZE:
        message = f"The server tells a wal_segment_size of {segment_size}: less than a page."
        raise PositionError(message)
    return Position(_timeline(wal_file), normalise_insert_lsn(_position(lsn), segment_size))


def can_commit(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether ``commit`` can be used: a transaction is open, intact, and not in a pipeline."""
    info = connection.info
    return (
        info.transaction_status == pq.TransactionStatus.INTRANS
        and info.pipeline_status == pq.PipelineStatus.OFF
    )


def commit(connection: psycopg.Connection[Any]) -> CommitAnswer:
    """Commit, and learn by the same message whether the transaction has written, and up to where.

    Use it where ``can_commit`` says so.

    Raises:
        psycopg.Error: the transaction is not committed, or its connection is lost.
    """
    # A cursor of the package's own: a site may have the driver bind parameters on the server, which
    # takes one statement a message, or make rows of another kind.
    with psycopg.ClientCursor(connection, row_factory=tuple_row) as cursor:
        try:
            cursor.execute(_COMMIT_SQL)
        except psycopg.Error as error:
            if not _is_committed(connection, cursor):
                raise
            logger.warning("The server told no position with a COMMIT: %s", error)
            return CommitAnswer(None, None)
        except BaseException:
            # Interrupted while it waited. Django expects that no transaction is left open.
            with contextlib.suppress(psycopg.Error):
                connection.rollback()
            raise
        row = cursor.fetchone()
        wrote = row is None or row[0] is not False
        for _ in range(_POSITION_IN_COMMIT):
            cursor.nextset()
        try:
            return CommitAnswer(wrote, _token(cursor.fetchall()[0]))
        except (IndexError, PositionError) as error:
            logger.warning("The server told no position with a COMMIT: %s", error)
            return CommitAnswer(wrote, None)


def has_failed(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the open transaction has failed, so that all it can do is to be rolled back."""
    return connection.info.transaction_status == pq.TransactionStatus.INERROR


def is_unanswered(connection: object) -> bool:
    """Tell whether the last statement has no answer, and the server may commit it yet.

    The answer was lost with the connection, or nobody waits for it any more.
    """
    return bool(getattr(connection, "closed", True)) or (
        isinstance(connection, psycopg.Connection)
        and connection.info.transaction_status == pq.TransactionStatus.ACTIVE
    )


def was_refused(connection: psycopg.Connection[Any], error: BaseException) -> bool:
    """Tell whether an error at COMMIT is the server's word that nothing was committed.

    Args:
        connection: the connection that was to commit.
        error: the driver's error, or Django's that was made of it.
    """
    if connection.closed:
        return False
    return any(
        isinstance(reason, psycopg.Error) and reason.sqlstate is not None
        for reason in (error, error.__cause__)
    )


def _is_committed(connection: psycopg.Connection[Any], cursor: psycopg.ClientCursor[Any]) -> bool:
    """Tell whether an error came from behind the COMMIT, and end the transaction of the position."""
    if connection.info.transaction_status != pq.TransactionStatus.INERROR:
        return False
    try:
        cursor.execute(f"ROLLBACK TO SAVEPOINT {_COMMITTED}")
    except psycopg.Error:
        return False
    connection.rollback()
    return True


def sample_primary(connection: psycopg.Connection[Any]) -> Position:
    """Return the position up to which the primary's WAL is on its disk.

    A standby gets no WAL beyond it, and on an idle primary a standby reaches it at once. Behind
    it may lie asynchronous commits of the last ``3 * wal_writer_delay`` (0.6 s by default).

    Raises:
        PositionError: the server is a standby, or answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    kinds = (_MAYBE_TEXT, _MAYBE_TEXT)
    lsn, wal_file = _ask(connection, _PRIMARY_SQL, "its WAL position", kinds)
    return Position(_timeline(wal_file), _position(lsn))


def ask_replica(connection: psycopg.Connection[Any]) -> ReplicaAnswer:
    """Return what the replica has replayed.

    Both columns are needed: after a promotion ``pg_last_wal_replay_lsn`` stays as it was, and is
    not NULL.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    kinds = ((bool,), _MAYBE_TEXT, *_LIFE_KINDS)
    in_recovery, replayed, *life = _ask(connection, _REPLICA_SQL, "its replay position", kinds)
    return ReplicaAnswer(
        in_recovery, None if replayed is None else _position(replayed), tuple(life)
    )


def examine_replica(connection: psycopg.Connection[Any]) -> Examination:
    """Return what a closer look at a replica tells.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    kinds = (_MAYBE_TEXT, (float,), (bool,), _MAYBE_COUNT, _MAYBE_COUNT)
    row = _ask(connection, _EXAMINE_SQL, "the state of its replay", kinds)
    pause_state, delay, has_receiver, received, checkpointed = row
    return Examination(pause_state == "paused", delay, has_receiver, received or checkpointed or 0)


def replays_lock(connection: Any) -> bool:
    """Tell whether a standby holds a lock on a relation that it has replayed; False where nobody knows."""
    if not isinstance(connection, psycopg.Connection) or not can_be_asked(connection):
        return False
    try:
        (found,) = _ask(connection, _LOCK_SQL, "its locks", ((bool,),))
    except (psycopg.Error, PositionError):
        return False
    return bool(found)


def can_be_asked(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the connection is at rest, with no transaction open."""
    return not connection.closed and connection.info.transaction_status == pq.TransactionStatus.IDLE


def can_ask_along(raw: psycopg.Connection[Any], cursor: Any) -> bool:
    """Tell whether a statement of this cursor can be one of several in a message.

    Only the simple protocol knows such messages ("Multiple Statements in a Simple Query" in
    PostgreSQL's manual): psycopg speaks it where the values are in the text already, which is what
    ``ClientCursor`` is for, and Django's usual one. Outside a transaction the server makes one of
    the message, so that no pooler can lead a part of it elsewhere.

    Args:
        raw: the driver's connection.
        cursor: the driver's cursor.
    """
    pgconn = raw.pgconn
    return (
        isinstance(cursor, psycopg.ClientCursor)
        and raw.autocommit
        and pgconn.transaction_status == pq.TransactionStatus.IDLE
        and pgconn.pipeline_status == pq.PipelineStatus.OFF
        and cursor.format == pq.Format.TEXT
    )


def ask_along(query: str, lock_wait_ms: int = 0) -> str:
    """Return a message that asks who answers, and then does what the query does.

    In front: there nothing of the query's own, as a comment at its end, is in the way.

    Args:
        query: the query.
        lock_wait_ms: milliseconds that it may wait for a lock; 0 for as long as it takes.
    """
    bound = _bound_lock_wait(lock_wait_ms, is_local=True) if lock_wait_ms else ""
    return f"{_ANSWERER_SQL}{bound};\n{query}"


def _bound_lock_wait(milliseconds: int, *, is_local: bool, condition: str = "true") -> str:
    """Return a condition that is always met and, being looked at, bounds the waiting for locks.

    Where the role or the database has a bound of its own, that one holds.
    """
    return (
        f" WHERE CASE WHEN {condition} AND current_setting('lock_timeout') = '0' THEN "
        f"set_config('lock_timeout', '{milliseconds}', {str(is_local).lower()}) IS NOT NULL "
        f"ELSE true END"
    )


def lift_lock_wait(connection: psycopg.Connection[Any]) -> None:
    """Have the connection wait for locks as long as it takes.

    Raises:
        psycopg.Error: the server cannot be asked.
    """
    connection.execute("SET lock_timeout = 0")


def read_answerer(cursor: Any) -> Answerer:
    """Return who has answered what ``ask_along`` made; the cursor then yields the query's rows.

    Raises:
        PositionError: the server answers something else than expected.
    """
    row = cursor.fetchone()
    cursor.nextset()
    in_recovery, *life = _checked(row, "its identity", ((bool,), *_LIFE_KINDS))
    return Answerer(tuple(life), in_recovery)


def identify(connection: psycopg.Connection[Any], lock_wait_ms: int = 0) -> ServerIdentity:
    """Return which server, and which life of it, the connection reaches.

    Args:
        connection: at rest.
        lock_wait_ms: milliseconds that its statements may wait for a lock from now on; 0 leaves that
            as it is. A pooler's connection is left as it is: others use its server, too.

    Raises:
        psycopg.Error: the server cannot be asked.
        PositionError: the server answers something else than expected.
    """
    kinds = ((str,), (bool,), (int,), *_LIFE_KINDS)
    question = _IDENTITY_SQL
    if lock_wait_ms:
        is_direct = f"pg_backend_pid() = {connection.info.backend_pid}"
        question += _bound_lock_wait(lock_wait_ms, is_local=False, condition=is_direct)
    system, in_recovery, pid, *life = _ask(connection, question, "its identity", kinds)
    # A pooler makes up the process id that libpq is told when it connects: it stands for the
    # pooler's own client, so that a cancel request can be led to whatever server that has then.
    is_pooled = connection.info.backend_pid != pid
    return ServerIdentity(system, tuple(life), in_recovery, is_pooled)


def connect(alias: str, timeout: float) -> psycopg.Connection[Any]:
    """Open a connection of the monitor's own to the server of an alias.

    Args:
        alias: a key of ``DATABASES``.
        timeout: seconds after which to give up; the driver's least is 2.

    Raises:
        psycopg.Error: the server cannot be reached.
    """
    params = connections.create_connection(alias).get_connection_params()
    # These belong to Django's use of the connection, not to the server's address.
    for name in ("cursor_factory", "context", "prepare_threshold", "isolation_level"):
        params.pop(name, None)
    if is_under_test():
        # A test database cannot be dropped while anybody is connected to it. Django's test runner
        # connects to this one to create it, so it exists and may be used.
        params["dbname"] = "postgres"
    params |= {
        "autocommit": True,
        "application_name": "django-replica-router",
        "connect_timeout": max(1, round(timeout)),
    }
    return psycopg.Connection.connect(**params)


def is_under_test() -> bool:
    """Tell whether Django's test runner has set this process up."""
    # Looked up, not imported: django.test has no business in a production process.
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")
