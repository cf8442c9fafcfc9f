"""What runs around a statement on a primary: notices what it writes, and what it shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django_replica_router.connections.commits import CarryingCursor, let_carry
from django_replica_router.connections.read_only import guard
from django_replica_router.recording.finishing import finish_late
from django_replica_router.recording.writes import (
    mark_written,
    note_change,
    note_ignored,
    note_read,
    note_shown,
)
from django_replica_router.replicas.attributes import Around, Execute
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.scope import Frame, current_scope, get_frame
from django_replica_router.scopes.written import Checkpoint, Moment
from django_replica_router.sql.answering import can_ask_along
from django_replica_router.sql.states import is_unanswered
from django_replica_router.transactions.blocks import end_idling
from django_replica_router.transactions.settings import note_setting
from django_replica_router.values.statements import (
    OF_SESSION,
    is_ignored,
    is_plain_change,
    kind_of,
    might_commit,
    might_commit_part,
    might_write,
    only_reads,
)

_MOST_CARRIED = 5
"""How many changes of a scope bring their positions along. Of all of them the last one's counts, and
nobody knows which will be the last. Each takes 0.05 ms, and the question at the end that it saves 0.09 ms
and a round trip: so many together take as long as one question over a network of 0.15 ms, and a scope that
goes on making changes does better to ask once."""


class OnPrimary(Around):
    """What runs around the statements of a connection to a primary."""

    def run(
        self, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement, and note in the scope what it writes, and what it shows."""
        connection, frame = cursor.db, get_frame()
        if frame.query:
            frame, execute = guard(frame, cursor, execute, sql)
        if connection.in_atomic_block and _keeps_reads(sql, frame):
            end_idling(connection)
        if frame.scope is None:
            result = execute(sql, params, many, executor)
        else:
            state = frame.scope.cluster(self.primary)
            run = partial(execute, executor=executor)
            try:
                result = self._run_in_scope(state, frame, cursor, run, sql, params, many)
            finally:
                if frame.scope.has_ended:
                    finish_late(connection)
        if kind_of(sql) in OF_SESSION:
            note_session(self.primary, connection, sql, params)
        return result

    def _run_in_scope(
        self,
        state: ClusterScope,
        frame: Frame,
        cursor: Any,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,
    ) -> Any:
        connection, ignored = cursor.db, is_ignored(sql)
        carrier = None
        if not (many or ignored or frame.ignores):
            carrier = _find_carrier(state, connection, cursor, sql)
        moment = None if carrier is None else _begin_carrying(state, carrier, sql)
        try:
            result = execute(sql, params, many)
        except BaseException as error:
            end_idling(connection)  # in a transaction that has failed, reads fail
            if might_write(sql) and not (ignored or frame.ignores or frame.query):
                self._note_error(state, connection, sql, many, error)
            raise
        finally:
            has_carried = moment is not None and _end_carrying(self.primary, state, cursor, moment)
            if not has_carried:
                # Also where it failed: an error tells something of the rows, too.
                state.note_statement()
            if not (ignored or (frame.ignores and might_write(sql))):
                note_read(self.primary, state, connection, sql)
        if ignored:
            note_ignored(connection)
        elif not has_carried and might_write(sql) and not frame.query:
            _mark_written(self.primary, sql, cursor)
        if not connection.autocommit and might_commit(sql):
            state.was_committed_by_hand(connection.connection)
            connection.ignored_on = None
        return result

    def _note_error(
        self, state: ClusterScope, connection: Any, sql: Any, many: bool, error: BaseException
    ) -> None:
        # It has met a row, perhaps, that no replica has: "already exists". Whoever looks again must find it.
        state.note_written()
        note_shown(self.primary)
        if connection.autocommit:
            _note_failed(self.primary, connection.connection, sql, many, error)


def note_session(primary: str, connection: Any, sql: Any, params: Any) -> None:
    """Remember what was set for a session: the replicas' have to be set alike to serve its reader."""
    scope = current_scope()
    if note_setting(connection, kind_of(sql), sql, params) and scope is not None:
        scope.cluster(primary).decide_anew()


def _keeps_reads(sql: Any, frame: Frame) -> bool:
    """Tell whether the statement does more in its transaction than to read, or to write what binds nobody."""
    if only_reads(sql) or is_ignored(sql):
        return False
    return not (frame.ignores and is_plain_change(sql))


def _find_carrier(
    state: ClusterScope, connection: Any, cursor: Any, sql: Any
) -> CarryingCursor | None:
    """Return the driver's cursor where the statement can, and should, bring its position along."""
    driver = getattr(cursor, "cursor", None)
    if (
        connection.brings_positions
        and not connection.in_atomic_block
        and isinstance(sql, str)
        and state.carried < _MOST_CARRIED
        and is_plain_change(sql)
        and can_ask_along(connection.connection, driver)
    ):
        return let_carry(driver)
    return None


def _begin_carrying(state: ClusterScope, carrier: CarryingCursor, sql: str) -> Moment:
    state.note_statement()  # so that no position of before is taken for one behind this statement
    state.carried += 1
    carrier.carries, carrier.answer = sql, None
    return state.moment


def _end_carrying(primary: str, state: ClusterScope, cursor: Any, moment: Moment) -> bool:
    """Take into account the position that has come with a statement; tell whether one has."""
    carrier: CarryingCursor = cursor.cursor
    carrier.carries = ""
    answer = carrier.answer
    if answer is None or answer.position is None:
        return False
    # Rows of a foreign table, of this same cluster perhaps, leave no other sign.
    wrote = answer.wrote is not False or bool(cursor.rowcount)
    note_change(primary, state, Checkpoint(answer.position, moment), wrote=wrote)
    return True


def _mark_written(primary: str, sql: Any, cursor: Any) -> None:
    """Mark a write, and what the number of its transaction does not tell of it.

    PostgreSQL gives a transaction its number with the first row of its own that it changes. ``dblink``, a
    foreign table and a cursor ``WITH HOLD``, which is run at the COMMIT, change rows without.
    """
    is_plain = is_plain_change(sql)
    mark_written(primary, past=not is_plain, changed=is_plain and bool(cursor.rowcount))


def _note_failed(primary: str, raw: Any, sql: Any, many: bool, error: BaseException) -> None:
    """Note what a statement outside a transaction may have written although it failed.

    Nothing, as a rule.
    """
    # 1. Its answer was lost on the way, or something has kept the code from waiting for it, as a
    #    time limit by a signal does.
    if is_unanswered(raw) or not isinstance(error, Exception):
        mark_written(primary, uncertain=True)
    # 2. It has committed before it failed. Of many, each by itself, where libpq knows no pipeline.
    elif many or might_commit_part(sql):
        mark_written(primary)
