"""A connection whose COMMIT tells what was written, for any wrapper of PostgreSQL by psycopg 3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
from django.db.backends.utils import debug_transaction

from django_replica_router import postgres
from django_replica_router.context import Checkpoint, ClusterScope, WriteMark
from django_replica_router.writes import find_state, note_end

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    class _Wrapper(BaseDatabaseWrapper):
        def _commit(self) -> None: ...
        def _rollback(self) -> None: ...

else:
    _Wrapper = object


class TokenMixin(_Wrapper):
    """Stands in front of a ``DatabaseWrapper`` of PostgreSQL::

        class DatabaseWrapper(TokenMixin, postgis.DatabaseWrapper): ...

    On the primary of a cluster, inside a scope, the position in the WAL is asked for in the same
    message as the COMMIT. The scope then needs no query of its own for the token, and knows
    exactly whether the transaction has written. Everything else is the wrapper's own.
    """

    def _commit(self) -> None:
        raw: Any = self.connection
        state = find_state(self.alias)
        if state is None or not isinstance(raw, psycopg.Connection):
            super()._commit()
        elif postgres.can_commit(raw):
            self._commit_and_ask(raw, state)
        else:
            # In a transaction that has failed the server answers ROLLBACK.
            wrote = False if postgres.has_failed(raw) else None
            with _noting_loss(raw, state):
                super()._commit()
            note_end(self.alias, state, raw, wrote=wrote)

    def _commit_and_ask(self, raw: psycopg.Connection[Any], state: ClusterScope) -> None:
        moment = state.moment
        with debug_transaction(self, "COMMIT"), self.wrap_database_errors, _noting_loss(raw, state):
            answer = postgres.commit(raw)
        checkpoint = None if answer.position is None else Checkpoint(answer.position, moment)
        wrote = answer.wrote
        if wrote is False and state.has_changed(raw):
            wrote = True  # rows of a foreign table, of this same cluster perhaps
        note_end(self.alias, state, raw, checkpoint, wrote=wrote)

    def _rollback(self) -> None:
        super()._rollback()
        raw: Any = self.connection
        state = find_state(self.alias)
        if state is not None and raw is not None and not raw.closed:
            note_end(self.alias, state, raw, wrote=False)


@contextlib.contextmanager
def _noting_loss(raw: psycopg.Connection[Any], state: ClusterScope) -> Iterator[None]:
    """Remember a COMMIT of which nobody knows whether the server has carried it out."""
    try:
        yield
    except BaseException as error:
        if not postgres.was_refused(raw, error):
            state.add_write(WriteMark(uncertain=True))
        raise
