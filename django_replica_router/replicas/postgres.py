"""All SQL about WAL and replication. The only module that knows it, with ``commits``."""

from __future__ import annotations

import enum
import math
import re
import sys
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import psycopg
from django.db import connections
from psycopg import pq
from psycopg.sql import SQL

from django_replica_router.errors import PositionError
from django_replica_router.values.lsn import (
    WAL_PAGE_SIZE,
    format_lsn,
    normalise_insert_lsn,
    parse_lsn,
)
from django_replica_router.values.tokens import Position

READ_ONLY_SQL_TRANSACTION = "25006"
"""SQLSTATE of a write on a standby (PostgreSQL documentation, appendix A)."""

# What every role may call, with no grant: see "System Administration Functions" of PostgreSQL's
# documentation. The CASE keeps the functions that fail in recovery from being called there.
_POSITION_SQL = """
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END,
       pg_size_bytes(current_setting('wal_segment_size'))
"""

_PRIMARY_SQL = """
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END
"""

# A record of its own makes the server write out all before it. From 17 on one that belongs to no
# transaction can ("flush"); before, only the COMMIT of one that does, which a role may have made
# asynchronous, or have wait for standbys: "local" is for the disk alone. Neither needs a grant, nor a
# transaction that may write.
_FLUSHING_VERSION = 170000
_FLUSH_SQL = "SELECT pg_logical_emit_message(false, 'django-replica-router', '', true)"
_COMMIT_TO_FLUSH_SQL = (
    "SELECT set_config('synchronous_commit', 'local', true), "
    "pg_logical_emit_message(true, 'django-replica-router', '')"
)
_MARK_SQL = "SELECT pg_logical_emit_message(false, 'django-replica-router', '')"
_SNAPSHOT_MODE = "ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_IS_UNFLUSHED = (
    " WHERE pg_current_wal_flush_lsn() < %(lsn)s AND %(lsn)s <= pg_current_wal_insert_lsn()"
)

# As a number: a time as text depends on the session's TimeZone, and Django sets one.
_LIFE = (
    "extract(epoch FROM pg_postmaster_start_time())::text, "
    "inet_server_addr()::text, inet_server_port()"
)

_REPLICA_SQL = f"SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, {_LIFE}"

# Of PostgreSQL 19. It takes no parameters, and no snapshot, so that it stands in front. That a server is
# no standby, or does not get there, is no error then: what it has replayed is asked for in any case, in
# the same message, and tells it better.
_WAITING_VERSION = 190000
_WAIT_SQL = "WAIT FOR LSN '{lsn}' WITH (TIMEOUT '{milliseconds}ms', NO_THROW);" + _REPLICA_SQL
_ANSWERER_SQL = f"SELECT pg_is_in_recovery(), pg_backend_pid(), {_LIFE}"

# A statement in the same message sees no less than was replayed here, if it has a snapshot of its own.
_STANDING_SQL = (
    f"{_ANSWERER_SQL}, CASE WHEN current_setting('transaction_isolation') = 'read committed' "
    "THEN pg_last_wal_replay_lsn()::text END"
)
_SERVER_SQL = (
    f"{_STANDING_SQL}, (SELECT system_identifier::text FROM pg_control_system()), "  # noqa: S608
    "(SELECT received_tli FROM pg_stat_wal_receiver), "
    "(SELECT timeline_id FROM pg_control_checkpoint())"
)
# For the length of the message. A pooler may lead it to a server that is no standby: what the query
# would write there is refused as on any, and written once, where it should be.
_READ_ONLY = "set_config('transaction_read_only', 'on', true) IS NOT NULL"
# Behind the statement: that it sees no more than was replayed by then.
_BOUND_SQL = "SELECT pg_last_wal_replay_lsn()::text"

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

_ISOLATION_SQL = "SELECT current_setting('default_transaction_isolation')"


_WAL_FILE = re.compile(r"([0-9A-F]{8})[0-9A-F]{16}", re.ASCII)


_MAYBE_TEXT = (str, NoneType)
_MAYBE_COUNT = (int, NoneType)
# Start time, address, port; the last two are NULL where the connection is no TCP one.
_LIFE_KINDS = ((str,), _MAYBE_TEXT, _MAYBE_COUNT)
_POSITION_KINDS = (_MAYBE_TEXT, _MAYBE_TEXT, (int,))


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
        pid: number of the server's process.
        replayed: where it was asked for, a position that it had replayed before it took the
            statement's snapshot; None where it does not tell.
        system: where it was asked for, the cluster's system identifier.
        timeline: with that, the timeline that it follows, as far as it tells; else 0.
    """

    life: tuple[Any, ...]
    in_recovery: bool
    pid: int
    replayed: int | None = None
    system: str | None = None
    timeline: int = 0


class Question(enum.Enum):
    """What a statement asks along of the server that answers it. The value is its SQL."""

    WHO = _ANSWERER_SQL
    STANDING = _STANDING_SQL
    ALL = _SERVER_SQL


_WHO_KINDS = ((bool,), (int,), *_LIFE_KINDS)
_ANSWERER_KINDS: Mapping[Question, Sequence[tuple[type, ...]]] = {
    Question.WHO: _WHO_KINDS,
    Question.STANDING: (*_WHO_KINDS, _MAYBE_TEXT),
    Question.ALL: (*_WHO_KINDS, _MAYBE_TEXT, _MAYBE_TEXT, _MAYBE_COUNT, _MAYBE_COUNT),
}


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


def read_token(connection: psycopg.Connection[Any], *, in_transaction: bool = False) -> Position:
    """Return a position at or behind every commit that this server has acknowledged so far.

    It is the *insert* position: right after an asynchronous commit the write position
    (``pg_current_wal_lsn``) still stands before the commit record. The timeline is taken from the
    name of the WAL file, since ``pg_control_checkpoint`` still tells the old one after a
    promotion.

    Call it after the outermost COMMIT, on a connection with no transaction open.

    Args:
        connection: to the primary.
        in_transaction: one may be open, in which nothing has been written.

    Raises:
        PositionError: the server is a standby, or answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    # Of a connection that is lost the driver says so.
    is_at_rest = connection.closed or can_be_asked(connection)
    if not (in_transaction or is_at_rest):
        message = "A transaction is open: its commit has no WAL position yet."
        raise PositionError(message)
    return parse_position(connection.execute(_POSITION_SQL).fetchone())


def open_transaction(connection: psycopg.Connection[Any]) -> int | None:
    """Return the number of the transaction that is open, or None where it has written nothing so far.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked, or the transaction has failed.
    """
    sql = "SELECT pg_current_xact_id_if_assigned()::text"
    (number,) = _ask(connection, sql, "its open transaction", (_MAYBE_TEXT,))
    return None if number is None else int(number)


def number_transaction(connection: psycopg.Connection[Any]) -> int:
    """Return the number of the transaction that is open, and give it one where it has written nothing so far.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked, or the transaction has failed.
    """
    sql = "SELECT pg_current_xact_id()::text"
    (number,) = _ask(connection, sql, "its open transaction", ((str,),))
    return int(number)


def is_in_progress(connection: psycopg.Connection[Any], number: int) -> bool:
    """Tell whether a transaction has not ended yet. What it wrote is visible as soon as it has not.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked, or has never had such a transaction.
    """
    sql = f"SELECT pg_xact_status('{number:d}'::xid8)"
    (status,) = _ask(connection, sql, "a transaction's status", (_MAYBE_TEXT,))
    return bool(status == "in progress")


def parse_position(row: object) -> Position:
    """Return the position that a row of three stands for: the insert LSN, its WAL file, the segment size.

    Raises:
        PositionError: the row holds something else.
    """
    lsn, wal_file, segment_size = _checked(row, "its WAL position", _POSITION_KINDS)
    if segment_size < WAL_PAGE_SIZE:
        message = f"The server tells a wal_segment_size of {segment_size}: less than a page."
        raise PositionError(message)
    return Position(_timeline(wal_file), normalise_insert_lsn(_position(lsn), segment_size))


def default_isolation(connection: psycopg.Connection[Any]) -> str:
    """Return the isolation level of transactions that name none, as the session has it.

    Args:
        connection: ``autocommit`` may be off, and no transaction is begun. One that is open stays as it is.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    if connection.info.transaction_status == pq.TransactionStatus.INTRANS:
        return str(_ask(connection, _ISOLATION_SQL, "its isolation level", ((str,),))[0])
    autocommit, connection.autocommit = connection.autocommit, True
    try:
        (level,) = _ask(connection, _ISOLATION_SQL, "its isolation level", ((str,),))
    finally:
        connection.autocommit = autocommit
    return str(level)


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


def flush(connection: psycopg.Connection[Any], lsn: int) -> bool:
    """Have the primary write its WAL to its disk, by a record of a few bytes, where a position is not.

    A standby gets no WAL that is not there, and who flushes it otherwise may take 15 s: a commit, the
    WAL writer where a page is full or a commit was asynchronous, the background writer.

    Args:
        connection: to the primary, at rest.
        lsn: the position. Where it is on disk, or is none of this server's, nothing is written.

    Returns:
        whether a record was written.

    Raises:
        psycopg.Error: the server refuses, or cannot be asked.
    """
    has_flush = connection.info.server_version >= _FLUSHING_VERSION
    sql = (_FLUSH_SQL if has_flush else _COMMIT_TO_FLUSH_SQL) + _IS_UNFLUSHED
    found = connection.execute(sql, {"lsn": format_lsn(lsn)}, prepare=False)
    return found.fetchone() is not None


def mark_moment(connection: psycopg.Connection[Any]) -> Position:
    """Return a position of a primary that tells what was committed before now from what is committed later.

    Of a commit before, the token lies at or before it. Of one that is acknowledged later it lies behind:
    a record is written in between. A snapshot that is taken after this shows all that was before.

    Args:
        connection: to the primary. What its own transaction, if one is open, has written lies before.

    Raises:
        PositionError: the server is a standby, or answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    position = read_token(connection, in_transaction=True)
    connection.execute(_MARK_SQL)
    return position


def hold_snapshot(connection: psycopg.Connection[Any]) -> str:
    """Begin a transaction that shows what is committed now, and return the name of its snapshot.

    Others may read by it for as long as the transaction is open. It holds no lock on any table.

    Args:
        connection: to the primary, at rest, in autocommit.

    Raises:
        psycopg.Error: the server cannot be asked.
    """
    connection.execute(f"BEGIN {_SNAPSHOT_MODE}")
    row = connection.execute("SELECT pg_export_snapshot()").fetchone()
    (name,) = _checked(row, "the name of its snapshot", ((str,),))
    return str(name)


def begin_by_snapshot(connection: psycopg.Connection[Any], snapshot: str) -> None:
    """Have a transaction that begins now show what a snapshot does, and write nothing.

    Args:
        connection: with none open yet. In autocommit end it by ``COMMIT``.
        snapshot: its name.

    Raises:
        psycopg.Error: the snapshot is gone, or the server cannot be asked.
    """
    begin = "BEGIN" if connection.autocommit else "SET TRANSACTION"
    connection.execute(f"{begin} {_SNAPSHOT_MODE}")
    connection.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))


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
    kinds = ((bool,), _MAYBE_TEXT, *_LIFE_KINDS)
    in_recovery, replayed, *life = _checked(row, "its replay position", kinds)
    return ReplicaAnswer(
        in_recovery, None if replayed is None else _position(replayed), tuple(life)
    )


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


def ask_along(
    query: str,
    lock_wait_ms: int,
    backend_pid: int,
    question: Question = Question.WHO,
    *,
    asks_bound: bool = False,
) -> str:
    """Return a message that asks who answers, and then does what the query does.

    In front: there nothing of the query's own, as a comment at its end, is in the way.

    Args:
        query: the query.
        lock_wait_ms: milliseconds that it may wait for a lock; 0 for as long as it takes.
        backend_pid: what libpq was told as the number of the server's process. Where that is right,
            later statements of the connection may wait no longer either.
        question: what is asked.
        asks_bound: behind the query, ask what it can have seen at most.
    """
    is_pooled = f"pg_backend_pid() <> {backend_pid}"
    wait = _bound_lock_wait(lock_wait_ms, is_local=is_pooled) if lock_wait_ms else " WHERE true"
    bound = f"\n;{_BOUND_SQL}" if asks_bound else ""
    return f"{question.value}{wait} AND {_READ_ONLY};\n{query}{bound}"


def can_ask_bound(query: str, cursor: Any) -> bool:
    """Tell whether a query can be followed by the question for its bound, and be read after it.

    Args:
        query: one that can ask along.
        cursor: the driver's cursor. psycopg 3.3 can go back to an earlier result, 3.2 cannot.
    """
    return hasattr(cursor, "set_result") and ";" not in query


def _bound_lock_wait(milliseconds: int, *, is_local: str, condition: str = "true") -> str:
    """Return a condition that is always met and, being looked at, bounds the waiting for locks.

    Where the role or the database has a bound of its own, that one holds.
    """
    return (
        f" WHERE CASE WHEN {condition} AND current_setting('lock_timeout') = '0' THEN "
        f"set_config('lock_timeout', '{milliseconds}', {is_local}) IS NOT NULL "
        f"ELSE true END"
    )


def lift_lock_wait(connection: psycopg.Connection[Any]) -> None:
    """Have the connection wait for locks as long as it takes.

    Raises:
        psycopg.Error: the server cannot be asked.
    """
    connection.execute("SET lock_timeout = 0")


def read_answerer(cursor: Any, question: Question = Question.WHO) -> Answerer:
    """Return who has answered what ``ask_along`` made; the cursor then yields the query's rows.

    Raises:
        PositionError: the server answers something else than expected.
    """
    row = cursor.fetchone()
    cursor.nextset()
    return _answerer(_checked(row, "its identity", _ANSWERER_KINDS[question]))


def _answerer(row: tuple[Any, ...]) -> Answerer:
    in_recovery, pid, *rest = row
    life, rest = tuple(rest[:3]), rest[3:]
    replayed, system, received, checkpointed = (*rest, *[None] * 4)[:4]
    return Answerer(
        life,
        in_recovery,
        pid,
        None if replayed is None else _position(replayed),
        system,
        received or checkpointed or 0,
    )


def read_bound(cursor: Any) -> int | None:
    """Return a position that a query has seen nothing behind, where ``ask_along`` has asked for it.

    Call it after ``read_answerer``; the cursor then yields the query's rows.

    Raises:
        PositionError: the server answers something else than expected.
    """
    cursor.set_result(-1)
    row = cursor.fetchone()
    cursor.set_result(1)
    (lsn,) = _checked(row, "its replay position", (_MAYBE_TEXT,))
    return None if lsn is None else _position(lsn)


def ask_server(connection: psycopg.Connection[Any]) -> Answerer:
    """Return all that tells which server answers, and where it stands, by one statement.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    kinds = _ANSWERER_KINDS[Question.ALL]
    return _answerer(_ask(connection, _SERVER_SQL, "its replay position", kinds))


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
        question += _bound_lock_wait(lock_wait_ms, is_local="false", condition=is_direct)
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
