"""Methods of a cursor that run no wrapper of statements: what they write is noticed, and mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from django_replica_router.conf import get_config
from django_replica_router.mending import find_remedy, note_mended
from django_replica_router.postgres import is_unanswered
from django_replica_router.rerouting import open_on_primary
from django_replica_router.writes import find_state, mark_written, note_shown

_NO_ROW = object()


class WatchedCursor(CursorWrapper):
    """A cursor as Django makes it, that tells of ``callproc``, ``copy`` and ``stream``.

    Each counts as a write, also where it only reads: what it does is not known. What a replica cannot
    do is done on the primary, as a statement is, until the caller has seen the first row.
    """

    def callproc(self, procname: Any, *args: Any, **kwargs: Any) -> Any:
        with self._noting():
            try:
                return super().callproc(procname, *args, **kwargs)
            except Exception as error:
                other = self._on_primary(error, "")
            result = other.callproc(procname, *args, **kwargs)
            self.cursor = other.cursor
            return result

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._noting(), ExitStack() as stack:
            try:
                copy = stack.enter_context(self._inherited("copy")(statement, *args, **kwargs))
            except Exception as error:
                other: Any = self._on_primary(error, statement)
                copy = stack.enter_context(other.copy(statement, *args, **kwargs))
            yield copy

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._noting():
            rows = self._inherited("stream")(query, *args, **kwargs)
            try:
                first = next(rows, _NO_ROW)
            except Exception as error:
                other: Any = self._on_primary(error, query)
                rows = other.stream(query, *args, **kwargs)
                first = next(rows, _NO_ROW)
            if first is not _NO_ROW:
                yield first
                yield from rows

    def _on_primary(self, error: Exception, sql: Any) -> CursorWrapper:
        """Return a cursor of the primary in place of this one of a replica, or raise the error."""
        alias = self.db.alias
        primary = get_config().topology.primary_of.get(alias, alias)
        if primary == alias or self.db.in_atomic_block or not get_config().ENABLED:
            raise error
        remedy = find_remedy(primary, alias, self.db, error, sql)
        if remedy is None:
            raise error
        note_shown(primary)
        note_mended(primary, remedy)
        return open_on_primary(primary, server_side=False)

    def _inherited(self, name: str) -> Any:
        # Of the driver's cursor, where no class above this one has it.
        return getattr(super(), name, None) or self.__getattr__(name)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        alias, raw = self.db.alias, self.db.connection
        try:
            yield
        finally:
            if find_state(alias) is not None:
                mark_written(alias, uncertain=is_unanswered(raw), past=True)


@cache
def _watched(kind: type[CursorWrapper]) -> type[CursorWrapper]:
    return type(f"Watched{kind.__name__}", (WatchedCursor, kind), {})


def watch_cursors(connection: BaseDatabaseWrapper) -> None:
    """Have the cursors of a connection tell of what they write past Django."""
    for name in ("make_cursor", "make_debug_cursor"):
        if getattr(type(connection), name) is BaseDatabaseWrapper.make_cursor:
            make: Any = partial(_make_watched, connection)
        else:
            make = partial(_turn_watched, getattr(connection, name))
        setattr(connection, name, make)


def _make_watched(connection: BaseDatabaseWrapper, cursor: Any) -> CursorWrapper:
    return WatchedCursor(cursor, connection)


def _turn_watched(make: Callable[[Any], CursorWrapper], cursor: Any) -> CursorWrapper:
    """Do the same with whatever else makes a cursor, which takes a microsecond longer."""
    wrapper = make(cursor)
    if not isinstance(wrapper, WatchedCursor):  # else the connection is observed twice
        kind: Any = type(wrapper)
        wrapper.__class__ = _watched(kind)
    return wrapper
