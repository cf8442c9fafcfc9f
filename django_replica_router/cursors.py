"""Notices what is written by methods of a cursor that Django hands on to the driver as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg

from django_replica_router.conf import get_config
from django_replica_router.context import current_scope
from django_replica_router.postgres import is_busy
from django_replica_router.writes import mark_written

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    class _Cursor(psycopg.Cursor[Any]):
        def callproc(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    _Cursor = object


class WatchedMixin(_Cursor):
    """Tells of ``callproc``, ``copy`` and ``stream``, which run no wrapper of statements.

    Each counts as a write, also where it only reads: what it does is not known.
    """

    watched_alias: ClassVar[str]

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        with self._noting():
            return super().callproc(*args, **kwargs)

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Copy]:
        with self._noting(), super().copy(*args, **kwargs) as copy:
            yield copy

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._noting():
            yield from super().stream(*args, **kwargs)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        raw = self.connection
        try:
            yield
        finally:
            if current_scope() is not None:
                config, alias = get_config(), self.watched_alias
                if config.ENABLED and config.topology.primary_of.get(alias) == alias:
                    # Where its answer was lost, or nobody waits for it, it may be committed yet.
                    mark_written(alias, uncertain=raw.closed or is_busy(raw))


@cache
def _watched(kind: type[Any], alias: str) -> type[Any]:
    return type(f"Watched{kind.__name__}", (WatchedMixin, kind), {"watched_alias": alias})


def watch_cursors(connection: BaseDatabaseWrapper) -> None:
    """Have the cursors of an open connection tell of what they write past Django."""
    raw = connection.connection
    if isinstance(raw, psycopg.Connection):
        kind: Any = raw.cursor_factory
        if not issubclass(kind, WatchedMixin):  # else it comes from a pool, and was opened before
            raw.cursor_factory = _watched(kind, connection.alias)
