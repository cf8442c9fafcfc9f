"""What tests of faults have in common."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connections

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.registry import find_monitor
from testproject.cluster import Cluster, ReplicaServer
from testproject.notes.models import Note, Tag
from tests.conftest import wait_until, wait_until_known


@pytest.fixture
def note(ann: User, cluster: Cluster) -> Note:
    """A note of Ann's, on every server."""
    note = Note.objects.create(owner=ann, title="first")
    Tag.objects.bulk_create(Tag(name=f"tag {n:03}") for n in range(200))
    wait_until_known(cluster)
    return note


@pytest.fixture(autouse=True)
def no_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a statement that a replica cancels for a long one, however soon that happens here."""
    monkeypatch.setattr("django_replica_router.connections.on_replica._BRIEF", -1.0)


def find_serving(cluster: Cluster) -> tuple[str, ReplicaServer]:
    """Return the alias of the replica that serves this scope, and its server."""
    alias = str(Note.objects.get()._state.db)
    assert alias.startswith("replica")
    return alias, next(replica for replica in cluster.replicas if replica.name == alias)


def state_of(replica: ReplicaServer) -> ReplicaState:
    """Return what this process knows of a replica."""
    monitor = find_monitor("default")
    assert monitor is not None
    return next(known.state for known in monitor.health.replicas() if known.alias == replica.name)


def wait_for_state(replica: ReplicaServer, state: ReplicaState) -> None:
    """Return once this process knows that the replica is in that state."""
    wait_until(lambda: state_of(replica) is state, f"{replica.name} to be {state.name}")


def backend(alias: str) -> int:
    """Return the process id of the server's backend for this thread's connection."""
    raw: psycopg.Connection[Any] = connections[alias].connection
    row = raw.execute("SELECT pg_backend_pid()").fetchone()  # a pooler tells libpq another one
    assert row is not None
    return int(row[0])


NO_CURSORS = pytest.mark.not_pooled(
    "there are no cursors of the server: Django has all rows before the first is used",
    modes=["transaction"],
)
