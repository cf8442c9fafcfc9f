"""Which connections are in a transaction that their reads must stay in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django_replica_router.conf import get_config

replicas_in_transaction: set[Any] = set()
"""Django's connections to replicas, of all threads, that may be in an atomic block.

Nearly always empty, and that is all a repeated decision asks."""


_NONE = (None,)  # unequal to any list of blocks


def idle_blocks(connection: Any) -> list[Any]:
    """Return a list that is equal to ``connection.atomic_blocks`` while the open block keeps no reads.

    It is one and the same list as long as the connection object lives, so that whoever has it need
    not ask again.
    """
    # One that was made before the app was ready, and not opened since, has no such attribute.
    blocks: list[Any] | None = getattr(connection, "idle_blocks", None)
    return [*_NONE] if blocks is None else blocks


def end_idling(connection: Any) -> None:
    """Have the open block keep all further reads: something in it must be seen, or must not change."""
    idle_blocks(connection)[:] = _NONE


def is_outermost(connection: Any) -> bool:
    """Tell whether the innermost block that is open is the only one, but for those of a test case at work.

    Whatever keeps the list of ``idle_blocks`` may say which blocks lie around: they count as none.
    """
    around: list[Any] = getattr(idle_blocks(connection), "around", [])
    is_alone: bool = connection.atomic_blocks[:-1] == around
    return is_alone


def keeps_reads(connection: Any) -> bool:
    """Tell whether an atomic block is open on a connection to a primary in which reads must stay.

    Any does but the one that Django's handler has opened around a view (``ATOMIC_REQUESTS``), until
    something is written, locked or set in it.
    """
    is_open: bool = connection.in_atomic_block
    return is_open and connection.atomic_blocks != idle_blocks(connection)


def note_transaction(connection: Any) -> None:
    """Note a connection while it is in a transaction, where it is a replica's.

    An atomic block begins by switching off autocommit (``Atomic.__enter__``), and ends by switching
    it on: call this after either.
    """
    if connection.autocommit:
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
