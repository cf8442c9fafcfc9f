"""What runs around a statement while somebody observes: the same, and what has become of it is kept."""

from __future__ import annotations

import time
from typing import Any

from django_replica_router.callers import find_caller
from django_replica_router.connections.commenting import commented
from django_replica_router.observations import (
    INSTEAD,
    NAMED,
    SENTENCES,
    SESSION,
    WRITE,
    Decided,
    Observation,
    Query,
    Running,
    find_observation,
    running,
)
from django_replica_router.replicas.attributes import Around, Execute
from django_replica_router.scopes.scope import get_frame
from django_replica_router.values.lsn import format_lsn
from django_replica_router.values.statements import (
    OF_SESSION,
    is_ignored,
    is_query,
    kind_of,
    might_write,
    text_of,
)


class Observed(Around):
    """Keeps what has become of each statement, or has a comment of it tell why it is run there.

    Args:
        inner: what runs around it.
    """

    def __init__(self, inner: Around) -> None:
        super().__init__(inner.alias, inner.primary, inner.config, inner.edition)
        self.is_of_replica = inner.is_of_replica
        self._inner = inner

    def run(
        self, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement, and keep which server has answered it, and why that one."""
        observation = find_observation()
        if observation is None:
            return self._inner.run(cursor, execute, sql, params, many, executor)
        outer = running.get()
        if outer is not None and outer.sql is sql:  # run in place of the replica's
            outer.alias = self.alias
            if observation.comments:
                executor = commented(executor, self.alias, INSTEAD)
            return self._inner.run(cursor, execute, sql, params, many, executor)
        statement = Running(sql, self.alias, self._find_reason(observation, sql))
        if observation.comments:
            executor = commented(executor, self.alias, statement.decided.reason)
        floor = self._find_floor() if observation.keeps else ""
        token, began, has_failed = running.set(statement), time.perf_counter(), True
        try:
            result = self._inner.run(cursor, execute, sql, params, many, executor)
            has_failed = False
        finally:
            seconds = time.perf_counter() - began
            running.reset(token)
            if observation.keeps:
                query = self._describe(statement, seconds, floor, has_failed=has_failed)
                observation.note_query(query)
        return result

    def _describe(
        self, statement: Running, seconds: float, floor: str, *, has_failed: bool
    ) -> Query:
        sql, decided = statement.sql, statement.decided
        is_written = might_write(sql) or "retried_refused_write" in statement.events
        is_free = is_ignored(sql) or get_frame().ignores
        return Query(
            sql=text_of(sql),
            alias=statement.alias,
            asked=self.alias,
            reason=decided.reason,
            sentence=decided.sentence,
            writes=is_written,
            binds=is_written and statement.alias == self.primary and not (is_free or has_failed),
            seconds=seconds,
            deciding=decided.seconds,
            floor=floor,
            events=tuple(statement.events),
            line=find_caller(),
            failed=has_failed,
        )

    def _find_reason(self, observation: Observation, sql: Any) -> Decided:
        """Return why the statement is run here: the last that the router has said of this server."""
        if kind_of(sql) in OF_SESSION:
            return Decided(SESSION, SENTENCES[SESSION], 0.0)
        if might_write(sql) and not is_query(sql):
            return Decided(WRITE, SENTENCES[WRITE], 0.0)
        decided = observation.decided.get(self.alias)
        if decided is None:
            return Decided(NAMED, SENTENCES[NAMED], 0.0)
        # What was waited for was waited for once.
        observation.note_decision(self.alias, decided._replace(seconds=0.0))
        return decided

    def _find_floor(self) -> str:
        scope = get_frame().scope
        state = None if scope is None else scope.clusters.get(self.primary)
        floor = None if state is None else state.reader.floor
        if floor is None or floor.position.lsn <= 0:
            return ""
        return format_lsn(floor.position.lsn)
