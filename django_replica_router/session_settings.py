"""What the code has set for the session of a connection: its later statements may show other rows by it."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from django_replica_router.statements import Kind, named_setting

logger = logging.getLogger("django_replica_router")

_SETTINGS = "_replica_router_settings"


class _Settings(NamedTuple):
    """The settings of one session.

    Args:
        raw: the driver's connection. Django may have opened another one since, which has none of them.
        values: the statement that has made each, and its parameters.
    """

    raw: Any
    values: dict[str, str]


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
    known: _Settings | None = connection.__dict__.get(_SETTINGS)
    if known is None or known.raw is not connection.connection:
        known = _Settings(connection.connection, {})
        connection.__dict__[_SETTINGS] = known
    before = dict(known.values)
    if kind is Kind.SETTING:
        known.values[name or str(sql)] = f"{sql} {params!r}"
    elif name == "all":
        known.values.clear()
    else:
        known.values.pop(str(name), None)
    return before != known.values


def _values(connection: Any) -> dict[str, str]:
    known: _Settings | None = connection.__dict__.get(_SETTINGS)
    if known is None or known.raw is not connection.connection:
        return {}
    return known.values


def are_alike(primary: Any, replica: Any) -> bool:
    """Tell whether two of Django's connections of this thread show the same rows.

    That of a primary which is not open has set nothing that the other might lack.
    """
    return primary.connection is None or _values(primary) == _values(replica)
