"""Transactions on a primary: their numbers, their isolation, and what others may see by one."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import pq
from psycopg.sql import SQL

from django_replica_router.sql.rows import MAYBE_TEXT, ask, check

_SNAPSHOT_MODE = "ISOLATION LEVEL REPEATABLE READ, READ ONLY"

_ISOLATION_SQL = "SELECT current_setting('default_transaction_isolation')"


def open_transaction(connection: psycopg.Connection[Any]) -> int | None:
    """Return the number of the transaction that is open, or None where it has written nothing so far.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked, or the transaction has failed.
    """
    sql = "SELECT pg_current_xact_id_if_assigned()::text"
    (number,) = ask(connection, sql, "its open transaction", (MAYBE_TEXT,))
    return None if number is None else int(number)


def number_transaction(connection: psycopg.Connection[Any]) -> int:
    """Return the number of the transaction that is open, and give it one where it has written nothing so far.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked, or the transaction has failed.
    """
    sql = "SELECT pg_current_xact_id()::text"
    (number,) = ask(connection, sql, "its open transaction", ((str,),))
    return int(number)


def is_in_progress(connection: psycopg.Connection[Any], number: int) -> bool:
    """Tell whether a transaction has not ended yet. What it wrote is visible as soon as it has not.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked, or has never had such a transaction.
    """
    sql = f"SELECT pg_xact_status('{number:d}'::xid8)"
    (status,) = ask(connection, sql, "a transaction's status", (MAYBE_TEXT,))
    return bool(status == "in progress")


def default_isolation(connection: psycopg.Connection[Any]) -> str:
    """Return the isolation level of transactions that name none, as the session has it.

    Args:
        connection: ``autocommit`` may be off, and no transaction is begun. One that is open stays as it is.

    Raises:
        PositionError: the server answers something else than expected.
        psycopg.Error: the server cannot be asked.
    """
    if connection.info.transaction_status == pq.TransactionStatus.INTRANS:
        return str(ask(connection, _ISOLATION_SQL, "its isolation level", ((str,),))[0])
    autocommit, connection.autocommit = connection.autocommit, True
    try:
        (level,) = ask(connection, _ISOLATION_SQL, "its isolation level", ((str,),))
    finally:
        connection.autocommit = autocommit
    return str(level)


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
    (name,) = check(row, "the name of its snapshot", ((str,),))
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
