"""Which cluster is behind the alias of a primary: what makes positions of two processes comparable."""

from __future__ import annotations

from typing import Any

import psycopg
from django.db import connections

from django_replica_router.errors import PositionError
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.sql import answering

_known: dict[str, int] = {}


def system_of(primary: str) -> int:
    """Return the system identifier of the cluster of a primary, which its standbys and successors share.

    Asked of the primary once in a process, where no monitor knows it.

    Args:
        primary: alias of the primary.

    Raises:
        PositionError: the server does not tell it.
        Exception: whatever connecting to the primary raises.
    """
    monitor = find_monitor(primary)
    identity = None if monitor is None else monitor.known.primary_identity
    if identity is not None:
        return int(identity.system)
    if primary not in _known:
        connection = connections[primary]
        connection.ensure_connection()
        raw: Any = connection.connection
        if not isinstance(raw, psycopg.Connection):
            message = f"{primary!r} is no connection of psycopg 3."
            raise PositionError(message)
        _known[primary] = int(answering.identify(raw).system)
    return _known[primary]
