"""The block that Django's handler opens around a view (``ATOMIC_REQUESTS``), told from all others.

Django has no hook for it: ``BaseHandler.make_view_atomic`` is replaced by one that calls it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psycopg
from django.core.handlers.base import BaseHandler
from django.db import connections
from psycopg import IsolationLevel

from django_replica_router.conf import get_config
from django_replica_router.logs import fields, logger
from django_replica_router.scopes.scope import current_scope
from django_replica_router.sql import transacting
from django_replica_router.transactions.blocks import end_idling, idle_blocks, is_outermost
from django_replica_router.transactions.postponing import Postponed, can_be_postponed
from django_replica_router.transactions.settings import sets_isolation

View = Callable[..., Any]

# By alias of a primary. Asked once in a process.
_default_levels: dict[str, str] = {}


def watch_handlers_blocks() -> None:
    """Have the handler's blocks on primaries known as such, and none opened on replicas."""
    make = BaseHandler.make_view_atomic
    if make.__module__ == __name__:
        return  # the app is made ready anew, as by a test with other INSTALLED_APPS

    def make_view_atomic(handler: BaseHandler, view: View) -> View:
        made = make(handler, view)
        if made is view or not get_config().ENABLED:
            return made  # there is no block around it
        settings = connections.settings.items()
        atomic = [alias for alias, values in settings if values["ATOMIC_REQUESTS"]]
        return _watch_blocks(functools.partial(make, handler), view, atomic)

    handler_class: Any = BaseHandler
    handler_class.make_view_atomic = make_view_atomic


def _watch_blocks(make: Callable[[View], View], view: View, atomic: Iterable[str]) -> View:
    """Return the view in its blocks, whose beginning and end are watched.

    What is called inside them is called before anything else: so the last block on each of these
    connections is the handler's.
    """
    topology = get_config().topology
    # Of a class perhaps, which ``wraps`` does not copy.
    without: set[str] = set(getattr(view, "_non_atomic_requests", ()))
    primaries = [alias for alias in atomic if alias in topology.clusters and alias not in without]
    postponed: list[Postponed] = []

    @functools.wraps(view)
    def inside(*args: Any, **kwargs: Any) -> Any:
        for block in postponed:
            block.confirm()
        for alias in primaries:
            _note_block(connections[alias])
        try:
            return view(*args, **kwargs)
        finally:
            for block in postponed:
                block.end()

    # A replica takes no writes: a block there would only keep the view's reads on it, however old.
    replicas = (alias for alias in atomic if topology.is_replica(alias))
    inside._non_atomic_requests = without.union(replicas)  # type: ignore[attr-defined]
    in_blocks = make(inside)

    @functools.wraps(view)
    def outside(*args: Any, **kwargs: Any) -> Any:
        postponed.extend(_postpone(primaries))
        try:
            return in_blocks(*args, **kwargs)
        finally:
            for block in postponed:
                block.over()

    return outside


def _postpone(primaries: Iterable[str]) -> Iterator[Postponed]:
    """Have the blocks of a request that may need no primary begin without its server."""
    scope = current_scope()
    if scope is None or scope.unsafe:
        return
    for alias in primaries:
        connection = connections[alias]
        if can_be_postponed(connection) and _is_read_committed(connection):
            block = Postponed(connection, _end_idling_above_read_committed)
            block.begin()
            yield block


def _note_block(connection: Any) -> None:
    """Note the handler's block where it is the only one, and promises its reads nothing more.

    Where a transaction was open before, as by a test case or a middleware, the handler's block is a
    part of it. (With the test kit at work, a test case's own counts as none.)
    """
    if is_outermost(connection) and connection.commit_on_exit:
        idle_blocks(connection)[:] = connection.atomic_blocks
        _end_idling_above_read_committed(connection)
    else:
        end_idling(connection)


def _end_idling_above_read_committed(connection: Any) -> None:
    if not _is_read_committed(connection):
        end_idling(connection)


def _is_read_committed(connection: Any) -> bool:
    """Tell whether a transaction on the connection sees with each statement what is committed by then."""
    raw = connection.connection
    if connection.vendor != "postgresql" or sets_isolation(connection):
        return False
    if raw is None:
        level = connection.settings_dict["OPTIONS"].get("isolation_level")
    elif isinstance(raw, psycopg.Connection):
        level = raw.isolation_level
    else:
        return False
    if level is not None:
        return bool(level <= IsolationLevel.READ_COMMITTED)
    return _default_level(connection.alias, raw) in {"read committed", "read uncommitted"}


def _default_level(alias: str, raw: psycopg.Connection[Any] | None) -> str | None:
    """Return the isolation level of transactions that name none, or None where nobody knows it."""
    if alias not in _default_levels and raw is not None:
        try:
            _default_levels[alias] = transacting.default_isolation(raw)
        except Exception as error:  # whatever it is, the view will meet it
            logger.warning(
                "%r does not tell its default isolation level: %s",
                alias,
                error,
                extra=fields("isolation_untold", error, alias=alias),
            )
    return _default_levels.get(alias)
