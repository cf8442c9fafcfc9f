"""A connection whose COMMIT tells what was written, for any wrapper of PostgreSQL by psycopg 3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
from django.db.backends.utils import debug_transaction

from django_replica_router.connections import commits
from django_replica_router.connections.connection import ClusterConnection
from django_replica_router.recording.writes import find_state, note_transaction_end
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.written import Checkpoint, WriteMark
from django_replica_router.sql import states

if TYPE_CHECKING:

    class _Wrapper(ClusterConnection):
        def _commit(self) -> None: ...
        def _rollback(self) -> None: ...

else:
    _Wrapper = ClusterConnection


class TokenMixin(_Wrapper):
    """Stands in front of a ``DatabaseWrapper`` of PostgreSQL::

        class DatabaseWrapper(TokenMixin, postgis.DatabaseWrapper): ...

    On the primary of a cluster, inside a scope, the position in the WAL is asked for in the same
    message as the COMMIT. The scope then needs no query of its own for the token, and knows
    exactly whether the transaction has written. A change outside a transaction brings its position
    along in the same way. Everything else is the wrapper's own.

    Where writes that bind nobody have run in a transaction, and no other was noticed, its number says
    nothing: it counts as one that has not written.
    """

    brings_positions = True

    def _commit(self) -> None:
        raw: Any = self.connection
        state = find_state(self.alias)
        ignored, self.ignored_on = self.ignored_on, None
        if state is None or not isinstance(raw, psycopg.Connection):
            super()._commit()
            return
        binds = ignored is not raw or state.has_noticed(raw)
        if commits.can_commit(raw):
            self._commit_and_ask(raw, state, binds=binds)
        else:
            # In a transaction that has failed the server answers ROLLBACK.
            wrote = False if states.has_failed(raw) else None
            with _noting_loss(raw, state, binds=binds):
                super()._commit()
            note_transaction_end(self.alias, state, raw, wrote=wrote)

    def _commit_and_ask(
        self, raw: psycopg.Connection[Any], state: ClusterScope, *, binds: bool
    ) -> None:
        moment = state.moment
        with (
            debug_transaction(self, "COMMIT"),
            self.wrap_database_errors,
            _noting_loss(raw, state, binds=binds),
        ):
            answer = commits.commit(raw)
        checkpoint = None if answer.position is None else Checkpoint(answer.position, moment)
        wrote = answer.wrote if binds else False
        if wrote is False and state.has_changed(raw):
            wrote = True  # rows of a foreign table, of this same cluster perhaps
        note_transaction_end(self.alias, state, raw, checkpoint, wrote=wrote)

    def _rollback(self) -> None:
        super()._rollback()
        self.ignored_on = None
        raw: Any = self.connection
        state = find_state(self.alias)
        if state is not None and raw is not None and not raw.closed:
            note_transaction_end(self.alias, state, raw, wrote=False)


@contextlib.contextmanager
def _noting_loss(
    raw: psycopg.Connection[Any], state: ClusterScope, *, binds: bool
) -> Iterator[None]:
    """Remember a COMMIT of which nobody knows whether the server has carried it out."""
    try:
        yield
    except BaseException as error:
        if binds and not states.was_refused(raw, error):
            state.add_write(WriteMark(uncertain=True))
        raise
