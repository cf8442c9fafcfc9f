"""Standbys behind a name, and a name server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest

from django_replica_router import conf, scope
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas import discovery
from django_replica_router.replicas.lookups import look_up
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from django_replica_router.routing.balancers import rendezvous
from django_replica_router.scopes.keys import digest
from testproject.cluster import Cluster, ReplicaServer
from testproject.cluster.server import free_port
from testproject.notes.models import Note
from tests.conftest import PATIENT, wait_until
from tests.dnsmasq import NAME, Dnsmasq, running_dnsmasq
from tests.site import PASSWORD

SECOND, THIRD = "127.0.0.2", "127.0.0.3"
A2, A3 = f"replica1@{SECOND}", f"replica1@{THIRD}"


@pytest.fixture(scope="module")
def _standbys(real_cluster: Cluster, _django_on_cluster: None) -> Iterator[list[ReplicaServer]]:
    """Two standbys at one port of two addresses."""
    assert real_cluster._workspace is not None
    assert real_cluster._binaries is not None
    made: list[ReplicaServer] = []
    port = free_port()
    try:
        for host in (SECOND, THIRD):
            standby = ReplicaServer(
                real_cluster._workspace,
                real_cluster._binaries,
                f"standby-{host}",
                real_cluster.primary,
            )
            standby.host, standby.port = host, port
            made.append(standby)
            standby.copy_upstream()
            standby.start()
        yield made
    finally:
        for standby in made:
            standby.kill()
            shutil.rmtree(standby.data_directory)  # another module makes them anew


@pytest.fixture
def standbys(cluster: Cluster, _standbys: list[ReplicaServer]) -> list[ReplicaServer]:
    """The same, with nothing lagging."""
    for standby in _standbys:
        standby.resume()
        standby.wait_replayed(cluster.primary.flush())
    return _standbys


@pytest.fixture
def names(real_cluster: Cluster) -> Iterator[Dnsmasq]:
    """A name server that knows no name yet."""
    assert real_cluster._workspace is not None
    with running_dnsmasq(real_cluster._workspace) as server:
        yield server


@pytest.fixture
def template(
    cluster: Cluster, standbys: list[ReplicaServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """The settings of ``replica1``, by a host name that only the test's name server knows."""
    stop_monitors()
    connections["replica1"].close()
    monkeypatch.setattr(discovery, "is_under_test", lambda: False)
    before: Any = connections.settings
    database = before["replica1"]
    old = {**database, "OPTIONS": {**database["OPTIONS"]}}
    database.update(HOST=NAME, PORT=str(standbys[0].port))
    yield database
    stop_monitors()
    for alias in {*connections, *getattr(connections.settings, "former", ())} - {*before}:
        connections[alias].close()
        del connections[alias]
    connections["replica1"].close()
    conf.parsed.found = {}
    conf._forget(setting="DATABASES")
    database.clear()
    database.update(old)
    connections.settings = before


Discover = Callable[..., None]


@pytest.fixture
def discover(template: dict[str, Any], names: Dnsmasq, settings: Any) -> Discover:
    """Return a function that has the name looked up, and the servers found take ``replica1``'s place."""

    def discover(entry: dict[str, Any] | None = None, **router: Any) -> None:
        described = {"NAME": NAME, "NAMESERVER": "127.0.0.1", "PORT": names.port, "INTERVAL": 0.1}
        settings.REPLICA_ROUTER = {
            **PATIENT,
            "INTERVAL": 0.3,
            "CLUSTERS": {"default": ["replica1"]},
            "DISCOVERY": {"replica1": {**described, **(entry or {})}},
            **router,
        }
        with scope():
            Note.objects.first()  # starts the monitor

    return discover


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that waits until the name has been looked up so many times more."""
    begun: list[None] = []

    def counted(entry: Any) -> Any:
        begun.append(None)
        return look_up(entry)

    monkeypatch.setattr(discovery, "look_up", counted)

    def wait(count: int) -> None:
        expected = len(begun) + count + 1  # the last of them has ended when another begins
        wait_until(lambda: len(begun) >= expected, f"{count} look-ups")

    return wait


def the_monitor() -> Monitor:
    """Return this process's monitor."""
    monitor = find_monitor("default")
    assert monitor is not None
    return monitor


def serving() -> set[str]:
    """Return the aliases to which requests may be sent."""
    return {r.alias for r in the_monitor().health.replicas() if r.state is ReplicaState.STREAMING}


def wait_until_serving(*aliases: str) -> None:
    """Return once these replicas serve, and no others."""
    wait_until(lambda: serving() == set(aliases), f"{aliases} to serve, not {serving()}")


def where(request: HttpRequest) -> str:
    """Return the alias that serves the request."""
    return str(Note.objects.all().db)


def readers_of(alias: str, *aliases: str) -> list[User]:
    """Return three users who meet that one of the aliases first."""
    weights = dict.fromkeys(aliases, 1.0)
    found: list[User] = []
    while len(found) < 3:
        user = User.objects.create_user(f"reader{User.objects.count()}", password=PASSWORD)
        if rendezvous(digest("user", str(user.pk)), weights)[0] == alias:
            found.append(user)
    return found
