"""The connections of a monitor that is stopped between two tests, for the one that comes after it.

A monitor that knows nothing is what each test begins with, and opening its three connections takes a
process of each server: more than all else between two tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import pytest
from django.db import connections

from django_replica_router.replicas.pollers import Poller
from django_replica_router.sql import opening
from django_replica_router.sql.states import can_be_asked

_opened: WeakKeyDictionary[psycopg.Connection[Any], str] = WeakKeyDictionary()
"""The connections that such a block has opened, and under which settings. What a test opens is not kept."""


@contextmanager
def monitors_keep_connections() -> Iterator[None]:
    """Have monitors that are stopped in the block leave their connections to those that are started in it."""
    kept: dict[str, psycopg.Connection[Any]] = {}
    connect, close = opening.connect, Poller._close

    def connect_or_take(alias: str, timeout: float) -> psycopg.Connection[Any]:
        under = repr(connections.settings[alias])
        connection = kept.pop(under, None)
        if connection is None or not is_alive(connection):
            connection = connect(alias, timeout)
            _opened[connection] = under
        return connection

    def keep_or_close(poller: Poller) -> None:
        connection = poller._connection
        if connection in _opened and poller.known.stopped and can_be_asked(connection):
            kept[_opened[connection]] = connection
            poller._connection = None
        close(poller)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "connect", connect_or_take)
        patch.setattr(Poller, "_close", keep_or_close)
        try:
            yield
        finally:
            for connection in kept.values():
                connection.close()


def is_alive(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the server answers on a connection, and close it if not: it may have been stopped meanwhile."""
    with suppress(psycopg.Error):
        return connection.execute("SELECT 1").fetchone() == (1,)
    connection.close()
    return False
