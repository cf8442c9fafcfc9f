"""Looks at where every server stands, about every millisecond, from a process of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

import psycopg

from benchmarks.load.processes import PipedProcess
from benchmarks.oracle import PRIMARY, Look, Track
from testproject.cluster import Cluster

REPLAYED = b"SELECT pg_last_wal_replay_lsn() - '0/0'"
INSERTED = b"SELECT pg_current_wal_insert_lsn() - '0/0'"
KEPT = 400_000
"""Looks kept of each server: more than a few minutes."""


class Watcher(PipedProcess):
    """The looks at the servers of a cluster, for the length of a block.

    Args:
        cluster: whose servers to look at.
        pause: seconds between two looks at a replica.
        primary_pause: seconds between two looks at the primary.
    """

    def __init__(
        self, cluster: Cluster, *, pause: float = 0.001, primary_pause: float = 0.001
    ) -> None:
        servers = {replica.name: (replica.dsn(), REPLAYED, pause) for replica in cluster.replicas}
        servers[PRIMARY] = (cluster.primary.dsn(), INSERTED, primary_pause)
        super().__init__(_watch, servers)

    def __enter__(self) -> Self:
        super().__enter__()
        self.tracks()
        return self

    def tracks(self, since: float = 0.0) -> dict[str, Track]:
        """Return where each server stood since a moment, up to now at least."""
        self._pipe.send(since)
        found: dict[str, list[tuple[float, float, int]]] = self._pipe.recv()
        return {alias: Track([Look(*look) for look in looks]) for alias, looks in found.items()}


def _watch(pipe: Any, servers: Mapping[str, tuple[str, bytes, float]]) -> None:
    """Look until the other end of the pipe is closed."""
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # little work, and what it finds late favours the oracle
    looks: dict[str, deque[tuple[float, float, int]]] = {
        alias: deque(maxlen=KEPT) for alias in servers
    }
    for alias, (dsn, query, pause) in servers.items():
        threading.Thread(
            target=_look_again_and_again, args=(dsn, query, pause, looks[alias]), daemon=True
        ).start()
    while True:
        try:
            since = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        asked = time.monotonic()
        while any(not known or known[-1][0] < asked for known in looks.values()):
            time.sleep(0.001)
        pipe.send(
            {
                alias: [look for look in list(known) if look[1] >= since - 1.0]
                for alias, known in looks.items()
            }
        )


def _look_again_and_again(
    dsn: str, query: bytes, pause: float, looks: deque[tuple[float, float, int]]
) -> None:
    connection = psycopg.connect(dsn, autocommit=True)
    raw = connection.pgconn  # its one call costs a fifth of what a cursor does
    while True:
        began = time.monotonic()
        value = raw.exec_(query).get_value(0, 0)
        ended = time.monotonic()
        if value is None:
            return  # no standby any more: nothing is known from here on
        looks.append((began, ended, int(value)))
        time.sleep(pause)
