"""What the code has set for the session of a connection: its later statements may show other rows by it."""

from __future__ import annotations

from typing import Any

from django_replica_router.replicas.attributes import SessionSettings
from django_replica_router.values.statements import Kind, named_setting


def note_setting(connection: Any, kind: Kind, sql: Any, params: Any) -> bool:
    """Remember what a statement has set, or has taken back; tell whether that changes anything.

    Args:
        connection: Django's connection.
        kind: that of the statement: ``SETTING`` or ``SESSION``.
        sql: the statement.
        params: its parameters.
    """
    name = named_setting(sql)
    if kind is Kind.SESSION and name is None:
        return False
    known: SessionSettings | None = connection.session_settings
    if known is None or known.raw is not connection.connection:
        known = connection.session_settings = SessionSettings(connection.connection, {})
    before = dict(known.values)
    if kind is Kind.SETTING:
        known.values[name or str(sql)] = f"{sql} {params!r}"
    elif name == "all":
        known.values.clear()
    else:
        known.values.pop(str(name), None)
    return before != known.values


def _values(connection: Any) -> dict[str, str]:
    # One that was made before the app was ready, and not opened since, has no such attribute.
    known: SessionSettings | None = getattr(connection, "session_settings", None)
    if known is None or known.raw is not connection.connection:
        return {}
    return known.values


def sets_isolation(connection: Any) -> bool:
    """Tell whether the code has set the isolation level of the session's transactions."""
    return any("isolation" in statement.lower() for statement in _values(connection).values())


def are_alike(primary: Any, replica: Any) -> bool:
    """Tell whether two of Django's connections of this thread show the same rows.

    That of a primary which is not open has set nothing that the other might lack.
    """
    if primary.connection is None:
        return True
    mine = getattr(primary, "session_settings", None)
    if mine is None and getattr(replica, "session_settings", None) is None:
        return True  # as a rule
    return _values(primary) == _values(replica)
