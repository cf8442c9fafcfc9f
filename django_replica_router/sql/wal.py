"""The WAL of a primary: where it stands, what of it is on disk, and how to have it written out."""

from __future__ import annotations

from typing import Any

import psycopg

from django_replica_router.errors import PositionError
from django_replica_router.sql.rows import MAYBE_TEXT, ask, check, read_lsn, read_timeline
from django_replica_router.sql.states import can_be_asked
from django_replica_router.values.lsn import WAL_PAGE_SIZE, format_lsn, normalise_insert_lsn
from django_replica_router.values.tokens import Position

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

_IS_UNFLUSHED = (
    " WHERE pg_current_wal_flush_lsn() < %(lsn)s AND %(lsn)s <= pg_current_wal_insert_lsn()"
)

_MARK_SQL = "SELECT pg_logical_emit_message(false, 'django-replica-router', '')"

_POSITION_KINDS = (MAYBE_TEXT, MAYBE_TEXT, (int,))


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


def parse_position(row: object) -> Position:
    """Return the position that a row of three stands for: the insert LSN, its WAL file, the segment size.

    Raises:
        PositionError: the row holds something else.
    """
    lsn, wal_file, segment_size = check(row, "its WAL position", _POSITION_KINDS)
    if segment_size < WAL_PAGE_SIZE:
        message = f"The server tells a wal_segment_size of {segment_size}: less than a page."
        raise PositionError(message)
    return Position(read_timeline(wal_file), normalise_insert_lsn(read_lsn(lsn), segment_size))


def sample_primary(connection: psycopg.Connection[Any]) -> Position:
    """Return the position up to which the primary's WAL is on its disk.

    A standby gets no WAL beyond it, and on an idle primary a standby reaches it at once. Behind
    it may lie asynchronous commits of the last ``3 * wal_writer_delay`` (0.6 s by default).

    Raises:
        PositionError: the server is a standby, or answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    kinds = (MAYBE_TEXT, MAYBE_TEXT)
    lsn, wal_file = ask(connection, _PRIMARY_SQL, "its WAL position", kinds)
    return Position(read_timeline(wal_file), read_lsn(lsn))


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
