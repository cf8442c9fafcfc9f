"""What would break where replicas lag: found in what a test was seen to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from unittest import mock

from django.apps import apps
from django.db.models.sql import Query as QueryOfModel

from django_replica_router.conf import get_config
from django_replica_router.observations import (
    NAMED,
    QUERYSET_LEFT_BLOCK,
    SAVED_FROM_REPLICA,
    TASK_TOO_SOON,
    WRITE,
    Event,
    Observation,
    Query,
)
from django_replica_router.scopes.scope import current_scope
from django_replica_router.testing.asserting import names_table
from django_replica_router.testing.watching import tell_line
from django_replica_router.values.routed import RoutedAlias

READ_AFTER_WRITE = "read_after_write"
SESSION_TOO_SOON = "session_too_soon"

KINDS = {
    READ_AFTER_WRITE: "leave the alias out, and the router finds a server that has the write; or read in use_primary.",
    SAVED_FROM_REPLICA: (
        "read it with select_for_update() inside atomic(), or in use_primary; or write with update(), F() or "
        "update_or_create()."
    ),
    TASK_TOO_SOON: "publish it in transaction.on_commit().",
    SESSION_TOO_SOON: (
        "open the scope for its user, as scope(user=...); or read it in use_primary, or list its app in "
        "PRIMARY_ONLY."
    ),
    QUERYSET_LEFT_BLOCK: "evaluate it inside, as by list(), or decorate what evaluates it.",
}
"""Each kind of finding, with how to mend it."""

_WRITTEN = re.compile(
    r'\b(?:INSERT\s+INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?|MERGE\s+INTO)\s+"?(?:\w+"?\."?)?(\w+)',
    re.IGNORECASE,
)

_named: ContextVar[str] = ContextVar("replica_router_named", default="")
"""The replica for which the ORM makes a query at this moment, where the code has named it."""


class Finding(NamedTuple):
    """Something that would break where replicas lag.

    Args:
        kind: one of ``KINDS``.
        what: a sentence.
        line: file and line of the site's code.
    """

    kind: str
    what: str
    line: str

    def __str__(self) -> str:
        """Return what it is, where, and how to mend it."""
        return (
            f"{self.kind}: {self.what}\n   {tell_line(self.line)}\n   To mend: {KINDS[self.kind]}"
        )


class Watch(Observation):
    """Finds what would break in what a block is seen to do.

    Args:
        outer: the observation around it.
    """

    def __init__(self, outer: Observation | None = None) -> None:
        super().__init__(outer)
        self.findings: dict[Finding, None] = {}  # each once, in their order
        self._written: dict[str, str] = {}
        self._sessions = _session_tables()

    def note_query(self, query: Query) -> None:
        """Keep a statement, and what it breaks."""
        super().note_query(query)
        if query.failed:
            return
        if query.reason == WRITE:
            self._note_write(query)
        elif query.alias == query.asked and get_config().topology.is_replica(query.asked):
            is_named = query.reason == NAMED or _named.get() == query.asked
            _named.set("")
            if is_named:
                self._check_named(query)
            self._check_session(query)

    def note_event(self, event: Event) -> None:
        """Keep an event, and what it breaks."""
        super().note_event(event)
        if event.name == SAVED_FROM_REPLICA:
            what = "an object that was read from a replica is saved: what others have written since is overwritten."
        elif event.name == TASK_TOO_SOON:
            what = f"{event.detail} is published before the commit: its worker finds nothing yet."
        elif event.name == QUERYSET_LEFT_BLOCK:
            what = f"a queryset of {event.detail} is made in use_primary, and evaluated outside."
        else:
            return
        self._find(event.name, what, event.line)

    def _find(self, kind: str, what: str, line: str) -> None:
        self.findings[Finding(kind, what, line)] = None

    def _note_write(self, query: Query) -> None:
        """Keep which tables the site's code writes, and where. What a test sets up was there before."""
        if current_scope() is not None:
            for table in _WRITTEN.findall(query.sql):
                self._written.setdefault(table, query.line)

    def _check_named(self, query: Query) -> None:
        for table, line in self._written.items():
            if names_table(query.sql, table):
                what = (
                    f"{table} is read from {query.asked!r}, which the code names, after it was written in "
                    f"{tell_line(line)}."
                )
                self._find(READ_AFTER_WRITE, what, query.line)

    def _check_session(self, query: Query) -> None:
        if any(names_table(query.sql, table) for table in self._sessions) and not _is_known():
            what = f"a session is read from {query.asked!r} where nobody knows whose it is: it may not be there yet."
            self._find(SESSION_TOO_SOON, what, query.line)


def _is_known() -> bool:
    """Tell whether the present scope knows whom it reads for."""
    scope = current_scope()
    if scope is None:
        return False
    session = scope.identity.session()
    if scope.identity.users():
        return True
    records = [state.reader.records for state in scope.clusters.values()]
    return session is not None and any(found.get(session) is not None for found in records)


def _session_tables() -> list[str]:
    models: list[Any] = [
        model for model in apps.get_models() if hasattr(model, "get_session_store_class")
    ]
    return [model._meta.db_table for model in models]


@contextmanager
def noticing_names() -> Iterator[None]:
    """Have it known, inside the block, for which queries the code has named a replica."""
    get_compiler = QueryOfModel.get_compiler

    def compiled(self: Any, using: Any = None, *args: Any, **kwargs: Any) -> Any:
        _named.set("" if isinstance(using, RoutedAlias) else using or "")
        return get_compiler(self, using, *args, **kwargs)

    with mock.patch.object(QueryOfModel, "get_compiler", compiled):
        yield
