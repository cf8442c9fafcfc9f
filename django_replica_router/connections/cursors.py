"""Cursors: each statement has run around it what its connection says, and what runs past that is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

from django.db.backends.utils import CursorWrapper

from django_replica_router.conf import get_config, parsed
from django_replica_router.connections.mending import find_remedy, leave_for_now, note_mended
from django_replica_router.connections.proving import proof_for
from django_replica_router.connections.read_only import reading_only
from django_replica_router.connections.rerouting import open_on_primary
from django_replica_router.recording.finishing import finish_late
from django_replica_router.recording.writes import find_state, mark_written, note_shown
from django_replica_router.replicas.sights import look_where_expected
from django_replica_router.scopes.scope import get_frame
from django_replica_router.sql.states import is_unanswered
from django_replica_router.stats import count
from django_replica_router.transactions.blocks import end_idling

_NO_ROW = object()


class WatchedCursor(CursorWrapper):
    """A cursor as Django makes it, that has what is around its connection's statements run.

    Outside of all ``execute_wrappers``, so that what another one raises is seen. ``callproc``, ``copy`` and
    ``stream`` run none of them. Each counts as a write, also where it only reads: what it does is not
    known. What a replica cannot do is done on the primary, as a statement is, until the caller has seen
    the first row.
    """

    db: Any  # of the class ``ClusterConnection``, which makes it

    def _execute_with_wrappers(self, sql: Any, params: Any, many: bool, executor: Any) -> Any:
        around = self.db.around
        if around.edition is not parsed.edition:
            around = self.db.look_around()
        execute = super()._execute_with_wrappers  # type: ignore[misc]
        return around.run(self, execute, sql, params, many, executor)

    def callproc(self, procname: Any, *args: Any, **kwargs: Any) -> Any:
        with self._noting(f"SELECT {procname}()"):
            other = self._unjudged()
            try:
                if other is None:
                    look_where_expected(self.db)
                    return super().callproc(procname, *args, **kwargs)
            except Exception as error:
                other = self._on_primary(error, "")
            result = other.callproc(procname, *args, **kwargs)
            self.cursor = other.cursor
            return result

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._noting(statement), ExitStack() as stack:
            source: Any = self._unjudged()
            try:
                look_where_expected(self.db)
                copier = self._inherited("copy") if source is None else source.copy
                copy = stack.enter_context(copier(statement, *args, **kwargs))
            except Exception as error:
                if source is not None:
                    raise
                other: Any = self._on_primary(error, statement)
                copy = stack.enter_context(other.copy(statement, *args, **kwargs))
            yield copy

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._noting(query):
            source: Any = self._unjudged()
            streamer = self._inherited("stream") if source is None else source.stream
            rows = streamer(query, *args, **kwargs)
            try:
                look_where_expected(self.db)
                first = next(rows, _NO_ROW)
            except Exception as error:
                if source is not None:
                    raise
                other: Any = self._on_primary(error, query)
                rows = other.stream(query, *args, **kwargs)
                first = next(rows, _NO_ROW)
            if first is not _NO_ROW:
                yield first
                yield from rows

    def _unjudged(self) -> CursorWrapper | None:
        """Return a cursor of the primary where any of several servers may answer, and none is judged."""
        alias = self.db.alias
        primary = get_config().topology.primary_of.get(alias, alias)
        proof = proof_for(primary, self.db)
        if proof is None:
            return None
        count("statements_unproven")
        leave_for_now(primary)
        note_shown(primary)
        return open_on_primary(primary, server_side=False)

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
    def _noting(self, sql: Any) -> Iterator[None]:
        frame = get_frame()
        if frame.query:
            with suppress(Exception):  # what follows meets it again, and mends it
                look_where_expected(self.db)  # not in the transaction that only reads
            with reading_only(frame, self, sql):
                yield
            return
        alias, raw = self.db.alias, self.db.connection
        end_idling(self.db)
        try:
            yield
        finally:
            if find_state(alias) is not None:
                mark_written(alias, uncertain=is_unanswered(raw), past=True)
                finish_late(self.db)


@cache
def _watched(kind: type[CursorWrapper]) -> type[CursorWrapper]:
    return type(f"Watched{kind.__name__}", (WatchedCursor, kind), {})


def watched(wrapper: CursorWrapper) -> CursorWrapper:
    """Return a cursor of Django's, or of whatever else has made it, as one that is also watched."""
    kind: Any = type(wrapper)
    if not issubclass(kind, WatchedCursor):
        wrapper.__class__ = _watched(kind)
    return wrapper
