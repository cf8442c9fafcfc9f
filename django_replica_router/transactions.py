"""Which connections to replicas are in a transaction, known without looking at each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django_replica_router.conf import get_config

replicas_in_transaction: set[Any] = set()
"""Django's connections to replicas, of all threads, that may be in an atomic block.

Nearly always empty, and that is all a repeated decision asks."""


def watch_transactions(connection: Any) -> None:
    """Have a connection noted while it is in a transaction, where it is a replica's.

    An atomic block begins by switching off autocommit (``Atomic.__enter__``), and ends by
    switching it on: there it is noticed.
    """
    switch: Callable[..., None] = connection.set_autocommit

    def set_autocommit(autocommit: bool, *args: Any, **kwargs: Any) -> None:
        switch(autocommit, *args, **kwargs)
        _note(connection, autocommit)

    connection.set_autocommit = set_autocommit
    if connection.connection is not None:  # whose settings may have switched it off already
        _note(connection, connection.autocommit)


def _note(connection: Any, autocommit: bool) -> None:
    if autocommit:
        replicas_in_transaction.discard(connection)
    elif get_config().topology.is_replica(connection.alias):
        replicas_in_transaction.add(connection)


def find_replica_in_atomic(find: Callable[[str], Any], aliases: Iterable[str]) -> str | None:
    """Return the alias of a replica whose connection of this thread is in an atomic block.

    Args:
        find: returns the thread's connection of an alias, or None where it has none yet.
        aliases: of the replicas.
    """
    if not replicas_in_transaction:
        return None
    for connection in list(replicas_in_transaction):
        if connection.connection is None:
            # It was closed inside its block, whose end then switches nothing.
            replicas_in_transaction.discard(connection)
    for alias in aliases:
        connection = find(alias)
        if connection is not None and connection.in_atomic_block:
            return alias
    return None
