"""Real PostgreSQL and Valkey servers for the tests, the demo and the benchmarks."""

from __future__ import annotations

from testproject.cluster.cluster import Cluster
from testproject.cluster.errors import ClusterError
from testproject.cluster.pgbouncer import PgBouncerServer
from testproject.cluster.postgres import PostgresServer
from testproject.cluster.replica import ReplicaServer
from testproject.cluster.valkey import ValkeyServer

__all__ = [
    "Cluster",
    "ClusterError",
    "PgBouncerServer",
    "PostgresServer",
    "ReplicaServer",
    "ValkeyServer",
]
