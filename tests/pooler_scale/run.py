"""Servers, poolers and processes of clients; what they counted, and how many connections there were."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from testproject.cluster import Cluster, PostgresServer
from testproject.cluster.programs import LineProgram, run_django
from tests.torture.server import environment

DATABASE = "app"
CLIENTS_PER_PROCESS = 2500
SAMPLE_SECONDS = 0.1
LOOK_SECONDS = 60.0
"""So long at most a look may take: servers and poolers answer their clients meanwhile."""


class ScaleError(Exception):
    """Nobody counts the connections."""


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    clients: int
    server_connections: int
    counts: Counter[str] = field(default_factory=Counter)
    stats: Counter[str] = field(default_factory=Counter)
    connect_seconds: float = 0.0
    work_seconds: float = 0.0
    peak_clients: int = 0
    peak_servers: int = 0

    @property
    def is_passed(self) -> bool:
        """Every connection was open at once, every read was right, and servers had few of them."""
        return (
            self.counts["errors"] == 0
            and self.counts["stale"] == 0
            and self.counts["reads"] >= self.clients
            and self.counts["open"] == 2 * self.clients
            and self.peak_servers <= self.server_connections
        )


def run(
    clients: int, server_connections: int, *, rounds: int = 1, seconds: float = 480.0
) -> Outcome:
    """Connect all clients at once and have each write and read back its value.

    Args:
        clients: how many; each has a connection to the primary and one to the replica.
        server_connections: how many the poolers may have, to the two servers together.
        rounds: how often each client writes.
        seconds: after which to give up.
    """
    outcome = Outcome(clients, server_connections)
    deadline = time.monotonic() + seconds
    limits = {
        "max_client_conn": str(clients + 1000),
        "default_pool_size": str(server_connections // 2),
        "max_db_connections": str(server_connections // 2),
        "query_wait_timeout": "60",
        "listen_backlog": "1024",
    }
    settings = {"max_connections": str(server_connections + 50)}
    with Cluster(
        replicas=1,
        databases=(DATABASE,),
        settings=settings,
        pooler="transaction",
        pooler_settings=limits,
    ) as cluster:
        assert cluster.cache is not None
        environ = {
            **environment(cluster.django_databases(DATABASE), cluster.cache.url, {}),
            "DJANGO_SETTINGS_MODULE": "tests.pooler_scale.settings",
        }
        _prepare(cluster, environ, clients)
        with ExitStack() as stack:
            wait_for_look = stack.enter_context(_watched(cluster, outcome))
            workers = [
                stack.enter_context(_worker(environ, first, min(CLIENTS_PER_PROCESS, left)))
                for first, left in (
                    (1 + done, clients - done) for done in range(0, clients, CLIENTS_PER_PROCESS)
                )
            ]
            outcome.connect_seconds, _ = _step("connect", workers, deadline)
            wait_for_look()  # while all are connected: their work may be done before the next look
            for _ in range(rounds):
                taken, answers = _step("work", workers, deadline)
                outcome.work_seconds += taken
        for answer in answers:
            outcome.counts.update(answer["counts"])
            outcome.stats.update(answer["stats"])
    return outcome


def _prepare(cluster: Cluster, environ: dict[str, str], clients: int) -> None:
    run_django(environ, "migrate", "--verbosity", "0")
    cluster.primary.execute(
        "INSERT INTO notes_tag (id, name) SELECT n, n::text FROM generate_series(1, %s) n",
        [clients],
        dbname=DATABASE,
    )
    cluster.wait_caught_up()


def _worker(environ: dict[str, str], first: int, count: int) -> LineProgram:
    command = [sys.executable, "-m", "tests.pooler_scale.worker", str(first), str(count)]
    return LineProgram(command, environ)


def _step(
    word: str, workers: Sequence[LineProgram], deadline: float
) -> tuple[float, list[dict[str, Any]]]:
    """Have all workers do something at once; return how long it took, and their answers."""
    began = time.monotonic()
    for worker in workers:
        worker.send(word)
    answers = [worker.receive(max(0.0, deadline - time.monotonic())) for worker in workers]
    return time.monotonic() - began, answers


@contextmanager
def _watched(cluster: Cluster, outcome: Outcome) -> Iterator[Callable[[], None]]:
    """Count connections during the block: clients of the poolers, and of the servers.

    Yields what returns once there was a look that began later than it was called.
    """
    ended = threading.Event()
    looks = threading.Semaphore(0)
    servers: list[PostgresServer] = [cluster.primary, *cluster.replicas]

    def watch() -> None:
        with ExitStack() as stack:
            raws = [stack.enter_context(server.connect()) for server in servers]
            while not ended.wait(SAMPLE_SECONDS):
                outcome.peak_servers = max(outcome.peak_servers, sum(map(_count_backends, raws)))
                clients = sum(
                    row["items"]
                    for pooler in cluster.poolers.values()
                    for row in pooler.ask("SHOW LISTS")
                    if row["list"] == "used_clients"
                )
                # The console's own connections are clients, too.
                outcome.peak_clients = max(outcome.peak_clients, clients - len(cluster.poolers))
                looks.release()

    def wait_for_look() -> None:
        while looks.acquire(blocking=False):
            pass
        for _ in range(2):  # the first one may have been under way
            if not looks.acquire(timeout=LOOK_SECONDS):
                raise ScaleError("Nobody counts the connections.")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield wait_for_look
    finally:
        ended.set()
        thread.join(10.0)


def _count_backends(raw: Any) -> int:
    # Whoever has come through a pooler: this connection has not, nor has replication.
    rows = raw.execute(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND datname = 'app'"
    ).fetchall()
    return int(rows[0][0])
