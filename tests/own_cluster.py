"""A cluster of the tests' own, whose servers they break."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testproject.cluster import Cluster, PostgresServer, ReplicaServer, ValkeyServer

TIMEOUT = 30.0


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """Start one cluster for all tests that do not need their own."""
    with Cluster(settings={"max_connections": "50"}) as cluster:
        cluster.primary.execute("CREATE TABLE note (text text)", dbname="app")
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """Give a test the shared cluster, and undo what it does to the servers."""
    yield shared_cluster
    shared_cluster.heal()


@pytest.fixture
def primary(cluster: Cluster) -> PostgresServer:
    """Give a test the primary."""
    return cluster.primary


@pytest.fixture
def replica(cluster: Cluster) -> ReplicaServer:
    """Give a test a replica that has replayed everything."""
    cluster.wait_caught_up()
    return cluster.replicas[0]


@pytest.fixture
def cache(cluster: Cluster) -> ValkeyServer:
    """Give a test the cache."""
    assert cluster.cache is not None
    return cluster.cache


def write(server: PostgresServer, text: str) -> int:
    """Write a note and return an LSN that has it."""
    server.execute("INSERT INTO note VALUES (%s)", [text], dbname="app")
    return server.flush()


def reads(server: PostgresServer, text: str) -> bool:
    """Return whether a server has a note."""
    query = "SELECT EXISTS (SELECT FROM note WHERE text = %s)"
    return server.execute(query, [text], dbname="app") == [(True,)]


def shared_memory_of(server: PostgresServer) -> str:
    """Return the id of the shared memory segment of a server."""
    return (server.data_directory / "postmaster.pid").read_text().splitlines()[6].split()[1]


def shared_memory_ids() -> list[str]:
    """Return the ids of all shared memory segments of this machine."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return [line.split()[1] for line in lines]


def answers_on(host: str, port: int) -> bool:
    """Return whether a connection is taken on an address."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True
