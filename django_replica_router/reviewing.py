"""What a developer should look at in what was observed of a request, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from django_replica_router.conf import Config, get_config, session_model
from django_replica_router.observations import (
    EVENTS,
    NAMED,
    NAMES_PRIMARY_TABLE,
    QUERYSET_LEFT_BLOCK,
    SAVED_FROM_REPLICA,
    TASK_TOO_SOON,
    Observation,
    Query,
)
from django_replica_router.values.statements import names_table

RUN_TWICE = "run_twice"
WROTE_IN_SAFE_REQUEST = "wrote_in_safe_request"
SAVED_SESSION = "saved_session"
NAMED_BEHIND = "named_behind"

ADVICE = {
    QUERYSET_LEFT_BLOCK: (
        "A queryset left its use_primary block",
        "It was run outside, and routed by where it is run. Run it inside, as with list(), or name the "
        "database: using('default').",
    ),
    SAVED_FROM_REPLICA: (
        "An object that was read from a replica was saved",
        "That may overwrite what others have written meanwhile. Read it with select_for_update() inside "
        "atomic() or in a use_primary block, or write with update(), F() or update_or_create().",
    ),
    TASK_TOO_SOON: (
        "A task was queued before the commit that it may need",
        "A worker may begin before, and not find what was written. Publish it in transaction.on_commit().",
    ),
    WROTE_IN_SAFE_REQUEST: (
        "A request that should only read has written",
        "Its user reads from the primary until a replica has that. Where nobody must see it at once, as a "
        "counter of visits, write it in an ignore_writes block.",
    ),
    SAVED_SESSION: (
        "A request that should only read has saved its session",
        "Its user reads from the primary until a replica has that. PRIMARY_ONLY = ['sessions'] keeps only "
        "the session there.",
    ),
    NAMED_BEHIND: (
        "The code names a replica that may lack what this user has written",
        "Other reads of this page went to the primary for that. Leave the alias out, and a server is found that "
        "has it; or read in a use_primary block.",
    ),
    NAMES_PRIMARY_TABLE: (
        "A statement meant for a replica names a table of PRIMARY_ONLY",
        "So the primary has answered all of it. Read the two apart where the rest may come from a replica.",
    ),
    RUN_TWICE: (
        "A statement was run twice",
        "The page has waited for both. Once is nothing; where a replica refuses it each time, put it in "
        "a use_primary block.",
    ),
}
"""What a finding says, and what to do about it, by its name."""

# The sign-in's own: a site cannot write it elsewhere, and it happens once.
_LAST_LOGIN = re.compile(r'UPDATE "\w+" SET "last_login" = %s WHERE ')

_MOST_SHOWN = 60

# Reads that went to the primary since replicas lack what their reader must see.
_BEHIND = {"LAGGING", "WROTE", "UNRECORDED_WRITE"}

_REPEATS = ("retried_", "repeated_")


class Finding(NamedTuple):
    """Something to look at.

    Args:
        name: a key of ``ADVICE``.
        line: file and line of the site's code.
        detail: which model, table or task, or what has happened; or empty.
    """

    name: str
    line: str
    detail: str


def review(observation: Observation, *, is_safe: bool) -> list[Finding]:
    """Return what to look at, each once, in the order in which it has happened.

    Args:
        observation: what was seen of a request.
        is_safe: the request should only read, as a GET.
    """
    found = [*_in_queries(observation.queries, get_config(), is_safe=is_safe)]
    for event in observation.events:
        if event.name in ADVICE:
            found.append(Finding(event.name, event.line, event.detail))
        elif event.name.startswith(_REPEATS):
            found.append(Finding(RUN_TWICE, event.line, EVENTS[event.name]))
    return list(dict.fromkeys(found))


def _in_queries(queries: list[Query], config: Config, *, is_safe: bool) -> Iterator[Finding]:
    is_behind = False
    for query in queries:
        is_behind = is_behind or query.binds or query.reason in _BEHIND
        if is_behind and query.reason == NAMED and config.topology.is_replica(query.asked):
            yield Finding(NAMED_BEHIND, query.line, query.asked)
        if is_safe and query.binds and not _LAST_LOGIN.match(query.sql):
            yield _write(query)
        if NAMES_PRIMARY_TABLE in query.events:
            named = [t for t in sorted(config.primary_tables) if _names(query, t)]
            yield Finding(NAMES_PRIMARY_TABLE, query.line, ", ".join(named))
        for event in query.events:
            if event.startswith(_REPEATS):
                yield Finding(RUN_TWICE, query.line, EVENTS[event])


def _write(query: Query) -> Finding:
    model = session_model()
    if model is not None and _names(query, model._meta.db_table):
        return Finding(SAVED_SESSION, query.line, "")
    text = query.sql if len(query.sql) <= _MOST_SHOWN else f"{query.sql[:_MOST_SHOWN]}…"
    return Finding(WROTE_IN_SAFE_REQUEST, query.line, text)


def _names(query: Query, table: str) -> bool:
    return names_table(query.sql, frozenset([table]))
