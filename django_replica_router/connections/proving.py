"""What a server proves by its answer, where a pooler may lead each statement to another one.

A statement that is one of several in a message is answered by one server, and each statement of it
takes a snapshot of its own. So what stands in front of the query tells what it contains at least, and
what stands behind it tells what it contains at most.
"""

from __future__ import annotations

import math
from typing import Any

from django_replica_router.conf import get_config
from django_replica_router.policy import Decision, Reason, ReplicaState
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.replicas.sights import (
    is_pooled,
    life_behind,
    lock_wait_ms,
    note_answerer,
)
from django_replica_router.routing.budget import monotonic_budget
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.scope import Scope, get_frame
from django_replica_router.sql import answering
from django_replica_router.sql.answering import Question
from django_replica_router.stats import count


class Proof:
    """Judges the answers of one statement.

    Args:
        connection: Django's connection to the replica.
        scope: in which the statement is run.
        state: what that knows of the cluster.
        monitor: knows the servers.
    """

    def __init__(
        self, connection: Any, scope: Scope, state: ClusterScope, monitor: Monitor
    ) -> None:
        self._connection = connection
        self._alias: str = connection.alias
        self._scope = scope
        self._state = state
        self._terms = state.route.terms[self._alias]
        self._monitor = monitor
        self._asked_at = monitor.clock()
        is_curious = monitor.servers.is_curious(self._alias)
        self._question = Question.ALL if is_curious else Question.STANDING
        self._asks_bound = False

    def can_judge(self, *, asks_along: bool, in_session: bool = False) -> bool:
        """Tell whether what a statement shows can be judged; else it has to be run on the primary.

        Args:
            asks_along: it asks along who answers it.
            in_session: it lives in one session, as a cursor of the server's: there no statement is led
                elsewhere.
        """
        if in_session:
            # How much it sees will not be known.
            life = life_behind(self._connection)
            self._state.route.note_shown(life or (), math.inf)
        return asks_along or in_session

    def message(self, sql: str, cursor: Any) -> str:
        """Return the message that asks along what proves it."""
        self._asks_bound = answering.can_ask_bound(sql, cursor)
        pid = self._connection.connection.info.backend_pid
        return answering.ask_along(
            sql, lock_wait_ms(), pid, self._question, asks_bound=self._asks_bound
        )

    def holds(self, cursor: Any) -> bool:
        """Tell whether what the message has brought may be shown; the cursor then yields the rows."""
        try:
            answer = answering.read_answerer(cursor, self._question)
            bound = answering.read_bound(cursor) if self._asks_bound else None
        except Exception:  # whoever that was
            count("retried_elsewhere")
            return False
        return self._is_right(answer, math.inf if bound is None else bound)

    def _is_right(self, answer: answering.Answerer, bound: float) -> bool:
        monitor, alias, life = self._monitor, self._alias, answer.life
        if self._question is Question.ALL:
            monitor.answers.publish_answer(alias, answer, self._asked_at)
        before = note_answerer(self._connection, answer)
        is_known = monitor.servers.knows(alias, life)
        if before not in (None, life) and is_known and monitor.servers.knows(alias, before):
            monitor.known.note_endpoint(alias, is_led=True)
        server = monitor.health.server(alias, life)
        if not is_known or monitor.health.is_overdue(alias, life):
            monitor.servers.wonder(alias, life)
        is_well = is_known and server.state is ReplicaState.STREAMING
        if not is_well or answer.replayed is None or not answer.in_recovery:
            count("retried_elsewhere")
            return False
        if server.age > self._terms.max_lag:
            monitor.answers.note_replayed(alias, life, answer.replayed)
            server = monitor.health.server(alias, life)
        if not self._is_enough(life, answer.replayed, server.age):
            count("retried_behind")
            return False
        route = self._state.route
        route.note_shown(life, max(bound, route.shown.get(life, bound)))
        return True

    def _is_enough(self, life: Any, replayed: int, age: float) -> bool:
        seen = [bound for other, bound in self._state.route.shown.items() if other != life]
        if age > self._terms.max_lag or replayed < max(seen, default=0):
            return False
        return replayed >= self._terms.floor or self._yields(replayed)

    def _yields(self, replayed: int) -> bool:
        """Tell whether what the reader has seen before, not written, is given up for this answer."""
        written = self._terms.written
        if written is None or replayed < written:
            return False
        if monotonic_budget.grant(get_config().MONOTONIC_SHARE):
            return False
        count("reads_yielded")
        self._scope.note_decision(Decision(self._alias, Reason.YIELDED))
        return True


def proof_for(primary: str, connection: Any) -> Proof | None:
    """Return what judges a statement on a connection, or None where it leads to one server.

    None in a transaction on the replica, too: the code has named that, and one server answers all of it.
    """
    scope = get_frame().scope  # current_scope(), without a call for every statement
    state = None if scope is None else scope.clusters.get(primary)
    if scope is None or state is None or connection.alias not in state.route.terms:
        return None
    monitor = find_monitor(primary)
    if monitor is None or connection.in_atomic_block or not is_pooled(connection):
        return None
    return Proof(connection, scope, state, monitor)
