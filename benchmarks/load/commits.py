"""Where transactions end in the WAL: the primary tells, afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.oracle import Read, Write
from testproject.cluster import Cluster

DATABASE = "app"
COMMITS = """
SELECT xid::text, end_lsn - '0/0'
FROM pg_get_wal_records_info('0/0'::pg_lsn + %s::numeric, pg_current_wal_flush_lsn())
WHERE resource_manager = 'Transaction' AND record_type = 'COMMIT'
"""


def enable(cluster: Cluster) -> None:
    """Have the primary able to read its WAL."""
    cluster.primary.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect", dbname=DATABASE)


def ends_of_commits(cluster: Cluster, since: int) -> dict[int, int]:
    """Return the end of each commit record behind a position, by the transaction's number."""
    found = cluster.primary.execute(COMMITS, [since], dbname=DATABASE)
    return {int(number): int(end) for number, end in found}


def located(events: Iterable[Read | Write], ends: Mapping[int, int]) -> list[Read | Write]:
    """Return the events with each write at the end of its commit record."""
    return [
        event._replace(position=ends[event.transaction]) if isinstance(event, Write) else event
        for event in events
    ]
