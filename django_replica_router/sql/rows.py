"""Rows that a server answers: each value is looked at before anybody relies on it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from types import NoneType
from typing import Any

import psycopg

from django_replica_router.errors import PositionError
from django_replica_router.values.lsn import parse_lsn

_WAL_FILE = re.compile(r"([0-9A-F]{8})[0-9A-F]{16}", re.ASCII)

MAYBE_TEXT = (str, NoneType)
MAYBE_COUNT = (int, NoneType)

# As a number: a time as text depends on the session's TimeZone, and Django sets one.
LIFE_SQL = (
    "extract(epoch FROM pg_postmaster_start_time())::text, "
    "inet_server_addr()::text, inet_server_port()"
)

# Start time, address, port; the last two are NULL where the connection is no TCP one.
LIFE_KINDS = ((str,), MAYBE_TEXT, MAYBE_COUNT)


def ask(
    connection: psycopg.Connection[Any], sql: str, what: str, kinds: Sequence[tuple[type, ...]]
) -> tuple[Any, ...]:
    """Return the row that the server answers, with a value of one of the kinds in each column.

    Args:
        connection: to the server.
        sql: the question.
        what: what it is for, for whoever reads the error.
        kinds: of each column, the types that a value may have.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    # Never prepared: behind a pooler, the next statement may meet a server that was told nothing.
    return check(connection.execute(sql, prepare=False).fetchone(), what, kinds)


def check(row: object, what: str, kinds: Sequence[tuple[type, ...]]) -> tuple[Any, ...]:
    """Return a row, if it has a value of one of the kinds in each column.

    Raises:
        PositionError: it has something else, or there is none.
    """
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


def read_lsn(lsn: object) -> int:
    """Return an LSN that the server has told as text.

    Raises:
        PositionError: it has told none.
    """
    if not isinstance(lsn, str):
        message = "The server told no WAL position. Is it a standby, or not PostgreSQL?"
        raise PositionError(message)
    try:
        return parse_lsn(lsn)
    except ValueError as error:
        raise PositionError(str(error)) from None


def read_timeline(wal_file: object) -> int:
    """Return the timeline that the name of a WAL file begins with.

    Raises:
        PositionError: it is no such name.
    """
    match = _WAL_FILE.fullmatch(wal_file) if isinstance(wal_file, str) else None
    timeline = 0 if match is None else int(match[1], 16)
    if not timeline:
        message = f"Cannot read a timeline from {wal_file!r}: expected the name of a WAL file."
        raise PositionError(message)
    return timeline
