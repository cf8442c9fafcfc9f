"""What exporters tell of this process: each metric, and its values now. It asks no server, and nobody else.

The names are those of OpenTelemetry, and translate into those of Prometheus by its rules, so that one dashboard
fits both.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from django_replica_router import observations
from django_replica_router.conf import get_config
from django_replica_router.policy import Reason
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.stats import get_totals
from django_replica_router.status.reads import FROM, IN_SHADOW, REASONS
from django_replica_router.status.servers import ServerStatus, all_clusters, describe

_RETRIED = "retried_"
_SUFFIXES = {"s": "_seconds", "By": "_bytes"}


class Kind(enum.Enum):
    """What a metric does."""

    COUNTER = "only rises, and begins at 0 with its process"
    GAUGE = "rises and falls"


class Metric(NamedTuple):
    """One metric.

    Args:
        name: as OpenTelemetry has it.
        kind: counter or gauge.
        unit: by UCUM, as OpenTelemetry has it: "s", "By", or what is counted, in braces.
        labels: names of its labels.
        text: what it means, in one sentence.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    text: str

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus."""
        end = "_total" if self.kind is Kind.COUNTER else ""
        return self.name.replace(".", "_") + _SUFFIXES.get(self.unit, "") + end


class Series(NamedTuple):
    """A metric, and the values of its labels."""

    metric: Metric
    values: tuple[str, ...] = ()


def _counter(name: str, counted: str, text: str, *labels: str) -> Metric:
    return Metric(f"replica_router.{name}", Kind.COUNTER, f"{{{counted}}}", labels, text)


def _gauge(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(f"replica_router.{name}", Kind.GAUGE, unit, labels, text)


READS = _counter(
    "reads",
    "read",
    "Decisions which server may serve a scope, by that server: one for a request as a rule.",
    "alias",
)
DECISIONS = _counter(
    "decisions", "read", "Decisions which server may serve a scope, by the reason.", "reason"
)
SHADOW_READS = _counter(
    "shadow_reads",
    "read",
    "Reads of who is not routed yet (SHADOW, ROLLOUT), by the server that would have had them.",
    "alias",
)
SHADOW_DECISIONS = _counter(
    "shadow_decisions",
    "read",
    "Reads of who is not routed yet (SHADOW, ROLLOUT), by the reason that would have decided.",
    "reason",
)
RETRIES = _counter(
    "retries", "statement", "Statements that were run again on the primary, by the cause.", "cause"
)

AT_ONCE = frozenset(
    {
        Reason.DISABLED,
        Reason.FORCED,
        Reason.IN_ATOMIC,
        Reason.MODEL,
        Reason.NO_SCOPE,
        Reason.WROTE,
        Reason.REPLICA_FAILED,
        Reason.UNSAFE_METHOD,
        Reason.EVENT_LOOP,
    }
)
"""Reasons that nobody counts: they are found anew for each read, which counting would make dearer."""

CAUSES = tuple(
    event.removeprefix(_RETRIED) for event in observations.EVENTS if event.startswith(_RETRIED)
)
"""Why statements are run again on the primary, as ``get_stats()`` has it."""

EVENTS: Mapping[str, Metric] = {
    event: _counter(event, counted, text)
    for event, counted, text in (
        (
            "repeated_after_conflict",
            "statement",
            "Statements that a replica has cancelled to go on replaying, and that were run again there.",
        ),
        (
            "statements_unproven",
            "statement",
            "Statements run on the primary since servers behind a pooler could not prove what they show.",
        ),
        ("connects_failed", "connection", "Connections to replicas that requests could not open."),
        (
            "fallbacks_refused",
            "read",
            "Reads that no replica could serve, and that PRIMARY_SHARE kept from the primary.",
        ),
        (
            "waits_by_server",
            "wait",
            "Waits that ended as the replica's server itself told that it was there.",
        ),
        (
            "waits_by_server_in_vain",
            "wait",
            "Waits for such a word of the replica's server that ended without it.",
        ),
        ("waits_ended", "statement", "Statements whose waiting for a replica that hung was ended."),
        (
            "wal_flushes",
            "record",
            "Records that made the primary write out WAL that was waited for.",
        ),
        (
            "readers_unknown",
            "reader",
            "Readers without a record in a cache that drops keys, who see what the primary has now.",
        ),
        (
            "tokens_stored",
            "token",
            "Tokens, of what readers have written or seen, that the store has taken.",
        ),
        ("tokens_unstored", "write", "Writes whose token the store has refused."),
        (
            "writes_unlocated",
            "write",
            "Writes without a position in the WAL: their user is pinned to the primary.",
        ),
        (
            "saved_from_replica",
            "save",
            "Saves of objects that were read from a replica, which write back what may be old.",
        ),
        (
            "reinserted_from_replica",
            "save",
            "Saves of objects that were read from a replica, which found the row deleted and made it anew.",
        ),
        ("writes_in_queries", "statement", "Statements that a query of CQRS was refused."),
        ("cookies_refused", "cookie", "Signed cookies that were not ours, broken or too old."),
        (
            "tokens_refused",
            "token",
            "Texts given as a token that are none, or signed by another key.",
        ),
        (
            "transactions_outwaited",
            "token",
            "Tokens of transactions that had not ended after 5 s: who reads by one is on the primary.",
        ),
    )
}
"""The counters without labels, by the event that ``get_stats()`` counts."""

PRIMARY_UP = _gauge(
    "primary.up", "", "1 where the primary answers and takes writes, else 0.", "primary"
)
_OF_SERVER = ("primary", "alias", "address")
SERVES = _gauge(
    "replica.serves", "", "1 where reads may go to the replica now, else 0.", *_OF_SERVER
)
LAG = _gauge(
    "replica.lag",
    "s",
    "How old the replica's data may be at most; absent where that is not known.",
    *_OF_SERVER,
)
BEHIND = _gauge(
    "replica.behind",
    "By",
    "What the replica has not replayed of the primary's WAL; absent where that is not known.",
    *_OF_SERVER,
)
STATE = _gauge("server.state", "", "1 for the state that a server is in.", *_OF_SERVER, "state")

METRICS = (
    *(READS, DECISIONS, SHADOW_READS, SHADOW_DECISIONS, RETRIES),
    *EVENTS.values(),
    *(PRIMARY_UP, SERVES, LAG, BEHIND, STATE),
)
"""All that is told."""


def read_counters() -> dict[Series, int]:
    """Return what this process has counted. What has not happened yet is told as 0."""
    config = get_config()
    clusters = config.topology.clusters
    aliases = [alias for primary in clusters for alias in (primary, *clusters[primary])]
    reasons = [reason.name for reason in Reason if reason not in AT_ONCE]
    known: list[tuple[Metric, Iterable[str]]] = [
        (READS, aliases),
        (DECISIONS, reasons),
        (RETRIES, CAUSES),
    ]
    if config.shadows:
        known += [(SHADOW_READS, aliases), (SHADOW_DECISIONS, reasons)]
    found = dict.fromkeys((Series(metric) for metric in EVENTS.values()), 0)
    found |= {Series(metric, (label,)): 0 for metric, labels in known for label in labels}
    for event, number in get_totals().items():
        series = _series_of(event)
        if series is not None:
            found[series] = number
    return found


_OF_SHADOW = {READS: SHADOW_READS, DECISIONS: SHADOW_DECISIONS}


def _series_of(event: str) -> Series | None:
    """Return what a count is told as; None of one that this table does not have."""
    if event in EVENTS:
        return Series(EVENTS[event])
    if event in REASONS:
        return Series(DECISIONS, (REASONS[event],))
    if event.startswith(FROM):
        return Series(READS, (event.removeprefix(FROM),))
    if event.startswith(_RETRIED):
        return Series(RETRIES, (event.removeprefix(_RETRIED),))
    in_shadow = _series_of(event.removeprefix(IN_SHADOW)) if event.startswith(IN_SHADOW) else None
    if in_shadow is not None and in_shadow.metric in _OF_SHADOW:
        return Series(_OF_SHADOW[in_shadow.metric], in_shadow.values)
    return None


def read_gauges() -> dict[Series, float]:
    """Return how the servers are, as far as this process has begun to look at them.

    What is not known is not told. Of two servers that cannot be told apart the worse one is told.
    """
    found: dict[Series, float] = {}
    for primary in all_clusters():
        monitor = find_monitor(primary)
        if monitor is None:
            continue
        for server in describe(monitor).servers:
            for series, value in _gauges_of(primary, server):
                worse = min if series.metric is SERVES else max
                found[series] = worse(found.get(series, value), value)
    return found


def _gauges_of(primary: str, server: ServerStatus) -> Iterator[tuple[Series, float]]:
    of_server = (primary, server.alias, server.address)
    yield Series(STATE, (*of_server, server.state)), 1.0
    if server.role == "primary":
        yield Series(PRIMARY_UP, (primary,)), float(server.serves)
        return
    yield Series(SERVES, of_server), float(server.serves)
    if server.seconds_behind is not None:
        yield Series(LAG, of_server), server.seconds_behind
    if server.bytes_behind is not None:
        yield Series(BEHIND, of_server), float(server.bytes_behind)
