"""Queries of the ORM that arrive at a replica past the router, led to where they belong now.

Django reads by ``using(instance._state.db)`` for a generic foreign key, ``get_next_by_FIELD`` and
deferred fields of peers, and other packages do so elsewhere. Where the object came from a replica,
that says nothing of where its reader should read now: there may have been a write since, a
transaction or ``use_primary`` may have begun, or the object may have outlived its request.

A transaction that is opened by such an alias is one on the primary: a standby locks and writes nothing,
and what was read there cannot be the ground for what is written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from django.db import connections, transaction

from django_replica_router.conf import Config, get_config
from django_replica_router.recording.writes import leave_unseen, note_shown
from django_replica_router.routing.deciding import holds
from django_replica_router.routing.reads import route_read
from django_replica_router.scopes.scope import Frame, get_frame, here
from django_replica_router.transactions.blocks import keeps_reads
from django_replica_router.values.routed import RoutedAlias
from django_replica_router.values.statements import IgnoredWrite

_WRITERS = ("Insert", "Update", "Delete")


def _find_server(alias: RoutedAlias, connection: Any, model: Any, *, writes: bool) -> str:
    """Return the alias of the server on which a query by that alias is to run.

    Args:
        alias: of the replica that Django has kept.
        connection: Django's connection to it.
        model: the query's model.
        writes: the query writes.
    """
    config = get_config()
    primary = config.topology.primary_of.get(alias, alias.primary)
    if writes:
        return primary
    if connection.in_atomic_block:
        return alias  # a block on the replica, which the code has named
    frame = get_frame()
    if _is_chosen(alias, primary, model, config, frame):
        return alias
    return route_read(primary, model, config, frame)[0]


def _is_shortcut(alias: RoutedAlias, model: Any) -> bool:
    """Tell whether the router has just taken a shortcut to the replica, and would again."""
    shortcuts = get_frame().shortcuts
    mine = None if shortcuts is None else shortcuts.get(here.thread)
    shortcut = None if mine is None else mine.get(alias.primary)
    if shortcut is None or shortcut.alias is not alias or model not in shortcut.models:
        return False
    primary, identity = shortcut.connection, shortcut.identity
    if primary.in_atomic_block and primary.atomic_blocks != shortcut.idle:
        return False
    return identity.settled or not identity.has_news()


def _is_chosen(alias: RoutedAlias, primary: str, model: Any, config: Config, frame: Frame) -> bool:
    """Tell whether the replica is where the reader reads at this moment.

    It is, as a rule: the router was asked just before. Asking it again would count the read twice.
    """
    scope, override = frame.scope, frame.override
    state = None if scope is None else scope.clusters.get(primary)
    if scope is None or state is None or state.route.failed or not config.ENABLED:
        return False
    max_lag = config.MAX_LAG
    if override is None:
        if state.wrote or scope.unsafe or scope.learned:
            return False
    elif override.primary:
        return False
    elif override.max_lag is not None:
        max_lag = override.max_lag
    if keeps_reads(connections[primary]) or config.is_primary_only(model):
        return False
    choice = state.route.choices.get(max_lag)
    return choice is not None and choice.decision.alias == alias and holds(choice, scope, state)


def _lead(compiler: Any, *, writes: bool) -> None:
    """Have a compiler that was made for a replica run its query where that belongs."""
    using = compiler.using
    server = _find_server(using, compiler.connection, compiler.query.model, writes=writes)
    if server is not using:
        compiler.using, compiler.connection = server, connections[server]


def _binds_nobody(model: Any) -> bool:
    """Tell whether what is written to the model's table, and so what is seen there, must not be there later."""
    config = get_config()
    return config.is_primary_only(model) or config.ignores_writes(model)


class LedReader:
    """Stands in front of a compiler class that reads, and runs the query that it is made for."""

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Run the query where it belongs; on the primary where it cannot be one query on the replica.

        Django refuses a subquery that names another database, ``using("default")``, than the one that
        the query runs on.
        """
        compiler: Any = self
        using, model = compiler.using, compiler.query.model
        if type(using) is RoutedAlias:
            if compiler.connection.in_atomic_block or not _is_shortcut(using, model):
                _lead(compiler, writes=False)
        elif _binds_nobody(model):
            leave_unseen(compiler.connection, model)
        try:
            return super().execute_sql(*args, **kwargs)  # type: ignore[misc]
        except ValueError:
            using = compiler.using
            if type(using) is not RoutedAlias:
                raise
        compiler.using, compiler.connection = using.primary, connections[using.primary]
        note_shown(using.primary)
        return super().execute_sql(*args, **kwargs)  # type: ignore[misc]


class LedWriter:
    """Stands in front of a compiler class that makes an INSERT, UPDATE or DELETE: it runs on the primary."""

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Run the query where it belongs."""
        compiler: Any = self
        if type(compiler.using) is RoutedAlias:
            _lead(compiler, writes=True)
        return super().execute_sql(*args, **kwargs)  # type: ignore[misc]

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the compiler does, with each statement marked where it binds nobody."""
        query: Any = getattr(self, "query", None)
        made = super().as_sql(*args, **kwargs)  # type: ignore[misc]
        if not get_config().ignores_writes(query.model):
            return made
        if isinstance(made, list):  # an INSERT may be several
            return [(IgnoredWrite(sql), params) for sql, params in made]
        return IgnoredWrite(made[0]), made[1]


@cache
def _led(kind: Any) -> type[Any]:
    """Return a subclass of a compiler class, made once."""
    front = LedWriter if any(word in kind.__name__ for word in _WRITERS) else LedReader
    return type(kind.__name__, (front, kind), {"__module__": kind.__module__})


class LedOperations:
    """Stands in front of the class of a connection's operations, which finds its compilers."""

    _compilers: dict[str, Any]

    def compiler(self, compiler_name: str) -> type[Any]:
        """Return a class of compilers by its name."""
        found = self._compilers.get(compiler_name)
        if found is None:
            kind: Any = super().compiler(compiler_name)  # type: ignore[misc]
            found = self._compilers[compiler_name] = _led(kind)
        compiler: type[Any] = found
        return compiler


@cache
def led_operations(kind: Any) -> type[Any]:
    """Return a subclass of a class of operations, made once, whose queries are led."""
    front: type[Any] = kind
    if issubclass(front, LedOperations):
        return front
    names = {"__module__": kind.__module__, "_compilers": {}}
    return type(kind.__name__, (LedOperations, kind), names)


def lead_transactions() -> None:
    """Have what ``django.db.transaction`` does by the alias of an object done on the primary."""
    find: Any = transaction.get_connection

    def get_connection(using: Any = None) -> Any:
        return find(using.primary if type(using) is RoutedAlias else using)

    transaction.get_connection = get_connection
