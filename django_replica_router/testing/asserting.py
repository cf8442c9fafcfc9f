"""Assertions of a test: which server the code in a block reads from, and how often it asks each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from django.db.models import Model

from django_replica_router.conf import get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.observations import NAMED, SENTENCES, SESSION, WRITE, Observation, Query
from django_replica_router.policy import Reason
from django_replica_router.testing.blocks import block
from django_replica_router.testing.mirrors import routing_at_work
from django_replica_router.testing.watching import (
    Whole,
    is_of_cluster,
    tell_queries,
    watching,
)


@block
def assert_reads_from(
    server: str,
    *,
    reason: str | Reason | None = None,
    of: type[Model] | Sequence[type[Model]] = (),
) -> Iterator[Observation]:
    """Fail where a read of the block is answered by another server, or where nothing is read.

    The routing rules are at work in the block, as by ``mirrors_are_replicas()``, in a ``TestCase`` as well.

    Args:
        server: "primary", "replica", or an alias.
        reason: why, as in the README: "WROTE" for example. Any when None.
        of: only statements that name the table of this model, or of one of these, count.

    Yields:
        Observation: the statements so far, in ``queries``.

    Raises:
        AssertionError: lists each read with its server, reason and line.
        ConfigurationError: there is no such server or reason, or the rules cannot be at work.
    """
    _demand_server(server)
    name = _name_of(reason)
    models = [of] if isinstance(of, type) else list(of)
    with routing_at_work(), watching(Whole) as seen:
        yield seen
    reads = [query for query in seen.queries if _is_read(query, models)]
    wrong = [query for query in reads if not _is_as_expected(query, server, name)]
    expected = f"from {_tell_server(server)}" + (f" for the reason {name}" if name else "")
    about = f" of {', '.join(model._meta.label for model in models)}" if models else ""
    if not reads:
        what = f"Nothing was read{about}, and it was to come {expected}. What was run:"
        message = f"{what}\n\n{tell_queries(filter(is_of_cluster, seen.queries))}"
        raise AssertionError(message)
    if wrong:
        what = f"{len(wrong)} of {len(reads)} reads{about} did not come {expected}:"
        message = f"{what}\n\n{tell_queries(wrong)}{_tell_others(reads, wrong)}"
        raise AssertionError(message)


@block
def assert_queries(
    *, primary: int | None = None, replica: int | None = None
) -> Iterator[Observation]:
    """Fail where the block does not run so many statements on primaries, or on replicas.

    Reads and writes count; what begins or ends a transaction does not, nor do savepoints. The routing rules
    are at work in the block.

    Args:
        primary: statements that primaries answer. Any number when None.
        replica: statements that replicas answer. Any number when None.

    Raises:
        AssertionError: lists each statement with its server, reason and line.
        ConfigurationError: neither is given, or the rules cannot be at work.
    """
    expected = {"primary": primary, "replica": replica}
    if primary is None and replica is None:
        message = "assert_queries() checks nothing: pass primary=, replica= or both."
        raise ConfigurationError(message)
    with routing_at_work(), watching(Whole) as seen:
        yield seen
    queries = [query for query in seen.queries if is_of_cluster(query)]
    topology = get_config().topology
    found = Counter(topology.role(query.alias) for query in queries)
    wrong = [
        f"{found[role]} on the {role}, expected {count}"
        for role, count in expected.items()
        if count not in (None, found[role])
    ]
    if wrong:
        message = f"Statements: {'; '.join(wrong)}.\n\n{tell_queries(queries)}"
        raise AssertionError(message)


def _is_read(query: Query, models: Sequence[type[Model]]) -> bool:
    if query.reason == WRITE or not is_of_cluster(query):
        return False
    names = [model._meta.db_table for model in models]
    return not names or any(names_table(query.sql, name) for name in names)


def names_table(sql: str, table: str) -> bool:
    """Tell whether a statement names a table."""
    return re.search(rf"\b{re.escape(table)}\b", sql) is not None


def _is_as_expected(query: Query, server: str, reason: str) -> bool:
    return server in (query.alias, get_config().topology.role(query.alias)) and reason in (
        "",
        query.reason,
    )


def _tell_server(server: str) -> str:
    return {"primary": "the primary", "replica": "a replica"}.get(server, repr(server))


def _tell_others(reads: Sequence[Query], wrong: Sequence[Query]) -> str:
    right = [query for query in reads if query not in wrong]
    return f"\n\nAs expected came:\n\n{tell_queries(right)}" if right else ""


def _demand_server(server: str) -> None:
    aliases = sorted(get_config().topology.primary_of)
    if server not in ("primary", "replica", *aliases):
        message = (
            f'There is no server {server!r}: expected "primary", "replica" or one of the aliases '
            f"{', '.join(map(repr, aliases))}."
        )
        raise ConfigurationError(message)


def _name_of(reason: str | Reason | None) -> str:
    if reason is None:
        return ""
    name: Any = reason.name if isinstance(reason, Reason) else reason
    known = (*Reason.__members__, *SENTENCES)
    if name not in known or name in (WRITE, SESSION):
        message = (
            f"There is no reason {name!r} for a read: expected one of {', '.join(Reason.__members__)} "
            f"or {NAMED}."
        )
        raise ConfigurationError(message)
    return str(name)
