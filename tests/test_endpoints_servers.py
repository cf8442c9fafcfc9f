"""Servers that must not serve behind one alias for several, and what one server costs."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.sql import answering
from testproject.cluster import Cluster, PostgresServer
from testproject.notes.models import Note
from tests.conftest import POOLER, wait_until
from tests.endpoints import (  # noqa: F401 - fixtures
    ALIAS,
    POOLED,
    Endpoint,
    endpoint,
    kind,
    led_by,
    look,
    only_transaction,
    present_monitor,
    read,
    read_in_turn,
    reconnect,
    rename,
    servers_of,
    site_settings,
    wait_until_served,
)
from tests.helpers import Served

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = [
    pytest.mark.usefixtures("test_site"),
    pytest.mark.skipif(bool(POOLER), reason="it has poolers of its own"),
]


@pytest.mark.parametrize("kind", POOLED)
def test_a_pool_of_as_many_connections_as_servers_is_enough(
    kind: str, cluster: Cluster, site_settings: Any, ann: User, note: Note
) -> None:
    """The monitor's next one waits until the pooler gives it up; both servers serve all the same."""
    with led_by(cluster, kind, is_monitor_bound=True) as endpoint:
        wait_until_served(endpoint)
        for server in endpoint.targets:
            wait_until(partial(serves, endpoint, server, ann), f"{server.name} to serve")


# Servers that must not serve ---------------------------------------------------------------------


def test_an_endpoint_that_leads_to_the_primary_as_well_reads_from_its_standbys(
    kind: str, healed: Cluster, site_settings: Any, ann: User, note: Note
) -> None:
    """As a service that balances over all servers: reads by it come from standbys alone."""
    with led_by(healed, kind, [healed.primary, *healed.replicas]) as endpoint:
        wait_until_served(endpoint, *healed.replicas)
        seen = []
        for _ in range(30):
            with Served() as served:
                seen.append(read(endpoint, None, ann))
            # What the primary has answered by the endpoint was asked of it once more by its own alias.
            if seen[-1].port == healed.primary.port:
                assert served.statements[-1][0] == "default"
        assert servers_of(endpoint, seen).keys() & {"replica1", "replica2"}
        for server in healed.replicas:
            wait_until(partial(serves, endpoint, server, ann), f"{server.name} to serve")


def serves(endpoint: Endpoint, server: PostgresServer, user: User) -> bool:
    """Tell whether a reader is served by a server that the endpoint leads to."""
    return read(endpoint, server, user).port == server.port


def test_an_endpoint_that_falls_back_to_the_primary_serves_once_a_standby_is_back(
    kind: str, healed: Cluster, site_settings: Any, ann: User, note: Note
) -> None:
    """As a cloud's does where no replica is up: the primary is taken for what it is meanwhile."""
    with led_by(healed, kind, [healed.primary, *healed.replicas]) as endpoint:
        for is_known in (False, True):
            with endpoint.only(healed.primary):
                if not is_known:
                    reconnect()
                rename(ann, f"title {is_known}")
                assert read(endpoint, None, ann) == (
                    f"title {is_known}",
                    "default",
                    healed.primary.port,
                )
            wait_until_served(endpoint, *healed.replicas)
            assert read(endpoint, None, ann).title == f"title {is_known}"


ADDING = """
CREATE FUNCTION add_note() RETURNS bigint LANGUAGE sql AS
$$INSERT INTO notes_note (owner_id, title, body, version, created, updated)
  SELECT owner_id, 'added', '', 1, now(), now() FROM notes_note WHERE title = 'first' RETURNING id$$
"""


def add_by_a_query(endpoint: Endpoint) -> list[Note]:
    """Add a note by what looks as if it only read, led to the primary by the pooler."""
    primary = endpoint.cluster.primary
    primary.execute(ADDING, dbname="app")
    try:
        wait_until_served(endpoint, *endpoint.cluster.replicas)
        with scope():
            with endpoint.only(endpoint.cluster.replicas[0]):
                assert look().alias == ALIAS
            with endpoint.only(primary):
                [*Note.objects.raw("SELECT 1 AS id, add_note()")]
    finally:
        primary.execute("DROP FUNCTION add_note", dbname="app")
    return [*Note.objects.using("default").filter(title="added")]


@only_transaction
def test_what_a_query_writes_is_written_once(
    kind: str, healed: Cluster, site_settings: Any, note: Note
) -> None:
    """Where it was led to the primary it is refused, as by a standby; then it is run there."""
    with led_by(healed, kind, [healed.primary, *healed.replicas]) as endpoint:
        pop_stats()
        assert len(add_by_a_query(endpoint)) == 1
        assert get_stats()["retried_refused_write"] == 1


@only_transaction
def test_were_it_not_refused_it_would_be_written_twice(
    kind: str, healed: Cluster, site_settings: Any, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(answering, "_READ_ONLY", "true")
    with led_by(healed, kind, [healed.primary, *healed.replicas]) as endpoint:
        assert len(add_by_a_query(endpoint)) == 2


def test_a_promoted_server_is_left_and_the_other_serves(
    healed: Cluster, endpoint: Endpoint, ann: User, note: Note
) -> None:
    """Its rows are not shown from the moment on at which it is promoted."""
    wait_until_served(endpoint)
    other = healed.replicas[1]
    with endpoint.only(other):
        connections[ALIAS].close()
        with scope():
            assert look().port == other.port
            other.promote()
            other.execute("UPDATE notes_note SET title = 'of another history'", dbname="app")
            assert look().title == "first"
    seen = read_in_turn(endpoint, ann)
    assert {title for title, _, _ in seen} == {"first"}
    wait_until(partial(serves, endpoint, healed.replicas[0], ann), "the other server to serve")


def test_a_server_of_another_cluster_is_left_and_the_others_serve(
    kind: str, healed: Cluster, site_settings: Any, ann: User, note: Note
) -> None:
    """Though it is a standby as good as any."""
    with Cluster(replicas=1, cache=False) as foreign:
        (stranger,) = foreign.replicas
        stranger.name = "stranger"
        with led_by(healed, kind, [*healed.replicas, stranger]) as endpoint:
            wait_until_served(endpoint, *healed.replicas)
            for _ in range(3):
                assert read(endpoint, stranger, ann).port == healed.primary.port
            # A moment's wait of this machine may keep a server back: what is read of it grows old.
            for server in healed.replicas:
                wait_until(partial(serves, endpoint, server, ann), f"{server.name} to serve")


# What one server costs ---------------------------------------------------------------------------


def test_an_alias_of_one_server_has_one_connection(cluster: Cluster, note: Note) -> None:
    """Where the server itself is connected to, nobody looks for another one."""
    monitor = present_monitor()
    assert not monitor.servers.endpoints
    assert all(poller._scouted_at == -math.inf for poller in monitor._pollers.values())
    assert list(monitor._pollers) == ["replica1", "replica2"]


def test_one_server_behind_a_balancer_is_no_endpoint(
    kind: str, cluster: Cluster, site_settings: Any, note: Note
) -> None:
    """Others are looked for once, and none is found."""
    with led_by(cluster, kind, cluster.replicas[:1]) as endpoint:
        wait_until_served(endpoint)
        monitor = present_monitor()
        assert monitor._pollers[ALIAS]._scouted_at > 0
        assert not monitor.servers.endpoints
        assert list(monitor._pollers) == [ALIAS]


def test_readings_of_an_endpoint_are_not_told(endpoint: Endpoint, note: Note) -> None:
    """Another process knows other servers by the same keys, and looks itself."""
    wait_until_served(endpoint)
    told = present_monitor().hearsay.describe()
    assert told is not None
    assert told.replicas == {}


def test_a_stopped_monitor_leaves_no_thread(endpoint: Endpoint, note: Note) -> None:
    """Nor a connection: each server has its poller, and the alias what looks for more."""
    wait_until_served(endpoint)
    stop_monitors()
    names = "replica-router-monitor"
    wait_until(
        lambda: not [t for t in threading.enumerate() if t.name.startswith(names)], "them to end"
    )
