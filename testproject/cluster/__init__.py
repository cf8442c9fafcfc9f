"""Real PostgreSQL and Valkey servers for the tests, the demo and the benchmarks."""

from __future__ import annotations

from testproject.cluster.cluster import Cluster
from testproject.cluster.errors import ClusterError, ProgramError
from testproject.cluster.haproxy import HAProxyServer
from testproject.cluster.pgbouncer import PgBouncerServer
from testproject.cluster.postgres import PostgresServer
from testproject.cluster.replica import ReplicaServer
from testproject.cluster.valkey import ValkeyServer

__all__ = [
    "Cluster",
    "ClusterError",
    "HAProxyServer",
    "PgBouncerServer",
    "PostgresServer",
    "ProgramError",
    "ReplicaServer",
    "ValkeyServer",
]
