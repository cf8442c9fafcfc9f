"""The servers behind their proxies: which alias reaches which server, and what is broken now."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import psycopg

from testproject.cluster import Cluster, PostgresServer, ReplicaServer
from testproject.cluster.processes import wait_for
from testproject.cluster.server import LOOPBACK
from tests.torture.history import PRIMARY, Recorder, Window
from tests.torture.proxy import ProxyProcess
from tests.torture.server import Site
from tests.torture.visitors import Gate

DATABASE = "app"
RECOVERY_SECONDS = 20.0


class ArenaError(Exception):
    """Something does not come back after a fault."""


class Arena:
    """All that faults are injected into.

    Args:
        cluster: the servers.
        proxy: what leads to them.
        gate: holds all visitors back.
        write_gate: holds writers back.
        recorder: is told what is broken when.
        ended: set when the run is over.
        aliases: the server that each alias reaches.
    """

    def __init__(
        self, cluster: Cluster, proxy: ProxyProcess, recorder: Recorder, ended: Event
    ) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.gate = Gate()
        self.write_gate = Gate()
        self.recorder = recorder
        self.ended = ended
        self.site: Site | None = None
        self.primary: PostgresServer = cluster.primary
        self.replicas: dict[str, ReplicaServer] = {
            replica.name: replica for replica in cluster.replicas
        }
        self.busy: set[str] = set()
        self.dawdling = Event()
        self.conflicts = 0
        self._open: dict[int, Window] = {}

    # 1. What is broken ---------------------------------------------------------------------------

    def open_windows(self) -> list[Window]:
        """Return the windows that have no end yet."""
        return list(self._open.values())

    @contextmanager
    def window(self, kind: str, detail: str = "") -> Iterator[None]:
        """Record that something is broken during the block."""
        window = Window(kind, time.monotonic(), math.inf, detail)
        self._open[id(window)] = window
        try:
            yield
        finally:
            del self._open[id(window)]
            self.recorder.windows.append(window._replace(end=time.monotonic()))

    # 2. Servers ------------------------------------------------------------------------------

    def idle(self) -> list[str]:
        """Return the aliases of the replicas that no fault has taken."""
        return [alias for alias in self.replicas if alias not in self.busy]

    def lead(self, alias: str, server: PostgresServer) -> None:
        """Let an alias reach a server."""
        self.proxy.set_target(alias, server.port)

    def wait_reachable(self, alias: str) -> None:
        """Return when the alias answers a query through its proxy."""

        def answers() -> bool:
            with (
                suppress(psycopg.Error),
                psycopg.connect(
                    host=LOOPBACK,
                    port=self.proxy.ports[alias],
                    user="postgres",
                    dbname=DATABASE,
                    connect_timeout=2,
                    autocommit=True,
                ) as connection,
            ):
                connection.execute("SELECT 1")
                return True
            return False

        self.require(answers, f"{alias} does not answer")

    def require(self, condition: Callable[[], bool], what: str) -> None:
        """Return when something has come true."""
        if not wait_for(condition, timeout=RECOVERY_SECONDS):
            raise ArenaError(f"After {RECOVERY_SECONDS:g} s: {what}.")

    def execute(self, *statements: str) -> None:
        """Run statements on the primary, past the site and the proxy."""
        with self.primary.connect(DATABASE) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def settle(self, aliases: Sequence[str]) -> None:
        """Let replicas replay all there is, without delay, and return when they have."""
        for alias in aliases:
            self.replicas[alias].set_delay(0)
        position = self.primary.flush()
        for alias in aliases:
            self.replicas[alias].wait_replayed(position, timeout=RECOVERY_SECONDS)

    def replace(self, alias: str, old: PostgresServer | None = None) -> None:
        """Give an alias a new copy of the primary for its server.

        Args:
            alias: of the replica.
            old: a server that is down, whose place the copy takes where it has been a replica.
        """
        if isinstance(old, ReplicaServer):
            old.rebuild(self.primary)
            replica = old
        else:
            replica = self.cluster.add_replica()
        self.replicas[alias] = replica
        replica.set_delay(0)
        self.lead(alias, replica)

    def count_conflicts(self) -> int:
        """Return how many statements replicas have cancelled, in the lives of those that run."""
        total = 0
        for replica in self.replicas.values():
            with suppress(psycopg.Error):
                rows: list[Any] = replica.execute(
                    "SELECT sum(confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock)"
                    " FROM pg_stat_database_conflicts"
                )
                total += int(rows[0][0] or 0)
        return total


def aliases_of(cluster: Cluster) -> dict[str, PostgresServer]:
    """Return the server of each alias at the start."""
    servers: dict[str, PostgresServer] = {PRIMARY: cluster.primary}
    for replica in cluster.replicas:
        servers[replica.name] = replica
    return servers
