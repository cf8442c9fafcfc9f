"""One alias that leads to several servers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest

from django_replica_router import scope
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import get_monitor, stop_monitors
from testproject.cluster import Cluster, HAProxyServer, PgBouncerServer, PostgresServer
from testproject.cluster.binaries import PROXY_VARIABLES, locate_proxy
from testproject.notes.models import Note
from tests.conftest import PATIENT, wait_until

ALIAS = "replica1"
"""The one alias of the site that is no primary's: it is the endpoint."""
BALANCED = ("roundrobin", "leastconn")
POOLED = ("session", "transaction")


def require_proxies() -> None:
    """Skip aloud where HAProxy or PgBouncer is missing; in CI, fail."""
    for name, variable in PROXY_VARIABLES.items():
        if locate_proxy(name) is None:
            message = f"there is no {name}; install it, or set {variable} to its path"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)


class Endpoint:
    """What leads to the standbys, and a way to have it lead to one of them alone.

    Args:
        cluster: the servers.
        entrance: HAProxy or PgBouncer.
        kind: which of its modes.
        targets: the servers that it leads to.
    """

    def __init__(
        self,
        cluster: Cluster,
        entrance: HAProxyServer | PgBouncerServer,
        kind: str,
        targets: Sequence[PostgresServer],
    ) -> None:
        self.cluster = cluster
        self.entrance = entrance
        self.kind = kind
        self.targets = targets
        if isinstance(entrance, PgBouncerServer):
            self._hold_all().close()

    def _hold_all(self, server: PostgresServer | None = None) -> ExitStack:
        """Keep the pooler's connections to all its servers, but for the one that is named."""
        found: list[ExitStack] = []

        def holds_all() -> bool:
            with ExitStack() as stack:
                held = dict(self._hold(stack) for _ in self.targets)
                if held.keys() < {target.port for target in self.targets}:
                    assert isinstance(self.entrance, PgBouncerServer)
                    self.entrance.ask("RECONNECT")  # a server that was down is met again
                    return False
                if server is not None:
                    held[server.port].rollback()  # else the pooler closes its connection as well
                    held[server.port].close()
                found.append(stack.pop_all())
            return True

        def holds_all_at_last() -> bool:
            with suppress(psycopg.OperationalError):
                return holds_all()
            return False

        wait_until(holds_all_at_last, "the pooler to lead to all servers")
        return found[0]

    def _hold(self, stack: ExitStack) -> tuple[int, psycopg.Connection[Any]]:
        """Keep one of the pooler's connections to a server; return the port of that."""
        connection = stack.enter_context(
            psycopg.connect(
                host=self.entrance.host, port=self.entrance.port, user="postgres", dbname="app"
            )
        )
        ((port,),) = connection.execute("SELECT inet_server_port()").fetchall()
        return port, connection

    @contextmanager
    def only(self, server: PostgresServer) -> Iterator[None]:
        """Lead new connections, or statements, to one server alone for the length of the block."""
        with ExitStack() as stack:
            if isinstance(self.entrance, HAProxyServer):
                for target in self.targets:
                    if target is not server:
                        self.entrance.take_out(target.name)
                        stack.callback(self.entrance.put_back, target.name)
            else:
                if self.kind == "session":
                    connections[ALIAS].close()  # it may hold one of the pooler's
                stack.push(self._hold_all(server))
            yield


@contextmanager
def led_by(
    cluster: Cluster,
    kind: str,
    targets: Sequence[PostgresServer] = (),
    *,
    is_monitor_bound: bool = False,
) -> Iterator[Endpoint]:
    """Have the alias lead to both standbys, or to other servers, for the length of the block.

    Args:
        cluster: the servers.
        kind: what leads there.
        targets: the other servers.
        is_monitor_bound: a pooler has as many connections for the monitor as there are servers, too.
    """
    require_proxies()
    targets = targets or cluster.replicas
    database = connections[ALIAS].settings_dict
    before = dict(database)
    ports = {server.name: server.port for server in targets}
    # The monitor, on another database, opens a few more, and would wait for a connection to be free.
    pools = ("app", "postgres") if is_monitor_bound else ("app",)
    entrance = cluster.lead_endpoint(kind, ports, dict.fromkeys(pools, len(targets)))
    reconnect()
    database.update(PORT=str(entrance.port), DISABLE_SERVER_SIDE_CURSORS=kind == "transaction")
    try:
        yield Endpoint(cluster, entrance, kind, targets)
    finally:
        reconnect()
        database.clear()
        database.update(before)
        try:
            cluster.heal()
        finally:
            cluster.remove_endpoint()


def reconnect() -> None:
    """Have this process know nothing of any server."""
    connections.close_all()
    stop_monitors()


@pytest.fixture(params=[*BALANCED, *POOLED])
def kind(request: pytest.FixtureRequest) -> str:
    """Return what leads to the standbys."""
    return str(request.param)


@pytest.fixture
def site_settings(settings: Any, cluster: Cluster) -> Any:
    """The settings of a site whose only replica is the endpoint."""
    settings.REPLICA_ROUTER = {**PATIENT, "CLUSTERS": {"default": [ALIAS]}}
    return settings


@pytest.fixture
def endpoint(kind: str, cluster: Cluster, site_settings: Any) -> Iterator[Endpoint]:
    """What leads to the standbys."""
    with led_by(cluster, kind) as endpoint:
        yield endpoint


def present_monitor() -> Monitor:
    """Return the monitor of the site's cluster."""
    return get_monitor("default")


class Seen(NamedTuple):
    """What a reader was shown, and where that came from."""

    title: str
    alias: str
    port: int


def look(request: HttpRequest | None = None) -> Seen:
    """Return the title of the one note, and who tells it."""
    note: Any = Note.objects.raw("SELECT *, inet_server_port() AS port FROM notes_note")[0]
    return Seen(note.title, str(note._state.db), note.port)


def read(endpoint: Endpoint, server: PostgresServer | None, user: User | None = None) -> Seen:
    """Return what a reader sees of the one note, over a new connection.

    Args:
        endpoint: the endpoint.
        server: the one that it leads to; any where it is None.
        user: the reader; nobody in particular where it is None.
    """
    with endpoint.only(server) if server else nullcontext():
        connections[ALIAS].close()
        with scope(user=user) if user else scope():
            return look()


def read_in_turn(endpoint: Endpoint, user: User | None = None, times: int = 12) -> list[Seen]:
    """Return what a reader sees again and again, led to each server in turn."""
    return [read(endpoint, endpoint.targets[n % 2], user) for n in range(times)]


def servers_of(endpoint: Endpoint, seen: Iterable[Seen]) -> Counter[str]:
    """Return by which server a reader was served how often."""
    cluster = endpoint.cluster
    names = {server.port: server.name for server in (cluster.primary, *cluster.replicas)}
    return Counter(names[port] for _, _, port in seen)


def wait_until_served(endpoint: Endpoint, *servers: PostgresServer) -> None:
    """Return once a reader is served by each of these servers, or of all."""
    for server in servers or endpoint.targets:
        wait_until(
            lambda server=server: (
                read(endpoint, server).alias == ALIAS and read(endpoint, server).port == server.port
            ),
            f"{server.name} to serve",
        )


def rename(user: User, text: str) -> None:
    """Change the note, as the user."""
    with scope(user=user):
        Note.objects.update(title=text)


only_transaction = pytest.mark.parametrize("kind", ["transaction"])
