"""A primary, its replicas and a cache, started and stopped together."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from testproject.cluster.binaries import (
    PostgresBinaries,
    find_postgres,
    find_proxy,
    find_valkey,
)
from testproject.cluster.errors import ClusterError
from testproject.cluster.haproxy import HAProxyServer
from testproject.cluster.managed import Managed
from testproject.cluster.pgbouncer import POOL_MODES, PgBouncerServer
from testproject.cluster.postgres import STATE_TIMEOUT, PostgresServer
from testproject.cluster.replica import ReplicaServer
from testproject.cluster.server import LOOPBACK, Server, wait_until
from testproject.cluster.valkey import ValkeyServer
from testproject.cluster.workspace import Workspace

NOT_RUNNING = "The cluster is not running. Call start() first."


class Cluster(Managed):
    """Real servers in a temporary directory, which leave nothing behind.

    The directory is in TMPDIR if that is set, else in memory if there is enough of it.

    Args:
        replicas: how many hot standbys there are, named ``replica1``, ``replica2`` and so on.
        cache: whether there is a Valkey server.
        databases: names of databases to create.
        settings: PostgreSQL settings for the primary and its replicas.
        pooler: "session" or "transaction", which is the mode of a PgBouncer in front of each
            server; no pooler where it is empty. ``django_databases()`` leads through it, and what
            a test does to a server does not.
        pooler_settings: PgBouncer's settings.
    """

    def __init__(
        self,
        *,
        replicas: int = 2,
        cache: bool = True,
        databases: Sequence[str] = ("app",),
        settings: Mapping[str, str] | None = None,
        pooler: str = "",
        pooler_settings: Mapping[str, str] | None = None,
    ) -> None:
        self.pooler = pooler
        self.poolers: dict[str, PgBouncerServer] = {}
        self.balancer: HAProxyServer | None = None
        self.endpoint_pooler: PgBouncerServer | None = None
        self._endpoint_numbers = itertools.count(1)
        self._pooler_settings = dict(pooler_settings or {})
        self.replicas: list[ReplicaServer] = []
        self.cache: ValkeyServer | None = None
        self._primary: PostgresServer | None = None
        self._binaries: PostgresBinaries | None = None
        self._workspace: Workspace | None = None
        self._owner_pid = 0
        self._replica_numbers = itertools.count(1)
        self._replica_count = replicas
        self._has_cache = cache
        self._databases = tuple(databases)
        self._settings = dict(settings or {})

    def _open(self, stack: ExitStack) -> None:
        self.start()
        stack.callback(self.stop)

    @property
    def primary(self) -> PostgresServer:
        """Return the server that was the primary at the start."""
        if self._primary is None:
            raise ClusterError(NOT_RUNNING)
        return self._primary

    @property
    def directory(self) -> Path:
        """Return the temporary directory, where the servers' logs are."""
        if self._workspace is None:
            raise ClusterError(NOT_RUNNING)
        return self._workspace.path

    @property
    def present_primary(self) -> PostgresServer:
        """Return the server that takes writes now: ``primary``, else a promoted replica."""
        for server in (self.primary, *self.replicas):
            if server.is_running and not server.is_standby:
                return server
        raise ClusterError("No server takes writes. Start the primary or promote a replica.")

    def start(self) -> None:
        """Start all servers, and return when they take connections; do nothing if they run."""
        if self._workspace is not None:
            return
        self._owner_pid = os.getpid()
        self._workspace = Workspace()
        atexit.register(self.stop)
        try:
            self._start_servers(self._workspace)
        except BaseException:
            self.stop()
            raise

    def _start_servers(self, workspace: Workspace) -> None:
        self._binaries = find_postgres(workspace)
        self._primary = PostgresServer(workspace, self._binaries, "primary")
        if self._has_cache:
            self.cache = ValkeyServer(workspace, find_valkey(workspace))
        with ThreadPoolExecutor(thread_name_prefix="cluster") as pool:
            tasks = [pool.submit(self.cache.start)] if self.cache else []
            self._primary.initialise(self._settings)
            self._primary.start()
            replicas = [self._new_replica() for _ in range(self._replica_count)]
            tasks += [pool.submit(_start_replica, replica) for replica in replicas]
            for name in self._databases:
                self.create_database(name)
            for task in tasks:
                task.result()
        self.wait_caught_up()
        if self.pooler:
            servers = (self._primary, *self.replicas)
            self.lead_poolers(self.pooler, {server.name: server.port for server in servers})

    def lead_poolers(self, mode: str, targets: Mapping[str, int]) -> dict[str, int]:
        """Put a PgBouncer in front of each port, and return the ports at which they are reached.

        Args:
            mode: "session" or "transaction"; where it is empty there are none, and the ports
                themselves are returned.
            targets: a port for each name.
        """
        self.remove_poolers()
        self.pooler = mode
        return {name: self._lead_pooler(name, port) for name, port in targets.items()}

    def _lead_pooler(self, name: str, port: int) -> int:
        if not self.pooler or self._workspace is None:
            return port
        self.poolers[name] = pooler = PgBouncerServer(
            self._workspace,
            find_proxy("pgbouncer", self._workspace),
            f"pooler-{name}-{port}-{self.pooler}",
            target_port=port,
            pool_mode=self.pooler,
            settings=self._pooler_settings,
        )
        pooler.start()
        return pooler.port

    def lead_endpoint(
        self, kind: str, targets: Mapping[str, int], pool_sizes: Mapping[str, int] | None = None
    ) -> HAProxyServer | PgBouncerServer:
        """Put one entrance in front of several ports, and return what stands there.

        Args:
            kind: "roundrobin" or "leastconn" for HAProxy in that mode; "session" or "transaction" for a
                PgBouncer in that mode, with several hosts in one entry.
            targets: a port for each name.
            pool_sizes: of PgBouncer, for databases.
        """
        self.remove_endpoint()
        if self._workspace is None:
            raise ClusterError(NOT_RUNNING)
        haproxy = find_proxy("haproxy", self._workspace)
        is_pooled = kind in POOL_MODES
        # All hosts of an entry have one port there: so each server gets an address.
        hosts = {
            f"127.0.0.{number}": {name: targets[name]} for number, name in enumerate(targets, 2)
        }
        self.balancer = HAProxyServer(
            self._workspace,
            haproxy,
            f"balancer-{next(self._endpoint_numbers)}",
            listeners=hosts if is_pooled else {LOOPBACK: targets},
            balance="roundrobin" if is_pooled else kind,
        )
        self.balancer.start()
        if not is_pooled:
            return self.balancer
        self.endpoint_pooler = PgBouncerServer(
            self._workspace,
            find_proxy("pgbouncer", self._workspace),
            f"{self.balancer.name}-pooler",
            target_port=self.balancer.port,
            target_hosts=list(hosts),
            pool_mode=kind,
            # Else the connection that was given back last is given out first, and so its server.
            settings={"server_round_robin": "1", **self._pooler_settings},
            pool_sizes=pool_sizes,
        )
        self.endpoint_pooler.start()
        return self.endpoint_pooler

    def remove_endpoint(self) -> None:
        """Stop what ``lead_endpoint`` has started."""
        for server in (self.endpoint_pooler, self.balancer):
            if server is not None:
                server.remove()
        self.balancer = self.endpoint_pooler = None

    def remove_poolers(self) -> None:
        """Stop all poolers: applications reach the servers themselves."""
        self.pooler = ""
        while self.poolers:
            self.poolers.popitem()[1].remove()

    def stop(self) -> None:
        """Stop all servers and remove their directory; do nothing if there is none."""
        # A forked child inherits this object and its atexit hook, but not the servers.
        if self._workspace is None or self._owner_pid != os.getpid():
            return
        with ExitStack() as stack:  # every step is taken, whatever happens to the others
            stack.callback(self._forget_servers)
            stack.callback(self._workspace.remove)
            for server in self._servers():
                stack.callback(server.ensure_ended)
            for server in self._servers():
                server.ask_to_end()

    def _servers(self) -> list[Server]:
        servers: list[Server | None] = [
            self._primary,
            *self.replicas,
            self.cache,
            *self.poolers.values(),
            self.endpoint_pooler,
            self.balancer,
        ]
        return [server for server in servers if server is not None]

    def _forget_servers(self) -> None:
        atexit.unregister(self.stop)
        self._workspace = None
        self._primary = None
        self.cache = None
        self.replicas = []
        self.poolers = {}
        self.balancer = self.endpoint_pooler = None
        self._replica_numbers = itertools.count(1)

    def create_database(self, name: str) -> None:
        """Create a database, which the replicas get by replication."""
        with self.present_primary.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def add_replica(self) -> ReplicaServer:
        """Start another replica of the present primary."""
        replica = self._new_replica()
        try:
            _start_replica(replica)
            self._lead_pooler(replica.name, replica.port)
        except BaseException:
            self._remove_replica(replica)
            raise
        return replica

    def _remove_replica(self, replica: ReplicaServer) -> None:
        if replica.name in self.poolers:
            self.poolers.pop(replica.name).remove()
        replica.kill()
        self.replicas.remove(replica)
        shutil.rmtree(replica.data_directory)

    def _new_replica(self) -> ReplicaServer:
        primary = self.present_primary
        if self._workspace is None or self._binaries is None:
            raise ClusterError(NOT_RUNNING)
        name = f"replica{next(self._replica_numbers)}"
        replica = ReplicaServer(self._workspace, self._binaries, name, primary)
        # Already now, so that stop() knows it if it comes while the replica starts.
        self.replicas.append(replica)
        return replica

    def wait_caught_up(self, timeout: float = 10.0) -> None:
        """Return when every running replica has replayed all WAL that the present primary has.

        A replica that was promoted is no replica any more, and not waited for.
        """
        deadline = time.monotonic() + timeout
        primary = self.present_primary
        try:
            lsn = primary.flush()
        except psycopg.OperationalError as error:
            raise ClusterError(
                f"{primary.name} does not say where its WAL ends: {error}"
            ) from error
        for replica in self.replicas:
            if replica.is_running and replica.is_standby:
                replica.wait_replayed(lsn, timeout=max(0.0, deadline - time.monotonic()))

    def heal(self) -> None:
        """Bring all servers back to how they were at the start, data aside.

        Start what was stopped, let go on what was suspended, and undo delays, pauses, cuts and
        promotions: a replica with a history of its own becomes a new copy of ``primary``, and those
        that were added are gone. Return when all replicas receive from it.
        """
        for replica in self.replicas[self._replica_count :]:
            self._remove_replica(replica)
        for server in self._servers():
            if server.is_running:
                server.resume_process()
            else:
                server.start()
        for replica in self.replicas:
            replica.heal(self.primary)
        self._wait_connected()
        for server in (self.primary, *self.replicas):
            if server.name in self.poolers:
                self.poolers[server.name].lead(server.port)
                self.poolers[server.name].heal(("postgres", *self._databases))
        self.wait_caught_up()

    def _wait_connected(self) -> None:
        """Return when every replica receives from the primary, and the primary sends to it.

        That all have what there is does not show it: a primary that was started anew has nothing
        new to send. Both are asked, since either may not have noticed yet that the other was gone.
        """
        names = {replica.name for replica in self.replicas}

        def are_connected() -> bool:
            senders = self.primary.execute(
                "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
            )
            return names <= {name for (name,) in senders} and all(
                replica.is_receiving() for replica in self.replicas
            )

        wait_until(
            are_connected,
            timeout=STATE_TIMEOUT,
            failure=lambda: f"{self.primary.name} does not send to all replicas.",
        )

    def django_databases(self, name: str = "app") -> dict[str, dict[str, Any]]:
        """Return the servers as Django's setting DATABASES, through their poolers.

        By the database backend that the environment variable TESTPROJECT_ENGINE names, else by
        Django's own.
        """
        databases = {"default": self._django_database(self.primary, name)}
        for replica in self.replicas:
            settings = self._django_database(replica, name)
            databases[replica.name] = {**settings, "TEST": {"MIRROR": "default"}}
        return databases

    def entrance(self, server: PostgresServer) -> int:
        """Return the port at which an application reaches a server: its pooler's, or its own."""
        pooler = self.poolers.get(server.name)
        return server.port if pooler is None else pooler.port

    def _django_database(self, server: PostgresServer, name: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "ENGINE": os.environ.get("TESTPROJECT_ENGINE", "django.db.backends.postgresql"),
            "NAME": name,
            "USER": server.user,
            "PASSWORD": "",
            "HOST": server.host,
            "PORT": str(self.entrance(server)),
        }
        if self.pooler == "transaction":
            # A cursor of the server's lives on one of its connections.
            settings["DISABLE_SERVER_SIDE_CURSORS"] = True
        return settings


def _start_replica(replica: ReplicaServer) -> None:
    replica.copy_upstream()
    replica.start()
