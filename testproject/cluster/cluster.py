"""A primary, its replicas and a cache, started and stopped together."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from psycopg import sql

from testproject.cluster.binaries import PostgresBinaries, find_postgres, find_valkey
from testproject.cluster.errors import ClusterError
from testproject.cluster.postgres import PostgresServer, ReplicaServer
from testproject.cluster.server import Server
from testproject.cluster.valkey import ValkeyServer
from testproject.cluster.workspace import Workspace


class Cluster:
    """Real servers in a temporary directory, gone without a trace at the end.

    Args:
        replicas: how many hot standbys, named ``replica1``, ``replica2`` and so on.
        cache: whether to start a Valkey server.
        databases: names of the databases to create.
        settings: PostgreSQL settings for the primary and all replicas.
    """

    def __init__(
        self,
        *,
        replicas: int = 2,
        cache: bool = True,
        databases: Sequence[str] = ("app",),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.replicas: list[ReplicaServer] = []
        self.cache: ValkeyServer | None = None
        self._primary: PostgresServer | None = None
        self._replica_count = replicas
        self._has_cache = cache
        self._databases = tuple(databases)
        self._settings = dict(settings or {})
        self._workspace: Workspace | None = None
        self._binaries: PostgresBinaries | None = None
        self._owner = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def primary(self) -> PostgresServer:
        """Return the server that was the primary at the start."""
        if self._primary is None:
            raise ClusterError(
                "The cluster is not running. Call start() or use it in a with statement."
            )
        return self._primary

    def start(self) -> None:
        """Start every server and return when all take connections; do nothing if the cluster runs."""
        if self._workspace is not None:
            return
        self._owner = os.getpid()
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
            started = [pool.submit(self.cache.start)] if self.cache else []
            self._primary.initialise(self._settings)
            self._primary.start()
            replicas = [self._new_replica() for _ in range(self._replica_count)]
            started += [pool.submit(_start_replica, replica) for replica in replicas]
            for name in self._databases:
                self.create_database(name)
            for future in started:
                future.result()
        self.wait_caught_up()

    def create_database(self, name: str) -> None:
        """Create a database on the primary, whence it comes to the replicas."""
        with self.present_primary.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stop every server and remove the directory; do nothing if the cluster does not run."""
        # A forked child inherits this object and its atexit hook, not the servers.
        if self._workspace is None or self._owner != os.getpid():
            return
        try:
            servers = self._servers()
            for server in servers:
                server.ask_to_end()
            for server in servers:
                server.ensure_ended()
        finally:
            self._workspace.remove()
            self._workspace = None
            self._primary = None
            self.cache = None
            self.replicas = []
            atexit.unregister(self.stop)

    def _servers(self) -> list[Server]:
        # Replicas first: none shall complain in its log of a primary that went away.
        servers: list[Server | None] = [*self.replicas, self._primary, self.cache]
        return [server for server in servers if server is not None]

    @property
    def present_primary(self) -> PostgresServer:
        """Return the server that takes writes now: ``primary``, or after its end a promoted replica."""
        for server in (self.primary, *self.replicas):
            if server.is_running and not server.is_in_recovery:
                return server
        raise ClusterError(
            "No server of the cluster takes writes. Start the primary or promote a replica."
        )

    def add_replica(self) -> ReplicaServer:
        """Start another replica of the present primary."""
        replica = self._new_replica()
        try:
            _start_replica(replica)
        except BaseException:
            self.replicas.remove(replica)
            replica.kill()
            raise
        return replica

    def _new_replica(self) -> ReplicaServer:
        if self._workspace is None or self._binaries is None:
            raise ClusterError(
                "The cluster is not running. Call start() or use it in a with statement."
            )
        name = f"replica{len(self.replicas) + 1}"
        replica = ReplicaServer(self._workspace, self._binaries, name, self.present_primary)
        # At once, so that stop() knows of it while it starts.
        self.replicas.append(replica)
        return replica

    def wait_caught_up(self, timeout: float = 10.0) -> None:
        """Return when every running replica has replayed all that the present primary has in its WAL now.

        Raises ClusterError when the time is over. A server that was promoted is no replica any more.
        """
        deadline = time.monotonic() + timeout
        lsn = self.present_primary.flush()
        for replica in self.replicas:
            if replica.is_running and replica.has_standby_signal:
                replica.wait_replayed(lsn, timeout=max(0.0, deadline - time.monotonic()))

    def django_databases(self, name: str = "app") -> dict[str, dict[str, Any]]:
        """Return the cluster as Django's setting DATABASES."""
        databases = {"default": _django_database(self.primary, name)}
        for replica in self.replicas:
            databases[replica.name] = {
                **_django_database(replica, name),
                "TEST": {"MIRROR": "default"},
            }
        return databases


def _start_replica(replica: ReplicaServer) -> None:
    replica.initialise_from_upstream()
    replica.start()


def _django_database(server: PostgresServer, name: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": server.user,
        "PASSWORD": "",
        "HOST": server.host,
        "PORT": str(server.port),
    }
