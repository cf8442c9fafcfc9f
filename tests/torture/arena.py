"""The servers behind their proxies: which alias reaches which server, and what is broken now."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import psycopg
from django.core import signing

from testproject.cluster import Cluster, PostgresServer, ReplicaServer
from testproject.cluster.gunicorn import Site
from testproject.cluster.processes import wait_for
from testproject.cluster.server import LOOPBACK
from testproject.settings import SECRET_KEY
from tests.torture.control_reader import ControlReader
from tests.torture.history import (
    GLOBAL,
    PRIMARY,
    RECOVERED,
    WATCHED_READS,
    Fork,
    History,
    Op,
    Recorder,
    Window,
)
from tests.torture.proxy import ProxyProcess
from tests.torture.visitors import Gate

DATABASE = "app"
FORK = "(fork)"
"""Who raises the registers at a failover with loss."""
RECOVERY_SECONDS = 20.0

SESSION_SALT = "django.contrib.sessions.SessionStore"
"""With which Django signs what a session holds."""

EPOCH = 1_000_000
"""More than a register is raised between two failovers."""

RECOVERY_TOLERANCE = 2.0
"""Seconds after the end of the tokens' life: the pollers' longest pause after a short outage."""
WATCH_SECONDS = 2.0
WATCHED_USERS = 3
MOST_SECONDS = 10.0
"""So long at most a busy machine is waited for, until there is something to look at."""


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
        token_life: seconds for which tokens bind.
        entrances: the port at which the site reaches each alias.
    """

    def __init__(
        self,
        cluster: Cluster,
        proxy: ProxyProcess,
        recorder: Recorder,
        ended: Event,
        token_life: float,
    ) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.entrances: Mapping[str, int] = proxy.ports
        self.gate = Gate()
        self.write_gate = Gate()
        self.recorder = recorder
        self.ended = ended
        self.token_life = token_life
        self.site: Site | None = None
        self.control_reader: ControlReader | None = None
        self.primary: PostgresServer = cluster.primary
        self.replicas: dict[str, ReplicaServer] = {
            replica.name: replica for replica in cluster.replicas
        }
        self.busy: set[str] = set()
        self.dawdling = Event()
        self.conflicts = 0
        self.evicted = 0
        self.forked_at = -math.inf
        self._open: dict[int, Window] = {}

    # 1. What is broken ---------------------------------------------------------------------------

    def history(self) -> History:
        """Return what has happened so far, with the windows that have no end yet."""
        outages = [] if self.control_reader is None else self.control_reader.outages()
        return self.recorder.history(list(self._open.values()), outages)

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
        """Return when the alias answers a query on the site's way to it."""

        def answers() -> bool:
            with (
                suppress(psycopg.Error),
                psycopg.connect(
                    host=LOOPBACK,
                    port=self.entrances[alias],
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

    # 3. Failover with loss ---------------------------------------------------------------------

    def received_lsn(self, alias: str) -> int:
        """Return the position up to which a replica has WAL, replayed or not."""
        rows = self.replicas[alias].execute(
            "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'"
        )
        return int(rows[0][0])

    def fork(self, heir: PostgresServer) -> None:
        """Note what a new primary has, and raise all registers above what was ever acknowledged.

        Numbers that were lost would be used again, and the order of the numbers would not be that
        of the versions any more. To be called before anybody reaches the server as the primary.
        """
        ops = self.recorder.new_list()
        with heir.connect(DATABASE) as connection:
            values = dict(connection.execute("SELECT id, value FROM torture_register").fetchall())
            rows = connection.execute("SELECT session_key, session_data FROM django_session")
            sessions = sessions_in(rows)
            at = time.monotonic()
            raised = connection.execute(
                "UPDATE torture_register SET value = (value / %s + 1) * %s RETURNING id, value",
                [EPOCH, EPOCH],
            ).fetchall()
        self.recorder.add_fork(
            Fork(at, {_register(number): value for number, value in values.items()}), sessions
        )
        self.forked_at = at
        end = time.monotonic()
        ops += [
            # Everybody's from now on, and so a write like any other.
            Op("write", FORK, "", at, end, 200, written=(_register(number), value), safe=False)
            for number, value in raised
        ]

    def watch_recovery(self) -> None:
        """Record a time in which nobody has a reason to be on the primary any more.

        Tokens of the old timeline have expired, and no replica lags.
        """
        self.busy = set(self.replicas)
        self.settle(list(self.replicas))
        expired_at = self.forked_at + self.token_life + RECOVERY_TOLERANCE
        self.ended.wait(max(0.0, expired_at - time.monotonic()))
        began = time.monotonic()

        def is_enough() -> bool:
            reads = Counter(
                op.user
                for op in self.recorder.since(began)
                if op.safe and op.is_answered and op.aliases and op.signed_in == op.user
            )
            return sum(number >= WATCHED_READS for number in reads.values()) >= WATCHED_USERS

        with self.window(RECOVERED):
            self.ended.wait(WATCH_SECONDS)
            wait_for(is_enough, timeout=MOST_SECONDS)

    def wait_for_write(self) -> None:
        """Return when a write that began after now was acknowledged, or after a while without."""
        began = time.monotonic()
        wait_for(
            lambda: any(op.written is not None for op in self.recorder.since(began)),
            timeout=MOST_SECONDS,
        )

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


def _register(number: int) -> str:
    return GLOBAL if number == 0 else f"own u{number}"


def sessions_in(rows: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Return the number that each session of a signed-in user holds, by its key.

    A sign-in first inserts the row and then says in it who has signed in. Where a failover has kept
    the one and lost the other, it has lost the sign-in.

    Args:
        rows: key and data of each session.
    """
    contents = {
        key: signing.loads(data, key=SECRET_KEY, salt=SESSION_SALT, fallback_keys=[])
        for key, data in rows
    }
    return {
        key: int(content.get("value") or 0)
        for key, content in contents.items()
        if "_auth_user_id" in content
    }


def aliases_of(cluster: Cluster) -> dict[str, PostgresServer]:
    """Return the server of each alias at the start."""
    servers: dict[str, PostgresServer] = {PRIMARY: cluster.primary}
    for replica in cluster.replicas:
        servers[replica.name] = replica
    return servers
