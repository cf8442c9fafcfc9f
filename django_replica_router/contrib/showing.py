"""What was observed of a request, as its template and its header show it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePath
from typing import Any

from django_replica_router.observations import (
    EVENTS,
    INSTEAD,
    SENTENCES,
    SESSION,
    Observation,
    Query,
)
from django_replica_router.reviewing import ADVICE, Finding
from django_replica_router.values.topology import Topology

_COLUMNS = re.compile(r"^(SELECT (?:DISTINCT )?)[^()]{40,}?( FROM )")

_REPLICA_COLORS = ("#30c16e", "#2f9ce0", "#9b6bd6", "#1fb5ad", "#b0a500", "#5b7fff")
_PRIMARY_COLOR, _OTHER_COLOR = "#e8833a", "#8a8a8a"


def plural(count: int, one: str, many: str) -> str:
    """Return a count with its noun."""
    return f"{count} {one if count == 1 else many}"


def reason_of(query: Query) -> tuple[str, str]:
    """Return the name of the reason why a server has answered a statement, and what that means."""
    if query.alias == query.asked:
        return query.reason, query.sentence
    return INSTEAD, SENTENCES[INSTEAD]


def count_reasons(queries: list[Query]) -> list[tuple[int, str, str]]:
    """Return how many statements have each reason, its name and what it means; the most frequent first."""
    counts = Counter(map(reason_of, queries))
    return [(count, *reason) for reason, count in counts.most_common()]


def by_server(observation: Observation) -> dict[str, list[Query]]:
    """Return the statements that each server has answered, without those of a session."""
    found: dict[str, list[Query]] = {}
    for query in observation.queries:
        if query.reason != SESSION:
            found.setdefault(query.alias, []).append(query)
    return found


def describe_servers(observation: Observation, topology: Topology) -> list[dict[str, Any]]:
    """Return what each server has answered, primaries first; times in milliseconds."""
    answered = by_server(observation)
    described = [
        {
            "alias": alias,
            "role": topology.role(alias),
            "color": color_of(alias, topology),
            "count": len(queries),
            "ms": sum(query.seconds for query in queries) * 1000,
            "deciding_ms": sum(query.deciding for query in queries) * 1000,
            "reasons": count_reasons(queries),
        }
        for alias, queries in answered.items()
    ]
    order = ("primary", "replica", "other")
    return sorted(described, key=lambda server: (order.index(server["role"]), server["alias"]))


def describe_query(query: Query, topology: Topology) -> dict[str, Any]:
    """Return a statement as the panel shows it; times in milliseconds."""
    reason, sentence = reason_of(query)
    return {
        "sql": query.sql,
        "short": _COLUMNS.sub(r"\1…\2", query.sql),
        "alias": query.alias,
        "color": color_of(query.alias, topology),
        "asked": query.asked if query.asked != query.alias else "",
        "reason": reason,
        "sentence": sentence,
        "asked_for": f"{query.reason}: {query.sentence}",
        "ms": query.seconds * 1000,
        "deciding_ms": query.deciding * 1000,
        "floor": query.floor,
        "events": [EVENTS.get(event, event) for event in query.events],
        "line": query.line,
        "place": place_of(query.line),
        "failed": query.failed,
        "is_of_session": query.reason == SESSION,
    }


def describe_finding(finding: Finding) -> dict[str, str]:
    """Return something to look at as the panel shows it."""
    title, advice = ADVICE[finding.name]
    return {
        "name": finding.name,
        "title": title,
        "advice": advice,
        "detail": finding.detail,
        "line": finding.line,
        "place": place_of(finding.line),
    }


def place_of(line: str) -> str:
    """Return the end of a file's path, with the line."""
    return "/".join(PurePath(line).parts[-2:])


def color_of(alias: str, topology: Topology) -> str:
    """Return the color that stands for a server: warm for a primary, cool for its replicas."""
    primary = topology.primary_of.get(alias)
    if primary is None:
        return _OTHER_COLOR
    if primary == alias:
        return _PRIMARY_COLOR
    replicas = list(topology.clusters.get(primary, ()))
    number = replicas.index(alias) if alias in replicas else len(replicas)
    return _REPLICA_COLORS[number % len(_REPLICA_COLORS)]
