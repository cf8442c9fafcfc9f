"""What a driver's connection is in the midst of, told without asking the server."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import pq

READ_ONLY_SQL_TRANSACTION = "25006"
"""SQLSTATE of a write on a standby (PostgreSQL documentation, appendix A)."""


def has_begun(connection: object) -> bool:
    """Tell whether a transaction is open on a connection, of whichever thread, that stands."""
    return (
        isinstance(connection, psycopg.Connection)
        and not connection.closed
        and connection.info.transaction_status != pq.TransactionStatus.IDLE
    )


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


def can_be_asked(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the connection is at rest, with no transaction open."""
    return not connection.closed and connection.info.transaction_status == pq.TransactionStatus.IDLE
