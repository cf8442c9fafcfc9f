"""Which server answers: asked for by itself, or along with a statement in one message."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from django_replica_router.sql.rows import (
    LIFE_KINDS,
    LIFE_SQL,
    MAYBE_COUNT,
    MAYBE_TEXT,
    ask,
    check,
    read_lsn,
)

_ANSWERER_SQL = f"SELECT pg_is_in_recovery(), pg_backend_pid(), {LIFE_SQL}"

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

# For as long as the connection stands: a server that is promoted tells so with its next answer, when it would
# have written already.
_STAYS_READ_ONLY = "set_config('default_transaction_read_only', 'on', {is_local}) IS NOT NULL"

# Behind the statement: that it sees no more than was replayed by then.
_BOUND_SQL = "SELECT pg_last_wal_replay_lsn()::text"

_IDENTITY_SQL = (
    f"SELECT system_identifier::text, pg_is_in_recovery(), pg_backend_pid(), {LIFE_SQL} "  # noqa: S608
    "FROM pg_control_system()"
)


class Question(enum.Enum):
    """What a statement asks along of the server that answers it. The value is its SQL."""

    WHO = _ANSWERER_SQL
    STANDING = _STANDING_SQL
    ALL = _SERVER_SQL


_WHO_KINDS = ((bool,), (int,), *LIFE_KINDS)

_ANSWERER_KINDS: Mapping[Question, Sequence[tuple[type, ...]]] = {
    Question.WHO: _WHO_KINDS,
    Question.STANDING: (*_WHO_KINDS, MAYBE_TEXT),
    Question.ALL: (*_WHO_KINDS, MAYBE_TEXT, MAYBE_TEXT, MAYBE_COUNT, MAYBE_COUNT),
}


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
    is_first: bool = False,
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
        is_first: nobody has looked where the connection leads. Where that is straight to a server, later
            statements of it may write nothing either.
    """
    is_pooled = f"pg_backend_pid() <> {backend_pid}"
    wait = _bound_lock_wait(lock_wait_ms, is_local=is_pooled) if lock_wait_ms else "true"
    bound = f"\n;{_BOUND_SQL}" if asks_bound else ""
    stays = f" AND {_STAYS_READ_ONLY.format(is_local=is_pooled)}" if is_first else ""
    return f"{question.value} WHERE {wait}{stays} AND {_READ_ONLY};\n{query}{bound}"


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
        f"CASE WHEN {condition} AND current_setting('lock_timeout') = '0' THEN "
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
    return _answerer(check(row, "its identity", _ANSWERER_KINDS[question]))


def _answerer(row: tuple[Any, ...]) -> Answerer:
    in_recovery, pid, *rest = row
    life, rest = tuple(rest[:3]), rest[3:]
    replayed, system, received, checkpointed = (*rest, *[None] * 4)[:4]
    return Answerer(
        life,
        in_recovery,
        pid,
        None if replayed is None else read_lsn(replayed),
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
    (lsn,) = check(row, "its replay position", (MAYBE_TEXT,))
    return None if lsn is None else read_lsn(lsn)


def ask_server(connection: psycopg.Connection[Any]) -> Answerer:
    """Return all that tells which server answers, and where it stands, by one statement.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    kinds = _ANSWERER_KINDS[Question.ALL]
    return _answerer(ask(connection, _SERVER_SQL, "its replay position", kinds))


def identify(
    connection: psycopg.Connection[Any], lock_wait_ms: int | None = None
) -> ServerIdentity:
    """Return which server, and which life of it, the connection reaches.

    Args:
        connection: at rest.
        lock_wait_ms: milliseconds that its statements may wait for a lock from now on, where they may write
            nothing either, whatever becomes of a standby; 0 for as long as it takes. None leaves all as it
            is. A pooler's connection is left as it is: others use its server, too.

    Raises:
        psycopg.Error: the server cannot be asked.
        PositionError: the server answers something else than expected.
    """
    kinds = ((str,), (bool,), (int,), *LIFE_KINDS)
    question = _IDENTITY_SQL
    if lock_wait_ms is not None:
        is_direct = f"pg_backend_pid() = {connection.info.backend_pid}"
        stays = _STAYS_READ_ONLY.format(is_local="false")
        question += (
            f" WHERE CASE WHEN {is_direct} AND pg_is_in_recovery() THEN {stays} ELSE true END"
        )
        if lock_wait_ms:
            wait = _bound_lock_wait(lock_wait_ms, is_local="false", condition=is_direct)
            question += f" AND {wait}"
    system, in_recovery, pid, *life = ask(connection, question, "its identity", kinds)
    # A pooler makes up the process id that libpq is told when it connects: it stands for the
    # pooler's own client, so that a cancel request can be led to whatever server that has then.
    is_pooled = connection.info.backend_pid != pid
    return ServerIdentity(system, tuple(life), in_recovery, is_pooled)
