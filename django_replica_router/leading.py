"""Queries of the ORM that arrive at a replica past the router, led to where they belong now.

Django reads by ``using(instance._state.db)`` for a generic foreign key, ``get_next_by_FIELD`` and
deferred fields of peers, and other packages do so elsewhere. Where the object came from a replica,
that says nothing of where its reader should read now: there may have been a write since, a
transaction or ``use_primary`` may have begun, or the object may have outlived its request.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.conf import Config, get_config
from django_replica_router.context import Frame, current_frame
from django_replica_router.reads import route_read
from django_replica_router.routed import RoutedAlias
from django_replica_router.writes import note_shown

_WRITERS = ("Insert", "Update", "Delete")


def _find_server(alias: RoutedAlias, connection: Any, model: Any, *, writes: bool) -> str:
    """Return the alias of the server on which a query by that alias is to run.

    Args:
        alias: of the replica that Django has kept.
        connection: Django's connection to it.
        model: the query's model.
        writes: the query writes.
    """
    if connection.in_atomic_block:
        return alias  # a block on the replica, which moves as a whole where something writes
    config = get_config()
    primary = config.topology.primary_of.get(alias, alias.primary)
    if writes:
        return primary
    frame = current_frame.get()
    if _is_chosen(alias, primary, model, config, frame):
        return alias
    return route_read(primary, model, config, frame)[0]


def _is_chosen(alias: RoutedAlias, primary: str, model: Any, config: Config, frame: Frame) -> bool:
    """Tell whether the replica is where the reader reads at this moment.

    It is, as a rule: the router was asked just before. Asking it again would count the read twice.
    """
    scope, override = frame.scope, frame.override
    state = None if scope is None else scope.clusters.get(primary)
    if scope is None or state is None or state.failed or not config.ENABLED:
        return False
    max_lag = config.MAX_LAG
    if override is None:
        if state.wrote or scope.unsafe or scope.learned:
            return False
    elif override.primary:
        return False
    elif override.max_lag is not None:
        max_lag = override.max_lag
    if connections[primary].in_atomic_block or config.is_primary_only(model):
        return False
    identity = scope.identity
    if not identity.settled and identity.has_news():
        return False
    choice = state.choices.get(max_lag)
    return choice is not None and choice.alias == alias


def _note_named(alias: Any, model: Any) -> None:
    """Remember that the reader sees on the primary, by its name, what must not be missing the next time.

    Also by that of an object which was read there. Where the router has chosen the primary, it has done so.
    """
    scope = current_frame.get().scope
    state = None if scope is None else scope.clusters.get(alias)
    if state is None or state.seen_on == alias or not state.choices:
        return  # or nothing is decided, as where it is read who the reader is
    if not get_config().is_primary_only(model):
        note_shown(alias)


class LedCompiler:
    """Stands in front of a compiler class of Django's, which runs the query that it is made for."""

    writes = False

    def __init__(self, query: Any, connection: Any, using: Any, *args: Any, **kwargs: Any) -> None:
        # A raw query is of no model, and opens its cursor by itself.
        if type(using) is RoutedAlias and hasattr(query, "model"):
            server = _find_server(using, connection, query.model, writes=self.writes)
            if server is not using:
                using, connection = server, connections[server]
        elif not self.writes and hasattr(query, "model"):
            _note_named(using, query.model)
        super().__init__(query, connection, using, *args, **kwargs)  # type: ignore[call-arg]

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Run the query; on the primary where it cannot be one query on the replica.

        Django refuses a subquery that names another database, ``using("default")``, than the one that
        the query runs on.
        """
        try:
            return super().execute_sql(*args, **kwargs)  # type: ignore[misc]
        except ValueError:
            using: Any = getattr(self, "using", None)
            if type(using) is not RoutedAlias:
                raise
        self.using: str = using.primary
        self.connection: Any = connections[using.primary]
        note_shown(using.primary)
        return super().execute_sql(*args, **kwargs)  # type: ignore[misc]


@cache
def _led(kind: Any) -> type[Any]:
    """Return a subclass of a compiler class, made once."""
    writes = any(word in kind.__name__ for word in _WRITERS)
    return type(
        kind.__name__, (LedCompiler, kind), {"writes": writes, "__module__": kind.__module__}
    )


def lead_queries(connection: BaseDatabaseWrapper) -> None:
    """Have the queries of a connection led."""
    find = connection.ops.compiler

    def compiler(compiler_name: str) -> type[Any]:
        kind: Any = find(compiler_name)
        return kind if issubclass(kind, LedCompiler) else _led(kind)

    connection.ops.compiler = compiler  # type: ignore[method-assign]
