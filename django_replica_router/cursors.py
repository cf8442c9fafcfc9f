"""Notices what is written by methods of a cursor that run no wrapper of statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from django_replica_router.postgres import is_unanswered
from django_replica_router.writes import find_state, mark_written


class WatchedCursor(CursorWrapper):
    """A cursor as Django makes it, that tells of ``callproc``, ``copy`` and ``stream``.

    Each counts as a write, also where it only reads: what it does is not known.
    """

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        with self._noting():
            return super().callproc(*args, **kwargs)

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._noting(), self._inherited("copy")(*args, **kwargs) as copy:
            yield copy

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._noting():
            yield from self._inherited("stream")(*args, **kwargs)

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
                mark_written(alias, uncertain=is_unanswered(raw))


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
