"""Servers behind PgBouncer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connections
from django.http import HttpRequest
from django.test import Client

from django_replica_router import scope
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.registry import get_monitor, stop_monitors
from testproject.cluster import Cluster, PgBouncerServer, ReplicaServer
from testproject.cluster.binaries import PGBOUNCER_VARIABLE, locate_proxy
from testproject.cluster.pgbouncer import POOL_MODES
from testproject.notes.models import Note
from tests.conftest import PATIENT, POOLER, wait_until, wait_until_routed
from tests.site import visit

# The monitor looks only when it is asked to: whatever is noticed, a request has noticed.
BLIND = {**PATIENT, "MAX_LAG": 400.0, "TOKEN_TTL": 1000.0, "INTERVAL": 100.0}


def require_pgbouncer() -> None:
    """Skip aloud where there is no PgBouncer; in CI, fail."""
    if locate_proxy("pgbouncer") is None:
        message = f"there is no PgBouncer; install it, or set {PGBOUNCER_VARIABLE} to its path"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def pooled_by(cluster: Cluster, mode: str) -> Iterator[dict[str, PgBouncerServer]]:
    """Lead the application through poolers for the length of the block."""
    require_pgbouncer()
    before = {alias: dict(connections[alias].settings_dict) for alias in connections}
    servers = [("default", cluster.primary), *((r.name, r) for r in cluster.replicas)]
    cluster.lead_poolers(mode, {server.name: server.port for _, server in servers})
    lead(cluster)
    try:
        wait_until_routed()
        yield cluster.poolers
    finally:
        try:
            cluster.heal()
        finally:
            connections.close_all()
            stop_monitors()
            if POOLER:
                cluster.lead_poolers(POOLER, {server.name: server.port for _, server in servers})
                lead(cluster)
            else:
                cluster.remove_poolers()
                for alias, settings in before.items():
                    connections[alias].settings_dict.clear()  # also what was not there before
                    connections[alias].settings_dict.update(settings)


def lead(cluster: Cluster) -> None:
    """Point Django to the cluster's present entrances."""
    connections.close_all()
    stop_monitors()
    for alias, database in cluster.django_databases("app").items():
        known = {"DISABLE_SERVER_SIDE_CURSORS": False} | database
        for name in ("PORT", "DISABLE_SERVER_SIDE_CURSORS"):
            connections[alias].settings_dict[name] = known[name]


@pytest.fixture(params=POOL_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Return a pool mode."""
    return str(request.param)


@pytest.fixture
def poolers(
    mode: str, real_cluster: Cluster, _django_on_cluster: None
) -> Iterator[dict[str, PgBouncerServer]]:
    """A PgBouncer for each server, by the server's name."""
    with pooled_by(real_cluster, mode) as poolers:
        yield poolers


@pytest.fixture
def transaction_poolers(
    real_cluster: Cluster, _django_on_cluster: None
) -> Iterator[dict[str, PgBouncerServer]]:
    """The same, in transaction mode."""
    with pooled_by(real_cluster, "transaction") as poolers:
        yield poolers


def look_until_routed() -> None:
    """Have a monitor that looks only when it is asked to know both replicas."""

    def is_known() -> bool:
        monitor = get_monitor("default")
        monitor.known.refresh(0.0)
        return all(
            r.state is ReplicaState.STREAMING and r.age < 60 for r in monitor.health.replicas()
        )

    wait_until(is_known, "both replicas to be known")


def usual_replica(client: Client, cluster: Cluster) -> ReplicaServer:
    """Return the replica that the client's requests meet."""

    replicas = {replica.name: replica for replica in cluster.replicas}
    found: list[str] = []

    def is_on_replica() -> bool:
        found.append(visit(client, lambda request: Note.objects.get()._state.db))
        return found[-1] in replicas

    wait_until(is_on_replica, "a replica to serve")
    return replicas[found[-1]]


def title(request: HttpRequest) -> str:
    """Return what the reader sees of the one note."""
    return Note.objects.get().title


def rename(client: Client, text: str) -> None:
    """Change the note, as the client's user."""
    visit(client, lambda request: Note.objects.update(title=text) and None, "post")


def read_ten_times() -> str:
    """Return the alias of the replica that serves one user's reads."""
    with scope(user=1):
        (alias,) = {str(Note.objects.get()._state.db) for _ in range(10)}
    assert alias.startswith("replica")
    return alias
