"""Faults of a server behind one alias for several."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections

from django_replica_router import scope
from django_replica_router.policy import ReplicaState
from django_replica_router.signals import replica_lost, replica_restored
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import PATIENT, POOLER, wait_until
from tests.endpoints import (  # noqa: F401 - fixtures
    ALIAS,
    BALANCED,
    Endpoint,
    endpoint,
    kind,
    led_by,
    look,
    present_monitor,
    read,
    rename,
    servers_of,
    site_settings,
    wait_until_served,
)

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = [
    pytest.mark.usefixtures("test_site"),
    pytest.mark.skipif(bool(POOLER), reason="it has poolers of its own"),
]


# Faults ------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(kind: str, cluster: Cluster, site_settings: Any) -> Iterator[Endpoint]:
    """An endpoint of a site with the default time-outs."""
    site_settings.REPLICA_ROUTER = {"CLUSTERS": {"default": [ALIAS]}}
    with led_by(cluster, kind) as endpoint:
        yield endpoint


NEW_SECONDS = 0.5
"""For so long after a fault, or its end, its user does not rest."""


def read_through(endpoint: Endpoint, user: User, seconds: float) -> Counter[str]:
    """Read and write as one user for a while; return who has served how often.

    Without a rest at first, when a fault is new; later now and then, as nothing changes any more.

    Raises:
        AssertionError: something else than the last write was seen.
    """
    seen = []
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        time.sleep(max(0.0, elapsed - NEW_SECONDS) / 20)
        title = f"title {len(seen)}"
        if len(seen) % 4 == 0:
            rename(user, title)
            written = title
        if len(seen) % 2:
            connections[ALIAS].close()
        with scope(user=user):
            seen.append(look())
        assert seen[-1].title == written
    return servers_of(endpoint, seen)


def break_and_mend(endpoint: Endpoint, fault: str) -> Iterator[None]:
    """Break something, yield, and mend it."""
    one, other = endpoint.cluster.replicas
    balancer = endpoint.cluster.balancer
    assert balancer is not None
    if fault == "taken out":
        balancer.take_out(other.name)
        yield
        balancer.put_back(other.name)
    elif fault == "suspended":
        other.suspend()
        yield
        other.resume_process()
    elif fault == "started anew":
        other.restart()
        yield
    else:
        victims = [one, other] if fault == "both killed" else [other]
        for victim in victims:
            victim.kill()
        yield
        for victim in victims:
            victim.start()


FAULTS = ("taken out", "killed", "both killed", "suspended", "started anew")


@pytest.mark.hangs
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_of_a_server_is_seen(
    healed: Cluster, hurried: Endpoint, site_settings: Any, ann: User, note: Note, fault: str
) -> None:
    """No error, no stale row; and what is mended serves again."""
    patient = {**site_settings.REPLICA_ROUTER, **PATIENT}
    is_led_past = fault in {"taken out", "killed"} and hurried.kind in BALANCED
    wait_until_served(hurried)
    if is_led_past:  # none of the time-outs is needed, and a busy machine meets them by itself
        site_settings.REPLICA_ROUTER = patient
    acts = break_and_mend(hurried, fault)
    next(acts)
    served = read_through(hurried, ann, 3.0)
    assert sum(served.values()) >= 5
    if fault == "both killed":
        assert set(served) == {"primary"}
    elif is_led_past:
        assert served["replica1"] > sum(served.values()) / 2
    assert next(acts, None) is None
    site_settings.REPLICA_ROUTER = patient
    wait_until_served(hurried)
    served = read_through(hurried, ann, 1.0)
    assert served["primary"] < sum(served.values()) / 2


@pytest.mark.hangs
@pytest.mark.parametrize("kind", [*BALANCED, "session"])
def test_a_statement_that_hangs_on_one_server_is_ended(
    healed: Cluster, hurried: Endpoint, note: Note
) -> None:
    """Within about a second, and the other server goes on serving."""
    wait_until_served(hurried)
    one, other = hurried.targets
    with hurried.only(other):
        connections[ALIAS].close()
        with scope():
            assert look().port == other.port
            other.suspend()
            began = time.monotonic()
            assert look().port == healed.primary.port
    assert time.monotonic() - began < 4.0
    wait_until(lambda: read(hurried, None).port == one.port, "the other one to serve")
    other.resume_process()
    wait_until_served(hurried)


@pytest.mark.parametrize("kind", ["roundrobin"])
def test_the_alias_is_lost_with_its_last_server(
    healed: Cluster, hurried: Endpoint, note: Note
) -> None:
    """Signals tell of the alias, the log of each server."""
    wait_until_served(hurried)
    told: list[str] = []

    def lost(sender: str, **kwargs: Any) -> None:
        told.append("lost")

    def restored(sender: str, **kwargs: Any) -> None:
        told.append("restored")

    replica_lost.connect(lost)
    replica_restored.connect(restored)
    monitor = present_monitor()
    try:
        hurried.targets[1].kill()
        wait_until(lambda: len(monitor.servers.keys(ALIAS)) == 1, "its server to be dropped")
        assert monitor.health.replica(ALIAS).state is ReplicaState.STREAMING
        assert told == []
        hurried.targets[0].kill()
        wait_until(lambda: told == ["lost"], "the alias to be lost")
        for server in hurried.targets:
            server.start()
        wait_until(lambda: told == ["lost", "restored"], "it to be back")
    finally:
        replica_lost.disconnect(lost)
        replica_restored.disconnect(restored)
