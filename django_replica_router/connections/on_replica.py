"""What runs around a statement on a replica: mends what cannot be done there."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.connections.mending import (
    MET_ANOTHER,
    chosen_lives,
    find_remedy,
    leave,
    leave_for_now,
    note_mended,
    show_primary,
    was_sent,
)
from django_replica_router.connections.on_primary import note_session
from django_replica_router.connections.proving import Proof, proof_for
from django_replica_router.connections.read_only import guard
from django_replica_router.connections.rerouting import (
    is_of_lock,
    is_recovery_conflict,
    is_server_side,
    watch_fetches,
)
from django_replica_router.observations import (
    NAMES_PRIMARY_TABLE,
    NEEDS_PRIMARY,
    note_events,
    observers,
)
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.attributes import Around, Execute
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.replicas.sights import (
    is_elsewhere,
    is_standby,
    lift_lock_wait,
    lock_wait_ms,
    look_where_expected,
    waiting_key,
    was_elsewhere,
)
from django_replica_router.scopes.scope import Scope, get_frame
from django_replica_router.sql.answering import ask_along, can_ask_along
from django_replica_router.sql.states import has_failed
from django_replica_router.stats import count
from django_replica_router.values.servers import Life, endpoints_met
from django_replica_router.values.statements import (
    Description,
    describe,
    describe_text,
    is_query,
)

_run_in_flight = in_flight.run  # a method of an imported object is looked up each time

_BRIEF = 0.05
"""Seconds within which a statement has only just begun. One that takes longer, and is in the way of
what is replayed, would be in the way of more the next time."""


class OnReplica(Around):
    """What runs around the statements of a connection that leads straight to one replica."""

    is_of_replica = True

    def __init__(self, alias: str, primary: str, config: Any, edition: object) -> None:
        super().__init__(alias, primary, config, edition)
        self._tables = config.primary_tables

    def run(
        self, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement there, or on the primary where the replica cannot, or may not, answer it."""
        connection, tables, frame = cursor.db, self._tables, get_frame()
        if frame.query:
            execute = guard(frame, cursor, execute, sql)[1]
        said = describe_text(sql, tables) if isinstance(sql, str) else describe(sql, tables)
        if not said.is_plain and self._moves(said, connection):
            return show_primary(self.primary, cursor, sql, params, many)
        if many:
            params = list(params)  # which can be gone through once more, as a generator cannot
        waiter, raw, key = connection.waiter, connection.connection, self.alias
        if key in endpoints_met:
            key = waiting_key(connection, key)
        try:
            try:
                result = _run_in_flight(waiter, key, raw, execute, sql, params, many, executor)
            except Exception as error:
                if not self._may_be_repeated(error, connection):
                    raise
                result = _run_in_flight(waiter, key, raw, execute, sql, params, many, executor)
        except Exception as error:
            return self._mend(error, cursor, sql, params, many)
        if not (connection.in_atomic_block or self._is_of_chosen_server(connection, frame.scope)):
            result = show_primary(self.primary, cursor, sql, params, many)
        elif getattr(cursor.cursor, "name", None) is not None:
            self._watch_fetches(cursor, key, sql, params, many)
        if said.is_of_session:
            note_session(self.primary, connection, sql, params)
        return result

    def _moves(self, said: Description, connection: Any) -> bool:
        """Tell whether what only the primary can do, or may show, is run there in place of this connection.

        Not where the code itself has named the replica, nor in a transaction here: the caller wants both at
        one place. One that is opened by the alias of an object takes place on the primary, see ``leading``.
        """
        if not (said.is_of_primary or said.names_table):
            return False
        if not said.is_of_primary and self.config.PRIMARY_DOWN == "replicas":
            monitor = find_monitor(self.primary)
            if monitor is not None and monitor.known.primary_is_down:
                return False
        if connection.in_atomic_block or not was_sent(self.primary, self.alias):
            return False
        if not is_standby(connection):
            return False
        if observers.present:
            note_events(NEEDS_PRIMARY if said.is_of_primary else NAMES_PRIMARY_TABLE)
        return True

    def _is_of_chosen_server(self, connection: Any, scope: Scope | None) -> bool:
        """Tell whether the rows of a statement may be shown; leave the server if not.

        That it has not been promoted meanwhile libpq knows, without a question.
        """
        state = None if scope is None else scope.clusters.get(self.primary)
        life = None if state is None else state.route.lives.get(self.alias)
        sight, raw = connection.sight, connection.connection
        if (
            sight is not None
            and sight.raw is raw
            and (life is sight.life or life is None or life == sight.life)
            and raw.pgconn.parameter_status(b"in_hot_standby") == b"on"
        ):
            return True
        return not self._is_another(connection, is_elsewhere(connection, life))

    def _is_another(self, connection: Any, is_another: bool) -> bool:
        if is_another:
            leave(self.alias, self.primary, connection, ReplicaState.UNKNOWN, MET_ANOTHER)
            count("retried_elsewhere")
        return is_another

    def _may_be_repeated(self, error: Exception, connection: Any) -> bool:
        """Tell whether a statement is to be sent to the same replica once more, and prepare that."""
        if _was_cancelled_at_once(error, connection):
            count("repeated_after_conflict")
            return True
        if was_sent(self.primary, self.alias) or connection.in_atomic_block:
            return False
        # The bound is the package's own: what the code itself asks of a replica may wait for long.
        return is_of_lock(error) and lift_lock_wait(connection)

    def _mend(self, error: Exception, cursor: Any, sql: Any, params: Any, many: bool) -> Any:
        """Run on the primary what has failed here, or raise its error."""
        connection = cursor.db
        remedy = None
        if not connection.in_atomic_block:
            remedy = find_remedy(self.primary, self.alias, connection, error, sql)
        if remedy is None:
            raise error
        raw = connection.connection
        if raw is not None and has_failed(raw):
            connection.rollback()  # autocommit is off: else nothing would run there any more
        result = show_primary(self.primary, cursor, sql, params, many)
        note_mended(self.primary, remedy)
        return result

    def _watch_fetches(self, cursor: Any, key: str, sql: Any, params: Any, many: bool) -> None:
        connection = cursor.db

        def may_fetch_elsewhere(error: Exception) -> bool:
            return find_remedy(self.primary, self.alias, connection, error) is not None

        def run_elsewhere() -> None:
            count("retried_first_fetch")
            show_primary(self.primary, cursor, sql, params, many)

        is_free = not connection.in_atomic_block
        watch_fetches(cursor, key, may_fetch_elsewhere if is_free else None, run_elsewhere)


class OnPooledReplica(OnReplica):
    """The same where a pooler may lead each statement elsewhere, or nobody has looked yet.

    What can, asks in one message who answers it. Any other is followed, or preceded, by that question.
    """

    def run(
        self, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement there, or on the primary where nothing shows who has answered it."""
        connection, primary, frame = cursor.db, self.primary, get_frame()
        if frame.query:
            execute = guard(frame, cursor, execute, sql)[1]
        said = describe(sql, self._tables)
        if not said.is_plain and self._moves(said, connection):
            return show_primary(primary, cursor, sql, params, many)
        if many:
            params = list(params)
        is_free = not connection.in_atomic_block
        asks_along = is_free and not many and self._can_ask_along(cursor, sql)
        proof = self._find_proof(connection)
        in_session = not asks_along and is_server_side(cursor)
        if proof and not proof.can_judge(asks_along=asks_along, in_session=in_session):
            count("statements_unproven")
            leave_for_now(primary)
            return show_primary(primary, cursor, sql, params, many)
        sent = _message(proof, connection, cursor, sql) if asks_along else sql
        key = waiting_key(connection, self.alias)
        waiter, raw = connection.waiter, connection.connection
        ask = partial(_run_in_flight, waiter, key, raw, execute, sent, params, many, executor)
        try:
            result = self._ask(ask, connection, asks_along=asks_along)
        except Exception as error:
            return self._mend(error, cursor, sql, params, many)
        if is_free and not self._is_right(connection, cursor, proof, asks_along):
            result = show_primary(primary, cursor, sql, params, many)
        elif is_server_side(cursor):
            self._watch_fetches(cursor, key, sql, params, many)
        if said.is_of_session:
            note_session(primary, connection, sql, params)
        return result

    def _ask(self, ask: Callable[[], Any], connection: Any, *, asks_along: bool) -> Any:
        """Return the answer to a statement, which is sent once more where that may help."""
        try:
            if not asks_along:
                look_where_expected(connection)
            return ask()
        except Exception as error:
            if not self._may_be_repeated(error, connection):
                raise
        return ask()

    def _find_proof(self, connection: Any) -> Proof | None:
        monitor = find_monitor(self.primary)
        is_endpoint = monitor is not None and self.alias in monitor.servers.endpoints
        return proof_for(self.primary, connection) if is_endpoint else None

    def _can_ask_along(self, cursor: Any, sql: Any) -> bool:
        """Tell whether the statement should, and can, ask in one message who answers it."""
        return is_query(sql) and can_ask_along(cursor.db.connection, cursor.cursor)

    def _is_right(
        self, connection: Any, cursor: Any, proof: Proof | None, asks_along: bool
    ) -> bool:
        """Tell whether the rows of a statement may be shown; leave the server if not."""
        if proof is not None and asks_along:
            if proof.holds(cursor.cursor):
                return True
            leave_for_now(self.primary)
            return False
        life: Life | None = chosen_lives(self.primary).get(self.alias)
        if asks_along:
            return not self._is_another(connection, was_elsewhere(connection, cursor.cursor, life))
        return not self._is_another(connection, is_elsewhere(connection, life))


def _message(proof: Proof | None, connection: Any, cursor: Any, sql: Any) -> str:
    """Return what is sent for a statement that asks along who answers it."""
    if proof is not None:
        return proof.message(sql, cursor.cursor)
    sight, pid = connection.sight, connection.connection.info.backend_pid
    return ask_along(sql, lock_wait_ms(), pid, is_first=sight is not None and sight.is_expected)


def _was_cancelled_at_once(error: Exception, connection: BaseDatabaseWrapper) -> bool:
    """Tell whether a recovery conflict has ended a statement that had only just begun.

    The connection stands, so the same server answers the next time, which has replayed no less than
    when it was chosen: the reader need not see on the primary what no replica has. (A pooler may
    lead it elsewhere; that is found out after every statement.)
    """
    if connection.in_atomic_block or not connection.autocommit:
        return False
    if not is_recovery_conflict(error, connection.connection):
        return False
    waiter: Any = connection.waiter  # type: ignore[attr-defined]
    return bool(time.monotonic() - waiter.since <= _BRIEF)
